"""The wire format of protobuf, as far as ONNX files need it: fields of a message, one after the other.

References
----------
https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

# Protobuf keeps 32 bits of a field's key: a longer one would be another field there than here.
_MAX_KEY = (1 << 32) - 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Field(NamedTuple):
    """A field of a message.

    Parameters
    ----------
    number : of the field
    value : an integer, or the bytes of a text, a message or a fixed number
    whole : all its bytes, with its key
    """

    number: int
    value: int | memoryview
    whole: memoryview

    @property
    def content(self) -> memoryview:
        """The bytes of a text or a message; none of an integer."""
        return self.value if isinstance(self.value, memoryview) else memoryview(b"")


def iter_fields(message: memoryview) -> Iterator[Field]:
    """Walk the fields of one message.

    Raises
    ------
    ValueError
        The bytes are no protobuf message.
    """
    at = 0
    while at < len(message):
        start = at
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if number == 0 or key > _MAX_KEY:
            msg = f"it has a field of number {number}"
            raise ValueError(msg)
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield Field(number, value, message[start:at])
            continue
        if wire == _BYTES:
            length, at = _varint(message, at)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            msg = f"wire type {wire} is none of protobuf's"
            raise ValueError(msg)
        if at + length > len(message):
            msg = "it is cut short"
            raise ValueError(msg)
        yield Field(number, message[at : at + length], message[start : at + length])
        at += length


def message_field(number: int, parts: Sequence[memoryview]) -> list[bytes | memoryview]:
    """Return the pieces of a field that holds a message, from those of its own fields."""
    key = _as_varint(number << 3 | _BYTES)
    return [key, _as_varint(sum(map(len, parts))), *parts]


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Read a base-128 number; return it and where the next field starts."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            msg = "it is cut short"
            raise ValueError(msg)
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    msg = "a number in it is too long"
    raise ValueError(msg)


def _as_varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
