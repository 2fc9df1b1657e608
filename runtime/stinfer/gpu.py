"""How ONNX Runtime is asked for CUDA, and how much it is given at a time.

What one thread encodes is copied to the GPU while another's is encoded. Memory that is locked for the GPU,
and bound as an input, was slower than ONNX Runtime's own copies: to fill it costs what the faster copy saves.
"""

from __future__ import annotations

import contextlib
import functools
import io
import threading
from typing import Any

from stinfer.onnx_runtime import ort

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
# Patches that are encoded at once; fewer are filled up, since cuDNN prepares anew for every size, and since
# no result is to depend on how many there are.
PATCHES_ON_GPU = 64
# Threads that cut patches, or read regions, for the GPU: one more than cores, since some wait for it.
MAX_FEEDERS = 16
# One is encoded or searched while another is copied; more would take more of the GPU's memory.
IN_TURN = threading.BoundedSemaphore(2)

_OPTIONS = {
    # By rule, not by which was fastest just now: so twice the same gives the same bits.
    "cudnn_conv_algo_search": "HEURISTIC",
    # Banks are made on the CPU in single precision, of which TF32 would keep 10 of 23 bits; half precision
    # is the fast way, and is compared before it is used.
    "use_tf32": "0",
    "arena_extend_strategy": "kSameAsRequested",
}
# Half precision is a fifth faster with channels last; single precision is slower.
_OPTIONS_HALF = {**_OPTIONS, "prefer_nhwc": "1"}


class NoRoomError(MemoryError):
    """What is to stay on the GPU does not fit there."""


def providers(name: str, *, half: bool = False) -> list[Any]:
    """Return what a session is asked to run on, the CPU last.

    Parameters
    ----------
    name : `CUDA` or `CPU`
    half : whether its model is in half precision
    """
    if name != CUDA:
        return [CPU]
    _load_libraries()
    return [(CUDA, _OPTIONS_HALF if half else _OPTIONS), CPU]


def is_installed() -> bool:
    """Say whether this ONNX Runtime has CUDA; whether that works shows when a model is loaded."""
    return CUDA in ort.get_available_providers()


@functools.cache
def _load_libraries() -> None:
    """Load what pip has installed of CUDA and cuDNN, which the system does not find by itself."""
    # ONNX Runtime has this from 1.21 on, and prints what it does not find: `cuda_trouble` says what matters.
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls(msvc=False, directory="")
