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
from stinfer.bank_shapes import check_shapes
from stinfer.contract import BANK_FORMAT_VERSION, F32, F64, I64, MERGED_BANK_VERSION, AnyArray
from stinfer.coverage import Coverage
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
from stinfer.own_section import OwnSection
from stinfer.raw_embedding import RawEmbedding
from stinfer.sparse import Sparse
from stinfer.stain import Stain
from stinfer.stored_array import StoredArray

RAW = "raw_embedding"
# Which genes each origin measures.
MEASURED = "measured"
OWN_SECTION = "own_section"
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
_EVERYTHING = 1 << 62
# The last version that had one model.
_ONE_MODEL = 2
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
    embedding : (n_refs, n), after the metric, and behind it the places of a bank of its own section
    metric : the affine map
    projections : for each model, (channels, n) linear map of its cells, or patches, before the metric; None
        where there is none
    stain : that slides are brought to before they are encoded; None where they are left as they are
    distance_quantiles : (m,), quantiles 0 to 1 of the references' own held-out neighbor distance
    hashes : SHA-256 of each part
    gene_ids : n_genes Ensembl IDs, empty where one is not known; None where the bank has none
    origins : of each reference, the bank that was merged into this one; None where it was built of sections
    own_section : of a bank that predicts between its own spots; None of all others
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
    embedding: F32 | StoredArray
    metric: AffineMetric
    projections: tuple[F32 | None, ...]
    stain: Stain | None
    distance_quantiles: F32
    hashes: dict[str, str]
    gene_ids: tuple[str, ...] | None = None
    origins: tuple[str, ...] | None = None
    own_section: OwnSection | None = None

    @classmethod
    def open(cls, path: str | Path, held_bytes: int | None = None) -> Bank:
        """Read a bank and check every part against its hash.

        Parameters
        ----------
        path : the bank
        held_bytes : expression and embeddings that are larger, each, stay in the file, and are read from
            there as they are needed; None to hold everything

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
                bank = _read(path, file, _check_version(path, file), held_bytes)
                for name in (*model_names(bank.settings, _version(file)), ANNOY):
                    found = hash_blob(file, name) if name in file["uns/stinfer"] else "none"
                    compare_hashes(path, name, bank.hashes.get(name, "none"), found)
            check_shapes(bank)
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

    def annoy_index(self, target: Path) -> bool:
        """Write the Annoy index into a file, as it was saved.

        Returns
        -------
        whether the bank has one; else no file is written

        Raises
        ------
        BankAlteredError
            It is not what it was when the bank was opened.
        """
        if ANNOY not in self.hashes:
            return False
        digest = hashlib.sha256()
        with h5py.File(self.path, "r") as file, target.open("wb") as copy:
            for block in h5ad.iter_bytes(file["uns/stinfer"], ANNOY):
                copy.write(block.data)
                digest.update(block.data)
        compare_hashes(self.path, ANNOY, self.hashes[ANNOY], digest.hexdigest())
        return True

    def raw_embedding(self) -> RawEmbedding | None:
        """Return the embeddings before the metric, or None where the bank has none.

        Raises
        ------
        BankAlteredError, BankFormatError
            They are not what was written, or do not fit the bank.
        """
        with h5py.File(self.path, "r") as file:
            if RAW not in file["obsm"]:
                return None
            names = ("raw_middle", "raw_step")
            codes, middle, step = (
                h5ad.read_array(file["obsm"], RAW), *(h5ad.read_array(file["uns/stinfer"], n) for n in names)
            )  # fmt: skip
        compare_hashes(self.path, RAW, self.hashes.get(RAW, "none"), hash_arrays(codes, middle, step))
        fits = codes.ndim == 2 and len(codes) == self.n_refs and middle.shape == step.shape == codes.shape[1:]
        if not fits or [a.dtype for a in (codes, middle, step)] != [np.int16, np.float32, np.float32]:
            cause = "its raw embeddings do not fit its spots"
            raise BankFormatError(self.path, cause)
        return RawEmbedding(codes, middle, step)

    @property
    def format_version(self) -> int:
        """Of the format as it is written: the first that has all the bank has."""
        return BANK_FORMAT_VERSION if self.origins is None else MERGED_BANK_VERSION

    @property
    def origin_names(self) -> tuple[str, ...]:
        """Names of the origins in the order of the coverage; none where it has none."""
        return tuple(sorted(set(self.origins or ())))

    def origin_sizes(self) -> list[tuple[str, int, int]]:
        """Return name, number of references and number of genes of every origin."""
        coverage = self.expression.coverage
        if coverage is None:
            return []
        n_refs = np.bincount(coverage.origin_of, minlength=coverage.n_origins).tolist()
        n_genes = coverage.measured.sum(axis=1).tolist()
        return list(zip(self.origin_names, n_refs, n_genes, strict=True))

    def comparable(self, embeddings: F32, centers_l0: F64) -> F32:
        """Bring places to what references are compared by.

        Parameters
        ----------
        embeddings : (n, dim), as the encoders give them
        centers_l0 : (n, 2), level-0 px

        Returns
        -------
        (n, as many as `embedding`)
        """
        mapped = self.metric.apply(embeddings)
        return mapped if self.own_section is None else self.own_section.join(mapped, centers_l0)

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
    if bank.origins is not None and sparse.coverage is not None:
        measured = np.ascontiguousarray(sparse.coverage.measured.T)
        parts["origins"] = hash_json([list(bank.origins), hash_arrays(measured)])
    if bank.stain is not None:
        parts["stain"] = hash_arrays(bank.stain.directions, bank.stain.amounts)
    if bank.own_section is not None:
        parts[OWN_SECTION] = hash_json(bank.own_section.to_mapping())
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
    if not 1 <= version <= MERGED_BANK_VERSION:
        raise BankVersionError(path, version, MERGED_BANK_VERSION)
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


def _read(path: Path, file: h5py.File, version: int, held_bytes: int | None) -> Bank:
    uns = file["uns/stinfer"]
    var, obs, x = file["var"], file["obs"], file["X"]
    if x.attrs["encoding-type"] != "csr_matrix":
        cause = f"X is a {x.attrs['encoding-type']}, expected csr_matrix"
        raise BankFormatError(path, cause)
    texts = ["section", "patient"]
    origins, coverage = None, None
    if version >= MERGED_BANK_VERSION:
        texts.append("origin")
        origins = tuple(h5ad.read_categories(obs, "origin"))
        codes = np.unique(np.asarray(origins), return_inverse=True)[1].astype(np.int64)
        coverage = Coverage(codes, np.ascontiguousarray(h5ad.read_array(file["varm"], MEASURED).T))
    held_bytes = _EVERYTHING if held_bytes is None else held_bytes
    sparse = Sparse(
        h5ad.open_array(x, "data", held_bytes),
        h5ad.open_array(x, "indices", held_bytes),
        h5ad.read_array(x, "indptr"),
        int(x.attrs["shape"][1]),
        coverage,
    )
    settings = _read_settings(uns, version)
    stain = None
    if settings.stain != "none":
        stain = Stain(h5ad.read_array(uns, "stain_directions"), h5ad.read_array(uns, "stain_amounts"))
    own = None
    if version > _ONE_MODEL and OWN_SECTION in uns:
        own = OwnSection.from_mapping(h5ad.read_scalars(uns[OWN_SECTION]))
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
        embedding=h5ad.open_array(file["obsm"], "embedding", held_bytes),
        metric=AffineMetric(h5ad.read_array(uns, "metric_mean"), h5ad.read_array(uns, "metric_components")),
        projections=_read_projections(uns, settings, version),
        stain=stain,
        distance_quantiles=h5ad.read_array(uns, "distance_quantiles"),
        hashes={key: str(value) for key, value in h5ad.read_scalars(uns["hashes"]).items()},
        gene_ids=tuple(h5ad.read_strings(var, GENE_IDS)) if GENE_IDS in var.attrs["column-order"] else None,
        origins=origins,
        own_section=own,
    )
    for part, found in hash_parts(bank, version).items():
        compare_hashes(path, part, bank.hashes.get(part, "none"), found)
    return bank
