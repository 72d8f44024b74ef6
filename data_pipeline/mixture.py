"""Which window is sample number k of a mixture of datasets: a pure function of (mixture, k).

`k = step * batch_size + slot` counts the samples of all ranks. Nothing is drawn from a generator with a state, so the
stream does not depend on ranks, threads or restarts, and the sample at 10^12 costs the same as the one at 0:

    k      -- shuffle within blocks of 2^16 -->   place in the schedule
    place  -- integer weights (`deal`) -->        dataset, and how often it has been drawn before
    count  -- permutation of an epoch -->         trajectory, start frame

All samples of a mixture have one spatial shape, so the unit that is drawn is one sample. A mixture of several shapes
will draw a whole micro-batch of one shape at a time.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.errors import ConfigError
from data_pipeline.base.files import digest
from data_pipeline.permutation import Int64Array, UInt64Array, hashed_key, permute

BLOCK = 1 << 16
"""Samples that are shuffled together."""

_SCHEDULE = "block shuffle 2^16, telescoping floors, epochs without replacement, Feistel 6 x splitmix64; 1"
_DRAW = np.dtype([("dataset", np.int64), ("trajectory", np.int64), ("start", np.int64)])
# Below this sum of weights every product in `deal` is below 2^62, whatever k.
_MOST_WEIGHT = 1 << 31


class Draw(NamedTuple):
    """A window: number of the dataset in its mixture, trajectory, first frame."""

    dataset: int
    trajectory: int
    start: int


@dataclass(frozen=True)
class MixtureEntry:
    """A dataset of a mixture.

    Attributes:
        name: the dataset's name; it keys the order of its windows.
        weight: share of the samples, an integer relative to the other weights.
        trajectories: number of trajectories.
        windows_per_trajectory: number of start frames in each trajectory.
    """

    name: str
    weight: int
    trajectories: int
    windows_per_trajectory: int

    @property
    def windows(self) -> int:
        """Number of windows, the length of an epoch of this dataset."""
        return self.trajectories * self.windows_per_trajectory


@dataclass(frozen=True)
class Mixture:
    """Datasets drawn in proportion to their weights.

    Raises:
        ConfigError: no dataset; a name twice; a dataset without windows; a weight that is not an integer of 1 or
            more; a sum of weights of 2^31 or more.
    """

    entries: tuple[MixtureEntry, ...]
    seed: int

    def __post_init__(self) -> None:
        if not self.entries:
            raise ConfigError("the mixture is empty", key="data", remedy="name at least one dataset")
        for entry in self.entries:
            _check_entry(entry)
        names = [entry.name for entry in self.entries]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            remedy = "name each dataset once, and raise its weight instead"
            raise ConfigError("a dataset is in the mixture twice", key="data", found=", ".join(twice), remedy=remedy)
        total = sum(entry.weight for entry in self.entries)
        if total >= _MOST_WEIGHT:
            raise ConfigError(
                "the weights are too large",
                key="weight",
                found=f"a sum of {total}",
                expected=f"a sum below {_MOST_WEIGHT}",
                remedy="divide all weights by a common factor",
            )

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
        dataset, draws = deal(shuffle(ks, self.seed), [entry.weight for entry in self.entries])
        result["dataset"] = dataset
        result["trajectory"], result["start"] = self.windows(dataset, draws)
        return result

    def windows(self, dataset: Int64Array, draws: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Trajectory and start frame, (N,) each, of draw number `draws` (N,) of the datasets number `dataset` (N,).

        Every window of a dataset is drawn exactly once in each of its epochs, in an order of that epoch's own. The
        order is keyed by the dataset's name, so that it does not change when another dataset joins the mixture.
        """
        size = np.array([entry.windows for entry in self.entries])[dataset]
        epoch, number = np.divmod(draws, size)
        window = permute(number, size, self._epoch_keys(dataset, epoch))
        starts = np.array([entry.windows_per_trajectory for entry in self.entries])[dataset]
        trajectory, start = np.divmod(window, starts)
        return trajectory, start

    def _epoch_keys(self, dataset: Int64Array, epoch: Int64Array) -> UInt64Array:
        keys = np.empty(dataset.shape, np.uint64)
        for number in np.unique(dataset):
            mine = dataset == number
            keys[mine] = _keys(epoch[mine], self.seed, "window", self.entries[number].name)
        return keys

    def digest(self) -> str:
        """Identifies the schedule: two mixtures of one digest draw the same window for every sample number."""
        entries = [asdict(entry) for entry in self.entries]
        return digest({"schedule": _SCHEDULE, "seed": self.seed, "entries": entries})


def shuffle(ks: Int64Array, seed: int) -> Int64Array:
    """Places in the schedule (N,) of the samples number `ks` (N,): each block of 2^16 in an order of its own."""
    blocks, within = np.divmod(ks, BLOCK)
    return blocks * BLOCK + permute(within, np.full_like(ks, BLOCK), _keys(blocks, seed, "order"))


def deal(places: Int64Array, weights: Sequence[int]) -> tuple[Int64Array, Int64Array]:
    """Whose turn each place in the schedule is, by telescoping floors (the rule of Google's Grain).

    The first dataset takes `k - floor(k * r / R)` of the first k places, where R is the sum of all weights and r that
    of the others; the others share the rest by the same rule. The counts are monotone in k, which rounding each
    share by itself is not, and add up to k. Dataset d, of weight w_d, stays within

        -w_d * (1/R_0 + ... + 1/R_d) < count_d(k) - k * w_d / R_0 < 1,      R_i = w_i + w_(i+1) + ...

    Args:
        places: (N,), each in 0 .. 2^62.
        weights: (D,), each at least 1, below 2^31 in sum.

    Returns:
        (N,) the dataset at each place, and (N,) how many earlier places are that dataset's.
    """
    dataset = np.full(places.shape, -1, np.int64)
    draws = np.zeros(places.shape, np.int64)
    before, remaining = places, sum(weights)
    for number, weight in enumerate(weights):
        # Of the first k and the first k + 1 places, what is left to the datasets that follow.
        rest = _floor_share(before, remaining - weight, remaining)
        owned = (_floor_share(before + 1, remaining - weight, remaining) == rest) & (dataset < 0)
        dataset[owned] = number
        draws[owned] = (before - rest)[owned]
        before, remaining = rest, remaining - weight
    return dataset, draws


def _floor_share(x: Int64Array, part: int, whole: int) -> Int64Array:
    """`floor(x * part / whole)`, exactly: the product itself would overflow 64 bits."""
    quotient, remainder = np.divmod(x, whole)
    share: Int64Array = quotient * part + remainder * part // whole
    return share


def _keys(numbers: Int64Array, seed: int, purpose: str, *parts: str) -> UInt64Array:
    """The key (N,) of each epoch's or block's permutation, hashed once for each number that occurs."""
    distinct, inverse = np.unique(numbers, return_inverse=True)
    return np.array([hashed_key(seed, purpose, *parts, int(n)) for n in distinct], np.uint64)[inverse]


def _check_entry(entry: MixtureEntry) -> None:
    if not isinstance(entry.weight, int) or entry.weight < 1:
        raise ConfigError(
            f"dataset {entry.name!r} has no share in the mixture",
            key="weight",
            found=entry.weight,
            expected="an integer of 1 or more",
            remedy="multiply all weights by a common factor, or leave the dataset out",
        )
    if entry.windows < 1 or entry.trajectories < 1:
        raise ConfigError(
            f"dataset {entry.name!r} has no windows",
            found=f"{entry.trajectories} trajectories with {entry.windows_per_trajectory} windows each",
            expected="at least one trajectory that is as long as the window",
            remedy="shorten the window, or leave the dataset out",
        )


def positional_seed(seed: int, position: int, purpose: str) -> int:
    """A 63-bit seed for what is random about sample number `position`, for `torch.Generator.manual_seed`."""
    return hashed_key(seed, "sample", purpose, int(position)) >> 1


def positional_generator(seed: int, position: int, purpose: str) -> np.random.Generator:
    """A generator for what is random about sample number `position` ("shift", "noise"): no state is ever saved."""
    return np.random.Generator(np.random.Philox(positional_seed(seed, position, purpose)))
