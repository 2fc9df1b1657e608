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
        """Say a notice and keep it; one that was said is not said again."""
        if text in self.texts:
            return
        logger.warning(text, extra={"event": "notice"})
        self.texts.append(text)


def plain_name(name: str) -> str:
    """Return a file's name as HDF5 can hold it: valid UTF-8, and no path of its own."""
    readable = name.encode("utf-8", errors="replace").decode("utf-8").replace("/", "_")
    return readable if readable.strip(". ") else "unnamed"


def software_versions(reader: str | None = None) -> dict[str, str]:
    """Return the versions of everything a result depends on.

    Parameters
    ----------
    reader : the library that decoded the slide; tifffile and its codecs are listed where it was that
    """
    import openslide

    from stinfer.onnx_runtime import ort

    readers: dict[str, str] = {}
    if reader == "tifffile":
        from importlib.metadata import version

        readers = {name: version(name) for name in ("tifffile", "imagecodecs")}
    return {
        "stinfer": stinfer.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "h5py": h5py.__version__,
        "onnxruntime": str(ort.__version__),
        "openslide": str(openslide.__library_version__),
        "pillow": pillow_version,
        **readers,
    }
