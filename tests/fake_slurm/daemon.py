"""What slurmctld and slurmd do for one job: run its script, warn it, kill it at its limit, and start it again."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

_KILL_WAIT = 5.0


def main() -> None:
    number = sys.argv[1]
    folder = Path(os.environ["FAKE_SLURM"]) / number
    job = json.loads((folder / "job.json").read_text())

    def note(**changes: Any) -> None:
        job.update(changes)
        temporary = folder / "job.json.new"
        temporary.write_text(json.dumps(job))
        temporary.rename(folder / "job.json")

    note(daemon=os.getpid())
    while run_once(number, folder, job, note):
        note(state="PENDING", restarts=job["restarts"] + 1)
    note(over=True)


def run_once(number: str, folder: Path, job: dict[str, Any], note: Any) -> bool:
    """Run the script until it ends; True when it is to be run again."""
    target, name, seconds = re.fullmatch(r"(B:)?(\w+)@(\d+)", job["signal"]).groups()  # type: ignore[union-attr]
    assert target, "without B:, Slurm would warn the steps and not the script"
    log = Path(job["output"].replace("%j", number))
    variables = {
        "SLURM_JOB_ID": number, "SLURM_NNODES": job["nodes"], "SLURM_JOB_NUM_NODES": job["nodes"],
        "SLURM_JOB_NODELIST": f"fake[1-{job['nodes']}]", "SLURM_SUBMIT_DIR": job["directory"],
    }  # fmt: skip
    if job["restarts"]:
        variables["SLURM_RESTART_COUNT"] = str(job["restarts"])
    with log.open("ab" if job["open_mode"] == "append" else "wb") as out:
        batch = subprocess.Popen(
            ["bash", str(folder / "slurm_script"), *job["words"]], cwd=job["directory"], env=os.environ | variables,
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    note(state="RUNNING", batch=batch.pid)
    limit = float("inf")
    while batch.poll() is None:
        if taken(folder / "warn"):
            batch.send_signal(getattr(signal, f"SIG{name}"))  # B: the shell alone
            limit = time.monotonic() + float(seconds)
        again, cancelled = taken(folder / "requeue"), taken(folder / "cancel")
        if again or cancelled or time.monotonic() > limit:
            note(state="RUNNING" if again else "CANCELLED" if cancelled else "TIMEOUT")
            end(batch)
            if again:
                assert job["requeue"], "submitted without --requeue"
            return again or taken(folder / "requeue")  # Slurm would even bring a cancelled job back
        time.sleep(0.02)
    note(state="FAILED" if batch.returncode else "COMPLETED", code=batch.returncode)
    return False


def end(batch: "subprocess.Popen[bytes]") -> None:
    """First the script's processes are asked to end, then all are killed. The script itself may still act between."""
    for process in psutil.Process(batch.pid).children(recursive=True):
        process.terminate()
    try:
        batch.wait(_KILL_WAIT)
    except subprocess.TimeoutExpired:
        os.killpg(batch.pid, signal.SIGKILL)
        batch.wait()


def taken(file: Path) -> bool:
    """Whether a request lies there; it is taken away."""
    if file.exists():
        file.unlink()
        return True
    return False


if __name__ == "__main__":
    main()
