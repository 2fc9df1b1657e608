"""Runs that are cut off anywhere and go on: the files are those of a run that was not."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

import stinfer
from stinfer import feature_map, files, region_pixels
from stinfer.errors import OutputBusyError, OutputExistsError, SettingError, SlideUnreadableError
from stinfer.lock import locked
from stinfer.slide import Slide
from stinfer.step_file import StepFile

DATA = Path(__file__).parents[1] / "data"
BOARD = DATA / "board.png"
# At 5 µm per pixel a region of 64 px of the map, at 10 µm per pixel, is 128 px of the board's 400 x 360.
MPP = 5.0
BANKS = {"map": DATA / "board_map.h5", "patch": DATA / "board.h5"}
N_STEPS = {"map": 9, "patch": 7}  # 25 places in batches of 4; the tissue, 4 x 4 regions at most

Files = dict[str, bytes]


@pytest.fixture(autouse=True)
def _small_regions(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(feature_map, "ENCODED_PX", 48)
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stinfer")]


def run(folder: Path, pooling: str, **changed) -> stinfer.outputs.PredictionResult:
    """Predict with every kind of output there is."""
    arguments = {
        "slide": BOARD, "bank": BANKS[pooling], "out": folder / "p.h5ad", "mpp": MPP, "batch_size": 4,
        "csv": folder / "p.csv", "png": ["RED"], "ome_tiff": folder / "p.ome.tif",
    }  # fmt: skip
    if pooling == "map":
        arguments["save_map"] = folder / "board.map.h5"
    return stinfer.predict_slide(**(arguments | changed))


def contents(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Files]:
    pytest.importorskip("tifffile")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_map, "ENCODED_PX", 48)
        for pooling in BANKS:
            folder = tmp_path_factory.mktemp(pooling)
            run(folder, pooling)
            found[pooling] = contents(folder)
    assert len(found["map"]) == 5
    return found


class Cut:
    """Ends a run as it adds a step, and counts the steps that runs add."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n_added, self.at, self.error = 0, -1, KeyboardInterrupt
        real = StepFile.add

        def add(file: StepFile, values: np.ndarray) -> None:
            if file.n_done == self.at:
                raise self.error
            real(file, values)
            self.n_added += 1

        monkeypatch.setattr(StepFile, "add", add)


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Cut:
    return Cut(monkeypatch)


# --- the same files, wherever it was cut ----------------------------------------------------------


@pytest.mark.parametrize("pooling", BANKS)
def test_a_run_cut_at_any_step_goes_on_there_and_writes_the_same_files(
    tmp_path: Path, pooling: str, whole: dict[str, Files], cut: Cut
) -> None:
    for step in range(1, N_STEPS[pooling]):
        folder = tmp_path / str(step)
        folder.mkdir()
        cut.at, cut.n_added = step, 0
        with pytest.raises(KeyboardInterrupt):
            run(folder, pooling)
        assert contents(folder).keys() == {"p.h5ad.checkpoint"}
        cut.at = -1
        run(folder, pooling)
        assert cut.n_added == N_STEPS[pooling]  # none was encoded twice
        assert contents(folder) == whole[pooling]


@pytest.mark.parametrize("pooling", BANKS)
def test_a_run_cut_again_and_again_gets_there(
    tmp_path: Path, pooling: str, whole: dict[str, Files], cut: Cut
) -> None:
    for step in range(1, N_STEPS[pooling]):
        cut.at = step
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, pooling)
    cut.at = -1
    run(tmp_path, pooling)
    assert cut.n_added == N_STEPS[pooling]
    assert contents(tmp_path) == whole[pooling]


@pytest.mark.parametrize("pooling", BANKS)
def test_what_a_step_depends_on_not_may_change_in_between(tmp_path: Path, pooling: str, cut: Cut) -> None:
    other = {"k": 3, "weighting": "uniform", "genes": ["RED", "GREEN"], "png": []}
    (tmp_path / "other").mkdir()
    run(tmp_path / "other", pooling, **other)
    (tmp_path / "cut").mkdir()
    cut.at, cut.n_added = 3, 0
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", pooling)
    cut.at = -1
    run(tmp_path / "cut", pooling, **other)
    assert cut.n_added == N_STEPS[pooling]
    assert contents(tmp_path / "cut") == contents(tmp_path / "other")


@pytest.mark.parametrize("changed", ["slide", "mpp", "bank", "places", "batch_size"])
def test_a_checkpoint_of_another_slide_bank_or_setting_is_never_used(
    tmp_path: Path, changed: str, cut: Cut, caplog: pytest.LogCaptureFixture
) -> None:
    recolored = tmp_path / "board.png"
    with Image.open(BOARD) as board:
        Image.fromarray(255 - (255 - np.asarray(board)) // 2).save(recolored)
    other = {
        "slide": {"slide": recolored},
        "mpp": {"mpp": 5.5},
        "bank": {"bank": BANKS["map"]},
        "places": {"pitch_um": 150.0},
        "batch_size": {"batch_size": 5},
    }[changed]
    pooling = "map" if changed == "mpp" else "patch"
    (tmp_path / "fresh").mkdir()
    run(tmp_path / "fresh", pooling, **other)
    (tmp_path / "new").mkdir()
    cut.at = 3
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "new", pooling)
    cut.at, cut.n_added = -1, 0
    caplog.clear()
    with caplog.at_level(logging.WARNING, "stinfer"):
        run(tmp_path / "new", pooling, **other)
    n_all = cut.n_added
    kept = tmp_path / "new" / "p.h5ad.checkpoint"
    assert [text for text in caplog.messages if "checkpoint" in text] == [
        f"checkpoint {kept} is of another slide, bank or setting: it is not used, and will be replaced"
    ]
    assert contents(tmp_path / "new") == contents(tmp_path / "fresh")
    with h5py.File(tmp_path / "new" / "p.h5ad") as file:
        notices = list(file["uns/stinfer/notices"].asstr()[...])
    assert n_all > 3
    assert not [text for text in notices if "checkpoint" in text]


def test_a_checkpoint_that_was_altered_is_used_up_to_there(
    tmp_path: Path, whole: dict[str, Files], cut: Cut
) -> None:
    cut.at = 5
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "map")
    path = tmp_path / "p.h5ad.checkpoint"
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    path.write_bytes(data)
    cut.at, cut.n_added = -1, 0
    run(tmp_path, "map")
    assert 4 < cut.n_added < N_STEPS["map"]
    assert contents(tmp_path) == whole["map"]


def test_a_slide_that_breaks_on_the_way_says_so_and_keeps_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, Files]
) -> None:
    """The slide is read in threads of their own: the error that comes out is that very one."""
    real = Slide.read
    # At the board's scale, halved: what is averaged does not depend on the block.
    monkeypatch.setattr(region_pixels, "BLOCK_PX", 32)

    def failing(self: Slide, *box) -> np.ndarray:
        (_, y), *_ = box
        if threading.current_thread() is not threading.main_thread() and y > 128:
            raise SlideUnreadableError(BOARD, "a tile is damaged")
        return real(self, *box)

    with monkeypatch.context() as patched:
        patched.setattr(Slide, "read", failing)
        with pytest.raises(SlideUnreadableError, match="a tile is damaged"):
            run(tmp_path, "map")
    assert contents(tmp_path).keys() == {"p.h5ad.checkpoint"}
    run(tmp_path, "map")
    assert contents(tmp_path) == whole["map"]


# --- killed as the files get their names ----------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
import stinfer
from stinfer import feature_map
feature_map.ENCODED_PX = 48
n_left = int(sys.argv[1])
real = Path.replace
def replace(self, target):
    global n_left
    if not Path(target).name.endswith(".partial") and not Path(target).name.endswith(".checkpoint"):
        if n_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        n_left -= 1
    return real(self, target)
Path.replace = replace
real_unlink = Path.unlink
def unlink(self, missing_ok=False):
    if n_left == 0 and self.name.endswith(".checkpoint"):
        os.kill(os.getpid(), signal.SIGKILL)
    real_unlink(self, missing_ok=missing_ok)
Path.unlink = unlink
stinfer.predict_slide(sys.argv[2], sys.argv[3], out="p.h5ad", csv="p.csv", mpp=5.0, png=["RED"])
"""


@pytest.mark.parametrize("n_named", [0, 1, 2, 3])
def test_a_run_killed_between_two_of_its_names_goes_on(tmp_path: Path, n_named: int) -> None:
    fresh = tmp_path / "fresh"
    fresh.mkdir()

    def predict(into: Path) -> None:
        out, csv = into / "p.h5ad", into / "p.csv"
        stinfer.predict_slide(BOARD, BANKS["map"], out=out, csv=csv, mpp=MPP, png=["RED"])

    predict(fresh)
    folder = tmp_path / "killed"
    folder.mkdir()
    command = [sys.executable, "-c", KILLED, str(n_named), str(BOARD), str(BANKS["map"])]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    named = {name for name in ("p.h5ad", "p.csv", "p.RED.png") if (folder / name).exists()}
    assert len(named) == n_named
    # Also when the user's own file has come to lie there.
    if n_named == 1:
        (folder / "p.csv").write_text("precious")
        with pytest.raises(OutputExistsError, match=r"p\.csv exists"):
            predict(folder)
        (folder / "p.csv").unlink()
    predict(folder)
    assert contents(folder) == contents(fresh)


# --- who may write, and what is told --------------------------------------------------------------


@pytest.mark.parametrize("output", ["p.h5ad", "p.csv", "p.RED.png"])
def test_a_second_run_on_any_output_says_so_at_once(tmp_path: Path, output: str) -> None:
    with locked([tmp_path / output]), pytest.raises(OutputBusyError, match=output):
        run(tmp_path, "patch")
    assert contents(tmp_path) == {}


def test_a_file_in_the_checkpoints_place_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "p.h5ad.checkpoint").write_text("precious")
    with pytest.raises(OutputExistsError, match=r"p\.h5ad\.checkpoint exists"):
        run(tmp_path, "patch", overwrite=True)
    assert contents(tmp_path) == {"p.h5ad.checkpoint": b"precious"}
    slide = Path(shutil.copy(BOARD, tmp_path / "q.h5ad.checkpoint"))
    with pytest.raises(SettingError, match="also an input or another output"):
        run(tmp_path, "patch", slide=slide, out=tmp_path / "q.h5ad")


def test_going_on_is_told_once_and_not_recorded(
    tmp_path: Path, cut: Cut, caplog: pytest.LogCaptureFixture
) -> None:
    cut.at = 2
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "patch")
    cut.at = -1
    caplog.clear()
    with caplog.at_level(logging.WARNING, "stinfer"):
        result = run(tmp_path, "patch")
    kept = tmp_path / "p.h5ad.checkpoint"
    told = [text for text in caplog.messages if "checkpoint" in text]
    assert told == [f"going on from {kept}: 2 of 7 batches are done"]
    assert not [text for text in result.notices if "checkpoint" in text]


def test_the_log_tells_the_run_and_is_no_part_of_its_result(
    tmp_path: Path, whole: dict[str, Files], cut: Cut
) -> None:
    log = tmp_path / "run.jsonl"
    folder = tmp_path / "out"
    folder.mkdir()
    cut.at = 2
    with pytest.raises(KeyboardInterrupt):
        run(folder, "map", log=log)
    cut.at = -1
    run(folder, "map", log=log)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    events = [line["event"] for line in lines if line["event"] != "notice"]
    assert events == [
        "slide_started", "stage", "places", "message", "slide_interrupted",
        "slide_started", "stage", "places", "message", "stage", "stage", "slide_done",
    ]  # fmt: skip
    assert {line["slide"] for line in lines} == {str(BOARD)}
    assert [line["stage"] for line in lines if line["event"] == "stage"] == [
        "open", "open", "embed and search", "write",
    ]  # fmt: skip
    assert lines[-1]["n_spots"] == 25
    assert [Path(path).name for path in lines[-1]["outputs"]] == [
        "p.h5ad", "p.csv", "p.RED.png", "p.ome.tif", "board.map.h5",
    ]  # fmt: skip
    assert contents(folder) == whole["map"]


def test_a_log_that_is_an_input_or_output_is_refused(tmp_path: Path) -> None:
    slide = Path(shutil.copy(BOARD, tmp_path / "board.png"))
    with pytest.raises(OutputExistsError, match="and is no log"):
        run(tmp_path, "patch", slide=slide, log=slide)
    assert slide.read_bytes() == BOARD.read_bytes()
    with pytest.raises(SettingError, match="also an input or another output"):
        run(tmp_path, "patch", log=tmp_path / "p.csv")


def test_names_are_safe_before_the_checkpoint_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real_flush, real_unlink = files._flush_folder, Path.unlink

    def flush(folder: Path) -> None:
        order.append("names are safe" if (folder / "p.h5ad").exists() else "too early")
        real_flush(folder)

    def unlink(path: Path, missing_ok: bool = False) -> None:  # noqa: FBT001, FBT002 - as pathlib has it
        if path.name == "p.h5ad.checkpoint":
            order.append("checkpoint goes")
        real_unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(files, "_flush_folder", flush)
    monkeypatch.setattr(Path, "unlink", unlink)
    run(tmp_path, "patch")
    assert order == ["names are safe", "checkpoint goes"]
