"""Roll-outs while a run goes on: each checkpoint, once it is published, is evaluated as the operator that it is."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from data_pipeline.base.files import write_json
from data_pipeline.stores import open_store
from pretrain.checkpoint import load_average, step_of
from pretrain.config import RunConfig, TrainedDataset
from pretrain.evaluate import Evaluation, evaluate
from pretrain.model.operator import load_operator_files
from pretrain.pictures import picture_error_over_time, picture_rollout
from pretrain.run import read_cache
from pretrain.together import together
from pretrain.tracking import Tracker


def validate(folder: Path, config: RunConfig, checkpoint: Path, device: torch.device, tracker: Tracker | None) -> None:
    """Roll a checkpoint's operator out on the first trajectories of each dataset's validation split. Collective.

    Each rank takes some of the datasets. Figures and pictures go to the tracker of rank 0; `validation.json` has the
    newest figures.

    Args:
        folder: the run's.
        config: the run; `training.validation_trajectories` says how many trajectories.
        checkpoint: a published one.
        device: this rank's.
        tracker: rank 0's.

    Raises:
        CheckpointError: on all ranks, when a dataset or the checkpoint cannot be read, or the figures not be written.
    """
    mine = config.data[dist.get_rank() :: dist.get_world_size()]
    found = together(lambda: _evaluate(folder, config, checkpoint, mine, device), "validate", checkpoint)
    evaluations = [each for part in found for each in part]
    if evaluations:
        note = partial(_note, folder, step_of(checkpoint), evaluations, tracker)
        together(note, "note the validation", folder, only_first=True)


def _note(folder: Path, step: int, evaluations: Sequence[Evaluation], tracker: Tracker | None) -> None:
    assert tracker is not None  # rank 0 has it
    content = {"step": step, "datasets": [e.model_dump(mode="json") for e in evaluations]}
    write_json(folder / "validation.json", content)
    for e in evaluations:
        errors = {f"valid/relative_l2/{e.dataset}": e.relative_l2, f"valid/one_step/{e.dataset}": e.one_step}
        tracker.metrics(step, {name: value for name, value in errors.items() if value is not None})
        tracker.figure(picture_error_over_time({f"step {step}": e}), f"step-{step:08d}/{e.dataset}-error.png")
        if e.example is not None:
            tracker.figure(picture_rollout(e.example), f"step-{step:08d}/{e.dataset}-rollout.png")


def _evaluate(
    folder: Path, config: RunConfig, checkpoint: Path, datasets: Sequence[TrainedDataset], device: torch.device
) -> list[Evaluation]:
    operator = load_operator_files(checkpoint)
    load_average(checkpoint, operator)
    evaluations = []
    for dataset in datasets:
        store = open_store(dataset.path, "valid", cache=read_cache(folder))
        if len(store):
            limit = config.training.validation_trajectories
            evaluations.append(evaluate(operator, store, device=device, limit=limit, quiet=True))
        store.close()
    return evaluations
