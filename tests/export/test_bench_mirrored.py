"""Slides made of one section: mirror images without a seam, and as much tissue as was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stinfer.slide import open_slide
from stinfer.tissue import find_tissue
from stinfer_export.bench.mirrored import mirrored, mirrored_slide
from stinfer_export.bench.subjects import BenchSlide

MPP_UM = 8.0


@pytest.fixture(scope="module")
def section(tmp_path_factory: pytest.TempPathFactory) -> BenchSlide:
    """A rectangle of tissue, 400 x 320 px, off the middle of glass; its upper half is darker."""
    pixels = np.full((700, 800, 3), 245, dtype=np.uint8)
    pixels[100:420, 300:700] = (190, 100, 170)
    pixels[100:260, 300:700] = (110, 60, 140)
    path = tmp_path_factory.mktemp("section") / "section.png"
    Image.fromarray(pixels).save(path)
    return BenchSlide(path, MPP_UM)


def test_a_picture_goes_on_as_its_mirror_images() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    wide = np.pad(pixels, ((0, 20), (0, 30), (0, 0)), mode="symmetric")
    np.testing.assert_array_equal(mirrored(pixels, (12, 20), 9, 13), wide[9:21, 13:33])


def tissue_l0(slide: BenchSlide) -> float:
    with open_slide(slide.path, slide.mpp) as opened:
        assert opened.mpp == (MPP_UM, MPP_UM)
        tissue = find_tissue(opened)
        return float(tissue.mask.sum() * np.prod(tissue.l0_per_px))


# A quarter is a strip of 112 of the box's 448 px, all of whose width is tissue.
@pytest.mark.parametrize(
    ("n_copies", "expected_px"),
    [(8.0, 8 * 400 * 320), (2.0, 2 * 400 * 320), (1.0, 400 * 320), (0.25, 112 * 320)],
)
def test_there_is_as_much_tissue_as_copies(
    section: BenchSlide, tmp_path: Path, n_copies: float, expected_px: int
) -> None:
    made = mirrored_slide(section, n_copies, tmp_path)
    assert tissue_l0(made) == pytest.approx(expected_px, rel=0.03)
    written = made.path.read_bytes()
    assert mirrored_slide(section, n_copies, tmp_path) == made
    assert made.path.read_bytes() == written


def test_all_levels_show_the_same(section: BenchSlide, tmp_path: Path) -> None:
    made = mirrored_slide(section, 4.0, tmp_path)
    with open_slide(made.path, made.mpp) as slide:
        width, height = slide.size_l0
        # Twice the box of the tissue with a sixteenth of its sides around: 450 x 360 px, in whole 16 px.
        assert (width, height) == (2 * 448, 2 * 352)
        fine = slide.read((0.0, 0.0), (width, height), (width, height)).astype(float)
        for reduction in (4, 16):
            size = (width // reduction, height // reduction)
            coarse = slide.read((0.0, 0.0), (width, height), size).astype(float)
            means = fine.reshape(size[1], reduction, size[0], reduction, 3).mean(axis=(1, 3))
            # JPEG blurs the tissue's edges; half a box beside, nothing fits.
            assert np.abs(coarse - means).mean() < 6
            assert np.abs(np.roll(coarse, size[0] // 4, axis=1) - means).mean() > 20
