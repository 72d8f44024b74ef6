"""Time to the first batch of a cold process, with a million trajectories in the index, and the memory of its ranks.

    python -m benchmarks.big_index [FOLDER]

The shards are sparse files full of zeros whose checksums are right, so that they need no room (some 400 MB for index
and manifest). "Cold" means a new process and, where the system allows it, nothing of the dataset in the page cache.
Memory is the sum over all ranks of a node of their proportional set sizes, in which what ranks share counts once.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from benchmarks.timing import report
from data_pipeline.stores.manifest import FileRecord, Manifest, SplitRecord, write_manifest
from data_pipeline.stores.protocol import Statistics
from data_pipeline.stores.shard_index import index_name, record_dtype
from data_pipeline.stores.shards import shard_name
from data_pipeline.trajectory import DatasetInfo

TRAJECTORIES, PER_SHARD, FRAMES, SPACE, CHANNELS = 10**6, 16, 21, (128, 128), ("a", "b", "c", "d")

FIRST_BATCH = """
import json, re, sys, time
start = time.monotonic()
from data_pipeline.loader import Loader, mixture_of
from data_pipeline.stores import open_store
imported = time.monotonic()
store = open_store(sys.argv[1], "train")
opened = time.monotonic()
mixture = mixture_of([store], [1], 10, 1, 0, batch_size=8 * int(sys.argv[3]), micro_batch=8)
loader = Loader([store], mixture, slots=[range(4)], num_channels=4, history=10, target=1, rank=int(sys.argv[2]),
                world_size=int(sys.argv[3]), first_step=1000, shift=False, seed=0)
next(loader)
read = time.monotonic()
print("ready", flush=True)
sys.stdin.readline()  # until all ranks hold a batch

def mib(file, key):
    return int(re.search(key + r":\\s+(\\d+)", open("/proc/self/" + file).read())[1]) / 1024

print(json.dumps({"import_s": imported - start, "open_s": opened - imported, "batch_s": read - opened,
                  "proportional_mib": mib("smaps_rollup", "Pss"), "peak_resident_mib": mib("status", "VmHWM")}))
sys.stdout.flush()
sys.stdin.readline()
"""


def make(folder: Path, trajectories: int = TRAJECTORIES) -> Path:
    """Shards `<folder>/big.shards` of so many trajectories, every number of which is zero."""
    path = folder / "big.shards"
    path.mkdir(parents=True)
    info = DatasetInfo(
        name="big",
        channels=CHANNELS,
        space=SPACE,
        frames=FRAMES,
        dt=0.1,
        axes=("x", "y"),
        extent=((0.0, 1.0), (0.0, 1.0)),
        boundaries=("periodic", "periodic"),
        parameters=("viscosity",),
    )
    frame = bytes(4 * int(np.prod(SPACE)) * len(CHANNELS))
    size = FRAMES * len(frame) + 4096
    files = {index_name("train"): _write_records(path / index_name("train"), info, trajectories, size, frame)}
    for shard in range(-(-trajectories // PER_SHARD)):
        name = shard_name("train", shard)
        with (path / name).open("wb") as file:
            file.truncate(PER_SHARD * size)
        files[name] = FileRecord(size=PER_SHARD * size, sha256="0" * 64)
    zeros = (0.0,) * len(CHANNELS)
    write_manifest(
        path,
        Manifest(
            kind="shards",
            info=info,
            digest="",
            statistics=Statistics(mean=zeros, std=zeros, rms=zeros, min=zeros, max=zeros, change_rms=zeros),
            statistics_split="train",
            splits={"train": SplitRecord(trajectories=trajectories, files=files)},
            files={},
            plan={},
            plan_digest="",
            code_version="",
        ),
    )
    return path


def _write_records(path: Path, info: DatasetInfo, count: int, size: int, frame: bytes) -> FileRecord:
    dtype = record_dtype(info)
    records = np.zeros(count, dtype)
    records["shard"], place = np.divmod(np.arange(count), PER_SHARD)
    records["offset"] = place * size + 1024
    records["static_offset"] = records["mask_offset"] = -1
    records["crc32c"] = google_crc32c.value(frame)
    records["times"] = info.dt * np.arange(FRAMES)
    content = records.view(np.uint8).reshape(count, dtype.itemsize)
    records["record_crc32c"] = [google_crc32c.value(row) for row in content[:, :-4]]
    np.save(path, records, allow_pickle=False)
    return FileRecord(size=path.stat().st_size, sha256="0" * 64)


def forget(path: Path) -> None:
    """Ask the kernel to drop what it holds of the dataset's index and manifest."""
    for name in ("manifest.json", index_name("train")):
        descriptor = os.open(path / name, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def first_batch(path: Path, ranks: int) -> list[dict[str, float]]:
    """Seconds up to the first batch and memory of `ranks` new processes that start together."""
    forget(path)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FIRST_BATCH, str(path), str(rank), str(ranks)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    found = []
    try:
        for process in processes:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("a rank failed; its message is above")
        for process in processes:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            found.append(json.loads(process.stdout.readline()))
    finally:
        for process in processes:
            process.communicate()
    return found


def measure(folder: Path, trajectories: int, ranks: int, rounds: int) -> dict[str, Any]:
    """Medians over `rounds` for one rank, and the memory of several beside that for a small index."""
    large, small = make(folder / "large", trajectories), make(folder / "small", min(1000, trajectories))
    runs = [first_batch(large, 1)[0] for _ in range(rounds)]

    def memory(path: Path) -> dict[int, float]:
        return {n: sum(one["proportional_mib"] for one in first_batch(path, n)) for n in sorted({1, ranks})}

    return {
        "trajectories": trajectories,
        **{key: statistics.median(run[key] for run in runs) for key in runs[0]},
        "first_batch_without_import_s": statistics.median(run["open_s"] + run["batch_s"] for run in runs),
        "proportional_mib_by_ranks": memory(large),
        "proportional_mib_by_ranks_with_1000_trajectories": memory(small),
    }


def main() -> None:
    """Print the figures as JSON."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(scratch)
        report({"benchmark": "big_index", "start": measure(folder, TRAJECTORIES, ranks=4, rounds=3)})


if __name__ == "__main__":
    main()
