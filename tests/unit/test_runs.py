"""`pdepot runs`: what a run's folder tells, in a table, on a page, and live until the run ends."""

import os
import pty
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.base.errors import ConfigError
from data_pipeline.base.files import write_json
from launch import watch as live
from launch.cli import main
from launch.run_view import _PLAIN_BARS, duration, run_page, runs_table, sparkline
from launch.runs import Run, find_runs, open_run
from pretrain.metrics_log import MetricsLog

ROOT = Path(__file__).resolve().parents[2]


def make_run(folder: Path, status: str | None = "running", message: str = "", steps: int = 100) -> Path:
    (folder / "initial").mkdir(parents=True)
    write_json(folder / "config.json", {"name": "tiny", "training": {"steps": steps}})
    if status is not None:
        write_status(folder, status, message)
    return folder


def write_status(folder: Path, status: str, message: str = "", **others: Any) -> None:
    write_json(folder / "status.json", {"status": status, "message": message, **others})


def note(folder: Path, *steps: int, begin: int | None = None, clock: float = 1.0, **values: float) -> None:
    """Figures of some steps, `clock` seconds a step apart."""
    log = MetricsLog(folder / "metrics.jsonl")
    if begin is not None:
        log.event("begin", step=begin)
    with pytest.MonkeyPatch.context() as patch:
        for step in steps:
            patch.setattr(time, "time", lambda step=step: 1.7e9 + clock * step)
            log.figures(step, {"loss": 1 / step, "loss/wave": 2 / step, "samples_per_second": 32.0, **values})
    log.close()


def page(folder: Path) -> str:
    return "\n".join(run_page(Run(folder)))


def test_runs_are_found_and_listed(tmp_path: Path) -> None:
    note(make_run(tmp_path / "b" / "pretrain"), 10, 20, begin=0)
    make_run(tmp_path / "a", status=None)
    make_run(tmp_path / "a" / "checkpoints" / "no-run-of-its-own")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.json").write_text("{}")
    assert find_runs(tmp_path) == [tmp_path / "a", tmp_path / "b" / "pretrain"]
    header, first, second = runs_table(tmp_path).splitlines()
    assert header.split() == ["run", "status", "step", "loss", "samples/s", "last", "sign"]
    assert first.split() == [str(tmp_path / "a"), "not", "started", "0/100"]
    assert second.split()[1:5] == ["running", "20/100", "0.05", "32"]
    assert runs_table(tmp_path / "c") == f"no runs in {tmp_path / 'c'}"


def test_a_run_is_named_by_a_folder_above_it(tmp_path: Path) -> None:
    one = make_run(tmp_path / "job" / "pretrain")
    assert open_run(one).folder == open_run(tmp_path).folder == one
    make_run(tmp_path / "job" / "other")
    with pytest.raises(ConfigError, match="pdepot runs list"):
        open_run(tmp_path)
    with pytest.raises(ConfigError, match="no run in it"):
        open_run(tmp_path / "nowhere")


def test_the_page_of_a_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    figures = {"learning_rate": 1e-3, "gradient_norm": 0.5, "flop_per_second": 2.5e12, "fraction_of_peak": 0.314}
    figures |= {"data_wait_fraction": 0.004, "memory_gib": 1.5, "skipped_steps": 2, "clip_bound": 0.7}
    note(folder, *range(2, 41, 2), begin=0, **figures)
    for step in (20, 40):
        (folder / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    (folder / "checkpoints" / ".step-00000060.partial").mkdir()
    incident = {"step": 31, "reason": "the loss is not finite", "positions": [496, 499], "command": "pdepot replay X"}
    write_json(folder / "incidents" / "step-00000031" / "incident.json", incident)
    write_json(folder / "rollbacks.json", [{"from_step": 35, "to_step": 20}])
    (folder / "hangs.jsonl").write_text('{"message": "rank 1 made no progress for 60 s"}\n')
    tracking = {"run_id": "abc", "uri": "http://mlflow:5000", "sent": {"loss": 38}, "position": 9}
    write_json(folder / "tracking.json", tracking)
    text = page(folder)
    for words in (
        "running", "40/100 steps (40 %), 1 steps/s, 1 min 0 s left", "0.025", "0.05     wave", "learning rate 0.001",
        "gradient norm 0.5", "32 samples/s", "2.5 TFLOP/s", "31.4 % of peak", "0.4 % waiting for data", "1.5 GiB",
        "2 steps", "20, 40\n", "step 31: the loss is not finite, 2 samples", "pdepot replay X",
        "from step 35 to 20", "rank 1 made no progress", "0.7 clip_bound", "has step 38, at http://mlflow:5000",
    ):  # fmt: skip
        assert words in text, words
    assert "█" in text
    assert "█" not in "\n".join(run_page(Run(folder), bars=_PLAIN_BARS))

    write_status(folder, "failed", "the disk is full\n  file: x")
    note(folder, 100, **{"relative_l2/wave": 0.125})
    text = page(folder)
    assert re.search(r"status +failed\n +the disk is full\n +file: x\n", text)
    assert re.search(r"validation +0.125 relative_l2/wave", text)
    assert "left" not in text


def test_progress_after_a_restart_is_that_of_the_restart(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    note(folder, *range(1, 51), begin=0)
    note(folder, begin=40)
    run = Run(folder)
    assert (run.step, run.seconds_left()) == (40, None)  # the old rate says nothing of the new start
    note(folder, *range(41, 46), clock=2.0)
    run.update()
    assert (run.step, run.seconds_left()) == (45, 110.0)
    assert "started 2 times" in page(folder)


def test_a_folder_without_figures_yet(tmp_path: Path) -> None:
    text = page(make_run(tmp_path, status=None))
    assert "not started" in text
    assert "0/100 steps (0 %)" in text


def test_sparklines() -> None:
    assert sparkline([1, 0.1, 0.01], width=3) == "█▅▁"  # decades are equally far apart
    assert sparkline([-1, 0, 1], width=3) == "▁▅█"
    assert sparkline([1, float("nan"), 3, float("inf")], width=4) == "▁ █ "
    assert sparkline([5, 5], width=2) == "▁▁"
    assert sparkline([], width=2) == sparkline([float("nan")]) == ""
    assert len(sparkline(range(1, 1000), width=40)) == 40


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.2, "4 s"), (125, "2 min 5 s"), (3600, "1 h 0 min"), (200_000, "2 d 7 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def start_watching(folder: Path, **where: Any) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "launch.cli", "runs", "watch", str(folder)]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": "utf-8"}, **where)


def test_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    note(folder, 1, 2, begin=0)
    process = start_watching(folder, stdout=subprocess.PIPE)
    assert process.stdout is not None
    read = lambda: process.stdout.readline().decode().split()  # noqa: E731
    assert read()[:2] == ["step", "2/100"]
    assert read() == ["tiny:", "running"]
    note(folder, 3)
    assert read() == ["step", "3/100", "loss", "0.3333", "samples/s", "32", "1", "min", "37", "s", "left"]
    note(folder, 100)
    write_status(folder, "finished")
    assert read()[:2] == ["step", "100/100"]
    assert read() == ["tiny:", "finished"]
    assert process.wait(timeout=600) == 0


def test_a_page_on_a_terminal(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    note(folder, 1, 2, begin=0)
    ours, theirs = pty.openpty()
    process = start_watching(folder, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""

    def read_until(wanted: bytes) -> None:
        nonlocal shown
        deadline = time.monotonic() + 600
        while wanted not in shown:
            assert time.monotonic() < deadline, shown
            try:
                shown += os.read(ours, 4096)
            except OSError:  # Linux, when the other end is closed
                break
        assert wanted in shown, shown

    read_until(b"2/100 steps")
    note(folder, 50)
    read_until(b"50/100 steps")
    write_status(folder, "preempted", "asked to stop")
    read_until(b"asked to stop")
    read_until(b"\x1b[?25h")  # the cursor is given back
    assert process.wait(timeout=600) == 1
    os.close(ours)


def test_a_failure_may_be_followed_by_another_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path, status="failed")
    outcomes: list[bool] = []
    watching = threading.Thread(target=lambda: outcomes.append(live.watch(Run(folder), seconds=0.01)))
    watching.start()
    watching.join(0.5)
    assert watching.is_alive()
    write_status(folder, "running")
    write_status(folder, "finished")
    watching.join()
    assert outcomes == [True]
    write_status(folder, "failed", permanent=True)
    assert not live.watch(Run(folder))
    monkeypatch.setattr(live, "_SECONDS_TO_RESTART", 0.0)
    write_status(folder, "failed")
    assert not live.watch(Run(folder), seconds=0.01)


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "run")
    assert main(["runs", "list", str(tmp_path)]) == 0
    assert main(["runs", "show", str(tmp_path)]) == 0
    assert "0/100 steps" in capsys.readouterr().out
    assert main(["runs", "show", str(tmp_path / "rum")]) == 1
    assert main(["runs", "sync", str(tmp_path)]) == 1
    assert "the run has nothing for MLflow" in capsys.readouterr().err
