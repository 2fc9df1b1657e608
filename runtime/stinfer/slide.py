"""Slides behind one small interface, whichever library reads them.

Whatever the file, coordinates are level-0 pixels, and a read gives RGB at the wanted size: from
the pyramid level nearest above the wanted resolution, resampled with an antialiasing filter. What
lies beyond the image, or is transparent, is white, like glass.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Protocol

from stinfer.contract import MPP_MAX_UM, MPP_MIN_UM, U8
from stinfer.errors import (
    ScaleImpossibleError,
    ScaleUnknownError,
    SlideError,
    SlideNotFoundError,
    SlideUnreadableError,
)
from stinfer.slide_box import nearest_level, read_box
from stinfer.slide_readers import open_source
from stinfer.slide_scale import BY_USER, is_possible, screen_dpi
from stinfer.slide_source import Source
from stinfer.stage_clock import StageClock, timed


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


class PixelSource(Protocol):
    """What regions and patches are read from: an open slide, or one whose stains are changed as it is read.

    Attributes
    ----------
    size_l0 : tuple of int
        Width and height in level-0 pixels.
    mpp : tuple of float
        µm per level-0 pixel, x and y.
    """

    size_l0: tuple[int, int]
    mpp: tuple[float, float]

    def read(
        self, corner_l0: tuple[float, float], extent: tuple[float, float], size_px: tuple[int, int]
    ) -> U8:
        """Read a box; see `Slide.read`."""


class Slide:
    """An open slide.

    Parameters
    ----------
    path : the file
    source : its pixels
    mpp : µm per level-0 pixel, x and y
    mpp_source : where the scale comes from, for the record
    reader : the library that decodes it, for the record
    said_mpp : what the file says, where that was overridden
    remarks : what was converted, guessed or left out when it was opened, in words

    Attributes
    ----------
    size_l0 : tuple of int
        Width and height in level-0 pixels.
    clock : StageClock or None
        Told how long reading and resampling take.
    """

    def __init__(
        self,
        path: Path,
        source: Source,
        mpp: tuple[float, float],
        mpp_source: str,
        reader: str,
        *,
        said_mpp: tuple[float, float] | None = None,
        remarks: tuple[str, ...] = (),
    ) -> None:
        self.path = path
        self.mpp = mpp
        self.mpp_source = mpp_source
        self.reader = reader
        self.said_mpp = said_mpp
        self.remarks = remarks
        self.size_l0 = source.levels[0].size
        self.clock: StageClock | None = None
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
        level = nearest_level(self._source.levels, (extent[0] / size_px[0], extent[1] / size_px[1]))
        with timed(self.clock, "resample"):
            return read_box(self._source, level, corner_l0, extent, size_px, self.clock)

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


def open_slide(
    path: str | Path,
    mpp: float | tuple[float, float] | None = None,
    *,
    mpp_max_um: float = MPP_MAX_UM,
    given_by: str = BY_USER,
) -> Slide:
    """Open a slide and settle its scale.

    Parameters
    ----------
    path : anything OpenSlide reads, a folder of a DICOM slide, or a JPEG, PNG or TIFF image
    mpp : µm per level-0 pixel, or those of x and y; overrides what the file says
    mpp_max_um : the coarsest that `mpp` may be; the pictures of Space Ranger are coarser than any scan
    given_by : where `mpp` comes from, for the record

    Raises
    ------
    SlideNotFoundError, SlideUnreadableError, SlideTooLargeError
        The file cannot be opened.
    ExtraMissingError
        It takes packages that are not installed.
    ScaleUnknownError, ScaleImpossibleError
        Neither the file nor `mpp` gives a scale of 0.05 to 20 µm per pixel.
    """
    path = Path(path)
    try:
        exists = path.exists()
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, or a loop of links
        exists = False
    if not exists:
        raise SlideNotFoundError(path)
    if not (path.is_file() or path.is_dir()):
        cause = "it is a device or a pipe, not a file"
        raise SlideUnreadableError(path, cause)
    given = None
    if mpp is not None:
        given = (float(mpp[0]), float(mpp[1])) if isinstance(mpp, tuple) else (float(mpp), float(mpp))
        check_mpp("--mpp", given, mpp_max_um)
    opened = open_source(path)
    found = opened.mpp
    try:
        if given is not None:
            # A print resolution, as 72 dpi, says nothing that could be contradicted.
            said = found if found is not None and is_possible(found) else None
            return Slide(
                path, opened.source, given, given_by, opened.reader, said_mpp=said, remarks=opened.remarks
            )
        if found is None:
            raise ScaleUnknownError(path, opened.magnification)
        check_mpp(f"the {opened.said_by} of {path}", found)
    except SlideError:
        opened.source.close()
        raise
    return Slide(path, opened.source, found, opened.said_by, opened.reader, remarks=opened.remarks)


def check_mpp(said_by: str, mpp: tuple[float, float], mpp_max_um: float = MPP_MAX_UM) -> None:
    """Refuse a scale that no slide scan has.

    Raises
    ------
    ScaleImpossibleError
        A value is outside 0.05 to 20 (or `mpp_max_um`) µm per pixel, or no number.
    """
    if not is_possible(mpp, mpp_max_um):
        raise ScaleImpossibleError(said_by, mpp, MPP_MIN_UM, mpp_max_um, screen_dpi(mpp))
