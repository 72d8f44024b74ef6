"""PDE families by name."""

from typing import Any

from data_pipeline.base.errors import ConfigError, nearest
from data_pipeline.solvers.base import Solver
from data_pipeline.solvers.families.burgers_2d import Burgers2D
from data_pipeline.solvers.families.diffusion_reaction_2d import DiffusionReaction2D
from data_pipeline.solvers.families.gray_scott_2d import GrayScott2D
from data_pipeline.solvers.families.navier_stokes_2d import NavierStokes2D
from data_pipeline.solvers.families.shallow_water_2d import ShallowWater2D

FAMILIES: dict[str, type[Solver[Any]]] = {
    solver.family: solver for solver in (Burgers2D, DiffusionReaction2D, GrayScott2D, NavierStokes2D, ShallowWater2D)
}


def find_family(name: str) -> type[Solver[Any]]:
    """The solver class of a family. Raises ConfigError that names the nearest family."""
    if name not in FAMILIES:
        raise ConfigError(
            "unknown PDE family", key="generate.family", found=name, expected=nearest(name, list(FAMILIES))
        )
    return FAMILIES[name]
