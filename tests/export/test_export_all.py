"""What `make export` does: in an empty project, with checkpoints, and with a data set."""

from __future__ import annotations

import dataclasses
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
from stinfer.errors import SettingError
from stinfer_export import export_all as module
from stinfer_export.bank_builder import build_bank
from stinfer_export.bank_plan import BankPlan, with_preset
from stinfer_export.datasets.her2st import iter_sections
from stinfer_export.errors import DatasetError
from stinfer_export.export_all import export_all
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

KEPT = "kept reference_bank/her2st.h5: its model, sections and settings have not changed"


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """An empty project as the current folder, and no data set anywhere."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("STINFER_DATA", raising=False)
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
        found = re.fullmatch(
            r".*: run stinfer-export fetch weights \w+, or save (https://\S+) as (models/checkpoints/\S+)",
            line,
        )
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
    assert (s.dataset, s.backbones) == ("her2st", ("stain_texture",))
    assert (s.pitch_um, s.spot_diameter_um) == (200, 100)
    assert (s.preset, s.pooling, s.fov_um, s.window) == ("fast", "map", (110, 220, 440, 880), "square")
    assert (s.metric, s.distance, s.k) == ("standardize", "cosine", 6)
    assert bank.spots[0] == "T1_0x0"
    assert bank.genes == ("GREEN", "RED", "REST")
    assert hashlib.sha256(Path("models/stain_texture.onnx").read_bytes()).hexdigest() == s.models_sha256[0]


def test_the_data_set_is_found_in_its_place_and_packed_once(board, conversions):
    shutil.copytree(board, "reference_bank/data/her2st")
    _checkpoint("resnet18.a1_in1k.pth")

    assert _run()[-2] == "packing reference_bank/data/her2st with models/resnet18.a1_in1k.onnx"
    path = Path("reference_bank/her2st.h5")
    first, written = path.read_bytes(), path.stat().st_mtime_ns
    assert _run()[-1] == KEPT
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (first, written)
    path.unlink()
    assert _run()[-1] == "wrote reference_bank/her2st.h5: 30 references x 3 genes"
    assert path.read_bytes() == first


def test_the_data_set_is_found_where_the_environment_says(board, tmp_path, monkeypatch):
    shutil.copytree(board, tmp_path / "data/her2st")
    monkeypatch.setenv("STINFER_DATA", str(tmp_path / "data"))

    assert _run()[-2] == f"packing {tmp_path / 'data/her2st'} with models/stain_texture.onnx"


def test_a_data_set_beside_the_project_is_not_taken(board, project):
    shutil.copytree(board, project.parent / "shared/her2st")

    assert _run()[-1].startswith("no bank: ")


def test_a_data_set_that_is_not_there_is_an_error_before_any_work(project, conversions):
    _checkpoint("resnet18.a1_in1k.pth")
    Path("other").mkdir()

    with pytest.raises(DatasetError, match=r"nowhere: there is no such folder$"):
        _run(Path("nowhere"))
    with pytest.raises(DatasetError, match=r"other: it has no folder ST-cnts$"):
        _run(Path("other"))

    assert conversions == []
    assert sorted(path.name for path in project.rglob("*") if path.is_file()) == ["resnet18.a1_in1k.pth"]


# A bank that lies there


def _other_bank(board, name, tmp_path):
    """Pack the board otherwise, in one regard."""
    model = Path("models/stain_texture.onnx")
    data = board
    plan = with_preset(BankPlan("her2st", 200.0, 100.0), "fast")
    if name == "sections":
        data = tmp_path / "data"
        shutil.copytree(board, data)
        shutil.copytree(data / "ST-imgs/T/T1", data / "ST-imgs/U/U2")
        shutil.copy(data / "ST-cnts/T1.tsv", data / "ST-cnts/U2.tsv")
        shutil.copy(data / "ST-spotfiles/T1_selection.tsv", data / "ST-spotfiles/U2_selection.tsv")
    elif name == "models_sha256":
        # Of the same kind, so that all else that the bank says is the same.
        other = onnx.load(model)
        other.doc_string = "another"
        model = tmp_path / "other.onnx"
        onnx.save(other, model)
    else:
        values = {
            "fov_um": (110.0, 220.0),
            "preset": "custom",
            "window": "disc",
            "pooling": "patch",
            "metric": "none",
            "distance": "euclidean",
            "k": 5,
        }
        values |= {"weighting": "uniform", "gene_join": "intersection", "dataset": "mine"}
        plan = dataclasses.replace(plan, **{name: values[name]})
    if name == "pooling":
        plan = dataclasses.replace(plan, metric="standardize")
    module.BANK.parent.mkdir()
    build_bank(iter_sections(data), plan, [model], module.BANK, device="cpu")


@pytest.mark.parametrize(
    ("name", "difference"),
    [
        ("fov_um", "fov_um is (110.0, 220.0), not (110.0, 220.0, 440.0, 880.0)"),
        ("preset", "preset is custom, not fast"),
        ("window", "window is disc, not square"),
        ("metric", "metric is none, not standardize"),
        ("distance", "distance is euclidean, not cosine"),
        ("weighting", "weighting is uniform, not softmax"),
        ("gene_join", "gene_join is intersection, not union"),
        ("dataset", "dataset is mine, not her2st"),
        ("k", "k is 5, not 6"),
        ("sections", "sections is T1, U2, not T1"),
        ("models_sha256", "models_sha256 is "),
    ],
)
def test_a_bank_that_was_made_otherwise_is_not_replaced(board, tmp_path, name, difference):
    _run()
    _other_bank(board, name, tmp_path)
    before = module.BANK.read_bytes()

    with pytest.raises(SettingError) as caught:
        _run(board)

    said = "reference_bank/her2st.h5 exists and was made otherwise: "
    assert caught.value.what.startswith(said + difference)
    assert "; " not in caught.value.what
    assert caught.value.fix.startswith("move or delete it")
    assert module.BANK.read_bytes() == before


def test_a_bank_of_patches_is_not_replaced_by_one_of_maps(board, tmp_path):
    _run()
    _other_bank(board, "pooling", tmp_path)
    before = module.BANK.read_bytes()

    with pytest.raises(SettingError) as caught:
        _run(board)

    assert caught.value.what == (
        "reference_bank/her2st.h5 exists and was made otherwise: pooling is patch, not map; "
        "fov_um is (154.0,), not (110.0, 220.0, 440.0, 880.0)"
    )
    assert module.BANK.read_bytes() == before


def test_a_bank_is_kept_that_says_what_the_backbone_would_have_decided(board):
    _run()
    said = {"pooling": "map", "fov_um": (110.0, 220.0, 440.0, 880.0), "metric": "standardize", "k": 6}
    plan = BankPlan("her2st", 200.0, 100.0, preset="fast", distance="cosine", **said)
    module.BANK.parent.mkdir()
    build_bank(iter_sections(board), plan, [Path("models/stain_texture.onnx")], module.BANK, device="cpu")

    assert _run(board)[-1] == KEPT


def test_a_bank_of_a_model_without_a_map_is_kept(board):
    Path("models").mkdir()
    fixtures.write_mean_color_model(Path("models/mynet.onnx"))

    assert _run(board, "mynet")[-1] == "wrote reference_bank/her2st.h5: 30 references x 3 genes"
    s = Bank.open(module.BANK).settings
    assert (s.pooling, s.fov_um, s.metric) == ("patch", (154,), "pca")
    assert _run(board, "mynet")[-1] == KEPT


def test_a_file_that_is_no_bank_is_not_replaced(board):
    module.BANK.parent.mkdir()
    module.BANK.write_bytes(b"precious")

    with pytest.raises(SettingError, match=r"her2st\.h5 is there, but is not a bank that could be kept: "):
        _run(board)

    assert module.BANK.read_bytes() == b"precious"


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
    assert Bank.open("reference_bank/her2st.h5").settings.backbones[0] == chosen


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
        match=r"there is no model vgg16\.tv_in1k; there are resnet18\.a1_in1k, stain_texture$",
    ) as caught:
        _run(board, "vgg16.tv_in1k")

    assert "models/checkpoints" in caught.value.fix
    assert conversions == []
    assert not list(Path().rglob("*.onnx"))
    assert not Path("reference_bank").exists()


@pytest.mark.parametrize("asked", ["mynet.own", "mynet"])
def test_a_model_file_without_a_checkpoint_packs_when_asked(board, asked):
    Path("models").mkdir()
    fixtures.write_mean_color_model(Path("models/mynet.own.onnx"))

    assert f"packing {board} with models/mynet.own.onnx" in _run(board, asked)
    assert Bank.open("reference_bank/her2st.h5").settings.backbones == ("mean_color",)


def test_a_model_file_without_a_checkpoint_is_not_taken_unasked(board):
    Path("models").mkdir()
    fixtures.write_mean_color_model(Path("models/mynet.onnx"))

    assert f"packing {board} with models/stain_texture.onnx" in _run(board)


def test_a_model_is_named_and_not_a_path(board):
    fixtures.write_mean_color_model(Path("mine.onnx"))

    with pytest.raises(SettingError, match=r"there is no model \.\./mine; there are stain_texture$"):
        _run(board, "../mine")


def test_the_papers_backbones_are_five():
    assert [spec.name for spec in PAPER_BACKBONES.values()] == PAPER
