"""Scaling channel by channel, as convolutions: the values, and what is left as it is."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stinfer_export.precision import qdq
from stinfer_export.precision.channelwise import NORMALIZATION, scale_by_convolution
from stinfer_export.precision.ranges import count_values
from stinfer_export.precision.session import open_session

SIDE_PX, N_CHANNELS = 16, 6
EPSILON = 1e-3
# The network's own constants: channels of every sign, one that is shut off, and one that is so nearly.
MEAN = np.array([120.0, 110.0, 100.0])
MIDDLE = MEAN.reshape(1, 3, 1, 1)
STD = np.array([60.0, 55.0, 50.0])
GAMMA = np.array([1.5, -0.7, 0.0, 1e-12, 2.0, 0.3])
BETA = np.array([0.2, 0.4, 0.5, 0.6, -0.3, 0.0])
RUNNING_MEAN = np.array([0.1, -0.2, 0.3, 0.0, 0.5, -0.1])
VARIANCE = np.array([0.5, 1.0, 2.0, 0.1, 0.0, 4.0])


def make_network(middle=MIDDLE, outputs=("c",)):
    """Write normalisation, a convolution of 1 x 1, batch normalisation and ReLU."""
    rng = np.random.default_rng(0)
    constants = {
        "middle": np.asarray(middle),
        "factor": (1 / STD).reshape(1, 3, 1, 1),
        "weights": rng.normal(size=(N_CHANNELS, 3, 1, 1)),
        "gamma": GAMMA,
        "beta": BETA,
        "mean": RUNNING_MEAN,
        "variance": VARIANCE,
    }
    nodes = [
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["values", "middle"], ["shifted"]),
        helper.make_node("Mul", ["shifted", "factor"], ["images"]),
        helper.make_node("Conv", ["images", "weights"], ["a"]),
        helper.make_node(
            "BatchNormalization", ["a", "gamma", "beta", "mean", "variance"], ["b"], epsilon=EPSILON
        ),
        helper.make_node("Relu", ["b"], ["c"]),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", "height", "width", 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", None, None, None]) for name in outputs],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return qdq.name_nodes(model)


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(1).integers(0, 256, (4, SIDE_PX, SIDE_PX, 3), dtype=np.uint8)


def expected(model, pixels):
    """Return what the network's formulas give, in double precision."""
    weights = numpy_helper.to_array(next(w for w in model.graph.initializer if w.name == "weights"))
    images = (pixels.astype(np.float64) - MEAN) / STD
    a = images @ weights[:, :, 0, 0].T.astype(np.float64)
    b = GAMMA * (a - RUNNING_MEAN) / np.sqrt(VARIANCE + EPSILON) + BETA
    return np.maximum(b, 0).transpose(0, 3, 1, 2)


def kinds(model):
    return [node.op_type for node in model.graph.node]


def test_it_gives_what_the_formulas_give(pixels):
    model = make_network()

    written = scale_by_convolution(model)

    onnx.checker.check_model(written)
    assert kinds(written) == ["Transpose", "Cast", "Conv", "Conv", "Conv", "Relu"]
    (given,) = open_session(written.SerializeToString()).run(["c"], {"pixels": pixels})
    truth = expected(model, pixels)
    assert np.abs(given - truth).max() <= 1e-5 * truth.max()
    assert kinds(model)[2:4] == ["Sub", "Mul"]  # the original is as it was


def test_to_normalise_pixels_is_no_layer_and_batch_normalisation_is_one():
    written = scale_by_convolution(make_network())

    assert [node.name for node in written.graph.node if node.op_type == "Conv"] == [
        NORMALIZATION, "Conv_4", "BatchNormalization_5",
    ]  # fmt: skip
    assert qdq.find_layers(written) == ["Conv_4", "BatchNormalization_5"]


def test_in_eight_bits_its_weights_are_exact_and_channels_that_are_shut_off_stay_so(pixels):
    model = make_network()
    written = scale_by_convolution(model)
    tensors = qdq.tensors_between(written, qdq.quantized_nodes(written, []))
    ranges = {name: one.range("minmax") for name, one in count_values(written, tensors, pixels).items()}

    found = qdq.quantize(written, ranges)

    held = {item.name: numpy_helper.to_array(item) for item in found.graph.initializer}
    steps, whole = held["b_factors_scale"], held["b_factors_quantized"]
    truth = GAMMA / np.sqrt(VARIANCE + EPSILON)
    assert np.allclose(whole.ravel() * steps, truth, rtol=1e-6, atol=1e-9)
    (given,) = open_session(found.SerializeToString()).run(["c"], {"pixels": pixels})
    values = expected(model, pixels)
    # Three roundings: of what the convolution reads, of what it gives, and of the result.
    assert np.abs(given - values).max() <= 0.02 * values.max()
    assert np.abs(given[:, 2] - 0.5).max() <= values.max() / 255
    assert np.abs(given[:, 3] - 0.6).max() <= values.max() / 255


@pytest.mark.parametrize(
    ("middle", "outputs"),
    [(np.float32(110.0), ["c"]), (MIDDLE, ["c", "shifted"]), (np.zeros((1, 1, SIDE_PX, 1)), ["c"])],
    ids=["one number for all", "asked for itself", "of rows"],
)
def test_what_is_no_scaling_of_channels_stays(pixels, middle, outputs):
    model = make_network(middle, outputs)

    written = scale_by_convolution(model)

    assert kinds(written)[2:4] == ["Sub", "Mul"]
    names = [item.name for item in model.graph.output]
    for one, other in zip(
        open_session(model.SerializeToString()).run(names, {"pixels": pixels}),
        open_session(written.SerializeToString()).run(names, {"pixels": pixels}),
        strict=True,
    ):
        assert np.abs(one - other).max() <= 1e-4


def test_batch_normalisation_by_numbers_that_are_computed_stays(pixels):
    model = make_network()
    gamma = next(item for item in model.graph.initializer if item.name == "gamma")
    model.graph.initializer.remove(gamma)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["gamma"], value=gamma, name="of_its_own"))

    assert "BatchNormalization" in kinds(scale_by_convolution(model))
