"""Small datasets of random numbers with everything a dataset can have, as stores and as shards."""

import hashlib
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline import build, jobs
from data_pipeline.base.config import build as typed
from data_pipeline.build import build_store
from data_pipeline.config import DatasetConfig, StoreConfig
from data_pipeline.stores.manifest import FileRecord, Manifest, SplitRecord, write_manifest
from data_pipeline.stores.protocol import Statistics
from data_pipeline.stores.shard_index import index_name, write_index
from data_pipeline.stores.shard_writer import write_shard
from data_pipeline.stores.shards import shard_name
from data_pipeline.trajectory import DatasetInfo, Trajectory

Trajectories = dict[str, list[Trajectory]]


def make_info(space: tuple[int, ...] = (6, 4), frames: int = 5, **more: Any) -> DatasetInfo:
    """Two channels, two static ones, a mask and two parameters, unless `more` says otherwise."""
    content = {
        "name": "made",
        "channels": ("density", "speed"),
        "space": space,
        "frames": frames,
        "dt": 0.1 if frames > 1 else 0.0,
        "axes": ("x", "y", "z")[: len(space)],
        "extent": tuple((0.0, 1.0) for _ in space),
        "boundaries": tuple("periodic" for _ in space),
        "parameters": ("viscosity", "drag"),
        "static_channels": ("depth", "forcing"),
        "masked": True,
    }
    return typed(DatasetInfo, content | more)


def make_trajectories(info: DatasetInfo, counts: Mapping[str, int], seed: int = 0) -> Trajectories:
    """Random trajectories of each split."""
    rng = np.random.default_rng(seed)

    def one(number: int) -> Trajectory:
        mask = rng.random(info.space) < 0.8
        mask.flat[0] = True
        return Trajectory(
            fields=rng.standard_normal((info.frames, *info.space, len(info.channels)), np.float32),
            times=info.dt * np.arange(info.frames, dtype=np.float64),
            parameters={name: float(rng.random()) for name in info.parameters},
            static=rng.random((*info.space, len(info.static_channels)), np.float32) if info.static_channels else None,
            mask=mask if info.masked else None,
            provenance={"index": number},
        )

    return {split: [one(number) for number in range(count)] for split, count in counts.items()}


@dataclass
class MemorySource:
    """A source whose trajectories lie in memory."""

    info: DatasetInfo
    trajectories: Trajectories

    @property
    def splits(self) -> dict[str, int]:
        return {split: len(of_split) for split, of_split in self.trajectories.items()}

    def read(self, split: str, start: int, stop: int) -> Iterator[Trajectory]:
        yield from self.trajectories[split][start:stop]

    def fingerprint(self) -> str:
        return hashlib.sha256(pickle.dumps(self.trajectories)).hexdigest()


@contextmanager
def tasks_inline() -> Iterator[None]:
    """Run the tasks of a job in this process, one after another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "ray_session", lambda address: nullcontext())
        patch.setattr(jobs, "run_tasks", lambda function, arguments, _, **__: (function(a) for a in arguments))
        yield


def write_store(root: Path, info: DatasetInfo, trajectories: Trajectories, per_shard: int = 2) -> Path:
    """The trajectories as a Zarr store `<root>/<name>.zarr`, built in this process."""
    config = DatasetConfig.model_construct(
        name=info.name, generate=None, convert=None, store=StoreConfig(trajectories_per_shard=per_shard)
    )
    with tasks_inline(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "open_source", lambda _: MemorySource(info, trajectories))
        return Path(str(build_store(config, root)))


def write_shards(folder: Path, info: DatasetInfo, trajectories: Trajectories, per_shard: int = 2) -> Path:
    """The trajectories as committed shards in `folder`, without a store before them and without the build."""
    folder.mkdir(parents=True)
    splits: dict[str, SplitRecord] = {}
    for split, of_split in trajectories.items():
        files: dict[str, FileRecord] = {}
        entries: list[tuple[int, dict[str, Any]]] = []
        for shard, start in enumerate(range(0, len(of_split), per_shard)):
            name, some = shard_name(split, shard), of_split[start : start + per_shard]
            files[name], written = write_shard(folder / name, f"{info.name}-{split}", start, some)
            entries += [(shard, entry) for entry in written]
        name = index_name(split)
        files[name] = write_index(folder / name, info, len(entries), iter(entries))
        splits[split] = SplitRecord(trajectories=len(of_split), files=files)
    write_manifest(folder, make_manifest(info, splits))
    return folder


def make_manifest(info: DatasetInfo, splits: Mapping[str, SplitRecord]) -> Manifest:
    """A manifest of shards whose statistics say nothing."""
    zeros: Sequence[float] = tuple(0.0 for _ in info.channels)
    content = {
        "kind": "shards",
        "info": info,
        "digest": "d",
        "statistics": Statistics(mean=zeros, std=zeros, rms=zeros, min=zeros, max=zeros, change_rms=zeros),
        "statistics_split": next(iter(splits)),
        "splits": dict(splits),
        "files": {},
        "plan": {},
        "plan_digest": "",
        "code_version": "",
    }
    return Manifest.model_validate(content)
