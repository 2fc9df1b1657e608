"""Banks of Visium sections, from the command line to a prediction."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
from click.testing import CliRunner

import stinfer
from stinfer.bank import Bank
from stinfer.errors import BankAlteredError, BankFormatError
from stinfer.integrity import hash_arrays, hash_json
from stinfer_export.bank_builder import build_bank
from stinfer_export.cli import main


def _load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


shared = _load("visium_section", Path(__file__).parent / "visium_section.py")
sections = _load("bank_sections", Path(__file__).parent / "bank_sections.py")
fixtures = _load("make_fixtures", Path(__file__).parents[1] / "make_fixtures.py")
outs, picture, model = shared.outs, sections.picture, sections.model
PATCHES = ["--pooling", "patch", "--fov-um", "8", "--metric", "none", "--distance", "euclidean", "--k", "1"]


@pytest.fixture
def packed(outs, tmp_path, monkeypatch):
    """The bank b.h5 of the section, and what the command said."""
    monkeypatch.chdir(tmp_path)
    fixtures.write_mean_color_model(tmp_path / "m.onnx")
    result = CliRunner().invoke(
        main,
        ["bank", "visium", str(outs), "--image", "full.png", "--model", "m.onnx", "--out", "b.h5", *PATCHES],
    )
    assert result.exit_code == 0, result.output
    return Bank.open(tmp_path / "b.h5"), result.output


def test_the_command_packs_an_output(packed):
    bank, said = packed

    assert "b.h5: 22 references x 3 genes" in said
    assert (bank.settings.dataset, bank.settings.pitch_um, bank.settings.spot_diameter_um) == (
        "visium",
        100.0,
        55.0,
    )
    assert bank.genes == ("ACTB", "KRT8", "KRT8-1")
    assert bank.gene_ids == ("ENSG00000000002", "ENSG00000000001", "ENSG00000000003")
    first = bank.spots.index("S1_ACGT24-1")
    # Row 2, column 4: counts 3, 14 and 4 of 21, antibodies left out.
    np.testing.assert_allclose(
        bank.expression.columns(np.arange(3))[first], np.log1p(1e4 / 21 * np.array([14, 3, 4])), rtol=1e-6
    )
    assert bank.spot_columns["total_counts"][first] == 21
    # The picture's red grows by 255 over 1200 px, and the spot lies at 300.
    assert bank.embedding[first][0] == pytest.approx(255 * 300 / 1200, abs=1)
    assert any("Antibody Capture are dropped" in line for line in said.splitlines())


def test_anndata_reads_the_ids(packed):
    found = anndata.read_h5ad("b.h5")

    assert found.var["gene_ids"].tolist() == ["ENSG00000000002", "ENSG00000000001", "ENSG00000000003"]


def test_a_prediction_has_the_ids_of_its_genes(packed):
    stinfer.predict_slide(
        "full.png", "b.h5", out="p.h5ad", mpp=1.0, genes="ENSG00000000003.7,actb", pitch_um=300.0
    )

    found = anndata.read_h5ad("p.h5ad")

    assert found.var["gene_ids"].to_dict() == {"ACTB": "ENSG00000000002", "KRT8-1": "ENSG00000000003"}
    assert "1 genes are found in another case: actb as ACTB" in list(found.uns["stinfer"]["notices"])


def test_the_hash_of_ids_is_that_of_the_format(packed):
    bank, _ = packed
    columns = {name: hash_arrays(values) for name, values in bank.gene_columns.items()}

    columns["gene_ids"] = hash_json(["ENSG00000000002", "ENSG00000000001", "ENSG00000000003"])

    assert bank.hashes["genes"] == hash_json([["ACTB", "KRT8", "KRT8-1"], columns])


def test_an_altered_id_is_refused(packed):
    with h5py.File("b.h5", "r+") as file:
        file["var/gene_ids"][1] = "ENSG00000000009"

    with pytest.raises(BankAlteredError, match="its genes was altered"):
        Bank.open("b.h5")


def test_ids_that_do_not_fit_are_refused_whatever_their_hash(packed):
    bank, _ = packed
    columns = {name: hash_arrays(values) for name, values in bank.gene_columns.items()}
    columns["gene_ids"] = hash_json(["ENSG00000000002"])
    with h5py.File("b.h5", "r+") as file:
        del file["var/gene_ids"], file["uns/stinfer/hashes/genes"]
        file["var/gene_ids"] = ["ENSG00000000002"]
        file["uns/stinfer/hashes/genes"] = hash_json([list(bank.genes), columns])

    with pytest.raises(BankFormatError, match="its gene IDs do not fit its genes"):
        Bank.open("b.h5")


def test_ids_of_several_sections_are_joined(picture, model, tmp_path):
    counts = [[3, 1], [2, 2]]
    three = [
        sections.section(picture, "P1", "AB", counts, gene_ids=("E1", "E2")),
        sections.section(picture, "P2", "BC", counts, gene_ids=("E9", "E3")),
        sections.section(picture, "P3", "CD", counts),
    ]

    summary = build_bank(three, sections.plan(k=1), [model], tmp_path / "b.h5", device="cpu")

    assert Bank.open(summary.path).gene_ids == ("E1", "E2", "E3", "")
    assert "sections give 1 genes different Ensembl IDs, the first is kept: B (E2, E9)" in summary.notices


def test_sections_without_ids_make_a_bank_without(picture, model, tmp_path):
    one = sections.section(picture, "P1", "AB", [[3, 1], [2, 2]])

    summary = build_bank([one], sections.plan(k=1), [model], tmp_path / "b.h5", device="cpu")

    assert Bank.open(summary.path).gene_ids is None
    with h5py.File(summary.path) as file:
        assert "gene_ids" not in file["var"]


def test_the_command_packs_anndata(outs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fixtures.write_mean_color_model(tmp_path / "m.onnx")
    rows = {row[0]: row for row in shared.position_rows()}
    order = [rows[barcode] for barcode in shared.COUNTED]
    data = anndata.AnnData(shared.counts().astype(float))
    data.obs_names = shared.COUNTED
    data.var_names = ["KRT8", "ACTB", "CD3", "ESR1"]
    data.obs["array_row"], data.obs["array_col"] = ([int(row[i]) for row in order] for i in (2, 3))
    data.obsm["spatial"] = np.array([[float(row[5]), float(row[4])] for row in order])
    data.uns["spatial"] = {"S1": {"scalefactors": dict(shared.SCALEFACTORS)}}
    data.write_h5ad("C.h5ad")

    result = CliRunner().invoke(
        main,
        ["bank", "anndata", "C.h5ad", "--image", "full.png", "--model", "m.onnx", "--out", "b.h5", *PATCHES],
    )

    assert result.exit_code == 0, result.output
    assert "b.h5: 22 references x 4 genes" in result.output
    bank = Bank.open(tmp_path / "b.h5")
    assert bank.settings.dataset == "anndata"
    assert bank.spots[0] == "C_ACGT55-1"
    assert "Note:  section C: raw counts are read from X" in result.output
