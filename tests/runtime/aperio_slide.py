"""An Aperio slide of the board with patient fields, a label and a macro image, written without packages."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image

BOARD = Path(__file__).parents[1] / "data" / "board.png"
TILE_PX = 256
# Colours of the label and the macro image; nothing of the board is near them.
LABEL, MACRO = (0, 255, 0), (255, 0, 0)
PATIENT = {
    "Filename": "OBRIEN_MARY_1957",
    "Patient Name": "O'Brien Mary",
    "PatientID": "MRN-00713355",
    "Date of Birth": "1957-03-14",
    "Barcode": "S24-991234;A1;HE",
    "Accession": "ACC7788990",
    "User": "dr.whitcombe",
    "Date": "11/22/24",
    "ScanScope ID": "SS1302XXYY",
}
SECRETS = [*PATIENT.values(), "XMPSECRET", "LABELTEXT"]

_HEAD = "Aperio Image Library v12.0.15"
_XMP = b"<x>XMPSECRET</x>"


class _Tiff:
    """A TIFF file as it grows: little-endian, uncompressed RGB of 8 bits."""

    def __init__(self) -> None:
        self.data = bytearray(b"II*\0" + bytes(4))
        self._link = 4

    def add(self, raw: bytes) -> int:
        """Append bytes; return where they are."""
        self.data += bytes(len(self.data) % 2) + raw
        return len(self.data) - len(raw)

    def numbers(self, values: list[int]) -> int:
        """Return what a tag of 32-bit numbers holds: the number, or where several are."""
        return values[0] if len(values) == 1 else self.add(struct.pack(f"<{len(values)}I", *values))

    def directory(
        self, size: tuple[int, int], text: str, pieces: list[bytes], *, tiled: bool, kind: int
    ) -> None:
        """Append an image."""
        description = text.encode() + b"\0"
        offsets = [self.add(piece) for piece in pieces]
        n = len(pieces)
        where, lengths = self.numbers(offsets), self.numbers([len(piece) for piece in pieces])
        tags = [
            (254, 4, 1, kind), (256, 4, 1, size[0]), (257, 4, 1, size[1]),
            (258, 3, 3, self.add(struct.pack("<3H", 8, 8, 8))), (259, 3, 1, 1), (262, 3, 1, 2),
            (270, 2, len(description), self.add(description)), (277, 3, 1, 3), (284, 3, 1, 1),
            (700, 1, len(_XMP), self.add(_XMP)),
        ]  # fmt: skip
        if tiled:
            tags += [(322, 4, 1, TILE_PX), (323, 4, 1, TILE_PX), (324, 4, n, where), (325, 4, n, lengths)]
        else:
            tags += [(273, 4, n, where), (278, 4, 1, size[1]), (279, 4, n, lengths)]
        entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
        at = self.add(struct.pack("<H", len(tags)) + entries + bytes(4))
        struct.pack_into("<I", self.data, self._link, at)
        self._link = len(self.data) - 4


def write_svs(path: Path) -> Path:
    """Write it: tiles of the slide, then a thumbnail, a label and a macro image, as OpenSlide tells them."""
    with Image.open(BOARD) as board:
        pixels = np.asarray(board.convert("RGB"))
    height, width = pixels.shape[:2]
    padded = np.full((-height % TILE_PX + height, -width % TILE_PX + width, 3), 255, dtype=np.uint8)
    padded[:height, :width] = pixels
    tiles = [
        padded[top : top + TILE_PX, left : left + TILE_PX].tobytes()
        for top in range(0, height, TILE_PX)
        for left in range(0, width, TILE_PX)
    ]
    fields = "|".join(f"{key} = {value}" for key, value in PATIENT.items())
    size = f"{width}x{height}"
    tiff = _Tiff()
    text = f"{_HEAD} \r\n{size} [0,0 {size}] ({TILE_PX}x{TILE_PX})|AppMag = 2|MPP = 5.0|{fields}"
    tiff.directory((width, height), text, tiles, tiled=True, kind=0)
    thumbnail = pixels[:64, :64].tobytes()
    tiff.directory((64, 64), f"{_HEAD} \r\n{size} -> 64x64 - |{fields}", [thumbnail], tiled=False, kind=0)
    for name, color, kind in (("label", LABEL, 1), ("macro", MACRO, 9)):
        text = f"{_HEAD} \r\n{name} 64x64 LABELTEXT"
        tiff.directory((64, 64), text, [bytes(color) * 64 * 64], tiled=False, kind=kind)
    path.write_bytes(bytes(tiff.data))
    return path
