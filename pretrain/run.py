"""A training run's folder: how it is laid out before the ranks start, and what they leave in it."""

import ctypes
import json
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from data_pipeline.base.config import build
from data_pipeline.base.errors import CheckpointError, ConfigError, PdepotError
from data_pipeline.base.files import publish_directory, read_json, remove_tree, write_json
from data_pipeline.stores.cache import CacheConfig
from pretrain.checkpoint import load_average
from pretrain.comparison import check_same_run, read_run
from pretrain.config import EXECUTION, RunConfig
from pretrain.engine import device_type
from pretrain.execution import check_execution
from pretrain.model.operator import Operator, load_operator_files, save_operator
from pretrain.together import together

Status = Literal["running", "finished", "preempted", "failed"]

_CACHE = "cache.json"


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent dies (Linux), so that no orphan goes on training."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG


def prepare(folder: Path, config: RunConfig, operator: Operator, cache: CacheConfig | None = None) -> RunConfig:
    """Lay out a run's folder: its configuration and the weights to start from. Done already: nothing changes.

    Only what may change between two starts is noted anew: where remote data are cached, and how the run is run
    (`pretrain.config.EXECUTION`).

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
        return _going_on(folder / "config.json", there, config)
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


def _going_on(file: Path, there: RunConfig, asked: RunConfig) -> RunConfig:
    """Note how the run is to be run from now on; all else of the file stays, and with it the run's identity."""
    content, wanted = read_json(file), asked.model_dump(mode="json")
    changed = {key: wanted["training"][key] for key in EXECUTION}
    if changed == {key: there.model_dump(mode="json")["training"][key] for key in EXECUTION}:
        changed = {}
    new = content | {"training": content["training"] | changed}
    if not all(d.trajectories for d in there.data):
        new["data"] = wanted["data"]  # a run of an older version, which did not note how large its datasets are
    if new == content:
        return there
    write_json(file, new)
    return read_run(file.parent)


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


def publish_final(checkpoint: Path, folder: Path) -> None:
    """Publish a run's last checkpoint as its operator; where the weights were averaged, their average. Collective.

    Raises:
        CheckpointError: on all ranks, when it could not be written.
    """

    def publish() -> None:
        operator = load_operator_files(checkpoint)
        load_average(checkpoint, operator)
        temporary = folder.with_name(f".{folder.name}.partial")
        for leftover in (temporary, folder):
            remove_tree(leftover)
        temporary.mkdir()
        save_operator(operator, temporary)
        publish_directory(temporary, folder)

    together(publish, "publish the operator", folder, only_first=True)


def write_status(folder: Path, status: Status, message: str = "", *, permanent: bool = False) -> None:
    """Leave the outcome where launchers look for it; `permanent`: starting again would fail in the same way."""
    write_json(folder / "status.json", {"status": status, "message": message, "permanent": permanent})


def failed_for_good(folder: Path) -> bool:
    """Whether the last attempt failed for a reason that starting again does not mend."""
    return read_status(folder)[0] == "failed" and bool(read_json(folder / "status.json").get("permanent"))


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
    permanent = isinstance(error, PdepotError)
    try:
        write_status(folder, "failed", message, permanent=permanent)
    except OSError:
        # A full disk has no room for another file, but some in the one that is there.
        content = json.dumps({"status": "failed", "message": message, "permanent": permanent})
        with suppress(OSError), (folder / "status.json").open("r+b", buffering=0) as file:
            file.truncate(file.write(content.encode()))


def finished_operator(folder: Path) -> Path:
    """The folder of a finished run's operator. Raises CheckpointError when the run has not finished."""
    status, message = read_status(folder)
    if status != "finished" or not (folder / "final").is_dir():
        raise CheckpointError(
            "the training run has not finished", file=folder, found=f"{status or 'never started'} {message}".strip(),
            remedy="start the same command again: it goes on from the last checkpoint",
        )  # fmt: skip
    return folder / "final"
