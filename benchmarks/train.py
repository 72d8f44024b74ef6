"""Speed of training around the model, side by side in one run: `python -m benchmarks.train`.

loop        share of a step that is not the model's forward, backward or update; what a checkpoint costs
restart     from the end of the imports to the first step, of a run that goes on
deepspeed   a step by DeepSpeed at stages 0 to 3 beside one by a bare loop, on two ranks
scaling     one rank alone, two at once that do not talk, two that do
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks import convert
from benchmarks.timing import machine, report
from data_pipeline.base.config import build, load
from data_pipeline.config import DatasetConfig
from data_pipeline.workers import keep_ray
from launch.datasets import make_datasets
from pretrain.config import PretrainConfig
from pretrain.job import prepare_pretraining

PARTS = ("loop", "restart", "deepspeed", "scaling")
RANKS = {"loop": 1, "restart": 1, "deepspeed": 2, "scaling": 2}
_ROOT = Path(__file__).resolve().parents[1]


def make_data(folder: Path, size: int) -> dict[str, Any]:
    """A dataset of random numbers, as PDEBench's; the `data` group of a configuration in `folder`."""
    raw = convert.write_raw(folder / "raw", 8, size)
    content = {
        "name": "flow",
        "convert": {"layout": "pdebench", "path": str(raw), "splits": {"train": "rest", "test": 1}},
    }
    (folder / "flow.yaml").write_text(yaml.safe_dump(content))
    with keep_ray():
        make_datasets([load(DatasetConfig, folder / "flow.yaml")], folder / "data")
    return {"root": str(folder / "data"), "history": 10, "datasets": [{"config": "flow.yaml"}]}


def prepare(folder: Path, name: str, data: dict[str, Any], model: str, **training: Any) -> Path:
    """Lay out a run; returns its folder."""
    content = {
        "name": name, "output": str(folder / name), "data": data, "model": {"size": model, "patch_size": 8},
        "training": {"micro_batch": 4, "batch_size": 8} | training,
    }  # fmt: skip
    return prepare_pretraining(build(PretrainConfig, content), folder)[0]


def run_part(part: str, *arguments: object) -> dict[str, Any]:
    """Measure a part in fresh ranks (`benchmarks.train_ranks`), each with its share of the cores."""
    ranks = RANKS[part]
    threads = max(1, len(os.sched_getaffinity(0)) // ranks)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(_ROOT)}
    with tempfile.NamedTemporaryFile("r") as output:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command += ["-m", "benchmarks.train_ranks", part, output.name, *map(str, arguments)]
        subprocess.run(command, env=environment, check=True, stdout=sys.stderr)
        found: dict[str, Any] = json.load(output)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--model", default="Ti", help="published size")
    parser.add_argument("--size", type=int, default=128, help="grid points along each axis")
    parser.add_argument("--steps", type=int, default=40, help="of the loop, with a checkpoint every quarter")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if {"loop", "restart"} & set(options.parts):
            data = make_data(folder, options.size)
            run = prepare(folder, "loop", data, options.model, steps=options.steps,
                          checkpoint_every=max(1, options.steps // 4))  # fmt: skip
            figures["loop"] = run_part("loop", run)
            if "restart" in options.parts:
                longer = prepare(folder, "restart", data, options.model, steps=4, checkpoint_every=2)
                run_part("restart", longer)  # makes the checkpoint
                figures["restart"] = run_part("restart", longer)
        for part in ("deepspeed", "scaling"):
            if part in options.parts:
                figures[part] = run_part(part, options.model, options.size, options.rounds)
    for part, values in figures.items():
        print(f"{part}:\n{json.dumps(values, indent=1)}")
    report({"benchmark": "train", "machine": machine("cpu"), "model": options.model, "size": options.size, **figures})


if __name__ == "__main__":
    main()
