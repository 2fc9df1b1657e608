"""A bank with its models and its search, loaded once for as many slides as there are."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from stinfer.averaging import Averager, gene_groups
from stinfer.bank import Bank
from stinfer.contract import F32, I64
from stinfer.embed import open_encoders, with_model
from stinfer.encoder import MAX_WORKERS, Device
from stinfer.encoder_stack import EncoderStack
from stinfer.files import sha256_file
from stinfer.gpu import NoRoomError, is_installed
from stinfer.gpu_averaging import GpuAverager, is_worth
from stinfer.gpu_search import GpuSearch
from stinfer.machine import cores_allowed
from stinfer.memory import return_large_blocks
from stinfer.neighbor_file import Neighbors
from stinfer.neighbors import Search, SearchChoice, choose_search
from stinfer.origin_search import OriginSearch
from stinfer.predict import Weighting, domain_distance, neighbor_weights
from stinfer.signing import accepted_keys, verify_signature
from stinfer.sparse import Sparse
from stinfer.stage_clock import StageClock, timed
from stinfer.voters import OriginNeighbors

# Of the bank's expression and embeddings, each: what is larger stays in its file.
HELD_BYTES = 64 << 20


class OpenBank:
    """A bank whose models, search and expression are loaded, and checked, when they are first asked for.

    Parameters
    ----------
    path : the bank
    device, threads : see `stinfer.embed.open_encoders`
    search : see `stinfer.neighbors.choose_search`
    bank_key : public key, or folder of them, that must have signed it; see `stinfer.signing.accepted_keys`
    model : file of one of its models in another precision, to be used instead; see `stinfer.stand_in`

    Attributes
    ----------
    signed_by : str or None
        Name of the key that has signed it; None where any bank is accepted.
    search_fallback : str
        Why the search does not run on CUDA though the models do; empty if it does, or neither.

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
        model: str | Path | None = None,
    ) -> None:
        return_large_blocks()
        keys = accepted_keys(None if bank_key is None else Path(bank_key))
        # Before anything of it is read as a bank.
        self.signed_by = None if keys is None else verify_signature(Path(path), keys).name
        self.bank = Bank.open(path, HELD_BYTES)
        self._device: Device = device
        self._threads = threads
        self._search: SearchChoice = search
        self.search_fallback = ""
        self.model = None if model is None else Path(model)

    @property
    def n_workers(self) -> int:
        """Threads that may work at the same time: the cores to use, up to as many as encode."""
        return min(self._threads or cores_allowed(), MAX_WORKERS)

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
        """What finds neighbors among the references; raises as `choose_search`, and as `encoders`."""
        if self._search != "annoy" and self._on_gpu:
            try:
                return GpuSearch(self.bank.embedding, self.bank.settings.distance)
            except NoRoomError as error:
                self.search_fallback = str(error)
        return choose_search(self._search, self.bank, self.n_workers)

    def averager(
        self, chosen: I64, n_spots: int, k: int, *, with_spread: bool, clock: StageClock | None = None
    ) -> Averager | None:
        """Return what averages on the GPU; None where that is not worth it, or where there is none.

        Parameters
        ----------
        chosen : (n_genes,), columns to predict
        n_spots, k : of the run
        with_spread : give the spread too
        clock : told how long it takes

        Raises
        ------
        NoRoomError
            The expression does not fit on the GPU.
        BankError
            As `Bank.check_stored`, and as `encoders`.
        """
        if not (self._on_gpu and is_worth(n_spots, k, len(chosen), self.bank.n_refs)):
            return None
        expression = self.expression
        groups = gene_groups(expression, chosen)
        with timed(clock, "average"):
            return GpuAverager(expression, groups, k, with_spread=with_spread, n_workers=self.n_workers)

    @property
    def _on_gpu(self) -> bool:
        return self._device != "cpu" and is_installed() and self.encoders.on_gpu

    @cached_property
    def expression(self) -> Sparse:
        """The bank's expression, checked; raises as `Bank.check_stored`."""
        self.bank.check_stored()
        return self.bank.expression

    @cached_property
    def origins(self) -> OriginSearch | None:
        """What finds the nearest of each origin; None where every reference has every gene measured."""
        coverage = self.bank.expression.coverage
        if coverage is None:
            return None
        settings = self.bank.settings
        return OriginSearch(self.bank.embedding, coverage.origin_of, coverage.n_origins, settings.distance)

    def find(self, queries: F32, k: int, weighting: Weighting, *, by_origin: bool) -> tuple[Neighbors, F32]:
        """Find what predicts some spots.

        Parameters
        ----------
        queries : (n, dim), what references are compared by; see `Bank.comparable`
        k, weighting : of the run
        by_origin : find the nearest of each origin too

        Returns
        -------
        neighbors : of the n spots
        distance : (n,), see `domain_distance`
        """
        settings = self.bank.settings
        near, found = self.searcher.query(queries, max(k, settings.domain_k))
        weights = neighbor_weights(near[:, :k], weighting, settings.temperature)
        nearest = None
        if by_origin and self.origins is not None:
            nearest = OriginNeighbors(*self.origins.query(queries, k), weighting, settings.temperature)
        return Neighbors(found[:, :k], weights, nearest), domain_distance(near, settings.domain_k)

    @cached_property
    def sha256(self) -> str:
        """Of the bank's file."""
        return sha256_file(self.bank.path)
