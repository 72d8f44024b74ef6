"""Tracking: one MLflow run through kills and restarts; a server that is away costs lines, not the training."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_pipeline.base.errors import RegistryError
from data_pipeline.base.files import read_json
from pretrain import tracking
from pretrain.tracking import Tracker, check_reachable, connect, default_uri, flatten, ui_command

from mlflow import MlflowClient  # isort: skip
from mlflow.exceptions import MlflowException  # isort: skip

ROOT = Path(__file__).resolve().parents[2]
START = """
import sys
from pathlib import Path
from pretrain.tracking import Tracker
Tracker.start(sys.argv[1], "together", "run", Path(sys.argv[2])).finish("FINISHED")
"""


@pytest.fixture(scope="module")
def starters(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[tuple[int, str]]]:
    """Two processes that open the same new database and the same new experiment at once: its URI, their outcomes."""
    folder = tmp_path_factory.mktemp("tracking")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", START, uri, str(folder / f"{name}.json")], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for name in ("first", "second")
    ]  # fmt: skip
    return uri, [(process.returncode, output) for process in processes for output, _ in [process.communicate()]]


@pytest.fixture(scope="module")
def uri(starters: tuple[str, list[tuple[int, str]]]) -> str:
    return starters[0]


@pytest.fixture
def tracker(uri: str, tmp_path: Path) -> Tracker:
    return start(uri, tmp_path)


def start(uri: str, folder: Path, experiment: str = "tests") -> Tracker:
    return Tracker.start(uri, experiment, "run", folder / "tracking.json")


def history(tracker: Tracker, name: str) -> list[tuple[int, float]]:
    points = connect(tracker.uri).get_metric_history(tracker.run_id, name)
    return sorted((point.step, point.value) for point in points)


def test_two_processes_share_a_new_database_and_experiment(starters: tuple[str, list[tuple[int, str]]]) -> None:
    uri, outcomes = starters
    assert [code for code, _ in outcomes] == [0, 0], outcomes
    client = connect(uri)
    experiment = client.get_experiment_by_name("together")
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_mlflow_is_silent(starters: tuple[str, list[tuple[int, str]]]) -> None:
    lines = [line for _, output in starters[1] for line in output.splitlines()]
    assert [line for line in lines if not line.startswith("waiting: another process")] == []


def test_a_killed_run_goes_on_and_repeats_no_step(uri: str, tmp_path: Path) -> None:
    first = start(uri, tmp_path)
    for step in range(6):
        first.metrics(step, {"loss": 1.0 / (step + 1)})
    first.flush()
    first.metrics(6, {"loss": 0.5})  # not sent when the process dies

    second = start(uri, tmp_path)
    assert second.run_id == first.run_id
    for step in range(3, 9):
        second.metrics(step, {"loss": 1.0 / (step + 1), "late": float(step)})
    second.finish("FINISHED")
    assert history(second, "loss") == [(step, 1.0 / (step + 1)) for step in range(9)]
    assert [step for step, _ in history(second, "late")] == list(range(3, 9))
    assert connect(uri).get_run(second.run_id).info.status == "FINISHED"


def test_a_run_that_the_server_has_lost_is_replaced(
    uri: str, tracker: Tracker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.metrics(5, {"loss": 1.0})
    tracker.flush()
    connect(uri).delete_run(tracker.run_id)
    replacement = start(uri, tmp_path)
    assert replacement.run_id != tracker.run_id
    assert tracker.run_id in capsys.readouterr().out
    replacement.metrics(5, {"loss": 2.0})
    replacement.finish("FINISHED")
    assert history(replacement, "loss") == [(5, 2.0)]
    assert read_json(tmp_path / "tracking.json")["run_id"] == replacement.run_id


def test_many_and_long_parameters(uri: str, tracker: Tracker) -> None:
    tracker.params({"model": {f"p{i}": i for i in range(130)}, "long": "x" * 9000, "empty": "", "odd (name)": None})
    params = connect(uri).get_run(tracker.run_id).data.params
    assert params["model.p129"] == "129"
    assert params["long"] == "x" * 6000
    assert params["odd _name_"] == "null"
    assert params["empty"] == ""


def test_a_changed_configuration_is_told_and_its_metrics_are_logged(uri: str, tmp_path: Path) -> None:
    first = start(uri, tmp_path)
    first.params({"rate": 0.1, "steps": 10})
    first.metrics(1, {"loss": 1.0})
    first.flush()

    second = start(uri, tmp_path)
    second.params({"rate": 0.2, "steps": 10})
    second.metrics(1, {"loss": 2.0})
    second.finish("FINISHED")
    data = connect(uri).get_run(second.run_id).data
    assert data.params == {"rate": "0.1", "steps": "10"}
    assert {key: value for key, value in data.tags.items() if key.startswith("changed")} == {"changed.rate": "0.2"}
    assert history(second, "loss") == [(1, 1.0), (1, 2.0)]


def test_metrics_are_sent_together(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr(tracker._client, "log_batch", lambda *_, metrics: sent.append(len(metrics)))
    clock = set_clock(monkeypatch, tracker)
    for step in range(50):
        tracker.metrics(step, {"a": 0.0, "b": 0.0})
    assert sent == []
    clock.now += 60
    tracker.metrics(50, {"a": 0.0})
    assert sent == [101]
    for step in range(51, 1300):
        tracker.metrics(step, {"a": 0.0})
    tracker.flush()
    assert sent == [101, 1000, 249]


def test_figures_wait_for_a_server_that_comes_back(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    attempts = []

    def refuse(*_: Any, **__: Any) -> None:
        attempts.append(1)
        raise MlflowException("no answer")

    clock = set_clock(monkeypatch, tracker)
    with monkeypatch.context() as away:
        away.setattr(tracker._client, "log_batch", refuse)
        for step in range(100):
            clock.now += 1
            tracker.metrics(step, {"loss": float(step)})
        tracker.tags({"note": "lost"})
    # Pauses of 5, 10, 20 and 40 seconds, not one attempt a second.
    assert len(attempts) == 4 + 1
    assert "no answer" in capsys.readouterr().out
    tracker.finish("FINISHED")
    assert history(tracker, "loss") == [(step, float(step)) for step in range(100)]


def set_clock(monkeypatch: pytest.MonkeyPatch, tracker: Tracker) -> SimpleNamespace:
    """A clock for the tracker that stands still until it is told."""
    clock = SimpleNamespace(now=tracker._next_flush - 5.0)
    monkeypatch.setattr(tracking, "time", SimpleNamespace(monotonic=lambda: clock.now, time=lambda: 1.7e9))
    return clock


def test_unsent_figures_are_counted(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise MlflowException("no answer")

    monkeypatch.setattr(tracker._client, "log_batch", refuse)
    tracker.metrics(0, {"a": 0.0, "b": 0.0})
    tracker.finish("FINISHED")
    assert "2 figures could not be sent" in capsys.readouterr().out


def test_values_that_are_not_finite_and_names_that_mlflow_refuses(tracker: Tracker) -> None:
    tracker.metrics(1, {"loss (mean)": float("nan"), "norm": float("inf")})
    tracker.finish("FAILED")
    assert len(history(tracker, "loss _mean_")) == 1
    assert len(history(tracker, "norm")) == 1


def test_figures_and_artifacts_lie_beside_the_database(uri: str, tracker: Tracker, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("report")
    tracker.figure(b"png", "error.png")
    tracker.figure(b"png", "toy/rollout.png")
    tracker.artifact(tmp_path / "report.html", "pages")
    tracker.tags({"host": {"ranks": 2}})
    tracker.finish("FINISHED")
    artifacts = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts" / tracker.run_id / "artifacts"
    found = {str(path.relative_to(artifacts)) for path in artifacts.rglob("*") if path.is_file()}
    assert found == {"figures/error.png", "figures/toy/rollout.png", "pages/report.html"}
    assert connect(uri).get_run(tracker.run_id).data.tags["host.ranks"] == "2"


def test_a_missing_artifact_does_not_stop_the_training(
    tracker: Tracker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.artifact(tmp_path / "missing.html")
    assert "missing.html is not uploaded" in capsys.readouterr().out


@pytest.mark.timeout(60)  # MLflow's own patience is longer
@pytest.mark.parametrize("place", ["http://127.0.0.1:9", "sqlite:///{tmp}/file/mlflow.db", "file://{tmp}/runs"])
def test_a_server_that_is_not_there_is_found_out_at_once(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    uri = place.format(tmp=tmp_path)
    before = dict(os.environ)
    with pytest.raises(RegistryError, match="MLFLOW_TRACKING_URI") as error:
        Tracker.start(uri, "tests", "run", tmp_path / "tracking.json")
    assert uri in str(error.value)
    assert not (tmp_path / "tracking.json").exists()
    assert os.environ == before


@pytest.mark.timeout(60)
def test_a_database_that_is_damaged_or_locked_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_SECONDS_FOR_SQLITE_LOCK", 0.1)
    (tmp_path / "damaged.db").write_bytes(b"not a database" * 100)
    with pytest.raises(RegistryError, match="not a database"):
        check_reachable(f"sqlite:///{tmp_path / 'damaged.db'}")
    holder = sqlite3.connect(tmp_path / "locked.db")
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(RegistryError, match="locked"):
        check_reachable(f"sqlite:///{tmp_path / 'locked.db'}")
    holder.close()


def test_an_experiment_that_another_process_has_just_made(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(uri, tmp_path / "first", "contested").finish("FINISHED")
    look, answers = MlflowClient.get_experiment_by_name, iter([False, True])
    monkeypatch.setattr(
        MlflowClient, "get_experiment_by_name", lambda client, name: look(client, name) if next(answers) else None
    )
    start(uri, tmp_path / "second", "contested").finish("FINISHED")


def test_a_deleted_experiment_is_named(uri: str, tmp_path: Path) -> None:
    start(uri, tmp_path, "doomed").finish("FINISHED")
    client = connect(uri)
    client.delete_experiment(client.get_experiment_by_name("doomed").experiment_id)
    with pytest.raises(RegistryError, match="mlflow experiments restore"):
        start(uri, tmp_path / "other", "doomed")


def test_flatten_names_items_that_are_mappings_by_number() -> None:
    content = {"a": {"b": [1, 2], "c": "text"}, "data": [{"name": "x"}, {"name": "y"}], "none": None, "on": True}
    assert flatten(content) == {
        "a.b": "[1, 2]", "a.c": "text", "data.0.name": "x", "data.1.name": "y", "none": "null", "on": "true",
    }  # fmt: skip


def test_the_default_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert default_uri(Path("runs")) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert default_uri(Path("runs")) == "http://mlflow:5000"


def test_where_to_look() -> None:
    assert ui_command("https://me:secret@mlflow/x", Path("runs")) == "https://me:***@mlflow/x"
    command = ui_command("sqlite:////a b/mlflow.db", Path("elsewhere"))
    assert command.startswith("mlflow ui --backend-store-uri 'sqlite:////a b/mlflow.db'")
    assert "'/a b/mlartifacts'" in command
    assert "--host 127.0.0.1 --port 5000" in command


def test_no_password_in_an_error() -> None:
    with pytest.raises(RegistryError) as error:
        check_reachable("http://me:secret@127.0.0.1:9")
    assert "secret" not in str(error.value)
