"""The checkpoint protocol: a checkpoint is whole and verified, or it does not exist.

Saving, all ranks together: every rank writes into a temporary folder, makes its files durable and sends their sizes
and digests to rank 0, which writes `manifest.json`, renames the folder to `step-00000123` and makes the rename
durable. Loading: rank 0 proposes the newest checkpoint whose manifest and sizes hold, each rank verifies the digests
of its own files, and if any rank objects all of them go one checkpoint back together. DeepSpeed itself would accept
a half-written folder, and load a flipped byte without a word.

No rank raises alone: a failure on one is an error on all, so that no collective is left waiting.
"""

import re
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from data_pipeline.base.errors import CheckpointError, PdepotError
from data_pipeline.base.files import publish_directory, read_json, remove_tree, sha256_file, write_json

_STATE = "state"  # DeepSpeed's tag inside the folder
_VERSION = 2
_NAME = re.compile(r"step-(\d{8})")
T = TypeVar("T")


def save(engine: Any, folder: Path, step: int, identity: str, schedule: str, keep: int) -> None:
    """Write a checkpoint of `step` finished steps and drop all but the newest `keep`. Collective.

    Args:
        engine: the DeepSpeed engine.
        folder: holds the run's checkpoints.
        step: number of steps done.
        identity: digest of the run's configuration; a checkpoint is only ever loaded by the same run.
        schedule: digest of what the run draws its samples from; with the step, it is all there is to the data's state.
        keep: number of checkpoints that stay.

    Raises:
        CheckpointError: on all ranks, when any of them could not write (disk full, read-only). Nothing is visible.
    """
    final = folder / f"step-{step:08d}"
    temporary = folder / f".step-{step:08d}.partial"

    def prepare() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in (temporary, final):
            remove_tree(leftover)
        temporary.mkdir()

    def describe() -> dict[str, list[Any]]:
        files = _files_of(temporary, dist.get_rank())
        return {str(f.relative_to(temporary)): [f.stat().st_size, sha256_file(f)] for f in files}

    def publish(files: dict[str, list[Any]]) -> None:
        manifest = {
            "version": _VERSION,
            "step": step,
            "identity": identity,
            "schedule": schedule,
            "world_size": dist.get_world_size(),
            "zero_stage": engine.zero_optimization_stage(),
            "files": files,
        }
        write_json(temporary / "manifest.json", manifest)
        publish_directory(temporary, final)
        for old in _list(folder)[keep:]:
            remove_tree(old)

    _together(prepare, "prepare", folder, only_first=True)
    _together(lambda: engine.save_checkpoint(str(temporary), tag=_STATE, save_latest=False), "write", folder)
    written = _together(describe, "read back", folder)
    merged = {name: entry for part in written for name, entry in part.items()}
    _together(lambda: publish(merged), "publish", folder, only_first=True)


def load_newest(engine: Any, folder: Path, identity: str, schedules: Callable[[int], Collection[str]]) -> int:
    """Load the newest checkpoint that is whole, and return its number of finished steps; 0 if there is none.

    Args:
        engine: the DeepSpeed engine.
        folder: holds the run's checkpoints.
        identity: as it was saved.
        schedules: the digests that the schedule can have had after so many steps.

    Raises:
        CheckpointError: a checkpoint belongs to another configuration, schedule, world size or ZeRO stage; on all
            ranks.
    """
    rejected: set[str] = set()
    while True:
        found = _together(lambda: _newest(folder, rejected), "look for", folder, only_first=True)[0]
        if found is None:
            return 0
        path = folder / found
        if all(_together(partial(_verified, path, dist.get_rank()), "verify", path)):
            break
        if dist.get_rank() == 0:
            print(f"checkpoint {path} is damaged; going back to the one before it", flush=True)
        rejected.add(found)
    manifest = read_json(path / "manifest.json")
    _check_same_run(path, manifest, identity, engine.zero_optimization_stage())
    if manifest["schedule"] not in schedules(int(manifest["step"])):
        raise CheckpointError(
            "the checkpoint's samples are not those of this run", file=path, key="schedule",
            found=manifest["schedule"], expected=" or ".join(schedules(int(manifest["step"]))),
            remedy="undo what was changed by hand in config.json; --new-segment changes data from a checkpoint on",
        )  # fmt: skip
    _together(lambda: engine.load_checkpoint(str(path), tag=_STATE), "load", path)
    return int(manifest["step"])


def _check_same_run(path: Path, manifest: dict[str, Any], identity: str, zero_stage: int) -> None:
    checks = {
        "version": (manifest["version"], _VERSION, "use the version of pdepot that wrote it"),
        "identity": (manifest["identity"], identity, "the configuration has changed: choose another output folder"),
        "world_size": (manifest["world_size"], dist.get_world_size(), "start as many ranks as before"),
        "zero_stage": (manifest["zero_stage"], zero_stage, "use the same training.zero_stage"),
    }
    for key, (found, expected, remedy) in checks.items():
        if found != expected:
            raise CheckpointError(
                "the checkpoint cannot be continued by this run",
                file=path, key=key, found=found, expected=expected, remedy=remedy,
            )  # fmt: skip


def newest_step(folder: Path) -> int | None:
    """Steps done in the newest checkpoint whose files are there; None without any."""
    newest = _newest(folder, set())
    return int(newest.removeprefix("step-")) if newest else None


def _newest(folder: Path, rejected: set[str]) -> str | None:
    for path in _list(folder):
        if path.name not in rejected and _sizes_hold(path):
            return path.name
    return None


def _list(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    found = [p for p in folder.glob("step-*") if _NAME.fullmatch(p.name)] if folder.is_dir() else []
    return sorted(found, reverse=True)


def _sizes_hold(path: Path) -> bool:
    try:
        files = read_json(path / "manifest.json")["files"]
        return all((path / name).stat().st_size == size for name, (size, _) in files.items())
    except (PdepotError, OSError, KeyError, TypeError, ValueError) as error:
        print(f"checkpoint {path} is not usable: {error}", flush=True)
        return False


def _verified(path: Path, rank: int) -> bool:
    files = read_json(path / "manifest.json")["files"]
    own = {str(f.relative_to(path)) for f in _files_of(path, rank)}
    return all(sha256_file(path / name) == sha256 for name, (_, sha256) in files.items() if name in own)


def _files_of(path: Path, rank: int) -> list[Path]:
    """The files that a rank answers for: DeepSpeed's optimizer shards name their rank, rank 0 takes the rest."""
    files = []
    for file in sorted((path / _STATE).rglob("*")):
        match = re.search(r"zero_pp_rank_(\d+)_", file.name)
        if file.is_file() and (int(match.group(1)) if match else 0) == rank:
            files.append(file)
    return files


def _together(work: Callable[[], T], what: str, path: Path, *, only_first: bool = False) -> list[T]:
    """Do `work` on all ranks (or on rank 0 alone); every rank gets every result, or the same error."""
    result: T | None = None
    problem: str | None = None
    if not only_first or dist.get_rank() == 0:
        try:
            result = work()
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, (result if _is_plain(result) else None, problem))
    problems = {rank: problem for rank, (_, problem) in enumerate(outcomes) if problem}
    if problems:
        raise CheckpointError(
            f"could not {what} a checkpoint",
            file=path,
            found="; ".join(f"rank {rank}: {problem}" for rank, problem in problems.items()),
            remedy="see to the disk or the folder and start the same command again; older checkpoints are untouched",
        )
    return [outcome for outcome, _ in outcomes]


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | bool | int | dict | type(None))
