"""Two banks side by side, and one as JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from stinfer.bank import Bank
from stinfer.cli import main
from stinfer.compare_banks import diff_banks, summarize_bank
from stinfer.sparse import Sparse

DATA = Path(__file__).parents[1] / "data"
BOARD = DATA / "board.h5"


@pytest.fixture(scope="module")
def bank():
    return Bank.open(BOARD)


def _changed(bank, part, **changes):
    """Change a bank, and its hash of a part."""
    return replace(bank, **changes, hashes={**bank.hashes, part: "0" * 64})


def test_a_bank_is_the_same_as_itself(bank):
    assert list(diff_banks(bank, bank)) == [
        "the same: annoy, calibration, embedding, expression, genes, metric, model_0, settings, spots"
    ]


def test_settings_are_named_with_both_values(bank):
    other = _changed(bank, "settings", settings=replace(bank.settings, k=7, fov_um=(50.0,)))

    assert list(diff_banks(bank, other))[:3] == ["fov_um: 100 | 50", "k: 4 | 7", "settings: differs"]


def test_sections_are_counted(bank):
    sections = ("T1",) * 18 + ("T2",) * 12
    other = _changed(bank, "spots", sections=sections)

    lines = list(diff_banks(bank, other))

    assert lines[:2] == [
        "section T1 of patient T: 30 | 18 references",
        "section T2 of patient T: 0 | 12 references",
    ]
    assert "spots: differs" in lines


def test_genes_are_named(bank):
    some = tuple(f"G{i}" for i in range(7))
    left = _changed(bank, "genes", genes=("GREEN", "RED", *some), gene_ids=("E1", "E2", *[""] * 7))
    right = _changed(bank, "genes", genes=("GREEN", "RED", "REST"), gene_ids=("E1", "E9", "E3"))

    assert list(diff_banks(left, right))[:3] == [
        "7 genes only in the first: G0, G1, G2, G3, G4, …",
        "1 genes only in the second: REST",
        "1 genes have other Ensembl IDs: RED",
    ]


def test_accuracy_is_averaged_over_the_genes_that_have_one(bank):
    def with_pearson(*values):
        return replace(bank, gene_columns={"cv_pearson": np.array(values, dtype=np.float32)})

    first = with_pearson(0.25, np.nan, 0.75)

    assert "mean cross-validated Pearson over genes: 0.500 | 0.250" in diff_banks(
        first, with_pearson(0.25, 0, 0.5)
    )
    assert "mean cross-validated Pearson over genes: 0.500 | none" in diff_banks(
        first, with_pearson(np.nan, np.nan, np.nan)
    )


def test_how_far_numbers_differ_is_said_where_they_stand_for_the_same(bank):
    embedding = bank.embedding.copy()
    embedding[3, 1] += 0.5
    data = bank.expression.data.copy()
    data[7] -= 0.25
    sparse = bank.expression
    expression = Sparse(data, sparse.indices, sparse.indptr, sparse.n_columns)

    assert "embedding: differs, by 0.5 at the most" in diff_banks(
        bank, _changed(bank, "embedding", embedding=embedding)
    )
    assert "expression: differs, by 0.25 at the most" in diff_banks(
        bank, _changed(bank, "expression", expression=expression)
    )
    renamed = _changed(bank, "embedding", spots=tuple(reversed(bank.spots)))
    assert "embedding: differs" in diff_banks(bank, renamed)


def test_what_only_one_has(bank):
    hashes = {name: value for name, value in bank.hashes.items() if name != "annoy"}

    assert "annoy: only in the first" in diff_banks(bank, replace(bank, hashes=hashes))
    assert "annoy: only in the second" in diff_banks(replace(bank, hashes=hashes), bank)


def test_a_summary_holds_what_there_is(bank):
    found = summarize_bank(bank)

    assert found["settings"]["k"] == 4
    assert found["settings"]["fov_um"] == [100.0]
    assert (found["n_references"], found["n_genes"], found["has_gene_ids"]) == (30, 3, False)
    # Every square has counts of every color.
    assert found["stored_fraction"] == 1.0
    assert found["sections"] == [{"name": "T1", "patient": "T", "n_references": 30}]
    assert found["mean_cv_pearson"] == pytest.approx(np.mean(bank.gene_columns["cv_pearson"]), rel=1e-6)
    assert [found["hashes"]["model_0"]] == found["settings"]["models_sha256"]


def _run(*arguments):
    return CliRunner().invoke(main, ["bank", *map(str, arguments)])


def test_the_commands(bank):
    assert json.loads(_run("info", BOARD, "--json").output) == summarize_bank(bank)
    other = Bank.open(DATA / "board_map.h5")
    assert _run("diff", BOARD, DATA / "board_map.h5").output.splitlines() == list(diff_banks(bank, other))
    result = _run("diff", BOARD, "nowhere.h5")
    assert result.exit_code == 1
    assert result.output.startswith("Error: bank nowhere.h5 does not exist\nTry:   ")


def test_json_and_genes_exclude_each_other():
    result = _run("info", BOARD, "--json", "--genes")

    assert result.exit_code == 2
    assert "--genes and --json exclude each other" in result.output
