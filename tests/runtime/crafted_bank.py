"""Banks changed as an attacker would change them: the hashes fit again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import h5py
import numpy as np

from stinfer import h5ad
from stinfer.integrity import hash_arrays, hash_json


def craft(path: Path, **changed: object) -> None:
    """Change settings; None removes one."""
    with h5py.File(path, "r+") as file:
        uns = file["uns/stinfer"]
        for name, value in changed.items():
            del uns[name]
            if isinstance(value, list) and all(isinstance(text, str) for text in value):
                uns.create_dataset(name, data=value, dtype=h5py.string_dtype())
            elif value is not None:
                uns[name] = value
        settings = h5ad.read_scalars(uns)
        lists = {1: (), 2: ("fov_um",)}.get(
            settings["format_version"],
            ("fov_um", "orientations", "reductions", "backbones", "models_sha256"),
        )
        for name in lists:
            if name in uns:
                settings[name] = _plain(uns[name][...].tolist())
        _rehash(uns, "settings", hash_json(settings))


def craft_projections(path: Path, **projections: np.ndarray) -> None:
    """Add projections."""
    with h5py.File(path, "r+") as file:
        uns = file["uns/stinfer"]
        for name, projection in projections.items():
            uns[name] = projection
        arrays = [uns[name][...] for name in ("metric_mean", "metric_components", *projections)]
        _rehash(uns, "metric", hash_arrays(*arrays))


def craft_stain(path: Path, directions: np.ndarray, amounts: np.ndarray) -> None:
    """Let a bank say that slides are brought to a stain."""
    with h5py.File(path, "r+") as file:
        uns = file["uns/stinfer"]
        uns["stain_directions"], uns["stain_amounts"] = directions, amounts
        _rehash(uns, "stain", hash_arrays(directions, amounts))
    craft(path, stain="macenko")


def _rehash(uns: h5py.Group, part: str, digest: str) -> None:
    if part in uns["hashes"]:
        del uns["hashes"][part]
    uns["hashes"][part] = digest


def _plain(values: object) -> object:
    """Texts of HDF5 as texts."""
    if isinstance(values, list):
        return [_plain(value) for value in values]
    return values.decode() if isinstance(values, bytes) else values


def craft_own_section(path: Path, slide: Path, weight: float, **changed: object) -> None:
    """Make the bank of the board one of its own section: `slide`, drawn at 5 µm per pixel."""
    own = {
        "slide_sha256": hashlib.sha256(slide.read_bytes()).hexdigest(),
        "mpp_x_um": 5.0,
        "mpp_y_um": 5.0,
        "place_weight": 0.25,
        "weight_per_um": weight,
        **changed,
    }
    with h5py.File(path, "r+") as file:
        uns = file["uns/stinfer"]
        # The section of the bank was drawn at 10 µm per pixel.
        places = file["obsm/spatial"][...] * 10.0 * weight
        joined = np.concatenate([file["obsm/embedding"][...], places], axis=1, dtype=np.float32)
        marks = dict(file["obsm/embedding"].attrs)
        del file["obsm/embedding"]
        file["obsm/embedding"] = joined
        file["obsm/embedding"].attrs.update(marks)
        h5ad.write_mapping(uns, "own_section", own)
        _rehash(uns, "own_section", hash_json(own))
        _rehash(uns, "embedding", hash_arrays(joined))
        # It was of the embeddings alone.
        del uns["annoy"], uns["hashes"]["annoy"]
    craft(path, annoy_trees=0, annoy_search_k=0)
