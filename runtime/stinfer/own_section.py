"""Banks of one section that predict between its own spots: appearance and place are one distance.

References of such a bank, and places that are asked for, have two more coordinates behind those of their
appearance: where they lie on the section. So search, index and confidence work as they do for any bank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from stinfer.contract import F32, F64, MPP_MAX_UM, MPP_MIN_UM

# Added to what the metric gives.
N_PLACE_COLUMNS = 2
_MAX_WEIGHT = 1e6


@dataclass(frozen=True)
class OwnSection:
    """The section that a bank is of, and how much place counts in it.

    Parameters
    ----------
    slide_sha256 : of the section's image; no other image has its places
    mpp_x_um, mpp_y_um : µm per level-0 pixel of that image
    place_weight : mean squared distance of two places over that of two appearances, of the references
    weight_per_um : what a µm counts, in units of the appearance's distance
    """

    slide_sha256: str
    mpp_x_um: float
    mpp_y_um: float
    place_weight: float
    weight_per_um: float

    def __post_init__(self) -> None:
        # A whole number is written, and hashed, as the float that it is read back as.
        for field in fields(self):
            if field.type == "float":
                object.__setattr__(self, field.name, float(getattr(self, field.name)))

    @property
    def mpp(self) -> tuple[float, float]:
        """µm per level-0 pixel, x and y."""
        return self.mpp_x_um, self.mpp_y_um

    def join(self, mapped: F32, centers_l0: F64) -> F32:
        """Put place behind appearance.

        Parameters
        ----------
        mapped : (n, dim), embeddings after the metric
        centers_l0 : (n, 2), level-0 px

        Returns
        -------
        (n, dim + 2)
        """
        return with_place(mapped, centers_l0 * np.asarray(self.mpp), self.weight_per_um)

    def to_mapping(self) -> dict[str, str | float]:
        """Return what is written and hashed."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> OwnSection:
        """Read it back, checking types and ranges.

        Raises
        ------
        KeyError
            A value is missing.
        ValueError
            A value is of the wrong type or out of range.
        """
        digest = mapping["slide_sha256"]
        if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
            msg = f"slide_sha256 is {digest!r}, expected 64 hexadecimal digits"
            raise ValueError(msg)
        numbers = {}
        for name, (least, largest) in _RANGES.items():
            value = mapping[name]
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                msg = f"{name} is {value!r}, expected a number"
                raise ValueError(msg)
            if not (math.isfinite(value) and least <= value <= largest):
                msg = f"{name} is {value}, expected {least:g} to {largest:g}"
                raise ValueError(msg)
            numbers[name] = float(value)
        return cls(digest, **numbers)


def with_place(mapped: F32, places_um: F64, weight_per_um: float) -> F32:
    """Put places behind appearances: their squared distance is then the sum of both.

    Parameters
    ----------
    mapped : (n, dim), embeddings after the metric
    places_um : (n, 2)
    weight_per_um : what a µm counts; 0 leaves the place out

    Returns
    -------
    (n, dim + 2)
    """
    return np.concatenate([mapped, places_um * weight_per_um], axis=1, dtype=np.float32)


_RANGES = {
    "mpp_x_um": (MPP_MIN_UM, MPP_MAX_UM),
    "mpp_y_um": (MPP_MIN_UM, MPP_MAX_UM),
    "place_weight": (0.0, _MAX_WEIGHT),
    "weight_per_um": (0.0, _MAX_WEIGHT),
}
