"""A network's layers in eight bits, written with ONNX's own QuantizeLinear and DequantizeLinear.

Activations are unsigned and their zero is anywhere, weights are signed, with a scale for each channel of
the output: what processors with 8-bit products take without conversion.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx

from stinfer.errors import ExtraMissingError
from stinfer_export.precision.channelwise import NORMALIZATION
from stinfer_export.precision.ranges import Range

try:
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
except ImportError as missing:
    raise ExtraMissingError(missing.name or "onnxruntime", "export", "quantising a backbone") from missing

# What multiplies with weights, and so takes the time.
_LAYERS = ("Conv", "Gemm", "MatMul")
# What lies between layers and can go on in eight bits; it only does where all it reads is.
_BETWEEN = ("Relu", "Clip", "Add", "MaxPool", "AveragePool", "Concat")


def name_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose nodes have names, each its own, that do not depend on how it was traced."""
    named = onnx.ModelProto()
    named.CopyFrom(model)
    for i, node in enumerate(named.graph.node):
        node.name = f"{node.op_type}_{i}"
    return named


def find_layers(model: onnx.ModelProto) -> list[str]:
    """List the nodes that multiply with weights of their own, in order; normalising pixels is none."""
    constants = {item.name for item in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in _LAYERS and node.input[1] in constants and node.name != NORMALIZATION
    ]


def multiplications(
    model: onnx.ModelProto, per_patch: Mapping[str, int], left_out: Collection[str]
) -> dict[str, int]:
    """Count what layers multiply.

    Parameters
    ----------
    model : named by `name_nodes`
    per_patch : values of the layers' outputs for a patch
    left_out : layers that are not counted

    Returns
    -------
    of every other layer, in order
    """
    weights = {item.name: item for item in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    found = {}
    for name in find_layers(model):
        if name in left_out:
            continue
        node = nodes[name]
        sides = weights[node.input[1]].dims
        # A convolution reads its kernel for every value it gives; a product of matrices one row or column.
        gives_first = node.op_type == "Conv" or any(
            item.name == "transB" and item.i for item in node.attribute
        )
        reads = int(np.prod(sides[1:] if gives_first else sides[:-1]))
        found[name] = per_patch[node.output[0]] * reads
    return found


def pooled_layers(model: onnx.ModelProto) -> set[str]:
    """Find layers that work on means of whole images, as those of squeeze-excitation: they cost nothing."""
    constants = {item.name for item in model.graph.initializer}
    pooled: set[str] = set()
    found = set()
    layers = set(find_layers(model))
    for node in model.graph.node:
        read = [name for name in node.input if name and name not in constants]
        if node.op_type in ("ReduceMean", "GlobalAveragePool") or (read and pooled.issuperset(read)):
            pooled.update(node.output)
            found.add(node.name)
    return found & layers


def quantized_nodes(model: onnx.ModelProto, in_float: Collection[str]) -> list[onnx.NodeProto]:
    """List the nodes that work in eight bits: layers, and what lies between them.

    Parameters
    ----------
    model : named by `name_nodes`
    in_float : names of layers that do not
    """
    layers = set(find_layers(model)) - set(in_float)
    constants = {item.name for item in model.graph.initializer}
    made: set[str] = set()
    found = []
    for node in model.graph.node:
        read = [name for name in node.input if name and name not in constants]
        between = node.op_type in _BETWEEN and bool(read) and all(name in made for name in read)
        if node.name in layers or between:
            made.update(node.output)
            found.append(node)
    return found


def tensors_between(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> list[str]:
    """List the tensors that some nodes read and give, in order, weights left out."""
    constants = {item.name for item in model.graph.initializer}
    names = [name for node in nodes for name in (*node.input, *node.output)]
    return [name for name in dict.fromkeys(names) if name and name not in constants]


def quantize(
    model: onnx.ModelProto, ranges: Mapping[str, Range], in_float: Collection[str] = ()
) -> onnx.ModelProto:
    """Write a model in eight bits.

    Parameters
    ----------
    model : in floating point, named by `name_nodes`
    ranges : of the tensors that are to be in eight bits; those of `tensors_between`, or more
    in_float : names of layers that stay as they are

    Returns
    -------
    The model, its metadata and its producer those of the original
    """
    nodes = quantized_nodes(model, in_float)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    data = {
        name: TensorData(lowest=np.float32(ranges[name][0]), highest=np.float32(ranges[name][1]))
        for name in tensors_between(model, nodes)
    }
    quantizer = QDQQuantizer(
        copy,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, data),
        nodes_to_quantize=[node.name for node in nodes],
        nodes_to_exclude=[],
        op_types_to_quantize=[*_LAYERS, *_BETWEEN],
        extra_options={},
    )
    # It says through the root logger what it leaves out, which is what it is told to.
    logging.disable(logging.WARNING)
    try:
        quantizer.quantize_model()
    finally:
        logging.disable(logging.NOTSET)
    found: onnx.ModelProto = quantizer.model.model
    # What it adds says which tools made it, and names a domain of operators that it does not use.
    del found.opset_import[:]
    found.opset_import.extend(model.opset_import)
    found.ir_version, found.producer_name = model.ir_version, model.producer_name
    found.ClearField("producer_version")
    del found.metadata_props[:]
    found.metadata_props.extend(model.metadata_props)
    found.graph.ClearField("value_info")
    return found
