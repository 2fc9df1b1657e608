"""Why ONNX Runtime does not use CUDA, in words: it falls back to the CPU and only says so in its log."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from stinfer.errors import first_line
from stinfer.onnx_runtime import ort

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
# The first must be there before the second can be loaded.
_LIBRARIES = (
    ("onnxruntime_providers_shared.dll", "onnxruntime_providers_cuda.dll")
    if sys.platform == "win32"
    else ("libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so")
)


def cuda_trouble() -> str:
    """Say what CUDA lacks on this machine; empty if everything that can be looked at is there."""
    return "; ".join(text for text in (_driver_trouble(), _library_trouble()) if text)


def _driver_trouble() -> str:
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return f"there is no NVIDIA driver ({_DRIVER} cannot be loaded)"
    failed = driver.cuInit(0)
    if failed:
        return f"the NVIDIA driver finds no GPU that it can use (cuInit gives {failed})"
    return ""


def _library_trouble() -> str:
    folder = Path(ort.__file__).parent / "capi"
    for name in _LIBRARIES:
        try:
            # As ONNX Runtime does it; what a library needs in turn is named by the system.
            ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            missing = first_line(error).replace(f"{folder}", "").lstrip("/\\")
            return f"a library of CUDA or cuDNN is missing or of another version ({missing})"
    return ""
