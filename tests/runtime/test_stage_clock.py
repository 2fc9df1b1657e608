"""Where the time of a run goes, on a clock that ticks by hand."""

from __future__ import annotations

import threading

import pytest

from stinfer.stage_clock import StageClock, timed


class Now:
    """Seconds that go up when they are told to."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_a_stage_within_another_is_not_counted_for_the_outer_one() -> None:
    now = Now()
    clock = StageClock(now)
    now.seconds += 5  # of no stage
    with clock.during("resample"):
        now.seconds += 1
        with clock.during("read"):
            now.seconds += 4
        now.seconds += 2
    with clock.during("read"):
        now.seconds += 8
    assert clock.seconds == {"resample": 3.0, "read": 12.0}
    assert clock.first == {"resample": 105.0, "read": 106.0}


def test_threads_are_summed() -> None:
    now = Now()
    clock = StageClock(now)
    inside, go_on = threading.Barrier(3), threading.Barrier(3)

    def encode() -> None:
        with clock.during("encode"):
            inside.wait(10)
            go_on.wait(10)

    threads = [threading.Thread(target=encode) for _ in range(2)]
    for thread in threads:
        thread.start()
    inside.wait(10)
    now.seconds += 3
    go_on.wait(10)
    for thread in threads:
        thread.join()
    assert clock.seconds == {"encode": 6.0}


def test_what_fails_is_counted_too() -> None:
    now = Now()
    clock = StageClock(now)

    def fail() -> None:
        with clock.during("read"):
            now.seconds += 2
            raise RuntimeError("damaged")  # noqa: EM101

    with pytest.raises(RuntimeError, match="damaged"):
        fail()
    assert clock.seconds == {"read": 2.0}


def test_without_a_clock_nothing_is_counted() -> None:
    with timed(None, "read"):
        pass
    now = Now()
    clock = StageClock(now)
    with timed(clock, "read"):
        now.seconds += 1
    assert clock.seconds == {"read": 1.0}
