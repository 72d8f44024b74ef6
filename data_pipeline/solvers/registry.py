"""PDE families by name."""

from typing import Any

from data_pipeline.base.errors import ConfigError, nearest
from data_pipeline.solvers.base import Solver
from data_pipeline.solvers.families.advection_1d import Advection1D
from data_pipeline.solvers.families.allen_cahn_2d import AllenCahn2D
from data_pipeline.solvers.families.burgers_1d import Burgers1D
from data_pipeline.solvers.families.burgers_2d import Burgers2D
from data_pipeline.solvers.families.burgers_shocks_1d import BurgersShocks1D
from data_pipeline.solvers.families.cavity_2d import Cavity2D
from data_pipeline.solvers.families.compressible_1d import Compressible1D
from data_pipeline.solvers.families.compressible_2d import Compressible2D
from data_pipeline.solvers.families.compressible_3d import Compressible3D
from data_pipeline.solvers.families.cylinder_2d import Cylinder2D
from data_pipeline.solvers.families.darcy_2d import Darcy2D
from data_pipeline.solvers.families.decaying_turbulence_2d import DecayingTurbulence2D
from data_pipeline.solvers.families.diffusion_reaction_2d import DiffusionReaction2D
from data_pipeline.solvers.families.diffusion_sorption_1d import DiffusionSorption1D
from data_pipeline.solvers.families.gray_scott_2d import GrayScott2D
from data_pipeline.solvers.families.gray_scott_3d import GrayScott3D
from data_pipeline.solvers.families.kdv_1d import KdV1D
from data_pipeline.solvers.families.kdv_burgers_1d import KdVBurgers1D
from data_pipeline.solvers.families.kolmogorov_2d import Kolmogorov2D
from data_pipeline.solvers.families.kuramoto_sivashinsky_1d import KuramotoSivashinsky1D
from data_pipeline.solvers.families.navier_stokes_2d import NavierStokes2D
from data_pipeline.solvers.families.navier_stokes_3d import NavierStokes3D
from data_pipeline.solvers.families.poisson_2d import Poisson2D
from data_pipeline.solvers.families.rotating_shallow_water_2d import RotatingShallowWater2D
from data_pipeline.solvers.families.shallow_water_2d import ShallowWater2D
from data_pipeline.solvers.families.smoke_2d import Smoke2D
from data_pipeline.solvers.families.tube_2d import Tube2D
from data_pipeline.solvers.families.wave_2d import Wave2D

FAMILIES: dict[str, type[Solver[Any]]] = {
    solver.family: solver
    for solver in (
        Advection1D,
        AllenCahn2D,
        Burgers1D,
        Burgers2D,
        BurgersShocks1D,
        Cavity2D,
        Compressible1D,
        Compressible2D,
        Compressible3D,
        Cylinder2D,
        Darcy2D,
        DecayingTurbulence2D,
        DiffusionReaction2D,
        DiffusionSorption1D,
        GrayScott2D,
        GrayScott3D,
        KdV1D,
        KdVBurgers1D,
        Kolmogorov2D,
        KuramotoSivashinsky1D,
        NavierStokes2D,
        NavierStokes3D,
        Poisson2D,
        RotatingShallowWater2D,
        ShallowWater2D,
        Smoke2D,
        Tube2D,
        Wave2D,
    )
}


def find_family(name: str) -> type[Solver[Any]]:
    """The solver class of a family. Raises ConfigError that names the nearest family."""
    if name not in FAMILIES:
        raise ConfigError(
            "unknown PDE family", key="generate.family", found=name, expected=nearest(name, list(FAMILIES))
        )
    return FAMILIES[name]
