"""Files of the Fourier neural operator's and PINO's authors: MATLAB files of both versions, and NPY.

Z. Li et al., "Fourier Neural Operator for Parametric Partial Differential Equations" (2021), and "Physics-Informed
Neural Operator for Learning Partial Differential Equations" (2021).

- `ns_V1e-3_N5000_T50.mat` and the like: `u` (b, x, y, t), `a` (b, x, y), `t`. Vorticity; `a` is the state one step
  before the first frame, kept as the static field `initial_vorticity`.
- `burgers_data_R10.mat`: `a` and `u` (b, x), the two frames at times 0 and 1.
- `burgers_pino.mat`: `output` (b, t, x) from time 0 to 1, `input` (b, x), kept as `initial_velocity_x`, and `visc`.
- `piececonst_r421_N1024_smooth1.mat`: `coeff` and `sol` (b, x, y), a steady problem.
- `NS_fft_Re500_T4000.npy` (b, x, y, t) and `NS_fine_Re500_*.npy` (b, t, x, y): vorticity; the time step is not said.

Axes are those that MATLAB shows. The reference reads version 7.3 with x and y exchanged, which its own working format
(`layout: dpot`) keeps; here x comes first. A name says the viscosity (`V1e-3`) or the Reynolds number (`Re500`);
`V100` and the like do not, since their publishers count it in more than one way: see `convert.parameters`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from math import pi
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.errors import DataError
from data_pipeline.config import ConvertConfig
from data_pipeline.sources.array_header import array_header, node_grid
from data_pipeline.sources.arrays import Array, Arrays, open_arrays
from data_pipeline.sources.blocks import Block, BlockHeader, reading
from data_pipeline.sources.find import by_suffix
from data_pipeline.sources.grids import Grid, uniform_times
from data_pipeline.sources.layout import Header, Read
from data_pipeline.sources.names import INITIAL, PERMEABILITY, SOLUTION, VELOCITY, VORTICITY
from data_pipeline.sources.npy import Index

BURGERS = "u_t + u u_x = nu u_xx"
DARCY = "-div(a grad u) = 1"
_PAIR = "a, u"
"""The two frames of Burgers' equation as one array."""
_FLOW = "w_t + u.grad w = nu lap w + f"


class Fno:
    """See the head of this file."""

    title = "FNO"
    expected = "*.mat with 'u' and 'a', 'input' and 'output', or 'coeff' and 'sol'; or NS_*.npy"

    def files(self, path: Path) -> list[Path]:
        """See `Layout.files`."""
        return [file for file in by_suffix(path, (".mat", ".npy")) if _is_ours(file)]

    def header(self, path: Path, config: ConvertConfig) -> Header:
        """See `Layout.header`."""
        with _open(path) as arrays:
            kind = _kind(arrays)
            if kind is None:
                expected = "'u' with 'a' or 't'; 'input' with 'output'; or 'coeff' with 'sol'"
                raise arrays.error("no arrays of this layout", found=sorted(arrays.keys), expected=expected)
            header = kind(arrays, config)
            used = {block.key for block in (*header.blocks, *header.static_blocks)} | {"t", "visc", "a", "u", _PAIR}
            left_out = tuple(f"{key}: not a field of this layout" for key in arrays.keys if key not in used)
            return replace(header, left_out=left_out)

    @contextmanager
    def open(self, header: Header, config: ConvertConfig) -> Iterator[Read]:
        """See `Layout.open`."""
        assert isinstance(header, BlockHeader)
        with _open(header.path) as arrays:
            yield reading(arrays, header)


LAYOUT = Fno()


def _is_ours(file: Path) -> bool:
    if file.suffix == ".npy":
        return file.name.startswith("NS_")
    if re.match(r"ns_|NavierStokes_|burgers_data|burgers_pino|piececonst", file.name):
        return True  # whatever is wrong with it is for `header` to say
    try:
        with open_arrays(file) as arrays:
            return _kind(arrays) is not None
    except DataError:
        return False


@contextmanager
def _open(path: Path) -> Iterator[Arrays]:
    with open_arrays(path) as arrays:

        def opener(key: str) -> Array:
            return _stacked(arrays.array("a"), arrays.array("u")) if key == _PAIR else arrays.array(key)

        if path.suffix == ".npy":  # one array, without a name
            yield Arrays(path, ("u",), lambda _: arrays.array(None))
        else:
            yield Arrays(path, (*arrays.keys, _PAIR), opener)


def _stacked(first: Array, last: Array) -> Array:
    """Two frames (b, x) as (b, t, x)."""
    if len(first.shape) != 2 or first.shape != last.shape:
        raise first.error("the array does not fit 'u'", found=first.shape, expected=last.shape)

    def part(index: Index) -> NDArray[Any]:
        trajectory, frames, points = index
        return np.stack([one.read((trajectory, points)) for one in (first, last)])[frames]

    return Array(first.path, _PAIR, (first.shape[0], 2, first.shape[1]), part)


_Kind = Callable[[Arrays, ConvertConfig], BlockHeader]


def _kind(arrays: Arrays) -> _Kind | None:
    """Which of the kinds of files this is, by its arrays."""
    keys = set(arrays.keys)
    if arrays.path.suffix == ".npy":
        return _forced_flow
    if {"coeff", "sol"} <= keys:
        return _darcy
    if {"input", "output"} <= keys:
        return _burgers
    if "u" not in keys or not keys & {"a", "t"}:
        return None
    return _burgers_pair if len(arrays.array("u").shape) == 2 else _flow


def _flow(arrays: Arrays, config: ConvertConfig) -> BlockHeader:
    static = [Block("a", "bxy", (f"{INITIAL}_{VORTICITY}",))] if "a" in arrays.keys else []
    found = re.search(r"V(\d+(?:\.\d+)?e-\d+)", arrays.path.name)
    values = {"viscosity": float(found[1])} if found else {}
    fields = [Block("u", "bxyt", (VORTICITY,))]
    header = array_header(arrays, fields, static, boundary="periodic", equation=_FLOW, values=values)
    if "t" not in arrays.keys:
        return header
    times, dt = uniform_times(arrays, "t", header.frames, config, arrays.numbers("t").reshape(-1))
    return replace(header, times=times, dt=dt)


def _forced_flow(arrays: Arrays, _config: ConvertConfig) -> BlockHeader:
    shape = arrays.array("u").shape
    if len(shape) != 4 or (shape[1] == shape[2]) == (shape[2] == shape[3]):
        expected = "(b, x, y, t) or (b, t, x, y) on a square grid, with another number of frames than points"
        raise arrays.error("the axes cannot be told apart", found=shape, expected=expected)
    axes = "bxyt" if shape[1] == shape[2] else "btxy"
    found = re.search(r"Re(\d+)", arrays.path.name)
    values = {"reynolds_number": float(found[1])} if found else {}
    fields, box = [Block("u", axes, (VORTICITY,))], Grid(((0.0, 2 * pi),) * 2, ())
    return array_header(arrays, fields, boundary="periodic", equation=_FLOW, grid=box, values=values)


def _burgers_pair(arrays: Arrays, _config: ConvertConfig) -> BlockHeader:
    found = re.search(r"R(\d+)", arrays.path.name)
    values = {"viscosity": 1 / float(found[1])} if found else {}
    fields = [Block(_PAIR, "btx", (VELOCITY[0],))]
    return array_header(arrays, fields, boundary="periodic", equation=BURGERS, dt=1.0, values=values)


def _burgers(arrays: Arrays, _config: ConvertConfig) -> BlockHeader:
    fields, static = [Block("output", "btx", (VELOCITY[0],))], [Block("input", "bx", (f"{INITIAL}_{VELOCITY[0]}",))]
    return unit_time(array_header(arrays, fields, static, boundary="periodic", equation=BURGERS, values=visc(arrays)))


def visc(arrays: Arrays) -> Mapping[str, float]:
    """The viscosity that a file holds as an array of one number."""
    return {"viscosity": float(arrays.numbers("visc").ravel()[0])} if "visc" in arrays.keys else {}


def unit_time(header: BlockHeader) -> BlockHeader:
    """With frames from time 0 to 1, both ends included."""
    dt = 1 / max(1, header.frames - 1)
    return replace(header, dt=dt, times=dt * np.arange(header.frames, dtype=np.float64)[None])


def _darcy(arrays: Arrays, _config: ConvertConfig) -> BlockHeader:
    static = [Block("coeff", "bxy", (PERMEABILITY,))]
    header = array_header(arrays, [Block("sol", "bxy", (SOLUTION,))], static, boundary="wall", equation=DARCY)
    return replace(header, coordinates=node_grid(header.space).coordinates)
