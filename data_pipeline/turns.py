"""Whose turn it is: owners in proportion to integer weights, shuffled within blocks. A pure function of the turn."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from data_pipeline.permutation import Int64Array, hashed_key, permute

BLOCK = 1 << 12
"""Turns that are shuffled together. A power of four, so that the shuffle never walks a cycle; no larger than it takes
to hide the regular pattern of `deal`: the stray from the exact shares and the work of a look-up grow with it."""

MOST_WEIGHT = 1 << 31
"""Below this sum of weights every product in `deal` is below 2^62, whatever the place."""


class Turns:
    """An endless sequence of owners, numbered from 0 in the order of their weights.

    The sequence of `deal` is cut into blocks of 2^12 turns, and each block gets an order of its own. With V = 2^12 s
    (1 - s) for an owner of the share s, and 0 at the ends of blocks, the owner's turns among the first k are within

        -V - w_d * (1/R_0 + ... + 1/R_d) < turns_d(k) - k s < V + 1,      R_i = w_i + w_(i+1) + ...

    which is the bound of `deal` and what one block can add. A sole owner has every turn.

    Args:
        weights: (D,), each at least 1, below 2^31 in sum.
        seed, purpose, parts: key the order of the blocks.
    """

    def __init__(self, weights: Sequence[int], seed: int, purpose: str, *parts: str | int) -> None:
        self.weights = tuple(weights)
        self._seed, self._purpose, self._parts = seed, purpose, parts

    def owners(self, turns: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Owner of each turn (N,), and how many earlier turns of the sequence are that owner's (N,)."""
        if len(self.weights) == 1:
            return np.zeros_like(turns), turns
        blocks, within = np.divmod(turns, BLOCK)
        owner, earlier = np.empty_like(turns), np.empty_like(turns)
        for block in np.unique(blocks):
            mine = blocks == block
            owners, before = self._block(int(block))
            owner[mine], earlier[mine] = owners[within[mine]], before[within[mine]]
        return owner, earlier

    def counts(self, turns: int) -> Int64Array:
        """How many of the first `turns` turns each owner has (D,)."""
        if len(self.weights) == 1:
            return np.array([turns], np.int64)
        block, within = divmod(turns, BLOCK)
        counts = dealt(block * BLOCK, self.weights)
        if within:
            counts += np.bincount(self._block(block)[0][:within], minlength=len(self.weights))
        return counts

    def _block(self, number: int) -> tuple[Int64Array, Int64Array]:
        return _shuffled(self.weights, number, hashed_key(self._seed, self._purpose, *self._parts, number))


@lru_cache(maxsize=16)
def _shuffled(weights: tuple[int, ...], block: int, key: int) -> tuple[Int64Array, Int64Array]:
    """Owners of the turns of a block, and how many earlier turns each of them has had, (2^12,) both."""
    places = block * BLOCK + permute(np.arange(BLOCK), np.full(BLOCK, BLOCK), np.full(BLOCK, key, np.uint64))
    owners, _ = deal(places, weights)
    # Counted in the order of the turns, not of the places: the turns that an owner has had are always its first ones.
    by_owner = np.argsort(owners, kind="stable")
    in_block = np.bincount(owners, minlength=len(weights))
    rank = np.empty(BLOCK, np.int64)
    rank[by_owner] = np.arange(BLOCK) - np.repeat(np.cumsum(in_block) - in_block, in_block)
    return owners, dealt(block * BLOCK, weights)[owners] + rank


def deal(places: Int64Array, weights: Sequence[int]) -> tuple[Int64Array, Int64Array]:
    """Whose turn each place is, by telescoping floors (the rule of Google's Grain), before any shuffle.

    The first owner takes `k - floor(k * r / R)` of the first k places, where R is the sum of all weights and r that
    of the others; the others share the rest by the same rule. The counts are monotone in k, which rounding each
    share by itself is not, and add up to k. Owner d, of weight w_d, stays within

        -w_d * (1/R_0 + ... + 1/R_d) < count_d(k) - k * w_d / R_0 < 1,      R_i = w_i + w_(i+1) + ...

    Args:
        places: (N,), each in 0 .. 2^62.
        weights: (D,), each at least 1, below 2^31 in sum.

    Returns:
        (N,) the owner of each place, and (N,) how many earlier places are that owner's.
    """
    owner = np.full(places.shape, -1, np.int64)
    earlier = np.zeros(places.shape, np.int64)
    before, remaining = places, sum(weights)
    for number, weight in enumerate(weights):
        # Of the first k and the first k + 1 places, what is left to the owners that follow.
        rest = _floor_share(before, remaining - weight, remaining)
        owned = (_floor_share(before + 1, remaining - weight, remaining) == rest) & (owner < 0)
        owner[owned] = number
        earlier[owned] = (before - rest)[owned]
        before, remaining = rest, remaining - weight
    return owner, earlier


def dealt(places: int, weights: Sequence[int]) -> Int64Array:
    """How many of the first `places` places `deal` gives to each owner (D,)."""
    counts, remaining = [], sum(weights)
    for weight in weights:
        rest = places * (remaining - weight) // remaining
        counts.append(places - rest)
        places, remaining = rest, remaining - weight
    return np.array(counts, np.int64)


def _floor_share(x: Int64Array, part: int, whole: int) -> Int64Array:
    """`floor(x * part / whole)`, exactly: the product itself would overflow 64 bits."""
    quotient, remainder = np.divmod(x, whole)
    share: Int64Array = quotient * part + remainder * part // whole
    return share
