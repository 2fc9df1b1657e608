"""Patches of real tissue, to calibrate on and to compare on, from a data set or from slides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stinfer.contract import F64, U8
from stinfer.errors import SettingError
from stinfer.files import sha256_file
from stinfer.geometry import extent_l0
from stinfer.integrity import hash_json
from stinfer.patches import iter_patches
from stinfer.slide import Slide, open_slide
from stinfer.tissue import TissueMask, find_tissue
from stinfer_export.bank_plan import DEFAULT_UM_PER_PX
from stinfer_export.datasets import her2st
from stinfer_export.datasets.section import Section

SLIDE_SUFFIXES = (
    ".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".svslide", ".bif", ".vms", ".jpg", ".jpeg", ".png",
)  # fmt: skip
# Of a patch that may be taken.
_LEAST_TISSUE = 0.5


@dataclass(frozen=True)
class Tissue:
    """Where patches come from.

    Parameters
    ----------
    name : of the data set
    slides : path and µm per pixel of each image; None where the file says it
    sections : measured ones, with which a bank can be evaluated; empty where there is no expression
    """

    name: str
    slides: tuple[tuple[Path, float | None], ...]
    sections: tuple[Section, ...] = ()

    def sha256(self) -> str:
        """Hash names and contents of all images."""
        return hash_json([[path.name, sha256_file(path)] for path, _ in self.slides if path.is_file()])


@dataclass(frozen=True)
class Sample:
    """Patches of tissue.

    Parameters
    ----------
    calibration : (n, side, side, 3), from the left half of every slide's tissue
    held_out : the same from the right half
    """

    calibration: U8
    held_out: U8


def find_tissue_source(path: Path) -> Tissue:
    """Recognise a data set: a folder of her2st, a folder of slides, or one slide.

    Raises
    ------
    DatasetError
        It has the layout of her2st, and cannot be read.
    SettingError
        There is nothing of these.
    """
    if (path / "ST-cnts").is_dir():
        sections = tuple(her2st.iter_sections(path))
        slides = tuple((section.image_path, section.mpp) for section in sections)
        return Tissue(her2st.NAME, slides, sections)
    if path.is_dir():
        found = [entry for entry in sorted(path.iterdir()) if entry.suffix.lower() in SLIDE_SUFFIXES]
        if found:
            return Tissue(path.resolve().name, tuple((entry, None) for entry in found))
    elif path.is_file():
        return Tissue(path.name, ((path, None),))
    what = f"--calibrate {path} is no slide, no folder of slides and no her2st data set"
    raise SettingError(what, "give the folder of ST-imgs, ST-cnts and ST-spotfiles, or slides of such tissue")


def sample_tissue(tissue: Tissue, size_px: int, n_calibration: int, n_held_out: int) -> Sample:
    """Cut patches at the scale of banks, spread evenly over slides and tissue, the same every time.

    Parameters
    ----------
    tissue : where from
    size_px : side of a patch
    n_calibration, n_held_out : how many of each; fewer where there is less tissue

    Raises
    ------
    SlideError
        A slide cannot be read.
    SettingError
        There is not enough tissue.
    """
    parts: tuple[list[U8], list[U8]] = ([], [])
    n_slides = len(tissue.slides)
    for i, (path, mpp) in enumerate(tissue.slides):
        with open_slide(path, mpp) as slide:
            halves = _halves(slide, find_tissue(slide), size_px * DEFAULT_UM_PER_PX)
            for half, wanted, kept in zip(halves, (n_calibration, n_held_out), parts, strict=True):
                share = wanted * (i + 1) // n_slides - wanted * i // n_slides
                kept.extend(_cut(slide, half[:share], size_px))
    if min(map(len, parts)) < 1 or sum(map(len, parts)) < 8:
        what = f"--calibrate {tissue.name} has too little tissue: {sum(map(len, parts))} patches"
        raise SettingError(what, "give slides with more tissue")
    return Sample(np.stack(parts[0]), np.stack(parts[1]))


def _halves(slide: Slide, mask: TissueMask, side_um: float) -> tuple[F64, F64]:
    """Find places on tissue left and right of its middle; no patch reaches from one half into the other.

    Returns
    -------
    each (n, 2), level-0 px, in no order of place
    """
    extent = extent_l0(side_um, slide.mpp)
    columns = np.nonzero(mask.mask)[1]
    middle = float(np.median(columns)) * mask.l0_per_px[0] if len(columns) else 0.0
    steps = [side / 2 for side in extent]
    grid = [np.arange(step, size - step, step) for step, size in zip(steps, slide.size_l0, strict=True)]
    places = np.stack(np.meshgrid(*grid), axis=-1).reshape(-1, 2)
    if not len(places):
        return places, places
    places = places[mask.fraction(places, extent) >= _LEAST_TISSUE]
    places = np.random.default_rng(0).permutation(places)
    left, right = places[:, 0] < middle - extent[0] / 2, places[:, 0] > middle + extent[0] / 2
    return places[left], places[right]


def _cut(slide: Slide, places: F64, size_px: int) -> Sequence[U8]:
    batches = iter_patches(slide, places, size_px * DEFAULT_UM_PER_PX, size_px, 32)
    return [patch for batch in batches for patch in batch]
