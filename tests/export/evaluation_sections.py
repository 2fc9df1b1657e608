"""What the tests of the evaluation share: sections of colored squares, whose counts follow the colors."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from stinfer_export.bank_plan import BankPlan
from stinfer_export.datasets.her2st import iter_sections

_SPEC = importlib.util.spec_from_file_location("bank_sections", Path(__file__).parent / "bank_sections.py")
sections = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(sections)
fixtures = sections.fixtures

N_COLUMNS, N_ROWS = 8, 6
SQUARE_PX = 20
NAMES = ("A1", "A2", "B1")
GENES = ("RED", "GREEN", "BLUE", "REST")
PLAN = BankPlan(
    "her2st", 200.0, 100.0, pooling="patch", fov_um=(100.0,), metric="supervised", k=5, include_model=False
)


def write_data_set(folder):
    """Write A1 and A2 of patient A and B1 of patient B, 48 spots each."""
    rng = np.random.default_rng(5)
    for name in NAMES:
        for part in (f"ST-imgs/{name[0]}/{name}", "ST-cnts", "ST-spotfiles"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        colors = rng.integers(40, 200, (N_ROWS, N_COLUMNS, 3))
        pixels = colors.repeat(SQUARE_PX, axis=0).repeat(SQUARE_PX, axis=1).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"ST-imgs/{name[0]}/{name}/squares.png")
        places = ["x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected"]
        counts = ["\t" + "\t".join(GENES)]
        for column in range(N_COLUMNS):
            for row in range(N_ROWS):
                x, y = ((i + 0.5) * SQUARE_PX for i in (column, row))
                places.append(f"{column}\t{row}\t{column}.0\t{row}.0\t{x}\t{y}\t1")
                red, green, blue = colors[row, column]
                counts.append(f"{column}x{row}\t{red}\t{green}\t{blue}\t{700 - red - green - blue}")
        (folder / f"ST-spotfiles/{name}_selection.tsv").write_text("\n".join(places) + "\n")
        (folder / f"ST-cnts/{name}.tsv").write_text("\n".join(counts) + "\n")


def read(folder):
    return list(iter_sections(folder))


def poisoned(section):
    """Give a section other genes with huge counts, in another order."""
    counts = section.counts
    huge = replace(counts, values=counts.values[::-1] * 1_000_003)
    return replace(section, counts=huge, genes=("POISON", "BLUE", "RED", "VENOM"))
