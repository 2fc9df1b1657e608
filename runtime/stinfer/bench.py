"""How fast this machine predicts a slide with a bank: whole processes, from outside and stage by stage."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stinfer.errors import SettingError
from stinfer.self_test import built_in_patch
from stinfer.stage_clock import STAGES

# The built-in tissue: so many px a side of nuclei and stroma, and so many of glass around, at this scale.
_TISSUE_PX, _GLASS_PX, BUILT_IN_MPP_UM = 4096, 512, 0.5


@dataclass(frozen=True)
class Run:
    """One process that predicted a slide.

    Parameters
    ----------
    seconds : from its start to its end
    first_batch_s : from its start until it began to encode; None where nothing was encoded
    stages : seconds by stage, summed over threads
    n_spots : places it predicted
    peak_bytes : the most memory it held; None where the system does not say
    """

    seconds: float
    first_batch_s: float | None
    stages: dict[str, float]
    n_spots: int
    peak_bytes: int | None


@dataclass(frozen=True)
class Spread:
    """A figure of several runs.

    Parameters
    ----------
    median, lowest, highest : of them
    """

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Take it from at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def to_json(self) -> dict[str, float]:
        """Return it for JSON, to six places."""
        return {name: round(getattr(self, name), 6) for name in ("median", "lowest", "highest")}


def run_once(arguments: dict[str, Any], folder: Path, now: Callable[[], float] = time.time) -> Run:
    """Predict a slide in a process of its own.

    Parameters
    ----------
    arguments : of `stinfer.predict_slide`, as JSON has them
    folder : for what it writes
    now : gives seconds since 1970

    Raises
    ------
    SettingError
        The run fails.
    """
    spec, result = folder / "spec.json", folder / "result.json"
    out = folder / "prediction.h5ad"
    spec.write_text(json.dumps({**arguments, "out": str(out), "overwrite": True}), encoding="utf-8")
    result.unlink(missing_ok=True)
    start = now()
    command = [sys.executable, "-m", "stinfer.bench_run", str(spec), str(result)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    seconds = now() - start
    if not result.exists():
        what = f"the measured run ended with exit code {done.returncode}: {done.stderr.strip()[-500:]}"
        raise SettingError(what, "run stinfer-run on the slide alone to see why")
    found = json.loads(result.read_text(encoding="utf-8"))
    if "error" in found:
        raise SettingError(*found["error"])
    first = found["first_batch"]
    return Run(
        seconds,
        None if first is None else first - start,
        {stage: found["stages"].get(stage, 0.0) for stage in STAGES},
        found["n_spots"],
        found["peak_bytes"],
    )


def measure(arguments: dict[str, Any], n_runs: int) -> Iterator[Run]:
    """Predict a slide several times, after one run that only warms the machine's caches.

    Parameters
    ----------
    arguments : of `stinfer.predict_slide`; without a ``slide`` the built-in tissue is predicted
    n_runs : that count

    Yields
    ------
    the runs, as they end

    Raises
    ------
    SettingError
        A run fails.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.get("slide") is None:
            arguments = {**arguments, "slide": str(folder / "tissue.png"), "mpp": BUILT_IN_MPP_UM}
            write_built_in_tissue(folder / "tissue.png")
        run_once(arguments, folder)
        for _ in range(n_runs):
            yield run_once(arguments, folder)


def write_built_in_tissue(path: Path) -> None:
    """Draw made-up tissue in the middle of glass, as a PNG."""
    side = _TISSUE_PX + 2 * _GLASS_PX
    slide = np.full((side, side, 3), 245, dtype=np.uint8)
    inside = slice(_GLASS_PX, _GLASS_PX + _TISSUE_PX)
    slide[inside, inside] = built_in_patch(_TISSUE_PX)
    Image.fromarray(slide).save(path, compress_level=1)


def summarize(runs: Sequence[Run]) -> dict[str, Any]:
    """Return medians and spread of some runs, ready for JSON.

    Returns
    -------
    `n_runs`, `n_spots`, and as median, lowest and highest: `seconds`, `first_batch_s`, `spots_per_second`,
    `peak_mb`, and `stages`, seconds of each that took any
    """
    first = [run.first_batch_s for run in runs if run.first_batch_s is not None]
    peaks = [run.peak_bytes / 1e6 for run in runs if run.peak_bytes is not None]
    figures = {
        "seconds": [run.seconds for run in runs],
        "first_batch_s": first,
        "spots_per_second": [run.n_spots / run.seconds for run in runs],
        "peak_mb": peaks,
    }
    stages = {stage: [run.stages[stage] for run in runs] for stage in STAGES}
    return {
        "n_runs": len(runs),
        "n_spots": runs[0].n_spots,
        **{name: Spread.of(values).to_json() for name, values in figures.items() if values},
        "stages": {name: Spread.of(values).to_json() for name, values in stages.items() if max(values) > 0},
    }


def lay_out(summary: dict[str, Any]) -> Iterator[str]:
    """Lay out what `summarize` gave, a line each."""
    yield f"{summary['n_runs']} runs of {summary['n_spots']:,} places: median (lowest to highest)"
    for name, label, unit in (
        ("seconds", "whole process", " s"),
        ("first_batch_s", "start to first batch", " s"),
        ("spots_per_second", "places a second", ""),
        ("peak_mb", "peak memory", " MB"),
    ):
        if name in summary:
            yield _line(label, summary[name], unit)
    yield "of it, summed over threads:"
    for stage, spread in summary["stages"].items():
        yield _line(f"  {stage}", spread, " s")


def _line(label: str, spread: dict[str, float], unit: str) -> str:
    digits = 0 if unit == " MB" else 2
    median, lowest, highest = (f"{spread[name]:.{digits}f}" for name in ("median", "lowest", "highest"))
    return f"{label:<22}{median:>9}{unit}  ({lowest} to {highest})"
