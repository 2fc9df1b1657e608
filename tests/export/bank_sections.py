"""What the tests of the bank builder share: the board, a gray picture, and sections made by hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from scipy import sparse

from stinfer.bank import Bank
from stinfer.contract import MapTraits, ModelCard
from stinfer_export.bank_builder import build_bank
from stinfer_export.bank_plan import BankPlan
from stinfer_export.datasets.counts import Counts
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
CELL_CHANNELS, CELL_STRIDE_PX = 6, 32
# Euclidean distance of plain mean colors: nothing that is not in the pictures themselves.
PLAIN = {"pooling": "patch", "metric": "none", "distance": "euclidean"}


def write_cell_model(path, *, halo_cells=0, refusal="", head=False):
    """Write a backbone of cells: six linear mixtures of color, cut off at 0, averaged.

    Without a halo a cell sees its own 32 px alone. With one it sees 64 px that begin at its own corner, so
    that their middle lies 16 px to the right of its own middle and below it.
    """
    rng = np.random.default_rng(7)
    mixtures = rng.normal(size=(CELL_CHANNELS, 3, 1, 1)).astype(np.float32) / 255
    # Every mixture is cut off at about half of the colors of stained tissue.
    shifts = -mixtures[:, :, 0, 0] @ np.array([190, 90, 170], dtype=np.float32)
    side = CELL_STRIDE_PX * (2 if halo_cells else 1)
    beyond = side - CELL_STRIDE_PX
    nodes = [
        helper.make_node("Cast", ["pixels"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["values"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "mixtures", "shifts"], ["mixed"]),
        helper.make_node("Relu", ["mixed"], ["cut"]),
        helper.make_node(
            "AveragePool",
            ["cut"],
            ["features"],
            kernel_shape=[side, side],
            strides=[CELL_STRIDE_PX] * 2,
            pads=[0, 0, beyond, beyond],
            count_include_pad=1,
        ),
        helper.make_node("ReduceMean", ["features"], ["embedding"], axes=[2, 3], keepdims=0),
    ]
    n, c = "n", CELL_CHANNELS
    graph = helper.make_graph(
        nodes,
        "cells",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, [n, "height", "width", 3])],
        [
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [n, c]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, [n, c, "rows", "columns"]),
        ],
        [numpy_helper.from_array(mixtures, "mixtures"), numpy_helper.from_array(shifts, "shifts")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    traits = MapTraits(halo_cells, (beyond / 2,) * 2, _square_head() if head else b"")
    card = ModelCard(
        "cells",
        224,
        c,
        c,
        CELL_STRIDE_PX,
        "",
        "fp32",
        map_traits=None if refusal else traits,
        map_refusal=refusal,
    )
    helper.set_model_props(model, card.to_props())
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _square_head():
    """Return a head that is not linear: a window's embedding is the square of its mean."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["means", "means"], ["embedding"])],
        "head",
        [helper.make_tensor_value_info("means", TensorProto.FLOAT, ["n", CELL_CHANNELS])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", CELL_CHANNELS])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString(deterministic=True)


def plan(**changes):
    # 100 µm on the board's 10 µm per pixel is half a square: every patch is of one color.
    fixed = {"dataset": "board", "pitch_um": 200.0, "spot_diameter_um": 100.0, "fov_um": (100.0,)}
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
    summary = build_bank(iter_sections(data), plan(), [model], path, device="cpu")
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
        "counts": Counts.from_dense(counts),
        "n_places_only": 0,
        "n_counts_only": 0,
    }
    return Section(**(fixed | changes))


def dense(bank):
    s = bank.expression
    return sparse.csr_matrix((s.data, s.indices, s.indptr), shape=(bank.n_refs, s.n_columns)).toarray()


def build(sections, how, model, path, **options):
    summary = build_bank(sections, how, [model], path, device="cpu", **options)
    return summary, Bank.open(path)
