"""What was asked of a run, as one hash in its output: so that the next run knows what is finished already."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stinfer import h5ad
from stinfer.files import is_file, sha256_file
from stinfer.integrity import hash_json

# Of every file of a slide that has many: a header with its identifiers is much shorter.
_HEAD_BYTES = 1 << 16
_WITHOUT_EFFECT = ("threads", "overwrite")


@dataclass(frozen=True)
class Finished:
    """What a prediction says of the run that wrote it.

    Parameters
    ----------
    request_sha256 : what it was asked for
    n_spots : that it predicted
    """

    request_sha256: str
    n_spots: int


def slide_fingerprint(path: Path, sha256: str | None = None) -> str:
    """Return a hash that another slide does not have.

    Parameters
    ----------
    path : the slide, or a map
    sha256 : of its file, where that is known

    Returns
    -------
    that very hash, but of a slide of many files (a folder, or MIRAX) one over the names, the sizes and the
    beginnings of all of them
    """
    if sha256 is None:
        sha256 = sha256_file(path) if path.is_file() else ""
    if path.is_dir():
        folder = path
    elif path.suffix.lower() == ".mrxs":
        folder = path.with_suffix("")
    else:
        return sha256
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return hash_json([sha256, [_outline(file, folder) for file in files]])


def _outline(path: Path, folder: Path) -> list[str | int]:
    with path.open("rb") as file:
        head = hashlib.sha256(file.read(_HEAD_BYTES)).hexdigest()
    name = path.relative_to(folder).as_posix().encode("utf-8", errors="surrogateescape").hex()
    return [name, path.stat().st_size, head]


def asked_for(
    *,
    mpp: float | tuple[float, float] | None = None,
    spots: str | Path | None = None,
    tissue_mask: str | Path | None = None,
    pitch_um: float | None = None,
    genes: str | Sequence[str] | None = None,
    png: str | Sequence[str] = (),
    **others: Any,
) -> dict[str, Any]:
    """Return the arguments of a run that its result depends on, each in one form.

    Parameters
    ----------
    mpp, spots, tissue_mask, pitch_um, genes, png : see `stinfer.predict_slide`; a file is what it holds
    others : texts, numbers and None; those that change no result are left out
    """
    if isinstance(genes, str):
        listed: object = sha256_file(Path(genes)) if is_file(Path(genes)) else genes
    else:
        listed = None if genes is None else list(genes)
    return {
        "mpp": None if mpp is None else [float(value) for value in np.broadcast_to(mpp, 2)],
        "spots": _hash_of(spots),
        "tissue_mask": _hash_of(tissue_mask),
        "pitch_um": None if pitch_um is None else float(pitch_um),
        "genes": listed,
        "png": list(dict.fromkeys([png] if isinstance(png, str) else png)),
        **{name: value for name, value in others.items() if name not in _WITHOUT_EFFECT},
    }


def _hash_of(path: str | Path | None) -> str | None:
    return sha256_file(Path(path)) if path is not None and is_file(Path(path)) else None


def request_sha256(fingerprint: str, bank_sha256: str, asked: Mapping[str, Any]) -> str:
    """Hash what a run is asked for.

    Parameters
    ----------
    fingerprint : of the slide
    bank_sha256 : of the bank's file
    asked : see `asked_for`

    Returns
    -------
    SHA-256, 64 hexadecimal digits
    """
    return hash_json({"slide": fingerprint, "bank": bank_sha256, "arguments": dict(asked)})


def read_finished(path: Path) -> Finished | None:
    """Read what a prediction says of its run; None where there is no prediction to read."""
    try:
        with h5py.File(path, "r") as file:
            request = h5ad.read_scalars(file["uns/stinfer/run"])["request_sha256"]
            return Finished(str(request), len(file["X"]))
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError):
        return None
