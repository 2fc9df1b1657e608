"""A network in half precision on CUDA: export writes it, the runtime encodes with it for the bank."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import stinfer
from stinfer import h5ad
from stinfer.bank import Bank
from stinfer.contract import MapTraits, ModelCard
from stinfer.encoder import Encoder
from stinfer.gpu import CUDA
from stinfer.self_test import built_in_patch
from stinfer_export.precision.half import to_half
from stinfer_export.precision.lower import write_fp16

DATA = Path(__file__).parents[1] / "data"
N_CHANNELS = (32, 64, 128)
DIM = N_CHANNELS[-1]


pytestmark = pytest.mark.cuda


def write_network(path):
    """Write a residual network of strided convolutions with random weights, cells of 8 px."""
    rng = np.random.default_rng(0)
    constants = {
        "middle": np.full((1, 3, 1, 1), 127.5, dtype=np.float32),
        "scale": np.full((1, 3, 1, 1), 1 / 60, dtype=np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["values"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["planes", "middle"], ["centered"]),
        helper.make_node("Mul", ["centered", "scale"], ["map0"]),
    ]
    n_in = 3
    for i, n_out in enumerate(N_CHANNELS, 1):
        for name, shape, stride in (("a", (n_out, n_in, 3, 3), 2), ("b", (n_out, n_out, 3, 3), 1)):
            weights = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
            constants[f"{name}{i}"] = weights.astype(np.float32)
            source = f"map{i - 1}" if name == "a" else f"down{i}"
            nodes.append(
                helper.make_node(
                    "Conv", [source, f"{name}{i}"], [f"{name}_of{i}"], pads=[1] * 4, strides=[stride] * 2
                )
            )
            if name == "a":
                nodes.append(helper.make_node("Relu", [f"a_of{i}"], [f"down{i}"]))
        nodes.append(helper.make_node("Add", [f"b_of{i}", f"down{i}"], [f"sum{i}"]))
        last = "features" if i == len(N_CHANNELS) else f"map{i}"
        nodes.append(helper.make_node("Relu", [f"sum{i}"], [last]))
        n_in = n_out
    nodes.append(helper.make_node("ReduceMean", ["features"], ["embedding"], axes=[2, 3], keepdims=0))
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", "height", "width", 3])],
        [
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", DIM]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", DIM, "rows", "columns"]),
        ],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    card = ModelCard("network", 224, DIM, DIM, 8, "ab" * 32, "fp32", map_traits=MapTraits(2, (0.0, 0.0)))
    helper.set_model_props(model, card.to_props())
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Files of it in single and in half precision."""
    folder = tmp_path_factory.mktemp("network")
    single, half = folder / "network.onnx", folder / "network.fp16.onnx"
    write_network(single)
    write_fp16(single, half, overwrite=False)
    return single, half


@pytest.fixture(scope="module")
def tissue():
    whole = built_in_patch(512)
    corners = np.random.default_rng(0).integers(0, 512 - 224, (24, 2)).tolist()
    return np.stack([whole[y : y + 224, x : x + 224] for x, y in corners])


def cosines(one, other):
    a, b = (values.astype(np.float64).reshape(-1, values.shape[-1]) for values in (one, other))
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_single_precision_is_that_of_the_cpu(network, tissue):
    on_cuda, on_cpu = (Encoder(network[0].read_bytes(), "n", device=device) for device in ("cuda", "cpu"))
    found, expected = on_cuda.embed(tissue), on_cpu.embed(tissue)
    # Above what another order of adding gives, and below what TF32 would: 2**-11.
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    found, expected = (
        Encoder(network[0].read_bytes(), "n", pooling="map", device=device).features(tissue[:1])
        for device in ("cuda", "cpu")
    )
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_half_precision_agrees_and_takes_and_gives_what_single_does(network, tissue):
    single, half = (Encoder(path.read_bytes(), path.name, device="cuda") for path in network)
    assert (single.card.precision, half.card.precision, half.provider) == ("fp32", "fp16", CUDA)
    expected, found = single.embed(tissue), half.embed(tissue)
    assert found.dtype == expected.dtype == np.float32
    assert cosines(found, expected).min() > 0.9999
    assert np.abs(found - expected).max() > 0
    of_maps = [Encoder(path.read_bytes(), path.name, pooling="map", device="cuda") for path in network]
    by_cell = [encoder.features(tissue[:1]).transpose(0, 2, 3, 1) for encoder in of_maps]
    assert cosines(*by_cell).min() > 0.999


@pytest.mark.parametrize("name", ["board.h5", "board_map.h5"])
def test_a_model_in_half_precision_predicts_with_the_banks_references(tmp_path, name):
    (own,) = Bank.open(DATA / name).models()
    model = onnx.load_model_from_string(own)
    card = ModelCard.from_props({prop.key: prop.value for prop in model.metadata_props})
    half = to_half(model)
    del half.metadata_props[:]
    helper.set_model_props(half, replace(card, precision="fp16").to_props())
    path = tmp_path / "half.onnx"
    path.write_bytes(half.SerializeToString())
    mpp = {"board.h5": 5.0, "board_map.h5": 5.0}[name]

    for out, model_path in (("own", None), ("half", path)):
        stinfer.predict_slide(
            DATA / "board.png",
            DATA / name,
            out=tmp_path / f"{out}.h5ad",
            mpp=mpp,
            device="cuda",
            model=model_path,
        )

    with h5py.File(tmp_path / "own.h5ad") as a, h5py.File(tmp_path / "half.h5ad") as b:
        np.testing.assert_allclose(h5ad.read_array(b, "X"), h5ad.read_array(a, "X"), rtol=0.05, atol=0.05)
        run = h5ad.read_scalars(b["uns/stinfer/run"])
    assert (run["provider"], run["model"]) == (CUDA, "half.onnx")
    assert run["model_cosine"] > 0.999
