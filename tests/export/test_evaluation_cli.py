"""The commands `stinfer-export evaluate`."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from stinfer.bank import Bank
from stinfer_export.bank_plan import BankPlan
from stinfer_export.datasets import her2st
from stinfer_export.evaluation.run import GeneSet

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")


def _load(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


project, sections = _load("cli_project"), _load("evaluation_sections")
visium = _load("visium_section")
outs = visium.outs
_here = project.here


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squares")
    sections.write_data_set(folder / "data")
    sections.fixtures.write_mean_color_model(folder / "model.onnx")
    return folder


def arguments(squares, *more):
    return [
        "evaluate", "her2st", squares / "data", "--model", squares / "model.onnx", "--out-dir", "found",
        "--pooling", "patch", "--fov-um", "100", "--k", "5", "--min-detected", "0", "--device", "cpu", *more,
    ]  # fmt: skip


def test_sections_are_held_out_and_the_table_is_shown(squares):
    shown = project.succeed(*arguments(squares))
    lines = shown.splitlines()
    ours = next(line for line in lines if line.startswith("stInfer bank"))
    summary = json.loads(Path("found/evaluation.json").read_text())
    stated = summary["per_gene"]["stinfer"]["pearson"]
    assert f"{stated['mean']:.3f} ± {stated['sd']:.3f}" in ours
    assert [fold["name"] for fold in summary["folds"]] == ["A1", "A2", "B1"]
    assert summary["settings"]["hold_out"] == "section"
    assert summary["settings"]["fov_um"] == [100.0]
    assert sorted(path.name for path in Path("found").iterdir()) == [
        "cost.json", "embeddings", "evaluation.json", "evaluation.png", "genes.csv",
    ]  # fmt: skip
    assert set(json.loads(Path("found/cost.json").read_text())["sections"]) == {"A1", "A2", "B1"}


def test_outputs_of_space_ranger_are_held_out_too(squares, outs, tmp_path):
    """Of two that are the same the nearest reference of a spot is that very spot: the correlation is 1."""
    other = tmp_path / "S2" / "outs"
    shutil.copytree(outs, other)
    image = tmp_path / "full.png"
    project.succeed(
        "evaluate", "visium", outs, other, "--image", image, "--image", image, "--out-dir", "found",
        "--model", squares / "model.onnx", "--pooling", "patch", "--fov-um", "40", "--k", "1",
        "--min-detected", "0", "--device", "cpu",
    )  # fmt: skip
    summary = json.loads(Path("found/evaluation.json").read_text())
    assert [fold["name"] for fold in summary["folds"]] == ["S1", "S2"]
    assert summary["settings"]["dataset"] == "visium"
    stated = summary["per_gene"]["stinfer"]["pearson"]
    assert stated["mean"] == pytest.approx(1, abs=1e-6)


def test_results_are_not_replaced_unless_told(squares):
    project.succeed(*arguments(squares, "--test-on", "B1"))
    before = Path("found/evaluation.json").read_bytes()
    refused = project.run(*arguments(squares, "--hold-out", "patient"))
    assert refused.exit_code == 1
    assert "found/evaluation.json exists" in refused.output
    assert Path("found/evaluation.json").read_bytes() == before
    project.succeed(*arguments(squares, "--hold-out", "patient", "--overwrite"))
    names = [fold["name"] for fold in json.loads(Path("found/evaluation.json").read_text())["folds"]]
    assert names == ["A", "B"]


def test_one_section_is_predicted_from_all_others(squares):
    project.succeed(*arguments(squares, "--test-on", "B1"))
    summary = json.loads(Path("found/evaluation.json").read_text())
    assert summary["settings"]["hold_out"] == "once: B1"
    assert [fold["train"] for fold in summary["folds"]] == [["A1", "A2"]]
    assert summary["per_gene"]["stinfer"]["pearson"]["sd"] is None


def test_what_cannot_be_drawn_is_said_before_anything_is_encoded(squares, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    result = project.run(*arguments(squares))
    assert result.exit_code == 1
    assert "pip install 'stinfer[evaluate]'" in result.output
    assert not Path("found").exists()


def test_a_bank_says_what_it_recorded_and_what_that_is_worth(squares):
    project.succeed(
        "bank", "her2st", squares / "data", "--model", squares / "model.onnx", "--out", "b.h5",
        "--pooling", "patch", "--fov-um", "100", "--k", "5", "--device", "cpu", "--quiet",
    )  # fmt: skip
    shown = project.succeed("evaluate", "bank", "b.h5", "--min-detected", "0")
    recorded = Bank.open(Path("b.h5")).gene_columns["cv_pearson"]
    assert f"mean gene-wise Pearson {np.mean(recorded):.3f}" in shown
    assert "of 4 genes, as the bank recorded it when it was built: leave-one-section-out" in shown
    assert "a little too good" in shown


def test_defaults_are_those_of_the_library():
    command = project.COMMANDS["evaluate her2st"]
    found = command.make_context("her2st", ["DIR", "--model", "m.onnx", "--out-dir", "e"]).params
    plan = BankPlan("her2st", her2st.PITCH_UM, her2st.SPOT_DIAMETER_UM)
    shared = {field.name for field in dataclasses.fields(plan)} & set(found) - {"preset", "orientations"}
    assert {"metric", "k", "stain", "fov_um"} <= shared
    assert {name: found[name] for name in shared} == {name: getattr(plan, name) for name in shared}
    assert GeneSet() == GeneSet(found["genes"], found["n_genes"], found["min_detected"])
