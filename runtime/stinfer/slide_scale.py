"""How many µm a pixel is, from what files say in their own ways. Pure arithmetic on texts and numbers."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

from stinfer.contract import MPP_MAX_UM, MPP_MIN_UM

METADATA, RESOLUTION_TAG, BY_USER = "slide metadata", "resolution tag", "given by the user"
BY_BANK = "bank of this section"
# Resolutions that programs write where they know none.
_SCREEN_DPI = (72.0, 96.0)
# 72 dpi comes as 28.34 or 28.35 per cm, 72.009 or 71.98 dpi.
_DPI_TOLERANCE = 0.003
_UM_PER_INCH = 25_400.0
_UM_PER_CM = 10_000.0
# Prefixes of the metre, in µm, as OME-XML writes units.
_UM_PER_UNIT = {
    "nm": 1e-3,
    "µm": 1.0,
    "μm": 1.0,
    "um": 1.0,
    "micron": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
    "in": _UM_PER_INCH,
    "inch": _UM_PER_INCH,
}


def is_possible(mpp: tuple[float, float], mpp_max_um: float = MPP_MAX_UM) -> bool:
    """Say whether a picture can have this scale: 0.05 to 20 (or `mpp_max_um`) µm per pixel on both axes."""
    return all(MPP_MIN_UM <= value <= mpp_max_um for value in mpp)


def mpp_from_resolution(resolution: tuple[float, float] | None, unit: int) -> tuple[float, float] | None:
    """Turn resolution tags into a scale.

    Parameters
    ----------
    resolution : pixels per unit, x and y
    unit : 2 inch, 3 cm; any other is none

    Returns
    -------
    µm per pixel, x and y; None where the tags give none
    """
    um = {2: _UM_PER_INCH, 3: _UM_PER_CM}.get(unit)
    if um is None or resolution is None or not all(0 < v < math.inf for v in resolution):
        return None
    return um / resolution[0], um / resolution[1]


def screen_dpi(mpp: tuple[float, float]) -> int | None:
    """Return 72 or 96 where a scale is just that, the resolution of screens; else None."""
    for dpi in _SCREEN_DPI:
        if all(value > 0 and abs(_UM_PER_INCH / value / dpi - 1) <= _DPI_TOLERANCE for value in mpp):
            return int(dpi)
    return None


def mpp_from_description(description: str) -> tuple[float, float] | None:
    """Find a scale in a TIFF's free text: OME-XML, Aperio's ``MPP = 0.25``, or ImageJ's ``unit=micron``.

    ImageJ's own scale lies in the resolution tags; see `imagej_unit_um`.
    """
    if "<OME" in description:
        return _mpp_from_ome(description)
    found = re.search(r"\bMPP\s*=\s*([0-9.]+)", description)
    value = _number(found[1]) if found else None
    return None if value is None or value <= 0 else (value, value)


def mpp_from_imagej(description: str, resolution: tuple[float, float] | None) -> tuple[float, float] | None:
    """Turn resolution tags into a scale where ImageJ says their unit in the description."""
    if not description.startswith("ImageJ="):
        return None
    found = re.search(r"^unit=(.+)$", description, re.MULTILINE)
    unit = found[1].strip().replace("\\u00B5", "µ") if found else ""
    um = _UM_PER_UNIT.get(unit)
    if um is None or resolution is None or not all(0 < v < math.inf for v in resolution):
        return None
    return um / resolution[0], um / resolution[1]


def magnification(text: str | None) -> float | None:
    """Read the power of an objective, or find it as Aperio's ``AppMag = 20`` in a text."""
    if text is None:
        return None
    found = re.search(r"\bAppMag\s*=\s*([0-9.]+)", text)
    value = number(found[1] if found else text)
    return value if value is not None and 1 <= value <= 200 else None


def number(text: str | None) -> float | None:
    """Read a finite number; None where it is none."""
    value = None if text is None else _number(text)
    return value if value is not None and math.isfinite(value) else None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _mpp_from_ome(xml: str) -> tuple[float, float] | None:
    try:
        root = ElementTree.fromstring(xml.rstrip("\0 \r\n\t").encode())
    except ElementTree.ParseError:
        return None
    for element in root.iter():
        if element.tag.endswith("}Pixels") or element.tag == "Pixels":
            return mpp_of_pixels(element)
    return None


def mpp_of_pixels(pixels: ElementTree.Element) -> tuple[float, float] | None:
    """Read the scale of OME's element Pixels; µm where no unit is said."""
    values = []
    for axis in "XY":
        value = number(pixels.get(f"PhysicalSize{axis}"))
        um = _UM_PER_UNIT.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        if value is None or um is None or value <= 0:
            return None
        values.append(value * um)
    return values[0], values[1]
