"""The reference bank: one HDF5 file, also an AnnData object, that is enough to predict.

Nothing in it is trusted before its hash is checked. The layout is `reference_bank/FORMAT.md`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stinfer import h5ad
from stinfer.bank_parts import ANNOY, compare_hashes, hash_blob, part_of, read_blob
from stinfer.bank_settings import BankSettings
from stinfer.contract import BANK_FORMAT_VERSION, F32, F64, I64, AnyArray
from stinfer.errors import (
    BankAlteredError,
    BankError,
    BankFormatError,
    BankNotFoundError,
    BankVersionError,
    ModelFormatError,
    first_line,
)
from stinfer.files import is_file, sha256_file
from stinfer.integrity import hash_arrays, hash_json
from stinfer.metric import AffineMetric
from stinfer.sparse import Sparse
from stinfer.stain import Stain

# HDF5, h5py and numpy speak of damage in all of these; whichever it is, the file is no whole bank.
DAMAGE = (
    OSError,
    KeyError,
    ValueError,
    TypeError,
    RuntimeError,
    AttributeError,
    IndexError,
    OverflowError,
    MemoryError,
)
# The last version that had one model.
_ONE_MODEL = 2
# Of a stain: how far from 1 its directions' lengths may be, the least sine between them, the largest amount.
_UNIT_SLACK, _LEAST_APART, _MAX_AMOUNT = 1e-6, 1e-3, 1000.0
# The one column of `var` that is text; scanpy calls it so too.
GENE_IDS = "gene_ids"


@dataclass(frozen=True)
class Bank:
    """An open bank, checked and in memory.

    Parameters
    ----------
    path : where it was read
    settings : how it was made and is to be read
    genes : n_genes unique symbols
    gene_columns : per-gene numbers of `var`, each (n_genes,)
    spots : n_refs unique names
    sections, patients : of each reference
    spot_columns : further numbers of `obs`, each (n_refs,)
    spatial : (n_refs, 2), level-0 px of the section's image
    expression : (n_refs, n_genes), log1p CP10K
    embedding : (n_refs, n), after the metric
    metric : the affine map
    projections : for each model, (channels, n) linear map of its cells, or patches, before the metric; None
        where there is none
    stain : that slides are brought to before they are encoded; None where they are left as they are
    distance_quantiles : (m,), quantiles 0 to 1 of the references' own held-out neighbor distance
    hashes : SHA-256 of each part
    gene_ids : n_genes Ensembl IDs, empty where one is not known; None where the bank has none
    """

    path: Path
    settings: BankSettings
    genes: tuple[str, ...]
    gene_columns: dict[str, AnyArray]
    spots: tuple[str, ...]
    sections: tuple[str, ...]
    patients: tuple[str, ...]
    spot_columns: dict[str, AnyArray]
    spatial: F64
    expression: Sparse
    embedding: F32
    metric: AffineMetric
    projections: tuple[F32 | None, ...]
    stain: Stain | None
    distance_quantiles: F32
    hashes: dict[str, str]
    gene_ids: tuple[str, ...] | None = None

    @classmethod
    def open(cls, path: str | Path) -> Bank:
        """Read a bank and check every part against its hash.

        Raises
        ------
        BankNotFoundError, BankFormatError, BankVersionError
            There is no bank there that this program reads.
        BankAlteredError
            A part is not what was written.
        """
        path = Path(path)
        if not is_file(path):
            raise BankNotFoundError(path)
        try:
            with h5py.File(path, "r") as file:
                h5ad.refuse_links(file)
                bank = _read(path, file, _check_version(path, file))
                for name in (*model_names(bank.settings, _version(file)), ANNOY):
                    found = hash_blob(file, name) if name in file["uns/stinfer"] else "none"
                    compare_hashes(path, name, bank.hashes.get(name, "none"), found)
            _check_shapes(bank)
        except BankError:
            raise
        except h5ad.UnreadableError as error:
            raise BankAlteredError(path, part_of(error.name), str(error)) from error
        except DAMAGE as error:
            raise BankFormatError(
                path, f"it is cut short, damaged or no bank ({first_line(error)})"
            ) from error
        return bank

    def models(self) -> list[bytes]:
        """Return the ONNX files, from the bank or from beside it.

        Raises
        ------
        BankFormatError
            One was left out, and the file of its hash is not beside the bank.
        ModelFormatError
            The file beside the bank is another model.
        """
        found = []
        with h5py.File(self.path, "r") as file:
            names = model_names(self.settings, _version(file))
            for name, backbone, sha256 in zip(
                names, self.settings.backbones, self.settings.models_sha256, strict=True
            ):
                if name in file["uns/stinfer"]:
                    found.append(read_blob(file, name))
                else:
                    found.append(self._model_beside(backbone, sha256))
        return found

    def _model_beside(self, backbone: str, sha256: str) -> bytes:
        beside = self.path.with_name(f"{backbone}.onnx")
        if not is_file(beside):
            cause = f"the model was left out of it, and there is no {beside.name} beside it"
            raise BankFormatError(self.path, cause)
        if sha256_file(beside) != sha256:
            cause = f"its SHA-256 is not the {sha256} that made bank {self.path}"
            raise ModelFormatError(str(beside), cause)
        return beside.read_bytes()

    @property
    def holds_models(self) -> bool:
        """Whether the bank is enough to predict."""
        return any(name.startswith("model") for name in self.hashes)

    def annoy_index(self) -> bytes | None:
        """Return the Annoy index as it was saved, or None where the bank has none.

        Raises
        ------
        BankAlteredError
            It is not what it was when the bank was opened.
        """
        if ANNOY not in self.hashes:
            return None
        with h5py.File(self.path, "r") as file:
            index = read_blob(file, ANNOY)
        compare_hashes(self.path, ANNOY, self.hashes[ANNOY], hashlib.sha256(index).hexdigest())
        return index

    @property
    def n_refs(self) -> int:
        """Number of references."""
        return len(self.spots)

    @property
    def section_codes(self) -> I64:
        """(n_refs,), the section of each reference as a number."""
        return np.unique(np.asarray(self.sections), return_inverse=True)[1].astype(np.int64)


def model_names(settings: BankSettings, version: int = BANK_FORMAT_VERSION) -> list[str]:
    """Return what the models are called in `uns/stinfer`."""
    if version <= _ONE_MODEL:
        return ["model"]
    # One that is used more than once is kept once.
    return [f"model_{settings.models_sha256.index(sha256)}" for sha256 in settings.models_sha256]


def hash_parts(bank: Bank, version: int = BANK_FORMAT_VERSION) -> dict[str, str]:
    """Hash every part of a bank, as a version has them, but its blobs."""
    texts = [list(bank.spots), list(bank.sections), list(bank.patients)]
    sparse = bank.expression
    projections = [projection for projection in bank.projections if projection is not None]
    gene_columns = _hash_columns(bank.gene_columns)
    if bank.gene_ids is not None:
        gene_columns[GENE_IDS] = hash_json(list(bank.gene_ids))
    parts = {
        "settings": hash_json(bank.settings.to_mapping(version)),
        "genes": hash_json([list(bank.genes), gene_columns]),
        "spots": hash_json([texts, _hash_columns(bank.spot_columns), hash_arrays(bank.spatial)]),
        "expression": hash_arrays(sparse.data, sparse.indices, sparse.indptr),
        "embedding": hash_arrays(bank.embedding),
        "metric": hash_arrays(bank.metric.mean, bank.metric.components, *projections),
        "calibration": hash_arrays(bank.distance_quantiles),
    }
    if bank.stain is not None:
        parts["stain"] = hash_arrays(bank.stain.directions, bank.stain.amounts)
    return parts


def _hash_columns(columns: dict[str, AnyArray]) -> dict[str, str]:
    return {name: hash_arrays(values) for name, values in columns.items()}


def _version(file: h5py.File) -> int:
    return int(h5ad.read_scalars(file["uns/stinfer"])["format_version"])


def _check_version(path: Path, file: h5py.File) -> int:
    scalars = h5ad.read_scalars(file["uns/stinfer"]) if "uns/stinfer" in file else {}
    if scalars.get("kind") != "bank":
        cause = "it is an HDF5 file, but no bank"
        raise BankFormatError(path, cause)
    version = int(scalars["format_version"])
    if not 1 <= version <= BANK_FORMAT_VERSION:
        raise BankVersionError(path, version, BANK_FORMAT_VERSION)
    return version


def _read_settings(uns: h5py.Group, version: int) -> BankSettings:
    values: dict[str, Any] = dict(h5ad.read_scalars(uns))
    if version > 1:
        values["fov_um"] = h5ad.read_array(uns, "fov_um").tolist()
    if version > _ONE_MODEL:
        values["backbones"] = h5ad.read_strings(uns, "backbones")
        values["models_sha256"] = h5ad.read_strings(uns, "models_sha256")
        for name in ("orientations", "reductions"):
            values[name] = h5ad.read_array(uns, name).tolist()
    return BankSettings.from_mapping(values)


def _read_projections(uns: h5py.Group, settings: BankSettings, version: int) -> tuple[F32 | None, ...]:
    if version == 1:
        return (None,)
    if version == _ONE_MODEL:
        return (h5ad.read_array(uns, "projection") if "projection" in uns else None,)
    names = [f"projection_{i}" for i in range(len(settings.backbones))]
    return tuple(h5ad.read_array(uns, name) if name in uns else None for name in names)


def _read(path: Path, file: h5py.File, version: int) -> Bank:
    uns = file["uns/stinfer"]
    var, obs, x = file["var"], file["obs"], file["X"]
    if x.attrs["encoding-type"] != "csr_matrix":
        cause = f"X is a {x.attrs['encoding-type']}, expected csr_matrix"
        raise BankFormatError(path, cause)
    sparse = Sparse(
        h5ad.read_array(x, "data"),
        h5ad.read_array(x, "indices"),
        h5ad.read_array(x, "indptr"),
        int(x.attrs["shape"][1]),
    )
    texts = ("section", "patient")
    settings = _read_settings(uns, version)
    stain = None
    if settings.stain != "none":
        stain = Stain(h5ad.read_array(uns, "stain_directions"), h5ad.read_array(uns, "stain_amounts"))
    bank = Bank(
        path=path,
        settings=settings,
        genes=tuple(h5ad.read_strings(var, "_index")),
        gene_columns={
            name: h5ad.read_array(var, name) for name in var.attrs["column-order"] if name != GENE_IDS
        },
        spots=tuple(h5ad.read_strings(obs, "_index")),
        sections=tuple(h5ad.read_categories(obs, "section")),
        patients=tuple(h5ad.read_categories(obs, "patient")),
        spot_columns={
            name: h5ad.read_array(obs, name) for name in obs.attrs["column-order"] if name not in texts
        },
        spatial=h5ad.read_array(file["obsm"], "spatial"),
        expression=sparse,
        embedding=h5ad.read_array(file["obsm"], "embedding"),
        metric=AffineMetric(h5ad.read_array(uns, "metric_mean"), h5ad.read_array(uns, "metric_components")),
        projections=_read_projections(uns, settings, version),
        stain=stain,
        distance_quantiles=h5ad.read_array(uns, "distance_quantiles"),
        hashes={key: str(value) for key, value in h5ad.read_scalars(uns["hashes"]).items()},
        gene_ids=tuple(h5ad.read_strings(var, GENE_IDS)) if GENE_IDS in var.attrs["column-order"] else None,
    )
    for part, found in hash_parts(bank, version).items():
        compare_hashes(path, part, bank.hashes.get(part, "none"), found)
    return bank


def _check_shapes(bank: Bank) -> None:
    """Refuse parts that do not fit together, whatever their hashes say."""
    n_refs, n_genes = bank.n_refs, len(bank.genes)
    sparse = bank.expression
    if bank.distance_quantiles.ndim != 1 or bank.embedding.ndim != 2 or sparse.indptr.ndim != 1:
        cause = "its arrays have not the format's dimensions"
        raise BankFormatError(bank.path, cause)
    checks = {
        "it has no references": n_refs > 0 and n_genes > 0,
        "its sections do not fit its spots": len(bank.sections) == len(bank.patients) == n_refs,
        "its spot columns do not fit its spots": all(
            c.shape == (n_refs,) for c in bank.spot_columns.values()
        ),
        "domain_k is larger than its number of references": bank.settings.domain_k <= n_refs,
        "its expression does not fit its spots and genes": (
            len(sparse.indptr) == n_refs + 1 and sparse.n_columns == n_genes
        ),
        "its expression matrix is no valid CSR": sparse.is_valid(),
        "its embeddings do not fit its spots": len(bank.embedding) == n_refs,
        "its spots' coordinates do not fit": bank.spatial.shape == (n_refs, 2),
        "its gene symbols repeat": len(set(bank.genes)) == n_genes,
        "its spots' names repeat": len(set(bank.spots)) == n_refs,
        "its numbers are not of the format's types": _types_fit(bank),
        "its gene columns do not fit its genes": all(
            c.shape == (n_genes,) for c in bank.gene_columns.values()
        ),
        "its gene IDs do not fit its genes": bank.gene_ids is None or len(bank.gene_ids) == n_genes,
        "its metric does not fit its embeddings": _fits(bank.metric, bank.embedding),
        "its projections are no matrices": all(p is None or p.ndim == 2 for p in bank.projections),
        "its stain is none": _stain_fits(bank.stain),
        "its distance quantiles do not ascend": (
            bank.distance_quantiles.size > 1 and bool((np.diff(bank.distance_quantiles) >= 0).all())
        ),
        "k is larger than its number of references": bank.settings.k <= n_refs,
        "it holds values that are not finite": all(
            np.isfinite(values).all() for values in [*_floats(bank), bank.spatial]
        ),
    }
    for cause, holds in checks.items():
        if not holds:
            raise BankFormatError(bank.path, cause)


def _types_fit(bank: Bank) -> bool:
    integers = (bank.expression.indices, bank.expression.indptr)
    return (
        all(values.dtype == np.float32 for values in _floats(bank))
        and all(values.dtype.kind == "i" for values in integers)
        and bank.spatial.dtype == np.float64
    )


def _floats(bank: Bank) -> list[AnyArray]:
    return [
        bank.expression.data,
        *(bank.embedding, bank.metric.mean, bank.metric.components),
        *(projection for projection in bank.projections if projection is not None),
        bank.distance_quantiles,
    ]


def _fits(metric: AffineMetric, embedding: F32) -> bool:
    mean, components = metric.mean, metric.components
    return mean.ndim == 1 and len(components) == len(mean) and components.shape[-1] == embedding.shape[1]


def _stain_fits(stain: Stain | None) -> bool:
    if stain is None:
        return True
    directions, amounts = stain.directions, stain.amounts
    if directions.shape != (2, 3) or amounts.shape != (2,):
        return False
    # Bounded before anything is computed of them.
    if not (
        (np.abs(directions) < 1 + _UNIT_SLACK).all() and ((amounts > 0) & (amounts <= _MAX_AMOUNT)).all()
    ):
        return False
    lengths = np.linalg.norm(directions, axis=1)
    apart = np.linalg.norm(np.cross(directions[0], directions[1]))
    return bool(
        directions.dtype == amounts.dtype == np.float64
        and (np.abs(lengths - 1) < _UNIT_SLACK).all()
        and apart > _LEAST_APART
    )
