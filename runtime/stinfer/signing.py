"""Banks signed by those who release them: Ed25519 keys and detached signatures, in the format of minisign.

A signature lies beside its bank, as ``BANK.h5.minisig``; the bank's bytes stay as they are. Signed is the
BLAKE2b hash of the file, so that a bank of any size is read once and never held. `minisign` itself makes and
reads the same files.

References
----------
Format: https://jedisct1.github.io/minisign/
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stinfer.errors import (
    BankNotFoundError,
    BankSignatureError,
    ExtraMissingError,
    KeyFileError,
)
from stinfer.files import cause_of, is_file, refuse_existing, write_text, written_beside

if TYPE_CHECKING:
    from types import ModuleType

# Where a site says which keys it accepts: a public key, or a folder of them; several, as in PATH.
POLICY = "STINFER_BANK_KEYS"
SUFFIX = ".minisig"
_PUBLIC_SUFFIX, _PRIVATE_SUFFIX = ".pub", ".key"
# What begins a key, a signature of a file's hash, and one of the file itself, which would have to be held.
_KEY, _HASHED, _WHOLE = b"Ed", b"ED", b"Ed"
_NO_PASSPHRASE, _CHECKSUM = b"\0\0", b"B2"
_UNTRUSTED, _TRUSTED = "untrusted comment: ", "trusted comment: "
_ID_BYTES, _SEED_BYTES, _PUBLIC_BYTES, _SIGNATURE_BYTES = 8, 32, 32, 64
_PRIVATE_BYTES = 2 + 2 + 2 + 32 + 8 + 8 + _ID_BYTES + 64 + 32
# Keys and signatures have a few hundred bytes.
_MAX_BYTES = 1 << 14


@dataclass(frozen=True)
class PublicKey:
    """What a signature is checked with.

    Parameters
    ----------
    identity : 8 bytes, which signatures name
    raw : 32 bytes
    """

    identity: bytes
    raw: bytes

    @property
    def name(self) -> str:
        """Its identity as minisign writes it: 16 hexadecimal digits."""
        return _name(self.identity)


@dataclass(frozen=True)
class PrivateKey:
    """What a bank is signed with.

    Parameters
    ----------
    identity : 8 bytes
    seed : 32 bytes, the secret
    """

    identity: bytes
    seed: bytes


def make_keys(stem: Path, *, overwrite: bool = False) -> tuple[Path, Path, PublicKey]:
    """Make a pair of keys: ``<stem>.key``, which only its owner can read, and ``<stem>.pub``, for everyone.

    Raises
    ------
    OutputExistsError, OutputWriteError
        One is there already, or cannot be written.
    ExtraMissingError
        The package cryptography is not installed.
    """
    ed25519 = require_cryptography("making keys")
    private_path, public_path = (stem.with_name(stem.name + end) for end in (_PRIVATE_SUFFIX, _PUBLIC_SUFFIX))
    for path in (private_path, public_path):
        refuse_existing(path, overwrite=overwrite)
    seed, identity = secrets.token_bytes(_SEED_BYTES), secrets.token_bytes(_ID_BYTES)
    public = PublicKey(
        identity, ed25519.Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    )
    pair = seed + public.raw
    checked = hashlib.blake2b(_KEY + identity + pair, digest_size=32).digest()
    secret = _KEY + _NO_PASSPHRASE + _CHECKSUM + bytes(48) + identity + pair + checked
    _write_secret(private_path, _lines("minisign secret key of stinfer banks", secret))
    write_text(public_path, _lines(f"minisign public key {public.name}", _KEY + identity + public.raw))
    return private_path, public_path, public


def sign_bank(bank: Path, key: Path, *, overwrite: bool = False) -> Path:
    """Sign a bank: write its signature beside it.

    Returns
    -------
    the signature's path

    Raises
    ------
    KeyFileError
        It is no private key, or others can read it.
    OutputExistsError, OutputWriteError
        There is a signature already, or it cannot be written.
    ExtraMissingError
        The package cryptography is not installed.
    """
    ed25519 = require_cryptography("signing a bank")
    private = read_private_key(key)
    path = signature_path(bank)
    refuse_existing(path, overwrite=overwrite)
    signer = ed25519.Ed25519PrivateKey.from_private_bytes(private.seed)
    signature: bytes = signer.sign(_hash_file(bank))
    comment = f"file:{_printable(bank.name)}\thashed"
    together: bytes = signer.sign(signature + comment.encode())
    text = _lines(
        f"signature of a stinfer bank by key {_name(private.identity)}",
        _HASHED + private.identity + signature,
    )
    write_text(path, text + f"{_TRUSTED}{comment}\n{base64.b64encode(together).decode()}\n")
    return path


def verify_signature(bank: Path, keys: Iterable[PublicKey]) -> PublicKey:
    """Check that a bank is signed by one of some keys.

    Returns
    -------
    that key

    Raises
    ------
    BankSignatureError
        It has no signature, or one of another key or another file.
    ExtraMissingError
        The package cryptography is not installed.
    """
    ed25519 = require_cryptography("checking a bank's signature")
    from cryptography.exceptions import InvalidSignature

    if not is_file(bank):
        raise BankNotFoundError(bank)
    identity, signature, comment, together = _read_signature(bank)
    signers = [key for key in keys if key.identity == identity]
    if not signers:
        cause = f"it is signed by key {_name(identity)}, which is none of those accepted here"
        raise BankSignatureError(bank, cause)
    digest = _hash_file(bank)
    for key in signers:
        try:
            public = ed25519.Ed25519PublicKey.from_public_bytes(key.raw)
            public.verify(signature, digest)
            public.verify(together, signature + comment)
        except (InvalidSignature, ValueError):
            continue
        return key
    cause = f"{signature_path(bank).name} is not the signature of this file: it, or the bank, was altered"
    raise BankSignatureError(bank, cause)


def signature_path(bank: Path) -> Path:
    """Return where the signature of a bank lies."""
    return bank.with_name(bank.name + SUFFIX)


def accepted_keys(given: Path | None) -> list[PublicKey] | None:
    """Return the keys that a bank must be signed by one of; None where any bank is accepted.

    The environment variable ``STINFER_BANK_KEYS`` holds a site's own; a key that is given too must be among
    them.

    Parameters
    ----------
    given : a public key, or a folder of them; None for the site's alone

    Raises
    ------
    KeyFileError
        There is no public key there.
    """
    policy = os.environ.get(POLICY, "")
    places = [Path(part) for part in policy.split(os.pathsep) if part]
    site = [key for place in places for key in read_public_keys(place)] if policy else None
    if given is None:
        return site
    keys = read_public_keys(given)
    return keys if site is None else [key for key in keys if key in site]


def read_public_keys(path: Path) -> list[PublicKey]:
    """Read a public key, or all ``*.pub`` of a folder.

    Raises
    ------
    KeyFileError
        There is none, or one of them is none.
    """
    if path.is_dir():
        found = sorted(path.glob(f"*{_PUBLIC_SUFFIX}"))
        if not found:
            raise _no_key(path, "the folder holds no *.pub files")
        return [_read_public_key(file) for file in found]
    return [_read_public_key(path)]


def _read_public_key(path: Path) -> PublicKey:
    raw = _read_key(path)
    if len(raw) != 2 + _ID_BYTES + _PUBLIC_BYTES or not raw.startswith(_KEY):
        raise _no_key(path, "it is no public key")
    return PublicKey(raw[2 : 2 + _ID_BYTES], raw[2 + _ID_BYTES :])


def read_private_key(path: Path) -> PrivateKey:
    """Read a private key that `make_keys`, or minisign without a passphrase, has written.

    Raises
    ------
    KeyFileError
        It is none, is damaged or has a passphrase, or others can read it.
    """
    raw = _read_key(path)
    if len(raw) != _PRIVATE_BYTES or not raw.startswith(_KEY):
        raise KeyFileError(
            path, "it is no private key", "make one with stinfer bank keygen NAME: it is NAME.key"
        )
    if raw[2:4] != _NO_PASSPHRASE:
        raise KeyFileError(
            path, "it has a passphrase", "sign with minisign itself: minisign -S -s KEY -m BANK"
        )
    identity, pair, checked = raw[54:62], raw[62:126], raw[126:]
    # minisign leaves out the checksum of a key that has no passphrase.
    if checked != bytes(32) and hashlib.blake2b(_KEY + identity + pair, digest_size=32).digest() != checked:
        raise KeyFileError(path, "it is damaged", "take it from your backup")
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise KeyFileError(path, "others than its owner can read it", f"chmod 600 {path}")
    return PrivateKey(identity, pair[:_SEED_BYTES])


def _read_key(path: Path) -> bytes:
    lines = _read_lines(path)
    try:
        return base64.b64decode(lines[1], validate=True) if len(lines) > 1 else b""
    except binascii.Error:
        return b""


def _read_lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode("utf-8", errors="replace").splitlines()
    except (OSError, ValueError) as error:
        raise KeyFileError(path, f"it cannot be read ({cause_of(error)})", "check the path") from error


def _read_signature(bank: Path) -> tuple[bytes, bytes, bytes, bytes]:
    """Read the key's identity, the signature, its comment and the signature of both."""
    path = signature_path(bank)
    if not is_file(path):
        cause = f"only signed banks are, and there is no {path.name} beside it"
        raise BankSignatureError(bank, cause)
    try:
        # As bytes: what is signed is the comment's bytes, whatever they mean.
        with path.open("rb") as file:
            _, first, comment, second = file.read(_MAX_BYTES).splitlines()[:4]
        raw, together = base64.b64decode(first, validate=True), base64.b64decode(second, validate=True)
    except (OSError, ValueError) as error:
        raise BankSignatureError(bank, f"{path.name} is no signature") from error
    fits = len(raw) == 2 + _ID_BYTES + _SIGNATURE_BYTES and comment.startswith(_TRUSTED.encode())
    if not fits or raw[:2] not in (_HASHED, _WHOLE):
        raise BankSignatureError(bank, f"{path.name} is no signature")
    if raw[:2] == _WHOLE:
        raise BankSignatureError(bank, f"{path.name} is a signature of the old kind: sign with minisign -H")
    return raw[2 : 2 + _ID_BYTES], raw[2 + _ID_BYTES :], comment[len(_TRUSTED) :], together


def _hash_file(path: Path) -> bytes:
    digest = hashlib.blake2b()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def _write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner can read, from its first byte on."""
    with written_beside(path) as partial:
        partial.chmod(0o600)
        partial.write_text(text, encoding="utf-8", newline="\n")


def _lines(comment: str, data: bytes) -> str:
    return f"{_UNTRUSTED}{comment}\n{base64.b64encode(data).decode()}\n"


def _name(identity: bytes) -> str:
    return f"{int.from_bytes(identity, 'little'):016X}"


def _printable(name: str) -> str:
    return "".join(letter if letter.isprintable() else "_" for letter in name)


def _no_key(path: Path, cause: str) -> KeyFileError:
    return KeyFileError(path, cause, "give the public key (.pub) of those who release banks here")


def require_cryptography(purpose: str) -> Any:
    """Return what computes with Ed25519 keys.

    Parameters
    ----------
    purpose : what it is for, in the message where it lacks

    Raises
    ------
    ExtraMissingError
        The package cryptography is not installed.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise ExtraMissingError(package="cryptography", extra="sign", purpose=purpose) from error
    module: ModuleType = ed25519
    return module
