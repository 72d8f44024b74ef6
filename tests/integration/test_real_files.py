"""Files that other projects published open with the configurations of this one, and give the values that they hold."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import loadmat

from data_pipeline.base.config import load
from data_pipeline.build import build_store
from data_pipeline.config import DatasetConfig
from data_pipeline.inspect import validate
from data_pipeline.sources.protocol import Source, open_source
from data_pipeline.trajectory import Trajectory, grid
from tests.training import ROOT


def configured(shared: Path, name: str, *overrides: str) -> DatasetConfig:
    """A configuration of this project; the test is skipped where its files are not there."""
    file = ROOT / "configs" / "data" / f"{name}.yaml"
    path = load(DatasetConfig, file).convert.path  # type: ignore[union-attr]
    here = shared.parent / Path(path).relative_to("..")
    if not here.exists():
        pytest.skip(f"no {here.name}")
    return load(DatasetConfig, file, [f"convert.path={here}", *overrides])


def opened(shared: Path, name: str, *overrides: str) -> tuple[Source, dict[str, list[Trajectory]], Path]:
    """The source, all its trajectories by split, and where its files are."""
    config = configured(shared, name, *overrides)
    source = open_source(config)
    assert config.convert is not None
    assert config.convert.licence
    trajectories = {split: list(source.read(split, 0, count)) for split, count in source.splits.items()}
    return source, trajectories, Path(config.convert.path)


def long_one(trajectories: dict[str, list[Trajectory]]) -> np.ndarray:
    """The segments of one long trajectory, put together again."""
    return np.concatenate([one.fields for split in ("train", "valid", "test") for one in trajectories[split]])


def test_two_dimensional_reservoir(shared: Path) -> None:
    source, found, path = opened(shared, "reservoir_2d")
    stored = loadmat(path)
    assert source.info.channels == ("pressure", "water_saturation", "oil_saturation")
    assert source.info.static_channels == ("permeability", "porosity")
    fields = long_one(found)
    assert fields.shape == (20, 33, 33, 3)
    np.testing.assert_array_equal(fields[..., 0], stored["Pressure"][:, :, 0])
    np.testing.assert_allclose(fields[..., 1] + fields[..., 2], 1, atol=1e-6)
    water = fields[..., 1].mean(axis=(1, 2))
    assert (np.diff(water) > 0).all()  # it is pumped in: the first axis is time
    for one in found["train"]:
        assert one.static is not None
        np.testing.assert_array_equal(one.static[..., 0], stored["permeability"][:, :, 0])


@pytest.mark.parametrize(("file", "space"), [("UNRST_40605.mat", (40, 60, 5)), ("UNRST_40403.mat", (40, 40, 3))])
def test_three_dimensional_reservoirs(shared: Path, file: str, space: tuple[int, ...]) -> None:
    extent = [[0.0, float(size)] for size in space]
    path = shared / "data" / "reservoir" / file
    source, found, _ = opened(shared, "reservoir_3d", f"convert.path={path}", f"convert.extent={extent}")
    stored = loadmat(path)
    assert source.info.space == space
    assert source.info.axes == ("x", "y", "z")
    fields, static = long_one(found), found["test"][0].static
    np.testing.assert_array_equal(fields[7, ..., 0], stored["Pressure"][7, :, 0])
    assert static is not None
    np.testing.assert_array_equal(static[..., 1], stored["porosity"][:, :, 0])
    assert (np.diff(fields[..., 1].mean(axis=(1, 2, 3))) > 0).all()


def test_darcy_flow_at_both_resolutions(shared: Path) -> None:
    source, found, path = opened(shared, "darcy_flow")
    assert {split: len(ones) for split, ones in found.items()} == {"train": 1000, "valid": 0, "test": 50}
    assert (source.info.frames, source.info.dt) == (1, 0.0)
    content = torch.load(path / "darcy_test_16.pt", weights_only=True)
    for number, one in enumerate(found["test"]):
        assert one.static is not None
        np.testing.assert_array_equal(one.fields[0, ..., 0], content["y"][number])
        np.testing.assert_array_equal(one.static[..., 0], content["x"][number])
    finer, ones, _ = opened(shared, "darcy_flow", "convert.files=[darcy_test_32.pt]")
    assert finer.info.space == (32, 32)
    assert len(ones["test"]) == 50


def test_burgers_files_do_not_leak(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, found, path = opened(shared, "burgers_1d")
    assert {split: len(ones) for split, ones in found.items()} == {"train": 800, "valid": 0, "test": 400}
    train, test = ({one.fields.tobytes() for one in found[split]} for split in ("train", "test"))
    assert (len(train), len(test)) == (800, 400)
    assert not train & test
    assert found["test"][0].parameters == {"viscosity": 0.01}
    y = torch.load(path / "burgers_test_16.pt", weights_only=True)["y"]
    np.testing.assert_array_equal(found["test"][399].fields[..., 0], y[399].float())
    monkeypatch.chdir(ROOT)
    assert not validate(ROOT / "configs" / "data" / "burgers_1d.yaml").problems


@pytest.mark.parametrize(
    ("name", "keys", "shape", "dt", "low", "spacing"),
    [
        ("burgers_front_1d", ("usol", "x", "t"), (100, 256, 1), 0.1, -8.0, 0.0625),
        ("kdv_1d", ("usol", "x", "t"), (200, 512, 1), 0.1, -30.0, 60 / 512),
        ("kuramoto_sivashinsky_1d", ("uu", "x", "tt"), (250, 1024, 1), 0.4, np.pi / 32, np.pi / 32),
    ],
)
def test_long_trajectories_in_segments(
    shared: Path, name: str, keys: tuple[str, ...], shape: tuple[int, ...], dt: float, low: float, spacing: float
) -> None:
    source, found, path = opened(shared, name)
    stored, (u, x, t) = loadmat(path), keys
    fields = long_one(found)
    assert fields.shape == shape
    np.testing.assert_array_equal(fields[..., 0], stored[u].real.T[: shape[0]].astype(np.float32))
    assert source.info.dt == dt
    times = np.concatenate([one.times for split in ("train", "valid", "test") for one in found[split]])
    np.testing.assert_allclose(times, stored[t].ravel()[: shape[0]])
    (ends,) = source.info.extent
    np.testing.assert_allclose(ends, (low, low + shape[1] * spacing), rtol=1e-9)
    np.testing.assert_allclose(grid(source.info)[0], stored[x].ravel(), atol=1e-9)


def test_a_matrix_of_points_by_frames(shared: Path) -> None:
    source, found, path = opened(shared, "heat_2d")
    fields = long_one(found)
    assert fields.shape == (100, 21, 21, 1)
    stored = np.load(path)
    np.testing.assert_array_equal(fields[40, :, :, 0], stored[:, 40].reshape(21, 21).astype(np.float32))
    assert not fields[:, [0, -1]].any()  # the walls
    assert source.info.boundaries == ("wall", "wall")


def test_turbulence_in_the_wells_layout(shared: Path) -> None:
    source, found, _ = opened(shared, "decaying_turbulence_2d")
    assert {split: len(ones) for split, ones in found.items()} == {"train": 48, "valid": 8, "test": 8}
    assert source.info.channels == ("vorticity",)
    assert found["test"][0].fields.shape == (21, 64, 64, 1)


@pytest.mark.parametrize("name", ["reservoir_2d", "kdv_1d", "darcy_flow"])
def test_validation_finds_nothing_wrong(shared: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    configured(shared, name)
    monkeypatch.chdir(ROOT)
    report = validate(ROOT / "configs" / "data" / f"{name}.yaml")
    assert not report.problems


@pytest.mark.slow
def test_a_real_file_becomes_a_store(shared: Path, tmp_path: Path) -> None:
    path = build_store(configured(shared, "reservoir_3d"), tmp_path)
    report = validate(path)
    assert not report.problems
    assert report.info is not None
    assert report.info.static_channels == ("permeability", "porosity")
