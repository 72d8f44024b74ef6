"""Fair timings on one machine: interleaved runs, medians, and the rates that the machine itself reaches."""

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def interleaved(runs: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Seconds of each run, in turn: what disturbs the machine for a while disturbs all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for count in range(warm_up + rounds):
        for name, run in runs.items():
            start = _now()
            run()
            if count >= warm_up:
                seconds[name].append(_now() - start)
    return seconds


def ratio(slow: list[float], fast: list[float]) -> float:
    """How many times faster, the median over the rounds: each round's two times are neighbours."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def matrix_rate(device: str, dtype: torch.dtype, rows: int = 2048) -> float:
    """FLOP/s of a large square product: the best that any network on this machine can reach."""
    n = rows if device == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / min(interleaved({"product": lambda: a @ b}, rounds=5)["product"])


def copy_rate(device: str) -> float:
    """Bytes read and written per second by a copy between buffers that exist."""
    source = torch.randn(2**26 if device == "cpu" else 2**30, device=device)
    target = torch.empty_like(source)
    seconds = min(interleaved({"copy": lambda: target.copy_(source)}, rounds=5)["copy"])
    return 2 * source.numel() * source.element_size() / seconds


class MatrixBytes(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the bytes that matrix products read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("mm", "bmm", "addmm", "baddbmm"):
            tensors = [t for t in (*args, out) if isinstance(t, Tensor)]
            self.total += sum(t.numel() * t.element_size() for t in tensors)
        return out


def machine(device: str) -> str:
    """In words, for the page that holds the figures."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"


def report(figures: dict[str, Any]) -> None:
    """All figures as JSON on one line, with the versions and the commit that they belong to."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    print(json.dumps({"commit": commit.stdout.strip(), "torch": torch.__version__, **figures}))


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
