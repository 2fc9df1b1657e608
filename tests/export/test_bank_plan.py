"""What a bank's plan leaves to the backbones and to presets, and what it refuses."""

from __future__ import annotations

import math

import pytest

from stinfer.contract import MapTraits, ModelCard
from stinfer.embed import FieldOfView
from stinfer.errors import SettingError
from stinfer_export.bank_plan import BankPlan, choose_view, with_preset

# 224 px of 154 µm: the scale of most sections of her2st.
MAP_UM_PER_PX = 0.6875
NETWORK = ModelCard("net.x", 224, 1280, 1280, 32, "", "fp32", (), MapTraits(7, (-5.0, -5.0)), "")
WITH_HEAD = ModelCard("stain_texture", 224, 94, 60, 32, "", "fp32", (), MapTraits(1, (0.0, 0.0), b"head"), "")
DEEP = ModelCard("vit.x", 384, 768, 768, 16, "", "fp32", (), None, "its features depend on the whole image")
OLD = ModelCard("old.x", 224, 512, 512, 32, "", "fp32")


def _plan(**changes):
    return BankPlan("her2st", 200.0, 100.0, **changes)


# What is looked at


@pytest.mark.parametrize("card", [NETWORK, WITH_HEAD])
@pytest.mark.parametrize("pooling", [None, "map"])
def test_a_backbone_with_a_map_is_read_through_four_windows(card, pooling):
    view = choose_view(_plan(pooling=pooling), [card])

    assert view == FieldOfView("map", (110.0, 220.0, 440.0, 880.0), "square", MAP_UM_PER_PX)


@pytest.mark.parametrize(("card", "um_per_px"), [(DEEP, 154 / 384), (OLD, MAP_UM_PER_PX)])
def test_a_backbone_without_a_map_encodes_patches(card, um_per_px):
    view = choose_view(_plan(), [card])

    assert view == FieldOfView("patch", (154.0,), "square", um_per_px)


def test_patches_may_be_asked_of_any_backbone():
    assert choose_view(_plan(pooling="patch", fov_um=(112.0,)), [NETWORK]) == FieldOfView(
        "patch", (112.0,), "square", 0.5
    )


def test_windows_of_a_map_are_those_asked_for_at_the_scale_of_all_maps():
    view = choose_view(_plan(fov_um=(22.0, 154.0, 400.5), window="disc"), [NETWORK])

    assert view == FieldOfView("map", (22.0, 154.0, 400.5), "disc", MAP_UM_PER_PX)


@pytest.mark.parametrize(
    ("card", "reason"),
    [
        (DEEP, "vit.x cannot encode a slide as a map: its features depend on the whole image"),
        (OLD, "old.x cannot encode a slide as a map: its model file does not say how: export it again"),
    ],
)
def test_a_map_of_a_backbone_without_one_is_refused_with_its_reason(card, reason):
    with pytest.raises(SettingError) as caught:
        choose_view(_plan(pooling="map"), [card])

    assert caught.value.what == reason
    assert caught.value.fix == "use --pooling patch, or another backbone"


ASCENDING = "are not 1 to 8 ascending sides"
RANGE = "is not between 1 and 10000 µm"


@pytest.mark.parametrize("card", [NETWORK, DEEP])
@pytest.mark.parametrize(
    ("sides_um", "cause"),
    [
        ((309.0, 154.0), f"--fov-um 309,154 {ASCENDING}"),
        ((154.0, 154.0), f"--fov-um 154,154 {ASCENDING}"),
        ((154.0, 309.0, 309.0), f"--fov-um 154,309,309 {ASCENDING}"),
        ((), f"--fov-um  {ASCENDING}"),
        (tuple(range(100, 109)), f"--fov-um 100,101,102,103,104,105,106,107,108 {ASCENDING}"),
        ((0.0,), f"--fov-um 0 {RANGE}"),
        ((-154.0,), f"--fov-um -154 {RANGE}"),
        ((0.99, 154.0), f"--fov-um 0.99,154 {RANGE}"),
        ((154.0, 10_000.5), f"--fov-um 154,10000.5 {RANGE}"),
        ((math.inf,), f"--fov-um inf {RANGE}"),
        ((154.0, math.inf), f"--fov-um 154,inf {RANGE}"),
        ((-math.inf, 154.0), f"--fov-um -inf,154 {RANGE}"),
        ((math.nan,), f"--fov-um nan {RANGE}"),
        ((154.0, math.nan), "--fov-um 154,nan "),
        ((math.nan, 154.0), "--fov-um nan,154 "),
    ],
)
def test_windows_that_are_none_are_refused(card, sides_um, cause):
    with pytest.raises(SettingError) as caught:
        choose_view(_plan(fov_um=sides_um), [card])

    assert caught.value.what.startswith(cause)


def test_eight_windows_are_not_too_many():
    assert len(choose_view(_plan(fov_um=tuple(range(100, 108))), [NETWORK]).sides_um) == 8


@pytest.mark.parametrize("plan", [{"fov_um": (154.0, 309.0)}, {"window": "disc"}])
@pytest.mark.parametrize(("card", "pooling"), [(NETWORK, "patch"), (DEEP, None)])
def test_a_patch_is_one_square(plan, card, pooling):
    with pytest.raises(SettingError) as caught:
        choose_view(_plan(pooling=pooling, **plan), [card])

    assert caught.value.what == "--pooling patch encodes one square around each spot"
    assert caught.value.fix == "give one --fov-um and no --window, or use --pooling map"


def test_a_patch_is_not_coarser_than_a_bank_may_be():
    # 20 µm per pixel is the most that the runtime reads.
    assert choose_view(_plan(fov_um=(7680.0,)), [DEEP]).um_per_px == 20.0

    with pytest.raises(SettingError) as caught:
        choose_view(_plan(fov_um=(7681.0,)), [DEEP])

    assert caught.value.what == (
        "--fov-um 7681 is 20.003 µm per pixel on the 384 px that vit.x takes, more than 20"
    )
    assert caught.value.fix == "give at most 7680, or use --pooling map"


# Several backbones


def test_one_backbone_without_a_map_decides_for_all():
    view = choose_view(_plan(), [NETWORK, DEEP])

    # The smallest input is filled by 154 µm: 154 / 224.
    assert view == FieldOfView("patch", (154.0,), "square", MAP_UM_PER_PX)
    with pytest.raises(SettingError, match=r"^vit\.x cannot encode a slide as a map: its features depend"):
        choose_view(_plan(pooling="map"), [NETWORK, DEEP])


def test_backbones_with_maps_share_one():
    view = choose_view(_plan(), [NETWORK, WITH_HEAD])

    assert view == FieldOfView("map", (110.0, 220.0, 440.0, 880.0), "square", MAP_UM_PER_PX)


# Presets


def test_a_plan_without_a_preset_is_custom():
    plan = _plan()

    assert (plan.preset, plan.orientations, plan.reductions, plan.stain) == ("custom", 1, (1,), "none")
    assert with_preset(plan, "custom") == plan


@pytest.mark.parametrize(("preset", "reductions"), [("fast", (1,)), ("best", (1, 2))])
def test_best_sees_the_tissue_at_half_the_scale_too_and_changes_nothing_else(preset, reductions):
    plan = with_preset(_plan(orientations=4, metric="none", k=7), preset)

    assert plan == _plan(orientations=4, metric="none", k=7, preset=preset, reductions=reductions)
