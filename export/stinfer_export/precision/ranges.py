"""What values the tensors of a network take on tissue, and which of them eight bits should cover.

The calibrators of `onnxruntime.quantization` keep every tensor of every patch; here two passes over a few
patches at a time count values in histograms, so that memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import onnx

from stinfer.contract import F32, F64, I64, MODEL_INPUT, U8
from stinfer_export.precision.session import open_session

Method = Literal["minmax", "percentile", "entropy"]
METHODS: tuple[Method, ...] = get_args(Method)
Range = tuple[float, float]

# Patches that pass through the network at once, with all its tensors kept.
BATCH = 4
N_BINS = 2048
# Of `percentile`: the part of the values that is covered.
COVERED = 0.9999
# Of `entropy`: what eight bits can tell apart on one side of 0, and every how many bins a cut is tried.
_N_LEVELS = 128
_STEP = 16


@dataclass(frozen=True)
class Histogram:
    """The values of a tensor.

    Parameters
    ----------
    lowest, highest : of all values
    counts : (N_BINS,), of the magnitudes, from 0 to the largest
    per_patch : values that a patch has
    """

    lowest: float
    highest: float
    counts: I64
    per_patch: int

    def range(self, method: Method) -> Range:
        """Choose what is covered; what lies outside becomes the nearest value inside.

        Parameters
        ----------
        method : ``minmax`` covers all; ``percentile`` cuts the largest ten-thousandth of the magnitudes;
            ``entropy`` cuts where the divergence of what is left from what there was is least

        Returns
        -------
        lowest and highest; 0 is among them
        """
        largest = max(abs(self.lowest), abs(self.highest))
        if method == "minmax" or largest == 0 or not self.counts.any():
            bins = N_BINS
        elif method == "percentile":
            shares = np.cumsum(self.counts) / self.counts.sum()
            bins = int(np.searchsorted(shares, COVERED)) + 1
        else:
            bins = _least_divergence(self.counts.astype(np.float64))
        limit = largest * min(bins, N_BINS) / N_BINS
        return max(min(self.lowest, 0.0), -limit), min(max(self.highest, 0.0), limit)


def count_values(model: onnx.ModelProto, tensors: Sequence[str], patches: U8) -> dict[str, Histogram]:
    """Run patches through a network and count what its tensors hold.

    Parameters
    ----------
    model : in floating point
    tensors : names of float tensors
    patches : (n, side, side, 3) RGB

    Raises
    ------
    QuantizationError
        ONNX Runtime fails on it.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    outputs = {item.name for item in watched.graph.output}
    for name in tensors:
        if name not in outputs:
            watched.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = open_session(watched.SerializeToString(), optimized=False)
    batches = [patches[first : first + BATCH] for first in range(0, len(patches), BATCH)]

    lowest, highest = np.zeros(len(tensors)), np.zeros(len(tensors))
    per_patch = [0] * len(tensors)
    for batch in batches:
        for i, values in enumerate(session.run(tensors, {MODEL_INPUT: batch})):
            lowest[i] = min(lowest[i], float(values.min()))
            highest[i] = max(highest[i], float(values.max()))
            per_patch[i] = values.size // len(batch)
    largest = np.maximum(-lowest, highest)
    counts = np.zeros((len(tensors), N_BINS), dtype=np.int64)
    for batch in batches:
        for i, values in enumerate(session.run(tensors, {MODEL_INPUT: batch})):
            counts[i] += _count(values, float(largest[i]))
    return {
        name: Histogram(float(lowest[i]), float(highest[i]), counts[i], per_patch[i])
        for i, name in enumerate(tensors)
    }


def _count(values: F32, largest: float) -> I64:
    """Count magnitudes; those of 0, of which a ReLU makes many, say nothing of where to cut."""
    if largest == 0:
        return np.zeros(N_BINS, dtype=np.int64)
    magnitudes = np.abs(values[values != 0])
    bins = np.minimum((magnitudes * np.float32(N_BINS / largest)).astype(np.int64), N_BINS - 1)
    return np.bincount(bins, minlength=N_BINS).astype(np.int64)


def _least_divergence(counts: F64) -> int:
    """Find how many bins to keep, so that eight bits lose least.

    The magnitudes above a cut are counted in its last bin, and those below are told apart by
    `_N_LEVELS` levels; the cut with the least Kullback-Leibler divergence of the second distribution from the
    first is taken.

    References
    ----------
    S. Migacz, "8-bit inference with TensorRT", GPU Technology Conference (2017)
    """
    found, best = N_BINS, np.inf
    for kept in range(_N_LEVELS, N_BINS + 1, _STEP):
        inside = counts[:kept]
        reference = inside.copy()
        reference[-1] += counts[kept:].sum()
        edges = np.arange(_N_LEVELS) * kept // _N_LEVELS
        sums = np.add.reduceat(inside, edges)
        filled = np.add.reduceat((reference > 0).astype(np.float64), edges)
        level = np.searchsorted(edges, np.arange(kept), side="right") - 1
        spread = np.where(reference > 0, sums[level] / np.maximum(filled[level], 1.0), 0.0)
        divergence = _divergence(reference, spread)
        if divergence < best:
            found, best = kept, divergence
    return found


def _divergence(reference: F64, spread: F64) -> float:
    """Kullback-Leibler divergence of `spread` from `reference`; infinite where it has none of a value."""
    total = spread.sum()
    taken = reference > 0
    if total == 0 or (spread[taken] == 0).any():
        return float("inf")
    p, q = reference[taken] / reference.sum(), spread[taken] / total
    return float(np.sum(p * np.log(p / q)))
