"""Averages of neighbors' expression on the GPU, where all references lie made dense.

In single precision, as the products of `stinfer.averaging`. A spread is taken about the spot's own mean.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from contextlib import closing
from functools import partial

import numpy as np

from stinfer.ahead import in_parallel
from stinfer.averaging import GeneGroup, empty_moments
from stinfer.contract import F32, I64
from stinfer.gpu import CUDA, IN_TURN, NoRoomError, providers
from stinfer.neighbor_file import Neighbors
from stinfer.onnx_outputs import keep_outputs
from stinfer.onnx_runtime import ORT_ERRORS, SHARED_MEMORY, ort
from stinfer.sparse import Sparse

# x = Gather(e, i); m = MatMul(w, x); d = Sub(x, m); q = Mul(d, d); v = MatMul(w, q); s = Sqrt(v): of
# expression (r, g), rows (n, k) and weights (n, 1, k) the means and the spreads, (n, 1, g). Opset 13.
_MOMENTS = base64.b64decode(
    "CAgSADr2AQoeCgFlCgFpEgF4IgZHYXRoZXIqCwoEYXhpcxgAoAECChEKAXcKAXgSAW0iBk1hdE11bAoOCgF4CgFtEgFkIgNTdWIK"
    "DgoBZAoBZBIBcSIDTXVsChEKAXcKAXESAXYiBk1hdE11bAoMCgF2EgFzIgRTcXJ0EgFnWhUKAWUSEAoOCAESCgoDEgFyCgMSAWda"
    "FQoBaRIQCg4IBxIKCgMSAW4KAxIBa1oZCgF3EhQKEggBEg4KAxIBbgoCCAEKAxIBa2IZCgFtEhQKEggBEg4KAxIBbgoCCAEKAxIB"
    "Z2IZCgFzEhQKEggBEg4KAxIBbgoCCAEKAxIBZ0IECgAQDQ=="
)
# y = Identity(x), of (n, g): copies rows to their place on the GPU. Opset 13.
_COPY = base64.b64decode(
    "CAgSADpDChAKAXgSAXkiCElkZW50aXR5EgFnWhUKAXgSEAoOCAESCgoDEgFuCgMSAWdiFQoBeRIQCg4IARIKCgMSAW4KAxIBZ0IE"
    "CgAQDQ=="
)
_MEAN, _SPREAD = "m", "s"
_REFUSALS: tuple[type[Exception], ...] = (RuntimeError, *ORT_ERRORS)
# Values of spots x neighbors x genes that are gathered at once: 134 MB, three times that with spreads.
_GATHERED = 1 << 25
# Spots that are averaged at once, however few genes.
_SPOTS = 4096
# Values of references x genes that are made dense and copied at once: 17 MB.
_COPIED = 1 << 22
# Of expression on the GPU, so that models and the search have room: 13,620 references x 15,000 genes take a
# fifth.
MOST_BYTES = 4 << 30
# Values of spots x genes from which on it is worth to load the graphs and copy the references.
_LEAST_VALUES = 4_000_000


def is_worth(n_spots: int, k: int, n_genes: int, n_refs: int) -> bool:
    """Say whether a prediction is large enough to be averaged on the GPU.

    It is where references are averaged at least as often as there are any: fewer are sooner averaged on the
    CPU than all are made dense.

    Parameters
    ----------
    n_spots, k, n_genes : that are predicted
    n_refs : of the bank
    """
    return n_spots * k >= n_refs and n_spots * n_genes >= _LEAST_VALUES


class GpuAverager:
    """Averages any genes on the GPU; for one thread at a time. See `stinfer.averaging.Averager`.

    Parameters
    ----------
    expression : (n_refs, n_genes_of_bank); what is predicted of it may take `MOST_BYTES` of the GPU
    groups : of the genes to predict
    k : neighbors of a spot
    with_spread : give the spread too
    n_workers : threads that make references dense
    provider : of ONNX Runtime

    Raises
    ------
    NoRoomError
        The expression, or what is gathered of it, does not fit.
    """

    def __init__(
        self,
        expression: Sparse,
        groups: Sequence[GeneGroup],
        k: int,
        *,
        with_spread: bool,
        n_workers: int = 1,
        provider: str = CUDA,
    ) -> None:
        n_refs, n_genes = len(expression.indptr) - 1, sum(len(group.columns) for group in groups)
        what = f"expression of {n_refs:,} references x {n_genes:,} genes"
        needed = n_refs * n_genes * 4
        if needed > MOST_BYTES:
            room = f"{needed / 1e6:,.0f} MB of the GPU, of which it may have {MOST_BYTES / 1e6:,.0f} MB"
            msg = f"{what} takes {room}"
            raise NoRoomError(msg)
        self._device = "cuda" if provider == CUDA else "cpu"
        self._outputs = [_MEAN, _SPREAD] if with_spread else [_MEAN]
        try:
            self._session = _load(keep_outputs(_MOMENTS, lambda name: name in self._outputs), provider)
            copying = _load(_COPY, provider)
            self._groups = [
                (group, self._copied(expression, group.columns, copying, n_workers)) for group in groups
            ]
            for group, dense in self._groups:
                # What an average takes is taken now: nothing can be short of memory later.
                n_at_once = _at_once(k, len(group.columns))
                nothing = Neighbors(np.zeros((n_at_once, k), np.int64), np.zeros((n_at_once, k), np.float32))
                self._average(
                    dense, nothing, empty_moments(n_at_once, len(group.columns), len(self._outputs))
                )
        except _REFUSALS as error:
            msg = f"{what} cannot be copied to the GPU ({error})"
            raise NoRoomError(msg) from error

    def average(self, neighbors: Neighbors) -> tuple[F32, ...]:
        """Predict some spots; see `stinfer.averaging.Averager.average`."""
        n_genes = sum(len(group.positions) for group, _ in self._groups)
        found = empty_moments(len(neighbors), n_genes, len(self._outputs))
        for group, dense in self._groups:
            voters = group.voters(neighbors)
            step = _at_once(voters.indices.shape[1], len(group.columns))
            for first in range(0, len(voters), step):
                some = voters[first : first + step]
                part = slice(first, first + len(some))
                if len(group.columns) == n_genes:
                    self._average(dense, some, [values[part] for values in found])
                    continue
                moments = empty_moments(len(some), len(group.columns), len(found))
                self._average(dense, some, moments)
                for values, moment in zip(found, moments, strict=True):
                    values[part, group.positions] = moment
        return found

    def _average(self, dense: ort.OrtValue, voters: Neighbors, moments: Sequence[F32]) -> None:
        """Fill in the moments, each (n_spots, n_genes_of_group) without gaps."""
        binding = self._session.io_binding()
        rows, weights = (np.ascontiguousarray(values) for values in (voters.indices, voters.weights))
        binding.bind_ortvalue_input("e", dense)
        binding.bind_cpu_input("i", rows)
        binding.bind_cpu_input("w", weights[:, np.newaxis])
        for name, values in zip(self._outputs, moments, strict=True):
            shape = (len(values), 1, values.shape[1])
            binding.bind_output(name, "cpu", 0, np.float32, shape, values.ctypes.data)
        with IN_TURN:
            self._session.run_with_iobinding(binding)

    def _copied(
        self, expression: Sparse, columns: I64, copying: ort.InferenceSession, n_workers: int
    ) -> ort.OrtValue:
        """Make some columns of all references dense, a few rows at a time, and copy them to the GPU."""
        shape = (len(expression.indptr) - 1, len(columns))
        n_at_once = max(_COPIED // shape[1], 1)
        firsts = range(0, shape[0], n_at_once)

        def dense(first: int) -> F32:
            rows = np.arange(first, min(first + n_at_once, shape[0]))
            return expression.rows(rows).columns(columns)

        whole = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, self._device, 0)
        tasks = (partial(dense, first) for first in firsts)
        with closing(in_parallel(tasks, n_workers)) as pieces:
            for first, piece in zip(firsts, pieces, strict=True):
                binding = copying.io_binding()
                binding.bind_cpu_input("x", piece)
                place = whole.data_ptr() + 4 * first * shape[1]
                binding.bind_output("y", self._device, 0, np.float32, piece.shape, place)
                with IN_TURN:
                    copying.run_with_iobinding(binding)
        return whole


def _at_once(k: int, n_genes: int) -> int:
    """Return how many spots are averaged at once."""
    return min(max(_GATHERED // (k * n_genes), 1), _SPOTS)


def _load(model: bytes, provider: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry(SHARED_MEMORY, "1")
    return ort.InferenceSession(model, options, providers=providers(provider))
