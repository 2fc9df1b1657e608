"""Pixels of regions: what lies at their place, each block read once, by whichever thread comes first."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stinfer import region_pixels
from stinfer.contract import U8
from stinfer.errors import SlideUnreadableError
from stinfer.flat_source import FlatSource
from stinfer.region_pixels import RegionPixels
from stinfer.slide import Slide

PIXELS = np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8)
# Corner and size, x and y: they share blocks of 256 px, and the first and the last leave the slide.
BOXES = [((-30, -10), (300, 280)), ((200, 100), (310, 300)), ((500, 0), (64, 700)), ((640, 400), (400, 400))]


class CountedSlide:
    """A slide at half a µm per pixel that counts its boxes' corners."""

    def __init__(self) -> None:
        image = Image.fromarray(PIXELS)
        self._slide = Slide(Path("slide.svs"), FlatSource(image), (0.5, 0.5), "test", "pillow")
        self.size_l0, self.mpp = self._slide.size_l0, self._slide.mpp
        self.read_at: Counter[tuple[float, float]] = Counter()

    def read(self, corner_l0, extent, size_px) -> U8:
        self.read_at[corner_l0] += 1
        return self._slide.read(corner_l0, extent, size_px)


def in_box(box, shift: tuple[int, int] = (0, 0)) -> U8:
    """Cut a box from the slide, white beyond it, by numpy."""
    (x, y), (width, height) = box
    padded = np.pad(PIXELS, ((500, 500), (500, 500), (0, 0)), constant_values=255)
    x, y = x + 500 - shift[0], y + 500 - shift[1]
    return padded[y : y + height, x : x + width]


@pytest.mark.parametrize("shift", [(0, 0), (14, -15)])
def test_boxes_are_what_lies_there_and_what_they_share_is_read_once(shift: tuple[int, int]) -> None:
    slide = CountedSlide()
    pixels = RegionPixels(slide, 0.5, shift, BOXES)
    for box in BOXES:
        np.testing.assert_array_equal(pixels.read(box), in_box(box, shift))
    # By hand, columns and rows of blocks: -1 to 1 by -1 to 1; 0 to 1 by 0 to 1, which the first has read;
    # 1 to 2 by 0 to 2, of which two are read; 2 to 4 by 1 to 3, of which two are.
    assert len(slide.read_at) == 9 + 0 + 4 + 7
    assert set(slide.read_at.values()) == {1}


def test_threads_share_a_block_that_one_of_them_is_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    slide, go_on = CountedSlide(), threading.Event()
    read = slide.read

    def slow(*box) -> U8:
        go_on.wait(10)
        return read(*box)

    monkeypatch.setattr(slide, "read", slow)
    box = ((10, 10), (200, 200))
    pixels = RegionPixels(slide, 0.5, (0, 0), [box] * 4)
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(pixels.read, box) for _ in range(4)]
        go_on.set()
    for one in found:
        np.testing.assert_array_equal(one.result(), in_box(box))
    assert slide.read_at == {(0, 0): 1}


def test_what_is_not_held_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(region_pixels, "_MAX_HELD", 1)
    slide = CountedSlide()
    boxes = [((0, 0), (512, 256)), ((0, 0), (512, 256))]
    pixels = RegionPixels(slide, 0.5, (0, 0), boxes)
    for box in boxes:
        np.testing.assert_array_equal(pixels.read(box), in_box(box))
    assert slide.read_at == {(0, 0): 1, (256, 0): 2}


def test_a_block_that_is_damaged_fails_whoever_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    slide, go_on = CountedSlide(), threading.Event()

    def failing(*_: object) -> U8:
        go_on.wait(10)
        raise SlideUnreadableError(Path("slide.svs"), "a tile is damaged")

    monkeypatch.setattr(slide, "read", failing)
    box = ((10, 10), (20, 20))
    pixels = RegionPixels(slide, 0.5, (0, 0), [box] * 3)
    with ThreadPoolExecutor(3) as pool:
        found = [pool.submit(pixels.read, box) for _ in range(3)]
        go_on.set()
    for one in found:
        with pytest.raises(SlideUnreadableError, match="a tile is damaged"):
            one.result()
