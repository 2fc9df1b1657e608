"""A file of steps that a run has done: each is written once, at the end, and counts only when it is whole.

The layout is in `reference_bank/FORMAT.md`. Nothing in it is trusted: a step counts if its place, its length
and its hash are what they must be, and the first that does not ends the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from stinfer.contract import CHECKPOINT_FORMAT_VERSION, F32
from stinfer.files import is_file, written_beside

# What is written outlives the program at once, and the machine's power after so long.
SYNC_EVERY_S = 5.0
_MAGIC = b"stinfer checkpoint\n"
_HEADER = struct.Struct("<19sI32s")  # magic, version, key; then their hash
_STEP = struct.Struct("<IQ")  # number, bytes of its values; then the values and the hash of all
_TAIL = struct.Struct("<I8s")  # bytes of the list of outputs before, without its hash, and a magic
_TAIL_MAGIC = b"outputs\n"
_HASH_BYTES = 32
_MAX_OUTPUTS_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 20


class StepFile:
    """An open file of steps.

    Parameters
    ----------
    path : of a file that `create` made
    key : SHA-256 of all that the steps depend on
    shapes : of every step's values

    Attributes
    ----------
    n_done : int
        Steps that are there; what came after them is cut off.

    Raises
    ------
    OSError
        The system refuses; of every method.
    """

    def __init__(self, path: Path, key: bytes, shapes: Sequence[tuple[int, ...]]) -> None:
        self._key = key
        self._shapes = shapes
        self._places: list[int] = []
        self._end = _HEADER.size + _HASH_BYTES
        self._synced_s = time.monotonic()
        # Unbuffered: what is written is the system's, whatever becomes of this program.
        self._file = path.open("r+b", buffering=0)
        while len(self._places) < len(shapes) and self._next_is_whole():
            self._places.append(self._end + _STEP.size)
            self._end += _STEP.size + self._n_bytes(len(self._places) - 1) + _HASH_BYTES
        self._file.truncate(self._end)

    @classmethod
    def create(cls, path: Path, key: bytes, shapes: Sequence[tuple[int, ...]]) -> StepFile:
        """Put a file without steps in the place of what is there, whole from the first moment."""
        head = _HEADER.pack(_MAGIC, CHECKPOINT_FORMAT_VERSION, key)
        with written_beside(path) as partial:
            partial.write_bytes(head + hashlib.sha256(head).digest())
        return cls(path, key, shapes)

    @property
    def n_done(self) -> int:
        """Number of steps that are there."""
        return len(self._places)

    def read(self, step: int) -> F32:
        """Return the values of a step that is done."""
        values = np.empty(self._shapes[step], dtype="<f4")
        self._file.seek(self._places[step])
        self._file.readinto(values.reshape(-1).view(np.uint8).data)
        return values.astype(np.float32, copy=False)

    def add(self, values: F32) -> None:
        """Write the next step; where that fails, the steps before it stay."""
        step = self.n_done
        if values.shape != tuple(self._shapes[step]):
            msg = f"step {step} has shape {values.shape}, planned was {self._shapes[step]}"
            raise RuntimeError(msg)
        stored = _STEP.pack(step, self._n_bytes(step)) + np.ascontiguousarray(values, dtype="<f4").tobytes()
        self._write(stored + hashlib.sha256(self._key + stored).digest())
        self._places.append(self._end + _STEP.size)
        self._end += len(stored) + _HASH_BYTES
        if time.monotonic() - self._synced_s > SYNC_EVERY_S:
            self.sync()

    def note_outputs(self, partials: Mapping[Path, Path]) -> None:
        """Write, behind the steps, which complete file is about to become which output."""
        found = {path.name: _identity(partial) for path, partial in partials.items()}
        listed = json.dumps(found).encode()
        self._write(
            listed + hashlib.sha256(self._key + listed).digest() + _TAIL.pack(len(listed), _TAIL_MAGIC)
        )
        self.sync()

    def sync(self) -> None:
        """Wait until what was written would outlive the machine's power."""
        os.fsync(self._file.fileno())
        self._synced_s = time.monotonic()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _n_bytes(self, step: int) -> int:
        return 4 * math.prod(self._shapes[step])

    def _next_is_whole(self) -> bool:
        """Say whether the step at the end of those known is what it must be."""
        step = len(self._places)
        self._file.seek(self._end)
        head = self._file.read(_STEP.size)
        left = self._n_bytes(step)
        if head != _STEP.pack(step, left):
            return False
        digest = hashlib.sha256(self._key + head)
        while left:
            block = self._file.read(min(left, _BLOCK_BYTES))
            if not block or len(block) % 4 or not np.isfinite(np.frombuffer(block, dtype="<f4")).all():
                return False
            digest.update(block)
            left -= len(block)
        return self._file.read(_HASH_BYTES) == digest.digest()

    def _write(self, data: bytes) -> None:
        self._file.seek(self._end)
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)
            raise


def read_key(path: Path) -> bytes | None:
    """Return what the steps of a file depend on, as a hash; None where its head is not whole."""
    with path.open("rb") as file:
        head, digest = file.read(_HEADER.size), file.read(_HASH_BYTES)
    if len(head) < _HEADER.size or hashlib.sha256(head).digest() != digest:
        return None
    magic, version, key = _HEADER.unpack(head)
    return bytes(key) if magic == _MAGIC and version == CHECKPOINT_FORMAT_VERSION else None


def is_step_file(path: Path) -> bool:
    """Say whether a file begins as a file of steps, whole or not."""
    if not is_file(path):
        return False
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def own_outputs(path: Path, outputs: Sequence[Path]) -> set[Path]:
    """Return which outputs are of a run that was killed as it named them, by its file of steps."""
    if not is_step_file(path) or (key := read_key(path)) is None:
        return set()
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _TAIL.size, 0))
        n_bytes, magic = _TAIL.unpack(file.read(_TAIL.size))
        start = size - _TAIL.size - _HASH_BYTES - n_bytes
        if magic != _TAIL_MAGIC or n_bytes > _MAX_OUTPUTS_BYTES or start < 0:
            return set()
        file.seek(start)
        listed, digest = file.read(n_bytes), file.read(_HASH_BYTES)
    if hashlib.sha256(key + listed).digest() != digest:
        return set()
    try:
        found = json.loads(listed)
    except (ValueError, RecursionError):
        return set()
    if not isinstance(found, dict):
        return set()
    return {output for output in outputs if is_file(output) and found.get(output.name) == _identity(output)}


def _identity(path: Path) -> list[int]:
    """Return what stays the same when a file gets another name, and changes when it is replaced."""
    status = path.stat()
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]
