"""A bank with its models and its search, loaded once for as many slides as there are."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from stinfer.bank import Bank
from stinfer.embed import open_encoders, with_model
from stinfer.encoder import Device
from stinfer.encoder_stack import EncoderStack
from stinfer.files import sha256_file
from stinfer.memory import return_large_blocks
from stinfer.neighbors import Search, SearchChoice, choose_search


class OpenBank:
    """A checked bank; its models and its search are loaded when they are first asked for.

    Parameters
    ----------
    path : the bank
    device, threads : see `stinfer.embed.open_encoders`
    search : see `stinfer.neighbors.choose_search`
    model : file of one of its models in another precision, to be used instead; see `stinfer.stand_in`

    Raises
    ------
    BankError
        It cannot be used.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: Device,
        threads: int | None,
        search: SearchChoice,
        model: str | Path | None = None,
    ) -> None:
        return_large_blocks()
        self.bank = Bank.open(path)
        self._device: Device = device
        self._threads = threads
        self._search: SearchChoice = search
        self.model = None if model is None else Path(model)

    @cached_property
    def own_encoders(self) -> EncoderStack:
        """The bank's own models; raises as `open_encoders`."""
        return open_encoders(self.bank, device=self._device, threads=self._threads)

    @cached_property
    def encoders(self) -> EncoderStack:
        """The models that are used: the bank's own, or one of another precision; raises as `with_model`."""
        if self.model is None:
            return self.own_encoders
        return with_model(self.own_encoders, self.model, device=self._device, threads=self._threads)

    @cached_property
    def searcher(self) -> Search:
        """What finds neighbors among the references; raises as `choose_search`."""
        return choose_search(self._search, self.bank)

    @cached_property
    def sha256(self) -> str:
        """Of the bank's file."""
        return sha256_file(self.bank.path)
