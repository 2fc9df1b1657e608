"""Flat images, which Pillow decodes whole."""

from __future__ import annotations

import contextlib
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from stinfer.errors import SlideError, SlideTooLargeError, SlideUnreadableError, first_line
from stinfer.slide_scale import RESOLUTION_TAG, mpp_from_resolution
from stinfer.slide_source import FLAT_LIMIT_PX, Level, Opened, swaps_axes

# An image of so many pixels has a second level, of the means of squares of so many a side.
_REDUCED_FROM_PX = 4_000_000
_REDUCTION = 4
_FLAT_FORMATS = ("JPEG", "PNG", "TIFF")
# What Pillow raises for damaged data depends on the format and on where the damage is.
_DAMAGE = (
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
_INCH = 2
# How other files begin that are taken for slides: bytes, where they stand, and what it is.
_OTHERS = (
    (b"BM", 0, "a BMP image"),
    (b"GIF8", 0, "a GIF image"),
    (b"WEBP", 8, "a WebP image"),
    (b"\0\0\0\x0cjP  ", 0, "a JPEG 2000 image without a slide's container"),
    (b"ftypavif", 4, "an AVIF image"),
    (b"ftyphei", 4, "an HEIF image"),
    (b"8BPS", 0, "a Photoshop document"),
    (b"ZISRAWFILE", 0, "a Zeiss CZI file of a kind that OpenSlide does not read"),
    (b"%PDF", 0, "a PDF document"),
    (b"PK\x03\x04", 0, "a zip archive: unpack it first"),
    (b"\x1f\x8b", 0, "a gzip archive: unpack it first"),
    (b"\x89HDF", 0, "an HDF5 file, and no map that stinfer wrote"),
    (b"DICM", 128, "a DICOM file, but no slide that OpenSlide knows"),
)


class FlatSource:
    """An image that is decoded whole; a large one has a level of means, to be seen whole from.

    Parameters
    ----------
    image : RGB
    """

    def __init__(self, image: Image.Image) -> None:
        self._images = [image]
        self.levels: tuple[Level, ...] = (Level(image.size, (1.0, 1.0)),)
        if image.width * image.height >= _REDUCED_FROM_PX:
            reduced = (-(-image.width // _REDUCTION), -(-image.height // _REDUCTION))
            self.levels += (Level(reduced, (float(_REDUCTION), float(_REDUCTION))),)

    def read_level(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> tuple[Image.Image, tuple[float, float]]:
        """Cut the box."""
        if level == len(self._images):
            self._images.append(self._images[0].reduce(_REDUCTION))
        return self._images[level].crop((x, y, x + width, y + height)), (float(x), float(y))

    def close(self) -> None:
        """Let go of the pixels."""
        for image in self._images:
            image.close()


def open_flat(path: Path) -> Opened:
    """Decode a flat image; RGB on white, upright, and with its scale where it has a resolution tag.

    Raises
    ------
    SlideUnreadableError
        It is no image of the kinds that are read, is damaged, or has no colour.
    SlideTooLargeError
        It has more pixels than are decoded at once.
    """
    remarks = []
    try:
        with warnings.catch_warnings(record=True) as said, _opened_by_pillow(path) as image:
            warnings.simplefilter("always")
            if image.width * image.height > FLAT_LIMIT_PX:
                raise SlideTooLargeError(path, image.width, image.height, FLAT_LIMIT_PX)
            if image.mode not in _COLOR_MODES:
                raise SlideUnreadableError(path, no_color(image.mode))
            if _has_16_bits(image):
                remarks.append("the slide's 16-bit channels are reduced to 8 bits: the upper 8 are kept")
            n_images = int(getattr(image, "n_frames", 1))
            if n_images > 1:
                remarks.append(f"the slide's file holds {n_images} images; the first is read")
                image.seek(0)
            dpi = _resolution_dpi(image)
            turned = swaps_axes(image.getexif().get(_ORIENTATION, 1))
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode == "RGBA" or "transparency" in image.info:
                clear = image.convert("RGBA")
                flat = Image.new("RGB", clear.size, "#ffffff")
                flat.paste(clear, mask=clear.getchannel("A"))
            else:
                # Decoded now, since its file is closed with this block.
                image.load()
                flat = image if image.mode == "RGB" else image.convert("RGB")
        remarks += sorted({f"the slide's file is damaged: {w.message}" for w in said if _tells(w)})
    except UnidentifiedImageError as error:
        raise SlideUnreadableError(path, what_it_is(path)) from error
    except _DAMAGE as error:
        if isinstance(error, SlideError):
            raise
        raise SlideUnreadableError(path, first_line(error)) from error
    mpp = None if dpi is None else mpp_from_resolution(dpi, _INCH)
    if mpp is not None and turned:
        mpp = mpp[::-1]
    return Opened(FlatSource(flat), mpp, RESOLUTION_TAG, "pillow", remarks=tuple(remarks))


def no_color(kind: str) -> str:
    """Say that pixels are of a kind that is no H&E."""
    return f"it has pixels of kind {kind!r}; H&E needs colour, red, green and blue"


def what_it_is(path: Path) -> str:
    """Say what a file is that no library reads, as far as its first bytes tell."""
    try:
        with path.open("rb") as file:
            head = file.read(132)
    except OSError as error:
        return first_line(error)
    if not head:
        return "it is empty"
    for magic, at, kind in _OTHERS:
        if head[at : at + len(magic)] == magic:
            return f"it is {kind}"
    return "it is no image that OpenSlide or Pillow knows"


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


def _has_16_bits(image: Image.Image) -> bool:
    """Say whether Pillow, which has no colours of 16 bits, is about to take their upper halves."""
    return any(";16" in str(tile.args) for tile in getattr(image, "tile", ()))


def _tells(warning: warnings.WarningMessage) -> bool:
    return issubclass(warning.category, UserWarning)


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
