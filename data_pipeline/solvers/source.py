"""A dataset that a solver makes, as a source of trajectories."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipeline.base.config import build
from data_pipeline.base.errors import ConfigError, DataError, nearest
from data_pipeline.config import GenerateConfig
from data_pipeline.solvers.randomness import generator
from data_pipeline.solvers.registry import find_family
from data_pipeline.trajectory import DatasetInfo, FloatArray, Trajectory


class SolverSource:
    """Trajectories of one PDE family. Sample `number` of a split depends on the seed, the split and the number alone.

    Args:
        name: name of the dataset.
        config: family, grid, times, parameters, seed and number of trajectories in each split.

    Raises:
        ConfigError: unknown family or parameter, wrong rank of the resolution, a parameter out of its bounds, or an
            internal time step that cannot be stable.
    """

    def __init__(self, name: str, config: GenerateConfig) -> None:
        family = find_family(config.family)
        self.config = config
        self.solver = family(config.resolution, build(family.parameters_class, config.parameters))
        self.solver.check(config.start, config.dt, config.frames)
        self.splits: Mapping[str, int] = {str(split): count for split, count in config.splits.items()}
        self.info = DatasetInfo(
            name=name,
            channels=family.channels,
            space=config.resolution,
            frames=config.frames,
            dt=config.dt,
            axes=family.axes,
            extent=family.extent,
            boundaries=family.boundaries,
            translation_invariant=self.solver.translation_invariant,
            parameters=family.parameter_names,
            equation=family.equation,
            source=f"pdepot solver {family.family}, version {family.version}: {family.scheme}",
            licence="Apache-2.0",
        )

    def read(self, split: str, start: int, stop: int) -> Iterator[Trajectory]:
        """Solve trajectories start .. stop of a split as one batch, and yield them one at a time.

        Raises:
            ConfigError: the split is unknown or has no such trajectories.
            DataError: a solution holds NaN or Inf; names family, split, number and parameters.
        """
        self._check_range(split, start, stop)
        numbers = range(start, stop)
        if not numbers:
            return
        states, parameters = zip(*(self.draw(split, number) for number in numbers), strict=True)
        columns = {
            key: torch.tensor([drawn[key] for drawn in parameters], dtype=torch.float64)
            for key in self.solver.parameter_names
        }
        config = self.config
        with torch.inference_mode():
            fields = self.solver.solve(
                torch.stack(states), columns, start=config.start, dt=config.dt, frames=config.frames
            )
        for number, drawn, solution in zip(numbers, parameters, fields.numpy(), strict=True):
            self._check_finite(solution, split, number, drawn)
            yield Trajectory(
                fields=solution,
                times=config.start + config.dt * np.arange(config.frames, dtype=np.float64),
                parameters=drawn,
                provenance=self._provenance(split, number),
            )

    def draw(self, split: str, number: int) -> tuple[Tensor, dict[str, float]]:
        """Initial state, float64 (S, *grid), and physical parameters of one sample."""

        def stream(purpose: str) -> np.random.Generator:
            return generator(self.solver.family, self.config.seed, split, number, purpose)

        parameters = self.solver.draw_parameters(stream("parameters"))
        return self.solver.draw_state(stream("state"), parameters), parameters

    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides the numbers: the solver's version and the configuration with its defaults."""
        return {
            "family": self.solver.family,
            "version": self.solver.version,
            "config": self.config.model_dump(mode="json")
            | {"parameters": self.solver.parameters.model_dump(mode="json")},
        }

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

    def _check_finite(self, solution: FloatArray, split: str, number: int, parameters: Mapping[str, float]) -> None:
        finite = np.isfinite(solution).reshape(len(solution), -1).all(axis=1)
        if finite.all():
            return
        values = ", ".join(f"{key} = {value:g}" for key, value in parameters.items())
        raise DataError(
            f"the solution of {self.solver.family} blew up",
            key=f"split {split}, trajectory {number}, frame {int(np.argmin(finite))}",
            found=f"NaN or Inf with {values}",
            expected="finite values",
            remedy="a smaller internal step (parameters.step), a finer grid (parameters.refine) or milder parameters",
        )
