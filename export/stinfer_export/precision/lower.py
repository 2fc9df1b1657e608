"""From a model file in single precision to one in half precision or in eight bits, measured and told in it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import onnx

from stinfer.contract import MODEL_EMBEDDING, ModelCard
from stinfer.errors import SettingError
from stinfer.files import refuse_existing, sha256_file, written_beside
from stinfer_export.errors import QuantizationError
from stinfer_export.precision.fidelity import Fidelity, compare
from stinfer_export.precision.gate import check_accuracy, check_fidelity, choose_sections
from stinfer_export.precision.half import to_half
from stinfer_export.precision.int8 import quantize_backbone
from stinfer_export.precision.session import encode, open_session
from stinfer_export.precision.tissue_sample import Sample, Tissue, find_tissue_source, sample_tissue
from stinfer_export.parity import sample_batches
from stinfer_export.registry import resolve

logger = logging.getLogger(__name__)

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

N_CALIBRATION = 64
N_HELD_OUT = 256
LEAST_COSINE_HALF = 0.9999
