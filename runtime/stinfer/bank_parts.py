"""A bank's parts in its file: what they are called, and whether they are what was written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from stinfer import h5ad
from stinfer.bank_settings import BankSettings
from stinfer.contract import BANK_FORMAT_VERSION, F32, MERGED_BANK_VERSION, AnyArray
from stinfer.errors import BankAlteredError, BankFormatError, BankVersionError
from stinfer.integrity import hash_arrays, hash_json
from stinfer.stored_array import StoredArray

if TYPE_CHECKING:
    from stinfer.bank import Bank

ANNOY, EXPRESSION, OWN_SECTION = "annoy", "expression", "own_section"
# The last version that had one model.
ONE_MODEL = 2
# The one column of `var` that is text; scanpy calls it so too.
GENE_IDS = "gene_ids"
# How a part is called in messages, where not as its hash is.
_PART_NAMES = {ANNOY: "Annoy index", "raw_embedding": "raw embedding"}
# Where the parts lie: how the names of their datasets begin.
_PARTS = {
    "/X/": EXPRESSION,
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


def part_hashes(bank: Bank, version: int = BANK_FORMAT_VERSION) -> dict[str, Callable[[], str]]:
    """Return what hashes each part of a bank, as a version has them, but its blobs."""
    texts = [list(bank.spots), list(bank.sections), list(bank.patients)]
    sparse, own, stain = bank.expression, bank.own_section, bank.stain
    projections = [projection for projection in bank.projections if projection is not None]

    def genes() -> str:
        columns = _hash_columns(bank.gene_columns)
        if bank.gene_ids is not None:
            columns[GENE_IDS] = hash_json(list(bank.gene_ids))
        return hash_json([list(bank.genes), columns])

    parts = {
        "settings": lambda: hash_json(bank.settings.to_mapping(version)),
        "genes": genes,
        "spots": lambda: hash_json([texts, _hash_columns(bank.spot_columns), hash_arrays(bank.spatial)]),
        EXPRESSION: lambda: hash_arrays(sparse.data, sparse.indices, sparse.indptr),
        "embedding": lambda: hash_arrays(bank.embedding),
        "metric": lambda: hash_arrays(bank.metric.mean, bank.metric.components, *projections),
        "calibration": lambda: hash_arrays(bank.distance_quantiles),
    }
    if bank.origins is not None and sparse.coverage is not None:
        origins, measured = list(bank.origins), np.ascontiguousarray(sparse.coverage.measured.T)
        parts["origins"] = lambda: hash_json([origins, hash_arrays(measured)])
    if stain is not None:
        parts["stain"] = lambda: hash_arrays(stain.directions, stain.amounts)
    if own is not None:
        parts[OWN_SECTION] = lambda: hash_json(own.to_mapping())
    return parts


def _hash_columns(columns: dict[str, AnyArray]) -> dict[str, str]:
    return {name: hash_arrays(values) for name, values in columns.items()}


def read_blob(file: h5py.File, name: str) -> bytes:
    """Read a model as it was saved, and hold it once; raises as `h5ad.open_array`."""
    values = h5ad.open_array(file["uns/stinfer"], name, held_bytes=0)
    if values.ndim != 1 or values.dtype != np.uint8:
        msg = f"{name} is no list of bytes"
        raise ValueError(msg)
    return values.to_bytes() if isinstance(values, StoredArray) else values.tobytes()


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


def version_of(file: h5py.File) -> int:
    """Read the version of a bank that was checked."""
    return int(h5ad.read_scalars(file["uns/stinfer"])["format_version"])


def check_version(path: Path, file: h5py.File) -> int:
    """Read the version of a bank's format.

    Raises
    ------
    BankFormatError, BankVersionError
        It is no bank, or one that this program does not read.
    """
    scalars = h5ad.read_scalars(file["uns/stinfer"]) if "uns/stinfer" in file else {}
    if scalars.get("kind") != "bank":
        cause = "it is an HDF5 file, but no bank"
        raise BankFormatError(path, cause)
    version = int(scalars["format_version"])
    if not 1 <= version <= MERGED_BANK_VERSION:
        raise BankVersionError(path, version, MERGED_BANK_VERSION)
    return version


def read_settings(uns: h5py.Group, version: int) -> BankSettings:
    """Read the settings from ``uns/stinfer``; raises as `BankSettings.from_mapping`."""
    values: dict[str, Any] = dict(h5ad.read_scalars(uns))
    if version > 1:
        values["fov_um"] = h5ad.read_array(uns, "fov_um").tolist()
    if version > ONE_MODEL:
        values["backbones"] = h5ad.read_strings(uns, "backbones")
        values["models_sha256"] = h5ad.read_strings(uns, "models_sha256")
        for name in ("orientations", "reductions"):
            values[name] = h5ad.read_array(uns, name).tolist()
    return BankSettings.from_mapping(values)


def read_projections(uns: h5py.Group, settings: BankSettings, version: int) -> tuple[F32 | None, ...]:
    """Read the map of each model's cells, None where it has none."""
    if version == 1:
        return (None,)
    if version == ONE_MODEL:
        return (h5ad.read_array(uns, "projection") if "projection" in uns else None,)
    names = [f"projection_{i}" for i in range(len(settings.backbones))]
    return tuple(h5ad.read_array(uns, name) if name in uns else None for name in names)
