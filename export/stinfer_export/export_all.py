"""One backbone by name, or every one whose weights are at hand, and the bank: what `make export` does."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from stinfer.bank import Bank
from stinfer.contract import MODEL_SUFFIXES, ModelCard
from stinfer.encoder import Encoder
from stinfer.encoder_stack import EncoderStack
from stinfer.errors import BankError, ExtraMissingError, ModelError, SettingError
from stinfer.feature_map import Progress
from stinfer.files import make_folder, refuse_existing, sha256_file
from stinfer.record import Notices
from stinfer_export.bank_builder import build_bank, open_models
from stinfer_export.bank_fit import Layout, default_distance, default_k, default_metric
from stinfer_export.bank_plan import BankPlan, with_preset
from stinfer_export.datasets import her2st
from stinfer_export.registry import PAPER_BACKBONES, STAIN_TEXTURE, find_checkpoints, resolve

logger = logging.getLogger(__name__)

Precision = Literal["fp32", "fp16", "int8"]

CHECKPOINTS = Path("models/checkpoints")
MODELS = Path("models")
BANK = Path("reference_bank/her2st.h5")
# Where the data set is looked for if nobody says; then in the folder that STINFER_DATA names.
HER2ST = Path("reference_bank/data/her2st")
HER2ST_URL = "https://github.com/almaan/her2st"


def export_backbone(
    name: str,
    checkpoint: Path | None,
    out_dir: Path,
    *,
    pretrained: bool = False,
    overwrite: bool = False,
    precision: Precision = "fp32",
    calibrate: Path | None = None,
) -> Path:
    """Write the ONNX file of a backbone, of timm's or our own.

    In another precision than fp32 it is ``NAME.fp16.onnx`` or ``NAME.int8.onnx``, made of the file that
    would be written else.

    Parameters
    ----------
    name : timm name, with or without tag, or ``stain_texture``
    checkpoint, pretrained, overwrite, out_dir : as for `stinfer_export.convert.convert_backbone`
    precision : of weights and arithmetic
    calibrate : with ``int8`` the tissue to measure on: a her2st data set, a folder of slides, or a slide

    Returns
    -------
    Path of the file

    Raises
    ------
    StInferError
        See `convert_backbone`, and `stinfer_export.precision.lower`.
    """
    if (precision == "int8") != (calibrate is not None):
        what = "a model in eight bits is calibrated on tissue, and no other is"
        raise SettingError(what, "give --precision int8 and --calibrate DATASET together")
    if precision != "fp32":
        return _export_lower(
            name, checkpoint, out_dir, precision, calibrate, pretrained=pretrained, overwrite=overwrite
        )
    if name != STAIN_TEXTURE:
        from stinfer_export.convert import convert_backbone

        return convert_backbone(name, checkpoint, out_dir, pretrained=pretrained, overwrite=overwrite)
    if checkpoint is not None or pretrained:
        what = f"{STAIN_TEXTURE} has no weights"
        raise SettingError(what, "leave out --checkpoint and --pretrained")
    write_stain_texture = _stain_texture_writer()
    from stinfer_export.feature_map_check import describe_map

    make_folder(out_dir)
    path = out_dir / f"{STAIN_TEXTURE}.onnx"
    refuse_existing(path, overwrite=overwrite)
    card = write_stain_texture(path)
    logger.info("%s: %s", path, describe_map(card))
    return path


def _export_lower(
    name: str,
    checkpoint: Path | None,
    out_dir: Path,
    precision: Precision,
    calibrate: Path | None,
    *,
    pretrained: bool,
    overwrite: bool,
) -> Path:
    if name == STAIN_TEXTURE:
        what = f"{STAIN_TEXTURE} has no weights, and its formulas need single precision"
        raise SettingError(what, "leave out --precision; it takes little time as it is")
    from stinfer_export.precision.lower import write_fp16, write_int8
    from stinfer_export.precision.tissue_sample import find_tissue_source

    # Before the minutes that converting takes.
    tissue = None if calibrate is None else find_tissue_source(calibrate)
    target = out_dir / f"{resolve(name).name}{MODEL_SUFFIXES[precision]}"
    make_folder(out_dir)
    refuse_existing(target, overwrite=overwrite)
    with tempfile.TemporaryDirectory(prefix="stinfer-") as folder:
        original = export_backbone(name, checkpoint, Path(folder), pretrained=pretrained)
        if tissue is None:
            write_fp16(original, target, overwrite=overwrite)
        else:
            write_int8(original, tissue, target, overwrite=overwrite)
    return target


def export_all(her2st_dir: Path | None, model: str | None, progress: Progress | None) -> Iterator[str]:
    """Convert every backbone whose weights are at hand, and pack her2st with one of them.

    1. ``stain_texture``, always: it needs no weights.
    2. Every checkpoint in ``models/checkpoints``; a model made of the same file is left as it is.
    3. The bank ``reference_bank/her2st.h5``, if the data set is given or found. One that lies there is
       kept if it is of the same model, sections and settings, and never replaced.

    Data set and model are looked at before anything is written.

    Parameters
    ----------
    her2st_dir : the data set; by default it is looked for
    model : backbone that packs it, of a checkpoint or of a file in ``models``; by default the first of
        the paper's that has a checkpoint, else any other network that has, else ``stain_texture``
    progress : as for `build_bank`

    Yields
    ------
    what was done, and what is missing and where to get it, a line each

    Raises
    ------
    DatasetError
        The data set is not there, or not laid out as her2st.
    SettingError
        There is no such model, or the bank that lies there was made otherwise.
    StInferError
        See `export_backbone` and `build_bank`.
    """
    folder = her2st_dir or next((place for place in _her2st_places() if place.is_dir()), None)
    sections = her2st.list_sections(folder) if folder is not None else []
    checkpoints = find_checkpoints(CHECKPOINTS)
    chosen = MODELS / f"{_choose_model(model, list(checkpoints))}.onnx"
    make_folder(MODELS)
    _stain_texture_writer()(MODELS / f"{STAIN_TEXTURE}.onnx")
    yield f"wrote {MODELS / STAIN_TEXTURE}.onnx"
    for name, checkpoint in checkpoints.items():
        path = MODELS / f"{name}.onnx"
        if _made_of(path, checkpoint):
            yield f"kept {path}: {checkpoint} has not changed"
        else:
            export_backbone(name, checkpoint, MODELS, overwrite=True)
            yield f"wrote {path} from {checkpoint}"
    for spec in PAPER_BACKBONES.values():
        if spec.name not in checkpoints:
            target = CHECKPOINTS / f"{spec.name}.safetensors"
            yield (
                f"no weights for {spec.name}: run stinfer-export fetch weights {spec.architecture}, or save "
                f"{spec.sources[0]} as {target}"
            )
    if folder is None:
        yield (
            "no bank: the her2st data set was not found. Run stinfer-export fetch her2st; or get "
            f"{HER2ST_URL}, unpack its images and counts, and run: make export HER2ST=<its data folder>; or "
            f"put that folder at {HER2ST}"
        )
        return
    plan = with_preset(BankPlan(her2st.NAME, her2st.PITCH_UM, her2st.SPOT_DIAMETER_UM), "fast")
    if BANK.is_file():
        _refuse_other_bank(plan, chosen, sections)
        yield f"kept {BANK}: its model, sections and settings have not changed"
        return
    yield f"packing {folder} with {chosen}"
    make_folder(BANK.parent)
    built = build_bank(her2st.iter_sections(folder), plan, [chosen], BANK, progress=progress)
    yield f"wrote {built.path}: {built.n_refs} references x {built.n_genes} genes"


def _stain_texture_writer() -> Callable[[Path], ModelCard]:
    try:
        from stinfer_export.stain_texture import write_stain_texture
    except ModuleNotFoundError as error:
        raise ExtraMissingError(package="onnx", extra="bank", purpose=f"writing {STAIN_TEXTURE}") from error
    return write_stain_texture


def _made_of(path: Path, checkpoint: Path) -> bool:
    """Say whether a model file was made of this very checkpoint, and since files tell of maps."""
    try:
        card = Encoder(path.read_bytes(), str(path), device="cpu").card
    except (OSError, ModelError):
        return False
    tells_of_maps = card.stride == 0 or card.map_refusal != ModelCard.map_refusal
    return tells_of_maps and card.checkpoint_sha256 == sha256_file(checkpoint)


def _her2st_places() -> list[Path]:
    data = os.environ.get("STINFER_DATA")
    return [HER2ST, Path(data) / "her2st"] if data else [HER2ST]


def _refuse_other_bank(plan: BankPlan, model: Path, sections: list[str]) -> None:
    """Check that the bank that lies there is the one that would be built."""
    fix = "move or delete it; or write another file, with stinfer-export bank her2st DIR --out FILE"
    try:
        bank = Bank.open(BANK)
    except BankError as error:
        what = f"{BANK} is there, but is not a bank that could be kept: {error.what}"
        raise SettingError(what, fix) from error
    members, _, view = open_models(plan, [model], Notices(), device="cpu", threads=None)
    names = ("dataset", "preset", "gene_join", "weighting", "stain")
    wanted: dict[str, object] = {name: getattr(plan, name) for name in names}
    wanted |= {
        "pooling": view.pooling,
        "fov_um": view.sides_um,
        "window": view.window,
        "models_sha256": tuple(member.encoder.sha256 for member in members),
        "orientations": tuple(member.orientations for member in members),
        "reductions": tuple(member.reduction for member in members),
    }
    layout = Layout.of(EncoderStack(members, view.pooling), len(view.sides_um))
    metric = default_metric(np.bincount(bank.section_codes), layout)
    wanted |= {"metric": metric, "distance": default_distance(metric)}
    if metric != "supervised":  # whose k is chosen by the references themselves
        wanted["k"] = default_k(bank.n_refs)
    found: dict[str, object] = {name: getattr(bank.settings, name) for name in wanted}
    wanted["sections"] = ", ".join(sections)
    found["sections"] = ", ".join(sorted(set(bank.sections)))
    differing = [name for name in wanted if found[name] != wanted[name]]
    if differing:
        said = "; ".join(f"{name} is {found[name]}, not {wanted[name]}" for name in differing)
        what = f"{BANK} exists and was made otherwise: {said}"
        raise SettingError(what, fix)


def _choose_model(asked: str | None, exported: list[str]) -> str:
    if asked is None:
        of_paper = [spec.name for spec in PAPER_BACKBONES.values() if spec.name in exported]
        return [*of_paper, *exported, STAIN_TEXTURE][0]
    at_hand = sorted(path.stem for path in MODELS.glob("*.onnx"))
    known = list(dict.fromkeys([*exported, *at_hand, STAIN_TEXTURE]))
    for name in known:
        if asked == name:
            return name
    for name in known:
        if asked == name.partition(".")[0]:
            return name
    what = f"there is no model {asked}; there are {', '.join(known)}"
    raise SettingError(what, f"put its checkpoint into {CHECKPOINTS}/, or its file into {MODELS}/")
