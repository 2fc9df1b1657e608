"""Exact search where the models run: references stay on the GPU, which proposes more than are asked for.

The distances of what it proposes are then computed as `ExactSearch` does, on the CPU. So what is found is the
same to the bit, but where more references than either proposes are equally far within the rounding of a
product: there the two may find others of them.
"""

from __future__ import annotations

import base64

import numpy as np

from stinfer.contract import F32, I64
from stinfer.gpu import CUDA, IN_TURN, NoRoomError, providers
from stinfer.neighbors import Distance, center_of, prepare, ranked
from stinfer.onnx_runtime import ORT_ERRORS, SHARED_MEMORY, ort
from stinfer.stored_array import StoredArray, take_rows

# n = Gemm(q, r, h, alpha=1, beta=-1, transB=1); v, i = TopK(n, k): of queries (n, d), references (m, d), half
# their squared lengths (m,) and a number the nearness and the rows of the nearest, (n, k). Opset 13.
_NEAREST = base64.b64decode(
    "CAgSADqGAgpCCgFxCgFyCgFoEgFuIgRHZW1tKg8KBWFscGhhFQAAgD+gAQEqDgoEYmV0YRUAAIC/oAEBKg0KBnRyYW5zQhgBoAEC"
    "Cj4KAW4KAWsSAXYSAWkiBFRvcEsqCwoEYXhpcxgBoAECKg4KB2xhcmdlc3QYAaABAioNCgZzb3J0ZWQYAaABAhIBZ1oVCgFxEhAK"
    "DggBEgoKAxIBbgoDEgFkWhUKAXISEAoOCAESCgoDEgFtCgMSAWRaEAoBaBILCgkIARIFCgMSAW1aDwoBaxIKCggIBxIECgIIAWIV"
    "CgF2EhAKDggBEgoKAxIBbgoDEgFrYhUKAWkSEAoOCAcSCgoDEgFuCgMSAWtCBAoAEA0="
)
_REFUSALS: tuple[type[Exception], ...] = (RuntimeError, *ORT_ERRORS)
# Queries and references that are compared at once: 67 MB of nearness.
_QUERIES, _REFERENCES = 256, 65_536
# Of references that are copied at once.
_BLOCK_BYTES = 64 << 20
_QUERIES_A_PASS = 1024
# Of references on the GPU, so that the models have room: two million of 512 numbers.
MOST_BYTES = 4 << 30
# Proposed beyond what is asked for: more than ever lie within a rounding of the last.
_SURPLUS = 16


class GpuSearch:
    """Compare every query with every reference on the GPU, block by block.

    Parameters
    ----------
    references : (n_refs, dim); copied to the GPU, where they may take `MOST_BYTES`
    distance : as in `stinfer.neighbors.ExactSearch`
    provider : of ONNX Runtime

    Raises
    ------
    NoRoomError
        They do not fit.
    """

    name = "exact"
    queries_at_once = _QUERIES_A_PASS

    def __init__(self, references: F32 | StoredArray, distance: Distance, provider: str = CUDA) -> None:
        self._references = references
        self._distance: Distance = distance
        self._device = "cuda" if provider == CUDA else "cpu"
        _check_room(references)
        self._center = center_of(references, distance)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry(SHARED_MEMORY, "1")
        row_bytes = 4 * references.shape[1]
        step = max(min(_REFERENCES, _BLOCK_BYTES // row_bytes), 1)
        try:
            self._session = ort.InferenceSession(_NEAREST, options, providers=providers(provider))
            self._blocks = [self._block(first, step) for first in range(0, len(references), step)]
        except _REFUSALS as error:
            msg = f"{_shown(references)} cannot be copied to the GPU ({error})"
            raise NoRoomError(msg) from error

    def query(self, queries: F32, k: int) -> tuple[F32, I64]:
        """Find the nearest references; see `stinfer.neighbors.Search.query`."""
        prepared = prepare(queries, self._distance)
        found = [
            self._propose(prepared[first : first + _QUERIES] - self._center, k)
            for first in range(0, len(prepared), _QUERIES)
        ]
        proposed = np.concatenate(found or [np.empty((0, k), dtype=np.int64)])
        distances, indices = ranked(prepared, self._rows, proposed, self._distance)
        return distances[:, :k], indices[:, :k]

    def _propose(self, centered: F32, k: int) -> I64:
        """Return the nearest by their products, (n, at least k), in no order."""
        nearness, rows = [], []
        queries = self._there(centered)
        for first, n, references, half_norms in self._blocks:
            binding = self._session.io_binding()
            binding.bind_ortvalue_input("q", queries)
            binding.bind_ortvalue_input("r", references)
            binding.bind_ortvalue_input("h", half_norms)
            binding.bind_cpu_input("k", np.asarray([min(k + _SURPLUS, n)], dtype=np.int64))
            binding.bind_output("v", "cpu")
            binding.bind_output("i", "cpu")
            with IN_TURN:
                self._session.run_with_iobinding(binding)
            best, places = binding.copy_outputs_to_cpu()
            nearness.append(best)
            rows.append(places + first)
        values, indices = np.concatenate(nearness, axis=1), np.concatenate(rows, axis=1)
        n_kept = min(k + _SURPLUS, values.shape[1])
        chosen = np.argpartition(-values, n_kept - 1, axis=1)[:, :n_kept]
        return np.take_along_axis(indices, chosen, axis=1)

    def _block(self, first: int, step: int) -> tuple[int, int, ort.OrtValue, ort.OrtValue]:
        centered = prepare(self._references[first : first + step], self._distance) - self._center
        half_norms = (centered * centered).sum(axis=1) / 2
        return first, len(centered), self._there(centered), self._there(half_norms)

    def _there(self, values: F32) -> ort.OrtValue:
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(values), self._device, 0)

    def _rows(self, rows: I64) -> F32:
        return prepare(take_rows(self._references, rows), self._distance)


def _check_room(references: F32 | StoredArray) -> None:
    needed = len(references) * (references.shape[1] + 1) * 4
    if needed > MOST_BYTES:
        room = f"{needed / 1e6:,.0f} MB of the GPU, of which they may have {MOST_BYTES / 1e6:,.0f} MB"
        msg = f"{_shown(references)} take {room}"
        raise NoRoomError(msg)


def _shown(references: F32 | StoredArray) -> str:
    return f"{len(references):,} references of {references.shape[1]} numbers"
