"""Which genes were measured for which references, in a bank of several origins. Imports numpy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stinfer.contract import I64, Bool


@dataclass(frozen=True)
class Coverage:
    """What each origin, a bank that was merged into this one, measures.

    A value that is not stored is 0 where the reference's origin measures the gene, and unknown elsewhere.

    Parameters
    ----------
    origin_of : (n_refs,), origin of each reference, 0 to n_origins - 1
    measured : (n_origins, n_genes)
    """

    origin_of: I64
    measured: Bool

    @property
    def n_origins(self) -> int:
        """Number of origins."""
        return len(self.measured)

    def is_partial(self, chosen: I64) -> bool:
        """Say whether some origin does not measure some of these genes, (n,) columns."""
        return not bool(self.measured[:, chosen].all())

    def groups(self, chosen: I64) -> list[tuple[Bool, I64]]:
        """Sort genes by what measures them.

        Parameters
        ----------
        chosen : (n,), columns

        Returns
        -------
        pairs of (n_origins,), the origins that measure a group's genes, and the group's positions in
        `chosen`, ascending; groups in the order of their first genes
        """
        patterns, first, which = np.unique(
            self.measured[:, chosen].T, axis=0, return_index=True, return_inverse=True
        )
        which = which.ravel()
        return [(patterns[i], np.flatnonzero(which == i)) for i in np.argsort(first)]

    def n_measuring(self) -> I64:
        """Return of how many references each gene was measured, (n_genes,)."""
        sizes = np.bincount(self.origin_of, minlength=self.n_origins)
        return np.asarray(sizes @ self.measured, dtype=np.int64)

    def rows(self, chosen: I64) -> Coverage:
        """Return that of some references, (n,)."""
        return Coverage(self.origin_of[chosen], self.measured)
