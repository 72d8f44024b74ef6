"""Segments and quarantine: the past stays, epochs go on across a boundary, and damaged trajectories are replaced."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.base.errors import ConfigError
from data_pipeline.mixture import Mixture
from data_pipeline.segments import MixtureDataset, Segment

SHAPES = [(8,), (4, 4)]


@st.composite
def changing(draw: st.DrawFn) -> Mixture:
    """Datasets that join, leave, come back and change their weights at any step."""
    count = draw(st.integers(1, 5))
    datasets = tuple(
        MixtureDataset(f"d{i}", draw(st.integers(1, 40)), draw(st.integers(1, 9)), draw(st.sampled_from(SHAPES)))
        for i in range(count)
    )
    lengths = draw(st.lists(st.integers(0, 700), max_size=4))
    segments = []
    for first in np.cumsum([0, *lengths]).tolist():
        weights = {d.name: draw(st.integers(0, 20)) for d in datasets}
        weights["d0"] += sum(weights.values()) == 0
        segments.append(Segment(first, weights))
    return Mixture(
        datasets, tuple(segments), draw(st.integers(0, 2**63 - 1)), 12, draw(st.sampled_from([1, 3, 4, 12]))
    )


def with_quarantine(barred: tuple[int, ...], trajectories: int = 10, windows: int = 3) -> Mixture:
    segments = (Segment(0, {"d": 1}), Segment(5, {"d": 1}, {"d": barred}))
    return Mixture((MixtureDataset("d", trajectories, windows, (8,)),), segments, 1, 4, 4)


def rows_of(drawn: Mixture, steps: int) -> list[tuple[int, int, int]]:
    return drawn.draw_many(np.arange(steps * drawn.batch_size)).tolist()


@given(changing())
@settings(max_examples=60, deadline=None)
def test_no_window_is_lost_or_doubled_across_a_boundary(drawn: Mixture) -> None:
    steps = drawn.segments[-1].first_step + 100
    seen: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for dataset, *window in rows_of(drawn, steps):
        seen[dataset].append(tuple(window))
    for number, windows in seen.items():
        epoch = drawn.datasets[number].windows
        for first in range(0, len(windows), epoch):
            part = windows[first : first + epoch]
            assert len(set(part)) == len(part)
    assert drawn.draws_before(steps) == {d.name: len(seen[n]) for n, d in enumerate(drawn.datasets)}


@given(changing(), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_a_further_segment_leaves_the_past_as_it_was(drawn: Mixture, kept: int) -> None:
    earlier = Mixture(drawn.datasets, drawn.segments[:kept], drawn.seed, drawn.batch_size, drawn.micro_batch)
    if kept >= len(drawn.segments):
        return
    boundary = drawn.segments[kept].first_step
    assert rows_of(drawn, boundary) == rows_of(earlier, boundary)
    assert earlier.digest() in drawn.digests_at(boundary)
    assert earlier.digest() not in drawn.digests_at(boundary + 1)
    assert drawn.digest() in drawn.digests_at(boundary + 10**6)


@given(changing(), st.integers(0, 2000))
@settings(max_examples=60, deadline=None)
def test_each_segment_has_its_own_datasets_only(drawn: Mixture, step: int) -> None:
    in_force = [segment for segment in drawn.segments if segment.first_step <= step][-1]
    for row in drawn.draw_many(step * drawn.batch_size + np.arange(drawn.batch_size)).tolist():
        assert in_force.weights[drawn.datasets[row[0]].name] > 0


def test_the_first_dataset_that_joins_changes_no_earlier_digest() -> None:
    a, b = MixtureDataset("a", 5, 5, (8,)), MixtureDataset("b", 6, 5, (8,))
    before = Mixture((a,), (Segment(0, {"a": 1}),), 0, 8, 4)
    after = Mixture((a, b), (Segment(0, {"a": 1}), Segment(7, {"a": 1, "b": 2})), 0, 8, 4)
    assert after.digests_at(7) == [before.digest(), after.digest()]
    assert after.digests_at(8) == [after.digest()]


@given(st.integers(2, 30), st.integers(1, 6), st.data())
@settings(max_examples=60, deadline=None)
def test_a_quarantined_trajectory_is_replaced_and_the_others_keep_their_draws(
    trajectories: int, windows: int, data: st.DataObject
) -> None:
    barred = data.draw(st.sets(st.integers(0, trajectories - 1), min_size=1, max_size=trajectories - 1))
    drawn = with_quarantine(tuple(barred), trajectories, windows)
    clean = with_quarantine((), trajectories, windows)
    epoch, free = trajectories * windows, trajectories - len(barred)
    first = -(-20 // epoch) * epoch  # an epoch that begins after the segment has
    for start in (first, first + epoch):
        ks = start + np.arange(epoch)
        rows, before = drawn.draw_many(ks).tolist(), clean.draw_many(ks).tolist()
        for row, old in zip(rows, before, strict=True):
            assert row[1] not in barred
            assert row == old or old[1] in barred
            assert row[2] == old[2]
        counts = Counter((t, s) for _, t, s in rows)
        assert set(counts) == {(t, s) for t in range(trajectories) if t not in barred for s in range(windows)}
        # The replacements are spread as evenly as can be.
        assert max(counts.values()) <= 1 + -(-len(barred) // free)
    assert rows_of(drawn, 5) == rows_of(clean, 5)


def test_replacements_differ_from_epoch_to_epoch() -> None:
    drawn, clean = with_quarantine((4,), 50, 1), with_quarantine((), 50, 1)
    found = set()
    for epoch in range(1, 12):
        ks = epoch * 50 + np.arange(50)
        at = [row[1] for row in clean.draw_many(ks).tolist()].index(4)
        found.add(drawn.draw_many(ks)["trajectory"][at])
    assert len(found) > 5


@pytest.mark.parametrize(
    ("segments", "words"),
    [
        ((), ["do not follow"]),
        ((Segment(1, {"a": 1}),), ["do not follow", "[1]"]),
        ((Segment(0, {"a": 1}), Segment(5, {"a": 1}), Segment(4, {"a": 1})), ["do not follow", "[0, 5, 4]"]),
        ((Segment(0, {"a": 1}), Segment(5, {"b": 1})), ["no such dataset", "key: b"]),
        ((Segment(0, {"a": 1}), Segment(5, {"a": 0})), ["empty"]),
        ((Segment(0, {"a": 1}, {"aa": (1,)}),), ["no such dataset", "did you mean 'a'"]),
        ((Segment(0, {"a": 1}, {"a": (2, 3)}),), ["no such trajectories", "[3]", "below 3"]),
        ((Segment(0, {"a": 1}, {"a": (0, 1, 2)}),), ["all trajectories", "'a'", "leave the dataset out"]),
    ],
)
def test_segments_that_cannot_be_drawn_are_refused(segments: tuple[Segment, ...], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Mixture((MixtureDataset("a", 3, 2, (8,)),), segments, 0, 8, 4)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_step_is_whole_micro_batches() -> None:
    with pytest.raises(ConfigError, match="whole number of micro-batches"):
        Mixture((MixtureDataset("a", 3, 2, (8,)),), (Segment(0, {"a": 1}),), 0, 10, 4)
