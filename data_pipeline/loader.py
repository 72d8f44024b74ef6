"""Windows into batch tensors: reads the samples that a mixture names, ahead of the training loop.

A step is `batch_size / micro_batch` canonical micro-batches, numbered g = 0, 1, ...; rank r of W takes g = r, r + W,
... So the samples of a step, and the micro-batches they stand in, are the same for every number of ranks.
"""

import os
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.base.errors import ConfigError
from data_pipeline.batch import Batch, Buffers
from data_pipeline.mixture import Draw, Mixture
from data_pipeline.segments import MixtureDataset, Segment
from data_pipeline.stores.protocol import TrajectoryStore
from data_pipeline.trajectory import DatasetInfo, parameter_row
from data_pipeline.window_reader import WindowReader, drawn_lead

_PLANNED = 32  # micro-batches that are drawn together: most of what a draw costs is cost of a call

__all__ = ["Batch", "Loader", "check_division", "check_windows", "mixture_dataset", "mixture_of"]


class _Pending(NamedTuple):
    batch: Batch
    reads: list[Future[None]]


class Loader:
    """The micro-batches of one rank in the order (step, g), without end. Use as a context manager, or call `close`.

    Each micro-batch has one spatial shape; the next one may have another. Threads read `look_ahead` micro-batches
    ahead, straight into the batch where a dataset's fields fill all slots in order. A batch that is still in use is
    never overwritten (`Buffers`). A sample that cannot be read raises the reader's error in `next`, now and at every
    further call: no rank skips a sample by itself. A process that was forked goes on with threads of its own.

    Args:
        stores: (D,), the training split of each dataset of the mixture; they stay open when the loader closes. None
            for a dataset that is not drawn any more.
        mixture: the schedule.
        slots: (D,), the model's channel slots that the fields of each dataset fill, in the order of its channels.
        num_channels: channel slots of the model.
        history: frames T_in that the model sees.
        target: frames after them that a window reaches, T_out.
        rank: this process, 0 .. world_size.
        world_size: number of processes.
        first_step: the step to start from.
        shift: roll each window along its periodic axes by a random number of grid points, in the datasets whose
            equation is the same everywhere (`DatasetInfo.translation_invariant`).
        seed: keys shifts and leads.
        threads: number of reader threads.
        look_ahead: micro-batches that are read while the caller works on one.
        parameters: names of the PDE parameters that batches carry, in this order.
        pin_memory: put batches in pinned memory; needs CUDA.
        lead_times: the target is one of the `target` frames, drawn for each sample, instead of all of them; the others
            are not read.

    Raises:
        ConfigError: the batch does not divide, trajectories are too short, or the mixture describes other stores.
    """

    def __init__(
        self,
        stores: Sequence[TrajectoryStore | None],
        mixture: Mixture,
        *,
        slots: Sequence[Sequence[int]],
        num_channels: int,
        history: int,
        target: int,
        rank: int,
        world_size: int,
        first_step: int,
        shift: bool,
        seed: int,
        threads: int = 2,
        look_ahead: int = 2,
        parameters: Sequence[str] = (),
        pin_memory: bool = False,
        lead_times: bool = False,
    ) -> None:
        _check_at_least_one(history=history, target=target, threads=threads, look_ahead=look_ahead)
        check_division(mixture.batch_size, mixture.micro_batch, world_size)
        opened = [store for store in stores if store is not None]
        check_windows([store.info for store in opened], history, target)
        _check_mixture(stores, mixture, history + target)
        assert 0 <= rank < world_size
        assert first_step >= 0
        self._mixture, self._parameters = mixture, parameters
        self._readers = [
            None if store is None else WindowReader(store, taken, num_channels, seed if shift else None)
            for store, taken in zip(stores, slots, strict=True)
        ]
        self._channel_masks = torch.zeros(len(stores), num_channels, dtype=torch.bool)
        for mask, taken in zip(self._channel_masks, slots, strict=True):
            mask[list(taken)] = True
        self._dts = torch.tensor([0.0 if store is None else store.info.dt for store in stores], dtype=torch.float32)
        self._masked = any(store.info.masked for store in opened)
        self._frames, self._frames_in = history + (1 if lead_times else target), history
        self._seed, self._furthest = seed, target if lead_times else None
        self._rank, self._world_size = rank, world_size
        # This rank's micro-batches are counted through all steps.
        self._next = first_step * (mixture.batch_size // mixture.micro_batch // world_size)
        self._plan: tuple[int, NDArray[np.int64], NDArray[np.void]] | None = None
        self._threads, self._look_ahead = threads, look_ahead
        self._buffers = Buffers(look_ahead + 2, pin_memory)
        self._start_threads()

    def _start_threads(self) -> None:
        self._process = os.getpid()
        self._pending: deque[_Pending] = deque()
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="pdepot-loader")

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        """The next micro-batch. Raises whatever a reader raised (DataError for a damaged sample)."""
        if os.getpid() != self._process:  # threads do not survive a fork, nor do the reads that they had begun
            self._next -= len(self._pending)
            self._start_threads()
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
            self._pending.append(self._start_reading(*self._planned(self._next)))
            self._next += 1

    def _planned(self, number: int) -> tuple[Tensor, list[Draw]]:
        """Samples (B,) in this rank's micro-batch number `number`, counted through all steps, and their windows."""
        block, row = divmod(number, _PLANNED)
        if self._plan is None or self._plan[0] != block:
            size = self._mixture.micro_batch
            numbers = np.arange(block * _PLANNED, (block + 1) * _PLANNED)
            step, mine = np.divmod(numbers, self._mixture.batch_size // size // self._world_size)
            g = self._rank + mine * self._world_size
            positions = (step * self._mixture.batch_size + g * size)[:, None] + np.arange(size)
            self._plan = block, positions, self._mixture.draw_many(positions.ravel()).reshape(positions.shape)
        _, positions, draws = self._plan
        return torch.from_numpy(positions[row].copy()), [Draw(*one) for one in draws[row].tolist()]

    def _start_reading(self, position: Tensor, draws: Sequence[Draw]) -> _Pending:
        batch = self._allocate(position, draws)
        window = batch.window.numpy()
        masks = [None] * len(draws) if batch.point_mask is None else batch.point_mask.numpy()
        leads = [None] * len(draws) if batch.lead is None else batch.lead.tolist()
        rows = zip(draws, position.tolist(), window, masks, leads, strict=True)
        reads = [self._pool.submit(self._reader(draw).read, draw, *row) for draw, *row in rows]
        return _Pending(batch, reads)

    def _allocate(self, position: Tensor, draws: Sequence[Draw]) -> Batch:
        """A batch that lacks nothing but its fields and masks."""
        stores = [self._reader(draw).store for draw in draws]
        space, dataset = stores[0].info.space, torch.tensor([draw.dataset for draw in draws])
        shape = (len(draws), self._frames, *space, self._channel_masks.shape[1])
        pairs = zip(stores, draws, strict=True)
        rows = [store.parameters(draw.trajectory) for store, draw in pairs] if self._parameters else []
        parameters = torch.tensor([parameter_row(row, self._parameters) for row in rows], dtype=torch.float32)
        return Batch(
            window=self._buffers.take(shape),
            frames_in=self._frames_in,
            channel_mask=self._channel_masks[dataset],
            dataset=dataset,
            dt=self._dts[dataset],
            parameters=parameters.reshape(len(draws), len(self._parameters)),
            position=position,
            point_mask=torch.empty(len(draws), *space, dtype=torch.bool) if self._masked else None,
            lead=self._leads(position),
        )

    def _leads(self, position: Tensor) -> Tensor | None:
        if self._furthest is None:
            return None
        return torch.tensor([drawn_lead(self._seed, k, self._furthest) for k in position.tolist()])

    def _reader(self, draw: Draw) -> WindowReader:
        reader = self._readers[draw.dataset]
        assert reader is not None, f"{self._mixture.datasets[draw.dataset].name} is drawn, but its store was not given"
        return reader

    def close(self) -> None:
        """End the reader threads; reads that have begun are finished first."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.close()


def mixture_of(
    stores: Sequence[TrajectoryStore],
    weights: Sequence[int],
    history: int,
    target: int,
    seed: int,
    *,
    batch_size: int,
    micro_batch: int,
    quarantine: Mapping[str, tuple[int, ...]] | None = None,
) -> Mixture:
    """The mixture of all windows of `history + target` frames in the stores, the same at all steps.

    Raises:
        ConfigError: a trajectory is shorter than the window, or a weight, a name or the quarantine cannot be used.
    """
    check_windows([store.info for store in stores], history, target)
    datasets = tuple(mixture_dataset(store, history + target) for store in stores)
    named = {dataset.name: weight for dataset, weight in zip(datasets, weights, strict=True)}
    return Mixture(datasets, (Segment(0, named, quarantine or {}),), seed, batch_size, micro_batch)


def mixture_dataset(store: TrajectoryStore, frames: int) -> MixtureDataset:
    """A store as its mixture sees it: windows of so many frames."""
    return MixtureDataset(store.info.name, len(store), store.info.frames - frames + 1, store.info.space)


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
    """Raise ConfigError unless all datasets have trajectories as long as the window."""
    for info in infos:
        if info.frames < history + target:
            raise ConfigError(
                f"dataset {info.name!r} has no windows: its trajectories are too short",
                key="history, target",
                found=f"{info.frames} frames",
                expected=f"at least {history + target}: history {history} and target {target}",
                remedy="shorten history or target, leave the dataset out, or generate it with more frames",
            )


def _check_mixture(stores: Sequence[TrajectoryStore | None], mixture: Mixture, frames: int) -> None:
    in_stores = [None if store is None else mixture_dataset(store, frames) for store in stores]
    pairs = list(zip(in_stores, mixture.datasets, strict=False))
    if len(in_stores) != len(mixture.datasets) or any(a is not None and a != b for a, b in pairs):
        raise ConfigError(
            "the mixture describes other stores",
            found=mixture.datasets,
            expected=in_stores,
            remedy="make it with mixture_of, from the same stores, history and target",
        )


def _check_at_least_one(**numbers: int) -> None:
    for key, number in numbers.items():
        if number < 1:
            raise ConfigError("a number is too small", key=key, found=number, expected="1 or more")
