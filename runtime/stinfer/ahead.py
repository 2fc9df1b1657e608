"""Work one step ahead, in a thread of its own: the next region is read while this one is encoded."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()


def ahead(steps: Generator[T, None, None], depth: int = 1) -> Generator[T, None, None]:
    """Give what a generator gives, made in another thread while the caller works on what came before.

    What it raises comes out here, as itself. However this ends, its thread has ended and it is closed before
    the caller goes on: the step that it is at is waited for, and no other is begun.

    Parameters
    ----------
    steps : run in a thread of its own from now on
    depth : steps that may be ready and wait
    """
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="stinfer-ahead")
    try:
        ready: deque[Future[Any]] = deque(pool.submit(next, steps, _END) for _ in range(depth))
        while (step := ready.popleft().result()) is not _END:
            ready.append(pool.submit(next, steps, _END))
            yield step
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        steps.close()
