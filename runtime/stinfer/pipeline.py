"""The main job: a slide and a bank in, predicted expression out."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from stinfer.bank import Bank
from stinfer.contract import F32, I64
from stinfer.embed import FieldOfView, iter_map_embeddings, iter_patch_embeddings, open_encoder
from stinfer.encoder import Device, Encoder
from stinfer.errors import NoTissueError, SettingError, check_choice
from stinfer.feature_map import CellSource, Progress, SlideCells, cell_um, tissue_on
from stinfer.files import is_file, refuse_existing, refuse_same_file, written_together
from stinfer.genes import ALL, select_genes
from stinfer.map_file import MapFile, MapRecipe, writing_map
from stinfer.metric import project
from stinfer.neighbors import Search, SearchChoice, choose_search
from stinfer.ome_tiff import import_tifffile, write_ome_tiff
from stinfer.picture import draw_gene_map
from stinfer.places import Places, places_from_file, places_on_grid
from stinfer.predict import Weighting, domain_distance, neighbor_weights
from stinfer.prediction import (
    NeighborFile,
    Neighbors,
    PredictionTable,
    write_csv,
    write_prediction,
)
from stinfer.record import Notices
from stinfer.report import (
    domain_columns,
    draw_run_preview,
    gene_map,
    grid_image,
    notice_guesses,
    run_record,
    slide_image,
)
from stinfer.slide import Slide
from stinfer.subject import Subject, open_subject

DEFAULT_BATCH_SIZE = 32
# Channels of an OME-TIFF; viewers list them all.
MAX_OME_GENES = 256
MAP_SUFFIX = ".map.h5"


@dataclass(frozen=True)
class PredictionResult:
    """Where a run's results are.

    Parameters
    ----------
    path : the `.h5ad` file
    csv_path : the CSV file, if asked for
    png_paths : the pictures, in the order asked for
    ome_tiff_path, map_path : the dense image and the slide's map, if asked for
    preview_path : the picture of tissue and places, if asked for
    n_spots, n_genes : size of the prediction
    notices : what a user should know, as recorded in the file
    """

    path: Path
    csv_path: Path | None
    png_paths: tuple[Path, ...]
    ome_tiff_path: Path | None
    map_path: Path | None
    preview_path: Path | None
    n_spots: int
    n_genes: int
    notices: tuple[str, ...]


def default_output(slide: str | Path) -> Path:
    """Return where a slide's prediction goes unless told: the working folder, named after it."""
    name = Path(slide).name
    stem = name.removesuffix(MAP_SUFFIX) if name.endswith(MAP_SUFFIX) else Path(name).stem
    return Path(f"{stem}.stinfer.h5ad")


def predict_slide(
    slide: str | Path,
    bank: str | Path,
    *,
    out: str | Path | None = None,
    mpp: float | tuple[float, float] | None = None,
    tissue_mask: str | Path | None = None,
    spots: str | Path | None = None,
    pitch_um: float | None = None,
    genes: str | Sequence[str] = ALL,
    csv: str | Path | None = None,
    png: Sequence[str] = (),
    ome_tiff: str | Path | None = None,
    save_map: str | Path | None = None,
    preview: str | Path | None = None,
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
    3. Embed them with the bank's own model, in the bank's way: a patch around each is encoded, or the
       tissue is encoded once as a map, or taken from a saved map, and read through windows.
    4. Find the nearest references and weigh them.
    5. Average their expression and write it, block by block.

    Parameters
    ----------
    slide : whole-slide file or image, or a map that `save_map` wrote
    bank : reference bank
    out : prediction to write, by default ``<slide>.stinfer.h5ad`` in the working folder
    mpp : µm per level-0 pixel, or those of x and y, where the slide does not say or is wrong
    tissue_mask : PNG or TIFF that says where tissue is, not 0; by default it is found
    spots : file of places; see `stinfer.spots.read_spots`
    pitch_um : distance of grid points, by default that of the bank's spots; not with `spots`
    genes : ``all``, names, or a file of names
    csv : table of spots x genes to write too
    png : genes to draw, as ``<out>.<gene>.png``
    ome_tiff : image of the grid to write too, a channel per gene; not with `spots`
    save_map : file to keep the slide's feature map in; only with a bank of maps
    preview : picture of tissue and places, written before anything is encoded, and kept if that fails
    device : ``auto``, ``cpu`` or ``cuda``
    search : ``auto``, ``exact`` or ``annoy``
    k : neighbors to average, by default the bank's
    weighting : ``uniform``, ``inverse`` or ``softmax``, by default the bank's
    batch_size : patches encoded at a time
    threads : cores to use, by default those allowed
    overwrite : replace existing outputs
    progress : called with what is done, how much there is, and of what: patches, regions or bands

    Raises
    ------
    StInferError
        Any of `stinfer.errors`; nothing is left half-written.
    """
    for name, number in (("k", k), ("batch_size", batch_size), ("threads", threads)):
        _check_count(name, number)
    out = default_output(slide) if out is None else Path(out)
    png = list(dict.fromkeys([png] if isinstance(png, str) else png))
    csv_path, ome_path, map_path, preview_path = (
        None if path is None else Path(path) for path in (csv, ome_tiff, save_map, preview)
    )
    if spots is not None and pitch_um is not None:
        what = "--spots and --pitch-um contradict each other: the file says where to predict"
        raise SettingError(what, "give one of them")
    opened_bank = Bank.open(bank)
    settings = opened_bank.settings
    chosen = select_genes(genes, opened_bank.genes)
    drawn = [int(select_genes([gene], opened_bank.genes)[0]) for gene in png]
    png_paths = tuple(_picture_path(out, opened_bank.genes[position]) for position in drawn)
    if ome_path is not None:
        _check_ome_tiff(len(chosen), spots)
    if map_path is not None and settings.pooling != "map":
        what = f"--save-map: bank {opened_bank.path} encodes patches, and makes no map"
        raise SettingError(what, "leave it out, or build the bank with --pooling map")
    outputs = [path for path in (out, csv_path, ome_path, map_path, *png_paths) if path is not None]
    gene_list = genes if isinstance(genes, str) and is_file(Path(genes)) else None
    inputs = [Path(path) for path in (slide, bank, spots, gene_list, tissue_mask) if path is not None]
    # The preview is a product of its own: it stays if the run fails.
    at_once = [] if preview_path is None else [preview_path]
    refuse_same_file(inputs, [*outputs, *at_once])
    for path in (*outputs, *at_once):
        refuse_existing(path, overwrite=overwrite)
    k = settings.k if k is None else k
    if not 1 <= k <= opened_bank.n_refs:
        what = f"--k {k} is not between 1 and the bank's {opened_bank.n_refs} references"
        raise SettingError(what, f"leave it out to use the bank's {settings.k}")
    weighting = settings.weighting if weighting is None else weighting
    check_choice("weighting", weighting, get_args(Weighting))
    notices = Notices()
    with contextlib.ExitStack() as stack:
        beside = stack.enter_context(written_together(outputs))
        subject = stack.enter_context(open_subject(slide, mpp, tissue_mask))
        if isinstance(subject.source, MapFile):
            subject.source.refuse_foreign(opened_bank)
            if map_path is not None:
                what = f"--save-map: {subject.path} is a map already"
                raise SettingError(what, "leave it out")
        encoder = open_encoder(opened_bank, device=device, threads=threads)
        if spots is None:
            finest_um = (
                cell_um(encoder, settings.um_per_px) if settings.pooling == "map" else max(subject.mpp)
            )
            pitch_um = float(settings.pitch_um if pitch_um is None else pitch_um)
            try:
                places = places_on_grid(subject, subject.tissue(), pitch_um, finest_um)
            except NoTissueError:
                if preview_path is not None:
                    draw_run_preview(preview_path, subject, None)
                raise
        else:
            places = places_from_file(subject, spots, settings.spot_diameter_um)
        if preview_path is not None:
            draw_run_preview(preview_path, subject, places)
        searcher = choose_search(search, opened_bank)
        notice_guesses(notices, subject, places, opened_bank, encoder)
        neighbors = stack.enter_context(NeighborFile(out.parent, len(places.names), k))
        if settings.pooling == "map":
            kept = None if map_path is None else beside[map_path]
            cells = _map_embeddings(subject, places, opened_bank, encoder, kept, notices, progress)
            # A map half written goes with the error, not when Python lets go of the last frame.
            embeddings: Iterator[tuple[I64, F32]] = stack.enter_context(contextlib.closing(cells))
        else:
            embeddings = iter_patch_embeddings(
                _slide(subject),
                places.centers_l0,
                encoder,
                FieldOfView.of(settings),
                batch_size,
                progress,
            )
            embeddings = ((spots_, project(raw, opened_bank.projection)) for spots_, raw in embeddings)
        distance = _find_neighbors(embeddings, opened_bank, searcher, k, weighting, neighbors)
        columns = domain_columns(distance, opened_bank, notices)
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
            spot_columns={**places.columns, **columns},
            spatial=places.centers_l0,
            genes=tuple(opened_bank.genes[i] for i in chosen),
            gene_columns={name: values[chosen] for name, values in opened_bank.gene_columns.items()},
            image=slide_image(subject, places.mark_um),
            record=run_record(subject, opened_bank, places, arguments, notices),
        )
        for path, position in zip(png_paths, drawn, strict=True):
            shown = gene_map(position, opened_bank, neighbors, table, places, subject)
            draw_gene_map(beside[path], shown)
        if csv_path is not None:
            write_csv(beside[csv_path], table, opened_bank.expression, chosen, neighbors)
        if ome_path is not None:
            image = grid_image(table.genes, chosen, opened_bank, neighbors, places, subject)
            write_ome_tiff(beside[ome_path], image, slide_name=subject.name, bank_name=opened_bank.path.name)
        write_prediction(beside[out], table, opened_bank.expression, chosen, neighbors)
    return PredictionResult(
        out,
        csv_path,
        png_paths,
        ome_path,
        map_path,
        preview_path,
        len(places.names),
        len(chosen),
        tuple(notices.texts),
    )


def _check_count(name: str, value: object) -> None:
    if value is not None and (not isinstance(value, int) or value < 1):
        what = f"{name} is {value!r}"
        raise SettingError(what, "give a whole number of at least 1")


def _check_ome_tiff(n_genes: int, spots: str | Path | None) -> None:
    if spots is not None:
        what = "--ome-tiff is an image of a grid, and --spots gives places that are none"
        raise SettingError(what, "leave out one of them")
    if n_genes > MAX_OME_GENES:
        what = f"--ome-tiff would have {n_genes} channels, more than {MAX_OME_GENES}"
        raise SettingError(what, "choose genes with --genes")
    import_tifffile()  # a missing package is told before the hour of encoding


def _slide(subject: Subject) -> Slide:
    if not isinstance(subject.source, Slide):
        msg = "a map has no patches; refuse_foreign refuses it"
        raise TypeError(msg)
    return subject.source


def _map_embeddings(
    subject: Subject,
    places: Places,
    bank: Bank,
    encoder: Encoder,
    map_path: Path | None,
    notices: Notices,
    progress: Progress | None,
) -> Generator[tuple[I64, F32], None, None]:
    """Embed places through the windows of a map, and write the map if it is to be kept."""
    settings = bank.settings
    source: CellSource
    if isinstance(subject.source, MapFile):
        n_channels = encoder.card.channels if bank.projection is None else bank.projection.shape[1]
        subject.source.refuse_other_cells(cell_um(encoder, settings.um_per_px), n_channels)
        source, tissue = subject.source, subject.source.tissue
    else:
        source = SlideCells(_slide(subject), encoder, settings.um_per_px, bank.projection)
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
        yield from iter_map_embeddings(source, plan, plan.needed, encoder, progress)
        return
    held = plan.needed | (tissue > 0)
    recipe = MapRecipe.of(bank)
    with writing_map(map_path, source, held, tissue, subject.to_map(), recipe) as writer:
        yield from iter_map_embeddings(writer, plan, held, encoder, progress)


def _picture_path(out: Path, gene: str) -> Path:
    # A gene's name comes from a file: it must not lead out of the folder.
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in gene)
    return out.with_name(f"{out.name.removesuffix('.h5ad')}.{safe}.png")


def _find_neighbors(
    embeddings: Iterator[tuple[I64, F32]],
    bank: Bank,
    searcher: Search,
    k: int,
    weighting: Weighting,
    neighbors: NeighborFile,
) -> F32:
    """Apply the metric, search and weigh, batch by batch, and keep the neighbors.

    Returns
    -------
    (n_spots,), see `domain_distance`
    """
    settings = bank.settings
    distance = np.empty(len(neighbors), dtype=np.float32)
    for spots, projected in embeddings:
        near, found = searcher.query(bank.metric.apply(projected), max(k, settings.domain_k))
        weights = neighbor_weights(near[:, :k], weighting, settings.temperature)
        neighbors.write(spots, Neighbors(found[:, :k], weights))
        distance[spots] = domain_distance(near, settings.domain_k)
    return distance
