"""Stores of trajectories: open one split of a committed dataset, whatever its format."""

from pathlib import Path

from data_pipeline.stores.manifest import check_split, read_manifest, splits, verify
from data_pipeline.stores.protocol import TrajectoryStore

__all__ = ["open_store", "read_manifest", "splits", "verify"]


def open_store(path: Path, split: str) -> TrajectoryStore:
    """Open one split of a Zarr store or of exported shards, after a check that all its files are there and whole.

    Raises:
        DataError: no manifest, an unknown version, no such split, or a file that is missing, cut or damaged.
    """
    manifest = read_manifest(path)
    check_split(path, manifest, split)
    if manifest.kind == "zarr":
        from data_pipeline.stores.zarr_store import ZarrStore

        return ZarrStore(path, manifest, split)
    from data_pipeline.stores.shards import ShardStore

    return ShardStore(path, manifest, split)
