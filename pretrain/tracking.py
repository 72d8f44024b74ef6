"""Tracking: a run's figures, pictures and tags, first on disk, then in one MLflow run, through kills and restarts.

Everything is noted in the run's folder (`metrics.jsonl`, pictures under `figures/`), which costs the training
microseconds, and a thread brings it to MLflow. A server that is not there is an error when a run is new. Afterwards it
costs a printed line: what it has not taken it gets later, from this process, from the next start, or from
`pdepot runs sync`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from data_pipeline.base.files import read_json, write_bytes
from pretrain.config import RunConfig
from pretrain.delivery import Delivery
from pretrain.lineage import git_revision, pdepot_version
from pretrain.metrics_log import MetricsLog
from pretrain.mlflow_server import (
    check_reachable,
    connect,
    default_uri,
    experiment_id,
    is_server,
    registry_errors,
    ui_command,
    without_password,
)
from pretrain.sender import Sender

__all__ = [
    "Tracker",
    "check_reachable",
    "connect",
    "default_uri",
    "experiment_id",
    "flatten",
    "is_server",
    "registry_errors",
    "start_tracker",
    "ui_command",
    "without_password",
]

# Seconds at the end of a run. A database that this process opens itself answers, if only after others.
_PATIENCE_WITH_SERVERS, _PATIENCE_WITH_DATABASES = 10.0, 60.0

Status = Literal["FINISHED", "FAILED", "KILLED"]


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


def start_tracker(config: RunConfig, folder: Path, uri: str) -> "Tracker":
    """The MLflow run of a training run, with its configuration, git revision and data digests.

    Args:
        config: the training run.
        folder: its folder.
        uri: the server or database.

    Raises:
        RegistryError: see `Tracker.start`.
    """
    tracker = Tracker.start(uri, config.tracking.experiment, config.name, resume_from=folder / "tracking.json")
    tracker.params(config.model_dump(mode="json"))
    tracker.tags(_origin(folder, config))
    return tracker


def _origin(folder: Path, config: RunConfig) -> dict[str, str]:
    """Revision of the code and digests of the data; as they are on record, where the job has put them on record."""
    file = folder / "lineage.json"
    if file.exists():
        record: dict[str, str] = dict(read_json(file))
    else:
        record = {"git_revision": git_revision(), "pdepot_version": pdepot_version()}
        record |= {f"data.{d.name}": d.digest for segment in config.segments for d in segment.data}
    # By this name MLflow's own pages show it.
    return record | {"mlflow.source.git.commit": record["git_revision"].removesuffix("-dirty")}


class Tracker:
    """One MLflow run; belongs to rank 0. Nothing here waits for the server but `flush` and `finish`, for so long.

    Use it as a context manager, or call `finish`: a block that is left by an exception ends the run as failed (killed,
    where the process was asked to end). A process that is killed leaves the run as running, for the next start.
    """

    def __init__(self, delivery: Delivery) -> None:
        self.uri = delivery.uri
        self._delivery, self._folder = delivery, delivery.file.parent
        self._log = MetricsLog(delivery.log)
        self._begun = self._ended = self._full = False
        self._note("start")
        self._sender = Sender(delivery)

    @classmethod
    def start(cls, uri: str, experiment: str, run_name: str, resume_from: Path) -> Self:
        """Begin a run, or go on with an earlier one, whose server need not answer now.

        Args:
            uri: the server or database.
            experiment: made when it is missing.
            run_name: shown in MLflow's list of runs.
            resume_from: JSON file that says which run to go on with, `tracking.json` by custom; made when missing.
                `metrics.jsonl` lies beside it.

        Raises:
            RegistryError: the run is new, and the server or the experiment cannot be used.
        """
        delivery = Delivery(uri, resume_from, experiment, run_name)
        if delivery.new:
            delivery.open()
        return cls(delivery)

    def begin(self, step: int) -> None:
        """Training goes on from `step`: what was noted of later steps is withdrawn. At the second call of one start it
        has gone back, and the repeated steps come out otherwise, so that MLflow gets them, too."""
        self._note("rollback" if self._begun else "begin", step=step)
        self._begun = True

    @property
    def run_id(self) -> str:
        """MLflow's number of the run."""
        return str(self._delivery.run_id)

    def params(self, content: Mapping[str, Any]) -> None:
        """Log a configuration, nested or flat. What differs from an earlier start becomes a tag `changed.KEY`."""
        self._note("params", content=flatten(content))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Note figures of a step. They are on disk when this returns, and at the server seconds later."""
        with self._disk():
            self._log.figures(step, values)

    def again(self, names: Iterable[str]) -> None:
        """Figures of these names are measured anew, also at steps that have one; MLflow gets the new ones, too."""
        self._note("again", names=sorted(names))

    def tags(self, content: Mapping[str, Any]) -> None:
        """Set tags of the run; nested ones are flattened."""
        self._note("tags", content=flatten(content))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Upload a file, or all files below a folder, into the run's artifact folder `folder`. It must stay where it
        is until then."""
        self._note("file", path=str(path.resolve()), folder=folder)

    def figure(self, png: bytes, name: str) -> None:
        """Show a picture, a PNG file's bytes, on the run's page as `figures/NAME`. It stays in the run's folder."""
        path = Path("figures") / name
        with self._disk():
            write_bytes(self._folder / path, png)
            self._note("file", path=str(path), folder=path.parent.as_posix())

    def flush(self, seconds: float = 0.0) -> bool:
        """Let what waits be sent now. Returns whether that has succeeded within so many seconds."""
        return self._sender.send_now(seconds)

    def finish(self, status: Status) -> None:
        """Close the run. What the server does not take within seconds is left to later."""
        if self._ended:
            return
        self._ended = True
        self._note("end", status=status)
        patience = _PATIENCE_WITH_SERVERS if is_server(self.uri) else _PATIENCE_WITH_DATABASES
        delivered = self._sender.send_now(patience)
        self._close()
        if not delivered:
            print(
                f"MLflow: {without_password(self.uri)} has not got everything; the rest is in {self._delivery.log}, "
                f"and the next start sends it, or: pdepot runs sync {self._folder}",
                flush=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is not None:
            self.finish("FAILED" if issubclass(kind, Exception) else "KILLED")
        elif not self._ended:
            self._close()

    def _close(self) -> None:
        self._ended = True
        self._sender.stop()
        self._log.close()

    def _note(self, kind: str, **content: Any) -> None:
        with self._disk():
            self._log.event(kind, **content)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """Say, once, that the disk takes no figures: rank 0 must not fall out of step for want of a curve."""
        try:
            yield
            self._full = False
        except OSError as error:
            if not self._full:
                print(f"figures cannot be written to {self._delivery.log}: {error}", flush=True)
            self._full = True
