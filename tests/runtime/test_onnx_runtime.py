"""Eight-bit products: that they are summed exactly, and where ONNX Runtime has to be told."""

from __future__ import annotations

import numpy as np
import pytest

from stinfer import onnx_runtime
from stinfer.onnx_runtime import ort, suit_eight_bits, sums_are_cut


def product(options):
    a = np.random.default_rng(0).integers(200, 256, (8, 96), dtype=np.uint8)
    b = np.random.default_rng(1).integers(-128, 128, (96, 32), dtype=np.int8)
    b[:, 0] = 127
    session = ort.InferenceSession(onnx_runtime._PRODUCT, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"a": a, "b": b})[0], a.astype(np.int64) @ b.astype(np.int64)


def test_sums_are_cut_or_they_are_not():
    found, exact = product(ort.SessionOptions())

    assert sums_are_cut() == bool((found != exact).any())


def message(field: int, content: bytes) -> bytes:
    """Write one field of a protobuf message, as ONNX files have them; for fewer than 128 bytes."""
    return bytes([field << 3 | 2, len(content)]) + content


def node(operator: bytes, attribute: bytes = b"") -> bytes:
    return message(1, message(4, operator) + attribute)


DEQUANTIZE = node(b"DequantizeLinear")
# A loop, or a condition, holds a graph of its own.
INSIDE = node(b"Loop", message(5, message(6, DEQUANTIZE)))


EXACT, LEFT_OUT = "session.x64quantprecision", "optimization.disable_specified_optimizers"


@pytest.mark.parametrize(
    ("cut", "model", "told"),
    [
        (True, message(7, node(b"Conv") + DEQUANTIZE), {EXACT, LEFT_OUT}),
        (True, message(7, INSIDE), {EXACT, LEFT_OUT}),
        (False, message(7, DEQUANTIZE), {LEFT_OUT}),
        (True, message(7, node(b"Conv")), set()),
        (True, message(2, b"DequantizeLinear") + message(7, node(b"Conv")), set()),
    ],
)
def test_only_for_a_model_in_eight_bits_is_anything_told(monkeypatch, cut, model, told):
    monkeypatch.setattr(onnx_runtime, "sums_are_cut", lambda: cut)
    options = ort.SessionOptions()

    suit_eight_bits(options, model)

    for key in (EXACT, LEFT_OUT):
        if key in told:
            assert options.get_session_config_entry(key) in ("1", "QDQPropagationTransformer")
        else:
            with pytest.raises(RuntimeError, match=key):
                options.get_session_config_entry(key)
