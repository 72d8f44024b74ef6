"""The header of a file whose arrays a layout knows, where the file itself says little more than their shapes."""

from collections.abc import Mapping, Sequence

import numpy as np

from data_pipeline.sources.blocks import Block, BlockHeader, channels, measure
from data_pipeline.sources.grids import Grid, Reader, unit_grid
from data_pipeline.trajectory import Boundary


def array_header(
    reader: Reader,
    blocks: Sequence[Block],
    static: Sequence[Block] = (),
    *,
    boundary: Boundary,
    equation: str = "",
    grid: Grid | None = None,
    dt: float = float("nan"),
    values: Mapping[str, float] | None = None,
) -> BlockHeader:
    """Check the arrays against each other, and say what they are.

    Args:
        reader: the open file.
        blocks: its fields.
        static: its static fields.
        boundary: of all axes.
        equation: in words or symbols.
        grid: the unit interval, square or cube if not given.
        dt: time between two frames, the first of which is at time zero; with NaN for a step that is not known, times
            count frames.
        values: PDE parameters, the same for all trajectories.

    Raises:
        DataError: an array is missing, has another number of axes, or does not fit the others.
    """
    sizes = measure(reader, [*blocks, *static])
    axes, frames, trajectories = tuple(a for a in "xyz" if a in sizes), sizes.get("t", 1), sizes.get("b", 1)
    grid = grid or unit_grid(len(axes))
    step = 0.0 if "t" not in sizes else dt
    values = values or {}
    return BlockHeader(
        path=reader.path,
        trajectories=trajectories,
        frames=frames,
        channels=channels(blocks),
        static_channels=channels(static),
        axes=axes,
        space=tuple(sizes[axis] for axis in axes),
        extent=grid.extent,
        coordinates=grid.coordinates,
        boundaries=(boundary,) * len(axes),
        dt=step,
        times=(1.0 if np.isnan(step) else step) * np.arange(frames, dtype=np.float64)[None],
        parameters=tuple(values),
        values={name: np.full(trajectories, value) for name, value in values.items()},
        equation=equation,
        blocks=tuple(blocks),
        static_blocks=tuple(static),
    )


def node_grid(space: Sequence[int]) -> Grid:
    """The unit interval, square or cube, with grid points on its walls."""
    points = tuple(tuple(np.linspace(0, 1, size).tolist()) for size in space)
    return Grid(((0.0, 1.0),) * len(space), points)
