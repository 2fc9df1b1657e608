"""Checkpoints byte by byte: what is read back, what a torn or altered file gives, what is never used."""

from __future__ import annotations

import hashlib
import json
import logging
import resource
import struct
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest

from stinfer.checkpoint import Checkpoint, checkpoint_path, refuse_foreign_file
from stinfer.contract import F32
from stinfer.errors import OutputExistsError, OutputWriteError
from stinfer.step_file import StepFile, own_outputs, read_key

SHAPES = [(2, 3), (1, 3), (4, 3), (2, 3)]
KEY = bytes(range(32))
HEADER_BYTES = 19 + 4 + 32 + 32
RECORD_BYTES = [4 + 8 + 4 * rows * columns + 32 for rows, columns in SHAPES]


def values_of(step: int) -> F32:
    return np.random.default_rng(step).normal(size=SHAPES[step]).astype(np.float32)


def write_file(path: Path, n_steps: int, key: bytes = KEY) -> None:
    file = StepFile.create(path, key, SHAPES)
    for step in range(n_steps):
        file.add(values_of(step))
    file.close()


class Computed:
    """Computes steps, and keeps which."""

    def __init__(self, failing_at: int = -1) -> None:
        self.steps: list[int] = []
        self._failing_at = failing_at

    def __call__(self, first: int) -> Generator[F32, None, None]:
        for step in range(first, len(SHAPES)):
            if step == self._failing_at:
                raise KeyboardInterrupt
            self.steps.append(step)
            yield values_of(step)


def run(path: Path, recipe: dict | None = None, plan: dict | None = None, failing_at: int = -1) -> list[int]:
    """Run all steps, check their values, and return which were computed."""
    computed = Computed(failing_at)
    with Checkpoint(path, recipe or {"slide": "a"}) as checkpoint:
        found = list(checkpoint.steps(plan or {"regions": [1, 2]}, SHAPES, "regions", computed))
    for step, values in enumerate(found):
        np.testing.assert_array_equal(values, values_of(step))
    assert len(found) == len(SHAPES)
    return computed.steps


# --- the file -------------------------------------------------------------------------------------


def test_the_file_is_as_its_format_says(tmp_path: Path) -> None:
    write_file(tmp_path / "c", 2)
    data = (tmp_path / "c").read_bytes()
    head = b"stinfer checkpoint\n" + struct.pack("<I", 1) + KEY
    by_hand = head + hashlib.sha256(head).digest()
    for step in range(2):
        values = values_of(step).astype("<f4").tobytes()
        record = struct.pack("<IQ", step, len(values)) + values
        by_hand += record + hashlib.sha256(KEY + record).digest()
    assert data == by_hand
    assert read_key(tmp_path / "c") == KEY


@pytest.mark.parametrize("n_steps", range(5))
def test_steps_are_read_back_and_the_next_is_added_behind_them(tmp_path: Path, n_steps: int) -> None:
    write_file(tmp_path / "c", n_steps)
    file = StepFile(tmp_path / "c", KEY, SHAPES)
    assert file.n_done == n_steps
    for step in range(n_steps, 4):
        file.add(values_of(step))
    for step in (3, 0, 2, 1):
        np.testing.assert_array_equal(file.read(step), values_of(step))
    file.close()
    write_file(tmp_path / "whole", 4)
    assert (tmp_path / "c").read_bytes() == (tmp_path / "whole").read_bytes()


def test_wherever_a_file_is_cut_its_whole_steps_count(tmp_path: Path) -> None:
    write_file(tmp_path / "whole", 4)
    data = (tmp_path / "whole").read_bytes()
    ends = np.cumsum([HEADER_BYTES, *RECORD_BYTES])
    assert ends[-1] == len(data)
    for length in range(HEADER_BYTES, len(data)):
        (tmp_path / "c").write_bytes(data[:length])
        file = StepFile(tmp_path / "c", KEY, SHAPES)
        n_whole = int((ends[1:] <= length).sum())
        assert file.n_done == n_whole
        file.close()
        # The torn step is gone, so that the next begins where it must.
        assert (tmp_path / "c").stat().st_size == ends[n_whole]
    for length in range(HEADER_BYTES):
        (tmp_path / "c").write_bytes(data[:length])
        assert read_key(tmp_path / "c") is None


def test_whatever_byte_is_altered_no_altered_step_counts(tmp_path: Path) -> None:
    write_file(tmp_path / "whole", 4)
    data = (tmp_path / "whole").read_bytes()
    ends = np.cumsum([HEADER_BYTES, *RECORD_BYTES])
    for place in range(len(data)):
        (tmp_path / "c").write_bytes(data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :])
        if place < HEADER_BYTES:
            assert read_key(tmp_path / "c") is None
            continue
        file = StepFile(tmp_path / "c", KEY, SHAPES)
        assert file.n_done == int((ends[1:] <= place).sum())
        file.close()


def test_a_step_of_another_file_or_place_does_not_count(tmp_path: Path) -> None:
    write_file(tmp_path / "mine", 1)
    write_file(tmp_path / "other", 2, key=bytes(32))
    mine, other = (tmp_path / "mine").read_bytes(), (tmp_path / "other").read_bytes()
    second = other[HEADER_BYTES + RECORD_BYTES[0] :]
    for added in (second, mine[HEADER_BYTES:]):
        (tmp_path / "c").write_bytes(mine + added)
        file = StepFile(tmp_path / "c", KEY, SHAPES)
        assert file.n_done == 1
        file.close()


def test_a_step_that_claims_more_than_memory_holds_is_not_read(tmp_path: Path) -> None:
    write_file(tmp_path / "c", 1)
    with (tmp_path / "c").open("ab") as file:
        file.write(struct.pack("<IQ", 1, 2**62))
    opened = StepFile(tmp_path / "c", KEY, SHAPES)
    assert opened.n_done == 1
    opened.close()


def test_values_that_no_encoder_gives_do_not_count(tmp_path: Path) -> None:
    file = StepFile.create(tmp_path / "c", KEY, SHAPES)
    file.add(values_of(0))
    file.add(np.full(SHAPES[1], np.nan, dtype=np.float32))
    file.close()
    opened = StepFile(tmp_path / "c", KEY, SHAPES)
    assert opened.n_done == 1
    opened.close()


# --- which of a run's outputs are its own ---------------------------------------------------------


def test_only_the_very_files_that_were_noted_are_own(tmp_path: Path) -> None:
    outputs = [tmp_path / name for name in ("a", "b", "c")]
    partials = {path: tmp_path / f"{path.name}.partial" for path in outputs}
    for path, partial in partials.items():
        partial.write_text(path.name)
    file = StepFile.create(tmp_path / "k", KEY, SHAPES)
    file.add(values_of(0))
    assert own_outputs(tmp_path / "k", outputs) == set()
    file.note_outputs(partials)
    file.close()
    partials[outputs[0]].rename(outputs[0])  # killed here
    outputs[1].write_text("b")  # the user's, of the same length
    assert own_outputs(tmp_path / "k", outputs) == {outputs[0]}
    # What is noted is no step, and goes when the run goes on.
    again = StepFile(tmp_path / "k", KEY, SHAPES)
    assert again.n_done == 1
    again.close()
    assert own_outputs(tmp_path / "k", outputs) == set()


@pytest.mark.parametrize("tail", [b"", b"x", b"\0" * 200, struct.pack("<I8s", 2**31, b"outputs\n")])
def test_a_file_that_notes_nothing_or_nonsense_owns_nothing(tmp_path: Path, tail: bytes) -> None:
    write_file(tmp_path / "k", 1)
    with (tmp_path / "k").open("ab") as file:
        file.write(tail)
    (tmp_path / "a").write_text("a")
    assert own_outputs(tmp_path / "k", [tmp_path / "a"]) == set()


@pytest.mark.parametrize("listed", [b"[1]", b"null", b"{", b"[" * 100_000, json.dumps({"a": 3}).encode()])
def test_a_crafted_note_owns_nothing(tmp_path: Path, listed: bytes) -> None:
    write_file(tmp_path / "k", 1)
    with (tmp_path / "k").open("ab") as file:
        file.write(
            listed + hashlib.sha256(KEY + listed).digest() + struct.pack("<I8s", len(listed), b"outputs\n")
        )
    (tmp_path / "a").write_text("a")
    assert own_outputs(tmp_path / "k", [tmp_path / "a"]) == set()


# --- a run's checkpoint ---------------------------------------------------------------------------


def test_a_run_that_ends_well_leaves_nothing(tmp_path: Path) -> None:
    assert run(tmp_path / "c") == [0, 1, 2, 3]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing_at", [1, 2, 3])
def test_an_interrupted_run_goes_on_where_it_was_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, failing_at: int
) -> None:
    path = tmp_path / "c"
    with caplog.at_level(logging.WARNING, "stinfer"), pytest.raises(KeyboardInterrupt):
        run(path, failing_at=failing_at)
    assert caplog.messages == [
        f"{failing_at} of 4 regions are kept in {path}: run the same command again to go on there"
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING, "stinfer"):
        assert run(path) == list(range(failing_at, 4))
    assert caplog.messages == [f"going on from {path}: {failing_at} of 4 regions are done"]
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_before_its_first_step_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "c", failing_at=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other", [{"recipe": {"slide": "b"}}, {"plan": {"regions": [1, 3]}}], ids=str)
def test_a_checkpoint_of_something_else_is_not_used_but_replaced_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, other: dict
) -> None:
    path = tmp_path / "c"
    with pytest.raises(KeyboardInterrupt):
        run(path, failing_at=2, **other)
    before = path.read_bytes()
    caplog.clear()
    with caplog.at_level(logging.WARNING, "stinfer"):
        with pytest.raises(KeyboardInterrupt):
            run(path, failing_at=0)
        assert path.read_bytes() == before  # it is still of use to the run it is of
        assert caplog.messages == [
            f"checkpoint {path} is of another slide, bank or setting: it is not used, and will be replaced"
        ]
        assert run(path) == [0, 1, 2, 3]
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_with_a_damaged_head_is_replaced_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "c"
    with pytest.raises(KeyboardInterrupt):
        run(path, failing_at=2)
    data = path.read_bytes()
    for damaged in (data[:40], data[:50] + b"\0\0" + data[52:], data[:19] + struct.pack("<I", 2) + data[23:]):
        path.write_bytes(damaged)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "stinfer"):
            assert run(path) == [0, 1, 2, 3]
        assert caplog.messages == [f"checkpoint {path} is damaged: it is not used, and will be replaced"]


def test_another_file_in_its_place_is_refused(tmp_path: Path) -> None:
    path = checkpoint_path(tmp_path / "p.h5ad")
    assert path == tmp_path / "p.h5ad.checkpoint"
    refuse_foreign_file(path)
    path.write_text("precious")
    with pytest.raises(OutputExistsError, match=r"p\.h5ad\.checkpoint exists"):
        refuse_foreign_file(path)


def test_a_full_disk_is_told_and_the_steps_before_it_stay(tmp_path: Path) -> None:
    path = tmp_path / "c"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    room = HEADER_BYTES + sum(RECORD_BYTES[:2])
    resource.setrlimit(resource.RLIMIT_FSIZE, (room + 50, before[1]))
    try:
        with pytest.raises(OutputWriteError) as caught:
            run(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.what == f"cannot write {path}: File too large"
    assert path.stat().st_size == room
    assert run(path) == [2, 3]
