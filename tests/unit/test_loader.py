"""Micro-batches: the same samples for every number of ranks, in the right slots, and never overwritten."""

import threading
from itertools import islice

import numpy as np
import pytest
import torch

from data_pipeline.base.errors import ConfigError, DataError
from data_pipeline.loader import Loader, check_division
from data_pipeline.mixture import Mixture, positional_generator
from data_pipeline.segments import Segment
from tests.fake_store import (
    CHANNELS,
    HISTORY,
    TARGET,
    FakeStore,
    assert_same,
    loader_of,
    mixture_for,
    take,
    two_stores,
)


def test_a_batch_has_the_promised_shapes_and_types() -> None:
    (batch,) = take(two_stores(), 1, micro_batch=4)
    assert batch.history.shape == (4, 6, 5, HISTORY, 4)
    assert batch.target.shape == (4, 6, 5, TARGET, 4)
    assert batch.channel_mask.shape == (4, 4)
    assert batch.dataset.shape == batch.dt.shape == batch.position.shape == (4,)
    assert batch.parameters.shape == (4, 0)
    tensors = [v.dtype for v in vars(batch).values() if isinstance(v, torch.Tensor)]
    assert tensors == [torch.float32, torch.bool, torch.int64, torch.float32, torch.float32, torch.int64]
    assert batch.window.is_contiguous()
    assert batch.history.data_ptr() == batch.window.data_ptr()


@pytest.mark.parametrize("space", [(8,), (6, 5), (3, 4, 2)])
def test_samples_are_the_windows_of_the_mixture_with_channels_by_name(space: tuple[int, ...]) -> None:
    stores = two_stores(space=space, boundaries=("periodic",) * len(space))
    mixture = mixture_for(stores)
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
    mixture = mixture_for(stores)
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
    stores = [*two_stores(), FakeStore("full", CHANNELS)]  # the last one fills all slots, and is read in place
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
    mixture = mixture_for(stores)
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
    left = {name for name, value in vars(moved).items() if torch.is_tensor(value) and value.device.type != "meta"}
    assert left == {"position"}  # which makes seeds: reading it back from a GPU would wait for all that this has to do
    assert vars(moved).keys() == vars(batch).keys()
    assert moved.history.shape == batch.history.shape


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
        check_division(batch_size, micro_batch, ranks)
    assert "a batch that does not divide" in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_loader_on_ranks_that_do_not_share_a_step_evenly_is_refused() -> None:
    with pytest.raises(ConfigError, match="a batch that does not divide"):
        loader_of(two_stores(), batch_size=100, micro_batch=4, world_size=8)


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
        mixture_for(stores)
    assert all(word in str(caught.value) for word in ("'short'", "4 frames", "at least 5")), str(caught.value)
    mixture_for([FakeStore("just", ("density",), frames=HISTORY + TARGET)])


def test_a_mixture_of_other_stores_is_refused() -> None:
    stores = two_stores()
    with pytest.raises(ConfigError, match="other stores"):
        loader_of(stores, target=TARGET + 1)
    swapped = mixture_for(stores[::-1])
    with pytest.raises(ConfigError, match="other stores"):
        Loader(
            stores, swapped, slots=[[0], [1, 2, 3]], num_channels=4, history=HISTORY, target=TARGET,
            rank=0, world_size=1, first_step=0, shift=False, seed=0,
        )  # fmt: skip


def stores_of_all_dimensions() -> list[FakeStore]:
    one = FakeStore("line", ("density",), space=(7,), boundaries=("periodic",), masked=True)
    two = FakeStore("flow", CHANNELS)
    three = FakeStore("box", ("height", "density"), space=(3, 4, 2), boundaries=("periodic",) * 3)
    return [one, two, three]


def test_one_two_and_three_dimensions_in_one_stream_each_batch_of_one_shape() -> None:
    stores = stores_of_all_dimensions()
    seen = set()
    drawn = mixture_for(stores)
    for batch in take(stores, 60):
        space = batch.window.shape[2:-1]
        seen.add(tuple(space))
        draws = drawn.draw_many(batch.position.numpy())
        assert {stores[d].info.space for d in draws["dataset"]} == {tuple(space)}
        assert batch.point_mask is not None
        for row, draw in enumerate(draws):
            store = stores[draw["dataset"]]
            slots = [CHANNELS.index(name) for name in store.info.channels]
            window = store.fields[draw["trajectory"], draw["start"] : draw["start"] + HISTORY + TARGET]
            np.testing.assert_array_equal(batch.window[row, ..., slots].numpy(), window)
            mask = store.mask(int(draw["trajectory"]))
            expected = np.ones(space, bool) if mask is None else mask
            np.testing.assert_array_equal(batch.point_mask[row].numpy(), expected)
    assert seen == {(7,), (6, 5), (3, 4, 2)}


def test_masks_shift_with_their_fields() -> None:
    stores = [FakeStore("line", ("density",), space=(7,), boundaries=("periodic",), masked=True)]
    for plain, shifted in zip(take(stores, 6), take(stores, 6, shift=True, seed=5), strict=True):
        assert plain.point_mask is not None
        assert shifted.point_mask is not None
        for row, position in enumerate(plain.position.tolist()):
            offset = int(positional_generator(5, position, "shift").integers((7,))[0])
            assert torch.equal(shifted.point_mask[row], plain.point_mask[row].roll(offset))
            assert torch.equal(shifted.window[row], plain.window[row].roll(offset, dims=1))


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_ranks_share_out_shapes_without_waiting_for_each_other(ranks: int) -> None:
    stores = stores_of_all_dimensions()
    alone = take(stores, 48, shift=True)
    for rank in range(ranks):
        mine = take(stores, 48 // ranks, shift=True, rank=rank, world_size=ranks)
        for batch, expected in zip(mine, alone[rank::ranks], strict=True):
            assert_same(batch, expected)


def test_a_dataset_that_is_not_drawn_any_more_needs_no_store() -> None:
    stores = two_stores()
    (first, second) = mixture_for(stores).datasets
    drawn = Mixture((first, second), (Segment(0, {"burgers": 1}), Segment(1, {"flow": 1})), 0, 48, 2)
    others = {"num_channels": 4, "history": HISTORY, "target": TARGET, "rank": 0, "world_size": 1, "shift": False}
    with Loader([None, stores[1]], drawn, slots=[[1], [2, 0, 1]], seed=0, first_step=1, **others) as loader:
        for batch in islice(loader, 10):
            assert batch.dataset.eq(1).all()


def test_an_error_names_the_sample_and_says_how_to_leave_its_trajectory_out() -> None:
    stores = two_stores()
    bad = mixture_for(stores).draw(0)
    name = stores[bad.dataset].info.name
    stores[bad.dataset].damaged = (bad.trajectory, bad.start)
    with loader_of(stores) as loader, pytest.raises(DataError) as caught:
        next(loader)
    message = str(caught.value)
    for words in (
        "file: shard-7", f"sample 0: frames {bad.start}..{bad.start + 5} of trajectory {bad.trajectory} of {name}",
        f"quarantine:\n        - {{dataset: {name}, trajectories: [{bad.trajectory}], reason: damaged}}",
        "--new-segment",
    ):  # fmt: skip
        assert words in message, message
    # What the message asks for does help.
    mixture = mixture_for(stores, quarantine={name: (bad.trajectory,)})
    slots = [[CHANNELS.index(channel) for channel in store.info.channels] for store in stores]
    others = {"num_channels": 4, "history": HISTORY, "target": TARGET, "rank": 0, "world_size": 1, "shift": False}
    with Loader(stores, mixture, slots=slots, seed=0, first_step=0, **others) as loader:
        for batch in islice(loader, 200):
            drawn = mixture.draw_many(batch.position.numpy())
            assert not ((drawn["dataset"] == bad.dataset) & (drawn["trajectory"] == bad.trajectory)).any()
