"""The reference bank: one HDF5 file, also an AnnData object, that is enough to predict.

Nothing in it is trusted before its hash is checked. The layout is `reference_bank/FORMAT.md`.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from stinfer import h5ad
from stinfer.bank_parts import (
    ANNOY,
    EXPRESSION,
    GENE_IDS,
    ONE_MODEL,
    OWN_SECTION,
    check_version,
    compare_hashes,
    hash_blob,
    part_hashes,
    part_of,
    read_blob,
    read_projections,
    read_settings,
    version_of,
)
from stinfer.bank_settings import BankSettings
from stinfer.bank_shapes import check_expression, check_shapes
from stinfer.contract import (
    BANK_FORMAT_VERSION,
    F32,
    F64,
    I64,
    MERGED_BANK_VERSION,
    MODEL_SUFFIXES,
    AnyArray,
)
from stinfer.coverage import Coverage
from stinfer.errors import (
    BankAlteredError,
    BankFormatError,
    BankNotFoundError,
    ModelFormatError,
    StInferError,
    first_line,
)
from stinfer.files import is_file, sha256_file
from stinfer.integrity import hash_arrays
from stinfer.metric import AffineMetric
from stinfer.own_section import OwnSection
from stinfer.raw_embedding import RawEmbedding
from stinfer.sparse import Sparse
from stinfer.stain import Stain
from stinfer.stored_array import StoredArray

RAW = "raw_embedding"
# Which genes each origin measures.
MEASURED = "measured"
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
            there as they are needed. Expression that does is not checked yet, see `check_stored`, and models
            are checked as they are read. None to hold, and check, everything

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
        with _damage_told(path):
            with h5py.File(path, "r") as file:
                h5ad.refuse_links(file)
                version = check_version(path, file)
                bank = _read(path, file, version, _EVERYTHING if held_bytes is None else held_bytes)
                bank._compare(part_hashes(bank, version), held=True)
                for name in (*model_names(bank.settings, version), ANNOY):
                    written, found = bank.hashes.get(name, "none"), "none"
                    if name in file["uns/stinfer"]:
                        is_read_later = held_bytes is not None and name != ANNOY
                        found = written if is_read_later else hash_blob(file, name)
                    compare_hashes(path, name, written, found)
            check_shapes(bank)
            if not bank.expression.is_stored:
                check_expression(bank)
        return bank

    def check_stored(self) -> None:
        """Check the expression that stayed in the file: nothing else of a bank is used unchecked.

        Raises
        ------
        BankAlteredError, BankFormatError
            It is not what was written, or no expression.
        """
        if self.expression.is_stored:
            with _damage_told(self.path):
                self._compare(part_hashes(self), held=False)
                check_expression(self)

    def _compare(self, found: Mapping[str, Callable[[], str]], *, held: bool) -> None:
        """Compare the hashes of what was read, or of the expression that was not."""
        for part, hash_of in found.items():
            if (part == EXPRESSION and self.expression.is_stored) != held:
                compare_hashes(self.path, part, self.hashes.get(part, "none"), hash_of())

    def models(self) -> list[bytes]:
        """Read the ONNX files, from the bank or from beside it, and check them.

        Raises
        ------
        BankAlteredError
            One is not what was written.
        BankFormatError
            One was left out, and the file of its hash is not beside the bank.
        ModelFormatError
            One is not the model that made the bank's embeddings.
        """
        found: dict[str, bytes] = {}
        with _damage_told(self.path), h5py.File(self.path, "r") as file:
            names = model_names(self.settings, version_of(file))
            for name, backbone, sha256 in zip(
                names, self.settings.backbones, self.settings.models_sha256, strict=True
            ):
                if name in found:
                    continue
                if name not in file["uns/stinfer"]:
                    found[name] = self._model_beside(backbone, sha256)
                    continue
                found[name] = read_blob(file, name)
                digest = hashlib.sha256(found[name]).hexdigest()
                compare_hashes(self.path, name, self.hashes.get(name, "none"), digest)
                if digest != sha256:
                    source = f"of bank {self.path}"
                    cause = f"its SHA-256 is not the {sha256} that made the bank's embeddings"
                    raise ModelFormatError(source, cause)
        return [found[name] for name in names]

    def _model_beside(self, backbone: str, sha256: str) -> bytes:
        named = [self.path.with_name(f"{backbone}{suffix}") for suffix in MODEL_SUFFIXES.values()]
        found = [path for path in named if is_file(path)]
        if not found:
            cause = f"the model was left out of it, and there is no {named[0].name} beside it"
            raise BankFormatError(self.path, cause)
        for path in found:
            if sha256_file(path) == sha256:
                return path.read_bytes()
        cause = f"its SHA-256 is not the {sha256} that made bank {self.path}"
        raise ModelFormatError(str(found[0]), cause)

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
    if version <= ONE_MODEL:
        return ["model"]
    # One that is used more than once is kept once.
    return [f"model_{settings.models_sha256.index(sha256)}" for sha256 in settings.models_sha256]


@contextlib.contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    """Say in our words what HDF5 says of a damaged file."""
    try:
        yield
    except StInferError:
        raise
    except h5ad.UnreadableError as error:
        raise BankAlteredError(path, part_of(error.name), str(error)) from error
    except DAMAGE as error:
        raise BankFormatError(path, f"it is cut short, damaged or no bank ({first_line(error)})") from error


def _read(path: Path, file: h5py.File, version: int, held_bytes: int) -> Bank:
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
    sparse = Sparse(
        h5ad.open_array(x, "data", held_bytes),
        h5ad.open_array(x, "indices", held_bytes),
        h5ad.read_array(x, "indptr"),
        int(x.attrs["shape"][1]),
        coverage,
    )
    settings = read_settings(uns, version)
    stain = None
    if settings.stain != "none":
        stain = Stain(h5ad.read_array(uns, "stain_directions"), h5ad.read_array(uns, "stain_amounts"))
    own = None
    if version > ONE_MODEL and OWN_SECTION in uns:
        own = OwnSection.from_mapping(h5ad.read_scalars(uns[OWN_SECTION]))
    return Bank(
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
        projections=read_projections(uns, settings, version),
        stain=stain,
        distance_quantiles=h5ad.read_array(uns, "distance_quantiles"),
        hashes={key: str(value) for key, value in h5ad.read_scalars(uns["hashes"]).items()},
        gene_ids=tuple(h5ad.read_strings(var, GENE_IDS)) if GENE_IDS in var.attrs["column-order"] else None,
        origins=origins,
        own_section=own,
    )
