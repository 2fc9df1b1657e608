"""The installer of a folder of wheels, run for real on a tiny program that is called stinfer."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from stinfer_export.errors import PackagingError
from stinfer_export.packaging import wheelhouse
from stinfer_export.packaging.sums import write_sums
from stinfer_export.packaging.tools import folder_beside, run_tool
from stinfer_export.packaging.wheels import read_wheel

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
LETTERS = "Tür & (Ω) %x%"


def write_program(folder):
    """Write a wheel whose command stinfer-run prints a version."""
    path = folder / "stinfer-9.8-py3-none-any.whl"
    info = "stinfer-9.8.dist-info"
    files = {
        "stinfer.py": "def run():\n    print('stinfer, version 9.8')\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: stinfer\nVersion: 9.8\nProvides-Extra: cpu\n\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nstinfer-run = stinfer:run\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as file:
        for name, text in files.items():
            file.writestr(name, text)
    return path


def write_wheelhouse(folder, python=HERE, platform=None):
    (folder / "wheels").mkdir(parents=True)
    (folder / "banks").mkdir()
    (folder / "banks/b.h5").write_bytes(b"bank")
    wheel = read_wheel(write_program(folder / "wheels"))
    target = wheelhouse._Target(platform or wheelhouse.this_platform(), python)
    wheelhouse._write_texts(folder, [wheel], target, wheel.version)
    write_sums(folder)
    return folder


def install(folder, *arguments, **environment):
    return subprocess.run(
        ["sh", folder / "install.sh", *arguments],
        capture_output=True,
        text=True,
        env={
            "PATH": os.environ["PATH"],
            "PYTHON": sys.executable,
            "PIP_INDEX_URL": "http://127.0.0.1:9",
            **environment,
        },
        timeout=120,
        check=False,
    )


@pytest.mark.skipif(os.name == "nt", reason="sh")
def test_it_installs_into_a_folder_of_any_name(tmp_path):
    folder = write_wheelhouse(tmp_path / LETTERS / "wheels here")
    target = tmp_path / LETTERS / "the program"
    done = install(folder, target)
    assert done.returncode == 0, done.stderr
    assert f"A bank: {target / 'banks/b.h5'}\n" in done.stdout
    command = target / "bin/stinfer-run"
    shown = subprocess.run([command], capture_output=True, text=True, env={}, check=True).stdout
    assert shown == "stinfer, version 9.8\n"
    assert (target / "banks/b.h5").read_bytes() == b"bank"

    again = install(folder, target)
    assert again.returncode == 1
    assert f"{target} exists; choose another folder" in again.stderr
    assert (target / "bin/stinfer-run").exists()


@pytest.mark.parametrize("name", ["banks/b.h5", "wheels/stinfer-9.8-py3-none-any.whl", "requirements.txt"])
def test_one_flipped_byte_is_refused_by_name(tmp_path, name):
    folder = write_wheelhouse(tmp_path / "w")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    done = install(folder, tmp_path / "p")
    assert (done.returncode, done.stderr) == (
        1,
        f"Error: {name} was altered or damaged: copy the folder again\nNothing was installed.\n",
    )
    assert not (tmp_path / "p").exists()


def test_a_lost_file_and_one_too_many_are_refused_by_name(tmp_path):
    folder = write_wheelhouse(tmp_path / "w")
    (folder / "wheels/extra-1-py3-none-any.whl").write_bytes(b"")
    assert "wheels/extra-1-py3-none-any.whl does not belong here" in install(folder, tmp_path / "p").stderr
    (folder / "banks/b.h5").unlink()
    assert "banks/b.h5 is not there" in install(folder, tmp_path / "p").stderr


def test_another_python_or_system_is_refused(tmp_path):
    other = write_wheelhouse(tmp_path / "old", python="3.4")
    done = install(other, tmp_path / "p")
    assert done.returncode == 1
    assert "Error: Python 3.4 is not here" in done.stderr
    foreign = write_wheelhouse(tmp_path / "foreign", platform="win_amd64")
    assert "and the wheels are for win_amd64" in install(foreign, tmp_path / "p").stderr
    assert not (tmp_path / "p").exists()


def test_a_failed_installation_leaves_nothing(tmp_path):
    folder = write_wheelhouse(tmp_path / "w")
    with (folder / "requirements.txt").open("a") as file:
        file.write(f"absent==1.0 --hash=sha256:{'0' * 64}\n")
    write_sums(folder)
    done = install(folder, tmp_path / "p")
    assert done.returncode == 1
    assert "Error: this step failed: " in done.stderr
    assert not (tmp_path / "p").exists()


def test_the_folder_to_install_into_must_be_named(tmp_path):
    folder = write_wheelhouse(tmp_path / "w")
    for arguments in ([], ["--help"], ["a", "b"]):
        assert "Usage: install FOLDER" in install(folder, *arguments).stderr


def test_the_batch_file_is_what_windows_reads(tmp_path):
    content = (write_wheelhouse(tmp_path / "w") / "install.bat").read_bytes()
    assert content.isascii()
    assert content.count(b"\r\n") == content.count(b"\n")
    lines = content.decode().split("\r\n")
    jumps = {line.rsplit("goto ", 1)[1] for line in lines if "goto " in line}
    assert jumps == {"given", "launcher", "path"}
    assert jumps == {line[1:] for line in lines if line.startswith(":")}
    # Quotes around every path; each way ends with the installer's own exit code.
    calls = [line for line in lines if "install.py" in line]
    assert len(calls) == 3
    assert all('-I "%~dp0install.py" %*' in line for line in calls)
    assert all(lines[lines.index(call) + 1] == "exit /b %ERRORLEVEL%" for call in calls)
    assert f"py -{HERE} " in content.decode()
    assert "$" not in content.decode()


# What packaging calls


def test_a_tool_that_fails_says_its_last_words():
    code = "import sys; print('one'); sys.exit('two')"
    with pytest.raises(PackagingError) as caught:
        run_tool([sys.executable, "-c", code], "testing")
    assert caught.value.what == "testing failed: exit code 1\none\ntwo"
    with pytest.raises(PackagingError, match="testing failed: /nowhere/tool: No such file or directory"):
        run_tool(["/nowhere/tool"], "testing")


def test_a_folder_takes_the_old_ones_place_only_when_it_is_complete(tmp_path):
    path = tmp_path / "made"

    def fail():
        with folder_beside(path) as folder:
            (folder / "new").write_bytes(b"")
            msg = "stop"
            raise ValueError(msg)

    path.mkdir()
    (path / "old").write_bytes(b"")
    with pytest.raises(ValueError, match="stop"):
        fail()
    assert [p.relative_to(tmp_path) for p in tmp_path.rglob("*")] == [Path("made"), Path("made/old")]
    with folder_beside(path) as folder:
        (folder / "new").write_bytes(b"")
    assert [p.name for p in path.iterdir()] == ["new"]
