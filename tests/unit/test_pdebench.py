"""PDEBench's three kinds of files: values, axes, physics, splits; and what is said of files that are not right."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from data_pipeline.base.errors import ConfigError, DataError
from data_pipeline.config import ConvertConfig, SplitRule
from data_pipeline.sources.files import FileSource
from data_pipeline.sources.pdebench import LAYOUT
from data_pipeline.trajectory import grid
from tests.layout_files import advection, everything, random, source, truncate, write_hdf5

FLAT = {
    "1D_Advection_Sols_beta0.1.hdf5": (("u",), {"tensor": "u"}),
    "1D_Burgers_Sols_Nu0.01.hdf5": (("velocity_x",), {"tensor": "velocity_x"}),
    "ReacDiff_Nu0.5_Rho1.0.hdf5": (("concentration",), {"tensor": "concentration"}),
    "1D_CFD_Rand_Eta0.1_Zeta0.1_periodic_Train.hdf5": (("velocity_x", "density", "pressure"), None),
    "2D_CFD_Rand_M1.0_Eta0.1_Zeta0.1_periodic_128_Train.hdf5": (
        ("velocity_x", "velocity_y", "density", "pressure"),
        None,
    ),
    "3D_CFD_Rand_M1.0_Eta1e-08_Zeta1e-08_periodic_Train.hdf5": (
        ("velocity_x", "velocity_y", "velocity_z", "density", "pressure"),
        None,
    ),
}
FLOW = {"Vx": "velocity_x", "Vy": "velocity_y", "Vz": "velocity_z", "density": "density", "pressure": "pressure"}


@pytest.fixture
def tiny(shared: Path) -> Path:
    folder = shared / "data" / "layouts" / "pdebench"
    if not folder.is_dir():
        pytest.skip("no tiny files")
    return folder


def test_every_tiny_file_is_found(tiny: Path) -> None:
    assert len(LAYOUT.files(tiny)) == len(list(tiny.iterdir())) == 11


@pytest.mark.parametrize("name", FLAT)
def test_arrays_of_all_trajectories(tiny: Path, name: str) -> None:
    channels, keys = FLAT[name]
    opened = source(LAYOUT, tiny / name)
    assert opened.info.channels == channels
    assert opened.info.boundaries == ("periodic",) * len(opened.info.space)
    assert opened.info.dt == 0.2
    trajectories = list(everything(opened))
    assert len(trajectories) == 3
    with h5py.File(tiny / name) as root:
        for index, one in enumerate(trajectories):
            assert one.fields.dtype == np.float32
            assert one.times.tolist() == [0, 0.2, 0.4, 0.6, 0.8]
            for key, channel in (keys or {k: v for k, v in FLOW.items() if k in root}).items():
                np.testing.assert_array_equal(one.fields[..., channels.index(channel)], root[key][index])


def test_parameters_come_from_attributes_and_else_from_the_name(tiny: Path, tmp_path: Path) -> None:
    name = "2D_CFD_Rand_M1.0_Eta0.1_Zeta0.1_periodic_128_Train.hdf5"
    expected = {"mach_number": 1.0, "shear_viscosity": 0.1, "bulk_viscosity": 0.1}
    assert next(everything(source(LAYOUT, tiny / name))).parameters == expected
    named = tmp_path / "1D_Advection_Sols_beta0.4.hdf5"
    advection(named)
    with h5py.File(named, "r+") as root:
        del root.attrs["beta"]
    assert next(everything(source(LAYOUT, named))).parameters == {"advection_speed": 0.4}
    nameless = named.rename(tmp_path / "1D_Advection.hdf5")
    with pytest.raises(DataError, match=r"parameter is missing[\s\S]*/@beta[\s\S]*convert\.parameters"):
        source(LAYOUT, nameless)
    assert source(LAYOUT, nameless, parameters={"advection_speed": 2.0}).info.parameters == ("advection_speed",)


def test_files_with_other_parameters_are_one_dataset_split_file_by_file(tmp_path: Path) -> None:
    for beta in (0.1, 0.4):
        path = advection(tmp_path / f"1D_Advection_Sols_beta{beta}.hdf5", trajectories=20)
        with h5py.File(path, "r+") as root:
            root["tensor"][...] = beta + np.arange(20)[:, None, None]
            root.attrs["beta"] = beta
    opened = FileSource("made", ConvertConfig(path=str(tmp_path)), LAYOUT)
    assert opened.splits == {"train": 36, "valid": 0, "test": 4}
    assert "publisher's rule: test 0.1, train rest" in opened.info.source
    tests = list(opened.read("test", 0, 4))
    assert [one.fields[0, 0, 0] for one in tests] == pytest.approx([0.1, 1.1, 0.4, 1.4])
    assert [one.parameters["advection_speed"] for one in tests] == [0.1, 0.1, 0.4, 0.4]
    own = FileSource("made", ConvertConfig(path=str(tmp_path), splits=SplitRule(test=1)), LAYOUT)
    assert own.splits == {"train": 39, "valid": 0, "test": 1}
    assert "rule" not in own.info.source


def test_cell_centres_give_the_whole_domain(tmp_path: Path) -> None:
    opened = source(LAYOUT, advection(tmp_path / "1D_Advection_beta1.0.hdf5", points=10))
    assert opened.info.extent == ((0.0, 1.0),)
    np.testing.assert_allclose(grid(opened.info)[0], (np.arange(10) + 0.5) / 10, atol=1e-7)


def test_boundaries_of_compressible_flow_are_in_the_name(tmp_path: Path) -> None:
    arrays = {key: random(2, 3, 8) for key in ("Vx", "density", "pressure")}
    arrays |= {"x-coordinate": np.arange(8.0), "t-coordinate": np.arange(4.0)}
    numbers = {"/": {"eta": 0.1, "zeta": 0.1}}
    path = write_hdf5(tmp_path / "1D_CFD_Shock_Eta0.1_Zeta0.1_trans_Train.hdf5", arrays, numbers)
    assert source(LAYOUT, path).info.boundaries == ("open",)
    path = path.rename(tmp_path / "1D_CFD_mine.hdf5")
    with pytest.raises(DataError, match=r"boundaries[\s\S]*convert\.boundaries"):
        source(LAYOUT, path)
    assert source(LAYOUT, path, boundaries=("wall",)).info.boundaries == ("wall",)


def test_darcy_flow_is_steady(tiny: Path) -> None:
    path = tiny / "2D_DarcyFlow_beta1.0_Train.hdf5"
    opened = source(LAYOUT, path)
    assert (opened.info.frames, opened.info.dt, opened.info.static_channels) == (1, 0.0, ("permeability",))
    one = next(everything(opened))
    with h5py.File(path) as root:
        np.testing.assert_array_equal(one.fields[..., 0], root["tensor"][0])
        np.testing.assert_array_equal(one.static[..., 0], root["nu"][0])  # type: ignore[index]
    assert one.parameters == {"source": 1.0}


@pytest.mark.parametrize(
    ("name", "channels", "boundary", "dt"),
    [
        ("1D_diff-sorp_NA_NA.h5", ("concentration",), "open", 125.0),
        ("2D_diff-react_NA_NA.h5", ("activator", "inhibitor"), "wall", 1.25),
        ("2D_rdb_NA_NA.h5", ("height",), "open", 0.25),
    ],
)
def test_one_group_a_trajectory(tiny: Path, name: str, channels: tuple[str, ...], boundary: str, dt: float) -> None:
    opened = source(LAYOUT, tiny / name)
    assert (opened.info.channels, opened.info.dt) == (channels, dt)
    assert set(opened.info.boundaries) == {boundary}
    with h5py.File(tiny / name) as root:
        for index, one in enumerate(everything(opened)):
            np.testing.assert_array_equal(one.fields, root[f"{index:04}/data"])
            assert one.provenance["config"] == f"sim: {{seed: {index}}}\n"


def grouped(path: Path, texts: list[str]) -> Path:
    arrays = {}
    for number in range(len(texts)):
        arrays[f"{number:04}/data"] = random(5, 8, 8, 2, seed=number)
        arrays |= {f"{number:04}/grid/{axis}": -1 + (np.arange(8) + 0.5) / 4 for axis in "xy"}
        arrays[f"{number:04}/grid/t"] = np.arange(5) * 0.05
    return write_hdf5(path, arrays, {f"{n:04}": {"config": text} for n, text in enumerate(texts)})


def test_parameters_of_groups_are_in_their_configuration(tmp_path: Path) -> None:
    texts = [f"sim: {{seed: {n}, Du: 1E-3, Dv: 5.0e-3, k: 0.00{n + 1}}}\nplot: {{title: a}}" for n in range(3)]
    opened = source(LAYOUT, grouped(tmp_path / "2D_diff-react_NA_NA.h5", texts))
    assert opened.info.extent == ((-1.0, 1.0), (-1.0, 1.0))
    assert opened.info.coordinates == ()
    found = [one.parameters for one in everything(opened)]
    fixed = {"diffusivity_activator": 1e-3, "diffusivity_inhibitor": 5e-3}
    assert found == [fixed | {"threshold": value} for value in (0.001, 0.002, 0.003)]


def test_groups_that_differ_are_named(tmp_path: Path) -> None:
    path = grouped(tmp_path / "2D_diff-react_NA_NA.h5", ["sim: {k: 1.0}", "sim: {seed: 1}", "sim: {k: 2.0}"])
    opened = source(LAYOUT, path)
    with pytest.raises(DataError, match=r"differ in their PDE parameters[\s\S]*0001@config"):
        list(everything(opened))
    with h5py.File(path, "r+") as root:
        root["0001"].attrs["config"] = "k: 3.0"
        del root["0001/data"]
        root["0001/data"] = random(4, 8, 8, 2)
    with pytest.raises(DataError, match=r"differ in shape[\s\S]*0001/data[\s\S]*\(4, 8, 8, 2\)"):
        list(everything(source(LAYOUT, path)))


def test_incompressible_flow_of_several_files(tiny: Path, tmp_path: Path) -> None:
    for number in (0, 2, 10):  # one is missing, and 10 comes after 2
        arrays = {
            "velocity": random(4, 5, 8, 6, 2, seed=number),
            "particles": random(4, 5, 8, 6, 1, seed=number + 1),
            "force": random(4, 8, 6, 2, seed=number + 2),
            "t": np.tile(np.arange(5, dtype="f4") * np.float32(0.005), (4, 1)),
        }
        write_hdf5(tmp_path / f"ns_incom_inhom_2d_512-{number}.h5", arrays, {"/": {"config": "NU: 0.01\n"}})
    opened = FileSource("made", ConvertConfig(path=str(tmp_path)), LAYOUT)
    assert opened.splits == {"train": 11, "valid": 0, "test": 1}  # a tenth of all, not of each
    assert (opened.info.channels, opened.info.static_channels) == (
        ("velocity_x", "velocity_y", "tracer"),
        ("force_x", "force_y"),
    )
    assert opened.info.dt == 0.005
    last = next(opened.read("train", 10, 11))
    assert (last.provenance["file"], last.provenance["index"]) == ("ns_incom_inhom_2d_512-10.h5", 3)
    np.testing.assert_array_equal(last.fields[..., :2], random(4, 5, 8, 6, 2, seed=10)[3])
    np.testing.assert_array_equal(last.fields[..., 2:], random(4, 5, 8, 6, 1, seed=11)[3])
    np.testing.assert_array_equal(last.static, random(4, 8, 6, 2, seed=12)[3])
    assert last.parameters == {"viscosity": 0.01}
    # The tiny file's times are random numbers: they are refused, and the configuration's step is taken instead.
    with pytest.raises(DataError, match="time is not increasing"):
        source(LAYOUT, tiny / "ns_incom_inhom_2d_512-0.h5")
    assert source(LAYOUT, tiny / "ns_incom_inhom_2d_512-0.h5", dt=0.005).splits["train"] == 3


def test_segments_read_their_own_frames(tmp_path: Path) -> None:
    path = advection(tmp_path / "1D_Advection_beta1.0.hdf5", frames=9)
    opened = source(LAYOUT, path, frames=2, stride=2)
    with h5py.File(path) as root:
        second = next(opened.read("train", 1, 2))
        np.testing.assert_array_equal(second.fields[..., 0], root["tensor"][0, 4:8:2])
    assert second.times.tolist() == pytest.approx([0.4, 0.6])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"tensor": random(1, 10, 5, 16)},
            r"wrong rank[\s\S]*tensor[\s\S]*\(1, 10, 5, 16\)[\s\S]*trajectories, time, x",
        ),
        ({"x_coordinate": None}, r"missing key[\s\S]*x-coordinate[\s\S]*did you mean 't-coordinate'"),
        ({"t_coordinate": np.array([0, 1, 1, 2, 3, 4])}, r"time is not increasing[\s\S]*t = 1 then 1 at frame 2"),
        ({"t_coordinate": np.array([0, 1, 2, 3, 7, 8])}, r"time is not uniform[\s\S]*t-coordinate"),
        ({"t_coordinate": np.arange(4.0)}, r"wrong shape of time[\s\S]*\(4,\)[\s\S]*5 times or more"),
        ({"x_coordinate": np.arange(15.0)}, r"wrong shape of a coordinate[\s\S]*\(15,\)[\s\S]*\(16,\)"),
        ({"x_coordinate": np.zeros(16)}, r"not in order"),
        ({"tensor": np.array([b"a"])}, r"not an array of real numbers[\s\S]*tensor"),
        ({"tensor": np.zeros((0, 5, 16))}, r"does not fit[\s\S]*\(0, 5, 16\)"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    path = advection(tmp_path / "1D_Advection_beta1.0.hdf5", **changes)
    with pytest.raises(DataError, match=words):
        source(LAYOUT, path, splits=SplitRule(test=1))


def test_damage_is_named(tmp_path: Path) -> None:
    advection(tmp_path / "1D_Advection_beta0.1.hdf5")
    cut = truncate(advection(tmp_path / "1D_Advection_beta0.4.hdf5"))
    assert cut in LAYOUT.files(tmp_path)  # else it would be missing without a word
    with pytest.raises(DataError, match=r"not a readable HDF5 file[\s\S]*beta0\.4[\s\S]*truncated"):
        source(LAYOUT, tmp_path, splits=SplitRule(test=1))


def test_parts_that_were_never_written_are_not_zeros(tmp_path: Path) -> None:
    path = advection(tmp_path / "1D_Advection_beta1.0.hdf5", tensor=None)
    with h5py.File(path, "r+") as root:
        tensor = root.create_dataset("tensor", (4, 5, 16), "f4", chunks=(1, 5, 16))
        tensor[:3] = 1
    with pytest.raises(DataError, match=r"never written[\s\S]*tensor"):
        source(LAYOUT, path)


def test_nan_is_reported_by_trajectory(tmp_path: Path) -> None:
    values = random(4, 5, 16)
    values[2, 3, 4] = np.nan
    opened = source(LAYOUT, advection(tmp_path / "1D_Advection_beta1.0.hdf5", tensor=values))
    next(opened.read("train", 1, 2))
    with pytest.raises(DataError, match=r"NaN or Inf[\s\S]*channel u, trajectory 2[\s\S]*1 values, first in frame 3"):
        next(opened.read("train", 2, 3))


def test_other_files_are_not_ours(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "a.hdf5", {"data": random(2, 3)})
    write_hdf5(tmp_path / "b.h5", {"0000": random(2, 3)})
    (tmp_path / "c.h5").write_bytes(b"no HDF5")
    assert LAYOUT.files(tmp_path) == []
    assert LAYOUT.files(tmp_path / "none") == []
    with pytest.raises(ConfigError, match=r"splits need more"):
        source(LAYOUT, advection(tmp_path / "1D_Advection_beta1.0.hdf5"), splits=SplitRule(train=9, test=9))
