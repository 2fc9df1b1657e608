"""A slide's, or a saved map's, places embedded in the way of the bank."""

from __future__ import annotations

import platform
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stinfer.checkpoint import Checkpoint
from stinfer.contract import F32, I64
from stinfer.embed import FieldOfView, iter_map_embeddings, iter_patch_embeddings
from stinfer.feature_map import CellSource, Progress, SlideCells, tissue_on
from stinfer.files import sha256_file
from stinfer.integrity import hash_arrays
from stinfer.map_file import MapFile
from stinfer.map_header import MapRecipe
from stinfer.map_writer import writing_map
from stinfer.open_bank import OpenBank
from stinfer.places import Places
from stinfer.record import Notices, software_versions
from stinfer.slide import PixelSource
from stinfer.stage_clock import StageClock
from stinfer.stained_slide import in_stain_of
from stinfer.subject import Subject


def encoding_recipe(subject: Subject, fingerprint: str, opened: OpenBank) -> dict[str, Any]:
    """Return what everything that is encoded depends on, beside the places.

    Parameters
    ----------
    subject : the slide, or its saved map
    fingerprint : of its file
    opened : the bank
    """
    return {
        "slide": fingerprint,
        "size_l0": list(subject.size_l0),
        "mpp": list(subject.mpp),
        "tissue": hash_arrays(subject.tissue().mask),
        "pooling": opened.bank.settings.pooling,
        **asdict(MapRecipe.of(opened.bank)),
        **({} if opened.model is None else {"model_sha256": sha256_file(opened.model)}),
        "provider": opened.encoders.provider,
        "machine": platform.machine(),
        "software": software_versions(),
    }


def iter_embeddings(
    subject: Subject,
    places: Places,
    opened: OpenBank,
    map_path: Path | None,
    batch_size: int | None,
    notices: Notices,
    progress: Progress | None,
    checkpoint: Checkpoint,
    clock: StageClock | None = None,
) -> Generator[tuple[I64, F32], None, None]:
    """Embed places: a patch around each is encoded, or windows are read from the slide's map.

    Parameters
    ----------
    subject : the slide, or its saved map
    places : where
    opened : the bank; it says how
    map_path : where to keep the slide's map, or None
    batch_size : patches encoded at a time; None for what suits the encoders
    notices : told what is guessed
    progress : called with what is done, how much there is, and of what
    checkpoint : keeps what is encoded
    clock : told how long each stage takes

    Yields
    ------
    places : (n_batch,), positions
    embeddings : (n_batch, dim), before the metric
    """
    if opened.bank.settings.pooling == "map":
        yield from _map_embeddings(subject, places, opened, map_path, notices, progress, checkpoint, clock)
        return
    view = FieldOfView.of(opened.bank.settings)
    slide = _stained(subject, opened, notices)
    yield from iter_patch_embeddings(
        slide, places.centers_l0, opened.encoders, view, batch_size, progress, checkpoint, clock
    )


def _map_embeddings(
    subject: Subject,
    places: Places,
    opened: OpenBank,
    map_path: Path | None,
    notices: Notices,
    progress: Progress | None,
    checkpoint: Checkpoint,
    clock: StageClock | None,
) -> Generator[tuple[I64, F32], None, None]:
    """Embed places through the windows of a map, and write the map if it is to be kept."""
    encoders, settings = opened.encoders, opened.bank.settings
    source: CellSource
    if isinstance(subject.source, MapFile):
        subject.source.refuse_other_cells(encoders.cell_um(settings.um_per_px), encoders.n_channels)
        source, tissue = subject.source, subject.source.tissue
    else:
        slide = _stained(subject, opened, notices)
        source = SlideCells(slide, encoders, settings.um_per_px, checkpoint=checkpoint, clock=clock)
        tissue = tissue_on(source.lattice, subject.tissue(), subject.mpp)
    lattice = source.lattice
    centers = lattice.to_cells(places.centers_l0, subject.mpp)
    plan = FieldOfView.of(settings).plan(centers, lattice.cell_um, tissue)
    if plan.by_area.any():
        notices.add(
            f"{int(plan.by_area.sum())} of {len(centers)} places have hardly any tissue in their window of "
            f"{settings.fov_um[0]:g} µm; all that is in their windows is averaged, glass too"
        )
    if map_path is None:
        yield from iter_map_embeddings(source, plan, plan.needed, encoders, progress, clock)
        return
    held = plan.needed | (tissue > 0)
    recipe = MapRecipe.of(opened.bank)
    with writing_map(map_path, source, held, tissue, subject.to_map(), recipe) as writer:
        yield from iter_map_embeddings(writer, plan, held, encoders, progress, clock)


def _stained(subject: Subject, opened: OpenBank, notices: Notices) -> PixelSource:
    if isinstance(subject.source, MapFile):
        msg = "a map has no pixels; refuse_foreign refuses it"
        raise TypeError(msg)
    stain = opened.bank.stain
    if stain is None:
        return subject.source
    return in_stain_of(stain, subject.source, subject.tissue(), f"slide {subject.name}", notices)
