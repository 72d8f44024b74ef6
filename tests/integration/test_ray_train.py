"""Training on Ray: the same weights as under torchrun, and either goes on with what the other has begun."""

import signal
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.base.errors import ConfigError, PdepotError
from data_pipeline.workers import ray_session
from launch.launcher import Launcher
from launch.ranks import run_ranks
from launch.ray_train import run
from pretrain.run import read_status
from tests.faults.test_ray_train import LONG, PATIENCE, driver, in_mid_training, weights
from tests.integration.test_cluster import free_port
from tests.training import prepare, start_ranks, wait_for


@pytest.mark.slow
def test_ray_and_torchrun_take_turns(data: dict[str, Any], uri: str, tmp_path: Path) -> None:
    folders = [prepare(data, tmp_path / name, **LONG) for name in ("undisturbed", "ray-first", "torchrun-first")]
    undisturbed, ray_first, torchrun_first = folders
    run_ranks(undisturbed, 2, uri)

    with driver(ray_first, uri) as process:
        wait_for(lambda: in_mid_training(ray_first), process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 1
    assert read_status(ray_first)[0] == "preempted"
    run_ranks(ray_first, 2, uri)

    process = start_ranks(torchrun_first, uri)
    wait_for(lambda: in_mid_training(torchrun_first), process)
    process.send_signal(signal.SIGTERM)
    process.wait(PATIENCE)
    assert read_status(torchrun_first)[0] == "preempted"
    with driver(torchrun_first, uri) as process:
        assert process.wait(PATIENCE) == 0

    assert weights(ray_first) == weights(torchrun_first) == weights(undisturbed)
    left = {path.name for path in ray_first.iterdir()} - {path.name for path in undisturbed.iterdir()}
    assert not left, "Ray has left its own files in the run's folder"


@pytest.mark.slow
def test_an_error_of_the_run_reaches_the_user_as_it_was_raised(data: dict[str, Any], uri: str, tmp_path: Path) -> None:
    folder = prepare(data, tmp_path)
    (folder / "initial/model.safetensors").unlink()
    with driver(folder, uri) as process:
        assert process.wait(PATIENCE) == 1
    status, message = read_status(folder)
    assert status == "failed"
    assert "model.safetensors" in message


def test_a_password_in_the_tracking_uri_does_not_reach_ray(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)password.*anna:\*\*\*@.*MLFLOW_TRACKING_PASSWORD") as error:
        run(tmp_path, 2, "http://anna:secret@server:5000", address=None, use_gpu=False, max_failures=0)
    assert "secret" not in str(error.value)


def test_more_gpus_than_there_are_is_refused(tmp_path: Path) -> None:
    with ray_session(), pytest.raises(PdepotError, match=r"(?s)too few GPUs.*expected: 4096.*ray status"):
        run(tmp_path, 4096, "sqlite:///unused.db", address=None, use_gpu=True, max_failures=0)


def test_a_job_of_ray_finds_its_cluster_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(PdepotError, match=rf"(?s)no Ray cluster answers.*{address}"):
        run(tmp_path, 2, "sqlite:///unused.db", address=Launcher("ray").cluster(), use_gpu=False, max_failures=0)
