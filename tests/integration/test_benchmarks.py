"""The benchmarks run, and say what they measured as JSON on their last line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["model", "--sizes", "nano", "--batch", "1", "--rounds", "1"],
        ["rollout", "--sizes", "nano", "--rounds", "1"],
        ["train", "--model", "nano", "--size", "16", "--steps", "60", "--rounds", "1"],
        ["cost_model", "--models", "Ti", "--gpus", "8"],
        ["solvers", "poisson_2d", "shallow_water_2d", "--batch", "1", "--rounds", "1", "--no-compile"],
        ["data", "--size", "8", "--trajectories", "32", "--index", "64", "--ranks", "1", "--rounds", "1"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_benchmark_ends_with_its_figures(arguments: list[str]) -> None:
    command = [sys.executable, "-m", f"benchmarks.{arguments[0]}", *arguments[1:]]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    figures = json.loads(output.splitlines()[-1])
    assert figures["benchmark"] == arguments[0]
    assert {"commit", "torch", "machine"} <= figures.keys()
