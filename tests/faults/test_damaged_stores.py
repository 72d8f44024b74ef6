"""Damaged, cut, lost and unreadable files of a Zarr store: the file is named before or while it is read, and no number
is wrong: never zeros, never NaN."""

import errno
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.base.errors import DataError
from data_pipeline.stores import open_store, reading, verify
from data_pipeline.stores.protocol import read_window
from data_pipeline.stores.zarr_store import ZarrStore
from tests.datasets import make_info, make_trajectories, write_store

INFO = make_info()
TRAJECTORIES = make_trajectories(INFO, {"train": 5, "test": 2})
SHARD = "train/fields/c/1/0/0/0/0"  # trajectories 2 and 3
DATA = [SHARD, "train/static/c/1/0/0/0", "train/mask/c/1/0/0", "train/time/c/1/0", "train/parameters/c/1/0",
        "train.provenance/000001.jsonl"]  # fmt: skip
METADATA = ["zarr.json", "train/zarr.json", "train/fields/zarr.json", "train/mask/zarr.json", "manifest.json"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("sound"), INFO, TRAJECTORIES)


@pytest.fixture
def path(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound, tmp_path / "made.zarr")


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_PAUSE", 0)


def everything_is_right(store: ZarrStore, numbers: Sequence[int] = range(5)) -> None:
    """Raises what reading raises."""
    for number in numbers:
        found, truth = store.trajectory(number), TRAJECTORIES["train"][number]
        for name in ("fields", "times", "static", "mask"):
            np.testing.assert_array_equal(getattr(found, name), getattr(truth, name))
        assert (found.parameters, found.provenance) == (truth.parameters, truth.provenance)


def opened(path: Path) -> ZarrStore:
    store = open_store(path, "train")
    assert isinstance(store, ZarrStore)
    return store


def flip(file: Path, position: int, bit: int = 0) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1 << bit
    file.write_bytes(content)


# One bit


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_flipped_bit_anywhere_makes_a_wrong_number(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Chunks, their checksums, the index of a shard, metadata, provenance, manifest."""
    name = data.draw(st.sampled_from(DATA + METADATA))
    position = data.draw(st.integers(0, (sound / name).stat().st_size - 1))
    path = shutil.copytree(sound, tmp_path_factory.mktemp("flip") / "made.zarr")
    flip(path / name, position, data.draw(st.integers(0, 7)))
    with pytest.raises(DataError, match=name):
        everything_is_right(opened(path))
    assert [name in problem for problem in verify(path)] == [True]


@pytest.mark.parametrize("what", ["fields", "static", "mask"])
@pytest.mark.parametrize("where", ["chunk", "checksum"])
def test_a_flipped_bit_of_the_data_is_named_with_its_place(path: Path, what: str, where: str) -> None:
    file = path / next(name for name in DATA if f"/{what}/" in name)
    values: np.ndarray = getattr(TRAJECTORIES["train"][3], what)
    chunk = values[4] if what == "fields" else values
    offset = file.read_bytes().index(chunk.tobytes())
    flip(file, offset if where == "chunk" else offset + chunk.nbytes)
    store = opened(path)
    frame = "frame 4" if what == "fields" else f"frame {what}"
    read_window(store, 3, 0, 4)  # the frames before it are sound
    everything_is_right(store, [0, 1, 2, 4])
    with pytest.raises(DataError) as caught:
        store.trajectory(3)
    assert f"made, split train, trajectory 3, {frame}, offset {offset}" in str(caught.value)
    assert f"file: {file}" in str(caught.value)


def test_a_flipped_bit_of_a_shards_index_is_named(path: Path) -> None:
    flip(path / SHARD, -10)
    store = opened(path)
    everything_is_right(store, [0, 1, 4])
    for number in (2, 3):
        with pytest.raises(DataError, match=f"(?s)index.*{SHARD}.*trajectory {number}"):
            read_window(store, number, 0, 5)


def test_two_chunks_in_each_others_place_are_found_by_the_digest(path: Path) -> None:
    """Each has its own checksum, so only the comparison of whole files can tell."""
    file = path / SHARD
    content, size = file.read_bytes(), TRAJECTORIES["train"][0].fields[0].nbytes + 4
    file.write_bytes(content[size : 2 * size] + content[:size] + content[2 * size :])
    assert [SHARD in problem for problem in verify(path)] == [True]


# A wrong size


def delete(file: Path) -> None:
    file.unlink()


def empty(file: Path) -> None:
    file.write_bytes(b"")


def halve(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def lose_the_last_byte(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b" ")


DAMAGES = [delete, empty, halve, lose_the_last_byte]


@pytest.mark.parametrize("damage", [*DAMAGES, lengthen])
def test_a_wrong_size_is_found_before_anything_is_read(path: Path, damage: Callable[[Path], None]) -> None:
    for name in DATA + METADATA:
        content = (path / name).read_bytes()
        if name == "manifest.json" and damage in (lose_the_last_byte, lengthen):
            continue  # only white space, without which it says the same
        damage(path / name)
        with pytest.raises(DataError, match=name):
            open_store(path, "train")
        assert [name in problem for problem in verify(path)] == [True]
        if name.startswith("train"):
            assert len(open_store(path, "test")) == 2
        (path / name).write_bytes(content)
    everything_is_right(opened(path))


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_under_an_open_store_gives_an_error(path: Path, damage: Callable[[Path], None]) -> None:
    for name in DATA:
        if name.endswith(".jsonl") and damage is lose_the_last_byte:
            continue  # the line's end
        store = opened(path)
        everything_is_right(store, [0, 1])
        content = (path / name).read_bytes()
        damage(path / name)
        with pytest.raises(DataError, match=name):
            store.trajectory(3)
        everything_is_right(store, [0, 1])
        (path / name).write_bytes(content)


def test_a_file_cut_while_its_index_is_known_gives_an_error_or_the_right_numbers(path: Path) -> None:
    store = opened(path)
    read_window(store, 2, 0, 5)
    halve(path / SHARD)  # the last frames of trajectory 3, and all behind them
    read_window(store, 2, 0, 5)
    with pytest.raises(DataError, match=rf"(?s)ends too early.*{SHARD}.*trajectory 3, frame \d, offset \d+"):
        read_window(store, 3, 0, 5)


def test_a_folder_that_vanishes_is_an_error_that_names_the_file(path: Path) -> None:
    store = opened(path)
    shutil.rmtree(path)
    with pytest.raises(DataError, match=f"(?s)No such file.*{SHARD}"):
        read_window(store, 3, 0, 5)


# Reads that fail


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_read_that_stumbles_is_tried_three_times(path: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """A disk that fails at will cannot be had here, so the system call stands in for it."""
    preadv, failures = os.preadv, [errno.EIO] * times

    def stumble(*arguments: object) -> int:
        if failures:
            raise OSError(failures.pop(), "Input/output error")
        return preadv(*arguments)  # type: ignore[arg-type]

    store = opened(path)
    monkeypatch.setattr(os, "preadv", stumble)
    if times < 3:
        everything_is_right(store)
        return
    with pytest.raises(DataError, match=f"(?s)Input/output error.*{SHARD}"):
        read_window(store, 3, 0, 5)


def test_short_reads_are_put_together(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv = os.preadv

    def short(number: int, buffers: list[memoryview], offset: int) -> int:
        return preadv(number, [buffers[0][:7]], offset)

    store = opened(path)
    monkeypatch.setattr(os, "preadv", short)
    everything_is_right(store)
