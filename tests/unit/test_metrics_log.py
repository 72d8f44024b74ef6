"""A run's figures on disk: torn lines, steps repeated after a kill, steps taken back."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretrain.metrics_log import History, MetricsLog, read_history, read_records

ROOT = Path(__file__).resolve().parents[2]
ENDLESS = """
import itertools, sys
from pathlib import Path
from pretrain.metrics_log import MetricsLog
log = MetricsLog(Path(sys.argv[1]))
for step in itertools.count():
    log.figures(step, {"loss": 1 / (step + 1)})
"""


@pytest.fixture
def log(tmp_path: Path) -> MetricsLog:
    return MetricsLog(tmp_path / "metrics.jsonl")


def note(log: MetricsLog, *steps: int, loss: float = 1.0) -> None:
    for step in steps:
        log.figures(step, {"loss": loss})


def test_figures_come_back(log: MetricsLog) -> None:
    before = time.time()
    log.figures(2, {"loss": 0.1 + 0.2, "count": 3})
    log.event("start", note="x")
    log.figures(4, {"loss": float("inf"), "other": float("nan")})
    history = read_history(log.file.parent)
    assert history.steps[2].values == {"loss": 0.1 + 0.2, "count": 3.0}
    assert before - 1 < history.steps[2].time < time.time() + 1
    assert history.series("loss") == [(2, 0.1 + 0.2), (4, math.inf)]
    assert math.isnan(history.latest()["other"])
    assert history.latest()["count"] == 3
    for line in log.file.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_line_that_is_torn_is_passed_over_and_spoils_no_other(log: MetricsLog) -> None:
    note(log, 1, 2)
    whole = log.file.read_bytes()
    for cut in range(1, len(whole)):
        log.file.write_bytes(whole[:cut])
        before = list(read_history(log.file.parent).steps)
        assert before == [step for step, end in ((1, whole.index(b"\n")), (2, len(whole) - 1)) if cut > end]
        note(MetricsLog(log.file), 3)
        complete = [step for step, end in ((1, whole.index(b"\n")), (2, len(whole) - 1)) if cut >= end]
        assert list(read_history(log.file.parent).steps) == [*complete, 3]


def test_what_is_no_record_is_passed_over(log: MetricsLog) -> None:
    note(log, 1)
    with log.file.open("ab") as file:
        file.write(b'\0\0\0\n[1]\n"text"\n{"step": 2}\n{"step": "x", "time": 0, "values": {}}\n\xff\xfe\n{}\nnull\n')
    note(log, 3)
    assert list(read_history(log.file.parent).steps) == [1, 3]


def test_repeated_steps_take_the_place_of_those_before_the_kill(log: MetricsLog) -> None:
    log.event("begin", step=0)
    note(log, 2, 4, 6, 8)
    log.event("begin", step=5)
    history = read_history(log.file.parent)
    assert list(history.steps) == [2, 4]
    assert (history.starts, history.started_at) == (2, 5)
    note(log, 6, loss=2.0)
    assert [f.step for f in history.update()] == [6]
    assert history.series("loss") == [(2, 1.0), (4, 1.0), (6, 2.0)]
    log.event("rollback", step=2)
    note(log, 3)
    history.update()
    assert list(history.steps) == [2, 3]
    assert (history.starts, history.started_at) == (2, 2)


def test_figures_of_one_step_may_come_in_parts(log: MetricsLog) -> None:
    note(log, 1, 2)
    history = read_history(log.file.parent)
    log.figures(1, {"relative_l2/wave": 0.5})
    assert [f.values for f in history.update()] == [{"loss": 1.0, "relative_l2/wave": 0.5}]
    assert list(history.steps) == [1, 2]


def test_reading_goes_on_where_it_was(log: MetricsLog) -> None:
    history = History(log.file)
    for step in range(5):
        note(log, step)
        assert [f.step for f in history.update()] == [step]
    assert history.update() == []
    log.file.write_bytes(b"")  # begun anew
    note(log, 1)
    assert [f.step for f in history.update()] == [1]
    assert list(history.steps) == [1]


def test_no_file_is_no_figures(tmp_path: Path) -> None:
    assert list(read_records(tmp_path / "metrics.jsonl")) == []
    assert read_history(tmp_path).steps == {}


def test_a_disk_that_fills_up_spoils_no_later_line(log: MetricsLog, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda handle, line: write(handle, line[:10]))
        with pytest.raises(OSError, match="No space left"):
            note(log, 1)
    note(log, 2)
    assert list(read_history(log.file.parent).steps) == [2]


def test_a_killed_process_loses_nothing_that_it_has_noted(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    process = subprocess.Popen([sys.executable, "-c", ENDLESS, str(file)], cwd=ROOT)
    deadline = time.monotonic() + 600
    while not file.exists() or file.stat().st_size < 100_000:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    steps = list(read_history(tmp_path).steps)
    assert steps == list(range(len(steps)))
    assert len(steps) > 1000
