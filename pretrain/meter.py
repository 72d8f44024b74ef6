"""Losses of a step, over all ranks and by dataset, and what the ranks tell each other with them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline.loader import Batch


class Agreed(NamedTuple):
    """What all ranks know after a step's last forward pass."""

    losses: dict[str, float]
    """Mean losses over all ranks: `loss`, and `loss/<dataset>` for the datasets in this step."""
    stop: bool
    """Whether any rank was asked to stop."""
    written: bool
    """Whether all ranks have written their part of the checkpoint that was begun, or any has failed to."""


class Meter:
    """Collects the sample losses of one step; `agree` shares them in one small reduction.

    Args:
        datasets: names, in the order of the batches' dataset numbers.
        device: where the reduction happens.
    """

    def __init__(self, datasets: Sequence[str], device: torch.device) -> None:
        self.datasets, self.device = datasets, device
        self.taken: tuple[list[Tensor], list[Tensor]] = ([], [])
        """Positions and losses, micro-batch by micro-batch, of this rank's samples in the step agreed on last."""
        self._begin()

    def _begin(self) -> None:
        self._sums = torch.zeros(2, len(self.datasets), device=self.device)
        self._positions: list[Tensor] = []
        self._losses: list[Tensor] = []

    def add(self, batch: Batch, losses: Tensor) -> None:
        """Count the losses (B,) of a micro-batch."""
        self._sums[0].index_add_(0, batch.dataset, losses)
        self._sums[1].index_add_(0, batch.dataset, torch.ones_like(losses))
        self._positions.append(batch.position)
        self._losses.append(losses)

    def agree(self, *, stop: bool, writing: str) -> Agreed:
        """Share the losses since the last call. Collective.

        Args:
            stop: whether this rank was asked to stop.
            writing: how far this rank's part of a checkpoint is (`Checkpoints.state`).
        """
        flags = torch.tensor(
            [float(stop), float(writing == "written"), float(writing == "failed")], device=self.device
        )
        message = torch.cat([self._sums.flatten(), flags])
        dist.all_reduce(message)
        *figures, stops, written, failed = message.tolist()
        sums, counts = figures[: len(self.datasets)], figures[len(self.datasets) :]
        losses = {"loss": sum(sums) / sum(counts)}
        losses |= {f"loss/{n}": s / c for n, s, c in zip(self.datasets, sums, counts, strict=True) if c}
        done = failed > 0 or written == dist.get_world_size()
        self.taken = (self._positions, self._losses)
        self._begin()
        return Agreed(losses, stops > 0, done)

    def samples(self, wanted: Callable[[float], bool]) -> list[tuple[int, float]]:
        """Positions and losses of those samples of the step agreed on last whose loss is `wanted`. Collective."""
        positions, losses = (torch.cat(part).tolist() if part else [] for part in self.taken)
        own = [(int(p), float(x)) for p, x in zip(positions, losses, strict=True) if wanted(x)]
        gathered: list[list[tuple[int, float]]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(gathered, own)
        return sorted(each for part in gathered for each in part)
