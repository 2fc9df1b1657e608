"""Public files that stInfer works with: weights of the paper's five backbones, and the her2st data set."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stinfer.errors import SettingError
from stinfer.feature_map import Progress
from stinfer.files import is_file, sha256_file
from stinfer_export.archive import unpack
from stinfer_export.datasets import her2st
from stinfer_export.download import Patience, download
from stinfer_export.export_all import CHECKPOINTS, HER2ST
from stinfer_export.registry import PAPER_BACKBONES, BackboneSpec

ALL = "all"
HER2ST_ARCHIVE = "https://github.com/almaan/her2st/archive/HEAD.zip"

_HER2ST_PARTS = ("data/ST-imgs", "data/ST-cnts", "data/ST-spotfiles")
# Far above the largest of them: 550 MB of vgg16, and some GB of photographs.
_WEIGHTS_LIMIT_BYTES = 2_000_000_000
_HER2ST_LIMIT_BYTES = 20_000_000_000
# PyTorch's hubs write the first digits of a file's SHA-256 into its name.
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")


@dataclass(frozen=True)
class Weights:
    """Where the weights of a backbone are published, and where they go.

    Parameters
    ----------
    url : their address
    target : file in `models/checkpoints`, by a name that `make export` knows
    hash_prefix : first digits of their SHA-256 as published; empty where none are
    """

    url: str
    target: Path
    hash_prefix: str


def weights_of(spec: BackboneSpec) -> Weights:
    """Choose the address whose hash is published, where there is one."""
    if spec.url:
        found = _HASH_IN_NAME.search(spec.file_name)
        return Weights(spec.url, CHECKPOINTS / spec.file_name, found[1] if found else "")
    return Weights(spec.sources[0], CHECKPOINTS / f"{spec.name}.safetensors", "")


def fetch_weights(
    name: str, *, patience: Patience | None = None, progress: Progress | None = None
) -> Iterator[str]:
    """Fetch the weights of one of the paper's five backbones, or of all, into `models/checkpoints`.

    Weights that are there already are kept, if they are what was published.

    Yields
    ------
    what was done, a line each

    Raises
    ------
    SettingError
        The name is none of the five, or another file is in the place of the weights.
    FetchError
        They cannot be fetched, or are not what was published.
    """
    specs = {spec.name: spec for spec in PAPER_BACKBONES.values()} | PAPER_BACKBONES
    if name != ALL and name not in specs:
        what = f"the weights of {name!r} are not among those that are fetched"
        fix = (
            f"use {ALL} or one of {', '.join(PAPER_BACKBONES)}; others come with stinfer-export backbone "
            "--pretrained"
        )
        raise SettingError(what, fix)
    for spec in PAPER_BACKBONES.values() if name == ALL else [specs[name]]:
        weights = weights_of(spec)
        if is_file(weights.target):
            yield _keep(weights)
            continue
        checked = download(
            weights.url,
            weights.target,
            hash_prefix=weights.hash_prefix,
            limit_bytes=_WEIGHTS_LIMIT_BYTES,
            patience=patience,
            progress=progress,
        )
        yield f"fetched {weights.target} from {weights.url}; {_told(weights.target, checked)}"


def fetch_her2st(*, patience: Patience | None = None, progress: Progress | None = None) -> Iterator[str]:
    """Fetch the her2st data set and unpack its images, counts and spots into `reference_bank/data/her2st`.

    Yields
    ------
    what was done, a line each

    Raises
    ------
    FetchError
        It cannot be fetched.
    ArchiveError
        What was fetched is no archive of it.
    """
    if HER2ST.exists():
        yield f"kept {HER2ST}: sections {', '.join(her2st.list_sections(HER2ST))}"
        return
    archive = HER2ST.with_name("her2st.zip")
    if is_file(archive):
        # Put there by hand, where this machine has no network; or its unpacking was broken off.
        yield f"kept {archive}"
    else:
        # GitHub packs the archive anew for whoever asks, so there is no hash of it to publish.
        download(
            HER2ST_ARCHIVE, archive, limit_bytes=_HER2ST_LIMIT_BYTES, patience=patience, progress=progress
        )
        yield f"fetched {archive} from {HER2ST_ARCHIVE}; {_told(archive, '')}"
    n_files = unpack(archive, _HER2ST_PARTS, HER2ST, limit_bytes=_HER2ST_LIMIT_BYTES)
    archive.unlink()
    yield f"unpacked {n_files} files into {HER2ST}: sections {', '.join(her2st.list_sections(HER2ST))}"


def _keep(weights: Weights) -> str:
    found = sha256_file(weights.target)
    if not found.startswith(weights.hash_prefix):
        n = len(weights.hash_prefix)
        what = (
            f"{weights.target} is there, but is not what was published: its SHA-256 begins with {found[:n]}, "
            f"expected {weights.hash_prefix}"
        )
        raise SettingError(what, "move or delete it, and fetch again")
    return f"kept {weights.target}; {_told(weights.target, weights.hash_prefix)}"


def _told(path: Path, checked: str) -> str:
    """Say what a file was checked against."""
    if not checked:
        return f"no hash is published to check it against; its SHA-256 is {sha256_file(path)}"
    return (
        f"its SHA-256 begins with {checked}, as published"
        if len(checked) < 64
        else (f"its SHA-256 is {checked}, as its server says")
    )
