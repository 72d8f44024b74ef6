"""The canonical store: what stock libraries read of it, how it is written and read, and its older format."""

import multiprocessing
import os
import shutil
import tracemalloc
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr

from data_pipeline.base.files import sha256_file
from data_pipeline.stores import open_store, read_manifest, reading, zarr_shard, zarr_store
from data_pipeline.stores.protocol import read_window
from data_pipeline.stores.zarr_layout import arrays
from data_pipeline.stores.zarr_store import ZarrStore
from data_pipeline.stores.zarr_writer import create, write_shard
from data_pipeline.trajectory import DatasetInfo, Trajectory
from tests.datasets import make_info, make_trajectories, write_store

COUNTS = {"train": 5, "test": 2}
KINDS = {
    "1d": make_info((16,)),
    "2d": make_info((6, 4), coordinates=((0.0, 0.1, 0.3, 0.4, 0.5, 0.8), (0.0, 0.25, 0.5, 0.75))),
    "3d": make_info((4, 3, 2), frames=3, licence="CC-BY-4.0", equation="u_t = 0"),
    "steady": make_info((6, 4), frames=1),
    "bare": make_info((6, 4), parameters=(), static_channels=(), masked=False),
}


@pytest.fixture(scope="module", params=KINDS)
def info(request: pytest.FixtureRequest) -> DatasetInfo:
    return KINDS[request.param]


@pytest.fixture(scope="module")
def truth(info: DatasetInfo) -> dict[str, list[Trajectory]]:
    return make_trajectories(info, COUNTS)


@pytest.fixture(scope="module")
def store(info: DatasetInfo, truth: dict[str, list[Trajectory]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("store"), info, truth)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Trajectory]]:
    trajectories = make_trajectories(KINDS["2d"], COUNTS)
    return write_store(tmp_path_factory.mktemp("plain"), KINDS["2d"], trajectories), trajectories["train"]


@pytest.fixture
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def columns(info: DatasetInfo, trajectories: list[Trajectory]) -> dict[str, np.ndarray]:
    """What each array of a split has to hold."""
    found = {
        "fields": [one.fields for one in trajectories],
        "time": [one.times for one in trajectories],
        "parameters": [[one.parameters[name] for name in info.parameters] for one in trajectories],
        "static": [one.static for one in trajectories],
        "mask": [one.mask for one in trajectories],
    }
    return {name: np.array(found[name]) for name in arrays(info)}


# What others read


def test_stock_zarr_reads_every_array(
    info: DatasetInfo, truth: dict[str, list[Trajectory]], store: Path, no_warnings: None
) -> None:
    for split, trajectories in truth.items():
        group = zarr.open_group(store, path=split, mode="r")
        expected = columns(info, trajectories)
        assert set(group.array_keys()) == {*expected, *info.axes}
        for name, values in expected.items():
            np.testing.assert_array_equal(group[name][...], values)
        fields = group["fields"]
        assert fields.chunks == (1, 1, *info.space, 2)
        assert fields.shards == (2, info.frames, *info.space, 2)
        assert np.isnan(fields.fill_value)


def test_xarray_shows_dimensions_coordinates_and_physics(
    info: DatasetInfo, truth: dict[str, list[Trajectory]], store: Path, no_warnings: None
) -> None:
    xarray = pytest.importorskip("xarray")
    with xarray.open_zarr(store, group="train", consolidated=False) as data:
        assert data.fields.dims == ("trajectory", "time", *info.axes, "channel")
        assert set(data.coords) == {"time", *info.axes}
        lengths = {"trajectory": 5, "time": info.frames, "channel": 2, **dict(zip(info.axes, info.space, strict=True))}
        assert {name: data.sizes[name] for name in lengths} == lengths
        one = data.isel(trajectory=3).sel({axis: data[axis][1] for axis in info.axes})
        np.testing.assert_array_equal(one.fields, truth["train"][3].fields[(slice(None), *(1 for _ in info.axes))])
        np.testing.assert_array_equal(one.time, truth["train"][3].times)
        first = info.coordinates[0] if info.coordinates else np.arange(info.space[0]) / info.space[0]
        np.testing.assert_allclose(data[info.axes[0]], first)
        assert data.fields.attrs["channels"] == list(info.channels)
        assert data.attrs["boundaries"] == ["periodic"] * len(info.space)
        assert data.attrs.get("licence", "") == info.licence
        assert data.attrs.get("equation", "") == info.equation
        assert data.attrs["provenance"]["plan_digest"] == read_manifest(store).plan_digest


@pytest.mark.parametrize("per_shard", [1, 2])
def test_files_are_those_of_zarr_python(info: DatasetInfo, tmp_path: Path, per_shard: int) -> None:
    """Byte for byte, but for the order of the chunks of a shard with several trajectories: there it is Morton's."""
    trajectories = make_trajectories(info, {"train": per_shard})["train"]
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        create(folder, info, {"train": per_shard}, per_shard, {})
    records = write_shard(ours, info, "train", 0, per_shard, iter(trajectories))
    for name, values in columns(info, trajectories).items():
        array = zarr.open_array(theirs, path=f"train/{name}", mode="r+", config={"write_empty_chunks": True})
        array[...] = values
    for name in [name for name in records if "provenance" not in name]:
        mine, other = (ours / name).read_bytes(), (theirs / name).read_bytes()
        spec = arrays(info)[name.split("/")[1]]
        if per_shard * spec.chunks > 1:
            assert indexed_chunks(mine, per_shard * spec.chunks) == indexed_chunks(other, per_shard * spec.chunks)
        if per_shard == 1 or not spec.chunks:
            assert mine == other
        assert (records[name].size, records[name].sha256) == (len(mine), sha256_file(ours / name))


def indexed_chunks(content: bytes, count: int) -> list[bytes]:
    index = np.frombuffer(content[-16 * count - 4 : -4], "<u8").reshape(-1, 2).tolist()
    assert sum(length for _, length in index) == len(content) - 16 * count - 4
    return [content[offset : offset + length] for offset, length in index]


# Writing


def test_a_shard_is_written_with_one_trajectory_in_memory(tmp_path: Path) -> None:
    info = make_info((64, 64), frames=16, masked=False)
    size = 16 * 64 * 64 * 2 * 4

    def source() -> Iterator[Trajectory]:
        for _ in range(8):
            yield make_trajectories(info, {"train": 1})["train"][0]

    create(tmp_path / "made", info, {"train": 8}, 8, {})
    tracemalloc.start()
    write_shard(tmp_path / "made", info, "train", 0, 8, source())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size < peak < 1.9 * size


def test_a_failing_source_leaves_no_file(tmp_path: Path) -> None:
    info = make_info()

    def source() -> Iterator[Trajectory]:
        yield make_trajectories(info, {"train": 1})["train"][0]
        raise RuntimeError("broken")

    create(tmp_path / "made", info, {"train": 2}, 2, {})
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(RuntimeError, match="broken"):
        write_shard(tmp_path / "made", info, "train", 0, 2, source())
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before


def test_metadata_do_not_grow_with_the_trajectories(tmp_path: Path) -> None:
    sizes = []
    for count in (2, 60):
        trajectories = make_trajectories(KINDS["2d"], {"train": count})
        store = write_store(tmp_path / str(count), KINDS["2d"], trajectories, per_shard=20)
        sizes.append(sum(path.stat().st_size for path in store.rglob("zarr.json")))
    assert sizes[1] - sizes[0] <= 8  # digits of the shapes


# Reading


def test_a_trajectory_comes_back_with_all_that_belongs_to_it(
    info: DatasetInfo, truth: dict[str, list[Trajectory]], store: Path
) -> None:
    opened = open_store(store, "train")
    assert isinstance(opened, ZarrStore)
    for number, one in enumerate(truth["train"]):
        found = opened.trajectory(number)
        for name in ("fields", "times", "static", "mask"):
            np.testing.assert_array_equal(getattr(found, name), getattr(one, name))
        assert (found.parameters, found.provenance) == (one.parameters, one.provenance)
        found.fields[...] = 0  # what a caller does to it stays with the caller
        found.times[...] = 0
    assert opened.trajectory(0).times.tolist() == truth["train"][0].times.tolist()


def test_threads_share_a_store_whose_caches_hold_one_file(
    plain: tuple[Path, list[Trajectory]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zarr_store, "Files", lambda path, _: reading.Files(path, keep=1))
    monkeypatch.setattr(zarr_shard, "_INDICES", 1)
    path, truth = plain
    store = open_store(path, "train")

    def read(i: int) -> bool:
        one = truth[i % 5]
        return bool((read_window(store, i % 5, 0, 5) == one.fields).all() and (store.mask(i % 5) == one.mask).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(300)))


def test_an_open_store_works_on_both_sides_of_a_fork(plain: tuple[Path, list[Trajectory]]) -> None:
    path, truth = plain
    store = open_store(path, "train")
    read_window(store, 0, 0, 5)

    def child() -> None:
        right = all((read_window(store, i % 5, 0, 5) == truth[i % 5].fields).all() for i in range(50))
        os._exit(0 if right else 1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
    for i in range(50):
        np.testing.assert_array_equal(read_window(store, i % 5, 0, 5), truth[i % 5].fields)
    process.join(30)
    assert process.exitcode == 0


def test_files_are_closed_with_the_store(plain: tuple[Path, list[Trajectory]], tmp_path: Path) -> None:
    copy = shutil.copytree(plain[0], tmp_path / "copy.zarr")  # no other test's store has files of this one open

    def open_files() -> int:
        links = Path("/proc/self/fd").iterdir()
        return sum(os.path.realpath(link).startswith(os.path.realpath(copy)) for link in links)

    store = open_store(copy, "train")
    for number in range(5):
        read_window(store, number, 0, 5)
    assert open_files()
    store.close()
    assert not open_files()
    np.testing.assert_array_equal(read_window(store, 4, 0, 5), plain[1][4].fields)
    store.close()


def test_indices_in_memory_are_bounded() -> None:
    for chunks, kept in ((100, 64), (2**20, 2), (2**26, 1)):
        reader = zarr_shard.ShardReader(reading.Files(Path), chunks, 4, checksums=True)
        assert reader._offsets.cache_info().maxsize == kept


def test_a_window_is_one_read(plain: tuple[Path, list[Trajectory]], monkeypatch: pytest.MonkeyPatch) -> None:
    store, calls, preadv = open_store(plain[0], "train"), [], os.preadv
    read_window(store, 3, 0, 1)
    monkeypatch.setattr(os, "preadv", lambda *arguments: calls.append(1) or preadv(*arguments))
    read_window(store, 3, 0, 5)
    assert len(calls) == 1


def test_without_checksums_damage_is_read(plain: tuple[Path, list[Trajectory]], tmp_path: Path) -> None:
    """What the benchmark compares with; and the proof that it is the checksum that finds damage elsewhere."""
    store = write_store(tmp_path, KINDS["2d"], {"train": plain[1]})
    file = store / "train/fields/c/0/0/0/0/0"
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)
    window = read_window(open_store(store, "train", checksums=False), 0, 0, 5)
    assert (window != plain[1][0].fields).sum() == 1


# Format 1


def test_static_fields_of_format_1_are_read(tmp_path: Path) -> None:
    """There they are one chunk for all trajectories of a shard."""
    info = make_info((6, 4), masked=False)
    static = make_trajectories(info, {"train": 3})["train"]
    store = write_store(tmp_path, info, {"train": static}, per_shard=2)
    for shard, rows in enumerate((static[:2], static[2:])):
        chunk = np.full((2, 6, 4, 2), np.nan, "<f4")
        chunk[: len(rows)] = [one.static for one in rows]
        zarr_shard.write_chunk(store / f"train/static/c/{shard}/0/0/0", chunk)
    manifest = read_manifest(store).model_copy(update={"format_version": 1})
    opened = ZarrStore(store, manifest, "train")
    for number, one in enumerate(static):
        np.testing.assert_array_equal(opened.static(number), one.static)  # type: ignore[arg-type]
