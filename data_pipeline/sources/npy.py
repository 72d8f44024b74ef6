"""NPY arrays, in a file of their own or in an NPZ archive: any part of one, without reading the rest into memory."""

import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from data_pipeline.base.errors import DataError

Index = tuple[int | slice, ...]
"""One entry an axis: a number, which drops the axis, or a slice with a positive step."""
_BLOCK = 16 * 2**20
"""Bytes between the parts of a strided read that are read along with them."""
_PIECE = 2**20
"""Bytes that are read at once: archives hold what they decompress more than once."""
_HEADERS: dict[tuple[int, int], Callable[[IO[bytes]], Any]] = {
    (1, 0): npy_format.read_array_header_1_0,
    (2, 0): npy_format.read_array_header_2_0,
}


@dataclass(frozen=True)
class NpyStream:
    """One array in the NPY format, at the start of an open file."""

    file: IO[bytes]
    start: int
    """Position of the first byte of the values."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool

    def read(self, index: Index) -> NDArray[Any]:
        """A part of the array, reading little more than it (in a compressed archive, also what lies before it).

        Raises:
            ValueError: the file ends before the array does.
        """
        if self.fortran:  # column-major order is row-major order of the reversed axes
            return self._part(self.shape[::-1], index[::-1], self.start).T
        return self._part(self.shape, index, self.start)

    def _part(self, shape: tuple[int, ...], index: Index, offset: int) -> NDArray[Any]:
        if not shape:
            return self._block(offset, ())
        (head, *tail), row = index, prod(shape[1:]) * self.dtype.itemsize
        if isinstance(head, int):
            return self._part(shape[1:], tuple(tail), offset + head * row)
        start, stop, step = head.indices(shape[0])
        count = max(0, stop - start)
        whole = step == 1 and all(isinstance(i, slice) and i == slice(None) for i in tail)
        if whole or count * row <= _BLOCK or len(shape) == 1:
            return self._block(offset + start * row, (count, *shape[1:]))[(slice(None, None, step), *tail)]
        parts = [self._part(shape[1:], tuple(tail), offset + i * row) for i in range(start, stop, step)]
        return np.stack(parts)

    def _block(self, offset: int, shape: tuple[int, ...]) -> NDArray[Any]:
        values = np.empty(shape, self.dtype)
        target = values.reshape(-1).view(np.uint8)
        self.file.seek(offset)
        for start in range(0, len(target), _PIECE):
            part = target[start : start + _PIECE]
            data = self.file.read(len(part))
            if len(data) != len(part):
                raise ValueError(f"the file ends {len(target) - start - len(data)} bytes too early")
            part[:] = np.frombuffer(data, np.uint8)
        return values


def npy_stream(file: IO[bytes], size: int) -> NpyStream:
    """The array of an NPY file of `size` bytes.

    Raises:
        ValueError: it is not NPY, ends too early, or holds pickled objects.
    """
    version = npy_format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"NPY version {version} is for tables, not for arrays of numbers")
    shape, fortran, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError("pickled objects, which are not read: they could run any program")
    start = file.tell()
    if start + prod(shape) * dtype.itemsize > size:
        raise ValueError(f"{size} bytes, where the header promises {start + prod(shape) * dtype.itemsize}")
    return NpyStream(file, start, shape, dtype, fortran)


@contextmanager
def open_npy(path: Path) -> Iterator[NpyStream]:
    """The array of an NPY file. Raises DataError when it is missing, truncated, no NPY, or holds pickled objects."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError("not a readable file", file=path, found=error) from None
    with file:
        try:
            stream = npy_stream(file, os.fstat(file.fileno()).st_size)
        except (ValueError, EOFError, OSError) as error:
            raise DataError(
                "not a readable NPY array", file=path, found=error, expected="an array of numbers"
            ) from None
        yield stream


def npz_stream(archive: zipfile.ZipFile, key: str) -> NpyStream:
    """An array of an NPZ archive. Raises ValueError as `npy_stream` does, KeyError when it is not there."""
    name = f"{key}.npy"
    return npy_stream(archive.open(name), archive.getinfo(name).file_size)
