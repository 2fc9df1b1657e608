"""The main job: a slide and a bank in, predicted expression out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, get_args

import numpy as np

from stinfer.checkpoint import Checkpoint, checkpoint_path, refuse_foreign_file
from stinfer.embed import gathered
from stinfer.embed_subject import encoding_recipe, iter_embeddings
from stinfer.encoder import Device
from stinfer.errors import NoTissueError, OutputExistsError, SettingError, check_choice
from stinfer.feature_map import Progress
from stinfer.files import is_file, refuse_existing, refuse_same_file, sha256_file, written_together
from stinfer.finished import asked_for, read_finished, request_sha256, slide_fingerprint
from stinfer.genes import is_naming, notice_doubtful, select_genes
from stinfer.lock import locked
from stinfer.map_file import MapFile
from stinfer.neighbor_file import NeighborFile
from stinfer.neighbors import SearchChoice
from stinfer.ome_tiff import import_tifffile, write_ome_tiff
from stinfer.open_bank import OpenBank
from stinfer.picture import draw_gene_map
from stinfer.places import places_from_file, places_on_grid
from stinfer.predict import Weighting
from stinfer.prediction import PredictionTable, write_csv, write_prediction
from stinfer.pseudonym import hidden_words, open_pseudonyms
from stinfer.record import Notices
from stinfer.report import (
    bank_intervals,
    domain_columns,
    draw_run_preview,
    gene_map,
    grid_image,
    notice_guesses,
    notice_partial_genes,
    run_record,
    slide_image,
)
from stinfer.run_log import hiding, log_event, logged_slide, logging_to, stage
from stinfer.slide import Slide
from stinfer.stage_clock import StageClock, timed
from stinfer.step_file import own_outputs
from stinfer.subject import open_subject

DEFAULT_BATCH_SIZE = 32
# Channels of an OME-TIFF; viewers list them all.
MAX_OME_GENES = 256
MAP_SUFFIX = ".map.h5"

P = ParamSpec("P")


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

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files, the prediction first."""
        others = (self.preview_path, self.csv_path, *self.png_paths, self.ome_tiff_path, self.map_path)
        found = (self.path, *others)
        return tuple(path for path in found if path is not None)


def default_output(slide: str | Path) -> Path:
    """Return where a slide's prediction goes unless told: the working folder, named after it."""
    name = Path(slide).name
    stem = name.removesuffix(MAP_SUFFIX) if name.endswith(MAP_SUFFIX) else Path(name).stem
    return Path(f"{stem}.stinfer.h5ad")


def _logged(predict: Callable[P, PredictionResult]) -> Callable[P, PredictionResult]:
    """Log a run, into the file that its argument `log` names."""

    @wraps(predict)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> PredictionResult:
        given = dict(zip(("slide", "bank"), args, strict=False)) | kwargs
        log, slide, bank = (given.get(name) for name in ("log", "slide", "bank"))
        if isinstance(bank, OpenBank):
            given["bank"] = bank.bank.path
        with (
            logging_to(None if log is None else Path(str(log))),
            hiding(hidden_words(str(slide), given)),
            logged_slide(str(slide)),
        ):
            result = predict(*args, **kwargs)
            log_event(
                "slide_done", out=str(result.path), n_spots=result.n_spots, n_genes=result.n_genes,
                outputs=[str(path) for path in result.paths],
            )  # fmt: skip
        return result

    return wrapped


@_logged
def predict_slide(
    slide: str | Path,
    bank: str | Path | OpenBank,
    *,
    out: str | Path | None = None,
    mpp: float | tuple[float, float] | None = None,
    tissue_mask: str | Path | None = None,
    spots: str | Path | None = None,
    pitch_um: float | None = None,
    genes: str | Sequence[str] | None = None,
    csv: str | Path | None = None,
    png: Sequence[str] = (),
    ome_tiff: str | Path | None = None,
    save_map: str | Path | None = None,
    preview: str | Path | None = None,
    intervals: bool = False,
    save_neighbors: bool = False,
    device: Device = "auto",
    search: SearchChoice = "auto",
    bank_key: str | Path | None = None,
    k: int | None = None,
    weighting: Weighting | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    threads: int | None = None,
    overwrite: bool = False,
    log: str | Path | None = None,
    pseudonym: str | Path | None = None,
    progress: Progress | None = None,
    clock: StageClock | None = None,
) -> PredictionResult:
    """Predict spatial gene expression for a slide and write it.

    1. Open the bank and check it; open the slide and settle its scale.
    2. Find the places: those of the spots file, else a grid over the tissue.
    3. Embed them with the bank's own model, in the bank's way: a patch around each is encoded, or the
       tissue is encoded once as a map, or taken from a saved map, and read through windows.
    4. Find the nearest references and weigh them.
    5. Average their expression and write it, block by block.

    What is encoded is kept beside the output, in ``<out>.checkpoint``, until that is complete: after a crash
    the same call goes on where it was, and gives the same bytes.

    Parameters
    ----------
    slide : whole-slide file or image, or a map that `save_map` wrote
    bank : reference bank, or one that is open; `device`, `search`, `threads` and `bank_key`
        are then as it was opened
    out : prediction to write, by default ``<slide>.stinfer.h5ad`` in the working folder
    mpp : µm per level-0 pixel, or those of x and y, where the slide does not say or is wrong
    tissue_mask : PNG or TIFF that says where tissue is, not 0; by default it is found
    spots : file of places; see `stinfer.spots.read_spots`
    pitch_um : distance of grid points, by default that of the bank's spots; not with `spots`
    genes : ``all``, ``predictable``, names, a file of names, or a marker panel, by default the predictable
        ones; see `stinfer.genes.select_genes`
    csv : table of spots x genes to write too
    png : genes to draw, as ``<out>.<gene>.png``
    ome_tiff : image of the grid to write too, a channel per gene; not with `spots`
    save_map : file to keep the slide's feature map in; only with a bank of maps
    intervals : write 90 % intervals of every value too, as layers ``lower`` and ``upper``
    save_neighbors : write which references made each prediction too
    preview : picture of tissue and places, written before anything is encoded, and kept if that fails
    device : ``auto``, ``cpu`` or ``cuda``
    search : ``auto``, ``exact`` or ``annoy``
    bank_key : public key, or folder of them, that must have signed the bank; by default what the environment
        variable ``STINFER_BANK_KEYS`` says, and without it any bank is accepted
    k : neighbors to average, by default the bank's
    weighting : ``uniform``, ``inverse`` or ``softmax``, by default the bank's
    batch_size : patches encoded at a time
    threads : cores to use, by default those allowed
    overwrite : replace existing outputs
    log : file to append to, a JSON object a line, for programs to read
    pseudonym : key file; outputs and log then call the slide by a keyed hash, and `out` is by default named
        after that; see `stinfer.pseudonym`
    progress : called with what is done, how much there is, and of what: patches, regions or bands
    clock : told how long each stage takes; see `stinfer.stage_clock`

    Raises
    ------
    StInferError
        Any of `stinfer.errors`; nothing is left half-written.
    """
    for name, number in (("k", k), ("batch_size", batch_size), ("threads", threads)):
        _check_count(name, number)
    names = open_pseudonyms(pseudonym)
    alias = None if names is None else names.of_slide(Path(slide))
    out = default_output(slide if alias is None else alias) if out is None else Path(out)
    png = list(dict.fromkeys([png] if isinstance(png, str) else png))
    csv_path, ome_path, map_path, preview_path = (
        None if path is None else Path(path) for path in (csv, ome_tiff, save_map, preview)
    )
    asked = asked_for(
        mpp=mpp, tissue_mask=tissue_mask, spots=spots, pitch_um=pitch_um, genes=genes, png=png,
        intervals=intervals, save_neighbors=save_neighbors, device=device, search=search, k=k,
        weighting=weighting, batch_size=batch_size,
    )  # fmt: skip
    if spots is not None and pitch_um is not None:
        what = "--spots and --pitch-um contradict each other: the file says where to predict"
        raise SettingError(what, "give one of them")
    with timed(clock, "open"):
        opened = (
            bank
            if isinstance(bank, OpenBank)
            else OpenBank(bank, device=device, threads=threads, search=search, bank_key=bank_key)
        )
    opened_bank = opened.bank
    settings = opened_bank.settings
    notices = Notices()
    ids = opened_bank.gene_ids
    accuracy = opened_bank.gene_columns.get("cv_pearson")
    chosen = select_genes(genes, opened_bank.genes, ids, notices, accuracy)
    if intervals and bank_intervals(opened_bank, chosen) is None:
        what = f"--intervals: bank {opened_bank.path} was built before there were any"
        raise SettingError(what, "leave it out, or build the bank again")
    drawn = [int(select_genes([gene], opened_bank.genes, ids)[0]) for gene in png]
    named = [*drawn, *(chosen if is_naming(genes) else ())]
    notice_doubtful(named, opened_bank.genes, accuracy, notices)
    png_paths = tuple(_picture_path(out, opened_bank.genes[position]) for position in drawn)
    if ome_path is not None:
        _check_ome_tiff(len(chosen), spots)
    if map_path is not None and settings.pooling != "map":
        what = f"--save-map: bank {opened_bank.path} encodes patches, and makes no map"
        raise SettingError(what, "leave it out, or build the bank with --pooling map")
    outputs = [path for path in (out, csv_path, ome_path, map_path, *png_paths) if path is not None]
    gene_list = genes if isinstance(genes, str) and is_file(Path(genes)) else None
    inputs = [
        Path(path) for path in (slide, opened_bank.path, spots, gene_list, tissue_mask) if path is not None
    ]
    # The preview is a product of its own: it stays if the run fails.
    at_once = [] if preview_path is None else [preview_path]
    kept_path = checkpoint_path(out)
    refuse_same_file(inputs, [*outputs, *at_once, kept_path, *([] if log is None else [Path(log)])])
    _refuse_existing(outputs, kept_path, overwrite=overwrite)
    for path in at_once:
        refuse_existing(path, overwrite=overwrite)
    k = settings.k if k is None else k
    if not 1 <= k <= opened_bank.n_refs:
        what = f"--k {k} is not between 1 and the bank's {opened_bank.n_refs} references"
        raise SettingError(what, f"leave it out to use the bank's {settings.k}")
    weighting = settings.weighting if weighting is None else weighting
    check_choice("weighting", weighting, get_args(Weighting))
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(outputs))
        # Another run may have ended since.
        _refuse_existing(outputs, kept_path, overwrite=overwrite)
        with stage("open"), timed(clock, "open"):
            subject = stack.enter_context(open_subject(slide, mpp, tissue_mask, opened_bank))
        is_map_file = isinstance(subject.source, MapFile)
        fingerprint = slide_fingerprint(subject.path, None if is_map_file else subject.sha256)
        if names is not None and alias is not None:
            fingerprint = names.keyed(fingerprint)
            subject.hide_names(alias, names)
        if isinstance(subject.source, MapFile):
            subject.source.refuse_foreign(opened_bank)
            if map_path is not None:
                what = f"--save-map: {subject.path} is a map already"
                raise SettingError(what, "leave it out")
        if isinstance(subject.source, Slide):
            subject.source.clock = clock
        with timed(clock, "open"):
            encoders, searcher = opened.encoders, opened.searcher
        stack.callback(encoders.release_memory)
        if spots is None:
            is_map = settings.pooling == "map"
            finest_um = encoders.cell_um(settings.um_per_px) if is_map else max(subject.mpp)
            pitch_um = float(settings.pitch_um if pitch_um is None else pitch_um)
            try:
                with timed(clock, "tissue"):
                    places = places_on_grid(subject, subject.tissue(), pitch_um, finest_um)
            except NoTissueError:
                if preview_path is not None:
                    draw_run_preview(preview_path, subject, None)
                raise
        else:
            places = places_from_file(subject, spots, settings.spot_diameter_um)
            if names is not None:
                places.record["file"] = names.of_file(sha256_file(Path(spots)))
        log_event("places", **places.record)
        if preview_path is not None:
            draw_run_preview(preview_path, subject, places)
        notice_guesses(notices, subject, places, opened_bank, encoders)
        recipe = encoding_recipe(subject, fingerprint, opened)
        checkpoint = stack.enter_context(Checkpoint(kept_path, recipe))
        beside = stack.enter_context(written_together(outputs, checkpoint.note_outputs))
        predicted = np.union1d(chosen, drawn).astype(np.int64)
        n_origins = (
            len(opened_bank.origin_names) if notice_partial_genes(notices, opened_bank, predicted) else 0
        )
        neighbors = stack.enter_context(
            NeighborFile(out.parent, len(places.names), k, n_origins, weighting, settings.temperature)
        )
        kept = None if map_path is None else beside[map_path]
        embeddings = iter_embeddings(
            subject, places, opened, kept, batch_size, notices, progress, checkpoint, clock
        )
        # Threads end and a map half written goes with an error, not when Python lets go of the last frame.
        stack.enter_context(contextlib.closing(embeddings))
        with stage("embed and search") as counts:
            distance = np.empty(len(places.names), dtype=np.float32)
            for some, embedding in gathered(embeddings, searcher.queries_at_once):
                with timed(clock, "search"):
                    queries = opened_bank.comparable(embedding, places.centers_l0[some])
                    found, distance[some] = opened.find(queries, k, weighting, by_origin=n_origins > 0)
                    neighbors.write(some, found)
            counts["n_spots"] = len(places.names)
        columns = domain_columns(distance, opened_bank, notices)
        arguments = {
            "k": k,
            "weighting": weighting,
            "search": searcher.name,
            "recall": settings.annoy_recall if searcher.name == "annoy" else 1.0,
            "device": device,
            "provider": encoders.provider,
            "batch_size": batch_size,
            "request_sha256": request_sha256(fingerprint, opened.sha256, asked),
        }
        table = PredictionTable(
            spots=places.names,
            spot_columns={**places.columns, **columns},
            spatial=places.centers_l0,
            genes=tuple(opened_bank.genes[i] for i in chosen),
            gene_columns={name: values[chosen] for name, values in opened_bank.gene_columns.items()},
            image=slide_image(subject, places.mark_um),
            record=run_record(subject, opened, places, arguments, notices),
            gene_ids=ids and tuple(ids[i] for i in chosen),
        )
        with stage("write"), timed(clock, "write"):
            for path, position in zip(png_paths, drawn, strict=True):
                shown = gene_map(position, opened_bank, neighbors, table, places, subject)
                draw_gene_map(beside[path], shown)
            if csv_path is not None:
                write_csv(beside[csv_path], table, opened_bank.expression, chosen, neighbors)
            if ome_path is not None:
                image = grid_image(table.genes, chosen, opened_bank, neighbors, places, subject)
                bank_name = opened_bank.path.name
                write_ome_tiff(beside[ome_path], image, slide_name=subject.name, bank_name=bank_name)
            write_prediction(
                beside[out],
                table,
                opened_bank.expression,
                chosen,
                neighbors,
                intervals=bank_intervals(opened_bank, chosen) if intervals else None,
                with_neighbors=save_neighbors,
                clock=clock,
            )
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


def finished_before(slide: Path, bank: OpenBank, out: Path, arguments: Mapping[str, Any]) -> int | None:
    """Say whether an earlier run has written what this one would.

    Parameters
    ----------
    slide, bank, out : of this run
    arguments : of `predict_slide`

    Returns
    -------
    number of spots it predicted; None where there is nothing yet

    Raises
    ------
    OutputExistsError
        Something else is there.
    """
    names = open_pseudonyms(arguments.get("pseudonym"))
    asked = asked_for(**{name: value for name, value in arguments.items() if name != "pseudonym"})
    outputs = [out, *(_picture_path(out, gene) for gene in asked["png"])]
    there = [path for path in outputs if path.exists()]
    if set(there) <= own_outputs(checkpoint_path(out), outputs) or not slide.exists():
        return None
    found = read_finished(out)
    if there != outputs or found is None:
        raise OutputExistsError(there[0])
    fingerprint = slide_fingerprint(slide)
    if names is not None:
        fingerprint = names.keyed(fingerprint)
    if found.request_sha256 != request_sha256(fingerprint, bank.sha256, asked):
        raise OutputExistsError(out, ", and is of another slide, bank or arguments")
    return found.n_spots


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


def _refuse_existing(outputs: Sequence[Path], kept_path: Path, *, overwrite: bool) -> None:
    own = own_outputs(kept_path, outputs)
    for path in outputs:
        refuse_existing(path, overwrite=overwrite or path in own)
    refuse_existing(kept_path, overwrite=True)
    refuse_foreign_file(kept_path)


def _picture_path(out: Path, gene: str) -> Path:
    # A gene's name comes from a file: it must not lead out of the folder.
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in gene)
    return out.with_name(f"{out.name.removesuffix('.h5ad')}.{safe}.png")
