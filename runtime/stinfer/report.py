"""What a prediction says of itself: notices, confidence, pictures and the run's record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stinfer.bank import Bank
from stinfer.bank_parts import OWN_SECTION
from stinfer.contract import F32, I64, PREDICTION_FORMAT_VERSION, AnyArray
from stinfer.encoder_stack import EncoderStack
from stinfer.files import sha256_file
from stinfer.geometry import extent_l0, outside_fraction
from stinfer.lattice import lay_lattice
from stinfer.map_file import MapFile
from stinfer.neighbor_file import NeighborFile
from stinfer.ome_tiff import GridImage
from stinfer.open_bank import OpenBank
from stinfer.picture import GeneMap
from stinfer.places import Places
from stinfer.predict import confidence_from_distance
from stinfer.prediction import Intervals, PredictionTable, SlideImage, iter_expression
from stinfer.preview import draw_preview
from stinfer.record import Notices, plain_name, software_versions
from stinfer.slide_scale import BY_USER
from stinfer.subject import Subject

UNIT = "log1p CP10K"
# A spot is in-domain unless it is farther from its neighbors than 99 % of the held-out references.
IN_DOMAIN_CONFIDENCE = 0.01
# A given scale that differs more from what the slide says is told.
MPP_TOLERANCE = 0.05
# Genes of an OME-TIFF that are predicted at once.
_PLANES_AT_ONCE = 8


def notice_guesses(
    notices: Notices, slide: Subject, places: Places, bank: Bank, encoders: EncoderStack
) -> None:
    """Say what was guessed, filled in or left out before anything is predicted."""
    settings = bank.settings
    if encoders.fallback:
        notices.add(f"running on the CPU: {encoders.fallback}")
    for remark in slide.remarks:
        notices.add(remark)
    pen_mm2 = slide.tissue().pen_mm2(slide.mpp)
    if pen_mm2:
        notices.add(f"{pen_mm2:.2g} mm² have the colours of a pen and are not taken for tissue")
    if slide.said_mpp is not None and any(
        abs(said / used - 1) > MPP_TOLERANCE for said, used in zip(slide.said_mpp, slide.mpp, strict=True)
    ):
        whose = "--mpp" if slide.mpp_source == BY_USER else "the bank's"
        notices.add(
            f"the slide says {shown_mpp(slide.said_mpp)} µm per pixel; {whose} {shown_mpp(slide.mpp)} is "
            "used instead"
        )
    wanted_um = settings.um_per_px
    if max(slide.mpp) > 1.5 * wanted_um:
        notices.add(
            f"the slide has {max(slide.mpp):g} µm per pixel, the bank was made at {wanted_um:.3g}: "
            "it is enlarged and lacks detail"
        )
    if settings.pooling == "patch":
        extent = extent_l0(settings.fov_um[0], slide.mpp)
        n_padded = int((outside_fraction(places.centers_l0, extent, slide.size_l0) > 0).sum())
        if n_padded:
            notices.add(
                f"{n_padded} of {len(places.names)} patches reach beyond the image "
                "and are filled up with white"
            )
    if places.record.get("n_left_out_by_file"):
        n_left_out = places.record["n_left_out_by_file"]
        notices.add(f"{n_left_out} spots that their file marks as not on tissue are left out")


def notice_partial_genes(notices: Notices, bank: Bank, chosen: I64) -> bool:
    """Say which genes only some of a merged bank's origins measure, and how they are predicted.

    Parameters
    ----------
    notices : told
    bank : that predicts
    chosen : (n,), columns of the genes

    Returns
    -------
    whether there are any
    """
    coverage, names = bank.expression.coverage, bank.origin_names
    if coverage is None or not coverage.is_partial(chosen):
        return False
    said = [
        f"{len(positions)} are measured by {' and '.join(np.asarray(names)[origins])} only"
        for origins, positions in coverage.groups(chosen)
        if not origins.all()
    ]
    notices.add(
        f"of the {len(chosen)} genes, {' and '.join(said)}: they are predicted from the nearest "
        "references that measure them, and confidence does not tell how near those are"
    )
    return True


def domain_columns(distance: F32, bank: Bank, notices: Notices) -> dict[str, AnyArray]:
    """Say how usual each spot is among the bank's references: columns of `obs`.

    Parameters
    ----------
    distance : (n_spots,), see `stinfer.predict.domain_distance`
    bank : whose references they are
    notices : told of spots unlike any
    """
    confidence = confidence_from_distance(distance, bank.distance_quantiles)
    in_domain = confidence > IN_DOMAIN_CONFIDENCE
    if not in_domain.all():
        notices.add(
            f"{int((~in_domain).sum())} of {len(in_domain)} spots look unlike anything in the bank "
            "(in_domain is false): do not rely on them"
        )
    return {"neighbor_distance": distance, "confidence": confidence, "in_domain": in_domain}


def slide_image(subject: Subject, mark_um: float) -> SlideImage:
    """Return the thumbnails as scanpy and squidpy plot them, spots `mark_um` wide."""
    return SlideImage(
        name=plain_name(Path(subject.name).stem),
        hires=subject.hires,
        lowres=subject.lowres,
        hires_scale=subject.hires.shape[1] / subject.size_l0[0],
        lowres_scale=subject.lowres.shape[1] / subject.size_l0[0],
        spot_diameter_l0=extent_l0(mark_um, subject.mpp)[0],
    )


def gene_map(
    position: int, bank: Bank, neighbors: NeighborFile, table: PredictionTable, places: Places, slide: Subject
) -> GeneMap:
    """Predict one gene everywhere, for its picture."""
    blocks = iter_expression(bank.expression, np.asarray([position]), neighbors)
    return GeneMap(
        gene=bank.genes[position],
        unit=UNIT,
        values=np.concatenate([values[:, 0] for _, _, values in blocks]),
        spatial=table.spatial,
        mark_l0=extent_l0(places.mark_um, slide.mpp),
        square=places.square,
        thumbnail=table.image.hires,
        scale=table.image.hires_scale,
        um_per_px=slide.mpp[0] / table.image.hires_scale,
    )


def bank_intervals(bank: Bank, chosen: I64) -> Intervals | None:
    """Return what the intervals of some genes are made of; None where the bank does not know."""
    columns = bank.gene_columns
    if not {"interval_scale", "interval_floor"} <= set(columns):
        return None
    return Intervals(
        columns["interval_scale"][chosen].astype(np.float32),
        columns["interval_floor"][chosen].astype(np.float32),
    )


def draw_run_preview(path: Path, slide: Subject, places: Places | None) -> None:
    """Draw the slide's tissue, and the places where there are any, and write it at once."""
    draw_preview(
        path,
        slide.hires,
        slide.tissue(),
        slide.size_l0,
        np.empty((0, 2)) if places is None else places.centers_l0,
        (1.0, 1.0) if places is None else extent_l0(places.mark_um, slide.mpp),
        square=places is None or places.square,
    )


def grid_image(
    names: tuple[str, ...], chosen: I64, bank: Bank, neighbors: NeighborFile, places: Places, subject: Subject
) -> GridImage:
    """Predict genes on the whole grid, for an OME-TIFF; a few planes are held at a time.

    Parameters
    ----------
    names : of the genes
    chosen : their columns in the bank
    bank, neighbors, places, subject : of the run; the places are a grid
    """
    pitch_um = float(places.record["pitch_um"])
    lattice = lay_lattice(subject.size_l0, subject.mpp, pitch_um)
    rows, columns = places.columns["array_row"], places.columns["array_col"]

    def planes() -> Iterator[F32]:
        for first in range(0, len(chosen), _PLANES_AT_ONCE):
            some = chosen[first : first + _PLANES_AT_ONCE]
            values = np.empty((len(rows), len(some)), dtype=np.float32)
            for spots, genes, block in iter_expression(bank.expression, some, neighbors):
                values[spots, genes] = block
            for gene in range(len(some)):
                plane = np.full((lattice.n_rows, lattice.n_columns), np.nan, dtype=np.float32)
                plane[rows, columns] = values[:, gene]
                yield plane

    found = planes()
    return GridImage(names, UNIT, lattice.n_rows, lattice.n_columns, pitch_um, lambda _: next(found))


def shown_mpp(mpp: tuple[float, float]) -> str:
    """Write a scale: one number, or those of x and y."""
    return f"{mpp[0]:g}" if mpp[0] == mpp[1] else f"{mpp[0]:g},{mpp[1]:g}"


def _tissue_record(slide: Subject) -> dict[str, Any]:
    tissue = slide.tissue()
    given = {"file": tissue.given_name, "sha256": tissue.given_sha256} if tissue.given_sha256 else {}
    return {
        "source": "given by the user" if given else "found on the slide",
        **given,
        "mask": tissue.mask,
        "l0_per_px_x": tissue.l0_per_px[0],
        "l0_per_px_y": tissue.l0_per_px[1],
        "chroma_threshold": tissue.threshold,
        "pen_mm2": tissue.pen_mm2(slide.mpp),
    }


def _map_record(subject: Subject) -> dict[str, str]:
    if not isinstance(subject.source, MapFile):
        return {}
    return {"map_name": subject.file_name, "map_sha256": sha256_file(subject.path)}


def model_record(model: Path, cosine: float | None) -> dict[str, Any]:
    """Return what is recorded of a model that stood in for the bank's own, and of how well the two agree."""
    return {"model": plain_name(model.name), "model_sha256": sha256_file(model), "model_cosine": cosine}


def run_record(
    slide: Subject,
    opened: OpenBank,
    places: Places,
    arguments: dict[str, Any],
    notices: Notices,
) -> dict[str, Any]:
    """Return the whole record; `reference_bank/FORMAT.md` describes it."""
    bank = opened.bank
    return {
        "format_version": PREDICTION_FORMAT_VERSION,
        "kind": "prediction",
        "unit": UNIT,
        "slide": {
            "name": slide.name,
            "sha256": slide.sha256,
            **_map_record(slide),
            "width_px": slide.size_l0[0],
            "height_px": slide.size_l0[1],
            "mpp_x_um": slide.mpp[0],
            "mpp_y_um": slide.mpp[1],
            "mpp_source": slide.mpp_source,
            **({} if slide.reader is None else {"reader": slide.reader}),
        },
        "bank": {
            "name": plain_name(bank.path.name),
            "sha256": opened.sha256,
            **({} if opened.signed_by is None else {"signed_by": opened.signed_by}),
            "n_references": bank.n_refs,
            **bank.settings.to_uns(bank.format_version),
            **({} if bank.own_section is None else {OWN_SECTION: bank.own_section.to_mapping()}),
        },
        "run": arguments,
        "places": places.record,
        "tissue": _tissue_record(slide),
        "notices": list(notices.texts),
        "software": software_versions(slide.reader),
    }
