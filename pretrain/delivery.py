"""A run's records on their way to MLflow: in order, each once, whenever the server answers.

What has been delivered is a position in `metrics.jsonl` and, for each metric, the last step; both stand in
`tracking.json` beside the run's number, for each server that the run has been tracked to. A request whose answer got
lost is made again with the same figures and times, which MLflow takes for the same points. Steps that a run repeats
after a kill are delivered the first time only, unless the log says that they came out otherwise.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from data_pipeline.base.errors import RegistryError
from data_pipeline.base.files import exclusive, read_json, write_json
from pretrain.metrics_log import METRICS_FILE, read_records
from pretrain.mlflow_server import brief, connect, experiment_id, registry_errors, without_password

# After pretrain.mlflow_server, which sets what MLflow reads when it is imported.
from mlflow import MlflowClient  # isort: skip
from mlflow.entities import Metric, Param, RunTag  # isort: skip
from mlflow.exceptions import MlflowException  # isort: skip

_MAX_METRICS, _MAX_PARAMS = 1000, 100  # MLflow's limits for one request
_MAX_PARAM_LENGTH, _MAX_TAG_LENGTH, _MAX_KEY_LENGTH = 6000, 8000, 250
# These may pass, however the request looks: who asks, too slow, too often.
_PASSING = {401, 403, 408, 429}


class Delivery:
    """What brings one run's records to one server; one process and thread at a time.

    Args:
        uri: the server or database.
        file: `tracking.json` in the run's folder.
        experiment: for a run that MLflow does not have yet, made when it is missing.
        run_name: likewise.
    """

    def __init__(self, uri: str, file: Path, experiment: str, run_name: str) -> None:
        self.uri, self.file = uri, file
        self.log = file.with_name(METRICS_FILE)
        self._names = {"experiment": experiment, "run_name": run_name}
        self._client: MlflowClient | None = None
        self._place = without_password(uri)
        self._load()

    @property
    def new(self) -> bool:
        """Whether no server has had the run yet."""
        return self.run_id is None and not self._servers

    def _load(self) -> None:
        """Read how far this server has got. The top level of the file is the last server's state, and all there is
        in files of earlier versions; the oldest do not say whose it is."""
        state = read_json(self.file) if self.file.exists() else {}
        self._servers: dict[str, dict[str, Any]] = dict(state.get("servers", {}))
        if state.get("run_id"):
            last = {key: state[key] for key in ("run_id", "position", "sent") if key in state}
            self._servers.setdefault(state.get("uri", self._place), last)
        self._take(self._servers.get(self._place, {}))

    def _take(self, state: Mapping[str, Any]) -> None:
        self.run_id: str | None = state.get("run_id")
        self.position = int(state.get("position", 0))
        self._sent: dict[str, int] = dict(state.get("sent", {}))

    def _save(self) -> None:
        state = {"run_id": self.run_id, "position": self.position, "sent": self._sent}
        self._servers[self._place] = state
        write_json(self.file, {**state, "uri": self._place, **self._names, "servers": self._servers})

    def open(self) -> MlflowClient:
        """Find the run at the server, or make it there; one that the server has lost is made again, from its records.

        Raises:
            RegistryError: the server or the experiment cannot be used.
        """
        if self._client is not None:
            return self._client
        client = connect(self.uri)
        with registry_errors("the MLflow run cannot be started", self.uri):
            if self.run_id is not None and not _exists(client, self.run_id):
                print(f"MLflow: {self._place} does not hold run {self.run_id}; starting a new one", flush=True)
                self.run_id = None
            if self.run_id is None:
                # A server that has one of the run's numbers is one of its servers under another name.
                self._take(next((s for s in self._servers.values() if _exists(client, s["run_id"])), {}))
            if self.run_id is None:
                number = experiment_id(client, self.uri, self._names["experiment"])
                self.run_id = str(client.create_run(number, run_name=self._names["run_name"]).info.run_id)
                self._save()
        self._client = client
        return client

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from delivering the same records, for as long as this one does.

        Raises:
            PdepotError: another one does already.
        """
        lock = self.file.with_name(".tracking.lock")
        with exclusive(lock, wait=False, what=f"sending the figures of {self.file.parent}"):
            self._load()
            yield

    def waiting(self) -> int:
        """Figures that are not delivered yet."""
        records = (record for record, _ in read_records(self.log, self.position))
        return sum(len(self._fresh(record)) for record in records if "values" in record)

    def send(self) -> None:
        """Deliver what there is.

        Raises:
            Exception: whatever the client raises when the server fails. Nothing is lost: call it again later.
        """
        self.open()
        try:
            self._send()
        except Exception:
            self._client = None  # look for the run again before going on
            self._load()
            raise

    def _send(self) -> None:
        metrics: list[Metric] = []
        if self.log.exists() and self.log.stat().st_size < self.position:
            self.position = 0  # a power cut took the end of the file; what has been sent is known by its steps
        before = self.position
        for record, end in read_records(self.log, self.position):
            if "values" in record:
                fresh = self._fresh(record)
                if len(metrics) + len(fresh) > _MAX_METRICS:
                    self._send_metrics(metrics)
                    metrics = []
                metrics += fresh
                self._sent |= {metric.key: metric.step for metric in fresh}
            else:
                self._send_metrics(metrics)
                metrics = []
                self._handle(record)
                self.position = end
                self._save()
            self.position = end
        self._send_metrics(metrics)
        if self.position != before:
            self._save()

    def _fresh(self, record: Mapping[str, Any]) -> list[Metric]:
        """The figures of a record that are not of a repeated step."""
        step, time = record["step"], int(record["time"] * 1000)
        values = {_key(name): value for name, value in record["values"].items()}
        return [Metric(key, v, time, step) for key, v in values.items() if step > self._sent.get(key, -1)]

    def _send_metrics(self, metrics: list[Metric]) -> None:
        for first in range(0, len(metrics), _MAX_METRICS):
            batch = metrics[first : first + _MAX_METRICS]
            self._deliver(f"{len(batch)} figures are not taken", partial(_log_metrics, metrics=batch))

    def _handle(self, record: Mapping[str, Any]) -> None:
        """Deliver what is no figure. Kinds that this version does not know are left out."""
        match record["event"]:
            case "start":
                self._deliver("the run is not marked", lambda client, run: client.update_run(run, status="RUNNING"))
            case "params":
                self._deliver("the configuration is not logged", partial(self._send_params, content=record["content"]))
            case "tags":
                self._deliver("tags are not set", partial(_set_tags, content=record["content"]))
            case "file":
                path, folder = self.file.parent / record["path"], record["folder"]
                self._deliver(f"{path} is not uploaded", partial(_upload, path=path, folder=folder))
            case "again":
                for name in record["names"]:
                    self._sent.pop(_key(name), None)
            case "rollback":
                self._sent = {name: min(step, record["step"]) for name, step in self._sent.items()}
            case "end":
                status = record["status"]
                self._deliver(f"the run is not marked {status}", lambda c, run: c.set_terminated(run, status=status))

    def _deliver(self, consequence: str, work: Callable[[MlflowClient, str], object]) -> None:
        """Do `work`. What can never be delivered is said and left out, or it would be in the way of all that follows;
        a server that does not answer, or has lost the run, is the caller's to deal with."""
        client, run_id = self.open(), str(self.run_id)
        try:
            work(client, run_id)
        except FileNotFoundError as error:
            reason = brief(error)
        except MlflowException as error:
            status = int(error.get_http_status_code())
            if not 400 <= status < 500 or status in _PASSING or not _exists(client, run_id):
                raise
            reason = brief(error)
        else:
            return
        print(f"MLflow: {consequence}, {self._place}: {reason}", flush=True)

    def _send_params(self, client: MlflowClient, run_id: str, content: Mapping[str, str]) -> None:
        """Log a configuration; what differs from an earlier one becomes a tag, since MLflow's parameters are final."""
        data = client.get_run(run_id).data
        changes = {key.removeprefix("changed."): v for key, v in data.tags.items() if key.startswith("changed.")}
        wanted = {_key(name): text[:_MAX_PARAM_LENGTH] for name, text in content.items()}
        new = [Param(name, text) for name, text in wanted.items() if name not in data.params]
        for first in range(0, len(new), _MAX_PARAMS):
            client.log_batch(run_id, params=new[first : first + _MAX_PARAMS])
        known = {**data.params, **changes}
        changed = {name: text for name, text in wanted.items() if known.get(name, text) != text}
        if changed:
            # Another configuration gives other figures: its steps are not repetitions. That is kept first: if the
            # answer to the tags got lost, the next attempt would find nothing changed. All before this record is sent.
            self._sent = {}
            self._save()
            _set_tags(client, run_id, {f"changed.{name}": text for name, text in changed.items()})


def find_delivery(folder: Path, uri: str | None = None) -> Delivery:
    """The delivery of a run that has been tracked before.

    Args:
        folder: the run's.
        uri: the server or database; by default the one of the run's last start.

    Raises:
        RegistryError: the run was never tracked, or the server needs a password, which the folder does not hold.
    """
    file = folder / "tracking.json"
    state = read_json(file) if file.exists() else {}
    if not {"uri", "experiment", "run_name"} <= state.keys():
        raise RegistryError("the run has nothing for MLflow", file=folder, remedy="start it; its start tracks it")
    uri = uri or state["uri"]
    if ":***@" in uri:
        raise RegistryError(
            "the server needs a password, which is not kept in the run's folder", file=file, found=uri,
            remedy="set MLFLOW_TRACKING_URI",
        )  # fmt: skip
    return Delivery(uri, file, state["experiment"], state["run_name"])


def _exists(client: MlflowClient, run_id: str) -> bool:
    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def _log_metrics(client: MlflowClient, run_id: str, metrics: list[Metric]) -> None:
    client.log_batch(run_id, metrics=metrics)


def _set_tags(client: MlflowClient, run_id: str, content: Mapping[str, str]) -> None:
    tags = [RunTag(_key(name), text[:_MAX_TAG_LENGTH]) for name, text in content.items()]
    for first in range(0, len(tags), _MAX_PARAMS):
        client.log_batch(run_id, tags=tags[first : first + _MAX_PARAMS])


def _upload(client: MlflowClient, run_id: str, path: Path, folder: str | None) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there any more")
    upload = client.log_artifacts if path.is_dir() else client.log_artifact
    upload(run_id, str(path), folder)


def _key(name: str) -> str:
    """A name that MLflow accepts."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:_MAX_KEY_LENGTH]
