"""Runs of the bank builder: the same bytes twice, what is refused, and what is left behind."""

from __future__ import annotations

import errno
import importlib.util
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from stinfer import h5ad
from stinfer.embed import open_encoders
from stinfer.errors import (
    BankFormatError,
    ModelFormatError,
    OutputExistsError,
    OutputWriteError,
    SettingError,
    SlideUnreadableError,
)
from stinfer_export.bank_builder import build_bank
from stinfer_export.datasets.her2st import iter_sections
from stinfer_export.errors import DatasetError

_SPEC = importlib.util.spec_from_file_location("bank_sections", Path(__file__).parent / "bank_sections.py")
shared = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(shared)
data, model, picture, board_bank = shared.data, shared.model, shared.picture, shared.board_bank
_plan, _section, _build = shared.plan, shared.section, shared.build


# Runs


def test_the_same_input_gives_the_same_bytes(data, model, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        build_bank(iter_sections(data), _plan(), [model], tmp_path / name / "x.h5", device="cpu")

    assert (tmp_path / "a/x.h5").read_bytes() == (tmp_path / "b/x.h5").read_bytes()


def test_another_input_gives_other_hashes(picture, model, tmp_path):
    banks = []
    for counts in ([[3, 1], [2, 2]], [[3, 1], [2, 3]]):
        section = _section(picture, "P1", "AB", counts)
        banks.append(_build([section], _plan(k=1), model, tmp_path / "a.h5", overwrite=True)[1])

    changed = {part for part, digest in banks[0].hashes.items() if banks[1].hashes[part] != digest}
    assert changed == {"expression", "spots"}  # spots: their total counts


def test_progress_tells_of_every_batch(data, model, tmp_path):
    told = []

    def progress(done, total, unit):
        told.append((done, total, unit))

    _build(iter_sections(data), _plan(), model, tmp_path / "a.h5", batch_size=8, progress=progress)

    assert told == [(done, 30, "patches") for done in (0, 8, 16, 24, 30)]


def test_an_existing_bank_is_refused_before_any_work(model, tmp_path):
    def never():
        pytest.fail("a section was read")
        yield

    path = tmp_path / "a.h5"
    path.write_bytes(b"precious")

    with pytest.raises(OutputExistsError, match=r"a\.h5 exists"):
        build_bank(never(), _plan(), [model], path, device="cpu")

    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


def test_an_existing_bank_is_replaced_when_asked(data, model, tmp_path, board_bank):
    path = tmp_path / "board.h5"
    path.write_bytes(b"old")

    build_bank(iter_sections(data), _plan(), [model], path, device="cpu", overwrite=True)

    assert path.read_bytes() == board_bank[1].path.read_bytes()


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_model_is_never_replaced_by_the_bank(data, model, tmp_path, overwrite):
    path = tmp_path / "m.onnx"
    path.write_bytes(model.read_bytes())
    (tmp_path / "link.h5").symlink_to(path)

    for out in (path, tmp_path / "link.h5"):
        with pytest.raises(SettingError, match=f"output .*{out.name} is also an input"):
            build_bank(iter_sections(data), _plan(), [path], out, device="cpu", overwrite=overwrite)

    assert path.read_bytes() == model.read_bytes()


def test_a_missing_folder_is_refused(data, model, tmp_path):
    with pytest.raises(OutputWriteError, match=r"the folder .*nowhere does not exist"):
        build_bank(iter_sections(data), _plan(), [model], tmp_path / "nowhere/a.h5", device="cpu")


def test_a_missing_model_is_refused(data, tmp_path):
    with pytest.raises(SettingError, match=r"model .*none\.onnx cannot be read: No such file") as caught:
        build_bank(iter_sections(data), _plan(), [tmp_path / "none.onnx"], tmp_path / "a.h5", device="cpu")

    assert "stinfer-export backbone" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


def _foreign_model(path):
    """Write a model that is sound, but not one of ours."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["a"], ["b"])],
        "identity",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, ["n"])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def test_a_model_that_is_none_of_ours_is_refused(data, model, tmp_path):
    _foreign_model(tmp_path / "foreign.onnx")
    (tmp_path / "cut.onnx").write_bytes(model.read_bytes()[:100])
    (tmp_path / "text.onnx").write_text("not a model")
    (tmp_path / "empty.onnx").write_bytes(b"")
    before = sorted(tmp_path.iterdir())

    for path in before:
        with pytest.raises(ModelFormatError, match=path.name):
            build_bank(iter_sections(data), _plan(), [path], tmp_path / "a.h5", device="cpu")

    assert sorted(tmp_path.iterdir()) == before


def test_a_section_that_cannot_be_read_leaves_nothing_behind(data, model, tmp_path):
    def sections():
        yield from iter_sections(data)
        raise DatasetError(data, "broken", "mend it")

    with pytest.raises(DatasetError, match="broken"):
        build_bank(sections(), _plan(), [model], tmp_path / "a.h5", device="cpu")

    assert list(tmp_path.iterdir()) == []


def test_an_image_that_cannot_be_read_leaves_nothing_behind(model, tmp_path):
    image = tmp_path / "HE.jpg"
    image.write_bytes(b"no image")
    section = _section(image, "P1", "AB", [[3, 1], [2, 2]])

    with pytest.raises(SlideUnreadableError, match=r"HE\.jpg"):
        build_bank([section], _plan(), [model], tmp_path / "a.h5", device="cpu")

    assert list(tmp_path.iterdir()) == [image]


@pytest.mark.parametrize("writer", ["write_csr", "write_table", "write_mapping"])
def test_a_full_disk_leaves_nothing_behind_and_the_old_bank_whole(data, model, tmp_path, monkeypatch, writer):
    real = getattr(h5ad, writer)
    path = tmp_path / "a.h5"
    path.write_bytes(b"old")

    def full(group, name, *arguments, **options):
        # The root's empty mappings still fit; what has content does not.
        if isinstance(arguments[0], dict) and not arguments[0]:
            return real(group, name, *arguments, **options)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(h5ad, writer, full)
    with pytest.raises(OutputWriteError, match=r"a\.h5: No space left on device"):
        build_bank(iter_sections(data), _plan(), [model], path, device="cpu", overwrite=True)

    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


# The model beside the bank


def test_a_model_that_was_left_out_is_found_beside_the_bank(data, model, tmp_path):
    _, bank = _build(iter_sections(data), _plan(include_model=False), model, tmp_path / "a.h5")
    assert not bank.holds_models
    assert model.read_bytes() not in bank.path.read_bytes()

    with pytest.raises(BankFormatError, match=r"there is no mean_color\.onnx beside it"):
        open_encoders(bank, device="cpu", threads=1)

    (tmp_path / "mean_color.onnx").write_bytes(model.read_bytes())
    encoders = open_encoders(bank, device="cpu", threads=1)
    pixels = np.full((1, 8, 8, 3), (10, 20, 30), dtype=np.uint8)
    np.testing.assert_allclose(encoders.embed([pixels]), [[10, 20, 30]], atol=1e-5)


def test_another_model_beside_the_bank_is_refused(data, model, tmp_path):
    _, bank = _build(iter_sections(data), _plan(include_model=False), model, tmp_path / "a.h5")
    other = onnx.load(model)
    other.doc_string = "another"
    onnx.save(other, tmp_path / "mean_color.onnx")

    with pytest.raises(ModelFormatError, match=bank.settings.models_sha256[0]):
        open_encoders(bank, device="cpu", threads=1)
