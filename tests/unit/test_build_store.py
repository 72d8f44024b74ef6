"""A build's promises: equal data in equal files however it went; nothing stored that is not what its source says.

Tasks run in this process, one after another; `tests/faults` has them killed.
"""

import io
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline import build, destination, jobs
from data_pipeline.base.errors import DataError
from data_pipeline.base.files import sha256_file
from data_pipeline.build import build_store
from data_pipeline.config import ConvertConfig, DatasetConfig, ExportConfig, StoreConfig
from data_pipeline.export import export_shards, exported_bytes
from data_pipeline.stores import open_store, read_manifest
from data_pipeline.stores.protocol import read_window
from tests.datasets import tasks_inline
from tests.well_files import Written, write_dataset

FRAMES, SPACE, CHANNELS = 5, (8, 6), ("density", "velocity_x", "velocity_y")


@pytest.fixture
def inline() -> Iterator[None]:
    with tasks_inline():
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
    with tasks_inline():
        written = write_dataset(
            root / "raw", {"train": 7, "valid": 2}, static=(("depth",), (), ()), sample_scalars=("drag",)
        )
        store = build_store(dataset_config(root / "raw"), root)
        full = export_shards(store, root, ExportConfig(trajectories_per_shard=2))
        half = export_shards(store, root / "half", ExportConfig(trajectories_per_shard=4, dtype="float16"))
    return Made(root / "raw", written, store, full, half)


def tree(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in folder.rglob("*") if p.is_file()}


# What is measured


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


# The discipline of jobs


SHARD = "train/fields/c/1/0/0/0/0"


class Interrupted(BaseException):
    """Stands for Ctrl-C."""


def interrupt_after(count: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make the next job stop after `count` tasks (for good when negative: never); returns the names of its tasks."""
    done: list[str] = []

    def run_tasks(function: Callable[[Any], Any], arguments: list[Any], _: object, **__: Any) -> Iterator[Any]:
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
    (tmp_path / ".made.zarr.partial/data" / SHARD).write_bytes(b"cut")
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
    monkeypatch.setattr(destination, "remove_tree", lambda path: None)
    store = build_store(dataset_config(made.raw), tmp_path)
    monkeypatch.undo()
    with tasks_inline():
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
    path = shutil.copytree(made.zarr, tmp_path / "made.zarr")
    (path / SHARD).unlink()
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
    for path in (made.zarr, made.half):
        manifest = read_manifest(path)
        data = sum(f.size for s in manifest.splits.values() for n, f in s.files.items() if not n.endswith(".json"))
        zarr = manifest.kind == "zarr"
        one = build.trajectory_bytes(manifest.info) if zarr else exported_bytes(manifest.info, manifest.dtype)
        assert 0.6 * data < 9 * one < 1.5 * data


def test_shards_cannot_be_exported_again(made: Made, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a Zarr store"):
        export_shards(made.shards, tmp_path, ExportConfig())


# Datasets without this or that


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
