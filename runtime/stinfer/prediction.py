"""What a run writes: the `.h5ad` prediction and the CSV beside it.

The layout is in `reference_bank/FORMAT.md`. Expression is computed and written block by block, so
memory grows neither with the number of spots nor of genes.
"""

from __future__ import annotations

import csv
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from stinfer import h5ad
from stinfer.ahead import in_parallel
from stinfer.averaging import Averager, DenseAverager, StoredAverager, gene_groups
from stinfer.bank_parts import GENE_IDS
from stinfer.contract import F32, F64, I64, U8, AnyArray
from stinfer.files import written_beside
from stinfer.neighbor_file import NeighborFile, Neighbors
from stinfer.predict import interval_half_width
from stinfer.sparse import Sparse
from stinfer.stage_clock import WAITING, StageClock, timed

# Values of all references x genes, up to which they are held as a matrix: 192 MB, a fifth of the genes of all
# of her2st.
_MATRIX = 48_000_000
# Values of spots x genes that a thread predicts at once, about: 16 MB.
_BLOCK = 4_000_000
# Rows of a chunk in the file, which is written whole; and chunks of a block at most.
_SPOTS_PER_CHUNK = 256
_CHUNKS_PER_BLOCK = 16
_NEIGHBORS_PER_CHUNK = 4096


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
    n_workers: int = 1,
    averager: Averager | None = None,
) -> Generator[tuple[slice, slice, F32], None, None]:
    """Predict block by block.

    Parameters
    ----------
    expression : (n_refs, n_genes) of the bank
    chosen : columns to predict
    neighbors : of n_spots; by origin too where some origins do not measure some of the genes
    clock : told how long averaging takes
    n_workers : threads that work ahead; what they give does not depend on it
    averager : of the chosen columns, with the spread where intervals are asked for; by default what suits the
        CPU

    Yields
    ------
    spots, genes : slices of the result that this block is
    values : (n_block_spots, n_block_genes), log1p CP10K
    """
    with closing(_iter_blocks(expression, chosen, neighbors, None, clock, n_workers, averager)) as blocks:
        for spots, (values, *_) in blocks:
            yield spots, slice(0, len(chosen)), values


def iter_intervals(
    expression: Sparse,
    chosen: I64,
    neighbors: Neighbors | NeighborFile,
    intervals: Intervals,
    clock: StageClock | None = None,
    n_workers: int = 1,
    averager: Averager | None = None,
) -> Generator[tuple[slice, slice, F32, F32, F32], None, None]:
    """Predict with intervals, block by block; see `iter_expression`.

    Yields
    ------
    spots, genes : slices of the result that this block is
    values, lower, upper : (n_block_spots, n_block_genes), log1p CP10K; the interval NaN where it is not known
    """
    middle = expression.column_means(chosen) if averager is None else None
    with closing(_iter_blocks(expression, chosen, neighbors, middle, clock, n_workers, averager)) as blocks:
        for spots, (values, spread) in blocks:
            half = interval_half_width(spread, intervals.scale, intervals.floor)
            lower, upper = np.maximum(values - half, np.float32(0)), values + half
            yield spots, slice(0, len(chosen)), values, lower, upper


def _iter_blocks(
    expression: Sparse,
    chosen: I64,
    neighbors: Neighbors | NeighborFile,
    middle: F32 | None,
    clock: StageClock | None,
    n_workers: int,
    averager: Averager | None,
) -> Generator[tuple[slice, tuple[F32, ...]], None, None]:
    """Predict spots block by block.

    Few genes are taken out of all references once. Of many genes only the references that predict some spots
    are taken.

    Parameters
    ----------
    expression, chosen, neighbors, clock, n_workers, averager : see `iter_expression`
    middle : see `stinfer.averaging.DenseAverager`

    Yields
    ------
    spots : slice of all
    arrays : see `stinfer.averaging.Averager`
    """
    idle: SimpleQueue[Averager] = SimpleQueue()
    averagers: list[Averager]
    with timed(clock, "average"):
        if averager is not None:
            n_workers = 1
            averagers = [averager]
        elif (len(expression.indptr) - 1) * len(chosen) <= _MATRIX:
            dense = DenseAverager(expression, gene_groups(expression, chosen), middle, n_workers)
            averagers = [dense] * n_workers
        else:
            # It hardly gives up Python's lock: with four threads it takes twice as long as with one.
            n_workers = 1
            averagers = [StoredAverager(expression, gene_groups(expression, chosen), middle)]
    for one in averagers:
        idle.put(one)

    def predict(some: Neighbors) -> tuple[F32, ...]:
        one = idle.get()
        try:
            with timed(clock, "average"):
                return one.average(some)
        finally:
            idle.put(one)

    n_chunks = min(max(_BLOCK // (max(len(chosen), 1) * _SPOTS_PER_CHUNK), 1), _CHUNKS_PER_BLOCK)
    step = n_chunks * _SPOTS_PER_CHUNK
    parts = [slice(i, min(i + step, len(neighbors))) for i in range(0, len(neighbors), step)]
    # Neighbors are read here, in one thread.
    tasks = (partial(predict, neighbors[part]) for part in parts)
    with closing(in_parallel(tasks, n_workers)) as found:
        for part in parts:
            with timed(clock, WAITING):
                arrays = next(found)
            yield part, arrays


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
    n_workers: int = 1,
    averager: Averager | None = None,
) -> None:
    """Write the prediction as an AnnData file, all or nothing.

    Parameters
    ----------
    path : where to write
    table : all but the expression
    expression, chosen, neighbors : see `iter_expression`
    intervals : of the chosen genes, to write as layers ``lower`` and ``upper``; None to leave them out
    with_neighbors : write which references made each prediction, and their weights
    clock, n_workers, averager : see `iter_expression`

    Raises
    ------
    OutputWriteError
        The disk is full, or the folder cannot be written.
    """
    shape = (len(table.spots), len(table.genes))
    blocks: Generator[tuple[Any, ...], None, None]
    if intervals is None:
        blocks = iter_expression(expression, chosen, neighbors, clock, n_workers, averager)
    else:
        blocks = iter_intervals(expression, chosen, neighbors, intervals, clock, n_workers, averager)
    with h5ad.new_file(path) as new, closing(blocks):
        # From now on others average, while pictures are compressed here.
        first = next(blocks, None)
        file = new.root
        h5ad.write_table(file, "obs", table.spots, table.spot_columns)
        ids = {} if table.gene_ids is None else {GENE_IDS: table.gene_ids}
        h5ad.write_table(file, "var", table.genes, table.gene_columns, texts=ids)
        h5ad.write_array(file["obsm"], "spatial", table.spatial)
        h5ad.write_mapping(file["uns"], "spatial", table.image.to_uns())
        h5ad.write_mapping(file["uns"], "stinfer", table.record)
        places = [(file, "X")]
        if intervals is not None:
            places += [(file["layers"], name) for name in ("lower", "upper")]
        targets = [
            h5ad.create_matrix(group, name, shape, chunks=(_SPOTS_PER_CHUNK, 256)) for group, name in places
        ]
        for spots, genes, *found in chain([] if first is None else [first], blocks):
            for target, values in zip(targets, found, strict=True):
                target[spots, genes] = values
            new.check()
        if with_neighbors:
            _write_neighbors(new, neighbors)


def _write_neighbors(new: h5ad.NewFile, neighbors: Neighbors | NeighborFile) -> None:
    """Write the bank's rows that made each prediction, and their weights, nearest first."""
    shape = (len(neighbors), neighbors[0:1].indices.shape[1])
    obsm = new.root["obsm"]
    indices = h5ad.create_matrix(
        obsm, "neighbor_index", shape, chunks=(_NEIGHBORS_PER_CHUNK, shape[1]), dtype=np.int32
    )
    weights = h5ad.create_matrix(obsm, "neighbor_weight", shape, chunks=(_NEIGHBORS_PER_CHUNK, shape[1]))
    for first in range(0, len(neighbors), _NEIGHBORS_PER_CHUNK):
        part = slice(first, min(first + _NEIGHBORS_PER_CHUNK, len(neighbors)))
        some = neighbors[part]
        indices[part], weights[part] = some.indices, some.weights
        new.check()


def write_csv(
    path: Path,
    table: PredictionTable,
    expression: Sparse,
    chosen: I64,
    neighbors: Neighbors | NeighborFile,
    averager: Averager | None = None,
) -> None:
    """Write spots x genes as text: id, x and y in level-0 px, the spot's numbers, then the genes.

    The arguments are those of `write_prediction`.

    Raises
    ------
    OutputWriteError
        The disk is full, or the folder cannot be written.
    """
    with (
        written_beside(path) as beside,
        beside.open("w", encoding="utf-8", newline="") as file,
        closing(iter_expression(expression, chosen, neighbors, averager=averager)) as blocks,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "x", "y", *table.spot_columns, *table.genes])
        for spots, _, values in blocks:
            for i, row in enumerate(values, start=spots.start):
                place = [f"{coordinate:.2f}" for coordinate in table.spatial[i]]
                numbers = [_text(column[i]) for column in table.spot_columns.values()]
                writer.writerow([table.spots[i], *place, *numbers, *(f"{value:.5g}" for value in row)])


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, (np.bool_, np.integer)) else f"{value:.5g}"
