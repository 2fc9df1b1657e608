"""What the export stage writes and the runtime reads: names, versions and the model's card.

The two FORMAT.md files say the same in words; whoever changes one changes the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
