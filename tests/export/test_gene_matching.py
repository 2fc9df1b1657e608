"""Genes of several banks under one name, by ID, symbol and former symbol."""

from __future__ import annotations

from stinfer.record import Notices
from stinfer_export.gene_matching import GeneList, match_genes

A, B, C, D = (f"ENSG0000000000{n}" for n in (1, 2, 3, 4))


def match(*lists):
    """Match (symbols, IDs) of banks a, b, …"""
    notices = Notices()
    named = [GeneList(name, genes, ids) for name, (genes, ids) in zip("abc", lists, strict=False)]
    return match_genes(named, notices), notices.texts


def test_symbols_alone():
    found, said = match((("TP53", "ACTB"), None), (("ACTB", "KRT8"), None))

    assert found.genes == ("ACTB", "KRT8", "TP53")
    assert found.gene_ids is None
    assert found.names == (("TP53", "ACTB"), ("ACTB", "KRT8"))
    assert said == []


def test_the_case_of_a_symbol_tells_species_apart():
    found, said = match((("ACTB",), None), (("Actb",), None))

    assert found.genes == ("ACTB", "Actb")
    assert said == []


def test_one_id_is_one_gene_whatever_its_symbol_and_version():
    found, said = match((("OLD", "ACTB"), (f"{A}.5", B)), (("ACTB", "NEW"), (f"{B}.12", A)))

    assert found.genes == ("ACTB", "OLD")
    assert found.gene_ids == (B, A)
    assert found.names == (("OLD", "ACTB"), ("ACTB", "OLD"))
    assert said == [
        "1 genes of b have another symbol than in the banks before, but the same Ensembl ID: NEW as OLD"
    ]


def test_ids_come_before_symbols():
    # Two genes of one symbol, made unique in another order by each bank.
    found, _ = match((("MATR3", "MATR3-1"), (A, B)), (("MATR3", "MATR3-1"), (B, A)))

    assert found.names[1] == ("MATR3-1", "MATR3")


def test_ids_that_contradict_a_symbol_are_told_and_the_first_is_kept():
    found, said = match((("TP53",), (A,)), (("TP53",), (B,)))

    assert (found.genes, found.gene_ids) == (("TP53",), (A,))
    assert said == [
        "1 genes of b have another Ensembl ID than in the banks before, and are the same by symbol: "
        f"TP53 ({A}, {B})"
    ]


def test_an_id_that_only_one_bank_knows_is_kept():
    found, said = match((("TP53", "ACTB"), None), (("TP53",), (A,)), (("X",), (A,)))

    assert found.gene_ids == ("", A)
    # Known since the second bank, it matches the third's.
    assert found.names[2] == ("TP53",)
    assert len(said) == 1


def test_former_symbols_both_ways():
    found, said = match((("IGJ", "MIEN1"), None), (("JCHAIN", "C17orf37"), None))

    assert found.genes == ("IGJ", "MIEN1")
    assert found.names[1] == ("IGJ", "MIEN1")
    assert said == [
        "2 genes of b are found under the symbol that they had, or have, before or after they were renamed: "
        "JCHAIN as IGJ, C17orf37 as MIEN1"
    ]


def test_a_former_symbol_is_none_where_both_are_there_or_ids_differ_or_the_case():
    both, _ = match((("IGJ",), None), (("IGJ", "JCHAIN"), None))
    assert both.genes == ("IGJ", "JCHAIN")
    other, _ = match((("IGJ",), (A,)), (("JCHAIN",), (B,)))
    assert other.genes == ("IGJ", "JCHAIN")
    mouse, _ = match((("JCHAIN",), None), (("Igj",), None))
    assert mouse.genes == ("Igj", "JCHAIN")


def test_a_symbol_that_is_another_genes_is_made_unique():
    # The second bank's NEW is the first's X by its ID, so its X cannot be.
    found, said = match((("X",), (A,)), (("NEW", "X"), (A, "")))

    assert found.genes == ("X", "X-1")
    assert found.names[1] == ("X", "X-1")
    assert (
        said[-1]
        == "1 genes of b have the symbol of another gene in the banks before, and are renamed: X as X-1"
    )


def test_genes_that_are_called_by_their_id():
    found, _ = match((("TP53",), (A,)), ((f"{A}.3",), None))

    assert found.names[1] == ("TP53",)
