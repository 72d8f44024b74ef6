"""The CPUs that a process may use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.base import cpus
from data_pipeline.base.cpus import usable_cpus


def test_a_schedulers_share_counts() -> None:
    one = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code = one + "from data_pipeline.base.cpus import usable_cpus; print(usable_cpus())"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "1\n"


@pytest.mark.parametrize(("text", "expected"), [("250000 100000", 2), ("50000 100000", 1), ("max 100000", 64)])
def test_a_containers_quota_counts(text: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu.max").write_text(f"{text}\n")
    monkeypatch.setattr(cpus, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert usable_cpus() == expected


def test_no_control_groups_no_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "_QUOTA", tmp_path / "missing")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert usable_cpus() == 2
