"""From a checkpoint to a model of less precision, compared with torch."""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("onnxscript")

from stinfer.encoder import Encoder  # noqa: E402  # after the skips
from stinfer.errors import OutputExistsError, SettingError  # noqa: E402
from stinfer_export import convert  # noqa: E402
from stinfer_export.export_all import export_backbone  # noqa: E402
from stinfer_export.parity import reference  # noqa: E402
from stinfer_export.precision import lower  # noqa: E402
from stinfer_export.precision.tissue_sample import find_tissue_source, sample_tissue  # noqa: E402
from stinfer_export.registry import resolve  # noqa: E402

_SPEC = importlib.util.spec_from_file_location(
    "evaluation_sections", Path(__file__).parent / "evaluation_sections.py"
)
shared = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(shared)

SHARED = Path(os.environ.get("STINFER_DATA") or Path(__file__).parents[3] / "shared")
TINY = "test_resnet.r160_in1k"


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squares")
    shared.write_data_set(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(squares, tmp_path_factory):
    """A small network with random weights, whose batch norm has seen the squares, and its checkpoint."""
    torch.manual_seed(0)
    spec = resolve(TINY)
    network = convert.build_backbone(spec)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    seen = sample_tissue(find_tissue_source(squares), spec.input_size_px, 8, 8).calibration
    network.train()
    with torch.no_grad():
        network(torch.from_numpy(seen).permute(0, 3, 1, 2).float() / 128 - 1)
    path = tmp_path_factory.mktemp("tiny") / "tiny.pth"
    torch.save(network.state_dict(), path)
    return path, network.eval()


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    """Fewer patches than a user's; and no measuring of maps, which takes longer than all else here."""
    monkeypatch.setattr(lower, "N_CALIBRATION", 8)
    monkeypatch.setattr(lower, "N_HELD_OUT", 24)
    monkeypatch.setattr(
        convert, "measure_map", lambda _, card: replace(card, map_traits=None, map_refusal="no one measured")
    )


def embed(path, pixels):
    return Encoder(path.read_bytes(), str(path), device="cpu").embed(pixels)


def cosines(one, other):
    return (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


def test_eight_bits_and_half_precision_say_what_torch_says(squares, tiny, tmp_path, monkeypatch):
    checkpoint, network = tiny
    whole = export_backbone(TINY, checkpoint, tmp_path)
    # Converting takes long, and gives the same bytes every time.
    monkeypatch.setattr(
        convert, "convert_backbone", lambda name, checkpoint, out_dir, **_: Path(shutil.copy(whole, out_dir))
    )
    eight = export_backbone(TINY, checkpoint, tmp_path, precision="int8", calibrate=squares)
    half = export_backbone(TINY, checkpoint, tmp_path, precision="fp16")

    assert (eight.name, half.name) == (f"{TINY}.int8.onnx", f"{TINY}.fp16.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(p.name for p in (whole, eight, half))
    original = Encoder(whole.read_bytes(), "it", device="cpu")
    for path, precision in ((eight, "int8"), (half, "fp16")):
        card = Encoder(path.read_bytes(), "it", device="cpu").card
        assert card == replace(original.card, precision=precision, fp32_sha256=original.sha256)
    spec = resolve(TINY)
    pixels = sample_tissue(find_tissue_source(squares), spec.input_size_px, 8, 9).held_out
    truth = reference(network, spec, pixels, None)["embedding"]
    assert cosines(embed(eight, pixels), truth).min() >= 0.99
    assert cosines(embed(half, pixels), truth).min() >= 0.9999


def test_what_is_there_is_kept_and_what_contradicts_itself_is_refused(squares, tiny, tmp_path):
    checkpoint, _ = tiny
    there = tmp_path / f"{TINY}.fp16.onnx"
    there.write_bytes(b"mine")

    with pytest.raises(OutputExistsError):
        export_backbone(TINY, checkpoint, tmp_path, precision="fp16")
    for options in (
        {"precision": "int8"},
        {"precision": "fp16", "calibrate": squares},
        {"calibrate": squares},
    ):
        with pytest.raises(SettingError, match="calibrated on tissue, and no other is") as caught:
            export_backbone(TINY, checkpoint, tmp_path, **options)
        assert "--calibrate DATASET" in caught.value.fix
    with pytest.raises(SettingError, match="stain_texture has no weights, and its formulas need single"):
        export_backbone("stain_texture", None, tmp_path, precision="fp16")
    with pytest.raises(SettingError, match="is no slide, no folder of slides and no her2st data set"):
        export_backbone(TINY, checkpoint, tmp_path, precision="int8", calibrate=tmp_path / "none")
    assert there.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [there]


@pytest.mark.slow
def test_real_weights_in_eight_bits_keep_what_they_say_of_real_tissue(tmp_path):
    weights, slide = SHARED / "weights/mobilenetv2_100.pth", SHARED / "slides/cmu-1-small-region.svs"
    for path in (weights, slide):
        if not path.exists():
            pytest.skip(f"{path} is not there")

    path = export_backbone("mobilenetv2_100", weights, tmp_path, precision="int8", calibrate=slide)

    spec = resolve("mobilenetv2_100")
    network = convert.build_backbone(spec)
    network.load_state_dict(torch.load(weights, weights_only=True), strict=False)
    pixels = sample_tissue(find_tissue_source(slide), spec.input_size_px, 8, 16).held_out
    truth = reference(network, spec, pixels, None)["embedding"]
    assert cosines(embed(path, pixels), truth).mean() >= 0.98
