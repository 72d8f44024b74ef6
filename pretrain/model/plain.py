"""The Fourier-attention operator transformer of DPOT (Hao et al., ICML 2024, arXiv 2403.03542), plainly.

This file is the published function, to be read in one sitting: the oracle against which `dpot.py`, the network that
is trained and used, is held in tests, and its baseline in benchmarks. Both keep the published names of parameters, so
that weights pass from one to the other as they are. One implementation serves one, two and three dimensions.

Letters in comments: B batch, T frames, c data channels, C width, h grid points of an axis after patching.
"""

from math import sqrt
from typing import Any, cast

import torch
from torch import Tensor, nn

from pretrain.model.config import ACTIVATIONS, NetworkConfig


class SpectralMixer(nn.Module):
    """AFNO layer: a two-layer perceptron on every Fourier mode, with weights that all modes share.

    AFNO(a) = a + irfft(W2 . act(W1 . rfft(a) + b1) + b2), transforms orthonormal over the spatial axes, W1 and W2
    complex and block-diagonal (kept as a real and an imaginary part), the activation applied to both parts apart.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        block = config.width // config.heads
        self.modes = config.modes_per_axis
        self.activation = ACTIVATIONS[config.spectral_activation]()
        self.w1 = _uniform(2, config.heads, block, block, bound=block**-2)
        self.b1 = _uniform(2, config.heads, block, bound=block**-2)
        self.w2 = _uniform(2, config.heads, block, block, bound=block**-2)
        self.b2 = _uniform(2, config.heads, block, bound=block**-2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *h) -> (B, C, *h)."""
        # Transforms know no bfloat16, and a product of spectra loses too much in it: no autocast here.
        with torch.autocast(x.device.type, enabled=False):
            return x + self._filter(x if x.dtype == torch.float64 else x.float())

    def _filter(self, x: Tensor) -> Tensor:
        axes = tuple(range(2, x.ndim))
        spectrum = torch.fft.rfftn(x, dim=axes, norm="ortho")
        kept: tuple[Any, ...] = (..., *(slice(count) for count in self.modes))
        mixed = torch.zeros_like(spectrum)
        mixed[kept] = self._mix(spectrum[kept])
        return cast(Tensor, torch.fft.irfftn(mixed, s=x.shape[2:], dim=axes, norm="ortho"))

    def _mix(self, z: Tensor) -> Tensor:
        z = z.reshape(z.shape[0], *self.b1.shape[1:], *z.shape[2:])  # (B, C, *m) -> (B, heads, block, *m)
        real, imag = _complex_linear(z.real, z.imag, self.w1, self.b1)
        real, imag = _complex_linear(self.activation(real), self.activation(imag), self.w2, self.b2)
        return torch.complex(real, imag).flatten(1, 2)


def _uniform(*shape: int, bound: float) -> nn.Parameter:
    """Uniform on [0, bound), as published."""
    return nn.Parameter(torch.rand(shape) * bound)


def _complex_linear(real: Tensor, imag: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Complex block-diagonal product, in real numbers; `w` (2, heads, in, out), `b` (2, heads, out)."""

    def product(a: Tensor, weight: Tensor) -> Tensor:
        return torch.einsum("bhi...,hio->bho...", a, weight)

    bias = b.reshape(*b.shape, *(1,) * (real.ndim - 3))
    return (
        product(real, w[0]) - product(imag, w[1]) + bias[0],
        product(imag, w[0]) + product(real, w[1]) + bias[1],
    )


class Block(nn.Module):
    """z + MLP(norm2(AFNO(norm1(z)))): one skip around the whole, from before the first norm."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        conv = _convolution(config)
        hidden = int(config.width * config.mlp_ratio)
        self.norm1 = nn.GroupNorm(8, config.width)
        self.filter = SpectralMixer(config)
        self.norm2 = nn.GroupNorm(8, config.width)
        self.mlp = nn.Sequential(
            conv(config.width, hidden, 1), ACTIVATIONS[config.activation](), conv(hidden, config.width, 1)
        )

    def forward(self, z: Tensor) -> Tensor:
        """(B, C, *h) -> (B, C, *h)."""
        return cast(Tensor, z + self.mlp(self.norm2(self.filter(self.norm1(z)))))


class PatchEmbed(nn.Module):
    """Every patch of every frame to one vector."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        conv = _convolution(config)
        self.proj = nn.Sequential(
            conv(config.in_channels + len(config.space) + 1, config.stem, config.patch_size, config.patch_size),
            ACTIVATIONS[config.activation](),
            conv(config.stem, config.width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, c + coordinates, *space) -> (B, C, *h)."""
        return cast(Tensor, self.proj(x))


class TimeAggregation(nn.Module):
    """All frames of a patch to one vector: out_j = sum_{t,i} w[t,i,j] cos(gamma_i t) z[t,i], t in [0, 1].

    Without the cosine for `mlp`. (The paper writes a complex exponential; the published code has the cosine.)
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        T, C = config.in_timesteps, config.width
        self.w = nn.Parameter(torch.randn(T, C, C) / (T * sqrt(C)))
        if config.time_aggregation == "exp_mlp":
            self.gamma = nn.Parameter(2 ** torch.linspace(-10, 10, C).unsqueeze(0))
        else:
            self.register_parameter("gamma", None)

    def forward(self, z: Tensor) -> Tensor:
        """(B, T, C, *h) -> (B, C, *h)."""
        if self.gamma is not None:
            t = torch.linspace(0, 1, z.shape[1], device=z.device, dtype=self.gamma.dtype)
            wave = torch.cos(t[:, None] * self.gamma)  # (T, C)
            z = z * wave.reshape(*wave.shape, *(1,) * (z.ndim - 3))
        return torch.einsum("tij,bti...->bj...", self.w, z)


class PlainDpot(nn.Module):
    """The network. Call it on a history (B, *space, T_in, c_in); it returns (B, *space, T_out, c_out)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        _check_published(config)
        self.config = config
        conv, act = _convolution(config), ACTIVATIONS[config.activation]
        transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[len(config.space) - 1]
        C, D = config.width, config.head_width

        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.zeros(1, C, *config.latent), std=0.02))
        self.patch_embed = PatchEmbed(config)
        self.time_agg_layer = TimeAggregation(config)
        if config.normalize:
            self.scale_feats_mu = nn.Linear(2 * config.in_channels, C)
            self.scale_feats_sigma = nn.Linear(2 * config.in_channels, C)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.cls_head = nn.Sequential(nn.Linear(C, C), act(), nn.Linear(C, C), act(), nn.Linear(C, config.classes))
        self.out_layer = nn.Sequential(
            transposed(C, D, config.patch_size, config.patch_size),
            act(),
            conv(D, D, 1),
            act(),
            conv(D, config.out_channels * config.out_timesteps, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, *space, T_in, c_in) -> (B, *space, T_out, c_out)."""
        self._check(x)
        moments = _moments(x) if self.config.normalize else None
        y: Tensor = self.out_layer(self._encode(x, moments))  # (B, T_out * c_out, *space)
        y = y.reshape(y.shape[0], self.config.out_timesteps, self.config.out_channels, *self.config.space)
        y = y.movedim((1, 2), (-2, -1))
        return y if moments is None else y * moments[1] + moments[0]

    def class_logits(self, x: Tensor) -> Tensor:
        """Which dataset the history comes from: (B, *space, T_in, c_in) -> (B, classes)."""
        self._check(x)
        z = self._encode(x, _moments(x) if self.config.normalize else None)
        return cast(Tensor, self.cls_head(z.flatten(2).mean(-1)))

    def _encode(self, x: Tensor, moments: tuple[Tensor, Tensor] | None) -> Tensor:
        """(B, *space, T, c) -> (B, C, *h)."""
        if moments is not None:
            x = (x - moments[0]) / moments[1]
        x = torch.cat([x, _coordinates(x)], dim=-1)
        frames = x.movedim((-2, -1), (1, 2))  # (B, T, c, *space)
        z = self.patch_embed(frames.flatten(0, 1)) + self.pos_embed
        z = self.time_agg_layer(z.reshape(*frames.shape[:2], *z.shape[1:]))
        if moments is not None:
            features = torch.cat(moments, dim=-1).flatten(1)  # (B, 2c)
            shape = (*features.shape[:1], -1, *(1,) * len(self.config.space))
            z = self.scale_feats_sigma(features).reshape(shape) * z + self.scale_feats_mu(features).reshape(shape)
        for block in self.blocks:
            z = block(z)
        return cast(Tensor, z)

    def _check(self, x: Tensor) -> None:
        expected = (*self.config.space, self.config.in_timesteps, self.config.in_channels)
        if tuple(x.shape[1:]) != expected:
            raise ValueError(f"history has shape (B, *{tuple(x.shape[1:])}), the network expects (B, *{expected})")


def _check_published(config: NetworkConfig) -> None:
    """Raise ValueError for an option that the published network does not have."""
    for name in ("mode_truncation", "conditions", "resize_position"):
        if getattr(config, name) != NetworkConfig.model_fields[name].default:
            raise ValueError(f"the plain network is the published one, without {name}")


def _convolution(config: NetworkConfig) -> type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]:
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(config.space) - 1]  # type: ignore[return-value]


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased deviation per sample and channel over space and time, each (B, 1, ..., 1, c)."""
    axes = tuple(range(1, x.ndim - 1))
    return x.mean(axes, keepdim=True), x.std(axes, keepdim=True) + 1e-6


def _coordinates(x: Tensor) -> Tensor:
    """linspace(0, 1) along every spatial axis and time, both ends included: (B, *space, T, axes + 1)."""
    axes = [torch.linspace(0, 1, n, device=x.device, dtype=x.dtype) for n in x.shape[1:-1]]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    return grid.expand(x.shape[0], *grid.shape)
