"""The graphs that average on the GPU, also run by the CPU, against double precision; if there is no room."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

import stinfer
from stinfer import gpu_averaging, h5ad, open_bank
from stinfer.averaging import gene_groups
from stinfer.coverage import Coverage
from stinfer.gpu import CPU, CUDA, NoRoomError
from stinfer.gpu_averaging import GpuAverager, is_worth
from stinfer.gpu_search import GpuSearch
from stinfer.neighbor_file import Neighbors
from stinfer.open_bank import OpenBank
from stinfer.predict import expression_from_neighbors, spread_from_neighbors
from stinfer.prediction import Intervals, iter_expression, iter_intervals
from stinfer.sparse import Sparse
from stinfer.voters import OriginNeighbors

DATA = Path(__file__).parents[1] / "data"
N_REFS, N_GENES = 300, 200
# All genes, and some in an order of their own.
GENES = {"all": np.arange(N_GENES), "some": np.random.default_rng(1).permutation(N_GENES)[:150]}


@pytest.fixture(params=[CPU, pytest.param(CUDA, marks=pytest.mark.cuda)])
def provider(request):
    return request.param


@pytest.fixture(params=["at once", "in pieces"], autouse=True)
def pieces(request, monkeypatch):
    """Average all at once, and seven references and three spots at a time."""
    if request.param == "in pieces":
        monkeypatch.setattr(gpu_averaging, "_COPIED", 7 * N_GENES)
        monkeypatch.setattr(gpu_averaging, "_GATHERED", 3 * 20 * N_GENES)


def to_sparse(dense, coverage=None):
    rows, columns = np.nonzero(dense)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(dense)))])
    return Sparse(dense[rows, columns], columns.astype(np.int32), indptr, dense.shape[1], coverage)


def made_up(n_spots=50, k=20, seed=0):
    """Draw references of 0 to 190 genes, and spots of any neighbors."""
    random = np.random.default_rng(seed)
    shown = random.random((N_REFS, N_GENES)) < random.permutation(np.linspace(0, 0.95, N_REFS))[:, None]
    dense = np.where(shown, random.gamma(2.0, 1.0, shown.shape), 0).astype(np.float32)
    indices = np.array([random.permutation(N_REFS)[:k] for _ in range(n_spots)])
    return dense, Neighbors(indices, random.dirichlet(np.ones(k), n_spots).astype(np.float32))


def expected(dense, neighbors):
    """Average one value after the other, in double precision: mean and spread."""
    weights, values = neighbors.weights[..., None].astype(float), dense[neighbors.indices].astype(float)
    mean = (weights * values).sum(axis=1)
    return mean, np.sqrt((weights * (values - mean[:, None]) ** 2).sum(axis=1))


def averager(expression, chosen, k, provider, *, with_spread=False, n_workers=1):
    groups = gene_groups(expression, chosen)
    return GpuAverager(expression, groups, k, with_spread=with_spread, n_workers=n_workers, provider=provider)


@pytest.mark.parametrize("chosen", GENES.values(), ids=GENES)
def test_means_are_those_of_double_precision_and_of_the_cpu(chosen, provider):
    dense, neighbors = made_up()
    (found,) = averager(to_sparse(dense), chosen, 20, provider).average(neighbors)
    np.testing.assert_allclose(found, expected(dense, neighbors)[0][:, chosen], rtol=2e-6, atol=1e-12)
    on_cpu = expression_from_neighbors(neighbors.weights, neighbors.indices, dense[:, chosen])
    np.testing.assert_allclose(found, on_cpu, rtol=4e-6, atol=1e-12)


@pytest.mark.parametrize("chosen", GENES.values(), ids=GENES)
def test_spreads_are_those_of_double_precision_and_nearer_than_those_of_the_cpu(chosen, provider):
    dense, neighbors = made_up()
    averages = averager(to_sparse(dense), chosen, 20, provider, with_spread=True)
    mean, spread = averages.average(neighbors)
    exact = [values[:, chosen] for values in expected(dense, neighbors)]
    np.testing.assert_allclose(mean, exact[0], rtol=2e-6, atol=1e-12)
    np.testing.assert_allclose(spread, exact[1], rtol=1e-5, atol=1e-12)
    some = dense[:, chosen]
    on_cpu = spread_from_neighbors(neighbors.weights, neighbors.indices, some, mean, some.mean(axis=0))
    assert np.abs(spread - exact[1]).max() <= np.abs(on_cpu - exact[1]).max()


def test_by_hand(provider):
    dense = np.array([[4, 0, 8, 0], [0, 6, 0, 0], [0, 0, 2, 0]], dtype=np.float32)
    neighbors = Neighbors(np.array([[0, 1], [2, 0]]), np.array([[0.5, 0.5], [0.75, 0.25]], dtype=np.float32))
    averages = averager(to_sparse(dense), np.arange(4), 2, provider, with_spread=True)
    mean, spread = averages.average(neighbors)
    assert mean.tolist() == [[2, 3, 4, 0], [1, 0, 3.5, 0]]
    # 4 and 0 lie 2 from their mean, 6 and 0 lie 3, 8 and 0 lie 4; of 4 and three 0 the root of 3, and so on.
    np.testing.assert_allclose(spread, [[2, 3, 4, 0], [3**0.5, 0, 27**0.5 / 2, 0]], rtol=1e-6)
    assert [values.shape for values in averages.average(neighbors[:0])] == [(0, 4), (0, 4)]


def by_origins(dense):
    """Let origin 0 of three not measure genes from 150 on, and origin 1 none before 50."""
    random = np.random.default_rng(3)
    measured = np.ones((3, N_GENES), dtype=bool)
    measured[0, 150:] = measured[1, :50] = False
    coverage = Coverage(random.integers(0, 3, N_REFS), measured)
    dense[~measured[coverage.origin_of]] = 0
    distances = np.sort(random.random((50, 3, 20)), axis=2).astype(np.float32)
    indices = np.empty(distances.shape, dtype=np.int64)
    for origin in range(3):
        of_it = np.flatnonzero(coverage.origin_of == origin)
        indices[:, origin] = [random.permutation(of_it)[:20] for _ in range(50)]
    # An origin of two references: where there is no third, any stands there, as reference 0.
    distances[:, 1, 2:], indices[:, 1, 2:] = np.inf, 0
    return coverage, OriginNeighbors(distances, indices, "inverse", 1.0)


@pytest.mark.parametrize("chosen", GENES.values(), ids=GENES)
def test_genes_that_not_every_origin_measures_have_voters_of_their_own(chosen, provider):
    dense, neighbors = made_up()
    coverage, near = by_origins(dense)
    neighbors = Neighbors(neighbors.indices, neighbors.weights, near)
    averages = averager(to_sparse(dense, coverage), chosen, 20, provider, with_spread=True)
    mean, spread = averages.average(neighbors)
    for place, gene in enumerate(chosen):
        origins = coverage.measured[:, gene]
        voters = neighbors if origins.all() else Neighbors(*near.voters(origins))
        exact = expected(dense[:, [gene]], voters)
        np.testing.assert_allclose(mean[:, [place]], exact[0], rtol=2e-6, atol=1e-12)
        np.testing.assert_allclose(spread[:, [place]], exact[1], rtol=1e-5, atol=1e-12)


def test_a_gene_that_no_reference_measures_is_0(provider):
    # Both references are of origin 0, and gene 1 is measured by origin 1 alone.
    dense = np.array([[1, 0], [3, 0]], dtype=np.float32)
    coverage = Coverage(np.array([0, 0]), np.array([[True, False], [True, True]]))
    near = OriginNeighbors(
        np.array([[[0.5], [np.inf]]], dtype=np.float32), np.array([[[1], [0]]]), "uniform", 1.0
    )
    neighbors = Neighbors(np.array([[1]]), np.ones((1, 1), dtype=np.float32), near)
    averages = averager(to_sparse(dense, coverage), np.arange(2), 1, provider, with_spread=True)
    mean, spread = averages.average(neighbors)
    assert (mean.tolist(), spread.tolist()) == ([[3, 0]], [[0, 0]])


def test_where_values_lie_and_how_many_copy_them_change_no_bit(in_file, provider):
    dense, neighbors = made_up()
    held, every = to_sparse(dense), np.arange(N_GENES)
    found = [
        averager(expression, every, 20, provider, with_spread=True, n_workers=n).average(neighbors)
        for expression in (held, in_file(held))
        for n in (1, 5)
    ]
    assert len({mean.tobytes() + spread.tobytes() for mean, spread in found}) == 1


def test_predictions_and_intervals_take_what_it_gives(provider):
    dense, neighbors = made_up(600)
    expression, every = to_sparse(dense), np.arange(N_GENES)
    exact = expected(dense, neighbors)
    averages = averager(expression, every, 20, provider, with_spread=True)
    # A scale of 2 and a floor of 0: half the width is the spread.
    intervals = Intervals(*(np.full(N_GENES, value, dtype=np.float32) for value in (2, 0)))
    parts = list(iter_intervals(expression, every, neighbors, intervals, n_workers=3, averager=averages))
    values, lower, upper = (np.concatenate([part[i] for part in parts]) for i in (2, 3, 4))
    np.testing.assert_allclose(values, exact[0], rtol=2e-6, atol=1e-12)
    np.testing.assert_allclose(upper, exact[0] + exact[1], rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(lower, np.maximum(exact[0] - exact[1], 0), rtol=1e-5, atol=1e-6)
    without = [part for _, _, part in iter_expression(expression, every, neighbors, averager=averages)]
    np.testing.assert_array_equal(np.concatenate(without), values)


def test_it_is_worth_it_from_as_many_averaged_references_as_there_are_and_four_million_values():
    assert is_worth(n_spots=1000, k=50, n_genes=4000, n_refs=50_000)
    assert not is_worth(n_spots=1000, k=50, n_genes=4000, n_refs=50_001)
    assert not is_worth(n_spots=1000, k=50, n_genes=3999, n_refs=50_000)


def test_expression_that_takes_more_than_it_may_is_refused(monkeypatch):
    monkeypatch.setattr(gpu_averaging, "MOST_BYTES", 4_000_000)
    every = np.arange(N_GENES)
    # 200 genes of 4 bytes each: 5,000 references take 4 MB.
    averager(to_sparse(np.zeros((5000, N_GENES), dtype=np.float32)), every, 20, CPU)
    message = "expression of 6,250 references x 200 genes takes 5 MB of the GPU, of which it may have 4 MB"
    with pytest.raises(NoRoomError, match=message):
        averager(to_sparse(np.zeros((6250, N_GENES), dtype=np.float32)), every, 20, CPU)


def test_expression_that_cannot_be_copied_or_gathered_is_no_room(monkeypatch):
    def refuse(*_):
        msg = "Failed to allocate memory for requested buffer"
        raise RuntimeError(msg)

    dense, _ = made_up()
    for step in ("_copied", "_average"):
        with monkeypatch.context() as patched:
            patched.setattr(GpuAverager, step, refuse)
            with pytest.raises(NoRoomError, match=r"x 200 genes cannot be copied to the GPU \(Failed to"):
                averager(to_sparse(dense), np.arange(N_GENES), 20, CPU)


@pytest.fixture
def on_gpu(monkeypatch):
    """Let the CPU be taken for CUDA, and every prediction be worth it."""

    def average(*given, **named):
        return GpuAverager(*given, **named, provider=CPU)

    monkeypatch.setattr(open_bank, "is_installed", lambda: True)
    monkeypatch.setattr(open_bank, "GpuSearch", lambda *given: GpuSearch(*given, CPU))
    monkeypatch.setattr(open_bank, "GpuAverager", average)
    monkeypatch.setattr(gpu_averaging, "_LEAST_VALUES", 0)


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize(
    ("device", "encodes_on_gpu", "n_spots", "expected"),
    [
        ("auto", True, 10, True),
        ("auto", True, 9, False),
        ("auto", False, 10, False),
        ("cpu", True, 10, False),
    ],
)
def test_where_models_run_on_cuda_large_predictions_are_averaged_there(
    device, encodes_on_gpu, n_spots, expected
):
    opened = OpenBank(DATA / "board.h5", device=device, threads=1, search="auto")
    opened.encoders = SimpleNamespace(on_gpu=encodes_on_gpu)
    assert opened.bank.n_refs == 30  # as many as ten spots of three neighbors average
    found = opened.averager(np.arange(2), n_spots, 3, with_spread=False)
    assert isinstance(found, GpuAverager) == expected


def predicted(monkeypatch, out, **asked):
    opened = OpenBank(DATA / "board.h5", device="auto", threads=1, search="exact")
    with monkeypatch.context() as patched:
        patched.setattr(type(opened.encoders), "on_gpu", True)
        patched.setattr(type(opened.encoders), "patches_at_once", 8)
        result = stinfer.predict_slide(DATA / "board.png", opened, out=out, mpp=5.0, genes="all", **asked)
    with h5py.File(out) as file:
        return h5ad.read_array(file, "X"), result.notices


@pytest.mark.usefixtures("on_gpu")
def test_a_slide_is_averaged_on_the_gpu_and_its_table_too(monkeypatch, tmp_path):
    table = tmp_path / "p.csv"
    values, notices = predicted(monkeypatch, tmp_path / "gpu.h5ad", csv=table)
    assert not any("CPU" in notice for notice in notices)
    on_cpu = stinfer.predict_slide(
        DATA / "board.png", DATA / "board.h5", out=tmp_path / "cpu.h5ad", mpp=5.0, genes="all", device="cpu"
    )
    with h5py.File(on_cpu.path) as file:
        np.testing.assert_allclose(values, h5ad.read_array(file, "X"), rtol=1e-5, atol=1e-12)
    written = [line.split(",")[-values.shape[1] :] for line in table.read_text().splitlines()[1:]]
    np.testing.assert_allclose(np.array(written, dtype=float), values, rtol=1e-4)


@pytest.mark.usefixtures("on_gpu")
def test_without_room_a_slide_is_averaged_on_the_cpu_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_averaging, "MOST_BYTES", 10)
    _, notices = predicted(monkeypatch, tmp_path / "p.h5ad")
    (notice,) = [notice for notice in notices if "CPU" in notice]
    assert notice.startswith("averaging on the CPU: expression of 30 references x ")
