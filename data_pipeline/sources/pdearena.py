"""Files of PDEArena: J. K. Gupta, J. Brandstetter, "Towards Multi-spatiotemporal-scale Generalized PDE Modeling".

HDF5 files with one group, named by their split: buoyant smoke in incompressible flow (`NavierStokes2D_train_*.h5`,
also "conditioned" on the buoyancy), Kuramoto-Sivashinsky and Maxwell's equations in 3D. Shallow water on the sphere,
in NetCDF and Zarr, is in `pdearena_sphere.py`.

Choices:

- The split is the one in the file's name; where that says none, the group's.
- Channels of smoke are tracer, velocity_x, velocity_y, in the publisher's order. Times and grid are those of the
  arrays `t`, `x`, `y`; `dt`, `dx` and `dy` are of the publisher's solver, and left out. Walls all around.
- Kuramoto-Sivashinsky: every trajectory has its own time step and domain length. They are carried as the parameters
  `dt` and `dx`. Where steps differ by more than a thousandth, `convert.dt` has to say the dataset's nominal one. The
  extent is that of the longest domain.
- Maxwell: displacement field d and magnetic field h. The files say neither time step nor spacing: `convert.dt` is
  needed, and positions are counted in cells unless `convert.extent` is given. Periodic.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_pipeline.config import SPLITS, ConvertConfig, Split
from data_pipeline.sources import names, pdearena_sphere
from data_pipeline.sources.blocks import Block, BlockHeader, channels, measure, reading
from data_pipeline.sources.find import hdf5_files
from data_pipeline.sources.grids import Floats, counted_grid, decimals, grid_of, shortest, uniform_times
from data_pipeline.sources.hdf5 import Hdf5Reader, open_hdf5
from data_pipeline.sources.layout import Header, Layout, Read

_SMOKE = {"u": names.TRACER, "vx": names.VELOCITY[0], "vy": names.VELOCITY[1]}
_MAXWELL = {"d_field": "electric_displacement", "h_field": "magnetic_field"}
_SERIES = "pde_"
_SAME = 1e-3
"""Time steps that differ by less than this part are the same."""


class PdeArena:
    """PDEArena as `Layout`."""

    title = "PDEArena"
    expected = "*.h5 with u, vx, vy, or pde_*, or d_field, h_field in a group train, valid or test; or train.zarr"

    def files(self, path: Path) -> list[Path]:
        """HDF5 files with a group of a split's name and PDEArena's arrays in it, and the sphere's files."""
        return hdf5_files(path, (".h5", ".hdf5"), _is_ours, r"^(NavierStokes2D|Maxwell3D|KS|KuramotoSivashinsky)_") + (
            pdearena_sphere.files(path)
        )

    def header(self, path: Path, config: ConvertConfig) -> BlockHeader:
        """The checked header of a file."""
        if pdearena_sphere.is_sphere(path):
            return pdearena_sphere.header(path, config)
        with open_hdf5(path) as reader:
            split = _split(reader)
            keys = set(reader.group(split))
            if keys & set(_MAXWELL):
                return _maxwell(reader, split, config)
            return _series(reader, split, config) if _series_key(keys) else _smoke(reader, split, config)

    @contextmanager
    def open(self, header: Header, config: ConvertConfig) -> Iterator[Read]:
        """Open a file for reading."""
        assert isinstance(header, BlockHeader)
        opened = pdearena_sphere.opened if pdearena_sphere.is_sphere(header.path) else open_hdf5
        with opened(header.path) as reader:
            yield reading(reader, header)


LAYOUT: Layout = PdeArena()


def _is_ours(root: Any) -> bool:
    groups = [set(root[s]) for s in SPLITS if s in root and isinstance(root[s], h5py.Group)]
    return any(keys & {"vx", "vy", "buo_y", *_MAXWELL} or _series_key(keys) for keys in groups)


def _series_key(keys: set[str]) -> str:
    """The key of the trajectories of an equation in one dimension; empty where there is none."""
    return min((key for key in keys if key.startswith(_SERIES)), default="")


def _split(reader: Hdf5Reader) -> Split:
    named = [split for split in SPLITS if re.search(rf"(^|[_-]){split}([_.-]|$)", reader.path.name)]
    there = [split for split in SPLITS if split in reader.root]
    chosen = named if len(named) == 1 else there
    if len(chosen) != 1 or chosen[0] not in there:
        raise reader.error(
            "cannot tell the split",
            "/",
            found=f"groups {sorted(reader.root)} in {reader.path.name}",
            expected=f"one group: {chosen[0] if len(chosen) == 1 else ', '.join(SPLITS)}",
        )
    return chosen[0]


def _per_trajectory(reader: Hdf5Reader, key: str, count: int) -> Floats:
    """An array of one number a trajectory, (B,)."""
    values = reader.numbers(key)
    if values.shape != (count,):
        raise reader.error("wrong shape", key, found=values.shape, expected=f"({count},), one number a trajectory")
    return decimals(values)


def _left_out(reader: Hdf5Reader, group: str, taken: set[str]) -> tuple[str, ...]:
    others = sorted(set(reader.group(group)) - taken)
    return tuple(f"array {group}/{key}" for key in others) + tuple(
        f"group {key}" for key in sorted(set(reader.root) - {group})
    )


def _smoke(reader: Hdf5Reader, group: Split, config: ConvertConfig) -> BlockHeader:
    """Buoyant smoke in incompressible flow."""
    blocks = tuple(Block(f"{group}/{key}", "btxy", (channel,)) for key, channel in _SMOKE.items())
    sizes = measure(reader, blocks)
    count, space = sizes["b"], (sizes["x"], sizes["y"])
    times, dt = uniform_times(reader, f"{group}/t", sizes["t"], config)
    if len(times) not in (1, count):
        expected = (count, sizes["t"])
        raise reader.error("wrong shape of time", f"{group}/t", found=times.shape, expected=expected)
    grid = grid_of(reader, {f"{group}/x": space[0], f"{group}/y": space[1]}, ("wall", "wall"))
    return BlockHeader(
        path=reader.path,
        trajectories=count,
        frames=sizes["t"],
        channels=channels(blocks),
        axes=("x", "y"),
        space=space,
        extent=grid.extent,
        coordinates=grid.coordinates,
        boundaries=("wall", "wall"),
        dt=dt,
        parameters=("buoyancy",),
        split=group,
        equation="v_t + (v . grad) v = -grad p + 0.01 Lap v + (0, buoyancy u), div v = 0, u_t + v . grad u = 0",
        blocks=blocks,
        times=times,
        values={"buoyancy": _per_trajectory(reader, f"{group}/buo_y", count)},
        left_out=_left_out(reader, group, {*_SMOKE, "t", "x", "y", "buo_y"}),
    )


def _series(reader: Hdf5Reader, group: Split, config: ConvertConfig) -> BlockHeader:
    """An equation in one dimension: Kuramoto-Sivashinsky."""
    key = _series_key(set(reader.group(group)))
    blocks = (Block(f"{group}/{key}", "btx", (names.SOLUTION,)),)
    sizes = measure(reader, blocks)
    count, frames = sizes["b"], sizes["t"]
    own = {name: _per_trajectory(reader, f"{group}/{name}", count) for name in ("dt", "dx")}
    for name, values in own.items():
        if (values <= 0).any():
            raise reader.error("not a positive step", f"{group}/{name}", found=values.min(), expected="above 0")
    steps = own["dt"]
    if np.ptp(steps) > _SAME * steps[0] and config.dt is None:
        raise reader.error(
            "time steps differ between trajectories",
            f"{group}/dt",
            found=f"{steps.min():g} .. {steps.max():g}",
            expected="one time step",
            remedy="give the nominal one as convert.dt; each trajectory's own stays with it as the parameter dt",
        )
    known = own | ({"viscosity": _per_trajectory(reader, f"{group}/v", count)} if "v" in reader.group(group) else {})
    length = sizes["x"] * float(own["dx"].max())
    return BlockHeader(
        path=reader.path,
        trajectories=count,
        frames=frames,
        channels=channels(blocks),
        axes=("x",),
        space=(sizes["x"],),
        extent=((0.0, shortest(length, length, np.float64)),),
        boundaries=("periodic",),
        dt=config.dt or float(steps[0]),
        parameters=tuple(known),
        split=group,
        equation="u_t = -u u_x - u_xx - viscosity u_xxxx",
        blocks=blocks,
        times=steps[:, None] * np.arange(frames),
        values=known,
        left_out=_left_out(reader, group, {key, "dt", "dx", "v"}),
    )


def _maxwell(reader: Hdf5Reader, group: Split, config: ConvertConfig) -> BlockHeader:
    """Maxwell's equations in 3D."""
    blocks = tuple(Block(f"{group}/{key}", "btxyzc", names.vector(name, 3)) for key, name in _MAXWELL.items())
    sizes = measure(reader, blocks)
    space = (sizes["x"], sizes["y"], sizes["z"])
    dt = config.dt if config.dt is not None else float("nan")
    return BlockHeader(
        path=reader.path,
        trajectories=sizes["b"],
        frames=sizes["t"],
        channels=channels(blocks),
        axes=("x", "y", "z"),
        space=space,
        extent=counted_grid(space).extent,
        boundaries=("periodic",) * 3,
        dt=dt,
        split=group,
        equation="d_t = rot h - j, b_t = -rot e",
        blocks=blocks,
        times=(config.dt or 1.0) * np.arange(sizes["t"], dtype=np.float64)[None],  # frames, where nobody says
        left_out=_left_out(reader, group, set(_MAXWELL)),
    )
