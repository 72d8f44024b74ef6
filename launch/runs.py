"""Training runs as their folders tell them: what `pdepot runs` shows. Nothing here needs torch or a server."""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.base.errors import ConfigError, PdepotError
from data_pipeline.base.files import read_json
from pretrain.metrics_log import METRICS_FILE, History

ENDED = ("finished", "preempted", "failed")
_STEPS_FOR_RATE = 50


@dataclass
class Run:
    """A run's folder; `update` reads what is new in it.

    Raises:
        ConfigError: it is no run's folder.
    """

    folder: Path
    name: str = field(init=False)
    total: int = field(init=False)
    """Steps to be done."""
    status: str = "not started"
    message: str = ""
    permanent: bool = False
    """A failure that another start would meet again."""

    def __post_init__(self) -> None:
        config = read_json(self.folder / "config.json")
        try:
            self.name, self.total = str(config["name"]), int(config["training"]["steps"])
        except (KeyError, TypeError, ValueError):
            raise ConfigError("not a run's configuration", file=self.folder / "config.json") from None
        self.history = History(self.folder / METRICS_FILE)
        self.update()

    def update(self) -> list[int]:
        """Read status and figures; returns the steps whose figures are new."""
        # The status first: figures that were noted before it are there by now.
        if (self.folder / "status.json").exists():
            content = read_json(self.folder / "status.json")
            self.status, self.message = str(content.get("status")), str(content.get("message", ""))
            self.permanent = bool(content.get("permanent", False))
        return [figures.step for figures in self.history.update()]

    @property
    def step(self) -> int:
        """Steps done, as far as figures say."""
        return max(next(reversed(self.history.steps), 0), self.history.started_at)

    def silent_for(self) -> float | None:
        """Seconds since the last sign of life; None before the first."""
        signs = [self.folder / name for name in (METRICS_FILE, "status.json") if (self.folder / name).exists()]
        return max(0.0, time.time() - max(sign.stat().st_mtime for sign in signs)) if signs else None

    def steps_per_second(self) -> float | None:
        """Lately, and since the last start; None as long as there are no two figures."""
        recent = [f for step, f in self.history.steps.items() if step > self.history.started_at][-_STEPS_FOR_RATE:]
        if len(recent) < 2 or recent[-1].time <= recent[0].time:
            return None
        return (recent[-1].step - recent[0].step) / (recent[-1].time - recent[0].time)

    def seconds_left(self) -> float | None:
        """At the present rate; None where that is not known, or the run does not go on."""
        rate = self.steps_per_second()
        return (self.total - self.step) / rate if rate and self.status == "running" else None

    def checkpoints(self) -> list[int]:
        """Steps of the checkpoints that are published."""
        found = (re.fullmatch(r"step-(\d+)", path.name) for path in (self.folder / "checkpoints").glob("step-*"))
        return sorted(int(match[1]) for match in found if match)

    def incidents(self) -> list[dict[str, Any]]:
        """Records of steps that were not taken, oldest first."""
        return list(_readable(sorted((self.folder / "incidents").glob("*/incident.json"))))

    def delivered(self) -> tuple[str, int] | None:
        """Where MLflow is, and the last step of which it has the loss; None for a run that is not tracked."""
        for state in _readable([self.folder / "tracking.json"]):
            if "uri" in state:
                return str(state["uri"]), int(state["sent"].get("loss", 0))
        return None

    def rollbacks(self) -> list[dict[str, Any]]:
        """Records of the ways back to a checkpoint, oldest first."""
        return [record for content in _readable([self.folder / "rollbacks.json"]) for record in content]


def _readable(files: list[Path]) -> Iterator[Any]:
    for file in files:
        try:
            yield read_json(file)
        except PdepotError:
            continue  # not there, or being written


def find_runs(folder: Path) -> list[Path]:
    """The runs' folders in and below `folder`, by name."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if "config.json" in files and "initial" in folders:
            found.append(Path(place))
            folders.clear()
    return found


def open_run(folder: Path) -> Run:
    """The run in a folder, or the only one below it.

    Raises:
        ConfigError: there is none, or there are several.
    """
    found = find_runs(folder)
    if len(found) != 1:
        raise ConfigError(
            "not a run's folder", file=folder, found=", ".join(map(str, found)) or "no run in it or below it",
            expected="one run, as `pdepot runs list FOLDER` shows them",
        )  # fmt: skip
    return Run(found[0])


def sync_run(folder: Path) -> str:
    """Send to MLflow what it has not got of a run; returns a sentence about it.

    Raises:
        RegistryError: the server cannot be used, or the run was never tracked.
        PdepotError: the run is being trained, and sends its figures itself.
    """
    from pretrain.delivery import find_delivery
    from pretrain.mlflow_server import impatience, registry_errors, without_password

    delivery = find_delivery(folder, os.environ.get("MLFLOW_TRACKING_URI"))
    with impatience, delivery.alone():
        delivery.open()
        waiting = delivery.waiting()
        with registry_errors("the figures cannot be sent", delivery.uri):
            delivery.send()
    return f"{waiting} figures sent; {without_password(delivery.uri)} has all of {folder}"
