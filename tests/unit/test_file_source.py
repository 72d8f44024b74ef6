"""Splits by explicit rule, segments, and what a configuration changes, for any layout."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.base.errors import ConfigError, DataError
from data_pipeline.config import SPLITS, ConvertConfig
from data_pipeline.sources.files import FileSource
from data_pipeline.sources.layout import Header, Read
from data_pipeline.sources.splits import Run, assign
from data_pipeline.trajectory import Trajectory


class Numbered:
    """A layout of files `NAME_FRAMES_TRAJECTORIES.txt`, whose fields are (file, trajectory, frame)."""

    title, expected = "numbered files", "files named like a_5_3.txt"

    def files(self, path: Path) -> list[Path]:
        return sorted(path.glob("*_*_*.txt"))

    def header(self, path: Path, config: ConvertConfig) -> Header:
        name, frames, trajectories = path.stem.split("_")
        return Header(
            path=path, trajectories=int(trajectories), frames=int(frames), channels=("file", "trajectory", "frame"),
            axes=("x",), space=(2,), extent=((0.0, 1.0),), boundaries=("periodic",), dt=0.5, parameters=("mu",),
            static_channels=("k",), masked=True, split=next((s for s in SPLITS if name.startswith(s)), None),
        )  # fmt: skip

    @contextmanager
    def open(self, header: Header, config: ConvertConfig) -> Iterator[Read]:
        def read(index: int, frames: slice) -> Trajectory:
            numbers = np.arange(header.frames)[frames]
            fields = np.zeros((len(numbers), 2, 3), np.float32)
            fields[..., 0], fields[..., 1] = ord(header.path.name[0]), index
            fields[..., 2] = numbers[:, None]
            static, mask = np.full((2, 1), index, np.float32), np.array([True, False])
            return Trajectory(fields, 0.5 * numbers, {"mu": float(index)}, static, mask)

        yield read


def source(folder: Path, *files: str, **settings: Any) -> FileSource:
    for file in files:
        (folder / f"{file}.txt").touch()
    return FileSource("made", ConvertConfig.model_validate({"path": str(folder), **settings}), Numbered())


def numbers(one: FileSource, split: str) -> list[tuple[str, int, int]]:
    """File, trajectory and first frame of each trajectory of a split."""
    found = list(one.read(split, 0, one.splits[split]))
    return [(chr(int(t.fields[0, 0, 0])), int(t.fields[0, 0, 1]), int(t.fields[0, 0, 2])) for t in found]


def test_a_rule_divides_trajectories_in_the_order_of_the_files(tmp_path: Path) -> None:
    one = source(tmp_path, "a_4_3", "b_4_4", splits={"valid": 1, "test": 0.3})
    assert one.splits == {"train": 4, "valid": 1, "test": 2}
    assert numbers(one, "train") == [("a", 0, 0), ("a", 1, 0), ("a", 2, 0), ("b", 0, 0)]
    assert numbers(one, "valid") == [("b", 1, 0)]
    assert numbers(one, "test") == [("b", 2, 0), ("b", 3, 0)]


def test_the_test_split_can_come_first(tmp_path: Path) -> None:
    one = source(tmp_path, "a_4_10", splits={"order": ["test", "train", "valid"], "test": 0.1})
    assert numbers(one, "test") == [("a", 0, 0)]
    assert numbers(one, "train")[0] == ("a", 1, 0)


def test_splits_of_the_layout_stand_and_can_be_merged_and_limited(tmp_path: Path) -> None:
    files = ("test_4_2", "train_4_3", "valid_4_2")
    one = source(tmp_path, *files, merge={"valid": "train"}, limit={"train": 4})
    assert one.splits == {"train": 4, "valid": 0, "test": 2}
    assert numbers(one, "train") == [("t", 0, 0), ("t", 1, 0), ("t", 2, 0), ("v", 0, 0)]


def test_a_limit_takes_the_first_of_a_split_and_of_no_other(tmp_path: Path) -> None:
    one = source(tmp_path, "a_4_5", "b_4_5", splits={"train": 3, "valid": 1, "test": 4}, limit={"valid": 1, "test": 2})
    assert one.splits == {"train": 3, "valid": 1, "test": 2}
    assert numbers(one, "valid") == [("a", 3, 0)]
    assert numbers(one, "test") == [("a", 4, 0), ("b", 0, 0)]


def test_segments_of_one_trajectory_stay_in_one_split(tmp_path: Path) -> None:
    one = source(tmp_path, "a_7_2", "b_5_1", frames=2, splits={"test": 1})
    assert one.info.frames == 2
    assert numbers(one, "train") == [("a", 0, 0), ("a", 0, 2), ("a", 0, 4), ("a", 1, 0), ("a", 1, 2), ("a", 1, 4)]
    assert numbers(one, "test") == [("b", 0, 0), ("b", 0, 2)]
    assert [t.provenance["first_frame"] for t in one.read("test", 0, 2)] == [0, 2]


def test_segments_of_a_single_trajectory_can_be_divided(tmp_path: Path) -> None:
    one = source(tmp_path, "a_10_1", frames=3, splits={"test": 1, "of": "segments"})
    assert numbers(one, "train") == [("a", 0, 0), ("a", 0, 3)]
    assert numbers(one, "test") == [("a", 0, 6)]


def test_the_last_segment_is_filled_up_with_its_last_frame(tmp_path: Path) -> None:
    one = source(tmp_path, "a_5_1", frames=3, remainder="repeat_last", splits={"train": 0, "test": "rest"})
    (last,) = one.read("test", 1, 2)
    assert last.fields[:, 0, 2].tolist() == [3, 4, 4]
    assert last.times.tolist() == [1.5, 2.0, 2.5]


def test_a_stride_takes_every_so_many_frames(tmp_path: Path) -> None:
    one = source(tmp_path, "a_9_1", frames=2, stride=2, splits={"train": 0, "test": "rest"})
    assert one.info.dt == 1.0
    assert [t.fields[:, 0, 2].tolist() for t in one.read("test", 0, 2)] == [[0, 2], [4, 6]]
    assert [t.times.tolist() for t in one.read("test", 0, 1)] == [[0.0, 1.0]]


def test_frames_so_far_apart_in_time_need_a_stride_of_their_own_in_each_file(tmp_path: Path) -> None:
    one = source(tmp_path, "a_9_1", "b_3_1", frames=2, every=2.0, splits={"train": 0, "test": "rest"})
    assert one.info.dt == 2.0
    assert [t.fields[:, 0, 2].tolist() for t in one.read("test", 0, 1)] == [[0, 4]]
    with pytest.raises(ConfigError, match=r"convert.every[\s\S]*multiple of the time step, 0.5"):
        source(tmp_path, frames=2, every=0.75, splits={"train": 0, "test": "rest"})


def test_fields_are_chosen_ordered_and_renamed_and_the_mask_becomes_one(tmp_path: Path) -> None:
    new = {"frame": "time", "mu": "viscosity", "k": "permeability"}
    one = source(tmp_path, "a_2_1", channels=["frame", "mask"], rename=new, parameters={"rho": 2.0}, dt=0.25,
                 splits={"train": 0, "test": "rest"})  # fmt: skip
    assert one.info.channels == ("time", "mask")
    assert (one.info.parameters, one.info.static_channels) == (("viscosity", "rho"), ("permeability",))
    read = next(one.read("test", 0, 1))
    assert read.fields.tolist() == [[[0, 1], [0, 0]], [[1, 1], [1, 0]]]
    assert (one.info.masked, read.mask) == (False, None)
    assert read.parameters == {"viscosity": 0.0, "rho": 2.0}
    assert read.times.tolist() == [0.0, 0.25]


@pytest.mark.parametrize(("settings", "words"), [
    ({}, r"convert.splits[\s\S]*7 trajectories"),
    ({"splits": {"train": 6, "test": 2}}, r"need more[\s\S]*7 trajectories[\s\S]*at least 8"),
    ({"splits": {"test": 1}, "channels": ["frme"]}, "did you mean 'frame'"),
    ({"splits": {"test": 1}, "extent": [[0, 1], [0, 1]]}, r"convert.extent[\s\S]*axes x"),
])  # fmt: skip
def test_what_cannot_be_configured_is_refused(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        source(tmp_path, "a_4_3", "b_4_4", **settings)


def test_a_rule_on_top_of_the_layouts_own_splits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="splits of their own"):
        source(tmp_path, "train_4_3", "test_4_1", splits={"test": 1})


def test_trajectories_of_different_length_need_segments(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"differ in frames[\s\S]*convert.frames"):
        source(tmp_path, "a_4_3", "b_5_1", splits={"test": 1})


def test_files_are_chosen_by_pattern_in_the_order_named(tmp_path: Path) -> None:
    one = source(tmp_path, "a_4_1", "b_4_1", "c_4_1", files=["c_*", "a_4_1.txt"], splits={"test": 1})
    assert numbers(one, "train") + numbers(one, "test") == [("c", 0, 0), ("a", 0, 0)]
    with pytest.raises(DataError, match=r"convert.files[\s\S]*'c_4_1.txt'"):
        source(tmp_path, files=["d_4_1.txt"], splits={"test": 1})


def segments_of(runs: list[Run]) -> list[tuple[int, int]]:
    """File and number of each segment."""
    return [(id(run.header), k) for run in runs for k in range(run.first, run.first + run.count)]


share = st.one_of(st.integers(0, 3), st.floats(0.01, 0.4))


@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 6)), min_size=1, max_size=5),
    valid=share, test=share, order=st.permutations(list(SPLITS)), frames=st.sampled_from([1, 2, 3]),
    of=st.sampled_from(["trajectories", "segments"]), remainder=st.sampled_from(["drop", "repeat_last"]),
    limit=st.integers(0, 5),
)  # fmt: skip
def test_no_segment_is_in_two_splits_and_none_is_lost(
    sizes: list[tuple[int, int]], valid: Any, test: Any, order: list[str], frames: int, of: str, remainder: str,
    limit: int,
) -> None:  # fmt: skip
    headers = [Numbered().header(Path(f"a_{f}_{n}.txt"), ConvertConfig(path=".")) for f, n in sizes]
    rule = {"order": order, "valid": valid, "test": test, "of": of}
    config = ConvertConfig.model_validate({"path": ".", "splits": rule, "frames": frames, "remainder": remainder})
    each = [-(-f // frames) if remainder == "repeat_last" else f // frames for f, _ in sizes]
    whole = {(id(h), k) for h, s in zip(headers, each, strict=True) for k in range(s * h.trajectories)}
    try:
        runs = assign(headers, config)
    except ConfigError:
        return
    taken = [(split, one) for split in SPLITS for one in segments_of(runs[split])]
    limited = assign(headers, config.model_copy(update={"limit": dict.fromkeys(SPLITS, limit)}))
    assert all(segments_of(limited[split]) == segments_of(runs[split])[:limit] for split in SPLITS)
    assert sorted(where for _, where in taken) == sorted(whole)
    if of == "trajectories":
        home: dict[tuple[int, int], str] = {}
        lengths = {id(h): s for h, s in zip(headers, each, strict=True)}
        for split, (header, segment) in taken:
            assert home.setdefault((header, segment // lengths[header]), split) == split, "a trajectory in two splits"
