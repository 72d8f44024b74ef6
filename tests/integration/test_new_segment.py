"""Data changed within a run, on two real ranks: another dataset joins, and kills still change nothing."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from data_pipeline.base.config import load
from data_pipeline.base.errors import PdepotError
from data_pipeline.base.files import read_json, write_json
from data_pipeline.config import DatasetConfig
from launch.datasets import make_datasets
from launch.ranks import run_ranks
from pretrain.comparison import read_run
from pretrain.model.operator import load_operator_files
from pretrain.run import read_status
from tests.training import prepare, start_ranks, wait_for, write_dataset

pytestmark = pytest.mark.slow


def stopped_after(folder: Path, uri: str, count: int) -> None:
    """Train until there are so many checkpoints, and kill everything."""
    process = start_ranks(folder, uri)
    wait_for(lambda: len(list((folder / "checkpoints").glob("step-*"))) >= count, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_run_goes_on_with_a_dataset_that_joins(data: dict[str, Any], uri: str, tmp_path: Path) -> None:
    folder = Path(data["root"]).parent
    make_datasets([load(DatasetConfig, write_dataset(folder, "third", ("pressure",)))], folder / "data")
    joined = data | {
        "datasets": [*data["datasets"], {"config": "third.yaml", "weight": 3}],
        "quarantine": [{"dataset": "first", "trajectories": [0], "reason": "a test"}],
    }
    run = prepare(data, tmp_path / "a")
    stopped_after(run, uri, 1)
    prepare(joined, tmp_path / "a", new_segment=True)
    first = read_run(run).first_step
    assert first in (3, 6, 9)
    shutil.copytree(tmp_path / "a", tmp_path / "b")

    run_ranks(run, 2, uri)
    assert read_status(run) == ("finished", "")
    assert [d.name for d in load_operator_files(run / "final").config.datasets] == ["first", "second", "third"]
    client, run_id = MlflowClient(uri), read_json(run / "tracking.json")["run_id"]
    assert all(m.step > first for m in client.get_metric_history(run_id, "loss/third"))
    assert client.get_metric_history(run_id, "loss/third")

    # The same once more, from a copy of the folder, with another kill on the way if there is time for one.
    again = tmp_path / "b" / "pretrain"
    if first < 9:
        stopped_after(again, uri, 2)
    run_ranks(again, 2, uri)
    weights = [(each / "final" / "model.safetensors").read_bytes() for each in (run, again)]
    assert weights[0] == weights[1]

    # Edited by hand, behind the back of the checkpoints.
    config = read_json(again / "config.json")
    config["past"][0]["data"][0]["weight"] = 7
    write_json(again / "config.json", config)
    shutil.rmtree(again / "final")
    with pytest.raises(PdepotError, match=r"(?s)cannot be continued.*schedule.*by hand in config\.json"):
        run_ranks(again, 2, uri)
