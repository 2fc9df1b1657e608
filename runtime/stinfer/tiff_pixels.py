"""Pixels of a TIFF in any kind of colour, as 8-bit RGB."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stinfer.contract import U8, AnyArray

_WHITE = 255
_BLACK_IS_ZERO, _WHITE_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 1, 0, 2, 3, 5, 6
_NAMES = {
    _WHITE_IS_ZERO: "greyscale",
    _BLACK_IS_ZERO: "greyscale",
    4: "a mask",
    8: "CIE L*a*b*",
    9: "ICC L*a*b*",
    10: "ITU L*a*b*",
    32803: "a camera's raw colours",
    32844: "LogL",
    32845: "LogLuv",
}
# Kinds of JPEG, whose decoder gives RGB for YCbCr.
_JPEG = frozenset({7, 33007, 34892})
# Aperio's JPEG 2000 of YCbCr, which the codestream does not say.
_APERIO_YCBCR = 33003
_UNSIGNED = 1
_ASSOCIATED, _STRAIGHT = 1, 2


@dataclass(frozen=True)
class PixelKind:
    """How a file's samples are colours.

    Parameters
    ----------
    photometric : number of the TIFF specification
    bits : per sample, as they are stored
    used_bits : of these, those in use; the upper 8 of them are kept
    n_samples : per pixel
    alpha : 0 none, 1 the colours are multiplied by it already, 2 they are not
    palette : (2 ** bits, 3) colours; None without one
    """

    photometric: int
    bits: int
    used_bits: int
    n_samples: int
    alpha: int = 0
    palette: U8 | None = None

    @property
    def blank(self) -> int:
        """What samples are that stand for white, or for a palette's first colour."""
        return 0 if self.palette is not None or self.photometric == _CMYK else 2**self.used_bits - 1

    def to_rgb(self, samples: AnyArray) -> U8:
        """Turn samples into colours.

        Parameters
        ----------
        samples : (height, width, n_samples) unsigned

        Returns
        -------
        (height, width, 3) uint8 RGB, on white where they are transparent
        """
        if self.palette is not None:
            numbers = np.minimum(samples[..., 0], len(self.palette) - 1)
            return np.asarray(self.palette[numbers], dtype=np.uint8)
        values = self._to_8_bits(samples)
        if self.photometric == _CMYK:
            return _from_cmyk(values[..., :4])
        if not self.alpha:
            return np.ascontiguousarray(values[..., :3])
        share = values[..., 3:4].astype(np.uint32)
        colors = values[..., :3].astype(np.uint32)
        if self.alpha == _STRAIGHT:
            colors = (colors * share + _WHITE // 2) // _WHITE
        return np.asarray(np.minimum(colors + (_WHITE - share), _WHITE), dtype=np.uint8)

    def _to_8_bits(self, samples: AnyArray) -> U8:
        if self.used_bits == 8:
            # What lies above, in a wider sample, is more than white.
            return np.asarray(np.minimum(samples, _WHITE), dtype=np.uint8)
        if self.used_bits > 8:
            return np.asarray(np.minimum(samples >> (self.used_bits - 8), _WHITE), dtype=np.uint8)
        top = 2**self.used_bits - 1
        return np.asarray((samples.astype(np.uint32) * _WHITE + top // 2) // top, dtype=np.uint8)


def refusal(
    photometric: int, bits: int | tuple[int, ...], sample_format: int, n_samples: int, compression: int
) -> str | None:
    """Say why pixels cannot be turned into colours; None where they can.

    Parameters
    ----------
    photometric, sample_format, compression : numbers of the TIFF specification
    bits : per sample
    n_samples : per pixel, all planes together
    """
    if not isinstance(bits, int):
        return f"its samples have different numbers of bits {bits}"
    if sample_format != _UNSIGNED:
        return "its samples are not whole numbers from 0 on; H&E is 8-bit or 16-bit colour"
    if not 1 <= bits <= 16:
        return f"its samples have {bits} bits; H&E is 8-bit or 16-bit colour"
    if photometric == _BLACK_IS_ZERO and n_samples == 3:
        return None
    if photometric in _NAMES:
        kind = "black and white" if bits == 1 else _NAMES[photometric]
        return f"it is {kind} with {n_samples} samples per pixel; H&E needs colour, red, green and blue"
    needed = {_RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}.get(photometric)
    if needed is None:
        return f"its kind of colours, number {photometric}, is not known"
    if n_samples < needed:
        return f"it has {n_samples} samples per pixel, and its colours need {needed}"
    if photometric == _PALETTE and (n_samples > 1 or bits > 8):
        return "its palette is of a kind that is not known"
    if compression == _APERIO_YCBCR:
        return "it is JPEG 2000 of a kind that OpenSlide alone reads"
    if photometric == _YCBCR and compression not in _JPEG:
        return "it is YCbCr that is not compressed as JPEG"
    return None


def palette_of(colormap: AnyArray) -> U8:
    """Reduce a TIFF's palette, (3, n) uint16, to (n, 3) uint8; some programs write 8 bits into the 16."""
    colors = colormap.T
    return np.asarray(colors >> 8 if colors.max(initial=0) > _WHITE else colors, dtype=np.uint8)


def bits_in_use(largest: int, bits: int) -> int:
    """Return how many bits samples use, of those that cameras have, by the largest of them."""
    for used in (8, 10, 12, 14):
        if used < bits and largest < 2**used:
            return used
    return bits


def _from_cmyk(values: U8) -> U8:
    light = _WHITE - values.astype(np.uint32)
    return ((light[..., :3] * light[..., 3:] + _WHITE // 2) // _WHITE).astype(np.uint8)
