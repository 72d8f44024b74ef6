"""Signal propagation at initialisation: the variance of spectral weights at which gradients keep their size.

Mean field of Fourier neural operators (Koshizuka et al., NeurIPS 2024, arXiv 2310.06379; derived anew for the
conventions below), for wide layers x -> irfft(R_k . rfft(act(x))_k) without bias, with orthonormal transforms and
independent R_k:

- sigma^2 = width * E|R_k,ij|^2. Real and imaginary part of R_k share it. Only at modes that are their own conjugates
  (zero, and Nyquist on an even grid), where the inverse transform has no use for an imaginary part, R_k is real and
  has all of sigma^2: otherwise a signal that is constant in space would lose a factor two which no other signal loses.
- Forward, the variance at a point goes from q to sigma^2 E[act(sqrt(q) z)^2], z ~ N(0, 1).
- Backward, each layer multiplies the gradient's mean square by chi = sigma^2 E[act'(sqrt(q) z)^2]. For ReLU that is
  sigma^2 / 2 whatever q: the RMS goes with sqrt(sigma^2 / 2), and the edge of chaos is at 2. For tanh, signals die out
  up to sigma^2 = 1, so that q -> 0 and chi = sigma^2: the edge is at 1.
- The number of kept modes has no part in this where signals are constant in space, as deep layers at the edge make
  them: act' is then the same at all points, and moves no gradient from kept modes to dropped ones. Until then
  truncation costs a little (24 ReLU layers of width 192 at the edge, white input, 16 or 32 of 65 modes: 0.98 a layer,
  measured, not 1).

An AFNO branch, irfft(W2 . act(W1 . rfft(x))), is a perceptron on real and imaginary parts, 2 * block real numbers, and
the same for every mode: sigma^2 = 2 * block * Var(w). W1 has an activation after it, and is at the edge at that one's
critical variance; W2 has none, so that its chi is sigma^2, and its edge at 1. The inverse transform drops the
imaginary part that the activation gives to modes which are their own conjugates, about half the energy of 2 / n of the
spectrum on n latent points, so that on small grids the gain is a little below 1; it also falls with the share of modes
not mixed.
"""

from collections.abc import Callable
from math import pi, sqrt
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from pretrain.model.config import ACTIVATIONS

# Variances of the signal at which an activation's slope is looked at; the first stands for the limit zero.
_SHARES = (1e-16, *np.linspace(0.05, 1, 20))
_LARGEST = 1e3


def critical_variance(activation: str | Callable[[Tensor], Tensor]) -> float:
    """The largest sigma^2 at which a layer amplifies the gradient of no signal of up to unit variance.

    That is sigma^2 max_q E[act'(sqrt(q) z)^2] = 1 over 0 < q <= sigma^2, z ~ N(0, 1): the edge of chaos without
    biases. It is 2 for ReLU and 2 / (1 + a^2) for leaky ReLU, where q has no part, and 1 for tanh and ELU, which are
    steepest for small signals. GELU, SiLU and softplus are steepest for large ones: theirs is that of unit variance,
    right after a norm as in DPOT, while in a bare stack smaller signals die out and larger ones may grow.

    Args:
        activation: a name in ACTIVATIONS, or an elementwise function.
    """
    function = ACTIVATIONS[activation]() if isinstance(activation, str) else activation

    # Each side of zero for itself, where some activations have a kink. On the CPU, wherever the network is made.
    nodes, weights = np.polynomial.legendre.leggauss(100)
    z = 5 * (nodes + 1)
    density = np.tile(5 * weights * np.exp(-(z**2) / 2) / sqrt(2 * pi), 2)
    deviations = np.sqrt(_SHARES)[:, None] * np.concatenate([-z, z])

    def amplification(variance: float) -> float:
        x = torch.tensor(sqrt(variance) * deviations, dtype=torch.float64, device="cpu")
        slope: Tensor = torch.func.jvp(function, (x,), (torch.ones_like(x),))[1]
        return variance * float(max(slope.numpy() ** 2 @ density))

    low, high = 0.0, _LARGEST
    for _ in range(60):  # to the last digit
        middle = (low + high) / 2
        low, high = (middle, high) if amplification(middle) < 1 else (low, middle)
    return high


class SpectralLayer(nn.Module):
    """x -> irfft(R_k . rfft(act(x))_k), a Fourier layer with nothing beside the spectral weights, in one dimension.

    Args:
        width: channels.
        points: of the grid.
        modes: kept, counted from zero, 1 to points // 2 + 1; the others become zero.
        activation: a name in ACTIVATIONS.
        variance: sigma^2.
    """

    def __init__(self, width: int, points: int, modes: int, activation: str, variance: float) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]()
        self.own_conjugate = [0, points // 2] if points == 2 * (modes - 1) else [0]
        self.weight = nn.Parameter(torch.empty(modes, width, width, 2))  # (..., real and imaginary part)
        self.draw_(variance)

    @torch.no_grad()
    def draw_(self, variance: float) -> None:
        """Draw new weights with sigma^2 = `variance`."""
        self.weight.normal_(std=sqrt(variance / (2 * self.weight.shape[1])))
        real, imag = self.weight.unbind(-1)
        real[self.own_conjugate] *= sqrt(2)
        imag[self.own_conjugate] = 0

    def forward(self, x: Tensor) -> Tensor:
        """(B, points, width) -> (B, points, width)."""
        kept = torch.fft.rfft(self.activation(x), dim=1, norm="ortho")[:, : len(self.weight)]
        mixed = torch.bmm(kept.transpose(0, 1), torch.view_as_complex(self.weight)).transpose(0, 1)
        return cast(Tensor, torch.fft.irfft(mixed, n=x.shape[1], dim=1, norm="ortho"))


class SpectralStack(nn.Module):
    """Spectral layers one after another, without skips, norms or biases: the network of the theory."""

    def __init__(self, width: int, depth: int, points: int, modes: int, activation: str, variance: float) -> None:
        super().__init__()
        layer = (width, points, modes, activation, variance)
        self.blocks = nn.ModuleList(SpectralLayer(*layer) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """(B, points, width) -> (B, points, width)."""
        for block in self.blocks:
            x = block(x)
        return x


def edge_of_chaos_(network: nn.Module) -> None:
    """Draw the spectral weights of a network anew, normally distributed, at the edge of chaos.

    AFNO layers, which are modules with weights w1, w2 (2, heads, in, out) and biases b1, b2: the first product gets
    sigma^2 = `critical_variance` of the activation after it, the second 1; biases become zero. Spectral layers get the
    critical variance of their activation. All other parameters are left as they are.
    """
    for module in network.modules():
        if isinstance(module, SpectralLayer):
            module.draw_(critical_variance(module.activation))
        elif is_afno(module):
            _draw_afno_(module)


def is_afno(module: nn.Module) -> bool:
    """Whether a module is an AFNO layer, of whichever implementation."""
    return all(hasattr(module, name) for name in ("w1", "b1", "w2", "b2"))


@torch.no_grad()
def _draw_afno_(layer: Any) -> None:
    first = critical_variance(layer.activation)
    for weight, bias, variance in ((layer.w1, layer.b1, first), (layer.w2, layer.b2, 1.0)):
        weight.normal_(std=sqrt(variance / (2 * weight.shape[-2])))
        bias.zero_()
