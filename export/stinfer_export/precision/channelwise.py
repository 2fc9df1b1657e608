"""What scales channels, as convolutions: the one form of it that is fast beside layers in eight bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx

from stinfer.contract import F64, AnyArray

# The node that normalises pixels; it reads them in floating point, and is no layer.
NORMALIZATION = "normalize"
_DEFAULT_EPSILON = 1e-5


class _Scaling(NamedTuple):
    """Nodes that together give `scale` times what is read plus `offset`, channel by channel."""

    name: str
    nodes: Sequence[onnx.NodeProto]
    scale: F64
    offset: F64


def scale_by_convolution(model: onnx.ModelProto) -> onnx.ModelProto:
    """Write as convolutions of one channel each what multiplies and shifts channels by their own constants.

    1. Batch normalisation that no convolution before it could take in, as in DenseNet, where a ReLU follows.
       As a convolution it goes on in eight bits, its weights exact, since a channel's only one has a scale of
       its own. Else all that it reads and gives is converted, and turned into another layout and back.
    2. The normalisation of pixels, the first thing in a network. ONNX Runtime moves it behind the change of
       layout that 8-bit convolutions want, and there three numbers are taken from three at a time: twelve
       times as slow. It does not move a convolution.

    Parameters
    ----------
    model : in floating point, named by `stinfer_export.precision.qdq.name_nodes`

    Returns
    -------
    A copy that gives the same but for rounding; the normalisation is called `NORMALIZATION`
    """
    written = onnx.ModelProto()
    written.CopyFrom(model)
    graph = written.graph
    constants = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    found = [_of_batch_norm(node, constants) for node in graph.node if node.op_type == "BatchNormalization"]
    found.append(_of_pixels(graph, constants))
    written_as = {scaling.nodes[0].name: scaling for scaling in found if scaling is not None}
    replaced = {node.name for scaling in written_as.values() for node in scaling.nodes}
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        if node.name in written_as:
            graph.node.append(_convolution(graph, written_as[node.name]))
        elif node.name not in replaced:
            graph.node.append(node)
    return written


def _of_batch_norm(node: onnx.NodeProto, constants: Mapping[str, AnyArray]) -> _Scaling | None:
    """Y = gamma (x - mean) / sqrt(variance + epsilon) + beta; None where these are no constants."""
    if not constants.keys() >= set(node.input[1:]):
        return None
    gamma, beta, mean, variance = (constants[name].astype(np.float64) for name in node.input[1:])
    epsilon = next((item.f for item in node.attribute if item.name == "epsilon"), _DEFAULT_EPSILON)
    scale = gamma / np.sqrt(variance + epsilon)
    return _Scaling(node.name, [node], scale, beta - mean * scale)


def _of_pixels(graph: onnx.GraphProto, constants: Mapping[str, AnyArray]) -> _Scaling | None:
    """Y = (x - mean) scale, of what is pixels yet, turned or converted; None where a network has it not."""
    pixels = {item.name for item in graph.input}
    for node in graph.node:
        if node.op_type in ("Cast", "Transpose") and node.input[0] in pixels:
            pixels.add(node.output[0])
        if node.op_type != "Sub" or node.input[0] not in pixels:
            continue
        readers = [other for other in graph.node if node.output[0] in other.input]
        is_asked_for = any(item.name == node.output[0] for item in graph.output)
        if [reader.op_type for reader in readers] == ["Mul"] and not is_asked_for:
            mean, scale = (_by_channel(one, constants) for one in (node, readers[0]))
            if mean is not None and scale is not None:
                return _Scaling(NORMALIZATION, [node, readers[0]], scale, -mean * scale)
    return None


def _by_channel(node: onnx.NodeProto, constants: Mapping[str, AnyArray]) -> F64 | None:
    """Return the value that a node takes for each channel of images (n, channels, height, width), or None."""
    values = constants.get(node.input[1])
    if values is None or values.ndim < 3 or values.size != values.shape[-3]:
        return None
    return values.ravel().astype(np.float64)


def _convolution(graph: onnx.GraphProto, scaling: _Scaling) -> onnx.NodeProto:
    read, given = scaling.nodes[0].input[0], scaling.nodes[-1].output[0]
    weights = {
        f"{given}_factors": scaling.scale.reshape(-1, 1, 1, 1),
        f"{given}_offsets": scaling.offset,
    }
    graph.initializer.extend(
        onnx.numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()
    )
    return onnx.helper.make_node(
        "Conv", [read, *weights], [given], name=scaling.name, group=len(scaling.scale), kernel_shape=[1, 1]
    )
