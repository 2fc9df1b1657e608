"""From a model file in single precision to one in half precision or in eight bits, which says how it does."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from stinfer.contract import U8, ModelCard
from stinfer.files import refuse_existing, sha256_file, written_beside
from stinfer_export.errors import QuantizationError
from stinfer_export.precision.fidelity import Fidelity, compare
from stinfer_export.precision.gate import (
    MOST_LOST,
    check_accuracy,
    check_fidelity,
    choose_sections,
)
from stinfer_export.precision.half import to_half
from stinfer_export.precision.int8 import quantize_backbone
from stinfer_export.precision.session import encode, open_session
from stinfer_export.precision.tissue_sample import Tissue, sample_tissue
from stinfer_export.tissue_noise import tissue_patch

logger = logging.getLogger(__name__)

N_CALIBRATION = 64
N_HELD_OUT = 256

LEAST_COSINE_HALF = 0.9999
"""Of half precision: what is asked of every output."""

_N_PAINTED = 8


def write_int8(original: Path, tissue: Tissue, target: Path, *, overwrite: bool) -> Fidelity:
    """Write a model in eight bits, if it predicts as well as the original.

    Parameters
    ----------
    original : model file in single precision
    tissue : to calibrate on and to compare on
    target : file to write
    overwrite : replace it

    Raises
    ------
    QuantizationError
        It predicts worse, or where no expression was measured says less; nothing is written.
    StInferError
        Of the tissue or the target.
    """
    refuse_existing(target, overwrite=overwrite)
    made = calibrate(original, tissue, N_CALIBRATION, N_HELD_OUT)
    logger.info("%s", "; ".join(f"{name} {value}" for name, value in made.told.items()))
    with written_beside(target) as partial:
        made.write(partial)
        sections = choose_sections(tissue.sections)
        if sections:
            names = ", ".join(section.name for section in sections)
            logger.info("predicting %s from each other with both models", names)
            results = check_accuracy(sections, original, partial, has_map=made.card.map_traits is not None)
            gate = f"Pearson of {names} held out in turn: {', '.join(map(str, results))}"
        else:
            check_fidelity(made.fidelity)
            gate = "fidelity only: no expression of two sections"
            logger.warning(
                "%s has no expression of two sections: a loss of correlation above %s is not ruled out",
                tissue.name,
                MOST_LOST,
            )
        logger.info("%s", gate)
        replace(made, told={**made.told, "gate": gate}).write(partial)
    return made.fidelity


@dataclass(frozen=True)
class Calibrated:
    """A model in eight bits of which it is not yet known how well it predicts.

    Parameters
    ----------
    model : of it
    card : what it is
    told : what its file says of how it was made, by name
    fidelity : to the original, on tissue that it was not calibrated on
    """

    model: onnx.ModelProto
    card: ModelCard
    told: Mapping[str, str]
    fidelity: Fidelity

    def write(self, path: Path) -> None:
        """Write it as a model file."""
        _write(self.model, self.card, self.told, path)


def calibrate(original: Path, tissue: Tissue, n_calibration: int, n_held_out: int) -> Calibrated:
    """Make a model in eight bits.

    Parameters
    ----------
    original : model file in single precision
    tissue : to calibrate on and to compare on
    n_calibration, n_held_out : patches for the one and the other

    Raises
    ------
    StInferError
        Of the tissue.
    """
    model, card = _read(original)
    sample = sample_tissue(tissue, card.input_size_px, n_calibration, n_held_out)
    made = quantize_backbone(model, sample)
    n_float, n_layers = made.in_float
    told = {
        "calibration": f"{tissue.name}: {len(sample.calibration)} patches of {len(tissue.slides)} slides",
        "calibration_sha256": tissue.sha256(),
        "calibration_method": made.method,
        "float_layers": f"{n_float} of {n_layers}",
        **_told(made.fidelity),
    }
    card = replace(card, precision="int8", fp32_sha256=sha256_file(original))
    return Calibrated(onnx.load_from_string(made.model), card, told, made.fidelity)


def write_fp16(original: Path, target: Path, *, overwrite: bool) -> Fidelity:
    """Write a model in half precision, if it says the same as the original.

    It is compared on the CPU, where ONNX Runtime computes in single precision what it has no half for.

    Parameters
    ----------
    original : model file in single precision
    target : file to write
    overwrite : replace it

    Raises
    ------
    QuantizationError
        The cosine of an output is below `LEAST_COSINE_HALF`; nothing is written.
    OutputExistsError, OutputWriteError
        The file is there already, or cannot be written.
    """
    refuse_existing(target, overwrite=overwrite)
    model, card = _read(original)
    found = to_half(model)
    rng = np.random.default_rng(0)
    side_px = card.input_size_px
    patches: U8 = np.stack([tissue_patch(rng, side_px, side_px) for _ in range(_N_PAINTED)])
    truth = encode(open_session(model.SerializeToString()), patches)
    fidelity = compare(truth, encode(open_session(found.SerializeToString()), patches))
    low = {name: value for name, value in fidelity.cosine.items() if not value >= LEAST_COSINE_HALF}
    if low:
        told = ", ".join(f"{name} {value:.6f}" for name, value in low.items())
        cause = f"the cosine to the original is below {LEAST_COSINE_HALF} ({told})"
        raise QuantizationError(cause)
    card = replace(card, precision="fp16", fp32_sha256=sha256_file(original))
    with written_beside(target) as partial:
        _write(found, card, {"cosine": _told(fidelity)["cosine"]}, partial)
    logger.info("%s: cosine %s", target, _told(fidelity)["cosine"])
    return fidelity


def _read(path: Path) -> tuple[onnx.ModelProto, ModelCard]:
    model = onnx.load(path)
    return model, ModelCard.from_props({prop.key: prop.value for prop in model.metadata_props})


def _told(fidelity: Fidelity) -> dict[str, str]:
    """Return what a file says of its own fidelity."""
    return {
        "cosine": ", ".join(f"{name} {value:.6f}" for name, value in fidelity.cosine.items()),
        "neighbor_overlap": (
            f"{fidelity.overlap:.4f} of {fidelity.n_neighbors} among {fidelity.n_patches} patches"
        ),
    }


def _write(model: onnx.ModelProto, card: ModelCard, told: Mapping[str, str], path: Path) -> None:
    props = {**card.to_props(), **{f"stinfer.{name}": value for name, value in told.items()}}
    onnx.helper.set_model_props(model, props)
    path.write_bytes(model.SerializeToString(deterministic=True))
