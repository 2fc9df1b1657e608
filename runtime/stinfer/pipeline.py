"""The main job: a slide and a bank in, predicted expression out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from stinfer.bank import Bank
from stinfer.contract import F32, PREDICTION_FORMAT_VERSION, AnyArray
from stinfer.embed import iter_embeddings, open_encoder
from stinfer.encoder import Device, Encoder
from stinfer.errors import SettingError, check_choice
from stinfer.files import is_file, refuse_existing, refuse_same_file, sha256_file, written_together
from stinfer.genes import ALL, select_genes
from stinfer.geometry import extent_l0, outside_fraction
from stinfer.neighbors import Search, SearchChoice, choose_search
from stinfer.picture import GeneMap, draw_gene_map
from stinfer.places import Places, places_from_file, places_on_grid
from stinfer.predict import (
    Weighting,
    confidence_from_distance,
    domain_distance,
    expression_from_neighbors,
    neighbor_weights,
)
from stinfer.prediction import Neighbors, PredictionTable, SlideImage, write_csv, write_prediction
from stinfer.record import Notices, plain_name, software_versions
from stinfer.slide import Slide, open_slide

Progress = Callable[[int, int], None]

UNIT = "log1p CP10K"
DEFAULT_BATCH_SIZE = 32
# A spot is in-domain unless it is farther from its neighbors than 99 % of the held-out references.
IN_DOMAIN_CONFIDENCE = 0.01
# A given scale that differs more from what the slide says is told.
MPP_TOLERANCE = 0.05
HIRES_PX = 2000
LOWRES_PX = 600


@dataclass(frozen=True)
class PredictionResult:
    """Where a run's results are.

    Parameters
    ----------
    path : the `.h5ad` file
    csv_path : the CSV file, if asked for
    png_paths : the pictures, in the order asked for
    n_spots, n_genes : size of the prediction
    notices : what a user should know, as recorded in the file
    """

    path: Path
    csv_path: Path | None
    png_paths: tuple[Path, ...]
    n_spots: int
    n_genes: int
    notices: tuple[str, ...]


def default_output(slide: str | Path) -> Path:
    """Return where a slide's prediction goes unless told: the working folder, named after it."""
    return Path(f"{Path(slide).stem}.stinfer.h5ad")


def predict_slide(
    slide: str | Path,
    bank: str | Path,
    *,
    out: str | Path | None = None,
    mpp: float | None = None,
    spots: str | Path | None = None,
    pitch_um: float | None = None,
    genes: str | Sequence[str] = ALL,
    csv: str | Path | None = None,
    png: Sequence[str] = (),
    device: Device = "auto",
    search: SearchChoice = "auto",
    k: int | None = None,
    weighting: Weighting | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PredictionResult:
    """Predict spatial gene expression for a slide and write it.

    1. Open the bank and check it; open the slide and settle its scale.
    2. Find the places: those of the spots file, else a grid over the tissue.
    3. Cut a patch of the bank's field of view around each, encode it with the bank's own model.
    4. Find the nearest references and weigh them.
    5. Average their expression and write it, block by block.

    Parameters
    ----------
    slide : whole-slide file or image
    bank : reference bank
    out : prediction to write, by default ``<slide>.stinfer.h5ad`` in the working folder
    mpp : µm per level-0 pixel, where the slide does not say or is wrong
    spots : file of places; see `stinfer.spots.read_spots`
    pitch_um : distance of grid points, by default that of the bank's spots; not with `spots`
    genes : ``all``, names, or a file of names
    csv : table of spots x genes to write too
    png : genes to draw, as ``<out>.<gene>.png``
    device : ``auto``, ``cpu`` or ``cuda``
    search : ``auto``, ``exact`` or ``annoy``
    k : neighbors to average, by default the bank's
    weighting : ``uniform``, ``inverse`` or ``softmax``, by default the bank's
    batch_size : patches encoded at a time
    threads : cores to use, by default those allowed
    overwrite : replace existing outputs
    progress : called with the patches done and their number

    Raises
    ------
    StInferError
        Any of `stinfer.errors`; nothing is left half-written.
    """
    for name, number in (("k", k), ("batch_size", batch_size), ("threads", threads)):
        _check_count(name, number)
    out = default_output(slide) if out is None else Path(out)
    png = list(dict.fromkeys([png] if isinstance(png, str) else png))
    csv_path = None if csv is None else Path(csv)
    if spots is not None and pitch_um is not None:
        what = "--spots and --pitch-um contradict each other: the file says where to predict"
        raise SettingError(what, "give one of them")
    opened_bank = Bank.open(bank)
    settings = opened_bank.settings
    chosen = select_genes(genes, opened_bank.genes)
    drawn = [int(select_genes([gene], opened_bank.genes)[0]) for gene in png]
    png_paths = tuple(_picture_path(out, opened_bank.genes[position]) for position in drawn)
    outputs = [path for path in (out, csv_path, *png_paths) if path is not None]
    gene_list = genes if isinstance(genes, str) and is_file(Path(genes)) else None
    inputs = [Path(path) for path in (slide, bank, spots, gene_list) if path is not None]
    refuse_same_file(inputs, outputs)
    for path in outputs:
        refuse_existing(path, overwrite=overwrite)
    k = settings.k if k is None else k
    if not 1 <= k <= opened_bank.n_refs:
        what = f"--k {k} is not between 1 and the bank's {opened_bank.n_refs} references"
        raise SettingError(what, f"leave it out to use the bank's {settings.k}")
    weighting = settings.weighting if weighting is None else weighting
    check_choice("weighting", weighting, get_args(Weighting))
    notices = Notices()
    with open_slide(slide, mpp) as opened:
        if spots is None:
            places = places_on_grid(opened, settings.pitch_um if pitch_um is None else pitch_um)
        else:
            places = places_from_file(opened, spots, settings.spot_diameter_um)
        encoder = open_encoder(opened_bank, device=device, threads=threads)
        searcher = choose_search(search, opened_bank)
        _notice_guesses(notices, opened, places, opened_bank, encoder)
        embeddings = iter_embeddings(
            opened, places.centers_l0, encoder, settings.fov_um, settings.patch_px, batch_size
        )
        neighbors, distance = _find_neighbors(
            embeddings, opened_bank, searcher, k, weighting, len(places.names), progress
        )
        image = _slide_image(opened, places.mark_um)
    domain_columns = _domain_columns(distance, opened_bank, notices)
    arguments = {
        "k": k,
        "weighting": weighting,
        "search": searcher.name,
        "recall": settings.annoy_recall if searcher.name == "annoy" else 1.0,
        "device": device,
        "provider": encoder.provider,
        "batch_size": batch_size,
    }
    table = PredictionTable(
        spots=places.names,
        spot_columns={**places.columns, **domain_columns},
        spatial=places.centers_l0,
        genes=tuple(opened_bank.genes[i] for i in chosen),
        gene_columns={name: values[chosen] for name, values in opened_bank.gene_columns.items()},
        image=image,
        record=_record(opened, opened_bank, places, arguments, notices),
    )
    with written_together(outputs) as beside:
        for path, position in zip(png_paths, drawn, strict=True):
            shown = _gene_map(position, opened_bank, neighbors, table, places, opened)
            draw_gene_map(beside[path], shown)
        if csv_path is not None:
            write_csv(beside[csv_path], table, opened_bank.expression, chosen, neighbors)
        write_prediction(beside[out], table, opened_bank.expression, chosen, neighbors)
    return PredictionResult(out, csv_path, png_paths, len(places.names), len(chosen), tuple(notices.texts))


def _check_count(name: str, value: object) -> None:
    if value is not None and (not isinstance(value, int) or value < 1):
        what = f"{name} is {value!r}"
        raise SettingError(what, "give a whole number of at least 1")


def _picture_path(out: Path, gene: str) -> Path:
    # A gene's name comes from a file: it must not lead out of the folder.
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in gene)
    return out.with_name(f"{out.name.removesuffix('.h5ad')}.{safe}.png")


def _notice_guesses(notices: Notices, slide: Slide, places: Places, bank: Bank, encoder: Encoder) -> None:
    settings = bank.settings
    if encoder.fallback:
        notices.add(f"running on the CPU: {encoder.fallback}")
    if slide.said_mpp is not None and any(
        abs(said / used - 1) > MPP_TOLERANCE for said, used in zip(slide.said_mpp, slide.mpp, strict=True)
    ):
        notices.add(
            f"the slide says {slide.said_mpp[0]:g} µm per pixel; --mpp {slide.mpp[0]:g} is used instead"
        )
    wanted_um = settings.fov_um / settings.patch_px
    if max(slide.mpp) > 1.5 * wanted_um:
        notices.add(
            f"the slide has {max(slide.mpp):g} µm per pixel, the bank was made at {wanted_um:.3g}: "
            "patches are enlarged and lack detail"
        )
    extent = extent_l0(settings.fov_um, slide.mpp)
    n_padded = int((outside_fraction(places.centers_l0, extent, slide.size_l0) > 0).sum())
    if n_padded:
        notices.add(
            f"{n_padded} of {len(places.names)} patches reach beyond the image and are filled up with white"
        )
    if places.record.get("n_left_out_by_file"):
        n_left_out = places.record["n_left_out_by_file"]
        notices.add(f"{n_left_out} spots that their file marks as not on tissue are left out")


def _find_neighbors(
    embeddings: Iterator[F32],
    bank: Bank,
    searcher: Search,
    k: int,
    weighting: Weighting,
    n_spots: int,
    progress: Progress | None,
) -> tuple[Neighbors, F32]:
    """Apply the metric, search and weigh, batch by batch.

    Returns
    -------
    neighbors : of all spots
    distance : (n_spots,), see `domain_distance`
    """
    settings = bank.settings
    indices = np.empty((n_spots, k), dtype=np.int64)
    weights = np.empty((n_spots, k), dtype=np.float32)
    distance = np.empty(n_spots, dtype=np.float32)
    if progress is not None:
        progress(0, n_spots)
    done = 0
    for batch in embeddings:
        part = slice(done, done + len(batch))
        near, found = searcher.query(bank.metric.apply(batch), max(k, settings.domain_k))
        indices[part] = found[:, :k]
        weights[part] = neighbor_weights(near[:, :k], weighting, settings.temperature)
        distance[part] = domain_distance(near, settings.domain_k)
        done += len(batch)
        if progress is not None:
            progress(done, n_spots)
    return Neighbors(indices, weights), distance


def _domain_columns(distance: F32, bank: Bank, notices: Notices) -> dict[str, AnyArray]:
    confidence = confidence_from_distance(distance, bank.distance_quantiles)
    in_domain = confidence > IN_DOMAIN_CONFIDENCE
    if not in_domain.all():
        notices.add(
            f"{int((~in_domain).sum())} of {len(in_domain)} spots look unlike anything in the bank "
            "(in_domain is false): do not rely on them"
        )
    return {"neighbor_distance": distance, "confidence": confidence, "in_domain": in_domain}


def _slide_image(slide: Slide, mark_um: float) -> SlideImage:
    hires, lowres = slide.thumbnail(HIRES_PX), slide.thumbnail(LOWRES_PX)
    return SlideImage(
        name=plain_name(slide.path.stem),
        hires=hires,
        lowres=lowres,
        hires_scale=hires.shape[1] / slide.size_l0[0],
        lowres_scale=lowres.shape[1] / slide.size_l0[0],
        spot_diameter_l0=extent_l0(mark_um, slide.mpp)[0],
    )


def _gene_map(
    position: int, bank: Bank, neighbors: Neighbors, table: PredictionTable, places: Places, slide: Slide
) -> GeneMap:
    column = bank.expression.columns(np.asarray([position]))
    values = expression_from_neighbors(neighbors.weights, neighbors.indices, column)[:, 0]
    return GeneMap(
        gene=bank.genes[position],
        unit=UNIT,
        values=values,
        spatial=table.spatial,
        mark_l0=extent_l0(places.mark_um, slide.mpp),
        square=places.square,
        thumbnail=table.image.hires,
        scale=table.image.hires_scale,
        um_per_px=slide.mpp[0] / table.image.hires_scale,
    )


def _record(
    slide: Slide, bank: Bank, places: Places, arguments: dict[str, Any], notices: Notices
) -> dict[str, Any]:
    """Return the whole record; `reference_bank/FORMAT.md` describes it."""
    return {
        "format_version": PREDICTION_FORMAT_VERSION,
        "kind": "prediction",
        "unit": UNIT,
        "slide": {
            "name": plain_name(slide.path.name),
            # A slide that is a folder of files has no one hash.
            "sha256": sha256_file(slide.path) if slide.path.is_file() else "",
            "width_px": slide.size_l0[0],
            "height_px": slide.size_l0[1],
            "mpp_x_um": slide.mpp[0],
            "mpp_y_um": slide.mpp[1],
            "mpp_source": slide.mpp_source,
        },
        "bank": {
            "name": plain_name(bank.path.name),
            "sha256": sha256_file(bank.path),
            "n_references": bank.n_refs,
            **bank.settings.to_scalars(),
        },
        "run": arguments,
        "places": places.record,
        "notices": list(notices.texts),
        "software": software_versions(),
    }
