"""Folds, means over them, and places between spots, by hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from stinfer.errors import SettingError
from stinfer_export.agreement import Agreement
from stinfer_export.evaluation.between_spots import (
    BetweenResult,
    _averaged,
    _predict,
    evaluate_between,
    places_inside,
)
from stinfer_export.evaluation.folds import Split, split_once, split_sections
from stinfer_export.evaluation.interpolation import Spots
from stinfer_export.evaluation.results import (
    FoldResult,
    Maps,
    SectionResult,
    between_summary,
    fold_means,
    over_folds,
)

_SPEC = importlib.util.spec_from_file_location("bank_sections", Path(__file__).parent / "bank_sections.py")
shared = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(shared)
picture = shared.picture

PATIENTS = {"A1": "A", "A2": "A", "B1": "B"}


def test_sections_or_patients_are_held_out_in_turn():
    assert split_sections(PATIENTS, "section") == [
        Split("A1", ("A2", "B1"), ("A1",)),
        Split("A2", ("A1", "B1"), ("A2",)),
        Split("B1", ("A1", "A2"), ("B1",)),
    ]
    assert split_sections(PATIENTS, "patient") == [
        Split("A", ("B1",), ("A1", "A2")),
        Split("B", ("A1", "A2"), ("B1",)),
    ]
    assert split_once(list(PATIENTS), ["B1"]) == [Split("B1", ("A1", "A2"), ("B1",))]


def test_folds_that_cannot_be_made_are_refused():
    with pytest.raises(SettingError, match="--hold-out patient needs two of them, and there is 1") as caught:
        split_sections({"A1": "A", "A2": "A"}, "patient")
    assert caught.value.fix == "use --hold-out section"
    with pytest.raises(SettingError, match="--test-on names C9, which is not among the sections A1, A2, B1"):
        split_once(list(PATIENTS), ["C9"])
    with pytest.raises(SettingError, match="none is left to predict from"):
        split_once(list(PATIENTS), ["A1", "A2", "B1"])


def agreement(pearson, ratio=(1.0, 1.0)):
    values = np.asarray(pearson, dtype=np.float64)
    return Agreement(values, values / 2, np.array([1.0, 3.0]), np.asarray(ratio))


def fold(*pearsons):
    empty = np.zeros((0, 0), dtype=np.float32)
    maps = Maps(np.zeros((0, 2)), (), empty, empty)
    sections = tuple(
        SectionResult("S", "P", 9, 0, {"stinfer": agreement(p)}, {"stinfer": agreement(p)}, maps)
        for p in pearsons
    )
    return FoldResult(Split("F", (), ()), ("G", "H"), {}, sections)


def test_means_are_over_genes_then_sections_then_folds():
    # A gene without a correlation counts 0: means of the sections are 0.4 and 0.1, of the fold 0.25.
    folds = [fold((0.2, 0.6), (0.2, np.nan)), fold((0.5, 0.5))]
    assert fold_means(folds[0], "gene")["stinfer"] == pytest.approx(
        {"pearson": 0.25, "spearman": 0.125, "rmse": 2.0, "variance_ratio": 1.0}
    )
    found = over_folds(folds, "gene")["stinfer"]["pearson"]
    assert found == pytest.approx((0.375, 0.25 / np.sqrt(2)))
    assert over_folds(folds[:1], "gene")["stinfer"]["pearson"] == (pytest.approx(0.25), None)


def test_the_margin_over_interpolation_is_paired():
    halves = [
        BetweenResult("S", 0, 5, 5, {"joint": 0.5, "inverse_distance": 0.4}),
        BetweenResult("S", 1, 5, 5, {"joint": 0.9, "inverse_distance": 0.6}),
    ]
    found = between_summary(halves)["joint"]
    assert found["pearson"] == pytest.approx((0.7, np.sqrt(0.08)))
    assert found["margin"] == pytest.approx((0.2, np.sqrt(0.02)))


def test_seven_places_stand_for_a_spot(picture):
    one = shared.section(picture, "S1", ["G"], [[3], [4]])
    found = places_inside(one, spot_diameter_um=300.0)
    assert found.spots[:2] == ("0x7/0", "0x7/1")
    assert found.spots[13] == "1x7/6"
    # 10 µm per pixel: the ring is at two thirds of 15 px.
    assert found.centers_l0[0].tolist() == [50, 50]
    np.testing.assert_allclose(found.centers_l0[1], [60, 50])
    np.testing.assert_allclose(found.centers_l0[11], [50, 50])
    assert found.counts.to_dense().ravel().tolist() == [3] * 7 + [4] * 7
    np.testing.assert_allclose(found.array[8], [1, 7])


def test_places_of_a_spot_are_averaged():
    values = np.array([[1], [5], [2], [3]], dtype=np.float32)
    assert _averaged(values, np.array([4, 9, 4, 9])).tolist() == [[1.5], [4]]


def test_held_out_spots_change_no_choice_and_no_prediction():
    rng = np.random.default_rng(1)
    places = np.stack(np.meshgrid(np.arange(8.0), np.arange(8.0)), axis=-1).reshape(-1, 2)
    embedding = rng.normal(size=(64, 3)).astype(np.float32)
    expression = (embedding @ rng.normal(size=(3, 2))).astype(np.float32)
    clean = Spots(places, embedding, expression)
    held = (places.sum(axis=1) % 2) == 0
    spoiled = Spots(places, embedding, np.where(held[:, None], 1e6 - expression, expression))
    found = [_predict(spots[~held], spots[held])[0] for spots in (clean, spoiled)]
    for method, values in found[0].items():
        np.testing.assert_array_equal(values, found[1][method])
    scores = [evaluate_between("S", spots, places, None, None)[0].pearson for spots in (clean, spoiled)]
    assert scores[1]["appearance"] == pytest.approx(-scores[0]["appearance"], abs=1e-3)


def test_a_half_too_small_to_be_cross_validated_is_left_out():
    places = np.stack([np.arange(12.0), np.zeros(12)], axis=1)
    spots = Spots(places, np.zeros((12, 2), dtype=np.float32), np.zeros((12, 2), dtype=np.float32))
    assert evaluate_between("S", spots, places, None, None) == []


def test_a_bank_of_the_other_half_is_compared_where_there_is_one():
    rng = np.random.default_rng(2)
    places = np.stack(np.meshgrid(np.arange(8.0), np.arange(8.0)), axis=-1).reshape(-1, 2)
    expression = rng.normal(size=(64, 2)).astype(np.float32)
    spots = Spots(places, rng.normal(size=(64, 3)).astype(np.float32), expression)
    # One that knows the answer, for either half.
    found = evaluate_between("S", spots, places, None, None, lambda held: expression[held])
    assert [half.pearson["own_bank"] for half in found] == pytest.approx([1.0, 1.0])
    without = evaluate_between("S", spots, places, None, None, lambda _: None)
    assert "own_bank" not in without[0].pearson
