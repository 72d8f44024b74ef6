"""The Well's layout: every variant is read as it was written, and every fault is named."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.base.errors import DataError
from data_pipeline.config import ConvertConfig
from data_pipeline.inspect import validate
from data_pipeline.sources.files import FileSource
from data_pipeline.sources.the_well import LAYOUT
from data_pipeline.trajectory import Trajectory
from tests.well_files import WellOptions, Written, write_dataset, write_well


def open_source(path: Path, **settings: Any) -> FileSource:
    return FileSource("made", ConvertConfig(layout="the_well", path=str(path), **settings), LAYOUT)


def assert_equal(trajectory: Trajectory, written: Written, number: int) -> None:
    fields = np.stack([values[number] for values in written.channels.values()], -1)
    np.testing.assert_array_equal(trajectory.fields, fields.astype(np.float32))
    assert trajectory.fields.dtype == np.float32
    if written.static:
        assert trajectory.static is not None
        static = np.stack([values[number] for values in written.static.values()], -1)
        np.testing.assert_array_equal(trajectory.static, static.astype(np.float32))
    else:
        assert trajectory.static is None
    np.testing.assert_allclose(trajectory.times, written.times[number], rtol=1e-6)
    assert trajectory.times.dtype == np.float64
    assert dict(trajectory.parameters) == pytest.approx({k: v[number] for k, v in written.parameters.items()})


def check_dataset(folder: Path, written: dict[str, Written]) -> FileSource:
    source = open_source(folder)
    first = next(iter(written.values()))
    assert source.info.channels == tuple(first.channels)
    assert source.info.static_channels == tuple(first.static)
    assert source.info.parameters == tuple(first.parameters)
    for split, content in written.items():
        assert source.splits[split] == len(content.times)
        for number, trajectory in enumerate(source.read(split, 0, len(content.times))):
            assert_equal(trajectory, content, number)
    return source


VARIANTS = {
    "plain": {},
    "1d": {"space": (12,), "fields": (("u",), ("velocity",), ("stress",))},
    "3d": {"space": (4, 3, 5), "fields": (("p",), ("velocity",), ("stress",))},
    "float16": {"dtype": "f2"},
    "float64": {"dtype": "f8"},
    "big-endian": {"dtype": ">f4"},
    "tensors": {"fields": ((), (), ("stress", "strain"))},
    "flat tensors": {"fields": ((), (), ("stress",)), "flatten_tensors": True},
    "static": {"static": (("speed",), ("gravity",), ())},
    "shared static": {"static": (("speed",), ("gravity",), ()), "shared_static": True},
    "flat axis left out": {"flat": ("density", "velocity", "speed"), "static": (("speed",), (), ())},
    "flat axis of size one": {"flat": ("density", "velocity"), "keep_flat_axis": True},
    "times differ": {"sample_varying_time": True},
    "grids differ": {"sample_varying_grid": True},
    "scalars": {"sample_scalars": ("forcing",), "time_scalars": ("energy",), "scalar_axis": True},
    "chunks": {"chunks": True},
    "plain dims": {"plain_dims": True, "boundaries": ("Wall", "open", "PERIODIC")},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_reads_what_was_written(tmp_path: Path, variant: dict[str, Any]) -> None:
    check_dataset(tmp_path, write_dataset(tmp_path, **variant))


@st.composite
def options(draw: st.DrawFn) -> WellOptions:
    names = st.sampled_from(["a", "b", "c"])
    groups = [tuple(draw(st.lists(names, unique=True, max_size=2))) for _ in range(3)]
    fields = tuple(tuple(f"{name}{order}" for name in group) for order, group in enumerate(groups))
    fields = fields if any(fields) else (("a0",), (), ())
    flag = st.booleans()
    return WellOptions(
        trajectories=draw(st.integers(1, 3)),
        frames=draw(st.integers(2, 4)),
        space=tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))),
        dt=draw(st.sampled_from([0.1, 1.0, 3.5])),
        dtype=draw(st.sampled_from(["f2", "f4", "f8"])),
        fields=fields,
        static=(("s",) if draw(flag) else (), ("w",) if draw(flag) else (), ()),
        shared_static=draw(flag),
        flat=tuple(draw(st.lists(st.sampled_from(["a0", "b1", "s"]), unique=True))),
        keep_flat_axis=draw(flag),
        flatten_tensors=draw(flag),
        boundaries=tuple(draw(st.sampled_from(["PERIODIC", "wall", "Open"])) for _ in range(3)),
        plain_dims=draw(flag),
        sample_varying_time=draw(flag),
        sample_varying_grid=draw(flag),
        sample_scalars=("forcing",) if draw(flag) else (),
        time_scalars=("energy",) if draw(flag) else (),
        scalar_axis=draw(flag),
        chunks=draw(flag),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(o=options())
def test_reads_any_mixture_of_variants(tmp_path: Path, o: WellOptions) -> None:
    written = write_well(tmp_path / "train" / "one.h5", o)
    source = check_dataset(tmp_path, {"train": written})
    assert source.info.dt == pytest.approx(o.dt, rel=1e-6)
    assert source.info.boundaries == tuple(kind.lower() for kind in o.boundaries[: len(o.space)])
    assert source.splits == {"train": o.trajectories, "valid": 0, "test": 0}


def test_info_has_the_channels_in_the_wells_order(tmp_path: Path) -> None:
    fields = (("density", "pressure"), ("velocity",), ("stress",))
    write_dataset(tmp_path, fields=fields, space=(8, 6), boundaries=("WALL", "PERIODIC"))
    info = open_source(tmp_path, equation="Navier-Stokes", source="made here", licence="CC0").info
    vectors, tensors = ("velocity_x", "velocity_y"), ("stress_xx", "stress_xy", "stress_yx", "stress_yy")
    assert info.channels == ("density", "pressure", *vectors, *tensors)
    assert (info.space, info.axes, info.frames, info.dt) == ((8, 6), ("x", "y"), 5, 0.25)
    assert info.extent == ((0.0, 0.875), (0.0, 1.0)), "a periodic domain is one spacing longer than its grid"
    assert (info.equation, info.source, info.licence) == ("Navier-Stokes", "made here", "CC0")


def test_folder_may_be_the_dataset_its_data_folder_or_hold_the_splits(tmp_path: Path) -> None:
    written = write_dataset(tmp_path / "dataset")
    check_dataset(tmp_path / "dataset", written)
    check_dataset(tmp_path / "dataset" / "data", written)
    (tmp_path / "dataset" / "data").rename(tmp_path / "elsewhere")
    check_dataset(tmp_path / "elsewhere", written)


def test_files_of_a_split_follow_one_another_in_sorted_order(tmp_path: Path) -> None:
    b = write_well(tmp_path / "train" / "b.h5", trajectories=2, seed=2, scalars={"viscosity": 0.2})
    a = write_well(tmp_path / "train" / "a.hdf5", trajectories=3, seed=1, scalars={"viscosity": 0.1})
    (tmp_path / "train" / "notes.txt").write_text("not data")
    (tmp_path / "train" / "._a.hdf5").write_text("not data")
    source = open_source(tmp_path)
    assert source.splits["train"] == 5
    got = list(source.read("train", 1, 4))
    for trajectory, content, number in zip(got, (a, a, b), (1, 2, 0), strict=True):
        assert_equal(trajectory, content, number)
    assert [(t.provenance["file"], t.provenance["index"]) for t in got] == [
        ("train/a.hdf5", 1), ("train/a.hdf5", 2), ("train/b.h5", 0)
    ]  # fmt: skip
    assert [t.parameters["viscosity"] for t in got] == [0.1, 0.1, 0.2]


def test_limit_takes_the_first_trajectories(tmp_path: Path) -> None:
    written = write_dataset(tmp_path, {"train": 3, "test": 2})
    source = open_source(tmp_path, limit={"train": 2, "valid": 4, "test": 9})
    assert source.splits == {"train": 2, "valid": 0, "test": 2}
    assert_equal(next(source.read("train", 1, 2)), written["train"], 1)
    with pytest.raises(DataError, match=r"0 \.\. 2"):
        source.read("train", 2, 3)


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (0, 4), (2, 1)])
def test_a_range_out_of_bounds_is_refused(tmp_path: Path, start: int, stop: int) -> None:
    write_dataset(tmp_path)
    with pytest.raises(DataError, match=r"train[\s\S]*0 \.\. 3"):
        open_source(tmp_path).read("train", start, stop)


def test_an_unknown_split_is_refused_with_its_nearest_neighbour(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    with pytest.raises(DataError, match="did you mean 'valid'"):
        open_source(tmp_path).read("val", 0, 1)


def test_reads_one_trajectory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_well(tmp_path / "train" / "one.h5", trajectories=6)
    source, shapes = open_source(tmp_path), []
    original = h5py.Dataset.__getitem__

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        shapes.append(np.shape(result))
        return result

    monkeypatch.setattr(h5py.Dataset, "__getitem__", spy)
    stream = source.read("train", 0, 6)
    assert shapes == []
    next(stream)
    assert shapes == [(5, 8, 6), (5, 8, 6, 2)], "one trajectory of each field, and nothing else"


def test_fingerprint_follows_the_files(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    source = open_source(tmp_path)
    before = source.fingerprint()
    assert json.loads(json.dumps(before)) == before
    assert [name for name, _, _ in before] == ["data/train/train.hdf5", "data/valid/valid.hdf5", "data/test/test.hdf5"]
    assert pickle.loads(pickle.dumps(source)).fingerprint() == before
    os.utime(tmp_path / "data" / "test" / "test.hdf5", ns=(1, 1))
    assert open_source(tmp_path).fingerprint() != before


def test_boundaries_of_one_axis_are_weighed(tmp_path: Path) -> None:
    file = tmp_path / "train" / "one.h5"
    write_well(file, space=(4, 4, 4), boundaries=("PERIODIC", "OPEN", "PERIODIC"))
    with h5py.File(file, "a") as root:
        group = root["boundary_conditions"]
        for name, dims, kind in [("a", ["x"], "open"), ("b", ["y"], "WALL"), ("obstacle", ["x", "y", "z"], "WALL")]:
            group.create_group(name).attrs.update(associated_dims=dims, bc_type=kind)
    source = open_source(tmp_path)
    assert source.info.boundaries == ("open", "wall", "periodic"), "the obstacle is no end of an axis"
    conditions = str(next(source.read("train", 0, 1)).provenance["boundary_conditions"])
    assert "obstacle: wall on x, y, z" in conditions
    assert "x_periodic: periodic on x" in conditions


def test_an_axis_without_condition_is_open(tmp_path: Path) -> None:
    file = tmp_path / "train" / "one.h5"
    write_well(file)
    with h5py.File(file, "a") as root:
        del root["boundary_conditions/y_periodic"]
    assert open_source(tmp_path).info.boundaries == ("periodic", "open")


def test_parameters_come_from_scalars_and_attributes(tmp_path: Path) -> None:
    file = tmp_path / "train" / "one.h5"
    write_well(file, sample_scalars=("forcing",), time_scalars=("energy",))
    with h5py.File(file, "a") as root:
        root.attrs.update(simulation_parameters=["viscosity", "mach", "scheme"], mach=0.3, scheme="upwind")
    source = open_source(tmp_path)
    assert source.info.parameters == ("viscosity", "forcing", "mach")
    assert next(source.read("train", 0, 1)).parameters["mach"] == 0.3


Fault = tuple[Callable[[Any], None], str, str]


def attribute(key: str, name: str, value: Any) -> Callable[[Any], None]:
    return lambda root: root[key].attrs.__setitem__(name, value)


def without(key: str, name: str | None = None) -> Callable[[Any], None]:
    return lambda root: root[key].attrs.__delitem__(name) if name else root.__delitem__(key)


def replaced(key: str, values: Any) -> Callable[[Any], None]:
    def apply(root: Any) -> None:
        attributes = dict(root[key].attrs)
        del root[key]
        root.create_dataset(key, data=values).attrs.update(attributes)

    return apply


def unwritten(root: Any) -> None:
    attributes = dict(root["t0_fields/density"].attrs)
    del root["t0_fields/density"]
    empty = root.create_dataset("t0_fields/density", (3, 5, 8, 6), "f4", chunks=(1, 5, 8, 6))
    empty[:2] = 1.0
    empty.attrs.update(attributes)


FAULTS: dict[str, Fault] = {
    "no dimensions": (without("dimensions"), "missing key", "dimensions"),
    "no time": (without("dimensions/time"), "missing key", "dimensions/time"),
    "no coordinate": (without("dimensions/y"), "missing key", "dimensions/y"),
    "no field": (without("t0_fields/density"), "missing key", "t0_fields/density"),
    "no boundaries": (without("boundary_conditions"), "missing key", "boundary_conditions"),
    "no scalar": (without("scalars/viscosity"), "missing key", "scalars/viscosity"),
    "no n_trajectories": (without("/", "n_trajectories"), "missing attribute", "n_trajectories"),
    "no grid_type": (without("/", "grid_type"), "missing attribute", "grid_type"),
    "no field_names": (without("t0_fields", "field_names"), "missing attribute", "t0_fields@field_names"),
    "no time_varying": (without("t0_fields/density", "time_varying"), "missing attribute", "density@time_varying"),
    "no dim_varying": (without("t0_fields/density", "dim_varying"), "missing attribute", "density@dim_varying"),
    "no bc_type": (without("boundary_conditions/x_periodic", "bc_type"), "missing attribute", "x_periodic@bc_type"),
    "grid_type": (attribute("/", "grid_type", "hexagonal"), "unknown grid type", "grid_type"),
    "n_trajectories": (attribute("/", "n_trajectories", 4), "n_trajectories disagrees", "t0_fields/density"),
    "n_trajectories text": (attribute("/", "n_trajectories", "many"), "not a count", "n_trajectories"),
    "n_spatial_dims": (attribute("/", "n_spatial_dims", 3), "do not fit n_spatial_dims", "spatial_dims"),
    "bc_type": (
        attribute("boundary_conditions/x_periodic", "bc_type", "sticky"),
        "unknown boundary condition",
        "x_periodic@bc_type",
    ),
    "bc axis": (
        attribute("boundary_conditions/x_periodic", "associated_dims", ["q"]),
        "unknown axis",
        "x_periodic@associated_dims",
    ),
    "dim_varying": (attribute("t0_fields/density", "dim_varying", [True]), "not flags", "density@dim_varying"),
    "rank": (replaced("t0_fields/density", np.ones((3, 5, 8))), "wrong rank", "t0_fields/density"),
    "components": (replaced("t1_fields/velocity", np.ones((3, 5, 8, 6, 3))), "does not fit", "t1_fields/velocity"),
    "frames": (replaced("t0_fields/density", np.ones((3, 4, 8, 6))), "does not fit", "t0_fields/density"),
    "text field": (replaced("t0_fields/density", "hello"), "not an array of real numbers", "t0_fields/density"),
    "complex field": (replaced("t0_fields/density", np.ones((3, 5, 8, 6), complex)), "real numbers", "density"),
    "unwritten": (unwritten, "never written", "t0_fields/density"),
    "time backwards": (replaced("dimensions/time", [0, 0.25, 0.2, 0.75, 1]), "not increasing", "dimensions/time"),
    "time stands": (replaced("dimensions/time", [0, 0.25, 0.25, 0.75, 1]), "not increasing", "dimensions/time"),
    "time uneven": (replaced("dimensions/time", [0, 0.25, 0.6, 0.75, 1]), "not uniform", "dimensions/time"),
    "time NaN": (replaced("dimensions/time", [0, 0.25, np.nan, 0.75, 1]), "NaN or Inf", "dimensions/time"),
    "time rank": (replaced("dimensions/time", np.ones((3, 5))), "wrong shape", "dimensions/time"),
    "one frame": (replaced("dimensions/time", [0.0]), "wrong shape of time", "dimensions/time"),
    "coordinate order": (replaced("dimensions/y", [0, 1, 2, 2, 3, 4.0]), "not in order", "dimensions/y"),
    "moving grid": (attribute("dimensions/y", "time_varying", True), "moves in time", "dimensions/y"),
    "scalar NaN": (replaced("scalars/viscosity", np.nan), "NaN or Inf", "scalars/viscosity"),
    "scalar shape": (replaced("scalars/viscosity", [1.0, 2.0]), "wrong shape", "scalars/viscosity"),
    "no parameter": (attribute("/", "simulation_parameters", ["rho"]), "missing attribute", "rho"),
    "same channel": (attribute("t0_fields", "field_names", ["density", "density"]), "same name", "density"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_named_when_the_source_is_opened(tmp_path: Path, fault: Fault) -> None:
    apply, problem, key = fault
    file = tmp_path / "train" / "one.h5"
    write_well(file)
    with h5py.File(file, "a") as root:
        apply(root)
    with pytest.raises(DataError) as error:
        open_source(tmp_path)
    for word in (problem, key, str(file)):
        assert word in str(error.value)


def test_nothing_that_varies_in_time_is_a_fault(tmp_path: Path) -> None:
    write_well(tmp_path / "train" / "one.h5", fields=((), (), ()), static=(("speed",), (), ()))
    with pytest.raises(DataError, match="no field varies in time"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"fields": (("pressure",), ("velocity",), ())}, "channels"),
        ({"static": (("speed",), (), ())}, "static channels"),
        ({"space": (8, 7)}, "space"),
        ({"frames": 6}, "frames"),
        ({"dt": 0.5}, "time step"),
        ({"boundaries": ("WALL", "PERIODIC")}, "boundaries"),
        ({"scalars": {"rho": 1.0}}, "parameters"),
    ],
)
def test_files_that_disagree_are_refused(tmp_path: Path, change: dict[str, Any], what: str) -> None:
    write_dataset(tmp_path)
    other = tmp_path / "data" / "test" / "test.hdf5"
    write_well(other, **change)
    with pytest.raises(DataError, match=f"differ in {what}") as error:
        open_source(tmp_path)
    assert str(other) in str(error.value)


@pytest.mark.parametrize(
    ("key", "place", "value", "frame"),
    [
        ("t0_fields/density", (1, 3, 2, 2), np.nan, "frame 3"),
        ("t1_fields/velocity", (1, 2, 0, 0, 1), -np.inf, "frame 2"),
        ("t0_fields/speed", (1, 4, 4), np.inf, "1 values"),
        ("t0_fields/density", (1, 3, 2, 2), 1e300, "frame 3"),
    ],
)
def test_nan_and_inf_are_named_with_trajectory_and_frame(
    tmp_path: Path, key: str, place: tuple[int, ...], value: float, frame: str
) -> None:
    file = tmp_path / "train" / "one.h5"
    write_well(file, dtype="f8", static=(("speed",), (), ()))
    with h5py.File(file, "a") as root:
        root[key][place] = value
    stream = open_source(tmp_path).read("train", 0, 3)
    next(stream)
    with pytest.raises(DataError) as error:
        next(stream)
    for word in ("NaN or Inf", str(file), f"channel {key.rpartition('/')[2]}", "trajectory 1", frame):
        assert word in str(error.value)


@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.95])
def test_a_truncated_file_is_named(tmp_path: Path, part: float) -> None:
    write_dataset(tmp_path)
    file = tmp_path / "data" / "valid" / "valid.hdf5"
    file.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])
    with pytest.raises(DataError, match="not a readable HDF5 file") as error:
        open_source(tmp_path)
    assert str(file) in str(error.value)


def test_damaged_compressed_data_are_named_when_read(tmp_path: Path) -> None:
    file = tmp_path / "train" / "one.h5"
    write_well(file)
    with h5py.File(file, "a") as root:
        values, attributes = root["t0_fields/density"][:], dict(root["t0_fields/density"].attrs)
        del root["t0_fields/density"]
        packed = root.create_dataset("t0_fields/density", data=values, chunks=(1, 5, 8, 6), compression="gzip")
        packed.attrs.update(attributes)
        place = packed.id.get_chunk_info(1).byte_offset
    with file.open("r+b") as raw:
        raw.seek(place + 20)
        raw.write(b"\0" * 60)
    stream = open_source(tmp_path).read("train", 0, 3)
    next(stream)
    with pytest.raises(DataError, match=r"damaged data[\s\S]*t0_fields/density"):
        next(stream)


@pytest.mark.parametrize("signature", [b"SNOD", b"TREE", b"HEAP", b"GCOL"])
def test_damaged_internals_are_a_fault_of_the_file(tmp_path: Path, signature: bytes) -> None:
    file = tmp_path / "train" / "one.h5"
    write_well(file)
    content = file.read_bytes()
    assert signature in content
    file.write_bytes(content.replace(signature, b"????"))
    with pytest.raises(DataError) as error:
        open_source(tmp_path)
    assert str(file) in str(error.value)
    report = validate(tmp_path)
    assert any(str(file) in problem for problem in report.problems)


def test_another_layout_is_refused_and_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "1D_Burgers_Sols_Nu0.01.hdf5", "w") as root:
        root["tensor"] = np.zeros((2, 3, 4), np.float32)
        root["x-coordinate"], root["t-coordinate"] = np.arange(4.0), np.arange(4.0)
    with pytest.raises(DataError, match=r"nothing in the layout of The Well[\s\S]*layout: pdebench"):
        open_source(tmp_path)


def test_a_file_of_another_layout_among_those_of_the_well_is_refused_with_the_keys_it_has(tmp_path: Path) -> None:
    write_well(tmp_path / "train" / "one.h5")
    with h5py.File(tmp_path / "train" / "two.hdf5", "w") as root:
        root["tensor"] = np.zeros((2, 3, 4))
    with pytest.raises(DataError, match=r"not a file in The Well's layout[\s\S]*tensor"):
        open_source(tmp_path)


def test_a_folder_without_files_is_refused_with_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing[\s\S]*train,valid,test"):
        open_source(tmp_path / "absent")
    (tmp_path / "training").mkdir()
    with pytest.raises(DataError, match=r"training[\s\S]*train,valid,test"):
        open_source(tmp_path)


def test_reads_the_published_turbulence(shared: Path) -> None:
    source = open_source(shared / "data" / "the_well" / "decaying_turbulence_2d", limit={"train": 2})
    info = source.info
    assert source.splits == {"train": 2, "valid": 8, "test": 8}
    assert (info.channels, info.space, info.frames, info.dt) == (("vorticity",), (64, 64), 21, 0.1)
    assert (info.boundaries, info.extent) == (("periodic", "periodic"), ((0.0, 1.0), (0.0, 1.0)))
    trajectory = next(source.read("test", 7, 8))
    assert trajectory.parameters == {"viscosity": 0.0003}
    enstrophy = (trajectory.fields**2).mean((1, 2, 3))
    assert (np.diff(enstrophy) < 0).all(), "turbulence without forcing decays"
