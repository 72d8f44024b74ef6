"""How gradients pass through a network: their RMS at every block, and its slope over depth.

What mean field says of bare spectral layers stands in `pretrain.model.signal`; `diagnose_stack` shows it. A DPOT
block, z + MLP(norm(a + AFNO(a))) with a = norm(z), is another matter: its skips carry the gradient whatever the branch
does, so its slope is measured and not predicted, and the AFNO branch is measured apart, without its skip.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import exp, log
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from data_pipeline.base.config import Config
from data_pipeline.base.errors import ConfigError, nearest
from pretrain.config import PretrainConfig
from pretrain.job import network_config
from pretrain.model.baseline import Baseline
from pretrain.model.conditions import condition_count
from pretrain.model.config import ACTIVATIONS, Count
from pretrain.model.dpot import Dpot
from pretrain.model.operator import build_network
from pretrain.model.signal import SpectralStack, critical_variance, is_afno

_BATCH = 2
_TINY, _HUGE = 1e-300, 1e300
_STABLE = 10.0


class StackConfig(Config):
    """A bare stack of spectral layers, and the signal that is sent through it."""

    width: Count = 192
    depth: Annotated[int, Field(ge=2)] = 24
    points: Count = 128
    modes: Count = 64
    """Kept, counted from zero."""
    activation: str = "relu"
    sigma2: Annotated[float, Field(gt=0)] | None = None
    """Width times the variance of the spectral weights; None for the edge of chaos."""
    signal: Literal["constant", "white"] = "constant"
    """Random numbers that are the same at every point, which is where signals end up at the edge and where the number
    of modes has no part in the slope; or others at every point."""
    amplitude: Annotated[float, Field(gt=0)] = 1.0
    """RMS of the signal."""
    seed: int = 0

    @property
    def variance(self) -> float:
        """sigma^2, as given or at the edge of chaos."""
        return self.sigma2 or critical_variance(self.activation)

    @field_validator("activation")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in ACTIVATIONS:
            raise ValueError(f"no such activation; {nearest(name, list(ACTIVATIONS))}")
        return name

    @model_validator(mode="after")
    def _modes_exist(self) -> Self:
        if self.modes > self.points // 2 + 1:
            raise ValueError(f"{self.points} points have {self.points // 2 + 1} modes, not {self.modes}")
        return self


@dataclass(frozen=True)
class Propagation:
    """RMS of signal and gradient at the blocks of a network, in the order of the forward pass.

    Attributes:
        forward: of each block's input.
        gradient: of the gradient by each block's input.
        branch: RMS of the gradient that comes out of each AFNO branch, without its skip, over that which goes in;
            empty for networks without.
    """

    forward: tuple[float, ...]
    gradient: tuple[float, ...]
    branch: tuple[float, ...]

    @property
    def slope(self) -> float:
        """What a block multiplies the gradient's RMS by on its way to the input: exp of the fitted log-slope."""
        logs = np.log(np.clip(self.gradient, _TINY, _HUGE))
        return exp(-float(np.polyfit(np.arange(len(logs)), logs, 1)[0]))

    @property
    def verdict(self) -> str:
        """Vanishing, stable or exploding: whether all blocks together change the gradient more than tenfold."""
        if not np.isfinite(self.gradient).all():
            return "the gradient is not finite"
        factor = self.slope ** len(self.gradient)
        kind = "vanishing" if factor < 1 / _STABLE else "exploding" if factor > _STABLE else "stable"
        return (
            f"gradient per block, towards the input: x {self.slope:.4g} (log-slope {log(self.slope):+.4f}); "
            f"over {len(self.gradient)} blocks: x {factor:.3g}, {kind}"
        )

    def rows(self) -> list[dict[str, Any]]:
        """One row a block, for a table."""
        rows: list[dict[str, Any]] = [
            {"block": number, "forward RMS": forward, "gradient RMS": gradient}
            for number, (forward, gradient) in enumerate(zip(self.forward, self.gradient, strict=True))
        ]
        for row, gain in zip(rows, self.branch, strict=False):
            row["gradient gain of the AFNO branch"] = gain
        return rows


def propagate(network: nn.Module, *inputs: Tensor) -> Propagation:
    """Send inputs forward and a random cotangent of unit variance back, and measure both at every block.

    Args:
        network: its blocks are the modules in the list named `blocks` (`fno_blocks` in baselines).
        inputs: what the network is called with; the first is differentiated.

    Raises:
        ConfigError: the network has no such list, or passes fewer than two blocks.
    """
    with _taps(network) as (signals, branches):
        x, *others = inputs
        y = network(x.detach().requires_grad_(), *others)
    if len(signals) < 2:
        raise ConfigError(
            "no slope over depth without two blocks", key="blocks", found=len(signals),
            expected="a network with a list named blocks, of two or more",
        )  # fmt: skip
    ends = [end for pair in branches for end in pair]
    gradients = torch.autograd.grad(y, [*signals, *ends], torch.randn_like(y))
    ends_gradients = iter(gradients[len(signals) :])
    # The skip hands the gradient on as it is: what else arrives at the layer's input came through the branch.
    branch = [_rms(into - out) / _rms(out) for into, out in zip(ends_gradients, ends_gradients, strict=True)]
    return Propagation(
        forward=tuple(map(_rms, signals)), gradient=tuple(map(_rms, gradients[: len(signals)])), branch=tuple(branch)
    )


def diagnose_stack(config: StackConfig) -> Propagation:
    """Measure a bare stack of spectral layers, for which mean field predicts the slope."""
    torch.manual_seed(config.seed)
    stack = SpectralStack(config.width, config.depth, config.points, config.modes, config.activation, config.variance)
    points = 1 if config.signal == "constant" else config.points
    x = config.amplitude * torch.randn(_BATCH, points, config.width)
    return propagate(stack, x.expand(-1, config.points, -1))


def diagnose(network: Dpot | Baseline, *, seed: int = 0) -> Propagation:
    """Measure a network on random histories of unit variance, and zeros for what it is told of the equation."""
    config = network.config
    torch.manual_seed(seed)
    inputs = [torch.randn(_BATCH, *config.space, config.in_timesteps, config.in_channels)]
    if config.conditions:
        inputs.append(torch.zeros(_BATCH, config.conditions))
    return propagate(network, *inputs)


def fresh_network(config: PretrainConfig, space: Sequence[int], channels: int) -> Dpot | Baseline:
    """The network that a pretraining job would start from on data of this grid and number of channels.

    Equally initialised, but not with the same numbers: those depend on the data, too.

    Raises:
        ConfigError: there is no such grid, or the patches do not cover it.
    """
    if min(*space, channels) < 1:
        raise ConfigError("no such grid", found=f"{tuple(space)}, {channels} channels", expected="positive numbers")
    conditions = condition_count(len(space), parameters=0) if config.model.condition else 0
    torch.manual_seed(config.seed)
    return build_network(network_config(config.model, space, channels, config.data.history, conditions))


def redrawn(network: Dpot | Baseline, initialisation: Literal["published", "edge_of_chaos"], *, seed: int = 0) -> Dpot:
    """A network of the same shape with fresh weights, initialised in this way.

    Raises:
        ConfigError: the network is a baseline, which has its library's initial weights and no others.
    """
    if isinstance(network, Baseline):
        raise ConfigError("a baseline is initialised by its library", key="init", found=initialisation)
    torch.manual_seed(seed)
    return Dpot(network.config.model_copy(update={"initialisation": initialisation}))


@contextmanager
def _taps(network: nn.Module) -> Iterator[tuple[list[Tensor], list[tuple[Tensor, Tensor]]]]:
    """Collects the input of every block, and input and output of every AFNO layer, while the network is called."""
    signals: list[Tensor] = []
    branches: list[tuple[Tensor, Tensor]] = []

    def keep_signal(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        signals.append(arguments[0])

    def keep_ends(_: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        branches.append((arguments[0], output))

    handles = [block.register_forward_pre_hook(keep_signal) for block in _blocks(network)]
    handles += [module.register_forward_hook(keep_ends) for module in network.modules() if is_afno(module)]
    try:
        yield signals, branches
    finally:
        for handle in handles:
            handle.remove()


def _blocks(network: nn.Module) -> list[nn.Module]:
    for name, module in network.named_modules():
        if name.rpartition(".")[2] in ("blocks", "fno_blocks"):
            # The FNO of neuraloperator is one module that is called once for each layer.
            return list(module) if isinstance(module, nn.ModuleList) else [module]
    return []


def _rms(x: Tensor) -> float:
    return float(x.detach().double().square().mean().sqrt())
