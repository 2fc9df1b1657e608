"""One measured run, in a process of its own: ``python -m stinfer.bench_run SPEC RESULT``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from stinfer.errors import StInferError
from stinfer.pipeline import predict_slide
from stinfer.stage_clock import StageClock

_STATUS = Path("/proc/self/status")


def peak_bytes() -> int | None:
    """Return the most memory that this process has held; None where the system does not say."""
    if _STATUS.exists():
        # Not by getrusage, which counts what the parent held before this program began.
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
        for line in lines:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def run(arguments: dict[str, Any]) -> dict[str, Any]:
    """Predict a slide with a clock.

    Parameters
    ----------
    arguments : of `stinfer.predict_slide`

    Returns
    -------
    `stages`, seconds by stage; `first_batch`, when the first was encoded, in seconds since 1970; `n_spots`;
    `peak_bytes`; or `error`, the cause and the remedy
    """
    clock = StageClock()
    if isinstance(arguments.get("mpp"), list):
        arguments = {**arguments, "mpp": tuple(arguments["mpp"])}
    try:
        result = predict_slide(clock=clock, **arguments)
    except StInferError as error:
        return {"error": [error.what, error.fix]}
    return {
        "stages": clock.seconds,
        "first_batch": clock.first.get("encode"),
        "n_spots": result.n_spots,
        "peak_bytes": peak_bytes(),
    }


if __name__ == "__main__":
    spec, found = (Path(argument) for argument in sys.argv[1:3])
    found.write_text(json.dumps(run(json.loads(spec.read_text(encoding="utf-8")))), encoding="utf-8")
