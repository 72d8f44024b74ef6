"""Committed datasets behind a URL: the manifest is fetched at every opening, other files by way of the cache."""

import shutil
import tempfile
from pathlib import Path

from data_pipeline.base.errors import DataError
from data_pipeline.base.files import sha256_file
from data_pipeline.base.remote import RemoteFolder
from data_pipeline.stores.cache import CacheConfig, CachedFiles, FileCache
from data_pipeline.stores.manifest import (
    MANIFEST,
    FileRecord,
    Manifest,
    all_files,
    describes,
    read_manifest,
    split_files,
)

_AGAIN = "upload the file again, or delete the dataset there and build it again"


def remote_manifest(source: RemoteFolder) -> Manifest:
    """The checked manifest of a remote dataset, as it is now.

    Raises:
        DataError: it cannot be fetched, or as `read_manifest`.
    """
    if source.size(MANIFEST) is None:
        raise DataError(
            "not a committed dataset: there is no manifest",
            file=source.url,
            expected=MANIFEST,
            remedy="check the URL, or build or export the dataset there",
        )
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / MANIFEST).write_bytes(source.read_bytes(MANIFEST))
        try:
            return read_manifest(Path(scratch))
        except DataError as error:
            raise DataError(str(error).replace(scratch, source.url)) from None


def cached_split(source: RemoteFolder, manifest: Manifest, split: str, config: CacheConfig) -> CachedFiles:
    """The files of one split, through the cache, after a check that all of them are there with their sizes.

    What describes the others is fetched at once; the others when they are opened.

    Raises:
        ConfigError: the cache cannot be used.
        DataError: the split is absent, or a file is missing, cut or damaged; names it.
    """
    records = split_files(source.url, manifest, split)
    sizes = source.sizes()
    for name, record in records.items():
        problem = _size_problem(sizes.get(name), record)
        if problem:
            raise DataError(problem, file=source.url_of(name), remedy=_AGAIN)
    cache = FileCache(config)
    for name, record in records.items():
        if describes(name):
            cache.file(source, name, record, full=True)
    return CachedFiles(cache, source, records)


def verify_remote(source: RemoteFolder, config: CacheConfig) -> list[str]:
    """Compare every file of a remote dataset with its manifest, byte for byte, past the cache's own copies."""
    try:
        manifest = remote_manifest(source)
        sizes = source.sizes()
    except DataError as error:
        return [str(error)]
    problems = []
    with tempfile.TemporaryDirectory(dir=FileCache(config).folder, prefix="verify-") as scratch:
        for name, record in sorted(all_files(manifest).items()):
            problem = _size_problem(sizes.get(name), record) or _content_problem(source, name, record, Path(scratch))
            if problem:
                problems.append(f"{source.url_of(name)}: {problem}")
    return problems


def _size_problem(size: int | None, record: FileRecord) -> str:
    if size is None:
        return "the file is missing"
    return "" if size == record.size else f"the file has {size} bytes, the manifest says {record.size}"


def _content_problem(source: RemoteFolder, name: str, record: FileRecord, scratch: Path) -> str:
    if record.size > shutil.disk_usage(scratch).free:
        return f"the disk of {scratch.parent} has no room to check the file"
    copy = scratch / "file"
    try:
        source.download(name, copy)
        content = sha256_file(copy)
    except DataError as error:
        return str(error)
    finally:
        copy.unlink(missing_ok=True)
    return "" if content == record.sha256 else "the file is damaged: its SHA-256 is not the one in the manifest"
