"""A Slurm of one machine: `sbatch`, `srun` and `scontrol` that treat a job as Slurm would, its nodes being processes.

Only time is the test's own: `warn` lets the moment come at which `--signal` is due, since machines differ in speed.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("sbatch", "srun", "scontrol")


class Cluster:
    """The commands on the PATH, and the jobs in a folder: `N/job.json` for each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def job(self, number: str) -> dict[str, object]:
        """What is known of a job."""
        content: dict[str, object] = json.loads((self.folder / number / "job.json").read_text())
        return content

    def jobs(self) -> list[str]:
        return sorted(p.parent.name for p in self.folder.glob("*/job.json"))

    def warn(self, number: str) -> None:
        """Let the warning before the time limit be due."""
        (self.folder / number / "warn").touch()

    def cancel(self, number: str) -> None:
        """As `scancel`."""
        (self.folder / number / "cancel").touch()

    def wait(self, condition: Callable[[], bool], seconds: float = 900) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, {n: self.job(n) for n in self.jobs()}
            time.sleep(0.02)

    def wait_for(self, number: str, *states: str) -> str:
        """Until a job has one of these states, which is returned."""
        self.wait(lambda: self.job(number)["state"] in states)
        return str(self.job(number)["state"])


@contextmanager
def fake_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Put the commands on the PATH. Jobs that still run at the end are killed."""
    commands, jobs = folder / "bin", folder / "jobs"
    commands.mkdir(parents=True)
    jobs.mkdir()
    for name in COMMANDS:
        (commands / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.fake_slurm.{name} "$@"\n')
        (commands / name).chmod(0o755)
    for name in [n for n in os.environ if n.startswith(("SLURM_", "SBATCH_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("FAKE_SLURM", str(jobs))
    cluster = Cluster(jobs)
    try:
        yield cluster
    finally:
        for number in cluster.jobs():
            for key in ("daemon", "batch"):  # each leads a group
                try:
                    os.killpg(int(str(cluster.job(number)[key])), signal.SIGKILL)
                except (ProcessLookupError, KeyError):
                    continue
