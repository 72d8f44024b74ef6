"""The record that a generated dataset carries: how its numbers were made, and how far they are from a finer run."""

from math import sqrt
from typing import Any

import numpy as np

from data_pipeline.base.config import Config
from data_pipeline.trajectory import BoolArray, FloatArray


class Generation(Config):
    """How a solver made a dataset, and an estimate of the error of what is stored."""

    family: str
    version: int
    scheme: str
    precision: str
    dt: float
    """Time between two stored frames."""
    resolution: tuple[int, ...]
    grid: tuple[int, ...]
    """Grid points of the solver along each axis."""
    internal_step: float | None
    """Length of the solver's own time steps; None where they follow the solution, or where there are none."""
    refined_grid: tuple[int, ...]
    refined_step: float | None
    samples: tuple[str, ...] = ()
    """The trajectories that were solved again on the refined grid with the refined step: `train 0`."""
    error: tuple[tuple[float | None, ...], ...] = ()
    """For each of them and each frame the RMS of the difference over points and channels, each channel over its own
    RMS in that trajectory; None where the refined run blew up."""

    def text(self) -> str:
        """The estimate in a line."""
        if not self.samples:
            return "error not estimated (generate.error_samples: 0)"
        step = "" if self.refined_step is None else f", step {self.refined_step:g}"
        finer = f"{' x '.join(map(str, self.refined_grid))} points{step}"
        if any(value is None for row in self.error for value in row):
            return f"error not known: the run on {finer} blew up"
        worst = [max(row) for row in zip(*self.error, strict=True)]  # type: ignore[type-var]
        last = f"{worst[-1]:.2g} in the last frame, " if len(worst) > 1 else ""
        return (
            f"error estimate {last}{max(worst):.2g} at most (relative, against {finer}; worst of {len(self.samples)} "
            f"{'trajectory' if len(self.samples) == 1 else 'trajectories'})"  # type: ignore[type-var]
        )


def refined_in_shard(shard: int, shards: int, samples: int, trajectories: int) -> int:
    """How many of a shard's first trajectories are solved again, so that `samples` spread evenly over all shards."""
    return min(samples // shards + (shard < samples % shards), trajectories)


def relative_errors(stored: FloatArray, refined: FloatArray, mask: BoolArray | None) -> list[float | None]:
    """The difference of two solutions (T, *space, C) in each frame, as `Generation.error` has it.

    Points outside the mask do not count, nor do channels that are zero everywhere. Rounded to three digits.
    """
    inside = np.ones(stored.shape[1:-1], np.bool_) if mask is None else mask
    a, b = stored[:, inside].astype(np.float64), refined[:, inside].astype(np.float64)
    if not np.isfinite(b).all():
        return [None] * len(stored)
    scale = np.square(b).mean((0, 1))
    counted = scale > 0
    if not counted.any():
        return [0.0] * len(stored)
    squares = np.square(a - b).mean(1)[:, counted] / scale[counted]
    return [float(f"{sqrt(value):.3g}") for value in squares.mean(1)]


def record(numerics: dict[str, Any], split: str, entries: list[dict[str, Any]]) -> Generation:
    """The record from what the tasks gave back: those entries of one split that hold an `error`."""
    refined = [(number, entry["error"]) for number, entry in enumerate(entries) if "error" in entry]
    return Generation(
        **numerics,
        samples=tuple(f"{split} {number}" for number, _ in refined),
        error=tuple(tuple(error) for _, error in refined),
    )
