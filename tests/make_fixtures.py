"""Make the small bank and slides in `tests/data`, whose predictions can be worked out by hand.

Run it with the `bank` extra installed: ``python tests/make_fixtures.py``. The files it made are kept
in git for good: a later program must still read a bank of format version 1.

The bank's encoder is the mean colour of a patch. Its one section is a board of 6 columns and 5 rows
of squares in plain colours; a spot in column c and row r has the colour (60 + 20 c, 40 + 25 r, 150),
c + 1 counts of RED, r + 1 of GREEN, and so many of REST that its total is 100. So log1p CP10K of RED
is log(1 + 100 (c + 1)).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image

from stinfer.contract import ModelCard
from stinfer_export.bank_builder import BankPlan, build_bank
from stinfer_export.datasets.her2st import iter_sections

N_COLUMNS, N_ROWS = 6, 5
SQUARE_PX = 20  # one pitch of 200 µm, so 10 µm per pixel
BORDER_PX = 40


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
    graph = helper.make_graph(
        nodes,
        "mean_color",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", "height", "width", 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    card = ModelCard("mean_color", 8, 3, 0, 0, "", "fp32")
    helper.set_model_props(model, card.to_props())
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


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


def build_board_bank(folder: Path, out: Path) -> None:
    """Build the bank of the board; plain Euclidean distance of mean colours."""
    data, model = folder / "data", folder / "mean_color.onnx"
    write_board_data_set(data)
    write_mean_color_model(model)
    plan = BankPlan(
        "her2st", 200.0, 100.0, 100.0, metric="none", distance="euclidean", k=4, weighting="inverse"
    )
    build_bank(iter_sections(data), plan, model, out, overwrite=True)


def main(folder: Path) -> None:
    """Write all fixtures."""
    folder.mkdir(exist_ok=True)
    # Twice as fine as the bank's section: 5 µm per pixel.
    board(2 * SQUARE_PX, 2 * BORDER_PX).save(folder / "board.png", optimize=True)
    Image.new("RGB", (300, 300), (244, 243, 245)).save(folder / "glass.png", optimize=True)
    with tempfile.TemporaryDirectory() as scratch:
        build_board_bank(Path(scratch), folder / "board_v1.h5")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "data")
