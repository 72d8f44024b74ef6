"""Start the ranks of a training run, here or on many machines, and judge the outcome by its status file."""

import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TypeVar

import torch

from data_pipeline.base.errors import ConfigError, PdepotError
from data_pipeline.base.files import exclusive
from launch.launcher import LOCAL, Launcher, in_allocation
from launch.node import check_gpus, forwarding, run_node
from launch.place import find_place
from pretrain.comparison import read_run
from pretrain.config import JobConfig, TrainingConfig
from pretrain.job import check_batch, number_of_ranks
from pretrain.run import die_with_parent, read_status, write_status
from pretrain.tracking import without_password
from pretrain.watchdog import hangs

Job = TypeVar("Job", bound=JobConfig)


def run_ranks(folder: Path, ranks: int, tracking_uri: str, launcher: Launcher = LOCAL) -> None:
    """Train the run in `folder` until it has finished; one that has finished already is left alone.

    Args:
        folder: a folder laid out by `pretrain.run.prepare`, on a disk that all machines see.
        ranks: number of training processes, over all machines.
        tracking_uri: MLflow's.
        launcher: what starts them, and where.

    Raises:
        PdepotError: the run failed or was preempted; the message says why and what to do.
    """
    with exclusive(folder / ".lock", wait=True, what=f"the training run in {folder}"):
        if read_status(folder)[0] == "finished" and (folder / "final").is_dir():
            print(f"{folder}: finished already, nothing to do", flush=True)
            return
        write_status(folder, "running")
        seen = len(hangs(folder))
        _start(folder.resolve(), ranks, tracking_uri, launcher)
        status, message = read_status(folder)
        hung = hangs(folder)[seen:]
    log = folder / "torchrun.log"
    if status == "preempted":
        raise PdepotError(
            "training was asked to stop; it has saved a checkpoint", file=folder,
            remedy="start the same command again: it goes on from there",
        )  # fmt: skip
    if status != "finished":
        raise PdepotError(
            f"training failed: {'; '.join(filter(None, [message, *hung])) or 'a rank died'}\n  log: {log}\n"
            "  afterwards: the same command goes on from the last checkpoint"
        )  # fmt: skip


def with_ranks(config: Job, launcher: Launcher) -> Job:
    """A job whose `training.ranks` is what the launcher comes to, over all nodes.

    Raises:
        ConfigError: `training.ranks` cannot be spread evenly over the nodes, or the flags say another number.
    """
    if launcher == LOCAL:
        return config
    ranks = number_of_ranks(config.training, launcher.nodes, launcher.ranks_per_node)
    return config.model_copy(update={"training": config.training.model_copy(update={"ranks": ranks})})


def check_launch(training: TrainingConfig, launcher: Launcher) -> None:
    """What would stop the ranks later, before any long work starts.

    Raises:
        ConfigError: the batch does not divide among the ranks, or nobody has said how many ranks a Slurm job has.
    """
    unknown = training.ranks == "auto" and launcher.ranks_per_node is None
    # Of an allocation's nodes this one tells something only if it is one of them; the shell of `salloc` may not be.
    if launcher.kind == "slurm" and unknown and not (in_allocation() and torch.cuda.is_available()):
        raise ConfigError(
            "this machine cannot tell how many GPUs the nodes of a Slurm job have", key="--gpus-per-node",
            expected="a number; or training.ranks, over all nodes, to train on CPUs",
        )  # fmt: skip
    ranks = number_of_ranks(training, launcher.nodes, launcher.ranks_per_node)
    check_batch(training.model_copy(update={"ranks": ranks}))


def _start(folder: Path, ranks: int, tracking_uri: str, launcher: Launcher) -> None:
    """Run the ranks until they have ended; `status.json` says how."""
    each = ranks // launcher.nodes
    if launcher.kind == "slurm":
        _run_step(folder, each, tracking_uri, launcher.nodes)
    elif launcher.kind == "local" and launcher.nodes == 1:
        run_node(folder, ranks, tracking_uri)
    elif launcher.kind == "local":
        _run_head(folder, each, tracking_uri, launcher.nodes)
    else:
        from launch.ray_train import run

        address = launcher.cluster()
        if address is None:
            check_gpus()
        gpus, restarts = launcher.ranks_per_node or torch.cuda.device_count(), read_run(folder).training.restarts
        run(folder, ranks, tracking_uri, address=address, use_gpu=gpus > 0, max_failures=restarts)


def _run_head(folder: Path, ranks_per_node: int, tracking_uri: str, nodes: int) -> None:
    """The ranks of this machine, the head; the others' are started there, by hand."""
    place = find_place(nodes, 0, None if "PDEPOT_HEAD" in os.environ else socket.getfqdn())
    words = ["python", "-m", "launch.node", str(folder), without_password(tracking_uri)]
    words += ["--ranks-per-node", str(ranks_per_node), "--nodes", str(nodes), "--head", f"{place.head}:{place.port}"]
    print(f"on each of the other machines, I from 1 to {nodes - 1}:\n  {shlex.join(words)} --node-rank I", flush=True)
    run_node(folder, ranks_per_node, tracking_uri, place)


def _run_step(folder: Path, ranks_per_node: int, tracking_uri: str, nodes: int) -> None:
    """One `launch.node` on every machine of the Slurm allocation. When one gives up, the step ends as a whole."""
    # Of the CPUs that the job asked for per task, srun takes none unless it is told.
    cpus = [f"--cpus-per-task={os.environ['SLURM_CPUS_PER_TASK']}"] if "SLURM_CPUS_PER_TASK" in os.environ else []
    command = ["srun", "--nodes", str(nodes), "--ntasks", str(nodes), "--ntasks-per-node", "1"]
    command += ["--kill-on-bad-exit=1", *cpus]
    command += [sys.executable, "-m", "launch.node", str(folder), tracking_uri]
    command += ["--ranks-per-node", str(ranks_per_node)]
    process = subprocess.Popen(command, preexec_fn=die_with_parent, start_new_session=True)
    with forwarding(process, signal.SIGUSR1):  # at SIGTERM, srun kills its tasks
        process.wait()
