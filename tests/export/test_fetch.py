"""The commands that fetch, from a server on this machine; and archives that nobody should trust."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import stat
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from stinfer.errors import SettingError, StInferError
from stinfer_export import fetch
from stinfer_export.archive import unpack
from stinfer_export.cli import main
from stinfer_export.download import Patience
from stinfer_export.errors import ArchiveError, DatasetError, FetchError
from stinfer_export.registry import PAPER_BACKBONES, find_checkpoints

pytest.importorskip("pooch")
_SPEC = importlib.util.spec_from_file_location("file_server", Path(__file__).parent / "file_server.py")
shared = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(shared)
server = shared.server
HASTY = Patience(timeout_s=0.3, n_attempts=2, pause_s=0.0)
PARTS = ("data/ST-imgs", "data/ST-cnts")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def weights(server, monkeypatch):
    """Let resnet18 be published by the server, under the name of the hash of what it serves."""
    digits = hashlib.sha256(server.content).hexdigest()[:8]
    url = f"http://127.0.0.1:{server.server_port}/resnet18_a1_0-{digits}.pth"
    monkeypatch.setitem(PAPER_BACKBONES, "resnet18", replace(PAPER_BACKBONES["resnet18"], url=url))
    return fetch.weights_of(PAPER_BACKBONES["resnet18"])


# Weights


def test_the_published_digits_are_those_of_the_file_names():
    found = {name: fetch.weights_of(spec) for name, spec in PAPER_BACKBONES.items()}

    assert {name: one.hash_prefix for name, one in found.items()} == {
        "vgg16": "",
        "densenet121": "",
        "resnet18": "d63eafa0",
        "resnet50": "14fe96d1",
        "resnext50d_32x4d": "103e99f8",
    }
    assert found["resnet18"].target == Path("models/checkpoints/resnet18_a1_0-d63eafa0.pth")
    assert found["vgg16"].target == Path("models/checkpoints/vgg16.tv_in1k.safetensors")
    assert found["vgg16"].url == "https://huggingface.co/timm/vgg16.tv_in1k/resolve/main/model.safetensors"


def test_what_is_fetched_is_found_by_make_export(tmp_path):
    for spec in PAPER_BACKBONES.values():
        target = fetch.weights_of(spec).target
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"")

    assert set(find_checkpoints(Path("models/checkpoints"))) == {
        spec.name for spec in PAPER_BACKBONES.values()
    }


def test_weights_are_fetched_checked_and_then_kept(server, weights):
    first = list(fetch.fetch_weights("resnet18", patience=HASTY))
    again = list(fetch.fetch_weights("resnet18.a1_in1k", patience=HASTY))

    assert weights.target.read_bytes() == server.content
    said = f"its SHA-256 begins with {weights.hash_prefix}, as published"
    assert first == [f"fetched {weights.target} from {weights.url}; {said}"]
    assert again == [f"kept {weights.target}; {said}"]
    assert len(server.asked) == 1


def test_other_weights_in_their_place_are_refused(server, weights):
    weights.target.parent.mkdir(parents=True)
    weights.target.write_bytes(b"other")

    with pytest.raises(SettingError, match="is there, but is not what was published"):
        list(fetch.fetch_weights("resnet18"))

    assert weights.target.read_bytes() == b"other"
    assert server.asked == []


def test_weights_without_published_digits_say_so(server, monkeypatch):
    spec = replace(PAPER_BACKBONES["vgg16"], url=server.url.replace("-0000", ""))
    monkeypatch.setitem(PAPER_BACKBONES, "vgg16", spec)

    (line,) = fetch.fetch_weights("vgg16", patience=HASTY)

    digest = hashlib.sha256(server.content).hexdigest()
    assert line.endswith(f"no hash is published to check it against; its SHA-256 is {digest}")


def test_the_hash_that_the_server_tells_is_told(server, monkeypatch):
    digest = hashlib.sha256(server.content).hexdigest()
    server.headers["X-Linked-Etag"] = f'"{digest}"'
    spec = replace(PAPER_BACKBONES["vgg16"], url=server.url.replace("-0000", ""))
    monkeypatch.setitem(PAPER_BACKBONES, "vgg16", spec)

    (line,) = fetch.fetch_weights("vgg16", patience=HASTY)

    assert line.endswith(f"its SHA-256 is {digest}, as its server says")


def test_all_means_all_five(server, monkeypatch):
    for name, spec in PAPER_BACKBONES.items():
        url = f"http://127.0.0.1:{server.server_port}/{name}.pth"
        monkeypatch.setitem(PAPER_BACKBONES, name, replace(spec, url=url))

    assert len(list(fetch.fetch_weights("all", patience=HASTY))) == 5
    assert len(list(Path("models/checkpoints").iterdir())) == 5


def test_another_backbone_is_refused():
    with pytest.raises(SettingError, match="the weights of 'resnet34' are not among those") as caught:
        list(fetch.fetch_weights("resnet34"))
    assert "vgg16, densenet121, resnet18, resnet50, resnext50d_32x4d" in caught.value.fix


def test_offline_the_command_says_what_to_fetch_and_where_to_put_it(server, weights):
    server.script = ["lost"]

    result = CliRunner().invoke(main, ["fetch", "weights", "resnet18"])

    assert result.exit_code == 1
    error, remedy = result.output.splitlines()[-2:]
    assert error.startswith(f"Error: {weights.url} could not be fetched: the server answered 404")
    assert "fetch that file where there is a network" in remedy
    assert remedy.endswith(f"put it here as {weights.target}; its SHA-256 begins with {weights.hash_prefix}")
    assert isinstance(result.exception, SystemExit)


# The data set


def _zip(files):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return made.getvalue()


HER2ST = {
    "her2st-0abc/README.md": "words",
    "her2st-0abc/data/": "",
    "her2st-0abc/data/ST-imgs/A/A1/HE.jpg": "picture",
    "her2st-0abc/data/ST-cnts/A1.tsv.gz": "counts",
    "her2st-0abc/data/ST-spotfiles/A1_selection.tsv": "spots",
    "her2st-0abc/scripts/data/ST-cnts/x": "not this",
}


def test_the_data_set_is_fetched_and_unpacked(server, monkeypatch):
    server.content = _zip(HER2ST)
    monkeypatch.setattr(fetch, "HER2ST_ARCHIVE", server.url)

    lines = list(fetch.fetch_her2st(patience=HASTY))
    again = list(fetch.fetch_her2st(patience=HASTY))

    folder = Path("reference_bank/data/her2st")
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {"ST-imgs/A/A1/HE.jpg", "ST-cnts/A1.tsv.gz", "ST-spotfiles/A1_selection.tsv"}
    assert (folder / "ST-imgs/A/A1/HE.jpg").read_text() == "picture"
    assert lines[-1] == f"unpacked 3 files into {folder}: sections A1"
    assert hashlib.sha256(server.content).hexdigest() in lines[0]
    assert again == [f"kept {folder}: sections A1"]
    assert [path.name for path in folder.parent.iterdir()] == ["her2st"]
    assert len(server.asked) == 1


def test_an_archive_put_there_by_hand_is_unpacked(server, monkeypatch):
    monkeypatch.setattr(fetch, "HER2ST_ARCHIVE", server.url)
    Path("reference_bank/data").mkdir(parents=True)
    Path("reference_bank/data/her2st.zip").write_bytes(_zip(HER2ST))

    result = CliRunner().invoke(main, ["fetch", "her2st"])

    assert result.exit_code == 0, result.output
    assert "unpacked 3 files into reference_bank/data/her2st: sections A1" in result.output
    assert server.asked == []


def test_a_folder_that_is_no_data_set_is_not_taken_for_one():
    Path("reference_bank/data/her2st").mkdir(parents=True)

    with pytest.raises(DatasetError, match="it has no folder ST-cnts"):
        list(fetch.fetch_her2st())


def test_no_data_set_without_its_archive(server, monkeypatch):
    server.script = ["lost"]
    monkeypatch.setattr(fetch, "HER2ST_ARCHIVE", server.url)

    with pytest.raises(FetchError) as caught:
        list(fetch.fetch_her2st(patience=HASTY))

    assert caught.value.fix.endswith("put it here as reference_bank/data/her2st.zip")


# Archives


def _unpacking_fails(files, *, content=None, limit_bytes=10_000):
    Path("a.zip").write_bytes(_zip(files) if content is None else content)
    with pytest.raises(ArchiveError) as caught:
        unpack(Path("a.zip"), PARTS, Path("out"), limit_bytes=limit_bytes)
    assert isinstance(caught.value, StInferError)
    assert sorted(path.name for path in Path().iterdir()) == ["a.zip"]
    return caught.value.what


GOOD = {"top/data/ST-imgs/a": "1", "top/data/ST-cnts/b": "2"}


@pytest.mark.parametrize(
    "name",
    ["top/data/ST-imgs/../../../../evil", "/data/ST-imgs/evil", "top\\..\\evil", "c:/data/ST-imgs/evil"],
)
def test_paths_that_lead_out_are_refused(name):
    assert "it leads out of its folder" in _unpacking_fails({**GOOD, name: "x"})


def test_links_are_refused():
    link = zipfile.ZipInfo("top/data/ST-imgs/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    made = io.BytesIO(_zip(GOOD))
    with zipfile.ZipFile(made, "a") as file:
        file.writestr(link, "/etc/passwd")

    assert "it holds a link: 'top/data/ST-imgs/link'" in _unpacking_fails({}, content=made.getvalue())


def test_an_archive_that_unpacks_to_too_much():
    assert "it unpacks to more than" in _unpacking_fails({**GOOD, "top/data/ST-cnts/c": bytes(20_000)})


def test_an_archive_that_lies_about_its_size():
    # The sizes of the last entry, where they stand in its directory, are made small.
    content = bytearray(_zip({**GOOD, "top/data/ST-cnts/c": bytes(20_000)}))
    entry = content.rindex(b"PK\x01\x02")
    assert int.from_bytes(content[entry + 24 : entry + 28], "little") == 20_000
    content[entry + 24 : entry + 28] = (10).to_bytes(4, "little")

    assert "it is damaged" in _unpacking_fails({}, content=bytes(content))


@pytest.mark.parametrize("n_kept", [0, 10, 150])
def test_damaged_archives(n_kept):
    assert "it is damaged" in _unpacking_fails({}, content=_zip(GOOD)[:n_kept])


def test_an_archive_without_what_is_wanted():
    assert "it has no folder data/ST-cnts" in _unpacking_fails({"top/data/ST-imgs/a": "1"})


def test_a_folder_that_is_there_is_not_touched():
    Path("a.zip").write_bytes(_zip(GOOD))
    Path("out").mkdir()
    Path("out/mine").write_text("precious")

    with pytest.raises(ArchiveError, match="it cannot be unpacked"):
        unpack(Path("a.zip"), PARTS, Path("out"), limit_bytes=10_000)

    assert [path.name for path in Path("out").iterdir()] == ["mine"]
    assert sorted(path.name for path in Path().iterdir()) == ["a.zip", "out"]
