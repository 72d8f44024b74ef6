"""Memory of batches: never overwritten while anything refers to it, used again afterwards; and other processes."""

import gc
import multiprocessing
import os
import signal
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.batch import Batch, Buffers
from data_pipeline.loader import Loader, mixture_of
from data_pipeline.stores import open_store
from data_pipeline.stores.protocol import TrajectoryStore
from tests.fake_store import assert_same, loader_of, take, two_stores


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
    def unset(_: Buffers, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.full(shape, float("nan"))

    monkeypatch.setattr(Buffers, "take", unset)
    stores = two_stores()
    for store in stores:
        store.delay = 0.002
    for batch in take(stores, 8):
        assert batch.window.isfinite().all()


def test_memory_that_nobody_refers_to_is_used_again() -> None:
    expected, addresses = take(two_stores(), 30, shift=True), set()
    with loader_of(two_stores(), look_ahead=2, shift=True) as loader:
        for batch, whole in zip(islice(loader, 30), expected, strict=True):
            assert_same(batch, whole)
            addresses.add(batch.window.data_ptr())
            batch.window.fill_(float("nan"))  # so that a channel left unset would show
            del batch
    assert len(addresses) <= 5


@pytest.mark.parametrize(
    "keep",
    [
        lambda batch: batch.window[1:],
        lambda batch: batch.target,
        lambda batch: batch.window.numpy()[0, 0],
        lambda batch: (batch.history * torch.ones(1, requires_grad=True)).sum(),  # autograd's own reference
        lambda batch: torch.utils.dlpack.to_dlpack(batch.window),
    ],
    ids=["slice", "view", "array", "graph", "dlpack"],
)
def test_whatever_shares_a_batchs_memory_keeps_it(keep) -> None:
    buffers = Buffers(4, pin_memory=False)

    def batch() -> Batch:
        window, row = buffers.take((2, 3, 4, 1)), torch.zeros(2)
        return Batch(window, 2, row, row, row, row, row)

    first = batch()
    address, kept = first.window.data_ptr(), keep(first)
    del first
    gc.collect()
    others = [batch() for _ in range(8)]
    assert address not in {other.window.data_ptr() for other in others}
    del kept
    gc.collect()
    assert batch().window.data_ptr() == address


def test_no_more_memory_is_kept_than_asked_for() -> None:
    buffers = Buffers(2, pin_memory=False)
    held = [buffers.take((4, 4)) for _ in range(10)]
    addresses = {tensor.data_ptr() for tensor in held}
    del held
    assert len(buffers._free[(4, 4)]) == 2
    assert {buffers.take((4, 4)).data_ptr() for _ in range(2)} <= addresses


def test_a_consumer_may_write_into_its_batch() -> None:
    expected = take(two_stores(), 12)
    with loader_of(two_stores()) as loader:
        for batch, whole in zip(islice(loader, 12), expected, strict=True):
            assert_same(batch, whole)
            batch.history.fill_(float("nan"))
            batch.channel_mask.fill_(False)
            batch.dt.zero_()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinned_batches_survive_copies_that_do_not_block() -> None:
    expected = take(two_stores(), 40, shift=True)
    with loader_of(two_stores(), shift=True, pin_memory=True) as loader:
        moved = [batch.to("cuda", non_blocking=True) for batch in islice(loader, 40)]
    for batch, whole in zip(moved, expected, strict=True):
        assert_same(batch.to("cpu"), whole)


GOLDEN = Path(__file__).resolve().parents[1] / "data" / "stores_v1"
FORMATS = ["burgers_2d.shards", "burgers_2d.zarr"]


def loader_on(store: TrajectoryStore) -> Loader:
    frames = store.info.frames // 2
    return Loader(
        [store], mixture_of([store], [1], frames - 1, 1, 0, batch_size=2, micro_batch=2),
        slots=[range(len(store.info.channels))], num_channels=len(store.info.channels), history=frames - 1, target=1,
        rank=0, world_size=1, first_step=0, shift=False, seed=0,
    )  # fmt: skip


def sums(loader: Loader) -> list[float]:
    return [float(batch.window.double().sum()) for batch in islice(loader, 4)]


def spawned(path: Path, answers: "multiprocessing.Queue[list[float]]") -> None:
    with loader_on(open_store(path, "train")) as loader:
        answers.put(sums(loader))


@pytest.mark.parametrize("name", FORMATS)
def test_a_spawned_process_reads_the_same(name: str) -> None:
    with loader_on(open_store(GOLDEN / name, "train")) as loader:
        expected = sums(loader)
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    child = context.Process(target=spawned, args=(GOLDEN / name, answers))
    child.start()
    assert answers.get(timeout=120) == expected
    child.join(120)
    assert child.exitcode == 0


@pytest.mark.parametrize("name", FORMATS)
def test_a_forked_process_goes_on_where_its_parent_was(name: str) -> None:
    """The parent has read, and is reading ahead, when it forks: neither loses or repeats a batch, neither waits."""
    with loader_on(open_store(GOLDEN / name, "train")) as loader:
        expected = sums(loader) + sums(loader)
    store = open_store(GOLDEN / name, "train")
    with loader_on(store) as loader:
        assert sums(loader) == expected[:4]
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            signal.alarm(60)  # a child that hangs must not outlive the test
            with loader_on(store) as fresh:
                found = [*sums(loader), *sums(fresh)]
            loader.close()
            os.write(writer, np.array(found).tobytes())
            os._exit(0)
        os.close(writer)
        assert sums(loader) == expected[4:]
        with os.fdopen(reader, "rb") as pipe:
            answer = np.frombuffer(pipe.read()).tolist()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert answer == [*expected[4:], *expected[:4]]
