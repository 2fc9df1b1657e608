"""The backbone: an ONNX file run by ONNX Runtime, on the CPU or CUDA."""

from __future__ import annotations

import contextlib
import hashlib
from typing import Literal, get_args

import numpy as np

from stinfer.contract import (
    F32,
    HEAD_INPUT,
    MODEL_EMBEDDING,
    MODEL_FEATURES,
    MODEL_INPUT,
    PRECISION_KEY,
    U8,
    AnyArray,
    ModelCard,
    Pooling,
    moment_outputs,
)
from stinfer.cuda import cuda_trouble
from stinfer.errors import (
    ModelFormatError,
    ProviderUnavailableError,
    SettingError,
    StInferError,
    check_choice,
    first_line,
)
from stinfer.gpu import CPU, CUDA, IN_TURN, MAX_FEEDERS, PATCHES_ON_GPU, is_installed, providers
from stinfer.machine import cores_allowed
from stinfer.onnx_guard import find_forbidden, read_metadata
from stinfer.onnx_outputs import keep_outputs
from stinfer.onnx_runtime import ORT_ERRORS, SHARED_MEMORY, ort, suit_eight_bits

Device = Literal["auto", "cpu", "cuda"]
# Patches are encoded by up to so many threads, each a few of its own: what one cuts and encodes waits for no
# other. More cores share in these threads' work, so that memory does not grow with the machine.
MAX_WORKERS = 4
# Regions by fewer, since each takes 0.1 to 0.3 GB while it is encoded.
MAX_REGION_WORKERS = 2
# Patches that a thread encodes at once; fixed, so that no result depends on the number of cores.
PATCHES_AT_ONCE = 8


class Encoder:
    """A loaded backbone.

    Parameters
    ----------
    model : bytes of the ONNX file
    source : where they come from, for messages
    sha256 : of the bytes, where that is known
    pooling : what it will encode: with ``map`` large regions, for which memory is kept more tightly
    device : ``cuda`` insists, ``auto`` takes CUDA where it works
    threads : cores to use; by default those this process may use

    Attributes
    ----------
    card : ModelCard
        What the file says about itself.
    sha256 : str
        Of the bytes.
    provider : str
        What ONNX Runtime really runs on.
    n_workers : int
        Threads that may read and encode at the same time, to use all its cores; on CUDA two of them.
    fallback : str
        Why ``auto`` did not use a CUDA that is installed; empty if it did, or there is none.

    Raises
    ------
    ModelFormatError
        The bytes are no model of ours.
    ProviderUnavailableError
        ``cuda`` was asked for and cannot be used.
    """

    def __init__(
        self,
        model: bytes,
        source: str,
        *,
        sha256: str | None = None,
        pooling: Pooling = "patch",
        device: Device = "auto",
        threads: int | None = None,
    ) -> None:
        check_choice("device", device, get_args(Device))
        self.sha256 = sha256 or hashlib.sha256(model).hexdigest()
        self._source = source
        self.fallback = ""
        installed = ort.get_available_providers()
        if device == "cuda" and not is_installed():
            cause = f"this ONNX Runtime has only {', '.join(installed)}"
            raise ProviderUnavailableError(cause)
        wanted = CUDA if device != "cpu" and is_installed() else CPU
        threads = threads or cores_allowed()
        self.n_workers = min(threads, MAX_WORKERS if pooling == "patch" else MAX_REGION_WORKERS)
        # The threads that encode are not of the session's own, and share these.
        self._session = _load(model, source, wanted, threads - self.n_workers + 1, pooling)
        # ONNX Runtime falls back to the CPU without an error: what counts is what the session has.
        self.provider = str(self._session.get_providers()[0])
        if wanted == CUDA and self.provider != CUDA:
            trouble = cuda_trouble() or "driver, CUDA or cuDNN of another version"
            cause = f"ONNX Runtime could not load CUDA: {trouble}"
            if device == "cuda":
                raise ProviderUnavailableError(cause)
            self.fallback = cause
        if self.on_gpu:
            self.n_workers = min(threads + 1, MAX_FEEDERS)
        self.card = _read_card(self._session, source)
        self._head: ort.InferenceSession | None = None
        if self.card.map_traits is not None and self.card.map_traits.head:
            # It is small, and one thread gives the same bits on every machine.
            self._head = _load(self.card.map_traits.head, f"{source}, its head", CPU, 1, "patch")
            given = sorted(item.name for item in self._head.get_inputs())
            if given != [HEAD_INPUT]:
                raise ModelFormatError(source, f"its head takes {given}, expected {HEAD_INPUT}")

    def embed(self, pixels: U8) -> F32:
        """Encode a batch of patches.

        Parameters
        ----------
        pixels : (n, height, width, 3) uint8 RGB

        Returns
        -------
        (n, dim), finite

        Raises
        ------
        ModelFormatError
            The model refuses patches of this size or gives what is no embedding.
        """
        if self.on_gpu:
            parts = (
                _filled_up(pixels[i : i + PATCHES_ON_GPU]) for i in range(0, len(pixels), PATCHES_ON_GPU)
            )
            found = np.concatenate([self._embed(part) for part in parts])[: len(pixels)]
        else:
            found = self._embed(pixels)
        if found.shape != (len(pixels), self.card.dim):
            cause = f"its embedding has shape {found.shape}, its card says dim {self.card.dim}"
            raise ModelFormatError(self._source, cause)
        return found

    def features(self, pixels: U8) -> F32:
        """Encode regions, cell by cell.

        Parameters
        ----------
        pixels : (n, height, width, 3) uint8 RGB, sides multiples of the card's `stride`

        Returns
        -------
        (n, sum of the card's layers, height / stride, width / stride), finite

        Raises
        ------
        ModelFormatError
            The model has no such output, refuses regions of this size or gives no map of cells.
        """
        n, height, width, _ = pixels.shape
        card = self.card
        size = (height // card.stride, width // card.stride)
        wanted = dict(zip([MODEL_FEATURES, *moment_outputs(len(card.moments))], card.layers, strict=True))
        found = self._run(self._session, list(wanted), {MODEL_INPUT: pixels}, "map")
        for values, channels in zip(found, wanted.values(), strict=True):
            expected = (n, channels, *size)
            if values.shape != expected:
                cause = f"its map has shape {values.shape}, its card says {expected}"
                raise ModelFormatError(self._source, cause)
        return found[0] if len(found) == 1 else np.concatenate(found, axis=1)

    def from_means(self, means: F32) -> F32:
        """Turn means of cells over windows into the windows' embeddings.

        Parameters
        ----------
        means : (n, sum of the card's layers)

        Returns
        -------
        (n, dim) where the model has a head, as `stain_texture` has; else the means themselves
        """
        if self._head is None:
            return means
        found = self._run(self._head, [MODEL_EMBEDDING], {HEAD_INPUT: means}, "embedding")[0]
        if found.shape != (len(means), self.card.dim):
            cause = f"its head gives shape {found.shape}, its card says dim {self.card.dim}"
            raise ModelFormatError(self._source, cause)
        return found

    def release_memory(self) -> None:
        """Give back what regions have taken; the next one takes it anew."""
        options = ort.RunOptions()
        arenas = "cpu:0;gpu:0" if self.on_gpu else "cpu:0"
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", arenas)
        side_px = 8 * self.card.stride
        nothing = np.zeros((1, side_px, side_px, 3), dtype=np.uint8)
        # Where this fails, memory is kept, and that is all.
        with contextlib.suppress(*ORT_ERRORS):
            self._session.run(None, {MODEL_INPUT: nothing}, options)

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on CUDA."""
        return self.provider == CUDA

    @property
    def window_dim(self) -> int:
        """Length of a window's embedding."""
        return sum(self.card.layers) if self._head is None else self.card.dim

    def _embed(self, pixels: U8) -> F32:
        return self._run(self._session, [MODEL_EMBEDDING], {MODEL_INPUT: pixels}, "embedding")[0]

    def _run(
        self, session: ort.InferenceSession, outputs: list[str], inputs: dict[str, AnyArray], what: str
    ) -> list[F32]:
        try:
            with IN_TURN if self.on_gpu else contextlib.nullcontext():
                found = session.run(outputs, inputs)
        except ORT_ERRORS as error:
            raise _encoding_error(self._source, error, next(iter(inputs.values()))) from error
        values = [np.asarray(one, dtype=np.float32) for one in found]
        if not all(np.isfinite(one).all() for one in values):
            raise ModelFormatError(self._source, f"its {what} is not finite")
        return values


def _filled_up(pixels: U8) -> U8:
    """Return as many patches as are encoded at once on the GPU, those that are missing black."""
    if len(pixels) == PATCHES_ON_GPU:
        return pixels
    filled = np.zeros((PATCHES_ON_GPU, *pixels.shape[1:]), dtype=np.uint8)
    filled[: len(pixels)] = pixels
    return filled


def _load(model: bytes, source: str, provider: str, threads: int, pooling: Pooling) -> ort.InferenceSession:
    options = ort.SessionOptions()
    try:
        forbidden = find_forbidden(model)
        half = read_metadata(model).get(PRECISION_KEY) == "fp16"
        suit_eight_bits(options, model)
        # Patches need the embedding alone, maps all but that.
        model = keep_outputs(model, lambda name: (name == MODEL_EMBEDDING) == (pooling == "patch"))
    except ValueError as error:
        raise ModelFormatError(source, f"it is no ONNX file: {error}") from error
    if forbidden:
        raise ModelFormatError(source, forbidden)
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # its fallbacks are checked and reported by us
    options.add_session_config_entry(SHARED_MEMORY, "1")
    # Threads that wait busily for what to encode next keep the cores from what reads, searches and averages.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if pooling == "map":
        # Regions differ in size: a plan of memory for each size would double what is held.
        options.enable_mem_pattern = False
    # Else bytes that begin as ONNX Runtime's own format are loaded as that, unseen by the guard.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        session = ort.InferenceSession(model, options, providers=providers(provider, half=half))
    except ORT_ERRORS as error:
        raise ModelFormatError(source, f"ONNX Runtime cannot load it: {first_line(error)}") from error
    # It would keep the file's bytes, to go on in silence with another provider after an error.
    session.disable_fallback()
    vars(session).pop("_model_bytes", None)
    return session


def _read_card(session: ort.InferenceSession, source: str) -> ModelCard:
    try:
        card = ModelCard.from_props(session.get_modelmeta().custom_metadata_map)
    except KeyError as error:
        cause = f"it has no {error.args[0]} in its metadata, so it was not exported by stinfer"
        raise ModelFormatError(source, cause) from error
    except ValueError as error:
        raise ModelFormatError(source, f"its metadata cannot be read: {error}") from error
    inputs = {item.name: (item.type, item.shape) for item in session.get_inputs()}
    outputs = {item.name for item in session.get_outputs()}
    if set(inputs) != {MODEL_INPUT} or not outputs & {MODEL_EMBEDDING, MODEL_FEATURES}:
        cause = (
            f"it takes {sorted(inputs)} and gives {sorted(outputs)}, "
            f"expected {MODEL_INPUT} and {MODEL_EMBEDDING}"
        )
        raise ModelFormatError(source, cause)
    kind, shape = inputs[MODEL_INPUT]
    if kind != "tensor(uint8)" or len(shape) != 4 or shape[3] != 3:
        raise ModelFormatError(source, f"its input is {kind} {shape}, expected uint8 (n, height, width, 3)")
    return card


def _encoding_error(source: str, error: Exception, given: AnyArray) -> StInferError:
    """Tell a machine that is too small from a model that is wrong."""
    if "allocat" in str(error).lower() and "memory" in str(error).lower():
        if len(given) == 1:
            what = f"encoding {given.shape[2]} x {given.shape[1]} px at once does not fit in memory"
            return SettingError(what, "close other programs, or use a machine with more memory")
        what = f"a batch of {len(given)} does not fit in memory at once"
        return SettingError(what, "give a smaller --batch-size")
    return ModelFormatError(source, f"it cannot encode pixels: {first_line(error)}")
