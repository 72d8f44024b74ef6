"""A run's figures on disk, `metrics.jsonl`: the local truth, which MLflow and `pdepot runs` are fed from.

One line for each record, in the order of time: figures `{"step": 120, "time": 1.7e9, "values": {"loss": 0.12}}`, or
something else that happened, `{"event": "begin", "time": 1.7e9, "step": 100}`. Values that are not finite are text
("nan"), which JSON has no numbers for. Lines are handed to the operating system as they come and are not synced: a
killed process loses none, a power cut the last few, and readers pass over a line that is torn.
"""

import errno
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """The writing end; one process at a time has it open."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file = file
        self._handle = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        size = os.fstat(self._handle).st_size
        self._torn = size > 0 and os.pread(self._handle, 1, size - 1) != b"\n"

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """Note figures of a step. Raises OSError when the disk is full."""
        shown = {name: float(value) for name, value in values.items()}
        self._append({"step": step, "values": {k: v if math.isfinite(v) else str(v) for k, v in shown.items()}})

    def event(self, kind: str, **content: Any) -> None:
        """Note something that happened; `content` is JSON-able. Raises OSError when the disk is full."""
        self._append({"event": kind, **content})

    def _append(self, record: dict[str, Any]) -> None:
        line = json.dumps({"time": round(time.time(), 3), **record}).encode() + b"\n"
        line = b"\n" + line if self._torn else line  # a torn line is to spoil no other
        self._torn = True
        self._torn = os.write(self._handle, line) < len(line)
        if self._torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.file))

    def close(self) -> None:
        """Close the file; nothing is noted afterwards."""
        os.close(self._handle)


def read_records(file: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Whole records from a position on, each with the position behind it; what is no record is passed over.

    Records of figures have `step`, `time` and `values`, the numbers among them those that are not finite, too.
    """
    if not file.exists():
        return
    with file.open("rb") as lines:
        lines.seek(offset)
        for line in lines:
            if not line.endswith(b"\n"):
                return  # being written
            offset += len(line)
            record = _record(line)
            if record is not None:
                yield record, offset


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
        if "values" in record:
            values = {str(name): float(value) for name, value in record["values"].items()}
            return {"step": int(record["step"]), "time": float(record["time"]), "values": values}
        return {**record, "event": str(record["event"]), "time": float(record["time"])}
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


@dataclass(frozen=True)
class Figures:
    """What was noted of a step."""

    step: int
    time: float
    """Seconds since 1970."""
    values: dict[str, float]


class History:
    """The reading end: figures by step, each step once. Where a run went back to an earlier step, after a kill or a
    roll-back, what it had noted of later ones is withdrawn, and the repeated steps take its place."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.steps: dict[int, Figures] = {}
        """In ascending order."""
        self.starts = 0
        """How often the training was started."""
        self.started_at = 0
        """The step that the last start, or roll-back, went on from."""
        self._offset = 0

    def update(self) -> list[Figures]:
        """Read what was added since the last call; returns the steps that are new or have changed."""
        if self.file.exists() and self.file.stat().st_size < self._offset:
            self.steps, self.starts, self.started_at, self._offset = {}, 0, 0, 0  # deleted, and begun anew
        changed: dict[int, Figures] = {}
        for record, end in read_records(self.file, self._offset):
            self._offset = end
            if "values" in record:
                step = record["step"]
                known = self.steps[step].values if step in self.steps else {}
                changed[step] = self.steps[step] = Figures(step, record["time"], known | record["values"])
            elif record["event"] in ("begin", "rollback") and isinstance(record.get("step"), int):
                self.starts += record["event"] == "begin"
                self._go_back(record["step"])
                changed = {step: figures for step, figures in changed.items() if step <= record["step"]}
        self.steps = dict(sorted(self.steps.items())) if changed else self.steps
        return [changed[step] for step in sorted(changed)]

    def _go_back(self, step: int) -> None:
        self.started_at = step
        self.steps = {known: figures for known, figures in self.steps.items() if known <= step}

    def series(self, name: str) -> list[tuple[int, float]]:
        """All values of one figure, by step."""
        return [(step, f.values[name]) for step, f in self.steps.items() if name in f.values]

    def latest(self) -> dict[str, float]:
        """The last value of every figure."""
        latest: dict[str, float] = {}
        for figures in self.steps.values():
            latest |= figures.values
        return latest


def read_history(folder: Path) -> History:
    """The figures of the run in a folder, as far as it has come."""
    history = History(folder / METRICS_FILE)
    history.update()
    return history
