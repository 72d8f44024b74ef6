"""What goes out in The Well's layout is read by The Well's own package, and comes back in as it was."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from data_pipeline.base.errors import DataError
from data_pipeline.build import build_store
from data_pipeline.config import ConvertConfig, DatasetConfig
from data_pipeline.inspect import validate
from data_pipeline.sources.files import FileSource
from data_pipeline.sources.the_well import LAYOUT
from data_pipeline.stores import open_store, read_manifest
from data_pipeline.stores.protocol import read_window
from data_pipeline.well_export import Group, export_well, groups
from data_pipeline.workers import keep_ray
from tests.well_files import write_dataset

FIELDS = (("density",), ("velocity",), ("stress",))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("well")
    write_dataset(root / "raw", {"train": 3, "test": 2}, fields=FIELDS, static=(("speed",), (), ()),
                  sample_scalars=("forcing",), boundaries=("PERIODIC", "WALL"))  # fmt: skip
    config = ConvertConfig(layout="the_well", path=str(root / "raw"), licence="CC-BY-4.0")
    with keep_ray():
        return build_store(DatasetConfig(name="made", convert=config), root)


def test_components_are_joined_only_where_all_of_them_follow_one_another() -> None:
    names = ("density", "velocity_x", "velocity_y", "b_x", "s_xx", "s_xy", "s_yx", "s_yy", "_x", "_y")
    assert groups(names, ("x", "y")) == [
        Group("density", 0, (0,)), Group("velocity", 1, (1, 2)), Group("b_x", 0, (3,)), Group("s", 2, (4, 5, 6, 7)),
        Group("_x", 0, (8,)), Group("_y", 0, (9,)),
    ]  # fmt: skip
    assert groups(("u_x",), ("x",)) == [Group("u", 1, (0,))]


def test_the_wells_own_package_reads_it(store: Path, tmp_path: Path) -> None:
    from the_well.data import WellDataset
    from the_well.data.normalization import ZScoreNormalization

    folder = export_well(store, tmp_path)
    theirs = WellDataset(path=str(folder), well_split_name="train", normalization_path="stats.yaml",
                         n_steps_input=2, n_steps_output=1,
                         use_normalization=True, normalization_type=ZScoreNormalization)  # fmt: skip
    ours = open_store(store, "train")
    frames = ours.info.frames
    assert len(theirs) == 3 * (frames - 2)
    flat = [name for order in theirs.metadata.field_names.values() for name in order]
    assert tuple(flat) == ours.info.channels
    sample = theirs[frames - 2 + 1]  # second trajectory, from its second frame on
    expected = read_window(ours, 1, 1, 3)
    mean, std = (np.array(getattr(read_manifest(store).statistics, what)) for what in ("mean", "std"))
    np.testing.assert_allclose(sample["input_fields"], (expected[:2] - mean) / std, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(sample["output_fields"], (expected[2:] - mean) / std, rtol=1e-4, atol=1e-5)
    assert sample["boundary_conditions"].tolist() == [[2, 2], [0, 0]]  # periodic, wall
    assert sample["constant_fields"].shape == (*ours.info.space, 1)
    assert float(sample["constant_scalars"][theirs.metadata.constant_scalar_names.index("forcing")]) == pytest.approx(
        ours.parameters(1)["forcing"]
    )
    assert sample["space_grid"].shape == (*ours.info.space, 2)


def test_what_goes_out_comes_back_in(store: Path, tmp_path: Path) -> None:
    folder = export_well(store, tmp_path)
    assert validate(folder).ok, validate(folder).text()
    back = FileSource("made", ConvertConfig(layout="the_well", path=str(folder)), LAYOUT)
    ours = open_store(store, "test")
    same = ("channels", "static_channels", "space", "axes", "boundaries", "frames", "dt")
    for what in same:
        assert getattr(back.info, what) == getattr(ours.info, what), what
    assert back.splits == {"train": 3, "valid": 0, "test": 2}
    for number, one in enumerate(back.read("test", 0, 2)):
        np.testing.assert_array_equal(one.fields, read_window(ours, number, 0, ours.info.frames))
        np.testing.assert_array_equal(one.static, ours.static(number))
        assert one.parameters == pytest.approx(ours.parameters(number))


def test_its_statistics_are_those_of_the_store(store: Path, tmp_path: Path) -> None:
    stats = yaml.safe_load((export_well(store, tmp_path) / "stats.yaml").read_text())
    figures = read_manifest(store).statistics
    assert stats["std"]["density"] == pytest.approx(figures.std[0])
    assert stats["mean"]["velocity"] == pytest.approx(figures.mean[1:3])
    assert np.ravel(stats["rms_delta"]["stress"]).tolist() == pytest.approx(figures.change_rms[3:7])


def test_a_folder_that_is_there_is_never_overwritten(store: Path, tmp_path: Path) -> None:
    export_well(store, tmp_path)
    with pytest.raises(DataError, match="there already"):
        export_well(store, tmp_path)
