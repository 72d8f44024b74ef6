"""How many grid points a front of a reaction-diffusion equation needs."""

from typing import Any

from data_pipeline.base.errors import ConfigError
from data_pipeline.solvers.base import Solver


def check_front(solver: Solver[Any], length: float, what: str, least: float) -> None:
    """Refuse a grid with fewer than `least` points for each `length`, that of the steepest front.

    Args:
        solver: its grid is checked, along the axis with the widest spacing.
        length: of the steepest front that the parameters allow.
        what: how the length follows from the parameters.
        least: the bound.

    Raises:
        ConfigError: names points found, length and bound.
    """
    held = length / max(solver.spacing)
    if held < least:
        raise ConfigError(
            f"the grid {solver.grid} is too coarse for the fronts of {solver.family}",
            key="generate.resolution",
            found=f"{held:.2g} points for each {length:.3g} = {what}",
            expected=f"at least {least}: a finer grid, parameters.refine, or larger diffusivities",
        )
