"""`pdepot pretrain`, `finetune`, `evaluate` and `replay`."""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from data_pipeline.base.config import load
from data_pipeline.base.remote import as_location
from launch.commands.parser import Commands, add_command, add_overrides, mlflow_uri
from launch.launcher import Launcher, add_launcher_flags, launcher_of


def add_training_commands(commands: Commands) -> None:
    """Add them to the commands without a group."""
    add = add_command(
        commands,
        "pretrain",
        _pretrain,
        "train an operator on a mixture of datasets, evaluate and register it",
        "pretrain configs/pretrain/demo.yaml training.steps=100 output=runs/short registry=null",
    )
    add.add_argument("config", type=Path, help="a pretraining configuration; its datasets must have been built")
    add.add_argument(
        "--new-segment",
        action="store_true",
        help="let a run that has begun go on from its last checkpoint with other datasets, weights or quarantine",
    )
    add_launcher_flags(add)
    add_overrides(add)

    add = add_command(
        commands,
        "finetune",
        _finetune,
        "adapt a registered operator to a new dataset",
        "finetune configs/finetune/gray_scott.yaml model=models:/pdepot-demo@champion",
    )
    add.add_argument("config", type=Path, help="a fine-tuning configuration; its datasets must have been built")
    add_launcher_flags(add)
    add_overrides(add)

    add = add_command(
        commands,
        "evaluate",
        _evaluate,
        "roll an operator out on held-out trajectories",
        "evaluate models:/pdepot-demo@champion data/navier_stokes_2d.shards",
    )
    add.add_argument("model", help="models:/NAME@ALIAS, models:/NAME/VERSION, or a folder with an operator")
    add.add_argument(
        "data", type=as_location, nargs="+", help="stores or shards of datasets that the operator knows, or their URLs"
    )
    add.add_argument("--split", default="test", choices=["train", "valid", "test"])
    add.add_argument("--limit", type=int, help="at most so many trajectories of each dataset")
    add.add_argument("--report", type=Path, help="write figures and pictures into this HTML file")

    add = add_command(
        commands,
        "replay",
        _replay,
        "compute a training step that was not taken again",
        "replay runs/demo/pretrain/incidents/step-00000037",
    )
    add.add_argument("incident", type=Path, help="a folder below a run's incidents/")


def _pretrain(options: argparse.Namespace) -> int:
    from launch.jobs import pretrain_job
    from pretrain.config import PretrainConfig

    job = partial(pretrain_job, new_segment=options.new_segment)
    return _run_job(load(PretrainConfig, options.config, options.overrides), options, job)


def _finetune(options: argparse.Namespace) -> int:
    from finetune.config import FinetuneConfig
    from launch.jobs import finetune_job

    return _run_job(load(FinetuneConfig, options.config, options.overrides), options, finetune_job)


def _run_job(config: Any, options: argparse.Namespace, job: Callable[[Any, Path, str, Launcher], Any]) -> int:
    """Run a whole job and show its results; or hand it to Slurm, which runs the same command again."""
    from launch.ranks import check_launch
    from launch.results import show_results
    from launch.slurm import must_submit, submit
    from pretrain.tracking import check_reachable

    launcher = launcher_of(options)
    check_launch(config.training, launcher)
    if must_submit(launcher):
        submit([sys.executable, "-m", "launch.cli", *options.words], Path(config.output), config.name, launcher)
        return 0
    check_reachable(mlflow_uri())
    outcome = job(config, options.config.parent, mlflow_uri(), launcher)
    show_results(Path(config.output), config.name, config.model_dump(mode="json"), [outcome], mlflow_uri())
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from data_pipeline.stores import open_store
    from pretrain.engine import device_type
    from pretrain.evaluate import evaluate
    from pretrain.registry import load_operator
    from pretrain.report import METRIC_NOTE, Table, evaluation_section, summary, table, write_report

    operator = load_operator(options.model, mlflow_uri()).to(device_type())
    evaluations = [
        evaluate(operator, open_store(path, options.split), device=device_type(), limit=options.limit)
        for path in options.data
    ]
    rows = summary({"operator": evaluations})
    print(table(rows))
    if options.report:
        write_report(
            options.report,
            title=options.model,
            tables=[Table("Relative L2 of the roll-out", rows, METRIC_NOTE)],
            sections=[evaluation_section({"operator": e}) for e in evaluations],
            configuration=operator.config.model_dump(mode="json"),
            lineage={"model": options.model} | {f"data.{e.dataset}": e.digest for e in evaluations},
        )
        print(f"\nreport: {options.report.resolve()}")
    return 0


def _replay(options: argparse.Namespace) -> int:
    from pretrain.replay import replay
    from pretrain.report import table

    found = replay(options.incident)
    print(table(found.rows))
    print(found.text)
    return 0
