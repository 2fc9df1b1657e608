"""Leave out of an ONNX model what only outputs need that are not asked for.

ONNX Runtime runs every node of a graph, whatever it is asked for: of a resnet50 in eight bits, the means of
inner layers that a map needs take a seventh of a patch's time; of a vgg16, the head is most of the file.

References
----------
Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from stinfer.protobuf import iter_fields, message_field

_GRAPH = 7
# Of a graph; of a node; of an attribute, where a branch or the body of a loop is a graph of its own.
_NODE, _INITIALIZER, _OUTPUT = 1, 5, 12
_NODE_INPUT, _NODE_OUTPUT, _ATTRIBUTE = 1, 2, 5
_INNER_GRAPHS = (6, 11)
# Of an initializer, and of an output.
_TENSOR_NAME, _VALUE_NAME = 8, 1
# Of a larger file, a second copy takes more than it saves, unless that is much smaller.
_LARGE_BYTES, _SMALLER = 200 << 20, 0.9


def keep_outputs(model: bytes, is_wanted: Callable[[str], bool]) -> bytes:
    """Keep the outputs that are wanted, with the nodes and weights that they need; the rest is as it was.

    Parameters
    ----------
    model : bytes of an ONNX file
    is_wanted : says of an output's name whether it stays; where it says so of none, all do

    Raises
    ------
    ValueError
        The bytes are no protobuf message.
    """
    parts: list[bytes | memoryview] = []
    for field in iter_fields(memoryview(model)):
        if field.number != _GRAPH:
            parts.append(field.whole)
            continue
        outputs = output_names(field.content)
        wanted = [name for name in outputs if is_wanted(name)]
        if not wanted or wanted == outputs:
            return model
        parts += message_field(_GRAPH, _kept(field.content, wanted))
    n_bytes = sum(map(len, parts))
    return model if len(model) > _LARGE_BYTES and n_bytes > _SMALLER * len(model) else b"".join(parts)


def output_names(graph: memoryview) -> list[str]:
    """Return the names of a graph's outputs; raises as `keep_outputs`."""
    return [
        name
        for field in iter_fields(graph)
        if field.number == _OUTPUT
        for name in _names(field.content, _VALUE_NAME)
    ]


def _kept(graph: memoryview, wanted: list[str]) -> list[memoryview]:
    fields = list(iter_fields(graph))
    makers = {
        name: field.content
        for field in fields
        if field.number == _NODE
        for name in _names(field.content, _NODE_OUTPUT)
    }
    needed: set[str] = set()
    pending = list(wanted)
    while pending:
        name = pending.pop()
        if name not in needed:
            needed.add(name)
            if name in makers:
                pending += _reads(makers[name])
    named = {_NODE: _NODE_OUTPUT, _INITIALIZER: _TENSOR_NAME}

    def stays(number: int, content: memoryview) -> bool:
        if number == _OUTPUT:
            return not set(wanted).isdisjoint(_names(content, _VALUE_NAME))
        return number not in named or not needed.isdisjoint(_names(content, named[number]))

    return [field.whole for field in fields if stays(field.number, field.content)]


def _reads(node: memoryview) -> Iterator[str]:
    """Give what a node reads, also from within: an inner graph sees the tensors around it."""
    for field in iter_fields(node):
        if field.number == _NODE_INPUT:
            yield str(field.content, "utf-8")
        elif field.number == _ATTRIBUTE:
            for inner in iter_fields(field.content):
                if inner.number in _INNER_GRAPHS:
                    yield from output_names(inner.content)
                    for one in iter_fields(inner.content):
                        if one.number == _NODE:
                            yield from _reads(one.content)


def _names(message: memoryview, number: int) -> Iterator[str]:
    return (str(field.content, "utf-8") for field in iter_fields(message) if field.number == number)
