from __future__ import annotations

import pytest

from stinfer.errors import GeneUnknownError, SettingError
from stinfer.gene_names import CURRENT_OF, other_names
from stinfer.genes import nearest_genes, select_genes
from stinfer.marker_panels import panel_path
from stinfer.record import Notices

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


IDS = ("ENSG00000087460", "ENSG00000141736.14", "", "", "", "ENSG00000206503", "")


def _select(request, known=BANK, ids=None):
    notices = Notices()
    return select_genes(request, known, ids, notices).tolist(), notices.texts


def test_symbols_are_found_in_any_case_and_it_is_told():
    assert _select("Erbb2,mt-co1,GNAS") == (
        [0, 1, 6],
        ["2 genes are found in another case: Erbb2 as ERBB2, mt-co1 as MT-CO1"],
    )


def test_of_many_in_another_case_a_few_are_shown():
    known = [f"G{i}" for i in range(7)]
    assert _select([gene.lower() for gene in known], known) == (
        list(range(7)),
        ["7 genes are found in another case: g0 as G0, g1 as G1, g2 as G2, g3 as G3, g4 as G4, …"],
    )


def test_the_very_symbol_goes_before_one_of_another_case():
    assert _select("abc", ["ABC", "abc"]) == ([1], [])
    assert _select("ABC", ["ABC", "abc"]) == ([0], [])


def test_of_two_that_differ_in_case_alone_none_is_guessed():
    with pytest.raises(GeneUnknownError, match=r"Abc \(nearest: ABC\)"):
        select_genes("Abc", ["ABC", "abc"])


@pytest.mark.parametrize(
    "name", ["ENSG00000141736", "ENSG00000141736.14", "ENSG00000141736.3", "ensg00000141736"]
)
def test_ensembl_ids_are_found_with_and_without_a_version(name):
    # Every ID that is found says the same as its symbol: there is nothing to tell.
    assert _select(f"{name},GNAS", ids=IDS) == ([0, 1], [])


def test_ids_of_other_animals_are_ids_too():
    assert _select("ENSMUSG00000051951", ["Xkr4"], ["ENSMUSG00000051951"]) == ([0], [])


def test_a_bank_without_ids_says_so():
    with pytest.raises(GeneUnknownError) as caught:
        select_genes("ENSG00000141736,GNAS", BANK)
    assert caught.value.what == (
        "1 gene is not among the 7 of the bank: ENSG00000141736; the bank knows no Ensembl IDs"
    )
    with pytest.raises(GeneUnknownError, match=r"bank: ENSG00000999999$"):
        select_genes("ENSG00000999999", BANK, IDS)


@pytest.mark.parametrize(
    ("asked", "known"),
    [("HER2", "ERBB2"), ("MLLT4", "AFDN"), ("AFDN", "MLLT4"), ("igj", "JCHAIN"), ("Sept9", "SEPTIN9")],
)
def test_renamed_genes_are_found_both_ways(asked, known):
    assert _select(asked, ["A", known]) == (
        [1],
        [f"1 genes are found under another name: {asked} as {known}"],
    )


def test_a_gene_that_is_there_is_not_taken_for_its_other_name():
    assert _select("CTGF", ["CCN2", "CTGF"]) == ([1], [])


def test_old_names_lead_to_one_current_one_each():
    assert len(CURRENT_OF) > 120
    assert not set(CURRENT_OF) & set(CURRENT_OF.values())
    for old, current in CURRENT_OF.items():
        assert current in other_names(old)
        assert old in other_names(current)
        assert old not in other_names(old)
    assert other_names("GNAS") == ()


# Panels


def test_a_panel_is_found_as_far_as_the_bank_goes():
    found, notices = _select("markers:breast")

    assert found == [1, 2, 3]  # ERBB2, COL1A1, COL1A2
    assert len(notices) == 1
    assert notices[0].startswith("99 of the 102 genes of markers:breast are not in the bank: GRB7, STARD3")
    assert "HLA-DRA (nearest: HLA-A)" in notices[0]


def test_a_panel_of_which_nothing_is_there_is_refused():
    with pytest.raises(GeneUnknownError, match="102 genes are not among the 1 of the bank: ERBB2"):
        select_genes("markers:breast", ["Xyz1"])


def test_an_unknown_panel_names_those_there_are():
    with pytest.raises(SettingError, match="there is no marker panel 'liver'") as caught:
        select_genes("markers:liver", BANK)
    assert caught.value.fix == "use one of markers:breast"


def test_every_marker_has_a_group_a_reason_and_a_source_that_is_listed():
    lines = panel_path("breast").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    listed = {line[2:].split(":")[0] for line in lines if line.startswith("# ") and " et al" in line}
    listed |= {line[2:].split(":")[0] for line in lines if line.startswith("# ") and line[-1].isdigit()}

    assert len({row[0] for row in rows}) == len(rows)
    for row in rows:
        assert len(row) == 4, row
        assert all(cell == cell.strip() and cell for cell in row), row
        assert set(row[3].split("; ")) <= listed, row
    groups = {row[1] for row in rows}
    assert {
        "HER2 amplicon",
        "hormone receptors",
        "basal",
        "luminal",
        "proliferation",
        "fibroblast",
        "endothelial",
        "T cells",
        "B and plasma cells",
        "myeloid cells",
    } <= groups
    # They are the current symbols, so that older banks are reached by the table of renamed genes.
    assert not {row[0] for row in rows} & set(CURRENT_OF)


def test_a_panel_in_a_file_is_read_alike(tmp_path):
    path = tmp_path / "mine.tsv"
    path.write_text("# remark\nMT-CO1\tmitochondria\ta reason\nERBB2\n")
    assert _select(str(path))[0] == [1, 6]


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
