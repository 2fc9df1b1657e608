"""Banks of several models, with projections and stains: what is read, what is refused, what they predict."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

import stinfer
from stinfer.bank import Bank
from stinfer.embed import open_encoders
from stinfer.errors import BankAlteredError, BankFormatError, ModelFormatError
from stinfer.inspect_bank import describe_bank
from stinfer.integrity import hash_arrays
from stinfer.stain import Stain

_SPEC = importlib.util.spec_from_file_location("crafted_bank", Path(__file__).parent / "crafted_bank.py")
crafted = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(crafted)

DATA = Path(__file__).parents[1] / "data"
BANK, MAP_BANK = DATA / "board.h5", DATA / "board_map.h5"
SECOND_BANK = DATA / "board_v2.h5"
CELLS = Bank.open(MAP_BANK).models()[0]
HEADED = (DATA / "max_color.onnx").read_bytes()
SHA256 = "ab" * 32
# Of length 1: 4 + 4 + 1 and 4 + 36 + 9 are squares.
DIRECTIONS, AMOUNTS = np.array([[2, 2, 1], [2, 6, 3]]) / [[3], [7]], np.array([0.9, 0.7])


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copy(BANK, tmp_path / "bank.h5"))


@pytest.fixture
def map_copy(tmp_path: Path) -> Path:
    return Path(shutil.copy(MAP_BANK, tmp_path / "bank.h5"))


def craft_models(path: Path, *models: bytes, windows: list[list[int]], **lists: list[int]) -> None:
    """Let a bank of one model of maps be one of several.

    Parameters
    ----------
    windows : for each window, the numbers of the embedding as it was that are in the new one, in order
    lists : orientations and reductions; by default 1
    """
    digests = [hashlib.sha256(model).hexdigest() for model in models]
    names = {CELLS: "mean_cells", HEADED: "max_color"}
    with h5py.File(path, "r+") as file:
        uns = file["uns/stinfer"]
        del uns["model_0"], uns["hashes/model_0"], uns["annoy"], uns["hashes/annoy"]
        for number, (model, digest) in enumerate(zip(models, digests, strict=True)):
            if digests.index(digest) == number:
                uns[f"model_{number}"] = np.frombuffer(model, dtype=np.uint8)
                uns[f"hashes/model_{number}"] = digest
        embedding = file["obsm/embedding"][...][:, [column for window in windows for column in window]]
        mean = np.zeros(embedding.shape[1], dtype=np.float32)
        for group, name, values in (
            (file["obsm"], "embedding", embedding),
            (uns, "metric_mean", mean),
            (uns, "metric_components", mean + 1),
        ):
            del group[name]
            group[name] = values
        for part, arrays in (("embedding", [embedding]), ("metric", [mean, mean + 1])):
            del uns["hashes"][part]
            uns["hashes"][part] = hash_arrays(*arrays)
    crafted.craft(
        path,
        backbones=[names[model] for model in models],
        models_sha256=digests,
        **{"orientations": [1] * len(models), "reductions": [1] * len(models)} | lists,
    )


# --- settings -------------------------------------------------------------------------------------

SETTINGS = [
    ({"preset": "slow"}, "preset is 'slow', expected one of fast, best, custom"),
    ({"stain": "reinhard"}, "stain is 'reinhard', expected one of none, macenko"),
    ({"tuning": "leave-one-spot-out"}, "tuning is 'leave-one-spot-out', expected one of none, leave-one-sec"),
    ({"preset": 1}, "preset is 1, expected str"),
    ({"backbones": ["../elsewhere"]}, "backbone is '../elsewhere', expected letters"),
    ({"backbones": ["mean+color"]}, "backbone is 'mean[+]color', expected letters"),
    ({"backbones": [""]}, "backbone is '', expected letters"),
    ({"backbones": []}, "it has 0 backbones, expected 1 to 8, each with its model"),
    ({"backbones": ["mean_color", "mean_color"]}, "it has 2 backbones"),
    ({"models_sha256": []}, "it has 1 backbones, expected 1 to 8, each with its model"),
    ({"models_sha256": [SHA256, SHA256]}, "each with its model"),
    ({"models_sha256": [7]}, "damaged or no bank"),
    ({"orientations": [2]}, r"orientations is \(2,\), expected each of \(1, 4, 8\)"),
    ({"orientations": [0]}, r"orientations is \(0,\)"),
    ({"orientations": [4.0]}, r"orientations is \[4.0\], expected a list"),
    ({"orientations": [True]}, r"orientations is \[True\], expected a list"),
    ({"orientations": [[4]]}, r"orientations is \[\[4\]\], expected a list"),
    ({"orientations": 4}, "orientations is 4, expected a list"),
    ({"orientations": [1, 4]}, "each with its model"),
    ({"reductions": [3]}, r"reductions is \(3,\), expected each of \(1, 2\)"),
    ({"reductions": [-1]}, r"reductions is \(-1,\)"),
    ({"reductions": [1, 2]}, "each with its model"),
    ({"reductions": [2]}, r"a bank of patches has reductions \(2,\), expected 1 of each model"),
    ({"reductions": None}, "reductions"),
    ({"preset": None}, "preset"),
    (
        {
            "backbones": ["mean_color"] * 9,
            "models_sha256": [SHA256] * 9,
            "orientations": [1] * 9,
            "reductions": [1] * 9,
        },
        "it has 9 backbones, expected 1 to 8",
    ),
]


@pytest.mark.parametrize(("changed", "cause"), SETTINGS, ids=lambda case: str(case)[:40])
def test_a_crafted_setting_is_refused_with_its_cause(copy: Path, changed: dict, cause: str) -> None:
    crafted.craft(copy, **changed)
    with pytest.raises(BankFormatError, match=cause):
        Bank.open(copy)


def test_settings_of_version_3_come_back(map_copy: Path) -> None:
    same = [[0, 1, 2, 0, 1, 2], [3, 4, 5, 3, 4, 5]]
    craft_models(map_copy, CELLS, CELLS, windows=same, orientations=[1, 8], reductions=[2, 1])
    crafted.craft(map_copy, preset="best", tuning="leave-one-section-out", metric="supervised")
    settings = Bank.open(map_copy).settings
    assert settings.backbones == ("mean_cells", "mean_cells")
    assert settings.models_sha256 == (hashlib.sha256(CELLS).hexdigest(),) * 2
    assert (settings.orientations, settings.reductions) == ((1, 8), (2, 1))
    assert (settings.preset, settings.tuning, settings.metric) == (
        "best",
        "leave-one-section-out",
        "supervised",
    )


def test_info_says_how_each_model_sees_the_tissue(map_copy: Path) -> None:
    same = [[0, 1, 2, 0, 1, 2], [3, 4, 5, 3, 4, 5]]
    craft_models(map_copy, CELLS, CELLS, windows=same, orientations=[1, 8], reductions=[1, 2])
    sha256 = hashlib.sha256(CELLS).hexdigest()
    said = (
        f"mean_cells, SHA-256 {sha256}; mean_cells in 8 orientations at 20.000 µm per pixel, SHA-256 {sha256}"
    )
    assert said in describe_bank(Bank.open(map_copy))


def test_two_models_in_place_of_one_change_the_settings_of_version_2_not(tmp_path: Path) -> None:
    """What a bank of version 2 has never had is not read from it."""
    path = Path(shutil.copy(SECOND_BANK, tmp_path / "bank.h5"))
    with h5py.File(path, "r+") as file:
        uns = file["uns/stinfer"]
        uns["orientations"], uns["projection_0"] = np.array([8]), np.eye(3, dtype=np.float32)
        uns.create_dataset("backbones", data=["other"], dtype=h5py.string_dtype())
    bank = Bank.open(path)
    assert (bank.settings.backbones, bank.settings.orientations) == (("mean_color",), (1,))
    assert bank.projections == (None,)


# --- models ---------------------------------------------------------------------------------------


def test_a_model_that_is_used_twice_is_kept_once(map_copy: Path) -> None:
    columns = [0, 1, 2, 0, 0, 1, 2]
    craft_models(map_copy, CELLS, HEADED, CELLS, windows=[columns, [c + 3 for c in columns]])
    with h5py.File(map_copy) as file:
        assert sorted(name for name in file["uns/stinfer"] if name.startswith("model_")) == [
            "model_0",
            "model_1",
        ]
    bank = Bank.open(map_copy)
    assert bank.models() == [CELLS, HEADED, CELLS]
    assert bank.holds_models
    encoders = open_encoders(bank, device="cpu", threads=1)
    assert encoders.widths == (3, 1, 3)
    # It is loaded once, too.
    assert encoders.members[0].encoder is encoders.members[2].encoder


def test_models_that_were_left_out_are_taken_from_beside_the_bank(map_copy: Path) -> None:
    craft_models(map_copy, CELLS, HEADED, windows=[[0, 1, 2, 0], [3, 4, 5, 3]])
    with h5py.File(map_copy, "r+") as file:
        uns = file["uns/stinfer"]
        del uns["model_1"], uns["hashes/model_1"]
    bank = Bank.open(map_copy)
    with pytest.raises(BankFormatError, match=r"there is no max_color\.onnx beside it"):
        bank.models()
    beside = map_copy.parent / "max_color.onnx"
    beside.write_bytes(HEADED)
    assert bank.models() == [CELLS, HEADED]
    beside.write_bytes(CELLS)
    with pytest.raises(ModelFormatError, match="SHA-256"):
        bank.models()


@pytest.mark.parametrize("number", [0, 1])
def test_any_model_that_was_altered_is_named(map_copy: Path, number: int) -> None:
    craft_models(map_copy, CELLS, HEADED, windows=[[0, 1, 2, 0], [3, 4, 5, 3]])
    with h5py.File(map_copy, "r+") as file:
        model = file[f"uns/stinfer/model_{number}"]
        model[-1] ^= 1
    with pytest.raises(BankAlteredError, match=f"its model_{number} was altered"):
        Bank.open(map_copy)


def test_a_model_that_did_not_make_the_embeddings_is_refused(map_copy: Path) -> None:
    craft_models(map_copy, CELLS, HEADED, windows=[[0, 1, 2, 0], [3, 4, 5, 3]])
    crafted.craft(map_copy, models_sha256=[hashlib.sha256(CELLS).hexdigest(), SHA256])
    with pytest.raises(ModelFormatError, match="its SHA-256 is not the ababab"):
        open_encoders(Bank.open(map_copy), device="cpu", threads=1)


def test_embeddings_of_another_length_than_the_models_make_are_refused(map_copy: Path) -> None:
    craft_models(map_copy, CELLS, HEADED, windows=[[0, 1, 2], [3, 4, 5]])
    with pytest.raises(ModelFormatError, match="its embeddings have dim 8, the bank's metric expects 6"):
        open_encoders(Bank.open(map_copy), device="cpu", threads=1)


# --- what they predict ----------------------------------------------------------------------------


def predicted(bank: Path, out: Path, **asked: object) -> tuple[np.ndarray, np.ndarray]:
    stinfer.predict_slide(DATA / "board.png", bank, out=out, mpp=5.0, search="exact", **asked)
    with h5py.File(out) as file:
        return file["X"][...], file["obs/neighbor_distance"][...]


def test_the_same_model_twice_predicts_what_it_does_alone(tmp_path: Path, map_copy: Path) -> None:
    """Squares of whole cells look alike in every orientation, and every distance grows by the root of 2."""
    alone = predicted(MAP_BANK, tmp_path / "alone.h5ad")
    same = [[0, 1, 2, 0, 1, 2], [3, 4, 5, 3, 4, 5]]
    craft_models(map_copy, CELLS, CELLS, windows=same, orientations=[1, 8])
    twice = predicted(map_copy, tmp_path / "twice.h5ad")
    np.testing.assert_allclose(twice[0], alone[0], rtol=1e-4)
    np.testing.assert_allclose(twice[1], alone[1] * np.sqrt(2), rtol=1e-4)
    # A map of both, 6 numbers a cell, serves as well.
    kept = tmp_path / "board.map.h5"
    stinfer.predict_slide(DATA / "board.png", map_copy, out=tmp_path / "p.h5ad", mpp=5.0, save_map=kept)
    with h5py.File(kept) as file:
        np.testing.assert_allclose(file["X"][:, 3:], file["X"][:, :3], rtol=1e-4)
    from_map = tmp_path / "from_map.h5ad"
    stinfer.predict_slide(kept, map_copy, out=from_map, search="exact")
    with h5py.File(from_map) as file:
        np.testing.assert_allclose(file["X"][...], twice[0], rtol=1e-5)


# --- projections ----------------------------------------------------------------------------------

OLD_AND_NEW = pytest.mark.parametrize(
    ("path", "name"), [(SECOND_BANK, "projection"), (BANK, "projection_0")], ids=["v2", "v3"]
)


@OLD_AND_NEW
def test_a_projection_that_was_slipped_in_is_refused(tmp_path: Path, path: Path, name: str) -> None:
    bank = Path(shutil.copy(path, tmp_path / "bank.h5"))
    with h5py.File(bank, "r+") as file:
        file[f"uns/stinfer/{name}"] = np.eye(3, dtype=np.float32)
    with pytest.raises(BankAlteredError, match="its metric was altered"):
        Bank.open(bank)


@OLD_AND_NEW
@pytest.mark.parametrize(
    ("projection", "cause"),
    [
        (np.ones((3, 2), np.float32), "embeddings have dim 2, the bank's metric expects 3"),
        (np.ones((2, 3), np.float32), "its cells have 3 channels, the bank's projection expects 2"),
        (np.ones(3, np.float32), "its projections are no matrices"),
        (np.ones((3, 3, 1), np.float32), "its projections are no matrices"),
        (np.eye(3), "its numbers are not of the format's types"),
        (np.full((3, 3), np.nan, np.float32), "it holds values that are not finite"),
    ],
    ids=["width", "channels", "1-D", "3-D", "float64", "nan"],
)
def test_a_crafted_projection_is_refused_whatever_its_hash(
    tmp_path: Path, path: Path, name: str, projection: np.ndarray, cause: str
) -> None:
    bank = Path(shutil.copy(path, tmp_path / "bank.h5"))
    crafted.craft_projections(bank, **{name: projection})
    with pytest.raises((BankFormatError, ModelFormatError), match=cause):
        open_encoders(Bank.open(bank), device="cpu", threads=1)


@OLD_AND_NEW
def test_a_projection_turns_what_the_model_gives(tmp_path: Path, path: Path, name: str) -> None:
    bank = Path(shutil.copy(path, tmp_path / "bank.h5"))
    crafted.craft_projections(bank, **{name: np.array([[1, 0, 1], [0, 2, 1], [0, 0, 1]], dtype=np.float32)})
    encoders = open_encoders(Bank.open(bank), device="cpu", threads=1)
    pixels = np.full((1, 8, 8, 3), (10, 20, 30), dtype=np.uint8)
    np.testing.assert_allclose(encoders.embed([pixels]), [[10, 40, 60]], rtol=1e-6)


def test_each_model_has_its_own_projection(map_copy: Path) -> None:
    craft_models(map_copy, CELLS, CELLS, windows=[[0, 1, 2, 0], [3, 4, 5, 3]])
    projection = np.array([[0], [2], [1]], dtype=np.float32)
    crafted.craft_projections(map_copy, projection_1=projection)
    bank = Bank.open(map_copy)
    assert bank.projections[0] is None
    np.testing.assert_array_equal(bank.projections[1], projection)
    encoders = open_encoders(bank, device="cpu", threads=1)
    assert encoders.widths == (3, 1)
    pixels = np.full((8, 8, 3), (10, 20, 30), dtype=np.uint8)
    np.testing.assert_allclose(encoders.cells(pixels), np.tile([10, 20, 30, 70], (2, 2, 1)), rtol=1e-6)


def test_a_projection_before_a_head_is_an_error_of_the_model(map_copy: Path) -> None:
    craft_models(map_copy, CELLS, HEADED, windows=[[0, 1, 2, 0], [3, 4, 5, 3]])
    crafted.craft_projections(map_copy, projection_1=np.ones((1, 1), dtype=np.float32))
    with pytest.raises(ModelFormatError, match="projection before pooling is not possible with max_color"):
        open_encoders(Bank.open(map_copy), device="cpu", threads=1)


# --- stain ----------------------------------------------------------------------------------------


def test_a_stain_comes_back(copy: Path) -> None:
    crafted.craft_stain(copy, DIRECTIONS, AMOUNTS)
    bank = Bank.open(copy)
    assert isinstance(bank.stain, Stain)
    np.testing.assert_array_equal(bank.stain.directions, DIRECTIONS)
    np.testing.assert_array_equal(bank.stain.amounts, AMOUNTS)


@pytest.mark.parametrize("name", ["stain_directions", "stain_amounts"])
def test_an_altered_stain_is_named(copy: Path, name: str) -> None:
    crafted.craft_stain(copy, DIRECTIONS, AMOUNTS)
    with h5py.File(copy, "r+") as file:
        file[f"uns/stinfer/{name}"][...] *= 1.01
    with pytest.raises(BankAlteredError, match="its stain was altered"):
        Bank.open(copy)


def test_a_stain_that_is_not_there_is_missed(copy: Path) -> None:
    crafted.craft(copy, stain="macenko")
    with pytest.raises(BankFormatError, match="stain_directions"):
        Bank.open(copy)


@pytest.mark.parametrize(
    ("directions", "amounts"),
    [
        (DIRECTIONS.T, AMOUNTS),
        (DIRECTIONS[:1], AMOUNTS),
        (DIRECTIONS, AMOUNTS[:1]),
        (DIRECTIONS, np.array([0.9, 0.0])),
        (DIRECTIONS, np.array([0.9, -0.7])),
        (DIRECTIONS, np.array([0.9, np.nan])),
        (DIRECTIONS, np.array([0.9, np.inf])),
        (DIRECTIONS, np.array([0.9, 1001.0])),
        (DIRECTIONS * 1.001, AMOUNTS),
        (DIRECTIONS * [1, np.nan, 1], AMOUNTS),
        (DIRECTIONS * 1e200, AMOUNTS),
        (DIRECTIONS[[0, 0]], AMOUNTS),
        (DIRECTIONS * 0, AMOUNTS),
        (DIRECTIONS.astype(np.float32), AMOUNTS),
        (DIRECTIONS, AMOUNTS.astype(np.float32)),
    ],
    ids=[
        *("3 x 2", "one direction", "one amount", "no amount", "negative", "nan amount", "infinite", "dark"),
        *("longer", "nan", "huge", "one stain twice", "zeros", "float32 directions", "float32 amounts"),
    ],
)
def test_a_crafted_stain_is_refused_whatever_its_hash(
    copy: Path, directions: np.ndarray, amounts: np.ndarray
) -> None:
    crafted.craft_stain(copy, directions, amounts)
    with pytest.raises(BankFormatError, match="its stain is none"):
        Bank.open(copy)
