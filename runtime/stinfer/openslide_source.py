"""Pyramids that OpenSlide reads."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import openslide
from PIL import Image

from stinfer.errors import SlideUnreadableError, first_line
from stinfer.slide_scale import METADATA, magnification, mpp_from_description, number
from stinfer.slide_source import Level, Opened, level_scale

# A folder of more files than this is not searched for DICOM.
_MAX_FILES = 10_000
GENERIC_TIFF = "generic-tiff"
# OpenSlide's own scale of a level, where the format has none, is the mean of the sides' quotients.
_SAME = 1e-9


class OpenSlideSource:
    """A pyramid that OpenSlide reads.

    Parameters
    ----------
    path : the file
    handle : opened

    Attributes
    ----------
    downsamples : tuple of float
        Of the levels, as OpenSlide takes them; it interpolates between pixels where one is no whole number.
    """

    def __init__(self, path: Path, handle: openslide.OpenSlide) -> None:
        self._path = path
        self._handle = handle
        color = handle.properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "ffffff")
        self._background = "#" + color
        sizes = [(int(w), int(h)) for w, h in handle.level_dimensions]
        levels, downsamples, self._numbers = [], [], []
        for n, (size, downsample) in enumerate(zip(sizes, handle.level_downsamples, strict=True)):
            scale = _scale(sizes[0], size, float(downsample))
            if scale is not None:
                levels.append(Level(size, scale))
                downsamples.append(float(downsample))
                self._numbers.append(n)
        self.levels, self.downsamples = tuple(levels), tuple(downsamples)
        self.n_left_out = len(sizes) - len(levels)

    def read_level(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> tuple[Image.Image, tuple[float, float]]:
        """Read from the nearest whole level-0 pixel; OpenSlide interpolates where a level's lie between."""
        n, downsample = self._numbers[level], self.downsamples[level]
        corner_l0 = (round(x * downsample), round(y * downsample))
        try:
            rgba = self._handle.read_region(corner_l0, n, (width, height))
        except openslide.OpenSlideError as error:
            # After an error a handle gives nothing but that error, also of what is whole.
            with contextlib.suppress(openslide.OpenSlideError):
                self._handle = openslide.OpenSlide(self._path)
            cause = f"a part of it is damaged ({first_line(error)})"
            raise SlideUnreadableError(self._path, cause) from error
        rgb = Image.new("RGB", rgba.size, self._background)
        rgb.paste(rgba, mask=rgba.getchannel("A"))
        return rgb, (corner_l0[0] / downsample, corner_l0[1] / downsample)

    def close(self) -> None:
        """Close the file."""
        self._handle.close()


def _scale(size_l0: tuple[int, int], size: tuple[int, int], downsample: float) -> tuple[float, float] | None:
    """Take the scale that the format has, where it has one; else work it out from the sizes."""
    mean = (size_l0[0] / size[0] + size_l0[1] / size[1]) / 2
    if abs(downsample / mean - 1) > _SAME:
        return downsample, downsample
    return level_scale(size_l0, size)


def opened_by_openslide(source: OpenSlideSource, handle: openslide.OpenSlide) -> Opened:
    """Describe a slide that OpenSlide has opened."""
    properties: Mapping[str, str] = handle.properties
    x = number(properties.get(openslide.PROPERTY_NAME_MPP_X))
    y = number(properties.get(openslide.PROPERTY_NAME_MPP_Y))
    description = properties.get("tiff.ImageDescription", "")
    mpp = mpp_from_description(description) if x is None or y is None else (x, y)
    power = magnification(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER))
    remarks = []
    if source.n_left_out:
        remarks.append(
            f"{source.n_left_out} smaller copies in the slide's file have another shape and are not used"
        )
    power = power or magnification_in(description)
    return Opened(source, mpp, METADATA, "openslide", power, tuple(remarks))


def magnification_in(description: str) -> float | None:
    """Find Aperio's ``AppMag`` in a free text."""
    return magnification(description) if "AppMag" in description else None


def dicom_file(folder: Path) -> Path | None:
    """Return the first file of a folder that OpenSlide knows as a DICOM slide; None where there is none."""
    try:
        for n, path in enumerate(sorted(folder.iterdir())):
            if n >= _MAX_FILES:
                break
            if path.is_file() and openslide.OpenSlide.detect_format(path) == "dicom":
                return path
    except OSError:
        return None
    return None
