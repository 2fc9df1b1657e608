"""What the benchmarks make of their measurements: arithmetic, tables and their place in the README."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from stinfer.bank import Bank
from stinfer.bench import Run
from stinfer.contract import MapTraits, ModelCard
from stinfer.errors import SettingError
from stinfer.spots import read_spots
from stinfer.stage_clock import STAGES
from stinfer_export.bench import area, backbones, search
from stinfer_export.bench.made_up import Size, made_up_queries, write_made_up_bank
from stinfer_export.bench.subjects import BenchSlide, Model, find_models, write_places
from stinfer_export.bench.tables import insert, markdown, write_json
from stinfer_export.cli import main
from stinfer_export.export_all import export_backbone


def model(precision: str = "fp32") -> Model:
    traits = MapTraits(2, (0.0, 0.0))
    card = ModelCard("resnet18.a1_in1k", 224, 512, 512, 32, "", precision, map_traits=traits, map_refusal="")
    return Model(Path("resnet18.onnx"), card)


def one_run(seconds: float, n_spots: int) -> Run:
    return Run(seconds, 1.5, dict.fromkeys(STAGES, 0.5), n_spots, 800_000_000)


def test_ratios_are_taken_within_a_round() -> None:
    # 1000 patches in 10 s, ONNX Runtime alone in 8 s, PyTorch in 20 s and 16 s; then all at half speed.
    rounds = [
        backbones.Round(one_run(10.0, 1000), 125.0, 50.0, 62.5),
        backbones.Round(one_run(20.0, 1000), 62.5, 25.0, 31.25),
    ]
    (row,) = backbones.summarize([(model(), rounds)])
    assert row["model"] == "resnet18 fp32"
    assert row["run_per_second"] == {"median": 75.0, "lowest": 50.0, "highest": 100.0}
    assert row["overhead"] == {"median": 1.25, "lowest": 1.25, "highest": 1.25}
    assert row["times_eager"]["median"] == 2.0
    assert row["times_channels_last"]["median"] == 1.6
    assert backbones.table([row]).splitlines()[2] == (
        "| resnet18 fp32 | 1,000 | 37.5 ± 12.5 | 46.9 ± 15.6 | 93.8 ± 31.2 | **75.0 ± 25.0** | 2.00 ± 0.00 "
        "| 1.25 ± 0.00 | 1.50 ± 0.00 s | 800 ± 0 MB |"
    )


def test_a_model_that_is_not_of_timm_is_compared_with_onnx_runtime_alone() -> None:
    (row,) = backbones.summarize([(model(), [backbones.Round(one_run(10.0, 1000), 125.0, None, None)])])
    assert "times_eager" not in row
    assert (
        backbones.table([row]).splitlines()[2].startswith("| resnet18 fp32 | 1,000 | - | - | 125.0 ± 0.0 |")
    )


def test_seconds_for_a_square_centimetre() -> None:
    # A quarter of a cm²; regions of 2 and of 1 million px.
    work = area.Work(0.25, ((1000, 2000), (1000, 1000)))
    assert work.n_px == 3_000_000
    (row,) = area.summarize([(model("int8"), work, [area.Round(one_run(11.0, 100), 10.0)])])
    assert row["run_s_per_cm2"]["median"] == 44.0
    assert row["ort_s_per_cm2"]["median"] == 40.0
    assert row["overhead"]["median"] == 1.1
    # 0.25 cm² at 0.6875 µm per px are 52.9 million px.
    assert (
        area.table([row]).splitlines()[2]
        == "| resnet18 int8 | 0.25 cm² | 44.0 | 40.0 | 1.10 | 0.06 | 800 MB |"
    )


def test_searches_are_summed_up() -> None:
    runs = [
        {"load_s": s, "per_second": 1000 / s, "query_cpu_ms": 2 * s, "average_ms": 0.5, "peak_bytes": 3e8}
        for s in (1.0, 2.0, 4.0)
    ]
    # Of a bank whose rows hold hardly anything, on a system that does not tell what memory a process held.
    bare = [{**run, "average_ms": None, "peak_bytes": None} for run in runs]
    cases = [search.Case(13_620, 16, "exact", runs, 1.0), search.Case(10**6, 512, "annoy", bare, 0.9)]
    rows = search.summarize(cases)
    assert rows[0]["per_second"] == {"median": 500.0, "lowest": 250.0, "highest": 1000.0}
    assert search.table(rows).splitlines()[2:] == [
        "| 13,620 | 16 | exact | 500 | 4.00 ms | 1.000 | 2.0 s | 0.50 ms | 300 MB |",
        "| 1,000,000 | 512 | annoy | 500 | 4.00 ms | 0.900 | 2.0 s | - | - |",
    ]


def test_a_table_takes_the_place_of_the_former(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# A\n<!-- bench:area -->\nold\n<!-- /bench:area -->\nend\n", encoding="utf-8")
    table = markdown(["a", "b"], [["1", "2"]])
    assert table == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    insert(readme, "area", table)
    whole = f"# A\n<!-- bench:area -->\n{table}\n<!-- /bench:area -->\nend\n"
    assert readme.read_text(encoding="utf-8") == whole
    insert(readme, "area", table)
    assert readme.read_text(encoding="utf-8") == whole
    with pytest.raises(SettingError, match="has not the lines"):
        insert(readme, "search", table)


def test_the_machine_is_recorded_beside_the_figures(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "area.json", {"area": [{"model": "a"}]})
    found = json.loads((tmp_path / "new" / "area.json").read_text(encoding="utf-8"))
    assert found["area"] == [{"model": "a"}]
    assert found["machine"]["cores"] >= 1
    assert "onnxruntime" in found["software"]


def test_a_made_up_bank_is_a_bank(tmp_path: Path) -> None:
    texture = export_backbone("stain_texture", None, tmp_path).read_bytes()
    size = Size(n_refs=200, n_genes=40, n_stored=10)
    write_made_up_bank(tmp_path / "bank.h5", texture, size)
    bank = Bank.open(tmp_path / "bank.h5")
    assert (bank.n_refs, len(bank.genes), bank.embedding.shape) == (200, 40, (200, 16))
    assert (np.diff(bank.expression.indptr) == 10).all()
    queries = made_up_queries(bank, 100)
    assert queries.shape == (100, 16)
    # The first and the 64th query are references.
    embedding = bank.embedding[:]
    for query in queries[[0, 63]]:
        assert np.abs(embedding - query).max(axis=1).min() < 1e-5


def test_places_lie_on_the_tissue_and_are_read_back(tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.full((400, 400, 3), 245, dtype=np.uint8)
    pixels[100:300, 100:300] = (180, 90, 160)
    Image.fromarray(pixels).save(tmp_path / "slide.png")
    places = BenchSlide(tmp_path / "slide.png", 2.0).places(100)
    assert 80 <= len(places) <= 120
    assert places.min() > 90
    assert places.max() < 310
    write_places(tmp_path / "places.csv", places)
    np.testing.assert_allclose(read_spots(tmp_path / "places.csv", (400, 400)).centers_l0, places)


def test_models_that_are_there_are_taken_and_unknown_ones_refused(tmp_path: Path) -> None:
    said: list[str] = []
    (found,) = find_models(tmp_path, ["stain_texture"], said.append)
    assert found.label == "stain_texture fp32"
    assert len(said) == 1
    assert find_models(tmp_path, ["stain_texture"], said.append) == [found]
    assert len(said) == 1
    (tmp_path / "other.onnx").write_bytes(b"no model")
    assert find_models(tmp_path, ["stain_texture"], said.append) == [found]
    with pytest.raises(SettingError, match="no model of mobilenetv2_100"):
        find_models(tmp_path, ["mobilenetv2_100"], said.append)


@pytest.mark.parametrize("name", ["backbones", "area", "search"])
def test_every_benchmark_says_what_it_does(name: str) -> None:
    found = CliRunner().invoke(main, ["bench", name, "--help"])
    assert found.exit_code == 0
    assert f"Example: stinfer-export bench {name}" in found.output
