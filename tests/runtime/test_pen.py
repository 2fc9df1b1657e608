"""Pen marks are no tissue, whatever is written with."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from stinfer.pen import pen_colored
from stinfer.slide import open_slide
from stinfer.tissue import brightest_color, density_over_glass, find_tissue

GLASS = (245, 245, 243)
EOSIN, HEMATOXYLIN = (215, 130, 175), (120, 80, 160)
INKS = {
    "blue": (45, 95, 180),
    "light blue": (90, 150, 215),
    "navy": (30, 40, 120),
    "green": (25, 130, 85),
    "turquoise": (0, 130, 120),
    "red": (215, 25, 40),
    "black": (30, 30, 34),
}


def density(color):
    pixels = np.array([[color]], dtype=np.uint8)
    return density_over_glass(pixels, np.array(GLASS, dtype=float))


@pytest.mark.parametrize("ink", INKS)
def test_inks_are_known_by_their_colour(ink):
    assert pen_colored(density(INKS[ink])).all()


def test_density_by_hand():
    # (245 + 1) / (23.6 + 1) is a tenth.
    pixels = np.array([[[245, 245, 24]]], dtype=np.uint8)
    found = density_over_glass(pixels, np.array([245.0, 2459.0, 249.0]))
    np.testing.assert_allclose(found, [[[0, 1, 1]]], atol=1e-6)


def test_no_mixture_of_hematoxylin_and_eosin_is_ink():
    # Ruifrok and Johnston's stain vectors, in any proportion, as dense as a section is at 8 µm per pixel.
    stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    share, depth = np.meshgrid(np.linspace(0, 1, 41), np.linspace(0, 1.3, 53))
    amounts = np.stack([share * depth, (1 - share) * depth], axis=2)
    assert not pen_colored((amounts @ stains).astype(np.float32)).any()


def slide_with(pixels, tmp_path):
    path = tmp_path / "slide.png"
    Image.fromarray(pixels).save(path, compress_level=1)
    return open_slide(path, 4.0)


@pytest.fixture
def section():
    """4 x 2.4 mm at 4 µm per pixel: glass, and tissue of two stains."""
    pixels = np.full((600, 1000, 3), GLASS, dtype=np.uint8)
    pixels[100:500, 100:300] = EOSIN
    pixels[100:500, 300:500] = HEMATOXYLIN
    return pixels


@pytest.mark.parametrize("ink", INKS)
def test_a_stroke_beside_the_tissue_is_left_out_and_the_tissue_stays(tmp_path, section, ink):
    with slide_with(section, tmp_path) as slide:
        clean = find_tissue(slide)
    section[50:550, 700:800] = INKS[ink]  # 2 mm long, 0.4 mm wide
    with slide_with(section, tmp_path) as slide:
        found = find_tissue(slide)
    assert clean.mask.sum() == pytest.approx(400 * 400 / 4, rel=0.02)
    assert np.array_equal(found.mask, clean.mask)
    # What is grey is not coloured, and is not taken for tissue in the first place.
    if ink != "black":
        assert found.pen_mm2(slide.mpp) == pytest.approx(2.0 * 0.4, rel=0.1)


def test_a_stroke_does_not_hide_pale_tissue(tmp_path, section):
    # Much ink, of a chroma that would draw the threshold above eosin's.
    pale = (228, 200, 218)
    section[100:500, 100:500] = pale
    section[:, 600:900] = INKS["blue"]
    with slide_with(section, tmp_path) as slide:
        found = find_tissue(slide)
    assert found.fraction(np.array([[300.0, 300.0], [750.0, 300.0]]), (200.0, 200.0)).tolist() == [1.0, 0.0]


def test_tissue_under_a_green_stroke_is_left_out(tmp_path, section):
    ink = np.array(INKS["green"]) / 255
    section[250:350] = section[250:350] * ink
    with slide_with(section, tmp_path) as slide:
        found = find_tissue(slide)
    centers = np.array([[200.0, 300.0], [400.0, 300.0], [200.0, 150.0], [400.0, 450.0]])
    assert found.fraction(centers, (60.0, 60.0)).tolist() == [0.0, 0.0, 1.0, 1.0]


def test_what_is_smaller_than_a_pens_mark_is_none(tmp_path, section):
    # 0.4 x 0.4 mm of blue pigment in the tissue.
    section[200:300, 150:250] = INKS["blue"]
    with slide_with(section, tmp_path) as slide:
        found = find_tissue(slide)
    assert found.n_pen_px == 0
    assert found.fraction(np.array([[200.0, 250.0]]), (60.0, 60.0)).tolist() == [1.0]


def test_small_pieces_and_small_holes_by_their_area(tmp_path, section):
    section[40:75, 800:835] = EOSIN  # 0.0196 mm²: too small
    section[140:177, 800:837] = EOSIN  # 0.0219 mm²
    with slide_with(section, tmp_path) as slide:
        found = find_tissue(slide)
    centers = np.array([[817.5, 57.5], [818.5, 158.5]])
    assert found.fraction(centers, (20.0, 20.0)).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("ink", ["blue", "green", "black", "red"])
def test_a_stroke_on_a_real_section(shared, tmp_path, ink):
    """C3 with a stroke of 0.7 mm on its glass, which absorbs light as ink does."""
    path = shared / "her2st" / "ST-imgs" / "C" / "C3" / "5714_HE_BT_D1.jpg"
    with open_slide(path, 0.69) as slide:
        clean = find_tissue(slide)
        pixels = slide.thumbnail(max(clean.mask.shape))
    glass = brightest_color(pixels)
    pixels = pixels.astype(float)
    pixels[680:750, 50:750] *= np.array(INKS[ink]) / glass
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png", 0.69 * clean.l0_per_px[0]) as slide:
        found = find_tissue(slide)
    assert not found.mask[640:790].any()
    assert found.mask[:640].sum() == pytest.approx(clean.mask[:640].sum(), rel=0.02)
