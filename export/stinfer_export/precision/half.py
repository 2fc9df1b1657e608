"""A network in half precision, for CUDA; what needs more range or more digits stays in single precision."""

from __future__ import annotations

import onnx

from stinfer.errors import ExtraMissingError
from stinfer_export.precision.qdq import find_layers, name_nodes

try:
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel
except ImportError as missing:
    raise ExtraMissingError(missing.name or "onnxruntime", "export", "halving a backbone") from missing


def to_half(original: onnx.ModelProto) -> onnx.ModelProto:
    """Write a model in half precision; what it takes and gives stays as it is.

    In single precision stay the normalisation of pixels, squares, which half precision cannot hold above
    65,504, and means.

    Parameters
    ----------
    original : in single precision
    """
    named = name_nodes(original)
    half: onnx.ModelProto = convert_float_to_float16(
        named, keep_io_types=True, op_block_list=DEFAULT_OP_BLOCK_LIST, node_block_list=_in_single(named)
    )
    # It puts its conversions last, where the format wants them before what reads them.
    OnnxModel(half).topological_sort(is_deterministic=True)
    half.graph.ClearField("value_info")
    half.ir_version, half.producer_name = original.ir_version, original.producer_name
    half.ClearField("producer_version")
    return half


def _in_single(model: onnx.ModelProto) -> list[str]:
    """List the nodes that stay: all before the first layer, squares and means, and what only those need."""
    layers = set(find_layers(model))
    constants = {item.name for item in model.graph.initializer}
    single = {model.graph.input[0].name, *constants}
    kept = []
    for node in model.graph.node:
        read = [name for name in node.input if name]
        stays = node.op_type in ("Pow", "ReduceMean") or single.issuperset(read)
        if stays and node.name not in layers:
            single.update(node.output)
            kept.append(node.name)
    return kept
