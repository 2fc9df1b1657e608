"""One run at a time on an output, also after one was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stinfer.errors import OutputBusyError, OutputWriteError
from stinfer.files import name_tag, written_beside
from stinfer.lock import locked

HOLD = """
import sys, time
from pathlib import Path
from stinfer.files import written_together
from stinfer.lock import locked
paths = [Path(name) for name in sys.argv[1:]]
with locked(paths), written_together(paths) as beside:
    for path in paths:
        beside[path].write_text("half")
    print("held", flush=True)
    time.sleep(60)
"""


def hold(*outputs: Path) -> subprocess.Popen:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, *map(str, outputs)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "held\n"
    return child


def kill(child: subprocess.Popen) -> None:
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()


def test_a_second_run_on_one_output_is_told_who_has_it(tmp_path: Path) -> None:
    child = hold(tmp_path / "a", tmp_path / "b")
    try:
        for asked in ([tmp_path / "a"], [tmp_path / "c", tmp_path / "b"]):
            with pytest.raises(OutputBusyError) as caught, locked(asked):
                pass
            holder = f"process {child.pid} on {os.uname().nodename}"
            assert caught.value.what == f"output {asked[-1]} is being written by another run ({holder})"
        with locked([tmp_path / "c"]):
            pass
    finally:
        kill(child)


def test_a_killed_run_blocks_nobody_and_what_it_left_goes(tmp_path: Path) -> None:
    kill(hold(tmp_path / "a", tmp_path / "b"))
    kill(hold(tmp_path / "other"))
    assert len(list(tmp_path.glob("*.partial"))) == 3
    with locked([tmp_path / "a", tmp_path / "b"]):
        left = [path.name for path in tmp_path.glob("*.partial")]
        # Another output's, whose run may still be at it, stays.
        assert len(left) == 1
        assert left[0].startswith(f".stinfer-{name_tag(tmp_path / 'other')}-")
    with locked([tmp_path / "other"]):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_gone_afterwards_also_after_an_error(tmp_path: Path) -> None:
    lock = tmp_path / f".stinfer-{name_tag(tmp_path / 'a')}.lock"
    with pytest.raises(FileNotFoundError), locked([tmp_path / "a"]):
        lock.rename(lock).with_name("none").read_bytes()
    assert list(tmp_path.iterdir()) == []


def test_two_in_one_process_do_not_meet_either(tmp_path: Path) -> None:
    with (
        locked([tmp_path / "a"]),
        pytest.raises(OutputBusyError, match=f"process {os.getpid()}"),
        locked([tmp_path / "a"]),
    ):
        pass
    with locked([tmp_path / "a"]):
        pass


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"pid": "x"}', b'{"pid": 7, "host": "\\u001b"}', b"\xff" * 9]
)
def test_a_lock_that_names_nobody_is_still_a_lock(tmp_path: Path, content: bytes) -> None:
    with locked([tmp_path / "a"]):
        (tmp_path / f".stinfer-{name_tag(tmp_path / 'a')}.lock").write_bytes(content)
        with pytest.raises(OutputBusyError, match=r"another run( \(process 7\))?$"), locked([tmp_path / "a"]):
            pass


def test_a_folder_where_no_lock_can_be_is_told(tmp_path: Path) -> None:
    (tmp_path / f".stinfer-{name_tag(tmp_path / 'a')}.lock").mkdir()
    with pytest.raises(OutputWriteError, match=r"cannot write .*a: "), locked([tmp_path / "a"]):
        pass


def test_a_partial_of_a_partial_belongs_to_the_same_output(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with written_beside(path) as partial, written_beside(partial) as inner:
        start = f".stinfer-{name_tag(path)}-"
        assert partial.name.startswith(start)
        assert inner.name.startswith(start)
        assert partial != inner
