"""What the training loop gets: a micro-batch of windows, and the memory that micro-batches take turns in."""

import weakref
from collections import defaultdict
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipeline.trajectory import FloatArray


@dataclass(frozen=True)
class Batch:
    """A micro-batch of B windows of one spatial shape.

    Attributes:
        window: float32 (B, T_in + T_out, *space, C), frames as they are stored; 0 where a dataset lacks a channel.
        frames_in: T_in, frames that the model sees; the others come after them.
        channel_mask: bool (B, C), true where the sample's dataset has the channel.
        dataset: int64 (B,), number of the dataset in the mixture.
        dt: float32 (B,), time between two frames, in the units of the sample's equation.
        parameters: float32 (B, P), the PDE parameters that were asked for, NaN where a trajectory lacks one.
        position: int64 (B,), number of the sample in the mixture; keys all that is random about it.
        point_mask: bool (B, *space), true at the points that belong to the domain; None where all do.
        lead: int64 (B,), how many frames after the history's last one the sample's target is; None where targets are
            the frames that follow.
    """

    window: Tensor
    frames_in: int
    channel_mask: Tensor
    dataset: Tensor
    dt: Tensor
    parameters: Tensor
    position: Tensor
    point_mask: Tensor | None = None
    lead: Tensor | None = None

    @classmethod
    def of(cls, *, history: Tensor, target: Tensor, **others: Any) -> "Batch":
        """A batch of histories and targets that come separately; `others` as the attributes."""
        window = torch.cat([history, target], dim=-2).movedim(-2, 1)
        return cls(window=window, frames_in=history.shape[-2], **others)

    @property
    def history(self) -> Tensor:
        """(B, *space, T_in, C), the frames that the model sees: a view of `window`."""
        return self.window[:, : self.frames_in].movedim(1, -2)

    @property
    def target(self) -> Tensor:
        """(B, *space, T_out, C), the frames that follow, or one later frame (`lead`): a view of `window`."""
        return self.window[:, self.frames_in :].movedim(1, -2)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The batch on another device; `non_blocking` overlaps the copy when the batch is in pinned memory. `position`
        stays: it makes seeds, and to read it back would be to wait for all that the GPU has yet to do."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in values.items()
            if isinstance(value, Tensor) and name != "position"
        }
        return replace(self, **moved)


class Buffers:
    """Memory for batches. What nothing refers to any more is given out again: fresh pages cost as much as reading.

    A buffer comes back when the last tensor or array that shares its memory has gone (autograd's, too), never before.
    Pinned memory is left to torch's own cache, which also knows of copies to a GPU that are still under way.

    Args:
        keep: buffers of each shape that are kept for further use.
        pin_memory: give out pinned memory; needs CUDA.
    """

    def __init__(self, keep: int, pin_memory: bool) -> None:
        self._keep, self._pin_memory = keep, pin_memory
        self._free: defaultdict[tuple[int, ...], list[FloatArray]] = defaultdict(list)

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """A float32 tensor with whatever stands in its memory."""
        if self._pin_memory:
            return torch.empty(*shape, pin_memory=True)
        free = self._free[shape]
        memory = free.pop() if free else np.empty(shape, np.float32)
        # The tensor holds this view, not the memory itself, so the view's end is the end of all use.
        lent = memory.view()
        weakref.finalize(lent, self._give_back, memory).atexit = False
        return torch.from_numpy(lent)

    def _give_back(self, memory: FloatArray) -> None:
        free = self._free[memory.shape]
        if len(free) < self._keep:
            free.append(memory)
