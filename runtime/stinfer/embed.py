"""From places to embeddings: what a bank's references and a query's spots both go through.

Two ways, a property of the bank: a patch around each place is encoded (``patch``), or the slide is
encoded once as a map, and a place's embedding is the mean of the cells in its windows (``map``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np

from stinfer.ahead import ahead
from stinfer.bank import Bank
from stinfer.checkpoint import Checkpoint
from stinfer.contract import F32, F64, I64, U8, BankSettings, Bool, Pooling, WindowShape
from stinfer.encoder import Device, Encoder
from stinfer.errors import ModelFormatError, SettingError
from stinfer.feature_map import CellSource, Progress, WindowPlan, map_traits, plan_windows
from stinfer.integrity import hash_arrays
from stinfer.patches import iter_patches
from stinfer.slide import Slide
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
    slide: Slide,
    centers_l0: F64,
    encoder: Encoder,
    view: FieldOfView,
    batch_size: int,
    progress: Progress | None,
    checkpoint: Checkpoint | None = None,
) -> Generator[tuple[I64, F32], None, None]:
    """Encode a patch around each place; one batch is cut while another is encoded.

    Parameters
    ----------
    slide : open slide
    centers_l0 : (n, 2), level-0 px
    encoder : the backbone
    view : with ``patch``
    batch_size : patches encoded at a time
    progress : called with the patches done and their number
    checkpoint : keeps the batches that are done; None to keep none

    Yields
    ------
    places : (n_batch,), in the order given
    embeddings : (n_batch, dim), before projection and metric
    """
    done, total = 0, len(centers_l0)
    if progress is not None:
        progress(0, total, "patches")
    patch_px = encoder.card.input_size_px

    def encode_from(first: int) -> Generator[F32, None, None]:
        some = centers_l0[first * batch_size :]
        return ahead(_encode_all(iter_patches(slide, some, view.sides_um[0], patch_px, batch_size), encoder))

    if checkpoint is None:
        found = encode_from(0)
    else:
        shapes = [(min(batch_size, total - first), encoder.card.dim) for first in range(0, total, batch_size)]
        plan = {"centers": hash_arrays(centers_l0), "fov_um": view.sides_um[0], "patch_px": patch_px}
        found = checkpoint.steps({**plan, "batch_size": batch_size}, shapes, "batches", encode_from)
    with contextlib.closing(found):
        for embeddings in found:
            yield np.arange(done, done + len(embeddings)), embeddings
            done += len(embeddings)
            if progress is not None:
                progress(done, total, "patches")


def _encode_all(batches: Generator[U8, None, None], encoder: Encoder) -> Generator[F32, None, None]:
    with contextlib.closing(ahead(batches)) as read:
        for pixels in read:
            yield encoder.embed(pixels)


def iter_map_embeddings(
    source: CellSource, plan: WindowPlan, needed: Bool, encoder: Encoder, progress: Progress | None
) -> Generator[tuple[I64, F32], None, None]:
    """Read the places' embeddings from a map, as its bands come.

    Parameters
    ----------
    source : of the cells
    plan : of the places on the source's lattice
    needed : (n_rows, n_columns), cells to ask for; those of the plan, or more
    encoder : the backbone; it turns means into embeddings
    progress : called with the regions done and their number

    Yields
    ------
    places : (n_batch,), from top to bottom
    embeddings : (n_batch, n_windows * dim of a window), windows one after the other
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
            for pooler, weights, chosen in poolers:
                for found, means in pooler.feed(band.first_row, band.features, weights[rows]):
                    yield chosen[found], _concatenated(encoder, means)
    for pooler, _, chosen in poolers:
        for found, means in pooler.finish():
            yield chosen[found], _concatenated(encoder, means)


def _concatenated(encoder: Encoder, means: F32) -> F32:
    n_places, n_windows, n_channels = means.shape
    windows = encoder.from_means(means.reshape(n_places * n_windows, n_channels))
    return windows.reshape(n_places, -1)


def check_view(view: FieldOfView, encoder: Encoder, projection: F32 | None) -> int:
    """Check that a backbone can embed so, and return the embedding's length.

    Parameters
    ----------
    view : what is looked at
    encoder : the backbone
    projection : (channels, n) of the bank, or None

    Returns
    -------
    length of the embedding after the projection, before the metric

    Raises
    ------
    SettingError
        The backbone has no map, or its map is not to be projected.
    """
    n_windows, dim = len(view.sides_um), encoder.card.dim
    if view.pooling == "map":
        head = map_traits(encoder).head
        dim = encoder.window_dim
        if head and projection is not None:
            what = f"a projection before pooling is not possible with {encoder.card.backbone}"
            raise SettingError(what, "its embeddings are not linear in the cells; use another --metric")
    return n_windows * (dim if projection is None else projection.shape[1])


def open_encoder(bank: Bank, *, device: Device, threads: int | None) -> Encoder:
    """Load the bank's own model.

    Raises
    ------
    ModelFormatError
        It is not the model that made the bank's embeddings, or none at all.
    BankFormatError
        The model was left out of the bank and is not beside it.
    """
    source, settings = f"of bank {bank.path}", bank.settings
    encoder = Encoder(bank.model(), source, pooling=settings.pooling, device=device, threads=threads)
    if encoder.sha256 != settings.model_sha256:
        cause = f"its SHA-256 is not the {settings.model_sha256} that made the bank's embeddings"
        raise ModelFormatError(source, cause)
    if settings.pooling == "patch" and encoder.card.input_size_px != settings.patch_px:
        cause = f"it takes {encoder.card.input_size_px} px, the bank was made with {settings.patch_px}"
        raise ModelFormatError(source, cause)
    try:
        dim = check_view(FieldOfView.of(settings), encoder, bank.projection)
    except SettingError as error:
        raise ModelFormatError(source, error.what) from error
    seen = encoder.window_dim if settings.pooling == "map" else encoder.card.dim
    if bank.projection is not None and len(bank.projection) != seen:
        cause = f"its cells have {seen} channels, the bank's projection expects {len(bank.projection)}"
        raise ModelFormatError(source, cause)
    if dim != len(bank.metric.mean):
        cause = f"its embeddings have dim {dim}, the bank's metric expects {len(bank.metric.mean)}"
        raise ModelFormatError(source, cause)
    return encoder
