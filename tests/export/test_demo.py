from __future__ import annotations

import csv
import errno
import gzip
import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openslide
import pytest
from PIL import Image

from stinfer.contract import F64, I64, U8
from stinfer.errors import OutputExistsError, OutputWriteError
from stinfer_export.datasets import her2st
from stinfer_export.demo import DemoData, write, write_demo_data
from stinfer_export.demo.counts import PROGRAMS
from stinfer_export.demo.render import draw_staining
from stinfer_export.demo.tissue import GRID_UM, REGIONS

_SPEC = importlib.util.spec_from_file_location("cli_project", Path(__file__).parent / "cli_project.py")
cli_project = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(cli_project)

REFERENCE_UM_PER_PX = 200 / 290
SPOT_RADIUS_PX = 72  # 50 µm
SECTIONS = ("S1", "S2", "S3")


@dataclass
class Counts:
    ids: list[str]
    genes: list[str]
    values: I64

    def share(self, program: str) -> F64:
        of_program = np.isin(self.genes, PROGRAMS[program])
        return np.asarray(self.values[:, of_program].sum(axis=1) / self.values.sum(axis=1))


def read_counts(path: Path) -> Counts:
    rows = [line.split("\t") for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    assert rows[0][0] == ""
    # int() refuses what is no whole number.
    values = np.array([[int(cell) for cell in row[1:]] for row in rows[1:]])
    return Counts([row[0] for row in rows[1:]], rows[0][1:], values)


def read_spots(path: Path, delimiter: str) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def selection(demo: DemoData, section: str) -> list[dict[str, str]]:
    return read_spots(demo.folder / "ST-spotfiles" / f"{section}_selection.tsv", "\t")


def counts_of(demo: DemoData, section: str) -> Counts:
    return read_counts(demo.folder / "ST-cnts" / f"{section}.tsv.gz")


def picture(demo: DemoData, section: str) -> U8:
    (path,) = (demo.folder / "ST-imgs" / "S" / section).iterdir()
    with Image.open(path) as image:
        return np.asarray(image)


def column(rows: list[dict[str, str]], name: str) -> F64:
    return np.array([float(row[name]) for row in rows])


def joined(demo: DemoData, section: str) -> tuple[Counts, F64]:
    """Counts of the spots that both files have, and their centers in px."""
    centers = {
        f"{s['x']}x{s['y']}": (float(s["pixel_x"]), float(s["pixel_y"])) for s in selection(demo, section)
    }
    counts = counts_of(demo, section)
    rows = [row for row, name in enumerate(counts.ids) if name in centers]
    ids = [counts.ids[row] for row in rows]
    return Counts(ids, counts.genes, counts.values[rows]), np.array([centers[name] for name in ids])


def true_composition(seed: int, name: str, centers_um: F64) -> F64:
    """Lay the section out again and measure every disc over the whole grid, as the product does not."""
    _, seeds = write.section_seeds(seed)
    tissue = write.plan_section(name, seeds[name]).tissue
    y, x = (np.indices(tissue.inside.shape) + 0.5) * GRID_UM
    shares = []
    for center_x, center_y in centers_um:
        disc = ((x - center_x) ** 2 + (y - center_y) ** 2 <= 50.0**2) & tissue.inside
        shares.append(tissue.composition[:, disc].mean(axis=1))
    return np.array(shares)


def disc_pixels(pixels: U8, center: F64) -> F64:
    x, y = np.round(center).astype(int)
    window = pixels[y - SPOT_RADIUS_PX : y + SPOT_RADIUS_PX, x - SPOT_RADIUS_PX : x + SPOT_RADIUS_PX]
    down, right = np.indices(window.shape[:2]) - SPOT_RADIUS_PX
    return np.asarray(window[np.hypot(down, right) < SPOT_RADIUS_PX], np.float64)


def correlation(a: F64, b: F64) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoData:
    return write_demo_data(tmp_path_factory.mktemp("demo") / "data", seed=0)


def test_files_are_those_of_her2st_and_a_slide(demo: DemoData) -> None:
    expected = {"demo_slide.tif", "demo_slide_spots.csv", "demo_slide_truth.tsv.gz"}
    for section in SECTIONS:
        expected |= {
            f"ST-imgs/S/{section}/{section}_HE.jpg",
            f"ST-cnts/{section}.tsv.gz",
            f"ST-spotfiles/{section}_selection.tsv",
        }
    found = {path.relative_to(demo.folder).as_posix() for path in demo.folder.rglob("*") if path.is_file()}
    assert found == expected
    assert demo.sections == SECTIONS
    assert {demo.slide.name, demo.slide_spots.name, demo.slide_truth.name} < expected
    assert [path.name for path in demo.folder.parent.iterdir()] == ["data"]
    assert sum(path.stat().st_size for path in demo.folder.rglob("*") if path.is_file()) < 40e6


def test_same_seed_writes_the_same_bytes_without_torch_into_an_empty_folder_too(
    demo: DemoData, tmp_path: Path
) -> None:
    again = cli_project.without_torch("demo-data", tmp_path)

    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout == f"{tmp_path}: sections S1, S2, S3; slide {tmp_path / 'demo_slide.tif'}\n"
    assert [section.name for section in her2st.iter_sections(tmp_path)] == ["S1", "S2", "S3"]
    assert hashes(tmp_path) == hashes(demo.folder)


def test_another_seed_changes_every_file(demo: DemoData, tmp_path: Path) -> None:
    other = hashes(write_demo_data(tmp_path / "other", seed=1).folder)
    for name, digest in hashes(demo.folder).items():
        assert other[name] != digest, name


@pytest.mark.parametrize("section", SECTIONS)
def test_a_pitch_is_290_px_both_ways(demo: DemoData, section: str) -> None:
    spots = selection(demo, section)
    assert list(spots[0]) == ["x", "y", "new_x", "new_y", "pixel_x", "pixel_y", "selected"]
    assert {spot["selected"] for spot in spots} == {"1"}
    for axis in "xy":
        new, pixel = column(spots, f"new_{axis}"), column(spots, f"pixel_{axis}")
        slope, offset = np.polyfit(new, pixel, 1)
        assert slope == pytest.approx(290, abs=0.01)
        assert offset == pytest.approx(-290, abs=0.1)
        off_grid = np.abs(new - [int(spot[axis]) for spot in spots])
        assert 0.01 < off_grid.mean() < off_grid.max() <= 0.08 + 1e-9


@pytest.mark.parametrize("section", SECTIONS)
def test_counts_are_molecules_and_rows_differ_from_the_spots(demo: DemoData, section: str) -> None:
    counts = counts_of(demo, section)
    selected = {f"{spot['x']}x{spot['y']}" for spot in selection(demo, section)}
    assert len(selected - set(counts.ids)) == 2
    assert len(set(counts.ids) - selected) == 1
    assert len(selected) > 90
    assert counts.values.min() == 0
    assert counts.values.any(axis=0).all()
    depth = counts.values.sum(axis=1)
    assert 4500 < np.median(depth) < 5500
    assert np.percentile(depth, 5) > 2500
    assert np.percentile(depth, 95) < 9500
    # More than Poisson noise: the variance of a housekeeping gene beyond what depth explains.
    actin = counts.values[:, counts.genes.index("ACTB")] / depth * 5000
    assert actin.var() > 2 * actin.mean()


def test_gene_sets_differ_between_sections_in_rare_genes_alone(demo: DemoData) -> None:
    sets = [set(counts_of(demo, section).genes) for section in SECTIONS]
    assert len({frozenset(genes) for genes in sets}) == 3
    shared = sets[0] & sets[1] & sets[2]
    assert (sets[0] | sets[1] | sets[2]) - shared <= set(PROGRAMS["rare"])
    assert len(shared) > 185
    symbols = [gene for genes in PROGRAMS.values() for gene in genes]
    assert len(symbols) == len(set(symbols))


def test_expression_follows_the_tissue_under_the_spot(demo: DemoData) -> None:
    for section in SECTIONS:
        counts, centers_px = joined(demo, section)
        truth = true_composition(0, section, centers_px * REFERENCE_UM_PER_PX)
        for region, name in enumerate(REGIONS):
            assert correlation(counts.share(name), truth[:, region]) > 0.95, (section, name)
            assert abs(correlation(counts.share("noise"), truth[:, region])) < 0.35, (section, name)


def test_the_slides_truth_follows_its_tissue(demo: DemoData) -> None:
    counts, spots = read_counts(demo.slide_truth), read_spots(demo.slide_spots, ",")
    assert list(spots[0]) == ["id", "x", "y"]
    assert [spot["id"] for spot in spots] == counts.ids
    centers_px = np.stack([column(spots, "x"), column(spots, "y")], axis=1)
    for axis in (0, 1):
        assert set(np.diff(np.unique(centers_px[:, axis]))) == {400.0}
    truth = true_composition(0, "demo_slide", centers_px * 0.5)
    for region, name in enumerate(REGIONS):
        assert correlation(counts.share(name), truth[:, region]) > 0.95, name


def test_the_image_shows_what_the_expression_says(demo: DemoData) -> None:
    for section in SECTIONS:
        counts, centers_px = joined(demo, section)
        pixels = picture(demo, section)
        discs = [disc_pixels(pixels, center) for center in centers_px]
        # Red is what hematoxylin takes away and eosin leaves.
        nuclei = np.array([(disc[:, 0] < 130).mean() for disc in discs])
        cellular = counts.share("tumor") + counts.share("lymphocyte")
        assert correlation(nuclei, cellular) > 0.85, section
        green = np.array([disc[:, 1].mean() for disc in discs])
        assert correlation(green, counts.share("fat")) > 0.75, section
        # The same image read a pitch beside says less: places and pixels belong together.
        beside = [disc_pixels(pixels, np.clip(center - 290, 100, None)) for center in centers_px]
        shifted = np.array([(disc[:, 0] < 130).mean() for disc in beside])
        assert correlation(shifted, cellular) < 0.5, section


def test_tissue_is_darker_and_more_saturated_than_glass(demo: DemoData) -> None:
    for section in SECTIONS:
        pixels = picture(demo, section)
        assert pixels.shape == (3480, 3480, 3)
        glass = pixels[:60, :60].reshape(-1, 3).astype(np.float64)
        assert glass.mean() > 228
        assert 0.3 < glass.std(axis=0).max() < 3
        _, centers_px = joined(demo, section)
        for center in centers_px:
            disc = disc_pixels(pixels, center)
            assert disc.mean() < glass.mean() - 3
            assert np.ptp(disc, axis=1).mean() > np.ptp(glass, axis=1).mean()


def test_nuclei_are_blue_and_collagen_is_pink(demo: DemoData) -> None:
    counts, centers_px = joined(demo, "S1")
    pixels = picture(demo, "S1")
    stroma = disc_pixels(pixels, centers_px[counts.share("stroma").argmax()])
    collagen = stroma[stroma[:, 0] > 150].mean(axis=0)
    assert collagen[0] > collagen[2] > collagen[1] + 20
    tumor = disc_pixels(pixels, centers_px[counts.share("tumor").argmax()])
    nucleus = tumor[tumor[:, 0] < 110].mean(axis=0)
    assert nucleus[2] > nucleus[0] + 30 > nucleus[1]


def test_staining_differs_between_sections(demo: DemoData) -> None:
    means = []
    for section in SECTIONS:
        _, centers_px = joined(demo, section)
        pixels = picture(demo, section)
        means.append(np.concatenate([disc_pixels(pixels, center) for center in centers_px]).mean(axis=0))
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(means[first] - means[second]).max() > 4


def test_openslide_reads_scale_and_pyramid(demo: DemoData) -> None:
    with openslide.OpenSlide(demo.slide) as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5, abs=1e-6)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.5, abs=1e-6)
        assert slide.level_dimensions == ((4800, 4800), (2400, 2400), (1200, 1200), (600, 600))
        assert slide.properties["openslide.level[0].tile-width"] == "256"
        for level in (1, 2, 3):
            side, factor = 256, 2**level
            whole = slide.read_region((1104, 1504), 0, (side * factor, side * factor)).convert("RGB")
            blocks = np.asarray(whole, np.float64).reshape(side, factor, side, factor, 3).mean(axis=(1, 3))
            region = slide.read_region((1104, 1504), level, (side, side)).convert("RGB")
            reduced = np.asarray(region, np.float64)
            # JPEG halves the resolution of color on every level: single pixels agree in brightness alone.
            luma = (0.299, 0.587, 0.114)
            error = np.abs((reduced - blocks) @ luma).mean()
            assert error < 4
            assert np.abs((reduced[:, 1:] - blocks[:, :-1]) @ luma).mean() > 3 * error
            assert np.abs((reduced[1:] - blocks[:-1]) @ luma).mean() > 3 * error
            np.testing.assert_allclose(reduced.mean(axis=(0, 1)), blocks.mean(axis=(0, 1)), atol=0.5)


def test_the_slides_tiles_hold_the_rendered_colors(demo: DemoData) -> None:
    with openslide.OpenSlide(demo.slide) as slide:
        corner = np.asarray(slide.read_region((0, 0), 0, (64, 64)).convert("RGB"), np.float64)
        last = np.asarray(slide.read_region((4736, 4736), 0, (64, 64)).convert("RGB"), np.float64)
    _, seeds = write.section_seeds(0)
    plan = write.plan_section("demo_slide", seeds["demo_slide"])
    glass = draw_staining(np.random.Generator(np.random.PCG64(plan.seeds[1]))).glass
    np.testing.assert_allclose(corner.mean(axis=(0, 1)), glass, atol=1.5)
    np.testing.assert_allclose(last.mean(axis=(0, 1)), glass, atol=1.5)


def test_a_folder_with_something_in_it_is_refused_and_left(tmp_path: Path) -> None:
    kept = tmp_path / "results" / "mine.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    for taken in (kept.parent, kept):
        with pytest.raises(OutputExistsError, match=taken.name):
            write_demo_data(taken)
    assert list(tmp_path.rglob("*")) == [kept.parent, kept]
    assert kept.read_text() == "mine"


@pytest.mark.parametrize("is_there", [False, True])
def test_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_there: bool
) -> None:
    def fail(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write, "render", fail)
    folder = tmp_path / "data"
    if is_there:
        folder.mkdir()
    with pytest.raises(OutputWriteError, match="No space left"):
        write_demo_data(folder)
    assert list(tmp_path.rglob("*")) == ([folder] if is_there else [])
