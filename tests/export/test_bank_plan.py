"""What a bank's plan leaves to the backbone, what it refuses, and the metric that is fitted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.decomposition import PCA

from stinfer.contract import MapTraits, ModelCard
from stinfer.embed import FieldOfView
from stinfer.errors import SettingError
from stinfer.metric import project
from stinfer_export.bank_plan import BankPlan, choose_metric, choose_view, fit_metric

# 224 px of 154 µm: the scale of most sections of her2st.
MAP_UM_PER_PX = 0.6875
NETWORK = ModelCard("net.x", 224, 1280, 1280, 32, "", "fp32", MapTraits(7, (-5.0, -5.0)), "")
WITH_HEAD = ModelCard("stain_texture", 224, 94, 60, 32, "", "fp32", MapTraits(1, (0.0, 0.0), b"head"), "")
DEEP = ModelCard("vit.x", 384, 768, 768, 16, "", "fp32", None, "its features depend on the whole image")
OLD = ModelCard("old.x", 224, 512, 512, 32, "", "fp32")


def _plan(**changes):
    return BankPlan("her2st", 200.0, 100.0, **changes)


# What is looked at


@pytest.mark.parametrize("card", [NETWORK, WITH_HEAD])
@pytest.mark.parametrize("pooling", [None, "map"])
def test_a_backbone_with_a_map_is_read_through_three_windows(card, pooling):
    view = choose_view(_plan(pooling=pooling), card)

    assert view == FieldOfView("map", (154.0, 309.0, 618.0), "square", MAP_UM_PER_PX)


@pytest.mark.parametrize(("card", "um_per_px"), [(DEEP, 154 / 384), (OLD, MAP_UM_PER_PX)])
def test_a_backbone_without_a_map_encodes_patches(card, um_per_px):
    view = choose_view(_plan(), card)

    assert view == FieldOfView("patch", (154.0,), "square", um_per_px)


def test_patches_may_be_asked_of_any_backbone():
    assert choose_view(_plan(pooling="patch", fov_um=(112.0,)), NETWORK) == FieldOfView(
        "patch", (112.0,), "square", 0.5
    )


def test_windows_of_a_map_are_those_asked_for_at_the_scale_of_all_maps():
    view = choose_view(_plan(fov_um=(22.0, 154.0, 400.5), window="disc"), NETWORK)

    assert view == FieldOfView("map", (22.0, 154.0, 400.5), "disc", MAP_UM_PER_PX)


@pytest.mark.parametrize(
    ("card", "reason"),
    [
        (DEEP, "vit.x cannot encode a slide as a map: its features depend on the whole image"),
        (OLD, "old.x cannot encode a slide as a map: its model file does not say how: export it again"),
    ],
)
def test_a_map_of_a_backbone_without_one_is_refused_with_its_reason(card, reason):
    with pytest.raises(SettingError) as caught:
        choose_view(_plan(pooling="map"), card)

    assert caught.value.what == reason
    assert caught.value.fix == "use --pooling patch, or another backbone"


ASCENDING = "are not 1 to 8 ascending sides"
RANGE = "is not between 1 and 10000 µm"


@pytest.mark.parametrize("card", [NETWORK, DEEP])
@pytest.mark.parametrize(
    ("sides_um", "cause"),
    [
        ((309.0, 154.0), f"--fov-um 309,154 {ASCENDING}"),
        ((154.0, 154.0), f"--fov-um 154,154 {ASCENDING}"),
        ((154.0, 309.0, 309.0), f"--fov-um 154,309,309 {ASCENDING}"),
        ((), f"--fov-um  {ASCENDING}"),
        (tuple(range(100, 109)), f"--fov-um 100,101,102,103,104,105,106,107,108 {ASCENDING}"),
        ((0.0,), f"--fov-um 0 {RANGE}"),
        ((-154.0,), f"--fov-um -154 {RANGE}"),
        ((0.99, 154.0), f"--fov-um 0.99,154 {RANGE}"),
        ((154.0, 10_000.5), f"--fov-um 154,10000.5 {RANGE}"),
        ((math.inf,), f"--fov-um inf {RANGE}"),
        ((154.0, math.inf), f"--fov-um 154,inf {RANGE}"),
        ((-math.inf, 154.0), f"--fov-um -inf,154 {RANGE}"),
        ((math.nan,), f"--fov-um nan {RANGE}"),
        ((154.0, math.nan), "--fov-um 154,nan "),
        ((math.nan, 154.0), "--fov-um nan,154 "),
    ],
)
def test_windows_that_are_none_are_refused(card, sides_um, cause):
    with pytest.raises(SettingError) as caught:
        choose_view(_plan(fov_um=sides_um), card)

    assert caught.value.what.startswith(cause)


def test_eight_windows_are_not_too_many():
    assert len(choose_view(_plan(fov_um=tuple(range(100, 108))), NETWORK).sides_um) == 8


@pytest.mark.parametrize("plan", [{"fov_um": (154.0, 309.0)}, {"window": "disc"}])
@pytest.mark.parametrize(("card", "pooling"), [(NETWORK, "patch"), (DEEP, None)])
def test_a_patch_is_one_square(plan, card, pooling):
    with pytest.raises(SettingError) as caught:
        choose_view(_plan(pooling=pooling, **plan), card)

    assert caught.value.what == "--pooling patch encodes one square around each spot"
    assert caught.value.fix == "give one --fov-um and no --window, or use --pooling map"


def test_a_patch_is_not_coarser_than_a_bank_may_be():
    # 20 µm per pixel is the most that the runtime reads.
    assert choose_view(_plan(fov_um=(7680.0,)), DEEP).um_per_px == 20.0

    with pytest.raises(SettingError) as caught:
        choose_view(_plan(fov_um=(7681.0,)), DEEP)

    assert caught.value.what == (
        "--fov-um 7681 is 20.003 µm per pixel on the 384 px that vit.x takes, more than 20"
    )
    assert caught.value.fix == "give at most 7680, or use --pooling map"


# The metric


@pytest.mark.parametrize(
    ("card", "plan", "kind"),
    [
        (NETWORK, {}, "pca"),
        (NETWORK, {"pooling": "patch"}, "standardize"),
        (NETWORK, {"pooling": "patch", "metric": "pca"}, "pca"),
        (NETWORK, {"metric": "standardize"}, "standardize"),
        (NETWORK, {"metric": "none"}, "none"),
        (WITH_HEAD, {}, "standardize"),
        (WITH_HEAD, {"metric": "none"}, "none"),
        # A patch's embedding is not averaged any more, so it may be projected.
        (WITH_HEAD, {"pooling": "patch", "metric": "pca"}, "pca"),
        (DEEP, {}, "standardize"),
        (DEEP, {"metric": "pca"}, "pca"),
    ],
)
def test_the_metric_is_principal_components_of_maps_that_may_be_projected(card, plan, kind):
    plan = _plan(**plan)

    assert choose_metric(plan, choose_view(plan, card), card) == kind


def test_principal_components_of_cells_with_a_head_are_refused():
    plan = _plan(metric="pca")

    with pytest.raises(SettingError) as caught:
        choose_metric(plan, choose_view(plan, WITH_HEAD), WITH_HEAD)

    assert caught.value.what == (
        "--metric pca projects cells before they are averaged, which stain_texture does not allow"
    )
    assert caught.value.fix.endswith("use --metric standardize")


def _windows(rng, n_refs, n_windows, n_channels):
    """Embeddings whose channels hang together, differ in scale, and differ in mean between windows."""
    mixed = rng.normal(size=(n_refs, n_windows, n_channels)) @ rng.normal(size=(n_channels, n_channels))
    mixed *= np.geomspace(0.01, 100, n_channels)
    mixed += 50 * rng.normal(size=(n_windows, n_channels))
    return mixed


def test_principal_components_are_those_of_all_windows_together():
    windows = _windows(np.random.default_rng(3), 300, 3, 10)
    raw = windows.reshape(300, 30).astype(np.float32)

    projection, metric = fit_metric(raw, "pca", 3)

    stacked = (windows - windows.mean(axis=0)).reshape(900, 10)
    scale = windows.reshape(900, 10).std(axis=0)
    found = PCA(n_components=10).fit(stacked / scale)
    directions = projection.astype(np.float64) * scale[:, None]
    # Of a direction and its opposite, either may be given.
    np.testing.assert_allclose(np.abs(found.components_ @ directions), np.eye(10), atol=2e-3)
    assert (directions[np.abs(directions).argmax(axis=0), range(10)] > 0).all()
    embedding = metric.apply(project(raw, projection)).reshape(300, 3, 10)
    np.testing.assert_allclose(embedding.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(embedding.var(axis=0).sum(axis=1), 1, rtol=1e-4)
    # The windows alone are balanced: within one, the first component still varies most.
    by_hand = ((windows - windows.mean(axis=0)) / scale) @ directions
    by_hand /= np.sqrt(by_hand.var(axis=0).sum(axis=1))[:, None]
    np.testing.assert_allclose(embedding, by_hand, atol=2e-3)


@pytest.mark.parametrize(("n_refs", "kept"), [(200, 64), (65, 64), (40, 39), (2, 1), (1, 1)])
def test_64_components_are_kept_and_fewer_of_few_references(n_refs, kept):
    raw = _windows(np.random.default_rng(5), n_refs, 2, 70).reshape(n_refs, 140).astype(np.float32)

    projection, metric = fit_metric(raw, "pca", 2)

    assert projection.shape == (70, kept)
    assert metric.mean.shape == metric.components.shape == (2 * kept,)
    assert np.isfinite(metric.apply(project(raw, projection))).all()


def test_without_principal_components_there_is_no_projection():
    raw = _windows(np.random.default_rng(6), 50, 2, 4).reshape(50, 8).astype(np.float32)

    projection, metric = fit_metric(raw, "none", 2)
    assert projection is None
    np.testing.assert_array_equal(metric.apply(raw), raw)

    projection, metric = fit_metric(raw, "standardize", 2)
    assert projection is None
    np.testing.assert_allclose(metric.apply(raw).std(axis=0), 1, rtol=1e-3)
