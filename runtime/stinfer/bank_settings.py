"""The settings of a bank: what `uns/stinfer` says in texts and numbers, in every version of the format."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from stinfer.contract import BANK_FORMAT_VERSION, MPP_MAX_UM, MPP_MIN_UM, Pooling, WindowShape


@dataclass(frozen=True)
class BankSettings:
    """How a bank was made and how it is to be read: the texts and numbers of ``uns/stinfer``.

    Parameters
    ----------
    dataset : what was packed, for example ``her2st``
    preset : what the settings follow: ``fast``, ``best`` or ``custom``
    backbones : of the models, as in their cards; what they see follows one another in every embedding
    models_sha256 : of the ONNX files that made the embeddings
    orientations : in how many orientations, 1, 4 or 8, each sees the tissue; its answers are averaged
    reductions : how many times, 1 or 2, coarser than `um_per_px` each sees the tissue
    stain : ``none``, or ``macenko``: a slide's stains are brought to the bank's before it is encoded
    pooling : ``patch``: one patch per spot is encoded; ``map``: the slide is encoded once, and a spot's
        embedding is the mean of the cells in its windows
    fov_um : sides (of a disc: diameters) of the windows around a spot that are embedded, ascending; one
        with ``patch``
    window : ``square`` or ``disc``
    um_per_px : scale at which the backbone sees the tissue
    pitch_um : distance of neighboring spots
    spot_diameter_um : width of a spot
    normalization : ``log1p_cp10k``
    gene_join : ``union`` or ``intersection`` of the sections' genes
    metric : what the affine map of the embeddings is, ``none``, ``standardize``, ``pca`` or ``supervised``
    distance : ``cosine`` or ``euclidean``
    k : neighbors to average
    weighting : ``uniform``, ``inverse`` or ``softmax``
    temperature : of the softmax, in units of the distance
    domain_k : the mean distance of this many nearest references says how usual a place is
    tuning : what k, weighting, temperature and metric were chosen by: ``leave-one-section-out``;
        ``leave-a-fifth-out`` in a bank of its own section; or ``none``
    cross_validation : what the per-gene accuracy and the distance quantiles were measured by:
        ``leave-one-section-out``; ``leave-a-fifth-out`` in a bank of its own section;
        ``leave-one-spot-out`` in another bank of one section; ``none`` in a bank of one reference
    annoy_search_k : nodes Annoy inspects per query; 0 where the bank has no index
    annoy_trees : trees of the index; 0 where there is none
    annoy_seed : seed of the index
    annoy_recall : share of the true neighbors that it finds with these, measured when built
    software : versions of what built the bank
    """

    dataset: str
    preset: str
    backbones: tuple[str, ...]
    models_sha256: tuple[str, ...]
    orientations: tuple[int, ...]
    reductions: tuple[int, ...]
    stain: Literal["none", "macenko"]
    pooling: Pooling
    fov_um: tuple[float, ...]
    window: WindowShape
    um_per_px: float
    pitch_um: float
    spot_diameter_um: float
    normalization: str
    gene_join: str
    metric: str
    distance: Literal["cosine", "euclidean"]
    k: int
    weighting: Literal["uniform", "inverse", "softmax"]
    temperature: float
    domain_k: int
    tuning: str
    cross_validation: str
    annoy_search_k: int
    annoy_trees: int
    annoy_seed: int
    annoy_recall: float
    software: str

    def __post_init__(self) -> None:
        # A whole number is written, and hashed, as the float that it is read back as.
        object.__setattr__(self, "fov_um", tuple(float(side_um) for side_um in self.fov_um))
        for field in fields(self):
            if field.type == "float":
                object.__setattr__(self, field.name, float(getattr(self, field.name)))

    def to_mapping(self, version: int = BANK_FORMAT_VERSION) -> dict[str, Any]:
        """Return the settings with the format version, as they are written and hashed.

        Parameters
        ----------
        version : 4 of a merged bank, 3, or 2 or 1 for a bank that was written as such
        """
        values = {"format_version": version, "kind": "bank", **asdict(self)}
        for name in _LISTS:
            values[name] = list(values[name])
        if version < 3:
            values["backbone"], values["model_sha256"] = self.backbones[0], self.models_sha256[0]
            for name in _SINCE_3:
                del values[name]
        if version == 1:
            del values["window"], values["um_per_px"]
            values["fov_um"] = self.fov_um[0]
            values["patch_px"] = self.patch_px
        return values

    def to_uns(self, version: int = BANK_FORMAT_VERSION) -> dict[str, Any]:
        """Return the settings with the format version, as a mapping of `uns` is written."""
        values = self.to_mapping(version)
        values["fov_um"] = np.asarray(self.fov_um, dtype=np.float64)
        for name in ("orientations", "reductions"):
            values[name] = np.asarray(values[name], dtype=np.int64)
        return values

    @property
    def patch_px(self) -> int:
        """Side of a patch, with ``patch``."""
        return round(self.fov_um[0] / self.um_per_px)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> BankSettings:
        """Read settings, checking each one's type and range.

        Raises
        ------
        KeyError
            A setting is missing.
        ValueError
            A setting is of the wrong type or not one of the allowed.
        """
        if mapping["format_version"] == 1:
            mapping = _upgraded_from_1(mapping)
        if mapping["format_version"] < 3:
            mapping = _upgraded_from_2(mapping)
        values: dict[str, Any] = {"fov_um": _read_windows(mapping["fov_um"]), **_read_models(mapping)}
        for field in fields(cls):
            if field.name in values:
                continue
            value = mapping[field.name]
            kind = {"int": int, "float": float}.get(str(field.type), str)
            if kind is float and isinstance(value, int):
                value = float(value)
            if not isinstance(value, kind) or isinstance(value, bool):
                msg = f"{field.name} is {value!r}, expected {kind.__name__}"
                raise ValueError(msg)
            values[field.name] = value
        _check_settings(values)
        return cls(**values)


def _upgraded_from_2(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Say in the words of version 3 what a bank of version 2 says."""
    if mapping["metric"] == "supervised":
        msg = "metric is supervised, which version 2 has not"
        raise ValueError(msg)
    return {
        **mapping,
        "preset": "custom",
        "backbones": [mapping["backbone"]],
        "models_sha256": [mapping["model_sha256"]],
        "orientations": [1],
        "reductions": [1],
        "stain": "none",
        "tuning": "none",
    }


def _read_models(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Read what is said of the models, each a list with one entry a model."""
    found: dict[str, Any] = {}
    for name, kind in _MODEL_LISTS.items():
        values = mapping[name]
        if not isinstance(values, list) or not all(type(value) is kind for value in values):
            msg = f"{name} is {values!r}, expected a list"
            raise ValueError(msg)
        found[name] = tuple(values)
    lengths = {len(values) for values in found.values()}
    if len(lengths) != 1 or not 1 <= min(lengths) <= MAX_MODELS:
        msg = f"it has {len(found['backbones'])} backbones, expected 1 to {MAX_MODELS}, each with its model"
        raise ValueError(msg)
    for backbone in found["backbones"]:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", backbone):
            msg = f"backbone is {backbone!r}, expected letters, digits, dots, dashes and underscores"
            raise ValueError(msg)
    for name, allowed in (("orientations", ORIENTATIONS), ("reductions", REDUCTIONS)):
        if not set(found[name]) <= set(allowed):
            msg = f"{name} is {found[name]}, expected each of {allowed}"
            raise ValueError(msg)
    return found


def _upgraded_from_1(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Say in the words of version 2 what a bank of version 1 says."""
    fov_um, patch_px = float(mapping["fov_um"]), int(mapping["patch_px"])
    if not 0 < patch_px <= _LARGEST_PATCH_PX:
        msg = f"patch_px is {patch_px}, expected above 0 and at most {_LARGEST_PATCH_PX}"
        raise ValueError(msg)
    if mapping["pooling"] != "patch" or mapping["metric"] == "pca":
        msg = f"pooling is {mapping['pooling']} and metric {mapping['metric']}, which version 1 has not"
        raise ValueError(msg)
    return {**mapping, "fov_um": [fov_um], "window": "square", "um_per_px": fov_um / patch_px}


def _read_windows(value: Any) -> tuple[float, ...]:
    try:
        sides_um = tuple(float(side) for side in value)
    except TypeError as error:
        msg = f"fov_um is {value!r}, expected an array"
        raise ValueError(msg) from error
    if not 1 <= len(sides_um) <= MAX_WINDOWS:
        msg = f"fov_um has {len(sides_um)} windows, expected 1 to {MAX_WINDOWS}"
        raise ValueError(msg)
    ascending = all(a < b for a, b in pairwise(sides_um))
    if not ascending or not all(0 < side <= MAX_FOV_UM for side in sides_um):
        msg = f"fov_um is {sides_um}, expected ascending, above 0 and at most {MAX_FOV_UM:g}"
        raise ValueError(msg)
    return sides_um


def _check_settings(values: Mapping[str, Any]) -> None:
    for name, allowed in _ALLOWED.items():
        if values[name] not in allowed:
            msg = f"{name} is {values[name]!r}, expected one of {', '.join(allowed)}"
            raise ValueError(msg)
    for name, largest in _LARGEST.items():
        if not 0 < values[name] <= largest:
            msg = f"{name} is {values[name]}, expected above 0 and at most {largest:g}"
            raise ValueError(msg)
    if values["pooling"] == "patch" and (len(values["fov_um"]) != 1 or values["window"] != "square"):
        msg = f"a bank of patches has windows {values['fov_um']}, {values['window']}, expected one square"
        raise ValueError(msg)
    if values["pooling"] == "patch" and set(values["reductions"]) != {1}:
        msg = f"a bank of patches has reductions {values['reductions']}, expected 1 of each model"
        raise ValueError(msg)
    largest_px = _LARGEST_PATCH_PX if values["pooling"] == "patch" else _LARGEST_WINDOW_PX
    if not 0.5 < values["fov_um"][-1] / values["um_per_px"] <= largest_px:
        msg = f"fov_um is {values['fov_um']} at {values['um_per_px']} µm per px: not 1 to {largest_px} px"
        raise ValueError(msg)
    if values["pooling"] == "map" and values["um_per_px"] < MPP_MIN_UM:
        msg = f"um_per_px is {values['um_per_px']}, expected at least {MPP_MIN_UM}"
        raise ValueError(msg)
    if not 0 <= values["annoy_search_k"] < 2**31:
        msg = f"annoy_search_k is {values['annoy_search_k']}, expected 0 to 2^31"
        raise ValueError(msg)
    if not 0 <= values["annoy_recall"] <= 1:
        msg = f"annoy_recall is {values['annoy_recall']}, expected 0 to 1"
        raise ValueError(msg)


MAX_WINDOWS = 8
MAX_MODELS = 8
ORIENTATIONS = (1, 4, 8)
REDUCTIONS = (1, 2)
MAX_FOV_UM = 10_000.0
_LARGEST_PATCH_PX = 4096
_LARGEST_WINDOW_PX = 32_768
_LARGEST = {
    "um_per_px": MPP_MAX_UM,
    "pitch_um": 1e6,
    "spot_diameter_um": 1e6,
    "k": 1e6,
    "domain_k": 1e6,
    "temperature": 1e6,
}
# What a setting holds one of for each model, or window.
_MODEL_LISTS = {"backbones": str, "models_sha256": str, "orientations": int, "reductions": int}
_LISTS = (*_MODEL_LISTS, "fov_um")
_SINCE_3 = ("preset", *_MODEL_LISTS, "stain", "tuning")
_ALLOWED = {
    "preset": ("fast", "best", "custom"),
    "stain": ("none", "macenko"),
    "tuning": ("none", "leave-one-section-out", "leave-a-fifth-out"),
    "pooling": ("patch", "map"),
    "window": ("square", "disc"),
    "normalization": ("log1p_cp10k",),
    "gene_join": ("union", "intersection"),
    "metric": ("none", "standardize", "pca", "supervised"),
    "distance": ("cosine", "euclidean"),
    "weighting": ("uniform", "inverse", "softmax"),
}
