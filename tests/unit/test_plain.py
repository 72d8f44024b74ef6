"""Plain arrays: every container gives the same trajectories, and a wrong description is named."""

import contextlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import netCDF4
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import netcdf_file, savemat

from data_pipeline.base.errors import ConfigError, DataError
from data_pipeline.config import ConvertConfig
from data_pipeline.sources.arrays import Array, open_arrays
from data_pipeline.sources.axes import parse_axes, split
from data_pipeline.sources.files import FileSource
from data_pipeline.sources.plain import LAYOUT

Arrays = dict[str, np.ndarray]
U = np.random.default_rng(0).normal(size=(3, 5, 6, 4)).astype(np.float32)
"""(b, t, x, y)"""
ARRAYS: Arrays = {
    "u": U,
    "k": np.random.default_rng(1).normal(size=(3, 6, 4)),
    "domain": np.arange(24).reshape(6, 4) % 3,
    "nu": np.array([0.1, 0.2, 0.3]),
    "t": 0.5 * np.arange(5) + 2,
    "x": np.linspace(0, 1, 6),
    "y": np.linspace(-1, 1, 4),
}
PLAIN: dict[str, Any] = {
    "fields": {"height": {"key": "u", "axes": "b t x y"}},
    "static": {"depth": {"key": "k", "axes": "b x y"}},
    "mask": {"key": "domain", "axes": "x y"},
    "parameters": {"viscosity": {"key": "nu", "axes": "b"}},
    "time": {"key": "t", "axes": "t"},
    "coordinates": {"x": {"key": "x", "axes": "x"}, "y": {"key": "y", "axes": "y"}},
}


def source(path: Path, plain: dict[str, Any], **options: Any) -> FileSource:
    content = {"layout": "plain", "path": str(path), "plain": plain, "splits": {"test": 0}, "boundaries": ["wall"] * 2}
    return FileSource("one", ConvertConfig.model_validate(content | options), LAYOUT)


def save_npz(path: Path, arrays: Arrays) -> None:
    np.savez(path, **arrays)


def save_packed_npz(path: Path, arrays: Arrays) -> None:
    np.savez_compressed(path, **{key: np.asfortranarray(values) for key, values in arrays.items()})


def save_hdf5(path: Path, arrays: Arrays) -> None:
    with h5py.File(path, "w") as file:
        for key, values in arrays.items():
            file[key] = values


def save_mat73(path: Path, arrays: Arrays) -> None:
    with h5py.File(path, "w", userblock_size=512) as file:
        for key, values in arrays.items():
            file[key] = values.T


def save_zarr(path: Path, arrays: Arrays) -> None:
    group = zarr.open_group(path, mode="w")
    for key, values in arrays.items():
        group.create_array(key, data=values)


def save_netcdf4(path: Path, arrays: Arrays) -> None:
    with netCDF4.Dataset(path, "w") as file:
        _save_variables(file, arrays)


def save_netcdf3(path: Path, arrays: Arrays) -> None:
    with netcdf_file(path, "w") as file:
        _save_variables(file, {key: v.astype(v.dtype.str.replace("i8", "i4")) for key, v in arrays.items()})


def _save_variables(file: Any, arrays: Arrays) -> None:
    for key, values in arrays.items():
        names = [f"{key}{n}" for n in range(values.ndim)]
        for name, size in zip(names, values.shape, strict=True):
            file.createDimension(name, size)
        file.createVariable(key, values.dtype, names)[:] = values


CONTAINERS: dict[str, Callable[[Path, Arrays], None]] = {
    "stored.npz": save_npz,
    "packed.npz": save_packed_npz,
    "new.mat": save_mat73,
    "one.h5": save_hdf5,
    "one.zarr": save_zarr,
    "four.nc": save_netcdf4,
    "three.nc": save_netcdf3,
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_gives_the_same(tmp_path: Path, name: str) -> None:
    CONTAINERS[name](tmp_path / name, ARRAYS)
    found = source(tmp_path / name, PLAIN)
    assert (found.info.channels, found.info.static_channels, found.info.masked) == (("height",), ("depth",), True)
    assert (found.info.axes, found.info.space, found.info.dt) == (("x", "y"), (6, 4), 0.5)
    assert found.info.extent == ((0.0, 1.0), (-1.0, 1.0))
    for number, one in enumerate(found.read("train", 0, 3)):
        np.testing.assert_array_equal(one.fields[..., 0], U[number])
        np.testing.assert_array_equal(one.times, ARRAYS["t"])
        assert one.static is not None
        np.testing.assert_array_equal(one.static[..., 0], ARRAYS["k"][number].astype(np.float32))
        np.testing.assert_array_equal(one.mask, ARRAYS["domain"] != 0)
        assert one.parameters == {"viscosity": ARRAYS["nu"][number]}


def test_old_matlab_files_give_the_same(tmp_path: Path) -> None:
    savemat(tmp_path / "old.mat", ARRAYS)  # in which vectors are matrices of one row
    rows = {"parameters": {"viscosity": {"key": "nu", "axes": "1 b"}}, "time": {"key": "t", "axes": "1 t"}}
    places = {axis: {"key": axis, "axes": f"1 {axis}"} for axis in "xy"}
    (one,) = source(tmp_path / "old.mat", PLAIN | rows | {"coordinates": places}).read("train", 1, 2)
    np.testing.assert_array_equal(one.fields[..., 0], U[1])
    assert one.parameters == {"viscosity": 0.2}


def test_arrays_in_files_of_their_own(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.stack([U, 2 * U], axis=-1))
    np.savez(tmp_path / "rest.npz", k=ARRAYS["k"][0])
    plain = {
        "fields": {"velocity": {"file": "v.npy", "axes": "b t x y c", "channels": ["velocity_x", "velocity_y"]}},
        "static": {"depth": {"file": "rest.npz", "key": "k", "axes": "x y"}},
    }
    found = source(tmp_path, plain, dt=0.1, extent=[[0, 1], [0, 1]])
    (one,) = found.read("train", 2, 3)
    np.testing.assert_array_equal(one.fields, np.stack([U[2], 2 * U[2]], axis=-1))
    assert [name for name, *_ in found.fingerprint()] == ["rest.npz", "v.npy"]
    plain["static"] = {"depth": {"key": "k", "axes": "x y"}}
    with pytest.raises(ConfigError, match="a file for each array"):
        source(tmp_path, plain, dt=0.1, extent=[[0, 1], [0, 1]])


def test_a_folder_of_files_one_after_another(tmp_path: Path) -> None:
    for number in (10, 9):
        np.save(tmp_path / f"run_{number}.npy", number * U[0])
    plain = {"fields": {"u": {"axes": "t x y"}}}
    found = source(tmp_path, plain, dt=1.0, extent=[[0, 1], [0, 1]])
    assert [one.fields[0, 0, 0, 0] for one in found.read("train", 0, 2)] == [9 * U[0, 0, 0, 0], 10 * U[0, 0, 0, 0]]


def test_a_steady_problem_has_no_time(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", u=U[:, 0], k=ARRAYS["k"])
    plain = {"fields": {"u": {"key": "u", "axes": "b x y"}}, "static": {"k": {"key": "k", "axes": "b x y"}}}
    found = source(tmp_path / "a.npz", plain, extent=[[0, 1], [0, 1]])
    assert (found.info.frames, found.info.dt) == (1, 0.0)
    (one,) = found.read("train", 2, 3)
    np.testing.assert_array_equal(one.fields[0, ..., 0], U[2, 0])


@settings(max_examples=40, deadline=None)
@given(st.permutations("btxyc"), st.sets(st.integers(0, 3)), st.data())
def test_any_order_and_any_brackets(
    tmp_path_factory: pytest.TempPathFactory, order: list[str], cuts: set[int], data: st.DataObject
) -> None:
    values = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 2)).astype(np.float32)  # b t x y c
    sizes = dict(zip("btxyc", values.shape, strict=True))
    edges = [0, *sorted(cut + 1 for cut in cuts), 5]
    groups = [order[low:up] for low, up in pairwise(edges)]
    stored = values.transpose(["btxyc".index(letter) for letter in order])
    stored = stored.reshape([int(np.prod([sizes[letter] for letter in group])) for group in groups])
    fortran = data.draw(st.booleans())
    path = tmp_path_factory.mktemp("any") / "u.npy"
    np.save(path, np.asfortranarray(stored) if fortran else stored)
    axes = " ".join(f"({' '.join(group)})" if len(group) > 1 else group[0] for group in groups)
    plain = {"fields": {"u": {"axes": axes, "channels": ["p", "q"]}}, "sizes": sizes}
    config = {"layout": "plain", "path": str(path), "plain": plain, "boundaries": ["wall"] * 2}
    described = ConvertConfig.model_validate(config | {"extent": [[0, 1], [0, 1]], "dt": 1.0})
    frames = slice(*sorted(data.draw(st.tuples(st.integers(0, 2), st.integers(1, 3)))), data.draw(st.integers(1, 2)))
    with LAYOUT.open(LAYOUT.header(path, described), described) as read:
        np.testing.assert_array_equal(read(1, frames).fields, values[1, frames])


@given(st.text("btxyz c1()", max_size=8))
def test_axes_are_read_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):
        axes = parse_axes(text, "axes")
        assert sorted("".join(axes)) == sorted(text.replace(" ", "").replace("(", "").replace(")", ""))


@pytest.mark.parametrize("axes", ["b q", "b t t", "(x y", "x y)", "(x 1) t"])
def test_wrong_axes_are_refused(axes: str) -> None:
    with pytest.raises(ConfigError, match=r"not the axes of an array(.|\n)*key: plain"):
        parse_axes(axes, "plain")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fields": {"u": {"key": "v", "axes": "b t x y"}}}, r"missing key(.|\n)*key: v(.|\n)*found: \['u', 'k'"),
        ({"fields": {"u": {"key": "u", "axes": "b t x"}}}, r"wrong rank(.|\n)*key: u(.|\n)*\(3, 5, 6, 4\)"),
        ({"fields": {"u": {"key": "u", "axes": "b t (x z) y"}}, "sizes": {"x": 4}}, r"cannot be split(.|\n)*length 6"),
        ({"fields": {"u": {"key": "u", "axes": "b t (x z) y"}}}, r"sizes(.|\n)*all but one of x, z"),
        ({"static": {"k": {"key": "u", "axes": "b t x y"}}}, r"no t(.|\n)*static"),
        ({"static": {"k": {"key": "k", "axes": "t x y"}}}, r"key: k(.|\n)*\(3, 6, 4\)(.|\n)*time 5"),
        (
            {"parameters": {"nu": {"key": "t", "axes": "b"}}},
            r"wrong shape of a parameter(.|\n)*key: t(.|\n)*3 al",
        ),
        ({"time": {"key": "nu", "axes": "t"}}, r"wrong shape of time(.|\n)*5 times"),
        ({"time": {"key": "x", "axes": "t 1"}}, "wrong rank"),
        ({"coordinates": {"x": {"key": "x", "axes": "x"}}}, r"coordinates of some axes only(.|\n)*expected: x, y"),
        ({"coordinates": {}}, r"convert\.extent"),
        ({"time": None}, r"convert\.dt"),
        ({"fields": {"u": {"key": "u", "axes": "b t x y", "channels": ["a"]}}}, "an axis c and its channels"),
        ({"fields": {"u": {"key": "nu", "axes": "b"}}, "static": {}, "mask": None}, "fields without space"),
    ],
)
def test_a_wrong_description_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    save_npz(tmp_path / "a.npz", ARRAYS)
    with pytest.raises((ConfigError, DataError), match=message):
        source(tmp_path / "a.npz", PLAIN | change)


def test_boundaries_must_be_said(tmp_path: Path) -> None:
    save_npz(tmp_path / "a.npz", ARRAYS)
    with pytest.raises(ConfigError, match=r"convert\.boundaries(.|\n)*each of x, y"):
        source(tmp_path / "a.npz", PLAIN, boundaries=None)


@pytest.mark.parametrize("times", [[0.0, 1.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0, 5.0]])
def test_times_must_increase_in_equal_steps(tmp_path: Path, times: list[float]) -> None:
    save_npz(tmp_path / "a.npz", ARRAYS | {"t": np.array(times)})
    with pytest.raises(DataError, match=r"time is not (increasing|uniform)(.|\n)*key: t"):
        source(tmp_path / "a.npz", PLAIN)


@pytest.mark.parametrize("name", CONTAINERS)
def test_truncated_files_are_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    CONTAINERS[name](path, ARRAYS)
    broken = path / "zarr.json" if path.is_dir() else path
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    with pytest.raises(DataError, match=str(path)):
        list(source(path, PLAIN).read("train", 0, 3))


@pytest.mark.parametrize("name", ["u.npy", "u.npz"])
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    values = np.array([{"a": 1}], dtype=object)
    (np.save if name == "u.npy" else np.savez)(tmp_path / name, values)  # type: ignore[operator]
    key = {} if name == "u.npy" else {"key": "arr_0"}
    plain = {"fields": {"u": {"axes": "x", **key}}}
    with pytest.raises(DataError, match=r"pickled objects(.|\n)*"):
        source(tmp_path / name, plain, boundaries=["wall"], extent=[[0, 1]], dt=1.0)


def test_complex_numbers_are_refused_but_for_rounding(tmp_path: Path) -> None:
    options: dict[str, Any] = {"boundaries": ["wall"], "extent": [[0, 1]], "dt": 1.0}
    plain = {"fields": {"u": {"axes": "b t x"}}}
    np.save(tmp_path / "u.npy", U[..., 0] * (1 + 1e-9j))
    (one,) = source(tmp_path / "u.npy", plain, **options).read("train", 0, 1)
    np.testing.assert_array_equal(one.fields[..., 0], U[0, ..., 0])
    np.save(tmp_path / "u.npy", U[..., 0] * (1 + 1e-3j))
    with pytest.raises(DataError, match=r"complex numbers(.|\n)*u\.npy"):
        list(source(tmp_path / "u.npy", plain, **options).read("train", 0, 1))


def test_packed_netcdf_values_are_scaled_and_gaps_are_nan(tmp_path: Path) -> None:
    with netCDF4.Dataset(tmp_path / "a.nc", "w") as file:
        file.createDimension("x", 3)
        variable = file.createVariable("u", "i2", ("x",), fill_value=-1)
        variable.scale_factor, variable.add_offset = 0.5, 10.0
        variable[:] = np.ma.masked_array([10.5, 11.0, 0.0], [False, False, True])
    with open_arrays(tmp_path / "a.nc") as arrays:
        np.testing.assert_array_equal(arrays.array("u").whole(), [10.5, 11.0, np.nan])


@pytest.mark.parametrize("kind", ["zarr2", "zarr3", "sharded"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"")])
def test_a_chunk_that_zarr_would_fill_in_is_named(tmp_path: Path, kind: str, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "a.zarr"
    group = zarr.create_group(path, zarr_format=2 if kind == "zarr2" else 3)
    group.create_array("u", data=U, chunks=(1, 1, 6, 4), shards=(1, 5, 6, 4) if kind == "sharded" else None)
    names = {"zarr2": "u/1.2.0.0", "zarr3": "u/c/1/2/0/0", "sharded": "u/c/1/0/0/0"}
    plain = {"fields": {"u": {"key": "u", "axes": "b t x y"}}}
    damage(path / names[kind])
    found = source(path, plain, extent=[[0, 1]] * 2, dt=1.0)
    np.testing.assert_array_equal(next(found.read("train", 0, 1)).fields[..., 0], U[0])
    np.testing.assert_array_equal(next(found.read("train", 2, 3)).fields[..., 0], U[2])
    with pytest.raises(DataError, match=rf"a chunk is missing[\s\S]*{names[kind]}[\s\S]*key: u"):
        list(found.read("train", 1, 2))


def test_chunks_that_were_left_out_for_their_value_can_be_written(tmp_path: Path) -> None:
    plain = {"fields": {"u": {"axes": "b t x y"}}}
    options = {"extent": [[0, 1]] * 2, "dt": 1.0}
    zarr.create_array(tmp_path / "sparse.zarr", data=np.zeros_like(U), chunks=(1, 1, 6, 4))
    with pytest.raises(DataError, match=r"array\.write_empty_chunks"):
        list(source(tmp_path / "sparse.zarr", plain, **options).read("train", 0, 1))
    with zarr.config.set({"array.write_empty_chunks": True}):
        zarr.create_array(tmp_path / "full.zarr", data=np.zeros_like(U), chunks=(1, 1, 6, 4))
    assert not next(source(tmp_path / "full.zarr", plain, **options).read("train", 0, 1)).fields.any()


@pytest.mark.parametrize("name", ["a.h5", "a.mat", "a.nc"])
@pytest.mark.parametrize("chunks", [None, (1, 5, 6, 4)])
def test_parts_that_were_never_written_are_not_zeros(
    tmp_path: Path, name: str, chunks: tuple[int, ...] | None
) -> None:
    with h5py.File(tmp_path / name, "w") as file:
        values = file.create_dataset("u", U.shape, "f4", chunks=chunks)
        if chunks:
            values[:2] = 1
    plain = {"fields": {"u": {"key": "u", "axes": "y x t b" if name == "a.mat" else "b t x y"}}}
    with pytest.raises(DataError, match=rf"never written[\s\S]*{name}[\s\S]*key: u"):
        source(tmp_path / name, plain, extent=[[0, 1]] * 2, dt=1.0)


def test_times_of_each_trajectory_may_come_first_or_last(tmp_path: Path) -> None:
    own = ARRAYS["t"] + np.arange(3)[:, None]  # (b, t)
    for name, times, axes in (("a", own, "b t"), ("b", own.T, "t b")):
        save_npz(tmp_path / f"{name}.npz", ARRAYS | {"t": times})
        found = source(tmp_path / f"{name}.npz", PLAIN | {"time": {"key": "t", "axes": axes}})
        np.testing.assert_array_equal([one.times for one in found.read("train", 0, 3)], own)


def test_an_axis_in_brackets_is_split_fastest_last() -> None:
    stored = Array(Path("u.npy"), None, (6, 2), lambda index: np.arange(12).reshape(6, 2)[index])
    opened = split(stored, parse_axes("(x y) t", "axes"), {"y": 3})
    assert opened.shape == (2, 3, 2)
    np.testing.assert_array_equal(opened.read((1, slice(None), slice(0, 1))), [[6], [8], [10]])


def test_gaps_are_reported(tmp_path: Path) -> None:
    values = U.copy()
    values[2, 4, 1, 1] = np.nan
    save_npz(tmp_path / "a.npz", ARRAYS | {"u": values})
    found = source(tmp_path / "a.npz", PLAIN)
    assert len(list(found.read("train", 0, 2))) == 2
    with pytest.raises(DataError, match=r"NaN or Inf(.|\n)*height(.|\n)*trajectory 2"):
        list(found.read("train", 2, 3))
