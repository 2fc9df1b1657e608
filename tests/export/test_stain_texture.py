"""The analytic encoder, run by ONNX Runtime, against the definitions of its statistics in numpy."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas
import pytest
from PIL import Image

from stinfer.contract import MODEL_EMBEDDING, MODEL_FEATURES, MODEL_INPUT, MapTraits, ModelCard
from stinfer_export.stain_texture import DENSITY_BINS, HEMATOXYLIN_BINS, add_features, write_stain_texture
from stinfer_export.stain_texture_embedding import ENERGY_FLOOR, VARIANCE_FLOOR, add_embedding, build_head
from stinfer_export.stain_texture_graph import Block, GraphBuilder

STAIN_VECTORS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
STAINS = ("hematoxylin", "eosin", "residual")
CHANNELS = add_features(GraphBuilder(), MODEL_INPUT).names
ENTRIES = add_embedding(GraphBuilder(), Block(CHANNELS, "means")).names
# Amount of each stain in a gray pixel, per unit of optical density.
STAINS_OF_GRAY = np.linalg.solve(STAIN_VECTORS.T, np.ones(3))


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "stain_texture.onnx"
    write_stain_texture(path)
    return path


@pytest.fixture(scope="module")
def session(model_path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model_path, providers=["CPUExecutionProvider"])


def encode(session: onnxruntime.InferenceSession, *images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    embedding, features = session.run([MODEL_EMBEDDING, MODEL_FEATURES], {MODEL_INPUT: np.stack(images)})
    return embedding, features


def entries(session: onnxruntime.InferenceSession, image: np.ndarray) -> dict[str, float]:
    return dict(zip(ENTRIES, encode(session, image)[0][0].astype(float), strict=True))


def channels(session: onnxruntime.InferenceSession, image: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(CHANNELS, encode(session, image)[1][0].astype(float), strict=True))


def tissue(height: int = 96, width: int = 128, seed: int = 0) -> np.ndarray:
    """Make smooth random colors with some noise: neither flat nor white noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(60, 250, (height // 8 + 1, width // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)
    noisy = coarse[:height, :width] + rng.normal(0, 12, (height, width, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def gray(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[:, :, np.newaxis], 3, axis=2).astype(np.uint8)


def density_of(image: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(image.astype(float), 8) / 255)


def stains_of(image: np.ndarray) -> np.ndarray:
    """Solve ``density = stains @ STAIN_VECTORS`` for every pixel: (height, width, 3)."""
    flat = density_of(image).reshape(-1, 3)
    return np.linalg.solve(STAIN_VECTORS.T, flat.T).T.reshape(image.shape)


def halved(stains: np.ndarray) -> np.ndarray:
    return (stains[::2, ::2] + stains[1::2, ::2] + stains[::2, 1::2] + stains[1::2, 1::2]) / 4


def test_card_is_returned_and_is_all_the_metadata(tmp_path: Path) -> None:
    card = write_stain_texture(tmp_path / "model.onnx")
    traits = MapTraits(1, (0.0, 0.0), build_head(CHANNELS))
    assert card == ModelCard(
        "stain_texture", 224, len(ENTRIES), len(CHANNELS), 32, "", "fp32", (), traits, ""
    )
    opened = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert opened.get_modelmeta().custom_metadata_map == card.to_props()
    model = onnx.load(tmp_path / "model.onnx")
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    assert (model.ir_version, model.producer_name, model.doc_string) == (8, "stinfer", "")


def test_interface(session: onnxruntime.InferenceSession) -> None:
    (pixels,) = session.get_inputs()
    assert (pixels.name, pixels.type) == ("pixels", "tensor(uint8)")
    assert pixels.shape == ["n", "height", "width", 3]
    embedding, features = session.get_outputs()
    assert (embedding.name, embedding.type, embedding.shape) == ("embedding", "tensor(float)", ["n", 78])
    assert (features.name, features.type, features.shape[:2]) == ("features", "tensor(float)", ["n", 94])
    assert len(set(ENTRIES)) == 78
    assert len(set(CHANNELS)) == 94


def test_same_bytes_twice(tmp_path: Path) -> None:
    write_stain_texture(tmp_path / "a.onnx")
    (tmp_path / "b.onnx").write_bytes(b"what was there before")
    write_stain_texture(tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(OSError, match=r"model\.onnx"):
        write_stain_texture(tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_no_learning_stack_is_imported() -> None:
    code = (
        "import sys; import stinfer_export.stain_texture; "
        "sys.exit(', '.join({'torch', 'torchvision', 'timm', 'scipy'} & set(sys.modules)) or 0)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_stain_moments(session: onnxruntime.InferenceSession) -> None:
    image = tissue()
    found, stains = entries(session, image), stains_of(image)
    fine = halved(stains)
    for i, stain in enumerate(STAINS):
        values, boxes = stains[:, :, i], fine[:, :, i]
        assert found[f"mean_{stain}"] == pytest.approx(values.mean(), abs=1e-4)
        assert found[f"deviation_{stain}"] == pytest.approx(values.std(), abs=1e-4)
        assert found[f"variance1_{stain}"] == pytest.approx(np.log1p(boxes.var() / VARIANCE_FLOOR), abs=1e-3)
        coarse = halved(halved(halved(fine)))[:, :, i]
        assert found[f"variance4_{stain}"] == pytest.approx(np.log1p(coarse.var() / VARIANCE_FLOOR), abs=1e-3)
    correlation = np.corrcoef(fine[:, :, 0].ravel(), fine[:, :, 1].ravel())[0, 1]
    assert found["correlation1"] == pytest.approx(correlation, abs=2e-3)


def test_pure_hematoxylin_is_hematoxylin(session: onnxruntime.InferenceSession) -> None:
    pixel = np.round(255 * np.exp(-0.8 * STAIN_VECTORS[0]))
    found = entries(session, np.tile(pixel, (64, 64, 1)).astype(np.uint8))
    assert [found[f"mean_{stain}"] for stain in STAINS] == pytest.approx([0.8, 0, 0], abs=0.01)


@pytest.mark.parametrize(
    ("name", "centers"), [("hematoxylin_bin", HEMATOXYLIN_BINS), ("density_bin", DENSITY_BINS)]
)
def test_histogram_shares(
    session: onnxruntime.InferenceSession, name: str, centers: tuple[float, ...]
) -> None:
    """Of means over 2 x 2 px: 16 to a cell's side."""
    image = tissue(32, 64)
    stains, density = halved(stains_of(image)), halved(density_of(image)).mean(axis=2)
    values = stains[:, :, 0] if name == "hematoxylin_bin" else density
    found = channels(session, image)
    shares = np.array([found[f"{name}_{i}"] for i in range(len(centers))])
    for i in range(len(centers)):
        hat = np.interp(values, centers, np.eye(len(centers))[i])
        assert shares[i, 0] == pytest.approx([hat[:, :16].mean(), hat[:, 16:].mean()], abs=1e-5)
    assert shares.sum(axis=0) == pytest.approx(np.ones((1, 2)), abs=1e-5)


def test_hue(session: onnxruntime.InferenceSession) -> None:
    image = tissue()
    density = np.moveaxis(halved(density_of(image)), 2, 0)
    total = density.mean(axis=0)
    x = (density[0] - total) / (total + 0.1)
    y = (density[1] - density[2]) / np.sqrt(3) / (total + 0.1)
    found = entries(session, image)
    for axis, values in (("x", x), ("y", y)):
        assert found[f"hue_mean_{axis}"] == pytest.approx(values.mean(), abs=1e-4)
        assert found[f"hue_deviation_{axis}"] == pytest.approx(values.std(), abs=1e-3)


def test_gradients_of_stripes(session: onnxruntime.InferenceSession) -> None:
    """Stripes two pixels wide: every central difference is plus or minus half the step, 0 at the border."""
    step = np.log(200 / 100)
    width = 64
    stripes = np.tile(np.array([200, 200, 100, 100]), (width, width // 4))
    energy = (STAINS_OF_GRAY[0] * step / 2) ** 2 * (width - 2) / width
    upright, lying = entries(session, gray(stripes)), entries(session, gray(stripes.T))
    means = {name: cells.mean() for name, cells in channels(session, gray(stripes)).items()}
    assert means["xx0_hematoxylin"] == pytest.approx(energy, rel=1e-4)
    assert means["yy0_hematoxylin"] == pytest.approx(0, abs=1e-9)
    # Four-pixel boxes at the border hold one column without gradient, and still one direction only.
    assert means["anisotropy0_hematoxylin"] == pytest.approx(energy, rel=1e-4)
    for found in (upright, lying):
        assert found["coherence0_hematoxylin"] == pytest.approx(energy / (energy + ENERGY_FLOOR), rel=1e-4)
    # Gray has a positive amount of hematoxylin and a negative one of eosin: opposite gradients.
    assert STAINS_OF_GRAY[1] < 0 < STAINS_OF_GRAY[0]
    assert upright["alignment0"] == pytest.approx(-1, abs=0.01)


def test_gradient_of_a_diagonal_ramp_is_mixed(session: onnxruntime.InferenceSession) -> None:
    rows, columns = np.indices((64, 64))
    image = gray(np.round(255 * np.exp(-0.01 * (rows + columns))))
    found = {name: cells.mean() for name, cells in channels(session, image).items()}
    # The mirrored border pixels, 2 of 64 rows or columns, have no gradient across the border.
    energy = (STAINS_OF_GRAY[0] * 0.01) ** 2
    assert found["xx0_hematoxylin"] == pytest.approx(energy * 62 / 64, rel=0.02)
    assert found["yy0_hematoxylin"] == pytest.approx(energy * 62 / 64, rel=0.02)
    assert found["xy0_hematoxylin"] == pytest.approx(energy * (62 / 64) ** 2, rel=0.02)
    # One level up, the same slope per pixel of the slide is twice the slope per pixel of the level.
    assert found["xx1_hematoxylin"] == pytest.approx(4 * energy * 30 / 32, rel=0.02)


def test_band_of_dots(session: onnxruntime.InferenceSession) -> None:
    """A point less its binomial blur: 1 - (6/16)² at the point, the rest negative."""
    dots = np.full((64, 64), 200)
    dots[4::8, 4::8] = 100
    amplitude = STAINS_OF_GRAY[0] * np.log(2)
    peak, blur = 36 / 256, (70 / 256) ** 2
    found = {name: cells.mean() for name, cells in channels(session, gray(dots)).items()}
    band = amplitude**2 * (1 - 2 * peak + blur) / 64
    dark = amplitude**2 * (1 - peak) ** 2 / 64
    assert found["band0_hematoxylin"] == pytest.approx(band, rel=1e-4)
    assert found["blob0_hematoxylin"] == pytest.approx(dark, rel=1e-4)
    blobness = entries(session, gray(dots))["blobness0_hematoxylin"]
    assert blobness == pytest.approx((2 * dark - band) / (band + ENERGY_FLOOR), rel=1e-4)
    inverted = entries(session, gray(300 - dots))["blobness0_hematoxylin"]
    assert inverted == pytest.approx(-blobness, rel=1e-3)


@pytest.mark.parametrize("color", [(255, 255, 255), (0, 0, 0), (200, 120, 180)])
def test_uniform_image_has_no_texture(
    session: onnxruntime.InferenceSession, color: tuple[int, int, int]
) -> None:
    found = entries(session, np.tile(np.array(color, np.uint8), (96, 96, 1)))
    assert np.isfinite(list(found.values())).all()
    texture = {
        name: value
        for name, value in found.items()
        if not name.startswith(("mean", "hue_mean")) and "_bin_" not in name
    }
    # Variances are differences of float32 moments, for black of up to 60 a piece, over a floor of 1e-3.
    assert max(map(abs, texture.values())) < 0.03
    expected = np.linalg.solve(STAIN_VECTORS.T, -np.log(np.maximum(color, 8) / 255))
    assert [found[f"mean_{stain}"] for stain in STAINS] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "turn",
    [np.fliplr, np.flipud, np.rot90, lambda image: np.swapaxes(image, 0, 1)],
    ids=["mirrored", "upside down", "quarter turn", "transposed"],
)
def test_embedding_knows_no_direction(
    session: onnxruntime.InferenceSession, turn: Callable[[np.ndarray], np.ndarray]
) -> None:
    image = tissue(96, 128, seed=1)
    expected, _ = encode(session, image)
    found, _ = encode(session, np.ascontiguousarray(turn(image)))
    assert found == pytest.approx(expected, abs=2e-4)


def test_embedding_is_the_statistics_of_mean_features(session: onnxruntime.InferenceSession) -> None:
    head = onnxruntime.InferenceSession(build_head(CHANNELS), providers=["CPUExecutionProvider"])
    embedding, features = encode(session, tissue(seed=2), tissue(seed=3))
    (found,) = head.run(None, {"means": features.mean(axis=(2, 3))})
    assert found == pytest.approx(embedding, abs=1e-4)


def test_cells_away_from_the_border_do_not_see_it(session: onnxruntime.InferenceSession) -> None:
    image = tissue(160, 192)
    _, whole = encode(session, image)
    _, part = encode(session, image[32:160, 32:192])
    assert part[:, :, 1:3, 1:4] == pytest.approx(whole[:, :, 2:4, 2:5], abs=1e-6)


@pytest.mark.parametrize("n_threads", [1, 3, 16])
def test_bits_depend_neither_on_the_batch_nor_on_threads(
    model_path: Path, session: onnxruntime.InferenceSession, n_threads: int
) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    other = onnxruntime.InferenceSession(model_path, options, providers=["CPUExecutionProvider"])
    images = [tissue(128, 160, seed) for seed in range(3)]
    embedding, features = encode(session, *images)
    for batch in ([0], [1, 2], [2, 1, 0]):
        found, cells = encode(other, *(images[i] for i in batch))
        np.testing.assert_array_equal(found, embedding[batch])
        np.testing.assert_array_equal(cells, features[batch])


def test_what_is_beyond_whole_cells_is_left_out(session: onnxruntime.InferenceSession) -> None:
    image = tissue(100, 95)
    embedding, features = encode(session, image)
    expected, cells = encode(session, image[:96, :64])
    np.testing.assert_array_equal(features, cells)
    np.testing.assert_array_equal(embedding, expected)


@pytest.mark.parametrize(
    ("height", "width", "cells"),
    [(32, 32, (1, 1)), (33, 95, (1, 2)), (63, 224, (1, 7)), (100, 37, (3, 1)), (224, 224, (7, 7))],
)
def test_any_size(
    session: onnxruntime.InferenceSession, height: int, width: int, cells: tuple[int, int]
) -> None:
    image = tissue(height, width)
    embedding, features = encode(session, image)
    assert features.shape == (1, len(CHANNELS), *cells)
    assert np.isfinite(embedding).all()
    used = stains_of(image)[: 32 * cells[0], : 32 * cells[1]].mean(axis=(0, 1))
    assert embedding[0, :3] == pytest.approx(used, abs=1e-4)


def her2st_section(folder: Path, section: str) -> tuple[pandas.DataFrame, np.ndarray]:
    """Read counts, and patches of 154 µm around their spots, at 224 px."""
    spots = pandas.read_csv(folder / f"ST-spotfiles/{section}_selection.tsv", sep="\t")
    spots.index = [f"{x}x{y}" for x, y in zip(spots.x, spots.y, strict=True)]
    counts = pandas.read_csv(folder / f"ST-cnts/{section}.tsv.gz", sep="\t", index_col=0)
    spots = spots.loc[spots.index.intersection(counts.index)]
    (image_path,) = (folder / f"ST-imgs/{section[0]}/{section}").glob("*.jpg")
    half_px = 154 / (200 / 290) / 2
    with Image.open(image_path) as image:
        patches = [
            np.asarray(image.resize((224, 224), box=(x - half_px, y - half_px, x + half_px, y + half_px)))
            for x, y in zip(spots.pixel_x, spots.pixel_y, strict=True)
        ]
    return counts.loc[spots.index], np.stack(patches)


@pytest.mark.slow
def test_predicts_expression_of_a_held_out_section(
    session: onnxruntime.InferenceSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """her2st C5 from C2, C3 and C4: standardized entries, cosine, 50 neighbors, weights 1/d."""
    data = Path(os.environ.get("STINFER_DATA", Path(__file__).parents[2].parent / "shared"))
    folder = data / "her2st"
    if not folder.exists():
        pytest.skip(f"no {folder}: the her2st sections C2 to C5 are needed")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    sections = [her2st_section(folder, section) for section in ("C2", "C3", "C4", "C5")]
    joined = pandas.concat([counts for counts, _ in sections], join="inner").to_numpy(float)
    totals = np.concatenate([counts.to_numpy().sum(axis=1) for counts, _ in sections])
    expression = np.log1p(joined / totals[:, np.newaxis] * 1e4)
    n_refs = len(expression) - len(sections[-1][0])
    detected = np.flatnonzero((joined[:n_refs] > 0).mean(axis=0) > 0.3)
    genes = detected[np.argsort(expression[:n_refs, detected].var(axis=0))[-250:]]
    embedding = np.concatenate(
        [
            encode(session, *patches[i : i + 16])[0]
            for _, patches in sections
            for i in range(0, len(patches), 16)
        ]
    )
    embedding = (embedding - embedding[:n_refs].mean(axis=0)) / embedding[:n_refs].std(axis=0)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    distance = 1 - embedding[n_refs:] @ embedding[:n_refs].T
    nearest = np.argsort(distance, axis=1)[:, :50]
    weights = 1 / np.take_along_axis(distance, nearest, axis=1)
    weights /= weights.sum(axis=1, keepdims=True)
    predicted = np.einsum("sk,skg->sg", weights, expression[:n_refs, genes][nearest])
    measured = expression[n_refs:, genes]
    pearson = [np.corrcoef(*pair)[0, 1] for pair in zip(predicted.T, measured.T, strict=True)]
    assert np.mean(pearson) > 0.28
