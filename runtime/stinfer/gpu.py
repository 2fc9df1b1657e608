"""Arrays on their way through an NVIDIA GPU: one is encoded while the next is copied there.

ONNX Runtime gives Python no page-locked memory, from which alone the GPU copies at full speed, and its own
copies keep all other threads of Python waiting: the driver, which CUDA needs anyway, is asked for both.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import queue
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from stinfer.contract import U8, AnyArray
from stinfer.cuda import DRIVER
from stinfer.onnx_runtime import ort

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
# Patches that are encoded at once; fewer are filled up, since cuDNN prepares anew for every size, and since
# no result is to depend on how many there are.
PATCHES_ON_GPU = 64
# Threads that cut patches, or read regions, for the GPU: one more than cores, since one of them waits for it.
MAX_FEEDERS = 16

_OPTIONS = {
    # By rule, not by which was fastest just now: so twice the same gives the same bits.
    "cudnn_conv_algo_search": "HEURISTIC",
    # Banks are made on the CPU in single precision, of which TF32 would keep 10 of 23 bits; half precision
    # is the fast way, and is compared before it is used.
    "use_tf32": "0",
    "arena_extend_strategy": "kSameAsRequested",
}
# While several threads use the GPU at the same time, CUDA's libraries may add in another order, and memory is
# taken for each: one encodes or searches, others copy to it.
_in_use = threading.Lock()

_PORTABLE = 1  # locked for every thread


class GpuError(RuntimeError):
    """The driver refuses."""


def providers(name: str) -> list[Any]:
    """Return what a session is asked to run on, the CPU last."""
    if name != CUDA:
        return [CPU]
    _load_libraries()
    return [(CUDA, dict(_OPTIONS)), CPU]


@functools.cache
def _load_libraries() -> None:
    """Load what pip has installed of CUDA and cuDNN, which the system does not find by itself."""
    # ONNX Runtime has this from 1.21 on, and prints what it does not find: `cuda_trouble` says what matters.
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls(msvc=False, directory="")


def is_installed() -> bool:
    """Say whether this ONNX Runtime has CUDA; whether that works shows when a model is loaded."""
    return CUDA in ort.get_available_providers()


def run_bound(session: ort.InferenceSession, binding: ort.IOBinding) -> list[AnyArray]:
    """Run a session, one at a time on the GPU; return its bound outputs."""
    with _in_use:
        session.run_with_iobinding(binding)
    found: list[AnyArray] = binding.copy_outputs_to_cpu()
    return found


class Driver:
    """The few calls of the NVIDIA driver that are needed, for the first GPU.

    Raises
    ------
    GpuError
        There is none that can be used.
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(DRIVER)
        except OSError as error:
            msg = f"there is no NVIDIA driver ({DRIVER} cannot be loaded)"
            raise GpuError(msg) from error
        device, self._context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuInit", ctypes.c_uint(0))
        self._call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)

    def free_bytes(self) -> int:
        """Return the memory of the GPU that nobody uses."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._here("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def lock_bytes(self, n_bytes: int) -> tuple[int, U8]:
        """Take page-locked memory: its address, and the memory."""
        address = ctypes.c_void_p()
        self._here(
            "cuMemHostAlloc", ctypes.byref(address), ctypes.c_size_t(n_bytes), ctypes.c_uint(_PORTABLE)
        )
        at = address.value or 0
        return at, np.ctypeslib.as_array((ctypes.c_uint8 * n_bytes).from_address(at))

    def unlock(self, address: int) -> None:
        """Give locked memory back; nothing may look at it any more."""
        self._here("cuMemFreeHost", ctypes.c_void_p(address))

    def copy_there(self, target: int, source: int, n_bytes: int) -> None:
        """Copy from memory to the GPU's; other threads run meanwhile, and it is done on return."""
        self._here(
            "cuMemcpyHtoD_v2", ctypes.c_uint64(target), ctypes.c_void_p(source), ctypes.c_size_t(n_bytes)
        )

    def _here(self, name: str, *arguments: Any) -> None:
        """Call it in this thread, which may not have used the GPU before."""
        self._call("cuCtxSetCurrent", self._context)
        self._call(name, *arguments)

    def _call(self, name: str, *arguments: Any) -> None:
        failed = getattr(self._library, name)(*arguments)
        if failed:
            msg = f"the NVIDIA driver refuses ({name} gives {failed})"
            raise GpuError(msg)


class PixelFeed:
    """Gives a session pixels: two buffers, one of which is encoded while the other is filled.

    Parameters
    ----------
    session : on the GPU

    Raises
    ------
    GpuError
        The driver cannot be used.
    """

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        driver = Driver()
        self._buffers: queue.SimpleQueue[_Buffer] = queue.SimpleQueue()
        for _ in range(2):
            self._buffers.put(_Buffer(driver))

    def run(self, outputs: Sequence[str], name: str, pixels: U8, n_filled: int) -> list[AnyArray]:
        """Encode pixels; any number of threads may call it.

        Parameters
        ----------
        outputs : their names
        name : of the input
        pixels : (n, height, width, 3)
        n_filled : pictures to encode, at least n; those that are missing are black

        Returns
        -------
        the outputs, of `n_filled` pictures

        Raises
        ------
        GpuError
            The driver has no memory, or the GPU has failed.
        """
        shape = (n_filled, *pixels.shape[1:])
        buffer = self._buffers.get()
        try:
            address = buffer.fill(pixels, int(np.prod(shape)))
            binding = self._session.io_binding()
            binding.bind_input(name, "cuda", 0, np.uint8, shape, address)
            for output in outputs:
                binding.bind_output(output, "cpu")
            return run_bound(self._session, binding)
        finally:
            self._buffers.put(buffer)


class _Buffer:
    """Page-locked memory and as much of the GPU's, of what was the most so far."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._locked = np.empty(0, dtype=np.uint8)
        self._address = 0
        self._there: Any = None
        self._unlock: weakref.finalize[[int], _Buffer] | None = None

    def fill(self, pixels: U8, n_bytes: int) -> int:
        """Copy pixels to the GPU, with zeros behind them; return where they are."""
        if n_bytes > len(self._locked):
            self._locked = np.empty(0, dtype=np.uint8)
            if self._unlock is not None:
                self._unlock()
            self._address, self._locked = self._driver.lock_bytes(n_bytes)
            self._unlock = weakref.finalize(self, self._driver.unlock, self._address)
            # When the program ends, the driver takes it back, and may have gone before this.
            self._unlock.atexit = False
            self._there = None
            self._there = ort.OrtValue.ortvalue_from_shape_and_type((n_bytes,), np.uint8, "cuda", 0)
        np.copyto(self._locked[: pixels.size].reshape(pixels.shape), pixels)
        self._locked[pixels.size : n_bytes] = 0
        target = int(self._there.data_ptr())
        self._driver.copy_there(target, self._address, n_bytes)
        return target
