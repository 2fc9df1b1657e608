"""Networks, resumed after any step: to the last bit what they give in one go."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from stinfer.checkpoint import Checkpoint
from stinfer.contract import F32, MapTraits, ModelCard
from stinfer.embed import FieldOfView, iter_patch_embeddings
from stinfer.encoder import Encoder
from stinfer.encoder_stack import EncoderStack, Member
from stinfer.feature_map import SlideCells
from stinfer.slide import Slide, open_slide
from stinfer.step_file import StepFile
from stinfer_export.export_all import export_backbone

UM_PER_PX = 0.6875
CHANNELS = (3, 16, 32, 48)
STRIDE_PX = 8


def write_network(path: Path) -> None:
    """Write three convolutions of 3 x 3 with stride 2 and random weights; a cell sees 15 px."""
    rng = np.random.default_rng(1)
    nodes = [
        helper.make_node("Cast", ["pixels"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["values"], ["layer0"], perm=[0, 3, 1, 2]),
    ]
    weights = []
    for i, (n_in, n_out) in enumerate(pairwise(CHANNELS)):
        kernel = rng.normal(size=(n_out, n_in, 3, 3)) / np.sqrt(9 * n_in) / (255 if i == 0 else 1)
        weights.append(numpy_helper.from_array(kernel.astype(np.float32), f"kernel{i}"))
        inputs, output = [f"layer{i}", f"kernel{i}"], "features" if i == 2 else f"layer{i + 1}"
        nodes.append(helper.make_node("Conv", inputs, [f"sum{i}"], strides=[2, 2], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"sum{i}"], [output]))
    nodes.append(helper.make_node("ReduceMean", ["features"], ["embedding"], axes=[2, 3], keepdims=0))
    sizes = {"embedding": ["n", CHANNELS[-1]], "features": ["n", CHANNELS[-1], "rows", "columns"]}
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", "height", "width", 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in sizes.items()],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    traits = MapTraits(1, (0.0, 0.0))
    card = ModelCard(
        "network", 224, CHANNELS[-1], CHANNELS[-1], STRIDE_PX, "", "fp32", map_traits=traits, map_refusal=""
    )
    helper.set_model_props(model, card.to_props())
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


@pytest.fixture(scope="module", params=["network", "stain_texture"])
def encoders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Encoder]:
    folder = tmp_path_factory.mktemp("model")
    if request.param == "network":
        write_network(folder / "network.onnx")
    else:
        export_backbone("stain_texture", None, folder)
    model = (folder / f"{request.param}.onnx").read_bytes()
    return {
        pooling: Encoder(model, request.param, pooling=pooling, device="cpu", threads=2)
        for pooling in ("map", "patch")
    }


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slide]:
    rng = np.random.default_rng(5)
    colors = rng.integers((150, 40, 130), (230, 140, 210), (31, 41, 3), endpoint=True).astype(np.uint8)
    pixels = np.asarray(
        Image.fromarray(colors).resize((1300, 1000), Image.Resampling.BICUBIC), dtype=np.int64
    )
    noisy = np.clip(pixels + rng.integers(-15, 15, pixels.shape), 0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("slide") / "tissue.png"
    Image.fromarray(noisy).save(path)
    with open_slide(path, 0.5) as opened:
        yield opened


def cut_and_resumed(path: Path, n_done: int, steps, monkeypatch: pytest.MonkeyPatch) -> list[F32]:
    """Run until so many steps are done, and again to the end."""
    real = StepFile.add

    def add(file: StepFile, values: F32) -> None:
        if file.n_done == n_done:
            raise KeyboardInterrupt
        real(file, values)

    with monkeypatch.context() as patched:
        patched.setattr(StepFile, "add", add)
        with pytest.raises(KeyboardInterrupt), Checkpoint(path, {}) as checkpoint:
            list(steps(checkpoint))
    assert path.exists()
    with Checkpoint(path, {}) as checkpoint:
        found = list(steps(checkpoint))
    assert not path.exists()
    return found


def test_a_map_resumed_after_any_region_is_the_same_to_the_last_bit(
    tmp_path: Path, encoders: dict[str, Encoder], slide: Slide, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = encoders["map"]
    projection = None  # where a head turns means into embeddings
    if not encoder.card.map_traits.head:
        projection = np.random.default_rng(3).normal(size=(encoder.card.channels, 7)).astype(np.float32)
    shapes: list[tuple[int, ...]] = []
    real = encoder.features

    def features(pixels: np.ndarray) -> F32:
        shapes.append(pixels.shape[1:3])
        return real(pixels)

    monkeypatch.setattr(encoder, "features", features)

    planned: list[tuple[int, ...]] = []

    def bands(checkpoint: Checkpoint | None) -> Iterator[F32]:
        stack = EncoderStack([Member(encoder, projection=projection)], "map")
        source = SlideCells(slide, stack, UM_PER_PX, region_px=288, checkpoint=checkpoint)
        needed = np.ones((source.lattice.n_rows, source.lattice.n_columns), dtype=bool)
        # Regions of several shapes, the first of them not the largest.
        half = source.lattice.n_columns // 2
        needed[:3, :half] = needed[-4:, half:] = needed[:, -2:] = False
        planned[:] = source.encoded_px(needed)
        yield from (band.features for band in source.iter_bands(needed, None))

    whole = list(bands(None))
    # The first is encoded as large as any; which of two threads is done first is chance.
    largest = (max(height for height, _ in planned), max(width for _, width in planned))
    plain, n_regions = [largest, *planned[1:]], len(planned)
    assert len(set(plain)) > 2
    assert planned[0] != largest
    assert sorted(shapes) == sorted(plain)
    for n_done in range(1, n_regions):
        shapes.clear()
        found = cut_and_resumed(tmp_path / "c", n_done, bands, monkeypatch)
        for band, expected in zip(found, whole, strict=True):
            assert band.tobytes() == expected.tobytes()
        # Memory is taken as in the first run: something as large as any comes first.
        resumed = shapes[-(n_regions - n_done) - 1 :]
        assert resumed[0] == largest
        assert sorted(resumed[1:]) == sorted(plain[n_done:])


def test_patches_resumed_after_any_batch_are_the_same_to_the_last_bit(
    tmp_path: Path, encoders: dict[str, Encoder], slide: Slide, monkeypatch: pytest.MonkeyPatch
) -> None:
    centers = np.random.default_rng(4).uniform(0, 1000, (23, 2))
    view = FieldOfView("patch", (154.0,), "square", UM_PER_PX)

    def batches(checkpoint: Checkpoint | None) -> Iterator[F32]:
        stack = EncoderStack([Member(encoders["patch"])], "patch")
        found = iter_patch_embeddings(slide, centers, stack, view, 5, None, checkpoint)
        yield from (embeddings for _, embeddings in found)

    whole = list(batches(None))
    assert [len(batch) for batch in whole] == [5, 5, 5, 5, 3]
    for n_done in range(1, 5):
        found = cut_and_resumed(tmp_path / "c", n_done, batches, monkeypatch)
        assert [batch.tobytes() for batch in found] == [batch.tobytes() for batch in whole]
