"""Work in other threads: regions, or patches, are read and encoded by several at once."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Protocol, TypeVar

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


class Meanwhile(Protocol):
    """Takes things to do in another thread, one after the other."""

    def __call__(self, task: Callable[[], T], /) -> Future[T]:
        """Return what will come of it, or what it raises, once it is asked for."""


@contextlib.contextmanager
def meanwhile() -> Iterator[Meanwhile]:
    """Do things in another thread while the block runs; it has ended when the block has.

    What is being done then is waited for, and nothing else is begun.
    """
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="stinfer-meanwhile")
    try:
        yield pool.submit
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def unless_failed(steps: Iterable[T], tasks: Sequence[Future[Any]]) -> Generator[T, None, None]:
    """Give steps, and raise what a task has raised meanwhile as soon as it has, or when all have ended."""
    for step in steps:
        for task in tasks:
            if task.done():
                task.result()
        yield step
    for task in tasks:
        task.result()
