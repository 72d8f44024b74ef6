"""A training run small enough for tests: two tiny datasets, a nano operator, a few steps on two real ranks."""

import itertools
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from data_pipeline.base.config import build, load
from data_pipeline.config import DatasetConfig
from launch.datasets import make_datasets
from pretrain.config import PretrainConfig
from pretrain.job import prepare_pretraining
from tests import well_files
from tests.rank_group import run_in_ranks

ROOT = Path(__file__).resolve().parents[1]
STEPS, EVERY = 12, 3
MODEL = {"width": 16, "depth": 1, "mlp_ratio": 1, "heads": 2, "head_width": 8, "patch_size": 4}


def write_dataset(
    folder: Path, name: str, fields: tuple[str, ...] = ("density",), space: tuple[int, ...] = (16, 16)
) -> Path:
    """Raw files in The Well's layout, and the configuration that converts them; returns the configuration's path."""
    raw = folder / "raw" / name
    counts = {"train": 6, "valid": 2, "test": 2}
    well_files.write_dataset(raw, counts, frames=8, space=space, fields=(fields, (), ()))
    config = {"name": name, "convert": {"layout": "the_well", "path": str(raw)}}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return folder / f"{name}.yaml"


def make_data(folder: Path) -> dict[str, Any]:
    """Build two datasets; returns the `data` group of a configuration in `folder`."""
    configs = [
        load(DatasetConfig, write_dataset(folder, name, fields))
        for name, fields in (("first", ("density",)), ("second", ("density", "pressure")))
    ]
    make_datasets(configs, folder / "data")
    return {
        "root": str(folder / "data"),
        "history": 4,
        "datasets": [{"config": "first.yaml", "weight": 2}, {"config": "second.yaml"}],
    }


def prepare(
    data: dict[str, Any],
    folder: Path,
    *,
    model: dict[str, Any] | None = None,
    new_segment: bool = False,
    **training: Any,
) -> Path:
    """Lay out a run below `folder`; the datasets' configurations lie beside `data.root`."""
    config = build(
        PretrainConfig,
        {
            "name": "tiny",
            "output": str(folder),
            "data": data,
            "model": model or MODEL,
            "training": {"steps": STEPS, "batch_size": 8, "micro_batch": 2, "checkpoint_every": EVERY, "log_every": 2}
            | training,
        },
    )
    return prepare_pretraining(config, Path(data["root"]).parent, new_segment=new_segment)[0]


def start_ranks(folder: Path, uri: str, ranks: int = 2) -> subprocess.Popen[bytes]:
    """Start a run in a process group of its own, so that a test can kill all of it."""
    code = (
        "import sys, pathlib, launch.ranks as r; r.run_ranks(pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])"
    )
    command = [sys.executable, "-c", code, str(folder), str(ranks), uri]
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 600) -> None:
    """Until `condition` holds. Fails when the process ends first."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended before the fault could be injected"
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.02)


class Watched(NamedTuple):
    """What one rank saw of its steps."""

    status: str
    positions: list[list[int]]
    """Sample numbers of each step on this rank."""
    losses: list[float]
    """The loss of each step, over all ranks."""


def train_in_ranks(folder: Path, ranks: int, steps: int | None = None) -> list[Watched]:
    """Train the run in `folder` on so many ranks, which are asked to stop after so many steps; what each rank saw."""
    return run_in_ranks(watched, ranks, folder, steps)


def watched(folder: Path, steps: int | None) -> Watched:
    """Train as one rank, without MLflow, whose import and database take longer than the steps."""
    from pretrain import train

    positions: list[list[int]] = []
    losses: list[float] = []
    true_step = train.train_step

    def step(run: Any, *arguments: Any) -> Any:
        result = true_step(run, *arguments)
        positions.append(torch.cat(run.meter.taken[0]).tolist())
        losses.append(result.losses["loss"])
        return result

    train.train_step = step
    train.start_tracker = lambda *_: nullcontext()  # type: ignore[assignment]
    calls = itertools.count(1)
    status = train.train(folder, "", lambda: steps is not None and next(calls) >= steps)
    return Watched(status, positions, losses)


def stream(seen: list[Watched]) -> list[list[int]]:
    """The sample numbers of each step, over all ranks."""
    steps = zip(*(each.positions for each in seen), strict=True)
    return [sorted(itertools.chain.from_iterable(ranks)) for ranks in steps]
