"""Whole jobs: pretraining and fine-tuning, each from data that are there to a registered, evaluated operator."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from data_pipeline.base.files import digest, read_json, write_json
from data_pipeline.config import DatasetConfig
from finetune.config import FinetuneConfig
from finetune.train import prepare_finetuning
from launch.launcher import LOCAL, Launcher
from launch.ranks import run_ranks, with_ranks
from pretrain import registry
from pretrain.config import DataConfig, EvaluationConfig, PretrainConfig, RegistryConfig, RunConfig
from pretrain.engine import device_type
from pretrain.evaluate import Evaluation, evaluate
from pretrain.job import number_of_ranks, open_stores, prepare_pretraining
from pretrain.lineage import lineage
from pretrain.metrics_log import read_history
from pretrain.model.operator import load_operator_files
from pretrain.pictures import picture_error_over_time, picture_rollout
from pretrain.run import finished_operator
from pretrain.tracking import Tracker


@dataclass(frozen=True)
class Outcome:
    """What a job has brought."""

    evaluations: dict[str, list[Evaluation]]
    """By the models' names: pretrained, or scratch and fine-tuned."""
    lineage: dict[str, str]
    registered: dict[str, str] = field(default_factory=dict)
    """Model name -> `models:/` reference of the version in the registry."""


def pretrain_job(
    config: PretrainConfig, folder: Path, uri: str, launcher: Launcher = LOCAL, *, new_segment: bool = False
) -> Outcome:
    """Train, evaluate and register; whatever an earlier start has finished is kept.

    Args:
        config: the job.
        folder: that of the job's configuration file.
        uri: MLflow's tracking URI.
        launcher: what starts the training processes; all else is done here.
        new_segment: let a run that is there go on from its last checkpoint with the job's data.
    """
    config = with_ranks(config, launcher)
    path, run = prepare_pretraining(config, folder, new_segment=new_segment)
    datasets = config.data.load_datasets(folder)
    origin = lineage(path, run)  # before the training: the code that trains is the code on record
    run_ranks(path, number_of_ranks(config.training), uri, launcher)
    evaluations = evaluate_run(path, config.data, datasets, config.evaluation)
    log_evaluations(path, run, evaluations, uri)
    registered = register_run(path, run, config.registry, evaluations, origin, uri)
    return Outcome({"pretrained": evaluations}, origin, registered)


def finetune_job(config: FinetuneConfig, folder: Path, uri: str, launcher: Launcher = LOCAL) -> Outcome:
    """Pull the pretrained operator, adapt and train it, train the same from scratch, evaluate both, register.

    Args:
        config: the job.
        folder: that of the job's configuration file.
        uri: MLflow's tracking URI.
        launcher: what starts the training processes; all else is done here.
    """
    config = with_ranks(config, launcher)
    pretrained = registry.pull(config.model, uri=uri)
    runs = prepare_finetuning(config, folder, pretrained)
    datasets = config.data.load_datasets(folder)
    path, run = runs["fine-tuned"]
    origin = lineage(path, run, parent=config.model)
    evaluations = {}
    for kind, (kind_path, kind_run) in runs.items():
        run_ranks(kind_path, number_of_ranks(config.training), uri, launcher)
        evaluations[kind] = evaluate_run(kind_path, config.data, datasets, config.evaluation)
        log_evaluations(kind_path, kind_run, evaluations[kind], uri)
    registered = register_run(path, run, config.registry, evaluations["fine-tuned"], origin, uri)
    return Outcome(evaluations, origin, registered)


def evaluate_run(
    path: Path, data: DataConfig, datasets: Sequence[DatasetConfig], config: EvaluationConfig
) -> list[Evaluation]:
    """Roll the run's operator out on the held-out trajectories of every dataset."""
    operator = load_operator_files(finished_operator(path)).to(device_type())
    evaluations = []
    settings: dict[str, Any] = {"batch_size": config.batch_size, "device": device_type(), "limit": config.limit}
    for store, dataset in zip(open_stores(data, datasets, config.split), datasets, strict=True):
        evaluations.append(evaluate(operator, store, score=dataset.score, **settings))
        store.close()
    write_json(path / "evaluation.json", [e.model_dump(mode="json") for e in evaluations])
    del operator
    torch.cuda.empty_cache()  # what follows, fine-tuning say, is other processes; does nothing without a GPU
    return evaluations


def log_evaluations(path: Path, run: RunConfig, evaluations: Sequence[Evaluation], uri: str) -> None:
    """Put figures and pictures on the run's page in MLflow, once for each server; and again if they have changed."""
    key = digest([uri, *(e.model_dump(mode="json") for e in evaluations)])
    marker = path / "evaluation_logged.json"
    if marker.exists() and read_json(marker) == key:
        return
    tracker = Tracker.start(uri, run.tracking.experiment, run.name, resume_from=path / "tracking.json")
    step = run.training.steps
    noted = read_history(path).steps.get(step)
    known = noted.values if noted else {}
    for e in evaluations:
        errors = {f"relative_l2/{e.dataset}": e.relative_l2, f"one_step/{e.dataset}": e.one_step}
        errors[f"persistence/{e.dataset}"] = e.persistence
        # What is noted already reaches every server from there. As text, since nan is not equal to itself.
        new = {n: value for n, value in errors.items() if value is not None and str(value) != str(known.get(n))}
        if new:
            tracker.again(new)
            tracker.metrics(step, new)
        tracker.figure(picture_error_over_time({run.name: e}), f"{e.dataset}-error.png")
        if e.example is not None:
            tracker.figure(picture_rollout(e.example), f"{e.dataset}-rollout.png")
    tracker.finish("FINISHED")
    write_json(marker, key)


def register_run(
    path: Path,
    run: RunConfig,
    config: RegistryConfig | None,
    evaluations: Sequence[Evaluation],
    origin: dict[str, str],
    uri: str,
) -> dict[str, str]:
    """Register the run's operator under its name and alias, if the job has a registry."""
    if config is None:
        return {}
    metrics: dict[str, Any] = {f"relative_l2.{e.dataset}": e.relative_l2 for e in evaluations}
    metrics |= {f"persistence.{e.dataset}": e.persistence for e in evaluations}
    version = registry.register(
        finished_operator(path),
        config.name,
        uri=uri,
        experiment=run.tracking.experiment,
        run_id=read_json(path / "tracking.json")["run_id"],
        lineage=origin,
        metrics={name: value for name, value in metrics.items() if value is not None},
        alias=config.alias,
    )
    return {config.name: f"models:/{config.name}/{version.version}"}
