"""Slides behind one small interface: OpenSlide for pyramids, Pillow for flat images.

Whatever the file, coordinates are level-0 pixels, and a read gives RGB at the wanted size: from
the pyramid level nearest above the wanted resolution, resampled with an antialiasing filter. What
lies beyond the image, or is transparent, is white, like glass.
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
import openslide
from PIL import Image, ImageOps, UnidentifiedImageError

from stinfer.contract import MPP_MAX_UM, MPP_MIN_UM, U8
from stinfer.errors import (
    ScaleImpossibleError,
    ScaleUnknownError,
    SlideError,
    SlideNotFoundError,
    SlideTooLargeError,
    SlideUnreadableError,
)

FLAT_LIMIT_PX = 500_000_000
# Pixels of a level that are decoded at once; a larger box is read in bands.
_BAND_LIMIT_PX = 16_000_000
_FLAT_FORMATS = ("JPEG", "PNG", "TIFF")
# What Pillow raises for damaged data depends on the format and on where the damage is.
_PILLOW_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    struct.error,
)
_COLOR_MODES = ("RGB", "RGBA", "P", "CMYK", "YCbCr")
# Tags of TIFF and EXIF.
_ORIENTATION, _X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 0x0112, 0x011A, 0x011B, 0x0128
_UM_PER_INCH = 25_400.0
# Pillow's bilinear filter widens with the reduction: a triangle over two output pixels. Unlike a
# box it has no jumps as the phase between source and output pixels changes.
_FILTER = Image.Resampling.BILINEAR
_FILTER_SUPPORT = 1.0


class SlideLike(Protocol):
    """What a prediction needs to know of a slide: an open slide, or its saved map.

    Attributes
    ----------
    path : Path
        The file.
    size_l0 : tuple of int
        Width and height in level-0 pixels.
    mpp : tuple of float
        µm per level-0 pixel, x and y.
    """

    path: Path
    size_l0: tuple[int, int]
    mpp: tuple[float, float]


class _Source(Protocol):
    """Pixels of one file, level by level."""

    downsamples: tuple[float, ...]
    level_sizes: tuple[tuple[int, int], ...]

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> Image.Image:
        """Read RGB pixels of a level; the box lies inside the level."""

    def close(self) -> None:
        """Close the file."""


class _OpenSlideSource:
    """A pyramid that OpenSlide reads."""

    def __init__(self, path: Path, handle: openslide.OpenSlide) -> None:
        self._path = path
        self._handle = handle
        self.downsamples = tuple(float(d) for d in handle.level_downsamples)
        self.level_sizes = tuple((int(w), int(h)) for w, h in handle.level_dimensions)
        color = handle.properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "ffffff")
        self._background = "#" + color

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> Image.Image:
        scale = self.downsamples[level]
        try:
            rgba = self._handle.read_region((round(x * scale), round(y * scale)), level, (width, height))
        except openslide.OpenSlideError as error:
            raise SlideUnreadableError(self._path, str(error)) from error
        rgb = Image.new("RGB", rgba.size, self._background)
        rgb.paste(rgba, mask=rgba.getchannel("A"))
        return rgb

    def close(self) -> None:
        self._handle.close()


class _FlatSource:
    """An image that is decoded whole."""

    def __init__(self, image: Image.Image) -> None:
        self._image = image
        self.downsamples: tuple[float, ...] = (1.0,)
        self.level_sizes: tuple[tuple[int, int], ...] = (image.size,)

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> Image.Image:
        del level  # there is one
        return self._image.crop((x, y, x + width, y + height))

    def close(self) -> None:
        self._image.close()


class Slide:
    """An open slide.

    Parameters
    ----------
    path : the file
    source : its pixels
    mpp : µm per level-0 pixel, x and y
    mpp_source : where the scale comes from, for the record
    said_mpp : what the file says, where that was overridden

    Attributes
    ----------
    size_l0 : tuple of int
        Width and height in level-0 pixels.
    """

    def __init__(
        self,
        path: Path,
        source: _Source,
        mpp: tuple[float, float],
        mpp_source: str,
        *,
        said_mpp: tuple[float, float] | None = None,
    ) -> None:
        self.path = path
        self.mpp = mpp
        self.mpp_source = mpp_source
        self.said_mpp = said_mpp
        self.size_l0 = source.level_sizes[0]
        self._source = source

    def __enter__(self) -> Slide:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._source.close()

    def read(
        self, corner_l0: tuple[float, float], extent: tuple[float, float], size_px: tuple[int, int]
    ) -> U8:
        """Read a box, resampled to a given size.

        Parameters
        ----------
        corner_l0 : x and y of the box's upper left corner, may lie outside the image
        extent : width and height of the box, level-0 px
        size_px : width and height of the result

        Returns
        -------
        (size_px[1], size_px[0], 3) uint8 RGB; white where the box leaves the image

        Raises
        ------
        SlideUnreadableError
            The file is damaged there.
        """
        step_x, step_y = extent[0] / size_px[0], extent[1] / size_px[1]
        level = self._nearest_level(min(step_x, step_y))
        scale = self._source.downsamples[level]
        row_px = extent[0] * step_y / scale**2
        band_px = max(int(_BAND_LIMIT_PX / row_px), 1)
        bands = []
        for top in range(0, size_px[1], band_px):
            n_rows = min(band_px, size_px[1] - top)
            corner = (corner_l0[0], corner_l0[1] + top * step_y)
            bands.append(self._read_band(level, corner, (extent[0], n_rows * step_y), (size_px[0], n_rows)))
        return bands[0] if len(bands) == 1 else np.concatenate(bands)

    def _nearest_level(self, step: float) -> int:
        """Return the coarsest level that is not coarser than `step` level-0 pixels per pixel."""
        level = 0
        for candidate, downsample in enumerate(self._source.downsamples):
            # A level a hair coarser than wanted counts as equal: downsamples are quotients of rounded sizes.
            if downsample <= step * 1.01:
                level = candidate
        return level

    def _read_band(
        self,
        level: int,
        corner_l0: tuple[float, float],
        extent: tuple[float, float],
        size_px: tuple[int, int],
    ) -> U8:
        scale = self._source.downsamples[level]
        left, right = _span(corner_l0[0] / scale, extent[0] / scale, size_px[0])
        top, bottom = _span(corner_l0[1] / scale, extent[1] / scale, size_px[1])
        width, height = self._source.level_sizes[level]
        x0, x1 = max(left, 0), min(right, width)
        y0, y1 = max(top, 0), min(bottom, height)
        if x0 >= x1 or y0 >= y1:
            return np.full((size_px[1], size_px[0], 3), 255, dtype=np.uint8)
        region = self._source.read_level(level, x0, y0, x1 - x0, y1 - y0)
        if (x0, y0, x1, y1) != (left, top, right, bottom):
            canvas = Image.new("RGB", (right - left, bottom - top), "#ffffff")
            canvas.paste(region, (x0 - left, y0 - top))
            region = canvas
        box_left, box_top = corner_l0[0] / scale - left, corner_l0[1] / scale - top
        box = (box_left, box_top, box_left + extent[0] / scale, box_top + extent[1] / scale)
        return np.asarray(region.resize(size_px, _FILTER, box=box), dtype=np.uint8)

    def thumbnail(self, longest_px: int) -> U8:
        """Read the whole slide with its longer side at most `longest_px`.

        Returns
        -------
        (height, width, 3) uint8 RGB
        """
        width, height = self.size_l0
        factor = max(max(width, height) / longest_px, 1.0)
        size_px = (max(round(width / factor), 1), max(round(height / factor), 1))
        return self.read((0.0, 0.0), (float(width), float(height)), size_px)


def _span(start: float, length: float, n_px: int) -> tuple[int, int]:
    """Whole level pixels that the resampling of [start, start + length) to `n_px` touches."""
    margin = math.ceil(_FILTER_SUPPORT * max(length / n_px, 1.0)) + 1
    return math.floor(start) - margin, math.ceil(start + length) + margin


def open_slide(path: str | Path, mpp: float | None = None, *, mpp_max_um: float = MPP_MAX_UM) -> Slide:
    """Open a slide and settle its scale.

    Parameters
    ----------
    path : anything OpenSlide reads, or a JPEG, PNG or TIFF image
    mpp : µm per level-0 pixel; overrides what the file says
    mpp_max_um : the coarsest that `mpp` may be; the pictures of Space Ranger are coarser than any scan

    Raises
    ------
    SlideNotFoundError, SlideUnreadableError, SlideTooLargeError
        The file cannot be opened.
    ScaleUnknownError, ScaleImpossibleError
        Neither the file nor `mpp` gives a scale of 0.05 to 20 µm per pixel.
    """
    path = Path(path)
    try:
        exists = path.exists()
    except (OSError, ValueError):  # a name that no file can have
        exists = False
    if not exists:
        raise SlideNotFoundError(path)
    if not (path.is_file() or path.is_dir()):
        cause = "it is a device or a pipe, not a file"
        raise SlideUnreadableError(path, cause)
    if mpp is not None:
        mpp = float(mpp)
        check_mpp("--mpp", (mpp, mpp), mpp_max_um)
    source, found, said_by = _open_source(path)
    try:
        if mpp is not None:
            # A print resolution, as 72 dpi, says nothing that could be contradicted.
            said = found if found is not None and _is_possible(found) else None
            return Slide(path, source, (mpp, mpp), "given by the user", said_mpp=said)
        if found is None:
            raise ScaleUnknownError(path)
        check_mpp(f"the {said_by} of {path}", found)
    except SlideError:
        source.close()
        raise
    return Slide(path, source, found, said_by)


def check_mpp(said_by: str, mpp: tuple[float, float], mpp_max_um: float = MPP_MAX_UM) -> None:
    """Refuse a scale that no slide scan has.

    Raises
    ------
    ScaleImpossibleError
        A value is outside 0.05 to 20 (or `mpp_max_um`) µm per pixel, or no number.
    """
    if not _is_possible(mpp, mpp_max_um):
        raise ScaleImpossibleError(said_by, mpp, MPP_MIN_UM, mpp_max_um)


def _is_possible(mpp: tuple[float, float], mpp_max_um: float = MPP_MAX_UM) -> bool:
    return all(MPP_MIN_UM <= value <= mpp_max_um for value in mpp)


def _open_source(path: Path) -> tuple[_Source, tuple[float, float] | None, str]:
    """Open with OpenSlide, else with Pillow; return pixels, scale and who said it."""
    refusal: Exception
    try:
        handle = openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError as error:
        refusal = error
    except openslide.OpenSlideError as error:
        raise SlideUnreadableError(path, str(error)) from error
    else:
        if handle.properties.get(openslide.PROPERTY_NAME_VENDOR) == "generic-tiff" and not _plain_tiff(path):
            handle.close()
            return _flat_source(path)
        scale = _number(handle.properties.get(openslide.PROPERTY_NAME_MPP_X))
        scale_y = _number(handle.properties.get(openslide.PROPERTY_NAME_MPP_Y))
        found = None if scale is None or scale_y is None else (scale, scale_y)
        return _OpenSlideSource(path, handle), found, "slide metadata"
    if path.is_dir():
        raise SlideUnreadableError(path, "it is a folder that holds no slide OpenSlide knows") from refusal
    return _flat_source(path)


def _plain_tiff(path: Path) -> bool:
    """Say whether OpenSlide reads a tiled TIFF right: it turns tile by tile, and takes grey for colour."""
    try:
        with _opened_by_pillow(path) as image:
            return image.mode in _COLOR_MODES and image.getexif().get(_ORIENTATION, 1) == 1
    except _PILLOW_DAMAGE:
        return True  # Pillow does not know its compression; OpenSlide does


def _flat_source(path: Path) -> tuple[_Source, tuple[float, float] | None, str]:
    image, found = _read_flat(path)
    return _FlatSource(image), found, "resolution tag"


@contextlib.contextmanager
def _opened_by_pillow(path: Path) -> Iterator[Image.Image]:
    """Open an image without Pillow's own limit, which is below an ordinary section's photograph."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(path, formats=_FLAT_FORMATS) as image:
            yield image
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _read_flat(path: Path) -> tuple[Image.Image, tuple[float, float] | None]:
    """Decode a flat image; return it as RGB and, where it has a resolution tag, its scale."""
    try:
        with _opened_by_pillow(path) as image:
            if image.width * image.height > FLAT_LIMIT_PX:
                raise SlideTooLargeError(path, image.width, image.height, FLAT_LIMIT_PX)
            if image.mode not in _COLOR_MODES:
                cause = f"it has pixels of kind {image.mode!r}; H&E needs 8-bit colour"
                raise SlideUnreadableError(path, cause)
            dpi = _resolution_dpi(image)
            # Values 5 to 8 exchange rows and columns.
            turned = image.getexif().get(_ORIENTATION, 1) >= 5
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode == "RGBA" or "transparency" in image.info:
                clear = image.convert("RGBA")
                flat = Image.new("RGB", clear.size, "#ffffff")
                flat.paste(clear, mask=clear.getchannel("A"))
            else:
                # Decoded now, since its file is closed with this block.
                image.load()
                flat = image if image.mode == "RGB" else image.convert("RGB")
    except UnidentifiedImageError as error:
        raise SlideUnreadableError(path, "it is no image that OpenSlide or Pillow knows") from error
    except _PILLOW_DAMAGE as error:
        if isinstance(error, SlideError):
            raise
        raise SlideUnreadableError(path, str(error)) from error
    if dpi is None:
        return flat, None
    x, y = (_UM_PER_INCH / value for value in dpi)
    return flat, (y, x) if turned else (x, y)


def _resolution_dpi(image: Image.Image) -> tuple[float, float] | None:
    """Return the file's own resolution, x and y, without the 72 or 1 that Pillow puts where it has none."""
    is_jpeg = image.format in ("JPEG", "MPO")  # a camera's JPEG of several images is an MPO
    if image.format == "TIFF" or (is_jpeg and image.info.get("jfif_unit", 0) not in (1, 2)):
        tags = image.getexif()
        per_unit = {2: 1.0, 3: 2.54}.get(tags.get(_RESOLUTION_UNIT, 2 if is_jpeg else 1))
        x, y = tags.get(_X_RESOLUTION), tags.get(_Y_RESOLUTION)
        if per_unit is None or not x or not y:
            return None
        dpi: tuple[float, ...] = (float(x) * per_unit, float(y) * per_unit)
    else:
        dpi = tuple(float(value) for value in image.info.get("dpi", (0, 0)))
    return (dpi[0], dpi[1]) if len(dpi) == 2 and min(dpi) > 0 else None
