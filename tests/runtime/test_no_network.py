"""Nothing looks for a network: where there is none at all, and where every attempt is counted."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / "data"
BANK = str(DATA / "board.h5")
COMMANDS = {
    "run": ["run", str(DATA / "board.png"), "--bank", BANK, "--mpp", "5", "--out", "p.h5ad", "--quiet"],
    "doctor": ["doctor", "--bank", BANK, "--json"],
    "verify": ["bank", "verify", BANK],
}
MAIN = "from stinfer.cli import main; main()"
# Whatever Python's own libraries ask of the network goes through these, and is told to whoever listens.
AUDITED = """
import sys
def hear(event, arguments):
    if event.split(".")[0] in ("socket", "urllib", "http", "ftplib", "smtplib"):
        print("NETWORK", event, arguments, file=sys.stderr)
sys.addaudithook(hear)
"""


@cache
def can_unshare() -> bool:
    """Say whether this system lets us have a network of our own, with nothing in it."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode == 0


def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def check(name: str, done: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    if name == "run":
        assert [path.name for path in folder.iterdir()] == ["p.h5ad"]
    elif name == "doctor":
        assert json.loads(done.stdout)["works"] is True
    else:
        assert "ok  model mean_color loads" in done.stdout


def test_without_a_network_there_is_nothing_to_reach(tmp_path: Path) -> None:
    """So that what the next test shows is what it says."""
    if not can_unshare():
        pytest.skip("unshare is not permitted here")
    code = "import socket; socket.create_connection(('127.0.0.1', 9), timeout=5)"
    done = run(["unshare", "-rn", sys.executable, "-c", code], tmp_path)
    assert "Network is unreachable" in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_without_any_network(tmp_path: Path, name: str) -> None:
    if not can_unshare():
        pytest.skip("unshare is not permitted here")
    check(name, run(["unshare", "-rn", sys.executable, "-c", MAIN, *COMMANDS[name]], tmp_path), tmp_path)


@pytest.mark.parametrize("name", COMMANDS)
def test_no_attempt_is_made(tmp_path: Path, name: str) -> None:
    done = run([sys.executable, "-c", AUDITED + MAIN, *COMMANDS[name]], tmp_path)
    check(name, done, tmp_path)
    assert "NETWORK" not in done.stderr


def test_an_attempt_would_be_heard(tmp_path: Path) -> None:
    code = "import socket; socket.getaddrinfo('localhost', 80)"
    assert "NETWORK socket.getaddrinfo" in run([sys.executable, "-c", AUDITED + code], tmp_path).stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_no_socket_of_the_network_is_opened_by_any_library(tmp_path: Path, name: str) -> None:
    """What compiled libraries do is seen by the kernel alone."""
    traced = ["strace", "-f", "-qq", "-e", "trace=socket,connect,sendto", "-o", "trace.txt"]
    code = "import socket; socket.socket().connect_ex(('127.0.0.1', 9))"
    if shutil.which("strace") is None or run([*traced, sys.executable, "-c", code], tmp_path).returncode:
        pytest.skip("strace is not there, or not permitted")
    assert "AF_INET" in (tmp_path / "trace.txt").read_text()
    done = run([*traced, sys.executable, "-c", MAIN, *COMMANDS[name]], tmp_path)
    trace = (tmp_path / "trace.txt").read_text()
    (tmp_path / "trace.txt").unlink()
    check(name, done, tmp_path)
    assert [line for line in trace.splitlines() if "AF_INET" in line] == []
