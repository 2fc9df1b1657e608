"""The main job: a slide and a bank in, predicted expression out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import ParamSpec, get_args

import numpy as np

from stinfer.ahead import meanwhile, unless_failed
from stinfer.bank import Bank
from stinfer.blas import one_thread_a_product
from stinfer.checkpoint import Checkpoint
from stinfer.contract import I64
from stinfer.embed import gathered
from stinfer.embed_subject import encoding_recipe, iter_embeddings
from stinfer.encoder import Device
from stinfer.errors import NoTissueError, SettingError, check_choice
from stinfer.feature_map import Progress
from stinfer.files import is_file, refuse_existing, sha256_file, written_together
from stinfer.finished import asked_for, request_sha256, slide_fingerprint
from stinfer.genes import is_naming, notice_doubtful, select_genes
from stinfer.gpu import NoRoomError
from stinfer.lock import locked
from stinfer.map_file import MapFile
from stinfer.neighbor_file import NeighborFile
from stinfer.neighbors import SearchChoice
from stinfer.ome_tiff import refuse_impossible_image, write_ome_tiff
from stinfer.open_bank import OpenBank
from stinfer.outputs import Outputs, PredictionResult, default_output, picture_path
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
    model_record,
    notice_guesses,
    notice_partial_genes,
    run_record,
    slide_image,
)
from stinfer.run_log import hiding, log_event, logged_slide, logging_to, stage
from stinfer.slide import Slide
from stinfer.stage_clock import StageClock, timed
from stinfer.stand_in import refuse_disagreement
from stinfer.subject import open_subject

P = ParamSpec("P")


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
    batch_size: int | None = None,
    threads: int | None = None,
    model: str | Path | None = None,
    overwrite: bool = False,
    log: str | Path | None = None,
    pseudonym: str | Path | None = None,
    progress: Progress | None = None,
    clock: StageClock | None = None,
) -> PredictionResult:
    """Predict spatial gene expression for a slide and write it.

    1. Open the bank and check it, large parts meanwhile; open the slide and settle its scale.
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
    bank : reference bank, or one that is open; `device`, `search`, `threads`, `bank_key` and `model`
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
    batch_size : patches encoded at a time, by default 32, and 1024 on CUDA
    threads : cores to use, by default those allowed
    model : file of the bank's model in another precision, to encode with in its place; refused where the
        two do not agree on the slide's tissue
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
    png = list(dict.fromkeys([png] if isinstance(png, str) else png))
    asked = asked_for(
        mpp=mpp, tissue_mask=tissue_mask, spots=spots, pitch_um=pitch_um, genes=genes, png=png,
        intervals=intervals, save_neighbors=save_neighbors, device=device, search=search, k=k,
        weighting=weighting, batch_size=batch_size, model=model,
    )  # fmt: skip
    if spots is not None and pitch_um is not None:
        what = "--spots and --pitch-um contradict each other: the file says where to predict"
        raise SettingError(what, "give one of them")
    with timed(clock, "open"):
        opened = (
            bank
            if isinstance(bank, OpenBank)
            else OpenBank(bank, device=device, threads=threads, search=search, bank_key=bank_key, model=model)
        )
    opened_bank = opened.bank
    settings = opened_bank.settings
    notices = Notices()
    chosen, drawn = _choose_genes(genes, png, opened_bank, notices)
    to = _outputs(
        default_output(slide if alias is None else alias) if out is None else Path(out),
        [opened_bank.genes[position] for position in drawn],
        csv=csv, ome_tiff=ome_tiff, map=save_map, preview=preview,
    )  # fmt: skip
    _refuse_impossible(to, opened, chosen, spots, intervals=intervals)
    gene_list = genes if isinstance(genes, str) and is_file(Path(genes)) else None
    inputs = [
        Path(path) for path in (slide, opened_bank.path, spots, gene_list, tissue_mask) if path is not None
    ]
    to.refuse_inputs(inputs, None if log is None else Path(log))
    to.refuse_existing(overwrite=overwrite)
    if to.preview is not None:
        refuse_existing(to.preview, overwrite=overwrite)
    k = settings.k if k is None else k
    if not 1 <= k <= opened_bank.n_refs:
        what = f"--k {k} is not between 1 and the bank's {opened_bank.n_refs} references"
        raise SettingError(what, f"leave it out to use the bank's {settings.k}")
    weighting = settings.weighting if weighting is None else weighting
    check_choice("weighting", weighting, get_args(Weighting))
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(to.together))
        stack.enter_context(one_thread_a_product())
        # Another run may have ended since.
        to.refuse_existing(overwrite=overwrite)
        # One after the other, while the slide is opened and the first patches are encoded.
        of_bank = stack.enter_context(meanwhile())
        loaded = of_bank(lambda: opened.encoders)
        checked, hashed = of_bank(lambda: opened.expression), of_bank(lambda: opened.sha256)
        with stage("open"), timed(clock, "open"):
            subject = stack.enter_context(open_subject(slide, mpp, tissue_mask, opened_bank))
        is_map_file = isinstance(subject.source, MapFile)
        fingerprint = slide_fingerprint(subject.path, None if is_map_file else subject.sha256)
        if names is not None and alias is not None:
            fingerprint = names.keyed(fingerprint)
            subject.hide_names(alias, names)
        if isinstance(subject.source, MapFile):
            subject.source.refuse_foreign(opened_bank)
            if to.map is not None:
                what = f"--save-map: {subject.path} is a map already"
                raise SettingError(what, "leave it out")
        if isinstance(subject.source, Slide):
            subject.source.clock = clock
        with timed(clock, "tissue"):
            tissue = subject.tissue()
        with timed(clock, "open"):
            encoders, searcher = loaded.result(), opened.searcher
        stack.callback(encoders.release_memory)
        if spots is None:
            is_map = settings.pooling == "map"
            finest_um = encoders.cell_um(settings.um_per_px) if is_map else max(subject.mpp)
            pitch_um = float(settings.pitch_um if pitch_um is None else pitch_um)
            try:
                with timed(clock, "tissue"):
                    places = places_on_grid(subject, tissue, pitch_um, finest_um)
            except NoTissueError:
                if to.preview is not None:
                    draw_run_preview(to.preview, subject, None)
                raise
        else:
            places = places_from_file(subject, spots, settings.spot_diameter_um)
            if names is not None:
                places.record["file"] = names.of_file(sha256_file(Path(spots)))
        log_event("places", **places.record)
        cosine = refuse_disagreement(opened, subject, places.centers_l0)
        if to.preview is not None:
            draw_run_preview(to.preview, subject, places)
        notice_guesses(notices, subject, places, opened_bank, encoders)
        if opened.search_fallback:
            notices.add(f"searching on the CPU: {opened.search_fallback}")
        recipe = encoding_recipe(subject, fingerprint, opened)
        checkpoint = stack.enter_context(Checkpoint(to.checkpoint, recipe))
        beside = stack.enter_context(written_together(to.together, checkpoint.note_outputs))
        predicted = np.union1d(chosen, drawn).astype(np.int64)
        n_origins = (
            len(opened_bank.origin_names) if notice_partial_genes(notices, opened_bank, predicted) else 0
        )
        neighbors = stack.enter_context(
            NeighborFile(
                to.prediction.parent, len(places.names), k, n_origins, weighting, settings.temperature
            )
        )
        averaging = of_bank(
            lambda: opened.averager(chosen, len(places.names), k, with_spread=intervals, clock=clock)
        )
        kept = None if to.map is None else beside[to.map]
        embeddings = iter_embeddings(
            subject, places, opened, kept, batch_size, notices, progress, checkpoint, clock
        )
        # Entered after the slide: its thread has ended before that is closed.
        of_slide = stack.enter_context(meanwhile())
        pictured = of_slide(lambda: subject.lowres)
        # Threads end and a map half written goes with an error, not when Python lets go of the last frame.
        stack.enter_context(contextlib.closing(embeddings))
        with stage("embed and search") as counts:
            distance = np.empty(len(places.names), dtype=np.float32)
            batches = unless_failed(embeddings, [checked, hashed, pictured])
            for some, embedding in gathered(batches, searcher.queries_at_once):
                with timed(clock, "search"):
                    queries = opened_bank.comparable(embedding, places.centers_l0[some])
                    found, distance[some] = opened.find(queries, k, weighting, by_origin=n_origins > 0)
                    neighbors.write(some, found)
            counts["n_spots"] = len(places.names)
        averager = None
        try:
            averager = averaging.result()
        except NoRoomError as error:
            notices.add(f"averaging on the CPU: {error}")
        columns = domain_columns(distance, opened_bank, notices)
        arguments = {
            "k": k,
            "weighting": weighting,
            "search": searcher.name,
            "recall": settings.annoy_recall if searcher.name == "annoy" else 1.0,
            "device": device,
            "provider": encoders.provider,
            "batch_size": batch_size or encoders.batch_size,
            "request_sha256": request_sha256(fingerprint, hashed.result(), asked),
            **({} if opened.model is None else model_record(opened.model, cosine)),
        }
        table = PredictionTable(
            spots=places.names,
            spot_columns={**places.columns, **columns},
            spatial=places.centers_l0,
            genes=tuple(opened_bank.genes[i] for i in chosen),
            gene_columns={name: values[chosen] for name, values in opened_bank.gene_columns.items()},
            image=slide_image(subject, places.mark_um),
            record=run_record(subject, opened, places, arguments, notices),
            gene_ids=opened_bank.gene_ids and tuple(opened_bank.gene_ids[i] for i in chosen),
        )
        with stage("write"), timed(clock, "write"):
            for path, position in zip(to.pictures, drawn, strict=True):
                shown = gene_map(position, opened_bank, neighbors, table, places, subject)
                draw_gene_map(beside[path], shown)
            if to.csv is not None:
                write_csv(beside[to.csv], table, opened_bank.expression, chosen, neighbors, averager)
            if to.ome_tiff is not None:
                image = grid_image(table.genes, chosen, opened_bank, neighbors, places, subject)
                bank_name = opened_bank.path.name
                write_ome_tiff(beside[to.ome_tiff], image, slide_name=subject.name, bank_name=bank_name)
            write_prediction(
                beside[to.prediction],
                table,
                opened_bank.expression,
                chosen,
                neighbors,
                intervals=bank_intervals(opened_bank, chosen) if intervals else None,
                with_neighbors=save_neighbors,
                clock=clock,
                n_workers=opened.n_workers,
                averager=averager,
            )
    return PredictionResult(
        to.prediction,
        to.csv,
        to.pictures,
        to.ome_tiff,
        to.map,
        to.preview,
        len(places.names),
        len(chosen),
        tuple(notices.texts),
    )


def _choose_genes(
    genes: str | Sequence[str] | None, png: Sequence[str], bank: Bank, notices: Notices
) -> tuple[I64, list[int]]:
    """Find the genes to predict and those to draw: positions in the bank."""
    accuracy = bank.gene_columns.get("cv_pearson")
    chosen = select_genes(genes, bank.genes, bank.gene_ids, notices, accuracy)
    drawn = [int(select_genes([gene], bank.genes, bank.gene_ids)[0]) for gene in png]
    named = [*drawn, *(chosen if is_naming(genes) else ())]
    notice_doubtful(named, bank.genes, accuracy, notices)
    return chosen, drawn


def _outputs(prediction: Path, drawn: Sequence[str], **others: str | Path | None) -> Outputs:
    paths = {name: None if path is None else Path(path) for name, path in others.items()}
    pictures = tuple(picture_path(prediction, gene) for gene in drawn)
    return Outputs(prediction, pictures=pictures, **paths)


def _refuse_impossible(
    to: Outputs, opened: OpenBank, chosen: I64, spots: str | Path | None, *, intervals: bool
) -> None:
    """Refuse what this bank cannot give, before anything is read."""
    bank = opened.bank
    if intervals and bank_intervals(bank, chosen) is None:
        what = f"--intervals: bank {bank.path} was built before there were any"
        raise SettingError(what, "leave it out, or build the bank again")
    if to.ome_tiff is not None:
        refuse_impossible_image(len(chosen), is_grid=spots is None)
    if to.map is not None and bank.settings.pooling != "map":
        what = f"--save-map: bank {bank.path} encodes patches, and makes no map"
        raise SettingError(what, "leave it out, or build the bank with --pooling map")
    if to.map is not None and opened.model is not None:
        what = "--save-map keeps what the bank's own model has encoded, and --model is another"
        raise SettingError(what, "leave out one of them")


def _check_count(name: str, value: object) -> None:
    if value is not None and (not isinstance(value, int) or value < 1):
        what = f"{name} is {value!r}"
        raise SettingError(what, "give a whole number of at least 1")
