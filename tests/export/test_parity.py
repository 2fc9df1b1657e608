"""The check that a converted network computes what the network computes."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("timm")

from stinfer_export import parity  # noqa: E402  # after the skips
from stinfer_export.errors import ParityError  # noqa: E402
from stinfer_export.registry import BackboneSpec  # noqa: E402
from stinfer_export.tissue_noise import tissue_patch  # noqa: E402

SPEC = BackboneSpec("toy", input_size_px=32, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))


class Toy(torch.nn.Module):
    """Embedding: the mean of each normalised channel; features: the normalised pixels."""

    def forward_features(self, images):
        return images

    def forward(self, images):
        return images.mean(dim=(2, 3))


class Staged(torch.nn.Module):
    """Features: pixels averaged over 8 px; before that, over 4 px."""

    def __init__(self):
        super().__init__()
        self.feature_info = [{"module": "stage", "num_chs": 3, "reduction": 4}]
        self.stage, self.last = torch.nn.AvgPool2d(4), torch.nn.AvgPool2d(2)

    def forward_features(self, images):
        return self.last(self.stage(images))

    def forward(self, images):
        return self.forward_features(images).mean(dim=(2, 3))


def _write_staged(path, *, square_first=True):
    """Write by hand what it is: the squares of 4 px averaged; or else, wrongly, the average squared."""
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    constants = {
        "scale": 255 * np.array(SPEC.std, np.float32),
        "offset": 255 * np.array(SPEC.mean, np.float32),
    }

    def average(given, found, side):
        return helper.make_node("AveragePool", [given], [found], kernel_shape=[side] * 2, strides=[side] * 2)

    moments = [helper.make_node("Mul", ["stage", "stage"], ["squares"]), average("squares", "moments_0", 2)]
    if not square_first:
        moments = [helper.make_node("Mul", ["features", "features"], ["moments_0"])]
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["images"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["images", "offset"], ["centred"]),
        helper.make_node("Div", ["centred", "scale"], ["normal"]),
        average("normal", "stage", 4),
        average("stage", "features", 2),
        *moments,
        helper.make_node("ReduceMean", ["features", "axes"], ["embedding"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "staged",
        [helper.make_tensor_value_info("pixels", onnx.TensorProto.UINT8, ["n", "height", "width", 3])],
        [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            for name in ("embedding", "features", "moments_0")
        ],
        [
            *(numpy_helper.from_array(values.reshape(3, 1, 1), name) for name, values in constants.items()),
            numpy_helper.from_array(np.array([2, 3], np.int64), "axes"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def test_mean_squares_of_stages_are_compared_too(tmp_path):
    errors = parity.check_parity(Staged(), _write_staged(tmp_path / "a.onnx"), SPEC)

    assert list(errors) == ["embedding", "features", "moments_0"]
    assert 0.0 < errors["moments_0"] < 1e-5
    with pytest.raises(ParityError, match=r"moments_0 of 1 patches of 16 x 24 px: relative error"):
        parity.check_parity(Staged(), _write_staged(tmp_path / "b.onnx", square_first=False), SPEC)


def test_the_reference_runs_a_network_once_and_keeps_what_its_head_changes():
    class Doubling(Staged):
        n_runs = 0

        def forward_features(self, images):
            self.n_runs += 1
            return super().forward_features(images)

        def forward(self, images):
            return self.forward_features(images).mul_(2).mean(dim=(2, 3))

    network = Doubling()
    pixels = np.full((1, 16, 24, 3), 51, np.uint8)
    found = parity.reference(network, SPEC, pixels, None)

    # 51 is a fifth of 255: (0.2 - mean) / std.
    normalised = [0.2, 0.0, -0.5]
    np.testing.assert_allclose(found["features"][0, :, 1, 2], normalised, atol=1e-6)
    np.testing.assert_allclose(found["embedding"], [[0.4, 0.0, -1.0]], atol=1e-6)
    assert network.n_runs == 1
    assert "forward_features" not in vars(network)


def _write_toy(path, *, mean=SPEC.mean, embedding_axes=(2, 3), height="height"):
    """Write by hand what the toy is, so that nothing of the exporter takes part."""
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    scale = 255 * np.array(SPEC.std, np.float32).reshape(3, 1, 1)
    offset = 255 * np.array(mean, np.float32).reshape(3, 1, 1)
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["images"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["images", "offset"], ["centred"]),
        helper.make_node("Div", ["centred", "scale"], ["features"]),
        helper.make_node("ReduceMean", ["features", "axes"], ["embedding"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("pixels", onnx.TensorProto.UINT8, ["n", height, "width", 3])],
        [
            helper.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, None),
            helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, None),
        ],
        [
            numpy_helper.from_array(offset, "offset"),
            numpy_helper.from_array(scale, "scale"),
            numpy_helper.from_array(np.array(embedding_axes, np.int64), "axes"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def test_the_same_network_passes(tmp_path):
    errors = parity.check_parity(Toy(), _write_toy(tmp_path / "a.onnx"), SPEC)

    assert list(errors) == ["embedding", "features"]
    assert errors["features"] < 1e-6
    assert 0.0 < errors["embedding"] < 1e-5


def test_a_slightly_different_normalisation_is_found(tmp_path):
    path = _write_toy(tmp_path / "a.onnx", mean=(0.101, 0.2, 0.3))

    with pytest.raises(ParityError, match=r"of toy .*embedding of 1 patches of 16 x 24 px: relative"):
        parity.check_parity(Toy(), path, SPEC)
    assert parity.check_parity(Toy(), path, SPEC, tolerance=0.1)["features"] > 1e-4


def test_another_shape_is_found(tmp_path):
    path = _write_toy(tmp_path / "a.onnx", embedding_axes=(1, 2))

    with pytest.raises(ParityError, match=r"shape \(1, 24\) instead of \(1, 3\)"):
        parity.check_parity(Toy(), path, SPEC)


def test_what_is_no_onnx_file_is_found(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"no model")

    with pytest.raises(ParityError, match="ONNX Runtime does not load it"):
        parity.check_parity(Toy(), tmp_path / "a.onnx", SPEC)


def test_a_file_that_fails_on_a_batch_is_found(tmp_path):
    with pytest.raises(ParityError, match="ONNX Runtime fails on 1 patches"):
        parity.check_parity(Toy(), _write_toy(tmp_path / "a.onnx", height=7), SPEC)


def test_relative_error_is_of_the_largest_value():
    truth = np.array([[1.0, -4.0]], np.float32)
    found = np.array([[1.0, -4.5]], np.float32)

    assert parity.relative_error(found, truth, "toy", "batch") == 0.125
    assert parity.relative_error(truth, truth, "toy", "batch") == 0.0


@pytest.mark.parametrize(
    ("found", "truth", "cause"),
    [([0.0], [0.0], "zero everywhere"), ([np.nan], [1.0], "not finite"), ([1.0], [np.inf], "not finite")],
)
def test_a_comparison_that_shows_nothing_is_no_success(found, truth, cause):
    with pytest.raises(ParityError, match=cause):
        parity.relative_error(np.array(found, np.float32), np.array(truth, np.float32), "toy", "batch")


def test_batches_are_of_several_sizes_and_the_same_every_time():
    batches = list(parity.sample_batches(SPEC))

    assert [pixels.shape for pixels in batches] == [(1, 16, 24, 3), (2, 64, 96, 3), (5, 32, 32, 3)]
    assert all(pixels.dtype == np.uint8 for pixels in batches)
    for one, again in zip(batches, parity.sample_batches(SPEC), strict=True):
        assert np.array_equal(one, again)


def test_patches_are_tissue_like_and_random_in_turn():
    (*_, five) = parity.sample_batches(SPEC)

    roughness = np.abs(np.diff(five.astype(float), axis=2)).mean(axis=(1, 2, 3))
    assert [rough > 50 for rough in roughness] == [False, True, False, True, False]


def test_a_network_of_one_size_is_compared_at_that_size():
    shapes = [pixels.shape for pixels in parity.sample_batches(replace(SPEC, fixed_size=True))]

    assert shapes == [(1, 32, 32, 3), (2, 32, 32, 3), (5, 32, 32, 3)]


def test_tissue_is_pink_and_purple_and_smooth():
    patch = tissue_patch(np.random.default_rng(1), 256, 320).astype(float)

    red, green, blue = patch.reshape(-1, 3).mean(axis=0)
    assert red > green + 20
    assert blue > green + 20
    # Neighbors differ far less than random pixels would (85 of 255 on average).
    assert np.abs(np.diff(patch, axis=1)).mean() < 10
    # Glass, stroma and nuclei are all there.
    assert patch[..., 0].min() < 150
    assert patch[..., 1].max() > 230
