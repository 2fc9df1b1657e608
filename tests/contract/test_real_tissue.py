"""The main job on real tissue: sections C2, C3 and C4 of her2st predict C5."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import stinfer
from stinfer.bank import Bank
from stinfer_export.bank_builder import BankPlan, build_bank
from stinfer_export.datasets import her2st
from stinfer_export.export_all import export_backbone
from stinfer_export.score import score_prediction

SHARED = Path(os.environ.get("STINFER_DATA", Path(__file__).parents[2] / ".." / "shared"))
HER2ST = SHARED / "her2st"
WEIGHTS = SHARED / "weights" / "mobilenetv2_100.pth"

needs_her2st = pytest.mark.skipif(not HER2ST.is_dir(), reason=f"no {HER2ST}")
needs_weights = pytest.mark.skipif(not WEIGHTS.is_file(), reason=f"no {WEIGHTS}")


def predict_c5(model: Path, folder: Path) -> float:
    """Return the mean gene-wise Pearson of 250 genes chosen on the training sections."""
    plan = BankPlan(her2st.NAME, her2st.PITCH_UM, her2st.SPOT_DIAMETER_UM, her2st.DEFAULT_FOV_UM)
    bank = build_bank(her2st.iter_sections(HER2ST, ["C2", "C3", "C4"]), plan, model, folder / "bank.h5").path
    (image,) = (HER2ST / "ST-imgs" / "C" / "C5").iterdir()
    spots = HER2ST / "ST-spotfiles" / "C5_selection.tsv"
    made = stinfer.predict_slide(image, bank, out=folder / "C5.h5ad", mpp=0.69, spots=spots)
    found = score_prediction(made.path, HER2ST / "ST-cnts" / "C5.tsv.gz", Bank.open(bank))
    assert (found.n_spots, len(found.genes)) == (181, 250)
    return found.mean


@needs_her2st
def test_stain_texture_predicts_c5(tmp_path: Path) -> None:
    # The same protocol gives 0 for chance and 0.24 for a random ResNet18.
    assert predict_c5(export_backbone("stain_texture", None, tmp_path), tmp_path) >= 0.24


@needs_her2st
@needs_weights
def test_mobilenetv2_predicts_c5(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    assert predict_c5(export_backbone("mobilenetv2_100", WEIGHTS, tmp_path), tmp_path) >= 0.29
