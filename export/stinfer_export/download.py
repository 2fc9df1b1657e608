"""One file over HTTP: resumed where it broke off, checked before it gets its name.

`pooch` keeps the folder and gives the file its name when all is well; what it does not do, going on with a
broken download, is done here. Proxies and certificates are those of the environment, as `requests` reads it
(``HTTPS_PROXY``, ``NO_PROXY``, ``REQUESTS_CA_BUNDLE``).
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from stinfer.errors import ExtraMissingError, first_line
from stinfer.feature_map import Progress
from stinfer.files import sha256_file
from stinfer_export.errors import FetchError

# Of a block that is cut nothing is kept.
_BLOCK_BYTES = 1 << 16
_MEGABYTE = 1_000_000
# Statuses after which it is worth asking again.
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Where Hugging Face says what file it redirects to: the SHA-256, of files it keeps in LFS.
_LINKED_HASH = "x-linked-etag"


@dataclass(frozen=True)
class Patience:
    """How long to wait and how often to try again.

    Parameters
    ----------
    timeout_s : without an answer, or without another byte
    n_attempts : in a row that bring no new byte
    pause_s : before the second attempt; twice as long before each further one
    """

    timeout_s: float = 60.0
    n_attempts: int = 4
    pause_s: float = 1.0


def download(
    url: str,
    target: Path,
    *,
    hash_prefix: str = "",
    limit_bytes: int,
    patience: Patience | None = None,
    progress: Progress | None = None,
) -> str:
    """Fetch a file, all or nothing; what a broken attempt brought is kept beside it, to go on from.

    Parameters
    ----------
    url : its address
    target : the file to write, which is not there yet
    hash_prefix : first digits of its SHA-256, where they are published
    limit_bytes : the largest it may be
    patience : with the server
    progress : called with what is done and how much there is, in MB

    Returns
    -------
    what it was checked against: the published digits, those that the server told, or nothing

    Raises
    ------
    FetchError
        It cannot be fetched, or is not what was published.
    ExtraMissingError
        pooch is not installed.
    """
    pooch = _import_pooch()
    pooch.get_logger().setLevel("WARNING")
    transfer = _Transfer(target, hash_prefix, limit_bytes, patience or Patience(), progress)
    try:
        pooch.retrieve(url, None, fname=target.name, path=target.parent, downloader=transfer)
    except OSError as error:
        if isinstance(error, FetchError):
            raise
        raise FetchError(url, target, hash_prefix, f"it cannot be written ({first_line(error)})") from error
    return transfer.expected


class _Transfer:
    """The downloader that pooch calls; parameters are those of `download`."""

    def __init__(
        self, target: Path, hash_prefix: str, limit_bytes: int, patience: Patience, progress: Progress | None
    ) -> None:
        self._target = target
        self._partial = target.with_name(f".{target.name}.part")
        self._tag_file = target.with_name(f".{target.name}.part.etag")
        self.expected = hash_prefix
        self._limit_bytes = limit_bytes
        self._patience = patience
        self._progress = progress

    def __call__(self, url: str, output_file: str, _: Any) -> None:
        """Fetch `url` and move it to `output_file`."""
        import requests

        n_failed, had_bytes = 0, self._held_bytes()
        while True:
            try:
                if self._advance(requests, url):
                    break
                cause = "the connection was cut before its end"
            except requests.exceptions.SSLError as error:
                cause = (
                    f"the certificate is not trusted ({_reason(error)}); name your own authority's file "
                    "in REQUESTS_CA_BUNDLE"
                )
                raise self._error(url, cause) from error
            except requests.exceptions.ProxyError as error:
                cause = f"the proxy does not answer ({_reason(error)}); HTTPS_PROXY names it"
                raise self._error(url, cause) from error
            except requests.exceptions.Timeout:
                cause = f"it timed out: nothing came within {self._patience.timeout_s:g} s"
            except requests.exceptions.RequestException as error:
                cause = _reason(error)
            n_failed = 1 if self._held_bytes() > had_bytes else n_failed + 1
            had_bytes = self._held_bytes()
            if n_failed >= self._patience.n_attempts:
                raise self._error(url, cause)
            time.sleep(self._patience.pause_s * 2 ** (n_failed - 1))
        self._check(url)
        self._partial.replace(output_file)
        self._tag_file.unlink(missing_ok=True)

    def _held_bytes(self) -> int:
        return self._partial.stat().st_size if self._partial.is_file() else 0

    def _advance(self, requests: ModuleType, url: str) -> bool:
        """Fetch what is still missing; say whether that is now all."""
        held = self._held_bytes()
        # Encoded bytes cannot be counted, nor gone on with.
        headers = {"Accept-Encoding": "identity"}
        tag = self._tag_file.read_text() if self._tag_file.is_file() else ""
        if held and (tag or self.expected):
            headers["Range"] = f"bytes={held}-"
            if tag:
                headers["If-Range"] = tag
        timeout_s = self._patience.timeout_s
        with requests.get(url, headers=headers, stream=True, timeout=timeout_s) as answer:
            self._refuse_answer(url, answer)
            if answer.status_code == 416:
                # There is nothing beyond what is held: it is all of it, or of another file.
                if answer.headers.get("Content-Range", "").endswith(f"/{held}"):
                    return True
                self._drop()
                return False
            if answer.status_code in _PASSING:
                msg = f"the server answered {answer.status_code} {answer.reason}"
                raise requests.exceptions.ConnectionError(msg)
            start = _first_byte(answer.headers) if answer.status_code == 206 else 0
            if start not in (0, held):
                self._drop()
                return False
            self._remember(answer)
            return self._receive(url, answer, start)

    def _receive(self, url: str, answer: Any, start: int) -> bool:
        length = answer.headers.get("Content-Length", "")
        end = start + int(length) if length.isdecimal() else None
        if end is not None and end > self._limit_bytes:
            cause = f"it has {end / _MEGABYTE:.0f} MB, expected at most {self._limit_bytes / _MEGABYTE:.0f}"
            raise self._error(url, cause)
        done = start
        with self._partial.open("r+b" if start else "wb") as file:
            file.seek(start)
            for block in answer.iter_content(_BLOCK_BYTES):
                done += len(block)
                if done > self._limit_bytes:
                    self._drop()
                    cause = f"it has more than {self._limit_bytes / _MEGABYTE:.0f} MB"
                    raise self._error(url, cause)
                file.write(block)
                # What has arrived is held even if the next block does not.
                file.flush()
                if self._progress is not None and end:
                    # The last megabyte is done when the last byte is.
                    total = -(-end // _MEGABYTE)
                    self._progress(total if done == end else min(done // _MEGABYTE, total - 1), total, "MB")
        return end is None or done == end

    def _remember(self, answer: Any) -> None:
        """Keep what the server says of the file: its tag, to go on with the same, and its hash."""
        tag = answer.headers.get("ETag", "")
        if tag.startswith('"'):
            self._tag_file.write_text(tag)
        else:
            self._tag_file.unlink(missing_ok=True)
        for one in (*answer.history, answer):
            told = one.headers.get(_LINKED_HASH, "").strip('"').lower()
            if _SHA256.fullmatch(told) and told.startswith(self.expected):
                self.expected = told

    def _refuse_answer(self, url: str, answer: Any) -> None:
        chain = [one.url for one in (*answer.history, answer)]
        if url.startswith("https:") and not all(hop.startswith("https:") for hop in chain):
            cause = f"it leads to {chain[-1]}, which is not encrypted"
            raise self._error(url, cause)
        if answer.status_code >= 400 and answer.status_code not in (*_PASSING, 416):
            raise self._error(url, f"the server answered {answer.status_code} {answer.reason}")
        if answer.status_code < 300 and "text/html" in answer.headers.get("Content-Type", ""):
            cause = "a web page came in its place, perhaps of a proxy that wants a login"
            raise self._error(url, cause)

    def _check(self, url: str) -> None:
        if not self.expected:
            return
        found = sha256_file(self._partial)
        if not found.startswith(self.expected):
            self._drop()
            n = len(self.expected)
            cause = (
                f"it is not what was published: its SHA-256 begins with {found[:n]}, expected {self.expected}"
            )
            raise self._error(url, cause)

    def _drop(self) -> None:
        self._partial.unlink(missing_ok=True)
        self._tag_file.unlink(missing_ok=True)

    def _error(self, url: str, cause: str) -> FetchError:
        return FetchError(url, self._target, self.expected, cause)


def _reason(error: Exception) -> str:
    """Return what the system said, from below the words of three libraries; else the first line of those."""
    below: BaseException | None = error
    said = ""
    while below is not None:
        if isinstance(below, OSError) and below.strerror:
            said = below.strerror
        below = below.__cause__ or below.__context__
    return said or first_line(error)


def _first_byte(headers: Mapping[str, str]) -> int:
    match = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return int(match[1]) if match else -1


def _import_pooch() -> ModuleType:
    try:
        import pooch
    except ImportError as error:
        raise ExtraMissingError(package="pooch", extra="fetch", purpose="stinfer-export fetch") from error
    module: ModuleType = pooch
    return module
