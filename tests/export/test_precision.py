"""Models in eight bits and in half precision: the arithmetic, and that bad ones are refused."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import stinfer
from stinfer import h5ad
from stinfer.contract import ModelCard
from stinfer.encoder import Encoder
from stinfer.errors import OutputExistsError, SettingError
from stinfer.onnx_runtime import ort, suit_eight_bits
from stinfer_export.bank_builder import build_bank
from stinfer_export.bank_plan import BankPlan
from stinfer_export.errors import QuantizationError
from stinfer_export.precision import gate, int8, lower, qdq
from stinfer_export.precision.fidelity import Fidelity, compare
from stinfer_export.precision.ranges import N_BINS, Histogram, count_values
from stinfer_export.precision.session import encode, open_session
from stinfer_export.precision.tissue_sample import Sample, Tissue, find_tissue_source, sample_tissue
from stinfer_export.tissue_noise import tissue_patch

_SPEC = importlib.util.spec_from_file_location(
    "evaluation_sections", Path(__file__).parent / "evaluation_sections.py"
)
shared = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(shared)

SIDE_PX, N_CHANNELS = 64, 8


def write_network(path, seed=3, head=1.0):
    """Write a network of three convolutions, the second of groups, with moments of the first's map.

    `head` multiplies the weights of the last; 0 makes a network that says nothing.
    """
    rng = np.random.default_rng(seed)
    shapes = {"stem": (N_CHANNELS, 3, 3, 3), "depth": (N_CHANNELS, 1, 3, 3), "last": (12, N_CHANNELS, 1, 1)}
    weights = {
        name: rng.normal(size=shape).astype(np.float32) / np.sqrt(np.prod(shape[1:])).astype(np.float32)
        for name, shape in shapes.items()
    }
    weights["last"] *= np.float32(head)
    constants = {
        "middle": np.full((1, 3, 1, 1), 127.5, dtype=np.float32),
        "scale": np.full((1, 3, 1, 1), 1 / 60, dtype=np.float32),
        "two": np.asarray(2.0, dtype=np.float32),
        **weights,
    }
    pool = {"kernel_shape": [8, 8], "strides": [8, 8]}
    nodes = [
        helper.make_node("Cast", ["pixels"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["values"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["planes", "middle"], ["shifted"]),
        helper.make_node("Mul", ["shifted", "scale"], ["images"]),
        helper.make_node("Conv", ["images", "stem"], ["a"], strides=[4, 4], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "depth"], ["c"], pads=[1, 1, 1, 1], group=N_CHANNELS),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Add", ["b", "d"], ["e"]),
        helper.make_node("MaxPool", ["e"], ["f"], **pool),
        helper.make_node("Conv", ["f", "last"], ["g"]),
        helper.make_node("Relu", ["g"], ["features"]),
        helper.make_node("ReduceMean", ["features"], ["embedding"], axes=[2, 3], keepdims=0),
        helper.make_node("Pow", ["b", "two"], ["squares"]),
        helper.make_node("AveragePool", ["squares"], ["moments_0"], **pool),
    ]
    outputs = [("embedding", [12]), ("features", [12, "h", "w"]), ("moments_0", [N_CHANNELS, "h", "w"])]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", "height", "width", 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape]) for name, shape in outputs],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    card = ModelCard(
        "net", SIDE_PX, 12, 12, 32, "a" * 64, "fp32", (N_CHANNELS,), map_refusal="nobody measured it"
    )
    helper.set_model_props(model, card.to_props())
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return write_network(tmp_path_factory.mktemp("network") / "net.onnx")


@pytest.fixture(scope="module")
def patches():
    rng = np.random.default_rng(0)
    return np.stack([tissue_patch(rng, SIDE_PX, SIDE_PX) for _ in range(48)])


@pytest.fixture(scope="module")
def sample(patches):
    return Sample(patches[:16], patches[16:])


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """A her2st data set of three sections whose counts follow the colors."""
    folder = tmp_path_factory.mktemp("squares")
    shared.write_data_set(folder)
    return folder


def quantized(network, patches):
    model = qdq.name_nodes(onnx.load(network))
    tensors = qdq.tensors_between(model, qdq.quantized_nodes(model, []))
    histograms = count_values(model, tensors, patches)
    return model, {name: one.range("minmax") for name, one in histograms.items()}


# Ranges


def test_values_are_counted_as_numpy_counts_them(network, patches):
    model = qdq.name_nodes(onnx.load(network))

    found = count_values(model, ["images", "b"], patches[:6])

    images = (patches[:6].astype(np.float32) - np.float32(127.5)) * np.float32(1 / 60)
    one = found["images"]
    assert (one.lowest, one.highest) == (float(images.min()), float(images.max()))
    assert one.per_patch == SIDE_PX * SIDE_PX * 3
    largest = np.abs(images).max()
    expected, _ = np.histogram(np.abs(images[images != 0]), N_BINS, (0, largest))
    # Values on the edge of a bin may go to either side.
    assert np.abs(np.cumsum(expected) - np.cumsum(one.counts)).max() <= 0.002 * images.size
    assert one.counts.sum() == np.count_nonzero(images)
    assert found["b"].lowest == 0.0


def histogram(values):
    values = np.asarray(values, dtype=np.float64)
    largest = np.abs(values).max()
    counts, _ = np.histogram(np.abs(values), N_BINS, (0, largest))
    return Histogram(float(values.min()), float(values.max()), counts, len(values))


def test_minmax_covers_everything_and_zero():
    assert histogram([2.0, 5.0]).range("minmax") == (0.0, 5.0)
    assert histogram([-3.0, -1.0]).range("minmax") == (-3.0, 0.0)


def test_a_percentile_cuts_one_value_in_ten_thousand():
    values = np.concatenate([np.linspace(0, 1, 99_995), np.full(5, 1000.0)])

    low, high = histogram(values).range("percentile")

    assert low == 0.0
    assert 1.0 <= high <= 1000 / N_BINS * 3
    assert histogram(np.append(values, np.full(20, 1000.0))).range("percentile")[1] == 1000.0


def test_a_percentile_never_reaches_below_what_there_is():
    values = np.concatenate([np.linspace(-1, 4, 50_000), [4.5]])

    assert histogram(values).range("percentile") == pytest.approx((-1.0, 4.0), abs=0.01)


def test_entropy_cuts_a_long_thin_tail_and_keeps_a_flat_top():
    rng = np.random.default_rng(1)
    tailed = np.concatenate([rng.uniform(0, 1, 1_000_000), rng.uniform(1, 50, 20)])

    assert 0.9 <= histogram(tailed).range("entropy")[1] <= 25
    assert histogram(rng.uniform(0, 1, 1_000_000)).range("entropy")[1] >= 0.95


def test_a_tensor_of_zeros_has_no_range():
    nothing = Histogram(0.0, 0.0, np.zeros(N_BINS, dtype=np.int64), 4)

    assert {nothing.range(method) for method in ("minmax", "percentile", "entropy")} == {(0.0, 0.0)}


# The quantised graph


def test_eight_bits_are_those_of_the_rule(network, patches):
    """The first layer, computed by numpy from integers: scales, zero points and rounding are ONNX's."""
    model, ranges = quantized(network, patches[:16])
    found = qdq.quantize(model, ranges)
    found.graph.output.append(helper.make_empty_tensor_value_info("b_DequantizeLinear_Output"))
    (given,) = open_session(found.SerializeToString(), optimized=False).run(
        ["b_DequantizeLinear_Output"], {"pixels": patches[20:21]}
    )

    def steps(low, high):
        scale = np.float32((high - low) / 255)
        return scale, np.round(-low / scale)

    images = ((patches[20].astype(np.float32) - np.float32(127.5)) * np.float32(1 / 60)).transpose(2, 0, 1)
    scale, zero = steps(*ranges["images"])
    seen = (np.clip(np.round(images / scale) + zero, 0, 255) - zero) * scale
    weights = numpy_helper.to_array(next(w for w in model.graph.initializer if w.name == "stem"))
    per_channel = np.abs(weights).max(axis=(1, 2, 3), keepdims=True) / 127
    kept = np.round(weights / per_channel) * per_channel
    padded = np.pad(seen, ((0, 0), (1, 1), (1, 1)))
    expected = np.empty((N_CHANNELS, SIDE_PX // 4, SIDE_PX // 4))
    for row in range(SIDE_PX // 4):
        for column in range(SIDE_PX // 4):
            window = padded[:, row * 4 : row * 4 + 3, column * 4 : column * 4 + 3]
            expected[:, row, column] = (kept * window).sum(axis=(1, 2, 3))
    scale, zero = steps(*ranges["b"])
    expected = (np.clip(np.round(np.maximum(expected, 0) / scale) + zero, 0, 255) - zero) * scale
    difference = np.abs(given[0] - expected)
    # A value halfway between two steps may be rounded to either.
    assert difference.max() <= scale * 1.01
    assert np.mean(difference > scale / 2) < 0.01


def test_squares_are_taken_in_floating_point(network):
    model = qdq.name_nodes(onnx.load(network))

    kinds = [node.op_type for node in qdq.quantized_nodes(model, [])]

    assert kinds == ["Conv", "Relu", "Conv", "Relu", "Add", "MaxPool", "Conv", "Relu"]


def test_what_follows_a_layer_in_floating_point_stays_so_too(network):
    model = qdq.name_nodes(onnx.load(network))
    first, second, third = qdq.find_layers(model)

    names = [node.name for node in qdq.quantized_nodes(model, [first])]

    assert names == [second, "Relu_7", third, "Relu_11"]


def test_layers_are_counted_by_what_they_multiply(network, patches):
    model = qdq.name_nodes(onnx.load(network))
    histograms = count_values(model, ["a", "c", "g"], patches[:1])

    found = qdq.multiplications(model, {name: one.per_patch for name, one in histograms.items()}, [])

    assert list(found.values()) == [16 * 16 * 8 * 27, 16 * 16 * 8 * 9, 2 * 2 * 12 * 8]


@pytest.mark.parametrize(("sides", "turned"), [((3, 5), 0), ((5, 3), 1)])
def test_a_product_with_a_turned_matrix_multiplies_as_often(sides, turned):
    weights = numpy_helper.from_array(np.ones(sides, dtype=np.float32), "w")
    node = helper.make_node("Gemm", ["x", "w"], ["y"], name="Gemm_0", transB=turned)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ("n", n)) for name, n in (("x", 3), ("y", 5))
    ]
    model = helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:], [weights]))

    assert qdq.multiplications(model, {"y": 5}, []) == {"Gemm_0": 15}


def test_only_operators_of_onnx_are_used(network, patches):
    model, ranges = quantized(network, patches[:8])

    found = qdq.quantize(model, ranges)

    assert {node.domain for node in found.graph.node} <= {"", "ai.onnx"}
    assert [(one.domain, one.version) for one in found.opset_import] == [("", 17)]
    assert (found.ir_version, found.producer_version) == (8, "")
    kinds = [node.op_type for node in found.graph.node]
    assert kinds.count("Relu") == 0  # an unsigned range that begins at 0 does the same


def test_what_is_pooled_in_floating_point_is_not_quantised_before(network, patches, tmp_path):
    """ONNX Runtime would: it joins layers in eight bits, and there are none around this pooling."""
    model = qdq.name_nodes(onnx.load(network))
    nodes = {node.op_type: node.name for node in model.graph.node}
    tensors = qdq.tensors_between(model, qdq.quantized_nodes(model, []))
    ranges = {name: one.range("minmax") for name, one in count_values(model, tensors, patches[:8]).items()}
    layers = qdq.find_layers(model)
    found = qdq.quantize(model, ranges, layers[:2]).SerializeToString()
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    suit_eight_bits(options, found)

    ort.InferenceSession(found, options, providers=["CPUExecutionProvider"])

    run = onnx.load(tmp_path / "run.onnx")
    (pooling,) = (node for node in run.graph.node if node.name == nodes["MaxPool"])
    (before,) = (node for node in run.graph.node if pooling.input[0] in node.output)
    assert before.op_type == "Add"


# Fidelity


def test_cosines_and_neighbors_by_hand():
    original = {"embedding": np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]] * 2, dtype=np.float32)}
    original["embedding"][4:] *= 3
    turned = {"embedding": original["embedding"][:, ::-1].copy()}

    same, other = compare(original, original), compare(original, turned)

    assert same.cosine["embedding"] == pytest.approx(1)
    assert (same.overlap, same.n_neighbors, same.n_patches) == (1.0, 2, 8)
    # (1, 0) against (0, 1) is 0; (1, 0.1) against (0.1, 1) is 0.2 / 1.01.
    assert other.cosine["embedding"] == pytest.approx(0.1 / 1.01)
    # Exchanging the axes moves all patches alike: their neighbors stay.
    assert other.overlap == 1.0


def test_what_all_patches_share_is_no_merit():
    rng = np.random.default_rng(2)
    shared_part = np.full((40, 6), 100.0)
    original = {"embedding": (shared_part + rng.normal(size=(40, 6))).astype(np.float32)}
    unrelated = {"embedding": (shared_part + rng.normal(size=(40, 6))).astype(np.float32)}

    found = compare(original, unrelated)

    assert found.cosine["embedding"] > 0.999
    assert abs(found.centered["embedding"]) < 0.3
    assert found.overlap < 0.5


# The search


def test_eight_bits_say_nearly_the_same(network, sample):
    found = int8.quantize_backbone(onnx.load(network), sample)

    truth = encode(open_session(network.read_bytes()), sample.held_out)
    given = encode(open_session(found.model), sample.held_out)
    for name, values in truth.items():
        assert np.abs(given[name] - values).max() <= 0.03 * np.abs(values).max(), name
    assert found.fidelity.cosine["embedding"] > 0.999
    assert found.fidelity == compare(truth, given)
    assert len(found.model) < len(network.read_bytes()) + 8000


def test_the_same_tissue_gives_the_same_bytes(network, sample):
    one, other = (int8.quantize_backbone(onnx.load(network), sample) for _ in range(2))

    assert one.model == other.model


def test_a_first_layer_that_hurts_stays_in_floating_point(network, sample, monkeypatch):
    monkeypatch.setattr(int8, "MOST_IN_FLOAT", 1.0)

    assert int8.quantize_backbone(onnx.load(network), sample).in_float[0] >= 1

    monkeypatch.setattr(int8, "MOST_IN_FLOAT", 0.0)
    assert int8.quantize_backbone(onnx.load(network), sample).in_float == (0, 3)


# Tissue


def test_a_data_set_is_recognised(squares, tmp_path):
    found = find_tissue_source(squares)
    assert (found.name, len(found.sections), len(found.slides)) == ("her2st", 3, 3)

    picture = squares / "ST-imgs/A/A1/squares.png"
    assert find_tissue_source(picture) == Tissue("squares.png", ((picture, None),))
    assert find_tissue_source(picture.parent).slides == ((picture, None),)
    with pytest.raises(SettingError, match="is no slide"):
        find_tissue_source(tmp_path)


def test_patches_of_the_two_halves_share_no_pixel(squares):
    tissue = find_tissue_source(squares)
    # 8 columns of 200 µm: the middle is at 800 µm, a patch 44 µm wide.
    sample = sample_tissue(tissue, 64, 12, 9)

    assert sample.calibration.shape == (12, 64, 64, 3)
    assert sample.held_out.shape == (9, 64, 64, 3)
    left = {patch.tobytes() for patch in sample.calibration}
    assert not left & {patch.tobytes() for patch in sample.held_out}
    again = sample_tissue(tissue, 64, 12, 9)
    np.testing.assert_array_equal(again.calibration, sample.calibration)


def test_too_little_tissue_is_refused(squares):
    tissue = replace(find_tissue_source(squares), slides=())

    with pytest.raises(SettingError, match="too little tissue: 0 patches"):
        sample_tissue(tissue, 64, 12, 9)


# The gate


@pytest.fixture
def mean_color(tmp_path):
    shared.fixtures.write_mean_color_model(tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def spoiled(model, path):
    """Write the same model with all its constants 0: every patch is alike to it."""
    broken = onnx.load(model)
    for item in broken.graph.initializer:
        values = numpy_helper.to_array(item)
        if values.dtype == np.float32:
            item.CopyFrom(numpy_helper.from_array(np.zeros_like(values), item.name))
    path.write_bytes(broken.SerializeToString())
    return path


def test_a_model_that_predicts_as_well_passes(squares, mean_color):
    sections = gate.choose_sections(find_tissue_source(squares).sections)

    (found,) = gate.check_accuracy(sections, mean_color, mean_color, has_map=False)

    assert [section.name for section in sections] == ["A1", "A2"]
    assert found.pooling == "patch"
    assert found.original == found.found > 0.3


def test_a_spoiled_model_is_refused_with_the_numbers(squares, tmp_path):
    network = write_network(tmp_path / "net.onnx")
    broken = write_network(tmp_path / "broken.onnx", head=0.0)
    sections = find_tissue_source(squares).sections

    with pytest.raises(
        QuantizationError, match=r"falls by more than 0\.005 \(patch 0\.\d{4} to -?0\.\d{4}\)"
    ):
        gate.check_accuracy(sections, network, broken, has_map=False)


FINE = Fidelity({"embedding": 0.99, "features": 0.98}, {"embedding": 0.9}, 0.8, 50, 256)


def test_without_expression_the_outputs_are_asked_for():
    gate.check_fidelity(FINE)
    with pytest.raises(QuantizationError, match=r"below 0\.95 \(features 0\.9400\)"):
        gate.check_fidelity(replace(FINE, cosine={"embedding": 0.99, "features": 0.94}))
    with pytest.raises(QuantizationError, match=r"50 nearest neighbors 69% stay the same, less than 70%"):
        gate.check_fidelity(replace(FINE, overlap=0.69))
    with pytest.raises(QuantizationError, match="nan"):
        gate.check_fidelity(replace(FINE, cosine={"embedding": float("nan")}))


# The files


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(lower, "N_CALIBRATION", 12)
    monkeypatch.setattr(lower, "N_HELD_OUT", 24)


@pytest.mark.usefixtures("few")
def test_an_int8_file_says_how_it_was_made(network, squares, tmp_path):
    target = tmp_path / "net.int8.onnx"

    lower.write_int8(network, find_tissue_source(squares), target, overwrite=False)

    encoder = Encoder(target.read_bytes(), "it", device="cpu")
    original = Encoder(network.read_bytes(), "it", device="cpu")
    assert encoder.card == replace(original.card, precision="int8", fp32_sha256=original.sha256)
    told = {prop.key.removeprefix("stinfer."): prop.value for prop in onnx.load(target).metadata_props}
    assert told["calibration"] == "her2st: 12 patches of 3 slides"
    assert len(told["calibration_sha256"]) == 64
    assert told["calibration_method"] in {"minmax", "percentile", "entropy"}
    assert told["float_layers"] in {f"{n} of 3" for n in range(4)}
    assert told["cosine"].startswith("embedding 0.99")
    assert told["neighbor_overlap"].endswith(" of 6 among 24 patches")
    assert told["gate"].startswith("Pearson of A1, A2 held out in turn: patch 0.")
    with pytest.raises(OutputExistsError):
        lower.write_int8(network, find_tissue_source(squares), target, overwrite=False)
    written = target.read_bytes()
    lower.write_int8(network, find_tissue_source(squares), target, overwrite=True)
    assert target.read_bytes() == written


@pytest.mark.usefixtures("few")
def test_a_refused_model_leaves_no_file(network, squares, tmp_path, monkeypatch):
    made = int8.quantize_backbone

    def spoil(model, sample):
        found = made(model, sample)
        return replace(found, model=spoiled_bytes(found.model))

    monkeypatch.setattr(lower, "quantize_backbone", spoil)

    with pytest.raises(QuantizationError, match="falls by more than"):
        lower.write_int8(network, find_tissue_source(squares), tmp_path / "net.int8.onnx", overwrite=False)
    assert list(tmp_path.iterdir()) == []


def spoiled_bytes(model):
    """Make the steps of the last map so wide that all of it is rounded to 0."""
    broken = onnx.load_from_string(model)
    for item in broken.graph.initializer:
        if item.name == "features_scale":
            item.CopyFrom(numpy_helper.from_array(np.asarray(1e6, dtype=np.float32), item.name))
    return broken.SerializeToString(deterministic=True)


@pytest.mark.usefixtures("few")
def test_slides_without_expression_are_said_to_show_less(network, squares, tmp_path, caplog):
    tissue = replace(find_tissue_source(squares), sections=())
    target = tmp_path / "net.int8.onnx"

    lower.write_int8(network, tissue, target, overwrite=False)

    assert "her2st has no expression of two sections" in caplog.text
    props = {prop.key: prop.value for prop in onnx.load(target).metadata_props}
    assert props["stinfer.gate"] == "fidelity only: no expression of two sections"


def test_half_precision_says_the_same(network, patches, tmp_path):
    target = tmp_path / "net.fp16.onnx"

    found = lower.write_fp16(network, target, overwrite=False)

    assert min(found.cosine.values()) >= 0.9999
    half, original = (Encoder(path.read_bytes(), "it", device="cpu") for path in (target, network))
    assert half.card == replace(original.card, precision="fp16", fp32_sha256=original.sha256)
    for one, other in zip(half.embed(patches), original.embed(patches), strict=True):
        assert one == pytest.approx(other, abs=2e-3 * float(np.abs(other).max()))
    model = onnx.load(target)
    onnx.checker.check_model(model)
    kinds = {item.name: item.data_type for item in model.graph.initializer}
    assert {kinds[name] for name in ("stem", "depth", "last")} == {TensorProto.FLOAT16}
    assert {kinds[name] for name in ("middle", "scale", "two")} == {TensorProto.FLOAT}
    again = tmp_path / "again.onnx"
    lower.write_fp16(network, again, overwrite=False)
    assert again.read_bytes() == target.read_bytes()


@pytest.mark.usefixtures("few")
def test_half_precision_stands_in_for_the_banks_model_and_eight_bits_do_not(network, squares, tmp_path):
    half, eight, bank = (tmp_path / name for name in ("net.fp16.onnx", "net.int8.onnx", "bank.h5"))
    lower.write_fp16(network, half, overwrite=False)
    lower.write_int8(network, find_tissue_source(squares), eight, overwrite=False)
    eight.write_bytes(spoiled_bytes(eight.read_bytes()))
    plan = BankPlan("her2st", 200.0, 100.0, pooling="patch", metric="none", k=5)
    build_bank(find_tissue_source(squares).sections, plan, [network], bank, device="cpu")
    asked = {
        "spots": squares / "ST-spotfiles/B1_selection.tsv",
        "mpp": 10.0,
        "device": "cpu",
        "search": "exact",
    }
    slide = squares / "ST-imgs/B/B1/squares.png"

    stinfer.predict_slide(slide, bank, out=tmp_path / "own.h5ad", **asked)
    stinfer.predict_slide(slide, bank, out=tmp_path / "half.h5ad", model=half, **asked)

    with h5py.File(tmp_path / "own.h5ad") as own, h5py.File(tmp_path / "half.h5ad") as other:
        assert 0.9999 <= h5ad.read_scalars(other["uns/stinfer/run"])["model_cosine"] < 1
        np.testing.assert_allclose(h5ad.read_array(other, "X"), h5ad.read_array(own, "X"), atol=0.02)
    with pytest.raises(SettingError, match=r"\(int8\) does not agree with .* \(fp32\): cosine 0\.0000"):
        stinfer.predict_slide(slide, bank, out=tmp_path / "eight.h5ad", model=eight, **asked)


def test_what_half_precision_cannot_hold_is_refused(tmp_path):
    large = write_network(tmp_path / "large.onnx", head=1e5)

    with pytest.raises(QuantizationError, match="its embedding is not finite"):
        lower.write_fp16(large, tmp_path / "half.onnx", overwrite=False)
    assert not (tmp_path / "half.onnx").exists()
