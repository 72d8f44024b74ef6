"""From a job's configuration to a training run's folder: data opened, operator built, nothing trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from data_pipeline.base.errors import ConfigError, DataError
from data_pipeline.base.remote import is_url
from data_pipeline.config import DatasetConfig
from data_pipeline.loader import check_division, mixture_of
from data_pipeline.stores import open_store
from data_pipeline.stores.protocol import TrajectoryStore
from pretrain.config import (
    DataConfig,
    JobConfig,
    ModelConfig,
    PretrainConfig,
    RunConfig,
    TrainedDataset,
    TrainingConfig,
)
from pretrain.engine import device_type
from pretrain.model.baseline import BaselineConfig, BaselineModelConfig
from pretrain.model.conditions import condition_count, parameter_union
from pretrain.model.config import NetworkConfig
from pretrain.model.grids import check_grids, network_grid
from pretrain.model.operator import DatasetScaling, Operator, OperatorConfig
from pretrain.model.sizes import SIZES
from pretrain.run import prepare
from pretrain.schedule import append_segment, quarantine_of


def shards_path(root: str, name: str) -> Path | str:
    """Where a dataset's shards are: a folder, or a URL."""
    return f"{root.rstrip('/')}/{name}.shards" if is_url(root) else Path(root) / f"{name}.shards"


def number_of_ranks(training: TrainingConfig, nodes: int = 1, per_node: int | None = None) -> int:
    """Training processes over all nodes; `training.ranks`, if it is given.

    Else `per_node` on each, or as many as this machine has GPUs (two on CPU), as far as the batch divides among them.

    Raises:
        ConfigError: `training.ranks` is another number than `nodes` x `per_node`, or not a multiple of `nodes`.
    """
    if training.ranks != "auto":
        if training.ranks % nodes or per_node not in (None, training.ranks // nodes):
            raise ConfigError(
                f"the training processes do not fit {nodes} nodes", key="training.ranks", found=training.ranks,
                expected=f"{nodes * per_node}, {per_node} on each" if per_node else f"a multiple of {nodes}",
                remedy="leave training.ranks out",
            )  # fmt: skip
        return training.ranks
    if per_node:
        return nodes * per_node
    # Two on CPU, so that the distributed code is what runs everywhere.
    available = torch.cuda.device_count() if device_type() == "cuda" else 2
    micro_batches, rest = divmod(training.batch_size, training.micro_batch)
    dividing = [nodes * each for each in range(1, available + 1) if rest == 0 and micro_batches % (nodes * each) == 0]
    return max(dividing, default=nodes * available)  # where none divides, `check_batch` says what would


def check_batch(training: TrainingConfig) -> None:
    """Raises ConfigError when the batch does not divide among the ranks; names numbers that do."""
    check_division(training.batch_size, training.micro_batch, number_of_ranks(training))


def open_stores(data: DataConfig, datasets: Sequence[DatasetConfig], split: str) -> list[TrajectoryStore]:
    """The shards of all datasets of a job.

    Raises:
        DataError: shards are missing, damaged or lack the split; names the command that makes them.
    """
    stores = []
    for dataset in datasets:
        path = shards_path(data.root, dataset.name)
        if isinstance(path, Path) and not path.exists():
            verb, store = "generate" if dataset.generate else "convert", path.with_suffix(".zarr")
            raise DataError(
                f"the dataset {dataset.name} has not been built", file=path,
                remedy=f"pdepot data {verb} CONFIG --root {data.root}, then pdepot data export {store}",
            )  # fmt: skip
        stores.append(open_store(path, split, cache=data.cache))
    return stores


def scaling(store: TrajectoryStore, space: Sequence[int]) -> DatasetScaling:
    """What an operator must know of a dataset; `space` is the grid of its network."""
    s = store.statistics
    return DatasetScaling(
        name=store.info.name, channels=store.info.channels, dt=store.info.dt,
        mean=s.mean, std=s.std, change_rms=s.change_rms,
        boundaries=store.info.boundaries, parameters=store.info.parameters,
        space=() if store.info.space == tuple(space) else store.info.space,
    )  # fmt: skip


def channel_slots(stores: Sequence[TrajectoryStore], slots: Literal["named", "anonymous"]) -> tuple[str, ...]:
    """The channel slots that the datasets need.

    Named: every field of any dataset once, in the order of their first mention. Anonymous: as many as the dataset with
    most fields has.
    """
    if slots == "anonymous":
        return tuple(f"channel_{i + 1}" for i in range(max(len(store.info.channels) for store in stores)))
    return tuple(dict.fromkeys(channel for store in stores for channel in store.info.channels))


def network_config(
    model: ModelConfig | BaselineModelConfig,
    space: Sequence[int],
    channels: int,
    history: int,
    conditions: int = 0,
) -> NetworkConfig | BaselineConfig:
    """The network's shape: what the configuration says, and what follows from the data."""
    if isinstance(model, BaselineModelConfig):
        return BaselineConfig(
            space=tuple(space), in_channels=channels, out_channels=channels, in_timesteps=history,
            out_timesteps=model.bundle, **model.model_dump(exclude={"slots", "bundle"}),
        )  # fmt: skip
    shape = SIZES[model.size] if model.size else {key: getattr(model, key) for key in SIZES["nano"]}
    rest = model.model_dump(exclude={"size", "condition", "slots", "bundle", *SIZES["nano"]})
    if any(n % model.patch_size for n in space):
        raise ConfigError(
            "the patches do not cover the grid", key="model.patch_size", found=model.patch_size,
            expected=f"a divisor of every axis of {tuple(space)}",
        )  # fmt: skip
    return NetworkConfig(
        space=tuple(space), in_channels=channels, out_channels=channels, in_timesteps=history,
        out_timesteps=model.bundle, conditions=conditions, **shape, **rest,
    )  # fmt: skip


def new_operator(config: PretrainConfig, stores: Sequence[TrajectoryStore]) -> Operator:
    """A fresh operator for a job's datasets; its weights are a function of the seed."""
    channels, infos = channel_slots(stores, config.model.slots), [store.info for store in stores]
    space = network_grid([info.space for info in infos], config.model.patch_size)
    check_grids(infos, config.model.patch_size, len(space), resizable=config.model.resize_position)
    parameters = parameter_union(store.info.parameters for store in stores) if config.model.condition else ()
    conditions = condition_count(len(space), len(parameters)) if config.model.condition else 0
    network = network_config(config.model, space, len(channels), config.data.history, conditions)
    torch.manual_seed(config.seed)
    return Operator(
        OperatorConfig(
            network=network,
            channels=channels,
            datasets=tuple(scaling(store, space) for store in stores),
            predict=config.objective.predict,
            normalisation=config.objective.normalisation,
            slots=config.model.slots,
            parameters=parameters,
        )
    )


def trained_datasets(data: DataConfig, stores: Sequence[TrajectoryStore]) -> tuple[TrainedDataset, ...]:
    """The datasets of a run with the digests of what was found."""
    return tuple(
        TrainedDataset(
            name=s.info.name,
            path=_absolute(s.path),
            weight=d.weight,
            digest=s.digest,
            trajectories=len(s),
            frames=s.info.frames,
            space=s.info.space,
        )
        for s, d in zip(stores, data.datasets, strict=True)
    )


def _absolute(path: Path | str) -> str:
    return str(path) if is_url(path) else str(Path(path).resolve())


def open_training_data(config: JobConfig, folder: Path, bundle: int = 1) -> list[TrajectoryStore]:
    """The training splits of a job's datasets, for a network that predicts `bundle` frames at once; `folder` is that
    of the job's configuration file.

    Raises:
        DataError: a dataset is missing or damaged, or has no trajectories to train or to evaluate on.
        ConfigError: trajectories are too short, or the weights or the quarantine cannot be used.
    """
    datasets = config.data.load_datasets(folder)
    for store in open_stores(config.data, datasets, config.evaluation.split):
        store.close()  # an empty test split is found now, not after the training
    if config.training.validation_trajectories:
        for store in open_stores(config.data, datasets, "valid"):
            store.close()
    stores = open_stores(config.data, datasets, "train")
    weights = [d.weight for d in config.data.datasets]
    mixture_of(
        stores, weights, config.data.history, config.objective.frames_out(bundle), config.seed,
        batch_size=config.training.batch_size, micro_batch=config.training.micro_batch,
        quarantine=quarantine_of(config.data.quarantine),
    )  # fmt: skip
    return stores


def run_config(
    config: JobConfig,
    name: str,
    stores: Sequence[TrajectoryStore],
    *,
    trainable: tuple[str, ...] | None = None,
    parent: str | None = None,
) -> RunConfig:
    """A training run of a job, fully resolved; `trainable` and `parent` as in RunConfig."""
    return RunConfig(
        name=name,
        seed=config.seed,
        data=trained_datasets(config.data, stores),
        quarantine=config.data.quarantine,
        history=config.data.history,
        objective=config.objective,
        training=config.training,
        tracking=config.tracking,
        trainable=trainable,
        parent=parent,
    )


def prepare_pretraining(config: PretrainConfig, folder: Path, *, new_segment: bool = False) -> tuple[Path, RunConfig]:
    """Lay out the run of a pretraining job.

    Args:
        config: the job.
        folder: that of the job's configuration file.
        new_segment: let a run that is there go on with the job's data and quarantine, where these have changed.

    Returns:
        The run's folder and configuration.

    Raises:
        ConfigError, DataError: anything that would stop the job later, before any long work starts.
    """
    check_batch(config.training)
    stores = open_training_data(config, folder, config.model.bundle)
    run, operator = run_config(config, config.name, stores), new_operator(config, stores)
    path = Path(config.output) / "pretrain"
    if new_segment:
        append_segment(path, run, operator)
    return path, prepare(path, run, operator, config.data.cache)
