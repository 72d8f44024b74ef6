"""Micro-batches: the same samples for every number of ranks, in the right slots, and never overwritten."""

import threading
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.base.errors import ConfigError, DataError
from data_pipeline.loader import Batch, Loader, check_division, mixture_of
from data_pipeline.mixture import positional_generator
from data_pipeline.stores.protocol import Statistics
from data_pipeline.trajectory import Boundary, DatasetInfo, FloatArray

HISTORY, TARGET = 3, 2
CHANNELS = ("density", "velocity_x", "velocity_y", "height")


class FakeStore:
    """A store in memory whose values tell dataset, trajectory, frame, grid point and channel."""

    path, split, digest = Path("/nowhere"), "train", "0"
    statistics = Statistics(mean=(), std=(), rms=(), min=(), max=(), change_rms=())

    def __init__(
        self,
        name: str,
        channels: tuple[str, ...],
        *,
        trajectories: int = 4,
        frames: int = 9,
        space: tuple[int, ...] = (6, 5),
        boundaries: tuple[Boundary, ...] = ("periodic", "wall"),
        translation_invariant: bool = True,
        dt: float = 0.5,
        parameters: tuple[str, ...] = (),
    ) -> None:
        axes = ("x", "y", "z")[: len(space)]
        self.info = DatasetInfo(
            name=name, channels=channels, space=space, frames=frames, dt=dt, axes=axes,
            extent=((0.0, 1.0),) * len(space), boundaries=boundaries,
            translation_invariant=translation_invariant, parameters=parameters,
        )  # fmt: skip
        shape = (trajectories, frames, *space, len(channels))
        count = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        self.fields = count + 100_000 * (1 + sum(map(ord, name)) % 50)
        self.reads = 0
        self.damaged: tuple[int, int] | None = None
        self.delay = 0.0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.fields)

    def read_into(self, trajectory: int, start: int, out: FloatArray) -> None:
        with self._lock:
            self.reads += 1
        if self.damaged == (trajectory, start):
            raise DataError("damaged frame", file="shard-7", found=f"trajectory {trajectory}, frame {start}")
        time.sleep(self.delay)
        window = self.fields[trajectory, start : start + len(out)]
        assert window.shape == out.shape, "read past the end of the trajectory"
        out[...] = window

    def parameters(self, trajectory: int) -> dict[str, float]:
        return {name: trajectory + 0.5 for name in self.info.parameters}

    def close(self) -> None:
        pass


def two_stores(**changes: Any) -> list[FakeStore]:
    return [
        FakeStore("burgers", ("velocity_x",), trajectories=5, dt=0.25, **changes),
        FakeStore("flow", ("velocity_y", "density", "velocity_x"), trajectories=7, frames=12, **changes),
    ]


def loader_of(stores: Sequence[FakeStore], **changes: Any) -> Loader:
    mixture = mixture_of(stores, [1, 2, 3][: len(stores)], HISTORY, TARGET, 0)
    settings: dict[str, Any] = {
        "slots": [[CHANNELS.index(name) for name in store.info.channels] for store in stores],
        "num_channels": len(CHANNELS), "history": HISTORY, "target": TARGET, "batch_size": 48, "micro_batch": 2,
        "rank": 0, "world_size": 1, "first_step": 0, "shift": False, "seed": 0,
    }  # fmt: skip
    return Loader(stores, mixture, **(settings | changes))


def take(stores: Sequence[FakeStore], count: int, **changes: Any) -> list[Batch]:
    with loader_of(stores, **changes) as loader:
        return list(islice(loader, count))


def assert_same(a: Batch, b: Batch) -> None:
    for name, value in vars(a).items():
        assert torch.equal(value, getattr(b, name)), name


def test_a_batch_has_the_promised_shapes_and_types() -> None:
    (batch,) = take(two_stores(), 1, micro_batch=4)
    assert batch.history.shape == (4, 6, 5, HISTORY, 4)
    assert batch.target.shape == (4, 6, 5, TARGET, 4)
    assert batch.channel_mask.shape == (4, 4)
    assert batch.dataset.shape == batch.dt.shape == batch.position.shape == (4,)
    assert batch.parameters.shape == (4, 0)
    assert [v.dtype for v in vars(batch).values()] == [
        torch.float32, torch.float32, torch.bool, torch.int64, torch.float32, torch.float32, torch.int64
    ]  # fmt: skip


@pytest.mark.parametrize("space", [(8,), (6, 5), (3, 4, 2)])
def test_samples_are_the_windows_of_the_mixture_with_channels_by_name(space: tuple[int, ...]) -> None:
    stores = two_stores(space=space, boundaries=("periodic",) * len(space))
    mixture = mixture_of(stores, [1, 2], HISTORY, TARGET, 0)
    for batch in take(stores, 12):
        draws = mixture.draw_many(batch.position.numpy())
        for slot, draw in enumerate(draws):
            store = stores[draw["dataset"]]
            window = store.fields[draw["trajectory"], draw["start"] : draw["start"] + HISTORY + TARGET]
            joined = torch.cat([batch.history[slot], batch.target[slot]], dim=-2).numpy()
            for c, name in enumerate(CHANNELS):
                has = name in store.info.channels
                expected = window[..., store.info.channels.index(name)] if has else np.zeros(window.shape[:-1])
                np.testing.assert_array_equal(np.moveaxis(joined[..., c], -1, 0), expected, err_msg=name)
                assert bool(batch.channel_mask[slot, c]) == has
            assert batch.dataset[slot] == draw["dataset"]
            assert batch.dt[slot] == store.info.dt


def test_parameters_are_those_of_the_trajectory_in_the_order_asked_for() -> None:
    stores = [FakeStore("a", ("density",), parameters=("drag", "viscosity")), FakeStore("b", ("density",))]
    mixture = mixture_of(stores, [1, 2], HISTORY, TARGET, 0)
    known = []
    for batch in take(stores, 8, parameters=("viscosity", "absent", "drag")):
        assert batch.parameters.dtype == torch.float32
        for row, draw in zip(batch.parameters, mixture.draw_many(batch.position.numpy()), strict=True):
            value = draw["trajectory"] + 0.5 if draw["dataset"] == 0 else float("nan")
            expected = torch.tensor([value, float("nan"), value], dtype=torch.float32)
            torch.testing.assert_close(row, expected, rtol=0, atol=0, equal_nan=True)
            known.append(bool(row[0].isfinite()))
    assert True in known
    assert False in known


@pytest.mark.parametrize("ranks", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("shift", [False, True])
def test_every_number_of_ranks_reads_the_same_steps(ranks: int, shift: bool) -> None:
    """24 micro-batches a step: dealt out to any number of ranks, they are those of one rank, bit for bit."""
    stores = two_stores()
    alone = take(stores, 48, shift=shift, first_step=3)
    for rank in range(ranks):
        mine = take(stores, 48 // ranks, shift=shift, first_step=3, rank=rank, world_size=ranks)
        for batch, expected in zip(mine, alone[rank::ranks], strict=True):
            assert_same(batch, expected)


def test_batches_come_in_order_of_step_and_micro_batch() -> None:
    batches = take(two_stores(), 10, batch_size=12, first_step=100, rank=1, world_size=2)
    firsts = [int(batch.position[0]) for batch in batches]
    assert firsts == [1200 + 12 * step + 2 * g for step in range(4) for g in (1, 3, 5)][:10]
    assert all(batch.position.diff().eq(1).all() for batch in batches)


def test_starting_at_a_later_step_gives_the_rest_of_the_stream() -> None:
    whole = take(two_stores(), 24, batch_size=12, shift=True)
    resumed = take(two_stores(), 12, batch_size=12, shift=True, first_step=2)
    for batch, expected in zip(resumed, whole[12:], strict=True):
        assert_same(batch, expected)


@pytest.mark.parametrize(("threads", "look_ahead"), [(1, 1), (4, 1), (3, 6)])
def test_threads_and_look_ahead_do_not_change_the_stream(threads: int, look_ahead: int) -> None:
    usual = take(two_stores(), 20, shift=True)
    other = take(two_stores(), 20, shift=True, threads=threads, look_ahead=look_ahead)
    for batch, expected in zip(other, usual, strict=True):
        assert_same(batch, expected)


def test_shift_rolls_periodic_axes_only_and_history_and_target_alike() -> None:
    stores = two_stores()
    seen = set()
    for plain, shifted in zip(take(stores, 20), take(stores, 20, shift=True, seed=5), strict=True):
        for slot, position in enumerate(plain.position.tolist()):
            offset = int(positional_generator(5, position, "shift").integers(stores[0].info.space)[0])
            seen.add(offset)
            for whole, rolled in ((plain.history, shifted.history), (plain.target, shifted.target)):
                assert torch.equal(rolled[slot], whole[slot].roll(offset, dims=0))
    assert seen == set(range(6))


def test_shift_leaves_a_dataset_alone_whose_equation_depends_on_place() -> None:
    stores = two_stores(translation_invariant=False)
    for plain, shifted in zip(take(stores, 5), take(stores, 5, shift=True), strict=True):
        assert_same(plain, shifted)


def test_shift_leaves_a_dataset_without_periodic_axes_alone() -> None:
    stores = two_stores(boundaries=("wall", "open"))
    for plain, shifted in zip(take(stores, 5), take(stores, 5, shift=True), strict=True):
        assert_same(plain, shifted)


def test_a_batch_in_use_is_never_overwritten() -> None:
    stores = two_stores()
    with loader_of(stores, look_ahead=2, shift=True) as loader:
        held, copies = [], []
        for batch in islice(loader, 40):
            held.append(batch)
            copies.append((batch.history.clone(), batch.target.clone()))
        for batch, (history, target) in zip(held, copies, strict=True):
            assert torch.equal(batch.history, history)
            assert torch.equal(batch.target, target)
    assert len({batch.history.data_ptr() for batch in held}) == 40


def test_a_batch_is_complete_when_it_arrives_and_nothing_in_it_is_left_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    def unset(*shape: int, pin_memory: bool) -> torch.Tensor:
        return torch.full(shape, float("nan"))

    monkeypatch.setattr(torch, "empty", unset)
    stores = two_stores()
    for store in stores:
        store.delay = 0.002
    for batch in take(stores, 8):
        assert batch.history.isfinite().all()
        assert batch.target.isfinite().all()


def test_a_consumer_may_write_into_its_batch() -> None:
    expected = take(two_stores(), 12)
    with loader_of(two_stores()) as loader:
        for batch, whole in zip(islice(loader, 12), expected, strict=True):
            assert_same(batch, whole)
            batch.history.fill_(float("nan"))
            batch.channel_mask.fill_(False)
            batch.dt.zero_()


def test_reading_ahead_is_bounded() -> None:
    stores = two_stores()
    with loader_of(stores, look_ahead=3) as loader:
        for taken in range(1, 6):
            next(loader)
            assert sum(store.reads for store in stores) <= (taken + 3) * 2
    assert sum(store.reads for store in stores) <= (5 + 3) * 2


def test_reading_ahead_goes_on_while_the_consumer_works() -> None:
    (store,) = stores = [FakeStore("flow", ("density",))]
    with loader_of(stores, look_ahead=3) as loader:
        next(loader)
        ready = threading.Event()
        # Waits for a state, not for a time: a loader that reads nothing ahead would run into the limit.
        for _ in range(1000):
            if store.reads == (1 + 3) * 2:
                break
            ready.wait(0.01)
        assert store.reads == (1 + 3) * 2


def test_a_readers_error_arrives_in_the_consumer_and_the_sample_is_not_skipped() -> None:
    stores = two_stores()
    mixture = mixture_of(stores, [1, 2], HISTORY, TARGET, 0)
    bad = mixture.draw(7)
    stores[bad.dataset].damaged = (bad.trajectory, bad.start)
    clean = [k for k in range(7) if mixture.draw(k) != bad]
    with loader_of(stores) as loader:
        assert clean == list(range(7)), "the test needs a window that is drawn at position 7 for the first time"
        assert [int(batch.position[0]) for batch in islice(loader, 3)] == [0, 2, 4]
        for _ in range(3):
            with pytest.raises(DataError, match=f"trajectory {bad.trajectory}, frame {bad.start}"):
                next(loader)


def test_closing_ends_the_threads() -> None:
    def readers() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t.name.startswith("pdepot-loader")]

    with loader_of(two_stores(), threads=3) as loader:
        next(loader)
        assert len(readers()) > 0
    assert readers() == []
    loader.close()
    with pytest.raises(RuntimeError):
        next(loader)


def test_a_batch_moves_as_a_whole() -> None:
    (batch,) = take(two_stores(), 1)
    moved = batch.to("meta")
    assert all(value.device.type == "meta" for value in vars(moved).values())
    assert vars(moved).keys() == vars(batch).keys()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinned_batches_survive_copies_that_do_not_block() -> None:
    expected = take(two_stores(), 40, shift=True)
    with loader_of(two_stores(), shift=True, pin_memory=True) as loader:
        moved = [batch.to("cuda", non_blocking=True) for batch in islice(loader, 40)]
    for batch, whole in zip(moved, expected, strict=True):
        assert_same(batch.to("cpu"), whole)


@pytest.mark.parametrize(
    ("batch_size", "micro_batch", "ranks", "words"),
    [
        (100, 4, 8, ["batch_size 100", "micro_batch 4", "ranks 8", "96 or 128", "ranks 5 or 25"]),
        (48, 5, 4, ["batch_size 40 or 60", "micro_batch 4 or 6"]),
        (10, 4, 8, ["batch_size 32"]),
        (6, 4, 3, ["batch_size 12", "micro_batch 2"]),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(
    batch_size: int, micro_batch: int, ranks: int, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        loader_of(two_stores(), batch_size=batch_size, micro_batch=micro_batch, world_size=ranks)
    assert "a batch that does not divide" in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("ranks", range(1, 9))
def test_the_values_that_the_refusal_names_do_work(ranks: int) -> None:
    for batch_size in range(1, 60):
        for micro_batch in range(1, 9):
            try:
                check_division(batch_size, micro_batch, ranks)
            except ConfigError as error:
                given = {"batch_size": batch_size, "micro_batch": micro_batch, "ranks": ranks}
                for remedy in str(error).split("remedy: ")[1].split("; or "):
                    key, *values = remedy.replace(" or ", " ").split()
                    for value in values:
                        check_division(**(given | {key: int(value)}))
            else:
                assert batch_size % (micro_batch * ranks) == 0


@pytest.mark.parametrize("key", ["batch_size", "micro_batch", "history", "target", "threads", "look_ahead"])
def test_a_number_below_one_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        loader_of(two_stores(), **{key: 0})


def test_trajectories_shorter_than_the_window_are_refused() -> None:
    stores = [*two_stores(), FakeStore("short", ("density",), frames=HISTORY + TARGET - 1)]
    with pytest.raises(ConfigError) as caught:
        mixture_of(stores, [1, 1, 1], HISTORY, TARGET, 0)
    assert all(word in str(caught.value) for word in ("'short'", "4 frames", "at least 5")), str(caught.value)
    mixture_of([FakeStore("just", ("density",), frames=HISTORY + TARGET)], [1], HISTORY, TARGET, 0)


def test_different_grids_are_refused() -> None:
    stores = [*two_stores(), FakeStore("fine", ("density",), space=(12, 10))]
    with pytest.raises(ConfigError) as caught:
        mixture_of(stores, [1, 1, 1], HISTORY, TARGET, 0)
    assert all(word in str(caught.value) for word in ("burgers 6x5", "fine 12x10", "remedy")), str(caught.value)


def test_a_mixture_of_other_stores_is_refused() -> None:
    stores = two_stores()
    with pytest.raises(ConfigError, match="other stores"):
        loader_of(stores, target=TARGET + 1)
    swapped = mixture_of(stores[::-1], [1, 2], HISTORY, TARGET, 0)
    with pytest.raises(ConfigError, match="other stores"):
        Loader(
            stores, swapped, slots=[[0], [1, 2, 3]], num_channels=4, history=HISTORY, target=TARGET, batch_size=4,
            micro_batch=2, rank=0, world_size=1, first_step=0, shift=False, seed=0,
        )  # fmt: skip
