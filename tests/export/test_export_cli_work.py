"""The command `stinfer-export`: its work, and that it needs no torch."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path

import anndata
import numpy as np
import pytest

from stinfer.bank import Bank
from stinfer.encoder import Encoder
from stinfer_export import score as score_module

_SPEC = importlib.util.spec_from_file_location("cli_project", Path(__file__).parent / "cli_project.py")
shared = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(shared)
_here, board, _run, _succeed = shared.here, shared.board, shared.run, shared.succeed
_without_torch = shared.without_torch


def _pack(board, *options, model="mean_color.onnx"):
    return _succeed("bank", "her2st", board / "data", "--model", board / model, *options)


def _predicted(table):
    """Write a table as if bank b.h5 had predicted it."""
    sha256 = hashlib.sha256(Path("b.h5").read_bytes()).hexdigest()
    table.uns["stinfer"] = {"places": {"source": "her2st selection file"}, "bank": {"sha256": sha256}}
    table.write_h5ad("p.h5ad")


def _score(board, *options):
    counts = board / "data/ST-cnts/T1.tsv"
    return _succeed("score", "p.h5ad", "--counts", counts, "--bank", "b.h5", *options)


# Work


def test_a_bank_is_built_with_the_defaults_in_a_folder_of_its_own(board):
    output = _pack(board)

    assert (
        "Note:  the metric is not learned: it needs at least two sections, each of at least 5 spots" in output
    )
    assert "reference_bank/her2st.h5: 30 references x 3 genes\n" in output
    assert "Note:  union of the sections' genes: 3, all of them listed in every section" in output
    assert "Note:  k is 6, not 100: a 5th of the 30 references" in output
    assert "Note:  patches are encoded, not a map: its model file does not say how: export it again" in output
    bank = Bank.open("reference_bank/her2st.h5")
    s = bank.settings
    assert (s.dataset, s.pitch_um, s.spot_diameter_um) == ("her2st", 200, 100)
    assert (s.pooling, s.fov_um, s.window, s.um_per_px) == ("patch", (154,), "square", 154 / 8)
    assert (s.gene_join, s.metric, s.distance, s.k, s.weighting) == (
        "union",
        "pca",
        "cosine",
        6,
        "softmax",
    )
    assert bank.models() == [(board / "mean_color.onnx").read_bytes()]


def test_a_bank_is_of_maps_where_the_model_can(board):
    output = _pack(board, "--fov-um", "154,309,618", "--preset", "custom", model="cells.onnx")

    assert "reference_bank/her2st.h5: 30 references x 3 genes\n" in output
    assert "patches" not in output
    bank = Bank.open("reference_bank/her2st.h5")
    s = bank.settings
    assert (s.pooling, s.fov_um, s.window, s.um_per_px) == ("map", (154, 309, 618), "square", 154 / 224)
    assert (s.metric, s.distance, s.k, s.weighting) == ("pca", "cosine", 6, "softmax")
    assert [one.shape for one in bank.projections] == [(6, 6)]
    assert bank.embedding.shape == (30, 18)


def test_a_map_of_a_model_that_has_none_is_refused_with_its_reason(board, tmp_path):
    shared.sections.write_cell_model(tmp_path / "deep.onnx", refusal="every cell sees the whole image")
    models = {board / "mean_color.onnx": "mean_color", tmp_path / "deep.onnx": "cells"}
    reasons = ["its model file does not say how: export it again", "every cell sees the whole image"]
    for (model, name), reason in zip(models.items(), reasons, strict=True):
        result = _run("bank", "her2st", board / "data", "--model", model, "--pooling", "map", "--out", "b.h5")

        assert result.exit_code == 1
        assert result.output.splitlines() == [
            f"Error: {name} cannot encode a slide as a map: {reason}",
            "Try:   use --pooling patch, or another backbone",
        ]
    assert not Path("b.h5").exists()


def test_a_folder_that_was_named_is_not_made(board):
    arguments = ("bank", "her2st", board / "data", "--model", board / "mean_color.onnx", "--out")

    result = _run(*arguments, "typo/her2st.h5")

    assert result.exit_code == 1
    assert "Error: cannot write typo/her2st.h5: the folder typo does not exist" in result.output
    assert not Path("typo").exists()


def test_every_option_reaches_the_bank(board):
    options = (
        "--sections T1 --pooling map --fov-um 1200,1500.5 --window disc --gene-join intersection "
        "--max-outside 0.1 --metric none --distance euclidean --k 4 --weighting inverse --without-model "
        "--preset custom --tta 4 "
        "--out b.h5 --device cpu --batch-size 7 --threads 1"
    )

    output = _pack(board, *options.split(), model="cells.onnx")

    # A window of 120 px on an image of 200 x 180 px, spots 50 px from its edges: at an edge 1/12 of its
    # square is outside, at a corner 1 - (11/12)², more than a tenth.
    assert "Note:  section T1: 4 spots have more than 10% of their 1200 µm outside the image" in output
    assert "b.h5: 26 references x 3 genes\n" in output
    bank = Bank.open("b.h5")
    s = bank.settings
    assert (s.pooling, s.fov_um, s.window) == ("map", (1200, 1500.5), "disc")
    assert (s.gene_join, s.metric, s.distance) == ("intersection", "none", "euclidean")
    assert (s.k, s.weighting) == (4, "inverse")
    assert not bank.holds_models
    assert (s.preset, s.orientations, s.reductions, s.stain) == ("custom", (1,), (1,), "none")
    assert bank.projections == (None,)


def test_the_options_of_patches_reach_the_bank(board):
    options = "--pooling patch --fov-um 150 --metric pca --max-outside 1 --out b.h5"

    output = _pack(board, *options.split(), model="cells.onnx")

    assert "Note:  patches are encoded" not in output
    bank = Bank.open("b.h5")
    s = bank.settings
    assert (s.pooling, s.fov_um, s.window, s.metric) == ("patch", (150,), "square", "pca")
    assert (s.um_per_px, s.patch_px) == (150 / 224, 224)
    assert [one.shape for one in bank.projections] == [(6, 6)]


def test_quiet_prints_notices_alone(board):
    arguments = (
        "bank",
        "her2st",
        board / "data",
        "--model",
        board / "mean_color.onnx",
        "--out",
        "b.h5",
        "--quiet",
    )

    lines = _succeed(*arguments).splitlines()
    assert "Note:  k is 6, not 100: a 5th of the 30 references" in lines
    assert all(line.startswith("Note:  ") for line in lines)

    errors = _run(*arguments)
    assert errors.exit_code == 1
    assert "Error: output b.h5 exists" in errors.output
    _succeed(*arguments, "--overwrite")


def test_sections_are_chosen_by_name(board):
    model = board / "mean_color.onnx"
    arguments = ("bank", "her2st", board / "data", "--model", model, "--out", "b.h5", "--sections")

    result = _run(*arguments, " T1 ,, X9 ")

    assert result.exit_code == 1
    assert "it has no section X9; it has T1" in result.output
    assert not Path("b.h5").exists()
    _succeed(*arguments, "T1,")
    assert set(Bank.open("b.h5").sections) == {"T1"}


def test_a_prediction_that_is_the_truth_scores_1(board):
    _pack(board, "--out", "b.h5")
    _predicted(anndata.read_h5ad(board / "truth.h5ad"))

    output = _score(board, "--n-genes", 2)

    assert output.splitlines() == [
        "30 spots (0 predicted spots were not measured)",
        "2 genes (0 not listed by the measurement: counted as 0)",
        "mean gene-wise Pearson 1.000 (quartiles 1.000, 1.000, 1.000)",
    ]


def test_the_quartiles_are_those_of_numpy(board):
    _pack(board, "--out", "b.h5")
    table = anndata.read_h5ad(board / "truth.h5ad")
    noisy = table.X + np.random.default_rng(1).normal(0, [0.3, 0.6, 0.05], table.X.shape)
    expected = [np.corrcoef(noisy[:, gene], table.X[:, gene])[0, 1] for gene in range(3)]
    table.X = noisy.astype(np.float32)
    _predicted(table)

    output = _score(board, "--min-detected", 0.5)

    numbers = [float(number) for number in re.findall(r"\d\.\d{3}", output.splitlines()[-1])]
    assert numbers == pytest.approx([np.mean(expected), *np.quantile(expected, [0.25, 0.5, 0.75])], abs=6e-4)


def test_every_option_reaches_the_score(monkeypatch):
    asked = {}

    def score(prediction, counts, bank, **options):
        asked.update(options, prediction=prediction, counts=counts, n_refs=bank.n_refs)
        pearson = np.array([0.1, 0.2, 0.3, 0.4, np.nan])
        return score_module.Score(tuple("ABCDE"), pearson, n_spots=7, n_unmatched=2, n_absent=1)

    monkeypatch.setattr(score_module, "score_prediction", score)
    bank = Path(__file__).parents[1] / "data/board_v1.h5"

    output = _succeed(
        "score", "p.h5ad", "--counts", "c.tsv", "--bank", bank, "--n-genes", 12, "--min-detected", 0.7
    )

    assert asked == {
        "prediction": Path("p.h5ad"),
        "counts": Path("c.tsv"),
        "n_refs": 30,
        "n_genes": 12,
        "min_detected": 0.7,
    }
    assert output.splitlines()[:2] == [
        "7 spots (2 predicted spots were not measured)",
        "5 genes (1 not listed by the measurement: counted as 0)",
    ]
    # A gene without a correlation counts 0: 1.0 / 5.
    assert output.splitlines()[2].startswith("mean gene-wise Pearson 0.200 ")


def test_a_prediction_that_nowhere_varies_scores_0(board):
    _pack(board, "--out", "b.h5")
    table = anndata.read_h5ad(board / "truth.h5ad")
    table.X = np.full_like(table.X, 2.5)
    _predicted(table)

    output = _score(board)

    assert "mean gene-wise Pearson 0.000" in output


def test_stain_texture_is_written_where_it_is_wanted():
    said = "{0}: map: halo 1 cell, offset 0 x 0 px\n{0}\n"
    assert _succeed("backbone", "stain_texture", "--out-dir", "a/b") == said.format("a/b/stain_texture.onnx")
    assert _succeed("backbone", "stain_texture") == said.format("models/stain_texture.onnx")

    assert Path("a/b/stain_texture.onnx").read_bytes() == Path("models/stain_texture.onnx").read_bytes()
    assert _run("backbone", "stain_texture").exit_code == 1
    _succeed("backbone", "stain_texture", "--overwrite")


def test_all_packs_with_the_model_asked_for(board):
    output = _succeed("all", "--her2st", board / "data", "--model", "stain_texture")

    assert output.splitlines()[-1] == "wrote reference_bank/her2st.h5: 30 references x 3 genes"
    assert Bank.open("reference_bank/her2st.h5").settings.backbones == ("stain_texture",)


# Without torch


def test_all_but_conversion_works_without_torch(board, tmp_path):
    model = _without_torch("backbone", "stain_texture", "--out-dir", ".")
    assert (model.returncode, model.stdout) == (0, "stain_texture.onnx\n"), model.stderr
    assert Encoder(Path("stain_texture.onnx").read_bytes(), "it", device="cpu").card.input_size_px == 224

    bank = _without_torch("bank", "her2st", board / "data", "--model", "stain_texture.onnx", "--out", "b.h5")
    assert (bank.returncode, bank.stdout) == (0, "b.h5: 30 references x 3 genes\n"), bank.stderr
    assert Bank.open("b.h5").settings.backbones == ("stain_texture",)

    _predicted(anndata.read_h5ad(board / "truth.h5ad"))
    counts = board / "data/ST-cnts/T1.tsv"
    score = _without_torch("score", "p.h5ad", "--counts", counts, "--bank", "b.h5")
    assert score.returncode == 0, score.stderr
    assert score.stdout.splitlines()[-1].startswith("mean gene-wise Pearson 1.000")


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100"])
def test_conversion_without_torch_says_what_to_install(name):
    Path("x.pth").write_bytes(b"weights")

    result = _without_torch("backbone", name, "--checkpoint", "x.pth")

    assert (result.returncode, result.stdout) == (1, "")
    error, remedy = result.stderr.splitlines()
    assert re.fullmatch(
        r"Error: .* needs the package (torch|timm|torchvision), which is not installed", error
    )
    assert remedy == "Try:   pip install 'stinfer[export]'"


def test_all_without_torch_asks_for_it_only_where_there_are_weights():
    Path("models/checkpoints").mkdir(parents=True)
    Path("models/checkpoints/resnet18.a1_in1k.pth").write_bytes(b"weights")

    result = _without_torch("all")

    assert result.returncode == 1
    assert result.stdout == "wrote models/stain_texture.onnx\n"
    assert result.stderr.splitlines()[-1] == "Try:   pip install 'stinfer[export]'"
    assert "Traceback" not in result.stderr
