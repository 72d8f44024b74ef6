"""Stores of trajectories: open one split of a committed dataset, whatever its format and wherever it lies."""

from collections.abc import Callable
from pathlib import Path

from data_pipeline.base.remote import RemoteFolder, is_url
from data_pipeline.stores import manifest as local
from data_pipeline.stores.cache import CacheConfig
from data_pipeline.stores.manifest import Manifest
from data_pipeline.stores.protocol import TrajectoryStore
from data_pipeline.stores.remote import cached_split, remote_manifest, verify_remote

__all__ = ["CacheConfig", "open_store", "read_manifest", "splits", "verify"]


def open_store(
    path: Path | str, split: str, *, checksums: bool = True, cache: CacheConfig | None = None
) -> TrajectoryStore:
    """Open one split of a Zarr store or of exported shards, after a check that all its files are there and whole.

    Args:
        path: the dataset's folder; or its URL (`s3://...`), whose files are fetched into the cache when they are read.
        split: name of the split.
        checksums: verify the checksum of every frame that is read.
        cache: where files behind a URL are kept; by default the user's cache folder.

    Raises:
        ConfigError: the cache cannot be used.
        DataError: no manifest, an unknown version, no such split, or a file that is missing, cut or damaged.
    """
    manifest, files = read_manifest(path), None
    if is_url(path):
        files = cached_split(RemoteFolder(str(path)), manifest, split, cache or CacheConfig())
    else:
        path = Path(path)
        local.check_split(path, manifest, split)
    return _reader(path, manifest, split, files, checksums)


def _reader(
    path: Path | str, manifest: Manifest, split: str, files: Callable[[str], Path] | None, checksums: bool
) -> TrajectoryStore:
    if manifest.kind == "zarr":
        from data_pipeline.stores.zarr_store import ZarrStore

        return ZarrStore(path, manifest, split, files=files, checksums=checksums)
    from data_pipeline.stores.shards import ShardStore

    return ShardStore(path, manifest, split, files=files, checksums=checksums)


def read_manifest(path: Path | str) -> Manifest:
    """The checked manifest of a dataset's folder or URL.

    Raises:
        DataError: nothing there, no manifest, a damaged one, or one of a version that this code does not read.
    """
    return remote_manifest(RemoteFolder(str(path))) if is_url(path) else local.read_manifest(Path(path))


def verify(path: Path | str, cache: CacheConfig | None = None) -> list[str]:
    """Compare every file of a dataset with its manifest, byte for byte; each problem found names its file.

    Args:
        path: the dataset's folder or URL.
        cache: its folder holds one remote file at a time while that is checked.
    """
    if is_url(path):
        return verify_remote(RemoteFolder(str(path)), cache or CacheConfig())
    return local.verify(Path(path))


def splits(path: Path | str) -> dict[str, int]:
    """Number of trajectories in each split of a dataset."""
    return {name: record.trajectories for name, record in read_manifest(path).splits.items()}
