"""What is measured: models of every kind, and places on a slide."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stinfer.bench import BUILT_IN_MPP_UM, write_built_in_tissue
from stinfer.contract import F64, MODEL_SUFFIXES, U8, ModelCard
from stinfer.encoder import Encoder
from stinfer.errors import ModelError, SettingError
from stinfer.files import make_folder, written_beside
from stinfer.geometry import extent_l0, grid_centers
from stinfer.patches import cut_patches
from stinfer.slide import open_slide
from stinfer.tissue import find_tissue
from stinfer_export.bank_plan import DEFAULT_PATCH_FOV_UM
from stinfer_export.export_all import export_backbone
from stinfer_export.registry import PAPER_BACKBONES, STAIN_TEXTURE

FOV_UM = DEFAULT_PATCH_FOV_UM[0]
SEED = 0
# Patches that eight bits are calibrated on, and compared on; time does not depend on them.
N_CALIBRATION = 12
# Of the shared data: the section that is predicted, and its scale.
_SECTION, _SECTION_MPP_UM = "her2st/ST-imgs/C/C5", 0.69


@dataclass(frozen=True)
class Model:
    """A model that is measured.

    Parameters
    ----------
    path : ONNX file
    card : what it says of itself
    """

    path: Path
    card: ModelCard

    @property
    def architecture(self) -> str:
        """Name of the backbone without its tag."""
        return self.card.backbone.partition(".")[0]

    @property
    def label(self) -> str:
        """Name and precision."""
        return f"{self.architecture} {self.card.precision}"


def find_models(
    folder: Path, names: Sequence[str], say: Callable[[str], None], tissue: BenchSlide | None = None
) -> list[Model]:
    """Return the models in a folder of some backbones; those of the paper that are not there are made.

    They get random weights of a fixed seed, which cost what trained ones do, and are made in eight bits too.
    How well those predict nobody asks: that depends on weights.

    Parameters
    ----------
    folder : of ONNX files; made if it is not there
    names : of backbones, without tags
    say : told what is made, since that takes minutes
    tissue : to calibrate models in eight bits on; None to make none

    Raises
    ------
    SettingError
        There is no such backbone.
    """
    make_folder(folder)
    unknown = [name for name in names if name not in (*PAPER_BACKBONES, STAIN_TEXTURE)]
    there = _models_in(folder)
    missing = [name for name in names if name not in {model.architecture for model in there}]
    for name in missing:
        if name in unknown:
            what = f"there is no model of {name} in {folder}"
            raise SettingError(what, f"write one with stinfer-export backbone {name} --out-dir {folder}")
        say(f"making {folder}/{name}, with random weights")
        _make(name, folder, tissue)
    found = {model.label: model for model in _models_in(folder)}
    order = {name: number for number, name in enumerate(names)}
    chosen = [model for model in found.values() if model.architecture in order]
    return sorted(chosen, key=lambda model: (order[model.architecture], model.card.precision != "fp32"))


def _models_in(folder: Path) -> list[Model]:
    models = []
    for path in sorted(folder.glob("*.onnx")):
        try:
            card = Encoder(path.read_bytes(), str(path), device="cpu", threads=1).card
        except ModelError:
            continue  # no model of ours
        models.append(Model(path, card))
    return models


def _make(name: str, folder: Path, tissue: BenchSlide | None) -> None:
    if name == STAIN_TEXTURE:
        export_backbone(name, None, folder)
        return
    import torch

    from stinfer_export.convert import build_backbone
    from stinfer_export.precision.lower import calibrate
    from stinfer_export.precision.tissue_sample import Tissue

    spec = PAPER_BACKBONES[name]
    torch.manual_seed(SEED)
    checkpoint = folder / f"{spec.name}.pth"
    torch.save(build_backbone(spec).state_dict(), checkpoint)
    original = export_backbone(name, checkpoint, folder)
    checkpoint.unlink()
    if tissue is not None:
        source = Tissue(tissue.path.name, ((tissue.path, tissue.mpp),))
        target = original.with_suffix(MODEL_SUFFIXES["int8"])
        with written_beside(target) as partial:
            calibrate(original, source, N_CALIBRATION, N_CALIBRATION).write(partial)


@dataclass(frozen=True)
class BenchSlide:
    """The slide that is predicted.

    Parameters
    ----------
    path : the file
    mpp : µm per level-0 pixel, where it must be said
    """

    path: Path
    mpp: float | None

    def places(self, n: int) -> F64:
        """Lay about `n` places over its tissue, on a grid: (n_places, 2), level-0 px, row by row."""
        with open_slide(self.path, self.mpp) as slide:
            tissue = find_tissue(slide)
            area_l0 = float(tissue.mask.sum()) * tissue.l0_per_px[0] * tissue.l0_per_px[1]
            pitch_um = float(np.sqrt(area_l0 * slide.mpp[0] * slide.mpp[1] / n))
            centers = grid_centers(slide.size_l0, slide.mpp, pitch_um)
        x, y = (centers / tissue.l0_per_px).astype(np.int64).T
        height, width = tissue.mask.shape
        return np.asarray(centers[tissue.mask[np.minimum(y, height - 1), np.minimum(x, width - 1)]])

    def patches(self, centers_l0: F64, size_px: int) -> U8:
        """Cut the patches of some places, as a run does."""
        with open_slide(self.path, self.mpp) as slide:
            return cut_patches(slide, centers_l0, FOV_UM, size_px)

    def side_l0(self) -> tuple[float, float]:
        """Return width and height of a patch, level-0 px."""
        with open_slide(self.path, self.mpp) as slide:
            return extent_l0(FOV_UM, slide.mpp)


def find_slide(path: Path | None, mpp: float | None, folder: Path) -> BenchSlide:
    """Return the slide to predict: the given one, else a section of the shared data, else drawn tissue.

    Parameters
    ----------
    path, mpp : given, or None
    folder : to draw into
    """
    if path is not None:
        return BenchSlide(path, mpp)
    shared = Path(os.environ.get("STINFER_DATA") or "../shared")
    sections = sorted((shared / _SECTION).glob("*.jpg"))
    if sections:
        return BenchSlide(sections[0], _SECTION_MPP_UM)
    make_folder(folder)
    drawn = folder / "tissue.png"
    write_built_in_tissue(drawn)
    return BenchSlide(drawn, BUILT_IN_MPP_UM)


def write_places(path: Path, centers_l0: F64) -> None:
    """Write a spots file that `stinfer-run --spots` reads."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["x", "y"])
        writer.writerows(centers_l0.tolist())
