"""Losses of a step, over all ranks and by dataset, and the two decisions that the ranks must take together."""

import time
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline.base.errors import DataError
from data_pipeline.loader import Batch


class Meter:
    """Collects the sample losses of one step; `agree` shares them in one small reduction.

    Args:
        datasets: names, in the order of the batches' dataset numbers.
        device: where the reduction happens.
    """

    def __init__(self, datasets: Sequence[str], device: torch.device) -> None:
        self.datasets, self.device = datasets, device
        self._sums = torch.zeros(2, len(datasets), device=device)
        self._positions: list[Tensor] = []
        self._losses: list[Tensor] = []
        self._clock, self._steps = time.monotonic(), 0

    def add(self, batch: Batch, losses: Tensor) -> None:
        """Count the losses (B,) of a micro-batch."""
        self._sums[0].index_add_(0, batch.dataset, losses)
        self._sums[1].index_add_(0, batch.dataset, torch.ones_like(losses))
        self._positions.append(batch.position)
        self._losses.append(losses)

    def agree(self, step: int, stop: bool) -> tuple[dict[str, float], bool]:
        """Close the step. Collective.

        Args:
            step: number of the step, for the message.
            stop: whether this rank was asked to stop.

        Returns:
            Mean losses over all ranks (`loss`, and `loss/<dataset>` for the datasets in this step), and whether
            any rank was asked to stop.

        Raises:
            DataError: on all ranks, when any sample's loss is not finite; names the samples.
        """
        flag = torch.tensor([float(stop)], device=self.device)
        message = torch.cat([self._sums.flatten(), flag])
        dist.all_reduce(message)
        sums, counts = message[:-1].reshape(2, -1).tolist()
        if not torch.isfinite(message).all():
            raise DataError(
                f"the loss of step {step} is not finite",
                found=f"sample positions {self._gather_offenders()}",
                expected="finite losses; the weights of the step before are in the last checkpoint",
                remedy="check the data with 'pdepot data validate', or lower training.learning_rate",
            )
        losses = {"loss": sum(sums) / sum(counts)}
        losses |= {f"loss/{n}": s / c for n, s, c in zip(self.datasets, sums, counts, strict=True) if c}
        self._sums.zero_()
        self._positions.clear()
        self._losses.clear()
        self._steps += 1
        return losses, bool(message[-1] > 0)

    def steps_per_second(self) -> float:
        """Rate since the last call."""
        now = time.monotonic()
        rate = self._steps / max(now - self._clock, 1e-9)
        self._clock, self._steps = now, 0
        return rate

    def _gather_offenders(self) -> list[int]:
        own = [
            int(position)
            for positions, losses in zip(self._positions, self._losses, strict=True)
            for position, loss in zip(positions.tolist(), losses.tolist(), strict=True)
            if not torch.isfinite(torch.tensor(loss))
        ]
        gathered: list[list[int]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(gathered, own)
        return sorted(position for part in gathered for position in part)
