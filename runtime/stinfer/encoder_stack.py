"""The backbones of a bank as one: what turns pixels into cells, means of cells or patches into embeddings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stinfer.contract import F32, U8, MapTraits, Pooling
from stinfer.encoder import MAX_WORKERS, PATCHES_AT_ONCE, Encoder
from stinfer.errors import ModelFormatError, SettingError
from stinfer.gpu import MAX_FEEDERS, PATCHES_ON_GPU

# Flips along x, along y, and the exchange of both axes, by how many orientations are averaged.
_ORIENTATIONS: dict[int, list[tuple[bool, bool, bool]]] = {
    1: [(False, False, False)],
    4: [(x, y, False) for x, y in itertools.product((False, True), repeat=2)],
    8: [(x, y, exchange) for x, y, exchange in itertools.product((False, True), repeat=3)],
}

Orientation = tuple[bool, bool, bool]


@dataclass(frozen=True)
class Member:
    """One backbone of a stack.

    Parameters
    ----------
    encoder : it
    orientations : in how many orientations it sees every region; the cells are averaged
    reduction : how many times coarser it sees the tissue than the region is read, 1 or 2
    projection : (channels, n), applied to each of its cells, or to a patch's embedding; None to keep all
    """

    encoder: Encoder
    orientations: int = 1
    reduction: int = 1
    projection: F32 | None = None

    @property
    def n_channels(self) -> int:
        """Numbers of a cell."""
        return sum(self.encoder.card.layers) if self.projection is None else int(self.projection.shape[1])

    def width(self, pooling: Pooling) -> int:
        """Length of its part of a window's, or a patch's, embedding."""
        if self.projection is not None:
            return int(self.projection.shape[1])
        return self.encoder.card.dim if pooling == "patch" else self.encoder.window_dim

    @property
    def views(self) -> list[Orientation]:
        """In which orientations it sees a region."""
        return _ORIENTATIONS[self.orientations]


class EncoderStack:
    """Backbones that see the same tissue, side by side: their numbers follow each other.

    Parameters
    ----------
    members : in the bank's order, at least one
    pooling : ``map`` or ``patch``

    Attributes
    ----------
    stride : int
        Pixels per cell, with ``map``.
    step_cells : int
        Regions must begin and end at multiples of so many cells.
    halo_cells : int
        Cells around a region that must be computed too, and are left out of what `cells` gives; a multiple of
        `step_cells`.
    offset_px : tuple of float
        How far, x and y, a region must be read to the left of its cells and above them.
    n_channels : int
        Numbers of a cell.

    Raises
    ------
    SettingError
        A backbone has no map, does not fit the others, or may not be projected.
    """

    def __init__(self, members: Sequence[Member], pooling: Pooling) -> None:
        self.members = tuple(members)
        self.pooling = pooling
        self.n_channels = sum(member.n_channels for member in members)
        self.stride = members[0].encoder.card.stride
        self.step_cells = max(member.reduction for member in members)
        self.halo_cells, self.offset_px = 0, (0.0, 0.0)
        if pooling == "map":
            self._check_maps()
            if all(member.orientations == 1 for member in members):
                # The first is read where it sees best, and so without a margin.
                self.offset_px = map_traits(members[0].encoder).offset_px
            halo_cells = max(self._halo(member) for member in members)
            self.halo_cells = -(-halo_cells // self.step_cells) * self.step_cells

    @property
    def name(self) -> str:
        """The backbones, joined by plus signs."""
        return "+".join(member.encoder.card.backbone for member in self.members)

    @property
    def provider(self) -> str:
        """What ONNX Runtime really runs on."""
        return self.members[0].encoder.provider

    @property
    def n_workers(self) -> int:
        """Threads that may call `cells` or `embed` at the same time, to use all cores."""
        return min(member.encoder.n_workers for member in self.members)

    @property
    def on_gpu(self) -> bool:
        """Whether they run on CUDA."""
        return all(member.encoder.on_gpu for member in self.members)

    @property
    def patches_at_once(self) -> int:
        """Patches that each of these threads should encode at once."""
        return PATCHES_ON_GPU if self.on_gpu else PATCHES_AT_ONCE

    @property
    def batch_size(self) -> int:
        """Patches that all of these threads together should encode at a time."""
        return default_batch_size(on_gpu=self.on_gpu)

    @property
    def fallback(self) -> str:
        """Why CUDA, though installed, is not used; empty if it is, or there is none."""
        return self.members[0].encoder.fallback

    @property
    def widths(self) -> tuple[int, ...]:
        """Lengths of the members' parts of a window's, or a patch's, embedding."""
        return tuple(member.width(self.pooling) for member in self.members)

    def cell_um(self, um_per_px: float) -> float:
        """Return the side of a cell."""
        return self.stride * um_per_px

    def cells(self, pixels: U8) -> F32:
        """Encode a region.

        Parameters
        ----------
        pixels : (height, width, 3) uint8 RGB, sides multiples of `stride`, with a halo of `halo_cells`

        Returns
        -------
        (height / stride - 2 halo, width / stride - 2 halo, n_channels), finite

        Raises
        ------
        ModelFormatError
            A model refuses regions of this size, or gives no map of cells.
        """
        parts = [self._cells_of(member, pixels) for member in self.members]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)

    def from_means(self, means: F32) -> F32:
        """Turn means of cells over windows into the windows' embeddings.

        Parameters
        ----------
        means : (n, n_channels)

        Returns
        -------
        (n, sum of `widths`)
        """
        parts, first = [], 0
        for member in self.members:
            part = means[:, first : first + member.n_channels]
            first += member.n_channels
            if member.projection is None:
                part = member.encoder.from_means(np.ascontiguousarray(part))
            parts.append(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def embed(self, patches: Sequence[U8]) -> F32:
        """Encode a batch of patches.

        Parameters
        ----------
        patches : for each member (n, height, width, 3) uint8 RGB, of its own input size

        Returns
        -------
        (n, sum of `widths`), finite
        """
        parts = []
        for member, pixels in zip(self.members, patches, strict=True):
            views = [member.encoder.embed(_turned(pixels, view)) for view in member.views]
            parts.append(_projected(_mean(views), member))
        return np.concatenate(parts, axis=1)

    def release_memory(self) -> None:
        """Give back what regions have taken; patches take the same every time, and keep it."""
        if self.pooling == "map":
            for member in self.members:
                member.encoder.release_memory()

    def _check_maps(self) -> None:
        for member in self.members:
            card = member.encoder.card
            if map_traits(member.encoder).head and member.projection is not None:
                what = f"a projection before pooling is not possible with {card.backbone}"
                raise SettingError(what, "its embeddings are not linear in the cells; use another --metric")
            if card.stride != self.stride:
                first = self.members[0].encoder.card.backbone
                what = (
                    f"{card.backbone} has cells of {card.stride} px, and {first} of {self.stride}: they do "
                    "not lie on one map"
                )
                raise SettingError(what, "use backbones of the same stride, or --pooling patch")

    def _shift_px(self, member: Member, view: Orientation) -> tuple[int, int]:
        """Return how far, x and y, what a member sees so lies from where the region is read."""
        x, y = (offset * member.reduction for offset in map_traits(member.encoder).offset_px)
        flip_x, flip_y, exchange = view
        # Undone in reverse: what the turned picture's cells see lies so in the picture as it was.
        if exchange:
            x, y = y, x
        x, y = (-x if flip_x else x), (-y if flip_y else y)
        return round(self.offset_px[0] - x), round(self.offset_px[1] - y)

    def _halo(self, member: Member) -> int:
        farthest = max(abs(shift) for view in member.views for shift in self._shift_px(member, view))
        return map_traits(member.encoder).halo_cells * member.reduction + math.ceil(farthest / self.stride)

    def _cells_of(self, member: Member, pixels: U8) -> F32:
        halo, reduction = map_traits(member.encoder).halo_cells, member.reduction
        # What other members need more of a halo: whole cells of a coarser member's own, as all halos are.
        margin = (self.halo_cells - halo * reduction) * self.stride
        height, width = (side - 2 * margin for side in pixels.shape[:2])
        views = []
        for view in member.views:
            shift_x, shift_y = self._shift_px(member, view)
            top, left = margin + shift_y, margin + shift_x
            seen = _reduced(pixels[np.newaxis, top : top + height, left : left + width], reduction)
            features = member.encoder.features(_turned(seen, view))[0]
            cells = _turned_back(features.transpose(1, 2, 0), view)
            views.append(cells[halo : cells.shape[0] - halo, halo : cells.shape[1] - halo])
        mean = _projected(np.ascontiguousarray(_mean(views)), member)
        return mean if reduction == 1 else mean.repeat(reduction, axis=0).repeat(reduction, axis=1)


def default_batch_size(*, on_gpu: bool) -> int:
    """Return how many patches all threads together encode at a time where nothing else is said."""
    return PATCHES_ON_GPU * MAX_FEEDERS if on_gpu else PATCHES_AT_ONCE * MAX_WORKERS


def map_traits(encoder: Encoder) -> MapTraits:
    """Return how to join a backbone's map.

    Raises
    ------
    SettingError
        It has none.
    """
    traits = encoder.card.map_traits
    if traits is None:
        what = f"{encoder.card.backbone} cannot encode a slide as a map: {encoder.card.map_refusal}"
        raise SettingError(what, "build the bank with --pooling patch, or with another backbone")
    return traits


def _reduced(pixels: U8, reduction: int) -> U8:
    """Average squares of pixels, (n, height, width, 3), rounding halves up."""
    if reduction == 1:
        return pixels
    n, height, width, _ = pixels.shape
    squares = pixels.reshape(n, height // reduction, reduction, width // reduction, reduction, 3)
    total = squares.sum(axis=(2, 4), dtype=np.uint16)
    area = np.uint16(reduction * reduction)
    return np.asarray((total + area // 2) // area, dtype=np.uint8)


def _turned(pixels: U8, view: Orientation) -> U8:
    """Turn pictures, (n, height, width, 3): flip, then exchange the axes."""
    flip_x, flip_y, exchange = view
    turned = pixels[:, :: -1 if flip_y else 1, :: -1 if flip_x else 1]
    return np.ascontiguousarray(turned.swapaxes(1, 2) if exchange else turned)


def _turned_back(cells: F32, view: Orientation) -> F32:
    """Turn a map, (n_rows, n_columns, channels), as it was before `_turned`."""
    flip_x, flip_y, exchange = view
    cells = cells.swapaxes(0, 1) if exchange else cells
    return cells[:: -1 if flip_y else 1, :: -1 if flip_x else 1]


def _mean(views: Sequence[F32]) -> F32:
    if len(views) == 1:
        return views[0]
    total = views[0].copy()
    for view in views[1:]:
        total += view
    return np.asarray(total / np.float32(len(views)), dtype=np.float32)


def _projected(cells: F32, member: Member) -> F32:
    if member.projection is None:
        return cells
    with np.errstate(over="ignore", invalid="ignore"):
        projected = np.asarray(cells @ member.projection, dtype=np.float32)
    if not np.isfinite(projected).all():
        raise ModelFormatError(member.encoder.card.backbone, "its projected map is not finite")
    return projected
