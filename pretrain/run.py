"""A training run's folder: how it is laid out before the ranks start, and what they leave in it."""

import ctypes
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch.distributed as dist

from data_pipeline.base.config import build
from data_pipeline.base.errors import CheckpointError, ConfigError, PdepotError
from data_pipeline.base.files import publish_directory, read_json, remove_tree, write_json
from pretrain.config import RunConfig
from pretrain.engine import device_type
from pretrain.execution import check_execution
from pretrain.model.operator import CONFIG_FILE, Operator, OperatorConfig, save_operator

Status = Literal["running", "finished", "preempted", "failed"]


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


def prepare(folder: Path, config: RunConfig, operator: Operator) -> None:
    """Lay out a run's folder: its configuration and the weights to start from. Done already: nothing changes.

    Raises:
        ConfigError: the folder holds a run of another configuration (names the keys that differ), or the network or
            this machine cannot be run as configured.
    """
    check_execution(config.training, operator.network, cuda=device_type() == "cuda")
    resolved = config.model_dump(mode="json")
    if (folder / "config.json").exists():
        # Through the type: names that have changed since, and settings that there were not, are no differences.
        there = build(RunConfig, read_json(folder / "config.json"), file=folder / "config.json")
        start = folder / "initial" / CONFIG_FILE
        model = build(OperatorConfig, read_json(start), file=start)
        differences = _differences(there.model_dump(mode="json"), resolved)
        differences += _differences(model.model_dump(mode="json"), operator.config.model_dump(mode="json"), "model")
        if differences:
            raise ConfigError(
                "the folder holds a run of another configuration",
                file=folder,
                key="\n       ".join(differences),
                remedy="choose another output folder, or delete this one to start over",
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    temporary, final = folder / ".initial.partial", folder / "initial"
    for leftover in (temporary, final):
        remove_tree(leftover)
    temporary.mkdir()
    save_operator(operator, temporary)
    publish_directory(temporary, final)
    write_json(folder / "config.json", resolved)  # last: with it the folder is a run


def _differences(old: Any, new: Any, key: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for name in sorted(old.keys() | new.keys()):
            found += _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            line for i, (a, b) in enumerate(zip(old, new, strict=True)) for line in _differences(a, b, f"{key}.{i}")
        ]
    return [] if old == new else [f"{key}: {old!r} in the folder, {new!r} asked for"]


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
