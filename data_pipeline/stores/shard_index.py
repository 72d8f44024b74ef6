"""The index of one split's shards: where each trajectory lies in which tar, and the checksums of its bytes.

`<split>.index.npy` is a NumPy file with one record of fixed size a trajectory. A reader takes one record at a time by
its position, so opening costs nothing, however many trajectories there are, and all processes of a node share the one
copy in the page cache. Each record carries a checksum of its own, which is verified when the record is used. (Reading
through a memory map would save a system call, but turn an I/O error into the death of the process.)

Datasets of format 1 have `<split>.index.npz` instead, which is read whole.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.errors import DataError
from data_pipeline.base.files import replace_file
from data_pipeline.stores.manifest import FileRecord, record_file
from data_pipeline.stores.reading import Files
from data_pipeline.trajectory import DatasetInfo, parameter_row

_RECORDS_AT_ONCE = 4096


@dataclass(frozen=True)
class Place:
    """Where one trajectory lies: its shard, offsets of raw bytes in it (-1: there are none), and their crc32c."""

    shard: int
    offset: int
    crc32c: NDArray[np.uint32]
    """(T,), of each frame."""
    parameters: NDArray[np.float64]
    """(P,)"""
    static_offset: int = -1
    static_crc32c: int = 0
    mask_offset: int = -1
    mask_crc32c: int = 0


def index_name(split: str, format_version: int = 2) -> str:
    """File name of a split's index."""
    return f"{split}.index.npz" if format_version == 1 else f"{split}.index.npy"


def record_dtype(info: DatasetInfo) -> np.dtype[Any]:
    """One record of the index; its last four bytes are the crc32c of those before them."""
    return np.dtype(
        [
            ("shard", "<u4"),
            ("offset", "<i8"),
            ("static_offset", "<i8"),
            ("mask_offset", "<i8"),
            ("static_crc32c", "<u4"),
            ("mask_crc32c", "<u4"),
            ("crc32c", "<u4", (info.frames,)),
            ("times", "<f8", (info.frames,)),
            ("parameters", "<f8", (len(info.parameters),)),
            ("record_crc32c", "<u4"),
        ]
    )


def write_index(
    path: Path, info: DatasetInfo, count: int, entries: Iterator[tuple[int, Mapping[str, Any]]]
) -> FileRecord:
    """Write the index of `count` trajectories from their shard numbers and entries (see `write_shard`), in order."""
    dtype = record_dtype(info)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
    with replace_file(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for first in range(0, count, _RECORDS_AT_ONCE):
            records = np.zeros(min(_RECORDS_AT_ONCE, count - first), dtype)
            for record in records:
                _fill(record, *next(entries), info.parameters)
            file.write(records.tobytes())
    return record_file(path)


def _fill(record: Any, shard: int, entry: Mapping[str, Any], parameters: Sequence[str]) -> None:
    record["shard"] = shard
    for name in ("offset", "static_offset", "mask_offset", "static_crc32c", "mask_crc32c", "crc32c", "times"):
        record[name] = entry[name]
    record["parameters"] = parameter_row(entry["parameters"], parameters)
    record["record_crc32c"] = google_crc32c.value(record.tobytes()[:-4])


class Index(Protocol):
    """Finds trajectories."""

    def place(self, trajectory: int) -> Place:
        """Where a trajectory lies. Raises DataError when the index is damaged or cannot be read."""
        ...


class RecordIndex:
    """An index of format 2, read a record at a time.

    Raises:
        DataError: the file is not the index of `count` trajectories of this dataset.
    """

    def __init__(self, files: Files, path: Callable[[str], Path], name: str, info: DatasetInfo, count: int) -> None:
        self._files, self._path, self._name, self._info = files, path, name, info
        self._dtype = record_dtype(info)
        index = path(name)
        try:
            with index.open("rb") as file:
                np.lib.format.read_magic(file)
                found = np.lib.format.read_array_header_1_0(file, max_header_size=2**16)
                self._start = file.tell()
        except OSError as error:
            raise DataError("the index cannot be read", file=index, found=error, remedy=_REMEDY) from None
        except Exception:  # NumPy parses the header as Python text: its errors differ with the damage
            raise DataError("not the header of an index", file=index, remedy=_REMEDY) from None
        if found != ((count,), False, self._dtype):
            raise DataError(
                "the index does not fit its dataset",
                file=index,
                found=f"{found[0]} records of {found[2].itemsize} bytes",
                expected=f"({count},) records of {self._dtype.itemsize} bytes",
                remedy=_REMEDY,
            )

    def place(self, trajectory: int) -> Place:
        """See `Index.place`."""
        size = self._dtype.itemsize
        offset, content = self._start + trajectory * size, bytearray(size)
        try:
            count = self._files.read_into(self._name, offset, [memoryview(content)])
        except OSError as error:
            raise self._error(error.strerror, trajectory, offset) from error
        record = np.frombuffer(content, self._dtype)[0]
        if count != size or google_crc32c.value(bytes(content[:-4])) != record["record_crc32c"]:
            raise self._error("the record's checksum does not match", trajectory, offset)
        return Place(
            shard=int(record["shard"]),
            offset=int(record["offset"]),
            crc32c=record["crc32c"],
            parameters=record["parameters"],
            static_offset=int(record["static_offset"]),
            static_crc32c=int(record["static_crc32c"]),
            mask_offset=int(record["mask_offset"]),
            mask_crc32c=int(record["mask_crc32c"]),
        )

    def _error(self, problem: object, trajectory: int, offset: int) -> DataError:
        return DataError(
            f"damaged index: {problem}",
            file=self._path(self._name),
            key=f"{self._info.name}, trajectory {trajectory}, offset {offset}",
            remedy=_REMEDY,
        )


class WholeIndex:
    """An index of format 1. It knows no static fields. Raises DataError when it cannot be read."""

    def __init__(self, file: Path) -> None:
        try:
            with np.load(file, allow_pickle=False) as index:
                self._shard, self._offset = index["shard"], index["offset"]
                self._crc32c, self._parameters = index["crc32c"], index["parameters"]
        except (OSError, ValueError, KeyError) as error:
            raise DataError("not a readable index", file=file, found=error, remedy=_REMEDY) from None

    def place(self, trajectory: int) -> Place:
        """See `Index.place`."""
        shard, offset = int(self._shard[trajectory]), int(self._offset[trajectory])
        return Place(shard, offset, self._crc32c[trajectory], self._parameters[trajectory])


_REMEDY = "copy the index again, or delete the shards and export them again"
