"""Decoded tiles, kept while neighboring boxes want them; threads decode side by side, but no tile twice."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")
# What keeping any tile takes beside its pixels.
_ENTRY_BYTES = 2048


class TileCache(Generic[T]):
    """Tiles that were used last, up to a number of bytes.

    Parameters
    ----------
    max_bytes : what is kept, beside the newest tile
    n_bytes : what a tile's pixels take
    """

    def __init__(self, max_bytes: int, n_bytes: Callable[[T], int]) -> None:
        self._max_bytes, self._pixel_bytes = max_bytes, n_bytes
        self._lock = threading.Lock()
        self._held: OrderedDict[Hashable, T] = OrderedDict()
        self._coming: dict[Hashable, Future[T]] = {}
        self._n_bytes = 0

    def get(self, key: Hashable, decode: Callable[[], T]) -> T:
        """Return a tile; the first that asks for it decodes it, and others wait.

        An error of `decode` is that of all who waited; the next who asks tries anew.
        """
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
            coming = self._coming.get(key)
            if coming is None:
                ours = self._coming[key] = Future[T]()
        if coming is not None:
            return coming.result()
        try:
            tile = decode()
        except BaseException as error:
            with self._lock:
                del self._coming[key]
            ours.set_exception(error)
            raise
        with self._lock:
            del self._coming[key]
            self._held[key] = tile
            self._n_bytes += self._taken(tile)
            while self._n_bytes > self._max_bytes and len(self._held) > 1:
                self._n_bytes -= self._taken(self._held.popitem(last=False)[1])
        ours.set_result(tile)
        return tile

    def _taken(self, tile: T) -> int:
        return self._pixel_bytes(tile) + _ENTRY_BYTES
