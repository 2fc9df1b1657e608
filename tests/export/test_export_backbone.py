"""One backbone by name: our own, which needs no weights."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from stinfer.encoder import Encoder
from stinfer.errors import OutputExistsError, SettingError, StInferError
from stinfer_export import export_all
from stinfer_export.export_all import export_backbone
from stinfer_export.stain_texture import write_stain_texture


@pytest.fixture(autouse=True)
def _project(tmp_path, monkeypatch):
    """An empty project as the current folder."""
    monkeypatch.chdir(tmp_path)


def test_stain_texture_is_written_to_a_new_folder(caplog):
    with caplog.at_level(logging.INFO, logger="stinfer_export"):
        path = export_backbone("stain_texture", None, Path("new/models"))

    assert caplog.messages == ["new/models/stain_texture.onnx: map: halo 1 cell, offset 0 x 0 px"]
    assert path == Path("new/models/stain_texture.onnx")
    assert Encoder(path.read_bytes(), "it", device="cpu").card.backbone == "stain_texture"


@pytest.mark.parametrize("options", [{"checkpoint": Path("a.pth")}, {"checkpoint": None, "pretrained": True}])
def test_stain_texture_takes_no_weights(options):
    with pytest.raises(SettingError, match="stain_texture has no weights") as caught:
        export_backbone("stain_texture", out_dir=Path("models"), **options)

    assert "--checkpoint" in caught.value.fix
    assert "--pretrained" in caught.value.fix
    assert not Path("models").exists()


def test_an_existing_model_is_kept_unless_asked():
    path = export_backbone("stain_texture", None, Path("models"))
    written = path.read_bytes()
    path.write_bytes(b"mine")

    with pytest.raises(OutputExistsError, match=r"stain_texture\.onnx exists"):
        export_backbone("stain_texture", None, Path("models"))
    assert path.read_bytes() == b"mine"

    export_backbone("stain_texture", None, Path("models"), overwrite=True)
    assert path.read_bytes() == written


def test_a_folder_that_cannot_be_made_is_refused():
    Path("file").write_text("")

    with pytest.raises(StInferError, match="file"):
        export_backbone("stain_texture", None, Path("file"))


def test_a_model_that_does_not_tell_of_maps_is_written_again(monkeypatch):
    """One of before there were any: the same checkpoint, the same format version, no keys of maps."""
    checkpoint = Path("models/checkpoints/resnet18.a1_in1k.pth")
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"weights")
    path = Path("models/resnet18.a1_in1k.onnx")
    told = replace(
        write_stain_texture(path),
        checkpoint_sha256=hashlib.sha256(b"weights").hexdigest(),
        map_traits=None,
        map_refusal="it sees too far",
    )
    silent = {key: value for key, value in told.to_props().items() if "map" not in key}
    written = []
    # No data set is to be found, wherever the tests are run.
    monkeypatch.delenv("STINFER_DATA", raising=False)
    monkeypatch.setattr(export_all, "export_backbone", lambda name, *_, **__: written.append(name))
    model = onnx.load(path)
    for props in (told.to_props(), silent):
        onnx.helper.set_model_props(model, props)
        onnx.save(model, path)
        assert len(list(export_all.export_all(None, None, None))) == 7
    assert written == ["resnet18.a1_in1k"]
