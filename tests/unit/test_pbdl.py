"""PBDL's files: fields by their scheme, constants, boundaries, domain."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data_pipeline.base.errors import ConfigError, DataError
from data_pipeline.config import ConvertConfig, SplitRule
from data_pipeline.sources.files import FileSource
from data_pipeline.sources.pbdl import LAYOUT
from tests.layout_files import everything, random, source, truncate, write_hdf5


def write(path: Path, sims: int = 3, shape: tuple[int, ...] = (5, 4, 8, 6), **changes: Any) -> Path:
    """A file of compressible flow in 2D; `changes` replace attributes (blanks are underscores), None drops one."""
    attributes: dict[str, Any] = {
        "PDE": "compressible flow",
        "Dimension": len(shape) - 2,
        "Fields": ["vx", "vy", "density", "pressure"],
        "Fields Scheme": "VVdp",
        "Domain Extent": [2.0, 1.5],
        "Dt": 0.05,
        "Boundary Conditions": ["periodic", "wall"],
        "Boundary Conditions Order": ["x", "y"],
        "Constants": ["viscosity"],
    }
    attributes |= {key.replace("_", " "): value for key, value in changes.items()}
    arrays = {f"sims/sim{n}": random(*shape, seed=n) for n in range(sims)}
    own: dict[str, dict[str, Any]] = {f"sims/sim{n}": {"viscosity": 0.01 * (n + 1)} for n in range(sims)}
    kept = {key: value for key, value in attributes.items() if value is not None}
    return write_hdf5(path, arrays, {"sims": kept, **own})


def test_tiny_file(shared: Path) -> None:
    path = shared / "data" / "layouts" / "pbdl" / "burgers.hdf5"
    if not path.exists():
        pytest.skip("no tiny files")
    assert LAYOUT.files(path.parent) == [path]
    opened = source(LAYOUT, path)
    assert (opened.info.channels, opened.info.boundaries) == (("velocity_x", "velocity_y"), ("periodic", "periodic"))
    assert (opened.info.dt, opened.info.extent) == (0.01, ((0.0, 1.0), (0.0, 1.0)))
    with h5py.File(path) as root:
        for index, one in enumerate(everything(opened)):
            np.testing.assert_array_equal(one.fields, np.moveaxis(root[f"sims/sim{index}"][()], 1, -1))
            assert one.parameters == {"viscosity": root[f"sims/sim{index}"].attrs["viscosity"]}


def test_simulations_in_numeric_order(tmp_path: Path) -> None:
    opened = source(LAYOUT, write(tmp_path / "flow.hdf5", sims=12))
    assert opened.info.channels == ("velocity_x", "velocity_y", "density", "pressure")
    assert opened.info.boundaries == ("periodic", "wall")
    assert opened.info.extent == ((0.0, 2.0), (0.0, 1.5))
    found = [one.parameters["viscosity"] for one in everything(opened)]
    assert found == pytest.approx([0.01 * n for n in range(1, 13)])


def test_vectors_and_scalars_by_their_scheme(tmp_path: Path) -> None:
    path = write(tmp_path / "mhd.hdf5", Fields=["bx", "by", "Heat flux", "x"], Fields_Scheme="BBqX")
    assert source(LAYOUT, path).info.channels == ("b_x", "b_y", "heat_flux", "x")


def test_three_axes(tmp_path: Path) -> None:
    changes = {"Fields": ["u", "v", "w"], "Fields_Scheme": "VVV", "Domain_Extent": 1.0}
    changes |= {"Boundary_Conditions": ["periodic"], "Boundary_Conditions_Order": ["x", "y", "z"]}
    opened = source(LAYOUT, write(tmp_path / "flow.hdf5", shape=(3, 3, 4, 5, 6), **changes))
    assert opened.info.channels == ("velocity_x", "velocity_y", "velocity_z")
    np.testing.assert_array_equal(next(everything(opened)).fields[..., 2], random(3, 3, 4, 5, 6)[:, 2])


def test_sides_of_one_axis_take_the_stronger_condition(tmp_path: Path) -> None:
    changes = {
        "Boundary_Conditions": ["open", "Dirichlet", "periodic"],
        "Boundary_Conditions_Order": ["-x", "x+", "y"],
    }
    assert source(LAYOUT, write(tmp_path / "flow.hdf5", **changes)).info.boundaries == ("wall", "periodic")


def test_the_layout_has_no_splits(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training and test data[\s\S]*convert\.splits"):
        FileSource("made", ConvertConfig(path=str(write(tmp_path / "flow.hdf5"))), LAYOUT)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"Dt": None}, r"missing attribute[\s\S]*sims@Dt"),
        ({"Dt": -1.0}, r"not positive numbers[\s\S]*sims@Dt[\s\S]*-1"),
        ({"Fields": ["vx", "vy"]}, r"do not fit their scheme[\s\S]*'VVdp'"),
        ({"Fields_Scheme": "VVVp"}, r"too many components[\s\S]*VVVp"),
        ({"Boundary_Conditions": ["periodic", "sticky"]}, r"unknown boundary[\s\S]*sticky[\s\S]*convert\.boundaries"),
        ({"Boundary_Conditions_Order": ["x", "z"]}, r"do not fit their order[\s\S]*x, y"),
        ({"Constants": ["viscosity", "gamma"]}, r"missing attribute[\s\S]*sim0@gamma"),
        ({"Dimension": 3}, r"wrong rank[\s\S]*sims/sim0[\s\S]*\(5, 4, 8, 6\)[\s\S]*time, components 4, x, y, z"),
        ({"Domain_Extent": [1.0, 2.0, 3.0]}, r"not positive numbers[\s\S]*Domain Extent"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        source(LAYOUT, write(tmp_path / "flow.hdf5", **changes), splits=SplitRule(test=1))


def test_damage_nan_and_odd_simulations_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "flow.hdf5")
    with h5py.File(path, "r+") as root:
        root["sims/sim1"][0, 2, 0, 0] = np.nan
    with pytest.raises(DataError, match=r"NaN or Inf[\s\S]*density[\s\S]*trajectory 1"):
        list(everything(source(LAYOUT, path)))
    with h5py.File(path, "r+") as root:
        del root["sims/sim1"]
        root["sims/sim1"] = random(4, 4, 8, 6)
    with pytest.raises(DataError, match=r"differ in shape[\s\S]*sims/sim1"):
        list(everything(source(LAYOUT, path)))
    write(tmp_path / "other.hdf5")
    assert truncate(path) in LAYOUT.files(tmp_path)
    with pytest.raises(DataError, match=r"not a readable HDF5 file[\s\S]*flow\.hdf5"):
        source(LAYOUT, tmp_path, splits=SplitRule(test=1))
