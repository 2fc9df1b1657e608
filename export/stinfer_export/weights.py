"""Read a checkpoint, and put every one of its weights into a network or refuse.

Whatever the file calls itself, it is read as data: a pickle that would run code is not run.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stinfer.errors import ExtraMissingError, first_line
from stinfer_export.errors import (
    CheckpointMismatchError,
    CheckpointNotFoundError,
    CheckpointUnreadableError,
)

try:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file
except ImportError as missing:
    raise ExtraMissingError(missing.name or "torch", "export", "reading a checkpoint") from missing

logger = logging.getLogger(__name__)

StateDict = dict[str, torch.Tensor]

# What training scripts put around the weights. The running average comes first, as in timm: where
# there is one, it is what the authors report.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
# What parallel training and compilation put before every name.
PREFIXES = ("module.", "_orig_mod.")
# Counts training steps; never learned, and not read in evaluation.
UNLEARNED = ".num_batches_tracked"

# What torch's unpickler meets a damaged file with; which one depends on the byte it stumbles over.
_DAMAGE: tuple[type[Exception], ...] = (
    OSError,
    EOFError,
    RuntimeError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    AssertionError,
    struct.error,
)


def load_state_dict(path: Path) -> StateDict:
    """Read a checkpoint: ``.safetensors``, or whatever `torch.save` wrote.

    A table inside ``state_dict``, ``model`` and the like is taken out, and prefixes that parallel
    training and `torch.compile` leave are taken off.

    Raises
    ------
    CheckpointNotFoundError
        There is no such file.
    CheckpointUnreadableError
        It is damaged, holds objects other than tensors, no tensors, or values that are not finite.
    """
    if not path.is_file():
        raise CheckpointNotFoundError(path)
    state = _unwrap(path, _read(path))
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise CheckpointUnreadableError(path, f"{name} holds values that are not finite")
    return state


def fit(model: torch.nn.Module, state: Mapping[str, torch.Tensor], source: str, backbone: str) -> list[str]:
    """Put the weights into a network built without a classifier.

    Every parameter and running statistic comes from `state`. Only the count of training steps that
    batch normalisation keeps (`UNLEARNED`) may be missing: evaluation does not read it.

    Parameters
    ----------
    model : timm network; changed in place
    state : by name; the classifier's weights may be among them
    source : where they come from, for the message
    backbone : the network's name, for the message

    Returns
    -------
    Names left aside because they are the classifier's

    Raises
    ------
    CheckpointMismatchError
        Some are missing, are too many or have the wrong shape or kind; the network is as it was.
    """
    expected = model.state_dict()
    classifier = _classifier_names(model)
    dropped = [name for name in state if name not in expected and name.rpartition(".")[0] in classifier]
    given = {name: tensor for name, tensor in state.items() if name not in dropped}

    missing = [name for name in expected if name not in given and not name.endswith(UNLEARNED)]
    unexpected = [name for name in given if name not in expected]
    misshapen = [
        f"{name} {_describe(given[name])} instead of {_describe(wanted)}"
        for name, wanted in expected.items()
        if name in given and not _alike(given[name], wanted)
    ]
    if missing or unexpected or misshapen:
        raise CheckpointMismatchError(source, backbone, missing, unexpected, misshapen)
    if dropped:
        logger.info("%s: left aside the classifier (%s)", source, ", ".join(dropped))
    model.load_state_dict({**expected, **given}, strict=True)
    return dropped


def state_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """Hash weights that came from no file of ours: names, kinds, shapes and values, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {_describe(tensor)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            # It warns of pickle protocols it was not written for; those it cannot read are errors.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        cause = "it is no torch file, or holds objects other than tensors (refused: they may run code)"
        raise CheckpointUnreadableError(path, cause) from error
    except SafetensorError as error:
        raise CheckpointUnreadableError(path, f"it is no whole safetensors file ({error})") from error
    except _DAMAGE as error:
        raise CheckpointUnreadableError(path, f"it is damaged ({first_line(error)})") from error


def _unwrap(path: Path, content: Any) -> StateDict:
    while isinstance(content, Mapping):
        wrapper = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if wrapper is None:
            break
        logger.info("%s: the weights are taken from its entry %r", path, wrapper)
        content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointUnreadableError(path, "it holds no table of weights")
    strangers = [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if strangers:
        shown = ", ".join(strangers[:3])
        raise CheckpointUnreadableError(path, f"{len(strangers)} of its entries are no tensors ({shown})")
    state: StateDict = {str(name): value for name, value in content.items()}
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _classifier_names(model: torch.nn.Module) -> tuple[str, ...]:
    """Where timm keeps the classifier of this network: one module, several, or none."""
    named = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return (named,) if isinstance(named, str) else tuple(named)


def _alike(given: torch.Tensor, wanted: torch.Tensor) -> bool:
    # Half precision is as good as single here; an integer is a quantised weight, and is not.
    return given.shape == wanted.shape and given.is_floating_point() == wanted.is_floating_point()


def _describe(tensor: torch.Tensor) -> str:
    shape = "x".join(str(side) for side in tensor.shape) or "scalar"
    return shape if tensor.is_floating_point() else f"{shape} {str(tensor.dtype).removeprefix('torch.')}"
