"""Work done in other threads: order, how far ahead, and that nothing is left however it ends."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stinfer.ahead import in_parallel, meanwhile, unless_failed
from stinfer.errors import SlideUnreadableError


def stinfer_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("stinfer")]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert stinfer_threads() == []


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Heed Ctrl-C also where a shell has started the tests in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def wait_until(condition) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_caller_that_fails_ends_the_threads() -> None:
    begun: list[int] = []
    given = in_parallel((lambda i=i: begun.append(i) or i for i in range(1000)), 2)

    def use() -> None:
        with contextlib.closing(given):
            for i in given:
                if i == 4:
                    msg = "the caller's"
                    raise RuntimeError(msg)

    with pytest.raises(RuntimeError, match="the caller's"):
        use()
    assert stinfer_threads() == []
    assert len(begun) <= 9


@pytest.mark.usefixtures("_interruptible")
def test_ctrl_c_while_waiting_for_a_task_is_prompt_and_ends_the_threads() -> None:
    waiting, go_on = threading.Event(), threading.Event()
    begun: list[int] = []

    def task(i: int):
        def work() -> int:
            begun.append(i)
            if i == 1:
                waiting.set()
                go_on.wait(10)
            return i

        return work

    def interrupt() -> None:
        waiting.wait(10)
        # A signal to the thread that waits wakes it, as one from the keyboard does.
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.2)
        go_on.set()

    given = in_parallel((task(i) for i in range(1000)), 2)
    other = threading.Thread(target=interrupt)
    other.start()
    with pytest.raises(KeyboardInterrupt):
        list(given)
    other.join()
    assert stinfer_threads() == []
    # Five were asked for before the second was waited for; none was begun after.
    assert len(begun) <= 5


def test_tasks_of_several_threads_come_in_their_order() -> None:
    """The first task ends last: nothing is given before it."""
    go_on = threading.Event()
    done: list[int] = []

    def task(i: int):
        def work() -> int:
            if i == 0:
                go_on.wait(10)
            done.append(i)
            if i == 1:
                go_on.set()
            return i * i

        return work

    assert list(in_parallel((task(i) for i in range(20)), 2)) == [i * i for i in range(20)]
    assert done[0] == 1


def test_no_more_tasks_are_begun_than_twice_the_threads() -> None:
    begun: list[int] = []
    given = in_parallel((lambda i=i: begun.append(i) for i in range(100)), 3)
    next(given)
    time.sleep(0.05)
    assert len(begun) <= 7
    given.close()


def test_a_task_that_fails_comes_in_its_turn() -> None:
    def fail() -> int:
        raise SlideUnreadableError(Path("slide.svs"), "a tile is damaged")

    given = in_parallel([lambda: 1, fail, lambda: 3], 2)
    assert next(given) == 1
    with pytest.raises(SlideUnreadableError, match="a tile is damaged"):
        next(given)


def test_no_tasks_give_nothing() -> None:
    assert list(in_parallel([], 2)) == []


def test_what_is_done_meanwhile_has_ended_with_the_block() -> None:
    go_on = threading.Event()

    def slow() -> int:
        go_on.wait(10)
        return 7

    with meanwhile() as also:
        found = also(slow)
        assert not found.done()
        go_on.set()
    assert found.result() == 7
    with meanwhile() as also:
        failed = also(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        failed.result()


def test_things_meanwhile_are_done_one_after_the_other_and_none_is_begun_after_the_block() -> None:
    waiting = threading.Event()
    done: list[int] = []

    def slow() -> None:
        waiting.set()
        time.sleep(0.1)
        done.append(1)

    def block() -> None:
        with meanwhile() as also:
            also(slow)
            also(lambda: done.append(2))
            waiting.wait(10)
            msg = "the block's"
            raise RuntimeError(msg)

    with pytest.raises(RuntimeError, match="the block's"):
        block()
    assert done == [1]
    with meanwhile() as also:
        also(slow)
        also(lambda: done.append(3)).result()
    assert done == [1, 1, 3]


def test_steps_go_on_until_a_task_meanwhile_has_failed() -> None:
    go_on = threading.Event()

    def fail() -> None:
        go_on.wait(10)
        raise SlideUnreadableError(Path("slide.svs"), "a tile is damaged")

    with meanwhile() as also:
        tasks = [also(fail), also(lambda: None)]
        given = unless_failed(range(5), tasks)
        assert [next(given), next(given)] == [0, 1]
        go_on.set()
        wait_until(tasks[0].done)
        with pytest.raises(SlideUnreadableError, match="a tile is damaged"):
            next(given)
        wait_until(tasks[1].done)
        assert list(unless_failed(range(3), tasks[1:])) == [0, 1, 2]


def test_the_last_step_is_followed_by_the_end_of_all_tasks() -> None:
    ended = []
    with meanwhile() as also:
        tasks = [also(lambda: time.sleep(0.1)), also(lambda: ended.append(1)), also(lambda: 1 // 0)]
        given = unless_failed(range(2), tasks)
        assert [next(given), next(given)] == [0, 1]
        with pytest.raises(ZeroDivisionError):
            next(given)
    assert ended == [1]
