"""Reading HDF5 so that every surprise becomes an error that names file, key, found and expected."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.errors import DataError, nearest

DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError)
"""What h5py raises on bytes that are not what their headers say; found by flipping bytes of sound files."""


@dataclass(frozen=True)
class Hdf5Reader:
    """An open HDF5 file whose look-ups raise DataError. Keys are paths from the root; the root itself is "/"."""

    path: Path
    root: Any

    def error(self, problem: str, key: str | None = None, **details: Any) -> DataError:
        """A DataError that names this file."""
        return DataError(problem, file=self.path, key=key, **details)

    def damaged(self, key: str | None, error: Exception) -> DataError:
        """The DataError for an exception of DAMAGE."""
        problem = "does not fit into memory" if isinstance(error, MemoryError) else "damaged data"
        return self.error(problem, key, found=error, expected="readable HDF5", remedy="fetch the file again")

    def group(self, key: str) -> Any:
        """The group at `key`. Raises DataError when it is missing or is an array."""
        node = self._node(key)
        if not isinstance(node, h5py.Group):
            raise self.error("not a group", key, found=f"an array of shape {node.shape}", expected="a group")
        return node

    def dataset(self, key: str) -> Any:
        """The array at `key`, unread. Raises DataError when it is missing, a group, or not numeric."""
        node = self._node(key)
        if not isinstance(node, h5py.Dataset) or node.shape is None:
            raise self.error("not an array", key, found="a group or an empty node", expected="an array")
        if node.dtype.kind not in "fiub":
            raise self.error("not an array of real numbers", key, found=f"dtype {node.dtype}", expected="floats")
        return node

    def numbers(self, key: str) -> NDArray[np.generic]:
        """A whole small array, in its own dtype. Raises DataError when it is missing, damaged, or holds NaN or Inf."""
        values = self.slab(self.dataset(key), key, ())
        if not np.isfinite(values).all():
            raise self.error("NaN or Inf", key, expected="finite numbers")
        return values

    def slab(self, dataset: Any, key: str, index: tuple[Any, ...]) -> NDArray[np.generic]:
        """A part of an array. Raises DataError when its bytes cannot be read."""
        try:
            return np.asarray(dataset[index])
        except DAMAGE as error:
            raise self.damaged(key, error) from error

    def check_written(self, dataset: Any, key: str) -> None:
        """Raise DataError when parts of an array were never written: HDF5 would read them as zeros."""
        if dataset.size == 0 or dataset.is_virtual or dataset.external:
            return
        if dataset.chunks is None:
            complete = dataset.id.get_storage_size() > 0
        else:
            chunks = prod(-(-n // c) for n, c in zip(dataset.shape, dataset.chunks, strict=True))
            complete = dataset.id.get_num_chunks() >= chunks
        if not complete:
            raise self.error(
                "parts of the array were never written",
                key,
                found=f"{dataset.id.get_storage_size()} bytes stored",
                expected=f"all of an array of shape {dataset.shape}",
                remedy="the writer was stopped half-way: make or fetch the file again",
            )

    def attribute(self, key: str, name: str, *, default: Any = None) -> Any:
        """An attribute of the node at `key`, else `default`; without a default a missing one raises DataError."""
        node = self._node(key)
        try:
            if name in node.attrs:
                return node.attrs[name]
        except DAMAGE as error:
            raise self.damaged(f"{key}@{name}", error) from error
        if default is None:
            raise self.error(
                "missing attribute", f"{key}@{name}", found=f"attributes {sorted(node.attrs)}", expected=f"@{name}"
            )
        return default

    def flag(self, key: str, name: str, *, default: bool | None = None) -> bool:
        """A true-or-false attribute."""
        return self._flags(self.attribute(key, name, default=default), f"{key}@{name}", 1)[0]

    def flags(self, key: str, name: str, count: int) -> list[bool]:
        """An attribute that is a list of so many true-or-false values."""
        return self._flags(self.attribute(key, name), f"{key}@{name}", count)

    def count(self, key: str, name: str) -> int:
        """An attribute that is a whole number of one or more."""
        value = np.asarray(self.attribute(key, name))
        whole = value.size == 1 and value.dtype.kind in "iuf" and float(value.reshape(-1)[0]).is_integer()
        if not whole or int(value.reshape(-1)[0]) < 1:
            raise self.error(
                "not a count", f"{key}@{name}", found=value.tolist(), expected="a whole number, 1 or more"
            )
        return int(value.reshape(-1)[0])

    def text(self, key: str, name: str, *, default: str | None = None) -> str:
        """An attribute that is one string."""
        words = self._words(self.attribute(key, name, default=default), f"{key}@{name}")
        if len(words) != 1:
            raise self.error("not one string", f"{key}@{name}", found=words, expected="a string")
        return words[0]

    def names(self, key: str, name: str) -> tuple[str, ...]:
        """An attribute that is a list of strings; a plain string counts as a list of one, an empty array as none."""
        return self._words(self.attribute(key, name), f"{key}@{name}")

    def _flags(self, value: Any, key: str, count: int) -> list[bool]:
        flags = np.ravel(value)
        if flags.size != count or flags.dtype.kind not in "biu":
            what = "true or false" if count == 1 else f"{count} times true or false"
            raise self.error("not flags", key, found=flags.tolist(), expected=what)
        return [bool(flag) for flag in flags]

    def _words(self, value: Any, key: str) -> tuple[str, ...]:
        if isinstance(value, h5py.Empty):
            return ()
        words = [word.decode(errors="replace") if isinstance(word, bytes) else word for word in np.ravel(value)]
        if not all(isinstance(word, str) for word in words):
            raise self.error("not a list of strings", key, found=words, expected="strings")
        return tuple(str(word) for word in words)

    def _node(self, key: str) -> Any:
        try:
            if key in self.root:
                return self.root[key]
            parent = key.rpartition("/")[0] or "/"
            siblings = sorted(self.root[parent]) if parent in self.root else []
        except DAMAGE as error:
            raise self.damaged(key, error) from error
        hint = nearest(key.rpartition("/")[2], siblings) if siblings else None
        raise self.error("missing key", key, found=f"in {parent!r}: {siblings}", expected=repr(key), remedy=hint)


@contextmanager
def open_hdf5(path: Path) -> Iterator[Hdf5Reader]:
    """Open an HDF5 file for reading. Raises DataError when it is missing, truncated, not HDF5, or proves damaged."""
    try:
        root = h5py.File(path, "r")
    except FileNotFoundError:
        raise DataError("file not found", file=path) from None
    except DAMAGE as error:
        raise DataError(
            "not a readable HDF5 file",
            file=path,
            found=error,
            expected="a whole HDF5 file",
            remedy="it may be truncated by a broken download: fetch it again",
        ) from None
    reader = Hdf5Reader(path, root)
    with root:
        try:
            yield reader
        except DAMAGE as error:
            raise reader.damaged(None, error) from error
