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
        linear: diagonal of L, float64 or complex128; broadcasts against the state.
        nonlinear: N, from state to state. It may hand back the same tensor each time only if that never changes.
        h: length of a step.
        precision: that of the state, float32 or float64; the coefficients are computed in float64 and then rounded.
    """

    def __init__(
        self,
        linear: Tensor,
        nonlinear: Callable[[Tensor], Tensor],
        h: float,
        precision: torch.dtype = torch.float64,
    ) -> None:
        self.nonlinear = nonlinear
        z = h * _shared(linear)
        dtype = precision.to_complex() if z.is_complex() else precision
        self.whole, self.half = torch.exp(z).to(dtype), torch.exp(z / 2).to(dtype)
        self.q = (h * _contour_mean(lambda r: (torch.exp(r / 2) - 1) / r, z)).to(dtype)
        self.first = (h * _contour_mean(lambda r: (-4 - r + torch.exp(r) * (4 - 3 * r + r**2)) / r**3, z)).to(dtype)
        self.middle = (2 * h * _contour_mean(lambda r: (2 + r + torch.exp(r) * (r - 2)) / r**3, z)).to(dtype)
        self.last = (h * _contour_mean(lambda r: (-4 - 3 * r - r**2 + torch.exp(r) * (4 - r)) / r**3, z)).to(dtype)
        self._pairs: tuple[Tensor, ...] | None = None

    def step(self, u: Tensor) -> Tensor:
        """The state one step later; u keeps its values."""
        if u.is_complex() and not self.whole.is_complex():
            return self._step_in_pairs(u)
        return _march(u, self.nonlinear, self.whole, self.half, self.q, self.first, self.middle, self.last)

    def _step_in_pairs(self, u: Tensor) -> Tensor:
        """A real L on a complex state, as pairs of real numbers: torch would make each factor complex at each use."""
        if self._pairs is None:
            factors = (self.whole, self.half, self.q, self.first, self.middle, self.last)
            self._pairs = tuple(torch.stack([factor, factor], dim=-1) for factor in factors)

        def nonlinear(pairs: Tensor) -> Tensor:
            return torch.view_as_real(self.nonlinear(torch.view_as_complex(pairs)))

        return torch.view_as_complex(_march(torch.view_as_real(u), nonlinear, *self._pairs))


def _march(
    u: Tensor,
    nonlinear: Callable[[Tensor], Tensor],
    whole: Tensor,
    half: Tensor,
    q: Tensor,
    first: Tensor,
    middle: Tensor,
    last: Tensor,
) -> Tensor:
    """The four stages; in place where the left side is a fresh tensor."""
    n_u = nonlinear(u)
    u_half = half * u
    a = torch.addcmul(u_half, q, n_u)
    n_a = nonlinear(a)
    b = torch.addcmul(u_half, q, n_a)
    n_b = nonlinear(b)
    c = a.mul_(half).addcmul_(q, n_b, value=2).addcmul_(q, n_u, value=-1)
    n_c = nonlinear(c)
    total = torch.mul(whole, u, out=u_half).addcmul_(first, n_u).addcmul_(middle, n_a)
    return total.addcmul_(middle, n_b).addcmul_(last, n_c)


def _shared(linear: Tensor) -> Tensor:
    """`linear` without the batch where all samples have the same: an eighth of the memory traffic, say, of eight."""
    if linear.ndim and len(linear) > 1 and bool((linear == linear[:1]).all()):
        return linear[:1]
    return linear


def _contour_mean(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Mean of an analytic function over the unit circle around each z: its value at z, without cancellation."""
    # Around a real z the lower half gives the complex conjugates: the real part of the upper half will do.
    points = _CONTOUR_POINTS if z.is_complex() else _CONTOUR_POINTS // 2
    total = torch.zeros_like(z)
    for j in range(points):
        angle = 2 * math.pi * (j + 0.5) / _CONTOUR_POINTS
        value = function(z + complex(math.cos(angle), math.sin(angle)))
        total += value if z.is_complex() else value.real
    return total / points
