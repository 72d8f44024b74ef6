"""`srun`: a task on each "node". It passes signals on to its tasks, but at SIGTERM and SIGHUP it kills them."""

import argparse
import os
import signal
import subprocess
import sys
import time
from types import FrameType

from pretrain.run import die_with_parent

_KILL_WAIT = 10.0


def main() -> int:
    parser = argparse.ArgumentParser()
    for option in ("--nodes", "--ntasks", "--ntasks-per-node", "--kill-on-bad-exit", "--cpus-per-task"):
        parser.add_argument(option, type=int, default=1)
    parser.add_argument("words", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    assert options.ntasks == options.nodes * options.ntasks_per_node <= int(os.environ["SLURM_NNODES"])
    assert options.ntasks_per_node == 1
    tasks = [
        subprocess.Popen(
            options.words, env=os.environ | {"SLURM_NODEID": str(i), "SLURM_PROCID": str(i), "SLURM_LOCALID": "0"},
            start_new_session=True, preexec_fn=die_with_parent,
        )
        for i in range(options.nodes)
    ]  # fmt: skip

    def pass_on(number: int, _: FrameType | None) -> None:
        kill = number in (signal.SIGTERM, signal.SIGHUP)
        if kill:
            print("srun: forcing job termination", file=sys.stderr, flush=True)
        for task in tasks:
            task.send_signal(signal.SIGKILL if kill else number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, pass_on)
    wait_for(tasks, options.kill_on_bad_exit == 1)
    return max(task.returncode if task.returncode >= 0 else 128 - task.returncode for task in tasks)


def wait_for(tasks: "list[subprocess.Popen[bytes]]", kill_on_bad_exit: bool) -> None:
    """Until all have ended; the first that ends badly may end the others."""
    deadline = float("inf")
    while any(task.poll() is None for task in tasks):
        if kill_on_bad_exit and deadline == float("inf") and any(task.returncode for task in tasks):
            deadline = time.monotonic() + _KILL_WAIT
            for task in tasks:
                task.terminate()
        if time.monotonic() > deadline:
            for task in tasks:
                task.kill()
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
