"""Banks that are cut, altered, newer, or not banks at all."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from stinfer.bank import Bank
from stinfer.embed import open_encoders
from stinfer.errors import (
    BankAlteredError,
    BankError,
    BankFormatError,
    BankNotFoundError,
    BankVersionError,
    ModelFormatError,
)
from stinfer.inspect_bank import describe_bank, verify_bank

_SPEC = importlib.util.spec_from_file_location("crafted_bank", Path(__file__).parent / "crafted_bank.py")
crafted = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(crafted)

DATA = Path(__file__).parents[1] / "data"
BANK = DATA / "board.h5"
SECOND_BANK = DATA / "board_v2.h5"
FIRST_BANK = DATA / "board_v1.h5"
VERSIONS = [FIRST_BANK, SECOND_BANK, BANK]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copy(BANK, tmp_path / "bank.h5"))


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("board_v1.h5", "a2c958c4b654cde301c6278e77037e013b697d40aa082d311b235570ac4519db"),
        ("board_v2.h5", "5de7e44a99d74846dba0fcdf732d50bfd7993f7f63c3f7f30ba6cb769d80a0de"),
        ("board_map_v2.h5", "b0ef9c330d2b40522aed5b0e13f53993cc2d34c3775cee5e4ca07f9283f7de1d"),
    ],
)
def test_the_bank_of_an_older_version_is_the_file_it_always_was(name: str, sha256: str) -> None:
    assert hashlib.sha256((DATA / name).read_bytes()).hexdigest() == sha256


@pytest.mark.parametrize("path", VERSIONS, ids=lambda path: path.stem)
def test_a_bank_of_any_version_reads_as_it_was_made(path: Path) -> None:
    bank = Bank.open(path)
    assert (bank.settings.pooling, bank.settings.fov_um, bank.settings.window) == (
        "patch",
        (100.0,),
        "square",
    )
    assert (bank.settings.um_per_px, bank.settings.patch_px) == (12.5, 8)
    assert (bank.settings.preset, bank.settings.backbones) == ("custom", ("mean_color",))
    assert (bank.settings.orientations, bank.settings.reductions) == ((1,), (1,))
    assert (bank.settings.stain, bank.settings.tuning) == ("none", "none")
    assert bank.projections == (None,)
    assert bank.stain is None
    assert bank.genes == ("GREEN", "RED", "REST")
    assert (bank.spots[0], bank.spots[-1]) == ("T1_0x0", "T1_5x4")
    assert (set(bank.sections), set(bank.patients)) == ({"T1"}, {"T"})
    # Column 5, row 4: 150 = 40 px border + 5.5 squares of 20 px; 160 = 60 + 5 * 20, 140 = 40 + 4 * 25.
    np.testing.assert_array_equal(bank.spatial[-1], [150.0, 130.0])
    np.testing.assert_allclose(bank.embedding[-1], [160.0, 140.0, 150.0], atol=1e-3)
    np.testing.assert_allclose(bank.expression.columns(np.array([1]))[-1], [np.log(601)], rtol=1e-6)


def test_columns_of_the_sparse_matrix_equal_the_dense_one() -> None:
    bank = Bank.open(BANK)
    with h5py.File(BANK) as file:
        data, indices, indptr = (file[f"X/{part}"][...] for part in ("data", "indices", "indptr"))
    dense = np.zeros((30, 3), dtype=np.float32)
    for row in range(30):
        for at in range(indptr[row], indptr[row + 1]):
            dense[row, indices[at]] = data[at]
    np.testing.assert_array_equal(bank.expression.columns(np.array([2, 0])), dense[:, [2, 0]])


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(BankNotFoundError):
        Bank.open(tmp_path / "nothing.h5")


@pytest.mark.parametrize("kept", [0, 1, 100, 5000, 40_000, 70_000])
def test_a_truncated_bank_is_refused(copy: Path, kept: int) -> None:
    copy.write_bytes(BANK.read_bytes()[:kept])
    with pytest.raises(BankFormatError, match="cut short, damaged or no bank"):
        Bank.open(copy)


def test_a_text_file_is_no_bank(copy: Path) -> None:
    copy.write_text("not a bank")
    with pytest.raises(BankFormatError):
        Bank.open(copy)


def test_another_hdf5_file_is_no_bank(copy: Path) -> None:
    with h5py.File(copy, "w") as file:
        file["data"] = np.arange(3)
    with pytest.raises(BankFormatError, match="an HDF5 file, but no bank"):
        Bank.open(copy)


@pytest.mark.parametrize(("version", "remedy"), [(5, "install a newer stinfer"), (0, "build it again")])
def test_another_version_is_refused(copy: Path, version: int, remedy: str) -> None:
    with h5py.File(copy, "r+") as file:
        file["uns/stinfer/format_version"][...] = version
    with pytest.raises(BankVersionError, match=f"format version {version}") as caught:
        Bank.open(copy)
    assert caught.value.fix.startswith(remedy)


ALTERED = {
    "obsm/embedding": "embedding",
    "X/data": "expression",
    "uns/stinfer/model_0": "model_0",
    "uns/stinfer/annoy": "Annoy index",
    "uns/stinfer/metric_mean": "metric",
    "uns/stinfer/distance_quantiles": "calibration",
    "obsm/spatial": "spots",
    "var/cv_pearson": "genes",
    "uns/stinfer/k": "settings",
    "uns/stinfer/fov_um": "settings",
}


@pytest.mark.parametrize(("dataset", "part"), ALTERED.items())
def test_one_altered_value_is_refused_by_name(copy: Path, dataset: str, part: str) -> None:
    with h5py.File(copy, "r+") as file:
        values = file[dataset]
        if values.shape == ():
            values[...] = values[()] + 1
        else:
            first = values[0]
            values[0] = first + 1 if not np.any(np.isnan(first)) else 0
    with pytest.raises(BankAlteredError, match=f"its {part} was altered"):
        Bank.open(copy)


def test_every_flipped_byte_of_the_model_is_noticed_or_leaves_the_model_alone(copy: Path) -> None:
    """Flip bytes all over the file: it opens only where what is read is unharmed."""
    original = BANK.read_bytes()
    whole = Bank.open(BANK)
    models = whole.models()
    refused = 0
    for position in range(0, len(original), 997):
        damaged = bytearray(original)
        damaged[position] ^= 0xFF
        copy.write_bytes(bytes(damaged))
        try:
            bank = Bank.open(copy)
            assert bank.models() == models
            np.testing.assert_array_equal(bank.embedding, whole.embedding)
        except BankError:
            refused += 1
    assert refused > 20


def test_a_link_to_another_file_is_refused(copy: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["embedding"] = np.zeros((30, 3), dtype=np.float32)
    with h5py.File(copy, "r+") as file:
        del file["obsm/embedding"]
        file["obsm/embedding"] = h5py.ExternalLink("secret.h5", "embedding")
    with pytest.raises(BankFormatError, match="another file"):
        Bank.open(copy)


def test_a_declared_terabyte_is_refused(copy: Path) -> None:
    with h5py.File(copy, "r+") as file:
        del file["obsm/embedding"]
        file["obsm"].create_dataset("embedding", shape=(30, 10**10), dtype="f4", chunks=(1, 1024))
    with pytest.raises(BankFormatError, match="more bytes than the file"):
        Bank.open(copy)


def test_a_bank_without_its_model_takes_the_one_beside_it(copy: Path) -> None:
    models = Bank.open(BANK).models()
    with h5py.File(copy, "r+") as file:
        del file["uns/stinfer/model_0"]
        del file["uns/stinfer/hashes/model_0"]
    bank = Bank.open(copy)
    with pytest.raises(BankFormatError, match=r"there is no mean_color\.onnx beside it"):
        bank.models()
    (copy.parent / "mean_color.onnx").write_bytes(models[0])
    assert bank.models() == models
    (copy.parent / "mean_color.onnx").write_bytes(models[0][:-1])
    with pytest.raises(ModelFormatError, match="SHA-256"):
        bank.models()
    # A file of another precision has a name of its own.
    (copy.parent / "mean_color.int8.onnx").write_bytes(models[0])
    assert bank.models() == models


def test_the_banks_encoder_is_the_mean_colour() -> None:
    encoders = open_encoders(Bank.open(BANK), device="cpu", threads=1)
    pixels = np.zeros((2, 4, 6, 3), dtype=np.uint8)
    pixels[1] = (10, 20, 30)
    pixels[1, 0, 0] = (34, 20, 30)  # 24 more in one pixel of 24
    np.testing.assert_allclose(encoders.embed([pixels]), [[0, 0, 0], [11, 20, 30]], rtol=1e-6)


def test_info_says_what_the_bank_holds() -> None:
    text = describe_bank(Bank.open(BANK))
    for said in (
        "30 spots: T1 (30)",
        "3 of the genes, with a cross-validated correlation of at least 0.2",
        "mean_color",
        "200 µm apart",
        "k 4, weighting inverse",
        "100 µm, a patch of 8 px, at 12.500 µm per pixel",
    ):
        assert said in text


def test_verify_passes_the_bank_it_was_given() -> None:
    lines = list(verify_bank(BANK))
    assert lines[0] == "format, shapes and finiteness: 30 references x 3 genes"
    assert any("mean_color loads" in line for line in lines)


CRAFTED = [
    {"domain_k": 5000},
    {"k": 31},
    {"k": -1},
    {"annoy_search_k": 10**18},
    {"temperature": float("nan")},
    {"weighting": "gauss"},
    {"pooling": "x"},
]
CRAFTED_FIRST = [
    {"backbone": "../elsewhere"},
    {"fov_um": 900_000.0},
    {"fov_um": float("nan")},
    {"fov_um": [100.0]},
    {"patch_px": 10**9},
    {"patch_px": 0},
    {"pooling": "map"},
    {"metric": "pca"},
]
# What banks have had since version 2.
CRAFTED_WINDOWS = [
    {"fov_um": [900_000.0]},
    {"fov_um": np.empty(0)},
    {"fov_um": [float("nan")]},
    {"fov_um": [-100.0]},
    {"fov_um": [[100.0]]},
    {"fov_um": [100.0, 200.0]},
    {"pooling": "map", "fov_um": [200.0, 100.0]},
    {"pooling": "map", "fov_um": [100.0, 100.0]},
    {"pooling": "map", "fov_um": np.arange(1.0, 10.0)},
    {"window": "hexagon"},
    {"window": "disc"},
    {"um_per_px": 1e-9},
    {"um_per_px": 0.0},
    {"um_per_px": 21.0},
    {"metric": "lda"},
]
CRAFTED_SECOND = [
    {"backbone": "../elsewhere"},
    {"metric": "supervised"},
]


@pytest.mark.parametrize(
    ("path", "changed"),
    [(FIRST_BANK, changed) for changed in CRAFTED + CRAFTED_FIRST]
    + [(SECOND_BANK, changed) for changed in CRAFTED + CRAFTED_WINDOWS + CRAFTED_SECOND]
    + [(BANK, changed) for changed in CRAFTED + CRAFTED_WINDOWS],
    ids=lambda case: case.stem if isinstance(case, Path) else str(case),
)
def test_a_crafted_setting_is_refused_whatever_its_hash(tmp_path: Path, path: Path, changed: dict) -> None:
    bank = Path(shutil.copy(path, tmp_path / "bank.h5"))
    crafted.craft(bank, **changed)
    with pytest.raises(BankFormatError):
        Bank.open(bank)


@pytest.mark.parametrize("path", VERSIONS, ids=lambda path: path.stem)
def test_the_crafting_itself_is_not_what_is_refused(tmp_path: Path, path: Path) -> None:
    bank = Path(shutil.copy(path, tmp_path / "bank.h5"))
    crafted.craft(bank, k=5)
    assert Bank.open(bank).settings.k == 5


def test_a_projection_in_a_bank_of_version_1_is_ignored(tmp_path: Path) -> None:
    bank = Path(shutil.copy(FIRST_BANK, tmp_path / "bank.h5"))
    with h5py.File(bank, "r+") as file:
        file["uns/stinfer/projection"] = np.ones((3, 1), dtype=np.float32)
    assert Bank.open(bank).projections == (None,)


def test_a_newer_version_is_told_whatever_else_changed(copy: Path) -> None:
    with h5py.File(copy, "r+") as file:
        file["uns/stinfer/format_version"][...] = 9
        del file["uns/stinfer/models_sha256"]
    with pytest.raises(BankVersionError, match="format version 9"):
        Bank.open(copy)


def test_an_annoy_index_that_is_none_is_named(copy: Path) -> None:
    pytest.importorskip("annoy")
    junk = np.frombuffer(b"junk", dtype=np.uint8)
    with h5py.File(copy, "r+") as file:
        uns = file["uns/stinfer"]
        del uns["annoy"], uns["hashes/annoy"]
        uns["annoy"] = junk
        uns["hashes/annoy"] = hashlib.sha256(b"junk").hexdigest()
    with pytest.raises(BankAlteredError, match="Annoy index"):
        list(verify_bank(copy))
