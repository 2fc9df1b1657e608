"""Write slides of any size, tile by tile: what they take in memory is one tile.

As a script: ``python tests/contract/big_slide.py OUT.tif SIDE_PX``.
"""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

TILE_PX = 256
UM_PER_PX = 0.25
# The side of the square of tissue in the middle, as a part of the slide's: the rest is glass.
TISSUE_PART = 0.4
_N_TILES = 64
_SMALLEST_PX = 600
_SHORT, _LONG, _RATIONAL = 3, 4, 5


def write_slide(path: Path, side_px: int, *, tissue_part: float = TISSUE_PART, seed: int = 0) -> None:
    """Write a square pyramidal TIFF of JPEG tiles, a square of tissue on glass.

    Tissue is made of 64 tiles of noise in different stains, in an order that the seed says.
    """
    rng = np.random.default_rng(seed)
    glass = _jpeg(np.full((TILE_PX, TILE_PX, 3), 244, dtype=np.uint8))
    tissue = [_jpeg(tile) for tile in _tissue_tiles(rng)]
    with path.open("wb") as file:
        file.write(struct.pack("<2sHI", b"II", 42, 0))
        link, size_px, um_per_px = 4, side_px, UM_PER_PX
        while True:
            offsets, sizes = [], []
            for on_tissue in _tiles(size_px, tissue_part):
                tile = tissue[rng.integers(_N_TILES)] if on_tissue else glass
                offsets.append(file.tell())
                sizes.append(len(tile))
                file.write(tile)
            link = _write_directory(file, link, _tags(size_px, um_per_px, offsets, sizes))
            if size_px < 2 * _SMALLEST_PX:
                return
            size_px, um_per_px = size_px // 2, 2 * um_per_px


def _tissue_tiles(rng: np.random.Generator) -> Iterator[np.ndarray]:
    eosin, hematoxylin = np.array([216, 120, 170]), np.array([110, 70, 150])
    for _ in range(_N_TILES):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((TILE_PX, TILE_PX), Image.Resampling.BICUBIC))[..., None] / 255
        mixed = eosin + (hematoxylin - eosin) * smooth * rng.uniform(0.3, 1.0)
        yield np.clip(mixed + rng.normal(0, 8, (TILE_PX, TILE_PX, 1)), 0, 255).astype(np.uint8)


def _jpeg(pixels: np.ndarray) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG", quality=80, subsampling="4:2:0")
    return encoded.getvalue()


def _tiles(size_px: int, tissue_part: float) -> Iterator[bool]:
    """Say of each tile, row by row, whether its middle is tissue."""
    low, high = size_px * (1 - tissue_part) / 2, size_px * (1 + tissue_part) / 2
    middles = np.arange(0, size_px, TILE_PX) + TILE_PX / 2
    inside = (middles >= low) & (middles < high)
    yield from (inside[:, None] & inside[None, :]).ravel().tolist()


def _tags(size_px: int, um_per_px: float, offsets: list[int], sizes: list[int]) -> list[tuple]:
    resolution = (round(1e7 / um_per_px), 1000)
    return [
        (254, _LONG, [0 if um_per_px == UM_PER_PX else 1]),
        (256, _LONG, [size_px]),
        (257, _LONG, [size_px]),
        (258, _SHORT, [8, 8, 8]),
        (259, _SHORT, [7]),  # JPEG
        (262, _SHORT, [6]),  # YCbCr
        (277, _SHORT, [3]),
        (282, _RATIONAL, resolution),
        (283, _RATIONAL, resolution),
        (284, _SHORT, [1]),
        (296, _SHORT, [3]),  # per cm
        (322, _LONG, [TILE_PX]),
        (323, _LONG, [TILE_PX]),
        (324, _LONG, offsets),
        (325, _LONG, sizes),
        (530, _SHORT, [2, 2]),
    ]


def _write_directory(file: io.BufferedWriter, link: int, tags: list[tuple]) -> int:
    file.write(b"\0" * (file.tell() % 2))
    start = file.tell()
    entries, values = b"", b""
    for number, kind, content in tags:
        packed = struct.pack(f"<{len(content)}{'H' if kind == _SHORT else 'I'}", *content)
        if len(packed) > 4:
            place = start + 2 + 12 * len(tags) + 4 + len(values)
            values += packed + b"\0" * (len(packed) % 2)
            packed = struct.pack("<I", place)
        count = len(content) // 2 if kind == _RATIONAL else len(content)
        entries += struct.pack("<HHI4s", number, kind, count, packed)
    file.write(struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0) + values)
    file.seek(link)
    file.write(struct.pack("<I", start))
    file.seek(0, io.SEEK_END)
    return start + 2 + 12 * len(tags)


if __name__ == "__main__":
    write_slide(Path(sys.argv[1]), int(sys.argv[2]))
