"""One backbone by name: our own, which needs no weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from stinfer.encoder import Encoder
from stinfer.errors import OutputExistsError, SettingError, StInferError
from stinfer_export.export_all import export_backbone


@pytest.fixture(autouse=True)
def _project(tmp_path, monkeypatch):
    """An empty project as the current folder."""
    monkeypatch.chdir(tmp_path)


def test_stain_texture_is_written_to_a_new_folder():
    path = export_backbone("stain_texture", None, Path("new/models"))

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
