"""Write and read the few AnnData elements we use, with h5py alone.

On-disk format 0.1.0 of AnnData, element types that anndata 0.8 and later read:
https://anndata.readthedocs.io/en/latest/fileformat-prose.html
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import numpy.typing as npt

from stinfer.contract import AnyArray
from stinfer.errors import first_line
from stinfer.files import written_beside
from stinfer.stored_array import StoredArray

if TYPE_CHECKING:
    from typing_extensions import Buffer

Scalar = str | bool | int | float

# Read at once, where a dataset is hashed and not kept.
_BLOCK_BYTES = 1 << 20
# HDF5 and h5py speak of a damaged dataset in all of these.
_READ_ERRORS = (OSError, RuntimeError, ValueError, TypeError, MemoryError, OverflowError)


class UnreadableError(ValueError):
    """The values of a dataset cannot be read: a part of the file is damaged.

    Attributes
    ----------
    name : str
        Where it lies in the file.
    """

    def __init__(self, name: str, cause: str) -> None:
        super().__init__(f"{name} cannot be read: {cause}")
        self.name = name


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[NewFile]:
    """Create an AnnData file, all or nothing.

    The same content gives the same bytes: no time stamps, no creation order.

    Raises
    ------
    OutputWriteError
        The disk is full, or the folder cannot be written.
    """
    with written_beside(path) as partial, partial.open("r+b", buffering=0) as raw:
        disk = _Disk(raw)
        with h5py.File(disk, "w", track_order=False) as file:
            _mark(file, "anndata", "0.1.0")
            for name in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
                write_mapping(file, name, {})
            yield NewFile(file, disk)
        disk.check()


@dataclass(frozen=True)
class NewFile:
    """A file being written.

    Parameters
    ----------
    root : its root group
    disk : what it is written to
    """

    root: h5py.File
    disk: _Disk

    def check(self) -> None:
        """Stop early if the disk is full.

        Raises
        ------
        OSError
            A write has failed.
        """
        self.disk.check()


class _Disk(io.RawIOBase):
    """The file below HDF5, which keeps the first failure to itself.

    HDF5 cannot give up: after a failed write it goes on writing as it closes, with a message for each
    object, and may crash the process. So it is told that all is well, and `check` tells us the truth.

    Parameters
    ----------
    raw : the open file, unbuffered
    """

    def __init__(self, raw: io.FileIO) -> None:
        super().__init__()
        self._raw = raw
        self._failure: OSError | None = None
        self._position = 0
        self._end = 0  # as HDF5 believes it to be

    def write(self, data: Buffer) -> int:
        """Write all of `data` where we are."""
        data = memoryview(data)
        if self._failure is None:
            try:
                self._raw.seek(self._position)
                written = 0
                while written < len(data):
                    written += self._raw.write(data[written:]) or 0
            except OSError as failure:
                self._failure = failure
        self._position += len(data)
        self._end = max(self._end, self._position)
        return len(data)

    def readinto(self, buffer: Buffer) -> int:
        """Fill `buffer` from where we are; what was never written is zeros."""
        buffer = memoryview(buffer)
        self._raw.seek(self._position)
        found = self._raw.readinto(buffer) or 0
        buffer[found:] = bytes(len(buffer) - found)
        self._position += len(buffer)
        return len(buffer)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move, as `io.IOBase.seek`."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._end}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Return where we are."""
        return self._position

    def truncate(self, size: int | None = None) -> int:
        """Set the file's size."""
        self._end = self._position if size is None else size
        if self._failure is None:
            try:
                self._raw.truncate(self._end)
            except OSError as failure:
                self._failure = failure
        return self._end

    def check(self) -> None:
        """Raise the first failure, if there was one."""
        if self._failure is not None:
            raise self._failure


def write_mapping(parent: h5py.Group, name: str, values: Mapping[str, Any]) -> h5py.Group:
    """Write a (nested) dict of scalars, arrays, and lists of text."""
    group = parent.create_group(name)
    _mark(group, "dict", "0.1.0")
    for key, value in values.items():
        if isinstance(value, Mapping):
            write_mapping(group, key, value)
        elif isinstance(value, np.ndarray):
            write_array(group, key, value)
        elif isinstance(value, (str, bool, int, float)):
            write_scalar(group, key, value)
        else:
            write_strings(group, key, value)
    return group


def write_scalar(parent: h5py.Group, name: str, value: Scalar) -> None:
    """Write one text or number."""
    if isinstance(value, str):
        dataset = parent.create_dataset(name, data=value, dtype=h5py.string_dtype())
        _mark(dataset, "string", "0.2.0")
    else:
        dataset = parent.create_dataset(name, data=value)
        _mark(dataset, "numeric-scalar", "0.2.0")


def write_array(parent: h5py.Group, name: str, values: AnyArray) -> None:
    """Write a numeric or boolean array; pictures, (height, width, 3), and masks are compressed."""
    compression = "gzip" if values.ndim == 3 or (values.ndim == 2 and values.dtype == np.bool_) else None
    _mark(parent.create_dataset(name, data=values, compression=compression), "array", "0.2.0")


def write_strings(parent: h5py.Group, name: str, values: Sequence[str]) -> None:
    """Write a list of texts."""
    data = np.asarray(list(values), dtype=object)
    _mark(parent.create_dataset(name, data=data, dtype=h5py.string_dtype()), "string-array", "0.2.0")


def write_categories(parent: h5py.Group, name: str, values: Sequence[str]) -> None:
    """Write a column of repeating texts; categories in sorted order."""
    categories, codes = np.unique(np.asarray(list(values), dtype=str), return_inverse=True)
    group = parent.create_group(name)
    _mark(group, "categorical", "0.2.0")
    group.attrs["ordered"] = False
    write_strings(group, "categories", categories.tolist())
    write_array(group, "codes", codes.astype(np.int32))


def write_table(
    file: h5py.File,
    name: str,
    index: Sequence[str],
    columns: Mapping[str, AnyArray],
    categories: Mapping[str, Sequence[str]] | None = None,
    texts: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write `obs` or `var`: an index of unique texts, columns of numbers, categories and other texts."""
    group = file.create_group(name)
    _mark(group, "dataframe", "0.2.0")
    group.attrs["_index"] = "_index"
    order = [*(categories or {}), *(texts or {}), *columns]
    group.attrs.create("column-order", np.asarray(order, dtype=object), dtype=h5py.string_dtype())
    write_strings(group, "_index", index)
    for key, repeating in (categories or {}).items():
        write_categories(group, key, repeating)
    for key, other in (texts or {}).items():
        write_strings(group, key, other)
    for key, values in columns.items():
        write_array(group, key, values)


def write_csr(
    file: h5py.File, name: str, data: AnyArray, indices: AnyArray, indptr: AnyArray, shape: tuple[int, int]
) -> None:
    """Write a compressed sparse row matrix."""
    group = file.create_group(name)
    _mark(group, "csr_matrix", "0.1.0")
    group.attrs["shape"] = np.asarray(shape, dtype=np.int64)
    for key, values in (("data", data), ("indices", indices), ("indptr", indptr)):
        group.create_dataset(key, data=values)


def create_matrix(
    file: h5py.Group,
    name: str,
    shape: tuple[int, int],
    chunks: tuple[int, int],
    dtype: npt.DTypeLike = np.float32,
) -> h5py.Dataset:
    """Create a dense matrix to be filled chunk by chunk."""
    # HDF5 refuses a chunk larger than the data, and any chunk where there are no data.
    fitted = tuple(min(c, s) for c, s in zip(chunks, shape, strict=True)) if min(shape) else None
    dataset = file.create_dataset(name, shape=shape, dtype=dtype, chunks=fitted)
    _mark(dataset, "array", "0.2.0")
    return dataset


def read_array(group: h5py.Group, name: str, *, limit_bytes: int | None = None) -> AnyArray:
    """Read a whole array that lies in the file itself and is no larger than it, or than a limit.

    A crafted file can point to other files, or declare terabytes that it does not hold.

    Raises
    ------
    KeyError
        There is no such array.
    ValueError
        It is a group, its values lie elsewhere, or it is too large.
    """
    dataset = group[name]
    if not isinstance(dataset, h5py.Dataset):
        msg = f"{dataset.name} is a group, expected an array"
        raise ValueError(msg)
    refuse_outsized(dataset, limit_bytes)
    try:
        values: AnyArray = np.asarray(dataset[...])
    except _READ_ERRORS as error:
        raise UnreadableError(dataset.name, first_line(error)) from error
    return values


def open_array(group: h5py.Group, name: str, held_bytes: int) -> AnyArray | StoredArray:
    """Read an array, or leave it in the file where it is larger and its values lie one after the other.

    Parameters
    ----------
    group, name : as for `read_array`, whose errors are raised
    held_bytes : the largest that is read
    """
    dataset = group[name]
    if isinstance(dataset, h5py.Dataset) and dataset.ndim and dataset.nbytes > held_bytes:
        refuse_outsized(dataset)
        # None where they lie in pieces, are compressed, or were never written.
        offset = dataset.id.get_offset()
        if offset is not None and dataset.file.userblock_size == 0:
            return StoredArray(Path(dataset.file.filename), offset, dataset.dtype, dataset.shape)
    return read_array(group, name)


def iter_bytes(group: h5py.Group, name: str) -> Iterator[AnyArray]:
    """Read a dataset of bytes piece by piece.

    Yields
    ------
    (at most 2**20,) uint8

    Raises
    ------
    ValueError
        It is no such dataset; or as `read_array`.
    """
    dataset = group[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 1 or dataset.dtype != np.uint8:
        msg = f"{dataset.name} is no list of bytes"
        raise ValueError(msg)
    refuse_outsized(dataset)
    for first in range(0, len(dataset), _BLOCK_BYTES):
        try:
            yield np.asarray(dataset[first : first + _BLOCK_BYTES])
        except _READ_ERRORS as error:
            raise UnreadableError(dataset.name, first_line(error)) from error


def refuse_outsized(dataset: h5py.Dataset, limit_bytes: int | None = None) -> None:
    """Check that an array's values lie in its file, and are no more than that, or than a limit.

    Raises
    ------
    ValueError
        They are not.
    """
    if dataset.external or dataset.is_virtual:
        msg = f"{dataset.name} lies in another file"
        raise ValueError(msg)
    if dataset.nbytes > (limit_bytes or Path(dataset.file.filename).stat().st_size):
        msg = f"{dataset.name} declares more bytes than the file holds"
        raise ValueError(msg)


def refuse_links(file: h5py.File) -> None:
    """Check that everything in a file lies in the file itself, at one place.

    Raises
    ------
    ValueError
        Something is a link to another file or place.
    """
    seen = set()
    pending: list[h5py.Group] = [file]
    while pending:
        group = pending.pop()
        for name in group:
            item = group.get(name) if isinstance(group.get(name, getlink=True), h5py.HardLink) else None
            address = None if item is None else h5py.h5o.get_info(item.id).addr
            if address is None or address in seen:
                msg = f"{group.name}/{name} is a link to another file or place"
                raise ValueError(msg)
            seen.add(address)
            if isinstance(item, h5py.Group):
                pending.append(item)


def read_strings(group: h5py.Group, name: str) -> list[str]:
    """Read a list of texts; raises as `read_array`."""
    return [_decoded(group[name].name, text) for text in read_array(group, name)]


def _decoded(name: str, text: bytes) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableError(name, "it is no UTF-8 text") from error


def read_categories(parent: h5py.Group, name: str) -> list[str]:
    """Read a categorical column back as texts.

    Raises
    ------
    ValueError
        A value is missing, or is none of the categories; or as `read_array`.
    """
    group = parent[name]
    categories = read_strings(group, "categories")
    codes = read_array(group, "codes")
    if codes.size and not 0 <= codes.min() <= codes.max() < len(categories):
        raise UnreadableError(group.name, "it has values that are none of its categories")
    return [categories[code] for code in codes]


def read_scalars(group: h5py.Group) -> dict[str, Scalar]:
    """Read the texts and numbers of a mapping, leaving out arrays and nested mappings."""
    found: dict[str, Scalar] = {}
    for key, item in group.items():
        if isinstance(item, h5py.Dataset) and item.shape == ():
            value = read_array(group, key).item()
            found[key] = _decoded(item.name, value) if isinstance(value, bytes) else value
    return found


def _mark(item: h5py.Group | h5py.Dataset, kind: str, version: str) -> None:
    item.attrs["encoding-type"] = kind
    item.attrs["encoding-version"] = version
