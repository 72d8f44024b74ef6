"""Speed of the data pipeline, side by side in one run: `python -m benchmarks.data`.

Windows into batches (`benchmarks/windows.py`), the convert stage (`convert.py`), and the time to the first batch of a
cold process with a million trajectories in the index (`big_index.py`).
"""

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks import big_index, convert, windows
from benchmarks.timing import machine, report
from data_pipeline.workers import keep_ray

PARTS = ("windows", "convert", "start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--size", type=int, default=128, help="grid points along each axis")
    parser.add_argument("--trajectories", type=int, default=96, help="to read windows of; twice as many are converted")
    parser.add_argument("--index", type=int, default=big_index.TRAJECTORIES, help="trajectories in the large index")
    parser.add_argument("--ranks", type=int, default=4, help="that start together")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="where to work; by default the temporary folder")
    options = parser.parse_args()
    figures, rounds = {}, max(1, options.rounds // 3)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        with keep_ray():
            if "convert" in options.parts:
                count = 2 * options.trajectories
                figures["convert"] = convert.measure(folder / "convert", count, options.size, rounds)
            if "windows" in options.parts:
                raw = convert.write_raw(folder / "raw", options.trajectories, options.size)
                stores = windows.make_stores(raw, folder / "stores")
        if "windows" in options.parts:
            figures["windows"] = windows.measure(*stores, folder / "windows", options.rounds)
        if "start" in options.parts:
            figures["start"] = big_index.measure(folder / "start", options.index, options.ranks, rounds)
    for part, values in figures.items():
        print(f"{part}:\n{json.dumps(values, indent=1)}")
    report({"benchmark": "data", "machine": machine("cpu"), **figures})


if __name__ == "__main__":
    main()
