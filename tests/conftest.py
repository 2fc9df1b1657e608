"""Tests that need CUDA are skipped where it does not work, and say why."""

from __future__ import annotations

import functools

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
