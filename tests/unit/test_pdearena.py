"""PDEArena's files: smoke, Kuramoto-Sivashinsky, Maxwell, and the sphere in NetCDF and Zarr."""

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from scipy.io import netcdf_file

from data_pipeline.base.errors import ConfigError, DataError
from data_pipeline.config import ConvertConfig
from data_pipeline.sources.files import FileSource
from data_pipeline.sources.pdearena import LAYOUT
from tests.layout_files import everything, random, smoke, source, truncate, write_hdf5

SPHERE = ("velocity_x", "velocity_y", "divergence", "vorticity", "pressure")
LATITUDES = np.array([80.0, 40.0, 10.0, -10.0, -40.0, -80.0])


@pytest.fixture
def tiny(shared: Path) -> Path:
    folder = shared / "data" / "layouts" / "pdearena"
    if not folder.is_dir():
        pytest.skip("no tiny files")
    return folder


def test_smoke(tiny: Path) -> None:
    path = tiny / "NavierStokes2D_train_1_0.50000_3.h5"
    opened = source(LAYOUT, path)
    assert opened.splits == {"train": 3, "valid": 0, "test": 0}
    assert opened.info.channels == ("tracer", "velocity_x", "velocity_y")
    assert (opened.info.extent, opened.info.boundaries) == (((0.0, 32.0), (0.0, 32.0)), ("wall", "wall"))
    with h5py.File(path) as root:
        for index, one in enumerate(everything(opened)):
            assert one.fields.dtype == np.float32
            for channel, key in enumerate(("u", "vx", "vy")):
                np.testing.assert_array_equal(one.fields[..., channel], root[f"train/{key}"][index].astype("f4"))
            np.testing.assert_array_equal(one.times, root["train/t"][index])
            assert one.parameters == {"buoyancy": root["train/buo_y"][index]}


def test_files_of_all_splits_and_buoyancies_are_one_dataset(tmp_path: Path) -> None:
    for split, buoyancy in (("train", 0.2), ("train", 0.5), ("valid", 0.3), ("test", 0.4)):
        smoke(tmp_path / f"NavierStokes2D_{split}_7_{buoyancy:.5f}_3.h5", split, buoyancy)
    opened = source(LAYOUT, tmp_path)
    assert opened.splits == {"train": 6, "valid": 3, "test": 3}
    assert [one.parameters["buoyancy"] for one in opened.read("train", 2, 4)] == [0.2, 0.5]
    assert next(opened.read("test", 0, 1)).parameters == {"buoyancy": 0.4}


def test_kuramoto_sivashinsky(tiny: Path) -> None:
    path = tiny / "KS_train_fixed_viscosity.h5"
    opened = source(LAYOUT, path)
    assert (opened.info.channels, opened.info.dt, opened.info.extent) == (("u",), 0.2, ((0.0, 4.0),))
    one = next(everything(opened))
    with h5py.File(path) as root:
        np.testing.assert_array_equal(one.fields[..., 0], root["train/pde_5-16"][0].astype("f4"))
    assert one.parameters == {"dt": 0.2, "dx": 0.25, "viscosity": 1.0}


def test_time_steps_that_differ_need_a_nominal_one(tmp_path: Path) -> None:
    arrays = {"pde_5-16": random(3, 5, 16), "dt": np.array([0.18, 0.2, 0.22]), "dx": np.array([0.24, 0.25, 0.26])}
    path = write_hdf5(tmp_path / "KS_valid.h5", {f"valid/{key}": values for key, values in arrays.items()})
    with pytest.raises(DataError, match=r"steps differ[\s\S]*valid/dt[\s\S]*0\.18 \.\. 0\.22[\s\S]*convert\.dt"):
        source(LAYOUT, path)
    opened = source(LAYOUT, path, dt=0.2)
    assert opened.info.extent == ((0.0, 4.16),)
    assert [one.parameters for one in everything(opened)] == [
        {"dt": dt, "dx": dx} for dt, dx in zip(arrays["dt"], arrays["dx"], strict=True)
    ]


def test_maxwell_needs_a_time_step(tiny: Path) -> None:
    path = tiny / "Maxwell3D_train_1.h5"
    with pytest.raises(ConfigError, match=r"time step[\s\S]*convert\.dt"):
        source(LAYOUT, path)
    opened = source(LAYOUT, path, dt=1.0)
    assert opened.info.space == (8, 8, 8)
    assert opened.info.channels[::3] == ("electric_displacement_x", "magnetic_field_x")
    one = next(everything(opened))
    with h5py.File(path) as root:
        np.testing.assert_array_equal(one.fields[..., :3], root["train/d_field"][0])
        np.testing.assert_array_equal(one.fields[..., 3:], root["train/h_field"][0])


def sphere(seed: int, trajectories: int = 0) -> dict[str, Any]:
    """Arrays of one run, or of some together: (time, lev, lat, lon), pressure without levels."""
    lead = (trajectories, 4) if trajectories else (4,)
    arrays = {key: random(*lead, 1, 6, 8, seed=seed + n) for n, key in enumerate(("u", "v", "div", "vor"))}
    return arrays | {"pres": random(*lead, 6, 8, seed=seed + 4)}


def coordinates() -> dict[str, Any]:
    return {"time": np.arange(4) * 6.0, "lev": np.ones(1), "lat": LATITUDES, "lon": np.arange(8) * 45.0}


def classic(path: Path, arrays: dict[str, Any]) -> None:
    """A NetCDF 3 file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with netcdf_file(path, "w") as file:
        for name, size in (("time", 4), ("lev", 1), ("lat", 6), ("lon", 8)):
            file.createDimension(name, size)
        for key, values in arrays.items():
            shape = ("time", "lev", "lat", "lon") if values.ndim == 4 else ("time", "lat", "lon")
            file.createVariable(key, values.dtype, (key,) if values.ndim == 1 else shape)[:] = values


def stacked(arrays: dict[str, Any], index: int | None = None) -> Any:
    own = [values if index is None else values[index] for values in arrays.values()]
    return np.stack([values[:, 0] if values.ndim == 4 else values for values in own], axis=-1)


def test_runs_on_the_sphere(tmp_path: Path) -> None:
    for split, seed, run in (("train", 1, 2), ("train", 1, 10), ("valid", 2, 1), ("test", 3, 1)):
        path = tmp_path / split / f"seed={seed}" / f"run{run:04}" / "output.nc"
        write = classic if run == 10 else write_hdf5
        write(path, sphere(10 * run + seed) | coordinates())
    (tmp_path / "normstats.pt").write_bytes(b"ignored")
    opened = source(LAYOUT, tmp_path)
    assert opened.splits == {"train": 2, "valid": 1, "test": 1}
    assert (opened.info.channels, opened.info.axes) == (SPHERE, ("lat", "lon"))
    assert opened.info.boundaries == ("open", "periodic")
    assert opened.info.coordinates == (tuple(LATITUDES), tuple(np.arange(8) * 45.0))
    assert opened.info.dt == 6.0
    for one, seed in zip(opened.read("train", 0, 2), (21, 101), strict=True):
        np.testing.assert_array_equal(one.fields, stacked(sphere(seed)))


def test_zarr_groups_come_before_runs(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 2)):
        group = zarr.open_group(tmp_path / f"{split}.zarr", mode="w")
        for key, values in (sphere(count, count) | coordinates()).items():
            chunks = (1, *values.shape[1:])
            group.create_array(key, data=values, chunks=chunks, config={"write_empty_chunks": True})
    write_hdf5(tmp_path / "train" / "seed=1" / "run0001" / "output.nc", sphere(0) | coordinates())
    write_hdf5(tmp_path / "valid" / "seed=1" / "run0001" / "output.nc", sphere(0) | coordinates())
    opened = source(LAYOUT, tmp_path)
    assert opened.splits == {"train": 3, "valid": 1, "test": 2}
    np.testing.assert_array_equal(next(opened.read("train", 2, 3)).fields, stacked(sphere(3, 3), 2))
    before = opened.fingerprint()
    os.utime(tmp_path / "test.zarr" / "u" / "zarr.json", ns=(0, 0))  # as when it is written anew
    assert source(LAYOUT, tmp_path).fingerprint() != before


def test_a_sphere_without_times_needs_a_time_step(tmp_path: Path) -> None:
    path = tmp_path / "train" / "seed=1" / "run0001" / "output.nc"
    write_hdf5(path, sphere(0))
    with pytest.raises(ConfigError, match=r"convert\.dt"):
        source(LAYOUT, tmp_path)
    opened = source(LAYOUT, tmp_path, dt=6.0)
    assert next(everything(opened)).times.tolist() == [0, 6, 12, 18]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vy": None}, r"missing key[\s\S]*train/vy[\s\S]*did you mean"),
        ({"vx": random(3, 5, 16)}, r"wrong rank[\s\S]*train/vx[\s\S]*\(3, 5, 16\)"),
        ({"vx": random(3, 5, 12, 16)}, r"does not fit[\s\S]*train/vx[\s\S]*x 16, y 12"),
        ({"t": np.tile(np.array([0.0, 1, 2, 2, 3]), (3, 1))}, r"time is not increasing[\s\S]*train/t"),
        ({"t": np.tile(np.arange(5.0), (2, 1))}, r"wrong shape of time[\s\S]*\(2, 5\)"),
        ({"buo_y": np.ones(2)}, r"wrong shape[\s\S]*train/buo_y[\s\S]*\(2,\)"),
        ({"x": np.linspace(0, 1, 48).reshape(3, 16)}, r"grid differs between trajectories[\s\S]*train/x"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = smoke(tmp_path / "NavierStokes2D_train_1_0.50000.h5", **changes)
    with pytest.raises(DataError, match=words):
        source(LAYOUT, path)


def test_a_file_in_the_wrong_split_is_named(tmp_path: Path) -> None:
    path = smoke(tmp_path / "NavierStokes2D_test_1_0.50000.h5", "train")
    with pytest.raises(DataError, match=r"cannot tell the split[\s\S]*groups \['train'\][\s\S]*one group: test"):
        source(LAYOUT, path)


def test_damage_and_nan_are_named(tmp_path: Path) -> None:
    values = random(3, 5, 16, 12)
    values[1, 0, 0, 0] = np.nan
    path = smoke(tmp_path / "NavierStokes2D_train_1_0.50000.h5", vy=values)
    with pytest.raises(DataError, match=r"NaN or Inf[\s\S]*velocity_y[\s\S]*trajectory 1"):
        list(everything(source(LAYOUT, path)))
    truncate(path)
    assert LAYOUT.files(tmp_path) == [path]
    with pytest.raises(DataError, match="not a readable HDF5 file"):
        FileSource("made", ConvertConfig(path=str(tmp_path)), LAYOUT)
