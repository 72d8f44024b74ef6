"""The stream of samples through stops and restarts, and over datasets of every size: nothing lost or doubled."""

import shutil
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.base.errors import DataError
from data_pipeline.batch import Batch
from data_pipeline.loader import Loader, mixture_of
from data_pipeline.mixture import Mixture
from data_pipeline.stores import open_store
from data_pipeline.stores.protocol import TrajectoryStore, read_window
from tests.fake_store import HISTORY, TARGET, FakeStore, loader_of, mixture_for, two_stores

WINDOW = HISTORY + TARGET
BATCH, MICRO = 12, 2
GOLDEN = Path(__file__).resolve().parents[1] / "data" / "stores_v1" / "burgers_2d.shards"


def steps_of(first: int, last: int, rank: int, ranks: int) -> list[tuple[list[int], float]]:
    """Sample numbers, and the sum of all fields, of each micro-batch that a rank reads in the steps first .. last."""
    stores = two_stores()
    count = (last - first) * (BATCH // MICRO // ranks)
    with loader_of(stores, BATCH, MICRO, first_step=first, rank=rank, world_size=ranks) as loader:
        return [(batch.position.tolist(), float(batch.window.double().sum())) for batch in islice(loader, count)]


def windows(batches: list[Batch], drawn: Mixture) -> list[tuple[str, int, int]]:
    ks = [k for batch in batches for k in batch.position.tolist()]
    return [(drawn.datasets[d].name, trajectory, start) for d, trajectory, start in map(drawn.draw, ks)]


def epoch_edge() -> int:
    """The step in which `burgers` ends its first epoch."""
    drawn = mixture_for(two_stores(), BATCH, MICRO)
    return next(step for step in range(1, 100) if drawn.draws_before(step)["burgers"] >= drawn.datasets[0].windows)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize(
    "stops",
    [[0], [3], [5, 5], [1, 2, 9], [epoch_edge() - 1, epoch_edge(), epoch_edge() + 1], [12]],
    ids=[
        "before the first step",
        "amid an epoch",
        "twice in a row",
        "again and again",
        "at an epoch's edge",
        "at the end",
    ],
)
def test_a_stopped_stream_goes_on_with_the_very_next_sample(stops: list[int], ranks: int) -> None:
    last = 12
    for rank in range(ranks):
        whole = steps_of(0, last, rank, ranks)
        edges = [0, *stops, last]
        parts = [steps_of(first, until, rank, ranks) for first, until in pairwise(edges)]
        assert [batch for part in parts for batch in part] == whole
        assert len(whole) == last * (BATCH // MICRO // ranks)


def test_what_was_read_ahead_before_a_stop_is_read_again_after_it() -> None:
    stores = two_stores()
    with loader_of(stores, BATCH, MICRO, look_ahead=8) as loader:
        first = [batch.window.clone() for batch in islice(loader, 6)]
        expected = [batch.window.clone() for batch in islice(loader, 6)]
    with loader_of(stores, BATCH, MICRO, first_step=1) as loader:
        resumed = [batch.window.clone() for batch in islice(loader, 6)]
    assert all(a.equal(b) for a, b in zip(expected, resumed, strict=True))
    assert not any(a.equal(b) for a, b in zip(first, resumed, strict=True))


def golden_loader(store: TrajectoryStore, **quarantine: tuple[int, ...]) -> Loader:
    frames, channels = store.info.frames // 2, len(store.info.channels)
    return Loader(
        [store], mixture_of([store], [1], frames - 1, 1, 0, batch_size=2, micro_batch=2, quarantine=quarantine),
        slots=[range(channels)], num_channels=channels, history=frames - 1, target=1, rank=0, world_size=1,
        first_step=0, shift=False, seed=0,
    )  # fmt: skip


def test_a_damaged_frame_stops_the_stream_until_its_trajectory_is_in_quarantine(tmp_path: Path) -> None:
    path = shutil.copytree(GOLDEN, tmp_path / GOLDEN.name)
    store = open_store(path, "train")
    first = store.info.name
    trajectory, frame = len(store) - 1, store.info.frames // 2
    window = read_window(store, trajectory, frame, 1).tobytes()
    (shard,) = [file for file in path.glob("train*.tar") if window in file.read_bytes()]
    content = bytearray(shard.read_bytes())
    content[content.index(window) + 5] ^= 1
    shard.write_bytes(content)

    epoch = len(store) * (store.info.frames - store.info.frames // 2 + 1)
    with golden_loader(store) as loader, pytest.raises(DataError) as caught:
        list(islice(loader, epoch))
    for words in (first, shard.name, f"trajectory {trajectory}", f"frame {frame}", "offset", "sample "):
        assert words in str(caught.value), str(caught.value)
    with golden_loader(store, **{first: (trajectory,)}) as loader:
        for batch in islice(loader, epoch):
            assert batch.window.isfinite().all()


SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17]


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@given(st.lists(st.sampled_from(SIZES), min_size=1, max_size=3), st.integers(0, 3))
@settings(max_examples=8, deadline=None)
def test_uneven_datasets_feed_every_rank_alike(ranks: int, sizes: list[int], spare: int) -> None:
    """Datasets of one window, of fewer than there are ranks, and of sizes about the powers of two."""
    stores = [
        FakeStore(f"d{i}", ("density",), trajectories=size, frames=WINDOW + spare, space=[(4,), (3, 2)][i % 2],
                  boundaries=("wall",) * (1 + i % 2))
        for i, size in enumerate(sizes)
    ]  # fmt: skip
    drawn, read = mixture_for(stores, 16, 2), []
    for rank in range(ranks):
        with loader_of(stores, 16, 2, rank=rank, world_size=ranks) as loader:
            batches = list(islice(loader, 6 * 8 // ranks))  # six steps: each rank has as many micro-batches
        read += batches
        for batch in batches:
            assert batch.window.isfinite().all()
    assert sorted(k for batch in read for k in batch.position.tolist()) == list(range(6 * 16))
    seen = Counter(windows(read, drawn))
    for number, dataset in enumerate(drawn.datasets):
        counts = [n for (name, *_), n in seen.items() if name == dataset.name]
        epochs, rest = divmod(drawn.draws_before(6)[f"d{number}"], dataset.windows)
        assert sorted(counts) == [epochs] * (dataset.windows - rest) * (epochs > 0) + [epochs + 1] * rest
