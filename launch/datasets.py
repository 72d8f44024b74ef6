"""A dataset from its configuration to its shards."""

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.build import build_store
from data_pipeline.config import DatasetConfig
from data_pipeline.export import export_shards
from data_pipeline.workers import keep_ray


def make_datasets(configs: Sequence[DatasetConfig], root: Path | str, ray_address: str | None = None) -> None:
    """Build and export datasets; they share one Ray session, which is started only if there is work.

    Args:
        configs: the datasets.
        root: folder that gets the stores and shards, or its URL.
        ray_address: of a cluster whose nodes see the same files; a session on this machine where there is none.
    """
    with keep_ray():
        for config in configs:
            make_dataset(config, root, ray_address)


def make_dataset(config: DatasetConfig, root: Path | str, ray_address: str | None = None) -> Path | str:
    """Build the Zarr store and export the shards; what is there already is left alone.

    Args:
        config: the dataset.
        root: folder that gets the store and the shards, or its URL.
        ray_address: as for `make_datasets`.

    Returns:
        The folder of the shards, or its URL.
    """
    store = build_store(config, root, ray_address=ray_address)
    return export_shards(store, root, config.export, ray_address=ray_address)
