"""Hashes of a bank's parts, computed alike where it is written and where it is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stinfer.contract import AnyArray


def hash_arrays(*arrays: AnyArray) -> str:
    """Hash the type, shape and little-endian content of arrays.

    Returns
    -------
    SHA-256, 64 hexadecimal digits
    """
    digest = hashlib.sha256()
    for array in arrays:
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        digest.update(array_header(little.dtype, little.shape))
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
