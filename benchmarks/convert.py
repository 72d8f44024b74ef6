"""The convert stage beside a copy of the same bytes; part of `python -m benchmarks.data`.

The raw data are an uncompressed HDF5 file of PDEBench's compressible flow (21 frames of 128 x 128, four fields, each
an array of its own, as published), read into the page cache first. The copy reads the same file in blocks of 1 MiB,
takes SHA-256 and CRC32C of what it read, and writes it to as many files as the store has shards, each with an fsync;
it runs in as many processes as there are cores, as the build does. Ray and its workers are there before either is
timed.
"""

import hashlib
import os
import shutil
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import google_crc32c
import h5py
import numpy as np

from data_pipeline.base.files import remove_tree
from data_pipeline.build import build_store
from data_pipeline.config import DatasetConfig

FRAMES, FIELDS, PER_SHARD, BLOCK = 21, ("Vx", "Vy", "density", "pressure"), 8, 2**20


def write_raw(folder: Path, trajectories: int, size: int) -> Path:
    """A file as PDEBench's, of random numbers; returns its path."""
    folder.mkdir(parents=True)
    path = folder / f"2D_CFD_Rand_M0.1_Eta0.01_Zeta0.01_periodic_{size}_Train.hdf5"
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file.attrs.update(M=0.1, eta=0.01, zeta=0.01)
        for name in FIELDS:
            array = file.create_dataset(name, (trajectories, FRAMES, size, size), "f4")
            for number in range(trajectories):
                array[number] = random.standard_normal((FRAMES, size, size), np.float32)
        file["t-coordinate"] = np.linspace(0, 1, FRAMES + 1, dtype=np.float32)
        for axis in "xy":
            file[f"{axis}-coordinate"] = (np.arange(size, dtype=np.float32) + 0.5) / size
        file.flush()
    os.sync()
    path.read_bytes()
    return path


def dataset(raw: Path) -> DatasetConfig:
    """The configuration that takes all trajectories of the file."""
    return DatasetConfig.model_validate(
        {
            "name": "flow",
            "convert": {"layout": "pdebench", "path": str(raw), "splits": {"train": "rest", "test": 0}},
            "store": {"trajectories_per_shard": PER_SHARD},
        }
    )


def copy_part(raw: Path, target: Path, start: int, stop: int) -> float:
    """Copy and checksum bytes start .. stop of a file, durably; returns the seconds of CPU that it took."""
    began, buffer = time.process_time(), memoryview(bytearray(BLOCK))
    descriptor = os.open(raw, os.O_RDONLY)
    sha256, crc32c = hashlib.sha256(), google_crc32c.Checksum()
    with target.open("wb", buffering=0) as file:
        while start < stop:
            count = os.preadv(descriptor, [buffer[: stop - start]], start)
            sha256.update(buffer[:count])
            crc32c.update(bytes(buffer[:count]))
            file.write(buffer[:count])
            start += count
        os.fsync(file.fileno())
    os.close(descriptor)
    return time.process_time() - began


def copy(pool: ProcessPoolExecutor, raw: Path, folder: Path, shards: int) -> dict[str, float]:
    """Seconds on the clock and of CPU for the whole file."""
    folder.mkdir()
    began, edges = time.perf_counter(), np.linspace(0, raw.stat().st_size, shards + 1).astype(int).tolist()
    targets = [folder / str(number) for number in range(shards)]
    cpu = sum(pool.map(copy_part, [raw] * shards, targets, edges[:-1], edges[1:]))
    seconds = time.perf_counter() - began
    shutil.rmtree(folder)
    return {"seconds": seconds, "cpu": cpu}


def build(raw: Path, folder: Path) -> dict[str, float]:
    """Seconds on the clock and of CPU, of the driver and of all workers, for the whole store."""
    began, before = time.perf_counter(), _cpu_of_all()
    build_store(dataset(raw), folder)
    figures = {"seconds": time.perf_counter() - began, "cpu": _cpu_of_all() - before}
    remove_tree(folder)
    return figures


def _cpu_of_all() -> float:
    """Seconds of CPU of this process and of the processes of its Ray session that run Python tasks."""
    total = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().rpartition(")")
        except OSError:  # it has ended
            continue
        if "ray::" in name or stat.parent.name == str(os.getpid()):
            total += sum(map(int, rest.split()[11:13])) / os.sysconf("SC_CLK_TCK")
    return total


def measure(folder: Path, trajectories: int, size: int, rounds: int) -> dict[str, Any]:
    """The median of `rounds` rounds of a copy and a build, in turn. Ray starts here, if it has not."""
    cores = os.cpu_count() or 1
    raw = write_raw(folder / "raw", trajectories, size)
    small = write_raw(folder / "small", 2 * PER_SHARD, size)
    rows: dict[str, list[dict[str, float]]] = {"copy": [], "build": []}
    shards = -(-trajectories // PER_SHARD)
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        began = time.perf_counter()
        build(small, folder / "warm")
        start = time.perf_counter() - began
        copy(pool, small, folder / "copied", 2 * cores)
        for _ in range(rounds):
            rows["copy"].append(copy(pool, raw, folder / "copied", shards))
            rows["build"].append(build(raw, folder / "built"))
    size_mib = raw.stat().st_size / 2**20
    median = {
        kind: {key: statistics.median(row[key] for row in of) for key in ("seconds", "cpu")}
        for kind, of in rows.items()
    }
    return {
        "mib": size_mib,
        "cores": cores,
        "start_of_ray_and_first_build_s": start,
        **{f"{kind}_mib_per_s": size_mib / figures["seconds"] for kind, figures in median.items()},
        **{f"{kind}_cores_used": figures["cpu"] / figures["seconds"] for kind, figures in median.items()},
        **{f"{kind}_cpu_s": figures["cpu"] for kind, figures in median.items()},
        "build_over_copy": statistics.median(
            c["seconds"] / b["seconds"] for c, b in zip(rows["copy"], rows["build"], strict=True)
        ),
    }
