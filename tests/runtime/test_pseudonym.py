"""Nothing that could name a patient reaches an output or a log: not a slide's metadata, and not its name."""

from __future__ import annotations

import hashlib
import hmac
import importlib.util
import json
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import stinfer
from stinfer import pipeline
from stinfer.cli import main
from stinfer.errors import KeyFileError, OutputWriteError, SettingError, SlideNotFoundError
from stinfer.pseudonym import Pseudonyms

_SPEC = importlib.util.spec_from_file_location("aperio_slide", Path(__file__).parent / "aperio_slide.py")
aperio = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(aperio)
SECRETS, LABEL, MACRO = aperio.SECRETS, aperio.LABEL, aperio.MACRO
svs = aperio.write_svs

DATA = Path(__file__).parents[1] / "data"
BANK, MAP_BANK = DATA / "board.h5", DATA / "board_map.h5"
BOARD = DATA / "board.png"
KEY = bytes(range(32))


def key_file(folder: Path, key: bytes = KEY) -> Path:
    path = folder / "site.key"
    path.write_bytes(key)
    path.chmod(0o600)
    return path


def expected_name(slide: Path, key: bytes = KEY) -> str:
    """The pseudonym as the documentation has it, worked out by hand."""
    sha256 = hashlib.sha256(slide.read_bytes()).hexdigest()
    return f"slide-{hmac.new(key, sha256.encode(), hashlib.sha256).hexdigest()[:16]}"


# --- what is in files -------------------------------------------------------------------------------


def texts_of(path: Path) -> bytes:
    """Return all that a file says, also in what is compressed: HDF5 data and attributes, chunks of PNG."""
    raw = path.read_bytes()
    found = [raw]
    if h5py.is_hdf5(path):

        def collect(name: str, item: Any) -> None:
            found.append(name.encode())
            found.extend(f"{key} {value}".encode() for key, value in item.attrs.items())
            if isinstance(item, h5py.Dataset):
                values = item[...]
                text = values.dtype.kind == "O"
                found.append(b"\n".join(np.atleast_1d(values).ravel().tolist()) if text else values.tobytes())

        with h5py.File(path) as file:
            file.visititems(collect)
    elif raw.startswith(b"\x89PNG"):
        at = 8
        while at < len(raw):
            length = struct.unpack_from(">I", raw, at)[0]
            body = raw[at + 8 : at + 8 + length]
            found.append(body)
            if raw[at + 4 : at + 8] in (b"zTXt", b"iCCP"):
                found.append(zlib.decompress(body.split(b"\0", 1)[1][1:]))
            at += 12 + length
    return b"\n".join(found)


def secrets_in(folder: Path, secrets: list[str]) -> dict[str, list[str]]:
    """Find which files, by their names and content, hold which secrets, in any case and in UTF-16 too."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            text = (str(path.relative_to(folder)).encode() + b"\n" + texts_of(path)).lower()
            forms = [
                s for s in secrets if s.lower().encode() in text or s.lower().encode("utf-16-le") in text
            ]
            if forms:
                found[path.name] = forms
    return found


def items_of(group: h5py.Group) -> Iterator[h5py.Dataset]:
    for item in group.values():
        if isinstance(item, h5py.Dataset):
            yield item
        else:
            yield from items_of(item)


def colors_in(folder: Path) -> set[tuple[int, ...]]:
    """Return all colours of all pictures in a folder's files."""
    found: set[tuple[int, ...]] = set()
    for path in folder.rglob("*"):
        if path.suffix == ".png":
            with Image.open(path) as image:
                found |= set(map(tuple, np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()))
        elif path.is_file() and h5py.is_hdf5(path):
            with h5py.File(path) as file:
                for item in items_of(file):
                    if item.ndim == 3 and item.shape[2] == 3:
                        found |= set(map(tuple, item[...].reshape(-1, 3).tolist()))
    return found


def near(color: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return max(abs(a - b) for a, b in zip(color, other, strict=True)) < 40


def run_everything(slide: Path, out: Path, **more: Any) -> None:
    """Predict with every output there is, each named by its kind alone; then from the map, and cut off."""
    out.mkdir()
    tiff = {"ome_tiff": out / "o.ome.tiff"} if importlib.util.find_spec("tifffile") else {}
    every = {"csv": out / "c.csv", "png": ["RED"], "preview": out / "v.png", "log": out / "l.jsonl", **tiff}
    stinfer.predict_slide(slide, MAP_BANK, out=out / "p.h5ad", save_map=out / "m.map.h5", **every, **more)
    stinfer.predict_slide(slide, BANK, out=out / "q.h5ad", log=out / "l.jsonl", **more)
    stinfer.predict_slide(out / "m.map.h5", MAP_BANK, out=out / "r.h5ad", log=out / "l.jsonl", **more)


def leave_a_checkpoint(slide: Path, out: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Path:
    def fail(*_: object, **__: object) -> None:
        raise OutputWriteError(out, "the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_prediction", fail)
        with pytest.raises(OutputWriteError):
            stinfer.predict_slide(slide, MAP_BANK, out=out / "k.h5ad", log=out / "l.jsonl", **more)
    assert (out / "k.h5ad.checkpoint").is_file()
    return out / "k.h5ad.checkpoint"


# --- metadata of the slide --------------------------------------------------------------------------


def test_the_slide_is_one_with_secrets_that_openslide_sees(tmp_path: Path) -> None:
    import openslide

    with openslide.OpenSlide(svs(tmp_path / "slide.svs")) as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert slide.properties["aperio.PatientID"] == "MRN-00713355"
        assert set(slide.associated_images) >= {"label", "macro"}
        assert slide.associated_images["label"].convert("RGB").getpixel((9, 9)) == LABEL
    found = secrets_in(tmp_path, SECRETS)
    assert found == {"slide.svs": SECRETS}


def test_patient_fields_label_and_macro_reach_no_output_and_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide, out = svs(tmp_path / "slide.svs"), tmp_path / "out"
    run_everything(slide, out)
    leave_a_checkpoint(slide, out, monkeypatch)
    names = {path.name for path in out.iterdir()}
    assert {"p.h5ad", "c.csv", "p.RED.png", "v.png", "l.jsonl", "m.map.h5", "q.h5ad", "r.h5ad"} <= names
    assert secrets_in(out, SECRETS) == {}
    colors = colors_in(out)
    assert len(colors) > 20
    # The preview is drawn in green and cyan of its own, which are darker.
    assert not [color for color in colors if near(color, LABEL) or near(color, MACRO)]


def test_the_folder_of_many_slides_and_their_table_hold_none_of_it(tmp_path: Path) -> None:
    slides = [svs(tmp_path / f"{name}.svs") for name in "ab"]
    slides[1].write_bytes(slides[1].read_bytes() + b"\0")
    out = tmp_path / "out"
    arguments = ["run", *map(str, slides), "--bank", str(BANK), "--out-dir", str(out)]
    result = CliRunner().invoke(main, [*arguments, "--log", str(tmp_path / "l.jsonl")])
    assert result.exit_code == 0
    shutil.move(tmp_path / "l.jsonl", out)
    assert secrets_in(out, SECRETS) == {}
    assert [secret for secret in SECRETS if secret in result.output] == []


def test_the_record_holds_names_and_no_folders(tmp_path: Path) -> None:
    folder = tmp_path / "home_of_whitcombe"
    folder.mkdir()
    slide = svs(folder / "slide.svs")
    out = tmp_path / "out"
    out.mkdir()
    stinfer.predict_slide(
        slide, shutil.copy(BANK, folder / "bank.h5"), out=out / "p.h5ad", spots=spots_file(folder),
    )  # fmt: skip
    assert secrets_in(out, ["home_of_whitcombe", str(tmp_path), "/home"]) == {}
    with h5py.File(out / "p.h5ad") as file:
        record = file["uns/stinfer"]
        assert record["slide/name"].asstr()[()] == "slide.svs"
        assert record["bank/name"].asstr()[()] == "bank.h5"
        assert record["places/file"].asstr()[()] == "obrien_spots.csv"


# --- pseudonyms -------------------------------------------------------------------------------------


def spots_file(folder: Path) -> Path:
    path = folder / "obrien_spots.csv"
    path.write_text("x,y\n100,100\n140,140\n")
    return path


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """A slide whose name and folders say whose it is."""
    folder = tmp_path / "whitcombe_archive" / "OBrien_Mary"
    folder.mkdir(parents=True)
    return svs(folder / "S24-991234_OBrien.svs")


NAMES = ["OBrien", "whitcombe", "S24-991234", "obrien_spots", "obrien_mask"]


def test_with_a_key_the_slides_name_reaches_nothing(
    named: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, key = tmp_path / "out", key_file(tmp_path)
    run_everything(named, out, pseudonym=key)
    leave_a_checkpoint(named, out, monkeypatch, pseudonym=key)
    mask = named.with_name("obrien_mask.png")
    with Image.open(BOARD) as board:
        Image.new("L", board.size, 255).save(mask)
    given = {"tissue_mask": mask, "spots": spots_file(named.parent), "log": out / "l.jsonl"}
    stinfer.predict_slide(named, BANK, out=out / "s.h5ad", pseudonym=key, **given)
    monkeypatch.chdir(out)
    stinfer.predict_slide(named, BANK, pseudonym=key)
    sha256 = hashlib.sha256(named.read_bytes()).hexdigest()
    assert secrets_in(out, [*NAMES, *SECRETS, str(named.parent), sha256]) == {}
    name = expected_name(named)
    assert f"{name}.stinfer.h5ad" in {path.name for path in out.iterdir()}
    for path in (out / "p.h5ad", out / "r.h5ad", out / "s.h5ad"):
        with h5py.File(path) as file:
            assert file["uns/stinfer/slide/name"].asstr()[()] == name
            assert file["uns/stinfer/slide/sha256"].asstr()[()] == ""
            assert list(file["uns/spatial"]) == [name]
    lines = [json.loads(line) for line in (out / "l.jsonl").read_text().splitlines()]
    assert {line["slide"] for line in lines} == {name, expected_map_name(out, name)}
    done = [line for line in lines if line["event"] == "slide_done"]
    assert done[0]["out"] == "p.h5ad"


def expected_map_name(out: Path, name: str) -> str:
    """A map made with a pseudonym keeps it: it is of the same slide."""
    with h5py.File(out / "m.map.h5") as file:
        assert file["uns/stinfer/slide_name"].asstr()[()] == name
    return name


def test_without_a_key_the_same_run_does_name_it(named: Path, tmp_path: Path) -> None:
    """So that the search above can find something."""
    out = tmp_path / "out"
    run_everything(named, out)
    assert {"p.h5ad", "l.jsonl", "m.map.h5"} <= set(secrets_in(out, NAMES))


def test_the_prediction_is_otherwise_the_same(named: Path, tmp_path: Path) -> None:
    plain, hidden = tmp_path / "plain.h5ad", tmp_path / "hidden.h5ad"
    stinfer.predict_slide(named, BANK, out=plain)
    stinfer.predict_slide(named, BANK, out=hidden, pseudonym=key_file(tmp_path))
    with h5py.File(plain) as one, h5py.File(hidden) as other:
        np.testing.assert_array_equal(one["X"][...], other["X"][...])
        assert set(one["uns/stinfer/slide"]) == set(other["uns/stinfer/slide"])


def test_the_pseudonym_is_of_the_content_and_the_key(named: Path, tmp_path: Path) -> None:
    names = Pseudonyms(key_file(tmp_path))
    copy = Path(shutil.copy(named, tmp_path / "another name.svs"))
    assert names.of_slide(named) == names.of_slide(copy) == expected_name(named)
    copy.write_bytes(copy.read_bytes() + b"\0")
    assert names.of_slide(copy) == expected_name(copy) != expected_name(named)
    other = Pseudonyms(key_file(tmp_path, key=b"another key of 16"))
    assert other.of_slide(named) == expected_name(named, key=b"another key of 16")


def test_a_map_without_a_pseudonym_gets_that_of_its_slide(named: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.map.h5"
    stinfer.predict_slide(named, MAP_BANK, out=tmp_path / "p.h5ad", save_map=path)
    assert Pseudonyms(key_file(tmp_path)).of_slide(path) == expected_name(named)


def test_a_map_that_says_its_slide_by_name_alone_is_refused(named: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.map.h5"
    stinfer.predict_slide(named, MAP_BANK, out=tmp_path / "p.h5ad", save_map=path)
    with h5py.File(path, "r+") as file:
        file["uns/stinfer/slide_sha256"][()] = ""
    with pytest.raises(SettingError, match="by its name alone"):
        Pseudonyms(key_file(tmp_path)).of_slide(path)


def test_many_slides_are_named_by_it_and_passed_over_the_next_time(named: Path, tmp_path: Path) -> None:
    second = Path(shutil.copy(named, named.with_name("S24-991235_OBrien.svs")))
    second.write_bytes(second.read_bytes() + b"\0")
    twin = Path(shutil.copy(named, named.with_name("S24-991234_OBrien (1).svs")))
    missing = named.with_name("S24-000000_OBrien.svs")
    out, key, log = tmp_path / "out", key_file(tmp_path), tmp_path / "out" / "l.jsonl"
    out.mkdir()
    arguments: dict[str, Any] = {"out_dir": out, "pseudonym": key, "log": log}
    found = stinfer.predict_slides([named, second, twin, missing], BANK, **arguments)
    assert [one.outcome for one in found] == ["done", "done", "done", "failed"]
    assert isinstance(found[3].error, SlideNotFoundError)
    name = expected_name(named)
    assert {one.out.name for one in found[:3]} > {f"{expected_name(second)}.stinfer.h5ad"}
    assert all(one.out.name.startswith(name) for one in (found[0], found[2]))
    again = stinfer.predict_slides([named, second, twin, missing], BANK, **arguments)
    assert [one.outcome for one in again] == ["finished before"] * 3 + ["failed"]
    assert secrets_in(out, [*NAMES, "S24-", *SECRETS]) == {}


def test_one_slide_in_a_folder_is_named_by_it(named: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["run", str(named), "--bank", str(BANK), "--out-dir", str(out)]
    result = CliRunner().invoke(main, [*arguments, "--pseudonym", str(key_file(tmp_path))])
    assert result.exit_code == 0
    assert [path.name for path in out.iterdir()] == [f"{expected_name(named)}.stinfer.h5ad"]


def test_a_run_that_was_cut_off_goes_on(
    named: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key = key_file(tmp_path)
    leave_a_checkpoint(named, tmp_path, monkeypatch, pseudonym=key)
    caplog.clear()
    stinfer.predict_slide(named, MAP_BANK, out=tmp_path / "k.h5ad", pseudonym=key)
    assert "going on from" in caplog.text


def test_a_failure_is_logged_without_the_name(named: Path, tmp_path: Path) -> None:
    log, key = tmp_path / "l.jsonl", key_file(tmp_path)
    bad = named.with_name("OBrien_broken.svs")
    bad.write_bytes(b"no slide at all")
    for slide in (bad, named.with_name("OBrien_gone.svs")):
        with pytest.raises(stinfer.StInferError):
            stinfer.predict_slide(slide, BANK, out=tmp_path / "p.h5ad", log=log, pseudonym=key)
    out = named.parent / "nowhere" / "p.h5ad"
    with pytest.raises(stinfer.StInferError):
        stinfer.predict_slide(named, BANK, out=out, log=log, pseudonym=key)
    for bank in (named.with_name("bank.h5"), str(named.with_name("bank.h5"))):
        with pytest.raises(stinfer.StInferError):
            stinfer.predict_slide(named, bank, out=tmp_path / "p.h5ad", log=log, pseudonym=key)
    text = log.read_text()
    assert text.count("_failed") == 5
    assert [secret for secret in [*NAMES, str(tmp_path)] if secret.lower() in text.lower()] == []
    assert expected_name(bad) in text


@pytest.mark.parametrize("key", [b"", b"x" * 15, b"x" * 4097])
def test_a_key_that_is_none(tmp_path: Path, key: bytes) -> None:
    with pytest.raises(KeyFileError, match="has not 16 to 4096 bytes") as caught:
        Pseudonyms(key_file(tmp_path, key))
    assert "openssl rand" in caught.value.fix


def test_a_key_that_is_not_there_or_that_everyone_reads(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot be read"):
        Pseudonyms(tmp_path / "nowhere")
    if os.name == "posix":
        path = key_file(tmp_path)
        path.chmod(0o604)
        with pytest.raises(KeyFileError, match="everyone on this machine"):
            Pseudonyms(path)
        path.chmod(0o640)
        Pseudonyms(path)
