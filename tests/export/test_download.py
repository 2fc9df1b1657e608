"""Downloads from a server on this machine that truncates, redirects, times out and serves the wrong bytes."""

from __future__ import annotations

import builtins
import hashlib
import importlib.util
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from stinfer.errors import ExtraMissingError
from stinfer_export.download import Patience, download
from stinfer_export.errors import FetchError

pytest.importorskip("pooch")
_SPEC = importlib.util.spec_from_file_location("file_server", Path(__file__).parent / "file_server.py")
shared = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(shared)
server = shared.server
HASTY = Patience(timeout_s=0.3, n_attempts=3, pause_s=0.0)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def folder(tmp_path):
    # pooch leaves nothing in a folder of its own; made by it.
    return tmp_path / "models" / "checkpoints"


def _sha256(content):
    return hashlib.sha256(content).hexdigest()


def _fetch(server, folder, url=None, **options):
    fixed = {"limit_bytes": 1_000_000, "patience": HASTY}
    return download(url or server.url, folder / "file.bin", **(fixed | options))


def _refusal(server, folder, url=None, **options):
    with pytest.raises(FetchError) as caught:
        _fetch(server, folder, url, **options)
    assert not (folder / "file.bin").exists()
    assert isinstance(caught.value, OSError)
    # Whoever has no network reads what to fetch, and where to put it.
    assert caught.value.what.startswith(f"{url or server.url} could not be fetched: ")
    assert "fetch that file where there is a network" in caught.value.fix
    assert str(folder / "file.bin") in caught.value.fix
    return caught.value


def test_a_file_is_fetched_and_nothing_else_is_left(server, folder):
    prefix = _sha256(server.content)[:8]

    assert _fetch(server, folder, hash_prefix=prefix) == prefix

    assert (folder / "file.bin").read_bytes() == server.content
    assert [path.name for path in folder.iterdir()] == ["file.bin"]
    assert server.asked == [(None, None)]


def test_a_cut_download_goes_on_where_it_broke_off(server, folder):
    server.script = ["cut", "cut"]

    _fetch(server, folder)

    assert (folder / "file.bin").read_bytes() == server.content
    # Of a half, 150,000 bytes, two blocks of 65,536; of half of the rest, 84,464 bytes, one.
    assert server.asked == [(None, None), ("bytes=131072-", '"one"'), ("bytes=196608-", '"one"')]


def test_the_next_run_goes_on_too(server, folder):
    server.script = ["cut", "busy", "busy"]
    _refusal(server, folder)
    assert (folder / ".file.bin.part").read_bytes() == server.content[:131_072]
    server.asked.clear()

    _fetch(server, folder)

    assert server.asked == [("bytes=131072-", '"one"')]
    assert (folder / "file.bin").read_bytes() == server.content
    assert [path.name for path in folder.iterdir()] == ["file.bin"]


def test_a_file_that_has_changed_meanwhile_is_fetched_anew(server, folder):
    server.script = ["cut", "busy", "busy"]
    _refusal(server, folder)
    server.content = server.content[::-1]
    server.headers["ETag"] = '"two"'

    _fetch(server, folder)

    assert (folder / "file.bin").read_bytes() == server.content


def test_a_server_that_gives_no_parts_is_asked_for_all(server, folder):
    server.script = ["cut", "whole"]

    _fetch(server, folder)

    assert (folder / "file.bin").read_bytes() == server.content


def test_without_tag_and_hash_it_begins_anew(server, folder):
    server.headers = {}
    server.script = ["cut"]

    _fetch(server, folder)

    assert server.asked == [(None, None), (None, None)]
    assert (folder / "file.bin").read_bytes() == server.content


def test_with_a_hash_it_goes_on_without_a_tag(server, folder):
    server.headers = {}
    server.script = ["cut"]

    _fetch(server, folder, hash_prefix=_sha256(server.content)[:8])

    assert server.asked == [(None, None), ("bytes=131072-", None)]
    assert (folder / "file.bin").read_bytes() == server.content


def test_all_but_its_name_is_there_already(server, folder):
    folder.mkdir(parents=True)
    (folder / ".file.bin.part").write_bytes(server.content)
    (folder / ".file.bin.part.etag").write_text('"one"')

    _fetch(server, folder)

    assert server.asked == [("bytes=300000-", '"one"')]
    assert (folder / "file.bin").read_bytes() == server.content


def test_more_than_there_is_begins_anew(server, folder):
    folder.mkdir(parents=True)
    (folder / ".file.bin.part").write_bytes(server.content + b"!")
    (folder / ".file.bin.part.etag").write_text('"one"')

    _fetch(server, folder)

    assert server.asked == [("bytes=300001-", '"one"'), (None, None)]
    assert (folder / "file.bin").read_bytes() == server.content


def test_redirects_are_followed(server, folder):
    server.script = ["/elsewhere", server.url]

    _fetch(server, folder)

    assert (folder / "file.bin").read_bytes() == server.content


def test_redirects_without_end_are_refused(server, folder):
    server.script = ["/again"] * 200

    assert "redirects" in _refusal(server, folder).what


def test_a_server_that_falls_silent_is_asked_again(server, folder):
    server.script = ["hang", "busy"]

    _fetch(server, folder)

    assert (folder / "file.bin").read_bytes() == server.content


def test_a_server_that_stays_silent_is_given_up(server, folder):
    server.script = ["hang"] * 3

    error = _refusal(server, folder)

    assert "timed out" in error.what
    assert len(server.asked) == 3


def test_no_network(server, folder):
    url = "http://127.0.0.1:9/file.bin"

    error = _refusal(server, folder, url, hash_prefix="d63eafa0")

    assert error.what == f"{url} could not be fetched: Connection refused"
    assert error.fix.endswith(f"put it here as {folder / 'file.bin'}; its SHA-256 begins with d63eafa0")


def test_a_proxy_that_is_not_there(server, folder, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")

    assert "the proxy does not answer (Connection refused); HTTPS_PROXY" in _refusal(server, folder).what


def test_a_proxy_is_asked_in_place_of_the_server(server, folder, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "")

    _fetch(server, folder, "http://nowhere.invalid/file.bin")

    assert (folder / "file.bin").read_bytes() == server.content


@pytest.fixture
def certificate(tmp_path):
    """A certificate of an authority that nobody knows, for this machine, with its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate")
    path = tmp_path / "own.pem"
    options = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=own -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        [openssl, *options.split(), "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    path.write_bytes((tmp_path / "key.pem").read_bytes() + (tmp_path / "cert.pem").read_bytes())
    return path


def test_a_certificate_of_ones_own_is_trusted_if_it_is_named(server, folder, certificate, monkeypatch):
    server.encrypt(certificate)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)

    assert "the certificate is not trusted" in _refusal(server, folder).what
    assert "REQUESTS_CA_BUNDLE" in _refusal(server, folder).what
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate.with_name("cert.pem")))
    _fetch(server, folder)

    assert (folder / "file.bin").read_bytes() == server.content


def test_what_began_encrypted_does_not_go_on_in_the_open(server, folder, certificate, monkeypatch):
    plain = shared.FileServer(server.content)
    thread = threading.Thread(target=plain.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.encrypt(certificate)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate.with_name("cert.pem")))
    server.script = [plain.url]

    error = _refusal(server, folder)

    assert error.what.endswith(f"it leads to {plain.url}, which is not encrypted")
    plain.shutdown()
    thread.join()
    plain.server_close()


@pytest.mark.parametrize(("act", "cause"), [("lost", "the server answered 404"), ("page", "a web page came")])
def test_an_answer_that_is_not_the_file_is_not_asked_for_again(server, folder, act, cause):
    server.script = [act]

    assert cause in _refusal(server, folder).what
    assert len(server.asked) == 1


def test_wrong_bytes_are_refused_and_not_kept(server, folder):
    server.script = ["wrong"]
    wrong = _sha256(bytes(byte ^ 255 for byte in server.content))[:8]
    right = _sha256(server.content)[:8]

    error = _refusal(server, folder, hash_prefix=right)

    assert error.what.endswith(
        f"it is not what was published: its SHA-256 begins with {wrong}, expected {right}"
    )
    assert list(folder.iterdir()) == []


def test_the_hash_that_a_server_tells_is_checked(server, folder):
    told = _sha256(server.content)
    server.headers["X-Linked-Etag"] = f'"{told}"'
    server.script = ["/linked", "wrong"]
    assert "it is not what was published" in _refusal(server, folder).what

    server.script = ["/linked"]
    assert _fetch(server, folder) == told


def test_a_file_that_is_too_large(server, folder):
    assert "it has 0 MB, expected at most 0" in _refusal(server, folder, limit_bytes=299_999).what
    server.says_length = False
    assert "it has more than 0 MB" in _refusal(server, folder, limit_bytes=299_999).what
    assert list(folder.iterdir()) == []


def test_an_answer_of_unknown_length_ends_where_it_ends(server, folder):
    server.says_length = False

    _fetch(server, folder, hash_prefix=_sha256(server.content)[:8])

    assert (folder / "file.bin").read_bytes() == server.content


def test_progress_is_told_in_megabytes(server, folder):
    server.content = bytes(2_500_000)
    told = []

    _fetch(server, folder, limit_bytes=3_000_000, progress=lambda *done: told.append(done))

    assert list(dict.fromkeys(told)) == [(0, 3, "MB"), (1, 3, "MB"), (2, 3, "MB"), (3, 3, "MB")]
    assert told.count((3, 3, "MB")) == 1


def test_a_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "models").write_text("a file")

    assert "it cannot be written" in _refusal(server, tmp_path / "models").what


def test_pooch_is_optional(server, folder, monkeypatch):
    def refuse(name, *args, _import=builtins.__import__, **kwargs):
        if name == "pooch":
            raise ModuleNotFoundError(name="pooch")
        return _import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ExtraMissingError, match="stinfer-export fetch needs the package pooch") as caught:
        _fetch(server, folder)
    assert caught.value.fix == "pip install 'stinfer[fetch]'"
