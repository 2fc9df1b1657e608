"""A network's first convolution, over fewer pixels of more channels."""

from __future__ import annotations

import math

import numpy as np
import onnx

from stinfer.contract import AnyArray
from stinfer_export.precision.channelwise import NORMALIZATION

_BLOCK = 2


def widen_first_layer(model: onnx.ModelProto) -> onnx.ModelProto:
    """Write a first convolution of stride 2 as one of stride 1, over places of 2 x 2 pixels with 12 channels.

    It multiplies the same numbers, and what is new of its weights is 0. But ONNX Runtime copies what each
    place of an 8-bit convolution sees: of three channels, a few bytes at a time, which takes longer than the
    products.

    Parameters
    ----------
    model : in floating point, as `stinfer_export.precision.channelwise.scale_by_convolution` gives it

    Returns
    -------
    A copy that gives the same of images with even sides, and takes no others; the model itself where its
    first convolution is of another kind
    """
    node = _first_layer(model.graph)
    weights = {item.name: item for item in model.graph.initializer}
    if node is None or node.input[1] not in weights:
        return model
    kernel = onnx.numpy_helper.to_array(weights[node.input[1]])
    given = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    size = kernel.shape[2:]
    pads = given.get("pads", [0, 0, 0, 0])
    is_plain = given.get("group", 1) == 1 and set(given.get("dilations", [1])) == {1}
    # So that half as many places come out as there are pixels, as of the other.
    halves = (
        given.get("strides") == [_BLOCK, _BLOCK]
        and given.get("auto_pad", b"NOTSET") == b"NOTSET"
        and all(-_BLOCK <= pads[axis] + pads[axis + 2] - size[axis] < 0 for axis in (0, 1))
    )
    if not is_plain or not halves:
        return model
    widened, before, after = _widened(kernel, pads)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    joined, name = f"{node.input[0]}_joined", f"{node.input[1]}_widened"
    copy.graph.initializer.append(onnx.numpy_helper.from_array(widened, name))
    at = next(i for i, one in enumerate(copy.graph.node) if one.name == node.name)
    join = onnx.helper.make_node("SpaceToDepth", [node.input[0]], [joined], name="join", blocksize=_BLOCK)
    layer = onnx.helper.make_node(
        "Conv",
        [joined, name, *node.input[2:]],
        list(node.output),
        name=node.name,
        kernel_shape=list(widened.shape[2:]),
        pads=[*before, *after],
    )
    nodes = [*list(copy.graph.node)[:at], join, layer, *list(copy.graph.node)[at + 1 :]]
    nodes = [onnx.NodeProto.FromString(one.SerializeToString()) for one in nodes]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _first_layer(graph: onnx.GraphProto) -> onnx.NodeProto | None:
    """Return the convolution that alone reads the normalised pixels; None where there is none."""
    normalized = {node.output[0] for node in graph.node if node.name == NORMALIZATION}
    readers = [node for node in graph.node if normalized.intersection(node.input)]
    return readers[0] if len(readers) == 1 and readers[0].op_type == "Conv" else None


def _widened(kernel: AnyArray, pads: list[int]) -> tuple[AnyArray, list[int], list[int]]:
    """Lay a kernel out over places of 2 x 2 px.

    The weight for the pixel d beside a place's own first is that for the place floor(d / 2) beside it, of
    that place's pixel d mod 2.

    Parameters
    ----------
    kernel : (n_out, n_in, height, width)
    pads : rows above, columns left, rows below, columns right

    Returns
    -------
    kernel : (n_out, 4 n_in, height, width) in places, its channels in the order of ONNX's SpaceToDepth
    before, after : places of padding, of rows and columns
    """
    n_out, n_in, *size = kernel.shape
    first = [math.floor(-pads[axis] / _BLOCK) for axis in (0, 1)]
    last = [math.floor((size[axis] - 1 - pads[axis]) / _BLOCK) for axis in (0, 1)]
    sides = [last[axis] - first[axis] + 1 for axis in (0, 1)]
    widened = np.zeros((n_out, _BLOCK, _BLOCK, n_in, *sides), dtype=kernel.dtype)
    for row in range(size[0]):
        for column in range(size[1]):
            (y, in_y), (x, in_x) = (divmod(at - pads[axis], _BLOCK) for axis, at in enumerate((row, column)))
            widened[:, in_y, in_x, :, y - first[0], x - first[1]] = kernel[:, :, row, column]
    return widened.reshape(n_out, _BLOCK * _BLOCK * n_in, *sides), [-at for at in first], last
