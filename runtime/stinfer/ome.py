"""What an OME-TIFF's XML says of its pictures: which of its planes make up the slide."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from xml.etree import ElementTree

from stinfer.slide_scale import mpp_of_pixels

# More axes of more planes than this are no slide's.
_MAX_PLANES = 100_000
_RGB_NAMES = (("red", "green", "blue"), ("r", "g", "b"))
# Red, green and blue as OME writes colours: RGBA in a signed 32-bit number.
_RGB_COLORS = (("-16776961", "16711935", "65535"),)


@dataclass(frozen=True)
class OmeImage:
    """The largest picture of an OME-TIFF.

    Parameters
    ----------
    size : width and height, px
    mpp : µm per pixel, x and y; None where it is not said
    planes : directories of the file that hold its channels, in order, of the plane and time that are read
    significant_bits : of a sample, as it says; None where it does not
    remarks : what was chosen or guessed
    """

    size: tuple[int, int]
    mpp: tuple[float, float] | None
    planes: tuple[int, ...]
    significant_bits: int | None
    remarks: tuple[str, ...]


def read_ome(xml: str) -> OmeImage:
    """Find the largest picture, and its planes in the middle of the stack at the first time.

    Parameters
    ----------
    xml : the file's first description

    Raises
    ------
    ValueError
        It cannot be read so; the text says why.
    """
    try:
        root = ElementTree.fromstring(xml.rstrip("\0 \r\n\t").encode())
    except ElementTree.ParseError as error:
        msg = f"its OME-XML is damaged ({error})"
        raise ValueError(msg) from error
    found = [element for element in root.iter() if _tag(element) == "Pixels"]
    if not found:
        msg = "its OME-XML describes no picture in this file"
        raise ValueError(msg)
    pixels = max(found, key=lambda element: _count(element, "SizeX") * _count(element, "SizeY"))
    remarks = []
    if len(found) > 1:
        remarks.append(f"the slide's file holds {len(found)} pictures; the largest is read")
    sizes = {axis: _count(pixels, f"Size{axis}") for axis in "CZT"}
    channels = [element for element in pixels if _tag(element) == "Channel"]
    per_plane = max((_count(element, "SamplesPerPixel") for element in channels), default=1)
    if per_plane > 1:
        sizes["C"] = max(sizes["C"] // per_plane, 1)
    z = sizes["Z"] // 2
    if sizes["Z"] > 1:
        remarks.append(f"the slide is a stack of {sizes['Z']} planes; the middle one, {z + 1}, is read")
    if sizes["T"] > 1:
        remarks.append(f"the slide holds {sizes['T']} times; the first is read")
    if sizes["C"] > 1:
        remarks += _check_channels(channels, sizes["C"])
    places = _places(pixels, sizes)
    planes = [places.get((c, z, 0)) for c in range(sizes["C"])]
    if None in planes:
        msg = "its OME-XML lacks planes, or they lie in other files"
        raise ValueError(msg)
    bits = pixels.get("SignificantBits", "")
    return OmeImage(
        size=(_count(pixels, "SizeX"), _count(pixels, "SizeY")),
        mpp=mpp_of_pixels(pixels),
        planes=tuple(plane for plane in planes if plane is not None),
        significant_bits=int(bits) if bits.isdecimal() else None,
        remarks=tuple(remarks),
    )


def _check_channels(channels: list[ElementTree.Element], n_channels: int) -> list[str]:
    names = tuple(element.get("Name", "").strip().lower() for element in channels)
    colors = tuple(element.get("Color", "") for element in channels)
    if n_channels != 3:
        listed = ", ".join(filter(None, names)) or "without names"
        msg = f"it has {n_channels} channels ({listed}), not a colour picture's 3"
        raise ValueError(msg)
    if names in _RGB_NAMES or colors in _RGB_COLORS:
        return []
    if any(names):
        msg = f"its channels are {', '.join(names)}, not red, green and blue"
        raise ValueError(msg)
    return ["the slide's three channels have no names; they are taken for red, green and blue"]


def _places(pixels: ElementTree.Element, sizes: dict[str, int]) -> dict[tuple[int, int, int], int]:
    """Say which directory of the file holds each plane, by channel, depth and time."""
    if sizes["C"] * sizes["Z"] * sizes["T"] > _MAX_PLANES:
        msg = f"its OME-XML describes {sizes['C'] * sizes['Z'] * sizes['T']} planes"
        raise ValueError(msg)
    # The first of the order runs fastest; it always begins with XY.
    order = pixels.get("DimensionOrder", "XYCZT")[2:]
    if sorted(order) != ["C", "T", "Z"]:
        msg = f"its OME-XML has the order of dimensions {order!r}"
        raise ValueError(msg)
    sequence = [
        dict(zip(order[::-1], index, strict=True))
        for index in itertools.product(*(range(sizes[axis]) for axis in order[::-1]))
    ]
    names = [(at["C"], at["Z"], at["T"]) for at in sequence]
    position = {name: n for n, name in enumerate(names)}
    places: dict[tuple[int, int, int], int] = {}
    blocks = [element for element in pixels if _tag(element) == "TiffData"]
    if len(blocks) > len(names):
        msg = f"its OME-XML has {len(blocks)} elements TiffData for {len(names)} planes"
        raise ValueError(msg)
    files = {child.get("FileName") for block in blocks for child in block if _tag(child) == "UUID"}
    if len(files) > 1:
        msg = f"its planes lie in {len(files)} files"
        raise ValueError(msg)
    for block in blocks:
        start = position.get((_index(block, "FirstC"), _index(block, "FirstZ"), _index(block, "FirstT")))
        if start is None:
            continue
        ifd = _index(block, "IFD")
        default = 1 if block.get("IFD") is not None else len(names)
        n_planes = _index(block, "PlaneCount", _index(block, "NumPlanes", default))
        for step, name in enumerate(names[start : start + n_planes]):
            places[name] = ifd + step
    return places


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _count(element: ElementTree.Element, name: str) -> int:
    return max(_index(element, name, 1), 1)


def _index(element: ElementTree.Element, name: str, default: int = 0) -> int:
    text = element.get(name)
    if text is None:
        return default
    if not text.isdecimal():
        msg = f"its OME-XML has {name} {text!r}"
        raise ValueError(msg)
    return int(text)
