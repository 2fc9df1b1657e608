"""Simulate counts per spot from the tissue under it.

Every gene belongs to one program. Four programs are what the four regions express; one is the same
everywhere; one varies from spot to spot whatever the tissue is, so that no image can predict it; one is too
rare to be seen in every section.
"""

from __future__ import annotations

import numpy as np

from stinfer.contract import F64, I64
from stinfer_export.demo.tissue import REGIONS


def _genes(symbols: str) -> tuple[str, ...]:
    return tuple(symbols.split())


PROGRAMS: dict[str, tuple[str, ...]] = {
    "tumor": _genes(
        "ERBB2 GRB7 PGAP3 STARD3 MIEN1 KRT7 KRT8 KRT18 KRT19 EPCAM MUC1 CDH1 ESR1 GATA3 FOXA1 XBP1 TFF1 "
        "TFF3 AGR2 SPDEF CLDN3 CLDN4 CLDN7 ELF3 CD24 SCD FASN MKI67 TOP2A CCND1 MYC AZGP1 PIP SCGB2A2 "
        "CEACAM6 TSPAN1 RAB25 ESRP1 PRLR SLC39A6 STC2 BAMBI MLPH DSP JUP PERP LSR ST14 SPINT2 TACSTD2"
    ),
    "stroma": _genes(
        "COL1A1 COL1A2 COL3A1 COL5A1 COL5A2 COL6A1 COL6A2 COL6A3 COL12A1 VIM DCN LUM FN1 SPARC POSTN BGN "
        "FBLN1 FBN1 THY1 PDGFRA PDGFRB FAP ACTA2 TAGLN MYL9 TPM2 CALD1 MMP2 TIMP1 TIMP3 LOX CTSK ASPN "
        "SFRP2 SFRP4 CCDC80 MGP IGFBP7 PECAM1 VWF AEBP1 THBS2 VCAN ELN"
    ),
    "lymphocyte": _genes(
        "PTPRC CD3D CD3E CD3G CD2 CD4 CD8A CD5 CD7 CD27 IL7R LCK TRAC TRBC1 TRBC2 MS4A1 CD19 CD79A CD79B "
        "CD22 BANK1 PAX5 IGKC IGHG1 IGHM IGLC2 JCHAIN MZB1 CXCL13 CCL19 CCL21 CXCR4 CCR7 SELL LTB CORO1A "
        "CD37 CD52 RAC2 GZMK"
    ),
    "fat": _genes(
        "PLIN1 PLIN4 ADIPOQ FABP4 LPL LEP CIDEC CIDEA LIPE PNPLA2 CD36 GPD1 ADH1B G0S2 PPARG AQP7 CFD "
        "RBP4 THRSP PCK1 DGAT2 ACACB"
    ),
    "housekeeping": _genes(
        "ACTB GAPDH B2M TUBA1B EEF1A1 PPIA UBC TPT1 RPL3 RPL5 RPL7 RPL10 RPL13 RPLP0 RPLP1 RPS2 RPS3 RPS6 "
        "RPS14 RPS18 RPS27A HSP90AB1 YWHAZ FTH1 FTL"
    ),
    # Stress of handling and blood on the section.
    "noise": _genes("FOS JUN EGR1 HSPA1A HSPA1B MALAT1 NEAT1 HBA1 HBA2 HBB"),
    # So rare that a section often holds none: this is how gene sets come to differ.
    "rare": _genes("OR4F5 CFTR NEUROD1 INS SST MYH7 TNNT2 GFAP NEFL SFTPC TG NPPA"),
}
GENES = tuple(gene for program in PROGRAMS.values() for gene in program)

_HOUSEKEEPING_SHARE, _NOISE_SHARE = 0.30, 0.06
_LEAK_SHARE = 0.07
_RARE_MOLECULES_PER_SECTION = 0.8
_SPOTS_PER_SECTION = 105
_MEDIAN_DEPTH, _DEPTH_SPREAD = 5000.0, 0.28
_SECTION_SPREAD = 0.08
# The shape of the gamma that multiplies each mean: the smaller, the more spots differ beyond Poisson noise.
_SHAPE, _NOISE_SHAPE = 10.0, 1.5


def draw_profiles(rng: np.random.Generator) -> F64:
    """Draw what share of a region's molecules each gene is.

    Parameters
    ----------
    rng : source of the genes' strengths

    Returns
    -------
    (4, n_genes), rows in the order of `REGIONS` sum to 1, columns in the order of `GENES`
    """
    program_of = np.array([name for name, genes in PROGRAMS.items() for _ in genes])
    strength = np.exp(rng.normal(0, 0.9, len(GENES)))

    def share(*programs: str) -> F64:
        chosen = np.where(np.isin(program_of, programs), strength, 0.0)
        return np.asarray(chosen / chosen.sum(), np.float64)

    common = _HOUSEKEEPING_SHARE * share("housekeeping") + _NOISE_SHARE * share("noise")
    rare = share("rare")
    rare_share = rare.astype(bool).sum() * _RARE_MOLECULES_PER_SECTION / (_SPOTS_PER_SECTION * _MEDIAN_DEPTH)
    # Every cell expresses a little of everything.
    leak = share(*REGIONS)
    own_share = 1 - _HOUSEKEEPING_SHARE - _NOISE_SHARE - rare_share
    rows = [
        common + rare_share * rare + own_share * ((1 - _LEAK_SHARE) * share(region) + _LEAK_SHARE * leak)
        for region in REGIONS
    ]
    return np.stack(rows)


def draw_counts(composition: F64, profiles: F64, rng: np.random.Generator) -> I64:
    """Draw a section's counts: negative binomial around depth times the mixture of the regions' profiles.

    Parameters
    ----------
    composition : (n_spots, 4), shares of `REGIONS`, rows sum to 1
    profiles : (4, n_genes), from `draw_profiles`
    rng : source of depths, of the section's bias per gene, and of counts

    Returns
    -------
    (n_spots, n_genes), molecules; some 3,000 to 8,000 per spot
    """
    n_spots, n_genes = composition.shape[0], profiles.shape[1]
    depth = _MEDIAN_DEPTH * np.exp(rng.normal(0, _DEPTH_SPREAD, (n_spots, 1)))
    section_bias = np.exp(rng.normal(0, _SECTION_SPREAD, n_genes))
    is_noise = np.isin(GENES, PROGRAMS["noise"])
    shape = np.where(is_noise, _NOISE_SHAPE, _SHAPE)
    # A Poisson whose rate is gamma distributed is a negative binomial.
    mean = depth * (composition @ profiles) * section_bias
    counts: I64 = rng.poisson(mean * rng.gamma(shape, 1 / shape, (n_spots, n_genes)))
    return counts
