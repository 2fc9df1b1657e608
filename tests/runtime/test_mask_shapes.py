from __future__ import annotations

import numpy as np
import pytest

from stinfer.mask_shapes import dilated, eroded, without_small_holes, without_small_pieces


def picture(*rows):
    return np.array([[c == "#" for c in row] for row in rows])


def flood(mask):
    """The pieces of a mask, by definition: lists of pixels that are joined by sides."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}
    while left:
        piece, edge = [], [left.pop()]
        while edge:
            y, x = edge.pop()
            piece.append((y, x))
            for place in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if place in left:
                    left.remove(place)
                    edge.append(place)
        yield piece


def test_small_pieces_by_hand():
    mask = picture("##..#", "#..#.", "..#..", "###..")
    # Pieces of 3, 1, 1 and 4 pixels: corners do not join.
    assert np.array_equal(without_small_pieces(mask, 3), picture("##...", "#....", "..#..", "###.."))
    assert np.array_equal(without_small_pieces(mask, 4), picture(".....", ".....", "..#..", "###.."))
    assert not without_small_pieces(mask, 5).any()
    assert np.array_equal(without_small_pieces(mask, 0), mask)


def test_small_holes_by_hand():
    mask = picture("#####.", "#.#..#", "#####.", "#..###")
    # Holes of 1 and 2 pixels; what reaches the border is none.
    assert np.array_equal(without_small_holes(mask, 2), picture("#####.", "###..#", "#####.", "#..###"))
    assert np.array_equal(without_small_holes(mask, 99), picture("#####.", "######", "#####.", "#..###"))
    assert np.array_equal(without_small_holes(mask, 1), mask)


@pytest.mark.parametrize("share", [0.3, 0.55, 0.65, 0.9])
def test_pieces_and_holes_are_those_of_a_flood(share):
    rng = np.random.default_rng(int(100 * share))
    for _ in range(20):
        height, width = rng.integers(1, 25, 2)
        mask = rng.random((height, width)) < share
        least = int(rng.integers(1, 12))
        kept, filled = np.zeros_like(mask), mask.copy()
        for piece in flood(mask):
            if len(piece) >= least:
                kept[tuple(np.transpose(piece))] = True
        for hole in flood(~mask):
            inside = all(0 < y < height - 1 and 0 < x < width - 1 for y, x in hole)
            if inside and len(hole) < least:
                filled[tuple(np.transpose(hole))] = True
        assert np.array_equal(without_small_pieces(mask, least), kept)
        assert np.array_equal(without_small_holes(mask, least), filled)


def test_spirals_are_one_piece():
    mask = picture("#######", "......#", "#####.#", "#...#.#", "#.###.#", "#.....#", "#######")
    assert np.array_equal(without_small_pieces(mask, int(mask.sum())), mask)


def test_growing_and_shrinking_by_hand():
    mask = picture(".....", ".....", "..#..", ".....")
    assert np.array_equal(dilated(mask, (1, 0)), picture(".....", ".....", ".###.", "....."))
    assert np.array_equal(dilated(mask, (0, 2)), picture("..#..", "..#..", "..#..", "..#.."))
    # Beyond the border the mask goes on.
    assert np.array_equal(eroded(picture("###", "###", "##."), (1, 1)), picture("###", "#..", "#.."))
