"""The Fourier-attention operator transformer of DPOT (Hao et al., ICML 2024, arXiv 2403.03542), made fast.

The same weights give the same function as `plain.py`, the published network, which it is tested against. What differs
is how the function is computed (all rewrites are exact):

- From the stem's activation to the first block everything is linear, so the 1x1 convolution, the cosine and the
  temporal aggregation fold into one product, and the position table and all biases into one field (`Dpot.fold`).
- Of the stem's convolution the part that sees the coordinates is the same for all samples, and enters as a bias.
- Everything that is left is a matrix product on rows of channels: patches, 1x1 and transposed convolutions, and the
  Fourier transforms, too (`fourier.py`). Complex products are real ones of twice the width.
- Only real tensors, one code for any number of spatial axes, and no branch that depends on data: the whole network
  compiles to one graph.

Letters in comments: B batch, T frames, c data channels, C width, D head width, E stem width, h grid points of an axis
after patching, P points of a patch. The latent field is (*h, B, C): channels are contiguous, and the transform of an
axis is one matrix product for all samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod, sqrt
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pretrain.model.config import ACTIVATIONS, NetworkConfig
from pretrain.model.fourier import Transform, transform
from pretrain.model.signal import edge_of_chaos_

_GROUPS = 8
Matrices: TypeAlias = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


class Kernel(nn.Module):
    """Weights of a convolution whose stride is its kernel, in their published shape, applied as a matrix product.

    With a kernel of one point, calling it maps rows (..., in) to (..., out). The initial values are the framework's
    for convolutions.
    """

    def __init__(self, inputs: int, outputs: int, kernel: Sequence[int], *, transposed: bool = False) -> None:
        super().__init__()
        shape = (inputs, outputs) if transposed else (outputs, inputs)
        bound = 1 / sqrt(shape[1] * prod(kernel))
        self.weight = nn.Parameter(torch.empty(*shape, *kernel).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))

    def forward(self, rows: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        # The bias apart: the compiler adds it where it applies what follows, a library call in a pass of its own.
        return _plus(F.linear(rows, self.weight.flatten(1)), self.bias)


class GroupNorm(nn.Module):
    """Normalises (*h, B, C) over the grid and the channels of a group, for each sample, in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, z: Tensor) -> Tensor:
        """(*h, B, C) -> (*h, B, C)."""
        groups, grid = z.reshape(*z.shape[:-1], _GROUPS, -1), tuple(range(z.ndim - 2))
        # First along each row, which is contiguous in memory; then over the rows' few figures.
        row_variance, row_mean = torch.var_mean(groups, dim=-1, correction=0, keepdim=True)
        mean = row_mean.mean(grid, keepdim=True)
        variance = (row_variance + (row_mean - mean).square()).mean(grid, keepdim=True)
        # One product and one sum for each value, whose gradients are cheap to reduce.
        scale = torch.rsqrt(variance + 1e-5) * self.weight.reshape(_GROUPS, -1)
        return z * scale.flatten(-2) + (self.bias - (mean * scale).flatten(-2))


class SpectralMixer(nn.Module):
    """AFNO layer: a two-layer perceptron on every Fourier mode, with weights that all modes share.

    AFNO(a) = a + irfft(W2 . act(W1 . rfft(a) + b1) + b2), transforms orthonormal over the spatial axes, W1 and W2
    complex and block-diagonal, the activation applied to real and imaginary parts apart.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        block = config.width // config.heads
        self.activation = ACTIVATIONS[config.spectral_activation]()
        self.w1 = _uniform(2, config.heads, block, block, bound=block**-2)
        self.b1 = _uniform(2, config.heads, block, bound=block**-2)
        self.w2 = _uniform(2, config.heads, block, block, bound=block**-2)
        self.b2 = _uniform(2, config.heads, block, bound=block**-2)

    def matrices(self) -> Matrices:
        """The two complex products as real ones: weights (heads, 2 block, 2 block) and biases (heads, 1, 2 block)."""
        return (_real_matrix(self.w1), _real_bias(self.b1)), (_real_matrix(self.w2), _real_bias(self.b2))

    def forward(self, z: Tensor, transform: Transform, matrices: Matrices | None = None) -> Tensor:
        """(*h, B, C) -> (*h, B, C); `matrices` are computed here if not given."""
        heads, block = self.w1.shape[1:3]
        (w1, b1), (w2, b2) = matrices or self.matrices()
        with _float32(z):
            spectrum = transform.forward(z.flatten(-2))  # (2, *m, B * C)
        rows = spectrum.reshape(2, -1, heads, block).permute(2, 1, 0, 3).flatten(2)  # (heads, m * B, 2 * block)
        rows = self.activation(_plus(torch.bmm(rows, w1), b1))
        rows = _plus(torch.bmm(rows, w2), b2)
        with _float32(z):
            mixed = rows.to(z.dtype).reshape(heads, -1, 2, block).permute(2, 1, 0, 3).reshape(spectrum.shape)
            return z + transform.inverse(mixed).reshape(z.shape)


class Block(nn.Module):
    """z + MLP(norm2(AFNO(norm1(z)))): one skip around the whole, from before the first norm."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        hidden, ones = int(config.width * config.mlp_ratio), (1,) * len(config.space)
        self.norm1 = GroupNorm(config.width)
        self.filter = SpectralMixer(config)
        self.norm2 = GroupNorm(config.width)
        self.mlp = nn.Sequential(
            Kernel(config.width, hidden, ones), ACTIVATIONS[config.activation](), Kernel(hidden, config.width, ones)
        )
        if config.conditions:
            self.modulation = _zeros(nn.Linear(config.width, 4 * config.width))

    def forward(
        self, z: Tensor, transform: Transform, condition: Tensor | None = None, matrices: Matrices | None = None
    ) -> Tensor:
        """Latent (*h, B, C) and, where the network has conditions, their features (B, C) -> (*h, B, C)."""
        if condition is None:
            return cast(Tensor, z + self.mlp(self.norm2(self.filter(self.norm1(z), transform, matrices))))
        scale1, shift1, scale2, shift2 = self.modulation(condition).chunk(4, dim=-1)
        a = self.filter(self.norm1(z) * (1 + scale1) + shift1, transform, matrices)
        return cast(Tensor, z + self.mlp(self.norm2(a) * (1 + scale2) + shift2))


class PatchEmbed(nn.Module):
    """The stem's weights: every patch of every frame to one vector."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        rank = len(config.space)
        self.proj = nn.Sequential(
            Kernel(config.in_channels + rank + 1, config.stem, (config.patch_size,) * rank),
            ACTIVATIONS[config.activation](),
            Kernel(config.stem, config.width, (1,) * rank),
        )


class TimeAggregation(nn.Module):
    """Weights that take all frames of a patch to one vector: out_j = sum_{t,i} w[t,i,j] cos(gamma_i t) z[t,i].

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

    def wave(self) -> Tensor:
        """cos(gamma_i t), t from 0 to 1: (T, C); ones for `mlp`."""
        if self.gamma is None:
            return torch.ones_like(self.w[:, 0])
        t = torch.linspace(0, 1, len(self.w), device=self.w.device, dtype=self.w.dtype)
        return torch.cos(t[:, None] * self.gamma)


@dataclass(frozen=True)
class Folded:
    """The products of weights alone, on one grid: the same for every sample, and for every step of a roll-out.

    Attributes:
        stem: (E, P * c), columns in the order (patch, channel).
        stem_bias: (*h, 1, T, E), the stem's bias and what it makes of the coordinates.
        aggregation: (T * E, C), the stem's second product, cosine and temporal aggregation in one.
        latent_bias: (*h, 1, C), what those make of the biases and of the position table.
        transform: Fourier transform on the latent grid.
        head: (P * D, C) and its bias (P * D), rows in the order (patch, channel).
        matrices: of each block's spectral mixer, or None, and each computes its own.
    """

    stem: Tensor
    stem_bias: Tensor
    aggregation: Tensor
    latent_bias: Tensor
    transform: Transform
    head: Tensor
    head_bias: Tensor
    matrices: tuple[Matrices, ...] | None = None


class Dpot(nn.Module):
    """The network. Call it on a history (B, *space, T_in, c_in); it returns (B, *space, T_out, c_out).

    `recompute_blocks` trades time for memory in training: of the stem and of each block only the input is kept, and
    the rest computed again in the backward pass.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute_blocks = False
        act, rank, C, D = ACTIVATIONS[config.activation], len(config.space), config.width, config.head_width

        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.zeros(1, C, *config.latent), std=0.02))
        self.patch_embed = PatchEmbed(config)
        self.time_agg_layer = TimeAggregation(config)
        if config.normalize:
            self.scale_feats_mu = nn.Linear(2 * config.in_channels, C)
            self.scale_feats_sigma = nn.Linear(2 * config.in_channels, C)
        if config.conditions:
            self.condition = nn.Sequential(nn.Linear(config.conditions, C), nn.SiLU())
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.cls_head = nn.Sequential(nn.Linear(C, C), act(), nn.Linear(C, C), act(), nn.Linear(C, config.classes))
        self.out_layer = nn.Sequential(
            Kernel(C, D, (config.patch_size,) * rank, transposed=True),
            act(),
            Kernel(D, D, (1,) * rank),
            act(),
            Kernel(D, config.out_channels * config.out_timesteps, (1,) * rank),
        )
        if config.initialisation == "edge_of_chaos":
            edge_of_chaos_(self)

    def forward(self, x: Tensor, conditions: Tensor | None = None, folded: Folded | None = None) -> Tensor:
        """Predict the frames after a history.

        Args:
            x: (B, *space, T_in, c_in).
            conditions: (B, conditions), for a network that was made with them.
            folded: what `fold` gave for this grid; computed here if not given, and then differentiated through.

        Returns:
            (B, *space, T_out, c_out).

        Raises:
            ValueError: the history or the conditions do not have the configured shape.
        """
        self._check(x, conditions)
        folded = folded or self._fold(x.shape[1:-2])
        moments = _moments(x) if self.config.normalize else None
        y = self._head(self._encode(x, conditions, moments, folded), folded)
        return y if moments is None else y * moments[1] + moments[0]

    def class_logits(self, x: Tensor, conditions: Tensor | None = None) -> Tensor:
        """Which dataset the history comes from: (B, *space, T_in, c_in) -> (B, classes)."""
        self._check(x, conditions)
        moments = _moments(x) if self.config.normalize else None
        z = self._encode(x, conditions, moments, self._fold(x.shape[1:-2]))
        return cast(Tensor, self.cls_head(z.flatten(0, -3).mean(0)))

    def fold(self, space: Sequence[int] | None = None) -> Folded:
        """All products of weights alone, for histories on the grid `space` (the configured one if not given).

        For inference: they are then computed once, and not at every step of a roll-out.
        """
        matrices = tuple(cast(Block, block).filter.matrices() for block in self.blocks)
        return replace(self._fold(space or self.config.space), matrices=matrices)

    def _fold(self, space: Sequence[int]) -> Folded:
        config, latent = self.config, tuple(n // self.config.patch_size for n in space)
        first, _, second = _kernels(self.patch_embed.proj)
        time, head = self.time_agg_layer, _kernels(self.out_layer)[0]
        with _float32(self.pos_embed):
            wave = time.wave()
            inner = second.weight.flatten(1)[None] * wave[:, :, None]  # (T, C, E)
            aggregation = torch.bmm(inner.mT, time.w).flatten(0, 1)
            constant = second.bias + self._positions(latent).movedim(1, -1)[0]  # (*h, C)
            latent_bias = constant @ (time.w * wave[:, :, None]).sum(0)
            data, coordinates = first.weight[:, : config.in_channels], first.weight[:, config.in_channels :]
            return Folded(
                stem=data.movedim(1, -1).flatten(1),
                stem_bias=_coordinate_field(coordinates, latent, config.in_timesteps).unsqueeze(-3) + first.bias,
                aggregation=aggregation,
                latent_bias=latent_bias.unsqueeze(-2),
                transform=transform(
                    latent, config.modes_per_axis, symmetric=config.mode_truncation == "symmetric", like=self.pos_embed
                ),
                head=head.weight.movedim(1, -1).flatten(1).mT,
                head_bias=head.bias.repeat(config.patch_size ** len(latent)),
            )

    def _encode(
        self, x: Tensor, conditions: Tensor | None, moments: tuple[Tensor, Tensor] | None, folded: Folded
    ) -> Tensor:
        """(B, *space, T, c) -> (*h, B, C)."""
        if moments is not None:
            x = (x - moments[0]) / moments[1]
        z = self._recomputed(self._stem, x, folded)
        if moments is not None:
            features = torch.cat(moments, dim=-1).flatten(1)  # (B, 2c)
            z = self.scale_feats_sigma(features) * z + self.scale_feats_mu(features)
        condition = None if conditions is None else self.condition(conditions)
        for number, block in enumerate(self.blocks):
            matrices = folded.matrices[number] if folded.matrices else None
            z = self._recomputed(block, z, folded.transform, condition, matrices)
        return z

    def _stem(self, x: Tensor, folded: Folded) -> Tensor:
        """(B, *space, T, c) -> (*h, B, C)."""
        # Rates of change are differences of frames that hardly differ: bfloat16 would lose them.
        with _float32(x):
            frames = F.linear(_patches(x, self.config.patch_size), folded.stem) + folded.stem_bias  # (*h, B, T, E)
            rows = self.patch_embed.proj[1](frames).flatten(-2)
            return cast(Tensor, rows @ folded.aggregation + folded.latent_bias)

    def _recomputed(self, part: Callable[..., Tensor], *inputs: object) -> Tensor:
        """A part of the network, computed again in the backward pass where that is asked for."""
        if self.recompute_blocks and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False))
        return part(*inputs)

    def _head(self, z: Tensor, folded: Folded) -> Tensor:
        """(*h, B, C) -> (B, *space, T_out, c_out)."""
        _, act, mix, _, last = self.out_layer
        rank, patch = z.ndim - 2, self.config.patch_size
        rows = act(_plus(F.linear(z, folded.head), folded.head_bias))
        rows = act(mix(rows.reshape(*z.shape[:-1], *(patch,) * rank, self.config.head_width)))  # (*h, B, *patch, D)
        with _float32(z):
            y = last(rows.to(z.dtype))
        order = [axis for k in range(rank) for axis in (k, rank + 1 + k)]  # each patch beside its points
        y = y.permute(rank, *order, y.ndim - 1)
        space = [h * patch for h in z.shape[:rank]]
        return cast(Tensor, y.reshape(len(y), *space, self.config.out_timesteps, self.config.out_channels))

    def _positions(self, latent: Sequence[int]) -> Tensor:
        """The position table on a latent grid: (1, C, *h)."""
        return self.pos_embed if tuple(latent) == self.config.latent else resize(self.pos_embed, latent)

    def _check(self, x: Tensor, conditions: Tensor | None) -> None:
        config, space = self.config, tuple(x.shape[1:-2])
        expected = (*config.space, config.in_timesteps, config.in_channels)
        if (
            config.resize_position
            and len(space) == len(config.space)
            and not any(n % config.patch_size for n in space)
        ):
            expected = (*space, *expected[-2:])
        if tuple(x.shape[1:]) != expected:
            raise ValueError(f"history has shape (B, *{tuple(x.shape[1:])}), the network expects (B, *{expected})")
        found = 0 if conditions is None else conditions.shape[-1]
        if found != config.conditions:
            raise ValueError(f"found {found} conditions for each sample, the network expects {config.conditions}")


def resize(table: Tensor, latent: Sequence[int]) -> Tensor:
    """Linear interpolation of a position table (1, C, *h) to another grid (half-pixel rule): (1, C, *latent)."""
    for axis, n in enumerate(latent, start=2):
        lines = table.movedim(axis, -1)
        resized = F.interpolate(lines.flatten(0, -2)[None], size=n, mode="linear", align_corners=False)
        table = resized.reshape(*lines.shape[:-1], n).movedim(-1, axis)
    return table


def _patches(x: Tensor, patch: int) -> Tensor:
    """(B, *space, T, c) -> (*h, B, T, P * c), a patch's points before its channels."""
    rank = x.ndim - 3
    split = x.reshape(len(x), *(n for size in x.shape[1:-2] for n in (size // patch, patch)), *x.shape[-2:])
    grid, points = range(1, 2 * rank, 2), range(2, 2 * rank + 1, 2)
    return split.permute(*grid, 0, 2 * rank + 1, *points, 2 * rank + 2).flatten(rank + 2)


def _coordinate_field(weight: Tensor, latent: Sequence[int], frames: int) -> Tensor:
    """What the stem makes of the coordinates, linspace(0, 1) along each axis and time: (*h, T, E).

    Args:
        weight: (E, axes + 1, *patch).
        latent: patches along each axis.
        frames: T.
    """
    rank, patch = len(latent), weight.shape[-1]
    t = torch.linspace(0, 1, frames, device=weight.device, dtype=weight.dtype)
    field = t[:, None] * weight[:, -1].flatten(1).sum(1)
    for axis, h in enumerate(latent):
        points = torch.linspace(0, 1, h * patch, device=weight.device, dtype=weight.dtype).reshape(h, patch)
        others = [k + 1 for k in range(rank) if k != axis]
        kernel = weight[:, axis].sum(others) if others else weight[:, axis]  # (E, patch)
        field = field + (points @ kernel.T).reshape(h, *(1,) * (rank - axis), -1)
    return field


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased deviation per sample and channel over space and time, each (B, 1, ..., 1, c)."""
    axes = tuple(range(1, x.ndim - 1))
    return x.mean(axes, keepdim=True), x.std(axes, keepdim=True) + 1e-6


def _float32(x: Tensor) -> torch.autocast:
    """No autocast: an island where products keep the precision of their inputs."""
    return torch.autocast(x.device.type, enabled=False)


def _plus(rows: Tensor, bias: Tensor) -> Tensor:
    """A product and its bias. Under autocast the bias would make float32 of it again, at twice the memory."""
    return rows + bias.to(rows.dtype)


def _uniform(*shape: int, bound: float) -> nn.Parameter:
    """Uniform on [0, bound), as published."""
    return nn.Parameter(torch.rand(shape) * bound)


def _kernels(layers: nn.Sequential) -> list[Kernel]:
    """The layers of a stack, for their weights."""
    return cast(list[Kernel], list(layers))


def _zeros(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _real_matrix(w: Tensor) -> Tensor:
    """Complex weights (2, heads, in, out) as the real matrix of the same product: (heads, 2 in, 2 out)."""
    real, imag = w
    return torch.cat([torch.cat([real, imag], dim=-1), torch.cat([-imag, real], dim=-1)], dim=-2)


def _real_bias(b: Tensor) -> Tensor:
    """(2, heads, out) -> (heads, 1, 2 out)."""
    return b.movedim(0, 1).flatten(1)[:, None]
