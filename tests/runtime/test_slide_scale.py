"""µm per pixel from what files say."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from stinfer.errors import ScaleImpossibleError, ScaleUnknownError
from stinfer.slide import open_slide
from stinfer.slide_scale import (
    is_possible,
    magnification,
    mpp_from_description,
    mpp_from_imagej,
    mpp_from_resolution,
    screen_dpi,
)

NOISE = np.random.default_rng(1).integers(0, 256, (64, 96, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("resolution", "unit", "mpp"),
    [
        ((50_800, 25_400), 2, (0.5, 1.0)),
        ((20_000, 40_000), 3, (0.5, 0.25)),
        ((50_800, 50_800), 1, None),
        ((0, 50_800), 2, None),
        ((float("inf"), 50_800), 2, None),
        ((float("nan"), 50_800), 2, None),
        (None, 2, None),
    ],
)
def test_resolution_tags(resolution, unit, mpp):
    assert mpp_from_resolution(resolution, unit) == mpp


@pytest.mark.parametrize(
    ("dpi", "expected"),
    [
        (72, 72),
        (72.009, 72),
        (71.98, 72),
        (28.34 * 2.54, 72),
        (28.35 * 2.54, 72),
        (96, 96),
        (95.99, 96),
        (37.8 * 2.54, 96),
        (75, None),
        (300, None),
        (50_800, None),
    ],
)
def test_the_resolution_of_screens_by_inch_and_centimeter(dpi, expected):
    assert screen_dpi((25_400 / dpi, 25_400 / dpi)) == expected


def test_the_resolution_of_screens_on_one_axis_alone_is_none():
    assert screen_dpi((25_400 / 72, 0.5)) is None
    assert screen_dpi((0.0, 0.0)) is None


@pytest.mark.parametrize(
    ("text", "mpp"),
    [
        ("Aperio Image Library v11\r\n100x100 |AppMag = 20|MPP = 0.4990|Left = 2", (0.499, 0.499)),
        ("Aperio|AppMag = 40", None),
        ("MPP = 0", None),
        ("MPP = .", None),
        ("COMPP = 3", None),
        ("", None),
        (
            '<OME xmlns="x"><Image><Pixels PhysicalSizeX="0.25" PhysicalSizeY="0.5" '
            'PhysicalSizeYUnit="&#181;m"/></Image></OME>',
            (0.25, 0.5),
        ),
        ("<OME", None),
    ],
)
def test_free_texts(text, mpp):
    assert mpp_from_description(text) == mpp


@pytest.mark.parametrize(
    ("unit", "mpp"),
    [("micron", 0.5), ("\\u00B5m", 0.5), ("um", 0.5), ("mm", 500.0), ("pixel", None), ("", None)],
)
def test_imagejs_unit_of_the_resolution_tags(unit, mpp):
    text = f"ImageJ=1.53t\nimages=1\nunit={unit}\nmin=0\n"
    assert mpp_from_imagej(text, (2.0, 2.0)) == (None if mpp is None else (mpp, mpp))
    assert mpp_from_imagej("unit=micron", (2.0, 2.0)) is None


@pytest.mark.parametrize(
    ("text", "power"),
    [("20", 20), ("AppMag = 40|x", 40), ("0", None), ("1e9", None), ("many", None), (None, None)],
)
def test_magnification(text, power):
    assert magnification(text) == power


def test_the_limits_are_possible():
    assert is_possible((0.05, 20.0))
    assert not is_possible((0.0499, 1.0))
    assert not is_possible((1.0, 20.01))
    assert not is_possible((1.0, float("nan")))


# --- files ----------------------------------------------------------------------------------------


def write(path, **options):
    tifffile = pytest.importorskip("tifffile")
    options = {"photometric": "rgb", "metadata": None, "tile": (32, 32), **options}
    tifffile.imwrite(path, NOISE, **options)
    return path


def test_aperios_word_counts_more_than_the_resolution_of_screens(tmp_path):
    path = write(
        tmp_path / "a.tif",
        description="scanned |MPP = 0.25|AppMag = 40",
        resolution=(72, 72),
        resolutionunit="INCH",
    )
    with open_slide(path) as slide:
        assert (slide.mpp, slide.mpp_source) == ((0.25, 0.25), "slide metadata")


def test_a_magnification_alone_is_no_scale_but_a_hint(tmp_path):
    path = write(tmp_path / "a.tif", description="scanned |AppMag = 40")
    with pytest.raises(ScaleUnknownError, match="only that it was scanned at 40x") as caught:
        open_slide(path)
    assert caught.value.fix == "give it with --mpp; at 40x it is probably about 0.25"


@pytest.mark.parametrize(("dpi", "unit"), [(72, "INCH"), (96.009, "INCH"), (28.346, "CENTIMETER")])
def test_the_resolution_of_screens_is_called_that(tmp_path, dpi, unit):
    path = write(tmp_path / "a.tif", resolution=(dpi, dpi), resolutionunit=unit)
    with pytest.raises(ScaleImpossibleError, match=r"just the (72|96) dpi of a screen") as caught:
        open_slide(path)
    assert "--mpp" in caught.value.fix
    # Nothing that the user's word could contradict.
    with open_slide(path, 0.5) as slide:
        assert slide.said_mpp is None


def test_x_and_y_of_the_users_scale_are_kept_apart(tmp_path):
    Image.fromarray(NOISE).save(tmp_path / "a.png", dpi=(25_400, 25_400))
    with open_slide(tmp_path / "a.png", (0.5, 0.25)) as slide:
        assert slide.mpp == (0.5, 0.25)
        assert slide.said_mpp == pytest.approx((1.0, 1.0), rel=1e-4)
    with pytest.raises(ScaleImpossibleError, match=r"--mpp gives 0\.5 x 30"):
        open_slide(tmp_path / "a.png", (0.5, 30.0))


def test_imagejs_scale_without_the_extra(tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, NOISE, imagej=True, resolution=(2.0, 4.0), metadata={"unit": "um"})
    for _ in ("with", "without"):
        with open_slide(path) as slide:
            assert slide.mpp == (0.5, 0.25)
            assert slide.mpp_source == "slide metadata"
        monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
