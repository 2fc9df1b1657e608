"""What comes with the program to test itself is what this version would make."""

from __future__ import annotations

import importlib.util
import json
from importlib.resources import files
from pathlib import Path

import numpy as np

from stinfer.self_test import EXPECTED, MODEL, TOLERANCE
from stinfer_export.stain_texture import write_stain_texture

_SPEC = importlib.util.spec_from_file_location(
    "make_self_test", Path(__file__).parents[1] / "make_self_test.py"
)
made = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(made)

DATA = files("stinfer") / "data"


def test_the_model_is_the_one_that_export_writes(tmp_path: Path) -> None:
    write_stain_texture(tmp_path / MODEL)
    assert (DATA / MODEL).read_bytes() == (tmp_path / MODEL).read_bytes()


def test_the_expected_embedding_is_that_of_onnxs_reference_implementation(tmp_path: Path) -> None:
    write_stain_texture(tmp_path / MODEL)
    expected = json.loads((DATA / EXPECTED).read_text())["embedding"]
    found = made.reference_embedding(tmp_path / MODEL)
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE / 10, atol=TOLERANCE / 10)
    assert np.ptp(expected) > 1
