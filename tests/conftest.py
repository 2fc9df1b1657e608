"""What tests of several folders share: skipping what needs CUDA, and a model that takes long to convert."""

from __future__ import annotations

import functools
import io
import logging
import os
from pathlib import Path

import pytest

from stinfer.gpu import is_installed
from stinfer.self_test import open_self_test


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that is marked `cuda`."""
    if item.get_closest_marker("cuda") is not None and (trouble := _trouble()):
        pytest.skip(trouble)


@functools.cache
def _trouble() -> str:
    if not is_installed():
        return "this ONNX Runtime has no CUDA"
    return open_self_test("auto", threads=1).fallback


@pytest.fixture(scope="session")
def conversion(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The file made of the shared weights of MobileNetV2, not to be changed, and what was logged."""
    shared = Path(os.environ.get("STINFER_DATA") or Path(__file__).parents[2] / "shared")
    weights = shared / "weights" / "mobilenetv2_100.pth"
    if not weights.is_file():
        pytest.skip(f"no {weights}")
    for module in ("torch", "timm", "onnxscript"):
        pytest.importorskip(module)
    from stinfer_export.export_all import export_backbone

    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logger = logging.getLogger("stinfer_export")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        path = export_backbone("mobilenetv2_100", weights, tmp_path_factory.mktemp("mobilenet"))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    return path, said.getvalue()


@pytest.fixture(scope="session")
def mobilenet(conversion: tuple[Path, str]) -> Path:
    """The file alone."""
    return conversion[0]
