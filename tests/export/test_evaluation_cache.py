"""Embeddings that are kept: what they depend on, and what becomes of damaged ones."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stinfer.embed import FieldOfView
from stinfer.encoder import Encoder
from stinfer.encoder_stack import EncoderStack, Member
from stinfer.record import Notices
from stinfer_export.evaluation.section_cache import SectionCache

_SPEC = importlib.util.spec_from_file_location(
    "evaluation_sections", Path(__file__).parent / "evaluation_sections.py"
)
shared = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(shared)
VIEW = FieldOfView("patch", (100.0,), "square", 12.5)


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squares")
    shared.write_data_set(folder)
    return shared.read(folder)[0]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    shared.fixtures.write_mean_color_model(path)
    return EncoderStack([Member(Encoder(path.read_bytes(), str(path), device="cpu", threads=1))], "patch")


def cache(folder, encoders):
    return SectionCache(folder, shared.PLAN, encoders, 32, Notices(), None)


def files(folder):
    return sorted(folder.glob("*.npz"))


def test_what_is_read_is_what_was_encoded(section, encoders, tmp_path):
    first, seconds = cache(tmp_path, encoders).part(section, VIEW)
    again, same_seconds = cache(tmp_path, encoders).part(section, VIEW)
    # The mean color of a spot's square: RED, GREEN and BLUE are its counts.
    np.testing.assert_allclose(first.embeddings, section.counts.to_dense()[:, :3], atol=0.51)
    np.testing.assert_array_equal(again.embeddings, first.embeddings)
    assert (again.spots, again.genes) == (first.spots, first.genes)
    np.testing.assert_array_equal(again.expression.data, first.expression.data)
    assert same_seconds == seconds
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize(
    "changed",
    [
        lambda section: replace(section, centers_l0=section.centers_l0 + 1),
        lambda section: replace(section, mpp=section.mpp * 1.01),
        lambda section: replace(section, spots=(*section.spots[:-1], "9x9")),
    ],
)
def test_another_place_is_another_file(section, encoders, tmp_path, changed):
    cache(tmp_path, encoders).part(section, VIEW)
    cache(tmp_path, encoders).part(changed(section), VIEW)
    assert len(files(tmp_path)) == 2


def test_another_view_is_another_file_and_other_expression_is_not(section, encoders, tmp_path):
    cache(tmp_path, encoders).part(section, VIEW)
    cache(tmp_path, encoders).part(section, replace(VIEW, sides_um=(120.0,)))
    assert len(files(tmp_path)) == 2
    poisoned, _ = cache(tmp_path, encoders).part(shared.poisoned(section), VIEW)
    assert len(files(tmp_path)) == 2
    assert "POISON" in poisoned.genes


def test_what_was_said_of_a_section_is_said_again(section, encoders, tmp_path):
    told = replace(section, n_places_only=3)
    caches = [cache(tmp_path, encoders) for _ in range(2)]
    for one in caches:
        one.part(told, VIEW)
    expected = ["section A1: 3 spots have a place but no counts; dropped"]
    assert [one.notices.texts for one in caches] == [expected, expected]


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def _alter(path):
    with np.load(path) as file:
        content = dict(file)
    content["embeddings"] = content["embeddings"] + 1
    np.savez(path, **content)


def _pickle(path):
    with np.load(path) as file:
        content = dict(file)
    content["kept"] = np.array([{"a": 1}], dtype=object)
    np.savez(path, **content)


def _bomb(path):
    with np.load(path) as file:
        content = dict(file)
    content["embeddings"] = np.zeros((2_000_000, 3), dtype=np.float32)
    np.savez_compressed(path, **content)


@pytest.mark.parametrize(
    "damage", [_flip, _alter, _pickle, _bomb, lambda path: path.write_bytes(b"PK"), Path.touch]
)
def test_a_damaged_file_is_not_used(section, encoders, tmp_path, damage):
    first, _ = cache(tmp_path, encoders).part(section, VIEW)
    path = files(tmp_path)[0]
    if damage is Path.touch:
        path.write_bytes(b"")
    damage(path)
    one = cache(tmp_path, encoders)
    again, _ = one.part(section, VIEW)
    np.testing.assert_array_equal(again.embeddings, first.embeddings)
    assert len(one.notices.texts) == 1
    assert one.notices.texts[0].startswith(f"embeddings {path.name} are damaged (")
    assert one.notices.texts[0].endswith("; encoded again")
    assert cache(tmp_path, encoders).part(section, VIEW)[0].embeddings.shape == (48, 3)
