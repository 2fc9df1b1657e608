"""Which library reads a slide: OpenSlide (Pillow its JPEG tiles), else tifffile for TIFF, else Pillow."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
from PIL import Image

from stinfer.contract import F64
from stinfer.errors import ExtraMissingError, SlideError, SlideUnreadableError, first_line
from stinfer.flat_source import open_flat
from stinfer.openslide_source import (
    GENERIC_TIFF,
    OpenSlideSource,
    dicom_file,
    magnification_in,
    opened_by_openslide,
)
from stinfer.slide_box import read_box
from stinfer.slide_scale import (
    METADATA,
    RESOLUTION_TAG,
    mpp_from_description,
    mpp_from_imagej,
    mpp_from_resolution,
)
from stinfer.slide_source import (
    FLAT_LIMIT_PX,
    LARGEST_PX,
    TILE_LIMIT_PX,
    Level,
    Opened,
    Source,
    TurnedSource,
    swaps_axes,
)
from stinfer.tiff_header import CMYK, PALETTE, RGB, YCBCR, TiffHeader, is_tiff, read_tiff_header
from stinfer.tiff_pixels import refusal
from stinfer.tiff_source import open_tiff
from stinfer.tiled_source import with_own_tiles

_COLORS = frozenset({RGB, PALETTE, CMYK, YCBCR})
_ALPHA = (1, 2)
# Of those that OpenSlide opens, the only formats that are plain TIFF with a plain TIFF's tags.
_TIFF_VENDORS = (GENERIC_TIFF, "aperio")
# None, LZW, JPEG and old JPEG, deflate by both numbers, PackBits: what Pillow's libtiff always has.
_PILLOW_COMPRESSIONS = frozenset({1, 5, 6, 7, 8, 32773, 32946})
# Boxes on each axis, and their side in pixels of the level, in which levels are compared.
_PROBES, _PROBE_PX = 4, 32
# Two levels are other pictures where this part of what is dark in either is not in both; or less of it, if
# what is light and dark in one does not go with the other either.
_FOREIGN, _UNLIKE, _CORRELATION = 0.5, 0.1, 0.5
# Grey levels below white, on average, from which on there is anything to compare.
_DARK = 3.0


def open_source(path: Path) -> Opened:
    """Open a slide's pixels, upright, with what the file says of them.

    Parameters
    ----------
    path : a file, or a folder of a DICOM slide

    Raises
    ------
    SlideUnreadableError, SlideTooLargeError
        The file cannot be opened.
    ExtraMissingError
        It takes packages that are not installed.
    """
    file = path
    if path.is_dir():
        found = dicom_file(path)
        if found is None:
            raise SlideUnreadableError(path, "it is a folder that holds no DICOM slide that OpenSlide knows")
        file = found
    header = read_tiff_header(file)
    if header is not None:
        _refuse_absurd(path, header)
    opened = _open(file, header)
    try:
        return _without_foreign_levels(opened)
    except BaseException:
        opened.source.close()
        raise


def _open(path: Path, header: TiffHeader | None) -> Opened:
    try:
        handle = openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError:
        if not is_tiff(path):
            return open_flat(path)
        cause = "it is a TIFF file whose first directory is damaged"
    except openslide.OpenSlideError as error:
        if not is_tiff(path):
            raise SlideUnreadableError(path, first_line(error)) from error
        cause = first_line(error)
    else:
        vendor = handle.properties.get(openslide.PROPERTY_NAME_VENDOR)
        if header is None or vendor not in _TIFF_VENDORS or _openslide_reads_right(header, vendor):
            source = OpenSlideSource(path, handle)
            opened = opened_by_openslide(source, handle)
            if vendor in _TIFF_VENDORS:
                tiled = with_own_tiles(path, source)
                if tiled is not None:
                    opened = replace(opened, source=tiled, reader="openslide+pillow")
            if header is None:
                return opened
            if vendor == GENERIC_TIFF and header.has_sub_images and len(opened.source.levels) == 1:
                return _with_sub_images(path, _with_scale_of_tags(opened, header, vendor))
            return _with_scale_of_tags(opened, header, vendor)
        handle.close()
    if header is None:
        raise SlideUnreadableError(path, cause)
    return _open_tiff(path, header)


def _with_sub_images(path: Path, opened: Opened) -> Opened:
    """Read with tifffile for the smaller copies that OpenSlide does not see, if it is there and finds any."""
    try:
        better = open_tiff(path)
    except ExtraMissingError:
        remark = "the slide's smaller copies are not used, for want of the extra 'tiff': it is slower to read"
        return replace(opened, remarks=(*opened.remarks, remark))
    except SlideError:
        return opened
    if len(better.source.levels) == 1:
        better.source.close()
        return opened
    opened.source.close()
    return better


def _open_tiff(path: Path, header: TiffHeader) -> Opened:
    """Read with tifffile; with Pillow what that has no codec for, or if it is not installed."""
    try:
        opened = open_tiff(path)
    except ExtraMissingError as error:
        if _pillow_reads_right(header):
            return _open_flat_tiff(path, header)
        cause = None if header.is_ome else _refusal(header)
        if cause is not None:  # to install it would not help
            raise SlideUnreadableError(path, cause) from error
        raise
    except SlideUnreadableError:
        if _pillow_reads_right(header):
            with contextlib.suppress(SlideUnreadableError):
                return _open_flat_tiff(path, header)
        raise
    if not 2 <= header.orientation <= 8:
        return opened
    source = TurnedSource(opened.source, header.orientation)
    return replace(opened, source=source, mpp=_turned(opened.mpp, header))


def _open_flat_tiff(path: Path, header: TiffHeader) -> Opened:
    """Read with Pillow, which turns pictures and reads resolution tags but no texts."""
    opened = open_flat(path)
    said = _turned(_mpp_in_text(header), header)
    return opened if said is None else replace(opened, mpp=said, said_by=METADATA)


def _turned(mpp: tuple[float, float] | None, header: TiffHeader) -> tuple[float, float] | None:
    return mpp[::-1] if mpp is not None and swaps_axes(header.orientation) else mpp


def _mpp_in_text(header: TiffHeader) -> tuple[float, float] | None:
    return mpp_from_description(header.description) or mpp_from_imagej(header.description, header.resolution)


def _refusal(header: TiffHeader) -> str | None:
    bits = header.bits[0] if len(set(header.bits)) == 1 else header.bits
    sample_format = header.sample_formats[0] if len(set(header.sample_formats)) == 1 else -1
    return refusal(header.photometric, bits, sample_format, header.n_samples, header.compression)


def _refuse_absurd(path: Path, header: TiffHeader) -> None:
    if header.size[0] * header.size[1] > LARGEST_PX or min(header.size) < 1:
        raise SlideUnreadableError(path, f"it says that it has {header.size[0]} x {header.size[1]} px")
    if header.tile is not None and not 1 <= header.tile[0] * header.tile[1] <= TILE_LIMIT_PX:
        cause = f"it says that its tiles have {header.tile[0]} x {header.tile[1]} px"
        raise SlideUnreadableError(path, cause)


def _openslide_reads_right(header: TiffHeader, vendor: str | None) -> bool:
    """Say whether OpenSlide takes a TIFF's pixels for what they are.

    It turns a picture tile by tile, takes grey for colour and 16 bits for full, an unknown fourth sample for
    alpha, and does not see the smaller copies of OME-TIFF.
    """
    if vendor != GENERIC_TIFF:
        return header.orientation == 1
    return header.orientation == 1 and not header.is_ome and _is_plain_color(header)


def _pillow_reads_right(header: TiffHeader) -> bool:
    return (
        header.compression in _PILLOW_COMPRESSIONS
        and not header.is_ome
        and _is_plain_color(header)
        and header.size[0] * header.size[1] <= FLAT_LIMIT_PX
    )


def _is_plain_color(header: TiffHeader) -> bool:
    """Say whether pixels are colours of 8 bits, with an alpha that is said to be one or none."""
    is_alpha_known = all(extra in _ALPHA for extra in header.extra_samples)
    return (
        header.photometric in _COLORS
        and (header.n_samples >= 3 or header.photometric == PALETTE)
        and set(header.bits) == {8}
        and set(header.sample_formats) == {1}
        and (header.photometric != RGB or header.n_samples == 3 + len(header.extra_samples))
        and is_alpha_known
    )


def _with_scale_of_tags(opened: Opened, header: TiffHeader, vendor: str | None) -> Opened:
    """Fill in the scale that a vendor's own keys lack, from the tags that any TIFF may have."""
    tags = mpp_from_resolution(header.resolution, header.resolution_unit)
    if vendor == GENERIC_TIFF:
        # What OpenSlide tells of a plain TIFF is its resolution tags; programs write 72 dpi into them.
        said = _mpp_in_text(header)
        if said is not None:
            return replace(opened, mpp=said)
        power = magnification_in(header.description)
        return replace(opened, mpp=tags, said_by=RESOLUTION_TAG, magnification=power)
    if opened.mpp is None and tags is not None:
        return replace(opened, mpp=tags, said_by=RESOLUTION_TAG)
    return opened


class _SelectedSource:
    """Some levels of a source."""

    def __init__(self, source: Source, kept: list[int]) -> None:
        self._source, self._kept = source, kept
        self.levels: tuple[Level, ...] = tuple(source.levels[n] for n in kept)

    def read_level(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> tuple[Image.Image, tuple[float, float]]:
        return self._source.read_level(self._kept[level], x, y, width, height)

    def close(self) -> None:
        self._source.close()


def _without_foreign_levels(opened: Opened) -> Opened:
    """Leave out levels that show another picture, such as a label among the copies."""
    source = opened.source
    kept = [0]
    for level in range(1, len(source.levels)):
        try:
            is_foreign = _shows_another_picture(source, kept[-1], level)
        except SlideUnreadableError:
            is_foreign = False  # damaged; said where it is read
        if not is_foreign:
            kept.append(level)
    n_foreign = len(source.levels) - len(kept)
    if not n_foreign:
        return opened
    remark = f"{n_foreign} smaller copies in the slide's file show another picture and are not used"
    return replace(opened, source=_SelectedSource(source, kept), remarks=(*opened.remarks, remark))


def _shows_another_picture(source: Source, finer: int, coarser: int) -> bool:
    """Compare two levels in boxes all over; glass alone says nothing."""
    frame = source.levels[coarser]
    side = (min(_PROBE_PX, frame.size[0]), min(_PROBE_PX, frame.size[1]))
    extent = (side[0] * frame.scale[0], side[1] * frame.scale[1])
    size_px = (max(side[0] // 4, 1), max(side[1] // 4, 1))
    shades: tuple[list[F64], list[F64]] = ([], [])
    for row in range(_PROBES):
        for column in range(_PROBES):
            x, y = (
                origin + (i + 0.5) / _PROBES * (size * scale - length)
                for i, origin, size, scale, length in zip(
                    (column, row), frame.origin, frame.size, frame.scale, extent, strict=True
                )
            )
            for found, level in zip(shades, (finer, coarser), strict=True):
                box = read_box(source, level, (x, y), extent, size_px)
                found.append(np.subtract(255.0, box, dtype=np.float64).ravel())
    fine, coarse = (np.concatenate(found) for found in shades)
    dark = float(np.maximum(fine, coarse).mean())
    if dark < _DARK:
        return False
    unlike = float(np.abs(fine - coarse).mean()) / dark
    if unlike <= _UNLIKE or min(float(fine.std()), float(coarse.std())) == 0:
        return unlike > _FOREIGN
    return unlike > _FOREIGN or float(np.corrcoef(fine, coarse)[0, 1]) < _CORRELATION
