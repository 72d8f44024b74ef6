"""`sbatch`: options from the command line, else SBATCH_ variables, else #SBATCH lines; then the job's daemon."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parsable", action="store_true")
    for option in ("--job-name", "--nodes", "--ntasks-per-node", "--gpus-per-node", "--output", "--signal",
                   "--partition"):  # fmt: skip
        parser.add_argument(option)
    parser.add_argument("--requeue", action="store_true")
    parser.add_argument("--open-mode", default="truncate")
    parser.add_argument("script")
    parser.add_argument("words", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    lines = re.findall(r"^#SBATCH (.*)$", Path(given.script).read_text(), re.MULTILINE)
    variables = [f"--{name.lower()}={os.environ[f'SBATCH_{name}']}" for name in ("PARTITION", "SIGNAL")
                 if f"SBATCH_{name}" in os.environ]  # fmt: skip
    options = parser.parse_args([*lines, *variables, *sys.argv[1:]])  # of several, argparse takes the last

    number = str(os.getpid())
    folder = Path(os.environ["FAKE_SLURM"]) / number
    folder.mkdir()
    shutil.copy(options.script, folder / "slurm_script")  # Slurm runs a copy, wherever it likes
    job = vars(options) | {"state": "PENDING", "restarts": 0, "directory": str(Path.cwd())}
    (folder / "job.json").write_text(json.dumps(job))
    subprocess.Popen(
        [sys.executable, "-m", "tests.fake_slurm.daemon", number], start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=(folder / "daemon.log").open("ab"),
    )  # fmt: skip
    print(number if options.parsable else f"Submitted batch job {number}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
