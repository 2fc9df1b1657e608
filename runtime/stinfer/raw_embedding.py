"""A bank's embeddings before its metric, rounded: what a metric is fitted to anew when banks are merged.

Prediction does not read them. Imports numpy alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stinfer.contract import F32

I16 = npt.NDArray[np.int16]
_LARGEST = 32_767
# Rows that are converted at once.
_BLOCK = 1024


@dataclass(frozen=True)
class RawEmbedding:
    """Embeddings as whole multiples of a step of each component's own, counted from its middle.

    Parameters
    ----------
    codes : (n_refs, dim), -32,767 to 32,767
    middle : (dim,)
    step : (dim,), a 65,534th of the component's range; 0 where that is
    """

    codes: I16
    middle: F32
    step: F32

    @classmethod
    def of(cls, embeddings: F32) -> RawEmbedding:
        """Round embeddings, (n_refs, dim), each number by half a step at the most."""
        low = embeddings.min(axis=0).astype(np.float64)
        high = embeddings.max(axis=0).astype(np.float64)
        middle = ((low + high) / 2).astype(np.float32)
        # From the middle as it is kept, so that both ends are within reach.
        step = (np.maximum(high - middle, middle - low) / _LARGEST).astype(np.float32)
        codes = np.empty(embeddings.shape, dtype=np.int16)
        divisor = np.where(step > 0, step, 1).astype(np.float64)
        for first in range(0, len(codes), _BLOCK):
            rows = slice(first, first + _BLOCK)
            steps = np.rint((embeddings[rows].astype(np.float64) - middle) / divisor)
            codes[rows] = np.clip(steps, -_LARGEST, _LARGEST)
        return cls(codes, middle, step)

    def restored(self) -> F32:
        """Return the embeddings, (n_refs, dim)."""
        found = np.empty(self.codes.shape, dtype=np.float32)
        for first in range(0, len(found), _BLOCK):
            rows = slice(first, first + _BLOCK)
            found[rows] = self.middle + self.step * self.codes[rows].astype(np.float32)
        return found
