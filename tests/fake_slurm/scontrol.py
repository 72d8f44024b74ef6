"""`scontrol`: the hosts of an allocation (all of them this machine), a job's state, and requeue."""

import json
import os
import re
import sys
from pathlib import Path


def main() -> int:
    jobs = Path(os.environ["FAKE_SLURM"])
    match sys.argv[1:]:
        case ["show", "hostnames", hosts]:
            first, last = re.fullmatch(r"fake\[(\d+)-(\d+)\]", hosts).groups()  # type: ignore[union-attr]
            print("\n".join(["localhost"] * (int(last) - int(first) + 1)))
        case ["show", "job", number]:
            job = json.loads((jobs / number / "job.json").read_text())
            print(f"JobId={number} JobName={job['job_name']}\n   JobState={job['state']} Reason=None")
        case ["requeue", number]:
            (jobs / number / "requeue").touch()
        case words:
            print(f"scontrol: this one does not know {words}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
