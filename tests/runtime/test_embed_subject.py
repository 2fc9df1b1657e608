"""What everything that is encoded depends on, and so whose checkpoint a run goes on from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stinfer.bank import Bank
from stinfer.embed_subject import encoding_recipe
from stinfer.integrity import hash_json
from stinfer.stain import Stain
from stinfer.subject import open_subject

DATA = Path(__file__).parents[1] / "data"
BANK = Bank.open(DATA / "board_map.h5")
STAIN = Stain(np.array([[2, 2, 1], [2, 6, 3]]) / [[3], [7]], np.array([0.9, 0.7]))
PROJECTION = np.eye(3, 2, dtype=np.float32)


def key(
    bank: Bank,
    fingerprint: str = "slide",
    provider: str = "CPUExecutionProvider",
    model: Path | None = None,
) -> str:
    opened = SimpleNamespace(bank=bank, encoders=SimpleNamespace(provider=provider), model=model)
    with open_subject(DATA / "board.png", 5.0) as subject:
        return hash_json(encoding_recipe(subject, fingerprint, opened))


def changed(**settings: object) -> Bank:
    return replace(BANK, settings=replace(BANK.settings, **settings))


@pytest.mark.parametrize(
    "other",
    [
        changed(models_sha256=("cd" * 32,)),
        changed(orientations=(4,)),
        changed(reductions=(2,)),
        changed(um_per_px=9.0),
        changed(pooling="patch"),
        changed(backbones=("mean_cells",) * 2, models_sha256=BANK.settings.models_sha256 * 2),
        replace(BANK, stain=STAIN),
        replace(BANK, projections=(PROJECTION,)),
    ],
    ids=["model", "orientations", "reductions", "scale", "pooling", "two models", "stain", "projection"],
)
def test_what_is_encoded_for_one_bank_is_of_no_use_to_another(other: Bank) -> None:
    assert key(other) != key(BANK)


def test_other_stains_and_projections_are_told_apart() -> None:
    darker = Stain(STAIN.directions, STAIN.amounts * 2)
    assert key(replace(BANK, stain=darker)) != key(replace(BANK, stain=STAIN))
    steeper = replace(BANK, projections=(PROJECTION * 2,))
    assert key(steeper) != key(replace(BANK, projections=(PROJECTION,)))


def test_a_model_that_stands_in_is_told_apart() -> None:
    keys = [key(BANK, model=path) for path in (None, DATA / "max_color.onnx", DATA / "square_cells.onnx")]

    assert len(set(keys)) == 3


def test_slide_and_provider_are_told_apart() -> None:
    assert key(BANK, fingerprint="other") != key(BANK)
    assert key(BANK, provider="CUDAExecutionProvider") != key(BANK)


def test_what_is_done_with_the_embeddings_makes_no_difference() -> None:
    """So that windows, neighbors or genes can be changed and a killed run still goes on."""
    other = changed(k=2, weighting="uniform", fov_um=(500.0,), window="disc", metric="pca", preset="best")
    assert key(other) == key(BANK)
    # A bank of the same model that was written as version 2.
    assert key(Bank.open(DATA / "board_map_v2.h5")) == key(BANK)
