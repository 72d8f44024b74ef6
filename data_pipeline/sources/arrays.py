"""Arrays in a file of any common container, by name, read a part at a time.

| container | what a part costs |
|---|---|
| NPY, NetCDF 3 | little more than its own bytes |
| HDF5, NetCDF 4, MAT 7.3, Zarr | the chunks that it touches |
| NPZ | as NPY; where it is compressed, all that lies before the part is decompressed, and forgotten |
| MAT 5 | the whole array, once for every opening of the file (at most 2 GiB: the format allows no more) |

Shapes of MAT arrays are those that MATLAB shows, in both versions; HDF5 would show those of 7.3 reversed.
A chunk that is not there is an error, though Zarr and HDF5 would give their fill value: a lost one cannot be told from
one that a writer left out because it held nothing else.
"""

import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.errors import DataError, nearest
from data_pipeline.sources.hdf5 import DAMAGE, Hdf5Reader, open_hdf5
from data_pipeline.sources.npy import Index, npz_stream, open_npy
from data_pipeline.trajectory import FloatArray

SUFFIXES = (".npy", ".npz", ".mat", ".h5", ".hdf5", ".nc", ".zarr")
_DAMAGE = (*DAMAGE, EOFError, IndexError, NotImplementedError, struct.error, zlib.error, zipfile.BadZipFile)
_NUMBERS = "fiubc"
_ROUNDING = 1e-5
"""An imaginary part that is smaller than this part of the largest value is what a Fourier transform left behind."""


@dataclass(frozen=True)
class Array:
    """One array of real numbers, unread."""

    path: Path
    key: str | None
    shape: tuple[int, ...]
    part: Callable[[Index], NDArray[Any]]

    def read(self, index: Index) -> NDArray[Any]:
        """A part of the array: one entry of `index` an axis, a number or a slice with a positive step.

        Raises:
            DataError: its bytes cannot be read, or are complex numbers.
        """
        with damage(self.path, self.key):
            values = self.part(index)
        if values.dtype.kind != "c":
            return values
        if values.size and np.abs(values.imag).max() > _ROUNDING * np.abs(values).max():
            raise self.error(
                "complex numbers", found="an imaginary part that is not rounding", expected="real numbers"
            )
        return np.asarray(values.real)

    def whole(self) -> NDArray[Any]:
        """All of a small array."""
        return self.read((slice(None),) * len(self.shape))

    def error(self, problem: str, **details: Any) -> DataError:
        """A DataError that names file and key."""
        return DataError(problem, file=self.path, key=self.key, **details)


@dataclass(frozen=True)
class Arrays:
    """The arrays of an open file. `keys` is empty where the file holds one array without a name."""

    path: Path
    keys: tuple[str, ...]
    opener: Callable[[str], Array]

    def error(self, problem: str, key: str | None = None, **details: Any) -> DataError:
        """A DataError that names the file."""
        return DataError(problem, file=self.path, key=key, **details)

    def dataset(self, key: str) -> Array:
        """As `array`; this and the next two make a `grids.Reader`."""
        return self.array(key)

    def slab(self, dataset: Any, key: str, index: Index) -> NDArray[Any]:
        """A part of an array. Raises DataError when its bytes cannot be read."""
        values: NDArray[Any] = dataset.read(index)
        return values

    def numbers(self, key: str) -> NDArray[Any]:
        """A whole small array. Raises DataError when it is missing, damaged, or holds NaN or Inf."""
        values = self.array(key).whole()
        if not np.isfinite(values).all():
            raise self.error("NaN or Inf", key, expected="finite numbers")
        return values

    def array(self, key: str | None) -> Array:
        """One array; its name may be left out where there is but one. Raises DataError when it is not there."""
        if key is None and len(self.keys) > 1:
            raise DataError("which array?", file=self.path, found="no key", expected=f"one of {', '.join(self.keys)}")
        if key is not None and key not in self.keys:
            remedy = nearest(key, list(self.keys)) if self.keys else "an NPY array has no name: leave the key out"
            raise DataError("missing key", file=self.path, key=key, found=list(self.keys), remedy=remedy)
        with damage(self.path, key):
            return self.opener(key if key is not None or not self.keys else self.keys[0])  # type: ignore[arg-type]


@contextmanager
def damage(path: Path, key: str | None = None) -> Iterator[None]:
    """What readers raise on damaged bytes, as DataError."""
    try:
        yield
    except _DAMAGE as error:
        problem = "does not fit into memory" if isinstance(error, MemoryError) else "damaged data"
        raise DataError(problem, file=path, key=key, found=error, remedy="fetch the file again") from None


def float32(values: NDArray[Any]) -> FloatArray:
    """In single precision, truth values as ones and zeros; numbers beyond its range become Inf."""
    with np.errstate(over="ignore"):
        return np.asarray(values, dtype=np.float32)


def open_arrays(path: Path) -> AbstractContextManager[Arrays]:
    """Open a file, or the folder of a Zarr array or group, for reading.

    Raises:
        DataError: it is missing, of no known container, damaged, or asks for unpickling.
    """
    if not path.exists():
        raise DataError("file not found", file=path)
    if path.suffix not in SUFFIXES:
        raise DataError("not a container that is known", file=path, found=path.suffix, expected=", ".join(SUFFIXES))
    readers: Mapping[str, Callable[[Path], AbstractContextManager[Arrays]]] = {
        ".npy": _npy, ".npz": _npz, ".zarr": _zarr
    }  # fmt: skip
    return readers.get(path.suffix, _scientific)(path)


def _scientific(path: Path) -> AbstractContextManager[Arrays]:
    """MATLAB, NetCDF and HDF5 files, told apart by their first bytes: names are used for more than one of them."""
    with damage(path):
        if h5py.is_hdf5(path):
            return _hdf5(path)
        with path.open("rb") as file:
            start = file.read(4)
    if start[:3] == b"CDF":
        return _netcdf3(path)
    # HDF5 reports what is wrong with a file that claims to be one, such as a truncated one.
    return _mat5(path) if path.suffix == ".mat" else _hdf5(path)


@contextmanager
def _npy(path: Path) -> Iterator[Arrays]:
    with open_npy(path) as stream:
        yield Arrays(path, (), lambda _: numeric_array(path, None, stream.shape, stream.dtype, stream.read))


@contextmanager
def _npz(path: Path) -> Iterator[Arrays]:
    with damage(path):
        archive = zipfile.ZipFile(path)
    with archive:
        keys = tuple(name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy"))

        @cache
        def opener(key: str) -> Array:
            stream = npz_stream(archive, key)
            return numeric_array(path, key, stream.shape, stream.dtype, stream.read)

        yield Arrays(path, keys, opener)


@contextmanager
def _mat5(path: Path) -> Iterator[Arrays]:
    # Deferred: scipy.io takes a while to import.
    from scipy.io import loadmat, whosmat
    from scipy.io.matlab import MatReadError

    try:
        with damage(path):
            _check_length(path)
            known = {name: (shape, kind) for name, shape, kind in whosmat(path)}
    except MatReadError as error:
        raise DataError("not a readable MATLAB file", file=path, found=error, remedy="fetch the file again") from None

    @cache
    def whole(key: str) -> NDArray[Any]:
        try:
            return np.asarray(loadmat(path, variable_names=[key])[key])
        except MatReadError as error:
            raise ValueError(str(error)) from error

    def opener(key: str) -> Array:
        shape, kind = known[key]
        if kind in ("cell", "struct", "object", "char", "sparse", "function", "opaque"):
            raise DataError("not an array of numbers", file=path, key=key, found=f"MATLAB {kind}")
        return Array(path, key, tuple(shape), lambda index: whole(key)[index])

    yield Arrays(path, tuple(known), opener)


def _check_length(path: Path) -> None:
    """Raise EOFError when a MAT 5 file ends within an array: readers take its end for that of the list of arrays."""
    with path.open("rb") as file:
        head, size, place = file.read(128), path.stat().st_size, 128
        order = {b"IM": "<", b"MI": ">"}.get(head[126:128])
        while order is not None and place < size:
            file.seek(place)
            tag = file.read(8)
            place += 8 + (struct.unpack(f"{order}II", tag)[1] if len(tag) == 8 else 0)
            if place > size:
                raise EOFError(f"{size} bytes, where {place} are promised")


@contextmanager
def _netcdf3(path: Path) -> Iterator[Arrays]:
    from scipy.io import netcdf_file

    def opened() -> AbstractContextManager[Any]:
        return closing(netcdf_file(path, "r", mmap=True))

    with damage(path), opened() as file:
        keys = tuple(file.variables)

    def opener(key: str) -> Array:
        with opened() as file:
            variable = file.variables[key]
            attributes = {name: getattr(variable, name) for name in _PACKING if hasattr(variable, name)}
            shape, dtype = variable.shape, variable.data.dtype
            del variable

        def part(index: Index) -> NDArray[Any]:
            # Opened anew, since the pages of a file stay in memory for as long as it is mapped.
            with opened() as file:
                return _unpacked(np.array(file.variables[key].data[index]), attributes)

        return numeric_array(path, key, shape, dtype, part)

    yield Arrays(path, keys, opener)


@contextmanager
def _hdf5(path: Path) -> Iterator[Arrays]:
    with open_hdf5(path) as reader:
        names: list[str] = []
        reader.root.visititems(lambda name, node: names.append(name) if isinstance(node, h5py.Dataset) else None)
        yield Arrays(path, tuple(names), cache(partial(_hdf5_array, reader)))


def _hdf5_array(reader: Hdf5Reader, key: str) -> Array:
    dataset = reader.dataset(key)
    reader.check_written(dataset, key)
    if reader.path.suffix == ".mat":
        return Array(reader.path, key, dataset.shape[::-1], lambda index: np.asarray(dataset[index[::-1]]).T)
    attributes = {name: dataset.attrs[name] for name in _PACKING if name in dataset.attrs}
    return Array(reader.path, key, dataset.shape, lambda index: _unpacked(np.asarray(dataset[index]), attributes))


def _zarr(path: Path) -> AbstractContextManager[Arrays]:
    # Deferred: zarr takes half a second to import.
    from data_pipeline.sources.zarr_arrays import open_zarr

    return open_zarr(path)


def numeric_array(path: Path, key: str | None, shape: Any, dtype: Any, part: Callable[[Index], NDArray[Any]]) -> Array:
    """One array, unread. Raises DataError when it does not hold numbers."""
    if dtype.kind not in _NUMBERS:
        raise DataError("not an array of numbers", file=path, key=key, found=f"dtype {dtype}", expected="floats")
    return Array(path, key, tuple(int(n) for n in shape), part)


_PACKING = ("scale_factor", "add_offset", "_FillValue", "missing_value")
"""The attributes of NetCDF's convention for packed values."""


def _unpacked(values: NDArray[Any], attributes: Mapping[str, Any]) -> NDArray[Any]:
    """Values as NetCDF's convention has them: gaps are NaN, and what was packed is scaled."""
    if not attributes:
        return values
    gaps = [np.ravel(attributes[name])[0] for name in _PACKING[2:] if name in attributes]
    missing = np.isin(values, gaps)
    scale, offset = (float(np.ravel(attributes.get(n, d))[0]) for n, d in zip(_PACKING[:2], (1.0, 0.0), strict=True))
    if missing.any() or (scale, offset) != (1.0, 0.0):
        values = np.where(missing, np.nan, values * scale + offset)
    return values
