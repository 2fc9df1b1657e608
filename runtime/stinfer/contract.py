"""What the export stage writes and the runtime reads: names, versions and the model's card.

The two FORMAT.md files say the same in words; whoever changes one changes the other.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
AnyArray = npt.NDArray[Any]

MODEL_FORMAT_VERSION = 1
# What the name of a model's file ends with, by its precision.
MODEL_SUFFIXES = {"fp32": ".onnx", "fp16": ".fp16.onnx", "int8": ".int8.onnx"}
# Of a bank that was built of sections, and of one that was merged of banks.
BANK_FORMAT_VERSION = 3
MERGED_BANK_VERSION = 4
PREDICTION_FORMAT_VERSION = 2
MAP_FORMAT_VERSION = 2
CHECKPOINT_FORMAT_VERSION = 1

MODEL_INPUT = "pixels"
# Of what a model says of itself: known before it is loaded.
PRECISION_KEY = "stinfer.precision"
MODEL_EMBEDDING = "embedding"
MODEL_FEATURES = "features"

HEAD_INPUT = "means"

MPP_MIN_UM = 0.05
MPP_MAX_UM = 20.0

# Bounds of what a model's card may say; a halo is read on every side of a region.
MAX_INPUT_PX = 4096
MAX_HALO_CELLS = 16
MAX_OFFSET_PX = 64
MAX_STRIDE_PX = 256
MAX_HALO_PX = 1536
MAX_CHANNELS = 2**16

Pooling = Literal["patch", "map"]
WindowShape = Literal["square", "disc"]


@dataclass(frozen=True)
class MapTraits:
    """What must be known of a backbone to join the `features` of regions into one map.

    Measured when the backbone is exported; see `models/FORMAT.md`.

    Parameters
    ----------
    halo_cells : cells around a region that must be computed too, and are then left out
    offset_px : x and y of the middle of what a cell sees, from the cell's own middle, in pixels
    head : ONNX file that turns a window's mean of `features` into its embedding; empty where that is
        the mean itself
    """

    halo_cells: int
    offset_px: tuple[float, float]
    head: bytes = b""


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
    precision : ``fp32``, ``fp16`` or ``int8``
    moments : channels of ``moments_0``, ``moments_1`` …, what earlier stages tell of a cell's texture; empty
        where the backbone has no such outputs
    map_traits : how to join a map of regions; None where that cannot be done
    map_refusal : why it cannot; empty where it can
    fp32_sha256 : of the file in single precision that one of another precision was made of; else empty
    """

    backbone: str
    input_size_px: int
    dim: int
    channels: int
    stride: int
    checkpoint_sha256: str
    precision: str
    moments: tuple[int, ...] = ()
    map_traits: MapTraits | None = None
    map_refusal: str = "its model file does not say how: export it again"
    fp32_sha256: str = ""

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of a cell, by the parts that count alike where a metric is fitted."""
        return (self.channels, *self.moments)

    def to_props(self) -> dict[str, str]:
        """Write the card as ``metadata_props``: text to text, keys prefixed ``stinfer.``."""
        traits: dict[str, str] = {}
        if self.map_traits is None:
            traits["stinfer.map_refusal"] = self.map_refusal
        else:
            traits["stinfer.map_halo_cells"] = str(self.map_traits.halo_cells)
            traits["stinfer.map_offset_px"] = " ".join(f"{value:g}" for value in self.map_traits.offset_px)
            traits["stinfer.map_head"] = base64.b64encode(self.map_traits.head).decode("ascii")
        return {
            "stinfer.format_version": str(MODEL_FORMAT_VERSION),
            "stinfer.backbone": self.backbone,
            "stinfer.input_size_px": str(self.input_size_px),
            "stinfer.dim": str(self.dim),
            "stinfer.channels": str(self.channels),
            "stinfer.stride": str(self.stride),
            "stinfer.checkpoint_sha256": self.checkpoint_sha256,
            PRECISION_KEY: self.precision,
            **({"stinfer.fp32_sha256": self.fp32_sha256} if self.fp32_sha256 else {}),
            **({"stinfer.moments": " ".join(map(str, self.moments))} if self.moments else {}),
            **traits,
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
        if not 1 <= int(props["stinfer.input_size_px"]) <= MAX_INPUT_PX or int(props["stinfer.dim"]) < 1:
            msg = f"input_size_px is not 1 to {MAX_INPUT_PX}, or dim is below 1"
            raise ValueError(msg)
        return cls(
            backbone=props["stinfer.backbone"],
            input_size_px=int(props["stinfer.input_size_px"]),
            dim=int(props["stinfer.dim"]),
            channels=int(props["stinfer.channels"]),
            stride=int(props["stinfer.stride"]),
            checkpoint_sha256=props["stinfer.checkpoint_sha256"],
            precision=props[PRECISION_KEY],
            moments=_read_moments(props),
            fp32_sha256=props.get("stinfer.fp32_sha256", ""),
            **_read_traits(props),
        )


def moment_outputs(n_stages: int) -> list[str]:
    """Return what a model's outputs of mean squares are called."""
    return [f"moments_{i}" for i in range(n_stages)]


def _read_moments(props: Mapping[str, str]) -> tuple[int, ...]:
    moments = tuple(int(length) for length in props.get("stinfer.moments", "").split())
    if moments and (min(moments) < 1 or sum(moments) > MAX_CHANNELS):
        msg = f"moments is {moments}, expected numbers of channels of 1 to {MAX_CHANNELS} in all"
        raise ValueError(msg)
    return moments


def _read_traits(props: Mapping[str, str]) -> dict[str, Any]:
    """Read what a card says of maps; files of before there were any say nothing."""
    if "stinfer.map_halo_cells" not in props:
        refusal = props.get("stinfer.map_refusal")
        return {} if refusal is None else {"map_refusal": refusal}
    halo_cells = int(props["stinfer.map_halo_cells"])
    offset_px = tuple(float(value) for value in props["stinfer.map_offset_px"].split())
    if not 0 <= halo_cells <= MAX_HALO_CELLS:
        msg = f"map_halo_cells is {halo_cells}, expected 0 to {MAX_HALO_CELLS}"
        raise ValueError(msg)
    if len(offset_px) != 2 or not all(abs(value) <= MAX_OFFSET_PX for value in offset_px):
        msg = (
            f"map_offset_px is {props['stinfer.map_offset_px']!r}, expected two numbers up to {MAX_OFFSET_PX}"
        )
        raise ValueError(msg)
    stride, channels = int(props["stinfer.stride"]), int(props["stinfer.channels"])
    if not 1 <= stride <= MAX_STRIDE_PX or channels < 1:
        msg = f"stride is {stride} and channels {channels}, expected 1 to {MAX_STRIDE_PX} and at least 1"
        raise ValueError(msg)
    if 2 * halo_cells * stride > MAX_HALO_PX:
        msg = f"a halo of {halo_cells} cells of {stride} px is more than {MAX_HALO_PX} px on two sides"
        raise ValueError(msg)
    head = base64.b64decode(props.get("stinfer.map_head", ""), validate=True)
    return {"map_traits": MapTraits(halo_cells, (offset_px[0], offset_px[1]), head), "map_refusal": ""}
