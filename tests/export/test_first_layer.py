"""The first convolution over places of 2 x 2 px: that it gives what it gave, and which ones stay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stinfer_export.precision import qdq
from stinfer_export.precision.channelwise import scale_by_convolution
from stinfer_export.precision.first_layer import widen_first_layer
from stinfer_export.precision.session import open_session


def make_network(kernel, *, second=False, **attributes):
    """Write normalisation and a convolution, or two that read the same."""
    rng = np.random.default_rng(0)
    constants = {
        "middle": np.full((1, 3, 1, 1), 120.0),
        "factor": np.full((1, 3, 1, 1), 1 / 60),
        "weights": rng.normal(size=(5, 3, *kernel)),
        "offsets": rng.normal(size=5),
    }
    if "group" in attributes:
        constants |= {"weights": rng.normal(size=(6, 1, *kernel)), "offsets": rng.normal(size=6)}
    nodes = [
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["values", "middle"], ["shifted"]),
        helper.make_node("Mul", ["shifted", "factor"], ["images"]),
        helper.make_node("Conv", ["images", "weights", "offsets"], ["a"], **attributes),
        *([helper.make_node("Relu", ["images"], ["b"])] if second else []),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", "height", "width", 3])],
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n", None, None, None])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return scale_by_convolution(qdq.name_nodes(model))


@pytest.mark.parametrize(
    ("kernel", "pads"),
    [
        ((7, 7), [3, 3, 3, 3]),
        ((3, 3), [1, 1, 1, 1]),
        ((3, 3), [0, 0, 1, 1]),
        ((4, 4), [1, 1, 1, 1]),
        ((2, 2), [0, 0, 0, 0]),
        ((1, 1), [0, 0, 0, 0]),
        ((5, 3), [1, 0, 2, 1]),
    ],
)
def test_it_gives_what_the_convolution_gave(kernel, pads):
    model = make_network(kernel, strides=[2, 2], pads=pads)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 26, 34, 3), dtype=np.uint8)

    widened = widen_first_layer(model)

    onnx.checker.check_model(widened)
    assert "SpaceToDepth" in [node.op_type for node in widened.graph.node]
    assert qdq.find_layers(widened) == qdq.find_layers(model)
    (truth,), (given,) = (
        open_session(one.SerializeToString()).run(["a"], {"pixels": pixels}) for one in (model, widened)
    )
    assert given.shape == truth.shape == (2, 5, 13, 17)
    assert np.abs(given - truth).max() <= 1e-5 * np.abs(truth).max()


@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [1, 1], "pads": [1, 1, 1, 1]},
        {"strides": [2, 1], "pads": [1, 1, 1, 1]},
        {"strides": [4, 4], "pads": [1, 1, 1, 1]},
        {"strides": [2, 2], "pads": [0, 0, 0, 0]},
        {"strides": [2, 2], "pads": [2, 2, 2, 2]},
        {"strides": [2, 2], "pads": [2, 2, 2, 2], "dilations": [2, 2]},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "group": 3},
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "second": True},
    ],
)
def test_another_kind_of_first_layer_stays(attributes):
    model = make_network((3, 3), **attributes)

    assert widen_first_layer(model) is model


def test_without_normalisation_nothing_is_changed():
    model = make_network((3, 3), strides=[2, 2], pads=[1, 1, 1, 1])
    model.graph.node[2].name = "another"

    assert widen_first_layer(model) is model
