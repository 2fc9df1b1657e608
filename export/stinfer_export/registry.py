"""Which backbones there are, how their input is normalised, and under what names their weights lie about.

The five of the paper are a plain table, so that listing them needs no torch; every other name is
looked up in timm. A test holds the table against timm's own.
"""

from __future__ import annotations

import difflib
import importlib
import logging
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType

from stinfer.errors import ExtraMissingError
from stinfer_export.errors import BackboneUnknownError, BackboneUnsupportedError

logger = logging.getLogger(__name__)

RGB = tuple[float, float, float]

# Our own, which needs no weights and no torch; it is not timm's, so `resolve` does not know it.
STAIN_TEXTURE = "stain_texture"

IMAGENET_MEAN: RGB = (0.485, 0.456, 0.406)
IMAGENET_STD: RGB = (0.229, 0.224, 0.225)

# In the order in which one is taken where a folder holds several for the same backbone.
CHECKPOINT_SUFFIXES = (".safetensors", ".bin", ".pth")
CHECKPOINT_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class BackboneSpec:
    """What is known of a backbone before its weights are read.

    Parameters
    ----------
    name : timm name with its tag, for example ``resnet18.a1_in1k``
    input_size_px : side of the square it was trained on, in pixels
    mean, std : of each channel, RGB, on the scale 0 to 1
    hub_id : repository on huggingface.co that holds the weights; empty where there is none
    url : direct address of the weights; empty where there is none
    fixed_size : the network takes squares of `input_size_px` and nothing else
    """

    name: str
    input_size_px: int = 224
    mean: RGB = IMAGENET_MEAN
    std: RGB = IMAGENET_STD
    hub_id: str = ""
    url: str = ""
    fixed_size: bool = False

    @property
    def architecture(self) -> str:
        """The name without its tag."""
        return self.name.partition(".")[0]

    @property
    def file_name(self) -> str:
        """The name of the weights' file at `url`; empty where there is none."""
        return PurePosixPath(self.url).name

    @property
    def sources(self) -> tuple[str, ...]:
        """Addresses to download the weights from by hand, the preferred first."""
        hub = f"https://huggingface.co/{self.hub_id}/resolve/main/model.safetensors" if self.hub_id else ""
        return tuple(address for address in (hub, self.url) if address)


_RELEASES = "https://github.com/huggingface/pytorch-image-models/releases/download"
PAPER_BACKBONES = {
    spec.architecture: spec
    for spec in (
        BackboneSpec("vgg16.tv_in1k", hub_id="timm/vgg16.tv_in1k"),
        BackboneSpec("densenet121.ra_in1k", hub_id="timm/densenet121.ra_in1k"),
        BackboneSpec(
            "resnet18.a1_in1k",
            hub_id="timm/resnet18.a1_in1k",
            url=f"{_RELEASES}/v0.1-rsb-weights/resnet18_a1_0-d63eafa0.pth",
        ),
        BackboneSpec(
            "resnet50.a1_in1k",
            hub_id="timm/resnet50.a1_in1k",
            url=f"{_RELEASES}/v0.1-rsb-weights/resnet50_a1_0-14fe96d1.pth",
        ),
        BackboneSpec(
            "resnext50d_32x4d.bt_in1k",
            hub_id="timm/resnext50d_32x4d.bt_in1k",
            url=f"{_RELEASES}/v0.1-weights/resnext50d_32x4d-103e99f8.pth",
        ),
    )
}
"""The five of the paper, by the name it calls them."""

_BY_EXACT_NAME = {spec.name: spec for spec in PAPER_BACKBONES.values()}


def resolve(name: str) -> BackboneSpec:
    """Find a backbone by its timm name, with or without the tag.

    Without a tag, the five of the paper get the paper's; others get timm's default.

    Raises
    ------
    BackboneUnknownError
        Timm has no such network or tag.
    BackboneUnsupportedError
        The network does not take an RGB image.
    ExtraMissingError
        The name is not one of the paper's five, and timm is not installed.
    """
    spec = PAPER_BACKBONES.get(name) or _BY_EXACT_NAME.get(name)
    return spec if spec is not None else _resolve_with_timm(name)


def find_checkpoints(folder: Path) -> dict[str, Path]:
    """Find the weights in a folder that say by their name which backbone they belong to.

    Known are ``NAME.pth``, ``NAME.bin`` and ``NAME.safetensors``, NAME with or without its tag; the
    names under which timm publishes (``resnet18_a1_0-d63eafa0.pth``); and folders as on the Hugging
    Face hub (``NAME/model.safetensors``, ``NAME/pytorch_model.bin``). A file of weights with another
    name is passed over with a warning.

    Returns
    -------
    Path by backbone name with tag, sorted by name; empty where there is no such folder

    Raises
    ------
    ExtraMissingError
        A name is not one of the paper's five, and timm is not installed.
    """
    found: dict[str, Path] = {}
    for label, path in _candidates(folder):
        spec = _published_as(path.name) or _resolve_or_none(label)
        if spec is None:
            logger.warning("%s is passed over: its name is not that of a backbone", path)
        elif spec.name in found:
            logger.warning("%s is passed over: %s has %s already", path, spec.name, found[spec.name])
        else:
            found[spec.name] = path
    return dict(sorted(found.items()))


def _candidates(folder: Path) -> list[tuple[str, Path]]:
    """List the files of weights, each with what names its backbone, in order of preference."""
    if not folder.is_dir():
        return []
    entries = sorted(folder.iterdir())
    files = [
        (path.stem, path)
        for suffix in CHECKPOINT_SUFFIXES
        for path in entries
        if path.suffix == suffix and path.is_file()
    ]
    nested = [
        (entry.name, entry / file_name)
        for entry in entries
        if entry.is_dir()
        for file_name in CHECKPOINT_FOLDER_FILES
        if (entry / file_name).is_file()
    ]
    return files + nested


def _resolve_or_none(name: str) -> BackboneSpec | None:
    try:
        return resolve(name)
    except (BackboneUnknownError, BackboneUnsupportedError):
        return None


def _published_as(file_name: str) -> BackboneSpec | None:
    """Find the backbone whose weights timm publishes under this file name."""
    for spec in PAPER_BACKBONES.values():
        if spec.file_name == file_name:
            return spec
    # Timm's names of files end in a piece of the hash; any other name needs no search.
    if "-" not in file_name:
        return None
    models = _timm_models()
    for name in models.list_pretrained():
        if PurePosixPath(models.get_pretrained_cfg_value(name, "url") or "").name == file_name:
            return resolve(name)
    return None


def _resolve_with_timm(name: str) -> BackboneSpec:
    models = _timm_models()
    if not models.is_model(name):
        raise BackboneUnknownError(name, difflib.get_close_matches(name, models.list_models(), n=3))
    try:
        cfg = models.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        architecture = name.partition(".")[0]
        tagged = models.list_pretrained(f"{architecture}.*")
        nearest = difflib.get_close_matches(name, tagged, n=3, cutoff=0) or [architecture]
        raise BackboneUnknownError(name, nearest) from error
    channels, _, width_px = cfg.input_size
    if channels != 3:
        raise BackboneUnsupportedError(name, f"it takes images of {channels} channels, not RGB")
    return BackboneSpec(
        name=f"{cfg.architecture}.{cfg.tag}" if cfg.tag else str(cfg.architecture),
        input_size_px=int(width_px),
        mean=_rgb(cfg.mean),
        std=_rgb(cfg.std),
        hub_id=cfg.hf_hub_id or "",
        url=cfg.url or "",
        fixed_size=bool(cfg.fixed_input_size),
    )


def _rgb(values: tuple[float, ...]) -> RGB:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _timm_models() -> ModuleType:
    try:
        return importlib.import_module("timm.models")
    except ImportError as error:
        package = error.name or "timm"
        raise ExtraMissingError(package, "export", "looking up a backbone") from error
