"""What the tests of the bank builder share: the board, a gray picture, and sections made by hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import sparse

from stinfer.bank import Bank
from stinfer_export.bank_builder import BankPlan, build_bank
from stinfer_export.datasets.her2st import iter_sections
from stinfer_export.datasets.section import Section

_SPEC = importlib.util.spec_from_file_location(
    "make_fixtures", Path(__file__).parents[1] / "make_fixtures.py"
)
fixtures = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(fixtures)

N_COLUMNS, N_ROWS = 6, 5
# The spots of the board in the order of its selection file: down the first column, then the next.
BOARD = [(column, row) for column in range(N_COLUMNS) for row in range(N_ROWS)]
RED = [column + 1 for column, _ in BOARD]
GREEN = [row + 1 for _, row in BOARD]
REST = [98 - column - row for column, row in BOARD]
# Euclidean distance of plain mean colors: nothing that is not in the pictures themselves.
PLAIN = {"metric": "none", "distance": "euclidean"}


def plan(**changes):
    # 100 µm on the board's 10 µm per pixel is half a square: every patch is of one color.
    fixed = {"dataset": "board", "pitch_um": 200.0, "spot_diameter_um": 100.0, "fov_um": 100.0}
    return BankPlan(**(fixed | PLAIN | changes))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("board") / "data"
    fixtures.write_board_data_set(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "mean_color.onnx"
    fixtures.write_mean_color_model(path)
    return path


@pytest.fixture(scope="module")
def board_bank(data, model, tmp_path_factory):
    path = tmp_path_factory.mktemp("bank") / "board.h5"
    summary = build_bank(iter_sections(data), plan(), model, path, device="cpu")
    return summary, Bank.open(path)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A gray picture of 200 x 100 px; sections on it are 10 µm per pixel."""
    path = tmp_path_factory.mktemp("picture") / "gray.png"
    Image.new("RGB", (200, 100), (100, 120, 140)).save(path)
    return path


def section(picture, name, genes, counts, centers=None, **changes):
    counts = np.asarray(counts, dtype=np.int64)
    n = len(counts)
    if centers is None:
        centers = [(50.0 + 10 * i, 50.0) for i in range(n)]
    fixed = {
        "name": name,
        "patient": name[0],
        "image_path": picture,
        "mpp": 10.0,
        "spots": tuple(f"{i}x7" for i in range(n)),
        "centers_l0": np.asarray(centers, dtype=np.float64),
        "array": np.asarray([(i, 7) for i in range(n)], dtype=np.float64),
        "genes": tuple(genes),
        "counts": counts,
        "n_places_only": 0,
        "n_counts_only": 0,
    }
    return Section(**(fixed | changes))


def dense(bank):
    s = bank.expression
    return sparse.csr_matrix((s.data, s.indices, s.indptr), shape=(bank.n_refs, s.n_columns)).toarray()


def build(sections, how, model, path, **options):
    summary = build_bank(sections, how, model, path, device="cpu", **options)
    return summary, Bank.open(path)
