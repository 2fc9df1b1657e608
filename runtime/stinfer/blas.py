"""Matrix products of one thread each, where threads of our own share the cores."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from threadpoolctl import threadpool_limits


@contextlib.contextmanager
def one_thread_a_product() -> Iterator[None]:
    """Keep numpy's matrix products to one thread each while the block runs.

    BLAS libraries share a product between threads that wait busily for each other and for the next one:
    beside threads that encode, or products of a millisecond, that takes more than it gives. And where a sum
    is cut, so its last bits, would depend on the number of cores.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        yield
