"""Stain normalization, on pictures stained with known amounts of known stains."""

from __future__ import annotations

import numpy as np
import pytest

from stinfer.stain import Stain, StainTransfer, mean_stain, measure_stain

HEMATOXYLIN, EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.22, 0.90, 0.38])


def unit(vector):
    return vector / np.linalg.norm(vector)


def stained(hematoxylin, eosin, amounts, seed=0, side=160):
    """Paint tissue of nuclei, with nearly no eosin, and plasma, with nearly no hematoxylin."""
    rng = np.random.default_rng(seed)
    nuclei = rng.random((side, side)) < 0.4
    shares = np.where(nuclei[..., None], [1.0, 0.02], [0.02, 1.0]) * rng.uniform(0.5, 1.0, (side, side, 1))
    density = shares @ (np.stack([unit(hematoxylin), unit(eosin)]) * np.asarray(amounts)[:, None])
    return np.rint(256 * 10**-density - 1).clip(0, 255).astype(np.uint8)


EVERYWHERE = np.ones((160, 160), dtype=bool)


def test_the_stains_of_a_picture_are_those_it_was_painted_with():
    found = measure_stain(stained(HEMATOXYLIN, EOSIN, (0.9, 0.7)), EVERYWHERE)
    # Nuclei have 2 % of eosin in them, and the other way round: less than two degrees.
    for direction, painted in zip(found.directions, (HEMATOXYLIN, EOSIN), strict=True):
        assert np.degrees(np.arccos(direction @ unit(painted))) < 2
    # The 99th percentile of shares of 0.5 to 1.0, of which 40 or 60 % are one stain's.
    assert found.amounts == pytest.approx([0.9, 0.7], rel=0.03)


def test_a_slide_stained_otherwise_is_brought_back():
    pixels = stained(HEMATOXYLIN, EOSIN, (0.9, 0.7))
    other = stained(np.array([0.55, 0.75, 0.38]), np.array([0.12, 0.95, 0.30]), (0.6, 1.0))
    before = np.abs(other.astype(int) - pixels).mean()
    given, wanted = measure_stain(other, EVERYWHERE), measure_stain(pixels, EVERYWHERE)
    after = np.abs(StainTransfer(given, wanted).apply(other).astype(int) - pixels)
    assert before > 20
    assert after.mean() < 2


def test_white_stays_white_and_the_same_stain_changes_nothing():
    pixels = stained(HEMATOXYLIN, EOSIN, (0.9, 0.7))
    stain = measure_stain(pixels, EVERYWHERE)
    assert np.abs(StainTransfer(stain, stain).apply(pixels).astype(int) - pixels).max() <= 1
    white = np.full((300, 2, 3), 255, dtype=np.uint8)
    other = Stain(stain.directions[::-1] * 1.0, stain.amounts * 2)
    assert (StainTransfer(stain, other).apply(white) == 255).all()


def test_a_density_doubles_with_the_amount():
    # One stain's direction is that of gray. A gray level v has density -log10((v + 1) / 256).
    gray, other = unit(np.ones(3)), unit(np.array([1.0, 0.0, 0.2]))
    given, wanted = (Stain(np.stack([gray, other]), np.array([amount, 1.0])) for amount in (0.4, 0.8))
    pixels = np.full((1, 1, 3), 161, dtype=np.uint8)
    expected = 256 * (162 / 256) ** 2 - 1
    # The amounts are scaled, and the direction across them is not.
    found = StainTransfer(given, wanted).apply(pixels)
    assert found[0, 0] == pytest.approx([expected] * 3, abs=0.6)


@pytest.mark.parametrize("what", ["glass", "one stain", "few pixels"])
def test_where_there_are_no_two_stains_none_is_found(what):
    if what == "glass":
        pixels = np.full((160, 160, 3), 245, dtype=np.uint8)
    else:
        pixels = stained(EOSIN, EOSIN * 1.0, (0.9, 0.7))
    tissue = EVERYWHERE.copy()
    if what == "few pixels":
        pixels = stained(HEMATOXYLIN, EOSIN, (0.9, 0.7))
        tissue[3:] = False
    assert measure_stain(pixels, tissue) is None


def test_the_middle_of_stains():
    stains = [Stain(np.stack([unit(HEMATOXYLIN), unit(EOSIN)]), np.array([a, 1.0])) for a in (1.0, 5.0, 2.0)]
    middle = mean_stain(stains)
    np.testing.assert_allclose(middle.directions, stains[0].directions, atol=1e-12)
    assert middle.amounts.tolist() == [2.0, 1.0]
