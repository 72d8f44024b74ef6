"""Files of the Fourier neural operator's authors: both MATLAB versions give the same, in the documented order."""

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from data_pipeline.base.errors import ConfigError, DataError
from data_pipeline.config import ConvertConfig
from data_pipeline.sources.files import FileSource
from data_pipeline.sources.fno import LAYOUT
from data_pipeline.sources.registry import find_layout
from data_pipeline.trajectory import Trajectory

FILES = Path("data") / "layouts" / "fno"


def source(path: Path, **options: Any) -> FileSource:
    content = {"path": str(path), "splits": {"test": 0}} | options
    return FileSource("one", ConvertConfig.model_validate(content), LAYOUT)


def trajectories(path: Path, **options: Any) -> list[Trajectory]:
    opened = source(path, **options)
    return list(opened.read("train", 0, opened.splits["train"]))


def save_v73(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """As MATLAB does: a block of its own before the HDF5 file, and all axes reversed."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for key, values in arrays.items():
            file[key] = values.T


def flow(**changes: Any) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    arrays = {
        "u": random.normal(size=(3, 4, 6, 5)).astype(np.float32),
        "a": random.normal(size=(3, 4, 6)).astype(np.float32),
        "t": np.arange(1.0, 6.0)[None],
    }
    return {key: values for key, values in (arrays | changes).items() if values is not None}


@pytest.mark.parametrize("save", [savemat, save_v73], ids=["v5", "v7.3"])
def test_both_versions_give_the_documented_order(tmp_path: Path, save: Any) -> None:
    path, arrays = tmp_path / "ns_V1e-3_N3_T5.mat", flow()
    save(path, arrays)
    found = source(path)
    assert found.info.channels == ("vorticity",)
    assert found.info.static_channels == ("initial_vorticity",)
    assert (found.info.space, found.info.frames, found.info.dt) == ((4, 6), 5, 1.0)
    assert found.info.boundaries == ("periodic", "periodic")
    for number, one in enumerate(trajectories(path)):
        np.testing.assert_array_equal(one.fields[..., 0], arrays["u"][number].transpose(2, 0, 1))
        assert one.static is not None
        np.testing.assert_array_equal(one.static[..., 0], arrays["a"][number])
        np.testing.assert_array_equal(one.times, np.arange(1.0, 6.0))
        assert one.parameters == {"viscosity": 1e-3}


def test_only_the_frames_asked_for(tmp_path: Path) -> None:
    path, arrays = tmp_path / "ns_V1e-3.mat", flow()
    save_v73(path, arrays)
    config = ConvertConfig(path=str(path))
    with LAYOUT.open(LAYOUT.header(path, config), config) as read:
        one = read(2, slice(1, 5, 2))
    np.testing.assert_array_equal(one.fields[..., 0], arrays["u"][2].transpose(2, 0, 1)[1:5:2])
    np.testing.assert_array_equal(one.times, [2.0, 4.0])


def test_published_files_open_by_themselves(shared: Path) -> None:
    folder = shared / FILES
    files = {file.name for file in LAYOUT.files(folder)}
    assert files == {file.name for file in folder.iterdir()}
    assert find_layout(folder) == "fno"
    both = [trajectories(folder / name) for name in ("ns_V1e-3_v73.mat", "ns_data_V100_v5.mat")]
    assert [one[0].fields.shape for one in both] == [(5, 16, 16, 1)] * 2
    assert both[1][0].parameters == {}  # V100 is counted in more than one way
    with h5py.File(folder / "ns_V1e-3_v73.mat") as file:
        np.testing.assert_array_equal(both[0][1].fields[3, :, :, 0], file["u"][3, :, :, 1].T)


def test_burgers_from_initial_to_final(shared: Path) -> None:
    path = shared / FILES / "burgers_data_R10.mat"
    found, (one, *_) = source(path).info, trajectories(path)
    assert (found.frames, found.dt, found.channels) == (2, 1.0, ("velocity_x",))
    assert one.fields.shape == (2, 64, 1)
    assert one.parameters == {"viscosity": 0.1}
    from scipy.io import loadmat

    stored = loadmat(path)
    np.testing.assert_array_equal(one.fields[..., 0], np.stack([stored["a"][0], stored["u"][0]]).astype(np.float32))


def test_burgers_of_pino(tmp_path: Path) -> None:
    path = tmp_path / "burgers_pino.mat"
    output = np.random.default_rng(0).normal(size=(2, 11, 8)).astype(np.float32)
    savemat(path, {"input": output[:, 0], "output": output, "visc": np.array([[0.01]]), "extra": np.ones((2, 2))})
    found, (_, last) = source(path).info, trajectories(path)
    assert found.dt == pytest.approx(0.1)
    assert last.parameters == {"viscosity": pytest.approx(0.01)}
    np.testing.assert_array_equal(last.fields[..., 0], output[1])
    assert last.static is not None
    np.testing.assert_array_equal(last.static[:, 0], output[1, 0])
    assert LAYOUT.header(path, ConvertConfig(path=str(path))).left_out == ("extra: not a field of this layout",)


def test_darcy_is_steady(shared: Path) -> None:
    path = shared / FILES / "piececonst_r421_N1024_smooth1.mat"
    found, (one, *_) = source(path).info, trajectories(path)
    assert (found.frames, found.dt, found.static_channels) == (1, 0.0, ("permeability",))
    assert found.coordinates[0][-1] == 1.0  # points on the walls
    assert one.fields.shape == (1, 21, 21, 1)


@pytest.mark.parametrize(("shape", "order"), [((2, 8, 8, 5), (2, 0, 1)), ((2, 5, 8, 8), (0, 1, 2))])
def test_npy_files_need_a_time_step(tmp_path: Path, shape: tuple[int, ...], order: tuple[int, ...]) -> None:
    path, values = tmp_path / "NS_fft_Re500.npy", np.random.default_rng(0).normal(size=shape).astype(np.float32)
    np.save(path, values)
    with pytest.raises(ConfigError, match=r"convert\.dt"):
        source(path)
    one = trajectories(path, dt=0.5)[1]
    np.testing.assert_array_equal(one.fields[..., 0], values[1].transpose(order))
    assert one.parameters == {"reynolds_number": 500.0}
    np.testing.assert_array_equal(one.times, 0.5 * np.arange(5))


def test_cubes_of_frames_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "NS_fft_Re500.npy", np.zeros((2, 8, 8, 8), np.float32))
    with pytest.raises(DataError, match="cannot be told apart"):
        source(tmp_path / "NS_fft_Re500.npy", dt=1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"u": np.zeros((3, 4, 6))}, r"wrong rank(.|\n)*key: u(.|\n)*\(3, 4, 6\)"),
        ({"a": np.zeros((2, 4, 6))}, r"key: a(.|\n)*found: shape \(2, 4, 6\)(.|\n)*trajectories 3"),
        ({"t": np.array([[1.0, 2.0, 2.0, 3.0, 4.0]])}, r"time is not increasing(.|\n)*key: t"),
        ({"t": np.array([[1.0, 2.0]])}, r"wrong shape of time(.|\n)*5 times"),
        ({"u": np.array([["x"]], dtype=object)}, "not an array of numbers"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "ns_V1e-3.mat"
    savemat(path, flow(**changes))
    with pytest.raises(DataError, match=message) as caught:
        source(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("save", [savemat, save_v73], ids=["v5", "v7.3"])
def test_truncated_files_are_named(tmp_path: Path, save: Any) -> None:
    path = tmp_path / "ns_V1e-3.mat"
    save(path, flow())
    path.write_bytes(path.read_bytes()[:1500])
    assert LAYOUT.files(path) == [path]
    with pytest.raises(DataError, match=rf"(damaged data|not a readable)(.|\n)*{re.escape(str(path))}"):
        trajectories(path)


def test_gaps_are_reported_with_their_trajectory(tmp_path: Path) -> None:
    arrays = flow()
    arrays["u"][1, 2, 3, 4] = np.nan
    savemat(tmp_path / "ns_V1e-3.mat", arrays)
    with pytest.raises(DataError, match=r"NaN or Inf(.|\n)*vorticity(.|\n)*trajectory 1"):
        trajectories(tmp_path / "ns_V1e-3.mat")
