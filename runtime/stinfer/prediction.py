"""What a run writes: the `.h5ad` prediction and the CSV beside it.

The layout is in `reference_bank/FORMAT.md`. Expression is computed and written block by block, so
memory grows neither with the number of spots nor of genes.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stinfer import h5ad
from stinfer.bank_parts import GENE_IDS
from stinfer.contract import F32, F64, I64, U8, AnyArray, Bool
from stinfer.files import written_beside
from stinfer.neighbor_file import NeighborFile, Neighbors
from stinfer.predict import (
    SPOTS_AT_ONCE,
    expression_from_neighbors,
    interval_half_width,
    spread_from_neighbors,
)
from stinfer.sparse import Sparse
from stinfer.stage_clock import StageClock, timed

# Values of the dense block of references x genes, and of spots x genes, held at once: 128 MB each.
_BLOCK = 32_000_000
_SPOTS_PER_BLOCK = 4096
# Rows of a chunk in the file: where all genes are predicted at once, a chunk is written whole.
_SPOTS_PER_CHUNK = 256


@dataclass(frozen=True)
class SlideImage:
    """A slide's thumbnails in the form scanpy and squidpy plot.

    Parameters
    ----------
    name : key in ``uns/spatial``
    hires, lowres : (height, width, 3) uint8 RGB
    hires_scale, lowres_scale : thumbnail pixels per level-0 pixel
    spot_diameter_l0 : level-0 px
    """

    name: str
    hires: U8
    lowres: U8
    hires_scale: float
    lowres_scale: float
    spot_diameter_l0: float

    def to_uns(self) -> dict[str, Any]:
        """Return the image as the nested mapping of ``uns/spatial``."""
        scalefactors = {
            "spot_diameter_fullres": self.spot_diameter_l0,
            "tissue_hires_scalef": self.hires_scale,
            "tissue_lowres_scalef": self.lowres_scale,
        }
        images = {"hires": self.hires, "lowres": self.lowres}
        return {self.name: {"images": images, "scalefactors": scalefactors, "metadata": {}}}


@dataclass(frozen=True)
class Intervals:
    """What the intervals of some genes are made of; see `stinfer.predict.interval_half_width`.

    Parameters
    ----------
    scale, floor : (n_genes,)
    """

    scale: F32
    floor: F32


@dataclass(frozen=True)
class PredictionTable:
    """All of a prediction but the expression itself.

    Parameters
    ----------
    spots : n_spots unique names
    spot_columns : numbers of `obs`, each (n_spots,)
    spatial : (n_spots, 2), level-0 px
    genes : n_genes symbols
    gene_columns : numbers of `var`, each (n_genes,)
    image : thumbnails
    record : the run's record, a nested mapping of texts and numbers
    gene_ids : n_genes Ensembl IDs; None where the bank has none
    """

    spots: tuple[str, ...]
    spot_columns: dict[str, AnyArray]
    spatial: F64
    genes: tuple[str, ...]
    gene_columns: dict[str, AnyArray]
    image: SlideImage
    record: dict[str, Any]
    gene_ids: tuple[str, ...] | None = None


def iter_expression(
    expression: Sparse,
    chosen: I64,
    neighbors: Neighbors | NeighborFile,
    clock: StageClock | None = None,
) -> Iterator[tuple[slice, slice, F32]]:
    """Predict block by block.

    Parameters
    ----------
    expression : (n_refs, n_genes) of the bank
    chosen : columns to predict
    neighbors : of n_spots; by origin too where some origins do not measure some of the genes
    clock : told how long averaging takes

    Yields
    ------
    spots, genes : slices of the result that this block is
    values : (n_block_spots, n_block_genes), log1p CP10K
    """

    def predict(groups: list[_Group], some: Neighbors) -> tuple[F32, ...]:
        return (_assembled(groups, [_averaged(group, some) for group in groups]),)

    for spots, (values,) in _iter_blocks(expression, chosen, neighbors, predict, clock):
        yield spots, slice(0, len(chosen)), values


def iter_intervals(
    expression: Sparse, chosen: I64, neighbors: Neighbors | NeighborFile, intervals: Intervals
) -> Iterator[tuple[slice, slice, F32, F32, F32]]:
    """Predict with intervals, block by block; see `iter_expression`.

    Yields
    ------
    spots, genes : slices of the result that this block is
    values, lower, upper : (n_block_spots, n_block_genes), log1p CP10K; the interval NaN where it is not known
    """
    middle = expression.column_means(chosen)

    def predict(groups: list[_Group], some: Neighbors) -> tuple[F32, ...]:
        means = [_averaged(group, some) for group in groups]
        spreads = [
            _spread(group, some, mean, middle[group.positions])
            for group, mean in zip(groups, means, strict=True)
        ]
        return _assembled(groups, means), _assembled(groups, spreads)

    for spots, (values, spread) in _iter_blocks(expression, chosen, neighbors, predict):
        half = interval_half_width(spread, intervals.scale, intervals.floor)
        yield spots, slice(0, len(chosen)), values, np.maximum(values - half, np.float32(0)), values + half


def _iter_blocks(
    expression: Sparse,
    chosen: I64,
    neighbors: Neighbors | NeighborFile,
    predict: Callable[[list[_Group], Neighbors], tuple[F32, ...]],
    clock: StageClock | None = None,
) -> Iterator[tuple[slice, tuple[F32, ...]]]:
    """Predict spots block by block.

    Few genes are taken out of all references once. Of many genes only the references that predict some spots
    are taken, as many at a time as fit.

    Parameters
    ----------
    expression, chosen, neighbors : see `iter_expression`
    predict : gives arrays, each (n_spots, n_chosen), for some spots
    clock : told how long all this takes

    Yields
    ------
    spots : slice of all
    arrays : what `predict` gave
    """
    whole = None
    if (len(expression.indptr) - 1) * len(chosen) <= _BLOCK:
        with timed(clock, "average"):
            whole = _groups(expression, chosen)
    largest = _SPOTS_PER_BLOCK if whole is not None else _SPOTS_PER_CHUNK
    step = min(max(_BLOCK // len(chosen), 1), largest)
    for first in range(0, len(neighbors), step):
        part = slice(first, min(first + step, len(neighbors)))
        with timed(clock, "average"):
            some = neighbors[part]
            if whole is not None:
                found = predict(whole, some)
            else:
                pieces = [
                    predict(_groups(expression.rows(used), chosen), among)
                    for used, among in _iter_used(some, max(_BLOCK // len(chosen), 1))
                ]
                found = tuple(np.concatenate(parts) for parts in zip(*pieces, strict=True))
        yield part, found


def _iter_used(neighbors: Neighbors, n_refs: int) -> Iterator[tuple[I64, Neighbors]]:
    """Cut spots into pieces that use no more than some number of references, or are one spot each."""
    first, step = 0, SPOTS_AT_ONCE
    while first < len(neighbors):
        used, among = neighbors[first : first + step].among_used()
        if len(used) > n_refs and step > 1:
            step //= 2
            continue
        yield used, among
        first += step


@dataclass(frozen=True)
class _Group:
    """Genes of a block that the same references can predict.

    Parameters
    ----------
    origins : (n_origins,), those that measure them; None where all references do
    positions : (n,), in the block
    expression : (n_refs, n), log1p CP10K; 0 where it was not measured
    """

    origins: Bool | None
    positions: I64
    expression: F32

    def voters(self, neighbors: Neighbors) -> Neighbors:
        return neighbors if self.origins is None else neighbors.of(self.origins)


def _groups(expression: Sparse, columns: I64) -> list[_Group]:
    coverage = expression.coverage
    if coverage is None or not coverage.is_partial(columns):
        return [_Group(None, np.arange(len(columns)), expression.columns(columns))]
    return [
        _Group(origins, positions, expression.columns(columns[positions]))
        for origins, positions in coverage.groups(columns)
    ]


def _averaged(group: _Group, neighbors: Neighbors) -> F32:
    voters = group.voters(neighbors)
    return expression_from_neighbors(voters.weights, voters.indices, group.expression)


def _spread(group: _Group, neighbors: Neighbors, mean: F32, middle: F32) -> F32:
    voters = group.voters(neighbors)
    return spread_from_neighbors(voters.weights, voters.indices, group.expression, mean, middle)


def _assembled(groups: list[_Group], parts: list[F32]) -> F32:
    """Put the groups' values, (n_spots, n) each, into the order of their block."""
    if len(groups) == 1:
        return parts[0]
    values = np.empty((len(parts[0]), sum(len(group.positions) for group in groups)), dtype=np.float32)
    for group, part in zip(groups, parts, strict=True):
        values[:, group.positions] = part
    return values


def write_prediction(
    path: Path,
    table: PredictionTable,
    expression: Sparse,
    chosen: I64,
    neighbors: Neighbors | NeighborFile,
    *,
    intervals: Intervals | None = None,
    with_neighbors: bool = False,
    clock: StageClock | None = None,
) -> None:
    """Write the prediction as an AnnData file, all or nothing.

    Parameters
    ----------
    path : where to write
    table : all but the expression
    expression, chosen, neighbors : see `iter_expression`
    intervals : of the chosen genes, to write as layers ``lower`` and ``upper``; None to leave them out
    with_neighbors : write which references made each prediction, and their weights
    clock : told how long averaging takes

    Raises
    ------
    OutputWriteError
        The disk is full, or the folder cannot be written.
    """
    shape = (len(table.spots), len(table.genes))
    with h5ad.new_file(path) as new:
        file = new.root
        h5ad.write_table(file, "obs", table.spots, table.spot_columns)
        ids = {} if table.gene_ids is None else {GENE_IDS: table.gene_ids}
        h5ad.write_table(file, "var", table.genes, table.gene_columns, texts=ids)
        h5ad.write_array(file["obsm"], "spatial", table.spatial)
        h5ad.write_mapping(file["uns"], "spatial", table.image.to_uns())
        h5ad.write_mapping(file["uns"], "stinfer", table.record)
        matrix = h5ad.create_matrix(file, "X", shape, chunks=(_SPOTS_PER_CHUNK, 256))
        if intervals is None:
            for spots, genes, values in iter_expression(expression, chosen, neighbors, clock):
                matrix[spots, genes] = values
                new.check()
        else:
            layers = [
                h5ad.create_matrix(file["layers"], name, shape, chunks=(_SPOTS_PER_CHUNK, 256))
                for name in ("lower", "upper")
            ]
            for spots, genes, *found in iter_intervals(expression, chosen, neighbors, intervals):
                for target, values in zip((matrix, *layers), found, strict=True):
                    target[spots, genes] = values
                new.check()
        if with_neighbors:
            _write_neighbors(new, neighbors)


def _write_neighbors(new: h5ad.NewFile, neighbors: Neighbors | NeighborFile) -> None:
    """Write the bank's rows that made each prediction, and their weights, nearest first."""
    shape = (len(neighbors), neighbors[0:1].indices.shape[1])
    obsm = new.root["obsm"]
    indices = h5ad.create_matrix(obsm, "neighbor_index", shape, chunks=(4096, shape[1]), dtype=np.int32)
    weights = h5ad.create_matrix(obsm, "neighbor_weight", shape, chunks=(4096, shape[1]))
    for first in range(0, len(neighbors), _SPOTS_PER_BLOCK):
        part = slice(first, min(first + _SPOTS_PER_BLOCK, len(neighbors)))
        some = neighbors[part]
        indices[part], weights[part] = some.indices, some.weights
        new.check()


def write_csv(
    path: Path,
    table: PredictionTable,
    expression: Sparse,
    chosen: I64,
    neighbors: Neighbors | NeighborFile,
) -> None:
    """Write spots x genes as text: id, x and y in level-0 px, the spot's numbers, then the genes.

    Raises
    ------
    OutputWriteError
        The disk is full, or the folder cannot be written.
    """
    with written_beside(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "x", "y", *table.spot_columns, *table.genes])
        for spots, _, values in iter_expression(expression, chosen, neighbors):
            for i, row in enumerate(values, start=spots.start):
                place = [f"{coordinate:.2f}" for coordinate in table.spatial[i]]
                numbers = [_text(column[i]) for column in table.spot_columns.values()]
                writer.writerow([table.spots[i], *place, *numbers, *(f"{value:.5g}" for value in row)])


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, (np.bool_, np.integer)) else f"{value:.5g}"
