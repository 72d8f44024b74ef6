"""Windows into batch tensors: reads the samples that a mixture names, ahead of the training loop.

A step is `batch_size / micro_batch` canonical micro-batches, numbered g = 0, 1, ...; rank r of W takes g = r, r + W,
... So the samples of a step, and the micro-batches they stand in, are the same for every number of ranks.
"""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from data_pipeline.base.errors import ConfigError
from data_pipeline.mixture import Draw, Mixture, MixtureEntry, positional_generator
from data_pipeline.stores.protocol import TrajectoryStore, read_window
from data_pipeline.trajectory import DatasetInfo, FloatArray, parameter_row


@dataclass(frozen=True)
class Batch:
    """A micro-batch of B windows of one spatial shape.

    Attributes:
        history: float32 (B, *space, T_in, C), the frames that the model sees; 0 where a dataset lacks a channel.
        target: float32 (B, *space, T_out, C), the frames that follow.
        channel_mask: bool (B, C), true where the sample's dataset has the channel.
        dataset: int64 (B,), number of the dataset in the mixture.
        dt: float32 (B,), time between two frames, in the units of the sample's equation.
        parameters: float32 (B, P), the PDE parameters that were asked for, NaN where a trajectory lacks one.
        position: int64 (B,), number of the sample in the mixture; keys all that is random about it.
    """

    history: Tensor
    target: Tensor
    channel_mask: Tensor
    dataset: Tensor
    dt: Tensor
    parameters: Tensor
    position: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The batch on another device; `non_blocking` overlaps the copy when the batch is in pinned memory."""
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)}
        return Batch(**moved)


class _Pending(NamedTuple):
    batch: Batch
    reads: list[Future[None]]


class Loader:
    """The micro-batches of one rank in the order (step, g), without end. Use as a context manager, or call `close`.

    Threads read `look_ahead` micro-batches ahead. Every micro-batch gets tensors of its own (pinned ones come from
    torch's cache of pinned memory), so one that is still in use is never overwritten. A sample that cannot be read
    raises the reader's error in `next`, now and at every further call: no rank skips a sample by itself.

    Args:
        stores: (D,), the training split of each dataset; they stay open when the loader closes.
        mixture: the schedule, with one entry a store, in their order (`mixture_of`).
        slots: (D,), the model's channel slots that the fields of each dataset fill, in the order of its channels.
        num_channels: channel slots of the model.
        history: frames T_in that the model sees.
        target: frames T_out that follow.
        batch_size: samples in a step, over all ranks.
        micro_batch: samples in a batch.
        rank: this process, 0 .. world_size.
        world_size: number of processes.
        first_step: the step to start from.
        shift: roll each window along its periodic axes by a random number of grid points, in the datasets whose
            equation is the same everywhere (`DatasetInfo.translation_invariant`).
        seed: keys the shifts.
        threads: number of reader threads.
        look_ahead: micro-batches that are read while the caller works on one.
        parameters: names of the PDE parameters that batches carry, in this order.
        pin_memory: put batches in pinned memory; needs CUDA.

    Raises:
        ConfigError: the batch does not divide, the stores differ in shape or are too short, or the mixture describes
            other stores.
    """

    def __init__(
        self,
        stores: Sequence[TrajectoryStore],
        mixture: Mixture,
        *,
        slots: Sequence[Sequence[int]],
        num_channels: int,
        history: int,
        target: int,
        batch_size: int,
        micro_batch: int,
        rank: int,
        world_size: int,
        first_step: int,
        shift: bool,
        seed: int,
        threads: int = 2,
        look_ahead: int = 2,
        parameters: Sequence[str] = (),
        pin_memory: bool = False,
    ) -> None:
        _check_at_least_one(history=history, target=target, threads=threads, look_ahead=look_ahead)
        check_division(batch_size, micro_batch, world_size)
        check_windows([store.info for store in stores], history, target)
        _check_mixture(stores, mixture, history + target)
        assert 0 <= rank < world_size
        assert first_step >= 0
        self._stores, self._mixture = stores, mixture
        assert [len(taken) for taken in slots] == [len(store.info.channels) for store in stores]
        self._slots, self._parameters = [list(taken) for taken in slots], parameters
        self._channel_masks = torch.zeros(len(stores), num_channels, dtype=torch.bool)
        for mask, taken in zip(self._channel_masks, self._slots, strict=True):
            mask[taken] = True
        self._dts = torch.tensor([store.info.dt for store in stores], dtype=torch.float32)
        self._shape = (micro_batch, *stores[0].info.space)
        self._history, self._target = history, target
        self._batch_size, self._micro_batch = batch_size, micro_batch
        self._rank, self._world_size = rank, world_size
        self._shift_seed = seed if shift else None
        self._look_ahead, self._pin_memory = look_ahead, pin_memory
        # This rank's micro-batches are counted through all steps.
        self._next = first_step * (batch_size // micro_batch // world_size)
        self._pending: deque[_Pending] = deque()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="pdepot-loader")

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        """The next micro-batch. Raises whatever a reader raised (DataError for a damaged sample)."""
        self._read_ahead()
        batch, reads = self._pending[0]
        for read in reads:
            read.result()
        # Only now: after an error the same batch stays next, and is not skipped.
        self._pending.popleft()
        self._read_ahead()
        return batch

    def _read_ahead(self) -> None:
        while len(self._pending) < self._look_ahead:
            self._pending.append(self._start_reading(self._positions(self._next)))
            self._next += 1

    def _positions(self, number: int) -> torch.Tensor:
        """Samples (B,) in this rank's micro-batch number `number`, counted through all steps."""
        step, mine = divmod(number, self._batch_size // self._micro_batch // self._world_size)
        g = self._rank + mine * self._world_size
        return step * self._batch_size + g * self._micro_batch + torch.arange(self._micro_batch)

    def _start_reading(self, position: Tensor) -> _Pending:
        draws = [Draw(*row) for row in self._mixture.draw_many(position.numpy()).tolist()]
        batch = self._allocate(position, draws)
        history, target = batch.history.numpy(), batch.target.numpy()
        reads = [
            self._pool.submit(self._read, draw, int(k), history[slot], target[slot])
            for slot, (draw, k) in enumerate(zip(draws, position, strict=True))
        ]
        return _Pending(batch, reads)

    def _allocate(self, position: Tensor, draws: Sequence[Draw]) -> Batch:
        """A batch that lacks nothing but its fields."""
        num_channels, dataset = self._channel_masks.shape[1], torch.tensor([draw.dataset for draw in draws])
        rows = [self._stores[draw.dataset].parameters(draw.trajectory) for draw in draws] if self._parameters else []
        parameters = torch.tensor([parameter_row(row, self._parameters) for row in rows], dtype=torch.float32)
        return Batch(
            history=torch.empty(*self._shape, self._history, num_channels, pin_memory=self._pin_memory),
            target=torch.empty(*self._shape, self._target, num_channels, pin_memory=self._pin_memory),
            channel_mask=self._channel_masks[dataset],
            dataset=dataset,
            dt=self._dts[dataset],
            parameters=parameters.reshape(len(draws), len(self._parameters)),
            position=position,
        )

    def _read(self, draw: Draw, position: int, history: FloatArray, target: FloatArray) -> None:
        """Fill one sample's `history` (*space, T_in, C) and `target` (*space, T_out, C)."""
        store, slots = self._stores[draw.dataset], self._slots[draw.dataset]
        window = read_window(store, draw.trajectory, draw.start, self._history + self._target)
        if self._shift_seed is not None and store.info.translation_invariant:
            window = _shifted(window, store.info, positional_generator(self._shift_seed, position, "shift"))
        missing = np.setdiff1d(np.arange(history.shape[-1]), slots)
        for out, part in ((history, window[: self._history]), (target, window[self._history :])):
            out[..., missing] = 0
            out[..., slots] = np.moveaxis(part, 0, -2)

    def close(self) -> None:
        """End the reader threads; reads that have begun are finished first."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.close()


def mixture_of(
    stores: Sequence[TrajectoryStore], weights: Sequence[int], history: int, target: int, seed: int
) -> Mixture:
    """The mixture of all windows of `history + target` frames in the stores.

    Raises:
        ConfigError: a trajectory is shorter than the window, the shapes differ, or a weight or a name cannot be used.
    """
    check_windows([store.info for store in stores], history, target)
    entries = [
        MixtureEntry(store.info.name, weight, len(store), store.info.frames - (history + target) + 1)
        for store, weight in zip(stores, weights, strict=True)
    ]
    return Mixture(tuple(entries), seed)


def check_division(batch_size: int, micro_batch: int, ranks: int) -> None:
    """Raise ConfigError unless the micro-batches of a step divide evenly among the ranks."""
    _check_at_least_one(batch_size=batch_size, micro_batch=micro_batch, ranks=ranks)
    unit = micro_batch * ranks
    if batch_size % unit == 0:
        return
    below, above = batch_size // unit * unit, -(-batch_size // unit) * unit
    remedies = [f"batch_size {' or '.join(str(size) for size in (below, above) if size)}"]
    if batch_size % ranks == 0:
        remedies.append(f"micro_batch {_nearest_divisors(batch_size // ranks, micro_batch)}")
    if batch_size % micro_batch == 0:
        remedies.append(f"ranks {_nearest_divisors(batch_size // micro_batch, ranks)}")
    raise ConfigError(
        "a batch that does not divide",
        key="batch_size",
        found=f"batch_size {batch_size}, micro_batch {micro_batch}, ranks {ranks}",
        expected=f"batch_size a multiple of micro_batch x ranks = {unit}",
        remedy="; or ".join(remedies),
    )


def _nearest_divisors(number: int, wanted: int) -> str:
    """The divisors of `number` next below and next above `wanted`, for a message."""
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    near = [max(d for d in divisors if d < wanted), *[d for d in divisors if d > wanted][:1]]
    return " or ".join(map(str, near))


def check_windows(infos: Sequence[DatasetInfo], history: int, target: int) -> None:
    """Raise ConfigError unless all datasets have one spatial shape and trajectories as long as the window."""
    shapes = {info.space for info in infos}
    if len(shapes) > 1:
        raise ConfigError(
            "the datasets of a mixture differ in their grids",
            key="data",
            found=", ".join(f"{info.name} {'x'.join(map(str, info.space))}" for info in infos),
            expected="one grid for all",
            remedy="generate or convert them at one resolution, or train on the datasets of one grid only",
        )
    for info in infos:
        if info.frames < history + target:
            raise ConfigError(
                f"dataset {info.name!r} has no windows: its trajectories are too short",
                key="history, target",
                found=f"{info.frames} frames",
                expected=f"at least {history + target}: history {history} and target {target}",
                remedy="shorten history or target, leave the dataset out, or generate it with more frames",
            )


def _check_mixture(stores: Sequence[TrajectoryStore], mixture: Mixture, frames: int) -> None:
    in_stores = [(store.info.name, len(store), store.info.frames - frames + 1) for store in stores]
    in_mixture = [(entry.name, entry.trajectories, entry.windows_per_trajectory) for entry in mixture.entries]
    if in_stores != in_mixture:
        raise ConfigError(
            "the mixture describes other stores (name, trajectories, windows in each)",
            found=in_mixture,
            expected=in_stores,
            remedy="make it with mixture_of, from the same stores, history and target",
        )


def _check_at_least_one(**numbers: int) -> None:
    for key, number in numbers.items():
        if number < 1:
            raise ConfigError("a number is too small", key=key, found=number, expected="1 or more")


def _shifted(window: FloatArray, info: DatasetInfo, generator: np.random.Generator) -> FloatArray:
    """The window (n, *space, C) rolled along its periodic axes, by one random offset for all frames and fields."""
    offsets = generator.integers(info.space)
    axes = [axis for axis, boundary in enumerate(info.boundaries) if boundary == "periodic"]
    return np.roll(window, [int(offsets[axis]) for axis in axes], [axis + 1 for axis in axes])
