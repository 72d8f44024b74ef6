"""From a fine-tuning job's configuration to its training runs: the adapted operator, and the same from scratch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data_pipeline.base.errors import ConfigError
from data_pipeline.base.files import sha256_file
from data_pipeline.stores.protocol import TrajectoryStore
from finetune.adapt import adapt, from_scratch
from finetune.config import FinetuneConfig
from pretrain.config import RunConfig
from pretrain.job import channel_slots, check_batch, open_training_data, run_config, scaling
from pretrain.model.grids import check_grids, network_grid
from pretrain.model.operator import WEIGHTS_FILE, Operator, load_operator_files
from pretrain.run import prepare


def prepare_finetuning(config: FinetuneConfig, folder: Path, pretrained: Path) -> dict[str, tuple[Path, RunConfig]]:
    """Lay out the runs of a fine-tuning job.

    Args:
        config: the job.
        folder: that of the job's configuration file.
        pretrained: folder of the operator that `config.model` names.

    Returns:
        Folder and configuration of the run `fine-tuned` and, if it is asked for, of `scratch`. Both runs draw the
        same samples with the same noise, for the same number of steps; only the initial weights differ.

    Raises:
        ConfigError, DataError: anything that would stop the job later, before any long work starts.
    """
    check_batch(config.training)
    operator = load_operator_files(pretrained)
    _check_agreement(config, operator)
    stores = open_training_data(config, folder, operator.config.network.out_timesteps)
    space = _grid(operator, stores)
    torch.manual_seed(config.seed)
    adapted = adapt(
        operator,
        [scaling(store, space) for store in stores],
        _channels(operator, stores),
        space,
        config.adapt.channels,
        condition=config.adapt.condition,
    )
    runs = {"scratch": from_scratch(adapted, config.seed)} if config.compare_with_scratch else {}
    prepared = {}
    for kind, initial in (runs | {"fine-tuned": adapted}).items():
        origin: dict[str, Any] = (
            {"trainable": config.trainable, "parent": sha256_file(pretrained / WEIGHTS_FILE)}
            if kind == "fine-tuned"
            else {}
        )
        run = run_config(config, f"{config.name}-{kind}", stores, **origin)
        path = Path(config.output) / kind
        prepare(path, run, initial, config.data.cache)
        prepared[kind] = (path, run)
    return prepared


def _channels(pretrained: Operator, stores: Sequence[TrajectoryStore]) -> tuple[str, ...]:
    """The new channel slots; anonymous ones that are there stay, since the network was trained with them padded."""
    needed = channel_slots(stores, pretrained.config.slots)
    anonymous, there = pretrained.config.slots == "anonymous", pretrained.config.channels
    return there if anonymous and len(there) >= len(needed) else needed


def _grid(pretrained: Operator, stores: Sequence[TrajectoryStore]) -> tuple[int, ...]:
    """The new grid of the network, which keeps its number of axes."""
    network, infos = pretrained.config.network, [store.info for store in stores]
    axes, patch = len(network.space), network.patch_size
    check_grids(infos, patch, axes, resizable=network.resize_position)
    return network_grid([info.space for info in infos], patch, axes)


def _check_agreement(config: FinetuneConfig, pretrained: Operator) -> None:
    """What the pretrained weights mean cannot be changed afterwards."""
    checks = {
        "data.history": (config.data.history, pretrained.frames_in),
        "objective.predict": (config.objective.predict, pretrained.config.predict),
        "objective.normalisation": (config.objective.normalisation, pretrained.config.normalisation),
    }
    for key, (found, expected) in checks.items():
        if found != expected:
            raise ConfigError(
                "the pretrained model was trained otherwise", key=key, found=found, expected=expected,
                remedy=f"set {key}={expected}",
            )  # fmt: skip
    network = pretrained.config.network
    condition, bundle = bool(network.conditions) or config.adapt.condition, network.out_timesteps
    if why := config.objective.misfit(slots=pretrained.config.slots, condition=condition, bundle=bundle):
        raise ConfigError("the pretrained model cannot learn this", key="objective", found=why)
