"""A patch that comes with the program, encoded by a model that does too, against what it must give.

The model is `stain_texture`, which needs no weights; the expected embedding was computed by ONNX's own
reference implementation, and not by ONNX Runtime.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from stinfer.ahead import in_parallel
from stinfer.contract import F32, U8
from stinfer.encoder import Device, Encoder
from stinfer.encoder_stack import EncoderStack
from stinfer.gpu import PATCHES_ON_GPU

MODEL, EXPECTED = "stain_texture.onnx", "self_test.json"
PATCH_PX = 224
# Processors add in another order; by far less than this of a number, or of 1 where it is less.
TOLERANCE = 1e-3
# How long speed is measured; all of it ends in less than ten seconds on any machine that is fit for slides.
_SECONDS = 2.0
# Cells along a side of the region that a bank of maps encodes; coarser backbones take two at a time.
_REGION_CELLS = 16


@dataclass(frozen=True)
class SelfTest:
    """What came of it.

    Parameters
    ----------
    largest_error : largest difference from what is expected, relative to it or to 1
    same_twice : whether encoding twice gave the same bits
    per_second : patches, or regions, encoded a second
    provider : what ONNX Runtime ran on
    """

    largest_error: float
    same_twice: bool
    per_second: float
    provider: str

    @property
    def passed(self) -> bool:
        """Whether the embedding is the expected one."""
        return self.largest_error <= TOLERANCE


def built_in_patch(side_px: int = PATCH_PX) -> U8:
    """Make a picture of nuclei in stroma, by whole numbers alone.

    Parameters
    ----------
    side_px : its side

    Returns
    -------
    (side_px, side_px, 3) uint8 RGB
    """
    row, column = np.indices((side_px, side_px))
    nucleus = (row % 32 - 16) ** 2 + (column % 28 - 14) ** 2 < 60 + (row * column) % 40
    texture = (row * 7 + column * 13 + row * column // 8) % 31
    pixels = np.where(nucleus[..., np.newaxis], (110, 70, 150), (225, 150, 195)) - texture[..., np.newaxis]
    return np.asarray(pixels, dtype=np.uint8)


def open_self_test(device: Device, threads: int | None) -> Encoder:
    """Load the model that comes with the program; raises as `Encoder`."""
    model = (files("stinfer") / "data" / MODEL).read_bytes()
    return Encoder(model, f"of the self-test, {MODEL}", device=device, threads=threads)


def run_self_test(device: Device, threads: int | None) -> SelfTest:
    """Encode the patch with the model that comes with the program.

    Raises
    ------
    ModelError
        It cannot be loaded or run.
    """
    encoder = open_self_test(device, threads)
    written = (files("stinfer") / "data" / EXPECTED).read_text(encoding="utf-8")
    expected = np.asarray(json.loads(written)["embedding"])
    patches = _batch_of(built_in_patch(), on_gpu=encoder.on_gpu)
    found, same_twice, per_second = _twice(lambda: encoder.embed(patches), encoder.n_workers)
    errors = np.abs(found - expected) / np.maximum(np.abs(expected), 1)
    return SelfTest(float(errors.max()), same_twice, per_second * len(patches), encoder.provider)


@dataclass(frozen=True)
class BankTest:
    """What came of encoding with a bank's own models.

    Parameters
    ----------
    same_twice : whether encoding twice gave the same bits
    patches_per_second : with a bank of patches; else 0
    mm2_per_second : tissue encoded a second, with a bank of maps; else 0
    """

    same_twice: bool
    patches_per_second: float
    mm2_per_second: float


def run_bank_test(encoders: EncoderStack, um_per_px: float) -> BankTest:
    """Encode a patch, or a region, with a bank's own models.

    Parameters
    ----------
    encoders : of the bank
    um_per_px : at which they see the tissue

    Raises
    ------
    ModelError
        They cannot be run.
    """
    if encoders.pooling == "patch":
        sizes = [member.encoder.card.input_size_px for member in encoders.members]
        patches = [_batch_of(built_in_patch(size), on_gpu=encoders.on_gpu) for size in sizes]
        _, same_twice, per_second = _twice(lambda: encoders.embed(patches), encoders.n_workers)
        return BankTest(same_twice, per_second * len(patches[0]), 0.0)
    side_px = (_REGION_CELLS + 2 * encoders.halo_cells) * encoders.stride
    region = built_in_patch(side_px)
    _, same_twice, per_second = _twice(lambda: encoders.cells(region), encoders.n_workers)
    encoders.release_memory()
    area_mm2 = (_REGION_CELLS * encoders.stride * um_per_px / 1000) ** 2
    return BankTest(same_twice, 0.0, per_second * area_mm2)


def _batch_of(patch: U8, *, on_gpu: bool) -> U8:
    """Return a patch alone, and on the GPU as many as it would be filled up to."""
    return np.repeat(patch[np.newaxis], PATCHES_ON_GPU if on_gpu else 1, axis=0)


def _twice(encode: Callable[[], F32], n_workers: int) -> tuple[F32, bool, float]:
    """Encode twice, then by several threads for as long as speed is measured."""
    first, second = encode(), encode()
    same = first.tobytes() == second.tobytes()
    start = time.monotonic()

    def again() -> Iterator[Callable[[], F32]]:
        yield encode
        while time.monotonic() - start < _SECONDS:
            yield encode

    n_done = sum(1 for _ in in_parallel(again(), n_workers))
    return first, same, n_done / (time.monotonic() - start)
