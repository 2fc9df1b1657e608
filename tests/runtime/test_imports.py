from __future__ import annotations

import ast
import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import stinfer

PACKAGE = Path(stinfer.__file__).parent
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
ALLOWED = {
    "numpy",
    "onnxruntime",
    "h5py",
    "PIL",
    "openslide",
    "click",
    "filelock",
    "threadpoolctl",
    "tqdm",
    "annoy",
    "tifffile",
    "imagecodecs",
    "cryptography",
    "stinfer",
}
# What only a type checker reads.
TYPING_ONLY = {"typing_extensions"}


def loaded_by(code):
    """Run code in a fresh interpreter; return the top-level packages it has loaded."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{n.split('.')[0] for n in sys.modules}})))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    return set(json.loads(done.stdout))


def test_the_runtime_loads_no_machine_learning_stack():
    loaded = loaded_by("import stinfer.cli, stinfer.pipeline, stinfer.inspect_bank")
    assert {"stinfer", "numpy", "onnxruntime", "h5py", "openslide", "PIL", "click"} <= loaded
    heavy = {
        "torch",
        "torchvision",
        "tifffile",
        "imagecodecs",
        "timm",
        "onnx",
        "stinfer_export",
        "matplotlib",
        "pandas",
        "scipy",
        "anndata",
    }
    assert loaded & (heavy | {"annoy", "cryptography", "sklearn", "scanpy", "zarr"}) == set()


def test_the_command_starts_without_loading_what_only_a_run_needs():
    loaded = loaded_by("import stinfer.cli")
    assert {"stinfer", "click"} <= loaded
    assert loaded & {"numpy", "onnxruntime", "h5py", "PIL", "openslide", "tqdm", "filelock"} == set()


def test_the_package_alone_loads_nothing_but_itself():
    loaded = loaded_by("import stinfer")
    assert loaded & (ALLOWED - {"stinfer"}) == set()


@pytest.mark.parametrize("name", MODULES)
def test_modules_import_the_runtimes_dependencies_alone(name):
    tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(str(node.module).split(".")[0])
    assert imported - set(sys.stdlib_module_names) <= ALLOWED | TYPING_ONLY


@pytest.mark.parametrize("name", MODULES)
def test_click_lives_in_the_modules_of_commands_alone(name):
    text = (PACKAGE / f"{name}.py").read_text(encoding="utf-8")
    assert ("import click" in text or "from click" in text) == name.startswith("cli")


@pytest.mark.parametrize("name", ["geometry", "predict"])
def test_arithmetic_imports_numpy_alone(name):
    assert loaded_by(f"import stinfer.{name}") & (ALLOWED - {"stinfer", "numpy"}) == set()


def test_public_names_are_there_on_first_use():
    from stinfer.bank import Bank
    from stinfer.batch import predict_slides
    from stinfer.errors import StInferError
    from stinfer.pipeline import predict_slide

    assert stinfer.Bank is Bank
    assert stinfer.StInferError is StInferError
    assert stinfer.predict_slide is predict_slide
    assert stinfer.predict_slides is predict_slides
    assert {"Bank", "StInferError", "predict_slide", "predict_slides", "__version__"} == set(stinfer.__all__)


SPY = """
import os, sys
os.environ.pop("ORT_DISABLE_TELEMETRY", None)
seen = []
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            seen.append(os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize(
    "code",
    [
        "import stinfer.onnx_runtime",
        "import stinfer.pipeline",
        "from stinfer.doctor import examine; list(examine())",
    ],
)
def test_telemetry_is_off_before_onnx_runtime_is_loaded(code):
    loaded_by(f"{SPY}\n{code}\nassert seen == ['1'], seen")


def test_telemetry_is_off_by_onnx_runtimes_own_call_too():
    code = "import onnxruntime as o; o.disable_telemetry_events = lambda: seen.append(1); seen = []"
    loaded_by(f"{code}\nimport stinfer.onnx_runtime\nassert seen == [1], seen")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'stinfer' has no attribute 'predicts'"):
        stinfer.predicts  # noqa: B018 - looking it up is the test


def test_the_network_is_closed_to_these_tests():
    with socket.socket() as opened, pytest.raises(AssertionError, match="must not use the network"):
        opened.connect(("127.0.0.1", 9))
    with pytest.raises((AssertionError, urllib.error.URLError)):
        urllib.request.urlopen("http://127.0.0.1:9/")
