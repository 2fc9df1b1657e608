"""The cache of decoded tiles."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from stinfer.tile_cache import TileCache


def test_what_was_not_used_for_longest_goes_first():
    cache = TileCache[bytes](100_000, len)
    decoded = []

    def tile(name, n_bytes=40_000):
        return cache.get(name, lambda: decoded.append(name) or bytes(n_bytes))

    tile("a"), tile("b"), tile("a"), tile("c")  # 120,000 bytes: b goes
    tile("a"), tile("b")
    assert decoded == ["a", "b", "c", "b"]


def test_a_tile_larger_than_the_cache_is_kept_alone():
    cache = TileCache[bytes](100_000, len)
    cache.get("small", lambda: bytes(30_000))
    cache.get("large", lambda: bytes(500_000))
    assert cache.get("large", lambda: b"") == bytes(500_000)
    assert cache.get("small", lambda: b"again") == b"again"


def test_tiles_without_pixels_are_not_kept_without_end():
    cache = TileCache[None](100_000, lambda _: 0)
    decoded = []
    for key in [*range(1000), 0]:
        cache.get(key, lambda key=key: decoded.append(key))
    assert decoded == [*range(1000), 0]


def test_two_tiles_are_decoded_at_a_time():
    cache = TileCache[int](100_000, lambda _: 1)
    both = threading.Barrier(2, timeout=20)
    with ThreadPoolExecutor(2) as pool:
        waits = [pool.submit(cache.get, key, both.wait) for key in "ab"]
        assert sorted(wait.result() for wait in waits) == [0, 1]


def test_who_waits_for_a_tile_has_its_error_and_the_next_tries_anew():
    cache = TileCache[int](100_000, lambda _: 1)
    error = ValueError("damaged")
    begun, go_on = threading.Event(), threading.Event()

    def fail():
        begun.set()
        go_on.wait(20)
        raise error

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get, "a", fail)
        begun.wait(20)
        second = pool.submit(cache.get, "a", lambda: 7)
        go_on.set()
        with pytest.raises(ValueError, match="damaged"):
            first.result()
        # It waited, or came after the error.
        assert second.exception() is error or second.result() == 7
    assert cache.get("a", lambda: 8) in (7, 8)
