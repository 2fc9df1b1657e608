from __future__ import annotations

import hashlib
import subprocess
import sys
import textwrap

import pytest

from stinfer.errors import OutputExistsError, OutputWriteError, SettingError, SlideUnreadableError
from stinfer.files import refuse_existing, sha256_file, write_text, written_beside


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "a.txt"
    with written_beside(path) as partial:
        assert partial.parent == tmp_path
        partial.write_bytes(b"new")
        assert not path.exists()
    assert content(tmp_path) == {"a.txt": b"new"}


def test_an_existing_file_is_replaced_at_the_end_only(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    with written_beside(path) as partial:
        partial.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert content(tmp_path) == {"a.txt": b"new"}


def test_who_reads_the_old_file_reads_it_to_its_end(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        write_text(path, "new")
        assert reader.read() == b"old"


@pytest.mark.parametrize(
    "error", [RuntimeError("bug"), KeyboardInterrupt(), SettingError("a", "b"), SystemExit(3)], ids=repr
)
def test_a_failing_block_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), written_beside(path) as partial:  # noqa: PT012 - the block is the test
        partial.write_bytes(b"half of the n")
        raise error
    assert content(tmp_path) == {"a.txt": b"old"}


def test_the_systems_refusal_is_told_with_the_path_of_the_output(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(OutputWriteError) as caught, written_beside(path):
        raise OSError(28, "No space left on device", "/dev/x")
    assert caught.value.what == f"cannot write {path}: No space left on device"
    assert content(tmp_path) == {}


def test_a_known_error_that_is_an_oserror_too_stays_itself(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(SlideUnreadableError), written_beside(path):
        raise SlideUnreadableError(path, "a tile is damaged")
    assert content(tmp_path) == {}


@pytest.mark.parametrize("name", ["none/a.txt", "x" * 300])
def test_a_place_that_cannot_be_written(tmp_path, name):
    with pytest.raises(OutputWriteError, match="cannot write"):
        write_text(tmp_path / name, "text")
    assert content(tmp_path) == {}


def test_two_writers_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"
    with written_beside(path) as first, written_beside(path) as second:
        assert first != second
        first.write_bytes(b"1")
        second.write_bytes(b"2")
    assert content(tmp_path) == {"a.txt": b"1"}


def test_text_is_utf8_with_unix_line_ends(tmp_path):
    write_text(tmp_path / "a.txt", "µ\n2\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc2\xb5\n2\n"


def run_with_little_room(script, folder):
    """Run a script that may not write more than 20,000 bytes to a file, as on a full disk."""
    pytest.importorskip("resource")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
    return subprocess.run(
        [sys.executable, "-c", limit + textwrap.dedent(script), str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


WRITE_TEXT = """
    import sys
    from pathlib import Path
    from stinfer.errors import OutputWriteError
    from stinfer.files import write_text
    path = Path(sys.argv[1]) / "out"
    try:
        write_text(path, "x" * 100_000)
    except OutputWriteError as error:
        print(error.what)
"""
WRITE_HDF5 = """
    import sys
    from pathlib import Path
    import numpy as np
    from stinfer import h5ad
    from stinfer.errors import OutputWriteError
    path = Path(sys.argv[1]) / "out"
    try:
        with h5ad.new_file(path) as new:
            h5ad.write_array(new.root["obsm"], "a", np.ones((N, 10)))
    except OutputWriteError as error:
        print(error.what)
"""
WRITE_HDF5_BY_CHUNK = """
    import sys
    from pathlib import Path
    import numpy as np
    from stinfer import h5ad
    from stinfer.errors import OutputWriteError
    path = Path(sys.argv[1]) / "out"
    try:
        with h5ad.new_file(path) as new:
            matrix = h5ad.create_matrix(new.root, "X", (1000, 300), chunks=(256, 256))
            for start in range(0, 1000, 100):
                matrix[start : start + 100] = np.ones((100, 300))
                new.check()
    except OutputWriteError as error:
        print(error.what)
"""


@pytest.mark.parametrize(
    "script",
    [
        WRITE_TEXT,
        WRITE_HDF5.replace("N", "10_000"),
        WRITE_HDF5.replace("N", "220"),  # fails when the file is closed, not when the array is written
        WRITE_HDF5_BY_CHUNK,
    ],
    ids=["text", "array", "small array", "chunks"],
)
def test_a_full_disk_leaves_nothing_and_is_told(tmp_path, script):
    done = run_with_little_room(script, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"cannot write {tmp_path / 'out'}: ")
    assert done.stdout.count("\n") == 1
    assert content(tmp_path) == {}


def test_an_existing_output_is_refused_unless_it_may_be_replaced(tmp_path):
    path = tmp_path / "a.txt"
    refuse_existing(path, overwrite=False)
    path.write_bytes(b"old")
    with pytest.raises(OutputExistsError, match=r"a\.txt exists"):
        refuse_existing(path, overwrite=False)
    refuse_existing(path, overwrite=True)
    assert content(tmp_path) == {"a.txt": b"old"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_outputs_that_cannot_be_are_refused_before_any_work(tmp_path, overwrite):
    with pytest.raises(OutputWriteError, match="it is a folder"):
        refuse_existing(tmp_path, overwrite=overwrite)
    with pytest.raises(OutputWriteError, match=r"the folder .*none does not exist"):
        refuse_existing(tmp_path / "none" / "a.txt", overwrite=overwrite)


def test_an_output_name_longer_than_files_may_have_is_refused(tmp_path):
    with pytest.raises(OutputWriteError):
        refuse_existing(tmp_path / ("x" * 300), overwrite=False)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_, **__: False)
    with pytest.raises(OutputWriteError, match="cannot be written"):
        refuse_existing(tmp_path / "a.txt", overwrite=False)


def test_sha256_of_a_file(tmp_path):
    data = bytes(range(256)) * 5000  # more than one block of the reader
    (tmp_path / "a").write_bytes(data)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(data).hexdigest()
    (tmp_path / "b").write_bytes(b"")
    assert sha256_file(tmp_path / "b") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
