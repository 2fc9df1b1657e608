"""The command `stinfer-export`: its help and its errors."""

from __future__ import annotations

import dataclasses
import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from stinfer import __version__
from stinfer_export import score as score_module
from stinfer_export.bank_plan import BankPlan
from stinfer_export.cli import main
from stinfer_export.datasets import her2st

_SPEC = importlib.util.spec_from_file_location("cli_project", Path(__file__).parent / "cli_project.py")
shared = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(shared)
_here, board, _run, _succeed = shared.here, shared.board, shared.run, shared.succeed
COMMANDS = shared.COMMANDS


# Help


def test_the_commands_are_those_that_are_documented():
    assert set(COMMANDS) == {
        "",
        "backbone",
        "all",
        "bank",
        "bank her2st",
        "bank visium",
        "bank anndata",
        "bank merge",
        "evaluate",
        "evaluate her2st",
        "evaluate visium",
        "evaluate bank",
        "fetch",
        "fetch weights",
        "fetch her2st",
        "demo-data",
        "score",
        "bench",
        "bench backbones",
        "bench area",
        "bench search",
    }


@pytest.mark.parametrize("path", COMMANDS)
def test_help_says_what_it_does_and_gives_an_example(path):
    command = COMMANDS[path]
    assert command.help
    assert command.epilog.startswith("Example: stinfer-export ")

    shown = " ".join(_succeed(*path.split(), "--help").split())

    assert "Example: stinfer-export " in shown
    assert " ".join(command.help.split())[:60] in shown


@pytest.mark.parametrize("path", COMMANDS)
def test_the_example_can_be_typed(path):
    program, *arguments = shlex.split(COMMANDS[path].epilog.removeprefix("Example: "))
    assert program == "stinfer-export"

    command, names = main, []
    while isinstance(command, click.Group):
        name, command, arguments = command.resolve_command(click.Context(command), arguments)
        names.append(name)
    # Parses, and raises for an option or a value that the command does not take.
    command.make_context(names[-1], list(arguments))

    assert " ".join(names).startswith(path)


@pytest.mark.parametrize("path", COMMANDS)
def test_every_option_says_what_it_is_for(path):
    command = COMMANDS[path]
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
            assert parameter.help.endswith((".", "]")), parameter.name
            # A number outside its range is a usage error, not a surprise later on.
            assert parameter.type not in (click.INT, click.FLOAT), parameter.name
        else:
            assert parameter.human_readable_name in command.help, parameter.name


def test_the_version_is_that_of_the_package():
    assert _succeed("--version") == f"stinfer-export, version {__version__}\n"


def test_defaults_are_those_of_the_library():
    found = COMMANDS["bank her2st"].make_context("her2st", ["DIR", "--model", "m.onnx"]).params
    plan = BankPlan("her2st", her2st.PITCH_UM, her2st.SPOT_DIAMETER_UM)
    shared = {field.name for field in dataclasses.fields(plan)} & set(found)
    assert shared == {
        "pooling",
        "fov_um",
        "window",
        "gene_join",
        "max_outside",
        "metric",
        "distance",
        "k",
        "weighting",
        "preset",
        "stain",
        "orientations",
        "own_section",
    }
    # The command's preset is one, where the library's plan is what it says and nothing else.
    assert (found.pop("preset"), plan.preset) == ("fast", "custom")
    assert (found.pop("orientations"), plan.orientations) == ("1", 1)
    shared -= {"preset", "orientations"}
    assert {name: found[name] for name in shared} == {name: getattr(plan, name) for name in shared}
    assert found["without_model"] is not plan.include_model

    found = COMMANDS["score"].make_context("score", ["p", "--counts", "c", "--bank", "b"]).params
    assert found["n_genes"] == score_module.DEFAULT_N_GENES
    assert found["min_detected"] == score_module.DEFAULT_MIN_DETECTED


# Errors

KNOWN_ERRORS = {
    "backbone": (["backbone", "stain_texture", "--pretrained"], "stain_texture has no weights"),
    "all": (["all", "--her2st", "nowhere"], "data set nowhere: there is no such folder"),
    "bank her2st": (
        ["bank", "her2st", "nowhere", "--model", "models/stain_texture.onnx", "--out", "b.h5"],
        "model models/stain_texture.onnx cannot be read: No such file or directory",
    ),
    "bank visium": (
        ["bank", "visium", "nowhere", "--image", "i.png", "--model", "m.onnx", "--out", "b.h5"],
        "data set nowhere: there is no such folder",
    ),
    "bank anndata": (
        ["bank", "anndata", "no.h5ad", "--image", "i.png", "--model", "m.onnx", "--out", "b.h5"],
        "data set no.h5ad: there is no such file",
    ),
    "bank merge": (["bank", "merge", "none.h5", "no.h5", "--out", "b.h5"], "bank none.h5 does not exist"),
    "evaluate visium": (
        ["evaluate", "visium", "nowhere", "--image", "i.png", "--model", "m.onnx", "--out-dir", "e"],
        "data set nowhere: there is no such folder",
    ),
    "evaluate her2st": (
        ["evaluate", "her2st", "nowhere", "--model", "m.onnx", "--out-dir", "e"],
        "model m.onnx cannot be read: No such file or directory",
    ),
    "evaluate bank": (["evaluate", "bank", "none.h5"], "bank none.h5 does not exist"),
    "fetch weights": (
        ["fetch", "weights", "nonesuch"],
        "the weights of 'nonesuch' are not among those that are fetched",
    ),
    "fetch her2st": (["fetch", "her2st"], "data set reference_bank/data/her2st: it has no folder ST-cnts"),
    "demo-data": (["demo-data", "full"], "output full exists"),
    **{
        f"bench {what}": (
            ["bench", what, "--folder", "full/mine.txt/there"],
            "cannot write full/mine.txt/there: Not a directory",
        )
        for what in ("backbones", "area", "search")
    },
    "score": (["score", "p.h5ad", "--counts", "c.tsv", "--bank", "none.h5"], "bank none.h5 does not exist"),
}


@pytest.mark.parametrize(
    "path", [path for path, command in COMMANDS.items() if not isinstance(command, click.Group)]
)
def test_a_known_error_is_its_cause_and_its_remedy(path):
    arguments, what = KNOWN_ERRORS[path]
    Path("full").mkdir()
    Path("reference_bank/data/her2st").mkdir(parents=True)
    Path("full/mine.txt").write_text("precious")

    result = _run(*arguments)

    assert result.exit_code == 1
    error, remedy = result.output.splitlines()[-2:]
    assert error == f"Error: {what}"
    assert remedy.startswith("Try:   ")
    assert len(remedy) > len("Try:   ")
    assert "Traceback" not in result.output
    assert Path("full/mine.txt").read_text() == "precious"


@pytest.mark.parametrize(
    "arguments",
    [
        "nonesuch",
        "bank nonesuch",
        "backbone",
        "backbone stain_texture --nonesuch",
        "bank her2st",
        "bank her2st data",
        "bank her2st data --model m --sections ,",
        "bank her2st data --model m --sections=",
        "bank her2st data --model m --fov-um 0.5",
        "bank her2st data --model m --fov-um wide",
        "bank her2st data --model m --fov-um ,",
        "bank her2st data --model m --fov-um=",
        "bank her2st data --model m --fov-um 154;309",
        "bank her2st data --model m --fov-um 154,0",
        "bank her2st data --model m --fov-um 154,nan",
        "bank her2st data --model m --fov-um inf",
        "bank her2st data --model m --fov-um 154,-309",
        "bank her2st data --model m --fov-um 10001",
        "bank her2st data --model m --pooling both",
        "bank her2st data --model m --window ring",
        "bank her2st data --model m --max-outside 1.01",
        "bank her2st data --model m --max-outside -0.1",
        "bank her2st data --model m --k 0",
        "bank her2st data --model m --k 1.5",
        "bank her2st data --model m --metric lda",
        "bank her2st data --model m --gene-join outer",
        "bank her2st data --model m --distance manhattan",
        "bank her2st data --model m --weighting gauss",
        "bank her2st data --model m --batch-size 0",
        "bank her2st data --model m --threads 0",
        "bank her2st data --model m --device tpu",
        "demo-data",
        "demo-data demo --seed -1",
        "score p.h5ad --counts c.tsv",
        "score p.h5ad --bank b.h5",
        "score p.h5ad --counts c.tsv --bank b.h5 --n-genes 0",
        "score p.h5ad --counts c.tsv --bank b.h5 --min-detected 2",
        "all extra",
    ],
)
def test_a_wrong_call_is_a_usage_error(arguments, tmp_path):
    result = _run(*arguments.split())

    assert result.exit_code == 2
    assert "Usage: " in result.output
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_list_that_names_no_section_is_told_so():
    result = _run("bank", "her2st", "data", "--model", "m", "--sections", " , ,")

    assert result.exit_code == 2
    assert "Invalid value for '--sections': ' , ,' names no section." in result.output


def test_help_is_shown_at_once():
    # Nothing heavy may be loaded for it: no HDF5, no ONNX Runtime, no image library.
    code = (
        "import sys, stinfer_export.cli\n"
        "heavy = {'h5py', 'onnx', 'onnxruntime', 'openslide', 'PIL', 'torch', 'tqdm'} & set(sys.modules)\n"
        "print(sorted(heavy))\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_group_alone_shows_its_help():
    assert "Example: stinfer-export bank her2st" in _run("bank").output


def test_a_bug_keeps_its_traceback(board, monkeypatch):
    def broken(*_, **__):
        msg = "a bug"
        raise ZeroDivisionError(msg)

    monkeypatch.setattr(score_module, "score_prediction", broken)
    bank = Path(__file__).parents[1] / "data/board_v1.h5"

    result = _run("score", "p.h5ad", "--counts", "c.tsv", "--bank", bank)

    assert isinstance(result.exception, ZeroDivisionError)
    assert "Error:" not in result.output
