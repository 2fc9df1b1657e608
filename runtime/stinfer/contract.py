"""What the export stage writes and the runtime reads: names, versions and the model's card.

The two FORMAT.md files say the same in words; whoever changes one changes the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
AnyArray = npt.NDArray[Any]

MODEL_FORMAT_VERSION = 1
BANK_FORMAT_VERSION = 1
PREDICTION_FORMAT_VERSION = 1

MODEL_INPUT = "pixels"
MODEL_EMBEDDING = "embedding"
MODEL_FEATURES = "features"

MPP_MIN_UM = 0.05
MPP_MAX_UM = 20.0


@dataclass(frozen=True)
class ModelCard:
    """What an ONNX file says about itself in ``metadata_props``.

    Parameters
    ----------
    backbone : name with timm tag, for example ``resnet18.a1_in1k``, or ``stain_texture``
    input_size_px : side of the square the backbone was trained on, in pixels
    dim : length of ``embedding``
    channels : channels of ``features``; 0 where the backbone has no such output
    stride : pixels per cell of ``features``; 0 where the backbone has no such output
    checkpoint_sha256 : of the weights' file; empty where there are no weights
    precision : ``fp32``
    """

    backbone: str
    input_size_px: int
    dim: int
    channels: int
    stride: int
    checkpoint_sha256: str
    precision: str

    def to_props(self) -> dict[str, str]:
        """Write the card as ``metadata_props``: text to text, keys prefixed ``stinfer.``."""
        return {
            "stinfer.format_version": str(MODEL_FORMAT_VERSION),
            "stinfer.backbone": self.backbone,
            "stinfer.input_size_px": str(self.input_size_px),
            "stinfer.dim": str(self.dim),
            "stinfer.channels": str(self.channels),
            "stinfer.stride": str(self.stride),
            "stinfer.checkpoint_sha256": self.checkpoint_sha256,
            "stinfer.precision": self.precision,
        }

    @classmethod
    def from_props(cls, props: Mapping[str, str]) -> ModelCard:
        """Read the card back.

        Raises
        ------
        KeyError
            A key is missing.
        ValueError
            A number is not one, or the format version is not 1.
        """
        version = int(props["stinfer.format_version"])
        if version != MODEL_FORMAT_VERSION:
            msg = f"format version {version}, expected {MODEL_FORMAT_VERSION}"
            raise ValueError(msg)
        return cls(
            backbone=props["stinfer.backbone"],
            input_size_px=int(props["stinfer.input_size_px"]),
            dim=int(props["stinfer.dim"]),
            channels=int(props["stinfer.channels"]),
            stride=int(props["stinfer.stride"]),
            checkpoint_sha256=props["stinfer.checkpoint_sha256"],
            precision=props["stinfer.precision"],
        )


@dataclass(frozen=True)
class BankSettings:
    """How a bank was made and how it is to be read: the texts and numbers of ``uns/stinfer``.

    Parameters
    ----------
    dataset : what was packed, for example ``her2st``
    backbone : as in the model's card
    model_sha256 : of the ONNX file that made the embeddings
    pooling : ``patch``: one patch per spot
    fov_um : side of the square around a spot that is embedded
    patch_px : side it is resampled to
    pitch_um : distance of neighboring spots
    spot_diameter_um : width of a spot
    normalization : ``log1p_cp10k``
    gene_join : ``union`` or ``intersection`` of the sections' genes
    metric : what the affine map of the embeddings is, ``none`` or ``standardize``
    distance : ``cosine`` or ``euclidean``
    k : neighbors to average
    weighting : ``uniform``, ``inverse`` or ``softmax``
    temperature : of the softmax, in units of the distance
    domain_k : the mean distance of this many nearest references says how usual a place is
    cross_validation : what the per-gene accuracy and the distance quantiles were measured by:
        ``leave-one-section-out``; ``leave-one-spot-out`` in a bank of one section; ``none`` in a bank of
        one reference
    annoy_search_k : nodes Annoy inspects per query; 0 where the bank has no index
    annoy_trees : trees of the index; 0 where there is none
    annoy_seed : seed of the index
    annoy_recall : share of the true neighbors that it finds with these, measured when built
    software : versions of what built the bank
    """

    dataset: str
    backbone: str
    model_sha256: str
    pooling: str
    fov_um: float
    patch_px: int
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
    cross_validation: str
    annoy_search_k: int
    annoy_trees: int
    annoy_seed: int
    annoy_recall: float
    software: str

    def to_scalars(self) -> dict[str, str | int | float]:
        """Return the settings with the format version, ready to be written."""
        return {"format_version": BANK_FORMAT_VERSION, "kind": "bank", **asdict(self)}

    @classmethod
    def from_scalars(cls, scalars: Mapping[str, Any]) -> BankSettings:
        """Read settings, checking each one's type and range.

        Raises
        ------
        KeyError
            A setting is missing.
        ValueError
            A setting is of the wrong type or not one of the allowed.
        """
        values: dict[str, Any] = {}
        for field in fields(cls):
            value = scalars[field.name]
            kind = {"int": int, "float": float}.get(str(field.type), str)
            if kind is float and isinstance(value, int):
                value = float(value)
            if not isinstance(value, kind) or isinstance(value, bool):
                msg = f"{field.name} is {value!r}, expected {kind.__name__}"
                raise ValueError(msg)
            values[field.name] = value
        for name, allowed in _ALLOWED.items():
            if values[name] not in allowed:
                msg = f"{name} is {values[name]!r}, expected one of {', '.join(allowed)}"
                raise ValueError(msg)
        for name, largest in _LARGEST.items():
            if not 0 < values[name] <= largest:
                msg = f"{name} is {values[name]}, expected above 0 and at most {largest:g}"
                raise ValueError(msg)
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", values["backbone"]):
            msg = (
                f"backbone is {values['backbone']!r}, expected letters, digits, dots, dashes and underscores"
            )
            raise ValueError(msg)
        if not 0 <= values["annoy_search_k"] < 2**31:
            msg = f"annoy_search_k is {values['annoy_search_k']}, expected 0 to 2^31"
            raise ValueError(msg)
        if not 0 <= values["annoy_recall"] <= 1:
            msg = f"annoy_recall is {values['annoy_recall']}, expected 0 to 1"
            raise ValueError(msg)
        return cls(**values)


_LARGEST = {
    "fov_um": 10_000,
    "patch_px": 4096,
    "pitch_um": 1e6,
    "spot_diameter_um": 1e6,
    "k": 1e6,
    "domain_k": 1e6,
    "temperature": 1e6,
}
_ALLOWED = {
    "pooling": ("patch",),
    "normalization": ("log1p_cp10k",),
    "gene_join": ("union", "intersection"),
    "metric": ("none", "standardize"),
    "distance": ("cosine", "euclidean"),
    "weighting": ("uniform", "inverse", "softmax"),
}
