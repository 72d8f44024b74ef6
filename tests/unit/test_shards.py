"""Shards: the very numbers of the store, stock tars, an index that is read a record at a time, equal bytes."""

import io
import json
import multiprocessing
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.base.errors import ConfigError, DataError
from data_pipeline.base.files import sha256_file
from data_pipeline.config import ExportConfig
from data_pipeline.export import export_shards
from data_pipeline.resample import resample_trajectory
from data_pipeline.stores import open_store, read_manifest, reading, shards, verify
from data_pipeline.stores.manifest import record_file
from data_pipeline.stores.protocol import TrajectoryStore, read_window
from data_pipeline.stores.shard_index import RecordIndex, record_dtype, write_index
from data_pipeline.stores.shard_writer import write_shard
from data_pipeline.trajectory import DatasetInfo, Trajectory
from tests.datasets import Trajectories, make_info, make_trajectories, tasks_inline, write_shards, write_store

COUNTS = {"train": 5, "test": 2}
KINDS = {
    "1d": make_info((16,)),
    "2d": make_info((6, 4)),
    "3d": make_info((4, 3, 2), frames=3),
    "steady": make_info((6, 4), frames=1),
    "bare": make_info((6, 4), parameters=(), static_channels=(), masked=False),
}


def export(store: Path, root: Path, config: ExportConfig) -> Path:
    with tasks_inline():
        return Path(str(export_shards(store, root, config)))


class Made:
    """A dataset in memory, as a store and as shards."""

    def __init__(self, root: Path, info: DatasetInfo) -> None:
        self.info, self.trajectories = info, make_trajectories(info, COUNTS)
        self.zarr = write_store(root, info, self.trajectories)
        self.shards = export(self.zarr, root, ExportConfig(trajectories_per_shard=2))
        self.stores = {
            split: [open_store(path, split) for path in (self.zarr, self.shards)] for split in self.trajectories
        }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    return {name: Made(tmp_path_factory.mktemp(name), info) for name, info in KINDS.items()}


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_both_stores_serve_the_same_bytes(made: dict[str, Made], data: st.DataObject) -> None:
    """1D, 2D and 3D, steady, with and without static fields, mask and parameters."""
    one = made[data.draw(st.sampled_from(sorted(made)))]
    split = data.draw(st.sampled_from(["train", "test"]))
    number = data.draw(st.integers(0, COUNTS[split] - 1))
    start = data.draw(st.integers(0, one.info.frames))
    count = data.draw(st.integers(0, one.info.frames - start))
    truth = one.trajectories[split][number]
    for store in one.stores[split]:
        assert read_window(store, number, start, count).tobytes() == truth.fields[start : start + count].tobytes()
        assert store.parameters(number) == dict(truth.parameters)
        assert_same(store.static(number), truth.static)
        assert_same(store.mask(number), truth.mask)


def assert_same(found: np.ndarray | None, truth: np.ndarray | None) -> None:
    if truth is None:
        assert found is None
    else:
        assert found is not None
        assert found.dtype == truth.dtype
        np.testing.assert_array_equal(found, truth)


def test_stock_webdataset_streams_everything(made: dict[str, Made]) -> None:
    for one in made.values():
        urls = sorted(str(path) for path in one.shards.glob("train-*.tar"))
        samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=True).decode())
        assert [sample["__key__"] for sample in samples] == [f"made-train-{i:06d}" for i in range(5)]
        for sample, truth in zip(samples, one.trajectories["train"], strict=True):
            np.testing.assert_array_equal(sample["fields.npy"], truth.fields)
            assert_same(sample.get("static.npy"), truth.static)
            assert_same(sample.get("mask.npy"), truth.mask)
            assert sample["meta.json"] == {
                "parameters": dict(truth.parameters),
                "times": truth.times.tolist(),
                "provenance": dict(truth.provenance),
            }


def test_the_bytes_are_those_of_the_stock_writer(tmp_path: Path) -> None:
    info = make_info()
    trajectories = make_trajectories(info, {"train": 3})["train"]
    for prefix in ("made-train", "n" * 150):  # a name beyond USTAR
        record, entries = write_shard(tmp_path / "ours.tar", prefix, 0, trajectories)
        assert record == record_file(tmp_path / "ours.tar")
        with (tmp_path / "theirs.tar").open("wb") as file:
            stock = webdataset.TarWriter(
                file, encoder=False, mtime=0, user="pdepot", group="pdepot", format="PAX_FORMAT"
            )
            for i, one in enumerate(trajectories):
                meta = {
                    "parameters": dict(one.parameters),
                    "times": one.times.tolist(),
                    "provenance": dict(one.provenance),
                }
                members = {
                    "fields.npy": npy(one.fields),
                    "meta.json": json.dumps(meta, sort_keys=True).encode(),
                    "static.npy": npy(one.static),
                    "mask.npy": npy(one.mask),
                }
                for name, content in members.items():
                    stock.write({"__key__": f"{prefix}-{i:06d}", name: content})
            stock.close()
        content = (tmp_path / "ours.tar").read_bytes()
        assert content == (tmp_path / "theirs.tar").read_bytes()
        for entry, one in zip(entries, trajectories, strict=True):
            assert content[entry["offset"] :].startswith(one.fields.tobytes())
            assert content[entry["mask_offset"] :].startswith(one.mask.tobytes())  # type: ignore[union-attr]


def npy(values: np.ndarray | None) -> bytes:
    assert values is not None
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def test_a_failed_shard_leaves_no_file(tmp_path: Path) -> None:
    def failing():  # type: ignore[no-untyped-def]
        yield Trajectory(np.zeros((2, 4, 1), np.float32), np.arange(2.0))
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        write_shard(tmp_path / "train-000000.tar", "x", 0, failing())
    assert list(tmp_path.iterdir()) == []


def tree(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in folder.rglob("*") if p.is_file()}


def export_elsewhere(store: Path, root: Path) -> None:
    export(store, root, ExportConfig(trajectories_per_shard=2))


def test_an_export_by_another_process_has_the_same_bytes(made: dict[str, Made], tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=export_elsewhere, args=(made["2d"].zarr, tmp_path))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert tree(tmp_path / "made.shards") == tree(made["2d"].shards)
    with tarfile.open(made["2d"].shards / "train-000000.tar") as tar:
        assert {(member.mtime, member.uid, member.gid, member.uname) for member in tar} == {(0, 0, 0, "pdepot")}


def test_float16_costs_what_the_manifest_says(made: dict[str, Made], tmp_path: Path) -> None:
    one = made["2d"]
    half = export(one.zarr, tmp_path, ExportConfig(dtype="float16"))
    truth = np.stack([t.fields for of_split in one.trajectories.values() for t in of_split]).astype(np.float64)
    error = np.sqrt(np.square(truth - truth.astype(np.float16)).mean((0, 1, 2, 3)))
    manifest = read_manifest(half)
    np.testing.assert_allclose(manifest.rounding_error, error / np.array(manifest.statistics.std), rtol=1e-6)
    assert read_manifest(one.shards).rounding_error == (0.0, 0.0)
    assert read_manifest(one.shards).digest == read_manifest(one.zarr).digest != manifest.digest
    store = open_store(half, "train")
    truth_of_3 = one.trajectories["train"][3]
    np.testing.assert_array_equal(read_window(store, 3, 1, 2), truth_of_3.fields[1:3].astype("f2").astype("f4"))
    assert_same(store.static(3), truth_of_3.static)


@pytest.mark.parametrize("rule", ["bilinear", "spectral"])
def test_a_resampled_export_is_a_dataset_of_its_own_grid(made: dict[str, Made], tmp_path: Path, rule: str) -> None:
    if rule == "spectral":  # which refuses masks
        info = make_info((6, 4), masked=False)
        trajectories = make_trajectories(info, COUNTS)
        zarr = write_store(tmp_path, info, trajectories)
    else:
        info, trajectories, zarr = made["2d"].info, made["2d"].trajectories, made["2d"].zarr
    config = ExportConfig(resolution=(4, 8), resampling=rule)  # type: ignore[arg-type]
    path = export(zarr, tmp_path, config)
    manifest, store = read_manifest(path), open_store(path, "train")
    expected = [resample_trajectory(t, (4, 8), rule) for t in trajectories["train"]]  # type: ignore[arg-type]
    for number, one in enumerate(expected):
        np.testing.assert_array_equal(read_window(store, number, 0, 5), one.fields)
        assert_same(store.static(number), one.static)
        assert_same(store.mask(number), one.mask)
    assert (manifest.resampling, manifest.canonical_space, manifest.info.space) == (rule, (6, 4), (4, 8))
    assert bool(manifest.info.coordinates) == (rule == "bilinear")
    values = np.concatenate([t.fields[:, t.mask if t.mask is not None else ...].reshape(-1, 2) for t in expected])
    np.testing.assert_allclose(store.statistics.std, values.astype(np.float64).std(0), rtol=1e-6)
    np.testing.assert_allclose(store.statistics.max, values.max(0))
    assert manifest.digest != read_manifest(zarr).digest == manifest.canonical
    assert verify(path) == []


def test_a_resampling_that_cannot_be_is_refused_before_any_work(made: dict[str, Made], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mask"):
        export(made["2d"].zarr, tmp_path, ExportConfig(resolution=(4, 4), resampling="spectral"))
    assert list(tmp_path.iterdir()) == []


# The reader


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trajectories]:
    info = make_info()
    trajectories = make_trajectories(info, {"train": 9})
    return write_shards(tmp_path_factory.mktemp("plain") / "made.shards", info, trajectories), trajectories


def open_files(folder: Path) -> int:
    targets = [link.resolve() for link in Path("/proc/self/fd").iterdir()]
    return sum(target.parent == folder for target in targets)


def all_right(store: TrajectoryStore, trajectories: list[Trajectory], rounds: int) -> bool:
    def right(i: int) -> bool:
        return bool((read_window(store, i, 1, 3) == trajectories[i].fields[1:4]).all())

    with ThreadPoolExecutor(8) as pool:
        return all(pool.map(right, [i % len(trajectories) for i in range(rounds)]))


def test_threads_share_a_store_while_descriptors_are_evicted(
    plain: tuple[Path, Trajectories], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "Files", lambda path, _: reading.Files(path, keep=1))
    store = open_store(plain[0], "train")
    assert all_right(store, plain[1]["train"], 400)
    assert open_files(plain[0]) == 1
    store.close()
    assert open_files(plain[0]) == 0
    assert all_right(store, plain[1]["train"], 9)


def read_in_child(store: TrajectoryStore, trajectories: list[Trajectory]) -> None:
    os._exit(0 if all_right(store, trajectories, 100) else 1)


def test_an_open_store_works_on_both_sides_of_a_fork(plain: tuple[Path, Trajectories]) -> None:
    store, truth = open_store(plain[0], "train"), plain[1]["train"]
    assert all_right(store, truth, 9)
    children = [multiprocessing.get_context("fork").Process(target=read_in_child, args=(store, truth)) for _ in "ab"]
    for child in children:
        child.start()
    assert all_right(store, truth, 100)
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]


def test_without_checksums_a_flipped_bit_is_read(plain: tuple[Path, Trajectories], tmp_path: Path) -> None:
    info = make_info()
    path = write_shards(tmp_path / "made.shards", info, plain[1])
    content = bytearray((path / "train-000000.tar").read_bytes())
    content[content.index(plain[1]["train"][0].fields.tobytes())] ^= 1
    (path / "train-000000.tar").write_bytes(content)
    assert not (
        read_window(open_store(path, "train", checksums=False), 0, 0, 1) == plain[1]["train"][0].fields[0]
    ).all()
    with pytest.raises(DataError, match="checksum"):
        read_window(open_store(path, "train"), 0, 0, 1)


def test_opening_reads_no_record_of_the_index(tmp_path: Path) -> None:
    """The file is as large as that of ten million trajectories, and holds nothing."""
    info = make_info()
    write_index(tmp_path / "train.index.npy", info, 0, iter(()))
    header = {"descr": np.lib.format.dtype_to_descr(record_dtype(info)), "fortran_order": False, "shape": (10**7,)}
    with (tmp_path / "train.index.npy").open("r+b") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 10**7 * record_dtype(info).itemsize)
    index = RecordIndex(reading.Files(tmp_path.joinpath), tmp_path.joinpath, "train.index.npy", info, 10**7)
    with pytest.raises(DataError, match=r"(?s)checksum does not match.*trajectory 9999999"):
        index.place(10**7 - 1)


def test_numpy_reads_the_index(plain: tuple[Path, Trajectories]) -> None:
    records = np.load(plain[0] / "train.index.npy", mmap_mode="r", allow_pickle=False)
    np.testing.assert_array_equal(records["times"], [one.times for one in plain[1]["train"]])
    np.testing.assert_array_equal(records["parameters"], [[*one.parameters.values()] for one in plain[1]["train"]])


# Format 1
