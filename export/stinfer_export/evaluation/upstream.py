"""What the published code does, for comparison: raw counts, nearly uniform weights, pixels as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stinfer.contract import F32, F64
from stinfer.embed import FieldOfView
from stinfer.encoder import Device, Encoder
from stinfer.encoder_stack import Member
from stinfer.errors import ExtraMissingError, SettingError
from stinfer.predict import log1p_cp10k
from stinfer_export.bank_builder import read_model
from stinfer_export.datasets.section import Section
from stinfer_export.evaluation.baselines import mean_expression, upstream_neighbors
from stinfer_export.section_encoding import Part

PATCH_PX = 224
PUBLISHED_K = 1000
UPSTREAM_METHODS = {
    "upstream_k": f"published, k {PUBLISHED_K}",
    "upstream_all": "published, all references",
    "mean": "mean counts",
    "upstream_k_log": f"published, k {PUBLISHED_K}, as log1p CP10K",
    "upstream_all_log": "published, all references, as log1p CP10K",
}


def without_normalization(model: bytes, name: str) -> bytes:
    """Let a backbone see pixels divided by 255, and nothing more.

    Parameters
    ----------
    model : ONNX file as `stinfer_export.graph` writes it: (pixels - mean) * scale comes first
    name : of it, for messages

    Raises
    ------
    SettingError
        It does not begin so.
    """
    try:
        import onnx
    except ImportError as missing:
        raise ExtraMissingError(missing.name or "onnx", "bank", "--protocol upstream") from missing

    graph = onnx.load_from_string(model)
    constants = {constant.name: constant for constant in graph.graph.initializer}
    used = {(node.op_type, name) for node in graph.graph.node for name in node.input}
    for operation, constant, value in (("Sub", "mean", 0.0), ("Mul", "scale", 1 / 255)):
        found = constants.get(constant)
        if found is None or (operation, constant) not in used or list(found.dims) != [3, 1, 1]:
            what = f"model {name} has no normalisation of pixels that could be taken out"
            raise SettingError(what, "--protocol upstream needs a network that stinfer-export backbone wrote")
        values = np.full((3, 1, 1), value, dtype=np.float32)
        found.CopyFrom(onnx.numpy_helper.from_array(values, constant))
    changed: bytes = graph.SerializeToString(deterministic=True)
    return changed


def published_member(model_paths: Sequence[Path], device: Device, threads: int | None) -> Member:
    """Load the one backbone, its normalisation taken out.

    Raises
    ------
    SettingError
        There are several, or it cannot be used so.
    ModelError
        It is no model of ours.
    """
    if len(model_paths) != 1:
        what = f"--protocol upstream takes one --model, and {len(model_paths)} are given"
        raise SettingError(what, "give the one that the published code would use")
    path = model_paths[0]
    model = without_normalization(read_model(path), str(path))
    encoder = Encoder(model, str(path), pooling="patch", device=device, threads=threads)
    if encoder.card.input_size_px != PATCH_PX:
        what = f"{encoder.card.backbone} takes {encoder.card.input_size_px} px"
        raise SettingError(what, f"--protocol upstream needs a network of {PATCH_PX} px")
    return Member(encoder)


def published_view(section: Section) -> FieldOfView:
    """Return patches of 224 px of the image as it is, whatever its scale."""
    return FieldOfView("patch", (PATCH_PX * section.mpp,), "square", section.mpp)


def raw_counts(part: Part, values: F32) -> F32:
    """Undo the normalisation of a section's spots.

    Parameters
    ----------
    part : the section
    values : (n_spots, n_genes), log1p CP10K of it

    Returns
    -------
    (n_spots, n_genes), counts; exact below a million, where float32 tells neighbors apart
    """
    counts = np.expm1(values.astype(np.float64)) * part.totals[:, np.newaxis] / 1e4
    return np.asarray(np.rint(counts), dtype=np.float32)


def predict_upstream(
    known: F32, counts: F32, totals: F64, asked: F32
) -> tuple[dict[str, F32], dict[str, F32]]:
    """Predict raw counts as the published code does.

    Raw counts mostly say how deep a spot was sequenced, and so agree with much that predicts depth. What is
    predicted is therefore normalised too, by the total that is predicted in the same way.

    Parameters
    ----------
    known : (n_train, dim), embeddings
    counts : (n_train, n_genes), raw
    totals : (n_train,), over all genes
    asked : (n_test, dim)

    Returns
    -------
    counts : of each method (n_test, n_genes)
    normalized : of each method (n_test, n_genes), log1p CP10K
    """
    table = np.concatenate([counts, totals[:, np.newaxis].astype(np.float32)], axis=1)
    raw, normalized = {}, {}
    for method, k in (("upstream_k", PUBLISHED_K), ("upstream_all", len(known))):
        predicted = upstream_neighbors(known, table, asked, k)
        raw[method] = predicted[:, :-1]
        normalized[f"{method}_log"] = log1p_cp10k(predicted[:, :-1], predicted[:, -1])
    raw["mean"] = mean_expression(len(asked), counts)
    return raw, normalized
