"""Appearance and place as one distance: by hand, and what is chosen where one of them tells."""

from __future__ import annotations

import numpy as np
import pytest

from stinfer_export.calibration import Fold, whole_folds
from stinfer_export.joint_distance import (
    Joint,
    choose_joint,
    fifths,
    predict_joint,
    weight_per_um,
    with_places,
)

SIDE = 10
PLACES_UM = 200.0 * np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1).reshape(-1, 2)
N = len(PLACES_UM)


def folds_of(embedding):
    return whole_folds(embedding.astype(np.float32), fifths(N))


def smooth(places_um):
    """Expression that changes slowly over the section, and alike in no other way."""
    x, y = (places_um / 200.0).T
    return np.stack([np.sin(x / 2), np.cos(y / 2), np.sin((x + y) / 3)], axis=1).astype(np.float32)


def test_fifths_are_equal_parts_dealt_over_the_whole_section():
    found = fifths(23)
    assert sorted(np.bincount(found).tolist()) == [4, 4, 5, 5, 5]
    assert found.tolist() == fifths(23).tolist()
    # Sorted parts would leave out a corner at a time.
    assert (np.diff(found) != 0).mean() > 0.5


def test_a_weight_of_one_gives_places_the_spread_of_appearances():
    mapped = np.array([[0, 0], [0, 6], [8, 0], [8, 6]], dtype=np.float32)  # variances 16 and 9
    places = np.array([[0.0, 0], [200, 0], [0, 200], [200, 200]])  # variances 10,000 each
    assert weight_per_um(mapped, places, 1.0) == pytest.approx(np.sqrt(25 / 20_000))
    assert weight_per_um(mapped, places, 4.0) == pytest.approx(2 * np.sqrt(25 / 20_000))
    assert weight_per_um(mapped, places, 0.0) == 0


def test_the_weight_comes_from_the_known_spots_alone():
    embedding = np.array([[0.0], [10], [1e6]], dtype=np.float32)
    places = np.array([[0.0, 0], [100, 0], [1e7, 0]])
    fold = Fold(np.array([2]), np.array([0, 1]), embedding[2:], embedding[:2])
    joined = with_places(fold, places, 1.0)
    # Of the first two: variance 25 against 2,500 µm².
    np.testing.assert_allclose(joined.known_embedding, [[0, 0, 0], [10, 10, 0]])
    np.testing.assert_allclose(joined.held_embedding, [[1e6, 1e6, 0]])


def test_place_is_chosen_where_appearance_tells_nothing():
    embedding = np.random.default_rng(0).normal(size=(N, 4))
    joint = choose_joint(folds_of(embedding), PLACES_UM, smooth(PLACES_UM))
    assert joint.place_weight == 8
    assert joint.k in (4, 8)


def test_place_is_left_out_where_it_tells_nothing():
    rng = np.random.default_rng(1)
    embedding = rng.normal(size=(N, 4))
    expression = (embedding @ rng.normal(size=(4, 3))).astype(np.float32)
    assert choose_joint(folds_of(embedding), PLACES_UM, expression).place_weight == 0


def test_both_are_used_where_both_tell():
    rng = np.random.default_rng(2)
    embedding = rng.normal(size=(N, 2))
    expression = np.hstack([embedding @ rng.normal(size=(2, 3)), 2 * smooth(PLACES_UM)]).astype(np.float32)
    joint = choose_joint(folds_of(embedding), PLACES_UM, expression)
    assert 0 < joint.place_weight < 8


def test_k_is_no_more_than_every_fold_has_and_what_is_asked_for():
    embedding = np.random.default_rng(3).normal(size=(N, 2))
    folds = folds_of(embedding)
    assert choose_joint(folds, PLACES_UM, smooth(PLACES_UM), neighbors=(90,)).k == 80
    assert choose_joint(folds, PLACES_UM, smooth(PLACES_UM), neighbors=(7,)).k == 7
    assert choose_joint(folds, PLACES_UM, smooth(PLACES_UM), place_weights=(0.5,)).place_weight == 0.5


def test_without_genes_to_go_by_the_first_choice_is_taken():
    embedding = np.random.default_rng(4).normal(size=(N, 2))
    nothing = np.zeros((N, 0), dtype=np.float32)
    assert choose_joint(folds_of(embedding), PLACES_UM, nothing) == Joint(0.0, 4)


def test_a_held_out_spot_is_the_softmax_mean_of_the_nearest_in_both():
    embedding = np.array([[0.0], [3], [1], [2]], dtype=np.float32)
    places = np.array([[0.0, 0], [3, 0], [0, 0], [4, 0]])
    expression = np.array([[10.0], [20.0]], dtype=np.float32)
    fold = Fold(np.array([2, 3]), np.array([0, 1]), embedding[2:], embedding[:2])
    found = predict_joint(fold, places, expression, Joint(1.0, 2))
    # Variances are equal, so a µm counts 1: squared distances 1 and 4 + 9; 4 + 16 and 1 + 1.
    near = np.sqrt([[1, 13], [2, 20]])
    temperature = np.median(near[:, 1] - near[:, 0]) / 2
    share = 1 / (1 + np.exp(-(near[:, 1] - near[:, 0]) / temperature))
    by_hand = [share[0] * 10 + (1 - share[0]) * 20, share[1] * 20 + (1 - share[1]) * 10]
    np.testing.assert_allclose(found[:, 0], by_hand, rtol=1e-5)
