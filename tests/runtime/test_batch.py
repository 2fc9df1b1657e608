"""Many slides in one run: names, what is skipped, what fails and what the others do meanwhile."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import stinfer
from stinfer import batch, open_bank
from stinfer.batch import SlideOutcome, name_outputs
from stinfer.cli import main
from stinfer.errors import BankNotFoundError, GeneUnknownError, NoTissueError, OutputExistsError
from stinfer.lock import locked
from stinfer.step_file import StepFile

DATA = Path(__file__).parents[1] / "data"
BANK = DATA / "board.h5"
MAP_BANK = DATA / "board_map.h5"
BOARD = DATA / "board.png"
GLASS = DATA / "glass.png"
MPP = 5.0


@pytest.fixture
def slides(tmp_path: Path) -> list[Path]:
    """Three boards, the second turned by a half, and glass between them."""
    folder = tmp_path / "slides"
    folder.mkdir()
    with Image.open(BOARD) as board:
        for name, turn in (("a", 0), ("b", 180), ("c", 0)):
            board.rotate(turn).save(folder / f"{name}.png")
    shutil.copy(GLASS, folder / "glass.png")
    return [folder / f"{name}.png" for name in ("a", "b", "glass", "c")]


def predict(slides: list[Path], out_dir: Path, **changed) -> tuple[SlideOutcome, ...]:
    arguments = {"bank": BANK, "out_dir": out_dir, "mpp": MPP, "genes": ["RED"]}
    return stinfer.predict_slides(slides, **(arguments | changed))


def outcomes(found: tuple[SlideOutcome, ...]) -> list[str]:
    return [one.outcome for one in found]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def command(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["run", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


# --- what is predicted ----------------------------------------------------------------------------


def test_every_slide_gets_what_it_gets_alone_and_one_that_fails_stops_none(
    tmp_path: Path, slides: list[Path]
) -> None:
    found = predict(slides, tmp_path / "out", png=["RED"])
    assert outcomes(found) == ["done", "done", "failed", "done"]
    assert [one.n_spots for one in found] == [25, 25, 0, 25]
    assert isinstance(found[2].error, NoTissueError)
    assert [one.slide for one in found] == slides
    (tmp_path / "alone").mkdir()
    for one in found:
        if one.outcome == "done":
            out = tmp_path / "alone" / one.out.name
            stinfer.predict_slide(one.slide, BANK, out=out, mpp=MPP, genes=["RED"], png=["RED"])
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    names = [f"{name}.stinfer.{kind}" for name in "abc" for kind in ("RED.png", "h5ad")]
    assert sorted(contents(tmp_path / "out")) == names


def test_bank_and_model_are_loaded_once(
    tmp_path: Path, slides: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    for name in ("open_encoders", "choose_search"):
        real = getattr(open_bank, name)
        spy = lambda *a, name=name, real=real, **k: (loaded.append(name), real(*a, **k))[1]  # noqa: E731
        monkeypatch.setattr(open_bank, name, spy)
    real_open = open_bank.Bank.open
    spy_open = lambda _, *a: (loaded.append("bank"), real_open(*a))[1]  # noqa: E731
    monkeypatch.setattr(open_bank.Bank, "open", classmethod(spy_open))
    predict(slides, tmp_path / "out")
    assert sorted(loaded) == ["bank", "choose_search", "open_encoders"]


def test_a_bug_at_one_slide_is_told_with_its_traceback_and_stops_none(
    tmp_path: Path, slides: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = batch.predict_slide

    def broken(slide: Path, *arguments: object, **others: object) -> object:
        if slide.name == "b.png":
            msg = "a bug of ours"
            raise RuntimeError(msg)
        return real(slide, *arguments, **others)

    monkeypatch.setattr(batch, "predict_slide", broken)
    found = predict(slides, tmp_path / "out")
    assert outcomes(found) == ["done", "failed", "failed", "done"]
    assert any(record.exc_info and "b.png: a bug" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("changed", "error"),
    [({"bank": Path("none.h5")}, BankNotFoundError), ({"genes": ["RAD"]}, GeneUnknownError),
     ({"png": ["RAD"]}, GeneUnknownError), ({"png": "RAD"}, GeneUnknownError)],
)  # fmt: skip
def test_what_is_wrong_for_all_is_told_before_the_first(
    tmp_path: Path, slides: list[Path], changed: dict, error: type
) -> None:
    with pytest.raises(error):
        predict(slides, tmp_path / "out", **changed)
    assert not (tmp_path / "out").exists()


def test_what_a_failed_slide_held_in_memory_is_let_go(tmp_path: Path, slides: list[Path]) -> None:
    error = predict(slides, tmp_path / "out")[2].error
    while error is not None:
        assert error.__traceback__ is None
        error = error.__cause__ or error.__context__


# --- again ----------------------------------------------------------------------------------------


def test_finished_slides_are_passed_over_and_failed_ones_tried_again(
    tmp_path: Path, slides: list[Path]
) -> None:
    out = tmp_path / "out"
    predict(slides, out)
    (out / "b.stinfer.h5ad").unlink()
    shutil.copy(BOARD, slides[2])
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    found = predict(slides, out)
    assert outcomes(found) == ["finished before", "done", "done", "finished before"]
    assert [one.n_spots for one in found] == [25] * 4
    for name, moment in before.items():
        assert (out / name).stat().st_mtime_ns == moment


@pytest.mark.parametrize(
    "changed",
    [{"k": 3}, {"mpp": 5.1}, {"genes": "all"}, {"pitch_um": 150}, {"weighting": "uniform"}, {"png": ["RED"]},
     {"bank": MAP_BANK}, {"search": "exact"}, {"device": "cpu"}, {"batch_size": 5}, {"slide": None}],
    ids=str,
)  # fmt: skip
def test_a_prediction_of_anything_else_is_kept_unless_it_may_be_replaced(
    tmp_path: Path, slides: list[Path], changed: dict
) -> None:
    out = tmp_path / "out"
    predict(slides[:1], out)
    before = contents(out)
    changed = dict(changed)
    if "slide" in changed:
        shutil.copy(slides[1], slides[0])
        del changed["slide"]
    (found,) = predict(slides[:1], out, **changed)
    assert found.outcome == "failed"
    assert isinstance(found.error, OutputExistsError)
    assert contents(out) == before
    (found,) = predict(slides[:1], out, overwrite=True, **changed)
    assert found.outcome == "done"
    assert contents(out) != before


def test_what_changes_no_result_changes_not_what_is_finished(tmp_path: Path, slides: list[Path]) -> None:
    genes = tmp_path / "genes.txt"
    genes.write_text("RED\n")
    predict(slides[:1], tmp_path / "out", genes=str(genes), threads=1)
    moved = genes.rename(tmp_path / "others.txt")
    elsewhere = Path(shutil.copy(slides[0], tmp_path / "a.png"))
    found = predict([elsewhere], tmp_path / "out", genes=str(moved), threads=2)
    assert outcomes(found) == ["finished before"]
    moved.write_text("RED\nGREEN\n")
    assert outcomes(predict([elsewhere], tmp_path / "out", genes=str(moved))) == ["failed"]


@pytest.mark.parametrize("content", [b"", b"precious", BANK.read_bytes()], ids=["empty", "text", "a bank"])
def test_a_file_that_is_no_prediction_is_not_taken_for_one(
    tmp_path: Path, slides: list[Path], content: bytes
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.stinfer.h5ad").write_bytes(content)
    assert outcomes(predict(slides[:1], tmp_path / "out")) == ["failed"]
    assert (tmp_path / "out" / "a.stinfer.h5ad").read_bytes() == content


def test_a_run_that_was_cut_off_goes_on_with_the_slide_it_was_at(
    tmp_path: Path, slides: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(slides, tmp_path / "whole", batch_size=5)
    n_added, real = 0, StepFile.add

    def cut(file: StepFile, values: np.ndarray) -> None:
        nonlocal n_added
        if n_added == 7:
            raise KeyboardInterrupt
        real(file, values)
        n_added += 1

    monkeypatch.setattr(StepFile, "add", cut)
    with pytest.raises(KeyboardInterrupt):
        predict(slides, tmp_path / "out", batch_size=5)
    assert set(contents(tmp_path / "out")) == {"a.stinfer.h5ad", "b.stinfer.h5ad.checkpoint"}
    n_added = 100
    assert outcomes(predict(slides, tmp_path / "out", batch_size=5)) == [
        "finished before", "done", "failed", "done",
    ]  # fmt: skip
    assert n_added == 100 + 3 + 5  # of 5 batches each
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


# --- names ----------------------------------------------------------------------------------------


def test_slides_of_one_stem_or_name_do_not_get_one_name(tmp_path: Path) -> None:
    def tag(path: str) -> str:
        return hashlib.sha256(str(tmp_path / path).encode()).hexdigest()[:8]

    given = ["a.svs", "b.svs", "b.ndpi", "x/c.svs", "y/c.svs", "A.tif", "d.map.h5"]
    found = name_outputs([tmp_path / name for name in given], Path("out"))
    assert [path.relative_to(tmp_path).as_posix() for path in found] == given
    assert [path.name for path in found.values()] == [
        "a.svs.stinfer.h5ad",  # A.tif differs by case alone, which some file systems do not see
        "b.svs.stinfer.h5ad",
        "b.ndpi.stinfer.h5ad",
        f"c.svs-{tag('x/c.svs')}.stinfer.h5ad",
        f"c.svs-{tag('y/c.svs')}.stinfer.h5ad",
        "A.tif.stinfer.h5ad",
        "d.stinfer.h5ad",
    ]
    assert {path.parent for path in found.values()} == {Path("out")}


def test_names_depend_on_no_order(tmp_path: Path) -> None:
    given = [tmp_path / name for name in ("b.svs", "b.ndpi", "b.svs.tif", "c/b.svs", "e.svs")]
    found = name_outputs(given, Path())
    assert len(set(found.values())) == 5
    assert name_outputs(given[::-1], Path()) == found


def test_a_slide_that_is_named_twice_is_predicted_once(
    tmp_path: Path, slides: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "link.png").symlink_to(slides[0])
    found = predict([slides[0], slides[1], slides[0], tmp_path / "link.png"], tmp_path / "out")
    assert [one.slide for one in found] == slides[:2]
    assert "2 of 4 slides are named again: each is predicted once" in caplog.messages


# --- the command ----------------------------------------------------------------------------------


def test_the_command_sums_up_and_leaves_with_3_if_any_failed(tmp_path: Path, slides: list[Path]) -> None:
    out = tmp_path / "out"
    result = command(*slides, "--bank", BANK, "--mpp", 5, "--out-dir", out, "--genes", "RED")
    assert result.exit_code == 3
    assert f"Error: no tissue found on slide {slides[2]}" in result.output
    assert "Try:   check that it is an H&E slide" in result.output
    head, *rows = result.stdout.splitlines()
    assert head.split() == ["slide", "spots", "seconds", "result"]
    columns = [row.split(maxsplit=3) for row in rows]
    assert [row[0] for row in columns] == [str(slide) for slide in slides]
    assert [row[1] for row in columns] == ["25", "25", "-", "25"]
    assert columns[0][3] == str(out / "a.stinfer.h5ad")
    assert columns[2][3].startswith("failed: no tissue found on slide")
    again = command(slides[0], slides[3], "--bank", BANK, "--mpp", 5, "--out-dir", out, "--genes", "RED")
    assert again.exit_code == 0
    assert again.output.count("(finished before)") == 2


def test_quiet_prints_the_table_of_failures_alone(tmp_path: Path, slides: list[Path]) -> None:
    rest = ["--bank", BANK, "--mpp", 5, "--out-dir", tmp_path, "--quiet"]
    assert command(slides[0], slides[1], *rest).output == ""
    failed = command(slides[0], slides[2], *rest)
    assert failed.exit_code == 3
    assert [line.split()[0] for line in failed.output.splitlines()] == [
        "Error:", "Try:", "slide", str(slides[0]), str(slides[2]),
    ]  # fmt: skip


def test_one_slide_goes_into_the_folder_too(tmp_path: Path, slides: list[Path]) -> None:
    result = command(slides[0], "--bank", BANK, "--mpp", 5, "--out-dir", tmp_path / "new" / "out", "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    assert list(contents(tmp_path / "new" / "out")) == ["a.stinfer.h5ad"]


@pytest.mark.parametrize("flag", ["--out", "--spots", "--csv", "--ome-tiff", "--save-map"])
def test_a_flag_that_names_one_file_is_wrong_usage_with_several_slides(flag: str) -> None:
    result = command("a.svs", "b.svs", "--bank", BANK, flag, "file")
    assert result.exit_code == 2
    assert f"{flag} names the file of one slide, and 2 are given" in result.output


def test_a_folder_and_a_file_contradict_each_other() -> None:
    result = command("a.svs", "--bank", BANK, "--out", "p.h5ad", "--out-dir", "out")
    assert result.exit_code == 2
    assert "contradict" in result.output
    assert command("--bank", BANK).exit_code == 2


def test_a_slide_that_another_run_is_at_is_told(tmp_path: Path, slides: list[Path]) -> None:
    with locked([tmp_path / "b.stinfer.h5ad"]):
        found = predict(slides, tmp_path)
    assert outcomes(found) == ["done", "failed", "failed", "done"]
    assert "is being written by another run" in str(found[1].error)


def test_the_log_has_one_end_for_every_slide(tmp_path: Path, slides: list[Path]) -> None:
    log = tmp_path / "log"
    arguments = ["--bank", BANK, "--mpp", 5, "--out-dir", tmp_path, "--log", log]
    command(*slides[:3], *arguments)
    n_first = len(log.read_text().splitlines())
    shutil.copy(slides[1], slides[0])
    shown = command(*slides[:2], *arguments).output
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    ends = ("slide_done", "slide_failed", "slide_skipped", "run_done")
    first, second = (
        [(line["event"], line["slide"]) for line in part if line["event"] in ends]
        for part in (lines[:n_first], lines[n_first:])
    )
    names = [str(slide) for slide in slides]
    assert first == [
        ("slide_done", names[0]), ("slide_done", names[1]), ("slide_failed", names[2]), ("run_done", ""),
    ]  # fmt: skip
    assert second == [("slide_failed", names[0]), ("slide_skipped", names[1]), ("run_done", "")]
    (failed,) = (line for line in lines[:n_first] if line["event"] == "slide_failed")
    assert failed["kind"] == "NoTissueError"
    assert failed["fix"].startswith("check that it is an H&E slide")
    assert lines[0]["slides"] == names[:3]
    assert (lines[n_first - 1]["done"], lines[n_first - 1]["failed"]) == (2, 1)
    assert "slide_failed" not in shown  # the terminal is for people
