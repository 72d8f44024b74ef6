"""The MLflow server or database: which one, whether it can be used, and errors that say what to do."""

import os
import re
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from threading import Lock
from urllib.parse import urlsplit

from data_pipeline.base.errors import RegistryError
from data_pipeline.base.files import exclusive

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
from mlflow.exceptions import MlflowException  # noqa: E402

_SECONDS_FOR_SQLITE_LOCK = 10.0
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}

RUNS = Path("runs")
"""Folder of the MLflow database that is used when $MLFLOW_TRACKING_URI is not set."""


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
        with _only_opener(database) if database else nullcontext(), impatience:
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            client.search_experiments(max_results=1)
    except Exception as error:  # drivers of databases raise what they like; the remedy is the same
        raise RegistryError(
            f"MLflow cannot be used at {without_password(uri)}",
            found=brief(error),
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


def brief(error: Exception) -> str:
    """An error in one line, without passwords."""
    return without_password(" ".join(str(error).split()))[:300] or type(error).__name__


class _Impatience:
    """Makes MLflow give up on a silent server after seconds, while anyone wants that; its own patience is minutes.

    MLflow reads it from the environment at every request. The first that enters sets it and the last that leaves puts
    it back, so that a tracker holds it from its start to its end: the environment must not change under other threads.
    """

    def __init__(self) -> None:
        self._lock, self._wanted = Lock(), 0
        self._before: dict[str, str | None] = {}

    def __enter__(self) -> None:
        with self._lock:
            if self._wanted == 0:
                self._before = {name: os.environ.get(name) for name in _PATIENCE}
                os.environ.update(_PATIENCE)
            self._wanted += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._wanted -= 1
            if self._wanted == 0:
                for name, value in self._before.items():
                    if value is None:
                        os.environ.pop(name, None)
                    else:
                        os.environ[name] = value


impatience = _Impatience()


@contextmanager
def registry_errors(problem: str, uri: str) -> Iterator[None]:
    """Turn the errors of MLflow and of its files into RegistryError with `problem` and the URI."""
    try:
        yield
    except (MlflowException, OSError) as error:
        raise RegistryError(f"{problem} at {without_password(uri)}", found=brief(error)) from None


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
