"""Floating-point operations of training: how many a sample needs, and how many a device can do."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from pretrain.config import ObjectiveConfig, TrainingConfig
from pretrain.model.baseline import Baseline, BaselineConfig
from pretrain.model.config import NetworkConfig
from pretrain.model.plain import PlainDpot

# Dense peaks (no sparsity) in TFLOP/s by the makers' data sheets; of several names that fit, the first one counts.
_DATA_SHEETS: tuple[tuple[str, dict[str, float]], ...] = (
    ("GB200", {"bfloat16": 2500, "tf32": 1250, "float32": 80}),
    ("B200", {"bfloat16": 2250, "tf32": 1125, "float32": 75}),
    ("GH200", {"bfloat16": 990, "tf32": 494, "float32": 67}),
    ("H200 NVL", {"bfloat16": 835.5, "tf32": 417.5, "float32": 60}),
    ("H200", {"bfloat16": 989.5, "tf32": 494.5, "float32": 67}),
    ("H100 NVL", {"bfloat16": 835.5, "tf32": 417.5, "float32": 60}),
    ("H100 PCIe", {"bfloat16": 756.5, "tf32": 378, "float32": 51}),
    ("H100", {"bfloat16": 989.5, "tf32": 494.5, "float32": 67}),
    ("A100", {"bfloat16": 312, "tf32": 156, "float32": 19.5}),
    ("L40S", {"bfloat16": 362, "tf32": 183, "float32": 91.6}),
    ("V100-PCIE", {"float32": 14}),
    ("V100", {"float32": 15.7}),
    ("MI300X", {"bfloat16": 1307.4, "tf32": 653.7, "float32": 163.4}),
)
_SECONDS_TO_MEASURE = 0.15


class Cost(NamedTuple):
    """FLOP for one sample; a multiplication and an addition are two."""

    forward: int
    forward_backward: int


def network_cost(config: NetworkConfig | BaselineConfig, space: Sequence[int]) -> Cost:
    """FLOP of the matrix products and convolutions of one prediction on the grid `space`; nothing is computed.

    Of our own network it is the published function that counts, as it is written down (`PlainDpot`): the network that
    is trained computes the same with fewer, which is its merit and does not lower the rate that it is credited with.
    What recomputation adds does not count either. A baseline is counted as its library computes it, complex products
    as if they were real.
    """
    if isinstance(config, NetworkConfig):
        published = {name: NetworkConfig.model_fields[name].default for name in ("mode_truncation", "conditions")}
        config = config.model_copy(update={"space": tuple(space), "resize_position": False, **published})
    with torch.device("meta"):
        network: nn.Module = PlainDpot(config) if isinstance(config, NetworkConfig) else Baseline(config)
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        state = {name: torch.empty(p.shape, requires_grad=True) for name, p in network.named_parameters()}
        state |= {name: torch.empty(b.shape, dtype=b.dtype) for name, b in network.named_buffers()}
        frames = functional_call(network, state, (torch.empty(1, *space, config.in_timesteps, config.in_channels),))
        forward = int(counter.get_total_flops())
        frames.sum().backward()
        return Cost(forward, int(counter.get_total_flops()))


def sample_cost(cost: Cost, objective: ObjectiveConfig) -> float:
    """FLOP that one sample costs in an update, on average, where one prediction costs `cost`."""
    steps = (1 + objective.rollout_steps) / 2 if objective.rollout_random else objective.rollout_steps
    if objective.rollout_gradient == "push_forward":
        return cost.forward_backward + (steps - 1) * cost.forward
    return steps * cost.forward_backward


class Peak(NamedTuple):
    """What a device can do at best."""

    rate: float
    """FLOP/s."""
    source: str
    """Where the figure is from."""


def device_peak(device: torch.device, training: TrainingConfig) -> Peak:
    """The device's peak in the precision of the run's products: by its data sheet, or else measured, in moments."""
    precision = "bfloat16" if training.precision == "bfloat16" else "tf32" if training.tf32 else "float32"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for model, rates in _DATA_SHEETS:
            if model.lower() in name.lower() and precision in rates:
                return Peak(rates[precision] * 1e12, f"data sheet of {model}, {precision}, dense")
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    rate = _measured_rate(device, dtype)
    return Peak(rate, f"measured at the start on {device.type}: a square product in {precision}")


def _measured_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square product, the best of those that a moment has room for."""
    n = 4096 if device.type == "cuda" else 1024 if dtype == torch.float32 else 512
    a, b = (torch.ones(n, n, device=device, dtype=dtype) for _ in range(2))
    best, end, rounds = float("inf"), time.perf_counter() + _SECONDS_TO_MEASURE, 0
    while rounds < 2 or time.perf_counter() < end:
        before = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best, rounds = min(best, time.perf_counter() - before), rounds + 1
    return 2 * n**3 / best
