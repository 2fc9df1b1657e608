"""What `stinfer bench` says of runs: arithmetic and words. How fast anything is, no test says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from stinfer import bench
from stinfer.bench import Run, Spread, lay_out, run_once, summarize
from stinfer.bench_run import peak_bytes, run
from stinfer.cli import main
from stinfer.errors import SettingError
from stinfer.stage_clock import STAGES

DATA = Path(__file__).parents[1] / "data"


def made_up_run(seconds: float, encode_s: float) -> Run:
    return Run(seconds, 1.25, {**dict.fromkeys(STAGES, 0.0), "encode": encode_s}, 100, 500_000_000)


def test_a_spread_by_hand() -> None:
    assert Spread.of([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0)
    assert Spread.of([1.0, 2.0]).to_json() == {"median": 1.5, "lowest": 1.0, "highest": 2.0}


def test_runs_are_summed_up() -> None:
    found = summarize([made_up_run(4.0, 6.0), made_up_run(5.0, 7.0), made_up_run(10.0, 8.0)])
    assert found["n_runs"] == 3
    assert found["n_spots"] == 100
    assert found["seconds"] == {"median": 5.0, "lowest": 4.0, "highest": 10.0}
    assert found["spots_per_second"] == {"median": 20.0, "lowest": 10.0, "highest": 25.0}
    assert found["peak_mb"]["median"] == 500.0
    assert found["stages"] == {"encode": {"median": 7.0, "lowest": 6.0, "highest": 8.0}}
    assert list(lay_out(found)) == [
        "3 runs of 100 places: median (lowest to highest)",
        "whole process              5.00 s  (4.00 to 10.00)",
        "start to first batch       1.25 s  (1.25 to 1.25)",
        "places a second           20.00  (10.00 to 25.00)",
        "peak memory                 500 MB  (500 to 500)",
        "of it, summed over threads:",
        "  encode                   7.00 s  (6.00 to 8.00)",
    ]


def test_a_run_in_a_process_of_its_own_says_what_it_did(tmp_path: Path) -> None:
    moments = iter([1000.0, 1007.0])
    arguments = {
        "slide": str(DATA / "board.png"),
        "bank": str(DATA / "board.h5"),
        "mpp": 5.0,
        "pitch_um": 300,
    }
    found = run_once(arguments, tmp_path, now=lambda: next(moments))
    assert found.seconds == 7.0
    assert found.n_spots > 0
    assert set(found.stages) == set(STAGES)
    assert all(found.stages[stage] > 0 for stage in ("open", "read", "encode", "search", "average", "write"))


def test_what_is_wrong_with_a_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"nowhere\.h5 does not exist"):
        run_once({"slide": str(DATA / "board.png"), "bank": str(tmp_path / "nowhere.h5")}, tmp_path)


def test_two_scales_go_through_json(tmp_path: Path) -> None:
    arguments = json.loads(json.dumps({"slide": str(DATA / "board.png"), "mpp": (5.0, 5.0), "pitch_um": 300}))
    found = run({**arguments, "bank": str(DATA / "board.h5"), "out": str(tmp_path / "o.h5ad")})
    assert found["n_spots"] > 0


def test_memory_is_told_where_the_system_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tmp_path / "status"
    monkeypatch.setattr("stinfer.bench_run._STATUS", status)
    assert peak_bytes() is None
    status.write_text("Name:\tpython\nVmHWM:\t  2048 kB\n")
    assert peak_bytes() == 2 * 2**20


def test_the_command_prints_a_table_or_json(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measure(arguments: dict[str, object], n_runs: int) -> list[Run]:
        asked.append((arguments, n_runs))
        return [made_up_run(4.0, 6.0)] * n_runs

    monkeypatch.setattr(bench, "measure", measure)
    shown = CliRunner().invoke(
        main, ["bench", "a.h5", "b.svs", "--runs", "2", "--mpp", "0.5", "--threads", "1"]
    )
    assert shown.exit_code == 0
    assert shown.output.startswith("2 runs of 100 places")
    assert asked[0][1] == 2
    assert {"bank": "a.h5", "slide": "b.svs", "mpp": 0.5, "threads": 1}.items() <= asked[0][0].items()
    as_json = CliRunner().invoke(main, ["bench", "a.h5", "--json"])
    assert json.loads(as_json.output)["seconds"]["median"] == 4.0
    assert asked[1][0]["slide"] is None
