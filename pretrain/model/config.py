"""The shape of the network, and the options it has beyond the published one."""

from collections.abc import Callable
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from torch import nn

from data_pipeline.base.config import Config

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "softplus": nn.Softplus,
    "ELU": nn.ELU,
    "silu": nn.SiLU,
}
_DEPTH_MODES = 8  # Along the last axis the published 3D network keeps at most eight modes, whatever `modes` says.

Count = Annotated[int, Field(ge=1)]


class NetworkConfig(Config):
    """Shape of the network. The published sizes are in `pretrain.model.sizes`."""

    space: tuple[Count, ...]
    """Grid points along each axis. The published networks have two or three; any number will do."""
    patch_size: Count = 8
    in_channels: Count
    out_channels: Count
    in_timesteps: Count = 10
    out_timesteps: Count = 1
    width: Count = 128
    depth: Count = 4
    heads: Count = 4
    """Blocks of the block-diagonal spectral weights."""
    modes: Count = 32
    """Modes mixed along each axis; counted from zero, so below the latent size negative ones are dropped."""
    mlp_ratio: Annotated[float, Field(gt=0)] = 1.0
    head_width: Count = 32
    stem_width: Count | None = None
    """Width between the two convolutions of the stem; None for the published rule, which follows the channels.

    Set when pretrained weights are adapted to another number of channels, so that the stem can stay.
    """
    classes: Count = 12
    """Outputs of the dataset classifier. It has weights in published checkpoints and no part in the prediction."""
    normalize: bool = False
    """Standardise each sample by its own mean and deviation, and tell the network both."""
    activation: Literal["gelu", "tanh", "sigmoid", "relu", "leaky_relu", "softplus", "ELU", "silu"] = "gelu"
    time_aggregation: Literal["exp_mlp", "mlp"] = "exp_mlp"

    # Beyond the published network. Each is off by default, and then has no part in the function and no weights.
    mode_truncation: Literal["one_sided", "symmetric"] = "one_sided"
    """Which frequencies of an axis `modes` keeps below the latent size: the first ones of the spectrum as published,
    which drops all negative ones, or as many on either side of zero."""
    conditions: Annotated[int, Field(ge=0)] = 0
    """Numbers that describe the equation (time step, parameters, boundaries) and modulate every block; 0 for none.
    Zero-initialised: they change nothing before they are trained."""
    resize_position: bool = False
    """Take histories on other grids too, with the position table interpolated to them."""
    initialisation: Literal["published", "edge_of_chaos"] = "published"
    """Initial spectral weights: the published uniform ones, or of the variance at which gradients neither vanish nor
    explode with depth (`pretrain.model.signal`)."""

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if not self.space:
            raise ValueError("space needs at least one axis")
        if any(n % self.patch_size for n in self.space):
            raise ValueError(f"patch_size {self.patch_size} must divide every axis of space {self.space}")
        if self.width % self.heads or self.width % 8:
            raise ValueError(f"width {self.width} must be a multiple of heads ({self.heads}) and of 8 (group norm)")
        if self.normalize and self.in_channels != self.out_channels:
            raise ValueError("normalize needs as many channels out as in: the input's moments scale the prediction")
        return self

    @property
    def latent(self) -> tuple[int, ...]:
        """Patches along each axis."""
        return tuple(n // self.patch_size for n in self.space)

    @property
    def modes_per_axis(self) -> tuple[int, ...]:
        """Modes mixed along each axis, before the grid limits them."""
        rank = len(self.space)
        return (self.modes,) * (rank - 1) + (_DEPTH_MODES if rank > 2 else self.modes,)

    @property
    def stem(self) -> int:
        """Width between the two products of the stem."""
        return self.stem_width or self.out_channels * self.patch_size + len(self.space) + 1

    @property
    def spectral_activation(self) -> str:
        """Activation on the spectrum; the published 3D network ignores its setting there."""
        return "gelu" if len(self.space) == 3 else self.activation
