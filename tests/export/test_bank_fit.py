"""What a bank is read by: its projections and metric by plain arithmetic, and what calibrates it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA

from stinfer.errors import SettingError
from stinfer.record import Notices
from stinfer_export import bank_fit
from stinfer_export.bank_fit import fit_bank, project
from stinfer_export.bank_plan import BankPlan
from stinfer_export.recipe import MetricFit, Spots, learn

_SPEC = importlib.util.spec_from_file_location("joined_parts", Path(__file__).parent / "joined_parts.py")
shared = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(shared)
_join, _card, _layout = shared.join, shared.card, shared.layout

# A network with two stages' mean squares, and one whose head turns 3 channels into 4 numbers.
NETWORK = _card("net.x", 6, moments=(2, 3))
WITH_HEAD = _card("stain_texture", 3, head_dim=4)
NOT_LEARNED = "the metric is not learned: it needs at least two sections, each of at least 5 spots"


def _plan(**changes):
    return BankPlan("her2st", 200.0, 100.0, **changes)


def _sections(dim, sizes=(20, 17, 23), seed=3):
    """Join sections whose expression follows their embeddings, each at another level."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(len(sizes)), sizes)
    latent = rng.normal(size=(len(codes), 4))
    raw = latent @ rng.normal(size=(4, dim)) + 0.5 * rng.normal(size=(len(codes), dim))
    raw = 2 + raw * np.geomspace(0.05, 20, dim)
    expression = np.maximum(3 + codes[:, None] + latent @ rng.normal(size=(4, 12)), 0)
    expression += 0.2 * rng.uniform(size=expression.shape)
    return _join(raw, expression, codes, rng.uniform(100, 900, len(codes)))


def _as_spots(joined, layout):
    totals = np.concatenate([part.totals for part in joined.parts])
    return Spots(joined.embeddings, layout.all_blocks, joined.expression, totals, joined.section_codes)


def _notices(joined, layout, plan):
    notices = Notices()
    fit = fit_bank(joined, layout, plan, notices)
    return fit, list(notices.texts)


# What an embedding consists of


def test_parts_of_an_embedding_by_hand():
    layout = _layout([NETWORK, WITH_HEAD], n_windows=2)

    assert layout.widths == (11, 4)
    assert layout.all_blocks == (6, 2, 3, 4, 6, 2, 3, 4)
    assert layout.projectable == (True, False)
    # Window 0 of the network, of the other; window 1 of the network, of the other.
    first, second = layout.parts(np.arange(60, dtype=np.float32).reshape(2, 30))
    assert first[0].tolist() == [list(range(11)), list(range(15, 26))]
    assert second[1].tolist() == [list(range(41, 45)), list(range(56, 60))]


def test_a_patch_is_one_block_of_each_backbone_and_may_always_be_projected():
    layout = _layout([NETWORK, WITH_HEAD], n_windows=1, pooling="patch")

    assert (layout.widths, layout.all_blocks, layout.projectable) == ((6, 4), (6, 4), (True, True))


# The supervised metric, written as projections of cells


@pytest.mark.parametrize(
    ("cards", "pooling", "n_windows"),
    [
        ([NETWORK], "map", 1),
        ([NETWORK], "map", 3),
        ([WITH_HEAD], "map", 3),
        ([NETWORK, WITH_HEAD], "map", 1),
        ([WITH_HEAD, NETWORK, _card("other.y", 5)], "map", 3),
        ([NETWORK, WITH_HEAD], "patch", 1),
    ],
)
def test_projections_and_metric_are_the_whole_affine_map_of_raw_embeddings(cards, pooling, n_windows):
    layout = _layout(cards, n_windows, pooling)
    joined = _sections(n_windows * sum(layout.widths))
    learned = learn(_as_spots(joined, layout))

    fit, _ = _notices(joined, layout, _plan())

    raw = joined.embeddings.astype(np.float64)
    expected = (raw - learned.mean) @ learned.components
    np.testing.assert_allclose(fit.embedding, expected, atol=5e-5 * np.abs(expected).max())
    # What cells, or patches, are projected by; a head's cells stay as they are.
    n_kept = learned.components.shape[1]
    shapes = [None if one is None else one.shape for one in fit.projections]
    assert shapes == [
        (width, n_windows * n_kept) if projectable else None
        for width, projectable in zip(layout.widths, layout.projectable, strict=True)
    ]
    assert (fit.metric_kind, fit.distance, fit.weighting) == ("supervised", "euclidean", "softmax")
    assert (fit.tuning, fit.cross_validation) == ("leave-one-section-out", "leave-one-section-out")


def test_projected_cells_may_be_averaged_afterwards():
    layout = _layout([NETWORK], 2)
    joined = _sections(22)
    fit, _ = _notices(joined, layout, _plan())
    rng = np.random.default_rng(1)
    cells = rng.normal(size=(9, 11)).astype(np.float32)
    windows = [[0, 1, 2], list(range(9))]
    means = np.concatenate([cells[window].mean(axis=0) for window in windows])[None]

    projected = cells @ fit.projections[0]
    found = fit.metric.apply(np.concatenate([projected[window].mean(axis=0) for window in windows])[None])

    expected = fit.metric.apply(project(means, fit.projections, layout))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


# Where nothing can be learned


@pytest.mark.parametrize("sizes", [(30,), (30, 4)])
@pytest.mark.parametrize(("cards", "kind"), [([NETWORK], "pca"), ([NETWORK, WITH_HEAD], "standardize")])
def test_one_section_or_too_small_ones_are_not_learned_from_and_that_is_told(sizes, cards, kind):
    layout = _layout(cards, 1)
    joined = _sections(sum(layout.widths), sizes)

    fit, notices = _notices(joined, layout, _plan())

    n_refs = sum(sizes)
    assert notices == [NOT_LEARNED, f"k is {n_refs // 5}, not 100: a 5th of the {n_refs} references"]
    assert (fit.metric_kind, fit.distance, fit.k, fit.tuning) == (kind, "cosine", n_refs // 5, "none")
    assert fit.cross_validation == ("leave-one-spot-out" if len(sizes) == 1 else "leave-one-section-out")


def test_sections_of_five_spots_are_learned_from():
    layout = _layout([NETWORK], 1)

    fit, notices = _notices(_sections(11, (5, 5)), layout, _plan())

    assert fit.metric_kind == "supervised"
    # Nothing is said of the neighbors: the references chose them.
    assert notices == []
    assert fit.k == 5


def test_a_supervised_metric_of_one_section_is_refused():
    layout = _layout([NETWORK], 1)

    with pytest.raises(SettingError) as caught:
        _notices(_sections(11, (30,)), layout, _plan(metric="supervised"))

    assert caught.value.what == ("--metric supervised cannot be fitted to 1 sections of at least 30 spots")
    assert caught.value.fix.startswith("it needs at least two sections, each of at least 5 spots")


@pytest.mark.parametrize(("n_refs", "scheme"), [(1, "none"), (2, "leave-one-spot-out")])
def test_few_references_are_predicted_spot_by_spot_and_one_by_nothing(n_refs, scheme):
    fit, _ = _notices(_sections(11, (n_refs,)), _layout([NETWORK], 1), _plan())

    assert (fit.cross_validation, fit.k) == (scheme, 1)


@pytest.mark.parametrize(
    ("changes", "kind", "distance"),
    [
        ({"metric": "standardize"}, "standardize", "cosine"),
        ({"metric": "pca"}, "pca", "cosine"),
        ({"metric": "none", "distance": "euclidean"}, "none", "euclidean"),
        ({"distance": "cosine"}, "supervised", "cosine"),
        ({"metric": "supervised"}, "supervised", "euclidean"),
    ],
)
def test_what_is_asked_for_is_taken_where_sections_could_be_learned_from(changes, kind, distance):
    fit, notices = _notices(_sections(11), _layout([NETWORK], 1), _plan(k=7, **changes))

    assert (fit.metric_kind, fit.distance, fit.k) == (kind, distance, 7)
    assert notices == []


@pytest.mark.parametrize("metric", ["none", "supervised"])
def test_more_neighbors_than_references_are_refused(metric):
    layout = _layout([NETWORK], 1)

    assert _notices(_sections(11), layout, _plan(metric=metric, k=60))[0].k == 60
    with pytest.raises(SettingError, match=r"^--k 61 is larger than the bank's 60 references$"):
        _notices(_sections(11), layout, _plan(metric=metric, k=61))


# Calibration


def _by_hand(joined, layout, k, temperature, fitted_on):
    """Predict every section from the others; `fitted_on` says on what the metric for it is fitted."""
    spots = _as_spots(joined, layout)
    codes = joined.section_codes
    expression = joined.expression.columns(np.arange(12)).astype(np.float64)
    penalty = learn(spots).penalty
    pearson, nearest = [], []
    for section in range(3):
        held, known = codes == section, codes != section
        fit = MetricFit(spots[np.flatnonzero(fitted_on(codes, section))])
        places = (joined.embeddings - fit.mean) @ fit.components(penalty)
        distances = np.sqrt(((places[held][:, None] - places[known][None]) ** 2).sum(axis=2))
        order = np.argsort(distances, axis=1)
        near = np.take_along_axis(distances, order, axis=1)
        weights = np.exp(-near[:, :k] / temperature)
        weights /= weights.sum(axis=1, keepdims=True)
        predicted = (weights[:, :, None] * expression[known][order[:, :k]]).sum(axis=1)
        pearson.append([np.corrcoef(predicted[:, g], expression[held][:, g])[0, 1] for g in range(12)])
        nearest.append(near[:, :10].mean(axis=1))
    return np.array(pearson), np.percentile(np.concatenate(nearest), range(101))


def test_a_supervised_bank_is_calibrated_with_metrics_that_never_saw_the_section():
    layout = _layout([NETWORK, WITH_HEAD], 2)
    joined = _sections(30)

    fit, _ = _notices(joined, layout, _plan(k=12))

    learned = learn(_as_spots(joined, layout), k=12)
    assert fit.calibration.temperature == pytest.approx(learned.temperature, rel=1e-12)
    found = fit.calibration
    pearson, quantiles = _by_hand(
        joined, layout, 12, found.temperature, lambda codes, section: codes != section
    )
    np.testing.assert_allclose(found.gene_pearson, pearson.mean(axis=0), atol=2e-4)
    np.testing.assert_allclose(found.gene_pearson_sd, pearson.std(axis=0, ddof=1), atol=2e-4)
    np.testing.assert_allclose(found.distance_quantiles, quantiles, rtol=1e-3)
    # A metric that has seen the section would promise more.
    seen, _ = _by_hand(joined, layout, 12, found.temperature, lambda codes, _: codes >= 0)
    assert np.abs(seen.mean(axis=0) - pearson.mean(axis=0)).max() > 2e-3


def test_what_is_measured_in_a_section_does_not_change_how_far_it_lies_from_the_others():
    layout = _layout([NETWORK], 1)
    joined = _sections(11, (40, 25))
    expression = joined.expression.columns(np.arange(12))
    expression[:40] = np.random.default_rng(5).uniform(0, 20, (40, 12))
    totals = np.concatenate([part.totals for part in joined.parts])
    poisoned = _join(joined.embeddings, expression, joined.section_codes, totals)

    clean, other = (
        bank_fit._supervised_folds(_as_spots(one, layout), one.section_codes, 1.0)
        for one in (joined, poisoned)
    )

    assert [(fold.held.tolist(), fold.known.tolist()) for fold in clean] == [
        (list(range(40)), list(range(40, 65))),
        (list(range(40, 65)), list(range(40))),
    ]
    np.testing.assert_array_equal(other[0].held_embedding, clean[0].held_embedding)
    np.testing.assert_array_equal(other[0].known_embedding, clean[0].known_embedding)
    # Section 1 is seen through the metric of section 0.
    lengths = [np.linalg.norm(folds[1].held_embedding, axis=1) for folds in (clean, other)]
    assert np.abs(lengths[0] - lengths[1]).max() > 0.05


def test_a_cosine_bank_is_not_given_the_temperature_of_euclidean_distances():
    layout, joined = _layout([NETWORK], 1), _sections(11)

    fit, _ = _notices(joined, layout, _plan(k=12, distance="cosine"))

    # Half of the median difference of the 12th and the nearest, each section with its own metric.
    gaps = []
    for section in range(3):
        held, known = joined.section_codes == section, joined.section_codes != section
        spots = _as_spots(joined, layout)
        fitted = MetricFit(spots[np.flatnonzero(known)])
        penalty = learn(spots, k=12).penalty
        places = (joined.embeddings - fitted.mean) @ fitted.components(penalty)
        unit = places / np.linalg.norm(places, axis=1, keepdims=True)
        distances = np.sort(1 - unit[held] @ unit[known].T, axis=1)
        gaps.append(distances[:, 11] - distances[:, 0])
    assert fit.calibration.temperature == pytest.approx(np.median(np.concatenate(gaps)) / 2, rel=1e-3)


# Principal components


def _windows(rng, n_refs, n_windows, n_channels):
    """Embeddings whose channels hang together, differ in scale, and differ in mean between windows."""
    mixed = rng.normal(size=(n_refs, n_windows, n_channels)) @ rng.normal(size=(n_channels, n_channels))
    mixed *= np.geomspace(0.01, 100, n_channels)
    mixed += 50 * rng.normal(size=(n_windows, n_channels))
    return mixed


def _one_section(raw):
    return _join(raw, np.ones((len(raw), 3)), np.zeros(len(raw)))


def test_principal_components_are_those_of_all_windows_together():
    windows = _windows(np.random.default_rng(3), 300, 3, 10)
    raw = windows.reshape(300, 30).astype(np.float32)

    fit, _ = _notices(_one_section(raw), _layout([_card("net.x", 10)], 3), _plan(metric="pca"))

    (projection,) = fit.projections
    stacked = (windows - windows.mean(axis=0)).reshape(900, 10)
    scale = windows.reshape(900, 10).std(axis=0)
    found = PCA(n_components=10).fit(stacked / scale)
    directions = projection.astype(np.float64) * scale[:, None]
    # Of a direction and its opposite, either may be given.
    np.testing.assert_allclose(np.abs(found.components_ @ directions), np.eye(10), atol=2e-3)
    assert (directions[np.abs(directions).argmax(axis=0), range(10)] > 0).all()
    embedding = fit.embedding.reshape(300, 3, 10)
    np.testing.assert_allclose(embedding.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(embedding.var(axis=0).sum(axis=1), 1, rtol=1e-4)
    # The windows alone are balanced: within one, the first component still varies most.
    by_hand = ((windows - windows.mean(axis=0)) / scale) @ directions
    by_hand /= np.sqrt(by_hand.var(axis=0).sum(axis=1))[:, None]
    np.testing.assert_allclose(embedding, by_hand, atol=2e-3)


@pytest.mark.parametrize(("n_refs", "kept"), [(200, 64), (65, 64), (40, 39), (2, 1), (1, 1)])
def test_64_components_are_kept_and_fewer_of_few_references(n_refs, kept):
    raw = _windows(np.random.default_rng(5), n_refs, 2, 70).reshape(n_refs, 140).astype(np.float32)

    fit, _ = _notices(_one_section(raw), _layout([_card("net.x", 70)], 2), _plan(metric="pca"))

    assert fit.projections[0].shape == (70, kept)
    assert fit.metric.mean.shape == fit.metric.components.shape == (2 * kept,)
    assert np.isfinite(fit.embedding).all()


def test_principal_components_of_two_backbones_are_those_of_each():
    rng = np.random.default_rng(6)
    both = [_windows(rng, 80, 2, 5), _windows(rng, 80, 2, 3)]
    cards = [_card("net.x", 5), _card("other.y", 3)]
    joined = _one_section(np.concatenate(both, axis=2).reshape(80, 16))

    fit, _ = _notices(joined, _layout(cards, 2), _plan(metric="pca"))

    for i, (part, card) in enumerate(zip(both, cards, strict=True)):
        alone = _one_section(part.reshape(80, -1))
        expected, _ = _notices(alone, _layout([card], 2), _plan(metric="pca"))
        np.testing.assert_allclose(fit.projections[i], expected.projections[0], rtol=1e-4, atol=1e-6)
    # Every window has the same total variance, whichever backbones it is of.
    np.testing.assert_allclose(fit.embedding.reshape(80, 2, 8).var(axis=0).sum(axis=1), 1, rtol=1e-4)


def test_without_principal_components_there_is_no_projection():
    raw = _windows(np.random.default_rng(6), 50, 2, 4).reshape(50, 8).astype(np.float32)
    joined, layout = _one_section(raw), _layout([_card("net.x", 4)], 2)

    fit, _ = _notices(joined, layout, _plan(metric="none"))
    assert fit.projections == (None,)
    np.testing.assert_array_equal(fit.embedding, raw)

    fit, _ = _notices(joined, layout, _plan(metric="standardize"))
    assert fit.projections == (None,)
    np.testing.assert_allclose(fit.embedding.std(axis=0), 1, rtol=1e-3)
