"""From places to embeddings: what a bank's references and a query's spots both go through.

Two ways, a property of the bank: a patch around each place is encoded (``patch``), or the slide is
encoded once as a map, and a place's embedding is the mean of the cells in its windows (``map``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from stinfer.ahead import in_parallel
from stinfer.bank import Bank
from stinfer.bank_settings import BankSettings
from stinfer.checkpoint import Checkpoint
from stinfer.contract import F32, F64, I64, Bool, Pooling, WindowShape
from stinfer.encoder import Device, Encoder
from stinfer.encoder_stack import EncoderStack, Member
from stinfer.errors import ModelFormatError, SettingError
from stinfer.feature_map import CellSource, Progress, WindowPlan, plan_windows
from stinfer.integrity import hash_arrays
from stinfer.patches import cut_patches
from stinfer.slide import PixelSource
from stinfer.stage_clock import StageClock, timed
from stinfer.windows import WindowPooler


@dataclass(frozen=True)
class FieldOfView:
    """What a place's embedding looks at, and how.

    Parameters
    ----------
    pooling, sides_um, window, um_per_px : as `BankSettings` has them
    """

    pooling: Pooling
    sides_um: tuple[float, ...]
    window: WindowShape
    um_per_px: float

    @classmethod
    def of(cls, settings: BankSettings) -> FieldOfView:
        """Take it from a bank's settings."""
        return cls(settings.pooling, settings.fov_um, settings.window, settings.um_per_px)

    def plan(self, centers: F64, cell_um: float, tissue: F32) -> WindowPlan:
        """Find what places need of a map: (n, 2) in units of cells, (n_rows, n_columns) tissue."""
        sides = tuple(side_um / cell_um for side_um in self.sides_um)
        return plan_windows(centers, sides, self.window, tissue)


def iter_patch_embeddings(
    slide: PixelSource,
    centers_l0: F64,
    encoders: EncoderStack,
    view: FieldOfView,
    batch_size: int | None,
    progress: Progress | None,
    checkpoint: Checkpoint | None = None,
    clock: StageClock | None = None,
) -> Generator[tuple[I64, F32], None, None]:
    """Encode a patch around each place; every core cuts and encodes some patches at a time.

    Parameters
    ----------
    slide : what is read
    centers_l0 : (n, 2), level-0 px
    encoders : the backbones
    view : with ``patch``
    batch_size : patches encoded at a time, by all cores together; by default what suits the encoders
    progress : called with the patches done and their number
    checkpoint : keeps the batches that are done; None to keep none
    clock : told how long encoding takes

    Yields
    ------
    places : (n_batch,), in the order given
    embeddings : (n_batch, sum of the members' widths), before the metric
    """
    batch_size = batch_size or encoders.batch_size
    done, total = 0, len(centers_l0)
    if progress is not None:
        progress(0, total, "patches")
    sizes_px = [member.encoder.card.input_size_px for member in encoders.members]

    def embed(centers: F64) -> F32:
        cut = {size_px: cut_patches(slide, centers, view.sides_um[0], size_px) for size_px in set(sizes_px)}
        with timed(clock, "encode"):
            return encoders.embed([cut[size_px] for size_px in sizes_px])

    def encode_from(first: int) -> Generator[F32, None, None]:
        return _encode_batches(centers_l0[first * batch_size :], batch_size, encoders, embed)

    if checkpoint is None:
        found = encode_from(0)
    else:
        width = sum(encoders.widths)
        shapes = [(min(batch_size, total - first), width) for first in range(0, total, batch_size)]
        plan = {"centers": hash_arrays(centers_l0), "fov_um": view.sides_um[0], "patch_px": sizes_px}
        found = checkpoint.steps({**plan, "batch_size": batch_size}, shapes, "batches", encode_from)
    with contextlib.closing(found):
        for embeddings in found:
            yield np.arange(done, done + len(embeddings)), embeddings
            done += len(embeddings)
            if progress is not None:
                progress(done, total, "patches")


def _encode_batches(
    centers_l0: F64, batch_size: int, encoders: EncoderStack, embed: Callable[[F64], F32]
) -> Generator[F32, None, None]:
    """Encode batch after batch, each in parts of a size that depends on nothing but the batch's."""
    part_size = min(batch_size, encoders.patches_at_once)
    n_workers = max(min(encoders.n_workers, batch_size // part_size), 1)
    batches = [centers_l0[first : first + batch_size] for first in range(0, len(centers_l0), batch_size)]
    parts = (
        partial(embed, batch[first : first + part_size])
        for batch in batches
        for first in range(0, len(batch), part_size)
    )
    with contextlib.closing(in_parallel(parts, n_workers)) as encoded:
        for batch in batches:
            n_parts = -(-len(batch) // part_size)
            yield np.concatenate(list(islice(encoded, n_parts)))


def iter_map_embeddings(
    source: CellSource,
    plan: WindowPlan,
    needed: Bool,
    encoders: EncoderStack,
    progress: Progress | None,
    clock: StageClock | None = None,
) -> Generator[tuple[I64, F32], None, None]:
    """Read the places' embeddings from a map, as its bands come.

    Parameters
    ----------
    source : of the cells
    plan : of the places on the source's lattice
    needed : (n_rows, n_columns), cells to ask for; those of the plan, or more
    encoders : the backbones; they turn means into embeddings
    progress : called with the regions done and their number
    clock : told how long averaging over windows takes

    Yields
    ------
    places : (n_batch,), from top to bottom
    embeddings : (n_batch, n_windows * sum of the members' widths), windows one after the other
    """
    everywhere = np.ones_like(plan.tissue)
    poolers = []
    for weights, places in ((plan.tissue, ~plan.by_area), (everywhere, plan.by_area)):
        chosen = np.flatnonzero(places)
        if chosen.size:
            n_rows, n_columns = weights.shape
            pooler = WindowPooler(
                plan.centers[chosen], plan.sides, plan.shape, n_rows=n_rows, n_columns=n_columns
            )
            poolers.append((pooler, weights, chosen))
    with contextlib.closing(source.iter_bands(needed, progress)) as bands:
        for band in bands:
            rows = slice(band.first_row, band.first_row + len(band.features))
            with timed(clock, "windows"):
                for pooler, weights, chosen in poolers:
                    for found, means in pooler.feed(band.first_row, band.features, weights[rows]):
                        yield chosen[found], _concatenated(encoders, means)
    with timed(clock, "windows"):
        for pooler, _, chosen in poolers:
            for found, means in pooler.finish():
                yield chosen[found], _concatenated(encoders, means)


def _concatenated(encoders: EncoderStack, means: F32) -> F32:
    n_places, n_windows, n_channels = means.shape
    windows = encoders.from_means(means.reshape(n_places * n_windows, n_channels))
    return windows.reshape(n_places, -1)


def gathered(embeddings: Iterable[tuple[I64, F32]], n_at_once: int) -> Generator[tuple[I64, F32], None, None]:
    """Join batches of places until they are at least so many; the last may be fewer."""
    waiting: list[tuple[I64, F32]] = []
    for batch in embeddings:
        waiting.append(batch)
        if sum(len(places) for places, _ in waiting) >= n_at_once:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(batches: list[tuple[I64, F32]]) -> tuple[I64, F32]:
    if len(batches) == 1:
        return batches[0]
    return np.concatenate([places for places, _ in batches]), np.concatenate([found for _, found in batches])


def open_encoders(bank: Bank, *, device: Device, threads: int | None) -> EncoderStack:
    """Load the bank's own models.

    Raises
    ------
    ModelFormatError
        One is not the model that made the bank's embeddings, or none at all.
    BankAlteredError, BankFormatError
        As `Bank.models`.
    """
    source, settings = f"of bank {bank.path}", bank.settings
    members = []
    loaded: dict[str, Encoder] = {}
    for model, sha256, orientations, reduction, projection in zip(
        bank.models(),
        settings.models_sha256,
        settings.orientations,
        settings.reductions,
        bank.projections,
        strict=True,
    ):
        if sha256 not in loaded:
            loaded[sha256] = Encoder(
                model, source, sha256=sha256, pooling=settings.pooling, device=device, threads=threads
            )
        encoder = loaded[sha256]
        size_px = encoder.card.input_size_px
        if settings.pooling == "patch" and len(settings.backbones) == 1 and size_px != settings.patch_px:
            cause = f"it takes {size_px} px, the bank was made with {settings.patch_px}"
            raise ModelFormatError(source, cause)
        seen = encoder.window_dim if settings.pooling == "map" else encoder.card.dim
        if projection is not None and len(projection) != seen:
            cause = f"its cells have {seen} channels, the bank's projection expects {len(projection)}"
            raise ModelFormatError(source, cause)
        members.append(Member(encoder, orientations, reduction, projection))
    try:
        encoders = EncoderStack(members, settings.pooling)
    except SettingError as error:
        raise ModelFormatError(source, error.what) from error
    dim = len(settings.fov_um) * sum(encoders.widths)
    if dim != len(bank.metric.mean):
        cause = f"its embeddings have dim {dim}, the bank's metric expects {len(bank.metric.mean)}"
        raise ModelFormatError(source, cause)
    return encoders


def with_model(own: EncoderStack, path: Path, *, device: Device, threads: int | None) -> EncoderStack:
    """Put a model of another precision in the place of the same network's.

    Parameters
    ----------
    own : the bank's models
    path : the other model's file
    device, threads : as for the bank's

    Raises
    ------
    SettingError
        The file cannot be read, or is of no network of the bank.
    ModelFormatError
        It is no model of ours.
    """
    try:
        model = path.read_bytes()
    except OSError as error:
        what = f"--model {path} cannot be read: {error.strerror}"
        raise SettingError(what, "write one with stinfer-export backbone NAME --precision fp16") from error
    other = Encoder(model, str(path), pooling=own.pooling, device=device, threads=threads)
    members = [
        replace(member, encoder=other) if _same_network(member.encoder, other) else member
        for member in own.members
    ]
    if not any(_same_network(member.encoder, other) for member in own.members):
        what = f"--model {path} is not of the weights of {own.name}, in another precision"
        raise SettingError(what, "leave it out, or make it of the same checkpoint as the bank's model")
    return EncoderStack(members, own.pooling)


def _same_network(one: Encoder, other: Encoder) -> bool:
    cards = [replace(encoder.card, precision="", fp32_sha256="") for encoder in (one, other)]
    return cards[0] == cards[1] and one.sha256 != other.sha256
