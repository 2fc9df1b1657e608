"""The graphs of averaging on the GPU, which the runtime holds as bytes, against those that are meant."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from stinfer.gpu_averaging import _COPY, _MOMENTS


def of_floats(name: str, *shape: str | int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def text_of(
    nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
) -> str:
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    opset = [helper.make_opsetid("", 13)]
    meant = helper.make_model(graph, opset_imports=opset, ir_version=8, producer_name="")
    onnx.checker.check_model(meant, full_check=True)
    return str(onnx.printer.to_text(meant))


def test_moments_are_products_of_what_is_gathered_with_its_weights() -> None:
    nodes = [
        helper.make_node("Gather", ["e", "i"], ["x"], axis=0),
        helper.make_node("MatMul", ["w", "x"], ["m"]),
        helper.make_node("Sub", ["x", "m"], ["d"]),
        helper.make_node("Mul", ["d", "d"], ["q"]),
        helper.make_node("MatMul", ["w", "q"], ["v"]),
        helper.make_node("Sqrt", ["v"], ["s"]),
    ]
    rows = helper.make_tensor_value_info("i", TensorProto.INT64, ["n", "k"])
    inputs = [of_floats("e", "r", "g"), rows, of_floats("w", "n", 1, "k")]
    outputs = [of_floats("m", "n", 1, "g"), of_floats("s", "n", 1, "g")]
    assert onnx.printer.to_text(onnx.load_from_string(_MOMENTS)) == text_of(nodes, inputs, outputs)


def test_rows_are_copied_as_they_are() -> None:
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    meant = text_of(nodes, [of_floats("x", "n", "g")], [of_floats("y", "n", "g")])
    assert onnx.printer.to_text(onnx.load_from_string(_COPY)) == meant
