"""One flipped byte, in the file itself, in each dataset of a bank: it is refused, and the part is named."""

from __future__ import annotations

import hashlib
import shutil
import struct
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from stinfer import open_bank
from stinfer.bank import Bank
from stinfer.cli import main
from stinfer.errors import BankAlteredError, BankError

DATA = Path(__file__).parents[1] / "data"
BANKS = ["board.h5", "board_map.h5"]
# What the issue of a bank that was tampered with is about: each must be named as this.
PARTS = {
    "obsm/embedding": "embedding",
    "X/data": "expression",
    "X/indices": "expression",
    "X/indptr": "expression",
    "uns/stinfer/annoy": "Annoy index",
    "uns/stinfer/model_0": "model_0",
    "uns/stinfer/metric_mean": "metric",
    "uns/stinfer/metric_components": "metric",
    "uns/stinfer/distance_quantiles": "calibration",
    "obs/_index": "spots",
    "obs/section/categories": "spots",
    "obs/section/codes": "spots",
    "obs/patient/categories": "spots",
    "obs/array_row": "spots",
    "obs/total_counts": "spots",
    "obsm/spatial": "spots",
    "var/_index": "genes",
    "var/cv_pearson": "genes",
    "var/interval_scale": "genes",
    "var/interval_floor": "genes",
}
# Said for a user, and of no effect on a prediction; no hash covers them.
UNHASHED = ("uns/stinfer/sources/", "uns/stinfer/notices")


def text_position(file: bytes, reference: int) -> tuple[int, int]:
    """Find a text of variable length: HDF5 keeps its size, its heap's address, and its number there.

    Returns
    -------
    where its bytes begin, and how many there are
    """
    length, heap, wanted = struct.unpack_from("<IQI", file, reference)
    assert file[heap : heap + 4] == b"GCOL"
    at = heap + 16
    while True:
        number, _, size = struct.unpack_from("<HH4xQ", file, at)
        if number == wanted:
            return at + 16, length
        at += 16 + -(-size // 8) * 8


def bytes_of(path: Path, name: str) -> tuple[int, int]:
    """Find where a dataset's first values lie in its file, and how many bytes they have."""
    with h5py.File(path) as file:
        dataset = file[name]
        is_text = dataset.dtype.kind == "O"
        if dataset.chunks is not None:
            chunk = dataset.id.get_chunk_info(0)
            return chunk.byte_offset, chunk.size
        at, size = dataset.id.get_offset(), dataset.id.get_storage_size()
    return text_position(path.read_bytes(), at) if is_text else (at, size)


def flip(path: Path, at: int, bits: int = 0xFF) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= bits
    path.write_bytes(bytes(data))


def datasets(path: Path) -> list[str]:
    found: list[str] = []
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
        return [name for name in found if file[name].size and not name.startswith(UNHASHED)]


EVERY = [(bank, name) for bank in BANKS for name in datasets(DATA / bank)]


def test_there_is_a_dataset_of_every_part() -> None:
    for bank in BANKS:
        assert set(PARTS) <= set(datasets(DATA / bank))


def test_the_bytes_found_are_those_of_the_values() -> None:
    """The flips below hit what they say: an embedding, and a text of variable length."""
    data = (DATA / "board.h5").read_bytes()
    at, size = bytes_of(DATA / "board.h5", "obsm/embedding")
    assert size == 30 * 3 * 4
    assert struct.unpack_from("<3f", data, at) == (60.0, 40.0, 150.0)
    at, size = bytes_of(DATA / "board.h5", "var/_index")
    assert data[at : at + size] == b"GREEN"


@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize(("bank", "dataset"), EVERY)
def test_a_flipped_byte_is_refused_by_name(tmp_path: Path, bank: str, dataset: str, place: str) -> None:
    copy = Path(shutil.copy(DATA / bank, tmp_path / "bank.h5"))
    at, size = bytes_of(copy, dataset)
    flip(copy, at + {"first": 0, "middle": size // 2, "last": size - 1}[place])
    with pytest.raises(BankError) as caught:
        Bank.open(copy)
    inside = dataset.removeprefix("uns/stinfer/")
    if dataset in PARTS:
        assert isinstance(caught.value, BankAlteredError)
        assert f"its {PARTS[dataset]} was altered or damaged" in caught.value.what
    elif inside.startswith("hashes/"):
        part = {"annoy": "Annoy index"}.get(inside[7:], inside[7:])
        assert f"its {part} was altered" in caught.value.what or "its hashes was" in caught.value.what
    elif inside.startswith(("var", "obs")):
        assert f"its {'genes' if inside.startswith('var') else 'spots'} was altered" in caught.value.what
    elif inside == "kind":
        assert "no bank" in caught.value.what or "settings" in caught.value.what
    elif inside == "format_version":
        assert "format version" in caught.value.what
    else:
        # A setting that is still one has another hash; what is none is named itself.
        assert "settings" in caught.value.what or inside in caught.value.what


@pytest.mark.parametrize(
    "dataset", ["var/_index", "obs/_index", "uns/stinfer/backbones", "obs/section/categories"]
)
def test_a_text_that_is_another_text_is_refused_too(tmp_path: Path, dataset: str) -> None:
    """One bit: still letters, such as FREEN for GREEN."""
    copy = Path(shutil.copy(DATA / "board.h5", tmp_path / "bank.h5"))
    flip(copy, bytes_of(copy, dataset)[0], bits=1)
    with pytest.raises(BankAlteredError, match=f"its {PARTS.get(dataset, 'settings')} was altered"):
        Bank.open(copy)


@pytest.mark.parametrize("dataset", ["obsm/embedding", "X/data", "uns/stinfer/annoy", "uns/stinfer/model_0"])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_a_flipped_byte_of_a_compressed_bank_is_refused_by_name(
    tmp_path: Path, dataset: str, share: float
) -> None:
    """HDF5 then gives no values at all: its message alone would not say which part."""
    copy = Path(shutil.copy(DATA / "board.h5", tmp_path / "bank.h5"))
    with h5py.File(copy, "r+") as file:
        values, attributes = file[dataset][...], dict(file[dataset].attrs)
        del file[dataset]
        file.create_dataset(dataset, data=values, compression="gzip").attrs.update(attributes)
    assert Bank.open(copy).n_refs == 30
    at, size = bytes_of(copy, dataset)
    flip(copy, at + int(size * share))
    with pytest.raises(BankAlteredError, match=f"its {PARTS[dataset]} was altered"):
        Bank.open(copy)


@pytest.mark.parametrize("command", ["run", "verify", "info"])
@pytest.mark.parametrize("dataset", ["obsm/embedding", "X/data", "uns/stinfer/annoy", "uns/stinfer/model_0"])
def test_the_commands_refuse_it_before_anything_is_written(
    tmp_path: Path, dataset: str, command: str
) -> None:
    copy = Path(shutil.copy(DATA / "board.h5", tmp_path / "bank.h5"))
    at, size = bytes_of(copy, dataset)
    flip(copy, at + size // 3)
    run = [
        "run",
        str(DATA / "board.png"),
        "--bank",
        str(copy),
        "--mpp",
        "5",
        "--out",
        str(tmp_path / "p.h5ad"),
    ]
    result = CliRunner().invoke(main, run if command == "run" else ["bank", command, str(copy)])
    assert result.exit_code == 1
    assert f"Error: bank {copy}: its {PARTS[dataset]} was altered or damaged" in result.output
    assert "Try:   do not use it; copy it again" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["bank.h5"]


def test_what_is_hashed_alone_is_never_held(tmp_path: Path) -> None:
    """A model and an index of 48 MB each: opening the bank takes far less than one of them."""
    copy = Path(shutil.copy(DATA / "board.h5", tmp_path / "bank.h5"))
    large = np.zeros(48 << 20, dtype=np.uint8)
    with h5py.File(copy, "r+") as file:
        uns = file["uns/stinfer"]
        for name in ("model_0", "annoy"):
            del uns[name], uns["hashes"][name]
            uns[name] = large
            uns["hashes"][name] = hashlib.sha256(large).hexdigest()
    del large
    tracemalloc.start()
    try:
        assert Bank.open(copy).n_refs == 30
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize("dataset", ["X/data", "X/indices", "X/indptr"])
def test_expression_that_stays_in_its_file_is_refused_before_it_predicts(
    tmp_path: Path, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is hashed while patches are encoded; these are kept, and are of use with the bank copied again."""
    monkeypatch.setattr(open_bank, "HELD_BYTES", 0)
    copy = Path(shutil.copy(DATA / "board.h5", tmp_path / "bank.h5"))
    at, size = bytes_of(copy, dataset)
    flip(copy, at + size // 3)
    opened = Bank.open(copy, 0)
    with pytest.raises(BankAlteredError, match="its expression was altered"):
        opened.check_stored()
    run = ["run", str(DATA / "board.png"), "--bank", str(copy), "--mpp", "5", "--batch-size", "1"]
    run += ["--out", str(tmp_path / "p.h5ad"), "--csv", str(tmp_path / "p.csv"), "--png", "RED"]
    result = CliRunner().invoke(main, run)
    assert result.exit_code == 1
    assert f"Error: bank {copy}: its expression was altered or damaged" in result.output
    assert "Try:   do not use it; copy it again" in result.output
    assert {path.name for path in tmp_path.iterdir()} <= {"bank.h5", "p.h5ad.checkpoint"}
    shutil.copy(DATA / "board.h5", copy)
    again = CliRunner().invoke(main, run)
    assert again.exit_code == 0, again.output
    written = (tmp_path / "p.h5ad").read_bytes()
    monkeypatch.undo()
    whole = CliRunner().invoke(main, [*run, "--overwrite"])
    assert whole.exit_code == 0, whole.output
    assert (tmp_path / "p.h5ad").read_bytes() == written


def test_a_model_that_is_read_later_is_refused_by_name(tmp_path: Path) -> None:
    copy = Path(shutil.copy(DATA / "board.h5", tmp_path / "bank.h5"))
    whole = Bank.open(copy, 0)
    assert whole.models() == Bank.open(copy).models()
    whole.check_stored()
    at, size = bytes_of(copy, "uns/stinfer/model_0")
    flip(copy, at + size // 2)
    with pytest.raises(BankAlteredError, match="its model_0 was altered"):
        Bank.open(copy, 0).models()


@pytest.mark.parametrize("missing", ["model_0", "hashes/model_0"])
def test_a_model_without_its_hash_and_a_hash_without_its_model_are_refused(
    tmp_path: Path, missing: str
) -> None:
    copy = Path(shutil.copy(DATA / "board.h5", tmp_path / "bank.h5"))
    with h5py.File(copy, "r+") as file:
        del file["uns/stinfer"][missing]
    for held_bytes in (None, 0):
        with pytest.raises(BankAlteredError, match="its model_0 was altered"):
            Bank.open(copy, held_bytes).models()


def test_an_index_that_changes_after_the_bank_was_opened_is_refused(tmp_path: Path) -> None:
    copy = Path(shutil.copy(DATA / "board.h5", tmp_path / "bank.h5"))
    bank = Bank.open(copy)
    flip(copy, bytes_of(copy, "uns/stinfer/annoy")[0])
    with pytest.raises(BankAlteredError, match="its Annoy index was altered"):
        bank.annoy_index(tmp_path / "index.ann")
