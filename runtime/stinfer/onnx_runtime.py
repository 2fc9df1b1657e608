"""ONNX Runtime, imported here alone and told first to keep to itself.

Its library holds a telemetry client that starts as it is imported: it looks up its maker's servers and
leaves a device number in the home folder. Only an environment variable set before stops it. On Windows it
also hands events to the system, which a call stops.
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

ort.disable_telemetry_events()
# It would tell the terminal what it could not load; that is checked and said by us.
ort.set_default_logger_severity(4)

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

# Memory that is kept from one region to the next: taken as needed, where ONNX Runtime's own stock doubles.
SHARED_MEMORY = "session.use_env_allocators"
ort.create_and_register_allocator(
    ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT),
    ort.OrtArenaCfg(
        {
            "arena_extend_strategy": 1,  # as requested
            "initial_chunk_size_bytes": -1,
            "max_dead_bytes_per_chunk": -1,
            "max_mem": 0,
        }
    ),
)

__all__ = ["ORT_ERRORS", "SHARED_MEMORY", "ort"]
