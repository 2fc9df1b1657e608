"""A model of another precision in place of a bank's own: taken where it agrees, refused where it does not."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

import stinfer
from stinfer import h5ad
from stinfer.bank import Bank
from stinfer.encoder import Encoder
from stinfer.errors import ModelFormatError, SettingError
from stinfer.files import sha256_file

DATA = Path(__file__).parents[1] / "data"
BOARD, BANK, MAP_BANK = DATA / "board.png", DATA / "board.h5", DATA / "board_map.h5"
MPP = 5.0


@pytest.fixture(params=[BANK, MAP_BANK], ids=["patch", "map"])
def bank(request):
    return request.param


@pytest.fixture
def half(bank, tmp_path):
    """The bank's model, which says of itself that it is of half precision, and computes the same."""
    (model,) = Bank.open(bank).models()
    assert model.count(b"fp32") == 1
    path = tmp_path / "half.onnx"
    path.write_bytes(model.replace(b"fp32", b"fp16"))
    return path


@pytest.fixture
def spots(tmp_path):
    path = tmp_path / "spots.csv"
    # The middle of the square of the first column and row, in the color (60, 40, 150).
    path.write_text("id,x,y\na,100,100\n")
    return path


def predict(bank, out, **options):
    return stinfer.predict_slide(BOARD, bank, out=out, mpp=MPP, device="cpu", search="exact", **options)


def less_blue(monkeypatch, part):
    """Let half precision see a part of the third number only."""
    for name, axis in (("embed", 1), ("features", 1)):
        whole = getattr(Encoder, name)

        def dimmed(self, pixels, whole=whole, axis=axis):
            found = whole(self, pixels)
            if self.card.precision == "fp16":
                found = found.copy()
                found.swapaxes(0, axis)[2] *= np.float32(part)
            return found

        monkeypatch.setattr(Encoder, name, dimmed)


def test_a_model_that_agrees_is_used_and_recorded(bank, half, tmp_path):
    own, other = tmp_path / "own.h5ad", tmp_path / "other.h5ad"
    predict(bank, own)
    predict(bank, other, model=half)

    with h5py.File(own) as a, h5py.File(other) as b:
        np.testing.assert_array_equal(h5ad.read_array(b, "X"), h5ad.read_array(a, "X"))
        run = h5ad.read_scalars(b["uns/stinfer/run"])
        assert (run["model"], run["model_sha256"]) == ("half.onnx", sha256_file(half))
        assert run["model_cosine"] == pytest.approx(1)
        assert "model" not in h5ad.read_scalars(a["uns/stinfer/run"])


def test_the_other_model_is_what_encodes(bank, half, spots, tmp_path, monkeypatch):
    less_blue(monkeypatch, 0.97)
    predict(bank, tmp_path / "a.h5ad", model=half, spots=spots)
    with h5py.File(tmp_path / "a.h5ad") as file:
        cosine = h5ad.read_scalars(file["uns/stinfer/run"])["model_cosine"]

    own, dimmed = np.array([60, 40, 150.0]), np.array([60, 40, 0.97 * 150])
    expected = own @ dimmed / np.linalg.norm(own) / np.linalg.norm(dimmed)
    assert expected == pytest.approx(0.99993, abs=1e-5)
    assert cosine == pytest.approx(expected, abs=1e-5)


def test_a_model_that_does_not_agree_is_refused_with_the_number(bank, half, spots, tmp_path, monkeypatch):
    less_blue(monkeypatch, 0.0)
    # (60, 40, 150) and (60, 40, 0): 5200 / (166.4 * 72.11).
    message = r"\(fp16\) does not agree with .* \(fp32\): cosine 0\.4333 on 1 patches of board\.png"

    with pytest.raises(SettingError, match=message) as caught:
        predict(bank, tmp_path / "a.h5ad", model=half, spots=spots)

    assert "build a bank with that model" in caught.value.fix
    assert not (tmp_path / "a.h5ad").exists()


def test_another_network_is_refused(bank, tmp_path):
    with pytest.raises(SettingError, match=r"max_color\.onnx is not of the weights of mean_"):
        predict(bank, tmp_path / "a.h5ad", model=DATA / "max_color.onnx")
    with pytest.raises(SettingError, match=r"none\.onnx cannot be read: No such file"):
        predict(bank, tmp_path / "a.h5ad", model=tmp_path / "none.onnx")
    with pytest.raises(ModelFormatError):
        predict(bank, tmp_path / "a.h5ad", model=BOARD)


@pytest.mark.parametrize("bank", [MAP_BANK], indirect=True)
def test_maps_are_those_of_the_banks_own_model(bank, half, tmp_path):
    kept = tmp_path / "board.map.h5"
    with pytest.raises(SettingError, match="--save-map keeps what the bank's own model has encoded"):
        predict(bank, tmp_path / "a.h5ad", model=half, save_map=kept)
    predict(bank, tmp_path / "a.h5ad", save_map=kept)

    with pytest.raises(SettingError, match="whose cells are encoded already"):
        stinfer.predict_slide(kept, bank, out=tmp_path / "b.h5ad", device="cpu", model=half)


def test_another_model_is_another_request(bank, half, tmp_path):
    out = tmp_path / "out"
    (first,) = stinfer.predict_slides([BOARD], bank, out_dir=out, mpp=MPP, device="cpu", model=half)
    (again,) = stinfer.predict_slides([BOARD], bank, out_dir=out, mpp=MPP, device="cpu", model=half)
    (other,) = stinfer.predict_slides([BOARD], bank, out_dir=out, mpp=MPP, device="cpu")

    assert (first.outcome, again.outcome, other.outcome) == ("done", "finished before", "failed")
