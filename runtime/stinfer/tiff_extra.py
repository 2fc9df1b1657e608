"""The optional packages that read and write TIFF files: loaded on first use, or named where they lack."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from stinfer.errors import ExtraMissingError

if TYPE_CHECKING:
    from types import ModuleType

# What tifffile logs of damaged files would otherwise reach the terminal as it is; errors of ours say it.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def import_tifffile(purpose: str, *, codecs: bool) -> ModuleType:
    """Return the module tifffile; also a check before any long work.

    Parameters
    ----------
    purpose : what it is for, in the message where it lacks
    codecs : whether imagecodecs, with which it decodes, is needed too

    Raises
    ------
    ExtraMissingError
        One of them is not installed.
    """
    package = "tifffile"
    try:
        import tifffile

        if codecs:
            package = "imagecodecs"
            import imagecodecs  # noqa: F401  # tifffile finds it by itself
    except ImportError as error:
        raise ExtraMissingError(package=package, extra="tiff", purpose=purpose) from error
    module: ModuleType = tifffile
    return module
