"""Write the demo data: reference sections in the layout of her2st, and a slide to predict with its truth."""

from __future__ import annotations

import gzip
import secrets
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from stinfer.contract import F64, I64
from stinfer.errors import OutputExistsError, OutputWriteError
from stinfer.machine import cores_allowed
from stinfer_export.demo.counts import GENES, draw_counts, draw_profiles
from stinfer_export.demo.nuclei import place_cells
from stinfer_export.demo.pyramid import write_pyramid
from stinfer_export.demo.render import draw_staining, render
from stinfer_export.demo.tissue import SIDE_UM, Tissue, composition_at, grow_tissue

PITCH_UM = 200.0
SPOT_RADIUS_UM = 50.0
# 290 px per pitch, as in most sections of her2st: 0.69 µm/px.
REFERENCE_UM_PER_PX = PITCH_UM / 290
SLIDE_UM_PER_PX = 0.5

_PATIENT = "S"
_SECTIONS = ("S1", "S2", "S3")
_SLIDE = "demo_slide"
_JPEG_QUALITY = 90
_MIN_COVERAGE = 0.5
# The arrays' spots are printed a little off their places.
_PRINT_ERROR_PITCHES = 0.04
# As in her2st, some selected spots have no counts, and some counts no selected spot.
_N_WITHOUT_COUNTS, _N_NOT_SELECTED = 2, 1


@dataclass(frozen=True)
class DemoData:
    """Where the demo data are.

    Parameters
    ----------
    folder : root of the layout of her2st (``ST-imgs``, ``ST-cnts``, ``ST-spotfiles``)
    sections : names of the reference sections
    slide : the slide to predict, a pyramidal TIFF
    slide_spots : CSV with columns id, x, y (level-0 px of the slide)
    slide_truth : simulated counts at these spots, spots x genes, index id
    """

    folder: Path
    sections: tuple[str, ...]
    slide: Path
    slide_spots: Path
    slide_truth: Path


@dataclass(frozen=True)
class Plan:
    """One section before it is drawn.

    Parameters
    ----------
    name : of the section
    tissue : its layout
    seeds : of the cells, the staining, the texture, the spots and the counts
    """

    name: str
    tissue: Tissue
    seeds: Sequence[np.random.SeedSequence]


@dataclass(frozen=True)
class _Spots:
    """The spots of a section that lie on tissue.

    Parameters
    ----------
    array : (n_spots, 2), whole array coordinates x and y, from 2
    printed : (n_spots, 2), where they really are, in pitches from 1 at the image's edge
    """

    array: I64
    printed: F64

    @property
    def ids(self) -> list[str]:
        """Name the spots as her2st does."""
        return [f"{x}x{y}" for x, y in self.array.tolist()]

    @property
    def centers_um(self) -> F64:
        """Give the centers, (n_spots, 2), in µm from the image's upper left corner."""
        return (self.printed - 1) * PITCH_UM


def plan_section(name: str, seed: np.random.SeedSequence) -> Plan:
    """Lay a section out.

    Parameters
    ----------
    name : of the section
    seed : everything random in the section follows from it
    """
    tissue_seed, *seeds = seed.spawn(6)
    return Plan(name, grow_tissue(_generator(tissue_seed)), seeds)


def section_seeds(seed: int) -> tuple[np.random.SeedSequence, dict[str, np.random.SeedSequence]]:
    """Split a seed.

    Parameters
    ----------
    seed : of the whole demo data, not negative

    Returns
    -------
    profiles : the seed of the programs' profiles, which all sections share
    sections : a seed per section and for the slide, by name
    """
    names = (*_SECTIONS, _SLIDE)
    profiles, *sections = np.random.SeedSequence(seed).spawn(1 + len(names))
    return profiles, dict(zip(names, sections, strict=True))


def write_demo_data(folder: Path, *, seed: int = 0) -> DemoData:
    """Write three reference sections, a slide and its truth.

    The same seed writes the same bytes. All is first written under a temporary name, beside `folder` or, if
    it is there already, within it, and then renamed: what is interrupted leaves nothing half-written.

    Parameters
    ----------
    folder : to write; it must be absent or empty
    seed : of everything random, not negative

    Returns
    -------
    The paths.

    Raises
    ------
    OutputExistsError
        There is a file, or a folder with something in it, at `folder`.
    OutputWriteError
        The disk is full, or the place cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExistsError(folder)
    is_there = folder.exists()
    # A folder that is there may be a mount point or the working directory: it is filled, not replaced.
    partial = (folder if is_there else folder.parent) / f".stinfer-demo.{secrets.token_hex(4)}.partial"
    try:
        partial.mkdir(parents=True)
        try:
            _write_all(partial, seed)
            if is_there:
                for entry in sorted(partial.iterdir()):
                    entry.rename(folder / entry.name)
            else:
                partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise OutputWriteError(folder, str(error)) from error
    return DemoData(
        folder=folder,
        sections=_SECTIONS,
        slide=folder / f"{_SLIDE}.tif",
        slide_spots=folder / f"{_SLIDE}_spots.csv",
        slide_truth=folder / f"{_SLIDE}_truth.tsv.gz",
    )


def _write_all(folder: Path, seed: int) -> None:
    profiles_seed, seeds = section_seeds(seed)
    profiles = draw_profiles(_generator(profiles_seed))

    def write_one(name: str) -> None:
        write = _write_slide if name == _SLIDE else _write_reference
        write(folder, plan_section(name, seeds[name]), profiles)

    # Each has a seed of its own, so that none waits for another. The slide takes longest and goes first.
    with ThreadPoolExecutor(min(cores_allowed(), len(seeds))) as pool:
        for _ in pool.map(write_one, reversed(seeds)):
            pass


def _write_reference(folder: Path, plan: Plan, profiles: F64) -> None:
    """Write one section as her2st has it."""
    cells_seed, staining_seed, texture_seed, spots_seed, counts_seed = plan.seeds
    image_path = folder / "ST-imgs" / _PATIENT / plan.name / f"{plan.name}_HE.jpg"
    image_path.parent.mkdir(parents=True)
    cells = place_cells(plan.tissue, _generator(cells_seed))
    staining = draw_staining(_generator(staining_seed))
    pixels = render(plan.tissue, cells, staining, REFERENCE_UM_PER_PX, _generator(texture_seed))
    Image.fromarray(pixels).save(image_path, quality=_JPEG_QUALITY)

    rng = _generator(spots_seed)
    spots = _spots_on_tissue(plan.tissue, _PRINT_ERROR_PITCHES, rng)
    counts = _counts(plan.tissue, spots, profiles, counts_seed)
    order = rng.permutation(len(spots.array))
    counted = np.sort(order[_N_WITHOUT_COUNTS:])
    selected = order[: len(order) - _N_NOT_SELECTED]
    counted_ids = [spots.ids[i] for i in counted]
    _write_counts(folder / "ST-cnts" / f"{plan.name}.tsv.gz", counted_ids, counts[counted])
    lines = ["x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected"]
    for i in selected:
        x, y = spots.array[i]
        new_x, new_y = spots.printed[i]
        pixel_x, pixel_y = spots.centers_um[i] / REFERENCE_UM_PER_PX
        lines.append(f"{x}\t{y}\t{new_x:.3f}\t{new_y:.3f}\t{pixel_x:.2f}\t{pixel_y:.2f}\t1")
    _write_lines(folder / "ST-spotfiles" / f"{plan.name}_selection.tsv", lines)


def _write_slide(folder: Path, plan: Plan, profiles: F64) -> None:
    """Write the slide, its spots and their counts."""
    cells_seed, staining_seed, texture_seed, spots_seed, counts_seed = plan.seeds
    cells = place_cells(plan.tissue, _generator(cells_seed))
    staining = draw_staining(_generator(staining_seed))
    pixels = render(plan.tissue, cells, staining, SLIDE_UM_PER_PX, _generator(texture_seed))
    write_pyramid(folder / f"{_SLIDE}.tif", pixels, SLIDE_UM_PER_PX, quality=_JPEG_QUALITY)

    spots = _spots_on_tissue(plan.tissue, 0.0, _generator(spots_seed))
    centers_px = spots.centers_um / SLIDE_UM_PER_PX
    rows = [f"{name},{x:.1f},{y:.1f}" for name, (x, y) in zip(spots.ids, centers_px.tolist(), strict=True)]
    _write_lines(folder / f"{_SLIDE}_spots.csv", ["id,x,y", *rows])
    counts = _counts(plan.tissue, spots, profiles, counts_seed)
    _write_counts(folder / f"{_SLIDE}_truth.tsv.gz", spots.ids, counts)


def _spots_on_tissue(tissue: Tissue, print_error: float, rng: np.random.Generator) -> _Spots:
    """Lay the array over the section and keep the spots of which at least half is tissue."""
    # A spot at array coordinate 1 would be centered on the image's edge, as in her2st.
    axis = np.arange(2, int(SIDE_UM / PITCH_UM) + 1)
    array = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    printed = np.round(array + rng.normal(0, 1, array.shape).clip(-2, 2) * print_error, 3)
    _, coverage = composition_at(tissue, _Spots(array, printed).centers_um, SPOT_RADIUS_UM)
    is_kept = coverage >= _MIN_COVERAGE
    return _Spots(array[is_kept], printed[is_kept])


def _counts(tissue: Tissue, spots: _Spots, profiles: F64, seed: np.random.SeedSequence) -> I64:
    composition, _ = composition_at(tissue, spots.centers_um, SPOT_RADIUS_UM)
    return draw_counts(composition, profiles, _generator(seed))


def _write_counts(path: Path, ids: Sequence[str], counts: I64) -> None:
    """Write spots x genes; genes without a single count are left out."""
    seen = np.flatnonzero(counts.any(axis=0))
    lines = ["\t".join(["", *(GENES[gene] for gene in seen)])]
    for name, row in zip(ids, counts[:, seen].tolist(), strict=True):
        lines.append("\t".join([name, *map(str, row)]))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the time, the same counts are the same bytes.
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Bytes, since text mode would end lines as the platform does.
    path.write_bytes(("\n".join(lines) + "\n").encode())


def _generator(seed: np.random.SeedSequence) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))
