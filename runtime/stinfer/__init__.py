"""Infer spatial gene expression from H&E slides.

The runtime: a slide and a bank in, predicted expression out. It needs numpy, h5py, ONNX Runtime,
OpenSlide and Pillow, and never torch, onnx or a network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["Bank", "StInferError", "__version__", "predict_slide", "predict_slides"]

if TYPE_CHECKING:
    from stinfer.bank import Bank
    from stinfer.batch import predict_slides
    from stinfer.errors import StInferError
    from stinfer.pipeline import predict_slide

_HOMES = {
    "Bank": "stinfer.bank",
    "StInferError": "stinfer.errors",
    "predict_slide": "stinfer.pipeline",
    "predict_slides": "stinfer.batch",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that `stinfer-run --help` does not wait for ONNX Runtime and OpenSlide.
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    msg = f"module 'stinfer' has no attribute {name!r}"
    raise AttributeError(msg)
