"""How fast a run is, and what holds it up: samples and FLOP per second, share of the peak, data wait, memory."""

import resource
import sys
import time
from pathlib import Path

import torch

from pretrain.config import RunConfig
from pretrain.flop import Peak, device_peak, network_cost, sample_cost
from pretrain.model.grids import lifted_grid
from pretrain.model.operator import OperatorConfig

_GIB = 2**30


class Throughput:
    """Counts steps; `figures` says what they were like. Belongs to rank 0; made once the network is on its device.

    Args:
        config: the run. Its FLOP are those of its last segment's datasets, by their weights.
        operator: its operator's configuration.
        device: rank 0's; the others are taken to have the same.
        world_size: number of ranks.
    """

    def __init__(self, config: RunConfig, operator: OperatorConfig, device: torch.device, world_size: int) -> None:
        self._batch_size, self._device, self._world_size = config.training.batch_size, device, world_size
        self._flop: float | None = None
        self._peak: Peak | None = None
        try:
            self._flop = flop_per_sample(config, operator)
            self._peak = device_peak(device, config.training)
            peak = f"{self._peak.rate / 1e12:.4g} TFLOP/s for each of {world_size} ranks ({self._peak.source})"
            self.note = f"{self._flop / 1e9:.4g} GFLOP a sample and update, by the published network; peak {peak}"
        except Exception as error:  # a library's network that cannot be counted is no reason not to train it
            self.note = f"FLOP are not counted: {type(error).__name__}: {error}"
        self._begin()

    def _begin(self) -> None:
        self._since, self._steps, self._waited = time.perf_counter(), 0, 0.0

    def add(self, waited: float) -> None:
        """Count a step, in which this rank has waited so many seconds for its data."""
        self._steps += 1
        self._waited += waited

    def figures(self) -> dict[str, float]:
        """Since the last call.

        Returns:
            `samples_per_second`; `flop_per_second` of all ranks and `fraction_of_peak`, see `pretrain.flop`;
            `data_wait_fraction`, the share of the time that rank 0 waited for data; `memory_gib` of its process, and
            `gpu_memory_gib`, the most that its tensors have taken.
        """
        seconds = max(time.perf_counter() - self._since, 1e-9)
        rate = self._steps * self._batch_size / seconds
        found = {"samples_per_second": rate, "data_wait_fraction": self._waited / seconds}
        if self._flop is not None and self._peak is not None:
            found["flop_per_second"] = rate * self._flop
            found["fraction_of_peak"] = rate * self._flop / (self._peak.rate * self._world_size)
        found["memory_gib"] = resident_bytes() / _GIB
        if self._device.type == "cuda":
            found["gpu_memory_gib"] = torch.cuda.max_memory_allocated(self._device) / _GIB
            torch.cuda.reset_peak_memory_stats(self._device)
        self._begin()
        return found


def flop_per_sample(config: RunConfig, operator: OperatorConfig) -> float:
    """FLOP that a sample of the run costs in an update: the mean over its datasets, by their weights."""
    network = operator.network
    spaces = {d.name: d.space or network.space for d in operator.datasets}
    grids = [lifted_grid(spaces[d.name], len(network.space), network.patch_size) for d in config.data]
    costs = {grid: sample_cost(network_cost(network, grid), config.objective) for grid in set(grids)}
    weights = [d.weight for d in config.data]
    return sum(weight * costs[grid] for weight, grid in zip(weights, grids, strict=True)) / sum(weights)


def resident_bytes() -> int:
    """Memory of this process: now on Linux, elsewhere the most that it has had."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
