"""Damaged, cut, lost and unreadable shards: the file is named before or while it is read, and no number is wrong."""

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
from data_pipeline.base.files import digest, read_json, write_json
from data_pipeline.stores import open_store, reading, verify
from data_pipeline.stores.manifest import MANIFEST
from data_pipeline.stores.protocol import TrajectoryStore, read_window
from data_pipeline.trajectory import Trajectory
from tests.datasets import make_info, make_trajectories, write_shards

INFO = make_info()
TRAJECTORIES = make_trajectories(INFO, {"train": 5, "test": 2})
TAR, INDEX = "train-000001.tar", "train.index.npy"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("sound") / "made.shards", INFO, TRAJECTORIES)


@pytest.fixture
def path(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound, tmp_path / "made.shards")


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_PAUSE", 0)


def everything_is_right(store: TrajectoryStore, truth: Sequence[Trajectory]) -> None:
    """Raises what reading raises."""
    for number, one in enumerate(truth):
        np.testing.assert_array_equal(read_window(store, number, 0, INFO.frames), one.fields)
        np.testing.assert_array_equal(store.static(number), one.static)  # type: ignore[arg-type]
        np.testing.assert_array_equal(store.mask(number), one.mask)  # type: ignore[arg-type]
        assert store.parameters(number) == dict(one.parameters)


def flip(file: Path, position: int, bit: int = 0) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1 << bit
    file.write_bytes(content)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_flipped_bit_anywhere_makes_a_wrong_number(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from([TAR, INDEX, MANIFEST]))
    position = data.draw(st.integers(0, (sound / name).stat().st_size - 1))
    path = shutil.copytree(sound, tmp_path_factory.mktemp("flip") / "made.shards")
    flip(path / name, position, data.draw(st.integers(0, 7)))
    try:
        everything_is_right(open_store(path, "train"), TRAJECTORIES["train"])
    except DataError as error:
        assert name in str(error)  # noqa: PT017
    assert [name in problem for problem in verify(path)] == [True]


@pytest.mark.parametrize("what", ["fields", "static", "mask"])
def test_a_flipped_bit_of_the_data_is_named_with_its_place(path: Path, what: str) -> None:
    values: np.ndarray = getattr(TRAJECTORIES["train"][3], what)
    offset = (path / TAR).read_bytes().index(values.tobytes())
    flip(path / TAR, offset + values[:-1].nbytes)
    store = open_store(path, "train")
    where = "frame 4" if what == "fields" else what
    # Of the fields, the frames before are sound.
    first = offset + (values[:-1].nbytes if what == "fields" else 0)
    message = rf"(?s)checksum.*{TAR}.*made, split train, trajectory 3.*{where}.*offset {first}"
    with pytest.raises(DataError, match=message):
        everything_is_right(store, TRAJECTORIES["train"])
    np.testing.assert_array_equal(read_window(store, 3, 0, 4), TRAJECTORIES["train"][3].fields[:4])


def test_a_flipped_bit_of_the_index_is_named_with_its_trajectory(path: Path) -> None:
    flip(path / INDEX, (path / INDEX).stat().st_size - 20)
    store = open_store(path, "train")
    np.testing.assert_array_equal(read_window(store, 3, 0, 1), TRAJECTORIES["train"][3].fields[:1])
    with pytest.raises(DataError, match=rf"(?s)damaged index.*{INDEX}.*made, trajectory 4"):
        read_window(store, 4, 0, 1)


def cut(size: Callable[[int], int]) -> Callable[[Path], None]:
    return lambda file: os.truncate(file, size(file.stat().st_size))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "deleted": Path.unlink,
    "empty": cut(lambda size: 0),
    "one byte short": cut(lambda size: size - 1),
    "cut in a record": cut(lambda size: size // 3),
    "cut at a record's boundary": cut(lambda size: size // 2048 * 512),
    "without the marker of its end": cut(lambda size: max(size - 1024, 0)),
    "one byte long": cut(lambda size: size + 1),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", [TAR, INDEX])
def test_a_wrong_size_is_found_before_anything_is_read(path: Path, name: str, damage: str) -> None:
    DAMAGE[damage](path / name)
    with pytest.raises(DataError, match=name):
        open_store(path, "train")
    assert [name in problem for problem in verify(path)] == [True]
    everything_is_right(open_store(path, "test"), TRAJECTORIES["test"])


@pytest.mark.usefixtures("no_pause")
@pytest.mark.parametrize("name", [TAR, INDEX])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_under_an_open_store_gives_an_error_or_the_right_numbers(path: Path, name: str, damage: str) -> None:
    store = open_store(path, "train")
    DAMAGE[damage](path / name)
    if damage == "one byte long" or (name == TAR and damage in ("one byte short", "without the marker of its end")):
        return everything_is_right(store, TRAJECTORIES["train"])
    with pytest.raises(DataError, match=name):
        everything_is_right(store, TRAJECTORIES["train"])
    return None


@pytest.mark.usefixtures("no_pause")
def test_a_folder_that_vanishes_is_an_error_that_names_the_file(path: Path) -> None:
    store = open_store(path, "train")
    read_window(store, 0, 0, 1)
    shutil.rmtree(path)
    with pytest.raises(DataError, match=rf"(?s)No such file.*{TAR}.*trajectory 2"):
        read_window(store, 2, 0, 1)


def failing_preadv(monkeypatch: pytest.MonkeyPatch, failures: int, code: int) -> list[int]:
    """Make the next `failures` reads fail, as a network file system does; counts the calls."""
    real, calls = os.preadv, []

    def preadv(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        calls.append(offset)
        if len(calls) <= failures:
            raise OSError(code, os.strerror(code))
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    return calls


@pytest.mark.usefixtures("no_pause")
@pytest.mark.parametrize("code", [errno.EIO, errno.EINTR, errno.ESTALE])
def test_a_read_that_stumbles_is_tried_again(path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    store = open_store(path, "train")
    calls = failing_preadv(monkeypatch, 2, code)
    everything_is_right(store, TRAJECTORIES["train"][:1])
    assert len(calls) > 3


@pytest.mark.usefixtures("no_pause")
def test_a_read_that_keeps_failing_ends_in_a_clear_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(path, "train")
    store.parameters(2)
    calls = failing_preadv(monkeypatch, 10**9, errno.EIO)
    with pytest.raises(DataError, match=rf"(?s)Input/output error.*{TAR}.*split train, trajectory 2, frame 1, offset"):
        read_window(store, 2, 1, 1)
    assert len(calls) == 3
    with pytest.raises(DataError, match=rf"(?s)Input/output error.*{INDEX}.*trajectory 3"):
        read_window(store, 3, 1, 1)


def test_short_reads_are_put_together(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv

    def short(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        return real(descriptor, [buffers[0][:7]], offset)

    monkeypatch.setattr(os, "preadv", short)
    everything_is_right(open_store(path, "train"), TRAJECTORIES["train"])


def test_the_index_of_another_split_is_refused(path: Path) -> None:
    shutil.copy(path / "test.index.npy", path / INDEX)
    manifest = read_json(path / MANIFEST)
    manifest["splits"]["train"]["files"][INDEX] = manifest["splits"]["test"]["files"]["test.index.npy"]
    sign(path, manifest)
    with pytest.raises(DataError, match=rf"(?s)does not fit.*{INDEX}.*\(2,\).*\(5,\)"):
        open_store(path, "train")


def sign(path: Path, manifest: dict[str, object]) -> None:
    content = {key: value for key, value in manifest.items() if key != "checksum"}
    write_json(path / MANIFEST, {**content, "checksum": digest(content)})


def test_a_newer_format_is_refused_by_name(path: Path) -> None:
    sign(path, {**read_json(path / MANIFEST), "format_version": 3})
    with pytest.raises(DataError, match=r"(?s)format version.*manifest.json.*found: 3.*expected: one of 1, 2.*update"):
        open_store(path, "train")


@pytest.mark.parametrize("name", ["/etc/passwd", "../other.tar", "a/../../b"])
def test_a_file_outside_of_the_folder_is_refused(path: Path, name: str) -> None:
    manifest = read_json(path / MANIFEST)
    manifest["splits"]["train"]["files"][name] = manifest["splits"]["train"]["files"][TAR]
    sign(path, manifest)
    with pytest.raises(DataError, match="outside of its folder"):
        open_store(path, "train")
