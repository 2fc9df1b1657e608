"""A bank with its models and its search, loaded once for as many slides as there are."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from stinfer.bank import Bank
from stinfer.embed import open_encoders
from stinfer.encoder import Device
from stinfer.encoder_stack import EncoderStack
from stinfer.files import sha256_file
from stinfer.memory import return_large_blocks
from stinfer.neighbors import Search, SearchChoice, choose_search
from stinfer.signing import accepted_keys, verify_signature


class OpenBank:
    """A checked bank; its models and its search are loaded when they are first asked for.

    Parameters
    ----------
    path : the bank
    device, threads : see `stinfer.embed.open_encoders`
    search : see `stinfer.neighbors.choose_search`
    bank_key : public key, or folder of them, that must have signed it; see `stinfer.signing.accepted_keys`

    Attributes
    ----------
    signed_by : str or None
        Name of the key that has signed it; None where any bank is accepted.

    Raises
    ------
    BankError, KeyFileError
        It cannot be used, or is not signed as it must be.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: Device,
        threads: int | None,
        search: SearchChoice,
        bank_key: str | Path | None = None,
    ) -> None:
        return_large_blocks()
        keys = accepted_keys(None if bank_key is None else Path(bank_key))
        # Before anything of it is read as a bank.
        self.signed_by = None if keys is None else verify_signature(Path(path), keys).name
        self.bank = Bank.open(path)
        self._device: Device = device
        self._threads = threads
        self._search: SearchChoice = search

    @cached_property
    def encoders(self) -> EncoderStack:
        """The bank's own models; raises as `open_encoders`."""
        return open_encoders(self.bank, device=self._device, threads=self._threads)

    @cached_property
    def searcher(self) -> Search:
        """What finds neighbors among the references; raises as `choose_search`."""
        return choose_search(self._search, self.bank)

    @cached_property
    def sha256(self) -> str:
        """Of the bank's file."""
        return sha256_file(self.bank.path)
