"""What `make export` does: in an empty project, with checkpoints, and with a data set."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
from pathlib import Path

import onnx
import pytest

from stinfer.bank import Bank
from stinfer.contract import ModelCard
from stinfer.encoder import Encoder
from stinfer.errors import OutputExistsError, SettingError, StInferError
from stinfer_export import export_all as module
from stinfer_export.errors import DatasetError
from stinfer_export.export_all import export_all, export_backbone
from stinfer_export.registry import PAPER_BACKBONES

ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("make_fixtures", ROOT / "tests/make_fixtures.py")
fixtures = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(fixtures)

PAPER = [
    "vgg16.tv_in1k",
    "densenet121.ra_in1k",
    "resnet18.a1_in1k",
    "resnet50.a1_in1k",
    "resnext50d_32x4d.bt_in1k",
]


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """An empty project as the current folder, and no data set anywhere."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(module, "HER2ST_PLACES", (Path("reference_bank/data/her2st"),))
    return folder


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    folder = tmp_path_factory.mktemp("board") / "data"
    fixtures.write_board_data_set(folder)
    return folder


@pytest.fixture
def conversions(monkeypatch, tmp_path):
    """Put the mean color in place of conversion by torch; list the names that were converted."""
    converted = []

    def convert(name, checkpoint, out_dir, *, pretrained=False, overwrite=False):
        assert not pretrained
        assert overwrite
        converted.append(name)
        plain = tmp_path / "mean_color.onnx"
        fixtures.write_mean_color_model(plain)
        model = onnx.load(plain)
        digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        onnx.helper.set_model_props(model, ModelCard(name, 8, 3, 0, 0, digest, "fp32").to_props())
        path = out_dir / f"{name}.onnx"
        onnx.save(model, path)
        return path

    monkeypatch.setattr(module, "export_backbone", convert)
    return converted


def _checkpoint(name, content=b"weights"):
    folder = Path("models/checkpoints")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def _run(her2st=None, model=None):
    return list(export_all(her2st, model, None))


def test_an_empty_project_is_told_what_to_put_where(project):
    lines = _run()

    assert lines[0] == "wrote models/stain_texture.onnx"
    assert [line.split(":")[0] for line in lines[1:6]] == [f"no weights for {name}" for name in PAPER]
    for name, line in zip(PAPER, lines[1:6], strict=True):
        found = re.fullmatch(r".*: save (https://\S+) as (models/checkpoints/\S+)", line)
        assert found is not None
        assert f"timm/{name}/" in found[1]
        assert found[2] == f"models/checkpoints/{name}.safetensors"
    assert len(lines) == 7
    assert lines[6].startswith("no bank: the her2st data set was not found")
    assert "https://github.com/almaan/her2st" in lines[6]
    assert "make export HER2ST=" in lines[6]
    assert "reference_bank/data/her2st" in lines[6]
    assert sorted(path.name for path in project.rglob("*") if path.is_file()) == ["stain_texture.onnx"]
    card = Encoder(Path("models/stain_texture.onnx").read_bytes(), "it", device="cpu").card
    assert (card.backbone, card.input_size_px) == ("stain_texture", 224)


def test_what_it_tells_to_run_is_a_target_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()

    assert re.search(r"^export:", makefile, re.MULTILINE)
    assert re.search(r"^HER2ST \?=", makefile, re.MULTILINE)
    assert "--her2st '$(HER2ST)'" in makefile


def test_a_checkpoint_saved_as_told_is_then_found(conversions):
    targets = [re.search(r" as (\S+)$", line) for line in _run() if line.startswith("no weights")]
    for target in targets:
        _checkpoint(Path(target[1]).name)

    lines = _run()

    assert sorted(conversions) == sorted(PAPER)
    assert not [line for line in lines if line.startswith("no weights")]


def test_the_data_set_given_is_packed(board):
    lines = _run(board)

    assert lines[-2] == f"packing {board} with models/stain_texture.onnx"
    assert lines[-1] == "wrote reference_bank/her2st.h5: 30 references x 3 genes"
    bank = Bank.open("reference_bank/her2st.h5")
    s = bank.settings
    assert (s.dataset, s.backbone) == ("her2st", "stain_texture")
    assert (s.pitch_um, s.spot_diameter_um, s.fov_um) == (200, 100, 154)
    assert bank.spots[0] == "T1_0x0"
    assert bank.genes == ("GREEN", "RED", "REST")
    assert hashlib.sha256(Path("models/stain_texture.onnx").read_bytes()).hexdigest() == s.model_sha256


def test_the_data_set_is_found_in_its_place_and_packed_again(board, conversions):
    shutil.copytree(board, "reference_bank/data/her2st")
    _checkpoint("resnet18.a1_in1k.pth")

    assert _run()[-2] == "packing reference_bank/data/her2st with models/resnet18.a1_in1k.onnx"
    first = Path("reference_bank/her2st.h5").read_bytes()
    assert _run()[-1] == "wrote reference_bank/her2st.h5: 30 references x 3 genes"
    assert Path("reference_bank/her2st.h5").read_bytes() == first


def test_a_data_set_that_is_not_there_is_an_error():
    with pytest.raises(DatasetError, match=r"nowhere: there is no such folder$"):
        _run(Path("nowhere"))


def test_a_model_of_the_same_checkpoint_is_kept(conversions):
    _checkpoint("resnet18.a1_in1k.pth", b"first")
    path = Path("models/resnet18.a1_in1k.onnx")

    assert "wrote models/resnet18.a1_in1k.onnx from models/checkpoints/resnet18.a1_in1k.pth" in _run()
    written = path.stat().st_mtime_ns
    assert (
        "kept models/resnet18.a1_in1k.onnx: models/checkpoints/resnet18.a1_in1k.pth has not changed"
    ) in _run()
    assert path.stat().st_mtime_ns == written
    assert conversions == ["resnet18.a1_in1k"]


@pytest.mark.parametrize("change", ["other weights", "broken model", "model lost", "foreign model"])
def test_a_model_of_other_weights_is_written_again(conversions, change):
    _checkpoint("resnet18.a1_in1k.pth", b"first")
    _run()
    path = Path("models/resnet18.a1_in1k.onnx")
    if change == "other weights":
        _checkpoint("resnet18.a1_in1k.pth", b"second")
    elif change == "broken model":
        path.write_bytes(path.read_bytes()[:50])
    elif change == "model lost":
        path.unlink()
    else:
        fixtures.write_mean_color_model(path)

    lines = _run()

    assert "wrote models/resnet18.a1_in1k.onnx from models/checkpoints/resnet18.a1_in1k.pth" in lines
    assert conversions == ["resnet18.a1_in1k"] * 2
    digest = hashlib.sha256(Path("models/checkpoints/resnet18.a1_in1k.pth").read_bytes()).hexdigest()
    assert Encoder(path.read_bytes(), "it", device="cpu").card.checkpoint_sha256 == digest


def test_only_missing_weights_are_asked_for(conversions):
    _checkpoint("resnet50.a1_in1k.pth")
    _checkpoint("vgg16.tv_in1k.safetensors")

    asked = [line for line in _run() if line.startswith("no weights")]

    assert [line.split()[3].rstrip(":") for line in asked] == [PAPER[1], PAPER[2], PAPER[4]]


@pytest.mark.parametrize(
    ("checkpoints", "asked", "chosen"),
    [
        ([], None, "stain_texture"),
        (["resnet50.a1_in1k.pth", "densenet121.ra_in1k.pth"], None, "densenet121.ra_in1k"),
        (["resnet50.a1_in1k.pth", "densenet121.ra_in1k.pth"], "resnet50.a1_in1k", "resnet50.a1_in1k"),
        (["resnet50.a1_in1k.pth", "vgg16.tv_in1k.pth"], None, "vgg16.tv_in1k"),
        (["resnet50.a1_in1k.pth"], "stain_texture", "stain_texture"),
    ],
)  # fmt: skip
def test_the_model_that_packs(board, conversions, checkpoints, asked, chosen):
    for name in checkpoints:
        _checkpoint(name)

    assert f"packing {board} with models/{chosen}.onnx" in _run(board, asked)
    assert Bank.open("reference_bank/her2st.h5").settings.backbone == chosen


@pytest.mark.parametrize(
    ("names", "chosen"),
    [(["anet.x", "bnet.y"], "anet.x"), (["anet.x", "resnet50.a1_in1k"], "resnet50.a1_in1k")],
)
def test_another_network_packs_where_none_of_the_paper_is_at_hand(
    board, conversions, monkeypatch, tmp_path, names, chosen
):
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"weights")
    monkeypatch.setattr(module, "find_checkpoints", lambda _: dict.fromkeys(names, weights))

    assert f"packing {board} with models/{chosen}.onnx" in _run(board)


def test_a_name_without_its_tag_packs_as_well(board, conversions):
    # stinfer-export backbone takes it so.
    _checkpoint("resnet18.pth")

    assert f"packing {board} with models/resnet18.a1_in1k.onnx" in _run(board, "resnet18")


def test_a_model_that_is_not_at_hand_is_refused(board, conversions):
    _checkpoint("resnet18.a1_in1k.pth")

    with pytest.raises(
        SettingError,
        match=r"model vgg16\.tv_in1k was not exported; there are resnet18\.a1_in1k, stain_texture",
    ) as caught:
        _run(board, "vgg16.tv_in1k")

    assert "models/checkpoints" in caught.value.fix
    assert not Path("reference_bank/her2st.h5").exists()


def test_the_papers_backbones_are_five():
    assert [spec.name for spec in PAPER_BACKBONES.values()] == PAPER


# One backbone


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
