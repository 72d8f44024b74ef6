"""The manifest of a committed dataset: what it holds, and the size and SHA-256 of every file; written last."""

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from data_pipeline.base.config import Config
from data_pipeline.base.errors import DataError, PdepotError
from data_pipeline.base.files import digest, read_json, sha256_file, write_json
from data_pipeline.resample import Resampling
from data_pipeline.stores.generation import Generation
from data_pipeline.stores.protocol import Statistics
from data_pipeline.trajectory import DatasetInfo

FORMAT_VERSION = 2
READABLE = (1, 2)
MANIFEST = "manifest.json"

SplitName = Literal["train", "valid", "test"]


class FileRecord(Config):
    """What a file must be to count as undamaged."""

    size: int
    sha256: str


class SplitRecord(Config):
    """One split: how many trajectories, and the files that hold them (paths relative to the dataset's folder)."""

    trajectories: int
    files: dict[str, FileRecord]


class Manifest(Config):
    """Everything that a reader checks before it trusts a dataset's folder."""

    format_version: int = FORMAT_VERSION
    kind: Literal["zarr", "shards"]
    info: DatasetInfo
    digest: str
    """Identifies the data, however they are cut into files: equal data, equal digest."""
    statistics: Statistics
    statistics_split: SplitName
    """The split that the statistics describe: train, or the first one present when there is no train split."""
    splits: dict[SplitName, SplitRecord]
    files: dict[str, FileRecord]
    """Files that belong to no single split."""
    plan: dict[str, Any]
    """What the dataset was made from: configuration and fingerprint of the source."""
    plan_digest: str
    code_version: str
    generation: Generation | None = None
    """How a solver made the data, and how accurate they are; None for data that were converted."""
    canonical: str = ""
    """Shards only: digest of the Zarr store that they were exported from."""
    dtype: Literal["float32", "float16"] = "float32"
    rounding_error: tuple[float, ...] = ()
    """Shards only: RMS error of the conversion to `dtype` over each channel's standard deviation."""
    resampling: Resampling = "none"
    """Shards only: how the fields came from the store's grid onto that of `info`."""
    canonical_space: tuple[int, ...] = ()
    """Shards that are resampled only: grid points of the store along each axis."""


def code_version() -> str:
    """The installed version of this package; a plain checkout has none."""
    try:
        return version("pdepot")
    except PackageNotFoundError:
        return "checkout"


def record_file(path: Path) -> FileRecord:
    """Size and SHA-256 of a file as it is on disk."""
    return FileRecord(size=path.stat().st_size, sha256=sha256_file(path))


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write the manifest of the dataset folder `path`, with a checksum of itself."""
    content = manifest.model_dump(mode="json")
    write_json(path / MANIFEST, {**content, "checksum": digest(content)})


def read_manifest(path: Path) -> Manifest:
    """The checked manifest of a dataset folder.

    Raises:
        DataError: no folder, no manifest, a damaged one, or one of a version that this code does not read.
    """
    file = path / MANIFEST
    if not path.is_dir():
        raise DataError("no such dataset folder", file=path, remedy="check the path, or build the dataset first")
    if not file.exists():
        raise DataError(
            "not a committed dataset: the folder has no manifest",
            file=path,
            expected=MANIFEST,
            remedy="give the folder that a build or an export returned, or build the dataset again",
        )
    again = "copy the dataset again, or delete it and build it again"
    try:
        content = read_json(file)
    except PdepotError as error:
        raise DataError(str(error), remedy=again) from None
    if not isinstance(content, dict) or "format_version" not in content:
        raise DataError("not a dataset manifest", file=file, expected="a mapping with format_version", remedy=again)
    if content["format_version"] not in READABLE:
        raise DataError(
            "the dataset has a format version that this code does not read",
            file=file,
            key="format_version",
            found=content["format_version"],
            expected=f"one of {', '.join(map(str, READABLE))}",
            remedy="update pdepot, or build the dataset again",
        )
    if content.pop("checksum", None) != digest(content):
        raise DataError("the manifest does not match its own checksum", file=file, key="checksum", remedy=again)
    return _validated(file, content)


def _validated(file: Path, content: dict[str, Any]) -> Manifest:
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise DataError("not a valid manifest", file=file, key=key, found=first["msg"]) from None
    for name in all_files(manifest):
        if name.startswith("/") or ".." in name.split("/"):
            raise DataError("the manifest names a file outside of its folder", file=file, found=name)
    return manifest


def all_files(manifest: Manifest) -> dict[str, FileRecord]:
    """Every file of the dataset but the manifest itself."""
    files = dict(manifest.files)
    for split in manifest.splits.values():
        files |= split.files
    return files


def split_files(where: str | Path, manifest: Manifest, split: str) -> dict[str, FileRecord]:
    """All files that a split of the dataset at `where` needs. Raises DataError when there is no such split."""
    record = {str(name): value for name, value in manifest.splits.items()}.get(split)
    if record is None or not record.trajectories:
        present = ", ".join(f"{name} ({value.trajectories})" for name, value in manifest.splits.items())
        raise DataError(
            f"the dataset has no split {split!r}",
            file=where,
            found=f"splits with their trajectories: {present}",
            remedy="name one of these splits, or build the dataset again with more of them",
        )
    return manifest.files | record.files


def describes(name: str) -> bool:
    """Whether a file says what is in others, and has no checksums of its own."""
    return name.endswith(("zarr.json", ".index.npz"))


def check_split(path: Path, manifest: Manifest, split: str) -> None:
    """Check the files of a split before anything is read: all sizes, and the SHA-256 of those that describe the rest.

    Raises:
        DataError: the split is absent, or a file is missing, cut or damaged; names it.
    """
    for name, expected in split_files(path, manifest, split).items():
        file = f"{path}/{name}"  # a million trajectories lie in so many files that a Path for each would be felt
        problem = _problem(file, expected, full=describes(name))
        if problem:
            raise DataError(problem, file=file, remedy="copy the file again, or delete the dataset and build it again")


def verify(path: Path) -> list[str]:
    """Compare every file of a dataset with its manifest, byte for byte; each problem found names its file."""
    try:
        manifest = read_manifest(path)
    except DataError as error:
        return [str(error)]
    problems = {name: _problem(f"{path}/{name}", record, full=True) for name, record in all_files(manifest).items()}
    return [f"{path / name}: {problem}" for name, problem in sorted(problems.items()) if problem]


def splits(path: Path) -> dict[str, int]:
    """Number of trajectories in each split of a dataset."""
    return {name: record.trajectories for name, record in read_manifest(path).splits.items()}


def _problem(file: str, expected: FileRecord, *, full: bool) -> str:
    try:
        size = os.stat(file).st_size  # noqa: PTH116
        if size != expected.size:
            return f"the file has {size} bytes, the manifest says {expected.size}"
        if full and sha256_file(Path(file)) != expected.sha256:
            return "the file is damaged: its SHA-256 is not the one in the manifest"
    except FileNotFoundError:
        return "the file is missing"
    except OSError as error:
        return f"the file cannot be read: {error.strerror}"
    return ""
