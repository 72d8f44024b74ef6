"""Validation finds every problem of a dataset, and the report says what the dataset holds."""

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from matplotlib import image

from data_pipeline.base.errors import DataError
from data_pipeline.config import ConvertConfig
from data_pipeline.inspect import ChannelFigures, Report, info, validate
from data_pipeline.sources.files import FileSource
from data_pipeline.sources.the_well import LAYOUT
from data_pipeline.stores import statistics, zarr_writer
from data_pipeline.stores.manifest import Manifest, SplitRecord, record_file, write_manifest
from data_pipeline.stores.shard_index import index_name, write_index
from data_pipeline.stores.shard_writer import write_shard
from data_pipeline.stores.shards import shard_name
from tests.layout_files import advection, random, write_hdf5
from tests.well_files import write_dataset, write_well


def problems_with(report: Report, *words: str) -> list[str]:
    return [problem for problem in report.problems if all(word in problem for word in words)]


def edit(file: Path) -> Any:
    return h5py.File(file, "a")


def test_a_sound_dataset_has_no_problems(tmp_path: Path) -> None:
    written = write_dataset(tmp_path, static=(("speed",), (), ()), sample_scalars=("forcing",))
    report = validate(tmp_path)
    assert report.ok, report.text()
    assert report.layout == "The Well"
    assert report.splits == {"train": 3, "valid": 2, "test": 2}
    everything = np.concatenate([w.channels["velocity_x"].ravel() for w in written.values()])
    figures = report.channels["velocity_x"]
    assert (figures.min, figures.max) == (everything.min(), everything.max())
    assert (figures.mean, figures.std) == pytest.approx((everything.mean(), everything.std()), rel=1e-9)
    assert report.channels["speed"].static
    forcing = np.concatenate([w.parameters["forcing"] for w in written.values()])
    assert report.parameters["forcing"] == pytest.approx((forcing.min(), forcing.max()))
    text = report.text()
    for words in ("8 x 6", "dt 0.25", "train 3, valid 2, test 2", "x periodic", "velocity_y", "no problems found"):
        assert words in text


def test_a_single_file_can_be_looked_at(tmp_path: Path) -> None:
    write_well(tmp_path / "some.h5")
    report = validate(tmp_path / "some.h5")
    assert report.ok
    assert report.splits == {"undivided": 3}


def test_all_problems_are_found_and_not_just_the_first(tmp_path: Path) -> None:
    write_dataset(tmp_path, fields=(("density", "pressure"), ("velocity",), ()))
    train, valid = (tmp_path / "data" / split / f"{split}.hdf5" for split in ("train", "valid"))
    with edit(train) as root:
        root["t0_fields/density"][1, 3, 2, 2] = np.nan
        root["t0_fields/density"][2, 0, 0, :2] = np.inf
        root["t0_fields/pressure"][:] = 1.0
        root["dimensions/x"][2] = 0.0
    with edit(valid) as root:
        root["t0_fields/pressure"][:] = 1.0
        root["dimensions/time"][3] = 0.0
        del root["t1_fields/velocity"]
    (tmp_path / "data" / "test" / "test.hdf5").write_bytes(b"not HDF5")
    report = validate(tmp_path)
    assert not report.ok
    assert problems_with(report, "not in order", str(train), "dimensions/x")
    assert problems_with(report, "not increasing", str(valid), "dimensions/time")
    assert problems_with(report, "missing key", str(valid), "t1_fields/velocity")
    assert problems_with(report, "not a readable HDF5 file", "test.hdf5")
    assert problems_with(report, "test split is empty")
    assert str(len(report.problems)) in report.text()


def test_nan_inf_and_constant_fields_are_counted(tmp_path: Path) -> None:
    write_dataset(tmp_path, fields=(("density", "pressure"), (), ()))
    for split in ("train", "valid", "test"):
        with edit(tmp_path / "data" / split / f"{split}.hdf5") as root:
            root["t0_fields/pressure"][:] = 1.0
    with edit(tmp_path / "data" / "train" / "train.hdf5") as root:
        root["t0_fields/density"][1, 3, 2, 2] = np.nan
        root["t0_fields/density"][2, 0, 0, :2] = np.inf
    report = validate(tmp_path)
    assert len(report.problems) == 2
    assert problems_with(report, "channel density: 1 NaN and 2 Inf in 2 trajectories", "trajectory 1, frame 3")
    assert problems_with(report, "channel pressure is constant: 1")
    assert np.isfinite(report.channels["density"].std)


def test_zero_diagonal_of_an_antisymmetric_tensor_is_no_problem(tmp_path: Path) -> None:
    write_dataset(tmp_path, fields=((), (), ("spin",)))
    for file in tmp_path.rglob("*.hdf5"):
        with edit(file) as root:
            values = root["t2_fields/spin"][:]
            root["t2_fields/spin"][:] = values - np.swapaxes(values, -1, -2)
    assert len(problems_with(validate(tmp_path), "is constant")) == 2
    for file in tmp_path.rglob("*.hdf5"):
        with edit(file) as root:
            root["t2_fields/spin"].attrs["antisymmetric"] = True
    assert validate(tmp_path).ok


def test_a_duplicate_within_a_split_is_found(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    with edit(tmp_path / "data" / "train" / "train.hdf5") as root:
        for key in ("t0_fields/density", "t1_fields/velocity"):
            root[key][2] = root[key][0]
    report = validate(tmp_path)
    assert len(report.problems) == 1
    assert problems_with(report, "duplicate", "trajectory 0", "trajectory 2")
    assert not problems_with(report, "leak")


def test_a_trajectory_in_two_splits_is_a_leak(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"train": 2, "test": 2})
    folder = tmp_path / "data"
    shutil.copy(folder / "train" / "train.hdf5", folder / "test" / "test.hdf5")
    report = validate(tmp_path)
    assert len(problems_with(report, "leak from train into test")) == 2


def test_an_empty_test_split_is_a_problem_and_an_empty_valid_split_is_not(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"train": 2})
    report = validate(tmp_path)
    assert report.problems == ["the test split is empty"]
    assert report.notes == ["the valid split is empty"]


def test_what_is_not_converted_is_noted(tmp_path: Path) -> None:
    write_dataset(tmp_path, time_scalars=("energy",))
    report = info(tmp_path)
    assert report.ok
    assert any("energy" in note for note in report.notes)


def test_files_that_disagree_are_reported_and_still_read(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    write_well(tmp_path / "data" / "test" / "test.hdf5", dt=0.5, space=(4, 4))
    report = validate(tmp_path)
    (problem,) = problems_with(report, "differ in space, time step")
    wide, narrow = "train/train.hdf5, valid/valid.hdf5: space 8, 6; time step 0.25", "test/test.hdf5: space 4, 4; time"
    for words in ("2 datasets", wide, narrow):
        assert words in problem
    assert report.channels["density"].count == 5 * (5 * 8 * 6) + 3 * (5 * 4 * 4)


def test_what_the_configuration_settles_is_noted_once(tmp_path: Path) -> None:
    for number, frames in enumerate((5, 6, 5, 7)):
        write_well(tmp_path / "data" / ("test" if number else "train") / f"{number}.hdf5", frames=frames, seed=number)
    report = validate(tmp_path)
    assert report.ok, report.text()
    assert len([note for note in report.notes if "differ in frames (5, 6, 7): convert.frames" in note]) == 1


def test_files_of_several_layouts_axes_and_kinds_are_looked_at_all_the_same(tmp_path: Path) -> None:
    advection(tmp_path / "1D_Advection_Sols_beta0.1.hdf5")
    flow = {key: random(2, 3, 4, 4, seed=n) for n, key in enumerate(("density", "pressure", "Vx", "Vy"))}
    edges = {"x-coordinate": np.arange(4.0), "y-coordinate": np.arange(4.0), "t-coordinate": np.arange(4.0)}
    write_hdf5(tmp_path / "2D_CFD_Rand_M1.0_Eta0.1_Zeta0.1_periodic_4_Train.hdf5", flow | edges)
    (tmp_path / "readme.txt").write_text("text")
    report = info(tmp_path, tmp_path / "one.png")
    assert (report.layout, report.info, report.splits) == ("PDEBench", None, {"undivided": 6})
    assert len(report.problems) == 1
    assert problems_with(report, "differ in axes, space", "2 datasets", "axes x;", "axes x, y;")
    assert report.channels["u"].count == 4 * 5 * 16
    assert report.channels["pressure"].count == 2 * 3 * 4 * 4
    assert "not of this layout, and not looked at: readme.txt" in report.notes
    assert (tmp_path / "one.png").exists()


def test_where_only_the_time_is_wrong_the_fields_are_read(tmp_path: Path) -> None:
    values = random(4, 5, 16)
    values[1, 2, 3] = np.nan
    path = advection(tmp_path / "1D_Advection_Sols_beta0.1.hdf5", t_coordinate=np.zeros(6), tensor=values)
    report = validate(path)
    assert problems_with(report, "time is not increasing", "t-coordinate")
    assert problems_with(report, "channel u: 1 NaN", "trajectory 1, frame 2")
    assert "the time step is not known" in report.text()


def test_the_split_rule_is_said(tmp_path: Path, shared: Path) -> None:
    path = advection(tmp_path / "1D_Advection_Sols_beta0.1.hdf5")
    assert "split rule  their publisher's: test 0.1, train rest" in validate(path).text()
    layouts = shared / "data" / "layouts"
    assert "split rule  none: give one as convert.splits" in validate(layouts / "pbdl").text()
    report = validate(layouts / "poseidon" / "ACE.nc")
    assert any("the splits need more than there is" in note for note in report.notes)


def test_a_mask_that_became_a_field_may_be_one_everywhere(tmp_path: Path, shared: Path) -> None:
    cavity = shared / "data" / "layouts" / "cfdbench" / "cavity"
    config = {"path": str(cavity), "channels": ["velocity_x", "mask"], "splits": {"train": 2, "test": 1}}
    (tmp_path / "one.yaml").write_text(json.dumps({"name": "one", "convert": config}))
    report = validate(tmp_path / "one.yaml")
    assert report.ok, report.text()
    assert "channel mask is constant: 1 everywhere" in report.notes


def test_many_problems_are_counted_and_some_are_printed(tmp_path: Path) -> None:
    report = Report(tmp_path, "none", None, {}, problems=[f"number {n}." for n in range(80)])
    assert "80 problems:" in report.text()
    assert "number 49." in report.text()
    assert "number 50." not in report.text()
    assert report.text().endswith("- and 30 more")


def test_a_file_that_says_nothing_of_itself_is_described(tmp_path: Path) -> None:
    np.savez(tmp_path / "some.npz", speed=np.zeros((3, 4)), t=np.zeros(3))
    with pytest.raises(DataError, match=r"speed \(3, 4\), t \(3,\)[\s\S]*layout: plain"):
        validate(tmp_path / "some.npz")


def test_a_folder_of_datasets_names_one(tmp_path: Path) -> None:
    write_dataset(tmp_path / "inside")
    with pytest.raises(DataError, match=r"it holds datasets[\s\S]*inside"):
        validate(tmp_path)


def test_figures_survive_a_large_mean() -> None:
    rng = np.random.default_rng(0)
    values = (1e4 + rng.standard_normal((50, 20, 10))).astype(np.float32)
    figures = ChannelFigures("pressure")
    for one in values:
        figures.add(one, "here")
    exact = values.astype(np.float64)
    assert figures.mean == pytest.approx(exact.mean(), rel=1e-14)
    assert figures.std == pytest.approx(exact.std(), rel=1e-10)


@pytest.mark.parametrize("space", [(12,), (8, 1), (4, 5, 6)])
def test_the_picture_has_a_row_for_each_channel(tmp_path: Path, space: tuple[int, ...]) -> None:
    write_dataset(tmp_path, {"train": 1, "test": 1}, space=space, frames=9)
    assert info(tmp_path, tmp_path / "pictures" / "one.png").ok
    height, width = image.imread(tmp_path / "pictures" / "one.png").shape[:2]
    channels = 1 + len(space)
    assert height == pytest.approx(110 * (2.4 * channels + 0.6), abs=2)
    assert width == pytest.approx(110 * (2.4 * 6 + 1.5), abs=2)


def test_a_picture_of_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.h5").write_bytes(b"not HDF5")
    with pytest.raises(DataError, match="not a readable HDF5 file"):
        info(tmp_path / "broken.h5", tmp_path / "one.png")
    assert not (tmp_path / "one.png").exists()


def test_what_is_no_dataset_is_refused_with_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Zarr store"):
        validate(tmp_path / "absent")
    with pytest.raises(DataError, match=r"an empty folder[\s\S]*The Well, PDEBench"):
        validate(tmp_path)
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(DataError, match=r"\.txt"):
        validate(tmp_path / "notes.txt")


def write_store(folder: Path, kind: str, source: FileSource, chosen: dict[str, list[int]]) -> Path:
    """A committed store of the chosen trajectories of each split, without the machinery of a build."""
    splits, moments = {}, []
    if kind == "zarr":
        zarr_writer.create(folder, source.info, {split: len(numbers) for split, numbers in chosen.items()}, 3, {})
    for split, numbers in chosen.items():
        trajectories = [next(source.read(split, number, number + 1)) for number in numbers]
        moments += [statistics.measure(one.fields).model_dump(mode="json") for one in trajectories]
        if kind == "zarr":
            files = zarr_writer.write_shard(folder, source.info, split, 0, 3, trajectories)
        else:
            names = [shard_name(split, 0), index_name(split)]
            _, entries = write_shard(folder / names[0], split, 0, trajectories)
            write_index(folder / names[1], source.info, len(entries), ((0, entry) for entry in entries))
            files = {name: record_file(folder / name) for name in names}
        splits[split] = SplitRecord(trajectories=len(numbers), files=files)
    content = {
        "kind": kind,
        "info": source.info,
        "digest": "",
        "statistics": statistics.statistics(moments),
        "statistics_split": "train",
        "splits": splits,
        "files": {},
        "plan": {},
        "plan_digest": "",
        "code_version": "",
    }
    write_manifest(folder, Manifest.model_validate(content))
    return folder


@pytest.mark.parametrize("kind", ["zarr", "shards"])
def test_a_store_is_read_whole_and_its_damage_is_found(tmp_path: Path, kind: str) -> None:
    written = write_dataset(tmp_path / "raw")
    source = FileSource("made", ConvertConfig(layout="the_well", path=str(tmp_path / "raw")), LAYOUT)
    sound = write_store(tmp_path / "sound", kind, source, {"train": [0, 1], "valid": [0], "test": [1]})
    report = validate(sound)
    assert report.ok, report.text()
    assert list(report.splits.items()) == [("train", 2), ("valid", 1), ("test", 1)]
    assert report.info == source.info
    parts = [written["train"], written["valid"], written["test"]]
    rows = [slice(0, 2), slice(0, 1), slice(1, 2)]
    density = np.concatenate([part.channels["density"][row].ravel() for part, row in zip(parts, rows, strict=True)])
    assert report.channels["density"].mean == pytest.approx(density.mean())
    assert report.parameters["viscosity"] == pytest.approx((0.01, 0.01))

    twice = write_store(tmp_path / "twice", kind, source, {"train": [0, 1, 0]})
    report = validate(twice)
    assert len(problems_with(report, "duplicate")) == 1
    assert "the test split is empty" in report.problems

    largest = max((file for file in sound.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    assert problems_with(validate(sound), str(largest))


def test_the_published_turbulence_is_sound(shared: Path) -> None:
    report = validate(shared / "data" / "the_well" / "decaying_turbulence_2d")
    assert report.ok, report.text()
    assert report.parameters == {"viscosity": (0.0003, 0.0003)}
    assert report.channels["vorticity"].std == pytest.approx(0.988, abs=1e-3)
