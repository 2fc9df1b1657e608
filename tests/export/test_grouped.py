"""Convolutions in merged groups against the same ones in small groups."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from stinfer_export.grouped import merge_small_groups


def convolution(n_in: int, n_out: int, n_groups: int) -> onnx.ModelProto:
    weight = np.random.default_rng(0).standard_normal((n_out, n_in // n_groups, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "weight"], ["y"], group=n_groups, pads=[1] * 4)
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    sides[0] = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", n_in, "height", "width"])
    graph = helper.make_graph(
        [node], "grouped", sides[:1], sides[1:], [numpy_helper.from_array(weight, "weight")]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def run(model: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": pixels})[0]


@pytest.mark.parametrize(
    ("n_in", "n_out", "n_groups", "merged"),
    [
        (128, 128, 32, 8),
        (256, 256, 32, 16),
        (64, 128, 8, 4),
        # 16 to a group, one, a number that 16 does not divide by, one group that is left over, no groups.
        (64, 64, 4, 4),
        (32, 32, 32, 32),
        (24, 24, 4, 4),
        (12, 12, 3, 3),
        (8, 16, 1, 1),
    ],
)
def test_merged_groups_give_the_same(n_in: int, n_out: int, n_groups: int, merged: int) -> None:
    model = convolution(n_in, n_out, n_groups)
    pixels = np.random.default_rng(1).standard_normal((2, n_in, 9, 7)).astype(np.float32)
    expected = run(model, pixels)

    merge_small_groups(model)

    (group,) = (attribute.i for attribute in model.graph.node[0].attribute if attribute.name == "group")
    assert group == merged
    assert list(model.graph.initializer[0].dims) == [n_out, n_in // merged, 3, 3]
    np.testing.assert_allclose(run(model, pixels), expected, rtol=1e-5, atol=1e-5)
