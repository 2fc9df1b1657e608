"""Outputs of Space Ranger 1 to 4: Visium, and bins of Visium HD.

::

    filtered_feature_bc_matrix.h5, or the folder filtered_feature_bc_matrix
    spatial/tissue_positions.parquet, tissue_positions.csv or tissue_positions_list.csv
    spatial/scalefactors_json.json

References
----------
https://www.10xgenomics.com/support/software/space-ranger/latest/analysis/outputs/output-overview
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from stinfer.contract import I64
from stinfer.errors import SettingError
from stinfer_export.datasets.feature_matrix import FeatureMatrix, take_genes
from stinfer_export.datasets.section import Platform, Section
from stinfer_export.datasets.tenx_h5 import read_tenx_h5
from stinfer_export.datasets.tenx_mtx import mtx_shape, read_tenx_mtx
from stinfer_export.datasets.visium_image import settle_image
from stinfer_export.datasets.visium_positions import Positions, find_positions, read_positions
from stinfer_export.datasets.visium_scale import fit_mpp, read_scalefactors
from stinfer_export.errors import DatasetError

NAME = "visium"
# Fewer counts than genes, and less tissue than a nucleus; Space Ranger bins the same section at 8 and 16 µm.
SMALLEST_BIN_UM = 8.0

_MATRIX = "filtered_feature_bc_matrix"
# Both of two sections on the same kind of array have all barcodes, but not the same ones on tissue.
_LARGEST_MISMATCH = 0.1
_SMALLEST_OVERLAP = 0.5
_LAYOUT_FIX = "give the folder outs of Space Ranger (of Visium HD: outs/binned_outputs/square_008um)"


def read_platform(outs: Sequence[Path]) -> Platform:
    """Return what measured the outputs; all must be of spots, or of bins of one size.

    Raises
    ------
    DatasetError
        One has none, or bins that are too small.
    SettingError
        They are of different platforms.
    """
    found = [read_scalefactors(_spatial(folder)) for folder in outs]
    sizes = sorted({scale.pitch_um for scale in found})
    if len(sizes) > 1:
        what = f"the outputs are of spots or bins {' and '.join(f'{size:g}' for size in sizes)} µm apart"
        raise SettingError(what, "pack them into a bank each")
    for scale in found:
        if scale.bin_size_um is not None and scale.bin_size_um < SMALLEST_BIN_UM:
            cause = (
                f"its bins of {scale.bin_size_um:g} µm hold too few counts to be references, expected at "
                f"least {SMALLEST_BIN_UM:g} µm"
            )
            raise DatasetError(scale.path, cause, "give square_008um or square_016um of the same section")
    return Platform(NAME, found[0].pitch_um, found[0].spot_diameter_um)


def iter_sections(outs: Sequence[Path], images: Sequence[Path]) -> Iterator[Section]:
    """Read outputs with their images, one at a time.

    Raises
    ------
    SettingError
        There are more or fewer images than outputs, or two outputs have the same name.
    StInferError
        See `read_section`.
    """
    if len(outs) != len(images):
        what = f"{len(outs)} outputs of Space Ranger, but {len(images)} images"
        raise SettingError(what, "give --image once for each, in the same order")
    names = [section_name(folder) for folder in outs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        what = f"two outputs are named {twice}, after their folder"
        raise SettingError(what, "rename the folder of one")
    for folder, image in zip(outs, images, strict=True):
        yield read_section(folder, image)


def section_name(folder: Path) -> str:
    """Name a section after its folder; of `.../NAME/outs` that is NAME."""
    path = folder.resolve()
    return path.parent.name if path.name == "outs" else path.name


def read_section(folder: Path, image: Path) -> Section:
    """Read one output and join its places with its counts.

    Only spots that Space Ranger found on tissue are kept.

    Parameters
    ----------
    folder : output of Space Ranger
    image : the image that it was given, or one of its two pictures

    Raises
    ------
    DatasetError
        A file is missing, cannot be read, or belongs to another section than the others.
    SlideError
        The image cannot be read.
    ExtraMissingError
        Its positions are a parquet file, and pyarrow is not installed.
    """
    spatial = _spatial(folder)
    scale = read_scalefactors(spatial)
    path, others = find_positions(spatial)
    positions = read_positions(path)
    notices = [f"positions are read from {path.name}, not from {name}" for name in others]
    matrix, said = read_matrix(folder)
    rows = match_barcodes(matrix, positions)
    # All places of the array are fitted, those without tissue too.
    mpp = fit_mpp(path, positions.array, positions.centers_fullres, scale)
    genes = take_genes(matrix)
    on_tissue = (rows >= 0) & positions.in_tissue[rows]
    n_off = int(((rows >= 0) & ~on_tissue).sum())
    if n_off:
        notices.append(f"{n_off} spots have counts but are not on tissue; dropped")
    kept = np.flatnonzero(on_tissue)
    places = rows[kept]
    found = settle_image(image, positions.centers_fullres[positions.in_tissue], mpp, scale)
    return Section(
        name=section_name(folder),
        # Space Ranger does not know of whom a section is.
        patient=section_name(folder),
        image_path=image,
        mpp=found.mpp,
        spots=tuple(matrix.barcodes[i] for i in kept),
        centers_l0=positions.centers_fullres[places] * found.factor,
        array=positions.array[places],
        genes=genes.genes,
        counts=genes.counts.take_spots(kept),
        n_places_only=int(positions.in_tissue.sum()) - len(kept),
        n_counts_only=int((rows < 0).sum()),
        gene_ids=genes.ids,
        notices=(*notices, *said, *genes.notices, *found.notices),
    )


def read_matrix(folder: Path) -> tuple[FeatureMatrix, tuple[str, ...]]:
    """Read the counts, from the HDF5 file where there is one.

    Returns
    -------
    matrix : all features of the barcodes on tissue
    notices : which of two was read

    Raises
    ------
    DatasetError
        There are none, they cannot be read, or file and folder are of different size.
    """
    file, texts = folder / f"{_MATRIX}.h5", folder / _MATRIX
    if not file.is_file():
        if not texts.is_dir():
            cause = f"it has neither {file.name} nor the folder {texts.name}"
            raise DatasetError(folder, cause, _LAYOUT_FIX)
        return read_tenx_mtx(texts), ()
    matrix = read_tenx_h5(file)
    if not texts.is_dir():
        return matrix, ()
    shape = (matrix.counts.n_spots, matrix.counts.n_genes)
    other = mtx_shape(texts)
    if other != shape:
        cause = (
            f"{file.name} holds {shape[0]} barcodes x {shape[1]} features, but the folder {texts.name} "
            f"{other[0]} x {other[1]}"
        )
        raise DatasetError(folder, cause, "remove the one that does not belong to it")
    return matrix, (f"counts are read from {file.name}, not from the folder beside it",)


def match_barcodes(matrix: FeatureMatrix, positions: Positions) -> I64:
    """Find the position of every barcode.

    Returns
    -------
    (n_barcodes,), rows of `positions`; -1 where there is none

    Raises
    ------
    DatasetError
        Barcodes end otherwise than those of the positions, or are those of another section.
    """
    fix = "give counts and positions of one and the same output"
    row_of = {barcode: i for i, barcode in enumerate(positions.barcodes)}
    rows = np.asarray([row_of.get(barcode, -1) for barcode in matrix.barcodes], dtype=np.int64)
    n, n_found = len(rows), int((rows >= 0).sum())
    if n_found < _SMALLEST_OVERLAP * n:
        bare = {_without_suffix(barcode): barcode for barcode in positions.barcodes}
        pairs = [(b, bare[_without_suffix(b)]) for b in matrix.barcodes if _without_suffix(b) in bare]
        if len(pairs) >= _SMALLEST_OVERLAP * n:
            counted, placed = next(pair for pair in pairs if pair[0] != pair[1])
            cause = f"its barcodes end otherwise than those of {matrix.path.name}: {placed}, there {counted}"
            raise DatasetError(positions.path, cause, "write all barcodes alike, with -1 or without")
        cause = (
            f"it has {n_found} of the {n} barcodes of {matrix.path.name}: these are positions of another "
            "section"
        )
        raise DatasetError(positions.path, cause, fix)
    in_tissue = positions.in_tissue
    n_off = int((~in_tissue[rows[rows >= 0]]).sum())
    n_uncounted = int(in_tissue.sum()) - (n_found - n_off)
    if n_off > _LARGEST_MISMATCH * n_found and n_uncounted > _LARGEST_MISMATCH * int(in_tissue.sum()):
        cause = (
            f"{n_off} of the {n_found} barcodes of {matrix.path.name} are not on tissue by it, and "
            f"{n_uncounted} that are have no counts: these are positions of another section"
        )
        raise DatasetError(positions.path, cause, fix)
    return rows


def _without_suffix(barcode: str) -> str:
    return re.sub(r"-\d+$", "", barcode)


def _spatial(folder: Path) -> Path:
    spatial = folder / "spatial"
    if not spatial.is_dir():
        if (folder / "binned_outputs").is_dir():
            cause = "it is the output of a Visium HD run, which holds bins of several sizes"
        else:
            cause = "it has no folder spatial" if folder.is_dir() else "there is no such folder"
        raise DatasetError(folder, cause, _LAYOUT_FIX)
    return spatial
