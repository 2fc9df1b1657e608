"""One backbone by name, or every one whose weights are at hand, and the bank: what `make export` does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from stinfer.contract import ModelCard
from stinfer.encoder import Encoder
from stinfer.errors import ExtraMissingError, ModelError, SettingError
from stinfer.files import make_folder, refuse_existing, sha256_file
from stinfer_export.bank_builder import BankPlan, Progress, build_bank
from stinfer_export.datasets import her2st
from stinfer_export.registry import PAPER_BACKBONES, find_checkpoints

STAIN_TEXTURE = "stain_texture"
CHECKPOINTS = Path("models/checkpoints")
MODELS = Path("models")
BANK = Path("reference_bank/her2st.h5")
# Where the data set is looked for if nobody says; the second is where the tests have it.
HER2ST_PLACES = (
    Path("reference_bank/data/her2st"),
    Path(os.environ.get("STINFER_DATA", "../shared")) / "her2st",
)
HER2ST_URL = "https://github.com/almaan/her2st"


def export_backbone(
    name: str, checkpoint: Path | None, out_dir: Path, *, pretrained: bool = False, overwrite: bool = False
) -> Path:
    """Write the ONNX file of a backbone, of timm's or our own.

    Parameters
    ----------
    name : timm name, with or without tag, or ``stain_texture``
    checkpoint, pretrained, overwrite, out_dir : as for `stinfer_export.convert.convert_backbone`

    Returns
    -------
    Path of the file

    Raises
    ------
    StInferError
        See `convert_backbone`.
    """
    if name != STAIN_TEXTURE:
        from stinfer_export.convert import convert_backbone

        return convert_backbone(name, checkpoint, out_dir, pretrained=pretrained, overwrite=overwrite)
    if checkpoint is not None or pretrained:
        what = f"{STAIN_TEXTURE} has no weights"
        raise SettingError(what, "leave out --checkpoint and --pretrained")
    write_stain_texture = _stain_texture_writer()
    make_folder(out_dir)
    path = out_dir / f"{STAIN_TEXTURE}.onnx"
    refuse_existing(path, overwrite)
    write_stain_texture(path)
    return path


def export_all(her2st_dir: Path | None, model: str | None, progress: Progress | None) -> Iterator[str]:
    """Convert every backbone whose weights are at hand, and pack her2st with one of them.

    1. ``stain_texture``, always: it needs no weights.
    2. Every checkpoint in ``models/checkpoints``; a model made of the same file is left as it is.
    3. The bank ``reference_bank/her2st.h5``, if the data set is given or found.

    Parameters
    ----------
    her2st_dir : the data set; by default it is looked for
    model : backbone that packs it; by default the first of the paper's that is at hand, else any other
        network, else ``stain_texture``
    progress : as for `build_bank`

    Yields
    ------
    what was done, and what is missing and where to get it, a line each
    """
    make_folder(MODELS)
    _stain_texture_writer()(MODELS / f"{STAIN_TEXTURE}.onnx")
    yield f"wrote {MODELS / STAIN_TEXTURE}.onnx"
    checkpoints = find_checkpoints(CHECKPOINTS)
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
            yield f"no weights for {spec.name}: save {spec.sources[0]} as {target}"
    folder = her2st_dir or next((place for place in HER2ST_PLACES if place.is_dir()), None)
    if folder is None:
        yield (
            f"no bank: the her2st data set was not found. Get {HER2ST_URL}, unpack its images and "
            "counts, and run: make export HER2ST=<its data folder>; or put that folder at "
            f"{HER2ST_PLACES[0]}"
        )
        return
    chosen = MODELS / f"{_choose_model(model, list(checkpoints))}.onnx"
    yield f"packing {folder} with {chosen}"
    plan = BankPlan(her2st.NAME, her2st.PITCH_UM, her2st.SPOT_DIAMETER_UM, her2st.DEFAULT_FOV_UM)
    make_folder(BANK.parent)
    built = build_bank(her2st.iter_sections(folder), plan, chosen, BANK, overwrite=True, progress=progress)
    yield f"wrote {built.path}: {built.n_refs} references x {built.n_genes} genes"


def _stain_texture_writer() -> Callable[[Path], ModelCard]:
    try:
        from stinfer_export.stain_texture import write_stain_texture
    except ModuleNotFoundError as error:
        raise ExtraMissingError(package="onnx", extra="bank", purpose=f"writing {STAIN_TEXTURE}") from error
    return write_stain_texture


def _made_of(path: Path, checkpoint: Path) -> bool:
    """Say whether a model file was made of this very checkpoint."""
    try:
        card = Encoder(path.read_bytes(), str(path), device="cpu").card
    except (OSError, ModelError):
        return False
    return card.checkpoint_sha256 == sha256_file(checkpoint)


def _choose_model(asked: str | None, exported: list[str]) -> str:
    if asked is not None:
        asked = next((name for name in exported if name.partition(".")[0] == asked), asked)
        if asked not in (*exported, STAIN_TEXTURE):
            what = f"model {asked} was not exported; there are {', '.join([*exported, STAIN_TEXTURE])}"
            raise SettingError(what, f"put its checkpoint into {CHECKPOINTS}/")
        return asked
    of_paper = [spec.name for spec in PAPER_BACKBONES.values() if spec.name in exported]
    return [*of_paper, *exported, STAIN_TEXTURE][0]
