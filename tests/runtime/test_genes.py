from __future__ import annotations

import pytest

from stinfer.errors import GeneUnknownError, SettingError
from stinfer.genes import nearest_genes, select_genes

BANK = ("GNAS", "ERBB2", "COL1A1", "COL1A2", "COL3A1", "HLA-A", "MT-CO1")


def test_all():
    assert select_genes("all", BANK).tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_names_come_in_the_order_of_the_bank_each_once():
    assert select_genes("MT-CO1, ERBB2 ,GNAS,ERBB2", BANK).tolist() == [0, 1, 6]
    assert select_genes(["COL3A1", "GNAS", "GNAS"], BANK).tolist() == [0, 4]


def test_positions_ascend_whatever_the_order_of_a_set():
    many = [f"G{i}" for i in range(40)]
    assert select_genes("G33,G8,G1,G32,G16", many).tolist() == [1, 8, 16, 32, 33]


def test_one_name():
    assert select_genes("HLA-A", BANK).tolist() == [5]


def test_a_file_of_names(tmp_path):
    path = tmp_path / "genes.txt"
    path.write_bytes(b"\xef\xbb\xbf# markers\r\nMT-CO1\r\n\r\n  ERBB2  # HER2\r\n#GNAS\r\nERBB2\r\n")
    assert select_genes(str(path), BANK).tolist() == [1, 6]


def test_a_file_without_names_is_refused(tmp_path):
    path = tmp_path / "genes.txt"
    path.write_text("# nothing\n\n")
    with pytest.raises(SettingError, match="names no gene"):
        select_genes(str(path), BANK)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "genes.txt"
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(SettingError, match=r"genes\.txt cannot be read as text"):
        select_genes(str(path), BANK)


@pytest.mark.parametrize("request_", ["", " , ,", []])
def test_no_gene_is_refused(request_):
    with pytest.raises(SettingError, match="names no gene"):
        select_genes(request_, BANK)


def test_an_unknown_gene_names_its_nearest():
    with pytest.raises(GeneUnknownError) as caught:
        select_genes("COL1A3,ERBB2", BANK)
    assert caught.value.what == (
        "1 gene is not among the 7 of the bank: COL1A3 (nearest: COL1A2, COL1A1, COL3A1)"
    )


def test_case_is_told_apart_and_the_right_one_is_offered():
    with pytest.raises(GeneUnknownError, match=r"Erbb2 \(nearest: ERBB2\)"):
        select_genes("Erbb2", BANK)


def test_many_unknown_genes_are_counted_and_five_are_shown():
    names = [f"QQQ{i}" for i in range(7)]
    with pytest.raises(GeneUnknownError) as caught:
        select_genes([*names, names[0]], BANK)
    assert caught.value.what == (
        "7 genes are not among the 7 of the bank: QQQ0, QQQ1, QQQ2, QQQ3, QQQ4, and 2 more"
    )


@pytest.mark.parametrize("length", [300, 5000])
def test_a_text_too_long_for_a_file_name_is_an_unknown_gene(length):
    # Names separated by spaces rather than commas, for example.
    with pytest.raises(GeneUnknownError, match="1 gene is not among"):
        select_genes("X" * length, BANK)


def test_nearest_genes_ignore_case_and_leave_out_what_is_unlike():
    assert nearest_genes("mt-co2", BANK) == ["MT-CO1"]
    assert nearest_genes("ZZZZZZ", BANK) == []


@pytest.mark.parametrize("name", ["markers.txt", "nowhere/markers.csv"])
def test_a_gene_list_that_does_not_exist_is_no_gene(name):
    with pytest.raises(SettingError, match=f"gene list {name} does not exist"):
        select_genes(name, BANK)
