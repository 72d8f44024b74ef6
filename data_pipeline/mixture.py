"""Which window is sample number k of a mixture of datasets: a pure function of (mixture, k).

The unit of the schedule is the canonical micro-batch: some samples that stand together in one batch tensor, and so are
of one spatial shape. A step has G of them, `p = step * G + g` counts those of all ranks, and sample number
`k = p * micro_batch + i` is the i-th of micro-batch p. Nothing is drawn from a generator with a state, so the stream
does not depend on ranks, threads or restarts, and a late sample costs what the first does:

    p      -- turns of the spatial shapes -->     a shape (`bucket`), and how many micro-batches it has had before
    count  -- turns of its datasets -->           dataset, and how often it has been drawn before
    draw   -- permutation of an epoch -->         trajectory, start frame

`data_pipeline.turns` has the turns, and says how far they stray from the exact shares. With shapes of shares S_b and
datasets of shares t_d within their shape, after p whole micro-batches of m samples a dataset has been drawn
p m S_b t_d times, but for m t_d times the stray of its shape's turns plus that of its own; nothing for a sole shape.

Draws are counted in the order of the stream, so at any moment no window of a dataset has been drawn more than once
oftener than another (but for windows that stand in for those in quarantine).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.errors import ConfigError
from data_pipeline.base.files import digest
from data_pipeline.permutation import Int64Array, UInt64Array, hashed_key, permute
from data_pipeline.segments import MixtureDataset, Segment, check_dataset, check_segment
from data_pipeline.turns import Turns

_SCHEDULE = "micro-batches of one shape, telescoping floors shuffled by 2^12, epochs by Feistel 6 x splitmix64; 2"
_BEYOND = 2**44  # micro-batches
_DRAW = np.dtype([("dataset", np.int64), ("trajectory", np.int64), ("start", np.int64)])


class Draw(NamedTuple):
    """A window: number of the dataset in its mixture, trajectory, first frame."""

    dataset: int
    trajectory: int
    start: int


@dataclass(frozen=True)
class Mixture:
    """Datasets drawn in proportion to their weights.

    When the weights, the datasets or the quarantine change within a run, a segment is added at the end; what came
    before stays what it was, and each dataset goes on with the next window of its epoch.

    Attributes:
        datasets: all that are ever drawn, in the order in which they joined.
        segments: the first one begins at step 0.
        seed: keys all orders.
        batch_size: samples in a step.
        micro_batch: samples in a canonical micro-batch.
        replaced: numbers p of micro-batches that are not drawn. In the place of p stands number 2^44 + p, to which no
            run ever gets.

    Raises:
        ConfigError: nothing to draw; a dataset twice, unknown or without windows; weights or steps that cannot be
            used; a quarantine that leaves nothing of a dataset.
    """

    datasets: tuple[MixtureDataset, ...]
    segments: tuple[Segment, ...]
    seed: int
    batch_size: int
    micro_batch: int
    replaced: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if min(self.batch_size, self.micro_batch) < 1 or self.batch_size % self.micro_batch:
            raise ConfigError(
                "a step is not a whole number of micro-batches", key="batch_size, micro_batch",
                found=f"{self.batch_size}, {self.micro_batch}", expected="a multiple of micro_batch",
            )  # fmt: skip
        for dataset in self.datasets:
            check_dataset(dataset)
        names = [dataset.name for dataset in self.datasets]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            remedy = "name each dataset once, and raise its weight instead"
            raise ConfigError("a dataset is in the mixture twice", key="data", found=", ".join(twice), remedy=remedy)
        steps = [segment.first_step for segment in self.segments]
        if not steps or steps[0] != 0 or steps != sorted(steps):
            raise ConfigError("the segments do not follow each other", found=steps, expected="0, then later steps")
        for segment in self.segments:
            check_segment(segment, {dataset.name: dataset for dataset in self.datasets})

    def draw(self, k: int) -> Draw:
        """The window of sample number `k` >= 0."""
        return Draw(*self.draw_many(np.array([k], np.int64))[0].item())

    def draw_many(self, ks: Int64Array) -> NDArray[np.void]:
        """The windows of the samples number `ks` (N,), each in 0 .. 2^62.

        Returns:
            (N,), a structured array with the int64 fields `dataset`, `trajectory` and `start`.
        """
        assert ks.size == 0 or ks.min() >= 0, "samples are numbered from 0"
        result = np.empty(ks.shape, _DRAW)
        steps = [segment.first_step for segment in self.segments]
        number = np.searchsorted(steps, ks // self.batch_size, side="right") - 1
        if self.replaced:
            ks = np.where(np.isin(ks // self.micro_batch, self.replaced), ks + _BEYOND * self.micro_batch, ks)
        for n in np.unique(number):
            mine, plan = number == n, self._plans[n]
            dataset, draws = plan.look_up(ks[mine] - steps[n] * self.batch_size)
            trajectory, start = self.windows(dataset, draws)
            result["dataset"][mine], result["start"][mine] = dataset, start
            result["trajectory"][mine] = self._outside_quarantine(plan.quarantine, dataset, trajectory, draws)
        return result

    def windows(self, dataset: Int64Array, draws: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Trajectory and start frame, (N,) each, of draw number `draws` (N,) of the datasets number `dataset` (N,).

        Every window of a dataset is drawn exactly once in each of its epochs, in an order of that epoch's own. The
        order is keyed by the dataset's name, so that it does not change when another dataset joins the mixture.
        """
        size = np.array([d.windows for d in self.datasets])[dataset]
        epoch, number = np.divmod(draws, size)
        keys = np.empty(dataset.shape, np.uint64)
        for n in np.unique(dataset):
            mine = dataset == n
            keys[mine] = _keys(epoch[mine], self.seed, "window", self.datasets[n].name)
        starts = np.array([d.windows_per_trajectory for d in self.datasets])[dataset]
        trajectory, start = np.divmod(permute(number, size, keys), starts)
        return trajectory, start

    def draws_before(self, step: int) -> dict[str, int]:
        """How often each dataset is drawn before `step`: the state that a segment beginning there would start from."""
        steps = [segment.first_step for segment in self.segments]
        n = int(np.searchsorted(steps, step, side="right")) - 1
        counts = self._plans[n].counts((step - steps[n]) * self._micro_batches)
        return {d.name: int(count) for d, count in zip(self.datasets, counts, strict=True)}

    def digest(self, step: int | None = None) -> str:
        """Identifies the schedule: two mixtures of one digest draw the same window for every sample number; with
        `step`, for those before that step, as far as what is replaced goes."""
        return self._digest(len(self.segments), step)

    def digests_at(self, step: int) -> list[str]:
        """The digests that this schedule can have had when `step` steps were done: of it without the segments that
        begin there or later, and with each of these added."""
        earlier = [n for n, segment in enumerate(self.segments) if segment.first_step < step or n == 0]
        return [self._digest(n, step) for n in range(len(earlier), len(self.segments) + 1)]

    def _digest(self, segments: int, step: int | None) -> str:
        described: list[dict[str, Any]] = [
            {
                "first_step": segment.first_step,
                "datasets": [
                    [d.name, segment.weights[d.name], d.trajectories, d.windows_per_trajectory, d.space]
                    for d in self.datasets
                    if segment.weights.get(d.name)
                ],
                "quarantine": {name: sorted(set(numbers)) for name, numbers in segment.quarantine.items() if numbers},
            }
            for segment in self.segments[:segments]
        ]
        content = {"schedule": _SCHEDULE, "seed": self.seed, "segments": described}
        content |= {"batch_size": self.batch_size, "micro_batch": self.micro_batch}
        replaced = sorted({p for p in self.replaced if step is None or p < step * self._micro_batches})
        return digest(content | ({"replaced": replaced} if replaced else {}))

    @property
    def _micro_batches(self) -> int:
        return self.batch_size // self.micro_batch

    @cached_property
    def _plans(self) -> list["_Plan"]:
        plans: list[_Plan] = []
        counts = np.zeros(len(self.datasets), np.int64)
        for n, segment in enumerate(self.segments):
            if n:
                steps = segment.first_step - self.segments[n - 1].first_step
                counts = plans[-1].counts(steps * self._micro_batches)
            plans.append(_Plan(self, segment, counts))
        return plans

    def _outside_quarantine(
        self, quarantine: Mapping[int, Int64Array], dataset: Int64Array, trajectory: Int64Array, draws: Int64Array
    ) -> Int64Array:
        """The trajectories (N,), those in quarantine replaced by others of their dataset."""
        for n, barred in quarantine.items():
            at = np.flatnonzero((dataset == n) & np.isin(trajectory, barred))
            if not at.size:
                continue
            free = self.datasets[n].trajectories - len(barred)
            # In each epoch, the barred ones go to as many different free ones, by a permutation of these.
            rank = np.searchsorted(barred, trajectory[at]) % free
            keys = _keys(draws[at] // self.datasets[n].windows, self.seed, "replacement", self.datasets[n].name)
            chosen = permute(rank, np.full_like(rank, free), keys)
            # The number of the i-th free trajectory: i, and one more for each barred one before it.
            free_before = barred - np.arange(len(barred))
            trajectory[at] = chosen + np.searchsorted(free_before, chosen, side="right")
        return trajectory


class _Plan:
    """One segment of a mixture, ready to be drawn from.

    Args:
        mixture: the whole.
        segment: one of its segments.
        before: (D,) how often each dataset has been drawn before the segment.
    """

    def __init__(self, mixture: Mixture, segment: Segment, before: Int64Array) -> None:
        numbers = {d.name: n for n, d in enumerate(mixture.datasets)}
        drawn = [n for n, d in enumerate(mixture.datasets) if segment.weights.get(d.name)]
        buckets = list(dict.fromkeys(mixture.datasets[n].bucket for n in drawn))
        weight = {n: segment.weights[mixture.datasets[n].name] for n in drawn}
        self._members = [[n for n in drawn if mixture.datasets[n].bucket == bucket] for bucket in buckets]
        shares, start = [sum(weight[n] for n in members) for members in self._members], segment.first_step
        self._shapes = Turns(shares, mixture.seed, "shape", start)
        self._datasets = [
            Turns([weight[n] for n in members], mixture.seed, "dataset", bucket, start)
            for bucket, members in zip(buckets, self._members, strict=True)
        ]
        self._micro_batch, self._before = mixture.micro_batch, before
        self.quarantine = {
            numbers[name]: np.unique(np.array(barred, np.int64))
            for name, barred in segment.quarantine.items()
            if barred
        }

    def look_up(self, ks: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Dataset and draw number, (N,) each, of the samples `ks` (N,), which are counted from the segment's start."""
        p, i = np.divmod(ks, self._micro_batch)
        shape, earlier = self._shapes.owners(p)
        dataset, draws = np.empty_like(ks), np.empty_like(ks)
        for n in np.unique(shape):
            mine = shape == n
            owner, count = self._datasets[n].owners(earlier[mine] * self._micro_batch + i[mine])
            dataset[mine], draws[mine] = np.array(self._members[n])[owner], count
        return dataset, draws + self._before[dataset]

    def counts(self, micro_batches: int) -> Int64Array:
        """How often each dataset (D,) has been drawn after so many micro-batches of the segment."""
        total = self._before.copy()
        per_shape = self._shapes.counts(micro_batches).tolist()
        for members, turns, count in zip(self._members, self._datasets, per_shape, strict=True):
            total[members] += turns.counts(count * self._micro_batch)
        return total


def _keys(numbers: Int64Array, seed: int, purpose: str, *parts: str) -> UInt64Array:
    """The key (N,) of each epoch's permutation, hashed once for each number that occurs."""
    distinct, inverse = np.unique(numbers, return_inverse=True)
    return np.array([hashed_key(seed, purpose, *parts, int(n)) for n in distinct], np.uint64)[inverse]


def positional_seed(seed: int, position: int, purpose: str) -> int:
    """A 63-bit seed for what is random about sample number `position`, for `torch.Generator.manual_seed`."""
    return hashed_key(seed, "sample", purpose, int(position)) >> 1


def positional_generator(seed: int, position: int, purpose: str) -> np.random.Generator:
    """A generator for what is random about sample number `position` ("shift", "noise"): no state is ever saved."""
    return np.random.Generator(np.random.Philox(positional_seed(seed, position, purpose)))
