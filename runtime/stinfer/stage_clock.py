"""Where the time of a run goes: seconds by stage, summed over its threads."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

# In the order in which a slide goes through them.
STAGES = ("open", "tissue", "read", "resample", "encode", "windows", "search", "average", "write")
# Where a thread is that waits for others within a stage: it is none, and not told.
WAITING = "waiting"


class StageClock:
    """Sums up how long threads are in each stage; a stage within another is not counted for the outer one.

    Parameters
    ----------
    now : gives seconds that go up

    Attributes
    ----------
    seconds : dict of float
        Of each stage that was entered; of stages that several threads are in, the sum over them.
    first : dict of float
        When each stage was entered for the first time, as `now` has it.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self.seconds: dict[str, float] = {}
        self.first: dict[str, float] = {}
        self._now = now
        self._lock = threading.Lock()
        self._thread = threading.local()

    @contextlib.contextmanager
    def during(self, stage: str) -> Iterator[None]:
        """Count what the block takes for a stage."""
        outer: list[str] = getattr(self._thread, "stages", [])
        self._turn(outer[-1] if outer else None)
        with self._lock:
            self.first.setdefault(stage, self._thread.since)
        self._thread.stages = [*outer, stage]
        try:
            yield
        finally:
            self._turn(stage)
            self._thread.stages = outer

    def _turn(self, ending: str | None) -> None:
        """Count the time since the last turn of this thread for the stage that it was in."""
        now = self._now()
        if ending is not None:
            with self._lock:
                self.seconds[ending] = self.seconds.get(ending, 0.0) + now - self._thread.since
        self._thread.since = now


def timed(clock: StageClock | None, stage: str) -> AbstractContextManager[None]:
    """Count what the block takes for a stage, if there is a clock."""
    return nullcontext() if clock is None else clock.during(stage)
