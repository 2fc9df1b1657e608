"""Outputs that are left out of a model, with what only they need: against the onnx package."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from stinfer.encoder import Encoder
from stinfer.errors import ModelFormatError
from stinfer.onnx_guard import read_metadata
from stinfer.onnx_outputs import keep_outputs


def two_outputs() -> onnx.ModelProto:
    """``embedding = |x| + weight`` where a condition holds, else ``weight - x``; ``features = bias * x``."""
    inner = {
        name: helper.make_graph(
            [helper.make_node(operator, [*reads], [f"{name}_out"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, [2])],
        )
        for name, operator, reads in (("yes", "Add", ("size", "weight")), ("no", "Sub", ("weight", "x")))
    }
    nodes = [
        helper.make_node("Abs", ["x"], ["size"]),
        helper.make_node("Mul", ["bias", "x"], ["features"]),
        helper.make_node(
            "If", ["condition"], ["embedding"], then_branch=inner["yes"], else_branch=inner["no"]
        ),
    ]
    values = {
        "weight": np.array([1, 2], np.float32),
        "bias": np.array([10, 20], np.float32),
        "condition": np.ones((), dtype=bool),
    }
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("features", "embedding")],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"stinfer.dim": "2"})
    return model


def run(model: bytes) -> dict[str, list[float]]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = session.run(None, {"x": np.array([-3, 4], np.float32)})
    return {name: values.tolist() for name, values in zip(names, found, strict=True)}


def test_what_a_branch_reads_from_around_it_stays() -> None:
    whole = two_outputs()
    kept = onnx.load_from_string(keep_outputs(whole.SerializeToString(), lambda name: name == "embedding"))
    onnx.checker.check_model(kept)
    assert [node.op_type for node in kept.graph.node] == ["Abs", "If"]
    assert [tensor.name for tensor in kept.graph.initializer] == ["weight", "condition"]
    assert [output.name for output in kept.graph.output] == ["embedding"]
    assert kept.metadata_props == whole.metadata_props
    assert run(kept.SerializeToString()) == {"embedding": [4.0, 6.0]}


def test_everything_else_is_left_out() -> None:
    kept = keep_outputs(two_outputs().SerializeToString(), lambda name: name != "embedding")
    assert [node.op_type for node in onnx.load_from_string(kept).graph.node] == ["Mul"]
    assert run(kept) == {"features": [-30.0, 80.0]}


@pytest.mark.parametrize("is_wanted", [lambda _: True, lambda _: False])
def test_where_all_or_none_are_wanted_the_file_is_as_it_was(is_wanted) -> None:
    model = two_outputs().SerializeToString()
    assert keep_outputs(model, is_wanted) is model


def test_what_is_no_message_is_refused() -> None:
    with pytest.raises(ValueError, match="cut short"):
        keep_outputs(two_outputs().SerializeToString()[:-3], lambda name: name == "embedding")


def test_an_output_whose_name_is_no_text_makes_no_model() -> None:
    model = two_outputs().SerializeToString().replace(b"features", b"feature\xff")
    with pytest.raises(ModelFormatError, match=r"m\.onnx.*no ONNX file"):
        Encoder(model, "m.onnx", device="cpu")


def test_what_a_model_says_of_itself_is_read() -> None:
    assert read_metadata(two_outputs().SerializeToString()) == {"stinfer.dim": "2"}
