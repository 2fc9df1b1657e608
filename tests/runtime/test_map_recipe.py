"""Whose map a saved map is: of the banks of one recipe, and refused with any other."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import stinfer
from stinfer.bank import Bank
from stinfer.errors import MapForeignError
from stinfer.map_file import MapFile
from stinfer.map_header import MapRecipe
from stinfer.stain import Stain

DATA = Path(__file__).parents[1] / "data"
BANK = Bank.open(DATA / "board_map.h5")
PATCH_BANK = Bank.open(DATA / "board.h5")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    path = folder / "board.map.h5"
    stinfer.predict_slide(DATA / "board.png", BANK.path, out=folder / "p.h5ad", mpp=5.0, save_map=path)
    return path


def test_the_map_of_a_bank_is_of_its_recipe(saved: Path) -> None:
    assert MapFile(saved).recipe == MapRecipe.of(BANK)
    assert MapRecipe.of(BANK) == MapRecipe(
        backbones="mean_cells",
        models_sha256=BANK.hashes["model_0"],
        orientations="1",
        reductions="1",
        um_per_px=10.0,
        stain_sha256="none",
        projection_sha256="none",
    )
    # A bank of the same model that was written as version 2.
    MapFile(saved).refuse_foreign(Bank.open(DATA / "board_map_v2.h5"))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"models_sha256": ("cd" * 32,)}, "models' SHA-256 is [0-9a-f]{12}…, the bank's cdcdcdcdcdcd…"),
        ({"models_sha256": ("cd" * 32, "ef" * 32)}, "…, the bank's cdcdcdcdcdcd…[+]efefefefefef…"),
        ({"um_per_px": 0.5}, "µm per pixel is 10.0, the bank's 0.5"),
        ({"backbones": ("other",)}, "backbones is mean_cells, the bank's other"),
        ({"backbones": ("mean_cells", "other")}, "backbones is mean_cells, the bank's mean_cells[+]other"),
        ({"orientations": (8,)}, "number of orientations is 1, the bank's 8"),
        ({"reductions": (1, 2)}, "reduction is 1, the bank's 1[+]2"),
    ],
    ids=str,
)
def test_the_map_of_another_recipe_is_refused(saved: Path, changed: dict, said: str) -> None:
    bank = dataclasses.replace(BANK, settings=dataclasses.replace(BANK.settings, **changed))
    with pytest.raises(MapForeignError, match=said):
        MapFile(saved).refuse_foreign(bank)


def test_the_map_of_another_projection_is_refused(saved: Path) -> None:
    bank = dataclasses.replace(BANK, projections=(np.eye(3, 2, dtype=np.float32),))
    with pytest.raises(MapForeignError, match=r"projections' SHA-256 is none, the bank's [0-9a-f]{12}…"):
        MapFile(saved).refuse_foreign(bank)
    other = dataclasses.replace(BANK, projections=(np.eye(3, 2, dtype=np.float32) * 2,))
    assert MapRecipe.of(bank) != MapRecipe.of(other)
    projection = np.eye(3, 2, dtype=np.float32)
    one, two = (
        dataclasses.replace(BANK, projections=given) for given in ((None, projection), (projection, None))
    )
    assert MapRecipe.of(one) != MapRecipe.of(two)


def test_the_map_of_another_stain_is_refused(saved: Path) -> None:
    directions = np.array([[0.6, 0.7, 0.3], [0.2, 0.9, 0.4]])
    bank = dataclasses.replace(BANK, stain=Stain(directions, np.array([1.0, 1.0])))
    with pytest.raises(MapForeignError, match=r"stain's SHA-256 is none, the bank's [0-9a-f]{12}…"):
        MapFile(saved).refuse_foreign(bank)
    other = dataclasses.replace(BANK, stain=Stain(directions, np.array([1.0, 0.5])))
    assert MapRecipe.of(bank) != MapRecipe.of(other)


def test_a_bank_of_other_windows_and_metric_may_read_the_map(saved: Path) -> None:
    settings = dataclasses.replace(BANK.settings, fov_um=(500.0,), window="disc", k=2)
    MapFile(saved).refuse_foreign(dataclasses.replace(BANK, settings=settings))


def test_a_bank_of_patches_is_refused(saved: Path) -> None:
    with pytest.raises(MapForeignError, match="the bank encodes patches, not maps"):
        MapFile(saved).refuse_foreign(PATCH_BANK)
