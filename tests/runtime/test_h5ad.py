from __future__ import annotations

import h5py
import numpy as np
import pytest

from stinfer import h5ad

SPOTS = ("10x2", "10x3", "Größe")
GENES = ("ERBB2", "COL1A1")
EXPRESSION = np.array([[0.0, 1.5], [2.5, 0.0], [0.0, 0.0]], dtype=np.float32)
UNS = {
    "text": "Größe, µm",
    "empty_text": "",
    "whole": 7,
    "negative": -3,
    "real": 0.25,
    "yes": True,
    "no": False,
    "array": np.array([[1, 2], [3, 4]], dtype=np.int16),
    "pixels": np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
    "no_values": np.zeros((0, 3), dtype=np.float32),
    "texts": ["a", "ö", ""],
    "no_texts": [],
    "nested": {"deeper": {"x": 1.5, "name": "n"}, "empty": {}},
}


def write_sparse(path):
    with h5ad.new_file(path) as new:
        file = new.root
        h5ad.write_csr(
            file,
            "X",
            np.array([1.5, 2.5], dtype=np.float32),
            np.array([1, 0], dtype=np.int32),
            np.array([0, 1, 2, 2], dtype=np.int64),
            (3, 2),
        )
        columns = {
            "array_row": np.array([2, 3, 4]),
            "confidence": np.array([0.5, 1, 0], dtype=np.float32),
            "in_domain": np.array([True, False, True]),
        }
        h5ad.write_table(
            file, "obs", SPOTS, columns, {"section": ["C5", "B4", "C5"], "patient": ["C", "B", "C"]}
        )
        h5ad.write_table(file, "var", GENES, {"pearson": np.array([0.5, -0.25])})
        h5ad.write_array(file["obsm"], "spatial", np.array([[1.5, 2], [3, 4], [5, 6]]))
        h5ad.write_mapping(file["uns"], "stinfer", UNS)


def write_dense(path):
    with h5ad.new_file(path) as new:
        file = new.root
        h5ad.write_table(file, "obs", SPOTS, {})
        h5ad.write_table(file, "var", GENES, {})
        matrix = h5ad.create_matrix(file, "X", (3, 2), chunks=(256, 256))
        matrix[0:2, 0:1] = EXPRESSION[0:2, 0:1]
        matrix[0:2, 1:2] = EXPRESSION[0:2, 1:2]
        matrix[2:3, :] = EXPRESSION[2:3]


def read_with_anndata(path):
    anndata = pytest.importorskip("anndata")
    return anndata.read_h5ad(path)


def test_anndata_reads_a_sparse_matrix_and_tables(tmp_path):
    write_sparse(tmp_path / "a.h5ad")
    table = read_with_anndata(tmp_path / "a.h5ad")
    assert type(table.X).__name__.startswith("csr")
    assert table.X.dtype == np.float32
    assert np.array_equal(table.X.toarray(), EXPRESSION)
    assert tuple(table.obs_names) == SPOTS
    assert tuple(table.var_names) == GENES
    assert list(table.obs.columns) == ["section", "patient", "array_row", "confidence", "in_domain"]
    assert table.obs["section"].dtype.name == "category"
    assert table.obs["section"].tolist() == ["C5", "B4", "C5"]
    assert table.obs["section"].cat.categories.tolist() == ["B4", "C5"]
    assert table.obs["patient"].tolist() == ["C", "B", "C"]
    assert table.obs["array_row"].tolist() == [2, 3, 4]
    assert table.obs["confidence"].tolist() == [0.5, 1.0, 0.0]
    assert table.obs["in_domain"].dtype == bool
    assert table.obs["in_domain"].tolist() == [True, False, True]
    assert table.var["pearson"].tolist() == [0.5, -0.25]
    assert table.obsm["spatial"].tolist() == [[1.5, 2], [3, 4], [5, 6]]


def test_anndata_reads_a_dense_matrix_filled_in_blocks(tmp_path):
    write_dense(tmp_path / "a.h5ad")
    table = read_with_anndata(tmp_path / "a.h5ad")
    assert table.X.dtype == np.float32
    assert np.array_equal(table.X, EXPRESSION)
    assert list(table.obs.columns) == []


def test_anndata_reads_nested_settings(tmp_path):
    write_sparse(tmp_path / "a.h5ad")
    uns = read_with_anndata(tmp_path / "a.h5ad").uns["stinfer"]
    assert set(uns) == set(UNS)
    for key in ("text", "empty_text", "whole", "negative", "real"):
        assert uns[key] == UNS[key]
    assert bool(uns["yes"]) is True
    assert bool(uns["no"]) is False
    for key in ("array", "pixels", "no_values"):
        assert uns[key].dtype == UNS[key].dtype
        assert np.array_equal(uns[key], UNS[key])
    assert list(uns["texts"]) == ["a", "ö", ""]
    assert list(uns["no_texts"]) == []
    assert uns["nested"]["deeper"] == {"x": 1.5, "name": "n"}
    assert dict(uns["nested"]["empty"]) == {}


def test_anndata_reads_tables_without_rows(tmp_path):
    with h5ad.new_file(tmp_path / "a.h5ad") as new:
        file = new.root
        h5ad.write_table(file, "obs", (), {"n": np.zeros(0)}, {"section": []})
        h5ad.write_table(file, "var", GENES, {})
        h5ad.create_matrix(file, "X", (0, 2), chunks=(256, 256))
    table = read_with_anndata(tmp_path / "a.h5ad")
    assert table.shape == (0, 2)
    assert list(table.obs.columns) == ["section", "n"]
    assert tuple(table.var_names) == GENES


def test_every_element_says_its_type(tmp_path):
    # What anndata 0.8 can read, by name and version.
    write_sparse(tmp_path / "a.h5ad")
    known = {
        ("anndata", "0.1.0"),
        ("dict", "0.1.0"),
        ("dataframe", "0.2.0"),
        ("csr_matrix", "0.1.0"),
        ("array", "0.2.0"),
        ("string-array", "0.2.0"),
        ("categorical", "0.2.0"),
        ("string", "0.2.0"),
        ("numeric-scalar", "0.2.0"),
    }
    found = {}
    with h5py.File(tmp_path / "a.h5ad") as file:
        items = {"/": file}
        file.visititems(lambda name, item: items.update({name: item}))
        for name, item in items.items():
            if not name.startswith("X/"):
                found[name] = (item.attrs["encoding-type"], item.attrs["encoding-version"])
    assert set(found.values()) == known
    assert found["/"] == ("anndata", "0.1.0")
    assert found["uns/stinfer/nested/deeper"] == ("dict", "0.1.0")
    assert found["obs/section/categories"] == ("string-array", "0.2.0")


@pytest.mark.parametrize("write", [write_sparse, write_dense])
def test_the_same_content_gives_the_same_bytes(tmp_path, write):
    write(tmp_path / "a.h5ad")
    write(tmp_path / "b.h5ad")
    assert (tmp_path / "a.h5ad").read_bytes() == (tmp_path / "b.h5ad").read_bytes()


def test_texts_numbers_and_categories_come_back(tmp_path):
    write_sparse(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad") as file:
        assert h5ad.read_strings(file["obs"], "_index") == list(SPOTS)
        assert h5ad.read_categories(file["obs"], "section") == ["C5", "B4", "C5"]
        assert h5ad.read_scalars(file["uns/stinfer"]) == {
            "text": "Größe, µm",
            "empty_text": "",
            "whole": 7,
            "negative": -3,
            "real": 0.25,
            "yes": True,
            "no": False,
        }
        assert h5ad.read_array(file["obsm"], "spatial").tolist() == [[1.5, 2], [3, 4], [5, 6]]


def test_a_missing_array(tmp_path):
    write_sparse(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad") as file, pytest.raises(KeyError):
        h5ad.read_array(file["obsm"], "none")


def test_a_failure_leaves_neither_half_a_file_nor_a_changed_one(tmp_path):
    path = tmp_path / "a.h5ad"
    write_dense(path)
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="bug"), h5ad.new_file(path) as new:  # noqa: PT012 - the block is the test
        h5ad.write_array(new.root["obsm"], "spatial", np.ones((100, 2)))
        msg = "bug"
        raise RuntimeError(msg)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["a.h5ad"]


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret.h5"
    with h5py.File(path, "w") as file:
        file["values"] = np.arange(5.0)
    return path


def test_values_that_lie_in_other_files_are_refused(tmp_path, secret):
    raw = tmp_path / "secret.bin"
    raw.write_bytes(np.arange(5.0).tobytes())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("external", (5,), "f8", external=[(str(raw), 0, 40)])
        layout = h5py.VirtualLayout((5,), "f8")
        layout[:] = h5py.VirtualSource(str(secret), "values", (5,))
        file.create_virtual_dataset("virtual", layout)
    with h5py.File(tmp_path / "a.h5") as file:
        for name in ("external", "virtual"):
            # HDF5 itself would read them.
            assert file[name][...].tolist() == [0, 1, 2, 3, 4]
            with pytest.raises(ValueError, match="lies in another file"):
                h5ad.read_array(file, name)
            with pytest.raises(ValueError, match="lies in another file"):
                h5ad.read_strings(file, name)


@pytest.mark.parametrize("place", ["link", "group/link", "group/deeper/link"])
@pytest.mark.parametrize("kind", ["external", "soft", "dangling"])
def test_links_are_refused_wherever_they_are(tmp_path, secret, place, kind):
    link = {
        "external": h5py.ExternalLink(str(secret), "values"),
        "soft": h5py.SoftLink("/own"),
        "dangling": h5py.SoftLink("/none"),
    }[kind]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["own"] = np.arange(3.0)
        file["group/deeper/own"] = np.arange(3.0)
        h5ad.refuse_links(file)
        file[place] = link
    with h5py.File(tmp_path / "a.h5") as file, pytest.raises(ValueError, match="is a link to another file"):
        h5ad.refuse_links(file)


def test_groups_without_end_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("loop")
        file["loop/again"] = file["loop"]
        with pytest.raises(ValueError, match="/loop/again is a link to another"):
            h5ad.refuse_links(file)


@pytest.mark.parametrize("chunks", [None, (1024, 1024)])
def test_arrays_larger_than_their_file_are_refused(tmp_path, chunks):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        # 8 TB, of which nothing is stored.
        file.create_dataset("huge", (10**6, 10**6), "f8", chunks=chunks)
        file["true"] = np.arange(10.0)
    with h5py.File(tmp_path / "a.h5") as file:
        with pytest.raises(ValueError, match="more bytes than the file holds"):
            h5ad.read_array(file, "huge")
        assert h5ad.read_array(file, "true").tolist() == list(range(10))


def test_texts_larger_than_their_file_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        # Millions of references to texts, of which nothing is stored.
        file.create_dataset("texts", (10**7,), h5py.string_dtype(), chunks=(1000,))
    with h5py.File(tmp_path / "a.h5") as file, pytest.raises(ValueError, match="more bytes than the file"):
        h5ad.read_strings(file, "texts")


@pytest.mark.parametrize("code", [-1, 2, 100])
def test_codes_of_no_category_are_refused(tmp_path, code):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        h5ad.write_categories(file, "section", ["b", "a", "b"])
        assert h5ad.read_categories(file, "section") == ["b", "a", "b"]
        file["section/codes"][1] = code
        with pytest.raises(ValueError, match="none of its categories"):
            h5ad.read_categories(file, "section")
