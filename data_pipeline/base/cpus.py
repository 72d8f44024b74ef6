"""How many CPUs this process may use: a scheduler or a container may give it fewer than the machine has."""

import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of control groups, version 2: microseconds of CPU in a period, or `max`


def usable_cpus() -> int:
    """CPUs of the process's affinity, and at most as many as its container may keep busy; 1 or more."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = map(int, _QUOTA.read_text().split())
    except (OSError, ValueError):  # no control groups, or no quota
        return cpus
    return max(1, min(cpus, quota // period))
