"""Checks before anything long: that the ranks train the same run with the same code, and that they can.

Every failure is one error on all ranks. Nothing is decided by a clock: hosts' clocks may differ, steps are counted,
and waiting is measured by each process for itself; so clocks are not checked.
"""

import hashlib
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from data_pipeline.base.errors import ConfigError, DataError, PdepotError
from data_pipeline.stores import read_manifest
from pretrain.config import TrainedDataset
from pretrain.together import agreed, gathered, spans, together

_MARK = ".preflight-"
_VISIBLE = 10.0  # seconds until a new file is seen from another host
_NUMBERS, _ROUNDS = 2**22, 3  # of the all-reduce: 16 MiB


@dataclass(frozen=True)
class Preflight:
    """What the checks have found; sizes in bytes, the bus bandwidth of an all-reduce in bytes a second."""

    ranks: int
    hosts: int
    backend: str
    bandwidth: float | None
    """None for a single rank."""
    free: int
    needed: int

    def __str__(self) -> str:
        """One line for the user."""
        speed = f": all-reduce {self.bandwidth / 1e9:.2f} GB/s" if self.bandwidth else ""
        room = f"{self.free / 2**30:.1f} GiB free, checkpoints need {self.needed / 2**30:.1f} GiB"
        return f"{_counted(self.ranks, 'rank')} on {_counted(self.hosts, 'host')} ({self.backend}){speed}; {room}"


def preflight(
    folder: Path,
    same: Mapping[str, str],
    data: Callable[[], Mapping[str, str]],
    checkpoint_bytes: int,
    keep: int,
    device: torch.device,
    seconds: float = 120.0,
) -> Preflight:
    """Check what would otherwise go wrong hours later, or on one rank alone. Collective, in about a second.

    Args:
        folder: the run's.
        same: digests that must be equal on all ranks, by what they are of.
        data: gives the digest of each dataset, by name.
        checkpoint_bytes: size of a checkpoint.
        keep: number of checkpoints that are kept.
        device: this rank's.
        seconds: how long the ranks wait for one another here.

    Raises:
        PdepotError: on all ranks, and the same. The ranks differ in what they train or in their software, a dataset
            cannot be read or is another one, the folder is not the same on all hosts, or the disk is too small.
        ConnectionError: the ranks do not reach one another; each finds out for itself.
    """
    try:
        group = dist.new_group(timeout=timedelta(seconds=seconds))
        hosts = gathered(socket.gethostname(), group)
        check_equal(dict(same), hosts, "the ranks were started with different configurations",
                    "start all ranks on the same folder", group)  # fmt: skip
        check_equal(software(), hosts, "the ranks run different software", "install the same on all hosts", group)
        check_shared(folder, hosts, group)
        digests = agreed(data, "reach the data", folder, error=DataError, group=group,
                         remedy="make the datasets visible under the same paths on all hosts")  # fmt: skip
        check_equal(digests, hosts, "the ranks do not see the same data", "copy the datasets again", group)
        free, needed = check_room(folder, checkpoint_bytes, keep, group)
        bandwidth = all_reduce_bandwidth(device, group)
        dist.destroy_process_group(group)
    except RuntimeError as error:
        raise ConnectionError(
            f"the ranks do not reach one another ({error}); if none of them died, let GLOO_SOCKET_IFNAME or "
            "NCCL_SOCKET_IFNAME name the network interface that connects the hosts, and open its ports"
        ) from error
    return Preflight(len(hosts), len(set(hosts)), dist.get_backend(), bandwidth, free, needed)


def checkpoint_size(module: nn.Module, averaged: bool) -> int:
    """Bytes of a checkpoint, at most: the weights, and two moments (and an average) of those that are trained."""
    states = 3 if averaged else 2
    return sum(p.numel() * p.element_size() * (1 + states * p.requires_grad) for p in module.parameters())


def manifest_digests(datasets: Sequence[TrainedDataset]) -> dict[str, str]:
    """The digests of datasets as this rank sees them. Raises DataError when a manifest cannot be read."""
    return {dataset.name: read_manifest(dataset.path).digest for dataset in datasets}


def software() -> dict[str, str]:
    """What computes: this project's code by its bytes, since two checkouts may have one version; else by version."""
    code, root = hashlib.sha256(), Path(__file__).parents[1]
    for file in sorted(file for package in ("data_pipeline", "pretrain") for file in (root / package).rglob("*.py")):
        code.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return {"pdepot": code.hexdigest()[:12], "torch": torch.__version__, "deepspeed": version("deepspeed")}


def check_equal(facts: Mapping[str, str], hosts: Sequence[str], problem: str, remedy: str, group: Any = None) -> None:
    """Raise ConfigError on all ranks unless all of them have the same facts. Collective."""
    everyone = gathered(facts, group)
    different = {
        key: [rank for rank, each in enumerate(everyone) if each.get(key) != everyone[0].get(key)]
        for key in dict.fromkeys(key for each in everyone for key in each)
    }
    problems = [
        f"ranks [{spans(ranks)}] differ from rank 0 in {key}: {_values(everyone, key, ranks)} on "
        f"{_names(hosts, ranks)}, {everyone[0].get(key)} on {hosts[0]}"
        for key, ranks in different.items()
        if ranks
    ]
    if problems:
        raise ConfigError(problem, found="; ".join(problems), remedy=remedy)


def check_shared(folder: Path, hosts: Sequence[str], group: Any = None) -> None:
    """Raise ConfigError on all ranks unless all of them see the same folder. Collective."""

    def leave_mark() -> str:
        for leftover in folder.glob(f"{_MARK}*"):
            leftover.unlink(missing_ok=True)
        mark = folder / f"{_MARK}{uuid.uuid4().hex}"
        mark.touch()  # a folder that has vanished is not made again
        return mark.name

    name, *_ = together(leave_mark, "write into the run's folder", folder, only_first=True, group=group)
    blind = [rank for rank, sees in enumerate(gathered(_appears(folder / name), group)) if not sees]
    if dist.get_rank() == 0:
        with suppress(OSError):
            (folder / name).unlink()
    if blind:
        raise ConfigError(
            "the run's folder is not the same for all ranks", file=folder,
            found=f"ranks [{spans(blind)}] on {_names(hosts, blind)} do not see what rank 0 on {hosts[0]} wrote",
            expected="a folder that all hosts share", remedy="choose an output folder on a shared file system",
        )  # fmt: skip


def check_room(folder: Path, checkpoint_bytes: int, keep: int, group: Any = None) -> tuple[int, int]:
    """Bytes that are free where checkpoints are written, and that those to come need. Collective.

    A checkpoint is whole before an old one is deleted, so there is one more than are kept.

    Raises:
        PdepotError: on all ranks, when there is too little room.
    """

    def measure() -> tuple[int, int]:
        there = sum(file.stat().st_size for file in (folder / "checkpoints").glob("step-*/*") if file.is_file())
        needed = max(checkpoint_bytes, (keep + 1) * checkpoint_bytes - there)
        return shutil.disk_usage(folder).free, needed

    (free, needed), *_ = together(measure, "measure the disk", folder, only_first=True, group=group)
    if free < needed:
        raise PdepotError(
            "the disk is too small for the run's checkpoints", file=folder,
            found=f"{free / 2**30:.2f} GiB free",
            expected=f"{needed / 2**30:.2f} GiB: {keep} that are kept and one that is being written, "
                     f"{checkpoint_bytes / 2**30:.2f} GiB each",
            remedy="free some space, or keep fewer (training.keep_checkpoints)",
        )  # fmt: skip
    return free, needed


def all_reduce_bandwidth(device: torch.device, group: Any = None) -> float | None:
    """Bus bandwidth of an all-reduce, in bytes a second; None for a single rank. Collective.

    Of n ranks each sends and receives 2 (n - 1) / n times the data, however the sum is organised.

    Raises:
        PdepotError: on all ranks, when a sum is wrong.
    """
    ranks = dist.get_world_size(group)
    if ranks == 1:
        return None
    times = []
    tensor = torch.empty(_NUMBERS, device=device)
    for _ in range(1 + _ROUNDS):  # the first one connects the ranks
        tensor.fill_(1)
        dist.barrier(group)
        began = time.perf_counter()
        dist.all_reduce(tensor, group=group)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    wrong = [rank for rank, right in enumerate(gathered(bool((tensor == ranks).all()), group)) if not right]
    if wrong:
        raise PdepotError(
            "the ranks add up wrongly", found=f"another sum on ranks [{spans(wrong)}]",
            remedy="have the network and the devices of these ranks checked",
        )  # fmt: skip
    slowest = max(gathered(min(times[1:]), group))
    return 2 * (ranks - 1) / ranks * tensor.nbytes / slowest


def _appears(file: Path) -> bool:
    deadline = time.monotonic() + _VISIBLE
    while not file.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _values(everyone: Sequence[Mapping[str, str]], key: str, ranks: Sequence[int]) -> str:
    return " or ".join(dict.fromkeys(str(everyone[rank].get(key)) for rank in ranks))


def _names(hosts: Sequence[str], ranks: Sequence[int]) -> str:
    return ", ".join(dict.fromkeys(hosts[rank] for rank in ranks))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
