"""Files of PDEgym, the data of Poseidon (M. Herde et al., "Poseidon: Efficient Foundation Models for PDEs", 2024).

NetCDF-4 files (`NS-Sines.nc`), read as the HDF5 that they are, and `Helmholtz.h5` with one group a sample. Published
chunks (`velocity_0.nc`, `velocity_1.nc`, ... in a folder named as the set) are read as they are, in numeric order.
Which set a file is stands in its name, or in that of its folder: the arrays do not say it.

Choices, as in the publisher's own reader:

- Time runs from 0 to 1 over all the published frames, so `dt` is 1/20 for most sets, 1/10 for GCE-RT, 1/15 for
  Wave-Gauss and 1/19 for ACE. The domain is the unit square. Neither stands in the files.
- The last trajectories are for testing, those before them for validation; how many depends on the set.
- In NS-SL the axes x and y are exchanged in the file; they are put right, the components stay as they are.
- FNS-KF gets its forcing, 0.1 sin(2 pi (x + y)), which its files do not hold, as a static field.
- Wave speed `c`, the right-hand side of Poisson's equation and the coefficient `a` of Helmholtz's are static fields;
  the boundary value `bc` of Helmholtz's equation is a parameter.
- SE-AF: the first channel is 1 inside the airfoil. It is kept as the static field `airfoil`, and points where it is 1
  are outside the mask.
- The gravity potential of GCE-RT is a field like the others, as it is stored; channels without a documented meaning
  are called `channel_4` and so on.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.config import ConvertConfig
from data_pipeline.sources.blocks import Block, BlockHeader, channels, keep, measure, reading
from data_pipeline.sources.find import hdf5_files, natural
from data_pipeline.sources.grids import Floats, decimals, unit_grid
from data_pipeline.sources.hdf5 import Hdf5Reader, open_hdf5
from data_pipeline.sources.layout import Header, Layout, Read
from data_pipeline.sources.poseidon_sets import SETS, PoseidonSet, find_set
from data_pipeline.trajectory import FloatArray, Trajectory

AIRFOIL = "airfoil"
_CHUNK = re.compile(r"(velocity|solution|data)_\d+", re.IGNORECASE)
_SAMPLE = re.compile(r"Sample_\d+")


class Poseidon:
    """PDEgym as `Layout`."""

    title = "Poseidon (PDEgym)"
    expected = "*.nc with velocity, solution or data, named as in PDEgym (NS-Sines.nc), or Helmholtz.h5"

    def files(self, path: Path) -> list[Path]:
        """NetCDF-4 files with an array `velocity`, `solution` or `data`, and HDF5 files with groups `Sample_0`, ..."""
        names = "|".join(one.names for one in SETS)
        netcdf = hdf5_files(path, (".nc",), lambda root: bool({"velocity", "solution", "data"} & set(root)), names)
        return netcdf + hdf5_files(path, (".h5", ".hdf5"), _has_samples, names)

    def header(self, path: Path, config: ConvertConfig) -> BlockHeader:
        """The checked header of a file. Of samples in groups, the first is checked; others when they are read."""
        of = find_set(path.parent.name if _CHUNK.fullmatch(path.stem) else path.stem)
        with open_hdf5(path) as reader:
            if of is None:
                raise reader.error(
                    "the name does not say which of PDEgym's sets this is",
                    found=f"{path.parent.name}/{path.name}, with {sorted(reader.root)[:20]}",
                    expected="NS-..., FNS-KF, CE-..., GCE-RT, ACE, Wave-..., Poisson-..., SE-AF or Helmholtz",
                    remedy="give the file (of chunks: their folder) its published name",
                )
            return _header(reader, of, config)

    @contextmanager
    def open(self, header: Header, config: ConvertConfig) -> Iterator[Read]:
        """Open a file for reading."""
        assert isinstance(header, BlockHeader)
        with open_hdf5(header.path) as reader:

            def sample(index: int, one: Trajectory) -> Trajectory:
                key = f"{header.groups[index]}/bc"
                return replace(one, parameters={"boundary_value": float(_scalar(reader, key))})

            yield reading(reader, header, sample if header.groups else _masked if header.masked else keep)


LAYOUT: Layout = Poseidon()


def _has_samples(root: Any) -> bool:
    return any(_SAMPLE.fullmatch(key) for key in root)


def _masked(_: int, one: Trajectory) -> Trajectory:
    """The trajectory with the mask that its airfoil makes."""
    assert one.static is not None
    return replace(one, mask=one.static[..., 0] != 1)


def _scalar(reader: Hdf5Reader, key: str) -> Floats:
    values = reader.numbers(key)
    if values.size != 1:
        raise reader.error("not one number", key, found=f"shape {values.shape}", expected="a scalar")
    return decimals(values.reshape(()))


def _header(reader: Hdf5Reader, of: PoseidonSet, config: ConvertConfig) -> BlockHeader:
    groups = sorted(filter(_SAMPLE.fullmatch, reader.root), key=natural) if "*" in of.key else []
    if "*" in of.key and not groups:
        raise reader.error("missing key", "Sample_0", found=sorted(reader.root)[:20], expected="groups Sample_0, ...")
    first = groups[0] if groups else ""
    fields, static = _blocks(reader, of)
    sizes = measure(reader, (*fields, *static), first)
    frames, space = sizes.get("t", 1), (sizes["x"], sizes["y"])
    dt = 1 / of.steps if of.steps and frames > 1 else 0.0
    forcing = _forcing(space) if of.names == "^FNS-KF" else None
    taken = {block.key for block in (*fields, *static)}
    return BlockHeader(
        path=reader.path,
        trajectories=len(groups) or sizes["b"],
        frames=frames,
        channels=channels(fields),
        axes=("x", "y"),
        space=space,
        extent=unit_grid(2).extent,
        boundaries=(of.boundary, of.boundary),
        dt=dt,
        static_channels=channels(static) + (("force",) if forcing is not None else ()),
        parameters=("boundary_value",) if groups else (),
        masked=AIRFOIL in channels(static),
        rule=of.rule,
        equation=of.equation,
        blocks=fields,
        static_blocks=static,
        shared_static=forcing,
        groups=tuple(groups),
        times=(config.dt or dt) * np.arange(frames, dtype=np.float64)[None],
        left_out=() if groups else tuple(f"array {key!r}" for key in sorted(set(reader.root) - taken)),
    )


def _blocks(reader: Hdf5Reader, of: PoseidonSet) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
    """Blocks of the fields and of the static fields."""
    static = tuple(Block(key, of.axes.replace("t", ""), (name,)) for key, name in of.static.items())
    if "c" not in of.axes:
        return (Block(of.key, of.axes, of.channels),), static
    shape, axis = reader.dataset(of.key).shape, of.axes.index("c")
    count = shape[axis] if len(shape) == len(of.axes) else len(of.channels)
    if find_set("SE-AF") is of:
        return (Block(of.key, of.axes, of.channels, 1),), (Block(of.key, of.axes, (AIRFOIL,), 0),)
    if count < of.fewest:
        found, expected = f"shape {shape}", f"{of.fewest} or more along axis {axis}"
        raise reader.error("too few components", of.key, found=found, expected=expected)
    extra = tuple(f"channel_{number}" for number in range(len(of.channels), count))
    return (Block(of.key, of.axes, (*of.channels[:count], *extra)),), static


def _forcing(space: tuple[int, int]) -> FloatArray:
    """The forcing of FNS-KF on the publisher's points, which include both ends; (*space, 1)."""
    x, y = (np.linspace(0, 1, size) for size in space)
    return (0.1 * np.sin(2 * np.pi * (x[:, None] + y)))[..., None].astype(np.float32)
