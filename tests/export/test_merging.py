"""Banks merged: the left half of the board measured on one platform, the right half on another."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
from click.testing import CliRunner

import stinfer
from stinfer import h5ad
from stinfer.bank import Bank
from stinfer.cli import main as stinfer_command
from stinfer.errors import BankAlteredError, BankFormatError, SettingError
from stinfer.inspect_bank import describe_bank, verify_bank
from stinfer.integrity import hash_arrays, hash_json
from stinfer.stain import Stain
from stinfer_export import merging
from stinfer_export.bank_builder import build_bank
from stinfer_export.cli import main
from stinfer_export.datasets.counts import Counts
from stinfer_export.datasets.her2st import iter_sections
from stinfer_export.errors import BankMergeError
from stinfer_export.merging import merge_banks

_SPEC = importlib.util.spec_from_file_location("bank_sections", Path(__file__).parent / "bank_sections.py")
shared = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(shared)
data, model, plan, dense = shared.data, shared.model, shared.plan, shared.dense

DATA = Path(__file__).parents[1] / "data"
BLUE_ID, RED_ID = "ENSG00000000007", "ENSG00000000009"
PLAIN = {"metric": "none", "distance": "euclidean", "k": 1, "weighting": "uniform"}


@pytest.fixture(autouse=True)
def _few_genes_do(monkeypatch):
    monkeypatch.setattr(merging, "MIN_SHARED_GENES", 1)


def half(data, name, columns, genes, counts, **changes):
    """Return the spots of some columns of the board as a section of their own.

    `counts` gives those of the spot in a column and a row; a last gene, REST, makes every total 100.
    """
    (board,) = iter_sections(data)
    kept = [i for i, (column, _) in enumerate(shared.BOARD) if column in columns]
    table = [counts(*shared.BOARD[i]) for i in kept]
    table = np.asarray([[*row, 100 - sum(row)] for row in table], dtype=np.int64)
    return replace(
        board,
        name=name,
        spots=tuple(board.spots[i] for i in kept),
        centers_l0=board.centers_l0[kept],
        array=board.array[kept],
        genes=(*genes, "REST"),
        counts=Counts.from_dense(table),
        **changes,
    )


@pytest.fixture(scope="module")
def banks(data, model, tmp_path_factory):
    """Columns 0 to 2 with RED and GREEN, columns 3 to 5 with RED and BLUE: there RED has an ID."""
    folder = tmp_path_factory.mktemp("banks")
    left = half(data, "L", range(3), ("RED", "GREEN"), lambda column, row: (column + 1, row + 1))
    right = half(
        data, "R", range(3, 6), ("BLUE", "RED"), lambda column, row: (2 * row + 1, column + 1),
        gene_ids=(BLUE_ID, RED_ID, ""),
    )  # fmt: skip
    build_bank([left], plan(k=1, weighting="uniform"), [model], folder / "old.h5", device="cpu")
    other = plan(k=1, weighting="uniform", dataset="visium", pitch_um=100.0, spot_diameter_um=55.0)
    build_bank([right], other, [model], folder / "new.h5", device="cpu")
    return folder / "old.h5", folder / "new.h5"


@pytest.fixture(scope="module")
def merged(banks, tmp_path_factory):
    out = tmp_path_factory.mktemp("merged") / "both.h5"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "MIN_SHARED_GENES", 1)
        return merge_banks(banks, out, **PLAIN)


def expected(n):
    """Of a count n of 100."""
    return np.log1p(100 * np.asarray(n, dtype=float))


# What is in a merged bank


def test_genes_are_joined_and_what_was_not_measured_is_told_from_0(merged):
    bank = Bank.open(merged.path)
    coverage = bank.expression.coverage

    assert bank.genes == ("BLUE", "GREEN", "RED", "REST")
    assert bank.gene_ids == (BLUE_ID, "", RED_ID, "")
    assert bank.origin_names == ("new", "old")
    assert bank.origins == ("old",) * 15 + ("new",) * 15
    assert coverage.measured.tolist() == [[True, False, True, True], [False, True, True, True]]
    columns, rows = np.array(shared.BOARD).T
    red = expected(columns + 1)
    np.testing.assert_allclose(dense(bank)[:, 2], red, rtol=1e-6)
    np.testing.assert_allclose(dense(bank)[:15, 1], expected(rows[:15] + 1), rtol=1e-6)
    np.testing.assert_allclose(dense(bank)[15:, 0], expected(2 * rows[15:] + 1), rtol=1e-6)
    assert bank.gene_columns["n_sections"].tolist() == [1, 1, 2, 2]
    # Of the references that measure a gene, not of all.
    assert bank.gene_columns["detected_fraction"].tolist() == [1, 1, 1, 1]
    assert bank.spots[0] == "L_0x0"
    assert bank.spot_columns["total_counts"].tolist() == [100] * 30


def test_embeddings_are_those_of_the_banks_in_one_space(merged):
    bank = Bank.open(merged.path)

    colors = [(60 + 20 * column, 40 + 25 * row, 150) for column, row in shared.BOARD]
    np.testing.assert_allclose(bank.embedding, colors, atol=2e-3)


def test_every_origin_keeps_what_it_was(merged):
    with h5py.File(merged.path) as file:
        origins = {name: h5ad.read_scalars(one) for name, one in file["uns/stinfer/origins"].items()}
        notices = h5ad.read_strings(file["uns/stinfer"], "notices")

    assert origins == {
        "old": {
            "dataset": "board", "pitch_um": 200.0, "spot_diameter_um": 100.0, "gene_join": "union",
            "n_references": 15, "n_genes": 3, "median_total_counts": 100.0,
            # Of 100 counts of the middle spot 3 are of GREEN.
            "shared_counts_fraction": pytest.approx(0.97, abs=1e-6),
        },
        "new": {
            "dataset": "visium", "pitch_um": 100.0, "spot_diameter_um": 55.0, "gene_join": "union",
            "n_references": 15, "n_genes": 3, "median_total_counts": 100.0,
            "shared_counts_fraction": pytest.approx(0.95, abs=1e-6),
        },
    }  # fmt: skip
    settings = Bank.open(merged.path).settings
    assert (settings.dataset, settings.pitch_um, settings.spot_diameter_um) == ("board+visium", 200, 100)
    assert (
        "union of the banks' genes: 4, of which 2 are measured by all of new, old; where a gene was not "
        "measured it does not count"
    ) in notices
    assert any(notice.startswith("old: ") for notice in notices)


def test_anndata_reads_a_merged_bank(merged):
    found = anndata.read_h5ad(merged.path)

    assert found.obs["origin"].tolist() == ["old"] * 15 + ["new"] * 15
    assert found.varm["measured"].tolist() == [[True, False], [False, True], [True, True], [True, True]]
    assert found.obsm["raw_embedding"].shape == (30, 3)


def test_the_same_banks_give_the_same_bytes(banks, merged, tmp_path):
    again = merge_banks(banks, tmp_path / "both.h5", **PLAIN)

    assert again.path.read_bytes() == merged.path.read_bytes()


def test_a_merged_bank_can_be_merged(data, model, banks, merged, tmp_path):
    section = half(data, "L", range(2), ("GREEN",), lambda column, row: (row + 7,))
    path = tmp_path / "old.h5"
    build_bank([section], plan(k=1), [model], path, device="cpu")

    once = Bank.open(merge_banks([*banks, path], tmp_path / "once.h5", **PLAIN).path)
    twice = Bank.open(merge_banks([merged.path, path], tmp_path / "twice.h5", **PLAIN).path)

    # Two banks and two sections of one name.
    assert once.origin_names == twice.origin_names == ("new", "old", "old.2")
    assert sorted(set(twice.sections)) == ["L", "L.2", "R"]
    assert once.genes == twice.genes
    np.testing.assert_array_equal(once.expression.coverage.measured, twice.expression.coverage.measured)
    assert once.expression.coverage.measured[:, 2].tolist() == [True, True, False]
    np.testing.assert_array_equal(dense(once), dense(twice))
    np.testing.assert_allclose(once.embedding, twice.embedding, atol=1e-2)
    with h5py.File(twice.path) as file:
        assert h5ad.read_scalars(file["uns/stinfer/origins/new"])["dataset"] == "visium"


def test_info_diff_and_verify_tell_of_origins(banks, merged):
    text = describe_bank(Bank.open(merged.path))
    assert "4 (union of the merged banks' genes; 2 measured in all), 100% of values not zero" in text
    assert "merged of      new (15 references, 3 genes); old (15 references, 3 genes)" in text
    assert "merging        can be merged with others" in text
    assert "cannot be merged" in describe_bank(Bank.open(DATA / "board.h5"))
    assert "embeddings before the metric are what was written" in list(verify_bank(merged.path))

    lines = CliRunner().invoke(stinfer_command, ["bank", "diff", str(banks[0]), str(merged.path)]).output
    assert "format_version: 3 | 4" in lines
    assert "origin new: none | 15 references x 3 genes" in lines
    found = CliRunner().invoke(stinfer_command, ["bank", "info", "--json", str(merged.path)]).output
    assert '"origins": [\n    {\n      "name": "new",\n      "n_references": 15,\n      "n_genes": 3' in found


# Prediction


@pytest.fixture(scope="module")
def prediction(merged, tmp_path_factory):
    """The middles of all squares of the board, twice as fine as the banks' section."""
    folder = tmp_path_factory.mktemp("prediction")
    lines = [f"{100 + 40 * column},{100 + 40 * row}" for column, row in shared.BOARD]
    (folder / "spots.csv").write_text("\n".join(["x,y", *lines]) + "\n")
    made = stinfer.predict_slide(
        DATA / "board.png", merged.path, out=folder / "p.h5ad", mpp=5.0, spots=folder / "spots.csv",
        csv=folder / "p.csv", intervals=True, save_neighbors=True,
    )  # fmt: skip
    return made, anndata.read_h5ad(made.path)


def test_a_gene_is_predicted_from_the_nearest_reference_that_measures_it(prediction):
    _, found = prediction
    columns, rows = np.array(shared.BOARD).T

    # RED from the square itself; GREEN from column 0, 1 or 2 of its row, BLUE from column 3, 4 or 5: by row.
    np.testing.assert_allclose(found[:, "RED"].X[:, 0], expected(columns + 1), rtol=1e-5)
    np.testing.assert_allclose(found[:, "GREEN"].X[:, 0], expected(rows + 1), rtol=1e-5)
    np.testing.assert_allclose(found[:, "BLUE"].X[:, 0], expected(2 * rows + 1), rtol=1e-5)
    assert found.obsm["neighbor_index"][:, 0].tolist() == list(range(30))


def test_a_run_says_which_genes_are_of_few_and_the_csv_says_the_same(prediction):
    made, found = prediction
    said = (
        "of the 4 genes, 1 are measured by new only and 1 are measured by old only: they are predicted from "
        "the nearest references that measure them, and confidence does not tell how near those are"
    )

    assert made.notices.count(said) == 1
    table = np.genfromtxt(made.csv_path, delimiter=",", names=True)
    np.testing.assert_allclose(table["GREEN"], found[:, "GREEN"].X[:, 0], rtol=1e-4)


def test_genes_that_all_measure_are_predicted_alike_alone(merged, prediction, tmp_path):
    _, found = prediction
    made = stinfer.predict_slide(
        DATA / "board.png", merged.path, out=tmp_path / "p.h5ad", mpp=5.0, genes=["RED"],
        spots=Path(prediction[0].csv_path).with_name("spots.csv"),
    )  # fmt: skip

    assert made.notices == ()
    np.testing.assert_array_equal(anndata.read_h5ad(made.path).X[:, 0], found[:, "RED"].X[:, 0])


def test_a_picture_of_a_gene_that_is_not_among_the_chosen(merged, prediction, tmp_path):
    made = stinfer.predict_slide(
        DATA / "board.png", merged.path, out=tmp_path / "p.h5ad", mpp=5.0, genes=["RED"], png=["BLUE"],
        spots=Path(prediction[0].csv_path).with_name("spots.csv"),
    )  # fmt: skip

    assert len(made.notices) == 1
    assert made.png_paths[0].is_file()


def test_accuracy_is_not_known_of_a_gene_of_one_section(merged, prediction):
    columns = Bank.open(merged.path).gene_columns
    for name in ("cv_pearson", "interval_scale", "interval_floor"):
        assert np.isnan(columns[name]).tolist()[:2] == [True, True]
    _, found = prediction
    assert np.isnan(found[:, "BLUE"].layers["lower"]).all()
    # RED of the right half, predicted from the left: of column 2 everywhere, so it does not vary.
    assert np.isnan(columns["cv_pearson"][2])


# Refusals


def refusal(paths, tmp_path, **options):
    with pytest.raises(BankMergeError) as caught:
        merge_banks(paths, tmp_path / "out.h5", **(PLAIN | options))
    assert list(tmp_path.glob("out*")) == []
    return caught.value


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fov_um": (120.0,)}, "fov_um is 100 in the first and 120 in the second"),
        ({"orientations": 4}, "orientations is 1 in the first and 4 in the second"),
    ],
)
def test_other_ways_to_see_are_refused_by_name(data, model, banks, tmp_path, changes, said):
    if "orientations" in changes:
        # Formulas are not turned; a bank of a network is made up of one of formulas.
        bank = Bank.open(banks[1])
        other = replace(bank, settings=replace(bank.settings, orientations=(4,)))
        with pytest.raises(BankMergeError) as caught:
            merging._refuse_other_encoding(Bank.open(banks[0]), other)
        found = caught.value
    else:
        section = half(data, "R", range(3, 6), ("RED",), lambda column, row: (column,))
        build_bank([section], plan(k=1, **changes), [model], tmp_path / "b.h5", device="cpu")
        found = refusal([banks[0], tmp_path / "b.h5"], tmp_path)
    assert said in found.what
    assert all(str(path) in found.what for path in found.paths)


def test_another_model_is_refused(data, banks, tmp_path):
    shared.write_cell_model(tmp_path / "cells.onnx")
    section = half(data, "R", range(3, 6), ("RED",), lambda column, row: (column,))
    build_bank([section], plan(k=1), [tmp_path / "cells.onnx"], tmp_path / "b.h5", device="cpu")
    assert "models_sha256 is " in refusal([banks[0], tmp_path / "b.h5"], tmp_path).cause


def test_stains_of_its_own_are_refused(banks):
    first, second = (Bank.open(path) for path in banks)
    stains = [Stain(np.eye(2, 3), np.array([1.0, amount])) for amount in (1, 2)]
    settings = replace(first.settings, stain="macenko")
    one = replace(first, settings=settings, stain=stains[0])
    with pytest.raises(BankMergeError, match="another stain"):
        merging._refuse_other_encoding(one, replace(second, settings=settings, stain=stains[1]))
    merging._refuse_other_encoding(one, replace(second, settings=settings, stain=stains[0]))


def test_a_bank_of_before_embeddings_were_kept_is_refused(banks, model, data, tmp_path):
    old = tmp_path / "before.h5"
    with h5py.File(shutil.copy(banks[1], old), "r+") as file:
        del file["obsm/raw_embedding"], file["uns/stinfer/hashes/raw_embedding"]
    found = refusal([banks[0], old], tmp_path)
    assert "before.h5 has none of the embeddings before its metric" in found.cause
    assert "build it again" in found.fix


def test_a_section_that_two_banks_hold_is_refused(banks, data, model, tmp_path):
    (board,) = iter_sections(data)
    again = half(data, "other", range(3), ("RED", "GREEN"), lambda column, row: (column + 1, row + 1))
    build_bank([board, again], plan(k=1), [model], tmp_path / "b.h5", device="cpu")
    found = refusal([banks[0], tmp_path / "b.h5"], tmp_path)
    assert found.cause == "section other of the second is section L of the first"


def test_genes_of_another_species_are_refused(banks, monkeypatch, tmp_path):
    monkeypatch.setattr(merging, "MIN_SHARED_GENES", 3)
    assert "all have 2 genes in common, of 3" in refusal(banks, tmp_path).cause


def test_one_bank_is_none_to_merge_and_an_input_is_not_replaced(banks, tmp_path):
    with pytest.raises(SettingError, match="1 bank given to merge"):
        merge_banks(banks[:1], tmp_path / "out.h5")
    with pytest.raises(SettingError):
        merge_banks(banks, banks[0], overwrite=True)


# Banks that are altered


def craft(path, tmp_path, change):
    """Change what the origins of a bank measure, and let its hash fit again."""
    crafted = Path(shutil.copy(path, tmp_path / "crafted.h5"))
    with h5py.File(crafted, "r+") as file:
        measured = change(file["varm/measured"][...])
        del file["varm/measured"]
        file["varm/measured"] = measured
        origins = h5ad.read_categories(file["obs"], "origin")
        del file["uns/stinfer/hashes/origins"]
        file["uns/stinfer/hashes/origins"] = hash_json([origins, hash_arrays(measured)])
    return crafted


def no_gene(measured):
    return np.zeros_like(measured)


def one_value_too_few(measured):
    measured[2, 0] = False
    return measured


@pytest.mark.parametrize(
    "change", [no_gene, one_value_too_few, lambda m: m[:3], lambda m: m.astype(np.int8), lambda m: m[:, :1]]
)
def test_crafted_origins_are_refused_whatever_their_hash(merged, tmp_path, change):
    with pytest.raises(BankFormatError):
        Bank.open(craft(merged.path, tmp_path, change))


def test_the_crafting_itself_is_not_what_is_refused(merged, tmp_path):
    Bank.open(craft(merged.path, tmp_path, lambda measured: measured))


@pytest.mark.parametrize(
    ("dataset", "part"),
    [("varm/measured", "origins"), ("obs/origin/codes", "origins"), ("obsm/raw_embedding", "")],
)
def test_altered_origins_are_noticed(merged, tmp_path, dataset, part):
    altered = Path(shutil.copy(merged.path, tmp_path / "altered.h5"))
    with h5py.File(altered, "r+") as file:
        values = file[dataset][...]
        values.flat[0] = values.flat[0] ^ 1
        file[dataset][...] = values
    if part:
        with pytest.raises(BankAlteredError, match=f"its {part} was altered"):
            Bank.open(altered)
    else:
        # Prediction does not read them; verifying and merging do.
        with pytest.raises(BankAlteredError, match="its raw embedding was altered"):
            Bank.open(altered).raw_embedding()


# The command


def test_the_command_merges(banks, tmp_path):
    out = tmp_path / "both.h5"
    options = ["--metric", "none", "--distance", "euclidean", "--k", "1", "--weighting", "uniform"]
    run = CliRunner().invoke(main, ["bank", "merge", *map(str, banks), "--out", str(out), *options])

    assert run.exit_code == 0
    assert run.output.endswith("both.h5: 30 references x 4 genes\n")
    assert Bank.open(out).holds_models
    again = CliRunner().invoke(main, ["bank", "merge", *map(str, banks), "--out", str(out), *options])
    assert again.exit_code == 1


def test_models_may_be_left_out(banks, tmp_path):
    bank = Bank.open(merge_banks(banks, tmp_path / "b.h5", include_model=False, **PLAIN).path)

    assert not bank.holds_models
    assert "model_0" not in bank.hashes
