"""What of a section becomes part of a bank: genes that are joined, spots that are dropped."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

from stinfer.errors import SettingError
from stinfer_export.bank_builder import build_bank
from stinfer_export.errors import DatasetError

_SPEC = importlib.util.spec_from_file_location("bank_sections", Path(__file__).parent / "bank_sections.py")
shared = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(shared)
model, picture = shared.model, shared.picture
_plan, _section, _dense, _build = shared.plan, shared.section, shared.dense, shared.build

JOINED = "union of the sections' genes: 2, all of them listed in every section"


# Genes


def _two_sections(picture):
    return [
        _section(picture, "P1", ("B", "A"), [[60, 40], [75, 25], [90, 10]]),
        _section(picture, "P2", ("C", "A"), [[80, 20], [70, 30], [60, 40]]),
    ]


def test_union_fills_genes_that_a_section_does_not_list_with_zero(picture, model, tmp_path):
    summary, bank = _build(_two_sections(picture), _plan(), model, tmp_path / "a.h5")

    assert bank.genes == ("A", "B", "C")
    counts = [[40, 60, 0], [25, 75, 0], [10, 90, 0], [20, 0, 80], [30, 0, 70], [40, 0, 60]]
    np.testing.assert_allclose(_dense(bank), np.log1p(np.array(counts) * 100.0), rtol=1e-6)
    assert np.array_equal(_dense(bank) == 0, np.array(counts) == 0)
    assert bank.gene_columns["n_sections"].tolist() == [2, 1, 1]
    assert bank.gene_columns["detected_fraction"].tolist() == [1.0, 0.5, 0.5]
    assert (
        "union of the sections' genes: 3, of which 2 are not listed in every section and count 0 where "
        "they are not"
    ) in summary.notices


def test_intersection_keeps_shared_genes_and_the_totals_of_all(picture, model, tmp_path):
    summary, bank = _build(_two_sections(picture), _plan(gene_join="intersection"), model, tmp_path / "a.h5")

    assert bank.genes == ("A",)
    # Of 100 counts of all genes, not of the counts of A alone.
    np.testing.assert_allclose(
        _dense(bank)[:, 0], np.log1p([4000.0, 2500, 1000, 2000, 3000, 4000]), rtol=1e-6
    )
    assert bank.spot_columns["total_counts"].tolist() == [100] * 6
    assert bank.settings.gene_join == "intersection"
    assert (
        "intersection of the sections' genes: 1, 2 more that are not listed in every section are left out"
    ) in summary.notices


@pytest.mark.parametrize("join", ["union", "intersection"])
def test_the_join_is_told_where_the_sections_list_the_same_genes_too(picture, model, tmp_path, join):
    sections = [_section(picture, name, "AB", [[1, 2], [2, 1]]) for name in ("P1", "P2")]

    summary, bank = _build(sections, _plan(k=1, gene_join=join), model, tmp_path / "a.h5")

    assert bank.genes == ("A", "B")
    assert summary.notices == (f"{join} of the sections' genes: 2, all of them listed in every section",)


def test_sections_without_a_common_gene_have_no_intersection(picture, model, tmp_path):
    sections = [_section(picture, "P1", "A", [[1], [2]]), _section(picture, "P2", "B", [[1], [2]])]

    with pytest.raises(SettingError, match="the sections have no gene in common") as caught:
        build_bank(sections, _plan(gene_join="intersection"), [model], tmp_path / "a.h5", device="cpu")

    assert "--gene-join union" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


# Spots that are dropped


def test_spots_are_dropped_by_the_exact_part_of_their_patch_outside(picture, model, tmp_path):
    # A patch is 16 px wide; at x = 4 it spans -4 to 12: exactly a quarter is outside.
    centers = [(4.0, 50.0), (3.99, 50.0), (4.0, 4.0), (196.0, 50.0), (100.0, 50.0), (8.0, 8.0)]
    section = _section(picture, "P1", "AB", [[i + 1, 2] for i in range(6)], centers)

    summary, bank = _build([section], _plan(fov_um=(160.0,), k=1), model, tmp_path / "a.h5")

    # The corner (4, 4) has 1 - 0.75 x 0.75 = 0.4375 outside.
    assert bank.spots == ("P1_0x7", "P1_3x7", "P1_4x7", "P1_5x7")
    assert summary.notices == (
        "section P1: 2 spots have more than 25% of their 160 µm outside the image; dropped",
        "section P1: the patches of 2 spots reach beyond the image; filled up with white",
        JOINED,
    )
    # Beyond the image there is white: a quarter of 255, three quarters of the gray.
    np.testing.assert_allclose(
        bank.embedding[:3],
        [[138.75, 153.75, 168.75], [138.75, 153.75, 168.75], [100, 120, 140]],
        atol=1.0,
    )


@pytest.mark.parametrize(
    ("max_outside", "kept"), [(0.0, [4, 5]), (0.2499, [4, 5]), (0.4375, [0, 2, 3, 4, 5])]
)
def test_max_outside_is_the_largest_part_allowed(picture, model, tmp_path, max_outside, kept):
    centers = [(4.0, 50.0), (-10.0, 50.0), (4.0, 4.0), (196.0, 50.0), (100.0, 50.0), (8.0, 8.0)]
    section = _section(picture, "P1", "AB", [[i + 1, 2] for i in range(6)], centers)
    plan = _plan(fov_um=(160.0,), k=1, max_outside=max_outside)

    _, bank = _build([section], plan, model, tmp_path / "a.h5")

    assert bank.spots == tuple(f"P1_{i}x7" for i in kept)


def test_spots_without_a_count_are_dropped(picture, model, tmp_path):
    section = _section(picture, "P1", "AB", [[0, 0], [3, 1], [0, 4], [0, 0], [2, 2]])

    summary, bank = _build([section], _plan(k=1), model, tmp_path / "a.h5")

    assert bank.spots == ("P1_1x7", "P1_2x7", "P1_4x7")
    assert bank.spot_columns["total_counts"].tolist() == [4, 4, 4]
    assert summary.notices == ("section P1: 2 spots have no counts above 0; dropped", JOINED)


def test_spots_that_the_reader_could_not_join_are_counted(picture, model, tmp_path):
    section = _section(picture, "P1", "AB", [[3, 1], [2, 2]], n_places_only=5, n_counts_only=1)

    summary, _ = _build([section], _plan(k=1), model, tmp_path / "a.h5")

    assert summary.notices == (
        "section P1: 5 spots have a place but no counts; dropped",
        "section P1: 1 spots have counts but no place; dropped",
        JOINED,
    )


def test_a_section_that_loses_all_spots_is_left_out(picture, model, tmp_path):
    sections = [
        _section(picture, "P1", "AB", [[0, 0], [0, 0]]),
        _section(picture, "P2", "BC", [[3, 1], [2, 2]]),
    ]

    _, bank = _build(sections, _plan(k=1), model, tmp_path / "a.h5")

    assert bank.genes == ("B", "C")
    assert bank.sections == ("P2", "P2")


def test_no_usable_spot_at_all_is_refused(picture, model, tmp_path):
    section = _section(picture, "P1", "AB", [[1, 1], [2, 2]], [(-10.0, 50.0), (50.0, 110.0)])

    with pytest.raises(SettingError, match="no section has a spot that can be used") as caught:
        build_bank([section], _plan(), [model], tmp_path / "a.h5", device="cpu")

    assert "--max-outside" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("center", [(-10.01, 50.0), (50.0, -10.01), (210.01, 50.0), (50.0, 110.01)])
def test_places_more_than_half_a_pitch_outside_are_not_of_this_image(picture, model, tmp_path, center):
    # The pitch is 200 µm, so 20 px; the picture has 200 x 100 px.
    section = _section(picture, "P1", "AB", [[1, 2]] * 4, [(50.0, 50.0), center, (-10.0, 50.0), (60.0, 50.0)])

    with pytest.raises(DatasetError) as caught:
        _build([section], _plan(k=1), model, tmp_path / "a.h5")

    assert caught.value.what == (
        f"data set {picture}: section P1: 1 of 4 spots lie outside its image of 200x100 px, spot 1x7 by 10 px"
    )
    assert caught.value.fix == "check that image and spots belong together"
    assert list(tmp_path.iterdir()) == []


def test_the_spot_farthest_outside_is_named(picture, model, tmp_path):
    centers = [(50.0, 50.0), (250.0, 50.0), (-5.0, 50.0), (50.0, 900.0)]
    section = _section(picture, "P1", "AB", [[1, 2]] * 4, centers)

    with pytest.raises(
        DatasetError, match=r"2 of 4 spots lie outside its image of 200x100 px, spot 3x7 by 800 px$"
    ):
        _build([section], _plan(k=1), model, tmp_path / "a.h5")


def test_a_bank_of_one_reference_is_one_that_the_runtime_opens(picture, model, tmp_path):
    section = _section(picture, "P1", "AB", [[1, 3]])

    _, bank = _build([section], _plan(), model, tmp_path / "a.h5")

    assert bank.settings.k == 1
    np.testing.assert_allclose(_dense(bank), [[math.log(2501), math.log(7501)]], rtol=1e-6)
    assert np.isnan(bank.gene_columns["cv_pearson"]).all()
