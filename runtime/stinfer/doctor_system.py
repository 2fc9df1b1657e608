"""Checks of `stinfer doctor` on what a run stands on: program, libraries, machine, OpenSlide and folders."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import stinfer
from stinfer import machine
from stinfer.checkup import Check
from stinfer.errors import OutputWriteError, first_line
from stinfer.files import cause_of, written_beside

# A run of a small slide takes less memory, and of disk what its prediction takes; below these it is said.
_LITTLE_MEMORY, _LITTLE_SPACE = 2 << 30, 1 << 30
# What OpenSlide 4 reads: https://openslide.org/formats/
_FORMATS = (
    "Aperio (.svs, .tif)", "DICOM (.dcm)", "Hamamatsu (.ndpi, .vms, .vmu)", "Leica (.scn)", "MIRAX (.mrxs)",
    "Philips (.tiff)", "Sakura (.svslide)", "Trestle (.tif)", "Ventana (.bif, .tif)", "Zeiss (.czi)",
    "tiled TIFF",
)  # fmt: skip
_REQUIRED = (
    "numpy",
    "h5py",
    "onnxruntime",
    "openslide-python",
    "pillow",
    "click",
    "filelock",
    "threadpoolctl",
    "tqdm",
)
_OPTIONAL = {
    "tifffile": ("tiff", "OME-TIFF"),
    "imagecodecs": ("tiff", "OME-TIFF, and TIFF slides that OpenSlide does not read"),
    "annoy": ("annoy", "a bank's index; without it search is exact"),
    "cryptography": ("sign", "signatures of banks"),
}
# Packages that are not imported by the name they are installed by; ONNX Runtime where its telemetry is off.
_MODULES = {"openslide-python": "openslide", "pillow": "PIL", "onnxruntime": "stinfer.onnx_runtime"}


def check_program() -> Check:
    """Say what the program is and runs on."""
    is_frozen = bool(getattr(sys, "frozen", False))
    facts = {
        "stinfer": stinfer.__version__,
        "frozen": is_frozen,
        "python": platform.python_version(),
        "executable": sys.executable,
        "system": platform.platform(),
        "architecture": platform.machine(),
    }
    how = "in a bundle with its own Python" if is_frozen else "on Python"
    found = f"stinfer {stinfer.__version__}, {how} {platform.python_version()}, {platform.platform()}"
    return Check("program", "ok", found, facts=facts)


def check_libraries() -> Check:
    """Load every library that a run needs."""
    versions = {name: _version(name) for name in _REQUIRED}
    missing = [name for name, version in versions.items() if version is None]
    facts = {"versions": versions}
    if missing:
        found = f"{', '.join(missing)} cannot be loaded"
        return Check(
            "libraries", "failed", found, "unpack the bundle again, or pip install 'stinfer[cpu]'", facts
        )
    return Check("libraries", "ok", _listed(versions), facts=facts)


def check_extras() -> Check:
    """Say which optional libraries are there."""
    versions = {name: _version(name) for name in _OPTIONAL}
    absent = [
        f"{name} is not there ({purpose})"
        for name, (_, purpose) in _OPTIONAL.items()
        if versions[name] is None
    ]
    there = _listed({name: version for name, version in versions.items() if version is not None})
    extras = {name: extra for name, (extra, _) in _OPTIONAL.items()}
    found = "; ".join([*([there] if there else []), *absent])
    return Check("extras", "ok", found, facts={"versions": versions, "extra_of": extras})


def _version(name: str) -> str | None:
    """Return the version of a package that can be loaded; None where it cannot."""
    import importlib
    import importlib.metadata
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = importlib.import_module(_MODULES.get(name, name))
        except (ImportError, OSError):
            return None
        # A bundle may be without their metadata, and onnxruntime may be installed as onnxruntime-gpu.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
        with contextlib.suppress(importlib.metadata.PackageNotFoundError, AttributeError):
            return str(getattr(module, "ort", module).__version__)
    return "unknown"


def _listed(versions: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def check_cpu() -> Check:
    """Say what the processor can do, and how much of it may be used."""
    features = machine.cpu_features()
    known = {"avx2": features.avx2, "avx512": features.avx512, "vnni": features.vnni}
    share = machine.cgroup_cores()
    cores, n_machine = machine.cores_allowed(), os.cpu_count()
    facts = {
        "name": machine.cpu_name(),
        "features": known,
        "cores_allowed": cores,
        "cores_of_machine": n_machine,
        "cgroup_cores": share,
    }
    words = {True: "yes", False: "no", None: "unknown"}
    labels = {"avx2": "AVX2", "avx512": "AVX-512", "vnni": "VNNI"}
    shown = ", ".join(f"{labels[name]} {words[there]}" for name, there in known.items())
    granted = "" if share is None else f", a cgroup grants the time of {share:g}"
    found = f"{machine.cpu_name()}: {shown}; {cores} of {n_machine} cores may be used{granted}"
    if platform.machine().lower() in ("x86_64", "amd64") and features.avx2 is False:
        return Check("cpu", "note", f"{found}; without AVX2 encoding is several times slower", facts=facts)
    return Check("cpu", "ok", found, facts=facts)


def check_memory() -> Check:
    """Say how much memory may be taken."""
    memory = machine.memory()
    facts = {"total_bytes": memory.total, "allowed_bytes": memory.allowed, "limited_by": memory.limited_by}
    if memory.allowed is None:
        return Check("memory", "ok", "unknown", facts=facts)
    limit = f", limited by {memory.limited_by}" if memory.limited_by else ""
    found = f"{_size(memory.allowed)} may be used{limit}"
    if memory.allowed < _LITTLE_MEMORY:
        fix = f"allow at least {_size(_LITTLE_MEMORY)}; large banks and slides need more"
        return Check("memory", "note", found, fix, facts)
    return Check("memory", "ok", found, facts=facts)


def check_openslide() -> Check:
    """Say what OpenSlide opens, and let it decode; first of all, before anything else loads it."""
    # Of OpenSlide, for tests of its installation: an image in every compression that it decodes. It looks
    # for this as it is loaded, so it is of no use where that has been.
    untried = "openslide" not in sys.modules
    with _environment("OPENSLIDE_DEBUG", "synthetic") if untried else contextlib.nullcontext():
        import openslide

    version = str(openslide.__library_version__)
    facts: dict[str, Any] = {"version": version, "formats": None, "decoders": None}
    if int(version.split(".")[0]) < 4:
        found = f"OpenSlide {version}, older than 4.0: formats unknown"
        return Check("openslide", "note", found, "install openslide-bin", facts)
    facts["formats"] = list(_FORMATS)
    decoders = ""
    if untried:
        facts["decoders"] = _tried_decoders(openslide)
        decoders = f"; it decodes {', '.join(facts['decoders'])}"
    return Check("openslide", "ok", f"OpenSlide {version}: {', '.join(_FORMATS)}{decoders}", facts=facts)


def _tried_decoders(openslide: Any) -> list[str]:
    """Decode OpenSlide's own test image; raises its error where a decoder does not work."""
    try:
        with openslide.OpenSlide("") as slide:
            slide.read_region((0, 0), 0, slide.dimensions)
            items = {
                key.removeprefix("synthetic.item."): str(value)
                for key, value in slide.properties.items()
                if key.startswith("synthetic.item.")
            }
            images = [value for key, value in slide.properties.items() if key.startswith("synthetic.image[")]
    except openslide.OpenSlideError as error:
        msg = f"OpenSlide cannot decode its own test image: {first_line(error)}"
        raise RuntimeError(msg) from error
    return sorted(items[image] for image in images)


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def check_folder(name: str, folder: Path) -> Check:
    """Write, lock and remove a file, as a run does."""
    from stinfer.lock import locked

    facts: dict[str, Any] = {"path": str(folder.absolute()), "free_bytes": None}
    if folder.exists() and not folder.is_dir():
        raise OutputWriteError(folder, "it is a file, not a folder")
    while not folder.is_dir():
        folder = folder.parent  # a run makes the rest
    probe = folder / f"stinfer-doctor-{os.getpid()}"
    with locked([probe]), written_beside(probe) as partial:
        partial.write_bytes(bytes(1 << 16))
    probe.unlink()
    free = shutil.disk_usage(folder).free
    facts["free_bytes"] = free
    found = f"{folder.absolute()} can be written, {_size(free)} free"
    if free < _LITTLE_SPACE:
        return Check(name, "note", found, "make room: a prediction of all genes may take gigabytes", facts)
    return Check(name, "ok", found, facts=facts)


def check_temporary_folder() -> Check:
    """Say whether there is a folder for temporary files."""
    name = "temporary_folder"
    needed = "only Annoy indexes are unpacked there"
    try:
        folder = Path(tempfile.gettempdir())
        with tempfile.TemporaryFile() as file:
            file.write(bytes(1 << 16))
        free = shutil.disk_usage(folder).free
    except OSError as error:
        found = f"none can be written ({cause_of(error)}); {needed}"
        return Check(
            name, "note", found, "set TMPDIR to a folder that can be", {"path": None, "free_bytes": None}
        )
    facts = {"path": str(folder), "free_bytes": free}
    return Check(name, "ok", f"{folder}, {_size(free)} free; {needed}", facts=facts)


def _size(n_bytes: int) -> str:
    """Write a number of bytes as a person reads it."""
    if n_bytes < 1 << 30:
        return f"{n_bytes / (1 << 20):.0f} MiB"
    return f"{math.floor(n_bytes / (1 << 30) * 10) / 10:g} GiB"
