"""What a build takes from a source and what it refuses, for every kind of dataset."""

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline import build
from data_pipeline.base.errors import DataError
from data_pipeline.build import build_store, check_trajectory
from data_pipeline.config import DatasetConfig, StoreConfig
from data_pipeline.stores import open_store, read_manifest, verify
from data_pipeline.stores.protocol import read_window
from data_pipeline.trajectory import DatasetInfo, Trajectory
from tests.datasets import MemorySource, make_info, make_trajectories, tasks_inline, write_store

INFO = make_info((4, 3), frames=3)
GOOD = make_trajectories(INFO, {"train": 1})["train"][0]


def spoilt(name: str, value: float) -> np.ndarray:
    values: np.ndarray = getattr(GOOD, name).copy()
    values.flat[5] = value
    return values


BAD: dict[str, dict[str, Any]] = {
    "wrong shape.*fields": {"fields": GOOD.fields[:2]},
    "wrong shape.*static": {"static": None},
    "wrong shape.*times": {"times": GOOD.times[:2]},
    "NaN or Inf.*fields": {"fields": spoilt("fields", np.nan)},
    "(?#inf)NaN or Inf.*fields": {"fields": spoilt("fields", -np.inf)},
    "NaN or Inf.*static": {"static": spoilt("static", np.inf)},
    "NaN or Inf.*parameters": {"parameters": {"viscosity": 1.0, "drag": np.nan}},
    "NaN or Inf.*times": {"times": np.array([0, np.nan, 1])},
    "wrong type": {"fields": GOOD.fields.astype(np.float64)},
    "do not increase": {"times": np.array([0.0, 2.0, 2.0])},
    "wrong parameters": {"parameters": {"viscosity": 1.0, "mu": 1.0}},
    "mask is not as the dataset says.*found: no mask": {"mask": None},
    r"wrong mask.*bool \(3, 4\)": {"mask": np.ones((3, 4), bool)},
    "wrong mask.*float32": {"mask": np.ones((4, 3), np.float32)},
    "no point belongs to the domain": {"mask": np.zeros((4, 3), bool)},
}


@pytest.mark.parametrize("problem", BAD)
def test_a_bad_trajectory_is_refused(problem: str) -> None:
    check_trajectory(GOOD, INFO, "here")
    one = replace(GOOD, **BAD[problem], provenance={"file": "raw.h5"})
    with pytest.raises(DataError, match=f"(?s){problem}") as caught:
        check_trajectory(one, INFO, "here")
    assert "file: raw.h5" in str(caught.value)


def test_a_mask_that_the_dataset_does_not_know_is_refused() -> None:
    with pytest.raises(DataError, match=r"(?s)mask is not as the dataset says.*found: a mask"):
        check_trajectory(GOOD, make_info((4, 3), frames=3, masked=False), "here")


def test_a_steady_dataset_is_built(tmp_path: Path) -> None:
    info = make_info((6, 4), frames=1)
    trajectories = make_trajectories(info, {"train": 3, "test": 2})
    store = write_store(tmp_path, info, trajectories)
    assert verify(store) == []
    opened = open_store(store, "test")
    for number, one in enumerate(trajectories["test"]):
        np.testing.assert_array_equal(read_window(opened, number, 0, 1), one.fields)
        np.testing.assert_array_equal(opened.static(number), one.static)  # type: ignore[arg-type]
    assert opened.statistics.change_rms == (0.0, 0.0)


def test_what_lies_outside_of_the_mask_does_not_count(tmp_path: Path) -> None:
    trajectories = make_trajectories(INFO, {"train": 3})
    plain = read_manifest(write_store(tmp_path / "plain", INFO, trajectories))
    filled = []
    for one in trajectories["train"]:
        assert one.mask is not None
        filled.append(replace(one, fields=np.where(one.mask[..., None], one.fields, np.float32(1e6))))
    other = read_manifest(write_store(tmp_path / "filled", INFO, {"train": filled}))
    assert other.statistics == plain.statistics
    assert other.digest != plain.digest


def test_every_number_counts_for_the_digest(tmp_path: Path) -> None:
    def digest(one: Trajectory, name: str) -> str:
        return read_manifest(write_store(tmp_path / name, INFO, {"train": [one]})).digest

    mask = np.ones((4, 3), bool)
    others = [
        GOOD,
        replace(GOOD, fields=spoilt("fields", 7.0)),
        replace(GOOD, static=spoilt("static", 7.0)),
        replace(GOOD, times=GOOD.times + 1),
        replace(GOOD, parameters={**GOOD.parameters, "drag": 7.0}),
        replace(GOOD, mask=mask),
    ]
    assert len({digest(one, str(i)) for i, one in enumerate(others)}) == len(others)
    assert digest(replace(GOOD, provenance={"index": 9}), "elsewhere") == digest(GOOD, "again")


def test_a_solution_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    """Also when other parameters are said to belong to it; but two inputs may have one solution."""
    first, second = make_trajectories(INFO, {"train": 2})["train"]
    same = replace(first, parameters=second.parameters, times=first.times + 1, mask=second.mask)
    with pytest.raises(DataError, match=r"(?s)twice.*train 1 .*test 0 "):
        write_store(tmp_path, INFO, {"train": [second, first], "test": [same]})
    assert not (tmp_path / "made.zarr").exists()
    other = replace(first, static=second.static)
    assert write_store(tmp_path / "other", INFO, {"train": [second, first], "test": [other]}).exists()


def config(per_shard: int) -> DatasetConfig:
    return DatasetConfig.model_construct(
        name="made", generate=None, convert=None, store=StoreConfig(trajectories_per_shard=per_shard)
    )


class Lazy(MemorySource):
    """Makes each trajectory when it is asked for; `surplus` more than it should."""

    surplus = 0

    def fingerprint(self) -> str:
        return f"{super().fingerprint()} {self.surplus}"

    def read(self, split: str, start: int, stop: int) -> Iterator[Trajectory]:
        for number in range(start, stop + self.surplus):
            yield make_trajectories(self.info, {split: 1}, seed=number)[split][0]


@pytest.mark.parametrize("surplus", [-1, 1])
def test_a_source_that_gives_too_few_or_too_many_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, surplus: int
) -> None:
    source = Lazy(INFO, {"train": [GOOD] * 2})
    source.surplus = surplus
    monkeypatch.setattr(build, "open_source", lambda _: source)
    with tasks_inline(), pytest.raises(DataError, match=f"(?s)gave .*{1 if surplus < 0 else 2} traj.*expected: 2"):
        build_store(config(2), tmp_path)
    assert not list(tmp_path.glob("made.zarr"))


def test_a_build_holds_one_trajectory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info: DatasetInfo = make_info((128, 128), frames=64, masked=False)
    size = 64 * 128 * 128 * 2 * 4
    monkeypatch.setattr(build, "open_source", lambda _: Lazy(info, {"train": [GOOD] * 4}))
    with tasks_inline():
        tracemalloc.start()
        build_store(config(4), tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert size < peak < 1.8 * size


def test_a_worker_opens_the_source_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source may have the headers of ten thousand files to read."""
    sources = []

    def open_source(_: DatasetConfig) -> MemorySource:
        sources.append(MemorySource(INFO, make_trajectories(INFO, {"train": 4})))
        return sources[-1]

    monkeypatch.setattr(build, "open_source", open_source)
    with tasks_inline():
        build_store(config(1), tmp_path)
    assert len(sources) == 2  # for the plan, and for the four tasks


def test_a_file_url_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "open_source", lambda _: MemorySource(INFO, {"train": [GOOD]}))
    with tasks_inline():
        store = build_store(config(1), f"file://{tmp_path}/data/")
    assert Path(store) == tmp_path / "data/made.zarr"
    np.testing.assert_array_equal(read_window(open_store(store, "train"), 0, 0, 3), GOOD.fields)
