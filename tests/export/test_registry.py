"""Names of backbones, and of the files their weights lie in."""

import subprocess
import sys
from pathlib import Path

import pytest

from stinfer_export.errors import BackboneUnknownError, BackboneUnsupportedError
from stinfer_export.registry import PAPER_BACKBONES, find_checkpoints, resolve

PAPER_NAMES = {
    "vgg16": "vgg16.tv_in1k",
    "densenet121": "densenet121.ra_in1k",
    "resnet18": "resnet18.a1_in1k",
    "resnet50": "resnet50.a1_in1k",
    "resnext50d_32x4d": "resnext50d_32x4d.bt_in1k",
}


@pytest.fixture
def timm_models():
    return pytest.importorskip("timm.models")


@pytest.mark.parametrize(("short", "tagged"), PAPER_NAMES.items())
def test_the_papers_names_resolve_to_their_tags(short, tagged):
    assert resolve(short).name == tagged
    assert resolve(tagged) is resolve(short)
    assert resolve(tagged).architecture == short


def test_the_paper_has_five():
    assert list(PAPER_BACKBONES) == list(PAPER_NAMES)


@pytest.mark.parametrize("tagged", PAPER_NAMES.values())
def test_the_table_says_what_timm_says(tagged, timm_models):
    spec, cfg = resolve(tagged), timm_models.get_pretrained_cfg(tagged)

    assert (spec.mean, spec.std) == (cfg.mean, cfg.std)
    assert cfg.input_size == (3, spec.input_size_px, spec.input_size_px)
    assert spec.hub_id == cfg.hf_hub_id
    # The project moved on GitHub; some of timm's addresses have the old owner.
    assert spec.url == cfg.url.replace("/rwightman/", "/huggingface/")
    assert spec.fixed_size == cfg.fixed_input_size


def test_sources_name_the_hub_before_the_release():
    assert resolve("resnet18").sources == (
        "https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors",
        "https://github.com/huggingface/pytorch-image-models/releases/download/"
        "v0.1-rsb-weights/resnet18_a1_0-d63eafa0.pth",
    )
    assert resolve("vgg16").sources == (
        "https://huggingface.co/timm/vgg16.tv_in1k/resolve/main/model.safetensors",
    )


def test_any_other_name_gets_timms_default_tag_and_its_own_normalisation(timm_models):
    spec = resolve("inception_v3")

    assert spec.name == "inception_v3.tv_in1k"
    assert spec.input_size_px == 299
    assert (spec.mean, spec.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert resolve("inception_v3.gluon_in1k").name == "inception_v3.gluon_in1k"
    assert resolve("resnet34").name == "resnet34.a1_in1k"
    assert resolve("resnet34").mean == (0.485, 0.456, 0.406)


def test_unknown_name_says_the_nearest(timm_models):
    with pytest.raises(BackboneUnknownError, match=r"'resnet81' .*nearest: .*resnet18"):
        resolve("resnet81")


def test_unknown_tag_says_the_nearest(timm_models):
    with pytest.raises(BackboneUnknownError, match=r"'resnet18.a1_in2k' .*nearest: resnet18.a1_in1k"):
        resolve("resnet18.a1_in2k")


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18.a1_in1k", "", "../resnet18"])
def test_what_is_no_plain_name_is_unknown(name, timm_models):
    with pytest.raises(BackboneUnknownError):
        resolve(name)


def test_network_for_other_images_is_refused(timm_models, monkeypatch):
    cfg = timm_models.get_pretrained_cfg("resnet34")
    cfg.input_size = (1, 224, 224)
    monkeypatch.setattr(timm_models, "get_pretrained_cfg", lambda *args, **kwargs: cfg)

    with pytest.raises(BackboneUnsupportedError, match="images of 1 channels"):
        resolve("resnet34")


@pytest.mark.parametrize(
    ("file", "backbone"),
    [
        ("resnet18.pth", "resnet18.a1_in1k"),
        ("resnet18.a1_in1k.safetensors", "resnet18.a1_in1k"),
        ("vgg16.tv_in1k.bin", "vgg16.tv_in1k"),
        ("resnet18_a1_0-d63eafa0.pth", "resnet18.a1_in1k"),
        ("resnet50_a1_0-14fe96d1.pth", "resnet50.a1_in1k"),
        ("resnext50d_32x4d-103e99f8.pth", "resnext50d_32x4d.bt_in1k"),
        ("densenet121/model.safetensors", "densenet121.ra_in1k"),
        ("vgg16.tv_in1k/pytorch_model.bin", "vgg16.tv_in1k"),
        ("mobilenetv2_100.pth", "mobilenetv2_100.ra_in1k"),
        ("mobilenetv2_100_ra-b33bc2c4.pth", "mobilenetv2_100.ra_in1k"),
    ],
)
def test_a_checkpoint_is_known_by_its_name(tmp_path, file, backbone, timm_models):
    path = _touch(tmp_path / file)

    assert find_checkpoints(tmp_path) == {backbone: path}


def test_what_is_no_checkpoint_is_passed_over(tmp_path, caplog, timm_models):
    _touch(tmp_path / "README.md")
    _touch(tmp_path / "notes" / "todo.txt")
    _touch(tmp_path / "best-of-all.pth")
    _touch(tmp_path / "resnet18.pth")

    assert list(find_checkpoints(tmp_path)) == ["resnet18.a1_in1k"]
    assert [record.message for record in caplog.records] == [
        f"{tmp_path / 'best-of-all.pth'} is passed over: its name is not that of a backbone"
    ]


def test_of_two_for_one_backbone_safetensors_wins(tmp_path, caplog):
    _touch(tmp_path / "resnet18.a1_in1k.pth")
    kept = _touch(tmp_path / "resnet18.safetensors")

    assert find_checkpoints(tmp_path) == {"resnet18.a1_in1k": kept}
    assert "resnet18.a1_in1k.pth is passed over" in caplog.text


def test_no_folder_has_no_checkpoints(tmp_path):
    assert find_checkpoints(tmp_path / "absent") == {}


def test_the_papers_names_need_neither_torch_nor_timm():
    code = (
        "import sys\n"
        "sys.modules.update(torch=None, timm=None, onnx=None)\n"
        "from stinfer.errors import ExtraMissingError\n"
        "from stinfer_export.registry import resolve\n"
        "assert resolve('resnet18').name == 'resnet18.a1_in1k'\n"
        "try:\n"
        "    resolve('resnet34')\n"
        "except ExtraMissingError as error:\n"
        "    assert error.fix == \"pip install 'stinfer[export]'\", error.fix\n"
        "else:\n"
        "    raise SystemExit('resolved without timm')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def _touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path
