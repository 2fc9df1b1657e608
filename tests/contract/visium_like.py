"""Section B4 of her2st as if it had been measured on Visium: real counts and tissue in Space Ranger's layout.

Every spot of the old array, 100 µm wide and 200 µm from the next, moves to the nearest site of a hexagonal
lattice of 100 µm, by 33 µm on average and 56 at the most, and keeps its counts. Every tenth gene counts as
not measured. So the data are those of another patient, on another pitch, with other genes.
"""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np

from stinfer.slide import open_slide
from stinfer_export.datasets import her2st

PITCH_UM = 100.0
ROW_UM = PITCH_UM * np.sqrt(3) / 2


def write_visium_like(her2st_folder: Path, outs: Path) -> tuple[Path, frozenset[str]]:
    """Write B4 as the folder `outs` of Space Ranger.

    Returns
    -------
    image : its full-resolution image
    dropped : the genes that count as not measured
    """
    (section,) = her2st.iter_sections(her2st_folder, ["B4"])
    with open_slide(section.image_path, section.mpp) as slide:
        size_um = np.asarray(slide.size_l0) * section.mpp
    rows, columns = np.meshgrid(
        np.arange(int(size_um[1] / ROW_UM)), np.arange(int(size_um[0] / 50)), indexing="ij"
    )
    on_lattice = (rows + columns) % 2 == 0
    sites = np.column_stack([rows[on_lattice], columns[on_lattice]])
    sites_um = sites[:, ::-1] * [50.0, ROW_UM]
    distance = np.linalg.norm(section.centers_l0[:, None] * section.mpp - sites_um[None], axis=2)
    chosen = distance.argmin(axis=1)
    assert len(set(chosen.tolist())) == len(chosen)
    assert distance.min(axis=1).max() < 58

    spatial = outs / "spatial"
    spatial.mkdir(parents=True)
    barcodes = [f"B4{row:03}{column:03}-1" for row, column in sites]
    pixels = sites_um / section.mpp
    used = set(chosen.tolist())
    lines = ["barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres"]
    lines += [
        f"{barcode},{int(i in used)},{row},{column},{y:.3f},{x:.3f}"
        for i, (barcode, (row, column), (x, y)) in enumerate(zip(barcodes, sites, pixels, strict=True))
    ]
    (spatial / "tissue_positions.csv").write_text("\n".join(lines) + "\n")
    scales = {
        "spot_diameter_fullres": 65 / section.mpp,
        "tissue_hires_scalef": 0.2,
        "tissue_lowres_scalef": 0.06,
    }
    (spatial / "scalefactors_json.json").write_text(json.dumps(scales))

    kept = [i for i in range(len(section.genes)) if i % 10]
    table = section.counts.to_dense()[:, kept]
    spots, features = np.nonzero(table)
    with h5py.File(outs / "filtered_feature_bc_matrix.h5", "w") as file:
        matrix = file.create_group("matrix")
        matrix["shape"] = np.array([len(kept), len(chosen)], dtype=np.int32)
        matrix["barcodes"] = np.array([barcodes[i] for i in chosen], dtype="S")
        matrix["data"] = table[spots, features].astype(np.int32)
        matrix["indices"] = features.astype(np.int64)
        matrix["indptr"] = np.searchsorted(spots, np.arange(len(chosen) + 1))
        group = matrix.create_group("features")
        names = [section.genes[i] for i in kept]
        group["id"] = group["name"] = np.array(names, dtype="S")
        group["feature_type"] = np.array(["Gene Expression"] * len(kept), dtype="S")
    return section.image_path, frozenset(section.genes) - frozenset(names)
