"""Errors of a reaction-diffusion family against a solution that is chosen, with a source term that makes it exact."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from data_pipeline.solvers.numerics.etd import ETDRK4
from data_pipeline.solvers.semilinear import SemilinearSolver


def forced_error(
    solver: SemilinearSolver[Any],
    reaction: Callable[[Tensor], Tensor],
    diffusivities: list[float],
    *,
    time: float,
    steps: int,
    **parameters: float,
) -> float:
    """Relative L2 error at `time` of u_t = D Lap u + R(u) + s on [-1, 1]^d, after `steps` steps with the solver's own
    operators. The source s is such that the solution is 1/2 + c exp(-rate t) g(x) for each channel.

    g is a product of exp(0.6 cos(pi (x + 1))): it is periodic, has no flux through walls, and all its Fourier modes
    count. The time enters the autonomous problem through one more channel, which decays as exp(-rate t).

    Args:
        reaction: R of the equation that the solver should solve, written anew, from and to (C, *grid).
        diffusivities: D of each channel.
    """
    rate = 2.0 / time
    phases = [math.pi * (axis + 1) for axis in solver.coordinates()]
    shape = torch.exp(0.6 * torch.stack(phases).cos().sum(0)) / 4
    laplacian = shape * math.pi**2 * sum(0.36 * phase.sin() ** 2 - 0.6 * phase.cos() for phase in phases)
    column = (-1, *[1] * len(phases))
    amplitude = torch.tensor([1.0, -0.7][: len(diffusivities)], dtype=torch.float64).reshape(column)
    diffusivity = torch.tensor(diffusivities, dtype=torch.float64).reshape(column)

    def exact(clock: Tensor) -> Tensor:
        return 0.5 + amplitude * clock * shape

    def source(clock: Tensor) -> Tensor:
        change = -rate * amplitude * clock * shape
        return change - diffusivity * amplitude * clock * laplacian - reaction(exact(clock))

    columns = {
        name: torch.tensor(value, dtype=torch.float64).reshape(1, *column) for name, value in parameters.items()
    }
    clock = torch.ones_like(shape)[None]
    problem = solver.problem(columns, exact(clock)[None])
    basis = problem.basis

    def nonlinear(coefficients: Tensor) -> Tensor:
        fields, clock = coefficients[:, :-1], basis.inverse(coefficients[0, -1:])
        return torch.cat([problem.nonlinear(fields) + basis.forward(source(clock))[None], 0 * coefficients[:, -1:]], 1)

    decay = torch.full_like(basis.laplacian, -rate)[None, None]
    linear = torch.cat([problem.linear.expand(1, len(diffusivities), *basis.laplacian.shape), decay], dim=1)
    march = ETDRK4(linear, nonlinear, time / steps)
    coefficients = basis.forward(torch.cat([exact(clock), clock])[None])
    for _ in range(steps):
        coefficients = march.step(coefficients)
    fields = basis.inverse(coefficients)[0]
    expected = exact(math.exp(-rate * time) * clock)
    return float((fields[:-1] - expected).norm() / expected.norm())
