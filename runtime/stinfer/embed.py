"""From places to embeddings: what a bank's references and a query's spots both go through."""

from __future__ import annotations

from collections.abc import Iterator

from stinfer.bank import Bank
from stinfer.contract import F32, F64
from stinfer.encoder import Device, Encoder
from stinfer.errors import ModelFormatError
from stinfer.patches import iter_patches
from stinfer.slide import Slide


def iter_embeddings(
    slide: Slide, centers_l0: F64, encoder: Encoder, fov_um: float, patch_px: int, batch_size: int
) -> Iterator[F32]:
    """Embed places in the order given.

    Parameters
    ----------
    slide : open slide
    centers_l0 : (n, 2), level-0 px
    encoder : the backbone
    fov_um : side of the square around each place
    patch_px : side it is resampled to
    batch_size : patches encoded at a time

    Yields
    ------
    (n_batch, dim), as the backbone gives them, before the metric
    """
    for pixels in iter_patches(slide, centers_l0, fov_um, patch_px, batch_size):
        yield encoder.embed(pixels)


def open_encoder(bank: Bank, *, device: Device, threads: int | None) -> Encoder:
    """Load the bank's own model.

    Raises
    ------
    ModelFormatError
        It is not the model that made the bank's embeddings, or none at all.
    BankFormatError
        The model was left out of the bank and is not beside it.
    """
    source = f"of bank {bank.path}"
    encoder = Encoder(bank.model(), source, device=device, threads=threads)
    if encoder.sha256 != bank.settings.model_sha256:
        cause = f"its SHA-256 is not the {bank.settings.model_sha256} that made the bank's embeddings"
        raise ModelFormatError(source, cause)
    if encoder.card.input_size_px != bank.settings.patch_px:
        cause = f"it takes {encoder.card.input_size_px} px, the bank was made with {bank.settings.patch_px}"
        raise ModelFormatError(source, cause)
    if encoder.card.dim != len(bank.metric.mean):
        cause = (
            f"its embeddings have dim {encoder.card.dim}, the bank's metric expects {len(bank.metric.mean)}"
        )
        raise ModelFormatError(source, cause)
    return encoder
