"""Start the ranks of a training run on this machine with torchrun, and judge the outcome by its status file."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from data_pipeline.base.errors import PdepotError
from data_pipeline.base.files import exclusive
from pretrain.run import die_with_parent, read_status, write_status

_ROOT = Path(__file__).resolve().parents[1]


def run_ranks(folder: Path, ranks: int, tracking_uri: str) -> None:
    """Train the run in `folder` until it has finished; one that has finished already is left alone.

    Args:
        folder: a folder laid out by `pretrain.run.prepare`.
        ranks: number of training processes.
        tracking_uri: MLflow's.

    Raises:
        PdepotError: the run failed or was preempted; the message says why and what to do.
    """
    with exclusive(folder / ".lock", wait=True, what=f"the training run in {folder}"):
        if read_status(folder)[0] == "finished" and (folder / "final").is_dir():
            print(f"{folder}: finished already, nothing to do", flush=True)
            return
        write_status(folder, "running")
        _start(folder, ranks, tracking_uri)
        status, message = read_status(folder)
    log = folder / "torchrun.log"
    if status == "preempted":
        raise PdepotError(
            "training was asked to stop; it has saved a checkpoint", file=folder,
            remedy="start the same command again: it goes on from there",
        )  # fmt: skip
    if status != "finished":
        raise PdepotError(
            f"training failed: {message or 'a rank died'}\n  log: {log}\n"
            "  afterwards: the same command goes on from the last checkpoint"
        )  # fmt: skip


def _start(folder: Path, ranks: int, tracking_uri: str) -> None:
    """Run torchrun; its own chatter and the ranks' warnings go to `torchrun.log`, progress to the terminal."""
    environment = os.environ | {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks))),
        "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "PYTHONUNBUFFERED": "1",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600",  # seconds for the last step and its checkpoint
    }
    # The set-up has compiled DeepSpeed's op into the environment, and put ninja, which loads it, beside python.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    if (Path(sys.prefix) / "torch_extensions").is_dir():
        environment.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    if not torch.cuda.is_available():
        environment.setdefault("DS_ACCELERATOR", "cpu")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes", "1"]
    command += ["--nproc-per-node", str(ranks), "--max-restarts", "0"]
    command += ["-m", "pretrain.train", str(folder.resolve()), tracking_uri]
    with (folder / "torchrun.log").open("ab") as log:
        # A session of its own: a signal to this process group must reach the ranks once, by way of `_forwarding`.
        process = subprocess.Popen(
            command, env=environment, stderr=log, preexec_fn=die_with_parent, start_new_session=True
        )
        with _forwarding(process):
            process.wait()


@contextmanager
def _forwarding(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Pass a request to stop on to torchrun, which passes it to the ranks: they finish the step, save and end."""

    def forward(_: int, __: FrameType | None) -> None:
        process.terminate()

    requests = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    previous = {number: signal.signal(number, forward) for number in requests}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
