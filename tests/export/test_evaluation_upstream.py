"""The published protocol: pixels as they are, raw counts."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stinfer.contract import ModelCard
from stinfer.errors import SettingError
from stinfer.onnx_runtime import ort
from stinfer_export.evaluation.folds import Split
from stinfer_export.evaluation.run import Evaluator, GeneSet
from stinfer_export.evaluation.upstream import (
    predict_upstream,
    published_view,
    raw_counts,
    without_normalization,
)
from stinfer_export.joining import measured
from stinfer_export.section_encoding import part_of
from stinfer_export.stain_texture import build_graph

_SPEC = importlib.util.spec_from_file_location(
    "evaluation_sections", Path(__file__).parent / "evaluation_sections.py"
)
shared = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(shared)


def write_normalizing_model(path, input_size_px=224):
    """Write a network as ours are: (pixels - mean) * scale, then the mean of each channel."""
    nodes = [
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["values", "mean"], ["moved"]),
        helper.make_node("Mul", ["moved", "scale"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled"], ["embedding"], axes=[2, 3], keepdims=0),
    ]
    constants = {"mean": [120, 110, 100], "scale": [0.017, 0.018, 0.019]}
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", "height", "width", 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 3])],
        [
            numpy_helper.from_array(np.array(values, dtype=np.float32).reshape(3, 1, 1), name)
            for name, values in constants.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    card = ModelCard("network", input_size_px, 3, 0, 0, "", "fp32")
    helper.set_model_props(model, card.to_props())
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("squares")
    shared.write_data_set(found / "data")
    write_normalizing_model(found / "network.onnx")
    return found


def test_the_network_sees_pixels_over_255(folder):
    changed = without_normalization((folder / "network.onnx").read_bytes(), "network.onnx")
    pixels = np.full((1, 224, 224, 3), (255, 51, 0), dtype=np.uint8)
    session = ort.InferenceSession(changed, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"pixels": pixels})[0], [[1.0, 0.2, 0.0]], atol=1e-5)


def test_a_model_without_that_normalization_is_refused():
    texture = build_graph().SerializeToString()
    with pytest.raises(SettingError, match=r"model stain_texture.onnx has no normalisation of pixels"):
        without_normalization(texture, "stain_texture.onnx")


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["network.onnx", "network.onnx"], "takes one --model, and 2 are given"),
        (["small.onnx"], "network takes 96 px"),
    ],
)
def test_models_that_the_published_code_would_not_take_are_refused(folder, tmp_path, names, complaint):
    write_normalizing_model(folder / "small.onnx", input_size_px=96)
    with pytest.raises(SettingError, match=complaint):
        Evaluator(
            shared.PLAN, [folder / name for name in names], tmp_path, GeneSet(), "upstream", device="cpu"
        )


def test_patches_are_224_px_of_the_image(folder):
    view = published_view(shared.read(folder / "data")[0])
    assert view.sides_um == (pytest.approx(2240.0),)
    assert view.um_per_px == pytest.approx(10.0)


def test_raw_counts_come_back_exactly(folder):
    section = shared.read(folder / "data")[0]
    part = part_of(section, np.arange(48), np.zeros((48, 1), dtype=np.float32))
    values, n_absent = measured(part, ["BLUE", "NONE", "RED"])
    assert n_absent == 1
    counts = section.counts.to_dense()
    expected = np.stack([counts[:, 2], np.zeros(48, dtype=np.int64), counts[:, 0]], axis=1)
    np.testing.assert_array_equal(raw_counts(part, values), expected)


def test_predictions_are_raw_counts_of_nearly_uniform_neighbors(folder, tmp_path):
    plan = shared.BankPlan(**{**vars(shared.PLAN), "max_outside": 1.0})
    evaluator = Evaluator(
        plan, [folder / "network.onnx"], tmp_path, GeneSet(min_detected=0.0), "upstream", device="cpu"
    )
    found = evaluator.run(shared.read(folder / "data"), [Split("B1", ("A1", "A2"), ("B1",))])
    section = found.folds[0].sections[0]
    assert set(section.by_gene) == {
        "upstream_k", "upstream_all", "mean", "upstream_k_log", "upstream_all_log"
    }  # fmt: skip
    # Of 96 references k 1000 is all of them.
    np.testing.assert_array_equal(section.by_gene["upstream_k"].rmse, section.by_gene["upstream_all"].rmse)
    sections = {s.name: s.counts.to_dense() for s in shared.read(folder / "data")}
    column = shared.GENES.index(found.folds[0].genes[0])
    known = np.concatenate([sections["A1"], sections["A2"]])[:, column]
    expected = np.sqrt(((sections["B1"][:, column] - known.mean()) ** 2).mean())
    assert section.by_gene["mean"].rmse[0] == pytest.approx(expected, rel=1e-5)
    assert evaluator.settings()["values"] == "raw counts, and log1p CP10K of them"


def test_what_is_predicted_is_normalised_by_the_total_predicted_alike():
    # One reference at distance 0, one at distance 1: weights 1 - 0 / 1 and 1 - 1 / 1, so the first alone.
    known = np.array([[1, 0], [0, 1]], dtype=np.float32)
    counts = np.array([[3], [9]], dtype=np.float32)
    raw, normalized = predict_upstream(known, counts, np.array([30.0, 50.0]), known[:1])
    assert raw["upstream_k"].tolist() == [[3]]
    assert raw["mean"].tolist() == [[6]]
    assert normalized["upstream_all_log"][0, 0] == pytest.approx(np.log1p(1e4 * 3 / 30))
