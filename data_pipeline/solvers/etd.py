"""Exponential time differencing of fourth order (ETDRK4) for u_t = L u + N(u) with a diagonal L."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

_CONTOUR_POINTS = 32

REAL_STABILITY = 2.78
"""Largest h |lambda| for a decaying mode of N: the end of RK4's stability region on the negative real axis."""

IMAGINARY_STABILITY = 2.82
"""Largest h |lambda| for an oscillating mode of N (advection): its end on the imaginary axis, 2 sqrt 2."""


class ETDRK4:
    """One step of length h, of Cox and Matthews (J. Comput. Phys. 176, 2002, eqs. 26-29).

    The coefficients are means over a circle around h L in the complex plane, which avoids the cancellation for small
    h L (Kassam and Trefethen, SIAM J. Sci. Comput. 26, 2005, section 2).

    Args:
        linear: diagonal of L, real; broadcasts against the state.
        nonlinear: N, from state to state.
        h: length of a step.
    """

    def __init__(self, linear: Tensor, nonlinear: Callable[[Tensor], Tensor], h: float) -> None:
        self.nonlinear = nonlinear
        z = h * linear
        self.whole, self.half = torch.exp(z), torch.exp(z / 2)
        self.q = h * _contour_mean(lambda r: (torch.exp(r / 2) - 1) / r, z)
        self.first = h * _contour_mean(lambda r: (-4 - r + torch.exp(r) * (4 - 3 * r + r**2)) / r**3, z)
        self.middle = 2 * h * _contour_mean(lambda r: (2 + r + torch.exp(r) * (r - 2)) / r**3, z)
        self.last = h * _contour_mean(lambda r: (-4 - 3 * r - r**2 + torch.exp(r) * (4 - r)) / r**3, z)

    def step(self, u: Tensor) -> Tensor:
        """The state one step later."""
        n_u = self.nonlinear(u)
        u_half = self.half * u
        a = u_half + self.q * n_u
        n_a = self.nonlinear(a)
        b = u_half + self.q * n_a
        n_b = self.nonlinear(b)
        c = self.half * a + self.q * (2 * n_b - n_u)
        n_c = self.nonlinear(c)
        return self.whole * u + self.first * n_u + self.middle * (n_a + n_b) + self.last * n_c


def _contour_mean(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Mean of an analytic function over the unit circle around each real z: its value at z, without cancellation."""
    total = torch.zeros_like(z)
    for j in range(_CONTOUR_POINTS // 2):
        # The lower half of the circle gives the complex conjugates: the real part of the upper half is the mean.
        angle = math.pi * (j + 0.5) / (_CONTOUR_POINTS // 2)
        total += function(z + complex(math.cos(angle), math.sin(angle))).real
    return total / (_CONTOUR_POINTS // 2)
