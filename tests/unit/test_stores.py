"""The stores' promises: the same bytes from both, nothing damaged read as data, equal data in equal files."""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import build, jobs
from data_pipeline.base.errors import DataError
from data_pipeline.base.files import digest, sha256_file, write_json
from data_pipeline.build import build_store, check_trajectory
from data_pipeline.config import ConvertConfig, DatasetConfig, ExportConfig, StoreConfig
from data_pipeline.export import TAR_OVERHEAD, convert, export_shards
from data_pipeline.stores import open_store, read_manifest, shards, splits, verify
from data_pipeline.stores.protocol import read_window
from data_pipeline.stores.statistics import measure, merge, statistics
from data_pipeline.trajectory import DatasetInfo, Trajectory
from tests.well_files import Written, write_dataset

FRAMES, SPACE, CHANNELS = 5, (8, 6), ("density", "velocity_x", "velocity_y")


@contextmanager
def inline_tasks() -> Iterator[None]:
    """Run the tasks of a job in this process, one after another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "ray_session", lambda address: nullcontext())
        patch.setattr(jobs, "run_tasks", lambda function, arguments, **_: (function(a) for a in arguments))
        yield


@pytest.fixture
def inline() -> Iterator[None]:
    with inline_tasks():
        yield


def dataset_config(raw: Path, per_shard: int = 3, name: str = "made") -> DatasetConfig:
    return DatasetConfig(
        name=name,
        convert=ConvertConfig(layout="the_well", path=str(raw)),
        store=StoreConfig(trajectories_per_shard=per_shard),
    )


@dataclass
class Made:
    """One dataset in all its forms, and what it has to hold."""

    raw: Path
    written: Mapping[str, Written]
    zarr: Path
    shards: Path
    half: Path

    def fields(self, split: str) -> np.ndarray:
        return np.stack([self.written[split].channels[name] for name in CHANNELS], axis=-1).astype(np.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("made")
    with inline_tasks():
        written = write_dataset(
            root / "raw", {"train": 7, "valid": 2}, static=(("depth",), (), ()), sample_scalars=("drag",)
        )
        store = build_store(dataset_config(root / "raw"), root)
        full = export_shards(store, root, ExportConfig(trajectories_per_shard=2))
        half = export_shards(store, root / "half", ExportConfig(trajectories_per_shard=4, dtype="float16"))
    return Made(root / "raw", written, store, full, half)


def tree(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in folder.rglob("*") if p.is_file()}


# What is stored


def test_stock_zarr_reads_the_store(made: Made) -> None:
    group = zarr.open_group(made.zarr, mode="r")
    assert group.attrs["dataset"]["channels"] == list(CHANNELS)
    assert set(group.group_keys()) == {"train", "valid"}
    for split, written in made.written.items():
        fields = group[f"{split}/fields"]
        assert fields.dtype == np.float32
        assert fields.metadata.dimension_names == ("trajectory", "time", "x", "y", "channel")
        assert fields.chunks == (1, 1, *SPACE, 3)
        assert fields.shards == (3, FRAMES, *SPACE, 3)
        assert np.isnan(fields.fill_value)
        np.testing.assert_array_equal(fields[...], made.fields(split))
        np.testing.assert_allclose(group[f"{split}/time"][...], written.times)
        np.testing.assert_array_equal(group[f"{split}/static"][..., 0], written.static["depth"].astype(np.float32))
        names = group.attrs["dataset"]["parameters"]
        expected = np.stack([written.parameters[name].astype(np.float32) for name in names], axis=1)
        np.testing.assert_allclose(group[f"{split}/parameters"][...], expected, rtol=1e-6)
        assert [p["index"] for p in group[split].attrs["provenance"]] == list(range(fields.shape[0]))


def test_stock_webdataset_streams_the_shards(made: Made) -> None:
    urls = sorted(str(path) for path in made.shards.glob("train-*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=True).decode())
    assert [sample["__key__"] for sample in samples] == [f"made-train-{i:06d}" for i in range(7)]
    np.testing.assert_array_equal(np.stack([sample["fields.npy"] for sample in samples]), made.fields("train"))
    for i, sample in enumerate(samples):
        np.testing.assert_array_equal(
            sample["static.npy"][..., 0], made.written["train"].static["depth"][i].astype("f4")
        )
        assert sample["meta.json"]["parameters"]["drag"] == pytest.approx(made.written["train"].parameters["drag"][i])
        assert len(sample["meta.json"]["times"]) == FRAMES
        assert sample["meta.json"]["provenance"]["index"] == i


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_both_stores_give_the_bytes_of_the_source(made: Made, data: st.DataObject) -> None:
    split = data.draw(st.sampled_from(["train", "valid"]))
    truth = made.fields(split)
    trajectory = data.draw(st.integers(0, len(truth) - 1))
    start = data.draw(st.integers(0, FRAMES))
    count = data.draw(st.integers(0, FRAMES - start))
    expected = truth[trajectory, start : start + count]
    for path in (made.zarr, made.shards):
        store = open_store(path, split)
        assert len(store) == len(truth)
        np.testing.assert_array_equal(read_window(store, trajectory, start, count), expected)
        store.close()


def test_read_into_fills_any_layout_of_the_batch(made: Made) -> None:
    for path in (made.zarr, made.shards, made.half):
        batch = np.zeros((*SPACE, 3, 3), np.float32)
        open_store(path, "train").read_into(4, 1, np.moveaxis(batch, -2, 0).transpose(0, 1, 2, 3))
        expected = made.fields("train")[4, 1:4]
        tolerance = 1e-3 if path == made.half else 0
        np.testing.assert_allclose(np.moveaxis(batch, -2, 0), expected, atol=tolerance, rtol=tolerance)


def test_parameters_agree(made: Made) -> None:
    for path in (made.zarr, made.shards):
        store = open_store(path, "valid")
        for i in range(2):
            assert store.parameters(i) == pytest.approx(
                {name: values[i] for name, values in made.written["valid"].parameters.items()}
            )


def test_splits_and_verify_of_a_sound_dataset(made: Made) -> None:
    for path in (made.zarr, made.shards, made.half):
        assert splits(path) == {"train": 7, "valid": 2}
        assert verify(path) == []


def test_a_wrong_window_is_refused(made: Made) -> None:
    for path in (made.zarr, made.shards):
        store = open_store(path, "train")
        for trajectory, start in ((7, 0), (-1, 0), (0, 4), (0, -1)):
            with pytest.raises(IndexError):
                read_window(store, trajectory, start, 2)
        with pytest.raises(ValueError, match="float32"):
            store.read_into(0, 0, np.empty((1, *SPACE, 3)))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="float32"):
            store.read_into(0, 0, np.empty((1, *SPACE, 2), np.float32))


def test_threads_share_a_store_even_when_descriptors_are_evicted(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_OPEN_SHARDS", 1)
    store, truth = open_store(made.shards, "train"), made.fields("train")

    def read(i: int) -> bool:
        return bool((read_window(store, i % 7, 0, FRAMES) == truth[i % 7]).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(400)))


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_evicted_descriptors_are_closed(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_OPEN_SHARDS", 1)
    before = open_files()
    store = open_store(made.shards, "train")
    for i in range(7):
        read_window(store, i, 0, 1)
    assert open_files() <= before + 1
    store.close()
    assert open_files() == before


# Statistics and digests


def test_statistics_are_those_of_the_whole_array(made: Made) -> None:
    x = made.fields("train").astype(np.float64)
    found = open_store(made.zarr, "train").statistics
    axes = (0, 1, 2, 3)
    np.testing.assert_allclose(found.mean, x.mean(axes), rtol=1e-12)
    np.testing.assert_allclose(found.std, x.std(axes), rtol=1e-12)
    np.testing.assert_allclose(found.rms, np.sqrt(np.square(x).mean(axes)), rtol=1e-12)
    np.testing.assert_array_equal(found.min, x.min(axes))
    np.testing.assert_array_equal(found.max, x.max(axes))
    np.testing.assert_allclose(found.change_rms, np.sqrt(np.square(np.diff(x, axis=1)).mean(axes)), rtol=1e-12)
    assert open_store(made.shards, "valid").statistics == found


@settings(max_examples=25, deadline=None)
@given(mean=st.floats(-1e6, 1e6), order=st.permutations(range(5)))
def test_statistics_keep_their_digits_and_know_no_order(mean: float, order: list[int]) -> None:
    rng = np.random.default_rng(0)
    fields = (mean + rng.standard_normal((5, 3, 16, 2))).astype(np.float32)
    parts = [measure(trajectory) for trajectory in fields]
    assert merge([parts[i] for i in order]) == merge(parts)
    found = statistics([part.model_dump(mode="json") for part in parts])
    np.testing.assert_allclose(found.std, fields.astype(np.float64).std((0, 1, 2)), rtol=1e-9)


def test_digest_and_statistics_do_not_depend_on_the_cut(made: Made, tmp_path: Path, inline: None) -> None:
    other = build_store(dataset_config(made.raw, per_shard=1), tmp_path)
    first, second = read_manifest(made.zarr), read_manifest(other)
    assert len(second.splits["train"].files) > len(first.splits["train"].files)
    assert (first.digest, first.statistics) == (second.digest, second.statistics)
    assert read_manifest(made.shards).digest == first.digest
    assert read_manifest(made.half).digest != first.digest
    assert read_manifest(made.half).canonical == first.digest


def test_digest_changes_with_one_number(made: Made, tmp_path: Path, inline: None) -> None:
    import h5py

    raw = shutil.copytree(made.raw, tmp_path / "raw")
    with h5py.File(raw / "data/valid/valid.hdf5", "r+") as file:
        file["t0_fields/density"][1, 2, 3, 4] += 1
    assert read_manifest(build_store(dataset_config(raw), tmp_path)).digest != read_manifest(made.zarr).digest


def test_export_is_reproducible_to_the_byte(made: Made, tmp_path: Path, inline: None) -> None:
    again = export_shards(made.zarr, tmp_path, ExportConfig(trajectories_per_shard=2))
    assert tree(again) == tree(made.shards)
    with tarfile.open(again / "train-000000.tar") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "pdepot")
            assert member.name.count(".") == 2


def test_offsets_are_right_for_names_beyond_the_tar_header(tmp_path: Path) -> None:
    fields = np.random.default_rng(0).random((3, 4, 2), np.float32)
    trajectory = Trajectory(fields, np.arange(3.0), {}, fields[0], {})
    entries = shards.write_shard(tmp_path / "long.tar", "n" * 150, 0, [trajectory, trajectory])
    content = (tmp_path / "long.tar").read_bytes()
    for entry in entries:
        assert content[entry["offset"] : entry["offset"] + fields.nbytes] == fields.tobytes()


def test_a_failed_shard_leaves_no_file(tmp_path: Path) -> None:
    def failing() -> Iterator[Trajectory]:
        yield Trajectory(np.zeros((2, 4, 1), np.float32), np.arange(2.0))
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        shards.write_shard(tmp_path / "train-000000.tar", "x", 0, failing())
    assert list(tmp_path.iterdir()) == []


def test_float16_error_is_measured(made: Made) -> None:
    truth = np.concatenate([made.fields("train"), made.fields("valid")]).astype(np.float64)
    error = truth - truth.astype(np.float16)
    expected = np.sqrt(np.square(error).mean((0, 1, 2, 3))) / made.fields("train").astype(np.float64).std((0, 1, 2, 3))
    np.testing.assert_allclose(read_manifest(made.half).rounding_error, expected, rtol=1e-9)
    assert read_manifest(made.shards).rounding_error == (0.0, 0.0, 0.0)
    window = read_window(open_store(made.half, "train"), 3, 0, FRAMES)
    np.testing.assert_array_equal(window, made.fields("train")[3].astype(np.float16).astype(np.float32))


def test_float16_overflow_is_refused() -> None:
    with pytest.raises(DataError, match="does not fit into float16"):
        convert(np.full((2, 4, 1), 7e4, np.float32), "float16", "here")


# Damage

SHARD = "train/fields/c/1/0/0/0/0"
FILES = {"zarr": [SHARD, "train/static/c/0/0/0/0", "train/fields/zarr.json", "zarr.json"]}
FILES["shards"] = ["train-000001.tar", "train.index.npz"]


def delete(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 4)


def truncate_at_a_record(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 1024 * 512)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def copy_of(made: Made, kind: str, tmp_path: Path) -> Path:
    source = made.zarr if kind == "zarr" else made.shards
    return shutil.copytree(source, tmp_path / source.name)


@pytest.mark.parametrize("damage", [delete, empty, truncate, truncate_at_a_record])
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in FILES.items() for name in names])
def test_a_wrong_size_is_found_at_open(
    made: Made, tmp_path: Path, kind: str, name: str, damage: Callable[[Path], None]
) -> None:
    path = copy_of(made, kind, tmp_path)
    damage(path / name)
    with pytest.raises(DataError, match=name):
        open_store(path, "train")
    assert [name in problem for problem in verify(path)] == [True]
    if name.startswith("train"):
        assert len(open_store(path, "valid")) == 2


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in FILES.items() for name in names])
def test_a_flipped_bit_is_found_before_it_is_data(made: Made, tmp_path: Path, kind: str, name: str) -> None:
    path = copy_of(made, kind, tmp_path)
    flip(path / name)
    assert [name in problem for problem in verify(path)] == [True]
    with pytest.raises(DataError) as caught:
        read_everything(path)
    assert (name if name != "train/static/c/0/0/0/0" else "train/static") in str(caught.value)


def read_everything(path: Path) -> None:
    store: Any = open_store(path, "train")
    for trajectory in range(len(store)):
        read_window(store, trajectory, 0, FRAMES)
        if read_manifest(path).kind == "zarr":
            store.trajectory(trajectory)


@pytest.mark.parametrize(("kind", "shard"), [("zarr", SHARD), ("shards", "train-000001.tar")])
def test_the_error_names_the_first_bad_frame(made: Made, tmp_path: Path, kind: str, shard: str) -> None:
    path = copy_of(made, kind, tmp_path)
    target = np.ascontiguousarray(made.fields("train")[3, 2])
    content = bytearray((path / shard).read_bytes())
    offset = bytes(content).index(target.tobytes())
    content[offset + 10] ^= 4
    (path / shard).write_bytes(content)
    store = open_store(path, "train")
    read_window(store, 3, 0, 2)
    with pytest.raises(DataError, match=f"made, split train, trajectory 3, frame 2, offset {offset}"):
        read_window(store, 3, 1, 3)


@pytest.mark.parametrize(("kind", "shard"), [("zarr", SHARD), ("shards", "train-000001.tar")])
@pytest.mark.parametrize("damage", [delete, empty, truncate])
def test_a_file_lost_while_open_is_an_error_not_a_number(
    made: Made, tmp_path: Path, kind: str, shard: str, damage: Callable[[Path], None]
) -> None:
    path = copy_of(made, kind, tmp_path)
    store = open_store(path, "train")
    damage(path / shard)
    with pytest.raises(DataError, match=shard):
        read_window(store, 3, 0, FRAMES)


def test_every_flipped_byte_of_a_manifest_is_harmless_or_found(made: Made, tmp_path: Path) -> None:
    path = copy_of(made, "shards", tmp_path)
    file = path / "manifest.json"
    content, sound = file.read_bytes(), read_manifest(path)
    for position in range(0, len(content), 23):
        damaged = bytearray(content)
        damaged[position] ^= 1
        file.write_bytes(damaged)
        try:
            found = read_manifest(path)
        except DataError:
            continue
        assert found == sound


def rewrite_manifest(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((path / "manifest.json").read_text())
    del content["checksum"]
    change(content)
    write_json(path / "manifest.json", {**content, "checksum": digest(content)})


def test_a_newer_format_is_refused(made: Made, tmp_path: Path) -> None:
    path = copy_of(made, "shards", tmp_path)
    rewrite_manifest(path, lambda content: content.update(format_version=99))
    with pytest.raises(DataError, match="found: 99"):
        open_store(path, "train")


def test_a_manifest_cannot_name_files_elsewhere(made: Made, tmp_path: Path) -> None:
    path = copy_of(made, "shards", tmp_path)
    rewrite_manifest(path, lambda c: c["splits"]["train"]["files"].update({"../x": {"size": 0, "sha256": ""}}))
    with pytest.raises(DataError, match="outside"):
        read_manifest(path)


def test_a_folder_that_is_no_dataset(made: Made, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such dataset folder"):
        open_store(tmp_path / "nothing", "train")
    path = copy_of(made, "zarr", tmp_path)
    (path / "manifest.json").unlink()
    with pytest.raises(DataError, match="no manifest"):
        open_store(path, "train")
    assert "no manifest" in verify(path)[0]


def test_a_missing_split_lists_the_present_ones(made: Made) -> None:
    with pytest.raises(DataError, match=r"train \(7\), valid \(2\)"):
        open_store(made.zarr, "test")


# The discipline of jobs


class Interrupted(BaseException):
    """Stands for Ctrl-C."""


def interrupt_after(count: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make the next job stop after `count` tasks (for good when negative: never); returns the names of its tasks."""
    done: list[str] = []

    def run_tasks(function: Callable[[Any], Any], arguments: list[Any], **_: Any) -> Iterator[Any]:
        for task in arguments:
            if len(done) == count:
                raise Interrupted
            done.append(task.name)
            yield function(task)

    monkeypatch.setattr(jobs, "run_tasks", run_tasks)
    return done


def test_an_interrupted_job_continues_and_gives_the_same_bytes(
    made: Made, tmp_path: Path, inline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataset_config(made.raw)
    interrupt_after(2, monkeypatch)
    with pytest.raises(Interrupted):
        build_store(config, tmp_path)
    assert not (tmp_path / "made.zarr").exists()
    work = tmp_path / ".made.zarr.partial"
    with (work / "journal.jsonl").open("a") as journal:
        journal.write('{"task": "train-0000')
    (work / "data/train/fields/c/0/left.partial").write_bytes(b"of a killed attempt")
    done = interrupt_after(-1, monkeypatch)
    store = build_store(config, tmp_path)
    assert done == ["train-000002", "valid-000000"]
    assert tree(store) == tree(made.zarr)
    assert not work.exists()


def test_a_receipt_without_its_file_does_not_count(
    made: Made, tmp_path: Path, inline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataset_config(made.raw)
    interrupt_after(3, monkeypatch)
    with pytest.raises(Interrupted):
        build_store(config, tmp_path)
    truncate(tmp_path / ".made.zarr.partial/data" / SHARD)
    done = interrupt_after(-1, monkeypatch)
    store = build_store(config, tmp_path)
    assert done == ["train-000001", "valid-000000"]
    assert tree(store) == tree(made.zarr)


def test_an_interrupted_export_continues(
    made: Made, tmp_path: Path, inline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ExportConfig(trajectories_per_shard=2)
    interrupt_after(3, monkeypatch)
    with pytest.raises(Interrupted):
        export_shards(made.zarr, tmp_path, config)
    done = interrupt_after(-1, monkeypatch)
    assert tree(export_shards(made.zarr, tmp_path, config)) == tree(made.shards)
    assert done == ["train-000003", "valid-000000"]


def test_a_partial_folder_of_another_plan_is_removed(
    made: Made, tmp_path: Path, inline: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt_after(2, monkeypatch)
    with pytest.raises(Interrupted):
        build_store(dataset_config(made.raw, per_shard=2), tmp_path)
    done = interrupt_after(-1, monkeypatch)
    store = build_store(dataset_config(made.raw), tmp_path)
    assert len(done) == 4
    assert tree(store) == tree(made.zarr)
    assert "another plan" in capsys.readouterr().out


def test_a_crash_after_the_commit_leaves_only_sweeping(
    made: Made, tmp_path: Path, inline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "remove_tree", lambda path: None)
    store = build_store(dataset_config(made.raw), tmp_path)
    monkeypatch.undo()
    with inline_tasks():
        done = interrupt_after(-1, monkeypatch)
        assert build_store(dataset_config(made.raw), tmp_path) == store
    assert done == []
    assert not (tmp_path / ".made.zarr.partial").exists()


def test_another_plan_never_replaces_a_store(made: Made, inline: None) -> None:
    before = tree(made.zarr.parent)
    with pytest.raises(DataError, match=r"trajectories_per_shard: 3 there, 2 asked for"):
        build_store(dataset_config(made.raw, per_shard=2), made.zarr.parent)
    with pytest.raises(DataError, match=r'config.dtype: "float32" there, "float16" asked for'):
        export_shards(made.zarr, made.shards.parent, ExportConfig(trajectories_per_shard=2, dtype="float16"))
    assert tree(made.zarr.parent) == before


def test_a_foreign_folder_is_never_replaced(made: Made, tmp_path: Path, inline: None) -> None:
    (tmp_path / "made.zarr").mkdir()
    (tmp_path / "made.zarr/precious").write_text("x")
    with pytest.raises(DataError, match="not a finished dataset"):
        build_store(dataset_config(made.raw), tmp_path)
    assert (tmp_path / "made.zarr/precious").exists()


def test_a_damaged_store_is_not_up_to_date(made: Made, tmp_path: Path, inline: None) -> None:
    path = copy_of(made, "zarr", tmp_path)
    delete(path / SHARD)
    with pytest.raises(DataError, match=SHARD):
        build_store(dataset_config(made.raw), tmp_path)
    with pytest.raises(DataError, match=SHARD):
        export_shards(path, tmp_path, ExportConfig())


def test_a_full_disk_is_noticed_before_the_work(
    made: Made, tmp_path: Path, inline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    done = interrupt_after(-1, monkeypatch)
    with pytest.raises(DataError, match="disk is too small"):
        build_store(dataset_config(made.raw), tmp_path)
    assert done == []


def test_the_estimate_covers_the_dataset(made: Made) -> None:
    for path, itemsize in ((made.zarr, 4), (made.half, 2)):
        manifest = read_manifest(path)
        data = sum(f.size for s in manifest.splits.values() for n, f in s.files.items() if not n.endswith(".json"))
        estimate = 9 * (build.trajectory_bytes(manifest.info, itemsize) + (TAR_OVERHEAD if itemsize == 2 else 0))
        assert 0.6 * data < estimate < 1.5 * data


def test_shards_cannot_be_exported_again(made: Made, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a Zarr store"):
        export_shards(made.shards, tmp_path, ExportConfig())


# What a source may not give

INFO = DatasetInfo(
    name="x",
    channels=("a",),
    space=(4,),
    frames=3,
    dt=1.0,
    axes=("x",),
    extent=((0.0, 1.0),),
    boundaries=("periodic",),
    parameters=("nu",),
    static_channels=("mask",),
)
GOOD = Trajectory(np.ones((3, 4, 1), np.float32), np.arange(3.0), {"nu": 1.0}, np.ones((4, 1), np.float32), {})
NOT_FINITE = np.array([1.0, np.inf, 1.0, np.nan], np.float32)[:, None]
BAD = {
    "wrong shape": replace(GOOD, fields=np.ones((2, 4, 1), np.float32)),
    "wrong shape.*static": replace(GOOD, static=None),
    "NaN or Inf.*fields": replace(GOOD, fields=np.stack([NOT_FINITE] * 3)),
    "NaN or Inf.*static": replace(GOOD, static=NOT_FINITE),
    "NaN or Inf.*parameters": replace(GOOD, parameters={"nu": np.nan}),
    "wrong type": replace(GOOD, fields=np.ones((3, 4, 1))),  # type: ignore[arg-type]
    "do not increase": replace(GOOD, times=np.array([0.0, 2.0, 2.0])),
    "wrong parameters": replace(GOOD, parameters={"mu": 1.0}),
}


@pytest.mark.parametrize("problem", BAD)
def test_a_bad_trajectory_is_refused(problem: str) -> None:
    check_trajectory(GOOD, INFO, "here")
    with pytest.raises(DataError, match=f"(?s){problem}"):
        check_trajectory(BAD[problem], INFO, "here")


def test_a_duplicate_trajectory_is_refused(tmp_path: Path, inline: None) -> None:
    write_dataset(tmp_path / "raw", {"train": 3})
    (tmp_path / "raw/data/test").mkdir()
    shutil.copy(tmp_path / "raw/data/train/train.hdf5", tmp_path / "raw/data/test/test.hdf5")
    with pytest.raises(DataError, match=r"(?s)twice.*train 0.*test 0"):
        build_store(dataset_config(tmp_path / "raw"), tmp_path)
    assert not (tmp_path / "made.zarr").exists()


def test_a_dataset_without_parameters_or_static_fields_or_train(tmp_path: Path, inline: None) -> None:
    written = write_dataset(tmp_path / "raw", {"test": 2}, scalars={})
    store = build_store(dataset_config(tmp_path / "raw"), tmp_path)
    exported = export_shards(store, tmp_path, ExportConfig())
    assert read_manifest(store).statistics_split == "test"
    for path in (store, exported):
        opened = open_store(path, "test")
        assert opened.parameters(1) == {}
        np.testing.assert_array_equal(
            read_window(opened, 1, 0, FRAMES)[..., 0], written["test"].channels["density"][1].astype(np.float32)
        )
    with tarfile.open(exported / "test-000000.tar") as tar:
        assert np.load(io.BytesIO(tar.extractfile("made-test-000001.fields.npy").read())).shape == (5, 8, 6, 3)  # type: ignore[union-attr]


def test_a_source_without_trajectories_is_refused(tmp_path: Path, inline: None) -> None:
    write_dataset(tmp_path / "raw", {"train": 2})
    config = dataset_config(tmp_path / "raw")
    assert config.convert is not None
    empty_config = config.model_copy(update={"convert": config.convert.model_copy(update={"limit": {"train": 0}})})
    with pytest.raises(DataError, match="no trajectories"):
        build_store(empty_config, tmp_path)
