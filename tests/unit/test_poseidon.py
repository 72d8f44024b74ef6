"""PDEgym's sets: which one a file is, values and axes, static fields, masks, the publisher's split."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from data_pipeline.base.errors import ConfigError, DataError
from data_pipeline.config import ConvertConfig, SplitRule
from data_pipeline.sources.files import FileSource
from data_pipeline.sources.poseidon import LAYOUT
from data_pipeline.sources.poseidon_sets import SETS, find_set
from tests.layout_files import everything, random, source, truncate, write_hdf5

UV = ("velocity_x", "velocity_y")
TIME_DEPENDENT = {
    "NS-Sines.nc": ("velocity", UV, 1 / 20),
    "NS-PwC.nc": ("velocity", (*UV, "tracer"), 1 / 20),
    "FNS-KF.nc": ("solution", UV, 1 / 20),
    "CE-RP.nc": ("data", ("density", *UV, "pressure", "energy"), 1 / 20),
    "CE-RM.nc": ("solution", ("density", *UV, "pressure", "tracer"), 1 / 20),
    "GCE-RT.nc": ("solution", ("density", *UV, "pressure", "channel_4", "gravity_potential"), 1 / 10),
    "ACE.nc": ("solution", ("phase",), 1 / 19),
    "Wave-Layer.nc": ("solution", ("displacement",), 1 / 20),
}


@pytest.fixture
def tiny(shared: Path) -> Path:
    folder = shared / "data" / "layouts" / "poseidon"
    if not folder.is_dir():
        pytest.skip("no tiny files")
    return folder


def test_every_tiny_file_is_found(tiny: Path) -> None:
    assert len(LAYOUT.files(tiny)) == len(list(tiny.iterdir())) == 11


@pytest.mark.parametrize("name", TIME_DEPENDENT)
def test_sets_in_time(tiny: Path, name: str) -> None:
    key, channels, dt = TIME_DEPENDENT[name]
    opened = source(LAYOUT, tiny / name)
    assert (opened.info.channels, opened.info.dt, opened.info.frames) == (channels, dt, 5)
    with h5py.File(tiny / name) as root:
        for index, one in enumerate(everything(opened)):
            stored = root[key][index]
            expected = stored[..., None] if stored.ndim == 3 else np.moveaxis(stored, 1, -1)
            np.testing.assert_array_equal(one.fields, expected)
            assert one.times.tolist() == pytest.approx([dt * n for n in range(5)])


def test_wave_speed_is_a_static_field(tiny: Path) -> None:
    opened = source(LAYOUT, tiny / "Wave-Layer.nc")
    assert opened.info.static_channels == ("wave_speed",)
    with h5py.File(tiny / "Wave-Layer.nc") as root:
        for index, one in enumerate(everything(opened)):
            np.testing.assert_array_equal(one.static, root["c"][index][..., None])


def test_forcing_of_kolmogorov_flow_is_added(tiny: Path) -> None:
    opened = source(LAYOUT, tiny / "FNS-KF.nc")
    assert opened.info.static_channels == ("force",)
    static = next(everything(opened)).static
    assert static is not None
    assert static.shape == (16, 16, 1)
    assert static[3, 2, 0] == pytest.approx(0.1 * np.sin(2 * np.pi * (3 / 15 + 2 / 15)), abs=1e-7)


def test_steady_sets(tiny: Path) -> None:
    poisson = source(LAYOUT, tiny / "Poisson-Gauss.nc")
    assert (poisson.info.frames, poisson.info.dt, poisson.info.static_channels) == (1, 0.0, ("source",))
    one = next(everything(poisson))
    with h5py.File(tiny / "Poisson-Gauss.nc") as root:
        np.testing.assert_array_equal(one.fields[0, ..., 0], root["solution"][0])
        np.testing.assert_array_equal(one.static, root["source"][0][..., None])
    helmholtz = source(LAYOUT, tiny / "Helmholtz.h5")
    assert helmholtz.info.static_channels == ("coefficient",)
    with h5py.File(tiny / "Helmholtz.h5") as root:
        for index, one in enumerate(everything(helmholtz)):
            np.testing.assert_array_equal(one.fields[0, ..., 0], root[f"Sample_{index}/u"])
            np.testing.assert_array_equal(one.static, root[f"Sample_{index}/a"][()][..., None])
            assert one.parameters == {"boundary_value": float(root[f"Sample_{index}/bc"][()])}


def test_airfoils_are_masked(tmp_path: Path) -> None:
    values = random(3, 2, 8, 8)
    values[:, 0] = 0
    values[:, 0, 2:5, 3] = 1
    opened = source(LAYOUT, write_hdf5(tmp_path / "SE-AF.nc", {"solution": values}))
    assert opened.info.masked
    assert (opened.info.channels, opened.info.static_channels) == (("density",), ("airfoil",))
    one = next(everything(opened))
    assert one.mask is not None
    assert one.mask.dtype == bool
    assert np.argwhere(~one.mask).tolist() == [[2, 3], [3, 3], [4, 3]]
    np.testing.assert_array_equal(one.fields[0, ..., 0], values[0, 1])
    np.testing.assert_array_equal(one.static, values[0, 0][..., None])


def test_exchanged_axes_are_put_right(tmp_path: Path) -> None:
    values = random(3, 5, 2, 8, 6)
    opened = source(LAYOUT, write_hdf5(tmp_path / "NS-SL.nc", {"velocity": values}))
    assert opened.info.space == (6, 8)
    np.testing.assert_array_equal(next(everything(opened)).fields, values[0].transpose(0, 3, 2, 1))


def test_chunks_are_joined_in_numeric_order(tmp_path: Path) -> None:
    folder = tmp_path / "NS-Gauss"
    for number in (0, 2, 10):
        write_hdf5(folder / f"velocity_{number}.nc", {"velocity": random(2, 5, 2, 8, 8, seed=number)})
    opened = source(LAYOUT, folder)
    files = [one.provenance["file"] for one in everything(opened)]
    assert files == [f"velocity_{number}.nc" for number in (0, 0, 2, 2, 10, 10)]


def test_the_publishers_split_is_at_the_end(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "Poisson-Gauss.nc", {k: random(400, 4, 4) for k in ("source", "solution")})
    opened = FileSource("made", ConvertConfig(path=str(path)), LAYOUT)
    assert opened.splits == {"train": 40, "valid": 120, "test": 240}
    assert next(opened.read("valid", 0, 1)).provenance["index"] == 40
    assert next(opened.read("test", 0, 1)).provenance["index"] == 160
    assert "train rest, valid 120, test 240" in opened.info.source


def test_too_few_trajectories_for_the_publishers_split(tiny: Path) -> None:
    with pytest.raises(ConfigError, match=r"need more than there is[\s\S]*publisher's rule"):
        FileSource("made", ConvertConfig(path=str(tiny / "ACE.nc")), LAYOUT)


@pytest.mark.parametrize(
    ("name", "split"),
    [("NS-BB", (120, 240)), ("CE-RPUI", (120, 240)), ("CE-RM", (100, 130)), ("Wave-Gauss", (60, 240)),
     ("GCE-RT", (100, 130)), ("ACE", (60, 240)), ("Helmholtz", (128, 512))],
)  # fmt: skip
def test_published_splits(name: str, split: tuple[int, int]) -> None:
    found = find_set(name)
    assert found in SETS
    assert (found.rule.train, found.rule.valid, found.rule.test) == ("rest", *split)


@pytest.mark.parametrize(
    ("name", "arrays", "words"),
    [
        ("NS-Sines.nc", {"velocity": random(3, 5, 8, 8)}, r"wrong rank[\s\S]*velocity[\s\S]*\(3, 5, 8, 8\)"),
        ("NS-Sines.nc", {"velocity": random(3, 5, 1, 8, 8)}, r"too few components[\s\S]*velocity"),
        ("CE-RP.nc", {"solution": random(3, 5, 5, 8, 8)}, r"missing key[\s\S]*data[\s\S]*solution"),
        ("Wave-Layer.nc", {"solution": random(3, 5, 8, 8)}, r"missing key[\s\S]*key: c"),
        (
            "Wave-Layer.nc",
            {"solution": random(3, 5, 8, 8), "c": random(2, 8, 8)},
            r"fit[\s\S]*key: c[\s\S]*\(2, 8, 8\)",
        ),
        ("SE-AF.nc", {"solution": random(3, 1, 8, 8)}, r"does not fit[\s\S]*\(3, 1, 8, 8\)"),
        ("mine.nc", {"velocity": random(3, 5, 2, 8, 8)}, r"name does not say[\s\S]*mine\.nc[\s\S]*NS-"),
        ("Helmholtz.h5", {"Sample_0/a": random(8, 8)}, r"missing key[\s\S]*Sample_0/u"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, name: str, arrays: dict[str, object], words: str) -> None:
    path = write_hdf5(tmp_path / name, arrays)
    with pytest.raises(DataError, match=words):
        source(LAYOUT, path, splits=SplitRule(test=1))


def test_samples_that_differ_are_named(tmp_path: Path) -> None:
    arrays = {f"Sample_{n}/{key}": random(8, 8, seed=n) for n in range(3) for key in "au"}
    arrays |= {f"Sample_{n}/bc": np.float32(0.5) for n in range(3)}
    arrays["Sample_1/u"] = random(4, 8)
    opened = source(LAYOUT, write_hdf5(tmp_path / "Helmholtz.h5", arrays))
    next(opened.read("train", 0, 1))
    with pytest.raises(DataError, match=r"differ in shape[\s\S]*Sample_1/u[\s\S]*\(4, 8\)"):
        next(opened.read("train", 1, 2))


def test_a_sample_that_was_never_written_is_named(tmp_path: Path) -> None:
    arrays = {f"Sample_{n}/{key}": random(8, 8, seed=n) for n in range(3) for key in "au"}
    arrays |= {f"Sample_{n}/bc": np.float32(0.5) for n in range(3)}
    del arrays["Sample_1/u"]
    path = write_hdf5(tmp_path / "Helmholtz.h5", arrays)
    with h5py.File(path, "r+") as root:
        root.create_dataset("Sample_1/u", (8, 8), "f4")
    opened = source(LAYOUT, path)
    next(opened.read("train", 0, 1))
    with pytest.raises(DataError, match=r"never written[\s\S]*Sample_1/u"):
        next(opened.read("train", 1, 2))


def test_damage_and_nan_are_named(tmp_path: Path) -> None:
    values = random(3, 20, 16, 16)
    values[1, 2, 3, 4] = np.inf
    path = write_hdf5(tmp_path / "ACE.nc", {"solution": values})
    with pytest.raises(DataError, match=r"NaN or Inf[\s\S]*phase[\s\S]*trajectory 1"):
        list(everything(source(LAYOUT, path)))
    truncate(path)
    assert LAYOUT.files(path) == [path]
    with pytest.raises(DataError, match="not a readable HDF5 file"):
        source(LAYOUT, path, splits=SplitRule(test=1))
