"""Slides called by a keyed hash of their content, so that no output and no log bears a file's name.

The pseudonym of a slide is ``slide-`` and the first 16 hexadecimal digits of HMAC-SHA256(key, message). The
key is the bytes of the key file, the message the 64 hexadecimal digits of the slide's SHA-256. Who has both
can tell that they belong together; nobody else can, not even from a list of all files and their hashes.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from stinfer.errors import (
    KeyFileError,
    SettingError,
    SlideNotFoundError,
    SlideUnreadableError,
    StInferError,
)
from stinfer.files import cause_of, is_file, sha256_file
from stinfer.finished import slide_fingerprint
from stinfer.map_file import is_map, read_slide_identity

_MIN_KEY_BYTES, _MAX_KEY_BYTES = 16, 4096
_DIGITS = 16
# Of a folder, or a name without its suffix: shorter ones are also words of messages.
_LEAST_LETTERS = 6
# Arguments of a run that are files also where they are texts: those that are likely to bear the slide's name,
# and others.
_WITH_SLIDE = ("spots", "tissue_mask")
_OTHERS = ("bank", "pseudonym", "bank_key", "out", "csv", "ome_tiff", "save_map", "preview", "log", "genes")
_PSEUDONYM = re.compile(rf"slide-[0-9a-f]{{{_DIGITS}}}")


class Pseudonyms:
    """The pseudonyms of one key.

    Parameters
    ----------
    path : of the key: 16 to 4096 bytes that nobody can guess

    Raises
    ------
    KeyFileError
        It cannot be read, is too short or long, or everyone on this machine can read it.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                self._key = file.read(_MAX_KEY_BYTES + 1)
            is_open = os.name == "posix" and bool(path.stat().st_mode & 0o007)
        except (OSError, ValueError) as error:
            raise KeyFileError(path, f"it cannot be read ({cause_of(error)})", "check the path") from error
        if not _MIN_KEY_BYTES <= len(self._key) <= _MAX_KEY_BYTES:
            cause = f"it has not {_MIN_KEY_BYTES} to {_MAX_KEY_BYTES} bytes"
            raise KeyFileError(path, cause, "make one: openssl rand -out KEYFILE 32, and chmod 600 KEYFILE")
        if is_open:
            raise KeyFileError(path, "everyone on this machine can use it", f"chmod 600 {path}")

    def keyed(self, sha256: str) -> str:
        """Return the keyed hash of a hash: 64 hexadecimal digits."""
        return hmac.new(self._key, sha256.encode("ascii"), hashlib.sha256).hexdigest()

    def of_slide(self, path: Path) -> str:
        """Return the pseudonym of a slide, or of that a saved map is of.

        Raises
        ------
        SlideNotFoundError, SlideUnreadableError, MapFormatError
            It is not there, or cannot be read.
        SettingError
            A map does not say which slide it is of but by its name.
        """
        if not path.exists():
            raise SlideNotFoundError(path)
        try:
            if not is_map(path):
                status = path.stat()
                return self._name(_fingerprint(path.absolute(), status.st_size, status.st_mtime_ns))
        except OSError as error:
            raise SlideUnreadableError(path, cause_of(error)) from error
        name, sha256 = read_slide_identity(path)
        if sha256:
            return self._name(sha256)
        if _PSEUDONYM.fullmatch(name):
            return name
        what = f"--pseudonym: map {path} says which slide it is of by its name alone"
        raise SettingError(what, "make the map again with --pseudonym")

    def of_file(self, sha256: str) -> str:
        """Return what another file is called in the record, such as that of the spots."""
        return f"file-{self.keyed(sha256)[:_DIGITS]}"

    def hidden_words(
        self, slides: Iterable[Path], with_slide: Iterable[Path], others: Iterable[Path]
    ) -> dict[str, str]:
        """Return what must not be in a log, and what stands there instead.

        Parameters
        ----------
        slides : called by their pseudonyms
        with_slide : files that are likely to bear a slide's name, such as that of its spots; called so too
        others : files of which only the folders are hidden
        """
        words: dict[str, str] = {}
        for slide in slides:
            try:
                name = self.of_slide(slide)
            except StInferError:
                name = "slide"  # which will be told as failed
            words |= _hidden(slide, name, with_name=True)
        for path in with_slide:
            name = self.of_file(sha256_file(path)) if is_file(path) else "file"
            words |= _hidden(path, name, with_name=True)
        for path in others:
            words |= _hidden(path, path.name, with_name=False)
        return words

    def _name(self, sha256: str) -> str:
        return f"slide-{self.keyed(sha256)[:_DIGITS]}"


def open_pseudonyms(key: str | Path | None) -> Pseudonyms | None:
    """Read the key of pseudonyms; None for none. Raises as `Pseudonyms`."""
    return None if key is None else Pseudonyms(Path(key))


def hidden_words(slide: str, arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return what the log of a run must not hold; see `Pseudonyms.hidden_words`.

    Parameters
    ----------
    slide : of the run
    arguments : of `stinfer.predict_slide`, the bank's path included; without ``pseudonym`` nothing is hidden
    """
    names = open_pseudonyms(arguments.get("pseudonym"))
    if names is None:
        return {}
    given = {
        name: Path(value)
        for name, value in arguments.items()
        if isinstance(value, Path) or (isinstance(value, str) and name in (*_WITH_SLIDE, *_OTHERS))
    }
    with_slide = [given.pop(name) for name in _WITH_SLIDE if name in given]
    return names.hidden_words([Path(slide)], with_slide, given.values())


@lru_cache(maxsize=1024)
def _fingerprint(path: Path, size: int, mtime_ns: int) -> str:
    """Hash a slide once, however often it is named."""
    return slide_fingerprint(path)


def _hidden(path: Path, name: str, *, with_name: bool) -> dict[str, str]:
    """Return what a path is replaced with in a text, and what its folders and the rest of its name are."""
    forms = {str(path), str(path.absolute()), os.path.realpath(path)}
    words = {folder: "…" for folder in map(os.path.dirname, forms) if len(folder) >= _LEAST_LETTERS}
    words |= dict.fromkeys(forms, name)
    if with_name:
        words |= {path.name: name} | ({path.stem: name} if len(path.stem) >= _LEAST_LETTERS else {})
    return words
