"""The commands as a person meets them: output, exit codes, help, and what is left behind."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import h5py
import pytest
from click.testing import CliRunner

from stinfer import __version__
from stinfer.cli import main, run
from stinfer.cli_tools import ProgressBar

DATA = Path(__file__).parents[1] / "data"
BANK = str(DATA / "board.h5")
BOARD = str(DATA / "board.png")


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def commands(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield f"{path} {name}".strip(), command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}".strip())


@pytest.mark.parametrize(("name", "command"), list(commands(main)), ids=str)
def test_every_command_and_flag_is_explained(name: str, command: click.Command) -> None:
    code, text = invoke(*name.split(), "--help")
    assert code == 0
    assert "Example: stinfer" in text
    assert command.help
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{name} {option.name}"


def test_run_and_stinfer_run_are_one_command() -> None:
    assert main.commands["run"] is run


def test_version() -> None:
    assert invoke("--version") == (0, f"stinfer, version {__version__}\n")


def test_run_says_where_the_results_are(tmp_path: Path) -> None:
    out = tmp_path / "p.h5ad"
    code, text = invoke("run", BOARD, "--bank", BANK, "--mpp", "5", "--out", str(out), "--png", "RED, GREEN")
    assert code == 0
    assert f"{out}: 25 spots x 3 genes, log1p CP10K" in text
    assert {path.name for path in tmp_path.iterdir()} == {"p.h5ad", "p.RED.png", "p.GREEN.png"}


def test_without_out_the_prediction_is_named_after_the_slide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke("run", BOARD, "--bank", BANK, "--mpp", "5", "--quiet") == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["board.stinfer.h5ad"]


def test_genes_from_a_file_keep_the_order_of_the_bank(tmp_path: Path) -> None:
    (tmp_path / "genes.txt").write_text("RED  # first here, second in the bank\n\nGREEN\n")
    out = tmp_path / "p.h5ad"
    arguments = ["--mpp", "5", "--genes", str(tmp_path / "genes.txt"), "--out", str(out)]
    assert invoke("run", BOARD, "--bank", BANK, *arguments)[0] == 0
    with h5py.File(out) as file:
        assert list(file["var/_index"].asstr()[...]) == ["GREEN", "RED"]


@pytest.mark.parametrize(
    ("arguments", "cause", "remedy"),
    [
        (["nowhere.svs", "--mpp", "5"], "slide nowhere.svs does not exist", "check the path"),
        ([BOARD], "does not say how many µm one pixel is", "--mpp"),
        ([BOARD, "--mpp", "30"], "--mpp gives 30 µm per pixel", "--mpp 0.5 for a 20x scan"),
        ([str(DATA / "glass.png"), "--mpp", "5"], "no tissue found", "--spots"),
        ([BANK, "--mpp", "5"], "it is an HDF5 file, and no map", "JPEG, PNG or TIFF"),
        ([BOARD, "--mpp", "5", "--genes", "RAD"], "RAD (nearest: RED)", "bank info"),
        ([BOARD, "--mpp", "5", "--device", "cuda"], "--device cuda", "--device cpu"),
        ([BOARD, "--mpp", "5", "--spots", "none.csv"], "none.csv: the file does not exist", "x,y"),
    ],
)
def test_a_mistake_is_one_line_of_cause_and_one_of_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], cause: str, remedy: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, text = invoke("run", *arguments, "--bank", BANK)
    first, second = text.strip().splitlines()
    assert code == 1
    assert first.startswith("Error: ")
    assert cause in first
    assert second.startswith("Try:   ")
    assert remedy in second
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--k", "0"], ["--mpp", "-1"], ["--weighting", "best"], ["--speed"]])
def test_a_wrong_flag_is_a_usage_error(arguments: list[str]) -> None:
    code, text = invoke("run", BOARD, "--bank", BANK, *arguments)
    assert code == 2
    assert "Usage:" in text


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        msg = "a bug of ours"
        raise RuntimeError(msg)

    monkeypatch.setattr("stinfer.pipeline.predict_slide", broken)
    result = CliRunner().invoke(main, ["run", BOARD, "--bank", BANK])
    assert isinstance(result.exception, RuntimeError)


def test_bank_info_and_genes() -> None:
    code, text = invoke("bank", "info", BANK)
    assert code == 0
    assert "30 spots: T1 (30)" in text
    assert invoke("bank", "info", BANK, "--genes") == (0, "GREEN\nRED\nREST\n")


def test_bank_verify() -> None:
    code, text = invoke("bank", "verify", BANK)
    assert code == 0
    assert text.count("ok  ") == 4


@pytest.mark.parametrize("limit", [2_000, 30_000])
@pytest.mark.parametrize("extra", [[], ["--csv", "p.csv", "--png", "RED"]])
def test_a_full_disk_leaves_nothing_but_the_checkpoint(tmp_path: Path, limit: int, extra: list[str]) -> None:
    """A limit on the size of files fails every write beyond it, as a full disk does."""
    code = "import sys; from stinfer.cli import run_main; sys.argv[0] = 'stinfer-run'; run_main()"
    done = subprocess.run(
        [sys.executable, "-c", code, BOARD, "--bank", BANK, "--mpp", "5", "--out", "p.h5ad", *extra],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    lines = [line for line in done.stderr.splitlines() if line and "patches/s" not in line]
    assert done.returncode == 1, done.stderr
    assert lines[0] == (
        "Note:  1 of 1 batches are kept in p.h5ad.checkpoint: run the same command again to go on there"
    )
    assert lines[1].startswith("Error: cannot write p.")
    assert lines[2].startswith("Try:   make room")
    assert len(lines) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["p.h5ad.checkpoint"]


def test_a_terminated_run_leaves_nothing_but_the_checkpoint(tmp_path: Path) -> None:
    """SIGTERM, as a batch system sends it, while the outputs are being written."""
    code = (
        "import os, signal, stinfer.pipeline as p\n"
        "real = p.write_csv\n"
        "def killed(*a):\n    real(*a)\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "p.write_csv = killed\n"
        "from stinfer.cli import run_main; run_main()"
    )
    arguments = [BOARD, "--bank", BANK, "--mpp", "5", "--out", "p.h5ad", "--csv", "p.csv", "--png", "RED"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 128 + 15
    assert [path.name for path in tmp_path.iterdir()] == ["p.h5ad.checkpoint"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 128 + 15), (signal.SIGINT, 1)])
def test_a_signal_while_patches_are_encoded_ends_the_run_after_the_step_it_is_at(
    tmp_path: Path, number: int, code: int
) -> None:
    script = (
        "import time, stinfer.encoder as e\n"
        "real, n = e.Encoder.embed, 0\n"
        "def slow(*a):\n"
        "    global n\n"
        "    n += 1\n"
        "    print(n, flush=True)\n"
        "    time.sleep(0.2)\n"
        "    return real(*a)\n"
        "e.Encoder.embed = slow\n"
        "from stinfer.cli import run_main; run_main()"
    )
    arguments = [BOARD, "--bank", BANK, "--mpp", "5", "--out", "p.h5ad", "--batch-size", "1", "--quiet"]
    command = [sys.executable, "-c", script, *arguments]
    child = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What a shell starts in the background ignores Ctrl-C, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for _ in range(4):
        child.stdout.readline()
    child.send_signal(number)
    out, said = child.communicate(timeout=60)
    assert child.returncode == code
    assert out.count("\n") <= 1  # of the 21 others, at most the one that had just begun
    assert [path.name for path in tmp_path.iterdir()] == ["p.h5ad.checkpoint"]
    assert "of 25 batches are kept in p.h5ad.checkpoint: run the same command again to go on there" in said
    assert "Traceback" not in said


def test_nothing_is_written_to_the_home_folder(tmp_path: Path) -> None:
    """ONNX Runtime's telemetry would leave a device number there, and look up its maker's servers."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    code = "from stinfer.cli import run_main; run_main()"
    environment = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    subprocess.run(
        [sys.executable, "-c", code, BOARD, "--bank", BANK, "--mpp", "5", "--quiet"],
        cwd=work,
        env=environment,
        check=True,
    )
    assert [path.name for path in work.iterdir()] == ["board.stinfer.h5ad"]
    assert not any(home.rglob("*"))


def test_a_bar_that_an_error_left_open_ends_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    bar = ProgressBar(quiet=False)
    bar(0, 10, "patches")
    bar(3, 10, "patches")
    assert not capsys.readouterr().err.endswith("\n")
    ProgressBar.close_all()
    assert capsys.readouterr().err.endswith("\n")
