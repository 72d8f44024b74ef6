"""Compressible Navier-Stokes on one axis: PDEBench's one-dimensional sets, from sines and from shock tubes."""

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from numpy.random import Generator
from pydantic import Field
from torch import Tensor

from data_pipeline.solvers.base import draw_uniform
from data_pipeline.solvers.families.compressible import CompressibleParameters, CompressibleSolver
from data_pipeline.solvers.numerics.gas import to_conserved, to_primitive

_CELLS_A_WAVE = 8
_CELLS_A_TUBE = 64
_LATTICE = 1024
"""Points on which the largest and the mean value of a start are taken, whatever the grid."""

_WINDOW_WIDTH = 0.01


class Compressible1DParameters(CompressibleParameters):
    """Parameters of `compressible_1d`."""

    initial: Literal["random", "shock"] = "random"
    """`random`: sines in density, pressure and velocity. `shock`: two states and a jump; `density` and `temperature`
    are those of the left one, the right one draws its own from the same ranges."""
    modes: Annotated[int, Field(ge=1, le=64)] = 8
    """Largest number of waves across the box of a random start; each field has two sines."""
    rectified: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Part of the random starts whose fields are replaced by their absolute values, with a random sign each."""
    windowed: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Part of the random starts that are undisturbed gas at rest outside a window."""


class Compressible1D(CompressibleSolver[Compressible1DParameters]):
    """A viscous ideal gas on [-1, 1]: d density, v velocity, p pressure, E = p / (gamma - 1) + d v^2 / 2.

    The stress is S = (4/3 eta + zeta) v_x. `random`: each field is a sum of two sines, as in PDEBench's other
    one-dimensional sets. `shock`: a Riemann problem, its jump in the middle half of the box, velocities within
    `mach_number` times the speed of sound on each side.
    """

    family: ClassVar[str] = "compressible_1d"
    equation: ClassVar[str] = "d_t + (d v)_x = 0, (d v)_t + (d v v + p - S)_x = 0, E_t + ((E + p - S) v)_x = 0"
    axes = ("x",)
    extent = ((-1.0, 1.0),)
    parameters_class = Compressible1DParameters

    def smallest_grid(self) -> tuple[int, str]:
        """Eight cells for the shortest wave; 64 for the waves of a shock tube to come apart."""
        if self.parameters.initial == "shock":
            return _CELLS_A_TUBE, "the waves of a shock tube need room to come apart"
        return _CELLS_A_WAVE * self.parameters.modes, f"{_CELLS_A_WAVE} for each of {self.parameters.modes} waves"

    def draw_state(self, rng: Generator, parameters: Mapping[str, float]) -> Tensor:
        """Density, velocity and pressure, (3, *grid)."""
        if self.parameters.initial == "shock":
            return self._draw_shock(rng, parameters)
        p = self.parameters
        lattice = 2 * (torch.arange(_LATTICE, dtype=torch.float64) + 0.5) / _LATTICE - 1
        contrast = [draw_uniform(rng, p.contrast) for _ in range(2)]
        waves = [_Waves(rng, p.modes) for _ in range(3)]
        rectify, window = rng.random() < p.rectified, rng.random() < p.windowed
        low, high = 2 * rng.uniform(0.1, 0.45) - 1, 2 * rng.uniform(0.55, 0.9) - 1
        (x,) = self.coordinates()
        inside = torch.ones_like(x)
        if window:
            inside = (torch.tanh((x - low) / _WINDOW_WIDTH) - torch.tanh((x - high) / _WINDOW_WIDTH)) / 2
        dense, fast, pressed = (wave.at(x, rectify) * inside for wave in waves)
        largest = [wave.at(lattice, rectify).abs().max() for wave in waves]
        speed = parameters["mach_number"] * math.sqrt(parameters["gamma"] * parameters["temperature"])
        return torch.stack(
            [
                parameters["density"] * (1 + contrast[0] * dense / largest[0]),
                speed * fast / waves[1].at(lattice, rectify).abs().mean(),
                parameters["density"] * parameters["temperature"] * (1 + contrast[1] * pressed / largest[2]),
            ]
        )

    def _draw_shock(self, rng: Generator, parameters: Mapping[str, float]) -> Tensor:
        """Two constant states; the cell with the jump holds its part of the mass, momentum and energy of both."""
        p = self.parameters
        (x,) = self.coordinates()
        low, high = self.extent[0]
        jump = low + (high - low) * rng.uniform(0.25, 0.75)
        gamma = torch.full((1, 1, 1), parameters["gamma"], dtype=torch.float64)
        states = []
        for side in range(2):
            density, temperature = draw_uniform(rng, p.density), draw_uniform(rng, p.temperature)
            if side == 0:
                density, temperature = parameters["density"], parameters["temperature"]
            velocity = rng.uniform(-1, 1) * parameters["mach_number"] * math.sqrt(parameters["gamma"] * temperature)
            primitive = torch.tensor([density, velocity, density * temperature], dtype=torch.float64)
            states.append(to_conserved(primitive.reshape(1, 3, 1), gamma))
        left = (0.5 + (jump - x) / self.spacing[0]).clamp(0, 1)
        return to_primitive(states[0] * left + states[1] * (1 - left), gamma)[0]


class _Waves:
    """Two sines on [-1, 1] with random wavenumbers, amplitudes in 0 .. 1 and phases."""

    def __init__(self, rng: Generator, largest: int) -> None:
        self.wavenumbers = math.pi * rng.integers(1, largest + 1, 2)
        self.amplitudes = rng.random(2)
        self.phases = rng.uniform(0, 2 * math.pi, 2)
        self.sign = rng.choice([-1, 1])

    def at(self, x: Tensor, rectify: bool) -> Tensor:
        """Values at x, (n,), or their absolute values with the waves' sign."""
        terms = zip(self.wavenumbers, self.amplitudes, self.phases, strict=True)
        total = sum((a * torch.sin(k * x + phase) for k, a, phase in terms), start=torch.zeros_like(x))
        return self.sign * total.abs() if rectify else total
