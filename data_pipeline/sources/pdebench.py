"""Files of PDEBench (M. Takamoto et al., "PDEBench: An Extensive Benchmark for Scientific Machine Learning", 2022).

Three kinds, told by their keys:

- arrays of all trajectories (`.hdf5`): advection, Burgers, reaction-diffusion, compressible flow, Darcy flow;
- one group a trajectory (`.h5`): diffusion-sorption, diffusion-reaction, dam break (shallow water);
- incompressible flow (`ns_incom_inhom_2d_512-*.h5`): four trajectories a file.

Choices:

- The time coordinate of the first kind has one entry more than there are frames (edges of time steps, whose first
  ones are the times of the frames); nothing asks for it to have.
- Channels of compressible flow are velocity_x, velocity_y, velocity_z, density, pressure, as far as there are axes,
  whatever their order in the file.
- Darcy flow is a steady problem: one frame, the permeability (`nu`) as a static field.
- PDE parameters are the attributes of the file; where one is missing, the file's name says it.
- Of the simulation's `config` text, the parameters of the PDE are taken, and all of it is kept in the provenance.
- Boundaries: periodic, but for compressible flow as in the file's name (`trans` is open). Diffusion-reaction, Darcy
  and incompressible flow have walls (no flux, u = 0, no slip), the dam break is open, and so is diffusion-sorption,
  which has a fixed concentration at the left end and a mixed (Cauchy) condition at the right one.
- The grid of incompressible flow does not stand in its files: cells have size one, as in its solver.
- The publisher's split: the first tenth of a file's trajectories is for testing; of all files, for incompressible
  flow.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_pipeline.config import ConvertConfig, SplitRule
from data_pipeline.sources import names
from data_pipeline.sources.blocks import Block, BlockHeader, channels, keep, measure, reading
from data_pipeline.sources.find import hdf5_files
from data_pipeline.sources.grids import Grid, counted_grid, grid_of, uniform_times
from data_pipeline.sources.hdf5 import Hdf5Reader, open_hdf5
from data_pipeline.sources.layout import Header, Layout, Read
from data_pipeline.sources.pdebench_sets import (
    FLOW,
    attribute_parameters,
    config_parameters,
    config_text,
    flat_set,
    grouped_set,
)
from data_pipeline.trajectory import Boundary, Trajectory

_NAMES = r"^(1D_|2D_|3D_|ReacDiff_|ns_incom_)"
_GROUP = re.compile(r"\d{4,}")
_FIRST_TENTH = SplitRule(order=("test", "train", "valid"), train="rest", test=0.1, each="file")


class PdeBench:
    """PDEBench as `Layout`."""

    title = "PDEBench"
    expected = "*.hdf5 with tensor, or density, pressure, Vx; *.h5 with groups 0000, 0001, ..., or velocity and force"

    def files(self, path: Path) -> list[Path]:
        """HDF5 files with PDEBench's keys."""
        return hdf5_files(path, (".hdf5", ".h5"), lambda root: bool(_kind(root)), _NAMES)

    def header(self, path: Path, config: ConvertConfig) -> BlockHeader:
        """The checked header of a file. Of groups, the first and the last are checked; others when they are read."""
        with open_hdf5(path) as reader:
            kind = _kind(reader.root)
            if kind == "incompressible":
                return _incompressible(reader, config)
            return _grouped(reader, config) if kind == "grouped" else _flat(reader, config)

    @contextmanager
    def open(self, header: Header, config: ConvertConfig) -> Iterator[Read]:
        """Open a file for reading."""
        assert isinstance(header, BlockHeader)
        with open_hdf5(header.path) as reader:

            def finish(index: int, one: Trajectory) -> Trajectory:
                return _own(reader, header, config, index, one)

            yield reading(reader, header, finish if header.groups else keep)


LAYOUT: Layout = PdeBench()


def _kind(root: Any) -> str:
    """What a file is, from its keys; empty where it is not PDEBench's."""
    keys = set(root)
    if "velocity" in keys and keys & {"particles", "force"}:
        return "incompressible"
    if keys & {"tensor", "t-coordinate", "x-coordinate"} or len(keys & set(FLOW)) > 1:
        return "flat"
    first = min(keys, default="")
    group = root[first] if _GROUP.fullmatch(first) else None
    return "grouped" if isinstance(group, h5py.Group) and {"data", "grid"} & set(group) else ""


def _flat(reader: Hdf5Reader, config: ConvertConfig) -> BlockHeader:
    """A file with arrays of all trajectories."""
    of = flat_set(reader, config)
    letters = "xyz"[: of.axes]
    lead = "b1" if of.static else "bt"
    blocks = tuple(Block(key, lead + letters, (channel,)) for key, channel in of.fields.items())
    static = tuple(Block(key, "b" + letters, (channel,)) for key, channel in of.static.items())
    sizes = measure(reader, blocks + static)
    frames = sizes.get("t", 1)
    boundaries: tuple[Boundary, ...] = (of.boundary,) * of.axes
    grid = grid_of(reader, {f"{axis}-coordinate": sizes[axis] for axis in letters}, boundaries)
    times, dt = (np.zeros((1, 1)), 0.0) if of.static else uniform_times(reader, "t-coordinate", frames, config)
    parameters, notes = attribute_parameters(reader, of, config)
    return BlockHeader(
        path=reader.path,
        trajectories=sizes["b"],
        frames=frames,
        channels=channels(blocks),
        axes=tuple(letters),
        space=tuple(sizes[axis] for axis in letters),
        extent=grid.extent,
        coordinates=grid.coordinates,
        boundaries=boundaries,
        dt=dt,
        static_channels=channels(static),
        parameters=tuple(parameters),
        rule=_FIRST_TENTH,
        equation=of.equation,
        blocks=blocks,
        static_blocks=static,
        times=times,
        values={name: np.full(sizes["b"], value) for name, value in parameters.items()},
        notes=notes,
        left_out=_others(reader, {*of.fields, *of.static, "t-coordinate", *(f"{a}-coordinate" for a in letters)}),
    )


def _others(reader: Hdf5Reader, taken: set[str]) -> tuple[str, ...]:
    return tuple(f"array {key!r}" for key in sorted(set(reader.root) - taken))


def _grouped(reader: Hdf5Reader, config: ConvertConfig) -> BlockHeader:
    """A file with one group for each trajectory."""
    groups = sorted(key for key in reader.root if _GROUP.fullmatch(key))
    of = grouped_set(reader, groups[0])
    letters = "xyz"[: of.axes]
    blocks = (Block("*/data", f"t{letters}c", of.channels),)
    sizes = measure(reader, blocks, groups[0])
    if measure(reader, blocks, groups[-1]) != sizes:
        found = reader.dataset(f"{groups[-1]}/data").shape
        raise reader.error("trajectories differ in shape", f"{groups[-1]}/data", found=found, expected=sizes)
    boundaries: tuple[Boundary, ...] = (of.boundary,) * of.axes
    grid = grid_of(reader, {f"{groups[0]}/grid/{axis}": sizes[axis] for axis in letters}, boundaries)
    times, dt = uniform_times(reader, f"{groups[0]}/grid/t", sizes["t"], config)
    return BlockHeader(
        path=reader.path,
        trajectories=len(groups),
        frames=sizes["t"],
        channels=of.channels,
        axes=tuple(letters),
        space=tuple(sizes[axis] for axis in letters),
        extent=grid.extent,
        coordinates=grid.coordinates,
        boundaries=boundaries,
        dt=dt,
        parameters=tuple(config_parameters(config_text(reader, groups[0]), of.parameters)),
        rule=_FIRST_TENTH,
        equation=of.equation,
        blocks=blocks,
        groups=tuple(groups),
        times=times,
        left_out=_others(reader, set(groups)),
    )


def _own(reader: Hdf5Reader, header: BlockHeader, config: ConvertConfig, index: int, one: Trajectory) -> Trajectory:
    """A trajectory with what only its own group says: PDE parameters and the rest of its configuration."""
    group = header.groups[index]
    text = config_text(reader, group)
    parameters = config_parameters(text, grouped_set(reader, group).parameters)
    if tuple(parameters) != header.parameters:
        raise reader.error(
            "trajectories differ in their PDE parameters",
            f"{group}@config",
            found=f"{list(parameters)} in trajectory {index}",
            expected=f"{list(header.parameters)}, as in trajectory 0",
        )
    times, _ = uniform_times(reader, f"{group}/grid/t", header.frames, config)
    if not np.allclose(times, header.times, rtol=1e-5, atol=1e-6 * header.dt):
        found = f"{times[0, 0]:g} .. {times[0, -1]:g}"
        expected = f"{header.times[0, 0]:g} .. {header.times[0, -1]:g}, as in trajectory 0"
        raise reader.error("trajectories differ in their times", f"{group}/grid/t", found=found, expected=expected)
    return replace(one, parameters=parameters, provenance={**one.provenance, "group": group, "config": text})


def _incompressible(reader: Hdf5Reader, config: ConvertConfig) -> BlockHeader:
    """A file of inhomogeneous incompressible flow."""
    blocks = (Block("velocity", "btxyc", names.VELOCITY[:2]), Block("particles", "btxyc", (names.TRACER,)))
    static = (Block("force", "bxyc", names.FORCE[:2]),)
    sizes = measure(reader, blocks + static)
    times, dt = uniform_times(reader, "t", sizes["t"], config)
    if len(times) not in (1, sizes["b"]):
        raise reader.error("wrong shape of time", "t", found=times.shape, expected=(sizes["b"], sizes["t"]))
    text = config_text(reader, "/")
    parameters = config_parameters(text, {"NU": "viscosity"})
    grid: Grid = counted_grid((sizes["x"], sizes["y"]))
    return BlockHeader(
        path=reader.path,
        trajectories=sizes["b"],
        frames=sizes["t"],
        channels=channels(blocks),
        axes=("x", "y"),
        space=(sizes["x"], sizes["y"]),
        extent=grid.extent,
        boundaries=("wall", "wall"),
        dt=dt,
        static_channels=channels(static),
        parameters=tuple(parameters),
        rule=_FIRST_TENTH.model_copy(update={"each": "dataset"}),
        equation="u_t + (u . grad) u = -grad p + nu Lap u + f, div u = 0, c_t + u . grad c = 0",
        blocks=blocks,
        static_blocks=static,
        times=times,
        values={name: np.full(sizes["b"], value) for name, value in parameters.items()},
        notes={"config": text} if text else {},
        left_out=_others(reader, {"velocity", "particles", "force", "t"}),
    )
