"""What runs a model, and what a model must be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stinfer import encoder
from stinfer.bank import Bank
from stinfer.encoder import Encoder
from stinfer.errors import ModelFormatError, ProviderUnavailableError

MODEL = Bank.open(Path(__file__).parents[1] / "data" / "board_v1.h5").models()[0]


def test_the_card_is_read_from_the_file() -> None:
    card = Encoder(MODEL, "m.onnx", device="cpu").card
    assert (card.backbone, card.dim, card.input_size_px, card.precision) == ("mean_color", 3, 8, "fp32")


@pytest.mark.parametrize("model", [b"", b"not a model", MODEL[: len(MODEL) // 2]])
def test_a_damaged_file_is_refused(model: bytes) -> None:
    with pytest.raises(ModelFormatError, match=r"m\.onnx"):
        Encoder(model, "m.onnx", device="cpu")


def test_a_model_without_a_card_is_refused() -> None:
    with pytest.raises(ModelFormatError, match=r"stinfer\.dim"):
        Encoder(MODEL.replace(b"stinfer.dim", b"stinfer.dom"), "m.onnx", device="cpu")


def test_a_card_that_lies_about_the_dim_is_refused() -> None:
    lying = MODEL.replace(b"stinfer.dim\x12\x013", b"stinfer.dim\x12\x014")
    assert lying != MODEL
    opened = Encoder(lying, "m.onnx", device="cpu")
    with pytest.raises(ModelFormatError, match="its card says dim 4"):
        opened.embed(np.zeros((1, 2, 2, 3), dtype=np.uint8))


def test_cuda_where_onnxruntime_has_none_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder.ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ProviderUnavailableError, match="only CPUExecutionProvider"):
        Encoder(MODEL, "m.onnx", device="cuda")
    assert Encoder(MODEL, "m.onnx", device="auto").fallback == ""


class _Silent:
    """A session that was asked for CUDA and quietly took the CPU, as ONNX Runtime does."""

    def __init__(self, model: bytes, options: object, providers: list[str]) -> None:
        self.real = encoder.ort.RealSession(model, options, providers=["CPUExecutionProvider"])
        self.asked = providers

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)


def test_a_silent_fallback_is_an_error_for_cuda_and_is_told_for_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(encoder.ort, "RealSession", encoder.ort.InferenceSession, raising=False)
    monkeypatch.setattr(encoder.ort, "InferenceSession", _Silent)
    monkeypatch.setattr(encoder.ort, "get_available_providers", lambda: both)
    with pytest.raises(ProviderUnavailableError, match="could not load CUDA"):
        Encoder(MODEL, "m.onnx", device="cuda")
    automatic = Encoder(MODEL, "m.onnx", device="auto")
    assert automatic.provider == "CPUExecutionProvider"
    assert "could not load CUDA" in automatic.fallback


@pytest.mark.parametrize(("precision", "layout"), [("fp32", None), ("fp16", "1")])
def test_what_cuda_is_asked_for(monkeypatch: pytest.MonkeyPatch, precision: str, layout: str | None) -> None:
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(encoder.ort, "RealSession", encoder.ort.InferenceSession, raising=False)
    monkeypatch.setattr(encoder.ort, "InferenceSession", _Silent)
    monkeypatch.setattr(encoder.ort, "get_available_providers", lambda: both)
    model = MODEL.replace(b"fp32", precision.encode())
    (name, options), last = Encoder(model, "m.onnx", device="auto")._session.asked
    assert (name, last) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert (options["use_tf32"], options["cudnn_conv_algo_search"]) == ("0", "HEURISTIC")
    assert options.get("prefer_nhwc") == layout


def test_on_cuda_patches_are_encoded_64_at_a_time_whatever_their_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (150, 5, 5, 3), dtype=np.uint8)
    opened = Encoder(MODEL, "m.onnx", device="cpu", threads=1)
    expected = opened.embed(pixels)
    given: list[np.ndarray] = []
    plain = opened._run
    monkeypatch.setattr(opened, "_run", lambda *args: given.append(args[2]["pixels"]) or plain(*args))
    monkeypatch.setattr(Encoder, "on_gpu", True)
    np.testing.assert_array_equal(opened.embed(pixels), expected)
    assert [len(part) for part in given] == [64, 64, 64]
    np.testing.assert_array_equal(np.concatenate(given)[:150], pixels)
    assert not given[-1][22:].any()


def test_embeddings_do_not_depend_on_the_batch() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 5, 3), dtype=np.uint8)
    opened = Encoder(MODEL, "m.onnx", device="cpu", threads=1)
    one_by_one = np.concatenate([opened.embed(pixels[i : i + 1]) for i in range(7)])
    np.testing.assert_array_equal(opened.embed(pixels), one_by_one)
    np.testing.assert_allclose(one_by_one, pixels.reshape(7, -1, 3).mean(axis=1), rtol=1e-5)
