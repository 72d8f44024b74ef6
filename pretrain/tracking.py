"""MLflow tracking: one run for a training job, through kills and restarts, that never stops the training.

A server that is not there is found out at the start, and is an error. Once the run has begun, a server that goes away
costs a printed line: metrics wait for its return, because a job of days is worth more than its curves.
"""

import json
import os
import re
import shlex
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from data_pipeline.base.errors import RegistryError
from data_pipeline.base.files import exclusive, read_json, write_json

# MLflow reads these when it is imported: no pickles, no reports to its makers, no chatter between the progress lines.
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}.items():
    os.environ.setdefault(_name, _value)

from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Metric, Param, RunTag  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402

_SECONDS_BETWEEN_FLUSHES = 5.0
_LONGEST_PAUSE = 300.0
_MAX_METRICS, _MAX_PARAMS = 1000, 100  # MLflow's limits for one request
_MAX_PARAM_LENGTH, _MAX_TAG_LENGTH, _MAX_KEY_LENGTH = 6000, 8000, 250
_SECONDS_FOR_SQLITE_LOCK = 10.0

RUNS = Path("runs")
"""Folder of the MLflow database that is used when $MLFLOW_TRACKING_URI is not set."""

Status = Literal["FINISHED", "FAILED", "KILLED"]


def default_uri(folder: Path = RUNS) -> str:
    """The server to use: $MLFLOW_TRACKING_URI, or else a SQLite file in `folder`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.resolve() / 'mlflow.db'}"


def ui_command(uri: str, folder: Path) -> str:
    """What to type to look at the runs; for a server its address. `folder`: where a database's artifacts are kept,
    unless it is a SQLite file, which has them beside it."""
    if is_server(uri):
        return without_password(uri)
    database = _sqlite_file(uri)
    artifacts = (database.parent if database else folder.resolve()) / "mlartifacts"
    stores = ["--backend-store-uri", without_password(uri), "--artifacts-destination", str(artifacts)]
    return shlex.join(["mlflow", "ui", *stores, "--host", "127.0.0.1", "--port", "5000"])


def is_server(uri: str) -> bool:
    """Whether the URI names a running MLflow server, as opposed to a database that this process opens itself."""
    return urlsplit(uri).scheme in ("http", "https")


def without_password(uri: str) -> str:
    """The URI as it may be shown."""
    return re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1:***@", uri)


def flatten(content: Mapping[str, Any]) -> dict[str, str]:
    """Nested mappings as one level of text: `{"a": {"b": [1, 2]}}` is `{"a.b": "[1, 2]"}`; items that are mappings
    are named by their number, as in the command line's overrides."""
    flat: dict[str, str] = {}
    for key, value in content.items():
        if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            value = {str(number): item for number, item in enumerate(value)}
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": text for inner, text in flatten(value).items()}
        else:
            flat[str(key)] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


def check_reachable(uri: str) -> None:
    """Find out within seconds whether the MLflow server or database can be used.

    Raises:
        RegistryError: nothing answers, or the database cannot be written; names the URI and the remedy.
    """
    connect(uri)


def connect(uri: str, *, create: bool = True) -> MlflowClient:
    """A client of a server that has answered; a new SQLite database is set up, by one process at a time.

    Args:
        uri: `http://HOST:PORT`, `sqlite:///FILE` or another database that MLflow knows.
        create: make a SQLite file that is missing, instead of refusing.

    Raises:
        RegistryError: nothing answers, or the database cannot be written; names the URI and the remedy.
    """
    database = _sqlite_file(uri)
    if database is not None and not create and not database.exists():
        raise RegistryError(
            "there is no MLflow database yet",
            file=database,
            remedy="train or register a model, or set MLFLOW_TRACKING_URI to the registry that is meant",
        )
    try:
        with _only_opener(database) if database else nullcontext(), _impatient():
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            client.search_experiments(max_results=1)
    except Exception as error:  # drivers of databases raise what they like; the remedy is the same
        raise RegistryError(
            f"MLflow cannot be used at {without_password(uri)}",
            found=_brief(error),
            expected="a running server (http://HOST:PORT) or a database that can be written (sqlite:///FILE)",
            remedy="start the server, or correct or unset MLFLOW_TRACKING_URI",
        ) from None
    return client


def _sqlite_file(uri: str) -> Path | None:
    match = re.match(r"sqlite(?:\+\w+)?:///([^?]+)", uri)
    return Path(match[1]).resolve() if match else None


@contextmanager
def _only_opener(database: Path) -> Iterator[None]:
    """Hold the lock under which a SQLite file is opened first, after a look whether it can be written at all.

    MLflow itself would try for minutes to open a file that it cannot write.
    """
    database.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(database.with_name(f"{database.name}.lock"), wait=True, what=f"opening {database}"):
        with closing(sqlite3.connect(database, timeout=_SECONDS_FOR_SQLITE_LOCK)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
        yield


def _brief(error: Exception) -> str:
    return without_password(" ".join(str(error).split()))[:300] or type(error).__name__


@contextmanager
def _impatient() -> Iterator[None]:
    """Give up on a silent server after seconds; MLflow's own patience is minutes."""
    limits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    before = {name: os.environ.get(name) for name in limits}
    os.environ.update(limits)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def registry_errors(problem: str, uri: str) -> Iterator[None]:
    """Turn the errors of MLflow and of its files into RegistryError with `problem` and the URI."""
    try:
        yield
    except (MlflowException, OSError) as error:
        raise RegistryError(f"{problem} at {without_password(uri)}", found=_brief(error)) from None


def experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """The experiment's number, made when it is missing; beside a SQLite file its artifacts go to `mlartifacts`.

    Raises:
        RegistryError: the experiment was deleted, or cannot be made.
    """
    database = _sqlite_file(uri)
    location = (database.parent / "mlartifacts").as_uri() if database else None
    with registry_errors(f"the experiment {name!r} cannot be opened", uri):
        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(client.create_experiment(name, artifact_location=location))
            except MlflowException as error:
                # Another process was first.
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = client.get_experiment_by_name(name)
    if found.lifecycle_stage == "deleted":
        remedy = f"choose another name, or `mlflow experiments restore --experiment-id {found.experiment_id}`"
        raise RegistryError(f"the MLflow experiment was deleted at {without_password(uri)}", key=name, remedy=remedy)
    return str(found.experiment_id)


class Tracker:
    """One MLflow run; belongs to rank 0. Metrics are collected and sent every few seconds.

    A file in the run's folder keeps the run's number and, for each metric, the last step sent: a job that was killed
    goes on in the same run, and the steps that it repeats are not logged twice.
    """

    def __init__(self, client: MlflowClient, uri: str, run_id: str, file: Path, sent: dict[str, int]) -> None:
        self.uri, self.run_id = uri, run_id
        self._client, self._file = client, file
        self._sent, self._repeated_up_to = sent, dict(sent)
        self._waiting: list[Metric] = []
        self._pause = _SECONDS_BETWEEN_FLUSHES
        self._next_flush = time.monotonic() + self._pause

    @classmethod
    def start(cls, uri: str, experiment: str, run_name: str, resume_from: Path) -> Self:
        """Begin a run, or go on with an earlier one.

        Args:
            uri: the server or database.
            experiment: made when it is missing.
            run_name: shown in MLflow's list of runs.
            resume_from: JSON file that says which run to go on with, `tracking.json` by custom; made when missing.

        Raises:
            RegistryError: the server or the experiment cannot be used.
        """
        client = connect(uri)
        state = read_json(resume_from) if resume_from.exists() else {}
        run_id = state.get("run_id")
        with registry_errors("the MLflow run cannot be started", uri):
            if run_id is not None and not _exists(client, run_id):
                print(f"MLflow: {without_password(uri)} does not hold run {run_id}; starting a new one", flush=True)
                run_id, state = None, {}
            if run_id is None:
                run = client.create_run(experiment_id(client, uri, experiment), run_name=run_name)
                run_id = str(run.info.run_id)
            else:
                client.update_run(run_id, status="RUNNING")
        tracker = cls(client, uri, run_id, resume_from, state.get("sent", {}))
        tracker._save()
        return tracker

    def params(self, content: Mapping[str, Any]) -> None:
        """Log a configuration, nested or flat. What differs from an earlier start becomes a tag `changed.KEY`.

        Raises:
            RegistryError: the server refuses them.
        """
        with registry_errors("the run's configuration cannot be logged", self.uri):
            known = self._client.get_run(self.run_id).data.params
            wanted = {_key(name): text[:_MAX_PARAM_LENGTH] for name, text in flatten(content).items()}
            new = [Param(name, text) for name, text in wanted.items() if name not in known]
            for first in range(0, len(new), _MAX_PARAMS):
                self._client.log_batch(self.run_id, params=new[first : first + _MAX_PARAMS])
            changed = {f"changed.{name}": text for name, text in wanted.items() if known.get(name, text) != text}
            self._set_tags(changed)
        if changed:
            # Another configuration gives other figures: its steps are not repetitions.
            self._repeated_up_to.clear()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Note figures of a step; they are sent with others, now and then."""
        now = int(time.time() * 1000)
        self._waiting += [
            Metric(_key(name), float(value), now, step)
            for name, value in values.items()
            if step > self._repeated_up_to.get(_key(name), -1)
        ]
        if time.monotonic() >= self._next_flush:
            self.flush()

    def flush(self) -> None:
        """Send the figures that wait. Without an answer they go on waiting, and the pause doubles."""
        with self._or_say("metrics wait"), _impatient():
            while self._waiting:
                batch = self._waiting[:_MAX_METRICS]
                self._client.log_batch(self.run_id, metrics=batch)
                del self._waiting[: len(batch)]
                for metric in batch:
                    self._sent[metric.key] = max(metric.step, self._sent.get(metric.key, -1))
                self._pause = _SECONDS_BETWEEN_FLUSHES
            self._save()
        if self._waiting:
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        self._next_flush = time.monotonic() + self._pause

    def tags(self, content: Mapping[str, Any]) -> None:
        """Set tags of the run; nested ones are flattened."""
        with self._or_say("tags are not set"), _impatient():
            self._set_tags(flatten(content))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Upload a file, or all files below a folder, into the run's artifact folder `folder`."""
        upload = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        with self._or_say(f"{path} is not uploaded"):
            upload(self.run_id, str(path), folder)

    def figure(self, png: bytes, name: str) -> None:
        """Show a picture, a PNG file's bytes, on the run's page as `figures/NAME`."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png)
            self.artifact(file, (Path("figures") / name).parent.as_posix())

    def finish(self, status: Status) -> None:
        """Send what waits and close the run."""
        self.flush()
        if self._waiting:
            print(
                f"MLflow: {len(self._waiting)} figures could not be sent to {without_password(self.uri)}", flush=True
            )
        with self._or_say(f"the run is not marked {status}"), _impatient():
            self._client.set_terminated(self.run_id, status=status)

    def _set_tags(self, content: Mapping[str, str]) -> None:
        tags = [RunTag(_key(name), text[:_MAX_TAG_LENGTH]) for name, text in content.items()]
        for first in range(0, len(tags), _MAX_PARAMS):
            self._client.log_batch(self.run_id, tags=tags[first : first + _MAX_PARAMS])

    def _save(self) -> None:
        write_json(self._file, {"run_id": self.run_id, "sent": self._sent})

    @contextmanager
    def _or_say(self, consequence: str) -> Iterator[None]:
        """Print what goes wrong at the server instead of raising it: rank 0 must not fall out of step."""
        try:
            yield
        except (MlflowException, OSError) as error:
            print(f"MLflow: {consequence}, {without_password(self.uri)} fails: {_brief(error)}", flush=True)


def _exists(client: MlflowClient, run_id: str) -> bool:
    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def _key(name: str) -> str:
    """A name that MLflow accepts."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:_MAX_KEY_LENGTH]
