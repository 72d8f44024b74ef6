"""Cost of the solvers beside the least that they could cost: `python -m benchmarks.solvers [family ...]`.

For every family, on the grid of its laptop configuration (configs/data), a batch of samples on one core:

- the time for each sample and internal step (a frame, where the steps are unknown; all of it, where it is steady);
- beside it the floor, in turn in the same process: the transforms of a step alone (its FFTs and matrix products, of
  the same shapes, strides and precision); for families that do not march in the coefficients of a transform also a
  copy of the state for each stage, the least traffic of a method that reads and writes it once;
- eager beside compiled, for the families that compile something;
- two worker processes beside one, in trajectories a second.

Then the project's yardstick: a thousand trajectories of the Fourier neural operator's flow at viscosity 1e-3 on all
cores, projected from a part of them. On a GPU (`--device cuda`) batches are large, and there is one process.
"""

import argparse
import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml

from benchmarks.solver_work import SECONDS, Work, census
from benchmarks.solver_workers import Workers, read
from benchmarks.timing import interleaved, machine, ratio, report
from data_pipeline.base.config import load
from data_pipeline.config import DatasetConfig, GenerateConfig
from data_pipeline.solvers.registry import FAMILIES

CONFIGS = Path(__file__).parents[1] / "configs" / "data"
SHORTEST = 0.05
"""Seconds of a timed run at least: shorter pieces are repeated."""
YARDSTICK = "published/fno_navier_stokes_1e-3.yaml"


def measure(config: GenerateConfig, batch: int, rounds: int, *, compiled: bool) -> dict[str, Any]:
    """One family on one core or GPU."""
    work = Work(config, batch)
    work.shorten()
    steps, copies, recorder = census(config, batch, work.duration)
    runs: dict[str, Callable[[], object]] = {"eager": work}
    target = torch.empty_like(work.initial)

    def floor() -> None:
        recorder.replay()
        for _ in range(copies):
            target.copy_(work.initial)

    parts = [name for name, there in (("transforms", recorder.calls), ("copies", copies)) if there]
    if parts:
        runs["floor"] = floor
    if compiled and has_kernel(config, batch):
        quick = Work(config.model_copy(update={"compile": True}), batch)
        quick.duration = work.duration
        runs["compiled"] = quick
    once = min(interleaved({"piece": work}, rounds=2)["piece"])
    repeats = max(1, math.ceil(SHORTEST / once))
    seconds = interleaved({name: repeated(run, repeats) for name, run in runs.items()}, rounds)
    share = batch * (steps or 1) * repeats
    row: dict[str, Any] = {
        "family": config.family, "grid": work.solver.grid, "precision": config.precision, "batch": batch,
        "steps": steps, "us_per_sample_and_step": 1e6 * statistics.median(seconds["eager"]) / share,
    }  # fmt: skip
    if parts:
        row |= {
            "floor": " + ".join(parts),
            "floor_us": 1e6 * statistics.median(seconds["floor"]) / share,
            "over_floor": ratio(seconds["eager"], seconds["floor"]),
        }
    if "compiled" in runs:
        row["compiled_is_faster_by"] = ratio(seconds["eager"], seconds["compiled"])
    return row


def repeated(run: Callable[[], object], times: int) -> Callable[[], None]:
    """Several times in a row."""

    def again() -> None:
        for _ in range(times):
            run()

    return again


def has_kernel(config: GenerateConfig, batch: int) -> bool:
    """Whether a family compiles anything."""
    with mock.patch.object(torch, "compile", side_effect=lambda function, **_: function) as compiler:
        Work(config.model_copy(update={"compile": True}), batch)()
    return bool(compiler.called)


def case(family: str, device: str, precision: str | None) -> GenerateConfig | None:
    """The laptop configuration of a family; its own precision where none is given."""
    for path in sorted(CONFIGS.glob("*.yaml")):
        content = yaml.safe_load(path.read_text()).get("generate")
        if content and content["family"] == family:
            found = load(DatasetConfig, path).generate
            assert found is not None
            return found.model_copy(update={"device": device, "precision": precision or found.precision})
    return None


def batch_size(config: GenerateConfig, given: int | None) -> int:
    """8 on a CPU; on a GPU 512, and more where a grid is small, less where it is large."""
    if given is not None:
        return given
    if config.device == "cpu":
        return 8
    refine = int(config.parameters.get("refine", 1))
    points: int = math.prod(refine * n for n in config.resolution)
    return max(8, min(4096, 512 * 128**2 // points))


def yardstick(workers: Workers, batch: int, units: int) -> dict[str, Any]:
    """Minutes for 1000 trajectories of the published flow on two cores, from `units` of its 50 time units."""
    config = load(DatasetConfig, CONFIGS / YARDSTICK).generate
    assert config is not None
    assert config.frames % units == 0
    part = config.model_copy(update={"frames": units, "splits": {"train": 2 * batch}})
    workers.together(read, [(part.model_copy(update={"frames": 2}), 0, 1)] * 2)  # imports and plans
    seconds = workers.together(read, [(part, 0, batch), (part, batch, 2 * batch)])
    whole = max(seconds) * (config.frames / units) * (1000 / (2 * batch))
    return {
        "what": "1000 trajectories of " + YARDSTICK, "resolution": config.resolution, "frames": config.frames,
        "parameters": config.parameters, "measured_trajectories": 2 * batch, "measured_time_units": units,
        "minutes_on_two_cores": whole / 60,
    }  # fmt: skip


def yardstick_on_gpu() -> dict[str, Any]:
    """Seconds for 1000 trajectories of the published flow on one GPU, in two batches; without starting the process."""
    config = load(DatasetConfig, CONFIGS / YARDSTICK).generate
    assert config is not None
    part = config.model_copy(update={"device": "cuda", "splits": {"train": 1000}})
    read(part.model_copy(update={"frames": 2}), 0, 1)  # imports and plans
    return {
        "what": "1000 trajectories of " + YARDSTICK, "resolution": config.resolution, "frames": config.frames,
        "parameters": config.parameters, "seconds_on_one_gpu": read(part, 0, 500) + read(part, 500, 1000),
    }  # fmt: skip


def line(row: Mapping[str, Any]) -> str:
    """A row of the table."""
    unit = "step" if row["steps"] else "piece"
    text = f"{row['family']:26} {'x'.join(map(str, row['grid'])):12} batch {row['batch']:4}  "
    text += f"{row['us_per_sample_and_step']:10.1f} us a sample and {unit:5}"
    if "floor" in row:
        text += f"  {row['over_floor']:6.2f} x its {row['floor']}"
    if "compiled_is_faster_by" in row:
        text += f"  compiled {row['compiled_is_faster_by']:.2f} x its speed"
    if "two_workers" in row:
        text += f"  two workers {row['two_workers']:.2f} x"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="all of them by default")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["float64", "float32"], help="that of each configuration by default")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--workers", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    unknown = set(options.families) - set(FAMILIES)
    if unknown:
        parser.error(f"unknown families: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    workers = Workers() if options.workers and options.device == "cpu" else None
    rows = []
    for family in options.families or sorted(FAMILIES):
        config = case(family, options.device, options.precision)
        if config is None:
            print(f"{family:26} has no configuration in configs/data", flush=True)
            continue
        batch = batch_size(config, options.batch)
        with torch.inference_mode():
            row = measure(config, batch, options.rounds, compiled=options.compile)
        if workers:
            row["two_workers"] = workers.gain(config, batch, SECONDS)
        print(line(row), flush=True)
        rows.append(row)
    headline = None
    if options.device == "cuda" and not options.families:
        headline = yardstick_on_gpu()
        print(f"{headline['what']}: {headline['seconds_on_one_gpu']:.0f} seconds on one GPU")
    if workers:
        if not options.families:
            headline = yardstick(workers, 16, 25)
            print(f"{headline['what']}: {headline['minutes_on_two_cores']:.1f} minutes on two cores")
        workers.close()
    report({"benchmark": "solvers", "machine": machine(options.device), "families": rows, "yardstick": headline})


if __name__ == "__main__":
    main()
