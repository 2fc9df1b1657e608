"""Products of one thread each, as another program sees them."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import threadpoolctl

from stinfer.blas import one_thread_a_product


def n_threads() -> int:
    """Ask how many threads numpy's OpenBLAS takes."""
    np.ones((2, 2)) @ np.ones((2, 2))
    found = [
        int(pool["num_threads"])
        for pool in threadpoolctl.threadpool_info()
        if pool["internal_api"] == "openblas" and "numpy" in pool["filepath"]
    ]
    if not found:
        pytest.skip("numpy has no OpenBLAS of its own here")
    return found[0]


@pytest.fixture(autouse=True)
def three_threads():
    n_threads()
    with threadpoolctl.threadpool_limits(3, user_api="blas"):
        yield


def test_products_take_one_thread_within_the_block_and_what_they_took_before_behind_it() -> None:
    with one_thread_a_product():
        assert n_threads() == 1
    assert n_threads() == 3


def test_an_error_within_the_block_ends_it_too() -> None:
    with pytest.raises(ZeroDivisionError), one_thread_a_product():
        divmod(1, 0)
    assert n_threads() == 3


def test_what_blocks_of_several_threads_took_is_given_back() -> None:
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with one_thread_a_product():
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    with one_thread_a_product():
        thread.start()
        assert entered.wait(60)
        assert n_threads() == 1
    leave.set()
    thread.join()
    assert n_threads() == 3
