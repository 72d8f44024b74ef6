"""A source never reads more than it yields: files of 2 GiB, one trajectory or one part of its time after another.

Each file is read in a process of its own, whose peak of resident memory is compared with what it was before the file
was opened. Files are compressed, sparse or full of gaps, so that they take little room and time.
"""

import json
import subprocess
import sys
import zipfile
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr

from data_pipeline.config import ConvertConfig

MIB = 2**20
FULL = 2048 * MIB
_READ = """
import json, sys
from data_pipeline.config import ConvertConfig
from data_pipeline.sources.files import FileSource
from data_pipeline.sources.registry import layout

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

config = ConvertConfig.model_validate_json(sys.argv[1])
kind = layout(config.layout)
kind.files(__import__("pathlib").Path(config.path))
before = peak()
source = FileSource("large", config, kind)
sizes = [one.fields.nbytes for one in source.read("train", 0, min(int(sys.argv[2]), source.splits["train"]))]
print(json.dumps({"grown": peak() - before, "largest": max(sizes), "read": sum(sizes)}))
"""
FEW = 6
"""Trajectories that may be in memory at once: as stored, in float32, tested for NaN and Inf, and the one before."""


def growth(config: ConvertConfig, trajectories: int) -> dict[str, int]:
    """Peak memory (bytes) of reading the first trajectories, above what there was before."""
    command = [sys.executable, "-c", _READ, config.model_dump_json(), str(trajectories)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


def check(config: ConvertConfig, trajectories: int, size: int) -> None:
    """Reading some trajectories of a file of `size` bytes takes the memory of a few of them."""
    assert size >= FULL
    found = growth(config, trajectories)
    assert found["read"] > FEW * found["largest"]  # else keeping all of them would not be noticed
    assert found["grown"] < FEW * found["largest"] < size / 10


@cache
def packed_zeros(size: int) -> bytes:
    """So many zero bytes, deflated."""
    return zlib.compress(bytes(size))


def compressed(root: Any, key: str, shape: tuple[int, ...], chunk: tuple[int, ...]) -> int:
    """A gzipped float32 array of zeros, every chunk of which is there; its size in bytes."""
    dataset = root.create_dataset(key, shape, "f4", chunks=chunk, compression="gzip")
    packed = packed_zeros(4 * int(np.prod(chunk)))
    counts = [n // c for n, c in zip(shape, chunk, strict=True)]
    for index in np.ndindex(*counts):
        dataset.id.write_direct_chunk(tuple(i * c for i, c in zip(index, chunk, strict=True)), packed)
    return 4 * int(np.prod(shape))


def flow(path: Path, trajectories: int, frames: int, chunk: int) -> int:
    """A PDEBench file of compressible flow on 256 x 256 points; its size in bytes."""
    with h5py.File(path, "w") as root:
        root.attrs.update(M=1.0, eta=0.1, zeta=0.1)
        root["t-coordinate"] = np.arange(frames + 1.0)
        for axis in "xy":
            root[f"{axis}-coordinate"] = np.arange(256.0)
        shape = (trajectories, frames, 256, 256)
        return sum(compressed(root, key, shape, (1, chunk, 256, 256)) for key in ("Vx", "Vy", "density", "pressure"))


@pytest.fixture
def name() -> str:
    return "2D_CFD_Rand_M1.0_Eta0.1_Zeta0.1_periodic_256_Train.hdf5"


def test_compressed_hdf5_one_trajectory_at_a_time(tmp_path: Path, name: str) -> None:
    size = flow(tmp_path / name, trajectories=128, frames=16, chunk=16)
    check(ConvertConfig(layout="pdebench", path=str(tmp_path)), 10, size)


def test_one_long_trajectory_in_parts_of_its_time(tmp_path: Path, name: str) -> None:
    size = flow(tmp_path / name, trajectories=1, frames=2048, chunk=8)
    rule = {"test": 8, "of": "segments"}
    config = {"layout": "pdebench", "path": str(tmp_path), "frames": 16, "splits": rule}
    check(ConvertConfig.model_validate(config), 10, size)


def test_plain_hdf5_arrays(tmp_path: Path) -> None:
    path = tmp_path / "NS-Sines.nc"
    shape = (1024, 16, 2, 128, 128)
    with h5py.File(path, "w") as root:
        space = h5py.h5s.create_simple(shape)
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)  # all of the array is in the file, as a hole
        made.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        h5py.h5d.create(root.id, b"velocity", h5py.h5t.IEEE_F32LE, space, made)
    config = ConvertConfig.model_validate({"layout": "poseidon", "path": str(path), "splits": {"test": 1}})
    check(config, 60, path.stat().st_size)


def test_one_group_a_trajectory(tmp_path: Path) -> None:
    path = tmp_path / "2D_diff-react_NA_NA.h5"
    with h5py.File(path, "w") as root:
        size = 0
        for number in range(256):
            size += compressed(root, f"{number:04}/data", (64, 128, 128, 2), (64, 128, 128, 2))
            root[f"{number:04}/grid/t"] = np.arange(64.0)
            for axis in "xy":
                root[f"{number:04}/grid/{axis}"] = np.arange(128.0)
    check(ConvertConfig(layout="pdebench", path=str(path)), 10, size)


def test_zarr_groups(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "train.zarr", mode="w")
    shape = (220, 88, 1, 96, 192)
    for key in ("u", "v", "div", "vor"):
        group.create_array(key, shape=shape, dtype="f4", chunks=(1, *shape[1:]), fill_value=0.0)
    group.create_array("pres", shape=(220, 88, 96, 192), dtype="f4", chunks=(1, 88, 96, 192), fill_value=0.0)
    for array in group.array_values():
        array[:10] = 1.0  # those that are read: a missing chunk is an error
    config = ConvertConfig(layout="pdearena", path=str(tmp_path), dt=6.0)
    check(config, 10, 5 * 4 * 220 * 88 * 96 * 192)


PLAIN = {"layout": "plain", "boundaries": ["periodic"] * 2, "extent": [[0, 1], [0, 1]], "dt": 1, "splits": {"test": 1}}


def described(path: Path, axes: str, **options: Any) -> ConvertConfig:
    """A plain file with one array."""
    plain = {"fields": {"u": {"axes": axes} | options}}
    return ConvertConfig.model_validate(PLAIN | {"path": str(path), "plain": plain})


@pytest.mark.parametrize("fortran", [False, True], ids=["row-major", "column-major"])
def test_npy_arrays(tmp_path: Path, fortran: bool) -> None:
    path, shape = tmp_path / "u.npy", (512, 16, 256, 256)
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": fortran, "shape": shape[::-1] if fortran else shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 4 * int(np.prod(shape)))
    check(described(path, "y x t b" if fortran else "b t x y"), 10, path.stat().st_size)


@pytest.mark.slow
def test_compressed_npz_arrays(tmp_path: Path) -> None:
    path, shape = tmp_path / "u.npz", (512, 16, 256, 256)
    packed = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with packed, packed.open("u.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for _ in range(shape[0]):
            member.write(bytes(4 * int(np.prod(shape[1:]))))
    check(described(path, "b t x y", key="u"), 10, 4 * int(np.prod(shape)))


def test_one_array_of_the_references_format(tmp_path: Path) -> None:
    path, shape = tmp_path / "ns2d_1e-5_train.hdf5", (512, 256, 256, 16)
    with h5py.File(path, "w") as root:
        size = compressed(root, "data", shape, (1, *shape[1:]))
    check(ConvertConfig(layout="dpot", path=str(path)), 10, size)
