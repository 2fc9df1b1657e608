"""A tissue mask of the user's own, from a PNG or TIFF image."""

from __future__ import annotations

import contextlib
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from stinfer.contract import U8, Bool
from stinfer.errors import TissueMaskError, first_line
from stinfer.files import is_file, sha256_file
from stinfer.record import plain_name
from stinfer.slide import SlideLike
from stinfer.slide_source import same_aspect
from stinfer.tissue import THUMBNAIL_LONGEST_PX, TissueMask

_LIMIT_PX = 500_000_000
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, TypeError, KeyError, OverflowError, struct.error)
_ALPHA_MODES = ("RGBA", "LA", "PA", "La", "RGBa")


def read_tissue_mask(path: Path, slide: SlideLike) -> TissueMask:
    """Read a mask: what is not 0 is tissue.

    Of an image with colours a pixel is tissue where any of them is not 0, of one with transparency where it
    is also not transparent. A mask whose longer side has more than 4096 px is reduced, and a pixel is then
    tissue where most of it was.

    Parameters
    ----------
    path : PNG or TIFF of any size that has the proportion of the slide's sides
    slide : what it is of

    Raises
    ------
    TissueMaskError
        It cannot be read, has another proportion, or marks nothing.
    """
    if not is_file(path):
        raise TissueMaskError(path, "there is no such file")
    try:
        with _opened(path) as image:
            if image.width * image.height > _LIMIT_PX:
                cause = (
                    f"it has {image.width} x {image.height} px, more than {_LIMIT_PX / 1e6:.0f} megapixels"
                )
                raise TissueMaskError(path, cause)
            if not same_aspect(slide.size_l0, image.size):
                cause = (
                    f"it has {image.width} x {image.height} px, which is not the proportion of the slide's "
                    f"{slide.size_l0[0]} x {slide.size_l0[1]}"
                )
                raise TissueMaskError(path, cause)
            mask = _is_set(image)
    except UnidentifiedImageError as error:
        raise TissueMaskError(path, "it is no PNG or TIFF image") from error
    except _DAMAGE as error:
        if isinstance(error, TissueMaskError):
            raise
        raise TissueMaskError(path, first_line(error)) from error
    if not mask.any():
        raise TissueMaskError(path, "all of it is 0, which is no tissue anywhere")
    mask = _reduced(mask, THUMBNAIL_LONGEST_PX)
    l0_per_px = (slide.size_l0[0] / mask.shape[1], slide.size_l0[1] / mask.shape[0])
    name, digest = plain_name(path.name), sha256_file(path)
    return TissueMask(mask, l0_per_px, 0.0, given_name=name, given_sha256=digest)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a damaged tag of no use here
            with Image.open(path, formats=("PNG", "TIFF")) as image:
                yield image
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _is_set(image: Image.Image) -> Bool:
    if image.mode in _ALPHA_MODES:
        bands: U8 = np.asarray(image.convert("RGBA"), dtype=np.uint8)
        return np.asarray(bands[..., :3].any(axis=2) & (bands[..., 3] > 0))
    if image.mode == "P":
        image = image.convert("RGB")
    values = np.asarray(image)
    return np.asarray(values.any(axis=2) if values.ndim == 3 else values != 0)


def _reduced(mask: Bool, longest_px: int) -> Bool:
    factor = max(mask.shape) / longest_px
    if factor <= 1:
        return mask
    size = (max(round(mask.shape[1] / factor), 1), max(round(mask.shape[0] / factor), 1))
    shares = Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).resize(size, Image.Resampling.BOX)
    return np.asarray(np.asarray(shares) >= 128)
