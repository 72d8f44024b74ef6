"""Start the ranks of one machine with torchrun: `python -m launch.node RUN_FOLDER TRACKING_URI --ranks-per-node G`.

One such process a machine; `launch.ranks` is the one that starts them, or you, by hand. It ends well (0) when the run
has finished or saved itself on request. torchrun starts the ranks again when one of them dies. When torchrun itself is
lost (its machine was cut off for long, or the head's agent died) this process starts it again, and the group meets
anew: so each machine needs only its own process to live.
"""

import argparse
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from data_pipeline.base.cpus import usable_cpus
from data_pipeline.base.errors import CheckpointError, ConfigError
from launch.agent import GROUP_LOST
from launch.messages import exit_code
from launch.place import Place, find_place, interface_of, own_address
from launch.setup import has_cuda
from pretrain.comparison import read_run
from pretrain.run import die_with_parent, failed_for_good, read_status, write_status

_ROOT = Path(__file__).resolve().parents[1]
_MEETING = 600  # seconds that agents wait for one another, at the start and after a fault
_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"


def run_node(folder: Path, ranks: int, tracking_uri: str, place: Place | None = None) -> None:
    """Run this machine's ranks until they have ended; the run's `status.json` says how.

    Args:
        folder: the run's, on a disk that all machines see.
        ranks: of this machine.
        tracking_uri: MLflow's.
        place: this machine's among the others; None when there are no others.

    Raises:
        ConfigError: there is no way to the head, or torch cannot use this machine's GPUs.
        CheckpointError: the head has not answered.
    """
    check_gpus()
    training = read_run(folder).training
    shutdown = math.ceil(training.stop_timeout) + 60  # the ranks' own limit comes first
    command = [sys.executable, "-m", "launch.agent", *_meeting(place, folder), "--nproc-per-node", str(ranks)]
    command += ["--max-restarts", str(training.restarts), "--shutdown-timeout", str(shutdown)]
    command += ["--signals-to-handle", _SIGNALS, "-m", "pretrain.train", str(folder.resolve()), tracking_uri]
    log = folder / (f"torchrun-{place.node_rank}.log" if place and place.node_rank else "torchrun.log")
    for attempt in range(training.restarts + 1):
        if place and place.node_rank:
            _wait_for_head(place, folder, patient=attempt == 0)
        elif attempt:
            write_status(folder, "running")
        code, stopped = _start(command, _environment(ranks, place), log)
        if stopped or 0 <= code < GROUP_LOST or failed_for_good(folder):
            return
        print(f"{folder}: the group was lost, {training.restarts - attempt} attempts left; see {log}", flush=True)


def check_gpus() -> None:
    """Refuse to train on the CPUs of a machine with GPUs, unless somebody has asked for that: an environment that was
    made on a machine without any has a torch that sees none.

    Raises:
        ConfigError: says what torch is there.
    """
    asked = os.environ.get("DS_ACCELERATOR") == "cpu" or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if not (torch.cuda.is_available() or asked) and has_cuda():
        raise ConfigError(
            "torch cannot use this machine's GPUs", found=f"torch {torch.__version__}", expected="a build for CUDA",
            remedy=f"delete {sys.prefix} and set up where there are GPUs (or update the driver); to train on CPUs: "
            "DS_ACCELERATOR=cpu",
        )  # fmt: skip


def _meeting(place: Place | None, folder: Path) -> list[str]:
    """Where the agents meet, as torchrun wants to hear it."""
    if place is None:
        return ["--standalone", "--nnodes", "1"]
    # torchrun would look for the head's name among this machine's own, which fails where hosts have several.
    settings = {"is_host": int(place.node_rank == 0), "join_timeout": _MEETING}
    head = f"[{place.head}]" if ":" in place.head else place.head
    return [
        "--nnodes", str(place.nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{head}:{place.port}",
        "--rdzv-id", f"{place.job}-{folder.name}", "--rdzv-conf", ",".join(f"{k}={v}" for k, v in settings.items()),
        "--local-addr", own_address(place),
    ]  # fmt: skip


def _environment(ranks: int, place: Place | None) -> dict[str, str]:
    """What the ranks need to know; whatever the user has set stays."""
    environment = os.environ | {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, usable_cpus() // ranks))),
        "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "PYTHONUNBUFFERED": "1",
    }
    # The set-up has compiled DeepSpeed's op into the environment, and put ninja, which loads it, beside python.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    if (Path(sys.prefix) / "torch_extensions").is_dir():
        environment.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    if not torch.cuda.is_available():
        environment.setdefault("DS_ACCELERATOR", "cpu")
    # Each start of the ranks gets a store of its own: in the one that torchrun would keep for them, they would find
    # what those that have died left behind.
    environment.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    # With several interfaces, gloo and NCCL may take one that does not lead to the others.
    if place is not None and (interface := interface_of(own_address(place))):
        environment.setdefault("GLOO_SOCKET_IFNAME", interface)
        environment.setdefault("NCCL_SOCKET_IFNAME", interface)
    return environment


def _wait_for_head(place: Place, folder: Path, *, patient: bool) -> None:
    """Until the head's agent listens. Afterwards torchrun would give it one minute only.

    After a fault, a run whose status is not `running` is most likely over, and its head gone for good.
    """
    begun = time.monotonic()
    while True:
        try:
            with socket.create_connection((place.head, place.port), timeout=5):
                return
        except OSError as error:
            waited = time.monotonic() - begun
            if waited > (_MEETING if patient or read_status(folder)[0] == "running" else _MEETING / 5):
                raise CheckpointError(
                    f"the head does not answer: {error}", file=folder, found=f"{place.head}:{place.port}",
                    remedy="start the job again: it goes on from the last checkpoint",
                ) from error  # fmt: skip
            time.sleep(1)


def _start(command: list[str], environment: dict[str, str], log: Path) -> tuple[int, bool]:
    """Run torchrun; its own chatter and the ranks' warnings go to `log`, progress to the terminal.

    Returns:
        Its exit code, and whether it was asked to stop.
    """
    with log.open("ab") as file:
        # A session of its own: a signal to this process group must reach the ranks once, by way of `forwarding`.
        process = subprocess.Popen(
            command, env=environment, stderr=file, preexec_fn=die_with_parent, start_new_session=True
        )
        with forwarding(process) as stopped:
            return process.wait(), stopped()


@contextmanager
def forwarding(
    process: "subprocess.Popen[bytes]", number: signal.Signals = signal.SIGTERM
) -> Iterator[Callable[[], bool]]:
    """Pass a request to stop on, as signal `number`, to torchrun or srun: the ranks finish the step, save and end.

    Yields:
        Whether there was such a request.
    """
    requests: list[int] = []

    def forward(request: int, _: FrameType | None) -> None:
        requests.append(request)
        process.send_signal(number)

    previous = {s: signal.signal(s, forward) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        yield lambda: bool(requests)
    finally:
        for request, handler in previous.items():
            signal.signal(request, handler)


def main(arguments: list[str]) -> int:
    """Run this machine's ranks; 0 when the run has finished, or has saved itself on request."""
    parser = argparse.ArgumentParser(prog="python -m launch.node", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="the run's, as `pdepot pretrain` has laid it out")
    parser.add_argument("tracking_uri", help="MLflow's")
    parser.add_argument("--ranks-per-node", type=int, required=True, metavar="G")
    parser.add_argument("--nodes", type=int, metavar="N", help="default: PDEPOT_NODES, or Slurm's")
    parser.add_argument("--node-rank", type=int, metavar="I", help="default: PDEPOT_NODE_RANK, or Slurm's")
    parser.add_argument("--head", metavar="HOST[:PORT]", help="default: PDEPOT_HEAD, or Slurm's first host")
    options = parser.parse_args(arguments)

    def work() -> int:
        place = find_place(options.nodes, options.node_rank, options.head)
        run_node(options.folder, options.ranks_per_node, options.tracking_uri, place)
        return 0 if read_status(options.folder)[0] in ("finished", "preempted") else 1

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
