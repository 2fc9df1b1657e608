"""TIFF files that OpenSlide refuses or would read wrong, through tifffile: tile by tile, strip by strip.

tifffile's own list of series is not used: it loads every page, follows names of other files, and does not
end where pages link in a circle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stinfer.errors import SlideError, SlideUnreadableError, first_line
from stinfer.ome import OmeImage, read_ome
from stinfer.slide_scale import (
    METADATA,
    RESOLUTION_TAG,
    magnification,
    mpp_from_description,
    mpp_from_imagej,
    mpp_from_resolution,
)
from stinfer.slide_source import Level, Opened, level_scale
from stinfer.tiff_extra import import_tifffile
from stinfer.tiff_header import is_ome
from stinfer.tiff_pixels import PixelKind, bits_in_use, palette_of, refusal
from stinfer.tiff_plane import DAMAGE, SharedFile, TiffPlane

_MAX_PAGES = 4096
_MAX_LEVELS = 32
# Rows of a level that are turned into colours at once.
_BAND_ROWS = 256
# Boxes of a picture, on each axis, in which the brightest sample is looked for.
_PROBES, _PROBE_PX = 8, 256
_COLORMAP, _MAX_SAMPLE = 320, 281
_ALPHA = (1, 2)


class TiffSource:
    """A TIFF's picture and its smaller copies.

    Parameters
    ----------
    file : tifffile's, open
    planes : of each level: one page, or one for each of red, green and blue
    levels : their sizes and scales
    kind : of the pixels
    """

    def __init__(
        self, file: Any, planes: list[list[TiffPlane]], levels: tuple[Level, ...], kind: PixelKind
    ) -> None:
        self._file, self._planes, self._kind = file, planes, kind
        self.levels = levels

    def read_level(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> tuple[Image.Image, tuple[float, float]]:
        """Decode what the box touches, band by band."""
        out = np.empty((height, width, 3), dtype=np.uint8)
        for top in range(0, height, _BAND_ROWS):
            n_rows = min(_BAND_ROWS, height - top)
            samples = _samples(self._planes[level], x, y + top, width, n_rows)
            out[top : top + n_rows] = self._kind.to_rgb(samples)
        return Image.fromarray(out), (float(x), float(y))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def open_tiff(path: Path) -> Opened:
    """Open a TIFF file, as it is stored: its orientation is not yet obeyed.

    Raises
    ------
    ExtraMissingError
        tifffile or imagecodecs is not installed.
    SlideUnreadableError
        It is no TIFF file, is damaged, or is of a kind that is not read.
    SlideTooLargeError
        It has one strip of more pixels than are decoded at once.
    """
    tifffile = import_tifffile(f"reading the slide {path}", codecs=True)
    try:
        # What these flags stand for would load all pages, or take the offsets for longer than they are.
        file = tifffile.TiffFile(path, is_ndpi=False, is_lsm=False, is_scanimage=False)
    except DAMAGE as error:
        raise SlideUnreadableError(path, first_line(error)) from error
    try:
        return _Reader(path, file, tifffile.TiffPage).open()
    except DAMAGE as error:
        file.close()
        if isinstance(error, SlideError):
            raise
        raise SlideUnreadableError(path, f"it is a damaged TIFF ({first_line(error)})") from error


class _Reader:
    """Finds the picture in a file of many pages."""

    def __init__(self, path: Path, file: Any, page_class: Any) -> None:
        self._path, self._file, self._page_class = path, file, page_class
        self._shared = SharedFile()
        self._remarks: list[str] = []

    def open(self) -> Opened:
        pages = self._pages()
        description = str(pages[0].description)
        ome = self._ome(description)
        if ome is None:
            main, others = self._largest(pages)
        else:
            main, others = [pages[n] for n in ome.planes if n < len(pages)], []
            if len(main) < len(ome.planes):
                raise SlideUnreadableError(self._path, "it lacks planes that its OME-XML lists")
            self._remarks += ome.remarks
        candidates = [[page] for page in others] + self._smaller_copies(main)
        first = [TiffPlane(self._path, page, self._shared) for page in main]
        kind = self._kind(main, first, ome)
        planes, levels = self._levels(first, main, candidates)
        for plane in (plane for level in planes for plane in level):
            plane.blank = kind.blank
        source = TiffSource(self._file, planes, levels, kind)
        page = main[0]
        resolution, unit = _resolution(page)
        mpp = ome.mpp if ome is not None else mpp_from_description(description)
        mpp = mpp or mpp_from_imagej(description, resolution)
        said_by = METADATA
        if mpp is None:
            mpp, said_by = mpp_from_resolution(resolution, unit), RESOLUTION_TAG
        power = magnification(description) if "AppMag" in description else None
        return Opened(source, mpp, said_by, "tifffile", power, tuple(self._remarks))

    def _pages(self) -> list[Any]:
        """Load the pages in their order, as far as they are whole and do not repeat."""
        pages: list[Any] = []
        seen: set[int] = set()
        for n in range(_MAX_PAGES):
            try:
                page = self._file.pages[n]
            except IndexError:
                break
            except DAMAGE as error:
                if not pages:
                    raise
                self._remarks.append(f"the slide's file has a damaged page, {n + 1} ({first_line(error)})")
                break
            if page.offset in seen:
                self._remarks.append("the slide's file links its pages in a circle; each is taken once")
                break
            seen.add(page.offset)
            pages.append(page)
        return pages

    def _ome(self, description: str) -> OmeImage | None:
        if not is_ome(description):
            return None
        try:
            return read_ome(description)
        except ValueError as error:
            raise SlideUnreadableError(self._path, str(error)) from error

    def _largest(self, pages: list[Any]) -> tuple[list[Any], list[Any]]:
        """Take the largest page for the picture, and smaller ones for what may be its copies."""
        areas = [int(page.imagewidth) * int(page.imagelength) for page in pages]
        best = areas.index(max(areas))
        equals = [page for page, area in zip(pages, areas, strict=True) if area == areas[best]]
        if len(equals) > 1:
            self._remarks.append(
                f"the slide's file holds {len(equals)} pictures of the same size; the first is read"
            )
        smaller = [page for page, area in zip(pages, areas, strict=True) if area < areas[best]]
        return [pages[best]], smaller

    def _smaller_copies(self, main: list[Any]) -> list[list[Any]]:
        """Load what the pages' SubIFDs list, level by level."""
        found = []
        for page in main:
            copies = []
            for n, offset in enumerate((page.subifds or ())[:_MAX_LEVELS]):
                self._file.filehandle.seek(int(offset))
                copies.append(self._page_class(self._file, (page.index, n)))
            found.append(copies)
        return [list(level) for level in zip(*found, strict=False)]

    def _kind(self, main: list[Any], planes: list[TiffPlane], ome: OmeImage | None) -> PixelKind:
        page = main[0]
        n_samples = sum(plane.n_samples for plane in planes)
        cause = refusal(
            int(page.photometric), page.bitspersample, _sample_format(page), n_samples, int(page.compression)
        )
        if cause is not None:
            raise SlideUnreadableError(self._path, cause)
        if any(_signature(other) != _signature(page) or other.shape != page.shape for other in main):
            raise SlideUnreadableError(self._path, "its channels are of different kinds")
        palette = None
        if page.photometric == 3:
            palette = palette_of(np.asarray(page.tags[_COLORMAP].value).reshape(3, -1))
        extra = tuple(int(value) for value in page.extrasamples)
        alpha = extra[0] if len(extra) == 1 and extra[0] in _ALPHA and page.photometric == 2 else 0
        bits = int(page.bitspersample)
        used = bits
        if bits > 8:
            used = self._used_bits(page, planes, bits, ome)
            self._remarks.append(
                f"the slide's {bits}-bit channels are reduced to 8 bits: of the {used} that are in use the "
                "upper 8 are kept"
            )
        return PixelKind(int(page.photometric), bits, used, n_samples, alpha, palette)

    def _used_bits(self, page: Any, planes: list[TiffPlane], bits: int, ome: OmeImage | None) -> int:
        """Learn how many bits are in use: as the file says, else from samples all over the picture."""
        if ome is not None and ome.significant_bits is not None and 8 <= ome.significant_bits <= bits:
            return ome.significant_bits
        said = page.tags.valueof(_MAX_SAMPLE)
        if said is not None:
            return bits_in_use(int(np.max(said)), bits)
        width, height = planes[0].size
        largest = 0
        for row in range(_PROBES):
            for column in range(_PROBES):
                x, y = column * width // _PROBES, row * height // _PROBES
                box = (x, y, min(_PROBE_PX, width - x), min(_PROBE_PX, height - y))
                largest = max(largest, int(_samples(planes, *box).max()))
        return bits_in_use(largest, bits)

    def _levels(
        self, first: list[TiffPlane], main: list[Any], candidates: list[list[Any]]
    ) -> tuple[list[list[TiffPlane]], tuple[Level, ...]]:
        """Keep the candidates that can be smaller copies of the picture, the largest first."""
        size_l0 = first[0].size
        found = [(first, Level(size_l0, (1.0, 1.0)))]
        n_other = 0
        for pages in candidates:
            if _signature(pages[0]) != _signature(main[0]):
                n_other += 1
                continue
            planes = [TiffPlane(self._path, page, self._shared) for page in pages]
            scale = level_scale(size_l0, planes[0].size)
            if scale is None or max(scale) <= 1 or len({plane.size for plane in planes}) > 1:
                n_other += 1
                continue
            found.append((planes, Level(planes[0].size, scale)))
        if n_other:
            self._remarks.append(f"{n_other} further pictures in the slide's file are not used")
        found.sort(key=lambda item: item[1].scale)
        return [planes for planes, _ in found], tuple(level for _, level in found)


def _samples(planes: list[TiffPlane], x: int, y: int, width: int, height: int) -> Any:
    found = [plane.read(x, y, width, height) for plane in planes]
    return found[0] if len(found) == 1 else np.concatenate(found, axis=2)


def _signature(page: Any) -> tuple[Any, ...]:
    return (int(page.photometric), page.bitspersample, int(page.samplesperpixel), _sample_format(page))


def _sample_format(page: Any) -> int:
    return int(page.sampleformat) if not isinstance(page.sampleformat, tuple) else -1


def _resolution(page: Any) -> tuple[tuple[float, float] | None, int]:
    values = []
    for code in (282, 283):
        numerator, denominator = page.tags.valueof(code, default=(0, 1))
        values.append(numerator / denominator if denominator else 0.0)
    unit = int(page.tags.valueof(296, default=2))
    return ((values[0], values[1]) if min(values) > 0 else None), unit
