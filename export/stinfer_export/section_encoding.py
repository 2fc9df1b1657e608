"""A measured section, embedded and normalised: what a bank is put together from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stinfer.contract import F32, F64, I64, Bool
from stinfer.embed import FieldOfView, iter_map_embeddings, iter_patch_embeddings
from stinfer.encoder_stack import EncoderStack
from stinfer.feature_map import Progress, SlideCells, tissue_on
from stinfer.geometry import extent_l0, outside_fraction, outside_px
from stinfer.predict import log1p_cp10k
from stinfer.record import Notices
from stinfer.slide import PixelSource, open_slide
from stinfer.sparse import Sparse
from stinfer.stain import Stain
from stinfer.stained_slide import in_stain_of
from stinfer.tissue import TissueMask, find_tissue
from stinfer_export.bank_plan import BankPlan
from stinfer_export.datasets.counts import Counts
from stinfer_export.datasets.section import COARSEST_MPP_UM, Section
from stinfer_export.errors import DatasetError


@dataclass(frozen=True)
class Part:
    """One section, embedded; counts are kept sparse, since all sections are held at once."""

    name: str
    patient: str
    image_path: Path
    mpp: float
    spots: tuple[str, ...]
    centers_l0: F64
    array: F64
    genes: tuple[str, ...]
    gene_ids: tuple[str, ...] | None
    expression: Sparse
    totals: F64
    embeddings: F32
    source: dict[str, Any]


def encode_section(
    section: Section,
    plan: BankPlan,
    view: FieldOfView,
    encoders: EncoderStack,
    stain: Stain | None,
    batch_size: int | None,
    notices: Notices,
    progress: Progress | None,
) -> Part:
    """Drop the spots that cannot be used, embed the others and normalise their counts.

    Parameters
    ----------
    section : measured
    plan, view : of the bank
    encoders : backbones, nothing projected
    stain : that the section is brought to before it is encoded; None to leave it as it is
    batch_size : patches encoded at a time; None for what suits the encoders
    notices : told what is dropped
    progress : called with what is done, how much there is, and of what
    """
    for text in section.notices:
        notices.add(f"section {section.name}: {text}")
    with open_slide(section.image_path, section.mpp, mpp_max_um=COARSEST_MPP_UM) as slide:
        for remark in slide.remarks:
            notices.add(f"section {section.name}: {remark}")
        _refuse_misplaced(section, extent_l0(plan.pitch_um, slide.mpp), slide.size_l0)
        extent = extent_l0(view.sides_um[0], slide.mpp)
        outside = outside_fraction(section.centers_l0, extent, slide.size_l0)
        totals = section.counts.totals()
        lost = outside > plan.max_outside
        if view.pooling == "map":
            # A window without a cell has no mean; a patch beyond the image is white.
            lost |= outside >= 1
        kept = np.flatnonzero(~lost & (totals > 0))
        centers = section.centers_l0[kept]
        _notice_drops(section, plan, view, outside, lost, totals, kept, notices)
        tissue = find_tissue(slide) if view.pooling == "map" or stain is not None else None
        seen: PixelSource = slide
        if tissue is not None:
            seen = in_stain_of(stain, slide, tissue, f"section {section.name}", notices)
        dim = len(view.sides_um) * sum(encoders.widths)
        embeddings = np.empty((len(kept), dim), dtype=np.float32)
        if view.pooling == "map" and tissue is not None and len(kept):
            found = _map_embeddings(section, seen, tissue, centers, view, encoders, notices, progress)
        else:
            found = iter_patch_embeddings(seen, centers, encoders, view, batch_size, progress)
        for places, batch in found:
            embeddings[places] = batch
    return part_of(section, kept, embeddings)


def part_of(section: Section, kept: I64, embeddings: F32) -> Part:
    """Normalise the counts of the spots that were embedded.

    Parameters
    ----------
    section : measured
    kept : (n,), spots that were embedded, each with counts
    embeddings : (n, dim)
    """
    totals = section.counts.totals()[kept]
    return Part(
        name=section.name,
        patient=section.patient,
        image_path=section.image_path,
        mpp=section.mpp,
        spots=tuple(section.spots[i] for i in kept),
        centers_l0=section.centers_l0[kept],
        array=section.array[kept],
        genes=section.genes,
        gene_ids=section.gene_ids,
        expression=_normalized(section.counts.take_spots(kept), totals),
        totals=totals,
        embeddings=embeddings,
        source={"image": section.image_path.name, "mpp_um": section.mpp, "n_spots": len(kept)},
    )


def _map_embeddings(
    section: Section,
    slide: PixelSource,
    mask: TissueMask,
    centers_l0: F64,
    view: FieldOfView,
    encoders: EncoderStack,
    notices: Notices,
    progress: Progress | None,
) -> Iterator[tuple[I64, F32]]:
    if mask.n_pen_px:
        area = f"{mask.pen_mm2(slide.mpp):.2g} mm²"
        notices.add(f"section {section.name}: {area} have the colours of a pen and are not taken for tissue")
    source = SlideCells(slide, encoders, view.um_per_px)
    tissue = tissue_on(source.lattice, mask, slide.mpp)
    centers = source.lattice.to_cells(centers_l0, slide.mpp)
    plan = view.plan(centers, source.lattice.cell_um, tissue)
    if plan.by_area.any():
        notices.add(
            f"section {section.name}: {int(plan.by_area.sum())} spots have hardly any tissue in their window "
            f"of {view.sides_um[0]:g} µm; all that is in their windows is averaged, glass too"
        )
    return iter_map_embeddings(source, plan, plan.needed, encoders, progress)


def _refuse_misplaced(section: Section, pitch_l0: tuple[float, float], size_l0: tuple[int, int]) -> None:
    """Refuse places that are not of this image.

    An array may reach over the edge of its image, but a spot half a pitch beyond cannot have been seen.
    """
    outside = outside_px(section.centers_l0, size_l0)
    n_outside = int((outside > max(pitch_l0) / 2).sum())
    if n_outside:
        worst = int(np.argmax(outside))
        cause = (
            f"section {section.name}: {n_outside} of {len(outside)} spots lie outside its image of "
            f"{size_l0[0]}x{size_l0[1]} px, spot {section.spots[worst]} by {outside[worst]:.0f} px"
        )
        raise DatasetError(section.image_path, cause, "check that image and spots belong together")


def _notice_drops(
    section: Section,
    plan: BankPlan,
    view: FieldOfView,
    outside: F64,
    lost: Bool,
    totals: F64,
    kept: I64,
    notices: Notices,
) -> None:
    part = "all" if plan.max_outside == 1 else f"more than {plan.max_outside:.0%}"
    dropped = {
        "have a place but no counts": section.n_places_only,
        "have counts but no place": section.n_counts_only,
        "have no counts above 0": int((totals == 0).sum()),
        f"have {part} of their {view.sides_um[0]:g} µm outside the image": int(lost.sum()),
    }
    for cause, n_lost in dropped.items():
        if n_lost:
            notices.add(f"section {section.name}: {n_lost} spots {cause}; dropped")
    n_padded = int((outside[kept] > 0).sum())
    if n_padded and view.pooling == "patch":
        notices.add(
            f"section {section.name}: the patches of {n_padded} spots reach beyond the image; "
            "filled up with white"
        )


def _normalized(counts: Counts, totals: F64) -> Sparse:
    values = log1p_cp10k(counts.values, totals[counts.rows])
    return Sparse(values, counts.columns.astype(np.int32), counts.starts, counts.n_genes)
