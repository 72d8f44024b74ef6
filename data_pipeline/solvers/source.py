"""A dataset that a solver makes, as a source of trajectories."""

from collections.abc import Iterator, Mapping, Sequence
from math import inf, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipeline.base.config import build
from data_pipeline.base.errors import ConfigError, DataError, PdepotError, nearest
from data_pipeline.config import GenerateConfig
from data_pipeline.solvers.base import Solver
from data_pipeline.solvers.numerics.memory import keep_freed_memory
from data_pipeline.solvers.randomness import generator
from data_pipeline.solvers.registry import find_family
from data_pipeline.trajectory import DatasetInfo, FloatArray, Trajectory, grid

EXECUTION = ("device", "compile")
"""Settings that do not decide the numbers, but for rounding."""

_MOST_POINTS = 2**31
_MOST_TRAJECTORIES = 10**8
_STATES_IN_MEMORY = 16  # stages of a step, their transforms, and what is on its way between them


class SolverSource:
    """Trajectories of one PDE family. Sample `number` of a split depends on the seed, the split and the number alone.

    Args:
        name: name of the dataset.
        config: family, grid, times, parameters, seed and number of trajectories in each split.

    Raises:
        ConfigError: unknown family or parameter, wrong rank of the resolution, a parameter out of its bounds, an
            internal time step that cannot be stable, a grid that is too coarse, a domain that is impossible.
    """

    def __init__(self, name: str, config: GenerateConfig) -> None:
        family = find_family(config.family)
        self.config = config
        self.solver: Solver[Any] = family(
            config.resolution, build(family.parameters_class, config.parameters, below="generate.parameters")
        )
        _check_times(config, steady=family.steady)
        _check_size(config, self.solver)
        self.solver.check(config.start, config.dt, config.frames)
        self.splits: Mapping[str, int] = {str(split): count for split, count in config.splits.items()}
        self.info = _describe(name, config, self.solver)

    def read(self, split: str, start: int, stop: int) -> Iterator[Trajectory]:
        """Solve trajectories start .. stop of a split as one batch, and yield them one at a time.

        Raises:
            ConfigError: the split is unknown or has no such trajectories.
            DataError: a solution holds NaN or Inf, or is impossible; names family, split, number and parameters.
        """
        self._check_range(split, start, stop)
        numbers = range(start, stop)
        if not numbers:
            return
        states, drawn = zip(*(self.draw(split, number) for number in numbers), strict=True)
        fields, static, masks = self._solve(self.solver, states, drawn)
        for row, number in enumerate(numbers):
            self._check_solution(fields[row], split, number, drawn[row])
            yield Trajectory(
                fields=fields[row],
                times=self.config.start + self.config.dt * np.arange(self.config.frames, dtype=np.float64),
                parameters=drawn[row],
                static=None if static is None else static[row].movedim(0, -1).contiguous().numpy(),
                mask=None if masks is None else masks[row].numpy(),
                provenance=self._provenance(split, number),
            )

    def draw(self, split: str, number: int) -> tuple[Tensor, dict[str, float]]:
        """Initial state, float64 (S, *grid), and physical parameters of one sample."""
        return self._draw(self.solver, split, number)

    def refined(self, split: str, number: int) -> FloatArray:
        """The fields of a trajectory from a run that is about twice as fine in space and time, float32 (T, *space, C).

        The difference from the stored ones estimates their error: for a method of order p it is the error less a part
        of 2^-p of it.
        """
        finer = self._finer()
        state, drawn = self._draw(finer, split, number)
        fields: FloatArray = self._solve(finer, [state], [drawn])[0][0]
        return fields

    def working_bytes(self, trajectories: int) -> int:
        """An estimate of the memory that solving so many trajectories together takes, beside the stored frames."""
        state, _ = self.draw(next(iter(self.splits)), 0)
        if self.config.error_samples:  # one trajectory is solved again, alone, on the finer grid
            trajectories = max(trajectories, prod(self._finer().grid) // prod(self.solver.grid))
        return _STATES_IN_MEMORY * trajectories * state.nbytes

    def numerics(self) -> dict[str, Any]:
        """How the numbers are made: the solver's grid, its internal step and that of the refined run, precision."""
        finer = self._finer()
        return {
            "family": self.solver.family,
            "version": self.solver.version,
            "scheme": self.solver.scheme,
            "precision": self.config.precision,
            "dt": self.config.dt,
            "resolution": self.solver.resolution,
            "grid": self.solver.grid,
            "internal_step": self.solver.internal_step(self.config.dt),
            "refined_grid": finer.grid,
            "refined_step": finer.internal_step(self.config.dt),
        }

    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides the numbers: the solver's version and the configuration with its defaults."""
        return {
            "family": self.solver.family,
            "version": self.solver.version,
            "config": self.config.model_dump(mode="json", exclude=set(EXECUTION))
            | {"parameters": self.solver.parameters.model_dump(mode="json")},
        }

    def _finer(self) -> Solver[Any]:
        kind = type(self.solver)
        finer: Solver[Any] = kind(self.config.resolution, build(kind.parameters_class, self.solver.parameters.finer()))
        return finer

    def _draw(self, solver: Solver[Any], split: str, number: int) -> tuple[Tensor, dict[str, float]]:
        def stream(purpose: str) -> np.random.Generator:
            return generator(solver.family, self.config.seed, split, number, purpose)

        parameters = solver.draw_parameters(stream("parameters"))
        return solver.draw_state(stream("state"), parameters), parameters

    def _solve(
        self, solver: Solver[Any], states: Sequence[Tensor], drawn: Sequence[Mapping[str, float]]
    ) -> tuple[FloatArray, Tensor | None, Tensor | None]:
        """Fields, static fields and masks of a batch, on the CPU."""
        config = self.config
        _check_device(config.device)
        keep_freed_memory()
        solver.compile = config.compile
        columns = {
            key: torch.tensor([one[key] for one in drawn], dtype=torch.float64, device=config.device)
            for key in solver.parameter_names
        }
        try:
            initial = torch.stack(list(states)).to(config.device, getattr(torch, config.precision))
            with torch.inference_mode():
                fields = solver.solve(initial, columns, start=config.start, dt=config.dt, frames=config.frames)
                static, mask = solver.static_fields(initial, columns), solver.mask(columns)
            return (
                fields.numpy(),
                None if static is None else static.float().cpu(),
                None if mask is None else mask.cpu(),
            )
        except torch.OutOfMemoryError as error:
            raise PdepotError(
                f"the GPU's memory does not hold {len(states)} solutions of {solver.family} on {solver.grid} at once",
                found=str(error).partition("\n")[0],
                remedy="fewer trajectories together: a lower store.trajectories_per_shard",
            ) from error

    def _provenance(self, split: str, number: int) -> dict[str, str | int | float]:
        return {
            "solver": self.solver.family,
            "version": self.solver.version,
            "scheme": self.solver.scheme,
            "seed": self.config.seed,
            "split": split,
            "sample": number,
        }

    def _check_range(self, split: str, start: int, stop: int) -> None:
        if split not in self.splits:
            raise ConfigError("unknown split", key="split", found=split, expected=nearest(split, list(self.splits)))
        if not 0 <= start <= stop <= self.splits[split]:
            raise ConfigError(
                f"no such trajectories in the split {split} of {self.info.name}",
                found=f"{start} .. {stop}",
                expected=f"a range within 0 .. {self.splits[split]}",
            )

    def _check_solution(self, solution: FloatArray, split: str, number: int, parameters: Mapping[str, float]) -> None:
        finite = np.isfinite(solution).reshape(len(solution), -1).all(axis=1)
        if finite.all():
            fault = self.solver.fault(solution)
            if fault is None:
                return
            frame, found = fault
        else:
            frame, found = int(np.argmin(finite)), "NaN or Inf"
        values = ", ".join(f"{key} = {value:g}" for key, value in parameters.items())
        raise DataError(
            f"the solution of {self.solver.family} blew up",
            key=f"{self.info.name}, split {split}, trajectory {number}, frame {frame}",
            found=f"{found} with {values}" if values else found,
            expected="finite values that the equation allows",
            remedy="a smaller internal step (parameters.step or courant), a finer grid (parameters.refine), "
            "or milder parameters",
        )


def _check_device(device: str) -> None:
    """Raise PdepotError where the solver is to run on a GPU that this process's torch cannot use."""
    if device == "cuda" and not torch.cuda.is_available():
        raise PdepotError(
            "torch has no GPU to solve on",
            key="generate.device",
            found=f"torch {torch.__version__} without a usable GPU",
            expected="a CUDA build of torch, and a driver, on each node that has GPUs",
            remedy="generate.device=cpu, or install such a torch there",
        )


def _check_times(config: GenerateConfig, *, steady: bool) -> None:
    """Raise ConfigError where the stored times do not fit the family: one frame of a steady one, several of others."""
    if steady:
        if (config.frames, config.dt, config.start) != (1, 0.0, 0.0):
            raise ConfigError(
                f"{config.family} is steady: its solution is one frame",
                key="generate.frames, generate.dt, generate.start",
                found=f"{config.frames}, {config.dt:g}, {config.start:g}",
                expected="1, 0, 0: leave them out",
            )
        return
    if config.frames < 2:
        raise ConfigError("too few frames", key="generate.frames", found=config.frames, expected="at least 2")
    if config.dt <= 0:
        raise ConfigError("no time between frames", key="generate.dt", found=config.dt, expected="above 0")
    last = config.start + (config.frames - 1) * config.dt
    if not config.start + (config.frames - 2) * config.dt < last < inf:
        raise ConfigError(
            "the times of the last two frames are the same number",
            key="generate.dt",
            found=f"{config.dt:g}, at the time {last:g}",
            expected="a dt that a float64 of that time can still tell, and times below 1.8e308",
        )


def _check_size(config: GenerateConfig, solver: Solver[Any]) -> None:
    """Raise ConfigError for a grid that no memory holds, or more trajectories than can be listed."""
    if prod(solver.grid) > _MOST_POINTS:
        raise ConfigError(
            "the solver's grid is too large",
            key="generate.resolution, generate.parameters.refine",
            found=" x ".join(map(str, solver.grid)),
            expected=f"at most {_MOST_POINTS} points, 16 GiB for one channel in float64",
        )
    for split, count in config.splits.items():
        if count > _MOST_TRAJECTORIES:
            raise ConfigError(
                "too many trajectories",
                key=f"generate.splits.{split}",
                found=count,
                expected=f"at most {_MOST_TRAJECTORIES}",
            )


def _describe(name: str, config: GenerateConfig, solver: Solver[Any]) -> DatasetInfo:
    info = DatasetInfo(
        name=name,
        channels=solver.channels,
        space=solver.resolution,
        frames=config.frames,
        dt=config.dt,
        axes=solver.axes,
        extent=solver.extent,
        boundaries=solver.boundaries,
        translation_invariant=solver.translation_invariant,
        parameters=solver.parameter_names,
        static_channels=solver.static_channels,
        masked=solver.masked,
        equation=solver.equation,
        source=f"pdepot solver {solver.family}, version {solver.version}: {solver.scheme}",
        licence="Apache-2.0",
    )
    points = solver.points()
    usual = all(np.allclose(ours, theirs) for ours, theirs in zip(points, grid(info), strict=True))
    return info if usual else info.model_copy(update={"coordinates": tuple(tuple(axis.tolist()) for axis in points)})
