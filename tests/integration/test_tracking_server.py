"""Tracking with a real MLflow server that is killed, stopped and started in between: the run goes on, and the figures
arrive later, each once, in the same MLflow run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.base.errors import RegistryError
from data_pipeline.base.files import read_json, write_json
from launch.cli import main
from pretrain.metrics_log import read_history
from pretrain.run import read_status
from pretrain.tracking import Tracker, connect
from tests.mlflow_servers import MlflowServer, mlflow_server
from tests.training import STEPS, prepare, start_ranks, wait_for

ROOT = Path(__file__).resolve().parents[2]
TRAIN = """
import sys, time
from pathlib import Path
from pretrain.tracking import Tracker
uri, folder, first, last = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
with Tracker.start(uri, "tests", "run", folder / "tracking.json") as tracker:
    tracker.begin(first)
    for step in range(first + 1, last + 1):
        tracker.metrics(step, {"loss": 1 / step, "clock": time.time()})
        time.sleep(0.02)
    tracker.finish("FINISHED")
"""


def start_training(server: MlflowServer, folder: Path, first: int, last: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", TRAIN, server.uri, str(folder), str(first), str(last)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def until(condition: Callable[[], bool], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


def steps_noted(folder: Path) -> int:
    return max(read_history(folder).steps, default=0)


def delivered(folder: Path) -> int:
    """The last step that the server has got."""
    file = folder / "tracking.json"
    return int(read_json(file)["sent"].get("loss", 0)) if file.exists() else 0


def points(server: MlflowServer, folder: Path, name: str = "loss") -> list[tuple[int, float]]:
    run_id = read_json(folder / "tracking.json")["run_id"]
    return sorted((m.step, m.value) for m in connect(server.uri).get_metric_history(run_id, name))


def status(server: MlflowServer, folder: Path) -> str:
    return str(connect(server.uri).get_run(read_json(folder / "tracking.json")["run_id"]).info.status)


def test_a_server_that_stops_answering_holds_nothing_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    with mlflow_server(tmp_path / "server") as server:
        with Tracker.start(server.uri, "tests", "run", folder / "tracking.json") as tracker:
            tracker.begin(0)
            tracker.params({"rate": 0.1})
            tracker.metrics(1, {"loss": 1.0})
            assert tracker.flush(600)
            server.stop()
            tracker.metrics(2, {"loss": 1 / 2})
            assert not tracker.flush(0.5)  # the sender is now waiting for an answer
            before = time.monotonic()
            for step in range(3, 300):
                tracker.metrics(step, {"loss": 1 / step})
            tracker.figure(b"png", "error.png")
            tracker.tags({"note": "said to a stopped server"})
            assert time.monotonic() - before < 10  # what one request to such a server takes
            assert delivered(folder) == 1
            server.go_on()
            until(lambda: tracker.flush(60))
            assert points(server, folder) == [(step, 1 / step) for step in range(1, 300)]
            client = connect(server.uri)
            assert [f.path for f in client.list_artifacts(tracker.run_id, "figures")] == ["figures/error.png"]
            assert client.get_run(tracker.run_id).data.tags["note"] == "said to a stopped server"
            server.kill()
            tracker.metrics(300, {"loss": 1 / 300})
            tracker.finish("FINISHED")
        assert f"pdepot runs sync {folder}" in capsys.readouterr().out
        with pytest.raises(RegistryError, match=server.uri):
            Tracker.start(server.uri, "tests", "new", tmp_path / "new" / "tracking.json")
        # A run that has begun needs no server to go on.
        with Tracker.start(server.uri, "tests", "run", folder / "tracking.json") as tracker:
            tracker.metrics(301, {"loss": 1 / 301})
        assert steps_noted(folder) == 301


@pytest.mark.slow
def test_kills_of_the_server_and_of_the_run_lose_and_double_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    (folder / "initial").mkdir(parents=True)
    write_json(folder / "config.json", {"name": "run", "training": {"steps": 10**6}})
    with mlflow_server(tmp_path / "server") as server:
        # The server dies first, then the run: with figures that were never sent.
        run = start_training(server, folder, 0, 10**6)
        until(lambda: delivered(folder) > 0)
        run_id = read_json(folder / "tracking.json")["run_id"]
        server.kill()
        noted = steps_noted(folder)
        until(lambda: steps_noted(folder) > noted + 100)
        run.send_signal(signal.SIGKILL)
        run.wait()
        reached = steps_noted(folder)
        assert delivered(folder) < reached

        # It goes on from an earlier step without a server, which comes back while it runs.
        checkpoint = reached - 40
        run = start_training(server, folder, checkpoint, 10**6)
        until(lambda: read_history(folder).starts == 2 and steps_noted(folder) > reached)
        server.start()
        until(lambda: delivered(folder) > reached)
        run.send_signal(signal.SIGKILL)
        run.wait()
        assert status(server, folder) == "RUNNING"
        server.kill()

        # And once more, to its end, without a server.
        checkpoint = steps_noted(folder) - 10
        run = start_training(server, folder, checkpoint, checkpoint + 100)
        output, _ = run.communicate(timeout=600)
        assert run.returncode == 0, output
        assert f"pdepot runs sync {folder}" in output
        assert len(output.splitlines()) == 2, output  # that it fails, and what is left to do

        assert main(["runs", "sync", str(folder)]) == 1
        assert "MLflow cannot be used" in capsys.readouterr().err
        server.start()
        assert main(["runs", "sync", str(folder)]) == 0
        assert main(["runs", "sync", str(folder)]) == 0
        assert read_json(folder / "tracking.json")["run_id"] == run_id
        assert points(server, folder) == [(step, 1 / step) for step in range(1, checkpoint + 101)]
        assert [step for step, _ in points(server, folder, "clock")] == list(range(1, checkpoint + 101))
        assert status(server, folder) == "FINISHED"


@pytest.mark.slow
def test_a_training_goes_on_without_its_server(data: dict[str, Any], tmp_path: Path) -> None:
    folder = prepare(data, tmp_path / "job", log_every=1)
    with mlflow_server(tmp_path / "server") as server:
        process = start_ranks(folder, server.uri)
        wait_for(lambda: (folder / "tracking.json").exists(), process)
        server.kill()
        assert process.wait(timeout=600) == 0
        assert read_status(folder)[0] == "finished"
        assert list(read_history(folder).steps) == list(range(1, STEPS + 1))
        server.start()
        assert main(["runs", "sync", str(folder)]) == 0
        assert [step for step, _ in points(server, folder)] == list(range(1, STEPS + 1))
        assert status(server, folder) == "FINISHED"
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ
