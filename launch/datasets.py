"""A dataset from its configuration to its shards."""

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.build import build_store
from data_pipeline.config import DatasetConfig
from data_pipeline.export import export_shards
from data_pipeline.workers import keep_ray


def make_datasets(configs: Sequence[DatasetConfig], root: Path | str) -> None:
    """Build and export datasets; they share one local Ray session, which is started only if there is work.

    Args:
        configs: the datasets.
        root: folder that gets the stores and shards, or its URL.
    """
    with keep_ray():
        for config in configs:
            make_dataset(config, root)


def make_dataset(config: DatasetConfig, root: Path | str) -> Path | str:
    """Build the Zarr store and export the shards; what is there already is left alone.

    Returns:
        The folder of the shards, or its URL.
    """
    store = build_store(config, root)
    return export_shards(store, root, config.export)
