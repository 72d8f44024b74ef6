"""Whose turn it is: in proportion to the weights, shuffled in blocks, in closed form at any place."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import permutation, turns
from data_pipeline.permutation import hashed_key, permute
from data_pipeline.turns import BLOCK, Turns, deal, dealt

seeds = st.integers(0, 2**63 - 1)
powers = st.integers(1, 12).map(lambda bits: 1 << bits)
sizes = st.one_of(
    st.sampled_from([1, 2, 3]), powers, powers.map(lambda n: n + 1), powers.map(lambda n: n - 1), st.integers(1, 5000)
)
weight_lists = st.lists(st.integers(1, 10**6), min_size=1, max_size=30)
positions = st.one_of(st.integers(0, 10**6), st.integers(10**12, 2 * 10**12))


def permuted(index: np.ndarray, size: int, key: int) -> np.ndarray:
    return permute(index, np.full_like(index, size), np.full(index.shape, key, np.uint64))


def counted(k: int, weights: list[int]) -> list[int]:
    """The rule of `deal` once more, in Python's unbounded integers."""
    counts, rest = [], sum(weights)
    for weight in weights:
        following = k * (rest - weight) // rest
        counts.append(k - following)
        k, rest = following, rest - weight
    return counts


def lower_bound(weights: list[int], d: int) -> float:
    return weights[d] * sum(1 / sum(weights[i:]) for i in range(d + 1))


@given(sizes, st.integers(0, 2**64 - 1))
def test_permutation_is_a_bijection(size: int, key: int) -> None:
    image = permuted(np.arange(size), size, key)
    np.testing.assert_array_equal(np.sort(image), np.arange(size))


@given(st.integers(2**40, 2**62), st.integers(0, 2**64 - 1))
def test_permutation_of_a_large_range_stays_inside_and_is_injective(size: int, key: int) -> None:
    index = np.arange(200) * (size // 200)
    image = permuted(index, size, key)
    assert image.min() >= 0
    assert image.max() < size
    assert len(set(image.tolist())) == len(set(index.tolist()))


def test_permutations_of_different_keys_differ_and_fill_every_place_evenly() -> None:
    keys = np.array([hashed_key(0, "test", n) for n in range(6000)], np.uint64)
    for size in (2, 6, 60):
        places = np.bincount(permute(np.zeros(6000, np.int64), np.full(6000, size), keys), minlength=size)
        expected = 6000 / size
        assert np.abs(places - expected).max() < 5 * np.sqrt(expected), f"a first place of {size} is preferred"


def test_keys_tell_their_parts_apart() -> None:
    parts = [(0, "a", "b", 1), (1, "a", "b", 0), (0, "ab", "", 1), (0, "a", "b1"), (0, "a", "b", "1"), (0, "a", "b")]
    assert len({hashed_key(*each) for each in parts}) == len(parts)


@given(weight_lists, positions)
def test_each_place_has_one_owner_and_counts_follow_the_weights(weights: list[int], place: int) -> None:
    before, after = counted(place, weights), counted(place + 1, weights)
    owner, count = deal(np.array([place]), weights)
    assert [b - a for a, b in zip(before, after, strict=True)] == [int(d == owner[0]) for d in range(len(weights))]
    assert count[0] == before[owner[0]]
    assert sum(before) == place
    assert dealt(place, weights).tolist() == before


@given(weight_lists, st.integers(0, 3 * 10**12))
def test_counts_stay_within_the_bound_that_deal_states(weights: list[int], horizon: int) -> None:
    total = sum(weights)
    for d, count in enumerate(counted(horizon, weights)):
        deviation = (count * total - horizon * weights[d]) / total
        assert -lower_bound(weights, d) - 1e-9 < deviation < 1


@pytest.mark.parametrize("weights", [[10**6 - i for i in range(30)], [2**30, 2**30 - 1], [1] * 1000])
def test_large_weights_and_late_places_do_not_overflow(weights: list[int]) -> None:
    places = np.array([10**12, 10**12 + 1, 2**61, 2**62 - 1])
    owners, counts = deal(places, weights)
    for place, owner, count in zip(places.tolist(), owners.tolist(), counts.tolist(), strict=True):
        before, after = counted(place, weights), counted(place + 1, weights)
        assert after[owner] == before[owner] + 1
        assert count == before[owner]


@given(weight_lists, seeds, st.integers(0, 10**8))
@settings(max_examples=40, deadline=None)
def test_turns_are_counted_in_their_own_order(weights: list[int], seed: int, block: int) -> None:
    """Two blocks in a row, one turn after the other: each owner's counts go up by one, from what came before."""
    first, sequence = block * BLOCK, Turns(weights, seed, "test")
    expected = dict(enumerate(counted(first, weights)))
    owners, earlier = sequence.owners(first + np.arange(2 * BLOCK))
    for turn, (owner, count) in enumerate(zip(owners.tolist(), earlier.tolist(), strict=True)):
        assert count == expected[owner]
        if turn in (0, 1, 1000, BLOCK - 1, BLOCK, BLOCK + 7):
            assert sequence.counts(first + turn).tolist() == list(expected.values())
        expected[owner] += 1
    assert list(expected.values()) == counted(first + 2 * BLOCK, weights)


@given(weight_lists, seeds, st.integers(0, 10**12))
@settings(max_examples=60, deadline=None)
def test_turns_stay_within_the_bound_that_is_stated(weights: list[int], seed: int, horizon: int) -> None:
    sequence, total = Turns(weights, seed, "test"), sum(weights)
    for turns_had in (horizon, horizon // BLOCK * BLOCK):
        for d, count in enumerate(sequence.counts(turns_had).tolist()):
            share = weights[d] / total
            stray = BLOCK * share * (1 - share) if turns_had % BLOCK else 0
            deviation = (count * total - turns_had * weights[d]) / total
            assert -stray - lower_bound(weights, d) - 1e-9 < deviation < stray + 1


def test_blocks_differ_and_owners_do_not_come_in_runs() -> None:
    sequence = Turns([1, 2, 5, 40], 3, "test")
    owners, _ = sequence.owners(np.arange(3 * BLOCK))
    blocks = owners.reshape(3, BLOCK)
    assert all((a != b).mean() > 0.2 for a, b in pairwise(blocks))
    # A short stretch has the shares as far as chance allows.
    first = np.bincount(owners[:480], minlength=4)
    assert np.abs(first - 10 * np.array([1, 2, 5, 40])).max() < 5 * np.sqrt(400)
    regular, _ = deal(np.arange(BLOCK), [1, 2, 5, 40])
    assert (regular != blocks[0]).mean() > 0.2


def test_orders_depend_on_seed_and_purpose() -> None:
    orders = {
        tuple(Turns([1, 1], seed, purpose, *parts).owners(np.arange(100))[0].tolist())
        for seed, purpose, parts in [(0, "a", ()), (1, "a", ()), (0, "b", ()), (0, "a", (5,)), (0, "a", ("5",))]
    }
    assert len(orders) == 5


def test_a_late_turn_takes_no_more_work_than_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    work: list[int] = []
    real = permutation.splitmix64

    def counted_mix(x: np.ndarray) -> np.ndarray:
        work[-1] += x.size
        return real(x)

    monkeypatch.setattr(permutation, "splitmix64", counted_mix)
    for turn in (0, 10**6, 10**12, 2**61):
        turns._shuffled.cache_clear()
        work.append(0)
        Turns([2, 3], 0, "test").owners(np.array([turn]))
    assert work == [12 * BLOCK] * 4  # one block, whose size walks no cycles


def test_a_sole_owner_has_every_turn() -> None:
    owners, earlier = Turns([7], 0, "test").owners(np.array([0, 5, 10**15]))
    assert owners.tolist() == [0, 0, 0]
    assert earlier.tolist() == [0, 5, 10**15]
    assert Turns([7], 0, "test").counts(10**15).tolist() == [10**15]
