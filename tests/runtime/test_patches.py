from __future__ import annotations

import numpy as np
from PIL import Image

from stinfer.patches import iter_patches
from stinfer.slide import open_slide


def noise_slide(tmp_path, mpp):
    pixels = np.random.default_rng(2).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    path = tmp_path / "slide.png"
    Image.fromarray(pixels).save(path)
    return pixels, open_slide(path, mpp)


def test_patches_are_centered_in_order_and_in_batches(tmp_path):
    pixels, slide = noise_slide(tmp_path, 0.5)
    centers = np.array([[8, 8], [20, 12], [52, 32], [30, 20], [9, 31]], dtype=float)
    with slide:
        batches = list(iter_patches(slide, centers, 4.0, 8, 2))  # 4 µm = 8 px: no resampling
    assert [len(batch) for batch in batches] == [2, 2, 1]
    for patch, (x, y) in zip(np.concatenate(batches), centers.astype(int), strict=True):
        assert np.array_equal(patch, pixels[y - 4 : y + 4, x - 4 : x + 4])


def test_the_batch_size_does_not_change_the_pixels(tmp_path):
    _, slide = noise_slide(tmp_path, 0.69)
    centers = np.random.default_rng(3).random((7, 2)) * [60, 40]
    with slide:
        together = np.concatenate(list(iter_patches(slide, centers, 9.0, 8, 100)))
        alone = np.concatenate(list(iter_patches(slide, centers, 9.0, 8, 1)))
    assert np.array_equal(together, alone)


def test_a_field_of_view_is_in_um(tmp_path):
    # The same tissue scanned twice as finely: the same patch.
    pixels, slide = noise_slide(tmp_path, 1.0)
    finer = tmp_path / "finer.png"
    Image.fromarray(pixels.repeat(2, axis=0).repeat(2, axis=1)).save(finer)
    with slide, open_slide(finer, 0.5) as fine:
        coarse_patch = next(iter_patches(slide, np.array([[30.0, 20.0]]), 16.0, 4, 1))
        fine_patch = next(iter_patches(fine, np.array([[60.0, 40.0]]), 16.0, 4, 1))
    assert np.abs(coarse_patch.astype(int) - fine_patch).max() <= 4


def test_patches_over_the_corner_are_filled_with_white(tmp_path):
    pixels, slide = noise_slide(tmp_path, 1.0)
    with slide:
        (patch,) = next(iter_patches(slide, np.array([[0.0, 40.0]]), 8.0, 8, 1))
    assert np.array_equal(patch[:4, 4:], pixels[36:, :4])
    assert (patch[4:] == 255).all()
    assert (patch[:, :4] == 255).all()


def test_no_places_no_patches(tmp_path):
    _, slide = noise_slide(tmp_path, 1.0)
    with slide:
        assert list(iter_patches(slide, np.empty((0, 2)), 8.0, 8, 4)) == []
