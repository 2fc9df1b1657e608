"""Hashes of a bank's parts, computed alike where it is written and where it is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stinfer.contract import AnyArray
from stinfer.stored_array import StoredArray, iter_blocks


def hash_arrays(*arrays: AnyArray | StoredArray) -> str:
    """Hash the type, shape and little-endian content of arrays.

    Returns
    -------
    SHA-256, 64 hexadecimal digits
    """
    digest = hashlib.sha256()
    for array in arrays:
        rows = array if isinstance(array, StoredArray) else np.atleast_1d(array)
        digest.update(array_header(rows.dtype, rows.shape))
        for block in iter_blocks(rows):
            little = np.ascontiguousarray(block, dtype=block.dtype.newbyteorder("<"))
            digest.update(little.view(np.uint8).data if little.size else b"")
    return digest.hexdigest()


def array_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Return what `hash_arrays` puts before an array's content, for arrays hashed piece by piece."""
    return f"{dtype.newbyteorder('<').str}{shape}".encode()


def hash_json(value: Mapping[str, object] | Sequence[object]) -> str:
    """Hash texts and numbers as JSON with sorted keys and no spaces, UTF-8.

    Returns
    -------
    SHA-256, 64 hexadecimal digits
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
