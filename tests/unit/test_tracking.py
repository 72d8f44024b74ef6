"""Tracking: one MLflow run through kills and restarts, fed from the figures on disk. The faults of real servers are in
`tests/integration/test_tracking_server.py`."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_pipeline.base.errors import PdepotError, RegistryError
from data_pipeline.base.files import read_json
from launch import jobs
from pretrain import delivery, mlflow_server
from pretrain.delivery import Delivery, find_delivery
from pretrain.metrics_log import MetricsLog, read_history
from pretrain.tracking import Tracker, check_reachable, connect, default_uri, flatten, ui_command

from mlflow import MlflowClient  # isort: skip

ROOT = Path(__file__).resolve().parents[2]
LONG = 300.0  # seconds; nothing takes so long
START = """
import sys
from collections.abc import Iterator
from pathlib import Path
from pretrain.tracking import Tracker
Tracker.start(sys.argv[1], "together", "run", Path(sys.argv[2]) / "tracking.json").finish("FINISHED")
"""


@pytest.fixture(scope="module")
def starters(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[tuple[int, str]]]:
    """Two processes that open the same new database and the same new experiment at once: its URI, their outcomes."""
    folder = tmp_path_factory.mktemp("tracking")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", START, uri, str(folder / name)], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for name in ("first", "second")
    ]  # fmt: skip
    return uri, [(process.returncode, output) for process in processes for output, _ in [process.communicate()]]


@pytest.fixture(scope="module")
def uri(starters: tuple[str, list[tuple[int, str]]]) -> str:
    return starters[0]


@pytest.fixture
def tracker(uri: str, tmp_path: Path) -> Iterator[Tracker]:
    with start(uri, tmp_path) as tracker:
        yield tracker


def start(uri: str, folder: Path, experiment: str = "tests") -> Tracker:
    return Tracker.start(uri, experiment, "run", folder / "tracking.json")


def history(tracker: Tracker | Delivery, name: str) -> list[tuple[int, float]]:
    points = connect(tracker.uri).get_metric_history(str(tracker.run_id), name)
    return sorted((point.step, point.value) for point in points)


def lose_answers(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """The first call of this function of `pretrain.delivery` reaches the server, and its answer never comes back."""
    true, calls = getattr(delivery, name), list[int]()

    def lost(*arguments: Any, **options: Any) -> None:
        true(*arguments, **options)
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError("the answer got lost")

    monkeypatch.setattr(delivery, name, lost)
    return calls


@pytest.mark.slow
def test_two_processes_share_a_new_database_and_experiment(starters: tuple[str, list[tuple[int, str]]]) -> None:
    uri, outcomes = starters
    assert [code for code, _ in outcomes] == [0, 0], outcomes
    client = connect(uri)
    experiment = client.get_experiment_by_name("together")
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_mlflow_is_silent(starters: tuple[str, list[tuple[int, str]]]) -> None:
    lines = [line for _, output in starters[1] for line in output.splitlines()]
    assert [line for line in lines if not line.startswith("waiting: another process")] == []


def test_a_run_that_broke_off_goes_on_and_repeats_no_step(uri: str, tmp_path: Path) -> None:
    with start(uri, tmp_path) as first:
        first.begin(0)
        for step in range(6):
            first.metrics(step, {"loss": 1.0 / (step + 1)})
        assert first.flush(LONG)
    with start(uri, tmp_path) as first:  # broken off at once
        first.begin(3)
        first.metrics(5, {"loss": 1.0 / 6})

    second = start(uri, tmp_path)
    second.begin(3)
    assert second.run_id == first.run_id
    for step in range(4, 9):
        second.metrics(step, {"loss": 1.0 / (step + 1), "late": float(step)})
    second.finish("FINISHED")
    assert history(second, "loss") == [(step, 1.0 / (step + 1)) for step in range(9)]
    assert [step for step, _ in history(second, "late")] == list(range(4, 9))
    assert connect(uri).get_run(second.run_id).info.status == "FINISHED"
    assert len(read_history(tmp_path).series("loss")) == 9


def test_how_a_run_ended(uri: str, tmp_path: Path) -> None:
    for error, status in ((ValueError, "FAILED"), (SystemExit, "KILLED"), (KeyboardInterrupt, "KILLED")):
        with pytest.raises(error), start(uri, tmp_path) as tracker:
            raise error
        assert connect(uri).get_run(tracker.run_id).info.status == status
    with start(uri, tmp_path) as tracker:
        assert tracker.flush(LONG)
        assert connect(uri).get_run(tracker.run_id).info.status == "RUNNING"
        tracker.finish("FINISHED")
    assert connect(uri).get_run(tracker.run_id).info.status == "FINISHED"


def test_a_run_that_the_server_has_lost_is_made_again_with_all_its_records(
    uri: str, tracker: Tracker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.params({"rate": 0.1})
    tracker.metrics(5, {"loss": 1.0})
    tracker.figure(b"png", "error.png")
    tracker.finish("KILLED")
    connect(uri).delete_run(tracker.run_id)
    replacement = start(uri, tmp_path)
    replacement.metrics(6, {"loss": 2.0})
    replacement.finish("FINISHED")
    assert replacement.run_id != tracker.run_id
    assert tracker.run_id in capsys.readouterr().out
    assert history(replacement, "loss") == [(5, 1.0), (6, 2.0)]
    assert connect(uri).get_run(replacement.run_id).data.params == {"rate": "0.1"}
    assert [f.path for f in connect(uri).list_artifacts(replacement.run_id, "figures")] == ["figures/error.png"]
    assert read_json(tmp_path / "tracking.json")["run_id"] == replacement.run_id


def test_a_run_that_is_deleted_while_it_goes_on(uri: str, tracker: Tracker) -> None:
    tracker.metrics(1, {"loss": 1.0})
    assert tracker.flush(LONG)
    before = tracker.run_id
    connect(uri).delete_run(before)
    tracker.metrics(2, {"loss": 0.5})
    tracker.flush(LONG)
    tracker.finish("FINISHED")
    assert tracker.run_id != before
    assert history(tracker, "loss") == [(1, 1.0), (2, 0.5)]


def test_steps_after_a_roll_back_are_other_steps(uri: str, tracker: Tracker, tmp_path: Path) -> None:
    tracker.begin(0)
    for step, loss in enumerate((1.0, 0.5, 9.0, 99.0)):
        tracker.metrics(step, {"loss": loss})
    tracker.begin(1)
    tracker.metrics(2, {"loss": 0.25})
    tracker.finish("FINISHED")
    # MLflow forgets nothing.
    assert history(tracker, "loss") == [(0, 1.0), (1, 0.5), (2, 0.25), (2, 9.0), (3, 99.0)]
    assert read_history(tmp_path).series("loss") == [(0, 1.0), (1, 0.5), (2, 0.25)]


def test_many_and_long_parameters(uri: str, tracker: Tracker) -> None:
    tracker.params({"model": {f"p{i}": i for i in range(130)}, "long": "x" * 9000, "empty": "", "odd (name)": None})
    assert tracker.flush(LONG)
    params = connect(uri).get_run(tracker.run_id).data.params
    assert params["model.p129"] == "129"
    assert params["long"] == "x" * 6000
    assert params["odd _name_"] == "null"
    assert params["empty"] == ""


def test_a_changed_configuration_is_told_and_its_metrics_are_logged(uri: str, tmp_path: Path) -> None:
    for rate, loss in ((0.1, 1.0), (0.2, 2.0), (0.2, 3.0)):
        tracker = start(uri, tmp_path)
        tracker.params({"rate": rate, "steps": 10})
        tracker.metrics(1, {"loss": loss})
        tracker.finish("KILLED")
    data = connect(uri).get_run(tracker.run_id).data
    assert data.params == {"rate": "0.1", "steps": "10"}
    assert {key: value for key, value in data.tags.items() if key.startswith("changed")} == {"changed.rate": "0.2"}
    assert history(tracker, "loss") == [(1, 1.0), (1, 2.0)]  # the third start repeats the second's step


@pytest.mark.parametrize("arrives", [True, False])
def test_figures_of_a_changed_configuration_outlive_a_failure_of_its_tags(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrives: bool
) -> None:
    sender = Delivery(uri, tmp_path / "tracking.json", "tests", "run")
    log = MetricsLog(sender.log)
    for rate, steps in ((1.0, (1, 2, 3)), (2.0, (2, 3, 4))):  # the second goes on from step 1
        log.event("params", content={"rate": str(rate)})
        for step in steps:
            log.figures(step, {"loss": rate})
        if rate == 1.0:
            sender.send()
    true = delivery._set_tags

    def killed(*arguments: Any) -> None:
        if arrives:
            true(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(delivery, "_set_tags", killed)
        with pytest.raises(KeyboardInterrupt):
            sender.send()
    again = find_delivery(tmp_path)  # as another process would
    for _ in range(2):
        again.send()
    assert history(again, "loss") == [(1, 1.0), (2, 1.0), (2, 2.0), (3, 1.0), (3, 2.0), (4, 2.0)]
    assert connect(uri).get_run(str(again.run_id)).data.tags["changed.rate"] == "2.0"


def test_a_run_that_comes_back_to_a_server_goes_on_there(uri: str, tmp_path: Path) -> None:
    elsewhere = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    with start(uri, tmp_path / "first") as tracker:  # the experiment is there
        tracker.finish("FINISHED")
    shutil.copy(uri.removeprefix("sqlite:///"), tmp_path / "elsewhere.db")
    file, runs = tmp_path / "run" / "tracking.json", []
    log = MetricsLog(file.with_name("metrics.jsonl"))
    for step, place in enumerate((uri, elsewhere, uri), 1):
        sender = Delivery(place, file, "tests", "run")
        log.figures(step, {"loss": 1.0 / step})
        sender.send()
        runs.append(str(sender.run_id))
        assert history(sender, "loss") == [(s, 1.0 / s) for s in range(1, step + 1)]
        # What `runs show`, `runs sync` and earlier versions read is the last server's.
        top = read_json(file)
        assert (top["uri"], top["run_id"], top["sent"]) == (place, runs[-1], {"loss": step})
        assert find_delivery(file.parent).uri == place
    assert runs[0] == runs[2] != runs[1]
    assert read_json(file)["servers"].keys() == {uri, elsewhere}
    # A server that has the run under another name of its own is known by the run's number.
    (tmp_path / "alias.db").symlink_to(uri.removeprefix("sqlite:///"))
    alias = Delivery(f"sqlite:///{tmp_path / 'alias.db'}", file, "tests", "run")
    assert not alias.new
    alias.send()
    assert alias.run_id == runs[0]
    assert history(alias, "loss") == [(s, 1.0 / s) for s in range(1, 4)]


def test_an_evaluation_that_is_made_anew_is_shown_anew(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "picture_error_over_time", lambda _: b"png")
    elsewhere = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    shutil.copy(uri.removeprefix("sqlite:///"), tmp_path / "elsewhere.db")
    training, tracking = SimpleNamespace(steps=10), SimpleNamespace(experiment="tests")
    run: Any = SimpleNamespace(name="run", tracking=tracking, training=training)

    def evaluated(error: float, place: str = uri) -> None:
        same = {"relative_l2": error, "one_step": None, "persistence": 2.0}
        e: Any = SimpleNamespace(dataset="x", example=None, model_dump=lambda **_: same, **same)
        jobs.log_evaluations(tmp_path, run, [e], place)

    evaluated(0.5)
    calls = lose_answers(monkeypatch, "_log_metrics")
    for _ in range(2):  # the same ones are no new ones
        evaluated(0.25)
    assert calls
    (tmp_path / "evaluation_logged.json").unlink()  # killed before it was written
    for place in (uri, elsewhere, uri):
        evaluated(0.25, place)
        there = Delivery(place, tmp_path / "tracking.json", "tests", "run")
        there.send()
        points = connect(place).get_metric_history(str(there.run_id), "relative_l2/x")
        assert [(p.step, p.value) for p in sorted(points, key=lambda p: p.timestamp)] == [(10, 0.5), (10, 0.25)]
        assert history(there, "persistence/x") == [(10, 2.0)]
    assert read_history(tmp_path).latest()["relative_l2/x"] == 0.25


def test_more_figures_than_mlflow_takes_at_once(tracker: Tracker) -> None:
    for step in range(400):
        tracker.metrics(step, {"a": float(step), "b": 0.0, "c": 1.0})
    tracker.metrics(400, {f"many.{i}": 0.0 for i in range(1500)})
    assert tracker.flush(LONG)
    tracker.finish("FINISHED")
    assert history(tracker, "a") == [(step, float(step)) for step in range(400)]
    assert len(connect(tracker.uri).get_run(tracker.run_id).data.metrics) == 1503


def test_what_waits_is_sent_by_the_next_start_or_by_hand(uri: str, tmp_path: Path) -> None:
    with start(uri, tmp_path) as tracker:
        tracker.metrics(1, {"loss": 1.0})
        assert tracker.flush(LONG)
        with pytest.raises(PdepotError, match="another process is busy with sending"), find_delivery(tmp_path).alone():
            pass
    with start(uri, tmp_path) as tracker:
        tracker._sender.stop()
        tracker.metrics(2, {"loss": 0.5})
    delivery = find_delivery(tmp_path)
    with delivery.alone():
        assert delivery.waiting() == 1
        delivery.send()
        assert delivery.waiting() == 0
    assert history(tracker, "loss") == [(1, 1.0), (2, 0.5)]


def test_an_answer_that_got_lost_makes_no_point_twice(uri: str, tracker: Tracker, tmp_path: Path) -> None:
    tracker.metrics(1, {"loss": 1.0, "odd": float("nan")})
    assert tracker.flush(LONG)
    before = (tmp_path / "tracking.json").read_bytes()
    tracker.metrics(2, {"loss": 0.5, "odd": float("inf")})
    tracker.finish("KILLED")
    (tmp_path / "tracking.json").write_bytes(before)  # the server has it, and the sender does not know
    again = start(uri, tmp_path)
    again.metrics(3, {"loss": 0.25})
    again.finish("FINISHED")
    assert history(again, "loss") == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert len(history(again, "odd")) == 2


def test_a_log_that_lost_its_end_in_a_power_cut(uri: str, tmp_path: Path) -> None:
    with start(uri, tmp_path) as tracker:
        for step in range(20):
            tracker.metrics(step, {"loss": float(step)})
        assert tracker.flush(LONG)
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(log.read_bytes()[:300])
    again = start(uri, tmp_path)
    again.begin(18)
    for step in range(19, 22):
        again.metrics(step, {"loss": float(step)})
    again.finish("FINISHED")
    assert history(again, "loss") == [(step, float(step)) for step in range(22)]


def test_what_the_server_refuses_is_not_in_the_way(tracker: Tracker, capsys: pytest.CaptureFixture[str]) -> None:
    tracker.tags({"": "a tag needs a name"})
    tracker.metrics(1, {"loss": 1.0})
    tracker.finish("FINISHED")
    assert "tags are not set" in capsys.readouterr().out
    assert history(tracker, "loss") == [(1, 1.0)]


@pytest.mark.parametrize("whose", [True, False])
def test_a_run_of_an_older_version_goes_on(uri: str, tracker: Tracker, tmp_path: Path, whose: bool) -> None:
    tracker.finish("KILLED")
    state = {"run_id": tracker.run_id, "sent": {"loss": 4}} | ({"uri": uri, "position": 0} if whose else {})
    (tmp_path / "tracking.json").write_text(json.dumps(state))
    if whose:
        assert Delivery("http://elsewhere", tmp_path / "tracking.json", "tests", "run").run_id is None
    (tmp_path / "metrics.jsonl").unlink()
    again = start(uri, tmp_path)
    for step in range(3, 7):
        again.metrics(step, {"loss": float(step)})
    again.finish("FINISHED")
    assert again.run_id == tracker.run_id
    assert history(again, "loss") == [(5, 5.0), (6, 6.0)]


def test_a_full_disk_is_said_once(tracker: Tracker, capsys: pytest.CaptureFixture[str]) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, tracker._log._handle)
    os.close(full)
    for step in range(3):
        tracker.metrics(step, {"loss": 1.0})
    assert capsys.readouterr().out.count("No space left") == 1


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
    tracker.finish("FINISHED")
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
    monkeypatch.setattr(mlflow_server, "_SECONDS_FOR_SQLITE_LOCK", 0.1)
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
