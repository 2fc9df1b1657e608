"""What runs on CUDA says what the CPU says; skipped, with the reason, where there is none."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

import stinfer
from stinfer import gpu_averaging, gpu_search, h5ad
from stinfer.averaging import gene_groups
from stinfer.encoder import Encoder
from stinfer.gpu import CUDA, PATCHES_ON_GPU, NoRoomError
from stinfer.gpu_averaging import GpuAverager
from stinfer.gpu_search import GpuSearch
from stinfer.neighbors import ExactSearch
from stinfer.open_bank import OpenBank
from stinfer.self_test import MODEL, built_in_patch, open_self_test, run_self_test
from stinfer.sparse import Sparse
from stinfer.stored_array import StoredArray

DATA = Path(__file__).parents[1] / "data"
BOARD = DATA / "board.png"
BANKS = {"patch": DATA / "board.h5", "map": DATA / "board_map.h5"}
MPP = {"patch": 5.0, "map": 10.0}
# Of `stain_texture`, relative to a number or to 1. Its spreads and correlations are of differences of nearly
# equal means, added up in another order: batches of another size differ by 5e-5 on the CPU alone.
TOLERANCE = 5e-4


pytestmark = pytest.mark.cuda


@pytest.fixture(scope="module")
def both():
    """The model that comes with the program, on CUDA and on the CPU."""
    return open_self_test("cuda", threads=2), open_self_test("cpu", threads=2)


@pytest.fixture(scope="module")
def tissue():
    """Pieces of the built-in patch, each another."""
    whole = built_in_patch(512)
    corners = np.random.default_rng(0).integers(0, 512 - 224, (150, 2)).tolist()
    return np.stack([whole[y : y + 224, x : x + 224] for x, y in corners])


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    path = tmp_path_factory.mktemp("slide") / "board10.png"
    with Image.open(BOARD) as fine:
        fine.resize((200, 180), Image.Resampling.NEAREST).save(path)
    return {"patch": BOARD, "map": path}


def difference(found, expected):
    return float((np.abs(found - expected) / np.maximum(np.abs(expected), 1)).max())


def test_the_self_test_passes():
    found = run_self_test("cuda", threads=None)
    assert (found.provider, found.passed, found.same_twice) == (CUDA, True, True)


def test_embeddings_are_those_of_the_cpu(both, tissue):
    on_cuda, on_cpu = both
    assert (on_cuda.provider, on_cuda.fallback, on_cuda.on_gpu) == (CUDA, "", True)
    assert difference(on_cuda.embed(tissue[:20]), on_cpu.embed(tissue[:20])) < TOLERANCE


def test_an_embedding_depends_neither_on_the_others_nor_on_the_time(both, tissue):
    on_cuda, _ = both
    whole = on_cuda.embed(tissue)  # in parts of 64, the last filled up
    assert len(tissue) % PATCHES_ON_GPU != 0
    np.testing.assert_array_equal(on_cuda.embed(tissue), whole)
    np.testing.assert_array_equal(on_cuda.embed(tissue[:1]), whole[:1])
    # Elsewhere in a batch it may be added up in another order.
    assert difference(on_cuda.embed(tissue[70:100]), whole[70:100]) < TOLERANCE


def test_threads_that_encode_at_once_get_their_own(both, tissue):
    on_cuda, _ = both
    parts = [tissue[first : first + 9] for first in range(0, len(tissue), 9)]
    expected = [on_cuda.embed(part) for part in parts]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(on_cuda.embed, parts * 4))
    for values, wanted in zip(found, expected * 4, strict=True):
        np.testing.assert_array_equal(values, wanted)


@pytest.mark.parametrize("size_px", [(512, 256), (1024, 768), (256, 512)])
def test_cells_are_those_of_the_cpu(size_px):
    model = (files("stinfer") / "data" / MODEL).read_bytes()
    on_cuda, on_cpu = (
        Encoder(model, MODEL, pooling="map", device=device, threads=2) for device in ("cuda", "cpu")
    )
    region = built_in_patch(1024)[np.newaxis, : size_px[0], : size_px[1]]
    found = on_cuda.features(region)
    assert difference(found, on_cpu.features(region)) < TOLERANCE
    np.testing.assert_array_equal(on_cuda.features(region), found)
    on_cuda.release_memory()
    np.testing.assert_array_equal(on_cuda.features(region), found)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("dim", [16, 512])
def test_the_search_finds_what_the_cpu_finds(monkeypatch, tmp_path, distance, dim):
    monkeypatch.setattr(gpu_search, "_REFERENCES", 3000)
    rng = np.random.default_rng(1)
    references = (3 + rng.normal(size=(10_000, dim))).astype(np.float32)
    queries = (3 + rng.normal(size=(600, dim))).astype(np.float32)
    path = tmp_path / "references.bin"
    path.write_bytes(references.tobytes())
    stored = StoredArray(path, 0, references.dtype, references.shape)
    expected = ExactSearch(references, distance).query(queries, 50)

    for kept in (references, stored):
        distances, indices = GpuSearch(kept, distance).query(queries, 50)
        # None is farther. Where another is found, both are equally far within the rounding of a product.
        assert (distances <= expected[0]).all()
        np.testing.assert_allclose(distances, expected[0], rtol=1e-5)
        assert (indices != expected[1]).sum() <= 5


def contents(path):
    with h5py.File(path) as file:
        obs = {name: file["obs"][name][...] for name in ("neighbor_distance", "confidence", "in_domain")}
        return h5ad.read_array(file, "X"), obs, h5ad.read_scalars(file["uns/stinfer/run"])


@pytest.mark.parametrize("pooling", ["patch", "map"])
def test_a_prediction_is_that_of_the_cpu(slides, tmp_path, pooling):
    arguments = {"mpp": MPP[pooling], "genes": "all", "pitch_um": 100.0}
    found = {}
    for device in ("cuda", "cpu"):
        out = tmp_path / f"{device}.h5ad"
        result = stinfer.predict_slide(
            slides[pooling], BANKS[pooling], out=out, device=device, search="exact", **arguments
        )
        assert not any("CPU" in notice for notice in result.notices)
        found[device] = contents(out)

    (x, obs, run), (x_cpu, obs_cpu, _) = found["cuda"], found["cpu"]
    np.testing.assert_allclose(x, x_cpu, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(obs["neighbor_distance"], obs_cpu["neighbor_distance"], rtol=1e-3, atol=1e-3)
    assert (run["device"], run["provider"], run["search"]) == ("cuda", CUDA, "exact")
    if pooling == "patch":
        assert run["batch_size"] == 1024


@pytest.mark.parametrize("pooling", ["patch", "map"])
def test_the_same_twice_gives_the_same_values_by_itself(slides, tmp_path, pooling):
    opened = OpenBank(BANKS[pooling], device="auto", threads=None, search="auto")
    assert opened.encoders.on_gpu
    for name in ("a", "b"):
        stinfer.predict_slide(slides[pooling], opened, out=tmp_path / f"{name}.h5ad", mpp=MPP[pooling])
    a, b = contents(tmp_path / "a.h5ad"), contents(tmp_path / "b.h5ad")
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(a[1]["neighbor_distance"], b[1]["neighbor_distance"])
    assert type(opened.searcher).__name__ == "GpuSearch"


def test_a_search_without_room_runs_on_the_cpu_and_says_so(slides, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_search, "MOST_BYTES", 0)
    result = stinfer.predict_slide(BOARD, BANKS["patch"], out=tmp_path / "p.h5ad", mpp=5.0, device="cuda")
    (notice,) = [notice for notice in result.notices if "CPU" in notice]
    assert notice.startswith("searching on the CPU: ")
    assert contents(tmp_path / "p.h5ad")[2]["provider"] == CUDA


def layers(path):
    with h5py.File(path) as file:
        return {name: h5ad.read_array(file["layers"], name) for name in file["layers"]}


def test_what_is_averaged_on_cuda_is_what_the_cpu_averages(slides, tmp_path, monkeypatch):
    arguments = {"mpp": 5.0, "genes": "all", "pitch_um": 100.0, "intervals": True, "device": "cuda"}
    found = {}
    # Both search on CUDA, so that neighbors are the same.
    for name, least in (("cpu", 1 << 40), ("cuda", 0), ("again", 0)):
        monkeypatch.setattr(gpu_averaging, "_LEAST_VALUES", least)
        out = tmp_path / f"{name}.h5ad"
        result = stinfer.predict_slide(slides["patch"], BANKS["patch"], out=out, **arguments)
        assert not any("CPU" in notice for notice in result.notices)
        found[name] = (contents(out)[0], layers(out))
    np.testing.assert_allclose(found["cuda"][0], found["cpu"][0], rtol=1e-5, atol=1e-12)
    for name, values in found["cuda"][1].items():
        # The CPU's spread is the root of a difference, of which less is left than of its parts.
        np.testing.assert_allclose(values, found["cpu"][1][name], rtol=1e-3, atol=2e-3)
        np.testing.assert_array_equal(values, found["again"][1][name])
    np.testing.assert_array_equal(found["cuda"][0], found["again"][0])


def test_averages_without_room_are_made_on_the_cpu_and_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_averaging, "_LEAST_VALUES", 0)
    monkeypatch.setattr(gpu_averaging, "MOST_BYTES", 0)
    result = stinfer.predict_slide(BOARD, BANKS["patch"], out=tmp_path / "p.h5ad", mpp=5.0, device="cuda")
    (notice,) = [notice for notice in result.notices if "CPU" in notice]
    assert notice.startswith("averaging on the CPU: ")


def test_what_the_gpu_has_no_memory_for_is_no_room(monkeypatch):
    monkeypatch.setattr(gpu_averaging, "MOST_BYTES", 1 << 60)
    # A million references without a value: 400 GB once they are dense.
    nothing = np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.int32)
    expression = Sparse(*nothing, np.zeros(1_000_001, dtype=np.int64), 100_000)
    with pytest.raises(NoRoomError, match="1,000,000 references x 100,000 genes cannot be copied to the GPU"):
        GpuAverager(expression, gene_groups(expression, np.arange(100_000)), 50, with_spread=False)


def test_a_model_that_is_not_ours_is_refused_as_on_the_cpu():
    with pytest.raises(stinfer.errors.ModelFormatError):
        Encoder(b"not a model", "m.onnx", device="cuda")
