"""The schedule: which window is sample number k."""

import dataclasses
import pickle
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.base.errors import ConfigError
from data_pipeline.mixture import Draw, Mixture, positional_generator, positional_seed
from data_pipeline.permutation import hashed_key
from data_pipeline.segments import MixtureDataset, Segment
from data_pipeline.turns import BLOCK

SHAPES = [(64, 64), (128,), (16, 16, 16)]
seeds = st.integers(0, 2**63 - 1)
positions = st.one_of(st.integers(0, 10**6), st.integers(10**12, 2 * 10**12))
# Numbers of trajectories: a sole one, fewer than there are ranks, powers of two and their neighbours.
trajectories = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 64, 1000])


@st.composite
def mixtures(draw: st.DrawFn, most: int = 6) -> Mixture:
    shapes = draw(
        st.lists(st.tuples(trajectories, st.integers(1, 20), st.sampled_from(SHAPES)), min_size=1, max_size=most)
    )
    datasets = tuple(MixtureDataset(f"d{i}", *shape) for i, shape in enumerate(shapes))
    weights = {d.name: draw(st.integers(1, 1000)) for d in datasets}
    micro_batch, micro_batches = draw(st.integers(1, 5)), draw(st.sampled_from([1, 2, 12, 24]))
    return Mixture(datasets, (Segment(0, weights),), draw(seeds), micro_batch * micro_batches, micro_batch)


def of(
    *datasets: tuple[str, int, int, int], seed: int = 0, batch_size: int = 8, space: tuple[int, ...] = (8,)
) -> Mixture:
    """One segment of datasets given as (name, weight, trajectories, windows each)."""
    parts = tuple(MixtureDataset(name, count, windows, space) for name, _, count, windows in datasets)
    return Mixture(parts, (Segment(0, {name: weight for name, weight, *_ in datasets}),), seed, batch_size, 4)


def stream(drawn: Mixture, first: int, count: int) -> dict[str, list[tuple[int, int]]]:
    """The windows of each dataset in the order in which `count` samples from number `first` on name them."""
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for row in drawn.draw_many(first + np.arange(count)).tolist():
        found[drawn.datasets[row[0]].name].append((row[1], row[2]))
    return found


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


def reference_owner(turn: int, weights: list[int], seed: int, *parts: str | int) -> tuple[int, int]:
    """Owner of a turn and how many earlier turns are its own, by playing the turn's block from its beginning."""
    if len(weights) == 1:
        return 0, turn
    block, key = turn // 2**12, hashed_key(seed, *parts, turn // 2**12)
    counts = reference_counts(block * 2**12, weights)
    for within in range(turn % 2**12 + 1):
        place = block * 2**12 + reference_permute(within, 2**12, key)
        before, after = reference_counts(place, weights), reference_counts(place + 1, weights)
        (owner,) = [d for d in range(len(weights)) if after[d] > before[d]]
        counts[owner] += 1
    return owner, counts[owner] - 1


def reference_draw(drawn: Mixture, k: int) -> Draw:
    p, i = divmod(k, drawn.micro_batch)
    (segment,) = drawn.segments
    buckets = list(dict.fromkeys(d.bucket for d in drawn.datasets))
    members = [[n for n, d in enumerate(drawn.datasets) if d.bucket == bucket] for bucket in buckets]
    weights = [[segment.weights[drawn.datasets[n].name] for n in of_one] for of_one in members]
    b, count = reference_owner(p, [sum(each) for each in weights], drawn.seed, "shape", 0)
    turn = count * drawn.micro_batch + i
    owner, draw = reference_owner(turn, weights[b], drawn.seed, "dataset", buckets[b], 0)
    number, dataset = members[b][owner], drawn.datasets[members[b][owner]]
    epoch, place = divmod(draw, dataset.windows)
    window = reference_permute(place, dataset.windows, hashed_key(drawn.seed, "window", dataset.name, epoch))
    return Draw(number, *divmod(window, dataset.windows_per_trajectory))


@given(mixtures(), positions)
@settings(max_examples=8, deadline=None)
def test_draws_equal_the_rules_in_unbounded_integers(drawn: Mixture, k: int) -> None:
    ks = k // BLOCK * BLOCK + np.array([0, 1, 5, 150])
    expected = [reference_draw(drawn, int(k)) for k in ks]
    assert [Draw(*row) for row in drawn.draw_many(ks).tolist()] == expected
    assert [drawn.draw(int(k)) for k in ks] == expected


@given(mixtures(), st.integers(0, 10**9))
@settings(max_examples=60, deadline=None)
def test_every_window_of_a_dataset_once_before_any_comes_again(drawn: Mixture, step: int) -> None:
    """At every moment, from the very first sample on: the counts of two windows never differ by more than one."""
    for name, seen in stream(drawn, 0, 6000).items():
        epoch = next(d.windows for d in drawn.datasets if d.name == name)
        for first in range(0, len(seen), epoch):
            part = seen[first : first + epoch]
            assert len(set(part)) == len(part)
    # And late: what is left of the epoch that is under way holds no window twice.
    before = drawn.draws_before(step)
    for name, seen in stream(drawn, step * drawn.batch_size, 1000).items():
        epoch = next(d.windows for d in drawn.datasets if d.name == name)
        rest = seen[: epoch - before[name] % epoch]
        assert len(set(rest)) == len(rest)


@given(mixtures())
@settings(max_examples=60, deadline=None)
def test_a_micro_batch_has_one_shape(drawn: Mixture) -> None:
    rows = drawn.draw_many(np.arange(300 * drawn.micro_batch))["dataset"].reshape(300, drawn.micro_batch)
    for batch in rows:
        assert len({drawn.datasets[n].space for n in batch}) == 1


def bound(drawn: Mixture, number: int) -> tuple[float, float]:
    """The bound that the module states for a dataset's draws, below and above; put together from its two levels."""

    def stray(weights: list[int], d: int) -> tuple[float, float]:
        if len(weights) == 1:
            return 0, 0
        share = weights[d] / sum(weights)
        below = weights[d] * sum(1 / sum(weights[i:]) for i in range(d + 1))
        return BLOCK * share * (1 - share) + below, BLOCK * share * (1 - share) + 1

    weights, dataset = drawn.segments[0].weights, drawn.datasets[number]
    buckets = list(dict.fromkeys(d.bucket for d in drawn.datasets))
    members = [d.name for d in drawn.datasets if d.bucket == dataset.bucket]
    of_shapes = [sum(weights[d.name] for d in drawn.datasets if d.bucket == bucket) for bucket in buckets]
    shape = stray(of_shapes, buckets.index(dataset.bucket))
    own = stray([weights[name] for name in members], members.index(dataset.name))
    part = drawn.micro_batch * weights[dataset.name] / sum(weights[name] for name in members)
    return part * shape[0] + own[0], part * shape[1] + own[1]


@given(mixtures(most=12), st.integers(0, 10**12))
@settings(max_examples=100, deadline=None)
def test_draw_counts_stay_within_the_bound_that_is_stated(drawn: Mixture, step: int) -> None:
    weights = drawn.segments[0].weights
    total, counts = sum(weights.values()), drawn.draws_before(step)
    assert sum(counts.values()) == step * drawn.batch_size
    for number, dataset in enumerate(drawn.datasets):
        exact = step * drawn.batch_size * weights[dataset.name]
        deviation = (counts[dataset.name] * total - exact) / total
        below, above = bound(drawn, number)
        assert -below - 1e-9 <= deviation <= above + 1e-9


def test_counts_are_those_of_the_stream() -> None:
    drawn = of(("a", 3, 10, 5), ("b", 1, 7, 5), ("c", 40, 7, 5))
    for step in (0, 1, 3, 517, 2000):
        rows = drawn.draw_many(np.arange(step * 8))["dataset"]
        assert list(drawn.draws_before(step).values()) == np.bincount(rows, minlength=3).tolist()


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 8, 12, 24])
@given(mixtures(), st.integers(0, 10**9))
@settings(max_examples=10, deadline=None)
def test_every_number_of_ranks_draws_the_same_step(ranks: int, drawn: Mixture, step: int) -> None:
    drawn = Mixture(drawn.datasets, drawn.segments, drawn.seed, 24 * drawn.micro_batch, drawn.micro_batch)
    whole = drawn.draw_many(step * drawn.batch_size + np.arange(drawn.batch_size))
    dealt = np.empty_like(whole)
    for rank in range(ranks):
        for g in range(rank, 24, ranks):
            slots = g * drawn.micro_batch + np.arange(drawn.micro_batch)
            dealt[slots] = drawn.draw_many(step * drawn.batch_size + slots)
    np.testing.assert_array_equal(dealt, whole)


@given(mixtures(), st.lists(positions, min_size=2, max_size=10))
@settings(max_examples=40, deadline=None)
def test_a_draw_does_not_depend_on_those_before_it(drawn: Mixture, ks: list[int]) -> None:
    together = drawn.draw_many(np.array(ks))
    np.testing.assert_array_equal(drawn.draw_many(np.array(ks[::-1]))[::-1], together)
    fresh = pickle.loads(pickle.dumps(drawn))  # as it goes to a process that is spawned
    assert fresh.draw(ks[-1]) == Draw(*together[-1].item())


def test_an_epoch_has_an_order_of_its_own() -> None:
    seen = stream(of(("d", 1, 20, 30)), 0, 2400)["d"]
    orders = [tuple(seen[epoch * 600 : (epoch + 1) * 600]) for epoch in range(4)]
    assert len(set(orders)) == 4
    assert orders[0] != tuple(sorted(orders[0]))


@pytest.mark.parametrize("space", [(8,), (4, 4)])
def test_another_dataset_leaves_the_order_of_the_others_windows(space: tuple[int, ...]) -> None:
    a, b = ("a", 1, 20, 9), ("b", 2, 31, 5)
    alone = stream(of(a, b), 0, 4000)
    with_new = of(("new", 4, 8, 8), a, b)
    new = MixtureDataset("new", 8, 8, space)
    joined = stream(Mixture((new, *with_new.datasets[1:]), with_new.segments, 0, 8, 4), 0, 4000)
    for name in ("a", "b"):
        assert len(joined[name]) > 100
        assert joined[name] == alone[name][: len(joined[name])]


GOLDEN_ROWS = [(0, 1, 5), (0, 15, 3), (1, 97, 86), (1, 842, 3), (1, 274, 10), (0, 63, 3)]
GOLDEN_DIGEST = "e13ab138dbc9e95bfc8d43d2ee50e6c4f11aa641d93ceaa24e95ae5adb95e062"


def golden() -> Mixture:
    shapes = [("advection", 100, 11, (256,)), ("burgers", 1000, 91, (64, 64)), ("euler", 50, 5, (64, 64))]
    segments = (
        Segment(0, {"advection": 1, "burgers": 3}),
        Segment(1000, {"advection": 1, "burgers": 3, "euler": 2}, {"burgers": (3, 500)}),
    )
    return Mixture(tuple(MixtureDataset(*shape) for shape in shapes), segments, 42, 96, 8)


def test_the_schedule_is_the_one_that_checkpoints_rely_on() -> None:
    """If this fails, runs cannot be resumed with their old samples: raise the number in the schedule's name too."""
    drawn = golden()
    assert [tuple(drawn.draw(k)) for k in (0, 1, 8, 65536, 96000, 10**12)] == GOLDEN_ROWS
    assert drawn.digest() == GOLDEN_DIGEST


def test_digest_tells_schedules_apart() -> None:
    a, b = ("a", 1, 20, 9), ("b", 2, 31, 5)
    others = [
        of(a, b, seed=1), of(b, a), of(a), of(a, ("b", 3, 31, 5)), of(a, ("b", 2, 5, 31)), of(a, ("c", 2, 31, 5)),
        of(a, b, batch_size=16), of(a, b, space=(4, 4)),
    ]  # fmt: skip
    assert of(a, b).digest() == of(("a", 1, 20, 9), b).digest()
    assert len({drawn.digest() for drawn in [of(a, b), *others]}) == 9


@pytest.mark.parametrize(
    ("datasets", "words"),
    [
        ((), ["empty"]),
        ((("burgers", 0, 5, 5),), ["empty"]),
        ((("burgers", -1, 5, 5),), ["'burgers'", "weight", "found: -1"]),
        ((("burgers", 0.5, 5, 5),), ["'burgers'", "weight", "found: 0.5", "integer"]),
        ((("burgers", 1, 5, 5), ("burgers", 1, 6, 5)), ["twice", "burgers"]),
        ((("burgers", 1, 5, 0),), ["'burgers'", "no windows", "0 windows"]),
        ((("burgers", 1, 0, 5),), ["'burgers'", "no windows", "0 trajectories"]),
        ((("burgers", 2**31, 5, 5),), ["too large", str(2**31)]),
    ],
)
def test_a_mixture_that_cannot_be_drawn_is_refused(
    datasets: tuple[tuple[str, int, int, int]], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        of(*datasets)
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


def test_counts_of_windows_are_even_over_several_epochs() -> None:
    for name, seen in stream(of(("a", 3, 13, 7), ("b", 1, 100, 41)), 0, 40_000).items():
        counts = Counter(seen)
        assert len(counts) == {"a": 91, "b": 4100}[name]
        assert max(counts.values()) - min(counts.values()) <= 1


@settings(deadline=None)
@given(mixtures(most=3), st.sets(st.integers(0, 30), min_size=1, max_size=5))
def test_only_the_micro_batches_that_are_replaced_change(drawn: Mixture, replaced: set[int]) -> None:
    other = dataclasses.replace(drawn, replaced=tuple(replaced))
    ks = np.arange(40 * drawn.micro_batch)
    before, after = (each.draw_many(ks).reshape(40, drawn.micro_batch) for each in (drawn, other))
    kept = [p for p in range(40) if p not in replaced]
    np.testing.assert_array_equal(after[kept], before[kept])
    for p in replaced:
        beyond = (2**44 + p) * drawn.micro_batch + np.arange(drawn.micro_batch)
        np.testing.assert_array_equal(after[p], drawn.draw_many(beyond))
    # One at a time, in whatever order: the same.
    assert [other.draw(int(k)) for k in ks[::-7]] == [Draw(*row.item()) for row in other.draw_many(ks[::-7])]
    assert len({drawn.datasets[n].bucket for n in after["dataset"].flatten().tolist()}) <= 3
    assert all(len({drawn.datasets[n].space for n in row["dataset"].tolist()}) == 1 for row in after)
    # Other datasets go on as they would have: nothing that comes later is drawn in another order.
    assert other.draws_before(1000) == drawn.draws_before(1000)


@settings(deadline=None)
@given(mixtures(most=2), st.sets(st.integers(0, 100), min_size=1, max_size=5), st.integers(0, 60))
def test_the_digest_before_a_step_counts_what_was_replaced_until_then(
    drawn: Mixture, replaced: set[int], step: int
) -> None:
    other = dataclasses.replace(drawn, replaced=tuple(replaced))
    until = {p for p in replaced if p < step * (drawn.batch_size // drawn.micro_batch)}
    assert other.digest(step) == dataclasses.replace(drawn, replaced=tuple(until)).digest()
    assert (other.digest(step) == drawn.digest()) == (not until)
    assert other.digest() != drawn.digest()
    assert other.digest(step) in other.digests_at(step)
    assert other.digest() == dataclasses.replace(drawn, replaced=tuple(sorted(replaced, reverse=True))).digest()
