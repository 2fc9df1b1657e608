"""Patches a second, the whole of `stinfer-run` against the usual PyTorch pipeline and ONNX Runtime alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from stinfer.bench import Run, Spread, run_once
from stinfer.contract import F64, MODEL_EMBEDDING
from stinfer.encoder import Device, Encoder
from stinfer.encoder_stack import EncoderStack, Member
from stinfer.files import make_folder
from stinfer.gpu import PATCHES_ON_GPU
from stinfer.machine import cores_allowed
from stinfer_export.bench.child import run_module
from stinfer_export.bench.made_up import Size, write_made_up_bank
from stinfer_export.bench.subjects import BenchSlide, Model, write_places
from stinfer_export.bench.tables import markdown
from stinfer_export.registry import STAIN_TEXTURE

_BATCH_SIZE = 32
# How long a whole run is to take, so that fixed costs weigh as in practice, and each of the others.
RUN_S, TORCH_S, ORT_S = 20.0, 8.0, 4.0
# At least the spots of a section of her2st, so that loading a large network weighs as there.
MIN_PLACES, MAX_PLACES = 300, 6000
# PyTorch has no fixed costs that are counted.
MIN_TORCH_PLACES = 64


@dataclass(frozen=True)
class Round:
    """One repetition: all ways of one model, one after the other; patches a second.

    Parameters
    ----------
    run : the whole process of `stinfer-run`
    ort : ONNX Runtime alone
    eager, channels_last : the PyTorch pipeline, without its imports; None of a model that is not of timm
    """

    run: Run
    ort: float
    eager: float | None
    channels_last: float | None

    @property
    def rate(self) -> float:
        """Places a second of the whole process."""
        return self.run.n_spots / self.run.seconds

    @property
    def overhead(self) -> float:
        """How many times longer the whole process took than ONNX Runtime alone for its patches."""
        return self.run.seconds / (self.run.n_spots / self.ort)


def measure(
    models: Sequence[Model],
    slide: BenchSlide,
    n_rounds: int,
    folder: Path,
    say: Callable[[str], None],
    device: Device = "cpu",
) -> Iterator[tuple[Model, list[Round]]]:
    """Measure models, one network after the other; of each, all precisions and ways in turn, again and again.

    Parameters
    ----------
    models, slide : see `stinfer_export.bench.subjects`
    n_rounds : repetitions
    folder : for what is written meanwhile
    say : told what is going on
    device : ``cpu`` or ``cuda``, of all ways; on CUDA channels-last is in half precision too

    Yields
    ------
    each model and its rounds
    """
    for architecture, group in groupby(models, lambda model: model.architecture):
        say(architecture)
        network = _Network(list(group), slide, folder, device)
        rounds = [network.round() for _ in range(n_rounds)]
        for number, one in enumerate(network.models):
            yield one.model, [found[number] for found in rounds]


class _Prepared:
    """A model, a bank of it, and as many places as take a run of the wanted length."""

    def __init__(self, model: Model, slide: BenchSlide, folder: Path, device: Device) -> None:
        self.model = model
        self._device: Device = device
        self._slide, self._folder = slide, folder
        make_folder(folder)
        n_sample = batch_size(device)
        self._sample = slide.patches(slide.places(n_sample)[:n_sample], model.card.input_size_px)
        np.savez(folder / "sample.npz", self._sample)
        self.rate = self.ort(1)
        encoder = Encoder(model.path.read_bytes(), str(model.path), device="cpu")
        around = EncoderStack([Member(encoder)], "patch").embed([self._sample])
        write_made_up_bank(self._bank, model.path.read_bytes(), Size(), around=around)
        self.centers_l0 = slide.places(int(min(max(self.rate * RUN_S, MIN_PLACES), MAX_PLACES)))
        self._repeats = max(round(self.rate * ORT_S / len(self._sample)), 1)
        # What is read for the first time is not measured.
        self.whole_run(self.centers_l0[:1])

    @property
    def _bank(self) -> Path:
        return self._folder / "bank.h5"

    def whole_run(self, centers_l0: F64) -> Run:
        write_places(self._folder / "places.csv", centers_l0)
        arguments = {
            "slide": str(self._slide.path), "mpp": self._slide.mpp, "bank": str(self._bank),
            "spots": str(self._folder / "places.csv"), "device": self._device,
        }  # fmt: skip
        return run_once(arguments, self._folder)

    def ort(self, repeats: int | None = None) -> float:
        """Return the patches a second of ONNX Runtime alone."""
        spec = {
            "model": str(self.model.path), "outputs": [MODEL_EMBEDDING], "threads": cores_allowed(),
            "batches": str(self._folder / "sample.npz"), "repeats": repeats or self._repeats,
            "device": self._device,
        }  # fmt: skip
        return _rate(run_module("stinfer_export.bench.ort_alone", spec, self._folder))


class _Network:
    """One network in all its precisions, which the same runs of PyTorch are compared with."""

    def __init__(self, models: Sequence[Model], slide: BenchSlide, folder: Path, device: Device) -> None:
        self.models = [_Prepared(model, slide, folder / model.card.precision, device) for model in models]
        self._device: Device = device
        self._architecture = models[0].architecture
        self._slide, self._folder = slide, folder
        # PyTorch is slower: about half as many in a second.
        self._n_torch = int(min(max(self.models[0].rate / 2 * TORCH_S, MIN_TORCH_PLACES), MAX_PLACES))

    def round(self) -> list[Round]:
        """Measure every way once; a round for each precision."""
        of_timm = self._architecture != STAIN_TEXTURE
        eager = self._torch(channels_last=False) if of_timm else None
        measured = [(one.whole_run(one.centers_l0), one.ort()) for one in self.models]
        channels_last = self._torch(channels_last=True) if of_timm else None
        return [Round(run, ort, eager, channels_last) for run, ort in measured]

    def _torch(self, *, channels_last: bool) -> float:
        centers = self.models[0].centers_l0[: self._n_torch]
        spec = {
            "slide": str(self._slide.path), "centers_l0": centers.tolist(),
            "side_l0": self._slide.side_l0()[0], "backbone": self._architecture,
            "channels_last": channels_last, "batch_size": batch_size(self._device),
            "threads": cores_allowed(), "device": self._device,
            "half": channels_last and self._device == "cuda",
        }  # fmt: skip
        return _rate(run_module("stinfer_export.bench.torch_pipeline", spec, self._folder))


def batch_size(device: Device) -> int:
    """Return how many patches ONNX Runtime alone and PyTorch encode at a time."""
    return PATCHES_ON_GPU if device == "cuda" else _BATCH_SIZE


def _rate(found: dict[str, Any]) -> float:
    return float(found["n"]) / float(found["seconds"])


def summarize(found: Sequence[tuple[Model, list[Round]]]) -> list[dict[str, Any]]:
    """Return medians and spread, ready for JSON; ratios are taken within a round."""
    rows = []
    for model, rounds in found:
        figures: dict[str, list[float]] = {
            "run_per_second": [one.rate for one in rounds],
            "ort_per_second": [one.ort for one in rounds],
            "overhead": [one.overhead for one in rounds],
            "first_batch_s": [one.run.first_batch_s for one in rounds if one.run.first_batch_s is not None],
            "peak_mb": [one.run.peak_bytes / 1e6 for one in rounds if one.run.peak_bytes is not None],
            "eager_per_second": [one.eager for one in rounds if one.eager],
            "channels_last_per_second": [one.channels_last for one in rounds if one.channels_last],
            "times_eager": [one.rate / one.eager for one in rounds if one.eager],
            "times_channels_last": [one.rate / one.channels_last for one in rounds if one.channels_last],
        }
        stages = {
            stage: statistics.median(one.run.stages[stage] for one in rounds)
            for stage in rounds[0].run.stages
        }
        rows.append(
            {
                "model": model.label,
                "n_patches": rounds[0].run.n_spots,
                **{name: Spread.of(values).to_json() for name, values in figures.items() if values},
                "stages": stages,
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out what `summarize` gave as Markdown."""
    header = [
        "model", "patches", "PyTorch eager", "channels-last", "ONNX Runtime alone", "**whole `stinfer-run`**",
        "times eager", "time, of alone's", "to first batch", "peak memory",
    ]  # fmt: skip
    cells = [
        [
            row["model"],
            f"{row['n_patches']:,}",
            _shown(row.get("eager_per_second"), 1),
            _shown(row.get("channels_last_per_second"), 1),
            _shown(row["ort_per_second"], 1),
            f"**{_shown(row['run_per_second'], 1)}**",
            _shown(row.get("times_eager"), 2),
            _shown(row["overhead"], 2),
            _shown(row.get("first_batch_s"), 2, " s"),
            _shown(row.get("peak_mb"), 0, " MB"),
        ]
        for row in rows
    ]
    return markdown(header, cells)


def _shown(spread: dict[str, float] | None, digits: int, unit: str = "") -> str:
    """Write a median, and half the distance from lowest to highest."""
    if spread is None:
        return "-"
    half = (spread["highest"] - spread["lowest"]) / 2
    return f"{spread['median']:.{digits}f} ± {half:.{digits}f}{unit}"
