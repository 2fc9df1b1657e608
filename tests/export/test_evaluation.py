"""The evaluation end to end, on three small sections."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from stinfer.errors import GeneUnknownError, SettingError
from stinfer_export.evaluation import run as run_module
from stinfer_export.evaluation.folds import Split, split_sections
from stinfer_export.evaluation.run import Evaluator, GeneSet
from stinfer_export.evaluation.tables import table_lines
from stinfer_export.evaluation.write import write_evaluation

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

_SPEC = importlib.util.spec_from_file_location(
    "evaluation_sections", Path(__file__).parent / "evaluation_sections.py"
)
shared = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(shared)
SPLITS = split_sections({"A1": "A", "A2": "A", "B1": "B"}, "section")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("squares")
    shared.write_data_set(found / "data")
    shared.fixtures.write_mean_color_model(found / "model.onnx")
    shared.sections.write_cell_model(found / "cells.onnx")
    return found


def evaluator(folder, cache, genes=None, plan=shared.PLAN, model="model.onnx"):
    genes = genes or GeneSet(min_detected=0.0)
    return Evaluator(plan, [folder / model], cache, genes, device="cpu", threads=1)


@pytest.fixture(scope="module")
def found(folder, tmp_path_factory):
    return evaluator(folder, tmp_path_factory.mktemp("cache")).run(shared.read(folder / "data"), SPLITS)


def test_expression_that_follows_the_color_is_predicted(found):
    for fold in found.folds:
        by_gene = fold.sections[0].by_gene
        assert set(fold.genes) == set(shared.GENES)
        assert by_gene["stinfer"].pearson.min() > 0.8
        assert np.isnan(by_gene["mean"].pearson).all()
        assert (by_gene["mean"].variance_ratio < 1e-9).all()


def test_between_spots_appearance_wins_where_neighbors_have_nothing_in_common(found):
    for half in (half for fold in found.folds for half in fold.between):
        assert (half.n_known, half.n_asked) == (24, 24)
        assert half.pearson["appearance"] > 0.7
        assert abs(half.pearson["inverse_distance"]) < 0.4


def test_between_spots_a_bank_of_the_other_half_knows_the_colors_too(folder, tmp_path, monkeypatch, caplog):
    for module in ("bank_fit", "evaluation.own_bank"):
        monkeypatch.setattr(f"stinfer_export.{module}.MIN_OWN_SECTION", 24)
    found = evaluator(folder, tmp_path).run(shared.read(folder / "data"), SPLITS[:1])
    for half in found.folds[0].between:
        assert half.pearson["own_bank"] > 0.5
    assert any("bank of the other half alone" in line for line in table_lines(found))
    # What such banks say of themselves is not said of the evaluation.
    assert not any("place" in text for text in [*found.notices, *caplog.messages])


def test_nothing_that_was_measured_in_the_held_out_section_reaches_the_training_side(
    folder, found, tmp_path, monkeypatch
):
    seen = []
    compare = run_module.compare

    def spy(part, genes, n_absent, predicted, measured):
        seen.append((list(genes), predicted, measured))
        return compare(part, genes, n_absent, predicted, measured)

    monkeypatch.setattr(run_module, "compare", spy)
    clean = shared.read(folder / "data")
    spoiled = [shared.poisoned(s) if s.name == "B1" else s for s in clean]
    split = Split("B1", ("A1", "A2"), ("B1",))
    results = [evaluator(folder, tmp_path).run(some, [split]).folds[0] for some in (clean, spoiled)]

    (genes, predicted, measured), (genes_2, predicted_2, measured_2) = seen
    assert not np.array_equal(measured, measured_2)
    assert results[0].sections[0].n_absent == 0
    assert results[1].sections[0].n_absent == 2
    assert genes == genes_2
    assert results[0].fitted == results[1].fitted
    assert predicted.keys() == predicted_2.keys()
    for method in predicted:
        np.testing.assert_array_equal(predicted[method], predicted_2[method])
    # The same poison in a training section does reach it.
    spoiled = [shared.poisoned(s) if s.name == "A1" else s for s in clean]
    evaluator(folder, tmp_path).run(spoiled, [split])
    assert "POISON" in seen[-1][0]


def test_every_section_is_encoded_once_and_read_again(folder, found, tmp_path, monkeypatch):
    sections = shared.read(folder / "data")
    first = evaluator(folder, tmp_path).run(sections, SPLITS)
    assert len(list(tmp_path.glob("*.npz"))) == 3

    def refuse(*_):
        msg = "encoded again"
        raise AssertionError(msg)

    monkeypatch.setattr("stinfer_export.evaluation.section_cache.encode_section", refuse)
    again = evaluator(folder, tmp_path).run(sections, SPLITS)
    assert again.encoding == first.encoding
    for one, other in zip(first.folds, again.folds, strict=True):
        np.testing.assert_array_equal(
            one.sections[0].by_gene["stinfer"].rmse, other.sections[0].by_gene["stinfer"].rmse
        )


def test_files_are_the_same_bytes_when_the_evaluation_is_repeated(folder, found, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        again = evaluator(folder, tmp_path / "cache")
        write_evaluation(tmp_path / name, again.run(shared.read(folder / "data"), SPLITS), again.settings())
    for name in ("evaluation.json", "genes.csv", "evaluation.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    summary = json.loads((tmp_path / "one/evaluation.json").read_text())
    rows = list(csv.DictReader((tmp_path / "one/genes.csv").read_text().splitlines()))
    assert len(rows) == 3 * 4 * 6
    ours = [float(row["pearson"]) for row in rows if row["method"] == "stinfer"]
    per_fold = [np.mean(ours[first : first + 4]) for first in (0, 4, 8)]
    stated = summary["per_gene"]["stinfer"]["pearson"]
    assert stated["mean"] == pytest.approx(np.mean(per_fold), abs=1e-5)
    assert stated["sd"] == pytest.approx(np.std(per_fold, ddof=1), abs=1e-5)
    assert (tmp_path / "one/evaluation.png").read_bytes()[:4] == b"\x89PNG"


def test_the_table_names_every_method_and_what_encoding_cost(found):
    text = "\n".join(table_lines(found))
    for label in (
        "stInfer bank",
        "ridge, HEST-Benchmark",
        "mean expression",
        "inverse distance",
        "encode s/spot",
    ):
        assert label in text


def test_maps_too_are_averaged_inside_the_spots(folder, tmp_path):
    changed = {"pooling": "map", "fov_um": (110.0,)}
    plan = shared.BankPlan(**{**vars(shared.PLAN), **changed})
    split = Split("B1", ("A1", "A2"), ("B1",))
    found = evaluator(folder, tmp_path, plan=plan, model="cells.onnx").run(
        shared.read(folder / "data"), [split]
    )
    for half in found.folds[0].between:
        assert abs(half.pearson["joint_dense"] - half.pearson["joint"]) < 0.2
    # What became of the places inside spots is not said a second time.
    assert len(set(found.notices)) == len(found.notices)


def test_genes_are_those_of_a_list(folder, tmp_path):
    (tmp_path / "genes.txt").write_text("BLUE\nRED\n")
    genes = GeneSet(str(tmp_path / "genes.txt"))
    found = evaluator(folder, tmp_path, genes).run(shared.read(folder / "data"), SPLITS)
    assert all(fold.genes == ("BLUE", "RED") for fold in found.folds)
    (tmp_path / "genes.txt").write_text("NONESUCH\nRED\n")
    found = evaluator(folder, tmp_path, genes).run(shared.read(folder / "data"), SPLITS)
    assert all(fold.genes == ("RED",) for fold in found.folds)
    told = "1 genes of the list are in no training section: NONESUCH"
    assert [text for text in found.notices if told in text]
    with pytest.raises(GeneUnknownError, match="NONESUCH"):
        evaluator(folder, tmp_path, GeneSet("NONESUCH")).run(shared.read(folder / "data"), SPLITS)


def test_genes_that_nothing_detects_are_refused(folder, tmp_path):
    with pytest.raises(SettingError, match="no gene is detected in more than 100% of the training spots"):
        evaluator(folder, tmp_path, GeneSet("all", min_detected=1.0)).run(
            shared.read(folder / "data"), SPLITS
        )
