"""Proofs at full size: memory of large slides and of many, kills and full disks. Minutes each.

``pytest -m slow -s tests/contract/test_scale.py`` prints what was measured.
"""

from __future__ import annotations

import importlib.util
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest

from stinfer_export.bank_builder import build_bank
from stinfer_export.bank_plan import BankPlan
from stinfer_export.datasets import her2st
from stinfer_export.demo.write import write_demo_data
from stinfer_export.export_all import export_backbone

_SPEC = importlib.util.spec_from_file_location("big_slide", Path(__file__).parent / "big_slide.py")
big_slide = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(big_slide)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc"),
]
BACKBONES = {"stain_texture": 800, "resnet18": 1000}  # and what a run may take, MB

# Small regions make many steps of a small slide; what a run takes is told as it ends.
RUN = """
import sys
from pathlib import Path
from stinfer import feature_map
feature_map.ENCODED_PX = int(sys.argv.pop(1)) or feature_map.ENCODED_PX
from stinfer.cli import run_main
try:
    run_main()
finally:
    print([line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")])
"""


@pytest.fixture(scope="module")
def banks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Banks of the demo's sections: resnet18 with weights that are random, stain_texture with none."""
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    folder = tmp_path_factory.mktemp("banks")
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet18", pretrained=False).state_dict(), folder / "resnet18.pth")
    data = write_demo_data(folder / "data")
    found = {}
    for name in BACKBONES:
        model = export_backbone(name, folder / "resnet18.pth" if name == "resnet18" else None, folder)
        plan = BankPlan(her2st.NAME, her2st.PITCH_UM, her2st.SPOT_DIAMETER_UM)
        found[name] = build_bank(her2st.iter_sections(data.folder), plan, [model], folder / f"{name}.h5").path
    return found


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Path]]:
    folder = tmp_path_factory.mktemp("slides")
    found = {}
    for side_px in (60_000, 30_000, 8_000):
        found[side_px] = folder / f"slide{side_px}.tif"
        big_slide.write_slide(found[side_px], side_px, tissue_part=0.8 if side_px < 10_000 else 0.4)
    yield found
    shutil.rmtree(folder)


def command(*arguments: object, encoded_px: int = 0) -> list[str]:
    return [sys.executable, "-W", "error", "-c", RUN, str(encoded_px), *map(str, arguments), "--quiet"]


def run(*arguments: object, encoded_px: int = 0) -> tuple[float, float]:
    """Run the command; return its peak memory in MB and its seconds."""
    start = time.monotonic()
    done = subprocess.run(
        command(*arguments, encoded_px=encoded_px), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    kilobytes = int(re.search(r"VmHWM:\\t *(\d+) kB", done.stdout)[1])
    return kilobytes * 1024 / 1e6, time.monotonic() - start


def tell(text: str) -> None:
    """Show what was measured, with ``-s``."""
    sys.stdout.write(f"{text}\n")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_memory_does_not_grow_with_the_slide(
    tmp_path: Path, banks: dict[str, Path], slides: dict[int, Path], backbone: str
) -> None:
    """60,000 x 60,000 px with tissue on 0.16 of it (36 mm²), predicted every 22 µm, and a quarter of that."""
    peak_mb = {}
    for side_px in (30_000, 60_000):
        out = tmp_path / f"{side_px}.h5ad"
        rest = ["--bank", banks[backbone], "--pitch-um", 22, "--genes", "all", "--out", out]
        peak_mb[side_px], seconds = run(slides[side_px], *rest)
        size_mb = out.stat().st_size / 1e6
        tell(
            f"{backbone}, {side_px} px: {peak_mb[side_px]:.0f} MB, {seconds:.0f} s, {size_mb:.0f} MB of h5ad"
        )
    assert peak_mb[60_000] <= BACKBONES[backbone]
    assert peak_mb[60_000] <= 1.1 * peak_mb[30_000]


def cell_bytes(path: Path) -> int:
    """Return how much the cells of a map are: a checkpoint that holds all of them is a little larger."""
    with h5py.File(path) as file:
        return int(file["X"].nbytes)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_twenty_kills_do_not_change_a_byte(
    tmp_path: Path, banks: dict[str, Path], slides: dict[int, Path], backbone: str
) -> None:
    def arguments(folder: Path) -> list[object]:
        folder.mkdir(exist_ok=True)
        outputs = ["--csv", folder / "p.csv", "--save-map", folder / "p.map.h5", "--png", "ERBB2"]
        rest = ["--bank", banks[backbone], "--pitch-um", 30, "--out", folder / "p.h5ad", *outputs]
        return [slides[8_000], *rest]

    _, seconds = run(*arguments(tmp_path / "whole"), encoded_px=480)
    whole = contents(tmp_path / "whole")
    folder = tmp_path / "killed"
    kept = folder / "p.h5ad.checkpoint"
    rng, n_kept = random.Random(0), []
    # Fourteen while it encodes, at all stages; six while it searches and writes, if it has not ended before.
    shares = [*sorted(rng.uniform(0, 0.95) for _ in range(14)), *[1.0] * 6]
    full_bytes = cell_bytes(tmp_path / "whole" / "p.map.h5")
    for share in shares:
        child = subprocess.Popen(
            command(*arguments(folder), encoded_px=480), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        while child.poll() is None and (kept.stat().st_size if kept.exists() else 0) < share * full_bytes:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1 if share < 1 else 0.3 * seconds))
        child.send_signal(signal.SIGKILL)
        _, said = child.communicate()
        assert child.returncode in (0, -signal.SIGKILL), said
        n_kept.append(kept.stat().st_size if kept.exists() else 0)
        if child.returncode == 0:
            assert contents(folder) == whole
            shutil.rmtree(folder)
    run(*arguments(folder), encoded_px=480)
    assert contents(folder) == whole
    tell(f"{backbone}: {seconds:.0f} s uninterrupted; bytes kept at each of {len(shares)} kills: {n_kept}")


TEN = """
import sys
from pathlib import Path
import stinfer
from stinfer import batch
real = batch._predict
def predict(*arguments):
    found = real(*arguments)
    status = Path("/proc/self/status").read_text().splitlines()
    print(found.outcome, next(line for line in status if line.startswith("VmRSS")).split()[1], flush=True)
    return found
batch._predict = predict
bank, out, *slides = sys.argv[1:]
stinfer.predict_slides(slides, bank, out_dir=out, pitch_um=30)
"""


@pytest.mark.parametrize("backbone", BACKBONES)
def test_memory_does_not_climb_from_slide_to_slide(
    tmp_path: Path, banks: dict[str, Path], backbone: str
) -> None:
    sides_px = [6000, 7000, 5000, 7000, 6500, 5500, 7000, 6000, 5000, 7000]
    slides = [tmp_path / f"slide{number}.tif" for number in range(10)]
    for number, (slide, side_px) in enumerate(zip(slides, sides_px, strict=True)):
        big_slide.write_slide(slide, side_px, tissue_part=0.9, seed=number)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", TEN, banks[backbone], tmp_path / "out", *slides],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [outcome for outcome, _ in rows] == ["done"] * 10
    rss_mb = [int(kilobytes) * 1024 / 1e6 for _, kilobytes in rows]
    tell(f"{backbone}: MB after each slide {[round(value) for value in rss_mb]}")
    assert rss_mb[9] <= 1.05 * rss_mb[1]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
@pytest.mark.parametrize("moment", ["encoding", "the map and the neighbors", "the prediction"])
def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(
    tmp_path: Path, banks: dict[str, Path], slides: dict[int, Path], moment: str
) -> None:
    def arguments(folder: Path) -> list[object]:
        outputs = ["--out", folder / "p.h5ad", "--save-map", folder / "p.map.h5"]
        return [slides[8_000], "--bank", banks["stain_texture"], "--pitch-um", 30, *outputs]

    whole = tmp_path / "whole"
    whole.mkdir()
    run(*arguments(whole), encoded_px=480)
    expected = contents(whole)
    n_map = len(expected["p.map.h5"])
    room = {"encoding": n_map // 3, "the map and the neighbors": n_map * 3 // 2}.get(moment)
    if room is None:
        # Checkpoint and map, the neighbors of 2,809 places at k = 63, and half of the prediction.
        room = cell_bytes(whole / "p.map.h5") + n_map + 2809 * 63 * 12 + len(expected["p.h5ad"]) // 2
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        done = subprocess.run(
            command(*arguments(disk), encoded_px=480), capture_output=True, text=True, check=False
        )
        tell(f"full at {moment}: {room} bytes\n{done.stderr}")
        assert done.returncode == 1
        assert "No space left on device" in done.stderr
        assert "run the same command again to go on there" in done.stderr
        assert contents(disk).keys() == {"p.h5ad.checkpoint"}
        subprocess.run(["mount", "-o", "remount,size=1g", disk], check=True)
        done = subprocess.run(
            command(*arguments(disk), encoded_px=480), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "going on from" in done.stderr
        assert contents(disk) == expected
    finally:
        subprocess.run(["umount", disk], check=True)
