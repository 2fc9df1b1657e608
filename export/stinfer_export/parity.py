"""Prove that the ONNX file computes what the torch network computes.

The reference is the network as timm builds it, fed with pixels that numpy normalises: nothing of the
graph under test takes part in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from stinfer.contract import F32, MODEL_EMBEDDING, MODEL_FEATURES, MODEL_INPUT, U8, moment_outputs
from stinfer.errors import ExtraMissingError
from stinfer.onnx_runtime import ORT_ERRORS, ort
from stinfer_export.errors import ParityError
from stinfer_export.graph import FeatureMap, find_feature_map, watching
from stinfer_export.registry import BackboneSpec
from stinfer_export.tissue_noise import tissue_patch

try:
    import torch
except ImportError as missing:
    raise ExtraMissingError(missing.name or "torch", "export", "checking a converted backbone") from missing

TOLERANCE = 1e-4
"""Largest relative error at which a file is kept."""


def check_parity(
    backbone: torch.nn.Module, path: Path, spec: BackboneSpec, *, tolerance: float = TOLERANCE
) -> dict[str, float]:
    """Compare the two on random and on tissue-like patches, in batches of several sizes.

    The error of an output is ``max |onnx - torch| / max |torch|`` over one batch.

    Parameters
    ----------
    backbone : timm network without a classifier, in evaluation mode
    path : ONNX file made of it
    spec : the network's normalisation and size
    tolerance : largest error allowed, of any output on any batch

    Returns
    -------
    Largest error by output

    Raises
    ------
    ParityError
        An output differs by more, is not finite, or is zero everywhere.
    """
    session = _session(path, spec.name)
    outputs = [output.name for output in session.get_outputs()]
    worst = dict.fromkeys(outputs, 0.0)
    feature_map = find_feature_map(backbone, spec)
    for pixels in sample_batches(spec):
        truths = reference(backbone, spec, pixels, feature_map)
        batch = f"{pixels.shape[0]} patches of {pixels.shape[1]} x {pixels.shape[2]} px"
        try:
            given = session.run(outputs, {MODEL_INPUT: pixels})
        except ORT_ERRORS as error:
            raise ParityError(spec.name, f"ONNX Runtime fails on {batch} ({error})") from error
        for name, found in zip(outputs, given, strict=True):
            difference = relative_error(found, truths[name], spec.name, f"{name} of {batch}")
            if difference > tolerance:
                cause = f"{name} of {batch}: relative error {difference:.1e}, allowed {tolerance:.0e}"
                raise ParityError(spec.name, cause)
            worst[name] = max(worst[name], difference)
    return worst


def reference(
    backbone: torch.nn.Module, spec: BackboneSpec, pixels: U8, feature_map: FeatureMap | None
) -> dict[str, F32]:
    """Compute both outputs with torch.

    Parameters
    ----------
    backbone : timm network without a classifier, in evaluation mode
    spec : its normalisation
    pixels : (n, height, width, 3), RGB
    feature_map : the map whose stages are asked for; None for none

    Returns
    -------
    ``embedding`` (n, dim), ``features`` in whatever layout the network has them, and ``moments_0`` … of its
    stages
    """
    normalised = (pixels.astype(np.float64) / 255.0 - np.array(spec.mean)) / np.array(spec.std)
    images = torch.from_numpy(np.ascontiguousarray(normalised.transpose(0, 3, 1, 2), dtype=np.float32))
    stages = () if feature_map is None else feature_map.stages
    with torch.inference_mode(), watching(backbone, stages) as seen, _keeping_features(backbone) as kept:
        embedding = backbone(images)
        if not kept:  # it computes an embedding without them
            backbone.forward_features(images)  # type: ignore[operator]  # torch types attributes as Module
    moments = []
    for stage in stages:
        squares = seen[stage.module].numpy().astype(np.float64) ** 2
        n, channels, rows, columns = squares.shape
        side = feature_map.stride // stage.reduction if feature_map is not None else 1
        whole = squares[:, :, : rows // side * side, : columns // side * side]
        cells = whole.reshape(n, channels, rows // side, side, columns // side, side)
        moments.append(cells.mean(axis=(3, 5)).astype(np.float32))
    found = {MODEL_EMBEDDING: embedding.numpy(), MODEL_FEATURES: kept[0].numpy()}
    return found | dict(zip(moment_outputs(len(moments)), moments, strict=True))


@contextmanager
def _keeping_features(backbone: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """Keep what `forward_features` gives on the way to an embedding, so that the network runs once."""
    network: Any = backbone
    kept: list[torch.Tensor] = []
    forward_features = network.forward_features

    def keep(*given: Any, **options: Any) -> torch.Tensor:
        features: torch.Tensor = forward_features(*given, **options)
        # A copy, since a head may compute in place.
        kept.append(features.clone())
        return features

    network.forward_features = keep
    try:
        yield kept
    finally:
        del network.forward_features


def relative_error(found: F32, truth: F32, name: str, batch: str) -> float:
    """Largest difference, over the largest value of the truth.

    Parameters
    ----------
    found, truth : of one shape
    name, batch : what is compared, for the message

    Raises
    ------
    ParityError
        The shapes differ, a value is not finite, or the truth is zero everywhere, so that nothing is shown.
    """
    if found.shape != truth.shape:
        raise ParityError(name, f"{batch}: shape {found.shape} instead of {truth.shape}")
    if not (np.isfinite(found).all() and np.isfinite(truth).all()):
        raise ParityError(name, f"{batch}: values that are not finite")
    scale = float(np.abs(truth).max())
    if scale == 0.0:
        raise ParityError(name, f"{batch}: zero everywhere, so that the comparison shows nothing")
    return float(np.abs(found.astype(np.float64) - truth).max()) / scale


def sample_batches(spec: BackboneSpec) -> Iterator[U8]:
    """Make the batches to compare on: of 1, 2 and 5 patches, the same ones every time.

    Patches are tissue-like and random in turn. The first batch is smaller than the network's own
    size, the second larger, both not square; unless the network takes its own size only.

    Yields
    ------
    (n, height, width, 3), RGB
    """
    rng = np.random.default_rng(0)
    side = spec.input_size_px
    for n, height_px, width_px in ((1, side // 2, side * 3 // 4), (2, side + 32, side + 64), (5, side, side)):
        size = (side, side) if spec.fixed_size else (height_px, width_px)
        yield np.stack([_random_patch(rng, *size) if i % 2 else tissue_patch(rng, *size) for i in range(n)])


def _random_patch(rng: np.random.Generator, height_px: int, width_px: int) -> U8:
    return rng.integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)


def _session(path: Path, name: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Its idle threads would otherwise keep the cores that torch computes the reference on.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        raise ParityError(name, f"ONNX Runtime does not load it ({error})") from error
