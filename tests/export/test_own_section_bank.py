"""Banks of their own section: what is fitted, refused and written, and that a run reads it so."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

import stinfer
from stinfer.bank import Bank
from stinfer.errors import SettingError, SlideForeignError
from stinfer.record import Notices
from stinfer_export.bank_builder import build_bank
from stinfer_export.bank_fit import fit_bank
from stinfer_export.cli import main
from stinfer_export.datasets.counts import Counts
from stinfer_export.evaluation.own_bank import OwnBank
from stinfer_export.joint_distance import fifths

_SPEC = importlib.util.spec_from_file_location(
    "evaluation_sections", Path(__file__).parent / "evaluation_sections.py"
)
shared = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(shared)
_JOINED = importlib.util.spec_from_file_location("joined_parts", Path(__file__).parent / "joined_parts.py")
joined_parts = importlib.util.module_from_spec(_JOINED)
_JOINED.loader.exec_module(joined_parts)

OWN = replace(shared.PLAN, own_section=True, metric=None, k=None, include_model=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("own")
    shared.write_data_set(path / "data")
    shared.sections.write_cell_model(path / "cells.onnx")
    shared.fixtures.write_mean_color_model(path / "model.onnx")
    return path


def by_color_and_place(section):
    """Let the counts of a section follow its places as much as its colors."""
    column, row = section.array.T
    counts = section.counts.to_dense() + np.stack(
        [60 * column, 60 * row, 40 * (column + row), 0 * row], axis=1
    )
    return replace(section, counts=Counts.from_dense(counts.astype(np.int64)))


def image(folder, name):
    return folder / f"data/ST-imgs/{name[0]}/{name}/squares.png"


@pytest.fixture(scope="module", params=["patch", "map"])
def built(request, folder, tmp_path_factory):
    """The bank of A1 alone, 48 spots."""
    changed = {"pooling": "map", "fov_um": (110.0,)} if request.param == "map" else {}
    model = folder / ("cells.onnx" if changed else "model.onnx")
    path = tmp_path_factory.mktemp("bank") / "own.h5"
    sections = [by_color_and_place(shared.read(folder / "data")[0])]
    summary = build_bank(sections, replace(OWN, **changed), [model], path, device="cpu")
    return summary, Bank.open(path)


def test_the_bank_knows_its_section_and_the_place_of_every_spot(folder, built):
    _, bank = built
    own = bank.own_section
    assert own.slide_sha256 == hashlib.sha256(image(folder, "A1").read_bytes()).hexdigest()
    # Squares of 20 px are a pitch of 200 µm.
    assert own.mpp == (pytest.approx(10.0), pytest.approx(10.0))
    places_um = bank.spatial * 10.0
    np.testing.assert_allclose(bank.embedding[:, -2:], places_um * own.weight_per_um, rtol=1e-5, atol=1e-6)
    s = bank.settings
    assert (s.metric, s.distance) == ("supervised", "euclidean")
    assert (s.tuning, s.cross_validation) == ("leave-a-fifth-out", "leave-a-fifth-out")


def test_place_counts_as_the_weight_says(built):
    _, bank = built
    own, mapped = bank.own_section, bank.embedding[:, :-2].astype(np.float64)
    assert own.place_weight > 0
    per_um2 = own.place_weight * mapped.var(axis=0).sum() / (bank.spatial * 10.0).var(axis=0).sum()
    assert own.weight_per_um == pytest.approx(np.sqrt(per_um2), rel=1e-4)


def test_a_run_finds_every_spot_nearest_to_itself(folder, built, tmp_path):
    _, bank = built
    spots = folder / "data/ST-spotfiles/A1_selection.tsv"
    found = stinfer.predict_slide(
        image(folder, "A1"), bank.path, out=tmp_path / "p.h5ad", spots=spots, save_neighbors=True
    )
    with h5py.File(found.path) as file:
        names = list(file["obs/_index"].asstr()[...])
        nearest = file["obsm/neighbor_index"][:, 0]
    # A neighbor of the same color would have another place, and the other way round.
    assert [bank.spots[i] for i in nearest] == [f"A1_{name}" for name in names]


def test_another_section_is_refused(folder, built, tmp_path):
    with pytest.raises(SlideForeignError, match="not the image of section A1"):
        stinfer.predict_slide(image(folder, "A2"), built[1].path, out=tmp_path / "p.h5ad", pitch_um=200.0)


def test_several_sections_are_refused_before_anything_is_encoded(folder, tmp_path):
    def told(*_):
        pytest.fail("something was encoded")

    with pytest.raises(SettingError, match="--own-section is for one section"):
        build_bank(
            shared.read(folder / "data"), OWN, [folder / "model.onnx"], tmp_path / "b.h5", progress=told
        )
    arguments = ["bank", "her2st", str(folder / "data"), "--model", str(folder / "model.onnx")]
    arguments += ["--own-section", "--out", str(tmp_path / "b.h5")]
    result = CliRunner().invoke(main, [*arguments, "--sections", "A1,A2"])
    assert result.exit_code == 1
    assert "--own-section is for one section" in result.output
    one = CliRunner().invoke(main, [*arguments, "--sections", "B1", "--pooling", "patch", "--fov-um", "100"])
    assert one.exit_code == 0, one.output
    assert Bank.open(tmp_path / "b.h5").own_section is not None
    assert not list(tmp_path.glob("*partial*"))


def section(n, seed=0):
    """Join n spots in a row, whose expression follows what they look like."""
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(n, 6))
    expression = np.maximum(3 + embeddings @ rng.normal(size=(6, 8)), 0.1)
    joined = joined_parts.join(embeddings, expression, np.zeros(n))
    centers = np.stack([np.arange(n) * 20.0, np.zeros(n)], axis=1)
    return replace(joined, parts=(replace(joined.parts[0], centers_l0=centers, mpp=10.0),))


LAYOUT = joined_parts.layout([joined_parts.card("net.x", 6)], 1)
PLAN = replace(OWN, pooling="map", fov_um=None)


@pytest.mark.parametrize(
    ("n", "changes", "cause"),
    [
        (24, {}, "section S0 has 24 spots, too few to leave a fifth of them out"),
        (30, {"distance": "cosine"}, "--distance is cosine"),
        (30, {"k": 31}, "--k 31 is larger than the bank's 30 references"),
    ],
)
def test_what_cannot_be_fitted_is_refused(n, changes, cause):
    with pytest.raises(SettingError, match=cause):
        fit_bank(section(n), LAYOUT, replace(PLAN, **changes), Notices())


def test_a_place_that_tells_nothing_counts_nothing_and_that_is_told():
    notices = Notices()
    fit = fit_bank(section(60), LAYOUT, PLAN, notices)
    assert (fit.place_weight, fit.weight_per_um) == (0, 0)
    assert (fit.embedding[:, -2:] == 0).all()
    said = "place does not help to predict spots of this section from the others, and counts nothing"
    assert said in notices.texts


@pytest.mark.parametrize("metric", ["none", "standardize", "pca", "supervised"])
def test_any_metric_may_be_joined_and_k_given(metric):
    fit = fit_bank(section(60), LAYOUT, replace(PLAN, metric=metric, k=9), Notices())
    assert (fit.metric_kind, fit.k, fit.distance) == (metric, 9, "euclidean")
    assert fit.embedding.shape == (60, fit.metric.components.shape[-1] + 2)


def test_intervals_hold_what_was_left_out():
    """Of 90 %: each spot is predicted by metrics and neighbors of the other four fifths."""
    fit = fit_bank(section(200), LAYOUT, PLAN, Notices())
    assert np.isfinite(fit.calibration.gene_pearson).all()
    assert fit.calibration.gene_pearson.mean() > 0.5
    assert np.isfinite(fit.calibration.interval_scale).all()
    # Nothing is as near to the spots as they are to each other.
    assert fit.calibration.distance_quantiles[0] > 0


def test_what_was_measured_where_a_fold_is_left_out_changes_nothing_of_its_distances(monkeypatch):
    """Folds have metrics of their own: poisoned expression of one must not move it."""
    import stinfer_export.bank_fit as module

    seen = []
    real = module.choose_joint

    def spy(folds, *arguments, **options):
        seen.append(folds)
        return real(folds, *arguments, **options)

    monkeypatch.setattr(module, "choose_joint", spy)
    clean = section(60)
    held = np.flatnonzero(fifths(60) == 0)
    dense = clean.expression.columns(np.arange(8))
    dense[held] = 9 - dense[held]
    spoiled = replace(clean, expression=joined_parts.to_sparse(dense))
    # The penalty is chosen with all of it; that choice is taken away.
    monkeypatch.setattr("stinfer_export.recipe.PENALTIES", (0.5,))
    for joined in (clean, spoiled):
        fit_bank(joined, LAYOUT, PLAN, Notices())
    first, second = (folds[0] for folds in seen)
    assert first.held.tolist() == held.tolist()
    np.testing.assert_array_equal(first.held_embedding, second.held_embedding)
    assert not np.array_equal(seen[0][1].held_embedding, seen[1][1].held_embedding)


def test_spots_that_are_asked_of_a_bank_of_the_others_do_not_reach_it():
    joined = section(80)
    part = joined.parts[0]
    held = np.arange(80) % 2 == 0
    dense = part.expression.columns(np.arange(8))
    dense[held] = 9 - dense[held]
    spoiled = replace(part, expression=joined_parts.to_sparse(dense), totals=np.where(held, 1e6, 100.0))
    clean, poisoned = (OwnBank(one, LAYOUT, PLAN, part.genes).predict(held) for one in (part, spoiled))
    assert clean.shape == (40, 8)
    np.testing.assert_array_equal(clean, poisoned)
    assert OwnBank(part, LAYOUT, PLAN, part.genes).predict(np.arange(80) >= 24) is None


def test_an_image_that_a_run_could_not_open_or_know_again_is_refused(folder, tmp_path):
    (section,) = shared.read(folder / "data")[:1]
    model = [folder / "model.onnx"]
    with pytest.raises(SettingError, match=r"image of section A1, .* has 27 µm per pixel"):
        build_bank([replace(section, mpp=27.0)], OWN, model, tmp_path / "b.h5")
    with pytest.raises(SettingError, match=r"image of section A1, .* is a folder"):
        build_bank([replace(section, image_path=tmp_path)], OWN, model, tmp_path / "b.h5")
