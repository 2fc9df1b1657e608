"""Neighbors kept on disk: what is written in any order is read in any slices, and nothing is left behind."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from stinfer.errors import OutputWriteError
from stinfer.prediction import NeighborFile, Neighbors, iter_expression
from stinfer.sparse import Sparse


def made_up(n_spots: int, k: int) -> Neighbors:
    random = np.random.default_rng(0)
    indices = random.integers(0, 2**40, (n_spots, k))
    return Neighbors(indices, random.dirichlet(np.ones(k), n_spots).astype(np.float32))


def filled(kept: NeighborFile, all_of_them: Neighbors, batches: list[np.ndarray]) -> NeighborFile:
    for spots in batches:
        kept.write(spots, Neighbors(all_of_them.indices[spots], all_of_them.weights[spots]))
    return kept


ORDER = np.random.default_rng(1).permutation(97)
BATCHES = {
    "in order": [np.arange(0, 40), np.arange(40, 97)],
    "backwards": [np.arange(50, 97), np.arange(0, 50)],
    "at random": np.array_split(ORDER, 6),
    "one by one": [np.array([spot]) for spot in ORDER],
    "descending": [np.arange(97)[::-1]],
    "every other": [np.arange(0, 97, 2), np.arange(1, 97, 2)],
}


@pytest.mark.parametrize("batches", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("k", [1, 7])
def test_what_is_written_in_any_order_is_read_in_any_slices(
    tmp_path: Path, batches: list[np.ndarray], k: int
) -> None:
    neighbors = made_up(97, k)
    with NeighborFile(tmp_path, 97, k) as empty:
        kept = filled(empty, neighbors, batches)
        assert len(kept) == 97
        for part in (slice(None), slice(0, 1), slice(13, 60), slice(90, 200), slice(96, 97), slice(40, 40)):
            found = kept[part]
            np.testing.assert_array_equal(found.indices, neighbors.indices[part])
            np.testing.assert_array_equal(found.weights, neighbors.weights[part])
            assert (found.indices.dtype, found.weights.dtype) == (np.int64, np.float32)


def test_a_spot_may_be_written_again(tmp_path: Path) -> None:
    neighbors = made_up(10, 3)
    with NeighborFile(tmp_path, 10, 3) as kept:
        filled(kept, neighbors, [np.arange(10)])
        kept.write(np.array([4]), Neighbors(np.array([[1, 2, 3]]), np.array([[1, 0, 0]], dtype=np.float32)))
        assert kept[3:6].indices.tolist() == [
            neighbors.indices[3].tolist(), [1, 2, 3], neighbors.indices[5].tolist()
        ]  # fmt: skip


def test_expression_from_the_file_is_that_from_memory(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    dense = random.random((20, 5), dtype=np.float32)
    expression = Sparse(dense.ravel(), np.tile(np.arange(5), 20), np.arange(0, 101, 5), 5)
    neighbors = made_up(97, 4)
    neighbors = Neighbors(neighbors.indices % 20, neighbors.weights)
    with NeighborFile(tmp_path, 97, 4) as empty:
        kept = filled(empty, neighbors, BATCHES["at random"])
        blocks = [list(iter_expression(expression, np.arange(5), some)) for some in (neighbors, kept)]
    for (_, _, in_memory), (_, _, on_disk) in zip(*blocks, strict=True):
        np.testing.assert_array_equal(in_memory, on_disk)


def test_no_name_is_ever_there_and_nothing_is_left(tmp_path: Path) -> None:
    with NeighborFile(tmp_path, 1000, 10) as kept:
        filled(kept, made_up(1000, 10), [np.arange(1000)])
        if sys.platform != "win32":
            assert list(tmp_path.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputWriteError, match=r"cannot write .*none: No such file or directory"):
        NeighborFile(tmp_path / "none", 10, 3)


FULL = """
    import resource, sys
    from pathlib import Path
    import numpy as np
    from stinfer.errors import OutputWriteError
    from stinfer.prediction import NeighborFile, Neighbors
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    n = int(sys.argv[2])
    try:
        with NeighborFile(Path(sys.argv[1]), n, 10) as kept:
            for first in range(0, n, 50):
                kept.write(np.arange(first, first + 50), Neighbors(np.ones((50, 10)), np.ones((50, 10))))
    except OutputWriteError as error:
        print(error.what)
"""


@pytest.mark.parametrize("n_spots", [200, 5000])
def test_a_full_disk_is_told_with_the_folder_and_leaves_nothing(tmp_path: Path, n_spots: int) -> None:
    """A limit on the size of files fails every write beyond it, as a full disk does."""
    pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(FULL), str(tmp_path), str(n_spots)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = (
        f"cannot write {tmp_path}: File too large (the spots' neighbors are kept there while the run lasts)\n"
    )
    assert done.stdout == said
    assert list(tmp_path.iterdir()) == []
