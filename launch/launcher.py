"""What starts the ranks of a training run, on how many machines: the flags, and what they come to."""

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from data_pipeline.base.errors import ConfigError

Kind = Literal["local", "slurm", "ray"]  # Kubernetes is a Ray cluster to the ranks: launch.kubernetes


@dataclass(frozen=True)
class Launcher:
    """Where the ranks are started. The job itself (data, evaluation, registry) runs once, where it was called."""

    kind: Kind = "local"
    nodes: int = 1
    ranks_per_node: int | None = None
    """None: one for each GPU of this machine, or two on CPU, as far as the batch divides among them."""
    address: str | None = None
    """Of an existing Ray cluster; None for the one that Ray finds, or a local one."""

    def cluster(self, environment: Mapping[str, str] = os.environ) -> str | None:
        """Address of the Ray cluster that data and ranks go to; None where there is none but a session on this
        machine. Ray itself names it to its jobs, by $RAY_ADDRESS."""
        return (self.address or environment.get("RAY_ADDRESS")) if self.kind == "ray" else None

    def words(self) -> list[str]:
        """The flags that ask for this launcher."""
        flags = {"--nodes": self.nodes, "--gpus-per-node": self.ranks_per_node, "--address": self.address}
        given = [word for flag, value in flags.items() if value is not None for word in (flag, str(value))]
        return ["--launcher", self.kind, *given]


LOCAL = Launcher()


def add_launcher_flags(parser: argparse.ArgumentParser) -> None:
    """`--launcher`, `--nodes` and `--gpus-per-node`, for `launcher_of` to read."""
    parser.add_argument("--launcher", choices=get_args(Kind), default="local",
                        help="what starts the training processes (default: torchrun on this machine)")  # fmt: skip
    parser.add_argument("--nodes", type=int, metavar="N", help="machines to train on (default: those of the Slurm "
                        "allocation, else 1)")  # fmt: skip
    parser.add_argument("--gpus-per-node", type=int, metavar="G", help="GPUs, and training processes, on each machine "
                        "(default: training.ranks, else the GPUs of this one)")  # fmt: skip
    parser.add_argument("--address", help="of an existing Ray cluster (default: the one that Ray finds)")


def launcher_of(options: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Launcher:
    """The launcher that the flags ask for.

    Raises:
        ConfigError: a number below 1, or other nodes than Slurm has given.
    """
    for flag, value in (("--nodes", options.nodes), ("--gpus-per-node", options.gpus_per_node)):
        if value is not None and value < 1:
            raise ConfigError("there is nothing to train on", key=flag, found=value, expected="1 or more")
    given = int(environment.get("SLURM_NNODES", "1")) if options.launcher == "slurm" else 1
    if options.launcher == "slurm" and in_allocation(environment) and options.nodes not in (None, given):
        raise ConfigError(
            "the Slurm allocation has another number of nodes", key="--nodes", found=options.nodes, expected=given,
            remedy="leave --nodes out, or ask Slurm for as many",
        )  # fmt: skip
    return Launcher(options.launcher, options.nodes or given, options.gpus_per_node, options.address)


def in_allocation(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process runs within a Slurm job."""
    return "SLURM_JOB_ID" in environment
