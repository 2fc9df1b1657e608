"""Stain normalization: every slide's hematoxylin and eosin brought to those of the bank.

By the law of Beer and Lambert the optical densities of stains add up, so that another scanner, batch or
thickness is, to a good part, one linear map of the three channels' densities. White stays white.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stinfer.contract import F32, F64, U8, Bool

# Mean density of the channels; what is below is glass between tissue, where no stain can be told.
_LEAST_DENSITY = 0.15
# Of the angles, and of the amounts: robust against pigment, ink and dust.
_LOW_PERCENT, _HIGH_PERCENT = 1.0, 99.0
_MIN_PIXELS = 500
# Between the two stains' directions; less is one stain.
_LEAST_ANGLE_DEG = 5.0
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Stain:
    """The two stains of a slide.

    Parameters
    ----------
    directions : (2, 3), hematoxylin and eosin: decadic optical density of R, G and B, length 1
    amounts : (2,), 99th percentile of each one's amount over the tissue, above 0
    """

    directions: F64
    amounts: F64

    @property
    def basis(self) -> F64:
        """(3, 3): both stains at their amounts, and the direction across them."""
        across = np.cross(self.directions[0], self.directions[1])
        return np.stack([*(self.directions * self.amounts[:, np.newaxis]), across / np.linalg.norm(across)])


def measure_stain(pixels: U8, tissue: Bool) -> Stain | None:
    """Find the two stains of a slide.

    1. Optical densities of the pixels that are tissue and dense enough.
    2. The plane of their two principal directions; the angles of the pixels in it.
    3. The stains lie at the 1st and the 99th percentile of the angles. Hematoxylin is the one with more red
       density.
    4. Amounts by least squares; their 99th percentile says how strongly the slide is stained.

    Parameters
    ----------
    pixels : (height, width, 3) uint8 RGB, a picture of the whole slide
    tissue : (height, width)

    Returns
    -------
    None where fewer than 500 pixels can be used, or they show one stain alone

    References
    ----------
    M. Macenko et al., "A method for normalizing histology slides for quantitative analysis", ISBI (2009)
    1107-1110.
    """
    density = _DENSITY[pixels[tissue]].astype(np.float64)
    density = density[density.mean(axis=1) > _LEAST_DENSITY]
    if len(density) < _MIN_PIXELS:
        return None
    _, vectors = np.linalg.eigh(np.cov(density.T))
    # The two largest; each pointing into positive densities.
    plane = vectors[:, [2, 1]] * np.sign(vectors[:, [2, 1]].sum(axis=0))
    along = density @ plane
    angles = np.arctan2(along[:, 1], along[:, 0])
    low, high = np.percentile(angles, [_LOW_PERCENT, _HIGH_PERCENT])
    if np.degrees(high - low) < _LEAST_ANGLE_DEG:
        return None
    found = np.stack([plane @ [np.cos(angle), np.sin(angle)] for angle in (low, high)])
    if found[0, 0] < found[1, 0]:
        found = found[::-1]
    amounts = np.percentile(density @ np.linalg.pinv(found), _HIGH_PERCENT, axis=0)
    if amounts.min() <= 0 or found.sum(axis=1).min() <= 0:
        return None
    return Stain(found, amounts)


class StainTransfer:
    """Brings pixels stained as one slide to those stained as another.

    Parameters
    ----------
    given, wanted : stains
    """

    def __init__(self, given: Stain, wanted: Stain) -> None:
        self._map = (np.linalg.inv(given.basis) @ wanted.basis).astype(np.float32)

    def apply(self, pixels: U8) -> U8:
        """Change the stain.

        Parameters
        ----------
        pixels : (height, width, 3) uint8 RGB

        Returns
        -------
        the same shape; densities beyond black or white are cut off
        """
        changed = np.empty_like(pixels)
        for top in range(0, len(pixels), _ROWS_AT_ONCE):
            rows = slice(top, top + _ROWS_AT_ONCE)
            density = _DENSITY[pixels[rows]] @ self._map
            bright = np.exp(density * np.float32(-np.log(10.0)), dtype=np.float32) * np.float32(256) - 1
            changed[rows] = np.rint(bright.clip(0, 255))
        return changed


def mean_stain(stains: list[Stain]) -> Stain:
    """Return the middle of several slides' stains: the bank's own.

    Parameters
    ----------
    stains : at least one
    """
    directions = np.mean([stain.directions for stain in stains], axis=0)
    amounts = np.median([stain.amounts for stain in stains], axis=0)
    return Stain(directions / np.linalg.norm(directions, axis=1, keepdims=True), amounts)


# Decadic optical density of each gray level, 0 for white.
_DENSITY: F32 = (-np.log10((np.arange(256) + 1.0) / 256.0)).astype(np.float32)
