"""TIFF pyramids of JPEG tiles, written tag by tag: any colour, sampling, byte order; with tables or not."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image

RGB, YCBCR = 2, 6
APERIO = "Aperio Image Library v12.0.15 \r\n400x300 [0,0 400x300] (64x64) JPEG/RGB Q=80|AppMag = 20|MPP = 0.5"
_DHT, _DQT, _SOS, _ADOBE = 0xC4, 0xDB, 0xDA, 0xEE


def segments(jpeg: bytes) -> list[tuple[int, bytes]]:
    """List a JPEG's markers, each with all up to the next; the last is the scan with its data."""
    found, at = [], 2
    while jpeg[at + 1] != _SOS:
        length = 2 + struct.unpack_from(">H", jpeg, at + 2)[0]
        found.append((jpeg[at + 1], jpeg[at : at + length]))
        at += length
    return [*found, (_SOS, jpeg[at:])]


def jpeg_tile(pixels: np.ndarray, photometric: int, *, sampling: str, restart: int) -> bytes:
    """Compress a tile; what the JPEG says of its colours is left out."""
    file = io.BytesIO()
    options = {"keep_rgb": True} if photometric == RGB else {"subsampling": sampling}
    Image.fromarray(pixels).save(file, "JPEG", quality=80, restart_marker_blocks=restart, **options)
    parts = segments(file.getvalue())
    return b"\xff\xd8" + b"".join(part for marker, part in parts if marker not in (_ADOBE, 0xE0))


class JpegTiff:
    """A file as it grows.

    Parameters
    ----------
    order : ``<`` or ``>``
    big : whether it is a BigTIFF
    """

    def __init__(self, order: str = "<", *, big: bool = False) -> None:
        self.order, self.big = order, big
        mark = b"II" if order == "<" else b"MM"
        self.data = bytearray(mark + struct.pack(order + ("HHHQ" if big else "HI"), *self._head()))
        self._link = len(self.data) - (8 if big else 4)

    def _head(self) -> tuple[int, ...]:
        return (43, 8, 0, 0) if self.big else (42, 0)

    def add(self, raw: bytes) -> int:
        """Append bytes; return where they are."""
        self.data += bytes(len(self.data) % 2) + raw
        return len(self.data) - len(raw)

    def directory(self, tags: dict[int, tuple[int, bytes | list[int]]]) -> None:
        """Append an image: of each tag its type, and its bytes or numbers."""
        address = "Q" if self.big else "I"
        wide = struct.calcsize(address)
        entries = b""
        for tag, (kind, value) in sorted(tags.items()):
            form = {1: "B", 2: "B", 3: "H", 4: "I", 7: "B", 16: "Q"}[kind]
            raw = struct.pack(f"{self.order}{len(value)}{form}", *value)
            if len(raw) > wide:
                raw = struct.pack(self.order + address, self.add(raw))
            entries += struct.pack(self.order + "HH" + address, tag, kind, len(value)) + raw.ljust(
                wide, b"\0"
            )
        at = self.add(struct.pack(self.order + ("Q" if self.big else "H"), len(tags)) + entries + bytes(wide))
        struct.pack_into(self.order + address, self.data, self._link, at)
        self._link = len(self.data) - wide

    def image(
        self,
        pixels: np.ndarray,
        *,
        tile: tuple[int, int] = (64, 64),
        photometric: int = YCBCR,
        sampling: str = "4:2:0",
        tables: bool = False,
        restart: int = 0,
        missing: tuple[int, ...] = (),
        reduced: bool = False,
        description: str = "",
        more: dict[int, tuple[int, bytes | list[int]]] | None = None,
    ) -> None:
        """Append an image in tiles; those at its edges go on beyond it.

        Parameters
        ----------
        pixels : (height, width, 3)
        tile : width and height
        tables : whether codes and quantization stand before all tiles, as Aperio has them
        restart : blocks after which codes begin anew; 0 for never
        missing : tiles of no bytes
        reduced : whether it says that it is a smaller copy
        more : tags beside these, or in their place
        """
        height, width = pixels.shape[:2]
        padded = np.pad(pixels, ((0, -height % tile[1]), (0, -width % tile[0]), (0, 0)), mode="edge")
        offsets, sizes, common = [], [], b""
        for top in range(0, height, tile[1]):
            for left in range(0, width, tile[0]):
                part = padded[top : top + tile[1], left : left + tile[0]]
                data = jpeg_tile(part, photometric, sampling=sampling, restart=restart)
                if tables:
                    parts = segments(data)
                    common = b"".join(raw for marker, raw in parts if marker in (_DHT, _DQT))
                    data = b"\xff\xd8" + b"".join(raw for marker, raw in parts if marker not in (_DHT, _DQT))
                if len(offsets) in missing:
                    data = b""
                offsets.append(self.add(data) if data else 0)
                sizes.append(len(data))
        many = 16 if self.big else 4
        tags: dict[int, tuple[int, bytes | list[int]]] = {
            254: (4, [int(reduced)]), 256: (4, [width]), 257: (4, [height]), 258: (3, [8, 8, 8]),
            259: (3, [7]), 262: (3, [photometric]), 277: (3, [3]), 284: (3, [1]), 322: (3, [tile[0]]),
            323: (3, [tile[1]]), 324: (many, offsets), 325: (4, sizes),
        }  # fmt: skip
        if common:
            tags[347] = (7, b"\xff\xd8" + common + b"\xff\xd9")
        if description:
            tags[270] = (2, description.encode() + b"\0")
        if photometric == YCBCR:
            tags[530] = (3, {"4:2:0": [2, 2], "4:2:2": [2, 1], "4:4:4": [1, 1]}[sampling])
        self.directory(tags | (more or {}))

    def write(self, path: Path) -> Path:
        """Write the file."""
        path.write_bytes(self.data)
        return path


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Draw soft colours with sharp edges, so that sampling and block borders show."""
    rng = np.random.default_rng(seed)
    small = rng.integers(90, 250, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    soft = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).copy()
    soft[::37, :] = (120, 20, 90)
    soft[:, ::29] = (40, 30, 160)
    return soft
