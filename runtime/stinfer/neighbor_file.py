"""What predicts each spot, in memory or, while a run lasts, on disk."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stinfer.contract import F32, I64, Bool
from stinfer.errors import OutputWriteError
from stinfer.predict import Weighting
from stinfer.voters import OriginNeighbors


@dataclass(frozen=True)
class Neighbors:
    """What predicts each spot.

    Parameters
    ----------
    indices : (n_spots, k), references
    weights : (n_spots, k), rows sum to 1
    by_origin : the nearest of each origin, for genes that not all of them measure; None where there are none
    """

    indices: I64
    weights: F32
    by_origin: OriginNeighbors | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, spots: slice) -> Neighbors:
        by_origin = None if self.by_origin is None else self.by_origin[spots]
        return Neighbors(self.indices[spots], self.weights[spots], by_origin)

    def among_used(self) -> tuple[I64, Neighbors]:
        """Give the references new numbers, without those that predict nothing.

        Returns
        -------
        used : (n_used,), ascending, the references that are there
        neighbors : the same, by their places in `used`
        """
        found = [self.indices] if self.by_origin is None else [self.indices, self.by_origin.indices]
        used = np.unique(np.concatenate([indices.ravel() for indices in found]))
        anew = [np.searchsorted(used, indices).astype(np.int64) for indices in found]
        by_origin = None if self.by_origin is None else replace(self.by_origin, indices=anew[1])
        return used, Neighbors(anew[0], self.weights, by_origin)

    def of(self, origins: Bool) -> Neighbors:
        """Return what predicts genes that these origins measure, (n_origins,)."""
        if self.by_origin is None or origins.all():
            return self
        return Neighbors(*self.by_origin.voters(origins))


class NeighborFile:
    """The neighbors of many spots, on disk: at k = 100 those of a million need 1.2 GB.

    The file has no name, so nothing is left behind, however the process ends.

    Parameters
    ----------
    folder : where there is room for it
    n_spots, k : its size
    n_origins : whose nearest are kept too; 0 where all measure the same genes
    weighting, temperature : how those of an origin vote

    Raises
    ------
    OutputWriteError
        The folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        n_spots: int,
        k: int,
        n_origins: int = 0,
        weighting: Weighting = "uniform",
        temperature: float = 1.0,
    ) -> None:
        self._folder, self._n_spots, self._n_origins = folder, n_spots, n_origins
        self._weighting: Weighting = weighting
        self._temperature = temperature
        self._record = np.dtype(
            [
                ("indices", np.int64, (k,)),
                ("weights", np.float32, (k,)),
                ("origin_distances", np.float32, (n_origins, k)),
                ("origin_indices", np.int64, (n_origins, k)),
            ]
        )
        with self._failing_with_folder():
            self._file = tempfile.TemporaryFile(dir=folder, prefix=".stinfer-")  # noqa: SIM115  # closed by __exit__

    def __enter__(self) -> NeighborFile:
        return self

    def __exit__(self, *_: object) -> None:
        # What is still in its buffer is of no use any more, and a full disk would fail once more.
        with contextlib.suppress(OSError):
            self._file.close()

    def __len__(self) -> int:
        return self._n_spots

    def write(self, spots: I64, neighbors: Neighbors) -> None:
        """Keep the neighbors of some spots, (n,) positions.

        Raises
        ------
        OutputWriteError
            The disk is full.
        """
        records = np.empty(len(spots), dtype=self._record)
        records["indices"], records["weights"] = neighbors.indices, neighbors.weights
        if neighbors.by_origin is not None:
            records["origin_distances"] = neighbors.by_origin.distances
            records["origin_indices"] = neighbors.by_origin.indices
        # Spots mostly come in runs, as on a grid.
        starts = np.flatnonzero(np.diff(spots, prepend=-2) != 1)
        with self._failing_with_folder():
            for first, last in zip(starts, [*starts[1:], len(spots)], strict=True):
                self._file.seek(int(spots[first]) * self._record.itemsize)
                self._file.write(records[first:last].tobytes())
            self._file.flush()

    def __getitem__(self, spots: slice) -> Neighbors:
        first, last, _ = spots.indices(self._n_spots)
        self._file.seek(first * self._record.itemsize)
        found = self._file.read((last - first) * self._record.itemsize)
        records = np.frombuffer(found, dtype=self._record)
        by_origin = None
        if self._n_origins:
            distances, indices = records["origin_distances"], records["origin_indices"]
            by_origin = OriginNeighbors(distances, indices, self._weighting, self._temperature)
        return Neighbors(records["indices"], records["weights"], by_origin)

    @contextlib.contextmanager
    def _failing_with_folder(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            cause = os.strerror(error.errno) if error.errno else str(error)
            cause = f"{cause} (the spots' neighbors are kept there while the run lasts)"
            raise OutputWriteError(self._folder, cause) from error
