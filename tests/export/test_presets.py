"""Banks of several backbones, of presets, and of slides in other stains."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import replace
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import stinfer
from stinfer.bank import Bank
from stinfer.errors import SettingError
from stinfer_export import bank_builder
from stinfer_export.bank_builder import BankSummary, build_bank
from stinfer_export.bank_plan import BankPlan, with_preset
from stinfer_export.cli import main
from stinfer_export.stain_texture import write_stain_texture

_SPEC = importlib.util.spec_from_file_location("bank_sections", Path(__file__).parent / "bank_sections.py")
shared = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(shared)
_section, write_cell_model = shared.section, shared.write_cell_model

# The scale of all maps, so that nothing is resampled.
UM_PER_PX = 154 / 224
CELL_PX, SIDE_CELLS, MARGIN_CELLS = 32, 20, 2
SIDE_PX = CELL_PX * (SIDE_CELLS + 2 * MARGIN_CELLS)
FOV_UM = (44.0, 110.0)
# Hematoxylin and eosin of three laboratories: decadic densities of R, G, B, and how strongly they stain.
STAINS = {
    "A1": ([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]], (0.8, 0.6)),
    "A2": ([[0.52, 0.78, 0.36], [0.20, 0.93, 0.30]], (0.6, 0.9)),
    "B3": ([[0.60, 0.66, 0.45], [0.02, 0.95, 0.25]], (1.0, 0.5)),
}


def _amounts():
    """How much of either stain there is in every cell: some of one alone, none of glass."""
    rng = np.random.default_rng(12)
    amounts = rng.uniform(0.35, 1, (SIDE_CELLS, SIDE_CELLS, 2))
    alone = rng.integers(0, 4, (SIDE_CELLS, SIDE_CELLS))
    amounts[alone == 0, 0] = 0
    amounts[alone == 1, 1] = 0
    return amounts


def _picture(name):
    """Stain the same tissue in one laboratory, with white glass around it."""
    directions, strengths = STAINS[name]
    directions = np.array(directions) / np.linalg.norm(directions, axis=1, keepdims=True)
    density = (_amounts() * strengths) @ directions
    fine = np.random.default_rng(3).uniform(0.9, 1.1, (SIDE_CELLS * CELL_PX, SIDE_CELLS * CELL_PX, 1))
    pixels = np.full((SIDE_PX, SIDE_PX, 3), 255.0)
    inside = slice(MARGIN_CELLS * CELL_PX, -MARGIN_CELLS * CELL_PX)
    pixels[inside, inside] = 256 * 10 ** (-density.repeat(CELL_PX, 0).repeat(CELL_PX, 1) * fine) - 1
    return Image.fromarray(np.rint(pixels.clip(0, 255)).astype(np.uint8))


PLACES = [(CELL_PX * (x + 0.5), CELL_PX * (y + 0.5)) for x in range(4, 21, 3) for y in range(4, 21, 3)]
COUNTS = np.random.default_rng(5).integers(1, 50, (len(PLACES), 4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sections")
    for name in STAINS:
        _picture(name).save(folder / f"{name}.png")
    write_cell_model(folder / "net.onnx", name="net.x", checkpoint="c" * 64)
    write_cell_model(folder / "other.onnx", name="other.y", checkpoint="d" * 64)
    write_stain_texture(folder / "texture.onnx")
    return folder


def _of(folder, *names, **changes):
    return [
        _section(folder / f"{name}.png", name, "ABCD", COUNTS + i, PLACES, mpp=UM_PER_PX, **changes)
        for i, name in enumerate(names)
    ]


def _plan(preset="custom", **changes):
    plan = BankPlan("her2st", 200.0, 100.0, **({"fov_um": FOV_UM, "k": 3} | changes))
    return with_preset(plan, preset)


def _build(folder, models, plan, path, sections=("A1",)):
    files = [folder / f"{model}.onnx" for model in models]
    build_bank(_of(folder, *sections), plan, files, path, device="cpu", threads=1)
    return Bank.open(path)


def _blobs(path):
    with h5py.File(path) as file:
        return {
            name: hashlib.sha256(bytes(values[()].tobytes())).hexdigest()
            for name, values in file["uns/stinfer"].items()
            if name.startswith("model_")
        }


def _sha256(folder, model):
    return hashlib.sha256((folder / f"{model}.onnx").read_bytes()).hexdigest()


# Presets


def test_fast_puts_stain_texture_beside_a_network(folder, tmp_path):
    bank = _build(folder, ["net"], _plan("fast"), tmp_path / "a.h5")

    s = bank.settings
    assert (s.preset, s.backbones) == ("fast", ("net.x", "stain_texture"))
    assert (s.orientations, s.reductions) == ((1, 1), (1, 1))
    # The very file that the command for it writes.
    assert s.models_sha256 == (_sha256(folder, "net"), _sha256(folder, "texture"))
    assert _blobs(bank.path) == {"model_0": _sha256(folder, "net"), "model_1": _sha256(folder, "texture")}


@pytest.mark.parametrize("preset", ["fast", "best"])
@pytest.mark.parametrize("models", [["texture"], ["texture", "net"]])
def test_stain_texture_that_is_there_is_not_added_again(folder, tmp_path, preset, models):
    bank = _build(folder, models, _plan(preset), tmp_path / "a.h5")

    names = {"texture": "stain_texture", "net": "net.x"}
    at_a_scale = tuple(names[model] for model in models)
    assert bank.settings.backbones == at_a_scale * (1 if preset == "fast" else 2)


def test_best_sees_both_scales_and_keeps_every_model_once(folder, tmp_path):
    bank = _build(folder, ["net"], _plan("best", metric="none"), tmp_path / "a.h5")

    s = bank.settings
    assert s.backbones == ("net.x", "stain_texture", "net.x", "stain_texture")
    assert s.reductions == (1, 1, 2, 2)
    digests = [_sha256(folder, model) for model in ("net", "texture")]
    assert s.models_sha256 == (*digests, *digests)
    assert _blobs(bank.path) == {"model_0": digests[0], "model_1": digests[1]}
    assert [hashlib.sha256(model).hexdigest() for model in bank.models()] == [*digests, *digests]
    # In a window, the finer scale comes first, and is what fast sees.
    fast = _build(folder, ["net"], _plan("fast", metric="none"), tmp_path / "b.h5")
    half = fast.embedding.shape[1] // len(FOV_UM)
    assert bank.embedding.shape == (len(PLACES), len(FOV_UM) * 2 * half)
    windows = bank.embedding.reshape(len(PLACES), len(FOV_UM), 2, half)
    np.testing.assert_allclose(
        windows[:, :, 0], fast.embedding.reshape(len(PLACES), len(FOV_UM), half), rtol=1e-4, atol=1e-4
    )
    assert np.abs(windows[:, :, 1] - windows[:, :, 0]).max() > 0.01


def test_custom_takes_the_models_given_and_nothing_else(folder, tmp_path):
    bank = _build(folder, ["net"], _plan("custom"), tmp_path / "a.h5")

    assert (bank.settings.preset, bank.settings.backbones) == ("custom", ("net.x",))
    assert list(_blobs(bank.path)) == ["model_0"]


def test_patches_have_nothing_beside_them_and_one_scale(folder, tmp_path):
    plan = _plan("best", pooling="patch", fov_um=(110.0,))

    bank = _build(folder, ["net"], plan, tmp_path / "a.h5")

    assert (bank.settings.backbones, bank.settings.reductions) == (("net.x",), (1,))


def test_cells_of_another_size_have_no_stain_texture_beside_them(folder, tmp_path):
    write_cell_model(tmp_path / "fine.onnx", name="fine.z", checkpoint="e" * 64, stride_px=16)

    build_bank(_of(folder, "A1"), _plan("fast"), [tmp_path / "fine.onnx"], tmp_path / "a.h5", device="cpu")

    bank = Bank.open(tmp_path / "a.h5")
    assert bank.settings.backbones == ("fine.z",)


@pytest.mark.parametrize("orientations", [1, 4, 8])
def test_networks_are_turned_and_formulas_are_not(folder, tmp_path, orientations):
    bank = _build(folder, ["net"], _plan("best", orientations=orientations), tmp_path / "a.h5")

    assert bank.settings.orientations == (orientations, 1, orientations, 1)


# Several models


def test_two_models_are_put_side_by_side(folder, tmp_path):
    both = _build(folder, ["net", "other"], _plan(metric="none"), tmp_path / "a.h5")

    assert both.settings.backbones == ("net.x", "other.y")
    parts = [
        _build(folder, [model], _plan(metric="none"), tmp_path / f"{model}.h5").embedding
        for model in ("net", "other")
    ]
    # Of every window the numbers of one, then of the other.
    expected = np.concatenate([part.reshape(len(PLACES), 2, 6) for part in parts], axis=2)
    np.testing.assert_allclose(both.embedding, expected.reshape(len(PLACES), 24), rtol=1e-5, atol=1e-5)
    assert np.abs(parts[0] - parts[1]).max() > 0.05


def _never():
    pytest.fail("a section was read")
    yield


def test_one_backbone_twice_is_refused_whatever_its_file_is_called(folder, tmp_path):
    again = tmp_path / "again.onnx"
    again.write_bytes((folder / "net.onnx").read_bytes())

    for second in (folder / "net.onnx", again):
        with pytest.raises(SettingError, match=r"^--model names one backbone twice$"):
            build_bank(_never(), _plan(), [folder / "net.onnx", second], tmp_path / "a.h5", device="cpu")

    assert not (tmp_path / "a.h5").exists()


def test_cells_of_two_sizes_do_not_lie_on_one_map(folder, tmp_path):
    write_cell_model(tmp_path / "fine.onnx", name="fine.z", stride_px=16)
    models = [folder / "net.onnx", tmp_path / "fine.onnx"]

    with pytest.raises(SettingError, match=r"^fine\.z has cells of 16 px, and net\.x of 32: they do not lie"):
        build_bank(_never(), _plan(), models, tmp_path / "a.h5", device="cpu")
    # Patches may be of any.
    build_bank(
        _of(folder, "A1"), _plan(pooling="patch", fov_um=(110.0,)), models, tmp_path / "a.h5", device="cpu"
    )
    assert Bank.open(tmp_path / "a.h5").settings.backbones == ("net.x", "fine.z")


def test_principal_components_beside_a_head_are_refused_by_the_name_of_its_backbone(folder, tmp_path):
    with pytest.raises(SettingError) as caught:
        build_bank(
            _never(), _plan("fast", metric="pca"), [folder / "net.onnx"], tmp_path / "a.h5", device="cpu"
        )

    assert caught.value.what.endswith("averaged, which stain_texture does not allow")
    assert caught.value.fix.endswith("or --preset custom to leave stain_texture out")


@pytest.mark.parametrize("preset", ["custom", "best"])
def test_a_bank_of_two_sections_finds_its_own_places_again(folder, tmp_path, preset):
    """What is learned, projected and stored reads a slide as it read the sections."""
    bank = _build(folder, ["net", "other"], _plan(preset), tmp_path / "a.h5", sections=("A1", "A2"))
    assert (bank.settings.metric, bank.settings.tuning) == ("supervised", "leave-one-section-out")
    places = [f"{name},{x},{y}" for name, (x, y) in zip(bank.spots, bank.spatial.tolist(), strict=True)]
    n = len(PLACES)
    (tmp_path / "s.csv").write_text("\n".join(["name,x,y", *places[n:]]) + "\n")

    stinfer.predict_slide(
        folder / "A2.png",
        bank.path,
        out=tmp_path / "p.h5ad",
        mpp=UM_PER_PX,
        spots=tmp_path / "s.csv",
        k=1,
        genes="all",
        device="cpu",
    )

    read = anndata.read_h5ad(tmp_path / "p.h5ad")
    assert tuple(read.obs_names) == bank.spots[n:]
    np.testing.assert_allclose(read.X, shared.dense(bank)[n:], rtol=1e-6)


def test_everything_a_bank_may_hold_is_read_again(folder, tmp_path):
    files = [folder / "net.onnx", folder / "texture.onnx"]
    ids = ("ENSG1", "ENSG2", "ENSG3", "ENSG4")
    sections = _of(folder, "A1", "A2", gene_ids=ids)
    build_bank(sections, _plan("best", stain="macenko"), files, tmp_path / "a.h5", device="cpu")

    bank = Bank.open(tmp_path / "a.h5")

    assert bank.genes == ("A", "B", "C", "D")
    assert bank.gene_ids == ids
    assert (bank.settings.preset, bank.settings.stain, bank.settings.metric) == (
        "best",
        "macenko",
        "supervised",
    )
    assert [one is None for one in bank.projections] == [False, True, False, True]
    read = anndata.read_h5ad(bank.path)
    assert read.var["gene_ids"].tolist() == list(ids)
    uns = read.uns["stinfer"]
    assert uns["format_version"] == 3
    assert list(uns["backbones"]) == list(bank.settings.backbones)
    assert uns["reductions"].tolist() == [1, 1, 2, 2]
    np.testing.assert_array_equal(uns["projection_2"], bank.projections[2])
    assert "projection_1" not in uns
    np.testing.assert_array_equal(uns["stain_directions"], bank.stain.directions)
    np.testing.assert_allclose(np.linalg.norm(uns["stain_directions"], axis=1), 1, rtol=1e-12)


# Stains


def _true_directions(*names):
    found = [np.array(STAINS[name][0]) for name in names]
    unit = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in found]
    mean = np.mean(unit, axis=0)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def test_sections_are_brought_to_the_middle_of_their_stains(folder, tmp_path):
    spread = {}
    for stain in ("none", "macenko"):
        bank = _build(
            folder, ["net"], _plan(metric="none", stain=stain), tmp_path / f"{stain}.h5", ("A1", "A2")
        )
        first, second = bank.embedding[: len(PLACES)], bank.embedding[len(PLACES) :]
        # The same tissue: how far the two are apart, over how far places are.
        spread[stain] = np.sqrt(((first - second) ** 2).sum(axis=1).mean()) / np.sqrt(first.var(axis=0).sum())
        assert (bank.stain is None) == (stain == "none")

    assert bank.settings.stain == "macenko"
    cosine = (bank.stain.directions * _true_directions("A1", "A2")).sum(axis=1)
    assert np.degrees(np.arccos(cosine)).max() < 3
    assert spread["none"] > 0.5
    assert spread["macenko"] < 0.15


def test_normalization_is_kept_where_sections_of_other_stains_predict_each_other_better(folder, tmp_path):
    """The same tissue in two stains: after normalization alone is a place nearest to the same place."""
    bank = _build(folder, ["net"], _plan(stain="auto"), tmp_path / "a.h5", ("A1", "B3"))
    assert bank.settings.stain == "macenko"
    plain = _build(folder, ["net"], _plan(stain="none"), tmp_path / "b.h5", ("A1", "B3"))
    kept = _build(folder, ["net"], _plan(stain="macenko"), tmp_path / "c.h5", ("A1", "B3"))
    means = [np.nanmean(one.gene_columns["cv_pearson"]) for one in (plain, kept)]
    assert means[1] > means[0] + 0.005
    assert bank.hashes == kept.hashes

    twice = [*_of(folder, "A1"), replace(*_of(folder, "A1"), name="A9")]
    build_bank(twice, _plan(stain="auto"), [folder / "net.onnx"], tmp_path / "d.h5", device="cpu")
    assert Bank.open(tmp_path / "d.h5").settings.stain == "none"
    with pytest.raises(SettingError, match="--stain auto chooses by predicting sections from the others"):
        _build(folder, ["net"], _plan(stain="auto"), tmp_path / "e.h5", ("A1",))


@pytest.mark.parametrize(("stain", "found"), [("macenko", 36), ("none", None)])
def test_a_slide_of_another_laboratory_is_read_in_the_stains_of_the_bank(folder, tmp_path, stain, found):
    bank = _build(
        folder, ["net"], _plan(metric="none", distance="euclidean", stain=stain), tmp_path / "a.h5", ("A1",)
    )
    rows = [f"p{i},{x},{y}" for i, (x, y) in enumerate(PLACES)]
    (tmp_path / "s.csv").write_text("\n".join(["name,x,y", *rows]) + "\n")

    stinfer.predict_slide(
        folder / "B3.png",
        bank.path,
        out=tmp_path / "p.h5ad",
        mpp=UM_PER_PX,
        spots=tmp_path / "s.csv",
        k=1,
        genes="all",
        device="cpu",
    )

    predicted = anndata.read_h5ad(tmp_path / "p.h5ad").X
    own = np.isclose(predicted, shared.dense(bank), rtol=1e-5).all(axis=1)
    # The nearest reference is the same place, stained there; without it that is often another.
    if found is not None:
        assert own.sum() == found == len(PLACES)
    else:
        assert own.sum() < len(PLACES) / 2


def test_stains_that_cannot_be_told_anywhere_are_refused(tmp_path):
    Image.new("RGB", (400, 400), (100, 120, 140)).save(tmp_path / "A1.png")
    write_cell_model(tmp_path / "net.onnx", name="net.x")
    section = _section(tmp_path / "A1.png", "A1", "AB", [[1, 2], [2, 1]], [(200.0, 200.0)] * 2, mpp=UM_PER_PX)

    with pytest.raises(SettingError) as caught:
        build_bank(
            [section], _plan(stain="macenko"), [tmp_path / "net.onnx"], tmp_path / "a.h5", device="cpu"
        )

    assert caught.value.what == ("--stain macenko: hematoxylin and eosin cannot be told apart in any section")
    assert caught.value.fix == "use --stain none"
    assert not (tmp_path / "a.h5").exists()


def test_a_section_whose_stains_cannot_be_told_is_left_as_it_is_and_that_is_said(folder, tmp_path):
    Image.new("RGB", (400, 400), (100, 120, 140)).save(tmp_path / "gray.png")
    gray = _section(tmp_path / "gray.png", "G", "AB", [[1, 2], [2, 1]], [(200.0, 200.0)] * 2, mpp=UM_PER_PX)
    plan = _plan(metric="none", stain="macenko")

    summary = build_bank(
        [*_of(folder, "A1"), gray], plan, [folder / "net.onnx"], tmp_path / "a.h5", device="cpu"
    )

    notice = "section G: hematoxylin and eosin cannot be told apart; its stains are left as they are"
    assert notice in summary.notices


# The command


def test_the_options_reach_the_plan(monkeypatch, tmp_path):
    asked = []

    def build(sections, plan, models, out, **running):
        asked.append((plan, models, out, running))
        return BankSummary(out, 1, 1, ())

    monkeypatch.setattr(bank_builder, "build_bank", build)
    shared.fixtures.write_board_data_set(tmp_path / "data")
    fixed = ["bank", "her2st", str(tmp_path / "data"), "--out", "b.h5", "--model", "a.onnx"]

    plain = CliRunner().invoke(main, fixed)
    options = "--model c.onnx --preset best --tta 8 --stain macenko --metric supervised"
    full = CliRunner().invoke(main, [*fixed, *options.split()])

    assert (plain.exit_code, full.exit_code) == (0, 0), plain.output + full.output
    default = BankPlan("her2st", 200.0, 100.0)
    assert asked[0][:2] == (with_preset(default, "fast"), (Path("a.onnx"),))
    assert asked[1][:2] == (
        BankPlan(
            "her2st",
            200.0,
            100.0,
            preset="best",
            orientations=8,
            reductions=(1, 2),
            stain="macenko",
            metric="supervised",
        ),
        (Path("a.onnx"), Path("c.onnx")),
    )
