"""Queries a second, recall, memory and time to load of banks of any size, exact and through Annoy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stinfer.bank import Bank
from stinfer.bench import Spread
from stinfer.encoder import Device
from stinfer.neighbors import recall
from stinfer.open_bank import HELD_BYTES
from stinfer_export.bench.child import run_module
from stinfer_export.bench.made_up import K, Size, made_up_queries, write_made_up_bank
from stinfer_export.bench.tables import markdown

N_QUERIES = 4096
# How long a search is measured, at least one block of queries.
SECONDS = 3.0
# Stored values of all references together: 1.6 GB with their columns. Larger banks get fewer a reference;
# where that is less than a measured one has, hardly any: then only the search is measured.
_MAX_STORED = 200_000_000
_LEAST_MEASURED, _HARDLY_ANY = 1000, 50


@dataclass(frozen=True)
class Case:
    """A bank and a way to search it.

    Parameters
    ----------
    n_refs, n_numbers : references, and numbers of an embedding
    search : ``exact`` or ``annoy``
    runs : what the child found, of each repetition
    recall : part of the 50 true neighbors that it finds, by distance
    """

    n_refs: int
    n_numbers: int
    search: str
    runs: list[dict[str, Any]]
    recall: float


def measure(
    model: bytes,
    sizes: Sequence[tuple[int, int]],
    n_rounds: int,
    folder: Path,
    say: Callable[[str], None],
    *,
    annoy_up_to: int,
    device: Device = "cpu",
) -> Iterator[Case]:
    """Measure banks, one after the other; exact and Annoy in turn.

    Parameters
    ----------
    model : ONNX file that the banks carry
    sizes : references and numbers of an embedding, of each bank
    n_rounds : repetitions
    folder : for the banks
    say : told what is going on
    annoy_up_to : numbers of all references together, up to which an index is built, which takes minutes
    device : ``cpu``, or ``cuda``, where the exact search then runs
    """
    for n_refs, n_numbers in sizes:
        say(f"{n_refs:,} references of {n_numbers} numbers")
        n_stored = min(Size.n_stored, _MAX_STORED // n_refs)
        averages = n_stored >= _LEAST_MEASURED
        size = Size(n_refs, n_stored=n_stored if averages else _HARDLY_ANY, n_numbers=n_numbers)
        ways = ["exact", "annoy"] if n_refs * n_numbers <= annoy_up_to else ["exact"]
        path = folder / f"search_{n_refs}_{n_numbers}_{ways[-1]}.h5"
        if not path.exists():
            write_made_up_bank(path, model, size, with_annoy="annoy" in ways)
        queries = made_up_queries(Bank.open(path, HELD_BYTES), N_QUERIES)
        np.save(folder / "queries.npy", queries)
        runs: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        for _ in range(n_rounds):
            for way in ways:
                spec = {
                    "bank": str(path), "device": device, "search": way, "k": K, "averages": averages,
                    "queries": str(folder / "queries.npy"),
                    "seconds": SECONDS, "neighbors": str(folder / f"{way}.npz"),
                }  # fmt: skip
                runs[way].append(run_module("stinfer_export.bench.search_child", spec, folder))
        truth = _distances(folder / "exact.npz")
        for way in ways:
            found = _distances(folder / f"{way}.npz")
            n = min(len(found), len(truth))
            yield Case(n_refs, n_numbers, way, runs[way], recall(found[:n], truth[:n]))


def _distances(path: Path) -> Any:
    with np.load(path) as stored:
        return stored["distances"]


def summarize(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Return medians and spread, ready for JSON."""
    rows = []
    for case in cases:
        names = ("load_s", "per_second", "query_cpu_ms", "average_ms", "peak_bytes")
        figures = {name: [run[name] for run in case.runs if run[name] is not None] for name in names}
        figures["peak_mb"] = [peak / 1e6 for peak in figures.pop("peak_bytes")]
        rows.append(
            {
                "n_refs": case.n_refs,
                "n_numbers": case.n_numbers,
                "search": case.search,
                "recall_50": round(case.recall, 4),
                **{name: Spread.of(values).to_json() for name, values in figures.items() if values},
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out what `summarize` gave as Markdown."""
    header = [
        "references", "numbers", "search", "queries/s", "CPU a query", "recall@50", "load",
        "average 15,000 genes", "peak memory",
    ]  # fmt: skip
    cells = []
    for row in rows:
        peak, average = row.get("peak_mb"), row.get("average_ms")
        cells.append(
            [
                f"{row['n_refs']:,}",
                f"{row['n_numbers']}",
                row["search"],
                f"{row['per_second']['median']:,.0f}",
                f"{row['query_cpu_ms']['median']:.2f} ms",
                f"{row['recall_50']:.3f}",
                f"{row['load_s']['median']:.1f} s",
                "-" if average is None else f"{average['median']:.2f} ms",
                "-" if peak is None else f"{peak['median']:,.0f} MB",
            ]
        )
    return markdown(header, cells)
