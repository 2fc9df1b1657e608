"""Saved maps: written and read back, and refused where they are foreign, cut, altered or crafted."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from stinfer import h5ad
from stinfer.bank import Bank
from stinfer.contract import F32
from stinfer.errors import (
    MapAlteredError,
    MapError,
    MapFormatError,
    MapTooSmallError,
    MapVersionError,
    OutputWriteError,
)
from stinfer.feature_map import Band, Progress
from stinfer.integrity import hash_arrays, hash_json
from stinfer.lattice import Lattice, lay_lattice
from stinfer.map_file import MapFile, is_map
from stinfer.map_header import MapRecipe, MapSubject
from stinfer.map_writer import writing_map
from stinfer.tissue import TissueMask

BANK = Bank.open(Path(__file__).parents[1] / "data" / "board_map.h5")
# 70 x 30 cells of 40 µm: more than one band of rows.
SIZE_L0, MPP, CELL_UM = (300, 700), (4.0, 4.0), 40.0
LATTICE = lay_lattice(SIZE_L0, MPP, CELL_UM)
RANDOM = np.random.default_rng(0)
CELLS: F32 = RANDOM.normal(size=(70, 30, 3)).astype(np.float32)
TISSUE: F32 = np.clip(RANDOM.random((70, 30)) * 2 - 1, 0, 1).astype(np.float32)
TISSUE[50:] = 0.0
HELD = TISSUE > 0
HELD[3, 3] = True  # a cell without tissue that a place needed


class Cells:
    """Cells that are there already, in bands of 7 rows."""

    lattice = LATTICE

    def iter_bands(self, needed: np.ndarray, progress: Progress | None) -> Iterator[Band]:
        del progress
        for first in range(0, len(needed), 7):
            if needed[first : first + 7].any():
                yield Band(first, CELLS[first : first + 7])


def subject() -> MapSubject:
    pictures = [RANDOM.integers(0, 256, (n, n, 3), dtype=np.uint8) for n in (20, 6)]
    mask = TissueMask(RANDOM.random((35, 15)) < 0.5, (20.0, 20.0), 0.07)
    return MapSubject("slide.svs", "ab" * 32, SIZE_L0, MPP, "slide metadata", *pictures, mask)


SUBJECT = subject()


def write(path: Path, source: Cells | None = None, n_bands: int | None = None) -> Path:
    with writing_map(path, source or Cells(), HELD, TISSUE, SUBJECT, MapRecipe.of(BANK)) as writer:
        list(itertools.islice(writer.iter_bands(HELD, None), n_bands))
    return path


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return write(tmp_path / "slide.map.h5")


# --- what is written is read ----------------------------------------------------------------------


def test_everything_comes_back(saved: Path) -> None:
    assert is_map(saved)
    found = MapFile(saved)
    assert found.lattice == LATTICE == Lattice(40.0, 70, 30)
    assert found.recipe == MapRecipe.of(BANK)
    assert (found.size_l0, found.mpp) == (SIZE_L0, MPP)
    for field in dataclasses.fields(MapSubject):
        if field.name != "tissue":
            np.testing.assert_array_equal(getattr(found.subject, field.name), getattr(SUBJECT, field.name))
    np.testing.assert_array_equal(found.subject.tissue.mask, SUBJECT.tissue.mask)
    assert (found.subject.tissue.l0_per_px, found.subject.tissue.threshold) == ((20.0, 20.0), 0.07)
    np.testing.assert_array_equal(found.tissue, TISSUE)
    map_of = np.zeros_like(CELLS)
    for band in found.iter_bands(HELD, None):
        map_of[band.first_row : band.first_row + len(band.features)] = band.features
    np.testing.assert_array_equal(map_of, np.where(HELD[..., None], CELLS, np.float32(0)))
    found.refuse_foreign(BANK)
    found.refuse_other_cells(40.0, 3)


def test_only_bands_with_needed_cells_are_read(saved: Path) -> None:
    needed = np.zeros_like(HELD)
    needed[49] = HELD[49]
    seen: list[tuple[int, int, str]] = []
    bands = list(MapFile(saved).iter_bands(needed, lambda *done: seen.append(done)))
    assert [(band.first_row, len(band.features)) for band in bands] == [(48, 22)]
    assert seen == [(0, 1, "bands"), (1, 1, "bands")]


def test_a_cell_that_is_not_held_is_missed(saved: Path) -> None:
    needed = HELD.copy()
    needed[60, :4] = True
    with pytest.raises(MapTooSmallError, match="4 cells that these places need"):
        list(MapFile(saved).iter_bands(needed, None))


def test_the_same_map_gives_the_same_bytes(tmp_path: Path, saved: Path) -> None:
    assert write(tmp_path / "other.map.h5").read_bytes() == saved.read_bytes()


def test_anndata_reads_a_map(saved: Path) -> None:
    anndata = pytest.importorskip("anndata")
    found = anndata.read_h5ad(saved)
    assert found.shape == (HELD.sum(), 3)
    rows, columns = np.nonzero(HELD)
    assert found.obs_names[0] == f"{columns[0]}x{rows[0]}"
    np.testing.assert_array_equal(found.X, CELLS[HELD])
    # The middle of a cell of 40 µm is 20 µm, 5 px, from its corner.
    np.testing.assert_allclose(found.obsm["spatial"], np.stack([columns, rows], axis=1) * 10.0 + 5)
    assert found.uns["stinfer"]["kind"] == "map"


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    class Full(Cells):
        def iter_bands(self, needed: np.ndarray, progress: Progress | None) -> Iterator[Band]:
            yield next(super().iter_bands(needed, progress))
            raise OSError(28, "No space left on device")

    with pytest.raises(OutputWriteError, match=r"slide\.map\.h5: No space left"):
        write(tmp_path / "slide.map.h5", Full())
    assert list(tmp_path.iterdir()) == []


def test_a_map_whose_bands_were_not_all_taken_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="cells were written"):
        write(tmp_path / "slide.map.h5", n_bands=1)
    assert list(tmp_path.iterdir()) == []


# --- whose map it is ------------------------------------------------------------------------------


def test_cells_that_the_model_does_not_make_are_refused(saved: Path) -> None:
    for cell_um, n_channels in ((22.0, 3), (40.0, 64)):
        with pytest.raises(MapFormatError, match="its cells have 40 µm and 3 channels"):
            MapFile(saved).refuse_other_cells(cell_um, n_channels)


# --- what is no map -------------------------------------------------------------------------------


def test_a_pipe_is_no_map_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.map.h5")
    assert not is_map(tmp_path / "pipe.map.h5")


def test_other_files_are_no_maps(tmp_path: Path) -> None:
    (tmp_path / "text.map.h5").write_text("no")
    assert not is_map(tmp_path / "text.map.h5")
    assert not is_map(tmp_path / "nothing.map.h5")
    assert not is_map(tmp_path)
    assert not is_map(BANK.path)
    with pytest.raises(MapFormatError, match="an HDF5 file, but no map"):
        MapFile(BANK.path)


@pytest.mark.parametrize("kept", [0, 1, 100, 3000, 20_000, 50_000])
def test_a_truncated_map_is_refused(saved: Path, kept: int) -> None:
    whole = saved.read_bytes()
    assert len(whole) > 50_000
    saved.write_bytes(whole[:kept])
    with pytest.raises(MapFormatError, match="cut short, damaged or no map"):
        MapFile(saved)
    # By its name, where the file cannot say so; so it is not taken for a slide.
    assert is_map(saved) == (kept >= 100)


def test_flipped_bytes_are_noticed_or_leave_what_is_read_alone(saved: Path) -> None:
    whole, cells, refused = saved.read_bytes(), CELLS[HELD], 0
    for position in range(0, len(whole), 577):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        saved.write_bytes(bytes(damaged))
        try:
            found = MapFile(saved)
            bands = np.concatenate([band.features for band in found.iter_bands(HELD, None)])
            np.testing.assert_array_equal(bands[HELD[: len(bands)]], cells)
        except MapError:
            refused += 1
    assert refused > 20


ALTERED = {
    "X": "cells",
    "obs/array_row": "places",
    "obs/array_col": "places",
    "obs/tissue_fraction": "places",
    "uns/stinfer/hires": "images",
    "uns/stinfer/lowres": "images",
    "uns/stinfer/tissue_mask": "images",
    "uns/stinfer/um_per_px": "settings",
    "uns/stinfer/slide_name": "settings",
    "uns/stinfer/mpp_source": "settings",
    "uns/stinfer/tissue_chroma_threshold": "settings",
}


@pytest.mark.parametrize(("dataset", "part"), ALTERED.items())
def test_one_altered_value_is_refused_by_name(saved: Path, dataset: str, part: str) -> None:
    with h5py.File(saved, "r+") as file:
        values = file[dataset]
        if values.shape == ():
            text = h5py.check_string_dtype(values.dtype) is not None
            values[...] = "another" if text else values[()] + 1
        else:
            first = values[0]
            values[0] = ~first if first.dtype == np.bool_ else first + 1
    with pytest.raises(MapAlteredError, match=f"its {part} was altered"):
        MapFile(saved)


@pytest.mark.parametrize(
    ("version", "remedy"), [(3, "install a newer stinfer"), (1, "make it again"), (0, "make it again")]
)
def test_another_version_is_told_whatever_else_changed(saved: Path, version: int, remedy: str) -> None:
    with h5py.File(saved, "r+") as file:
        file["uns/stinfer/format_version"][...] = version
        del file["uns/stinfer/n_rows"]
    with pytest.raises(MapVersionError, match=f"format version {version}") as caught:
        MapFile(saved)
    assert caught.value.fix.startswith(remedy)


# --- crafted maps: every hash fits ----------------------------------------------------------------


def replaced(group: h5py.Group, name: str, value: object) -> None:
    del group[name]
    group[name] = value


def rehash(file: h5py.File) -> None:
    """Make the hashes fit again, as an attacker would."""
    uns, obs = file["uns/stinfer"], file["obs"]
    hashes = {
        "settings": hash_json(h5ad.read_scalars(uns)),
        "places": hash_arrays(*(obs[n][...] for n in ("array_row", "array_col", "tissue_fraction"))),
        "images": hash_arrays(*(uns[n][...] for n in ("hires", "lowres", "tissue_mask"))),
    }
    if file["X"].nbytes < 10**6:
        hashes["cells"] = hash_arrays(file["X"][...])
    for name, digest in hashes.items():
        replaced(uns["hashes"], name, digest)


def setting(**changed: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        for name, value in changed.items():
            replaced(file["uns/stinfer"], name, value)

    return change


def array(path: str, make: Callable[[np.ndarray], np.ndarray]) -> Callable[[h5py.File], None]:
    return lambda file: replaced(file, path, make(file[path][...]))


def with_value(index: object, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def make(values: np.ndarray) -> np.ndarray:
        values[index] = value
        return values

    return make


def swapped(file: h5py.File) -> None:
    """The first two cells change places, with all that is said of them."""
    for path in ("X", "obs/array_row", "obs/array_col", "obs/tissue_fraction"):
        values = file[path][...]
        values[[0, 1]] = values[[1, 0]]
        replaced(file, path, values)


def outsized(file: h5py.File) -> None:
    del file["X"]
    file.create_dataset("X", shape=(10**9, 3), dtype="f4", chunks=(1024, 3))


CRAFTED = {
    "n_rows huge": setting(n_rows=2**40),
    "n_rows negative": setting(n_rows=-70, n_columns=-30),
    "n_rows text": setting(n_rows="many"),
    "n_rows another": setting(n_rows=71),
    "a lattice of other cells": setting(cell_um=41.0),
    "cells of no size": setting(cell_um=0.0),
    "cells of a negative size": setting(cell_um=-40.0),
    "cells that are no number": setting(cell_um=float("nan")),
    "tiny cells": setting(cell_um=1e-300),
    "a slide of no size": setting(width_px=0),
    "a slide of a negative size": setting(width_px=-300),
    "a slide of 10^18 px": setting(width_px=10**18),
    "no slide's scale": setting(mpp_x_um=400.0, width_px=3),
    "a scale that is no number": setting(mpp_y_um=float("nan")),
    "a mask of no scale": setting(tissue_l0_per_px_x=0.0),
    "a mask's x scale that is no number": setting(tissue_l0_per_px_x=float("nan")),
    "a mask's y scale that is no number": setting(tissue_l0_per_px_y=float("nan")),
    "a mask of endless pixels": setting(tissue_l0_per_px_y=float("inf")),
    "cells that are no numbers": array("X", with_value((0, 0), float("nan"))),
    "endless cells": array("X", with_value((5, 2), float("inf"))),
    "cells of float64": array("X", lambda x: x.astype(np.float64)),
    "cells in one row": array("X", np.ravel),
    "one cell too few": array("X", lambda x: x[:-1]),
    "no channels": array("X", lambda x: x[:, :0]),
    "unsorted cells": swapped,
    "a cell twice": array("obs/array_col", lambda c: np.maximum.accumulate(np.where(c == c[1], c[0], c))),
    "rows beyond the lattice": array("obs/array_row", with_value(-1, 70)),
    "rows below 0": array("obs/array_row", with_value(0, -1)),
    "columns beyond the lattice": array("obs/array_col", with_value(-1, 30)),
    "rows of float": array("obs/array_row", lambda r: r.astype(np.float32)),
    "rows in two axes": array("obs/array_row", lambda r: r[:, None]),
    "tissue above 1": array("obs/tissue_fraction", with_value(0, 1.5)),
    "tissue that is no number": array("obs/tissue_fraction", with_value(0, float("nan"))),
    "tissue of float64": array("obs/tissue_fraction", lambda t: t.astype(np.float64)),
    "a grey picture": array("uns/stinfer/hires", lambda p: p[..., 0]),
    "a picture of no pixels": array("uns/stinfer/hires", lambda p: p[:0]),
    "a picture of float": array("uns/stinfer/lowres", lambda p: p.astype(np.float32)),
    "a mask of numbers": array("uns/stinfer/tissue_mask", lambda m: m.astype(np.uint8)),
    "a mask of no pixels": array("uns/stinfer/tissue_mask", lambda m: m[:0]),
    "terabytes": outsized,
    "a group in place of the cells": lambda file: (file.__delitem__("X"), file.create_group("X")),
}


@pytest.mark.parametrize("craft", CRAFTED.values(), ids=CRAFTED)
def test_a_crafted_map_is_refused_whatever_its_hashes(saved: Path, craft: Callable) -> None:
    with h5py.File(saved, "r+") as file:
        craft(file)
        if isinstance(file["X"], h5py.Dataset):
            rehash(file)
    with pytest.raises(MapFormatError):
        MapFile(saved)


@pytest.mark.parametrize("craft", [setting(slide_name="other.svs"), lambda _: None], ids=["name", "nothing"])
def test_the_crafting_itself_is_not_what_is_refused(saved: Path, craft: Callable) -> None:
    with h5py.File(saved, "r+") as file:
        craft(file)
        rehash(file)
    MapFile(saved)


def test_links_are_refused(saved: Path) -> None:
    shutil.copy(saved, saved.with_name("other.h5"))
    with h5py.File(saved, "r+") as file:
        del file["X"]
        file["X"] = h5py.ExternalLink("other.h5", "X")
    with pytest.raises(MapFormatError, match="is a link to another file or place"):
        MapFile(saved)
