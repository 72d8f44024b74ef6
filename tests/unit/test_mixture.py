"""The schedule: which window is sample number k."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import mixture, permutation
from data_pipeline.base.errors import ConfigError
from data_pipeline.mixture import (
    BLOCK,
    Draw,
    Mixture,
    MixtureEntry,
    deal,
    positional_generator,
    positional_seed,
    shuffle,
)
from data_pipeline.permutation import hashed_key, permute

seeds = st.integers(0, 2**63 - 1)
powers = st.integers(1, 12).map(lambda bits: 1 << bits)
sizes = st.one_of(
    st.sampled_from([1, 2, 3]), powers, powers.map(lambda n: n + 1), powers.map(lambda n: n - 1), st.integers(1, 5000)
)
weight_lists = st.lists(st.integers(1, 10**6), min_size=1, max_size=30)
positions = st.one_of(st.integers(0, 10**6), st.integers(10**12, 2 * 10**12))


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    shapes = draw(st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 50), st.integers(1, 50)), min_size=1))
    return Mixture(tuple(MixtureEntry(f"d{i}", *shape) for i, shape in enumerate(shapes)), draw(seeds))


def permuted(index: np.ndarray, size: int, key: int) -> np.ndarray:
    return permute(index, np.full_like(index, size), np.full(index.shape, key, np.uint64))


def windows_of(entry: MixtureEntry, draws: np.ndarray, seed: int) -> list[tuple[int, int]]:
    trajectory, start = Mixture((entry,), seed).windows(np.zeros_like(draws), draws)
    return list(zip(trajectory.tolist(), start.tolist(), strict=True))


# The rules of the schedule once more, one sample at a time and in Python's unbounded integers.


def reference_splitmix64(x: int) -> int:
    z = (x + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def reference_permute(index: int, size: int, key: int) -> int:
    half = 1
    while 4**half < size:
        half += 1
    while True:
        left, right = divmod(index, 2**half)
        round_key = key
        for _ in range(6):
            round_key = reference_splitmix64(round_key)
            left, right = right, left ^ (reference_splitmix64(right ^ round_key) % 2**half)
        index = left * 2**half + right
        if index < size:
            return index


def reference_counts(k: int, weights: list[int]) -> list[int]:
    counts, rest = [], sum(weights)
    for weight in weights:
        following = k * (rest - weight) // rest
        counts.append(k - following)
        k, rest = following, rest - weight
    return counts


def reference_draw(drawn: Mixture, k: int) -> Draw:
    block, within = divmod(k, 2**16)
    place = block * 2**16 + reference_permute(within, 2**16, hashed_key(drawn.seed, "order", block))
    weights = [entry.weight for entry in drawn.entries]
    before, after = reference_counts(place, weights), reference_counts(place + 1, weights)
    (dataset,) = [d for d in range(len(weights)) if after[d] > before[d]]
    entry = drawn.entries[dataset]
    epoch, number = divmod(before[dataset], entry.windows)
    window = reference_permute(number, entry.windows, hashed_key(drawn.seed, "window", entry.name, epoch))
    return Draw(dataset, *divmod(window, entry.windows_per_trajectory))


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


@given(mixtures(), st.lists(positions, min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_draws_equal_the_rules_in_unbounded_integers(drawn: Mixture, ks: list[int]) -> None:
    expected = [reference_draw(drawn, k) for k in ks]
    assert [Draw(*row) for row in drawn.draw_many(np.array(ks)).tolist()] == expected
    assert [drawn.draw(k) for k in ks] == expected


@given(weight_lists, positions)
def test_each_place_has_one_owner_and_counts_follow_the_weights(weights: list[int], place: int) -> None:
    before, after = reference_counts(place, weights), reference_counts(place + 1, weights)
    owner, count = deal(np.array([place]), weights)
    assert [b - a for a, b in zip(before, after, strict=True)] == [int(d == owner[0]) for d in range(len(weights))]
    assert count[0] == before[owner[0]]
    assert sum(before) == place


@given(weight_lists, st.integers(0, 3 * 10**12))
def test_counts_stay_within_the_bound_that_deal_states(weights: list[int], horizon: int) -> None:
    total = sum(weights)
    for d, count in enumerate(reference_counts(horizon, weights)):
        bound = weights[d] * sum(1 / sum(weights[i:]) for i in range(d + 1))
        deviation = (count * total - horizon * weights[d]) / total
        assert -bound - 1e-9 < deviation < 1


@pytest.mark.parametrize("weights", [[10**6 - i for i in range(30)], [2**30, 2**30 - 1], [1] * 1000])
def test_large_weights_and_late_places_do_not_overflow(weights: list[int]) -> None:
    places = np.array([10**12, 10**12 + 1, 2**61, 2**62 - 1])
    owners, counts = deal(places, weights)
    for place, owner, count in zip(places.tolist(), owners.tolist(), counts.tolist(), strict=True):
        before, after = reference_counts(place, weights), reference_counts(place + 1, weights)
        assert after[owner] == before[owner] + 1
        assert count == before[owner]


def test_the_stream_itself_has_the_weights_of_its_mixture() -> None:
    weights = [1, 2, 5, 40]
    drawn = Mixture(tuple(MixtureEntry(f"d{i}", w, 7, 11) for i, w in enumerate(weights)), 3)
    counts = np.bincount(drawn.draw_many(np.arange(4 * BLOCK))["dataset"], minlength=4)
    assert np.abs(counts - 4 * BLOCK * np.array(weights) / 48).max() < 4
    # And so has every short stretch of it, as far as chance allows: datasets are not drawn in runs.
    first = np.bincount(drawn.draw_many(np.arange(4800))["dataset"], minlength=4)
    assert np.abs(first - 100 * np.array(weights)).max() < 5 * np.sqrt(4000)


@given(st.integers(1, 40), st.integers(1, 40), seeds, st.integers(0, 10**9))
def test_every_window_once_in_a_dataset_epoch(trajectories: int, windows: int, seed: int, epoch: int) -> None:
    entry = MixtureEntry("d", 1, trajectories, windows)
    draws = epoch * entry.windows + np.arange(entry.windows)
    assert sorted(windows_of(entry, draws, seed)) == [(t, s) for t in range(trajectories) for s in range(windows)]


def test_an_epoch_has_an_order_of_its_own() -> None:
    entry = MixtureEntry("d", 1, 20, 30)
    orders = [tuple(windows_of(entry, epoch * 600 + np.arange(600), 0)) for epoch in range(4)]
    assert len(set(orders)) == 4
    assert orders[0] != tuple(sorted(orders[0]))


def test_at_the_end_of_a_block_no_window_is_more_than_one_draw_ahead() -> None:
    drawn = Mixture((MixtureEntry("a", 3, 13, 7), MixtureEntry("b", 1, 100, 41)), 5)
    rows = drawn.draw_many(np.arange(2 * BLOCK))
    for number, entry in enumerate(drawn.entries):
        seen = Counter(map(tuple, rows[rows["dataset"] == number][["trajectory", "start"]].tolist()))
        assert len(seen) == entry.windows
        assert max(seen.values()) - min(seen.values()) <= 1


def windows_in_order_of_draw(drawn: Mixture, name: str) -> list[tuple[int, int]]:
    """The windows of one dataset in the first block, as they were before the block was shuffled."""
    rows = drawn.draw_many(np.arange(BLOCK))[np.argsort(shuffle(np.arange(BLOCK), drawn.seed))]
    number = [entry.name for entry in drawn.entries].index(name)
    return [(int(row["trajectory"]), int(row["start"])) for row in rows[rows["dataset"] == number]]


def test_inserting_a_dataset_leaves_the_order_of_the_others_windows() -> None:
    a, b, new = MixtureEntry("a", 1, 20, 9), MixtureEntry("b", 2, 31, 5), MixtureEntry("new", 4, 8, 8)
    for name in ("a", "b"):
        alone = windows_in_order_of_draw(Mixture((a, b), 0), name)
        joined = windows_in_order_of_draw(Mixture((new, a, b), 0), name)
        assert joined == alone[: len(joined)]
        assert len(joined) > 100


@given(mixtures(), st.lists(positions, min_size=2, max_size=30))
@settings(deadline=None)
def test_a_draw_does_not_depend_on_those_before_it(drawn: Mixture, ks: list[int]) -> None:
    together = drawn.draw_many(np.array(ks))
    np.testing.assert_array_equal(drawn.draw_many(np.array(ks[::-1]))[::-1], together)
    fresh = Mixture(drawn.entries, drawn.seed)
    assert fresh.draw(ks[-1]) == Draw(*together[-1].item())


def test_a_late_sample_takes_no_more_work_than_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()
    real_key, real_mix = permutation.hashed_key, permutation.splitmix64

    def counted_key(seed: int, purpose: str, *parts: str | int) -> int:
        calls["keys"] += 1
        return real_key(seed, purpose, *parts)

    def counted_mix(x: np.ndarray) -> np.ndarray:
        calls["rounds"] += x.size
        return real_mix(x)

    monkeypatch.setattr(mixture, "hashed_key", counted_key)
    monkeypatch.setattr(permutation, "splitmix64", counted_mix)
    # 2^6 windows and 2^16 places are powers of four: no cycle is walked, so that the work is the same to the digit.
    drawn = Mixture((MixtureEntry("a", 2, 8, 8), MixtureEntry("b", 3, 16, 16)), 0)
    work = []
    for k in (0, 10**6, 10**12):
        calls.clear()
        drawn.draw(k)
        work.append(dict(calls))
    assert work[0] == work[1] == work[2] == {"keys": 2, "rounds": 24}


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 8])
def test_ranks_that_deal_out_a_steps_micro_batches_draw_the_same_step(ranks: int) -> None:
    drawn = Mixture((MixtureEntry("a", 2, 9, 8), MixtureEntry("b", 3, 16, 5)), 1)
    batch_size, micro_batch, step = 96, 4, 1000
    step_of_one = drawn.draw_many(step * batch_size + np.arange(batch_size))
    dealt = np.empty_like(step_of_one)
    for rank in range(ranks):
        for g in range(rank, batch_size // micro_batch, ranks):
            slots = g * micro_batch + np.arange(micro_batch)
            dealt[slots] = drawn.draw_many(step * batch_size + slots)
    np.testing.assert_array_equal(dealt, step_of_one)


GOLDEN_ROWS = [(0, 54, 10), (1, 301, 3), (1, 798, 67), (1, 985, 50)]
GOLDEN_DIGEST = "ea9c1ceff6746324465654d3c6db5393d0422985f7648ce6286574448aad2911"


def test_the_schedule_is_the_one_that_checkpoints_rely_on() -> None:
    """If this fails, runs cannot be resumed with their old samples: raise the number in the schedule's name too."""
    drawn = Mixture((MixtureEntry("advection", 1, 100, 11), MixtureEntry("burgers", 3, 1000, 91)), 42)
    rows = [tuple(drawn.draw(k)) for k in (0, 1, 65536, 10**12)]
    assert rows == GOLDEN_ROWS
    assert drawn.digest() == GOLDEN_DIGEST


def test_digest_tells_schedules_apart() -> None:
    a, b = MixtureEntry("a", 1, 20, 9), MixtureEntry("b", 2, 31, 5)
    same = Mixture((MixtureEntry("a", 1, 20, 9), b), 0)
    others = [
        Mixture((a, b), 1),
        Mixture((b, a), 0),
        Mixture((a,), 0),
        Mixture((a, MixtureEntry("b", 3, 31, 5)), 0),
        Mixture((a, MixtureEntry("b", 2, 5, 31)), 0),
        Mixture((a, MixtureEntry("c", 2, 31, 5)), 0),
    ]
    assert Mixture((a, b), 0).digest() == same.digest()
    assert len({drawn.digest() for drawn in [same, *others]}) == 7


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ((), ["empty"]),
        ((MixtureEntry("burgers", 0, 5, 5),), ["'burgers'", "weight", "found: 0"]),
        ((MixtureEntry("burgers", 0.5, 5, 5),), ["'burgers'", "weight", "found: 0.5", "integer"]),  # type: ignore[arg-type]
        ((MixtureEntry("burgers", 1, 5, 5), MixtureEntry("burgers", 1, 6, 5)), ["twice", "burgers"]),
        ((MixtureEntry("burgers", 1, 5, 0),), ["'burgers'", "no windows", "0 windows"]),
        ((MixtureEntry("burgers", 1, 0, 5),), ["'burgers'", "no windows", "0 trajectories"]),
        ((MixtureEntry("burgers", 2**31, 5, 5),), ["too large", str(2**31)]),
    ],
)
def test_a_mixture_that_cannot_be_drawn_is_refused(entries: tuple[MixtureEntry, ...], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Mixture(entries, 0)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_positional_randomness_depends_on_seed_position_and_purpose_alone() -> None:
    arguments = [(0, 5, "shift"), (0, 6, "shift"), (1, 5, "shift"), (0, 5, "noise")]
    assert len({positional_seed(*each) for each in arguments}) == 4
    assert len({positional_generator(*each).integers(2**62) for each in arguments}) == 4
    assert positional_generator(0, 5, "shift").integers(2**62) == positional_generator(0, 5, "shift").integers(2**62)
    assert positional_seed(0, np.int64(5), "shift") == positional_seed(0, 5, "shift")  # type: ignore[arg-type]


@given(seeds, st.integers(0, 10**12))
def test_positional_seeds_fit_a_torch_generator(seed: int, position: int) -> None:
    assert 0 <= positional_seed(seed, position, "noise") < 2**63


def test_places_of_a_block_stay_in_the_block() -> None:
    shuffled = shuffle(np.arange(3 * BLOCK), 9)
    for block, (low, high) in enumerate(pairwise(range(0, 4 * BLOCK, BLOCK))):
        np.testing.assert_array_equal(np.sort(shuffled[low:high]), np.arange(low, high), err_msg=f"block {block}")
    assert (shuffled[:BLOCK] != shuffled[BLOCK : 2 * BLOCK] - BLOCK).mean() > 0.9
