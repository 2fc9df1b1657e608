"""The bundle on a computer that has nothing: a minimal Debian without Python and network, as another user.

Takes minutes, root, and a network to install from. STINFER_PROOF_BANK names the bank; without it one of
her2st's sections and stain_texture is built.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stinfer.pipeline import predict_slide

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="not root on Linux"),
    pytest.mark.skipif(not shutil.which("debootstrap"), reason="debootstrap is not installed"),
    pytest.mark.skipif(not shutil.which("unshare"), reason="unshare is not installed"),
]

PROJECT = Path(__file__).parents[2]
PLACE = "/media/Station 7, Gewebe für Ω"
USER = "4711:4711"
INSIDE = Path(__file__).parent / "minimal_debian.sh"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A real section, a real slide, and one that tifffile alone reads."""
    shared = Path(os.environ.get("STINFER_DATA") or PROJECT.parent / "shared")
    wanted = {
        "slide.jpg": next(iter(shared.glob("her2st/ST-imgs/C/C5/*.jpg")), shared / "her2st"),
        "spots.tsv": shared / "her2st/ST-spotfiles/C5_selection.tsv",
        "Schnitt Ä 1.svs": shared / "slides/cmu-1-small-region.svs",
    }
    folder = tmp_path_factory.mktemp("data")
    folder.chmod(0o755)  # another user reads it
    for name, source in wanted.items():
        if not source.is_file():
            pytest.skip(f"{source} is not there")
        shutil.copyfile(source, folder / name)
    import numpy as np
    import openslide
    import tifffile

    with openslide.OpenSlide(folder / "Schnitt Ä 1.svs") as slide:
        pixels = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    tifffile.imwrite(folder / "zstd.tif", pixels, compression="zstd", tile=(256, 256), photometric="rgb")
    return folder


@pytest.fixture(scope="module")
def bank(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bank") / "bank.h5"
    given = os.environ.get("STINFER_PROOF_BANK")
    if given:
        return Path(shutil.copyfile(given, path))
    export = [sys.executable, "-c", "from stinfer_export.cli import main; main()"]
    shared = Path(os.environ.get("STINFER_DATA") or PROJECT.parent / "shared")
    subprocess.run([*export, "backbone", "stain_texture", "--out-dir", path.parent], check=True)
    model = path.parent / "stain_texture.onnx"
    chosen = ["--sections", "C2,C3,C4", "--model", model, "--out", path]
    subprocess.run([*export, "bank", "her2st", shared / "her2st", *chosen], check=True)
    return path


@pytest.fixture(scope="module")
def minimal_debian():
    """The root of one; kept, as it takes a while."""
    root = PROJECT / "build/packaging/minimal-debian"
    if not root.is_dir():
        new = root.with_name("minimal-debian-new")
        shutil.rmtree(new, ignore_errors=True)
        new.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["debootstrap", "--variant=minbase", "bookworm", new], check=True)
        new.replace(root)
    assert not list(root.glob("usr/bin/python*"))
    return root


def test_the_bundle_predicts_the_same_on_a_minimal_debian(bank, data, minimal_debian, tmp_path, monkeypatch):
    monkeypatch.chdir(PROJECT)
    make = [sys.executable, "-m", "stinfer_export.packaging", "bundle", "--bank", bank, "--out-dir", tmp_path]
    subprocess.run(make, check=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    out = tmp_path / "out"
    out.mkdir()
    spaces = ["unshare", "--net", "--mount", "--pid", "--fork", "--propagation", "private"]
    arguments = [minimal_debian, archive, data, out, PLACE, USER]
    done = subprocess.run(
        [*spaces, "sh", INSIDE, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(done.stdout)  # noqa: T201  # the proof itself
    assert done.returncode == 0
    for said in ("no python3", "every sum fits", "Read-only file system", "A run would work", "lo:"):
        assert said in done.stdout

    here = tmp_path / "here"
    here.mkdir()
    spots = {"mpp": 0.69, "spots": data / "spots.tsv"}
    predict_slide(data / "slide.jpg", bank, out=here / "spots.h5ad", **spots)
    predict_slide(data / "Schnitt Ä 1.svs", bank, out=here / "grid.h5ad", pitch_um=50, png=["ERBB2"])
    tiff = {"genes": "ERBB2", "ome_tiff": here / "tiff.ome.tif"}
    predict_slide(data / "zstd.tif", bank, out=here / "tiff.h5ad", mpp=0.5, **tiff)
    made = sorted(path.name for path in here.iterdir())
    assert made == ["grid.ERBB2.png", "grid.h5ad", "spots.h5ad", "tiff.h5ad", "tiff.ome.tif"]
    assert sorted(path.name for path in out.iterdir()) == made
    for name in made:
        assert (out / name).read_bytes() == (here / name).read_bytes(), name
