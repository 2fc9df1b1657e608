"""The graph of the search on the GPU, which the runtime holds as bytes, against the one that is meant."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from stinfer.gpu_search import _NEAREST


def test_the_graph_is_the_product_less_half_the_squares_and_its_largest() -> None:
    nodes = [
        helper.make_node("Gemm", ["q", "r", "h"], ["n"], alpha=1.0, beta=-1.0, transB=1),
        helper.make_node("TopK", ["n", "k"], ["v", "i"], axis=1, largest=1, sorted=1),
    ]
    inputs = [
        helper.make_tensor_value_info("q", TensorProto.FLOAT, ["n", "d"]),
        helper.make_tensor_value_info("r", TensorProto.FLOAT, ["m", "d"]),
        helper.make_tensor_value_info("h", TensorProto.FLOAT, ["m"]),
        helper.make_tensor_value_info("k", TensorProto.INT64, [1]),
    ]
    outputs = [
        helper.make_tensor_value_info("v", TensorProto.FLOAT, ["n", "k"]),
        helper.make_tensor_value_info("i", TensorProto.INT64, ["n", "k"]),
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    opset = [helper.make_opsetid("", 13)]
    meant = helper.make_model(graph, opset_imports=opset, ir_version=8, producer_name="")
    assert onnx.printer.to_text(onnx.load_from_string(_NEAREST)) == onnx.printer.to_text(meant)
