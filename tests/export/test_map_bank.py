"""Banks of maps: every reference worked out cell by cell, with plain loops."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import anndata
import numpy as np
import pytest
from PIL import Image

import stinfer
from stinfer import feature_map
from stinfer.bank import Bank
from stinfer.embed import FieldOfView, iter_map_embeddings, open_encoders
from stinfer.encoder import Encoder
from stinfer.errors import SettingError
from stinfer.feature_map import SlideCells, tissue_on
from stinfer.neighbors import ExactSearch
from stinfer.slide import open_slide
from stinfer.tissue import find_tissue
from stinfer_export.bank_builder import build_bank
from stinfer_export.bank_plan import BankPlan

_SPEC = importlib.util.spec_from_file_location("bank_sections", Path(__file__).parent / "bank_sections.py")
shared = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(shared)
_section, _build, write_cell_model = shared.section, shared.build, shared.write_cell_model

# The scale of all maps, so that nothing is resampled; neither side is a multiple of a cell.
UM_PER_PX = 154 / 224
WIDTH_PX, HEIGHT_PX = 1990, 1510
STRIDE_PX = shared.CELL_STRIDE_PX
GENES = ("A", "B", "C")
NOT_LEARNED = "the metric is not learned: it needs at least two sections, each of at least 5 spots"
# A hole in the tissue, wider than the gaps that are filled.
HOLE = (slice(400, 800), slice(500, 900))
IN_HOLE = (700.0, 600.0)


@pytest.fixture(autouse=True)
def small_regions(monkeypatch):
    """Encode regions of at most 640 px, so that a section needs several."""
    monkeypatch.setattr(feature_map, "ENCODED_PX", 640)


def _tissue_image():
    """Paint tissue of changing color on glass, with a hole."""
    rng = np.random.default_rng(11)
    colors = rng.integers((150, 40, 130), (230, 140, 210), (9, 11, 3), endpoint=True).astype(np.uint8)
    smooth = Image.fromarray(colors).resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.BICUBIC)
    pixels = np.asarray(smooth, dtype=np.int64) + rng.integers(-15, 15, (HEIGHT_PX, WIDTH_PX, 3))
    pixels[HOLE] = 246
    pixels[:, :70] = 246
    pixels[-45:] = 246
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _centers(n):
    """Places that lie on no line of cells, three of them half a window from an edge."""
    rng = np.random.default_rng(2)
    edge = [(60.3, 300.0), (WIDTH_PX - 70.0, 150.7), (333.3, HEIGHT_PX - 60.0)]
    inner = rng.uniform((120, 120), (WIDTH_PX - 120, HEIGHT_PX - 120), (n - len(edge) - 1, 2))
    return [*edge, IN_HOLE, *inner.tolist()]


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "tissue.png"
    Image.fromarray(_tissue_image()).save(path)
    return path


@pytest.fixture(scope="module")
def tissue_section(image):
    centers = _centers(24)
    counts = np.random.default_rng(9).integers(1, 60, (len(centers), len(GENES)))
    return _section(image, "P1", GENES, counts, centers, mpp=UM_PER_PX)


@pytest.fixture(scope="module", params=[0, 1], ids=["no halo", "halo and offset"])
def cell_model(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "cells.onnx"
    write_cell_model(path, halo_cells=request.param)
    return path


def _plan(**changes):
    return BankPlan("her2st", 200.0, 100.0, **({"fov_um": (154.0, 309.0, 618.0)} | changes))


# Worked out by hand


def _cells_by_hand(image, model):
    """Encode the section at once, amid white; (n_rows, n_columns, channels)."""
    encoder = Encoder(model.read_bytes(), "by hand", pooling="map", device="cpu")
    traits = encoder.card.map_traits
    n_rows, n_columns = math.ceil(HEIGHT_PX / STRIDE_PX), math.ceil(WIDTH_PX / STRIDE_PX)
    # A cell sees what lies `offset` beyond its own middle: the one that sees its own pixels' middle begins
    # so much before them.
    beyond = traits.halo_cells * STRIDE_PX
    left, top = (beyond + round(offset) for offset in traits.offset_px)
    canvas = np.full(
        (n_rows * STRIDE_PX + 2 * beyond, n_columns * STRIDE_PX + 2 * beyond, 3), 255, dtype=np.uint8
    )
    canvas[top : top + HEIGHT_PX, left : left + WIDTH_PX] = np.asarray(Image.open(image))
    (features,) = encoder.features(canvas[None])
    halo = traits.halo_cells
    return features.transpose(1, 2, 0)[halo : halo + n_rows, halo : halo + n_columns].astype(np.float64)


def _overlap(a, b, c, d):
    return max(min(b, d) - max(a, c), 0.0)


def _tissue_by_hand(image, n_rows, n_columns):
    """Part of every cell that is tissue, by the pixels of the mask."""
    with open_slide(image, UM_PER_PX) as slide:
        mask = find_tissue(slide)
    scale_x, scale_y = mask.l0_per_px
    part = np.zeros((n_rows, n_columns))
    for row in range(n_rows):
        for column in range(n_columns):
            x0, y0 = column * STRIDE_PX, row * STRIDE_PX
            for y in range(int(y0 / scale_y), min(int((y0 + STRIDE_PX) / scale_y) + 1, len(mask.mask))):
                high = _overlap(y * scale_y, (y + 1) * scale_y, y0, y0 + STRIDE_PX)
                for x in range(
                    int(x0 / scale_x), min(int((x0 + STRIDE_PX) / scale_x) + 1, mask.mask.shape[1])
                ):
                    wide = _overlap(x * scale_x, (x + 1) * scale_x, x0, x0 + STRIDE_PX)
                    part[row, column] += mask.mask[y, x] * wide * high / STRIDE_PX**2
    return part


def _square_area(x, y, side, row, column):
    return _overlap(x - side / 2, x + side / 2, column, column + 1) * _overlap(
        y - side / 2, y + side / 2, row, row + 1
    )


def _disc_area(x, y, side, row, column, n=200):
    if math.hypot(column + 0.5 - x, row + 0.5 - y) > side / 2 + 1:
        return 0.0
    at = (np.arange(n) + 0.5) / n
    return float(((column + at[None] - x) ** 2 + (row + at[:, None] - y) ** 2 < (side / 2) ** 2).mean())


def _pooled_by_hand(cells, tissue, centers_px, sides_um, area_of):
    """Average cells in windows, weighted with area and tissue, and say where with area alone."""
    pooled = np.zeros((len(centers_px), len(sides_um), cells.shape[2]))
    by_area = []
    for i, center in enumerate(np.asarray(centers_px) / STRIDE_PX):
        areas = [
            np.array(
                [
                    [area_of(*center, side_um / UM_PER_PX / STRIDE_PX, r, c) for c in range(cells.shape[1])]
                    for r in range(len(cells))
                ]
            )
            for side_um in sides_um
        ]
        by_area.append((areas[0] * tissue).sum() < 0.05 * areas[0].sum())
        for window, area in enumerate(areas):
            weights = area if by_area[-1] else area * tissue
            pooled[i, window] = (weights[:, :, None] * cells).sum(axis=(0, 1)) / weights.sum()
    return pooled, by_area


@pytest.fixture(scope="module")
def tissue_share(image):
    shape = (math.ceil(HEIGHT_PX / STRIDE_PX), math.ceil(WIDTH_PX / STRIDE_PX))
    share = _tissue_by_hand(image, *shape)
    # Glass, tissue, and cells with some of both.
    assert (share == 0).sum() > 50
    assert (share > 1 - 1e-9).sum() > 300
    assert ((share > 0.01) & (share < 0.99)).sum() > 10
    return share


def test_embeddings_are_the_metric_of_projected_means_of_cells(
    image, tissue_section, cell_model, tissue_share, tmp_path
):
    summary, bank = _build([tissue_section], _plan(k=3), cell_model, tmp_path / "a.h5")

    cells = _cells_by_hand(image, cell_model)
    pooled, by_area = _pooled_by_hand(
        cells, tissue_share, tissue_section.centers_l0, (154, 309, 618), _square_area
    )
    s = bank.settings
    assert (s.pooling, s.fov_um, s.window, s.metric) == ("map", (154, 309, 618), "square", "pca")
    assert s.um_per_px == UM_PER_PX
    assert by_area == [tuple(place) == IN_HOLE for place in tissue_section.centers_l0.tolist()]
    assert summary.notices == (
        "section P1: 1 spots have hardly any tissue in their window of 154 µm; all that is in their windows "
        "is averaged, glass too",
        "union of the sections' genes: 3, all of them listed in every section",
        NOT_LEARNED,
    )
    projected = (pooled @ bank.projections[0].astype(np.float64)).reshape(24, -1)
    expected = (projected - bank.metric.mean) * bank.metric.components
    np.testing.assert_allclose(bank.embedding, expected, atol=2e-4)
    # What was fitted was fitted on these: every window has mean 0 and total variance 1.
    np.testing.assert_allclose(expected.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(expected.reshape(24, 3, -1).var(axis=0).sum(axis=1), 1, rtol=1e-3)


@pytest.mark.parametrize(
    ("window", "area_of", "atol"), [("square", _square_area, 1e-5), ("disc", _disc_area, 1e-4)]
)
def test_windows_of_either_shape_are_averaged(
    image, tissue_section, cell_model, tissue_share, tmp_path, window, area_of, atol
):
    plan = _plan(fov_um=(60.0, 199.0), window=window, metric="none", k=3)

    _, bank = _build([tissue_section], plan, cell_model, tmp_path / "a.h5")

    # The first ten: a disc's area takes long to count.
    pooled, _ = _pooled_by_hand(
        _cells_by_hand(image, cell_model),
        tissue_share,
        tissue_section.centers_l0[:10],
        (60, 199),
        area_of,
    )
    assert bank.settings.window == window
    np.testing.assert_allclose(bank.embedding[:10], pooled.reshape(10, -1), atol=atol)
    assert np.ptp(pooled, axis=0).max() > 1000 * atol


def test_a_head_sees_the_means_and_its_embeddings_are_standardized(
    image, tissue_section, tissue_share, tmp_path
):
    model = tmp_path / "squares.onnx"
    write_cell_model(model, head=True)

    _, bank = _build([tissue_section], _plan(k=3), model, tmp_path / "a.h5")

    pooled, _ = _pooled_by_hand(
        _cells_by_hand(image, model), tissue_share, tissue_section.centers_l0, (154, 309, 618), _square_area
    )
    raw = (pooled**2).reshape(24, -1)
    assert bank.settings.metric == "standardize"
    assert bank.projections == (None,)
    spread = raw.std(axis=0)
    varies = spread > 0
    np.testing.assert_allclose(
        bank.embedding[:, varies],
        ((raw - raw.mean(axis=0)) / np.where(varies, spread, 1))[:, varies],
        atol=1e-3,
    )
    np.testing.assert_allclose(bank.embedding[:, varies].std(axis=0), 1, rtol=1e-4)


# The bank and its query


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("head", [False, True])
def test_a_reference_is_found_again_at_its_own_place(image, tissue_section, tmp_path, distance, head):
    model = tmp_path / "cells.onnx"
    write_cell_model(model, halo_cells=1, head=head)
    _, bank = _build([tissue_section], _plan(k=3, distance=distance), model, tmp_path / "a.h5")

    encoders = open_encoders(bank, device="cpu", threads=1)
    with open_slide(image, UM_PER_PX) as slide:
        source = SlideCells(slide, encoders, bank.settings.um_per_px, region_px=320)
        tissue = tissue_on(source.lattice, find_tissue(slide), slide.mpp)
        places = source.lattice.to_cells(bank.spatial, slide.mpp)
        plan = FieldOfView.of(bank.settings).plan(places, source.lattice.cell_um, tissue)
        queries = np.empty((bank.n_refs, len(bank.metric.mean)), dtype=np.float32)
        for found, raw in iter_map_embeddings(source, plan, plan.needed, encoders, None):
            queries[found] = raw
    distances, nearest = ExactSearch(bank.embedding, distance).query(bank.metric.apply(queries), 2)

    np.testing.assert_array_equal(nearest[:, 0], np.arange(bank.n_refs))
    assert distances[:, 0].max() < (1e-6 if distance == "cosine" else 2e-3)
    assert distances[:, 1].min() > 20 * distances[:, 0].max()


def test_a_section_predicts_itself(image, tissue_section, cell_model, tmp_path):
    _, bank = _build([tissue_section], _plan(k=3), cell_model, tmp_path / "a.h5")
    places = [",".join(["name", "x", "y"])]
    places += [f"{name},{x},{y}" for name, (x, y) in zip(bank.spots, bank.spatial.tolist(), strict=True)]
    (tmp_path / "spots.csv").write_text("\n".join(places) + "\n")

    stinfer.predict_slide(
        image,
        bank.path,
        out=tmp_path / "p.h5ad",
        mpp=UM_PER_PX,
        spots=tmp_path / "spots.csv",
        k=1,
        genes="all",
        device="cpu",
    )

    read = anndata.read_h5ad(tmp_path / "p.h5ad")
    assert tuple(read.obs_names) == bank.spots
    np.testing.assert_allclose(read.X, shared.dense(bank), rtol=1e-6)
    assert read.obs["in_domain"].all()


# Runs


def test_the_same_input_gives_the_same_bytes(tissue_section, cell_model, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        build_bank([tissue_section], _plan(), [cell_model], tmp_path / name / "x.h5", device="cpu")

    assert (tmp_path / "a/x.h5").read_bytes() == (tmp_path / "b/x.h5").read_bytes()


def test_another_field_of_view_gives_another_bank(tissue_section, cell_model, tmp_path):
    banks = [
        _build([tissue_section], _plan(fov_um=sides), cell_model, tmp_path / "a.h5", overwrite=True)[1]
        for sides in ((154.0, 309.0), (154.0, 310.0))
    ]

    changed = {part for part, digest in banks[0].hashes.items() if banks[1].hashes[part] != digest}
    # What is known of genes: their accuracy.
    assert changed - {"annoy"} == {"settings", "genes", "embedding", "raw_embedding", "metric", "calibration"}


def test_progress_tells_of_every_region(tissue_section, cell_model, tmp_path):
    told = []

    _build(
        [tissue_section],
        _plan(),
        cell_model,
        tmp_path / "a.h5",
        progress=lambda done, total, unit: told.append((done, total, unit)),
    )

    n_regions = told[0][1]
    assert told == [(done, n_regions, "regions") for done in range(n_regions + 1)]
    assert n_regions >= 6


def test_notices_are_those_of_each_section(image, tmp_path):
    model = tmp_path / "cells.onnx"
    write_cell_model(model)
    on_tissue, on_glass = (300.0, 200.0), (690.0, 570.0)
    sections = [
        _section(image, "P1", "AB", [[1, 2], [2, 1]], [on_tissue, (400.0, 200.0)], mpp=UM_PER_PX),
        _section(image, "P2", "AB", [[1, 2]] * 3, [IN_HOLE, on_glass, on_tissue], mpp=UM_PER_PX),
        _section(
            image, "P3", "AB", [[1, 2], [3, 2], [0, 0]], [on_tissue, (-5.0, 9.0), IN_HOLE], mpp=UM_PER_PX
        ),
    ]

    summary, bank = _build(sections, _plan(k=1, fov_um=(100.0,)), model, tmp_path / "a.h5")

    # Nothing is said of white beyond the image: windows leave it out.
    assert summary.notices == (
        "section P2: 2 spots have hardly any tissue in their window of 100 µm; all that is in their windows "
        "is averaged, glass too",
        "section P3: 1 spots have no counts above 0; dropped",
        "section P3: 1 spots have more than 25% of their 100 µm outside the image; dropped",
        "union of the sections' genes: 2, all of them listed in every section",
        NOT_LEARNED,
    )
    assert bank.spots == ("P1_0x7", "P1_1x7", "P2_0x7", "P2_1x7", "P2_2x7", "P3_0x7")
    assert bank.sections == ("P1", "P1", "P2", "P2", "P2", "P3")
    # The same place of the same image, whichever spots its section has beside it.
    np.testing.assert_allclose(bank.embedding[[4, 5]], bank.embedding[[0, 0]], atol=1e-5)


@pytest.mark.parametrize("all_outside", [False, True])
def test_a_window_wholly_outside_the_image_is_never_averaged(image, tmp_path, all_outside):
    model = tmp_path / "cells.onnx"
    write_cell_model(model)
    # The pitch is 200 µm, so that places up to 145 px outside are still of this image.
    centers = [(-20.0, 300.0), (300.0, -15.0), (300.0, 300.0)][: 2 if all_outside else 3]
    section = _section(image, "P1", "AB", [[1, 2]] * len(centers), centers, mpp=UM_PER_PX)
    plan = _plan(k=1, fov_um=(20.0, 200.0), max_outside=1.0)

    if all_outside:
        with pytest.raises(SettingError, match="no section has a spot that can be used"):
            _build([section], plan, model, tmp_path / "a.h5")
        assert not (tmp_path / "a.h5").exists()
        return
    summary, bank = _build([section], plan, model, tmp_path / "a.h5")

    assert bank.spots == ("P1_2x7",)
    assert summary.notices[0] == "section P1: 2 spots have all of their 20 µm outside the image; dropped"


def test_a_backbone_without_a_map_encodes_patches_and_says_why(tissue_section, tmp_path):
    model = tmp_path / "deep.onnx"
    write_cell_model(model, refusal="every cell sees the whole image")

    summary, bank = _build([tissue_section], _plan(fov_um=None), model, tmp_path / "a.h5")

    assert summary.notices[0] == "patches are encoded, not a map: every cell sees the whole image"
    assert (bank.settings.pooling, bank.settings.metric) == ("patch", "pca")
    asked = _build([tissue_section], _plan(pooling="patch", fov_um=None), model, tmp_path / "b.h5")
    assert not [notice for notice in asked[0].notices if notice.startswith("patches are encoded")]
    np.testing.assert_array_equal(asked[1].embedding, bank.embedding)


@pytest.mark.parametrize(
    ("refusal", "head", "changes", "cause"),
    [
        (
            "every cell sees the whole image",
            False,
            {"pooling": "map"},
            "a map: every cell sees the whole image$",
        ),
        ("", True, {"metric": "pca"}, "before they are averaged, which cells does not allow$"),
        ("", False, {"fov_um": (309.0, 154.0)}, "ascending sides$"),
        ("", False, {"fov_um": (154.0, math.nan)}, "154,nan"),
        ("", False, {"pooling": "patch", "window": "disc"}, "one square around each spot$"),
    ],
)
def test_what_cannot_be_embedded_is_refused_before_a_section_is_read(tmp_path, refusal, head, changes, cause):
    def never():
        pytest.fail("a section was read")
        yield

    model = tmp_path / "cells.onnx"
    write_cell_model(model, refusal=refusal, head=head)

    with pytest.raises(SettingError, match=cause):
        build_bank(never(), _plan(**changes), [model], tmp_path / "a.h5", device="cpu")

    assert list(tmp_path.iterdir()) == [model]


def test_the_bank_is_read_again_as_it_was_written(tissue_section, cell_model, tmp_path):
    _, bank = _build([tissue_section], _plan(window="disc"), cell_model, tmp_path / "a.h5")

    read = anndata.read_h5ad(bank.path)
    uns = read.uns["stinfer"]
    assert uns["format_version"] == 3
    assert (uns["pooling"], uns["window"], uns["metric"]) == ("map", "disc", "pca")
    assert uns["fov_um"].tolist() == [154, 309, 618]
    np.testing.assert_array_equal(uns["projection_0"], bank.projections[0])
    np.testing.assert_array_equal(read.obsm["embedding"], Bank.open(bank.path).embedding)
