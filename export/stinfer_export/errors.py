"""What can go wrong in the export stage for a reason outside this program.

A branch of the tree of `stinfer.errors`; each class is also a builtin::

    StInferError
    └── ExportError
        ├── BackboneUnknownError           (ValueError)    timm has no such network
        ├── BackboneUnsupportedError       (ValueError)    it cannot become a model file
        ├── CheckpointError                the weights
        │   ├── CheckpointNotFoundError    (FileNotFoundError)
        │   ├── CheckpointUnreadableError  (ValueError)    no plain table of weights
        │   └── CheckpointMismatchError    (ValueError)    the weights of another network
        ├── DownloadError                  (OSError)       timm could not fetch the weights
        ├── FetchError                     (OSError)       a public file could not be fetched
        ├── ArchiveError                   (OSError)       what was fetched cannot be unpacked
        ├── ParityError                    (ArithmeticError)  ONNX Runtime computes something else
        ├── PackagingError                 (RuntimeError)  a bundle or folder of wheels cannot be made
        ├── BankMergeError                 (ValueError)    banks that do not go together
        ├── QuantizationError              (ArithmeticError)  a model of less precision says too little
        └── DatasetError                   (ValueError)    measured sections that cannot be read
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stinfer.errors import StInferError

N_NAMES_SHOWN = 3


class ExportError(StInferError):
    """Base of every error of the export stage."""


class BackboneUnknownError(ExportError, ValueError):
    """Timm has no network, or no pretrained tag, of this name."""

    def __init__(self, name: str, nearest: Sequence[str]) -> None:
        near = f" (nearest: {', '.join(nearest)})" if nearest else ""
        super().__init__(
            f"backbone {name!r} is not a network of the installed timm{near}",
            "give a name that timm.list_models() or timm.list_pretrained() lists, for example resnet18",
        )


class BackboneUnsupportedError(ExportError, ValueError):
    """The network exists, but no model file can be made of it."""

    def __init__(self, name: str, cause: str) -> None:
        super().__init__(
            f"backbone {name} cannot be converted: {cause}",
            "use a convolutional network, for example resnet50",
        )


class CheckpointError(ExportError):
    """The file of weights cannot be used."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no file at the checkpoint's path."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"checkpoint {path} does not exist",
            "check the path; or let timm download the weights with --pretrained, where there is a network",
        )


class CheckpointUnreadableError(CheckpointError, ValueError):
    """The file is damaged, or holds something other than named floating-point tensors."""

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(
            f"checkpoint {path} cannot be read: {cause}",
            "copy it again from its source; or save the weights alone, with "
            "torch.save(model.state_dict(), FILE) or safetensors.torch.save_file",
        )


class CheckpointMismatchError(CheckpointError, ValueError):
    """The weights do not fit the network; nothing is filled in at random.

    Parameters
    ----------
    source : the file, or who gave the weights
    backbone : the network they were to fit
    missing : names the network has and the file has not
    unexpected : names the file has and the network has not
    misshapen : names both have, each with the two shapes
    """

    def __init__(
        self,
        source: str,
        backbone: str,
        missing: Sequence[str],
        unexpected: Sequence[str],
        misshapen: Sequence[str],
    ) -> None:
        kinds = [("missing", missing), ("unexpected", unexpected), ("of the wrong shape", misshapen)]
        counts = "; ".join(f"{len(names)} {kind}{_first(names)}" for kind, names in kinds)
        super().__init__(
            f"checkpoint {source} does not fit {backbone}: {counts}",
            "check that it is a checkpoint of this very network, with timm's names of the layers",
        )
        self.missing = tuple(missing)
        self.unexpected = tuple(unexpected)
        self.misshapen = tuple(misshapen)


class DownloadError(ExportError, OSError):
    """Timm could not fetch the weights."""

    def __init__(self, name: str, cause: str) -> None:
        super().__init__(
            f"the weights of {name} could not be downloaded: {cause}",
            "download the file where there is a network and give it with --checkpoint FILE",
        )


class FetchError(ExportError, OSError):
    """A public file could not be fetched, or is not what was published.

    Parameters
    ----------
    url : its address
    target : where it was to be written
    hash_prefix : first digits of its SHA-256, where they are known
    cause : what went wrong
    """

    def __init__(self, url: str, target: Path, hash_prefix: str, cause: str) -> None:
        known = f"; its SHA-256 begins with {hash_prefix}" if hash_prefix else ""
        super().__init__(
            f"{url} could not be fetched: {cause}",
            f"try again, it goes on where it broke off; or fetch that file where there is a network, and put "
            f"it here as {target}{known}",
        )


class ArchiveError(ExportError, OSError):
    """An archive is damaged, or holds what no archive should."""

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(f"archive {path}: {cause}", "delete it and fetch it again from its source")


class ParityError(ExportError, ArithmeticError):
    """The converted network and the original disagree."""

    def __init__(self, name: str, cause: str) -> None:
        super().__init__(
            f"the ONNX file of {name} does not compute what the network computes: {cause}",
            "the file was not kept; try another version of torch, or another backbone",
        )


class QuantizationError(ExportError, ArithmeticError):
    """A model of less precision cannot be made, or says too little of what the original says."""

    def __init__(self, cause: str) -> None:
        super().__init__(
            f"no model of less precision is made: {cause}",
            "nothing was written; use --precision fp32, or calibrate on more tissue, of the kind that "
            "is to be predicted",
        )


class PackagingError(ExportError, RuntimeError):
    """A step of making a bundle or a folder of wheels failed.

    Parameters
    ----------
    purpose : what was being done
    cause : what went wrong, perhaps another program's words
    fix : what to do about it
    """

    def __init__(
        self, purpose: str, cause: str, fix: str = "mend what is said above, and give the same command again"
    ) -> None:
        super().__init__(f"{purpose} failed: {cause}", fix)


class DatasetError(ExportError, ValueError):
    """A data set is not laid out, or does not read, as its format says."""

    def __init__(self, path: Path, cause: str, fix: str) -> None:
        super().__init__(f"data set {path}: {cause}", fix)


def _first(names: Sequence[str]) -> str:
    """Show the first names in brackets, and that there are more."""
    if not names:
        return ""
    more = ", …" if len(names) > N_NAMES_SHOWN else ""
    return f" ({', '.join(names[:N_NAMES_SHOWN])}{more})"


class BankMergeError(ExportError, ValueError):
    """Two banks cannot become one."""

    def __init__(self, first: Path, second: Path, cause: str, fix: str) -> None:
        super().__init__(f"banks {first} and {second} cannot be merged: {cause}", fix)
        self.paths = (first, second)
        self.cause = cause
