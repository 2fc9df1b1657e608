"""ONNX Runtime, imported here alone and told first to keep to itself.

Its library holds a telemetry client that starts as it is imported: it looks up its maker's servers and
leaves a device number in the home folder. Only an environment variable set before stops it.
"""

from __future__ import annotations

import os

from stinfer.errors import ExtraMissingError

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

try:
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as _errors
except ImportError as error:
    raise ExtraMissingError(package="onnxruntime", extra="cpu", purpose="running a backbone") from error

# What ONNX Runtime raises for a model or an input it cannot use; there is no common base.
ORT_ERRORS: tuple[type[Exception], ...] = (
    _errors.EPFail,
    _errors.Fail,
    _errors.InvalidArgument,
    _errors.InvalidGraph,
    _errors.InvalidProtobuf,
    _errors.NoSuchFile,
    _errors.NotImplemented,
    _errors.RuntimeException,
)

__all__ = ["ORT_ERRORS", "ort"]
