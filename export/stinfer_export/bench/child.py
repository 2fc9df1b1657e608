"""Measurements in processes of their own, so that none is warmed, or crowded, by another."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from stinfer.errors import SettingError


def run_module(module: str, spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run a module of this package with a specification; return what it found.

    Parameters
    ----------
    module : that takes SPEC and RESULT
    spec : ready for JSON
    folder : for the two files

    Raises
    ------
    SettingError
        It fails.
    """
    asked, result = folder / "spec.json", folder / "result.json"
    asked.write_text(json.dumps(spec), encoding="utf-8")
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", module, str(asked), str(result)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode or not result.exists():
        what = f"{module} ended with exit code {done.returncode}: {done.stderr.strip()[-800:]}"
        raise SettingError(what, "see what it says")
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found
