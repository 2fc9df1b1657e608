"""A run's record: what was said, what was used, and what a user should know."""

from __future__ import annotations

import logging
import platform

import h5py
import numpy as np
from PIL import __version__ as pillow_version

import stinfer

logger = logging.getLogger("stinfer")


class Notices:
    """What must not pass in silence: said once through the logger, and kept for the record.

    Attributes
    ----------
    texts : list of str
        All notices so far.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []

    def add(self, text: str) -> None:
        """Say a notice and keep it."""
        logger.warning(text)
        self.texts.append(text)


def software_versions() -> dict[str, str]:
    """Return the versions of everything a result depends on."""
    import onnxruntime
    import openslide

    return {
        "stinfer": stinfer.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "h5py": h5py.__version__,
        "onnxruntime": str(onnxruntime.__version__),
        "openslide": str(openslide.__library_version__),
        "pillow": pillow_version,
    }
