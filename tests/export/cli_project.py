"""What the tests of `stinfer-export` share: an empty project, the board, and how a command is run."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
from pathlib import Path

import anndata
import click
import numpy as np
import pytest
from click.testing import CliRunner

from stinfer_export.cli import main

_SPEC = importlib.util.spec_from_file_location(
    "make_fixtures", Path(__file__).parents[1] / "make_fixtures.py"
)
fixtures = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(fixtures)
_SPEC = importlib.util.spec_from_file_location("bank_sections", Path(__file__).parent / "bank_sections.py")
sections = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(sections)

# Stands in for a machine without PyTorch: whoever imports any of it fails.
WITHOUT_TORCH = """\
import sys


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "timm"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Absent())
from stinfer_export.cli import main

main(prog_name="stinfer-export")
"""


def _walk(command, path=()):
    yield " ".join(path), command
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from _walk(child, (*path, name))


COMMANDS = dict(_walk(main))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Run in an empty folder, and leave logging as it was found."""
    monkeypatch.chdir(tmp_path)
    loggers = [logging.getLogger(name) for name in ("stinfer", "stinfer_export")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """The board's data set, models of patches and of maps, and a prediction of it that is the truth."""
    folder = tmp_path_factory.mktemp("board")
    fixtures.write_board_data_set(folder / "data")
    fixtures.write_mean_color_model(folder / "mean_color.onnx")
    sections.write_cell_model(folder / "cells.onnx")
    spots = [(column, row) for column in range(6) for row in range(5)]
    counts = np.array([[c + 1, r + 1, 98 - c - r] for c, r in spots], dtype=float)
    truth = anndata.AnnData(np.log1p(100 * counts).astype(np.float32))
    truth.obs_names = [f"{column}x{row}" for column, row in spots]
    truth.var_names = ["RED", "GREEN", "REST"]
    truth.write_h5ad(folder / "truth.h5ad")
    return folder


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def succeed(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def without_torch(*arguments):
    """Run the command in a process of its own, in which torch cannot be imported."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
