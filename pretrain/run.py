"""A training run's folder: how it is laid out before the ranks start, and what they leave in it."""

import ctypes
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Literal

import torch.distributed as dist

from data_pipeline.base.config import build
from data_pipeline.base.errors import CheckpointError, ConfigError, PdepotError
from data_pipeline.base.files import publish_directory, read_json, remove_tree, write_json
from data_pipeline.stores.cache import CacheConfig
from pretrain.comparison import check_same_run, read_run
from pretrain.config import RunConfig
from pretrain.engine import device_type
from pretrain.execution import check_execution
from pretrain.model.operator import Operator, save_operator

Status = Literal["running", "finished", "preempted", "failed"]

_CACHE = "cache.json"


class StopRequest:
    """Becomes true when the process is asked to end (SIGTERM, SIGUSR1, SIGINT); a second request ends it at once."""

    def __init__(self) -> None:
        self._requested = False
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._requested:
            raise SystemExit(128 + number)
        self._requested = True

    def __call__(self) -> bool:
        """Whether a stop was asked for."""
        return self._requested


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent dies (Linux), so that no orphan goes on training."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG


def prepare(folder: Path, config: RunConfig, operator: Operator, cache: CacheConfig | None = None) -> RunConfig:
    """Lay out a run's folder: its configuration and the weights to start from. Done already: nothing changes.

    Only the place where remote data are cached, which is no part of a run's configuration, is noted anew.

    Returns:
        The run as it stands in the folder, with its past segments.

    Raises:
        ConfigError: the folder holds a run of another configuration (names the keys that differ), or the network or
            this machine cannot be run as configured.
    """
    check_execution(config.training, operator.network, cuda=device_type() == "cuda", grids=len(operator.grids))
    if (folder / "config.json").exists():
        there = read_run(folder)
        check_same_run(folder, there, config, operator)
        write_json(folder / _CACHE, (cache or CacheConfig()).model_dump())
        if all(d.trajectories for d in there.data):
            return there
        # A run of an older version, which did not note how large its datasets are.
        write_json(folder / "config.json", config.model_dump(mode="json"))
        return config
    folder.mkdir(parents=True, exist_ok=True)
    temporary, final = folder / ".initial.partial", folder / "initial"
    for leftover in (temporary, final):
        remove_tree(leftover)
    temporary.mkdir()
    save_operator(operator, temporary)
    publish_directory(temporary, final)
    write_json(folder / _CACHE, (cache or CacheConfig()).model_dump())
    write_json(folder / "config.json", config.model_dump(mode="json"))  # last: with it the folder is a run
    return config


def read_cache(folder: Path) -> CacheConfig:
    """Where a run's remote data are cached; runs of older versions do not say, and have none."""
    file = folder / _CACHE
    return build(CacheConfig, read_json(file), file=file) if file.exists() else CacheConfig()


def freeze(operator: Operator, trainable: Sequence[str] | None) -> None:
    """Let only the network's parameters that start with one of the prefixes be trained; None for all of them.

    The dataset classifier never trains: it takes no part in the prediction, and has no gradient.

    Raises:
        ConfigError: a prefix fits no parameter.
    """
    for name, parameter in operator.network.named_parameters():
        chosen = trainable is None or any(name.startswith(prefix) for prefix in trainable)
        parameter.requires_grad_(chosen and not name.startswith("cls_head."))
    for prefix in trainable or ():
        if not any(name.startswith(prefix) for name, _ in operator.network.named_parameters()):
            parts = sorted({name.split(".")[0] for name, _ in operator.network.named_parameters()})
            raise ConfigError("no parameter of this name", key=f"trainable: {prefix}", expected=", ".join(parts))


def publish_final(operator: Operator, folder: Path, rank: int) -> None:
    """Write the trained operator. Collective: under ZeRO-3 every rank holds a part of the weights."""
    import deepspeed

    parameters = [p for p in operator.parameters() if hasattr(p, "ds_id")]
    with deepspeed.zero.GatheredParameters(parameters, enabled=bool(parameters)):
        if rank == 0:
            temporary = folder.with_name(f".{folder.name}.partial")
            for leftover in (temporary, folder):
                remove_tree(leftover)
            temporary.mkdir()
            save_operator(operator, temporary)
            publish_directory(temporary, folder)
    dist.barrier()


def write_status(folder: Path, status: Status, message: str = "") -> None:
    """Leave the outcome where launchers look for it."""
    write_json(folder / "status.json", {"status": status, "message": message})


def read_status(folder: Path) -> tuple[Status | None, str]:
    """The outcome of the last attempt and its message; None before the first."""
    if not (folder / "status.json").exists():
        return None, ""
    content = read_json(folder / "status.json")
    return content["status"], content["message"]


def report_failure(folder: Path, error: BaseException) -> None:
    """Record why this rank failed, unless another one was first: the others only see their peer vanish."""
    if not isinstance(error, PdepotError) and read_status(folder)[0] == "failed":
        return
    message = str(error) if isinstance(error, PdepotError) else f"{type(error).__name__}: {error}"
    write_status(folder, "failed", message)


def finished_operator(folder: Path) -> Path:
    """The folder of a finished run's operator. Raises CheckpointError when the run has not finished."""
    status, message = read_status(folder)
    if status != "finished" or not (folder / "final").is_dir():
        raise CheckpointError(
            "the training run has not finished", file=folder, found=f"{status or 'never started'} {message}".strip(),
            remedy="start the same command again: it goes on from the last checkpoint",
        )  # fmt: skip
    return folder / "final"
