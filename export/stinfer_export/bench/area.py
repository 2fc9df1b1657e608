"""Seconds for a cm² of tissue, by the feature map, against ONNX Runtime alone on the same pixels.

A slide of a hospital holds one to four cm² of tissue, a section of ours 0.07: it is shown several times over,
so that what does not depend on the area weighs as in practice, or in part where a network is slow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stinfer.bench import Run, Spread, run_once
from stinfer.contract import MODEL_FEATURES, moment_outputs
from stinfer.encoder import MAX_REGION_WORKERS, Encoder
from stinfer.encoder_stack import EncoderStack, Member
from stinfer.feature_map import ENCODED_PX, SlideCells, plan_windows, tissue_on
from stinfer.machine import cores_allowed
from stinfer.slide import open_slide
from stinfer.tissue import find_tissue
from stinfer_export.bank_plan import DEFAULT_MAP_FOV_UM, DEFAULT_UM_PER_PX
from stinfer_export.bench.child import run_module
from stinfer_export.bench.made_up import Size, write_made_up_bank
from stinfer_export.bench.mirrored import mirrored_slide
from stinfer_export.bench.subjects import BenchSlide, Model
from stinfer_export.bench.tables import markdown

PITCH_UM = 50.0
GENES = [f"G{number:05d}" for number in range(20)]
# How many times the section is shown: the first that ONNX Runtime alone needs no longer than this for.
COPIES = tuple(16 / 2 ** (step / 2) for step in range(15))
RUN_S = 24.0
# How long it is measured alone, and the side of the square on which its speed is first found.
ORT_S, SAMPLE_PX = 4.0, 352


@dataclass(frozen=True)
class Work:
    """What there is to encode of a slide.

    Parameters
    ----------
    tissue_cm2 : of tissue
    shapes_px : height and width of each region, with its halo
    """

    tissue_cm2: float
    shapes_px: tuple[tuple[int, int], ...]

    @property
    def n_px(self) -> int:
        """Pixels that are encoded."""
        return sum(height * width for height, width in self.shapes_px)


@dataclass(frozen=True)
class Round:
    """One repetition.

    Parameters
    ----------
    run : the whole process
    ort_s : ONNX Runtime alone, for all pixels
    """

    run: Run
    ort_s: float


def plan_work(model: Model, slide: BenchSlide) -> Work:
    """Find the regions that a run with the default windows encodes.

    Parameters
    ----------
    model : with a map
    slide : to predict
    """
    encoder = Encoder(model.path.read_bytes(), str(model.path), pooling="map", device="cpu")
    stack = EncoderStack([Member(encoder)], "map")
    with open_slide(slide.path, slide.mpp) as opened:
        tissue = find_tissue(opened)
        cells = SlideCells(opened, stack, DEFAULT_UM_PER_PX)
        on_cells = tissue_on(cells.lattice, tissue, opened.mpp)
        places = np.argwhere(on_cells > 0)[:, ::-1].astype(np.float64) + 0.5
        sides = tuple(side_um / cells.lattice.cell_um for side_um in DEFAULT_MAP_FOV_UM)
        plan = plan_windows(places, sides, "square", on_cells)
        shapes = cells.encoded_px(plan.needed)
        area_um2 = float(tissue.mask.sum()) * np.prod(tissue.l0_per_px) * np.prod(opened.mpp)
    return Work(float(area_um2) / 1e8, shapes)


def measure(
    models: Sequence[Model],
    slide: BenchSlide,
    n_rounds: int,
    folder: Path,
    say: Callable[[str], None],
    *,
    as_it_is: bool,
) -> Iterator[tuple[Model, Work, list[Round]]]:
    """Measure models that have a map, one after the other: a whole run, and ONNX Runtime alone, in turn.

    Parameters
    ----------
    models, slide : see `stinfer_export.bench.subjects`
    n_rounds : repetitions
    folder : for what is written meanwhile
    say : told what is going on
    as_it_is : predict the slide itself; else as many copies of it as take some seconds
    """
    for model in models:
        if model.card.map_traits is None:
            say(f"{model.label}: no map, left out")
            continue
        say(model.label)
        alone = _OrtAlone(model, folder)
        shown, work = slide, plan_work(model, slide)
        if not as_it_is:
            once_s = alone.s_per_px * work.n_px
            n_copies = next((n for n in COPIES if n * once_s <= RUN_S), COPIES[-1])
            shown = mirrored_slide(slide, n_copies, folder)
            work = plan_work(model, shown)
        bank = folder / "bank.h5"
        write_made_up_bank(bank, model.path.read_bytes(), Size(), pooling="map")
        arguments = {
            "slide": str(shown.path), "mpp": shown.mpp, "bank": str(bank), "pitch_um": PITCH_UM,
            "genes": GENES,
        }  # fmt: skip
        # One region of the commonest shape stands for all; what it shows does not matter.
        shape = max(set(work.shapes_px), key=work.shapes_px.count)
        rounds = []
        for _ in range(n_rounds):
            run = run_once(arguments, folder)
            rounds.append(Round(run, alone.measure(shape) * work.n_px))
        yield model, work, rounds


class _OrtAlone:
    """ONNX Runtime alone with a model, by as many callers as suit it here.

    Attributes
    ----------
    s_per_px : float
        About what it needs for a pixel.
    """

    def __init__(self, model: Model, folder: Path) -> None:
        self._model, self._folder = model, folder
        square = (SAMPLE_PX, SAMPLE_PX)
        callers = sorted({1, min(cores_allowed(), MAX_REGION_WORKERS)})
        # The first says how many times the others are to encode it.
        self._n_callers, self.s_per_px = 1, self._seconds(square, 1, 2) / (2 * SAMPLE_PX**2)
        found = {}
        for n_callers in callers:
            n = self._repeats(square, n_callers)
            found[n_callers] = self._seconds(square, n_callers, n) / (n * SAMPLE_PX**2)
        self._n_callers = min(found, key=lambda n_callers: found[n_callers])
        self.s_per_px = found[self._n_callers]

    def measure(self, shape: tuple[int, int]) -> float:
        """Return seconds a pixel for regions of a shape, height and width."""
        n = self._repeats(shape, self._n_callers)
        return self._seconds(shape, self._n_callers, n) / (n * shape[0] * shape[1])

    def _repeats(self, shape: tuple[int, int], n_callers: int) -> int:
        """Return how often to encode a region, a whole number of times by each caller."""
        wanted = ORT_S / (self.s_per_px * shape[0] * shape[1])
        return max(round(wanted / n_callers), 1) * n_callers

    def _seconds(self, shape: tuple[int, int], n_callers: int, repeats: int) -> float:
        pixels = np.random.default_rng(0).integers(0, 256, (1, *shape, 3), dtype=np.uint8)
        np.savez(self._folder / "region.npz", pixels)
        outputs = [MODEL_FEATURES, *moment_outputs(len(self._model.card.moments))]
        spec = {
            "model": str(self._model.path), "threads": cores_allowed(), "callers": n_callers,
            "batches": str(self._folder / "region.npz"), "outputs": outputs, "repeats": repeats,
        }  # fmt: skip
        return float(run_module("stinfer_export.bench.ort_alone", spec, self._folder)["seconds"])


def summarize(found: Sequence[tuple[Model, Work, list[Round]]]) -> list[dict[str, Any]]:
    """Return medians and spread, ready for JSON; ratios are taken within a round."""
    rows = []
    for model, work, rounds in found:
        figures = {
            "run_s": [one.run.seconds for one in rounds],
            "ort_s": [one.ort_s for one in rounds],
            "run_s_per_cm2": [one.run.seconds / work.tissue_cm2 for one in rounds],
            "ort_s_per_cm2": [one.ort_s / work.tissue_cm2 for one in rounds],
            "overhead": [one.run.seconds / one.ort_s for one in rounds],
            "peak_mb": [one.run.peak_bytes / 1e6 for one in rounds if one.run.peak_bytes is not None],
        }
        rows.append(
            {
                "model": model.label,
                "halo_cells": map_traits_of(model),
                "encoded_px": ENCODED_PX,
                "tissue_cm2": round(work.tissue_cm2, 4),
                "n_px": work.n_px,
                **{name: Spread.of(values).to_json() for name, values in figures.items() if values},
            }
        )
    return rows


def map_traits_of(model: Model) -> int:
    """Return how many cells of halo a model needs."""
    return 0 if model.card.map_traits is None else model.card.map_traits.halo_cells


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out what `summarize` gave as Markdown."""
    header = [
        "model",
        "tissue",
        "s per cm²",
        "ONNX Runtime alone",
        "times alone",
        "px encoded per px of tissue",
        "peak memory",
    ]
    cells = []
    for row in rows:
        # Of tissue at the scale at which it is encoded.
        tissue_px = row["tissue_cm2"] * 1e8 / DEFAULT_UM_PER_PX**2
        peak = row.get("peak_mb")
        cells.append(
            [
                row["model"],
                f"{row['tissue_cm2']:.2f} cm²",
                f"{row['run_s_per_cm2']['median']:.1f}",
                f"{row['ort_s_per_cm2']['median']:.1f}",
                f"{row['overhead']['median']:.2f}",
                f"{row['n_px'] / tissue_px:.2f}",
                "-" if peak is None else f"{peak['median']:.0f} MB",
            ]
        )
    return markdown(header, cells)
