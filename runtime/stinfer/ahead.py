"""Work in other threads: regions, or patches, are read and encoded by several at once."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def in_parallel(tasks: Iterable[Callable[[], T]], n_workers: int) -> Generator[T, None, None]:
    """Give what tasks give, in their order, done by several threads while the caller goes on.

    What a task raises comes out in its turn, as itself. However this ends, the threads have ended before the
    caller goes on: tasks that were begun are waited for, and no other is begun.

    Parameters
    ----------
    tasks : each is done by one thread; they are asked for in the caller's
    n_workers : threads; twice as many tasks are under way or wait to be given
    """
    pool = ThreadPoolExecutor(max_workers=n_workers, thread_name_prefix="stinfer-worker")
    try:
        pending = iter(tasks)
        begun: deque[Future[T]] = deque(pool.submit(task) for task in islice(pending, 2 * n_workers))
        while begun:
            found = begun.popleft().result()
            begun.extend(pool.submit(task) for task in islice(pending, 1))
            yield found
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def meanwhile(task: Callable[[], T]) -> Iterator[Future[T]]:
    """Do something in another thread while the block runs; it has ended when the block has.

    Yields
    ------
    what will come of it, or what it raises, once it is asked for
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="stinfer-meanwhile") as pool:
        yield pool.submit(task)
