"""What `stinfer doctor` says of this machine, and of machines and banks that are broken."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from stinfer import __version__, cuda, doctor, doctor_system, encoder, machine, self_test
from stinfer.checkup import Check, Examination, guarded
from stinfer.cli import main
from stinfer.signing import POLICY

DATA = Path(__file__).parents[1] / "data"
BANK, MAP_BANK = DATA / "board.h5", DATA / "board_map.h5"
# The report's names, which are not changed while its version is 1.
FACTS = {
    "program": {"stinfer", "frozen", "python", "executable", "system", "architecture"},
    "openslide": {"version", "formats", "decoders"},
    "libraries": {"versions"},
    "extras": {"versions", "extra_of"},
    "cpu": {"name", "features", "cores_allowed", "cores_of_machine", "cgroup_cores"},
    "memory": {"total_bytes", "allowed_bytes", "limited_by"},
    "onnxruntime": {"version", "providers", "cuda"},
    "self_test": {
        "provider", "largest_error", "tolerance", "same_twice", "patches_per_second", "patch_px",
    },
    "output_folder": {"path", "free_bytes"},
    "temporary_folder": {"path", "free_bytes"},
    "bank_keys": {"accepted"},
    "bank": {"path", "sha256", "signed_by", "verified"},
    "bank_test": {"provider", "same_twice", "patches_per_second", "mm2_per_second"},
    "defaults": {"provider", "threads", "search", "batch_size"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Speed is not what is tested."""
    monkeypatch.setattr(self_test, "_SECONDS", 0.0)
    monkeypatch.delenv(POLICY, raising=False)
    monkeypatch.chdir(tmp_path)


def report(*arguments: object) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(main, ["doctor", "--json", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, json.loads(result.output)


def test_this_machine_works_and_the_report_has_the_names_it_must(tmp_path: Path) -> None:
    code, found = report("--bank", BANK)
    assert (code, found["schema_version"], found["works"]) == (0, 1, True)
    assert {name: set(check["facts"]) for name, check in found["checks"].items()} == FACTS
    assert all(set(check) == {"status", "found", "fix", "facts"} for check in found["checks"].values())
    assert list(tmp_path.iterdir()) == []
    facts = {name: check["facts"] for name, check in found["checks"].items()}
    assert facts["program"]["stinfer"] == __version__
    assert facts["libraries"]["versions"]["numpy"] == np.__version__
    assert "CPUExecutionProvider" in facts["onnxruntime"]["providers"]
    assert facts["self_test"]["largest_error"] < 1e-3
    assert facts["bank"]["verified"][0] == "format, shapes and finiteness: 30 references x 3 genes"
    assert facts["bank_test"]["same_twice"] is True
    assert facts["bank_test"]["patches_per_second"] > 0
    assert facts["bank_test"]["mm2_per_second"] is None
    assert facts["defaults"] == {
        "provider": facts["self_test"]["provider"],
        "threads": machine.cores_allowed(),
        "search": "exact",
        "batch_size": 32,
    }


def test_a_bank_of_maps_encodes_a_region() -> None:
    """16 cells of 40 µm along a side: 0.41 mm² at a time."""
    code, found = report("--bank", MAP_BANK)
    facts = found["checks"]["bank_test"]["facts"]
    assert code == 0
    assert facts["mm2_per_second"] > 0
    assert facts["patches_per_second"] is None


def test_without_a_bank_its_checks_are_not_there() -> None:
    code, found = report()
    assert (code, set(found["checks"])) == (0, set(FACTS) - {"bank", "bank_test"})
    assert found["checks"]["defaults"]["facts"]["provider"] == "CPUExecutionProvider"


def test_the_table_says_the_same_for_a_person() -> None:
    result = CliRunner().invoke(main, ["doctor", "--bank", str(BANK)])
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0].startswith(f"ok      program           stinfer {__version__}, ")
    assert lines[-1] == "A run would work"
    assert max(map(len, lines)) <= 110 or "/" in max(lines, key=len)


def test_in_a_fresh_process_openslide_decodes_its_own_image(tmp_path: Path) -> None:
    """It looks for that as it is loaded; here it has been, so nothing is claimed."""
    code = (
        "import os; from stinfer import self_test; self_test._SECONDS = 0.0\n"
        "from stinfer.cli import main\n"
        "try:\n    main(['doctor', '--json'])\n"
        "finally:\n    assert 'OPENSLIDE_DEBUG' not in os.environ"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)["checks"]["openslide"]
    assert {"J2K", "YCbCr JPEG", "Tiled JPEG BigTIFF"} <= set(found["facts"]["decoders"])
    assert done.stderr == ""


@pytest.mark.parametrize("package", ["h5py", "onnxruntime", "openslide", "filelock", "PIL"])
def test_a_library_that_is_missing_is_said_and_stops_no_other_check(tmp_path: Path, package: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from stinfer.cli import main\n"
        "main(['doctor', '--json'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    found = json.loads(done.stdout)
    assert found["works"] is False
    installed_as = {"PIL": "pillow", "openslide": "openslide-python"}.get(package, package)
    assert found["checks"]["libraries"]["status"] == "failed"
    assert f"{installed_as} cannot be loaded" in found["checks"]["libraries"]["found"]
    assert found["checks"]["libraries"]["facts"]["versions"][installed_as] is None
    assert set(found["checks"]) == set(FACTS) - {"bank", "bank_test"}
    assert all(check["fix"] for check in found["checks"].values() if check["status"] == "failed")


def test_a_bank_that_was_altered(tmp_path: Path) -> None:
    bank = Path(shutil.copy(BANK, tmp_path / "bank.h5"))
    with h5py.File(bank, "r+") as file:
        file["obsm/embedding"][0, 0] += 1
    code, found = report("--bank", bank)
    assert (code, found["works"]) == (1, False)
    assert [name for name, check in found["checks"].items() if check["status"] == "failed"] == ["bank"]
    assert "its embedding was altered" in found["checks"]["bank"]["found"]
    assert found["checks"]["bank"]["fix"].startswith("do not use it")
    text = CliRunner().invoke(main, ["doctor", "--bank", str(bank)]).output
    assert "\nFAILED  bank " in text
    assert "Try: do not use it" in text
    assert text.splitlines()[-1] == "A run would not work: see bank"


def test_no_bank_at_all(tmp_path: Path) -> None:
    code, found = report("--bank", tmp_path / "nowhere.h5")
    assert code == 1
    assert "does not exist" in found["checks"]["bank"]["found"]


def test_a_bank_that_is_not_signed_where_it_must_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cryptography")
    from stinfer.signing import make_keys, sign_bank

    bank = Path(shutil.copy(BANK, tmp_path / "bank.h5"))
    private, public, key = make_keys(tmp_path / "lab")
    monkeypatch.setenv(POLICY, str(public))
    code, found = report("--bank", bank)
    assert code == 1
    assert "is not accepted" in found["checks"]["bank"]["found"]
    assert found["checks"]["bank_keys"]["facts"] == {"accepted": [key.name]}
    sign_bank(bank, private)
    code, found = report("--bank", bank)
    assert code == 0
    assert found["checks"]["bank"]["facts"]["signed_by"] == key.name
    other = make_keys(tmp_path / "other")[1]
    code, found = report("--bank-key", other)
    assert code == 1
    assert found["checks"]["bank_keys"]["found"] == "no key is accepted, and so no bank"


def test_a_policy_whose_keys_are_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(POLICY, str(tmp_path / "nowhere"))
    code, found = report()
    assert code == 1
    assert "cannot be read" in found["checks"]["bank_keys"]["found"]


def test_a_processor_that_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another patch stands for another processor: one pixel row too dark."""
    patch = self_test.built_in_patch().copy()
    patch[100] //= 2
    monkeypatch.setattr(self_test, "built_in_patch", lambda: patch)
    code, found = report()
    assert code == 1
    check = found["checks"]["self_test"]
    assert check["status"] == "failed"
    assert check["facts"]["largest_error"] > check["facts"]["tolerance"]
    assert "do not use this machine" in check["fix"]


def test_other_bits_the_second_time_are_told_and_stop_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = encoder.Encoder.embed, []

    def unsteady(self: encoder.Encoder, pixels: np.ndarray) -> np.ndarray:
        calls.append(1)
        return real(self, pixels) * np.float32(1 + 1e-6 * len(calls))

    monkeypatch.setattr(encoder.Encoder, "embed", unsteady)
    code, found = report("--bank", BANK)
    assert code == 0
    for name in ("self_test", "bank_test"):
        assert found["checks"][name]["status"] == "note"
        assert "different bits" in found["checks"][name]["found"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    code, found = report("--out-dir", tmp_path / "taken")
    assert code == 1
    assert found["checks"]["output_folder"]["status"] == "failed"
    assert str(tmp_path / "taken") in found["checks"]["output_folder"]["found"]


def test_a_folder_that_the_system_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a bundle on a read-only disk, tried from within; root may write anywhere else."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "touch", refuse)
    code, found = report()
    assert (code, found["checks"]["output_folder"]["status"]) == (1, "failed")
    assert "Read-only file system" in found["checks"]["output_folder"]["found"]


def test_a_folder_that_a_run_would_make_is_not_made(tmp_path: Path) -> None:
    code, found = report("--out-dir", tmp_path / "new" / "folder")
    assert code == 0
    assert f"{tmp_path} can be written" in found["checks"]["output_folder"]["found"]
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")._replace(free=1 << 20)
    monkeypatch.setattr(doctor_system.shutil, "disk_usage", lambda _: usage)
    code, found = report()
    assert code == 0
    assert found["checks"]["output_folder"]["status"] == "note"
    assert "1 MiB free" in found["checks"]["output_folder"]["found"]


def test_no_temporary_folder_is_told_and_stops_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise FileNotFoundError(2, "No usable temporary directory")

    monkeypatch.setattr(doctor_system.tempfile, "gettempdir", refuse)
    code, found = report()
    assert (code, found["checks"]["temporary_folder"]["status"]) == (0, "note")


def test_little_memory_and_an_old_processor_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(16 << 30, 1 << 30, "cgroup"))
    none = machine.CpuFeatures(avx2=False, avx512=False, vnni=False)
    monkeypatch.setattr(machine, "cpu_features", lambda: none)
    monkeypatch.setattr(doctor_system.platform, "machine", lambda: "x86_64")
    code, found = report()
    assert code == 0
    assert found["checks"]["memory"]["found"] == "1 GiB may be used, limited by cgroup"
    assert found["checks"]["memory"]["status"] == found["checks"]["cpu"]["status"] == "note"
    assert "several times slower" in found["checks"]["cpu"]["found"]


def test_cuda_that_is_compiled_in_and_lacks_its_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        def __init__(self, model: bytes, options: object, providers: list[str]) -> None:
            self.real = encoder.ort.RealSession(model, options, providers=["CPUExecutionProvider"])

        def __getattr__(self, name: str) -> object:
            return getattr(self.real, name)

    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(encoder.ort, "RealSession", encoder.ort.InferenceSession, raising=False)
    monkeypatch.setattr(encoder.ort, "InferenceSession", Silent)
    monkeypatch.setattr(encoder.ort, "get_available_providers", lambda: both)
    monkeypatch.setattr(encoder, "cuda_trouble", lambda: "there is no NVIDIA driver")
    code, found = report()
    check = found["checks"]["onnxruntime"]
    assert (code, check["status"]) == (0, "note")
    assert check["facts"]["cuda"] == "ONNX Runtime could not load CUDA: there is no NVIDIA driver"
    assert "or leave it: runs use the CPU" in check["fix"]


@pytest.mark.skipif(sys.platform != "linux", reason="names of Linux's libraries")
def test_what_cuda_lacks_is_said_in_the_systems_words(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def load(name: str, mode: int = 0) -> Any:
        tried.append(Path(name).name)
        if "cuda" in name:
            msg = "libcublasLt.so.13: cannot open shared object file: No such file or directory"
            raise OSError(msg)

    monkeypatch.setattr(cuda.ctypes, "CDLL", load)
    text = cuda.cuda_trouble()
    assert "no NVIDIA driver (libcuda.so.1 cannot be loaded)" in text
    assert "(libcublasLt.so.13: cannot open shared object file: No such file or directory)" in text
    assert tried == ["libcuda.so.1", "libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so"]


def test_a_driver_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        def cuInit(self, flags: int) -> int:
            return 100

    monkeypatch.setattr(cuda.ctypes, "CDLL", lambda *_, **__: Library())
    assert cuda.cuda_trouble() == "the NVIDIA driver finds no GPU that it can use (cuInit gives 100)"


def test_frozen_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor_system.check_program().facts["frozen"] is False
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    found = doctor_system.check_program()
    assert found.facts["frozen"] is True
    assert "in a bundle with its own Python" in found.found


def test_a_package_without_its_metadata_has_its_own_word_for_its_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a bundle, or with onnxruntime-gpu in place of onnxruntime."""
    import importlib.metadata

    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    versions = doctor_system.check_libraries().facts["versions"]
    assert versions["numpy"] == np.__version__
    assert None not in versions.values()


def test_a_bug_in_a_check_is_not_taken_for_a_machine_that_is_broken() -> None:
    def look() -> Check:
        raise KeyError

    with pytest.raises(KeyError):
        guarded("x", look)


@pytest.mark.parametrize(("statuses", "works"), [(["ok", "note"], True), (["ok", "failed", "note"], False)])
def test_only_what_has_failed_stops_a_run(statuses: list[Any], works: bool) -> None:  # noqa: FBT001
    checks = tuple(Check(str(i), status, "found") for i, status in enumerate(statuses))
    assert Examination(checks).works is works


def test_examine_is_one_call_in_python() -> None:
    checks = list(doctor.examine(MAP_BANK))
    assert [check.name for check in checks][-3:] == ["bank", "bank_test", "defaults"]
    assert Examination(tuple(checks)).works


def test_the_patch_is_the_same_everywhere() -> None:
    patch = self_test.built_in_patch()
    assert (patch.shape, patch.dtype) == ((224, 224, 3), np.uint8)
    # Row 0, column 0: 256 + 196 from the nucleus' middle, so stroma, less 0.
    assert patch[0, 0].tolist() == [225, 150, 195]
    # Row 16, column 14, the middle of a nucleus: 7 * 16 + 13 * 14 + 16 * 14 // 8 = 322 = 10 * 31 + 12.
    assert patch[16, 14].tolist() == [110 - 12, 70 - 12, 150 - 12]
