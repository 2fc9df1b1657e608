"""Dense predictions as an OME-TIFF that QuPath, napari and Fiji lay over the slide."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np

from stinfer import tiff_extra
from stinfer.contract import F32
from stinfer.errors import SettingError
from stinfer.files import written_beside

if TYPE_CHECKING:
    from types import ModuleType

_TILE_PX = 256
# Channels; viewers list them all.
MAX_GENES = 256
# A plane with a longer side than this gets smaller copies, down to one that has none.
_FLAT_LIMIT_PX = 1024
# Offsets of classic TIFF have 32 bits; what is left is for the directories of a few thousand channels.
_CLASSIC_LIMIT_BYTES = 2**32 - 2**26
_DIRECTORY_BYTES = 1024

_SCHEMA = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
_NAMESPACE = "stinfer.prediction"
_UNSAFE = "[^\u0020-\ud7ff\ue000-\ufffd]"


@dataclass(frozen=True)
class GridImage:
    """Predictions on a square lattice over a slide, a plane of pixels for each gene.

    Pixel (r, c) covers [c, c + 1) x [r, r + 1) times `pitch_um` of the slide, from its upper left corner.

    Parameters
    ----------
    names : genes, one for each plane
    unit : of the values, for example log1p CP10K
    n_rows, n_columns : of pixels; `stinfer.lattice.lay_lattice` counts those that cover a slide
    pitch_um : side of a pixel
    plane : gives the plane of a gene by its index: (n_rows, n_columns), NaN where nothing was predicted;
        asked once for each gene, in order, so that one plane is held at a time

    Raises
    ------
    SettingError
        There is no gene or no pixel, or the pitch is not above 0.
    """

    names: Sequence[str]
    unit: str
    n_rows: int
    n_columns: int
    pitch_um: float
    plane: Callable[[int], F32]

    def __post_init__(self) -> None:
        if len(self.names) < 1 or self.n_rows < 1 or self.n_columns < 1:
            what = f"an image of {len(self.names)} genes x {self.n_rows} x {self.n_columns} pixels is empty"
            raise SettingError(what, "give at least one gene, row and column")
        if not (math.isfinite(self.pitch_um) and self.pitch_um > 0):
            what = f"the image's pitch is {self.pitch_um} µm"
            raise SettingError(what, "give a pitch above 0")


def write_ome_tiff(path: Path, image: GridImage, *, slide_name: str, bank_name: str) -> None:
    """Write a tiled, losslessly compressed float32 OME-TIFF, all or nothing.

    The size of its pixels and its origin, the slide's upper left corner, are what places it: a viewer
    that lays images over each other in µm needs nothing else. Planes of more than 1024 pixels a side
    come with halved copies. The same image gives the same bytes, with the same tifffile and zlib: no
    date, no UUID.

    Parameters
    ----------
    path : of the file; viewers expect a name that ends in ``.ome.tif``
    image : what to write
    slide_name : kept in the file
    bank_name : kept in the file

    Raises
    ------
    ExtraMissingError
        tifffile is not installed.
    OutputWriteError
        The disk is full, or the folder cannot be written.

    References
    ----------
    OME-TIFF specification, 6.0, with its sub-resolutions:
    https://docs.openmicroscopy.org/ome-model/latest/ome-tiff/specification.html
    """
    tifffile = import_tifffile()
    xml = _ome_xml(image, slide_name, bank_name)
    per_cm = 1e4 / image.pitch_um
    common = {
        "tile": (_TILE_PX, _TILE_PX),
        "compression": "adobe_deflate",
        "photometric": "minisblack",
        "resolutionunit": "centimeter",
        "software": False,
        "metadata": None,
    }
    # The file is opened here, since tifffile would keep a failure to close it to itself.
    with (
        written_beside(path) as partial,
        partial.open("r+b") as file,
        tifffile.TiffWriter(
            file, bigtiff=_is_big(image, xml), byteorder="<", ome=False, shaped=False
        ) as tiff,
    ):
        for index in range(len(image.names)):
            levels = list(_levels(_checked(image, index)))
            own = {"subifds": len(levels) - 1, "description": None if index else xml}
            tiff.write(levels[0], resolution=(per_cm, per_cm), **own, **common)
            for k, level in enumerate(levels[1:], start=1):
                resolution = (per_cm / 2**k, per_cm / 2**k)
                tiff.write(level, resolution=resolution, subfiletype=1, **common)


def refuse_impossible_image(n_genes: int, *, is_grid: bool) -> None:
    """Refuse an image that cannot be written, before the hour of encoding.

    Parameters
    ----------
    n_genes : channels it would have
    is_grid : whether the places are those of a grid

    Raises
    ------
    SettingError
        They are not, or there are too many channels.
    ExtraMissingError
        tifffile is not installed.
    """
    if not is_grid:
        what = "--ome-tiff is an image of a grid, and --spots gives places that are none"
        raise SettingError(what, "leave out one of them")
    if n_genes > MAX_GENES:
        what = f"--ome-tiff would have {n_genes} channels, more than {MAX_GENES}"
        raise SettingError(what, "choose genes with --genes")
    import_tifffile()


def import_tifffile() -> ModuleType:
    """Return the module tifffile, loaded on first use; also a check before any long work.

    Raises
    ------
    ExtraMissingError
        It is not installed.
    """
    return tiff_extra.import_tifffile("writing an OME-TIFF", codecs=False)


def _checked(image: GridImage, index: int) -> F32:
    plane = np.ascontiguousarray(image.plane(index), dtype="<f4")
    if plane.shape != (image.n_rows, image.n_columns):
        msg = f"plane {index} has shape {plane.shape}, not {(image.n_rows, image.n_columns)}"
        raise ValueError(msg)
    return plane


def _levels(plane: F32) -> Iterator[F32]:
    """Yield the plane and its halved copies, largest first."""
    yield plane
    while max(plane.shape) > _FLAT_LIMIT_PX:
        plane = _halved(plane)
        yield plane


def _halved(plane: F32) -> F32:
    """Average squares of 2 x 2 pixels, leaving out NaN.

    Parameters
    ----------
    plane : (n_rows, n_columns)

    Returns
    -------
    (n_rows / 2, n_columns / 2), rounded up; NaN where all four are NaN or beyond the edge
    """
    shape = tuple((length + 1) // 2 for length in plane.shape)
    total, count = np.zeros(shape, dtype=np.float64), np.zeros(shape, dtype=np.uint8)
    for row in (0, 1):
        for column in (0, 1):
            quarter = plane[row::2, column::2]
            known = ~np.isnan(quarter)
            inside = np.s_[: quarter.shape[0], : quarter.shape[1]]
            np.add(total[inside], quarter, out=total[inside], where=known)
            count[inside] += known
    mean = np.full(total.shape, np.nan, dtype="<f4")
    np.divide(total, count, out=mean, where=count > 0, casting="same_kind")
    return mean


def _is_big(image: GridImage, xml: bytes) -> bool:
    """Say whether the file could be too long for 32-bit offsets, if nothing could be compressed."""
    n_bytes = len(xml)
    n_rows, n_columns, more = image.n_rows, image.n_columns, True
    while more:
        n_tiles = math.ceil(n_rows / _TILE_PX) * math.ceil(n_columns / _TILE_PX)
        # A tile takes its bytes, some more where they cannot be compressed, an offset and a length.
        n_bytes += len(image.names) * (n_tiles * (_TILE_PX**2 * 4 + 256) + _DIRECTORY_BYTES)
        more = max(n_rows, n_columns) > _FLAT_LIMIT_PX
        n_rows, n_columns = math.ceil(n_rows / 2), math.ceil(n_columns / 2)
    return n_bytes > _CLASSIC_LIMIT_BYTES


def _ome_xml(image: GridImage, slide_name: str, bank_name: str) -> bytes:
    """Describe the image in OME-XML of 2016-06, whatever the names hold.

    Bio-Formats, below QuPath and Fiji, turns every ``&#`` into a blank and a ``#`` before it parses, and
    gives up the whole description at a unit of `` #181;m``: hence UTF-8 and no numeric references.
    """
    root = ElementTree.Element("OME", {"xmlns": _SCHEMA, "Creator": "stinfer"})
    # With a word before it: QuPath takes an image called "label" or "macro" for a picture of the glass.
    element = _add(root, "Image", ID="Image:0", Name=f"stinfer {slide_name}")
    _add(element, "Description").text = _printable(
        f"Gene expression predicted by stinfer from slide {slide_name} with bank {bank_name}. "
        f"Values in {image.unit}; NaN where nothing was predicted. "
        f"Pixels of {float(image.pitch_um)} µm, from the slide's upper left corner."
    )
    pitch = repr(float(image.pitch_um))
    pixels = _add(
        element,
        "Pixels",
        ID="Pixels:0",
        DimensionOrder="XYCZT",
        Type="float",
        BigEndian="false",
        SizeX=str(image.n_columns),
        SizeY=str(image.n_rows),
        SizeC=str(len(image.names)),
        SizeZ="1",
        SizeT="1",
        PhysicalSizeX=pitch,
        PhysicalSizeXUnit="µm",
        PhysicalSizeY=pitch,
        PhysicalSizeYUnit="µm",
    )
    for index, name in enumerate(image.names):
        _add(pixels, "Channel", ID=f"Channel:0:{index}", Name=name, SamplesPerPixel="1")
    _add(pixels, "TiffData", IFD="0", PlaneCount=str(len(image.names)))
    origin = {"PositionX": "0.0", "PositionXUnit": "µm", "PositionY": "0.0", "PositionYUnit": "µm"}
    for index in range(len(image.names)):
        _add(pixels, "Plane", TheZ="0", TheT="0", TheC=str(index), **origin)
    _add(element, "AnnotationRef", ID="Annotation:0")
    annotations = _add(root, "StructuredAnnotations")
    annotation = _add(annotations, "MapAnnotation", ID="Annotation:0", Namespace=_NAMESPACE)
    values = _add(annotation, "Value")
    said = {"slide": slide_name, "bank": bank_name, "unit": image.unit, "pitch_um": pitch}
    for key, value in said.items():
        _add(values, "M", K=key).text = _printable(value)
    body: str = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>{body}'.encode()


def _add(parent: ElementTree.Element, tag: str, **attributes: str) -> ElementTree.Element:
    safe = {name: _printable(value) for name, value in attributes.items()}
    return ElementTree.SubElement(parent, tag, safe)


def _printable(text: str) -> str:
    """Replace what XML or Bio-Formats cannot hold: control characters, halves of pairs, beyond 16 bits."""
    return re.sub(_UNSAFE, "\ufffd", text)
