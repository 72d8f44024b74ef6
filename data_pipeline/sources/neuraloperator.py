"""Tensors in the `.pt` files of the neuraloperator library (Zenodo 12784353, 12825163; small ones in its sources).

- `darcy_{train,test}_*.pt`: `x` truth values (b, x, y), `y` (b, x, y). A steady problem; the permeability stays zeros
  and ones, as published.
- `nsforcing_{train,test}_*.pt`: `x`, `y` (b, x, y). A steady problem: from forcing to vorticity.
- `burgers_{train,test}_*.pt`: `y` (b, t, x) from time 0 to 1, `x` (b, x), which is its first frame, and `visc`.

The split is in the name. Files are read by torch's weights-only unpickler, which runs no program; what asks for more
is refused. A tensor may be a view of a storage that holds more: the small Burgers files each store all 1200
trajectories, training and test, and say which ones are theirs. Only what the tensor shows is read. Files are mapped
into memory; where trajectories are the fastest axis, as in those small ones, each touches all of a tensor's pages.
`mini_car.pt` and other meshes have no grid, and are refused.
"""

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.errors import DataError
from data_pipeline.config import ConvertConfig, Split
from data_pipeline.sources.array_header import array_header, node_grid
from data_pipeline.sources.arrays import Array, Arrays, damage
from data_pipeline.sources.blocks import Block, BlockHeader, reading
from data_pipeline.sources.find import by_suffix
from data_pipeline.sources.fno import BURGERS, DARCY, unit_time, visc
from data_pipeline.sources.layout import Header, Read
from data_pipeline.sources.names import COEFFICIENT, INITIAL, PERMEABILITY, SOLUTION, SOURCE, VELOCITY, VORTICITY
from data_pipeline.sources.npy import Index
from data_pipeline.trajectory import Boundary

_STEADY: Mapping[str, tuple[str, str, Boundary, str]] = {
    "darcy": (PERMEABILITY, SOLUTION, "wall", DARCY),
    "nsforcing": (SOURCE, VORTICITY, "periodic", "Navier-Stokes, from the forcing to the vorticity"),
}
"""By the start of the name: static field, field, boundary, equation."""
_MAPPED = 64 * 2**20
"""Bytes that are read of a file before it is mapped anew."""
_OTHER: tuple[str, str, Boundary, str] = (COEFFICIENT, SOLUTION, "open", "")


class NeuralOperator:
    """See the head of this file."""

    title = "neuraloperator"
    expected = "*.pt with tensors 'x' and 'y'"

    def files(self, path: Path) -> list[Path]:
        """See `Layout.files`. A file that is named itself is taken, so that `header` says what is wrong with it."""
        return [file for file in by_suffix(path, (".pt",)) if file == path or _is_ours(file)]

    def header(self, path: Path, config: ConvertConfig) -> Header:
        """See `Layout.header`."""
        with _open(path) as arrays:
            steady = len(arrays.array("x").shape) == len(arrays.array("y").shape)
            header = _steady(arrays) if steady else _burgers(arrays)
            left_out = [f"{key}: not a field of this layout" for key in arrays.keys if key not in ("x", "y", "visc")]
            return replace(header, split=_split(path), left_out=(*header.left_out, *left_out))

    @contextmanager
    def open(self, header: Header, config: ConvertConfig) -> Iterator[Read]:
        """See `Layout.open`."""
        assert isinstance(header, BlockHeader)
        with _open(header.path) as arrays:
            yield reading(arrays, header)


LAYOUT = NeuralOperator()


def _is_ours(file: Path) -> bool:
    try:
        with _open(file) as arrays:
            return {"x", "y"} <= set(arrays.keys)
    except DataError:  # damage is for `header` to report
        return file.name.startswith((*_STEADY, "burgers_"))


@contextmanager
def _open(path: Path) -> Iterator[Arrays]:
    tensors = _Tensors(path)

    def opener(key: str) -> Array:
        tensor = tensors.content[key]
        if tensor.is_complex() or tensor.is_sparse or tensor.is_quantized:
            raise DataError("not an array of real numbers", file=path, key=key, found=str(tensor.dtype))
        return Array(path, key, tuple(tensor.shape), partial(tensors.part, key))

    yield Arrays(path, tuple(tensors.content), opener)


class _Tensors:
    """The tensors of a file, mapped into memory, and now and then anew: what has been read stays there until then."""

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, 0
        self.content = _load(path)

    def part(self, key: str, index: Index) -> NDArray[Any]:
        """A part of a tensor, copied."""
        if self._read > _MAPPED:
            self.content, self._read = _load(self._path), 0
        values = _numpy(self.content[key][index])
        self._read += values.nbytes
        return values


def _numpy(tensor: Any) -> NDArray[Any]:
    # A copy, since the file is mapped only as long as it is open; numpy knows no bfloat16.
    return np.array(tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor)


def _load(path: Path) -> dict[str, Any]:
    """The tensors of a file by name. Raises DataError when it cannot be read, or holds no such thing."""
    # Deferred: torch takes seconds to import, and other layouts do without.
    import torch

    if not path.is_file():
        raise DataError("file not found", file=path)
    try:
        # Files from before torch 1.6 are no archives, and cannot be mapped: they are read whole.
        with damage(path):
            content = torch.load(path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise DataError(
            "damaged, or a pickle that holds more than tensors, which is not read: it could run any program",
            file=path,
            found=_reason(error),
            expected="a dictionary of tensors",
        ) from None
    tensors = {str(k): v for k, v in content.items() if torch.is_tensor(v)} if isinstance(content, dict) else {}
    if not tensors:
        size = len(content) if isinstance(content, list | tuple | dict) else 1
        remedy = "meshes and point clouds (mini_car.pt) have no grid, and are not taken"
        found = f"a {type(content).__name__} of {size}"
        raise DataError("no tensors by name", file=path, found=found, expected="tensors 'x' and 'y'", remedy=remedy)
    return tensors


def _reason(error: Exception) -> str:
    """The line of torch's long message that names what was asked for."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "GLOBAL" in line or "global" in line), lines[0] if lines else repr(error))


def _steady(arrays: Arrays) -> BlockHeader:
    facts = next((facts for name, facts in _STEADY.items() if arrays.path.name.startswith(name)), _OTHER)
    static, field, boundary, equation = facts
    fields, inputs = [Block("y", "bxy", (field,))], [Block("x", "bxy", (static,))]
    header = array_header(arrays, fields, inputs, boundary=boundary, equation=equation, values=visc(arrays))
    return replace(header, coordinates=node_grid(header.space).coordinates) if boundary == "wall" else header


def _burgers(arrays: Arrays) -> BlockHeader:
    fields, first = [Block("y", "btx", (VELOCITY[0],))], Block("x", "bx", (f"{INITIAL}_{VELOCITY[0]}",))
    header = array_header(arrays, fields, [first], boundary="periodic", equation=BURGERS, values=visc(arrays))
    same = np.array_equal(arrays.array("x").read((0, slice(None))), arrays.array("y").read((0, 0, slice(None))))
    if same:
        header = replace(header, static_blocks=(), static_channels=(), left_out=("x: the first frame once more",))
    return unit_time(header)


def _split(path: Path) -> Split | None:
    splits: tuple[Split, ...] = ("train", "test")
    return next((split for split in splits if split in path.stem.split("_")), None)
