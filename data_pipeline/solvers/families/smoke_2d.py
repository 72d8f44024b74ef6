"""Smoke that rises in a closed box: PDEArena's two-dimensional Navier-Stokes set."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.random import Generator
from pydantic import Field
from torch import Tensor

from data_pipeline.base.errors import ConfigError
from data_pipeline.solvers.base import Parameters, PositiveRange, Solver
from data_pipeline.solvers.numerics.closed_box import Projection, centred
from data_pipeline.solvers.numerics.random_field import modes_by_shell
from data_pipeline.solvers.numerics.smoke_steps import SmokeSteps
from data_pipeline.solvers.semilinear import MAX_STEPS, Step, substeps

_LARGEST_MODE = 16
"""Waves along each side of the box up to which the initial smoke is drawn."""
_CUT = 0.1
"""Waves with (scale |k|)^2 below this are left out of the noise, |k| in cycles a unit of length."""
_MOST_SMOKE = 3.0
"""Above the largest |noise| of a thousand samples, 2.1: two waves across the box hold nearly all its variance of 1."""
_CELLS_A_SCALE = 4
_LARGEST_SCALE = 10.0
"""Largest `scale` over the box: the amplitudes of a smoothness of 50 then still have squares above 0."""
_PARTS = 64
"""Most explicit diffusion steps within one step."""


class Smoke2DParameters(Parameters):
    """Parameters of `smoke_2d`; the defaults are PDEArena's."""

    step: Step = 1.5
    """Largest internal time step; the step used divides the time between two frames."""
    method: Literal["pdearena", "second_order"] = "pdearena"
    """`pdearena`: the first-order scheme of the publisher's generator, with its step of 1.5. `second_order`: for data
    that follow the equation; smaller steps, three times the work each."""
    length: Annotated[float, Field(gt=0)] = 32.0
    """Of both sides of the box."""
    scale: Annotated[float, Field(gt=0)] = 11.0
    """Length of the longest waves of the initial smoke, about."""
    smoothness: Annotated[float, Field(ge=2, le=50)] = 6.0
    """Exponent s of the initial smoke's amplitudes |k|^(-2 s); above 50 their squares leave the range of floats."""
    viscosity: PositiveRange = (0.01, 0.01)
    """Kinematic viscosity nu."""
    buoyancy: PositiveRange = (0.5, 0.5)
    """Acceleration by smoke of concentration 1."""

    def finer(self) -> dict[str, Any]:
        """Half the step, on a grid twice as fine."""
        return super().finer() | {"step": self.step / 2}


class Smoke2D(Solver[Smoke2DParameters]):
    """Smoke s and velocity u in a box with walls: s_t + u.grad s = 0, u_t + u.grad u = -grad p + nu Lap u + b s e_y.

    Starts at rest, with the absolute value of smooth periodic noise as smoke. By default the scheme is that of
    PDEArena's generator (Gupta and Brandstetter, 2022, with PhiFlow): of first order, with steps in which the flow
    crosses several cells. Its error is large, and the data are as much the scheme's as the equation's. Two differences
    from the publisher's: velocities are stored at the centres of the cells, not on their lower faces; the pressure is
    solved to rounding. With it smoke at rest in layers does not stay at rest: viscosity acts on the push of the smoke
    before the pressure balances it. With `second_order` it does.
    """

    family: ClassVar[str] = "smoke_2d"
    equation: ClassVar[str] = "s_t + u.grad s = 0, u_t + u.grad u = -grad p + nu Lap u + b s e_y, div u = 0"
    scheme: ClassVar[str] = "staggered grid, semi-Lagrangian, explicit diffusion, projection; see parameters.method"
    channels = ("tracer", "velocity_x", "velocity_y")
    axes = ("x", "y")
    boundaries = ("wall", "wall")
    placement = "cells"
    parameter_names: ClassVar[tuple[str, ...]] = ("viscosity", "buoyancy")
    parameters_class = Smoke2DParameters

    def __init__(self, resolution: tuple[int, ...], parameters: Smoke2DParameters) -> None:
        self.extent = ((0.0, parameters.length), (0.0, parameters.length))
        super().__init__(resolution, parameters)

    def internal_step(self, dt: float) -> float:
        """The equal steps, none above `parameters.step`, that make up dt."""
        return substeps(dt, self.parameters.step)[1]

    def diffusion_step(self) -> float:
        """Longest explicit step in which viscosity is stable; up to it forward Euler makes no new extremes either."""
        return 1 / (2 * self.parameters.viscosity[1] * sum(1 / h**2 for h in self.spacing))

    def check(self, start: float, dt: float, frames: int) -> None:
        """Refuse a step or a grid with which no flow of these parameters can be followed.

        - Smoke that has risen through the whole box, speed sqrt(2 b s L), must not cross it again in one step.
          Advection itself is stable with any step.
        - Explicit diffusion: `pdearena` takes as many parts of a step as it needs, up to 64. `second_order` takes one,
          of half the stable length, so that the run on a grid twice as fine is stable too.
        - A wave of length `scale` needs four cells.
        - The noise must hold waves: `scale` at least L sqrt(0.1) / 16, and at most 10 L: from L on it has all of them.
        """
        parameters, length = self.parameters, self.parameters.length
        self.check_steps(max(start, dt) / parameters.step, MAX_STEPS, "parameters.step")
        used = max(substeps(span, parameters.step)[1] for span in (start, dt))
        crossing = math.sqrt(length / (2 * parameters.buoyancy[1] * _MOST_SMOKE))
        diffusing = self.diffusion_step() * (_PARTS if parameters.method == "pdearena" else 1 / 2)
        if used > min(crossing, diffusing):
            why = "smoke crosses the box within one" if crossing < diffusing else "the viscosity is unstable"
            raise ConfigError(
                f"the internal time step of {self.family} is too long: {why}",
                key="generate.parameters.step",
                found=f"{used:.4g}",
                expected=f"at most {min(crossing, diffusing):.4g}",
            )
        spacing = max(self.spacing)
        if spacing > parameters.scale / _CELLS_A_SCALE:
            raise ConfigError(
                "the grid is too coarse for the initial smoke",
                key="generate.resolution",
                found=f"cells of {spacing:.4g}",
                expected=f"at most scale / {_CELLS_A_SCALE} = {parameters.scale / _CELLS_A_SCALE:.4g}",
            )
        smallest, largest = length * math.sqrt(_CUT) / _LARGEST_MODE, _LARGEST_SCALE * length
        if not smallest <= parameters.scale <= largest:
            raise ConfigError(
                f"the initial smoke is too {'fine' if parameters.scale < smallest else 'coarse'} for its modes",
                key="generate.parameters.scale",
                found=parameters.scale,
                expected=f"at least {smallest:.4g}, at most {largest:.4g}",
            )

    def draw_state(self, rng: Generator, parameters: Mapping[str, float]) -> Tensor:
        """Smoke, and velocities on each cell's lower faces, (3, *grid): |noise|, and a fluid at rest."""
        x, y = self.coordinates()
        noise = self._noise(rng, x[:, 0], y[0])
        return torch.stack([noise.abs(), torch.zeros_like(noise), torch.zeros_like(noise)])

    def _noise(self, rng: Generator, x: Tensor, y: Tensor) -> Tensor:
        """Periodic noise of unit variance in space at x and y, (len(x), len(y)).

        PhiFlow's `Noise`: amplitudes (scale |k|)^(-2 smoothness) of the complex Gaussian modes, none where
        (scale |k|)^2 <= 0.1; then divided by the standard deviation of the sample itself.
        """
        modes = modes_by_shell(2, _LARGEST_MODE)
        squared = np.sum((modes * self.parameters.scale / self.parameters.length) ** 2, axis=1)
        size = np.where(squared > _CUT, np.maximum(squared, _CUT) ** -self.parameters.smoothness, 0.0)
        drawn = (rng.standard_normal((len(modes), 2)) @ [1, 1j]) * size
        count = 2 * _LARGEST_MODE + 1
        coefficients = np.zeros((count, count), dtype=np.complex128)
        coefficients[modes[:, 0], modes[:, 1]] = drawn  # negative wavenumbers count from the end
        # The field is the real part of the sum: its own coefficients are the Hermitian part.
        mirrored = np.roll(coefficients[::-1, ::-1], 1, axis=(0, 1)).conj()
        coefficients = (coefficients + mirrored) / 2
        coefficients /= math.sqrt(np.sum(np.abs(coefficients) ** 2))
        k = torch.fft.fftfreq(count, 1 / count, dtype=torch.float64) * (2j * math.pi / self.parameters.length)
        field: Tensor = (torch.exp(x[:, None] * k) @ torch.from_numpy(coefficients) @ torch.exp(k[:, None] * y)).real
        return field

    def begin(self, initial: Tensor, parameters: Mapping[str, Tensor]) -> "_SmokeEvolution":
        """Start a batch; `initial` holds smoke and the velocities on the lower faces, (B, 3, *grid)."""
        return _SmokeEvolution(self, initial, parameters)


class _SmokeEvolution:
    """A batch on its way."""

    def __init__(self, solver: Smoke2D, initial: Tensor, parameters: Mapping[str, Tensor]) -> None:
        self.smoke, u, v = initial.unbind(1)
        self.u, self.v = u[:, 1:], v[..., 1:]  # the first face lies in the wall
        self.solver = solver
        viscosity, buoyancy = (
            parameters[name].reshape(-1, 1, 1).to(initial.dtype) for name in ("viscosity", "buoyancy")
        )
        project = Projection(solver.grid, solver.spacing, initial)
        # The most viscous sample that there may be decides, so that no sample depends on its batch.
        steps = SmokeSteps(solver.spacing, solver.diffusion_step(), viscosity, buoyancy, project, solver.kernel)
        self.step = steps.first_order if solver.parameters.method == "pdearena" else steps.second_order

    def advance(self, duration: float) -> None:
        """Move forward by `duration` in equal steps."""
        count, h = substeps(duration, self.solver.parameters.step)
        for _ in range(count):
            self.smoke, self.u, self.v = self.step((self.smoke, self.u, self.v), h)

    def fields(self) -> Tensor:
        """Smoke and velocities at the centres of the cells, (B, 3, *grid)."""
        return torch.stack([self.smoke, *centred(self.u, self.v)], dim=1)
