from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from stinfer.sparse import Sparse
from stinfer.stored_array import StoredArray

_PROJECT = Path(__file__).resolve().parents[2]


class SharedPath(type(Path())):
    """A path whose children must exist: `shared / "slides" / "a.svs"` skips the test if they do not."""

    def __truediv__(self, key):
        child = super().__truediv__(key)
        if not child.exists():
            pytest.skip(f"{child} is not there")
        return child


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data: STINFER_DATA, by default `shared` beside the project."""
    folder = SharedPath(os.environ.get("STINFER_DATA") or _PROJECT.parent / "shared")
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


@pytest.fixture(autouse=True)
def _logging_as_a_library_has_it() -> Iterator[None]:
    """As it is before a command has set it up, whatever ran before."""
    logger = logging.getLogger("stinfer")
    before = (logger.handlers, logger.level, logger.propagate)
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)
    yield
    logger.handlers, logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        msg = "the runtime must not use the network"
        raise AssertionError(msg)

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def in_file(tmp_path: Path) -> Callable[[Sparse], Sparse]:
    """Give expression whose values stay in a file, as those of a large bank."""

    def moved(held: Sparse) -> Sparse:
        path = tmp_path / "values.bin"
        path.write_bytes(held.data.tobytes() + held.indices.tobytes())
        return Sparse(
            StoredArray(path, 0, held.data.dtype, held.data.shape),
            StoredArray(path, held.data.nbytes, held.indices.dtype, held.indices.shape),
            held.indptr,
            held.n_columns,
        )

    return moved
