"""The reference's working format: the name of a file says what its one array means."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data_pipeline.base.errors import ConfigError, DataError
from data_pipeline.config import ConvertConfig
from data_pipeline.sources.dpot import LAYOUT
from data_pipeline.sources.files import FileSource
from data_pipeline.sources.registry import find_layout

FILES = Path("data") / "layouts" / "dpot"


def source(path: Path, **options: Any) -> FileSource:
    return FileSource("one", ConvertConfig.model_validate({"path": str(path)} | options), LAYOUT)


def save(path: Path, shape: tuple[int, ...], key: str = "data", seed: int = 0) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    with h5py.File(path, "w") as file:
        file[key] = values
    return values


def test_a_file_without_channels(shared: Path) -> None:
    path = shared / FILES / "ns2d_1e-5_train.hdf5"
    found = source(path)
    assert find_layout(path) == "dpot"
    assert dict(found.splits) == {"train": 3, "valid": 0, "test": 0}
    assert (found.info.channels, found.info.frames, found.info.dt) == (("vorticity",), 20, 1.0)
    (one,) = found.read("train", 1, 2)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(one.fields[..., 0], file["data"][1].transpose(2, 0, 1))
    assert one.parameters == {"viscosity": 1e-5}


def test_scattered_files_of_one_trajectory_each(shared: Path) -> None:
    folder = shared / FILES / "pdebench" / "ns2d_pdb_M1_eta1e-1_zeta1e-1"
    found = source(folder)
    assert dict(found.splits) == {"train": 3, "valid": 0, "test": 3}
    assert found.info.channels == ("velocity_x", "velocity_y", "density", "pressure")
    assert found.info.boundaries == ("periodic", "periodic")
    one = list(found.read("test", 0, 3))[2]
    with h5py.File(folder / "test" / "data_2.hdf5") as file:
        np.testing.assert_array_equal(one.fields, file["data"][()].transpose(2, 0, 1, 3))
    assert one.parameters == {"mach_number": 1.0, "shear_viscosity": 0.1, "bulk_viscosity": 0.1}
    assert find_layout(folder) == "dpot"


def test_files_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    values = {n: save(tmp_path / "swe_pdb" / "train" / f"data_{n}.hdf5", (4, 4, 3, 1), seed=n) for n in (10, 2, 1)}
    found = source(tmp_path)
    assert found.info.channels == ("height",)
    for number, one in zip((1, 2, 10), found.read("train", 0, 3), strict=True):
        np.testing.assert_array_equal(one.fields[0, ..., 0], values[number][:, :, 0, 0])


def test_a_mask_channel_becomes_the_mask(shared: Path) -> None:
    folder = shared / FILES / "cfdbench"
    found = source(folder)
    assert (found.info.channels, found.info.masked) == (("velocity_x", "velocity_y"), True)
    (one,) = found.read("train", 2, 3)
    with h5py.File(folder / "ns2d_cdb_train.hdf5") as file:
        stored = file["data"][2]
    assert one.mask is not None
    np.testing.assert_array_equal(one.mask, stored[:, :, 0, 2] > 0.5)
    np.testing.assert_array_equal(one.fields, stored[..., :2].transpose(2, 0, 1, 3).astype(np.float32))
    (again,) = source(folder, channels=["velocity_x", "velocity_y", "mask"]).read("train", 2, 3)
    np.testing.assert_array_equal(again.fields[4, ..., 2], one.mask)


def test_three_dimensions_have_another_order_of_channels(tmp_path: Path) -> None:
    values = save(tmp_path / "ns3d_pdb_M1_rand" / "test" / "data_0.hdf5", (4, 5, 6, 3, 5))
    found = source(tmp_path)
    assert found.info.channels == ("velocity_x", "velocity_y", "velocity_z", "pressure", "density")
    (one,) = found.read("test", 0, 1)
    np.testing.assert_array_equal(one.fields, values.transpose(3, 0, 1, 2, 4))


@pytest.mark.parametrize(
    ("name", "channels", "dt"),
    [
        ("ns2d_cond_pda", ("tracer", "velocity_x", "velocity_y"), 1.5),
        ("dr_pdb", ("activator", "inhibitor"), 0.05),
        ("sw2d_pda", ("velocity_x", "velocity_y", "divergence", "vorticity", "pressure"), None),
        ("ns2d_fno_1e-4", ("vorticity",), 1.0),
    ],
)
def test_sets_by_name(tmp_path: Path, name: str, channels: tuple[str, ...], dt: float | None) -> None:
    save(tmp_path / name / "train" / "data_0.hdf5", (4, 8, 3, len(channels)))
    options = {} if dt else {"dt": 2.0}
    if not dt:
        with pytest.raises(ConfigError, match=r"convert\.dt"):
            source(tmp_path)
    found = source(tmp_path, **options).info
    assert (found.channels, found.dt) == (channels, dt or 2.0)


def test_an_unknown_set_has_numbered_channels(tmp_path: Path) -> None:
    save(tmp_path / "mine_test.hdf5", (2, 4, 4, 3, 2))
    found = source(tmp_path, dt=1.0, rename={"channel_0": "temperature"})
    assert found.info.channels == ("temperature", "channel_1")
    assert found.splits["test"] == 2


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 4, 4), r"wrong rank(.|\n)*key: data(.|\n)*\(3, 4, 4\)(.|\n)*\(N, X, Y, T\)"),
        ((3, 4, 4, 5, 2), r"wrong number of channels(.|\n)*found: 2(.|\n)*vorticity"),
    ],
)
def test_wrong_shapes_are_named(tmp_path: Path, shape: tuple[int, ...], message: str) -> None:
    save(tmp_path / "ns2d_1e-5_train.hdf5", shape)
    with pytest.raises(DataError, match=message) as caught:
        source(tmp_path)
    assert "ns2d_1e-5_train.hdf5" in str(caught.value)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    save(tmp_path / "ns2d_1e-5_train.hdf5", (3, 4, 4, 5), key="dat")
    with pytest.raises(DataError, match=r"missing key(.|\n)*key: data(.|\n)*\['dat'\](.|\n)*did you mean"):
        LAYOUT.header(tmp_path / "ns2d_1e-5_train.hdf5", ConvertConfig(path=str(tmp_path)))
    assert LAYOUT.files(tmp_path) == []


def test_a_truncated_file_is_named_and_not_left_out(tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / "swe_pdb" / "train" / f"data_{number}.hdf5", (8, 8, 3, 1))
    broken = tmp_path / "swe_pdb" / "train" / "data_1.hdf5"
    broken.write_bytes(broken.read_bytes()[:700])
    assert broken in LAYOUT.files(tmp_path)
    with pytest.raises(DataError, match=str(broken)):
        source(tmp_path)


def test_gaps_are_reported_with_their_file(tmp_path: Path) -> None:
    path = tmp_path / "swe_pdb" / "train" / "data_0.hdf5"
    save(path, (4, 4, 3, 1))
    with h5py.File(path, "r+") as file:
        file["data"][1, 2, 0, 0] = np.inf
    with pytest.raises(DataError, match=r"NaN or Inf(.|\n)*data_0\.hdf5(.|\n)*height"):
        list(source(tmp_path).read("train", 0, 1))
