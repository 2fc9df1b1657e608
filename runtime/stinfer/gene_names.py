"""Genes that have been renamed: a small table, old symbol to current, of what older data sets and papers use.

Current are the symbols that HGNC approved by 2024 (https://www.genenames.org). Left out are symbols that have
meant more than one gene. A few clinical names stand among the old ones.
"""

from __future__ import annotations

_TABLE = """
HER2 ERBB2, KI67 MKI67, PDL1 CD274, PD1 PDCD1,
C17orf37 MIEN1, PERLD1 PGAP3, MLN64 STARD3, ZNFN1A3 IKZF3, CRKRS CDK12, PPARBP MED1,
KNTC2 NDC80, CDCA1 NUF2, ORC6L ORC6, KIAA0101 PCLAF, FAM64A PIMREG, CASC5 KNL1, MLF1IP CENPU, SGOL1 SGO1,
SGOL2 SGO2, KIAA1524 CIP2A, HN1 JPT1, WHSC1 NSD2, WHSC1L1 NSD3,
IGJ JCHAIN, IL8 CXCL8, C10orf54 VSIR, CECR1 ADA2, FYB FYB1, TMEM173 STING1, MB21D1 CGAS, FIGF VEGFD,
CYR61 CCN1, CTGF CCN2, NOV CCN3, WISP1 CCN4, WISP2 CCN5, LEPRE1 P3H1, LEPREL1 P3H2, ERO1L ERO1A,
PVRL1 NECTIN1, PVRL2 NECTIN2, PVRL4 NECTIN4, MLLT4 AFDN, SLC9A3R1 NHERF1, SLC9A3R2 NHERF2,
GPR56 ADGRG1, LPHN2 ADGRL2, ELTD1 ADGRL4, CD97 ADGRE5, EMR1 ADGRE1,
MLL KMT2A, MLL3 KMT2C, PARK2 PRKN, GNB2L1 RACK1, TCEB1 ELOC, TCEB2 ELOB, LINC00152 CYTOR,
FAM46C TENT5C, FAM129A NIBAN1, FAM134B RETREG1, FAM96A CIAO2A, FAM96B CIAO2B, FAM105A OTULINL,
CXorf36 DIPK2B, C8orf4 TCIM, C9orf3 AOPEP, MRVI1 IRAG1, LRMP IRAG2, NGFRAP1 BEX3, TMEM66 SARAF,
PPAP2A PLPP1, PPAP2B PLPP3, PPAP2C PLPP2, PLA2G16 PLAAT3, RARRES3 PLAAT4,
SEPP1 SELENOP, SEPW1 SELENOW, SEP15 SELENOF, SELM SELENOM, SELK SELENOK, SELT SELENOT, VIMP SELENOS,
SEPT2 SEPTIN2, SEPT6 SEPTIN6, SEPT7 SEPTIN7, SEPT8 SEPTIN8, SEPT9 SEPTIN9, SEPT11 SEPTIN11,
MARCH1 MARCHF1, MARCH2 MARCHF2, MARCH5 MARCHF5, MARCH6 MARCHF6, MARCH7 MARCHF7, MARCH8 MARCHF8,
H2AFZ H2AZ1, H2AFV H2AZ2, H2AFX H2AX, H3F3A H3-3A, H3F3B H3-3B, H1F0 H1-0, HIST1H1C H1-2, HIST1H4C H4C3,
HIST1H2AC H2AC6, HIST1H2BK H2BC12,
ATP5A1 ATP5F1A, ATP5B ATP5F1B, ATP5C1 ATP5F1C, ATP5D ATP5F1D, ATP5E ATP5F1E, ATP5F1 ATP5PB, ATP5G1 ATP5MC1,
ATP5G2 ATP5MC2, ATP5G3 ATP5MC3, ATP5H ATP5PD, ATP5I ATP5ME, ATP5J ATP5PF, ATP5J2 ATP5MF, ATP5L ATP5MG,
ATP5O ATP5PO,
AARS AARS1, CARS CARS1, DARS DARS1, EPRS EPRS1, GARS GARS1, HARS HARS1, IARS IARS1, KARS KARS1, LARS LARS1,
MARS MARS1, NARS NARS1, QARS QARS1, RARS RARS1, SARS SARS1, TARS TARS1, VARS VARS1, WARS WARS1, YARS YARS1
"""

CURRENT_OF = dict(entry.split() for entry in _TABLE.split(","))
"""Old symbol to current."""


def other_names(symbol: str) -> tuple[str, ...]:
    """Return what else a gene is or was called, the current symbol first; any case is understood.

    Old symbols that have the same current one are names of each other.
    """
    return tuple(name for name in _GROUP_OF.get(symbol.upper(), ()) if name.upper() != symbol.upper())


def _groups() -> dict[str, tuple[str, ...]]:
    olds: dict[str, list[str]] = {}
    for old, current in CURRENT_OF.items():
        olds.setdefault(current, []).append(old)
    groups = {current: (current, *names) for current, names in olds.items()}
    return {name.upper(): group for group in groups.values() for name in group}


_GROUP_OF = _groups()
