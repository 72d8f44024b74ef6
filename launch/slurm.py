"""Jobs for Slurm: `--launcher slurm` submits one that runs the same command again, within its allocation."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.base.errors import ConfigError, PdepotError
from launch.launcher import Launcher, in_allocation

_SCRIPT = Path(__file__).with_name("pretrain.sbatch")


def must_submit(launcher: Launcher) -> bool:
    """Whether the job is still to be handed to Slurm."""
    return launcher.kind == "slurm" and not in_allocation()


def submit(command: Sequence[str], output: Path, name: str, launcher: Launcher) -> str:
    """Submit a job that runs `command` on its first node, and again after each requeue, until all of it is done.

    Partition, account, time limit and so on are taken from sbatch's own variables (SBATCH_PARTITION, ...).

    Args:
        command: words for the batch script to run as they are; relative paths start at the current folder.
        output: folder of the job's results, where its log goes, too.
        name: the job's.
        launcher: the nodes, and GPUs of each, to ask for.

    Returns:
        The job's number.

    Raises:
        ConfigError: there is no `sbatch` here.
        PdepotError: Slurm has refused the job.
    """
    output = output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    words = ["sbatch", "--parsable", "--job-name", name, "--nodes", str(launcher.nodes), "--ntasks-per-node", "1"]
    if launcher.ranks_per_node:
        words += ["--gpus-per-node", str(launcher.ranks_per_node)]
    words += ["--output", str(output / "slurm-%j.log"), str(_SCRIPT), str(output), *command]
    try:
        answer = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ConfigError(
            "no sbatch on this machine", key="--launcher", found="slurm", remedy="use a login node of the cluster"
        ) from None
    if answer.returncode:
        raise PdepotError("Slurm has refused the job", found=answer.stderr.strip(), remedy="set SBATCH_... variables")
    job = answer.stdout.strip().split(";")[0]  # JOB;CLUSTER, where there are several clusters
    print(f"submitted as job {job}; log: {output / f'slurm-{job}.log'}", flush=True)
    return job
