"""Refuse ONNX files that compute with anything beside themselves.

ONNX Runtime fetches external weights from the working folder, and runs operators of any domain it
knows, also for a model given as bytes. The hash of such a file does not say what it computes. The
runtime has no onnx package, so the few fields that matter are read from the protobuf wire format.

References
----------
Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from collections.abc import Iterator

from stinfer.protobuf import Field, iter_fields

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
# Of a model: what it says of itself; a name and its text.
_METADATA = 14


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
    for kind, field in _walk(model):
        number, value, _ = field
        if kind == "tensor" and ((number == _EXTERNAL_DATA) or (number == _DATA_LOCATION and value != 0)):
            return "it keeps weights in another file"
        if not isinstance(value, memoryview):
            continue
        if _DOMAIN_FIELD.get(kind) == number and bytes(value) not in _STANDARD_DOMAINS:
            return f"it uses operators of {bytes(value[:40]).decode(errors='replace')!r}, not of ONNX alone"
        if kind == "model" and number == _FUNCTION:
            return "it defines functions of its own"
    return None


def uses_operator(model: bytes, name: str) -> bool:
    """Say whether a model has an operator of some name anywhere; raises as `find_forbidden`."""
    return any(
        kind == "node" and field.number == _OPERATOR and field.content == name.encode()
        for kind, field in _walk(model)
    )


def read_metadata(model: bytes) -> dict[str, str]:
    """Return what a model says of itself, name by name; raises as `find_forbidden`."""
    found = {}
    for field in iter_fields(memoryview(model)):
        if field.number == _METADATA:
            entry = {part.number: str(part.content, "utf-8") for part in iter_fields(field.content)}
            found[entry.get(1, "")] = entry.get(2, "")
    return found


def _walk(model: bytes) -> Iterator[tuple[str, Field]]:
    """Give every field of every message that matters, and the kind of message."""
    pending = [("model", memoryview(model))]
    while pending:
        kind, message = pending.pop()
        for field in iter_fields(message):
            yield kind, field
            child = _CHILDREN[kind].get(field.number)
            if child is not None and isinstance(field.value, memoryview):
                pending.append((child, field.value))
