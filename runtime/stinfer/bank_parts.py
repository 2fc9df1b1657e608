"""A bank's parts in its file: what they are called, and whether they are what was written."""

from __future__ import annotations

import hashlib
from pathlib import Path

import h5py

from stinfer import h5ad
from stinfer.errors import BankAlteredError

ANNOY = "annoy"
# How a part is called in messages, where not as its hash is.
_PART_NAMES = {ANNOY: "Annoy index", "raw_embedding": "raw embedding"}
# Where the parts lie: how the names of their datasets begin.
_PARTS = {
    "/X/": "expression",
    "/obsm/embedding": "embedding",
    "/obsm/spatial": "spots",
    "/obs/": "spots",
    "/var/": "genes",
    "metric_": "metric",
    "projection": "metric",
    "stain_": "stain",
    "distance_quantiles": "calibration",
    "hashes/": "hashes",
}


def read_blob(file: h5py.File, name: str) -> bytes:
    """Read a model or an index as it was saved; raises as `h5ad.iter_bytes`."""
    return b"".join(block.tobytes() for block in h5ad.iter_bytes(file["uns/stinfer"], name))


def hash_blob(file: h5py.File, name: str) -> str:
    """Hash a model or an index without holding it; raises as `h5ad.iter_bytes`.

    Returns
    -------
    SHA-256, 64 hexadecimal digits
    """
    digest = hashlib.sha256()
    for block in h5ad.iter_bytes(file["uns/stinfer"], name):
        digest.update(block.data)
    return digest.hexdigest()


def compare_hashes(path: Path, part: str, written: str, found: str) -> None:
    """Check a part of a bank against its hash.

    Raises
    ------
    BankAlteredError
        It is not what was written.
    """
    if written != found:
        cause = f"SHA-256 {found[:12]}…, written was {written[:12]}…"
        raise BankAlteredError(path, _PART_NAMES.get(part, part), cause)


def part_of(name: str) -> str:
    """Return which part of a bank a dataset belongs to, as messages call it.

    Parameters
    ----------
    name : where it lies in the file
    """
    inside = name.removeprefix("/uns/stinfer/")
    if inside.startswith("model_") or inside in ("model", ANNOY):
        # But `models_sha256`, which is a setting.
        return _PART_NAMES.get(inside, inside)
    return next((part for start, part in _PARTS.items() if inside.startswith(start)), "settings")
