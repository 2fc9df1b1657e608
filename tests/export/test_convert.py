"""Backbones from checkpoint to ONNX file, measured against torch by the test's own arithmetic."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
timm = pytest.importorskip("timm")
pytest.importorskip("onnxscript")

from safetensors.torch import save_file  # noqa: E402  # after the skips

from stinfer.contract import MapTraits, ModelCard  # noqa: E402
from stinfer.encoder import Encoder  # noqa: E402
from stinfer.errors import OutputExistsError, OutputWriteError, SettingError  # noqa: E402
from stinfer_export import convert  # noqa: E402
from stinfer_export.errors import (  # noqa: E402
    CheckpointMismatchError,
    DownloadError,
    ParityError,
)
from stinfer_export.registry import resolve  # noqa: E402

TINY = "test_resnet.r160_in1k"
TOLERANCE = 1e-4


def make_network(name, seed=0, **options):
    """Build a network whose every layer matters.

    Random weights make batch normalisation an identity, and numbers that grow or vanish with depth;
    so its statistics are measured on a batch, as training would, and its affine part is random.
    """
    torch.manual_seed(seed)
    model = timm.create_model(name, pretrained=False, **options)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias, std=0.2)
        norm.momentum = 1.0
    if norms:
        model.train()
        with torch.no_grad():
            model(torch.randn(4, 3, 96, 96))
    return model.eval()


@pytest.fixture(scope="module")
def tiny_onnx(tiny, tmp_path_factory):
    """Convert the small network."""
    return convert.convert_backbone(TINY, tiny[0], tmp_path_factory.mktemp("tiny-onnx"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A small network's checkpoint, with classifier, and the network without."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.pth"
    model = make_network(TINY)
    torch.save(model.state_dict(), path)
    model.reset_classifier(0)
    return path, model


@pytest.fixture(scope="module")
def tiny_again(tiny, tmp_path_factory):
    """Convert the small network once more, over another file."""
    target = tmp_path_factory.mktemp("tiny-again") / f"{TINY}.onnx"
    target.write_bytes(b"mine")
    assert convert.convert_backbone(TINY, tiny[0], target.parent, overwrite=True) == target
    return target


def patches(n, height_px, width_px, seed=0):
    """Make patches that differ from one another, smooth and rough."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height_px, :width_px]
    images = []
    for _ in range(n):
        waves = [np.sin(rng.uniform(0, 0.2) * x + rng.uniform(0, 0.2) * y + rng.uniform(0, 6)) for _ in "rgb"]
        noise = rng.normal(0, 10, (height_px, width_px, 3))
        images.append(rng.uniform(60, 200, 3) + 50 * np.stack(waves, axis=-1) + noise)
    return np.clip(images, 0, 255).astype(np.uint8)


def run_torch(model, name, pixels):
    """Compute embedding and features as timm's own documentation says, normalisation included."""
    config = timm.data.resolve_data_config(pretrained_cfg=timm.models.get_pretrained_cfg(name).to_dict())
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255)
    mean, std = (torch.tensor(config[key]).reshape(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        images = (images - mean) / std
        return model(images).numpy(), model.forward_features(images).numpy()


def stage_squares(model, pixels, name, stages):
    """Compute the mean squares of some modules' maps over cells of 32 px, through hooks of the test's own."""
    seen = {}
    handles = [
        model.get_submodule(stage).register_forward_hook(
            lambda _, __, given, stage=stage: seen.update({stage: given.detach().clone()})
        )
        for stage in stages
    ]
    run_torch(model, name, pixels)
    for handle in handles:
        handle.remove()
    found = []
    for stage in stages:
        squares = seen[stage].numpy().astype(np.float64) ** 2
        n_rows, n_columns = pixels.shape[1] // 32, pixels.shape[2] // 32
        side = squares.shape[2] // n_rows
        cells = np.empty((*squares.shape[:2], n_rows, n_columns))
        for row in range(n_rows):
            for column in range(n_columns):
                place = squares[:, :, row * side : (row + 1) * side, column * side : (column + 1) * side]
                cells[:, :, row, column] = place.mean(axis=(2, 3))
        found.append(cells)
    return found


def open_onnx(path):
    options = ort.SessionOptions()
    # Idle threads would keep the cores that torch needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_onnx(session, pixels, outputs=("embedding", "features")):
    return session.run(list(outputs), {"pixels": pixels})


def relative(found, truth):
    assert found.shape == truth.shape
    assert found.dtype == np.float32
    return np.abs(found - truth).max() / np.abs(truth).max()


def read_card(session):
    return ModelCard.from_props(session.get_modelmeta().custom_metadata_map)


# name, file, wrapper, prefix, with classifier, dim, channels, and the last modules at 4, 8 and 16 px with
# their channels
RESNET, VGG = ("layer1", "layer2", "layer3"), ("features.15", "features.22", "features.29")
DENSENET = ("features.denseblock1", "features.denseblock2", "features.denseblock3")
PAPER = [
    pytest.param("vgg16", "a.safetensors", None, "", False, 4096, 512, VGG, (256, 512, 512), id="vgg16"),
    pytest.param(
        "densenet121",
        "a.pth",
        "state_dict",
        "",
        True,
        1024,
        1024,
        DENSENET,
        (256, 512, 1024),
        id="densenet121",
        marks=pytest.mark.slow,
    ),
    pytest.param("resnet18", "a.pth", None, "", True, 512, 512, RESNET, (64, 128, 256), id="resnet18"),
    pytest.param(
        "resnet50",
        "pytorch_model.bin",
        None,
        "",
        False,
        2048,
        2048,
        RESNET,
        (256, 512, 1024),
        id="resnet50",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "resnext50d_32x4d",
        "a.pth",
        "model",
        "module.",
        True,
        2048,
        2048,
        RESNET,
        (256, 512, 1024),
        id="resnext50d",
    ),
]


@pytest.mark.parametrize(
    ("name", "file", "wrapper", "prefix", "with_classifier", "dim", "channels", "stages", "moments"), PAPER
)
def test_the_papers_five_are_exported(
    tmp_path, monkeypatch, name, file, wrapper, prefix, with_classifier, dim, channels, stages, moments
):
    # That takes long, and is shown by the slow test_the_maps_of_the_papers_five.
    traits = MapTraits(5, (-1.5, 2.0))
    monkeypatch.setattr(
        convert, "measure_map", lambda _, card: replace(card, map_traits=traits, map_refusal="")
    )
    model = make_network(name, **({} if with_classifier else {"num_classes": 0}))
    state = {f"{prefix}{key}": tensor for key, tensor in model.state_dict().items()}
    checkpoint = tmp_path / file
    if checkpoint.suffix == ".safetensors":
        save_file(state, checkpoint)
    else:
        torch.save({wrapper: state, "epoch": 1} if wrapper else state, checkpoint)
    sha256 = hashlib.sha256(checkpoint.read_bytes()).hexdigest()

    path = convert.convert_backbone(name, checkpoint, tmp_path / "models")
    checkpoint.unlink()

    tagged = resolve(name).name
    assert path == tmp_path / "models" / f"{tagged}.onnx"
    assert list(path.parent.iterdir()) == [path]
    session = open_onnx(path)
    assert read_card(session) == ModelCard(
        tagged, 224, dim, channels, 32, sha256, "fp32", moments, traits, ""
    )
    if with_classifier:
        model.reset_classifier(0)
    # The last is less than the 7 x 7 cells that the head of a VGG is made for.
    for pixels in (patches(2, 224, 224), patches(1, 256, 320, seed=1), patches(1, 96, 160, seed=2)):
        truths = run_torch(model, tagged, pixels)
        found = run_onnx(session, pixels)
        assert found[0].shape == (len(pixels), dim)
        assert found[1].shape == (len(pixels), channels, pixels.shape[1] // 32, pixels.shape[2] // 32)
        assert [relative(*pair) <= TOLERANCE for pair in zip(found, truths, strict=True)] == [True, True]
        squares = run_onnx(session, pixels, ["moments_0", "moments_1", "moments_2"])
        assert [one.shape[1] for one in squares] == list(moments)
        truths = stage_squares(model, pixels, tagged, stages)
        assert [relative(*pair) <= TOLERANCE for pair in zip(squares, truths, strict=True)] == [True] * 3
    path.unlink()


def test_the_shared_weights_see(conversion):
    path, said = conversion
    session = open_onnx(path)
    card = read_card(session)
    assert (card.dim, card.channels, card.stride) == (1280, 1280, 32)
    same_texture = patches(2, 224, 224)
    same_texture[1] = same_texture[0][::-1, ::-1]
    other = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    (embedding,) = run_onnx(session, np.concatenate([same_texture, other]), ["embedding"])
    assert np.isfinite(embedding).all()
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    # What real weights do and random ones do not: turning a texture round is little, noise is much.
    assert unit[0] @ unit[1] > 0.8
    assert unit[0] @ unit[2] < 0.5

    x, y = card.map_traits.offset_px
    assert f"{path}: map: halo 7 cells, offset {x:g} x {y:g} px" in said
    assert card.map_traits.halo_cells == 7
    assert -9 <= x <= 0
    assert -10 <= y <= 0
    # 2 x 2 of 18 x 18 cells, alone with 7 cells around them, are those of the whole; with 4, they are not.
    (image,) = patches(1, 18 * 32, 18 * 32)
    (whole,) = run_onnx(session, image[np.newaxis], ["features"])[0]
    norm = np.sqrt((whole**2).sum(axis=0).mean())
    differences = {}
    for halo in (4, 7):
        cut, inner = slice((8 - halo) * 32, (10 + halo) * 32), slice(halo, halo + 2)
        (part,) = run_onnx(session, image[np.newaxis, cut, cut], ["features"])[0]
        cells = part[:, inner, inner] - whole[:, 8:10, 8:10]
        differences[halo] = np.linalg.norm(cells, axis=0).max() / norm
    assert differences[4] > 0.05
    assert differences[7] <= 0.01


def test_sizes_that_the_stride_does_not_divide(tiny, tiny_onnx):
    session = open_onnx(tiny_onnx)
    for height_px, width_px in ((160, 160), (97, 131), (33, 300)):
        pixels = patches(2, height_px, width_px)
        for found, truth in zip(run_onnx(session, pixels), run_torch(tiny[1], TINY, pixels), strict=True):
            assert relative(found, truth) <= TOLERANCE


def test_embedding_is_the_mean_of_features_where_the_network_pools_so(tiny_onnx):
    embedding, features = run_onnx(open_onnx(tiny_onnx), patches(2, 160, 192))

    assert relative(features.mean(axis=(2, 3)), embedding) < 1e-5


def test_moments_are_the_mean_squares_of_earlier_stages(tiny, tiny_onnx):
    session = open_onnx(tiny_onnx)
    for height_px, width_px in ((64, 96), (160, 160)):
        pixels = patches(2, height_px, width_px)
        found = run_onnx(session, pixels, ["moments_0", "moments_1", "moments_2"])
        truths = stage_squares(tiny[1], pixels, TINY, ("layer1", "layer2", "layer3"))
        assert [one.shape[1] for one in found] == [32, 48, 192]
        assert [relative(*pair) <= TOLERANCE for pair in zip(found, truths, strict=True)] == [True] * 3
    assert read_card(session).moments == (32, 48, 192)
    assert read_card(session).layers == (96, 32, 48, 192)


def test_the_runtime_reads_cells_with_their_moments(tiny_onnx):
    encoder = Encoder(tiny_onnx.read_bytes(), "tiny", pooling="map", device="cpu", threads=1)
    pixels = patches(2, 64, 96)

    found = encoder.features(pixels)

    names = ["features", "moments_0", "moments_1", "moments_2"]
    expected = np.concatenate(run_onnx(open_onnx(tiny_onnx), pixels, names), axis=1)
    assert found.shape == (2, 368, 2, 3)
    assert relative(found, expected) < 1e-5


def test_the_file_is_as_the_format_says(tiny_onnx):
    model = onnx.load(tiny_onnx, load_external_data=False)

    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, [(opset.domain, opset.version) for opset in model.opset_import]) == (
        8,
        [("", 18)],
    )
    assert [_signature(value) for value in model.graph.input] == [
        ("pixels", onnx.TensorProto.UINT8, ["n", "height", "width", 3])
    ]
    assert [_signature(value) for value in model.graph.output] == [
        ("embedding", onnx.TensorProto.FLOAT, ["n", 96]),
        ("features", onnx.TensorProto.FLOAT, ["n", 96, "height/32", "width/32"]),
        ("moments_0", onnx.TensorProto.FLOAT, ["n", 32, "height/32", "width/32"]),
        ("moments_1", onnx.TensorProto.FLOAT, ["n", 48, "height/32", "width/32"]),
        ("moments_2", onnx.TensorProto.FLOAT, ["n", 192, "height/32", "width/32"]),
    ]
    assert not any(initializer.external_data for initializer in model.graph.initializer)
    assert tiny_onnx.stat().st_mode & 0o777 == 0o644


def _signature(value):
    shape = value.type.tensor_type.shape.dim
    return value.name, value.type.tensor_type.elem_type, [axis.dim_param or axis.dim_value for axis in shape]


def test_the_bytes_tell_neither_time_nor_place(tiny_onnx, tiny_again):
    first = tiny_onnx.read_bytes()

    assert first == tiny_again.read_bytes()
    for trace in (
        str(tiny_again.parent),
        str(tiny_onnx.parent),
        "site-packages",
        "File ",
        str(Path(convert.__file__).parent),
        "pkg.torch",
    ):
        assert trace.encode() not in first


def test_a_checkpoint_of_another_network_leaves_nothing(tmp_path, tiny):
    with pytest.raises(CheckpointMismatchError) as caught:
        convert.convert_backbone("resnet18", tiny[0], tmp_path / "models")

    given = torch.load(tiny[0], weights_only=True)
    wanted = timm.create_model("resnet18", pretrained=False, num_classes=0).state_dict()
    missing = [key for key in wanted if key not in given and "num_batches" not in key]
    unexpected = [key for key in given if key not in wanted and not key.startswith("fc.")]
    assert caught.value.missing == tuple(missing)
    assert caught.value.unexpected == tuple(unexpected)
    assert f": {len(missing)} missing ({', '.join(missing[:3])}, …); " in caught.value.what
    assert not (tmp_path / "models").exists()


def test_a_file_that_computes_something_else_is_not_kept(tiny, tmp_path, monkeypatch):
    export_graph = convert.export_graph

    def damaged(*args):
        model = export_graph(*args)
        largest = max(model.graph.initializer, key=lambda item: len(item.raw_data))
        values = onnx.numpy_helper.to_array(largest) * np.float32(1.01)
        largest.CopyFrom(onnx.numpy_helper.from_array(values, largest.name))
        return model

    monkeypatch.setattr(convert, "export_graph", damaged)
    with pytest.raises(ParityError, match="relative error"):
        convert.convert_backbone(TINY, tiny[0], tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


def test_a_file_is_replaced_only_on_request(tiny, tiny_again, tmp_path):
    target = tmp_path / f"{TINY}.onnx"
    target.write_bytes(b"mine")

    with pytest.raises(OutputExistsError, match=TINY):
        convert.convert_backbone(TINY, tiny[0], tmp_path)
    assert target.read_bytes() == b"mine"
    # Here the same was asked for with leave to replace.
    assert tiny_again.name == target.name
    assert read_card(open_onnx(tiny_again)).backbone == TINY


def test_a_folder_that_cannot_be_made(tiny, tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(OutputWriteError, match="File exists"):
        convert.convert_backbone(TINY, tiny[0], tmp_path / "file")


@pytest.mark.parametrize("pretrained", [True, False])
def test_weights_come_from_one_place(tiny, tmp_path, pretrained):
    with pytest.raises(SettingError, match="either a checkpoint or"):
        convert.convert_backbone(TINY, tiny[0] if pretrained else None, tmp_path, pretrained=pretrained)


def test_downloaded_weights_are_put_in_like_any_others(tiny, tmp_path, monkeypatch):
    create_model = timm.create_model

    def offline(name, *, pretrained, **options):
        model = create_model(name, pretrained=False, **options)
        if pretrained:
            model.load_state_dict(torch.load(tiny[0], weights_only=True))
        return model

    monkeypatch.setattr(timm, "create_model", offline)
    path = convert.convert_backbone(TINY, None, tmp_path, pretrained=True)

    pixels = patches(2, 160, 160)
    session = open_onnx(path)
    assert relative(run_onnx(session, pixels)[0], run_torch(tiny[1], TINY, pixels)[0]) <= TOLERANCE
    assert len(read_card(session).checkpoint_sha256) == 64


def test_no_network_is_a_plain_error(tmp_path, monkeypatch):
    def unreachable(name, *, pretrained, **options):
        if pretrained:
            raise ConnectionError("no route to host")  # noqa: EM101
        return torch.nn.Identity()

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(DownloadError, match=r"resnet18.a1_in1k could not be downloaded: no route to host"):
        convert.convert_backbone("resnet18", None, tmp_path, pretrained=True)


def test_a_transformer_has_an_embedding_and_no_features(tmp_path, caplog):
    name = "test_vit.r160_in1k"
    model = make_network(name, num_classes=0)
    torch.save(model.state_dict(), tmp_path / "vit.pth")

    path = convert.convert_backbone(name, tmp_path / "vit.pth", tmp_path)

    assert "has no map of cells" in caplog.text
    session = open_onnx(path)
    card = read_card(session)
    assert (card.dim, card.channels, card.stride) == (model.num_features, 0, 0)
    assert (card.map_traits, card.map_refusal) == (None, "it has no map of cells")
    signature = [_signature(value) for value in onnx.load(path).graph.input]
    assert signature == [("pixels", onnx.TensorProto.UINT8, ["n", 160, 160, 3])]
    pixels = patches(3, 160, 160)
    (embedding,) = run_onnx(session, pixels, ["embedding"])
    assert relative(embedding, run_torch(model, name, pixels)[0]) <= TOLERANCE


def test_without_torch_the_extra_is_named():
    code = (
        "import sys\n"
        "sys.modules.update(torch=None)\n"
        "from stinfer.errors import ExtraMissingError\n"
        "try:\n"
        "    import stinfer_export.convert\n"
        "except ExtraMissingError as error:\n"
        "    print(error, '|', error.fix)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == (
        "converting a backbone needs the package torch, which is not installed"
        " | pip install 'stinfer[export]'\n"
    )
