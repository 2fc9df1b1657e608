"""Banks that are signed, not signed, signed by others, and altered since."""

from __future__ import annotations

import base64
import builtins
import os
import shutil
from pathlib import Path

import h5py
import pytest
from click.testing import CliRunner

import stinfer
from stinfer.bank import Bank
from stinfer.cli import main
from stinfer.errors import (
    BankNotFoundError,
    BankSignatureError,
    ExtraMissingError,
    KeyFileError,
    OutputExistsError,
    StInferError,
)
from stinfer.open_bank import OpenBank
from stinfer.signing import (
    POLICY,
    accepted_keys,
    make_keys,
    read_private_key,
    read_public_keys,
    sign_bank,
    signature_path,
    verify_signature,
)

pytest.importorskip("cryptography")

DATA = Path(__file__).parents[1] / "data"
BOARD = DATA / "board.png"
# Made by minisign 0.11: -G -W, then -S -t 'file:bank.h5' of the eight bytes "stinfer" and a line feed.
MINISIGN_PUBLIC = """untrusted comment: minisign public key E7185493D683C3B7
RWS3w4PWk1QY5zejau2vDKbPnxpjp490mx+2UFQr/dXfizZHbOSOrd+W
"""
MINISIGN_PRIVATE = """untrusted comment: minisign encrypted secret key
RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAt8OD1pNUGOeuyhKBpz/1LKHao0jUb/SZ\
tqCbizYMdAGSGIn2qOEtZDejau2vDKbPnxpjp490mx+2UFQr/dXfizZHbOSOrd+WAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
"""
MINISIGN_SIGNATURE = """untrusted comment: signature from minisign secret key
RUS3w4PWk1QY54i2dV/eTHd1Je9rr8XS6/d21UA0j9CdIItvrLngegkHypL0Eyrv6QhnasMvZjJGqK2cCPYa1P82suw6Uh786QI=
trusted comment: file:bank.h5
uA8trMmDSUBRGrGWqNN/MSjXKJWMf8HO2EcMlF+9UHWSWrWY2xHR4xfomTNSbRsqkIXECwbv7RS+NuQ4S5tIDw==
"""
MINISIGN_NAME = "E7185493D683C3B7"


@pytest.fixture(autouse=True)
def _no_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(POLICY, raising=False)


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    return Path(shutil.copy(DATA / "board.h5", tmp_path / "bank.h5"))


@pytest.fixture
def private(tmp_path: Path) -> Path:
    return make_keys(tmp_path / "lab")[0]


@pytest.fixture
def public(private: Path) -> Path:
    return private.with_name("lab.pub")


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


# --- minisign's own files ---------------------------------------------------------------------------


def test_what_minisign_has_signed_is_accepted(tmp_path: Path) -> None:
    bank = write(tmp_path / "bank.h5", "stinfer\n")
    write(signature_path(bank), MINISIGN_SIGNATURE)
    keys = read_public_keys(write(tmp_path / "m.pub", MINISIGN_PUBLIC))
    assert verify_signature(bank, keys).name == MINISIGN_NAME


def test_minisigns_key_signs_as_minisign_does(tmp_path: Path) -> None:
    """Ed25519 signs the same bytes always alike: the second line is minisign's own."""
    bank = write(tmp_path / "bank.h5", "stinfer\n")
    sign_bank(bank, write(tmp_path / "m.key", MINISIGN_PRIVATE))
    found = signature_path(bank).read_text().splitlines()
    assert found[1] == MINISIGN_SIGNATURE.splitlines()[1]
    assert found[0].endswith(MINISIGN_NAME)
    assert found[2] == "trusted comment: file:bank.h5\thashed"


# --- signing and checking ---------------------------------------------------------------------------


def test_a_signed_bank_is_accepted_and_its_bytes_are_as_they_were(
    bank: Path, private: Path, public: Path
) -> None:
    before = bank.read_bytes()
    assert sign_bank(bank, private) == bank.with_name("bank.h5.minisig")
    assert bank.read_bytes() == before
    keys = read_public_keys(public)
    assert verify_signature(bank, keys) == keys[0]


def test_keys_differ_and_the_private_one_is_its_owners_alone(tmp_path: Path) -> None:
    first, second = (make_keys(tmp_path / name) for name in ("a", "b"))
    assert first[2] != second[2]
    assert (first[0].stat().st_mode & 0o777, read_public_keys(first[1])) == (0o600, [first[2]])
    assert read_private_key(first[0]).identity == first[2].identity


def test_keys_are_not_replaced_unless_told(tmp_path: Path, private: Path) -> None:
    before = private.read_bytes()
    with pytest.raises(OutputExistsError):
        make_keys(tmp_path / "lab")
    assert private.read_bytes() == before


def test_no_signature(bank: Path, public: Path) -> None:
    with pytest.raises(BankSignatureError, match=r"there is no bank\.h5\.minisig beside it"):
        verify_signature(bank, read_public_keys(public))
    with pytest.raises(BankNotFoundError):
        verify_signature(bank.with_name("other.h5"), read_public_keys(public))


def test_a_signature_of_another_key(bank: Path, private: Path, tmp_path: Path) -> None:
    sign_bank(bank, private)
    other = make_keys(tmp_path / "other")[2]
    name = read_public_keys(tmp_path / "lab.pub")[0].name
    with pytest.raises(BankSignatureError, match=f"signed by key {name}, which is none of those"):
        verify_signature(bank, [other])
    with pytest.raises(BankSignatureError):
        verify_signature(bank, [])


def test_a_key_that_claims_the_name_of_another(
    bank: Path, private: Path, public: Path, tmp_path: Path
) -> None:
    """What counts is the key itself, not its eight bytes of identity."""
    sign_bank(bank, private)
    honest = read_public_keys(public)[0]
    forged = stinfer.signing.PublicKey(honest.identity, make_keys(tmp_path / "other")[2].raw)
    with pytest.raises(BankSignatureError, match="not the signature of this file"):
        verify_signature(bank, [forged])
    assert verify_signature(bank, [forged, honest]) == honest


@pytest.mark.parametrize("place", [0, 0.1, 0.5, 0.9, 1])
def test_one_flipped_bit_of_the_bank_also_where_no_hash_covers_it(
    bank: Path, private: Path, public: Path, place: float
) -> None:
    sign_bank(bank, private)
    data = bytearray(bank.read_bytes())
    data[round((len(data) - 1) * place)] ^= 1
    bank.write_bytes(bytes(data))
    with pytest.raises(BankSignatureError, match="not the signature of this file"):
        verify_signature(bank, read_public_keys(public))


def test_a_notice_that_no_hash_covers_is_covered_by_the_signature(
    bank: Path, private: Path, public: Path
) -> None:
    sign_bank(bank, private)
    with h5py.File(bank, "r+") as file:
        file["uns/stinfer/sources/T1/image"][()] = "other.png"
    assert Bank.open(bank).n_refs == 30
    with pytest.raises(BankSignatureError):
        verify_signature(bank, read_public_keys(public))


def test_an_altered_comment(bank: Path, private: Path, public: Path) -> None:
    """minisign calls it trusted: it is signed too."""
    sign_bank(bank, private)
    path = signature_path(bank)
    path.write_text(path.read_text().replace("file:bank.h5", "file:best.h5"))
    with pytest.raises(BankSignatureError, match="not the signature of this file"):
        verify_signature(bank, read_public_keys(public))


OTHER_KIND, NO_COMMENT = (base64.b64encode(kind + bytes(72)).decode() for kind in (b"XX", b"ED"))
SIGNATURES = {
    "empty": "",
    "one line": "untrusted comment: x\n",
    "no base64": "untrusted comment: x\n!!!\ntrusted comment: y\n!!!\n",
    "short": f"untrusted comment: x\n{base64.b64encode(b'EDxxxx').decode()}\ntrusted comment: y\nAAAA\n",
    "kind": f"untrusted comment: x\n{OTHER_KIND}\ntrusted comment: y\nAAAA\n",
    "no comment": f"untrusted comment: x\n{NO_COMMENT}\ny\nAAAA\n",
}


@pytest.mark.parametrize("text", SIGNATURES.values(), ids=list(SIGNATURES))
def test_what_is_no_signature(bank: Path, public: Path, text: str) -> None:
    write(signature_path(bank), text)
    with pytest.raises(BankSignatureError, match=r"bank\.h5\.minisig is no signature"):
        verify_signature(bank, read_public_keys(public))


def test_a_signature_of_the_file_itself_names_the_remedy(bank: Path, public: Path) -> None:
    old = base64.b64encode(b"Ed" + bytes(72)).decode()
    write(signature_path(bank), f"untrusted comment: x\n{old}\ntrusted comment: y\nAAAA\n")
    with pytest.raises(BankSignatureError, match="minisign -H"):
        verify_signature(bank, read_public_keys(public))


# --- keys -------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_private_key_that_others_can_read_signs_nothing(bank: Path, private: Path, mode: int) -> None:
    private.chmod(mode)
    with pytest.raises(KeyFileError, match="others than its owner") as caught:
        sign_bank(bank, private)
    assert caught.value.fix == f"chmod 600 {private}"
    assert not signature_path(bank).exists()


def test_what_is_no_private_key(bank: Path, private: Path, public: Path, tmp_path: Path) -> None:
    for path in (public, bank, write(tmp_path / "empty", "")):
        with pytest.raises(KeyFileError, match="no private key"):
            sign_bank(bank, path)
    with pytest.raises(KeyFileError, match="cannot be read"):
        sign_bank(bank, tmp_path / "nowhere.key")
    first, line = private.read_text().splitlines()
    raw = bytearray(base64.b64decode(line))
    raw[70] ^= 1
    damaged = write(tmp_path / "d.key", f"{first}\n{base64.b64encode(raw).decode()}\n")
    with pytest.raises(KeyFileError, match="it is damaged"):
        sign_bank(bank, damaged)
    raw[70] ^= 1
    raw[2:4] = b"Sc"
    locked = write(tmp_path / "l.key", f"{first}\n{base64.b64encode(raw).decode()}\n")
    with pytest.raises(KeyFileError, match="has a passphrase") as caught:
        sign_bank(bank, locked)
    assert "minisign -S" in caught.value.fix


def test_what_is_no_public_key(private: Path, tmp_path: Path) -> None:
    for path in (private, DATA / "board.h5"):
        with pytest.raises(KeyFileError, match="no public key"):
            read_public_keys(path)
    empty = tmp_path / "keys"
    empty.mkdir()
    with pytest.raises(KeyFileError, match=r"holds no \*\.pub files"):
        read_public_keys(empty)
    with pytest.raises(KeyFileError, match="cannot be read"):
        read_public_keys(tmp_path / "nowhere.pub")


# --- a site's policy --------------------------------------------------------------------------------


def test_without_a_key_any_bank_is_accepted() -> None:
    assert accepted_keys(None) is None


def test_the_keys_of_a_folder_are_all_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "keys"
    folder.mkdir()
    names = {make_keys(folder / name)[2].name for name in ("a", "b")}
    assert {key.name for key in accepted_keys(folder)} == names
    monkeypatch.setenv(POLICY, str(folder))
    assert {key.name for key in accepted_keys(None)} == names


def test_a_key_that_is_given_opens_no_hole_in_the_policy(
    bank: Path, private: Path, public: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_bank(bank, private)
    monkeypatch.setenv(POLICY, str(make_keys(tmp_path / "site")[1]))
    with pytest.raises(BankSignatureError, match="none of those accepted here"):
        OpenBank(bank, device="cpu", threads=1, search="exact", bank_key=public)
    monkeypatch.setenv(POLICY, os.pathsep.join([str(tmp_path / "site.pub"), str(public)]))
    assert (
        OpenBank(bank, device="cpu", threads=1, search="exact").signed_by == read_public_keys(public)[0].name
    )


@pytest.mark.parametrize("policy", ["/nowhere", os.pathsep])
def test_a_policy_that_names_no_key_accepts_nothing(
    bank: Path, private: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    sign_bank(bank, private)
    monkeypatch.setenv(POLICY, policy)
    with pytest.raises((KeyFileError, BankSignatureError)):
        OpenBank(bank, device="cpu", threads=1, search="exact")


def test_nothing_of_a_bank_is_read_before_its_signature(
    bank: Path, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stinfer.open_bank.Bank.open", lambda _: pytest.fail("it was opened"))
    with pytest.raises(BankSignatureError):
        OpenBank(bank, device="cpu", threads=1, search="exact", bank_key=public)


def test_the_prediction_says_which_key_it_was(
    bank: Path, private: Path, public: Path, tmp_path: Path
) -> None:
    sign_bank(bank, private)
    out = tmp_path / "p.h5ad"
    stinfer.predict_slide(BOARD, bank, out=out, mpp=5.0, bank_key=public)
    with h5py.File(out) as file:
        assert file["uns/stinfer/bank/signed_by"].asstr()[()] == read_public_keys(public)[0].name
    stinfer.predict_slide(BOARD, bank, out=out, mpp=5.0, overwrite=True)
    with h5py.File(out) as file:
        assert "signed_by" not in file["uns/stinfer/bank"]


# --- commands ---------------------------------------------------------------------------------------


def test_the_commands_from_key_to_prediction(bank: Path, tmp_path: Path) -> None:
    lab = tmp_path / "team"
    code, text = invoke("bank", "keygen", lab)
    assert code == 0
    name = read_public_keys(tmp_path / "team.pub")[0].name
    assert f"{lab}.pub: the public key, {name}" in text
    run = ["run", BOARD, "--bank", bank, "--bank-key", f"{lab}.pub", "--mpp", "5", "--quiet"]
    run += ["--out", tmp_path / "p.h5ad"]
    code, text = invoke(*run)
    assert code == 1
    assert f"Error: bank {bank} is not accepted: only signed banks are" in text
    assert "Try:   get the bank, with its .minisig file" in text
    assert not (tmp_path / "p.h5ad").exists()
    assert invoke("bank", "sign", bank, "--key", f"{lab}.key")[0] == 0
    assert invoke("bank", "sign", bank, "--key", f"{lab}.key")[0] == 1  # it is there already
    code, text = invoke("bank", "verify", bank, "--key", f"{lab}.pub")
    assert (code, text.splitlines()[0]) == (0, f"ok  signed by key {name}")
    assert invoke(*run) == (0, "")


def test_many_slides_of_a_bank_that_is_not_signed(bank: Path, public: Path, tmp_path: Path) -> None:
    slides = [shutil.copy(BOARD, tmp_path / f"{name}.png") for name in "ab"]
    code, text = invoke("run", *slides, "--bank", bank, "--bank-key", public, "--mpp", "5")
    assert code == 1
    assert "is not accepted" in text


def test_a_damaged_bank_is_not_signed(bank: Path, private: Path) -> None:
    with h5py.File(bank, "r+") as file:
        file["obsm/embedding"][0, 0] += 1
    code, text = invoke("bank", "sign", bank, "--key", private)
    assert code == 1
    assert "its embedding was altered" in text
    assert not signature_path(bank).exists()


def test_a_missing_package_is_named(
    bank: Path, private: Path, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_bank(bank, private)
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name.startswith("cryptography"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    for work in (
        lambda: verify_signature(bank, read_public_keys(public)),
        lambda: sign_bank(bank, private, overwrite=True),
        lambda: make_keys(bank.with_name("new")),
    ):
        with pytest.raises(ExtraMissingError, match="cryptography") as caught:
            work()
        assert isinstance(caught.value, StInferError)
        assert caught.value.fix == "pip install 'stinfer[sign]'"
