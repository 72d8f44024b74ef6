"""Every file that is known of every published layout, from the user's side: found, looked at, drawn, read, stored."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.base.config import load
from data_pipeline.build import build_store
from data_pipeline.config import ConvertConfig, DatasetConfig, SplitRule, StoreConfig
from data_pipeline.export import export_shards
from data_pipeline.inspect import info, validate
from data_pipeline.sources.files import FileSource
from data_pipeline.sources.protocol import Source, open_source
from data_pipeline.sources.registry import find_layout, layout
from data_pipeline.stores import open_store
from data_pipeline.stores.protocol import read_window
from data_pipeline.trajectory import Trajectory
from data_pipeline.workers import keep_ray, ray_session
from launch.cli import main
from tests.training import ROOT

FLOW = ("velocity_x", "velocity_y", "density", "pressure")
VELOCITY, WAVE = FLOW[:2], ("displacement",)
MACH = ("mach_number", "shear_viscosity", "bulk_viscosity")
CASE = ("velocity", "density", "viscosity")
BOX = (*CASE, "height", "width")
MAXWELL = tuple(f"{name}_{axis}" for name in ("electric_displacement", "magnetic_field") for axis in "xyz")
PLANE, DPOT_PDEBENCH = (16, 16), "pdebench/ns2d_pdb_M1_eta1e-1_zeta1e-1"


@dataclass(frozen=True)
class Case:
    """A file or folder of a layout and what it holds.

    `shape` is (T, *space) of a trajectory; `problems` are words of each of those that are really there.
    """

    path: str
    shape: tuple[int, ...]
    channels: tuple[str, ...]
    static: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    masked: bool = False
    count: int = 3
    problems: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


CASES = [
    Case("pdebench/1D_Advection_Sols_beta0.1.hdf5", (5, 16), ("u",), parameters=("advection_speed",)),
    Case("pdebench/1D_Burgers_Sols_Nu0.01.hdf5", (5, 16), ("velocity_x",), parameters=("nu",)),
    Case("pdebench/1D_CFD_Rand_Eta0.1_Zeta0.1_periodic_Train.hdf5", (5, 16), ("velocity_x", "density", "pressure"),
         parameters=MACH[1:]),
    Case("pdebench/1D_diff-sorp_NA_NA.h5", (5, 16), ("concentration",)),
    Case("pdebench/2D_CFD_Rand_M1.0_Eta0.1_Zeta0.1_periodic_128_Train.hdf5", (5, *PLANE), FLOW, parameters=MACH),
    Case("pdebench/2D_DarcyFlow_beta1.0_Train.hdf5", (1, *PLANE), ("u",), ("permeability",), ("source",)),
    Case("pdebench/2D_diff-react_NA_NA.h5", (5, *PLANE), ("activator", "inhibitor")),
    Case("pdebench/2D_rdb_NA_NA.h5", (5, *PLANE), ("height",)),
    Case("pdebench/3D_CFD_Rand_M1.0_Eta1e-08_Zeta1e-08_periodic_Train.hdf5", (5, 8, 8, 8),
         (*VELOCITY, "velocity_z", "density", "pressure"), parameters=MACH),
    Case("pdebench/ReacDiff_Nu0.5_Rho1.0.hdf5", (5, 16), ("concentration",),
         parameters=("diffusivity", "reaction_rate")),
    # The times of this one are random numbers.
    Case("pdebench/ns_incom_inhom_2d_512-0.h5", (5, *PLANE), (*VELOCITY, "tracer"), ("force_x", "force_y"), count=4,
         problems=("time is not increasing",), options={"dt": 1.0}),
    Case("pdearena/KS_train_fixed_viscosity.h5", (5, 16), ("u",), parameters=("dt", "dx", "viscosity")),
    Case("pdearena/Maxwell3D_train_1.h5", (5, 8, 8, 8), MAXWELL, options={"dt": 1.0}),
    Case("pdearena/NavierStokes2D_train_1_0.50000_3.h5", (5, *PLANE), ("tracer", *VELOCITY), parameters=("buoyancy",)),
    Case("poseidon/ACE.nc", (5, *PLANE), ("phase",)),
    Case("poseidon/CE-RM.nc", (5, *PLANE), ("density", *VELOCITY, "pressure", "tracer")),
    Case("poseidon/CE-RP.nc", (5, *PLANE), ("density", *VELOCITY, "pressure", "energy")),
    Case("poseidon/FNS-KF.nc", (5, *PLANE), VELOCITY, ("force",)),
    Case("poseidon/GCE-RT.nc", (5, *PLANE), ("density", *VELOCITY, "pressure", "channel_4", "gravity_potential")),
    Case("poseidon/NS-PwC.nc", (5, *PLANE), (*VELOCITY, "tracer")),
    Case("poseidon/NS-Sines.nc", (5, *PLANE), VELOCITY),
    Case("poseidon/Wave-Layer.nc", (5, *PLANE), WAVE, ("wave_speed",)),
    Case("poseidon/Poisson-Gauss.nc", (1, *PLANE), ("u",), ("source",)),
    Case("poseidon/SE-AF.nc", (1, *PLANE), ("density",), ("airfoil",), masked=True),
    Case("poseidon/Helmholtz.h5", (1, *PLANE), ("u",), ("coefficient",), ("boundary_value",)),
    Case("cfdbench/cavity", (5, *PLANE), VELOCITY, parameters=BOX, masked=True),
    Case("cfdbench/tube", (5, *PLANE), VELOCITY, parameters=BOX, masked=True),
    Case("cfdbench/dam", (5, *PLANE), VELOCITY, masked=True,
         parameters=(*CASE, "barrier_height", "barrier_width", "height", "width", "dx", "dy")),
    Case("cfdbench/cylinder", (5, *PLANE), VELOCITY, masked=True,
         parameters=(*CASE, "radius", "x_min", "x_max", "y_min", "y_max")),
    Case("fno/NS_fft_Re500_T4000.npy", (9, *PLANE), ("vorticity",), (), ("reynolds_number",), options={"dt": 1.0}),
    Case("fno/burgers_data_R10.mat", (2, 64), ("velocity_x",), parameters=("viscosity",)),
    Case("fno/ns_V1e-3_v73.mat", (5, *PLANE), ("vorticity",), ("initial_vorticity",), ("viscosity",)),
    Case("fno/ns_data_V100_v5.mat", (5, *PLANE), ("vorticity",), ("initial_vorticity",)),
    Case("fno/piececonst_r421_N1024_smooth1.mat", (1, 21, 21), ("u",), ("permeability",)),
    Case("pbdl/burgers.hdf5", (5, *PLANE), VELOCITY, parameters=("viscosity",)),
    Case("dpot/ns2d_1e-5_train.hdf5", (20, *PLANE), ("vorticity",), parameters=("viscosity",)),
    Case("dpot/cfdbench/ns2d_cdb_train.hdf5", (20, *PLANE), VELOCITY, masked=True),
    Case(f"dpot/{DPOT_PDEBENCH}", (21, *PLANE), FLOW, parameters=MACH, count=6),
]  # fmt: skip

DRAWN = list({(len(one.shape), one.shape[0] > 1, bool(one.static), one.masked): one for one in CASES}.values())
"""One case of each kind: drawing takes much longer than all the rest."""

CONFIGURED = {
    "reservoir_2d": ("reservoir/UNRST_33331.mat",),
    "reservoir_3d": ("reservoir/UNRST_40605.mat", "reservoir/UNRST_40403.mat"),
    "burgers_front_1d": ("pysindy/burgers.mat",),
    "kdv_1d": ("pysindy/kdv.mat",),
    "kuramoto_sivashinsky_1d": ("pysindy/kuramoto_sivishinky.mat",),
    "heat_2d": ("pydmd/heat_90.npy",),
    "burgers_1d": ("neuralop/burgers_train_16.pt", "neuralop/burgers_test_16.pt"),
    "darcy_flow": ("neuralop/darcy_train_16.pt", "neuralop/darcy_test_16.pt", "neuralop/darcy_test_32.pt"),
    "decaying_turbulence_2d": ("the_well/decaying_turbulence_2d",),
}
"""Real files by the configuration that opens them, or a sibling of theirs."""


@pytest.fixture
def layouts(shared: Path) -> Path:
    return shared / "data" / "layouts"


def test_no_file_is_forgotten(shared: Path, layouts: Path) -> None:
    known = [layouts / case.path for case in CASES]
    known += [shared / "data" / name for names in CONFIGURED.values() for name in names]
    files = [file for file in (shared / "data").rglob("*") if file.is_file()]
    assert len(files) > 80
    assert not [file for file in files if not any(file == one or one in file.parents for one in known)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.path)
def test_a_published_file(layouts: Path, tmp_path: Path, case: Case) -> None:
    path, name = layouts / case.path, case.path.split("/")[0]
    assert find_layout(path) == name
    report = info(path, tmp_path / "picture.png" if case in DRAWN else None)
    assert len(report.problems) == len(case.problems), report.text()
    assert all(words in problem for words, problem in zip(case.problems, report.problems, strict=True))
    assert sum(report.splits.values()) == case.count
    assert (tmp_path / "picture.png").exists() == (case in DRAWN)
    opened = FileSource("one", converted(path, **case.options), layout(name))
    found = opened.info
    assert (found.channels, found.static_channels) == (case.channels, case.static)
    assert (found.parameters, found.masked) == (case.parameters, case.masked)
    assert sum(opened.splits.values()) == case.count
    split = next(split for split, count in opened.splits.items() if count)
    check(next(opened.read(split, 0, 1)), case)


def converted(path: Path, **options: Any) -> ConvertConfig:
    """A configuration that keeps a layout's own splits, and else tests on the last trajectory."""
    name = find_layout(path)
    assert name is not None
    config = ConvertConfig(path=str(path), **options)
    divided = layout(name).header(layout(name).files(path)[0], config).split is not None
    return config if divided else config.model_copy(update={"splits": SplitRule(test=1)})


def check(one: Trajectory, case: Case) -> None:
    """A trajectory is what its case says, and finite."""
    assert one.fields.shape == (*case.shape, len(case.channels))
    assert one.fields.dtype == np.float32
    assert np.isfinite(one.fields).all()
    assert one.times.shape == case.shape[:1]
    assert tuple(one.parameters) == case.parameters
    assert (one.static is not None) == bool(case.static)
    if one.static is not None:
        assert one.static.shape == (*case.shape[1:], len(case.static))
        assert np.ptp(one.static) > 0
    assert (one.mask is not None) == case.masked
    if one.mask is not None:
        assert one.mask.shape == case.shape[1:]


@pytest.mark.parametrize("name", CONFIGURED)
def test_a_real_file_by_its_configuration(shared: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # paths in configurations are relative to where a command runs
    file = ROOT / "configs" / "data" / f"{name}.yaml"
    paths = [shared / "data" / path for path in CONFIGURED[name]]
    assert all(path.exists() for path in paths)
    report = validate(file)
    assert report.ok, report.text()
    opened: Source = open_source(load(DatasetConfig, file))
    assert report.info == opened.info
    assert report.splits == {split: count for split, count in opened.splits.items() if count}


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """One session for all builds and exports."""
    with keep_ray(), ray_session():
        yield


STORED = [
    next(case for case in CASES if case.path == path)
    for path in (
        "pdebench/1D_CFD_Rand_Eta0.1_Zeta0.1_periodic_Train.hdf5",
        "pdebench/3D_CFD_Rand_M1.0_Eta1e-08_Zeta1e-08_periodic_Train.hdf5",
        "pdebench/2D_DarcyFlow_beta1.0_Train.hdf5",
        "cfdbench/cylinder",
    )
]


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize("case", STORED, ids=lambda case: case.path)
def test_from_the_files_through_both_stores(layouts: Path, tmp_path: Path, case: Case) -> None:
    path = layouts / case.path
    config = DatasetConfig(
        name="one", convert=converted(path, source="made", licence="MIT"), store=StoreConfig(trajectories_per_shard=2)
    )
    source = open_source(config)
    zarr = build_store(config, tmp_path)
    shards = export_shards(zarr, tmp_path, config.export)
    assert main(["data", "validate", str(zarr)]) == 0
    assert main(["data", "validate", str(shards)]) == 0
    expected = list(source.read("train", 0, 2))
    for store in (open_store(zarr, "train"), open_store(shards, "train")):
        assert store.info == source.info
        assert len(store) == len(expected)
        for number, one in enumerate(expected):
            np.testing.assert_array_equal(read_window(store, number, 0, source.info.frames), one.fields)
            np.testing.assert_equal(store.static(number), one.static)
            np.testing.assert_equal(store.mask(number), one.mask)
            assert store.parameters(number) == one.parameters
