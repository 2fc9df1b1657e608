"""A model of another precision in place of a bank's own, if it says the same of the slide at hand.

What a bank holds was embedded by its own model. Half precision, which CUDA is fast with, agrees with single
precision well enough to search among its references; eight bits do not, and need a bank of their own.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stinfer.bank_settings import BankSettings
from stinfer.contract import F32, F64, U8
from stinfer.encoder import Encoder
from stinfer.errors import SettingError
from stinfer.map_file import MapFile
from stinfer.open_bank import OpenBank
from stinfer.patches import iter_patches
from stinfer.slide import PixelSource
from stinfer.subject import Subject

LEAST_COSINE = 0.999
"""Mean cosine with what the bank's own model gives, of every part of an embedding."""

N_PATCHES = 16


def refuse_disagreement(opened: OpenBank, subject: Subject, centers_l0: F64) -> float | None:
    """Encode some of the slide's tissue with both models, and compare.

    Parameters
    ----------
    opened : the bank
    subject : the slide
    centers_l0 : (n, 2), places that are to be predicted

    Returns
    -------
    the cosine of the part that agrees least; None where the bank's own models are used

    Raises
    ------
    SettingError
        It is below `LEAST_COSINE`, or the slide is a map, which is encoded already.
    """
    if opened.model is None:
        return None
    if isinstance(subject.source, MapFile):
        what = f"--model is given for map {subject.path}, whose cells are encoded already"
        raise SettingError(what, "leave it out")
    chosen = np.unique(np.linspace(0, len(centers_l0) - 1, N_PATCHES).round().astype(np.int64))
    worst = 1.0
    for own, used in _pairs(opened):
        pixels = _patches(subject.source, centers_l0[chosen], own, opened.bank.settings)
        is_map = opened.bank.settings.pooling == "map"
        parts = zip(_parts(own, pixels, is_map=is_map), _parts(used, pixels, is_map=is_map), strict=True)
        worst = min(worst, *(_cosine(one, other) for one, other in parts))
        if not worst >= LEAST_COSINE:
            what = (
                f"--model {opened.model} ({used.card.precision}) does not agree with the model of bank "
                f"{opened.bank.path} ({own.card.precision}): cosine {worst:.4f} on {len(pixels)} patches of "
                f"{subject.name}, and at least {LEAST_COSINE} is needed"
            )
            fix = "leave it out; or build a bank with that model, and predict with that bank"
            raise SettingError(what, fix)
    return worst


def _pairs(opened: OpenBank) -> Iterator[tuple[Encoder, Encoder]]:
    """Yield the bank's own model and what takes its place; once, though it may see the tissue twice."""
    own, used = opened.own_encoders.members, opened.encoders.members
    seen: set[str] = set()
    for one, other in zip(own, used, strict=True):
        if one.encoder is not other.encoder and one.encoder.sha256 not in seen:
            seen.add(one.encoder.sha256)
            yield one.encoder, other.encoder


def _patches(slide: PixelSource, centers_l0: F64, encoder: Encoder, settings: BankSettings) -> U8:
    """Cut patches as a bank of patches would; of a map pieces of a region, of whole cells."""
    card = encoder.card
    side_px, fov_um = card.input_size_px, settings.fov_um[0]
    if settings.pooling == "map":
        side_px = max(side_px // card.stride, 1) * card.stride
        fov_um = side_px * settings.um_per_px
    (pixels,) = iter_patches(slide, centers_l0, fov_um, side_px, len(centers_l0))
    return pixels


def _parts(encoder: Encoder, pixels: U8, *, is_map: bool) -> list[F32]:
    """Encode patches; the parts of a map's cells count one by one, or the largest would count alone."""
    if not is_map:
        return [encoder.embed(pixels)]
    means: F32 = encoder.features(pixels).mean(axis=(2, 3))
    return np.split(means, np.cumsum(encoder.card.layers)[:-1], axis=1)


def _cosine(one: F32, other: F32) -> float:
    """Mean over rows; two rows of zeros agree."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    alike = np.where(lengths > 0, (a * b).sum(axis=1) / np.where(lengths > 0, lengths, 1.0), 0.0)
    return float(np.where(~a.any(axis=1) & ~b.any(axis=1), 1.0, alike).mean())
