"""Make the small banks and slides in `tests/data`, whose predictions can be worked out by hand.

Run it with the `bank` extra and annoy installed: ``python tests/make_fixtures.py``. The files it made are
kept in git for good. `board_v1.h5` was made by the program that wrote banks of format version 1, `board_v2.h5`
and `board_map_v2.h5` by those of version 2, and cannot be made again: a later program must still read them,
and predict what they did.

The one section of every bank is a board of 6 columns and 5 rows of squares in plain colours; a spot in
column c and row r has the colour (60 + 20 c, 40 + 25 r, 150), c + 1 counts of RED, r + 1 of GREEN, and so
many of REST that its total is 100. So log1p CP10K of RED is log(1 + 100 (c + 1)).

- `board.h5`: patches; the encoder is the mean colour of a patch.
- `board_map.h5`: a map at 10 µm per pixel, as the section itself has, whose cells are the mean colours of
  4 x 4 px: 40 µm. A window of 200 µm is a square of the board, one of 600 µm that and its neighbors.
- `max_color.onnx`: the same cells, but a head makes the largest channel of their mean the embedding.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image

from stinfer.contract import MapTraits, ModelCard
from stinfer_export.bank_builder import build_bank
from stinfer_export.bank_plan import BankPlan
from stinfer_export.datasets.her2st import iter_sections

N_COLUMNS, N_ROWS = 6, 5
UM_PER_PX = 10.0
SQUARE_PX = 20  # one pitch of 200 µm
BORDER_PX = 40
CELL_PX = 4


def color(column: int, row: int) -> tuple[int, int, int]:
    return 60 + 20 * column, 40 + 25 * row, 150


def board(square_px: int, border_px: int) -> Image.Image:
    """Draw the board on white glass."""
    size = (N_ROWS * square_px + 2 * border_px, N_COLUMNS * square_px + 2 * border_px, 3)
    pixels = np.full(size, 255, dtype=np.uint8)
    for column in range(N_COLUMNS):
        for row in range(N_ROWS):
            x, y = border_px + column * square_px, border_px + row * square_px
            pixels[y : y + square_px, x : x + square_px] = color(column, row)
    return Image.fromarray(pixels)


def write_mean_color_model(path: Path) -> None:
    """Write an encoder whose embedding is the mean of R, G and B."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["values"], ["embedding"], axes=[1, 2], keepdims=0),
    ]
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 3])]
    path.write_bytes(_pixel_model(nodes, outputs, ModelCard("mean_color", 8, 3, 0, 0, "", "fp32")))


def write_mean_cells_model(path: Path) -> None:
    """Write an encoder whose cells are the mean R, G and B of 4 x 4 pixels, and its embedding their mean."""
    nodes, features = _cells()
    nodes.append(helper.make_node("ReduceMean", ["features"], ["embedding"], axes=[2, 3], keepdims=0))
    embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 3])
    card = ModelCard("mean_cells", 8, 3, 3, CELL_PX, "", "fp32", (), MapTraits(0, (0.0, 0.0)), "")
    path.write_bytes(_pixel_model(nodes, [embedding, features], card))


def write_max_color_model(path: Path) -> None:
    """Write an encoder with the same cells, whose embedding is the largest channel of their mean."""
    largest = helper.make_node("ReduceMax", ["means"], ["embedding"], axes=[1], keepdims=1)
    embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 1])
    means = helper.make_tensor_value_info("means", TensorProto.FLOAT, ["n", 3])
    head = _model(helper.make_graph([largest], "head", [means], [embedding]), {})
    nodes, features = _cells()
    nodes.append(helper.make_node("ReduceMean", ["features"], ["means"], axes=[2, 3], keepdims=0))
    card = ModelCard("max_color", 8, 1, 3, CELL_PX, "", "fp32", (), MapTraits(0, (0.0, 0.0), head), "")
    path.write_bytes(_pixel_model([*nodes, largest], [embedding, features], card))


def _cells() -> tuple[list[onnx.NodeProto], onnx.ValueInfoProto]:
    nodes = [
        helper.make_node("Cast", ["pixels"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["values"], ["channels_first"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "AveragePool", ["channels_first"], ["features"], kernel_shape=[CELL_PX] * 2, strides=[CELL_PX] * 2
        ),
    ]
    return nodes, helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 3, "rows", "columns"])


def _pixel_model(nodes: list[onnx.NodeProto], outputs: list[onnx.ValueInfoProto], card: ModelCard) -> bytes:
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", "height", "width", 3])
    return _model(helper.make_graph(nodes, card.backbone, [pixels], outputs), card.to_props())


def _model(graph: onnx.GraphProto, props: dict[str, str]) -> bytes:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, props)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def write_board_data_set(folder: Path) -> None:
    """Write the board as a section in the layout of her2st."""
    for name in ("ST-imgs/T/T1", "ST-cnts", "ST-spotfiles"):
        (folder / name).mkdir(parents=True)
    board(SQUARE_PX, BORDER_PX).save(folder / "ST-imgs/T/T1/board.png")
    places = ["x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected"]
    counts = ["\tRED\tGREEN\tREST"]
    for column in range(N_COLUMNS):
        for row in range(N_ROWS):
            x, y = (BORDER_PX + (i + 0.5) * SQUARE_PX for i in (column, row))
            places.append(f"{column}\t{row}\t{column}.0\t{row}.0\t{x}\t{y}\t1")
            counts.append(f"{column}x{row}\t{column + 1}\t{row + 1}\t{98 - column - row}")
    (folder / "ST-spotfiles/T1_selection.tsv").write_text("\n".join(places) + "\n")
    (folder / "ST-cnts/T1.tsv").write_text("\n".join(counts) + "\n")


def build_board_banks(folder: Path, out: Path) -> None:
    """Build the banks of the board; plain Euclidean distance of mean colours."""
    data = folder / "data"
    write_board_data_set(data)
    plain = {"metric": "none", "distance": "euclidean", "k": 4, "weighting": "inverse"}
    patches = BankPlan("her2st", 200.0, 100.0, pooling="patch", fov_um=(100.0,), **plain)
    write_mean_color_model(folder / "mean_color.onnx")
    build_bank(iter_sections(data), patches, [folder / "mean_color.onnx"], out / "board.h5", overwrite=True)
    cells = BankPlan("her2st", 200.0, 100.0, pooling="map", fov_um=(200.0, 600.0), **plain)
    write_mean_cells_model(folder / "mean_cells.onnx")
    # At the scale of every real bank a cell would be 2.75 µm, which divides no square of the board.
    with patch("stinfer_export.bank_plan.DEFAULT_UM_PER_PX", UM_PER_PX):
        build_bank(
            iter_sections(data), cells, [folder / "mean_cells.onnx"], out / "board_map.h5", overwrite=True
        )


def main(folder: Path) -> None:
    """Write all fixtures but those of older versions."""
    folder.mkdir(exist_ok=True)
    # Twice as fine as the banks' section: 5 µm per pixel.
    board(2 * SQUARE_PX, 2 * BORDER_PX).save(folder / "board.png", optimize=True)
    Image.new("RGB", (300, 300), (244, 243, 245)).save(folder / "glass.png", optimize=True)
    write_max_color_model(folder / "max_color.onnx")
    with tempfile.TemporaryDirectory() as scratch:
        build_board_banks(Path(scratch), folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "data")
