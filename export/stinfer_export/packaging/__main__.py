"""Run the commands: `python -m stinfer_export.packaging`."""

from __future__ import annotations

from stinfer_export.packaging.cli import main

main(prog_name="python -m stinfer_export.packaging")
