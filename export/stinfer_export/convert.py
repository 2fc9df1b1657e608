"""Turn a timm backbone and its checkpoint into one ONNX file that needs nothing beside it.

The format is that of models/FORMAT.md: uint8 RGB pixels in, normalisation inside, `embedding` and,
where the network has a map of cells, `features` out. A file appears only after it was shown to
compute what the network computes.
"""

from __future__ import annotations

import logging
from pathlib import Path

from stinfer.contract import ModelCard
from stinfer.errors import ExtraMissingError, OutputExistsError, SettingError
from stinfer.files import make_folder, sha256_file, written_beside
from stinfer_export.errors import DownloadError
from stinfer_export.registry import BackboneSpec, resolve

try:
    import onnx
    import timm
    import torch
except ImportError as missing:
    raise ExtraMissingError(missing.name or "torch", "export", "converting a backbone") from missing

from stinfer_export import parity, weights
from stinfer_export.feature_map_check import describe_map, measure_map
from stinfer_export.graph import export_graph

logger = logging.getLogger(__name__)


def convert_backbone(
    name: str,
    checkpoint: Path | None,
    out_dir: Path,
    *,
    pretrained: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write ``<timm name with tag>.onnx``.

    1. Build the network without its classifier and put the checkpoint's weights in, every one.
    2. Export the graph.
    3. Measure how regions of its map join (`feature_map_check`), which the file is to say.
    4. Write it beside its final place and compare torch and ONNX Runtime (`parity`); only then give it
       its name.

    The same weights and the same versions of torch and timm give the same bytes.

    Parameters
    ----------
    name : timm name, with or without tag
    checkpoint : file of weights; None with `pretrained`
    out_dir : folder to write to; made if it is not there
    pretrained : let timm download the weights
    overwrite : replace a file of that name

    Returns
    -------
    Path of the file

    Raises
    ------
    SettingError
        Not exactly one of `checkpoint` and `pretrained` was given.
    BackboneUnknownError, BackboneUnsupportedError
        There is no such network, or it cannot be expressed in one ONNX file.
    CheckpointError
        The weights cannot be read or do not fit.
    DownloadError
        Timm could not fetch the weights.
    OutputExistsError, OutputWriteError
        The file is there already, or cannot be written.
    ParityError
        The two disagree, or ONNX Runtime cannot run the graph; no file is left behind.
    """
    if pretrained == (checkpoint is not None):
        what = "a backbone needs either a checkpoint or leave to download one, not both"
        raise SettingError(what, "give --checkpoint FILE or --pretrained")
    spec = resolve(name)
    target = out_dir / f"{spec.name}.onnx"
    if target.exists() and not overwrite:
        raise OutputExistsError(target)

    backbone, sha256 = _load(spec, checkpoint)
    # Before the minutes that tracing may take.
    make_folder(target.parent)
    model = export_graph(backbone, spec, sha256)
    card = ModelCard.from_props({prop.key: prop.value for prop in model.metadata_props})
    card = measure_map(model.SerializeToString(), card)
    onnx.helper.set_model_props(model, card.to_props())
    _write_checked(model, target, backbone, spec)
    logger.info("%s: %s", target, describe_map(card))
    return target


def build_backbone(spec: BackboneSpec) -> torch.nn.Module:
    """Build the network without its classifier, in evaluation mode, its weights still random."""
    backbone: torch.nn.Module = timm.create_model(spec.name, pretrained=False, num_classes=0)
    return backbone.eval()


def _load(spec: BackboneSpec, checkpoint: Path | None) -> tuple[torch.nn.Module, str]:
    """Build the network with its weights, and hash what they came from."""
    backbone = build_backbone(spec)
    if checkpoint is None:
        state, source = _download(spec), "downloaded by timm"
        sha256 = weights.state_sha256(state)
    else:
        state, source = weights.load_state_dict(checkpoint), str(checkpoint)
        sha256 = sha256_file(checkpoint)
    weights.fit(backbone, state, source, spec.name)
    return backbone, sha256


def _download(spec: BackboneSpec) -> weights.StateDict:
    try:
        # With its classifier: without it, timm loads what fits and leaves the rest random.
        complete = timm.create_model(spec.name, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise DownloadError(spec.name, str(error).partition("\n")[0]) from error
    state: weights.StateDict = complete.state_dict()
    return state


def _write_checked(
    model: onnx.ModelProto, target: Path, backbone: torch.nn.Module, spec: BackboneSpec
) -> None:
    """Write beside the target, check, and only then take its name."""
    with written_beside(target) as partial:
        partial.write_bytes(model.SerializeToString(deterministic=True))
        errors = parity.check_parity(backbone, partial, spec)
    logger.info("%s: relative error %s", target, ", ".join(f"{k} {v:.1e}" for k, v in errors.items()))
