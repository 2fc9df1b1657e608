"""The first directory of a TIFF file: what must be known before a library is chosen to read it."""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.TiffImagePlugin import ImageFileDirectory_v2

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _DESCRIPTION = 256, 257, 258, 259, 262, 270
_ORIENTATION, _SAMPLES, _X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 274, 277, 282, 283, 296
_TILE_WIDTH, _TILE_HEIGHT, _SUB_IMAGES, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 322, 323, 330, 338, 339
# What Pillow's reader of directories raises for damaged ones.
_DAMAGE = (OSError, SyntaxError, ValueError, KeyError, IndexError, TypeError, OverflowError, struct.error)

RGB, PALETTE, CMYK, YCBCR, CIELAB = 2, 3, 5, 6, 8


@dataclass(frozen=True)
class TiffHeader:
    """What a TIFF file says of its first image.

    Parameters
    ----------
    size : width and height, px
    bits : per sample, of each sample
    photometric, compression, orientation : numbers of the TIFF specification
    n_samples : per pixel
    extra_samples : what those beyond the colours are: 0 unknown, 1 and 2 alpha
    sample_formats : 1 unsigned integer, 2 signed, 3 float
    tile : width and height, px; None for strips
    resolution : x and y, pixels per unit; None where it lacks
    resolution_unit : 1 none, 2 inch, 3 cm
    description : free text; in OME-TIFF, XML
    has_sub_images : whether it lists images that belong to it (SubIFDs), such as smaller copies
    """

    size: tuple[int, int]
    bits: tuple[int, ...]
    photometric: int
    compression: int
    orientation: int
    n_samples: int
    extra_samples: tuple[int, ...]
    sample_formats: tuple[int, ...]
    tile: tuple[int, int] | None
    resolution: tuple[float, float] | None
    resolution_unit: int
    description: str
    has_sub_images: bool = False

    @property
    def is_ome(self) -> bool:
        """Whether it is an OME-TIFF."""
        return is_ome(self.description)


def is_ome(description: str) -> bool:
    """Say whether a description is OME-XML."""
    return description.rstrip("\0 \r\n\t").endswith("OME>") and "<OME" in description[:4096]


def is_tiff(path: Path) -> bool:
    """Say whether a file begins as a TIFF file does."""
    try:
        with path.open("rb") as file:
            return file.read(4) in _MAGIC
    except OSError:
        return False


def read_tiff_header(path: Path) -> TiffHeader | None:
    """Read the first directory of a TIFF file; None where there is none that can be read."""
    if not is_tiff(path):
        return None
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a damaged tag is treated as if it were not there
            head = file.read(8)
            if head[2] == 43 or head[3] == 43:
                head += file.read(8)
            tags = ImageFileDirectory_v2(head)
            file.seek(tags.next)
            tags.load(file)
            return _header(tags)
    except _DAMAGE:
        return None


def _header(tags: ImageFileDirectory_v2) -> TiffHeader:
    size = (int(tags[_WIDTH]), int(tags[_HEIGHT]))
    x, y = tags.get(_X_RESOLUTION), tags.get(_Y_RESOLUTION)
    tile = _integers(tags.get(_TILE_WIDTH, ())) + _integers(tags.get(_TILE_HEIGHT, ()))
    text = tags.get(_DESCRIPTION, "")
    return TiffHeader(
        size=size,
        bits=_integers(tags.get(_BITS, 1)),
        photometric=int(tags.get(_PHOTOMETRIC, -1)),
        compression=int(tags.get(_COMPRESSION, 1)),
        orientation=int(tags.get(_ORIENTATION, 1)),
        n_samples=int(tags.get(_SAMPLES, 1)),
        extra_samples=_integers(tags.get(_EXTRA_SAMPLES, ())),
        sample_formats=_integers(tags.get(_SAMPLE_FORMAT, 1)),
        tile=(tile[0], tile[1]) if len(tile) == 2 else None,
        resolution=None if not x or not y else (float(x), float(y)),
        resolution_unit=int(tags.get(_RESOLUTION_UNIT, 2)),
        # Pillow takes it for Latin-1; OME-XML is UTF-8.
        description=text.encode("latin-1", "replace").decode("utf-8", "replace")
        if isinstance(text, str)
        else "",
        has_sub_images=_SUB_IMAGES in tags,
    )


def _integers(value: Any) -> tuple[int, ...]:
    return tuple(int(item) for item in value) if isinstance(value, tuple) else (int(value),)
