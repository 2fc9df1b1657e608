"""Refuse ONNX files that compute with anything beside themselves.

ONNX Runtime fetches external weights from the working folder, and runs operators of any domain it
knows, also for a model given as bytes. The hash of such a file does not say what it computes. The
runtime has no onnx package, so the few fields that matter are read from the protobuf wire format.

References
----------
Wire format: https://protobuf.dev/programming-guides/encoding/
Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from collections.abc import Iterator

_STANDARD_DOMAINS = (b"", b"ai.onnx")

# For each message: which fields are messages, and of what kind.
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 8: "opset"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
    "opset": {},
}
# Where a message names the domain of its operators.
_DOMAIN_FIELD = {"opset": 1, "node": 7}
# Of a node: what it computes.
_OPERATOR = 4
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
# Of a model: operators that are made of others, and may bear the name of one of ONNX's.
_FUNCTION = 25
# Protobuf keeps 32 bits of a field's key: a longer one would be another field there than here.
_MAX_KEY = (1 << 32) - 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def find_forbidden(model: bytes) -> str | None:
    """Say what in a model is not allowed, or None where nothing is.

    Parameters
    ----------
    model : bytes of the ONNX file

    Raises
    ------
    ValueError
        The bytes are no protobuf message.
    """
    for kind, field, value in _walk(model):
        if kind == "tensor" and ((field == _EXTERNAL_DATA) or (field == _DATA_LOCATION and value != 0)):
            return "it keeps weights in another file"
        if not isinstance(value, memoryview):
            continue
        if _DOMAIN_FIELD.get(kind) == field and bytes(value) not in _STANDARD_DOMAINS:
            return f"it uses operators of {bytes(value[:40]).decode(errors='replace')!r}, not of ONNX alone"
        if kind == "model" and field == _FUNCTION:
            return "it defines functions of its own"
    return None


def uses_operator(model: bytes, name: str) -> bool:
    """Say whether a model has an operator of some name anywhere; raises as `find_forbidden`."""
    return any(
        kind == "node" and field == _OPERATOR and isinstance(value, memoryview) and value == name.encode()
        for kind, field, value in _walk(model)
    )


def _walk(model: bytes) -> Iterator[tuple[str, int, int | memoryview]]:
    """Give every field of every message that matters: the kind of message, number and value."""
    pending = [("model", memoryview(model))]
    while pending:
        kind, message = pending.pop()
        for field, value in _fields(message):
            yield kind, field, value
            child = _CHILDREN[kind].get(field)
            if child is not None and isinstance(value, memoryview):
                pending.append((child, value))


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Walk the fields of one message: number, and value as an integer or as bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        field, wire = key >> 3, key & 7
        if field == 0 or key > _MAX_KEY:
            msg = f"it has a field of number {field}"
            raise ValueError(msg)
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield field, value
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
        yield field, message[at : at + length]
        at += length


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
