"""Random initial states on a periodic line, as the published one-dimensional sets draw them.

Every state is a function of x / L in [0, 1), so that it stretches with a domain of varying length.
"""

import math
from typing import Annotated, Literal, Protocol

import numpy as np
import torch
from numpy.random import Generator
from pydantic import Field
from torch import Tensor

from data_pipeline.base.config import Config
from data_pipeline.solvers.base import Range

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]

_EDGE = 0.01
"""Width of a window's edges, over L."""

_FAR = 1e3
"""Place of the edges of no window."""

_FINE = 1024
"""Points on which a largest value is sought, whatever the grid."""


class InitialState(Protocol):
    """How an initial state is drawn."""

    @property
    def largest_mode(self) -> int:
        """Largest wavenumber, in cycles, that a grid must hold."""
        ...

    @property
    def largest_value(self) -> float:
        """A value that |u| never, or hardly ever, exceeds."""
        ...

    def draw(self, rng: Generator, position: Tensor) -> Tensor:
        """One state at the positions x / L, both float64 (n,)."""
        ...


class Sines(Config):
    """sum_j A_j sin(2 pi l_j x / L + phi_j), A uniform in -amplitude .. amplitude, l in 1 .. wavenumbers, phi in
    0 .. 2 pi: Brandstetter et al. (message passing: 5 waves; Lie point symmetries: 10), l of 1 and 2."""

    kind: Literal["sines"] = "sines"
    waves: Count = 10
    amplitude: Positive = 0.5
    wavenumbers: Count = 2

    @property
    def largest_mode(self) -> int:
        """The largest l."""
        return self.wavenumbers

    @property
    def largest_value(self) -> float:
        """Four standard deviations (A has the variance amplitude^2 / 3, a sine 1/2), or all waves at their largest."""
        return self.amplitude * min(self.waves, 4 * math.sqrt(self.waves / 6))

    def draw_waves(self, rng: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Amplitudes, wavenumbers and phases, float64 (waves, 1)."""
        amplitude = rng.uniform(-self.amplitude, self.amplitude, (self.waves, 1))
        wavenumber = rng.integers(1, self.wavenumbers + 1, (self.waves, 1)).astype(np.float64)
        phase = rng.uniform(0, 2 * math.pi, (self.waves, 1))
        return torch.from_numpy(amplitude), torch.from_numpy(wavenumber), torch.from_numpy(phase)

    def draw(self, rng: Generator, position: Tensor) -> Tensor:
        """The sum of all waves."""
        amplitude, wavenumber, phase = self.draw_waves(rng)
        return (amplitude * torch.sin(2 * math.pi * wavenumber * position + phase)).sum(0)


class Modes(Config):
    """sum_l A_l sin(2 pi l x / L + phi_l) over l = 1 .. wavenumbers, A uniform in -1 .. 1, scaled to max |u| =
    amplitude: APEBench's truncated Fourier series without mean."""

    kind: Literal["modes"] = "modes"
    wavenumbers: Count = 5
    amplitude: Positive = 1.0

    @property
    def largest_mode(self) -> int:
        """The last wavenumber."""
        return self.wavenumbers

    @property
    def largest_value(self) -> float:
        """The amplitude."""
        return self.amplitude

    def draw(self, rng: Generator, position: Tensor) -> Tensor:
        """The scaled series."""
        amplitude = torch.from_numpy(rng.uniform(-1, 1, (self.wavenumbers, 1)))
        phase = torch.from_numpy(rng.uniform(0, 2 * math.pi, (self.wavenumbers, 1)))
        wavenumber = torch.arange(1, self.wavenumbers + 1, dtype=torch.float64)[:, None]

        def series(at: Tensor) -> Tensor:
            return (amplitude * torch.sin(2 * math.pi * wavenumber * at + phase)).sum(0)

        fine = torch.arange(_FINE, dtype=torch.float64) / _FINE
        return self.amplitude * series(position) / series(fine).abs().max()


class Gaussian(Config):
    """Gaussian random field of Li et al.: sum_{k >= 1} sqrt 2 sigma ((2 pi k)^2 + tau^2)^(-gamma/2) (xi_k cos 2 pi k x
    + eta_k sin 2 pi k x), xi and eta N(0, 1); with the defaults the law N(0, 625 (-Lap + 25)^-2) of their paper."""

    kind: Literal["gaussian"] = "gaussian"
    gamma: Annotated[float, Field(gt=0.5)] = 2.0
    """Smoothness; the variance is finite above 1/2."""
    tau: Positive = 5.0
    sigma: Positive = 25.0

    @property
    def largest_mode(self) -> int:
        """Modes that a grid cannot hold are left out; a handful carries nearly all of the variance."""
        return 4

    @property
    def largest_value(self) -> float:
        """Four standard deviations."""
        return 4 * math.sqrt(self.variance())

    def deviations(self, modes: int) -> Tensor:
        """Standard deviation of the cosine and of the sine coefficient, k = 1 .. modes, float64 (modes,)."""
        k = torch.arange(1, modes + 1, dtype=torch.float64)
        return math.sqrt(2) * self.sigma * ((2 * math.pi * k) ** 2 + self.tau**2) ** (-self.gamma / 2)

    def variance(self, modes: int = 4096) -> float:
        """Variance at a point: 2 sigma^2 sum_k ((2 pi k)^2 + tau^2)^-gamma."""
        return float(self.deviations(modes).square().sum())

    def draw(self, rng: Generator, position: Tensor) -> Tensor:
        """The field; its modes are drawn by rising k, so that a finer grid only adds to them."""
        n = len(position)
        modes = (n - 1) // 2
        xi = torch.from_numpy(rng.standard_normal((modes, 2))) * self.deviations(modes)[:, None] * (n / 2)
        spectrum = torch.zeros(n // 2 + 1, dtype=torch.complex128)
        spectrum[1 : modes + 1] = torch.complex(xi[:, 0], -xi[:, 1])
        # The positions start at position[0]: half a cell for cell centres.
        shift = 2j * math.pi * torch.arange(n // 2 + 1) * float(position[0])
        field: Tensor = torch.fft.irfft(spectrum * torch.exp(shift), n)
        return field


class WindowedSines(Config):
    """PDEBench's: `waves` sines with A uniform in 0 .. amplitude and l in 1 .. wavenumbers; some of them replaced by
    their absolute value with a random sign, some multiplied by a window with edges of width 0.01."""

    kind: Literal["windowed_sines"] = "windowed_sines"
    waves: Count = 2
    amplitude: Positive = 1.0
    wavenumbers: Count = 8
    absolute: Share = 0.1
    """Share of trajectories with an absolute value."""
    window: Share = 0.1
    """Share of trajectories with a window."""

    @property
    def largest_mode(self) -> int:
        """The largest l, and a few more for what the absolute value adds."""
        return 2 * self.wavenumbers

    @property
    def largest_value(self) -> float:
        """All waves at their largest."""
        return self.waves * self.amplitude

    def draw_shape(self, rng: Generator) -> Tensor:
        """All that is drawn for one state, float64 (3 waves + 3,); one use of the stream each, whatever comes out."""
        amplitude = rng.uniform(0, self.amplitude, self.waves)
        wavenumber = rng.integers(1, self.wavenumbers + 1, self.waves)
        phase = rng.uniform(0, 2 * math.pi, self.waves)
        chance, sign = rng.random(), rng.choice([-1.0, 1.0])
        absolute = sign if chance < self.absolute else 0.0
        chance, left, right = rng.random(), rng.uniform(0.1, 0.45), rng.uniform(0.55, 0.9)
        left, right = (left, right) if chance < self.window else (-_FAR, _FAR)
        return torch.from_numpy(np.concatenate([amplitude, wavenumber, phase, [absolute, left, right]]))

    def evaluate(self, shape: Tensor, position: Tensor) -> Tensor:
        """The states (B, n) of shapes (B, 3 waves + 3, 1) at positions x / L in [0, 1), (B, n) or (n,)."""
        amplitude, wavenumber, phase = shape[:, :-3].chunk(3, dim=1)
        absolute, left, right = shape[:, -3:].unbind(1)
        waves = (amplitude * torch.sin(2 * math.pi * wavenumber * position.unsqueeze(-2) + phase)).sum(1)
        waves = torch.where(absolute == 0, waves, absolute * waves.abs())
        window = torch.tanh((position - left) / _EDGE) - torch.tanh((position - right) / _EDGE)
        return waves * window / 2

    def draw(self, rng: Generator, position: Tensor) -> Tensor:
        """One state."""
        return self.evaluate(self.draw_shape(rng)[None, :, None], position)[0]


AnyInitial = Annotated[Sines | Modes | Gaussian | WindowedSines, Field(discriminator="kind")]


def draw_turning_waves(rng: Generator, waves: Sines, rates: Range, position: Tensor) -> Tensor:
    """The force sum_j A_j sin(omega_j t + 2 pi l_j x / L + phi_j) of Brandstetter et al., as rows of a state.

    Args:
        rng: the sample's stream.
        waves: law of A, l and phi.
        rates: omega_j is uniform between these.
        position: x / L, float64 (n,).

    Returns:
        float64 (3 J, n): A sin(2 pi l x / L + phi), then A cos(same), then omega, constant along x.
    """
    amplitude, wavenumber, phase = waves.draw_waves(rng)
    omega = torch.from_numpy(rng.uniform(*rates, (waves.waves, 1)))
    angle = 2 * math.pi * wavenumber * position + phase
    return torch.cat([amplitude * torch.sin(angle), amplitude * torch.cos(angle), omega.expand_as(angle)])
