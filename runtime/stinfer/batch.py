"""Many slides, one after the other: the bank is loaded once, and one bad slide does not stop the rest."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stinfer.encoder import Device
from stinfer.errors import OutputExistsError, StInferError
from stinfer.feature_map import Progress
from stinfer.files import make_folder
from stinfer.finished import asked_for, request_sha256, slide_fingerprint
from stinfer.genes import select_genes
from stinfer.neighbors import SearchChoice
from stinfer.open_bank import OpenBank
from stinfer.outputs import Outputs, PredictionResult, default_output, picture_path
from stinfer.pipeline import predict_slide
from stinfer.predict import Weighting
from stinfer.pseudonym import Pseudonyms, open_pseudonyms
from stinfer.record import logger
from stinfer.run_log import hiding, log_event, log_failure, logged_run, logging_to, slide_context

Outcome = Literal["done", "finished before", "failed"]


@dataclass(frozen=True)
class SlideOutcome:
    """What became of one slide of many.

    Parameters
    ----------
    slide : as given
    out : its prediction
    outcome : ``finished before`` where an earlier run has written it
    n_spots : of the prediction; 0 where it failed
    seconds : it took
    result : where its files are, where it was done now
    error : why it failed
    """

    slide: Path
    out: Path
    outcome: Outcome
    n_spots: int
    seconds: float
    result: PredictionResult | None = None
    error: Exception | None = None


def predict_slides(
    slides: Sequence[str | Path],
    bank: str | Path,
    *,
    out_dir: str | Path | None = None,
    mpp: float | tuple[float, float] | None = None,
    pitch_um: float | None = None,
    genes: str | Sequence[str] | None = None,
    png: Sequence[str] = (),
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
) -> tuple[SlideOutcome, ...]:
    """Predict spatial gene expression for slides, one after the other.

    A slide that fails is told and does not stop the rest. One whose prediction is there already, made of the
    same slide with the same bank and arguments, is not predicted again; any other prediction in its place
    makes it fail, unless it is to be replaced.

    Parameters
    ----------
    slides : whole-slide files, images or saved maps; each is predicted once
    bank : reference bank
    out_dir : folder for the predictions, made if need be; by default the working folder
    mpp, pitch_um, genes, png, intervals, save_neighbors, device, search, bank_key, k, weighting, batch_size,
    threads, model, overwrite, log, pseudonym, progress
        as for `stinfer.predict_slide`, for all slides alike

    Returns
    -------
    one outcome a slide, in the order given

    Raises
    ------
    StInferError
        What is wrong for all slides: the bank, its model, or an argument.
    """
    arguments: dict[str, Any] = {
        "mpp": mpp, "pitch_um": pitch_um, "genes": genes, "png": png, "intervals": intervals,
        "save_neighbors": save_neighbors, "device": device, "search": search, "k": k, "weighting": weighting,
        "batch_size": batch_size, "threads": threads, "model": model, "overwrite": overwrite,
        "pseudonym": pseudonym,
    }  # fmt: skip
    drawn = [png] if isinstance(png, str) else list(png)
    names = open_pseudonyms(pseudonym)
    given = (bank, bank_key, model, out_dir, log, pseudonym)
    paths = [Path(path) for path in given if path is not None]
    hidden = {} if names is None else names.hidden_words(map(Path, slides), [], paths)
    with logging_to(log), hiding(hidden), logged_run(slides=[str(slide) for slide in slides], bank=str(bank)):
        opened = OpenBank(bank, device=device, threads=threads, search=search, bank_key=bank_key, model=model)
        for chosen in (genes, *([gene] for gene in drawn)):
            accuracy = opened.bank.gene_columns.get("cv_pearson")
            select_genes(chosen, opened.bank.genes, opened.bank.gene_ids, accuracy=accuracy)
        # What is wrong with them is wrong for all slides.
        _ = opened.encoders, opened.searcher, opened.expression
        folder = Path() if out_dir is None else Path(out_dir)
        make_folder(folder)
        named = name_outputs(slides, folder, names)
        if len(named) < len(slides):
            n_again = len(slides) - len(named)
            logger.warning(f"{n_again} of {len(slides)} slides are named again: each is predicted once")
        outcomes = []
        for number, (slide, out) in enumerate(named.items(), start=1):
            logger.info(f"[{number}/{len(named)}] {slide}", extra={"terminal": True})
            outcomes.append(_predict(slide, opened, out, arguments, progress))
        counts = Counter(found.outcome for found in outcomes)
        log_event("run_done", **{name.replace(" ", "_"): n for name, n in counts.items()})
    return tuple(outcomes)


def name_outputs(
    slides: Sequence[str | Path], folder: Path, pseudonyms: Pseudonyms | None = None
) -> dict[Path, Path]:
    """Name the prediction of each slide, so that none has the name of another's.

    The name is that of the slide without its suffix; where two slides share it, with its suffix; and where
    they share that too, with a hash of its whole path.

    Parameters
    ----------
    slides : files; one that is there twice counts once
    folder : of the predictions
    pseudonyms : by which slides are called, in place of their files' names
    """
    different = {os.path.realpath(slide): Path(slide) for slide in reversed(slides)}
    paths = {real: different[real] for real in (os.path.realpath(slide) for slide in slides)}
    called = {
        real: path.name if pseudonyms is None else f"{_pseudonym_of(path, pseudonyms)}.slide"
        for real, path in paths.items()
    }
    names = {
        real: [
            default_output(called[real]).name,
            default_output(f"{called[real]}.slide").name,
            default_output(f"{called[real]}-{_path_hash(real, pseudonyms)[:8]}.slide").name,
        ]
        for real in paths
    }
    level = dict.fromkeys(paths, 0)
    while True:
        # Folders of some systems take names that differ in case for the same.
        taken = Counter(names[real][level[real]].casefold() for real in paths)
        shared = [
            real for real in paths if taken[names[real][level[real]].casefold()] > 1 and level[real] < 2
        ]
        if not shared:
            return {path: folder / names[real][level[real]] for real, path in paths.items()}
        for real in shared:
            level[real] += 1


def _path_hash(real: str, pseudonyms: Pseudonyms | None) -> str:
    digest = hashlib.sha256(os.fsencode(real)).hexdigest()
    return digest if pseudonyms is None else pseudonyms.keyed(digest)


def _pseudonym_of(slide: Path, pseudonyms: Pseudonyms) -> str:
    """Return the pseudonym of a slide; one that cannot be read fails later, by itself."""
    try:
        return pseudonyms.of_slide(slide)
    except StInferError:
        return "slide"


def _predict(
    slide: Path, opened: OpenBank, out: Path, arguments: dict[str, Any], progress: Progress | None
) -> SlideOutcome:
    start = time.monotonic()

    def outcome(what: Outcome, **found: Any) -> SlideOutcome:
        return SlideOutcome(slide, out, what, seconds=time.monotonic() - start, **found)

    try:
        n_spots = None if arguments["overwrite"] else _finished_before(slide, opened, out, arguments)
        if n_spots is not None:
            return outcome("finished before", n_spots=n_spots)
        result = predict_slide(slide, opened, out=out, progress=progress, **arguments)
    except StInferError as error:
        logger.error(f"{error.what}\nTry:   {error.fix}", extra={"terminal": True})
        return outcome("failed", n_spots=0, error=_without_frames(error))
    except Exception as error:  # noqa: BLE001 - it is told with its traceback, and costs the others nothing
        logger.exception(f"slide {slide}: a bug of this program", extra={"terminal": True})
        return outcome("failed", n_spots=0, error=_without_frames(error))
    return outcome("done", n_spots=result.n_spots, result=result)


def _finished_before(slide: Path, opened: OpenBank, out: Path, arguments: dict[str, Any]) -> int | None:
    """Return how many spots an earlier run of the same has predicted; None where there is nothing yet.

    Raises
    ------
    OutputExistsError
        Something else is there.
    """
    try:
        n_spots = _look_for_finished(slide, opened, out, arguments)
    except StInferError as error:
        with slide_context(slide):
            log_failure("slide", error)
        raise
    if n_spots is not None:
        with slide_context(slide):
            log_event("slide_skipped", out=str(out), n_spots=n_spots)
    return n_spots


def _look_for_finished(slide: Path, opened: OpenBank, out: Path, arguments: dict[str, Any]) -> int | None:
    asked = asked_for(**{name: value for name, value in arguments.items() if name != "pseudonym"})
    outputs = Outputs(out, pictures=tuple(picture_path(out, gene) for gene in asked["png"]))
    found = outputs.finished() if slide.exists() else None
    if found is None:
        return None
    names = open_pseudonyms(arguments["pseudonym"])
    fingerprint = slide_fingerprint(slide)
    if names is not None:
        fingerprint = names.keyed(fingerprint)
    if found.request_sha256 != request_sha256(fingerprint, opened.sha256, asked):
        raise OutputExistsError(out, ", and is of another slide, bank or arguments")
    return found.n_spots


def _without_frames(error: Exception) -> Exception:
    """Let go of what an error's frames hold: pictures and maps of a slide that is over."""
    seen: BaseException | None = error
    while seen is not None:
        seen.__traceback__ = None
        seen = seen.__cause__ or seen.__context__
    return error
