"""CFDBench: cases of four problems, with masks that follow from their geometry."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.base.errors import ConfigError, DataError
from data_pipeline.config import ConvertConfig
from data_pipeline.sources.cfdbench import LAYOUT, fluid, read_case
from data_pipeline.sources.files import FileSource
from data_pipeline.sources.registry import find_layout

FILES = Path("data") / "layouts" / "cfdbench"
CAVITY = {"vel_top": 2.0, "density": 1.0, "viscosity": 0.01, "height": 0.1, "width": 0.2}
DAM = {
    "velocity": 3.0, "density": 1.0, "viscosity": 0.01, "barrier_height": 0.1, "barrier_width": 0.3, "height": 0.4,
    "width": 1.6, "dx": 0.2, "dy": 0.1,
}  # fmt: skip
CYLINDER = {
    "vel_in": 4.0, "density": 1.0, "viscosity": 0.01, "radius": 1.2, "x_min": -2.0, "x_max": 4.0, "y_min": -2.0,
    "y_max": 2.0,
}  # fmt: skip


def source(path: Path, **options: Any) -> FileSource:
    content = {"path": str(path), "splits": {"test": 0}} | options
    return FileSource("one", ConvertConfig.model_validate(content), LAYOUT)


def save_case(root: Path, place: str, case: dict[str, Any], frames: int = 3, shape: tuple[int, int] = (4, 6)) -> Path:
    """A case with (y, x) points."""
    folder = root / place
    folder.mkdir(parents=True)
    (folder / "case.json").write_text(json.dumps(case))
    for seed, name in enumerate("uv"):
        values = np.random.default_rng(seed).normal(size=(frames, *shape))
        np.save(folder / f"{name}.npy", values.astype(np.float32))
    return folder


def test_x_comes_first_and_everything_is_carried_along(tmp_path: Path) -> None:
    folder = save_case(tmp_path, "cavity/bc/case0000", CAVITY)
    found = source(tmp_path / "cavity")
    assert found.info.channels == ("velocity_x", "velocity_y")
    assert (found.info.axes, found.info.space, found.info.extent) == (("x", "y"), (6, 4), ((0.0, 0.2), (0.0, 0.1)))
    assert (found.info.dt, found.info.boundaries, found.info.masked) == (0.1, ("wall", "wall"), True)
    (one,) = found.read("train", 0, 1)
    np.testing.assert_array_equal(one.fields[..., 0], np.load(folder / "u.npy").transpose(0, 2, 1))
    np.testing.assert_array_equal(one.fields[..., 1], np.load(folder / "v.npy").transpose(0, 2, 1))
    assert one.parameters == {"velocity": 2.0, "density": 1.0, "viscosity": 0.01, "height": 0.1, "width": 0.2}
    assert one.mask is not None
    assert one.mask.all()


def test_cases_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for place in ("bc/case10", "bc/case2", "geo/case1"):
        save_case(tmp_path, f"tube/{place}", {**CAVITY, "vel_in": 1.0})
    names = [file.relative_to(tmp_path / "tube").as_posix() for file in LAYOUT.files(tmp_path / "tube")]
    assert names == ["bc/case2", "bc/case10", "geo/case1"]


def test_the_path_is_any_level(shared: Path) -> None:
    folder = shared / FILES
    counts = {"": 12, "cavity": 3, "cavity/geo": 1, "cavity/geo/case0000": 1}
    assert {place: len(LAYOUT.files(folder / place)) for place in counts} == counts
    assert all(find_layout(folder / place) == "cfdbench" for place in counts)


def test_several_problems_share_what_all_of_them_have(shared: Path) -> None:
    found = source(shared / FILES, files=["cavity/*", "cylinder/*", "tube/*"], dt=0.1)
    assert found.info.parameters == ("velocity", "density", "viscosity")
    assert found.info.boundaries == ("open", "wall")
    assert found.splits["train"] == 9
    (cylinder,) = found.read("train", 3, 4)
    assert cylinder.provenance["problem"] == "cylinder"
    assert cylinder.provenance["radius"] == "0.01"
    assert "radius" in source(shared / FILES, files=["cylinder/*"]).info.parameters


def test_cases_of_different_length_need_segments(tmp_path: Path) -> None:
    save_case(tmp_path, "tube/bc/case0000", {**CAVITY, "vel_in": 1.0}, frames=5)
    save_case(tmp_path, "tube/bc/case0001", {**CAVITY, "vel_in": 1.0}, frames=7)
    with pytest.raises(DataError, match=r"differ in frames(.|\n)*convert\.frames"):
        source(tmp_path)
    assert source(tmp_path, frames=2).splits["train"] == 5
    assert source(tmp_path, frames=2, remainder="repeat_last").splits["train"] == 7


def test_the_cylinder_stands_at_the_origin() -> None:
    # Cells of 1 x 1, middles at -1.5, -0.5, ... 3.5 and -1.5, -0.5, 0.5, 1.5: four of them within 1.2 of the origin.
    expected = np.ones((6, 4), bool)
    expected[1:3, 1:3] = False
    np.testing.assert_array_equal(fluid(CYLINDER, (6, 4)), expected)


def test_the_barrier_stands_on_the_ground() -> None:
    # Cells of 0.2 x 0.1. The barrier: 0.5 to 0.8, up to 0.1, so the middles 0.5 and 0.7 of the lowest row.
    expected = np.ones((8, 4), bool)
    expected[2:4, 0] = False
    np.testing.assert_array_equal(fluid(DAM, (8, 4)), expected)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({**CAVITY, "vel_top": None}, r"missing key(.|\n)*key: vel_top"),
        ({k: v for k, v in CAVITY.items() if k != "viscosity"}, r"key: viscosity(.|\n)*found: \['density'"),
        ({**CAVITY, "density": "one"}, r"not a number(.|\n)*key: density"),
        ({**CAVITY, "width": 0.0}, "the domain is empty"),
        ([1.0], "not a case"),
    ],
)
def test_a_wrong_case_is_named(tmp_path: Path, case: Any, message: str) -> None:
    folder = save_case(tmp_path, "cavity/bc/case0000", case)
    with pytest.raises(DataError, match=message) as caught:
        read_case(folder)
    assert str(folder / "case.json") in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("u.npy", None, r"file not found(.|\n)*u\.npy"),
        ("v.npy", b"\x93NUMPY\x01", r"not a readable NPY array(.|\n)*v\.npy"),
        ("case.json", b"{", r"not a readable JSON file(.|\n)*case\.json"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    folder = save_case(tmp_path, "cavity/bc/case0000", CAVITY)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        source(tmp_path / "cavity")


def test_arrays_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folder = save_case(tmp_path, "cavity/bc/case0000", CAVITY)
    np.save(folder / "v.npy", np.zeros((3, 4, 5), np.float32))
    with pytest.raises(DataError, match=r"key: v(.|\n)*\(3, 4, 5\)(.|\n)*x 6"):
        source(tmp_path)


def test_gaps_are_reported_with_their_case(tmp_path: Path) -> None:
    folder = save_case(tmp_path, "cavity/bc/case0000", CAVITY)
    values = np.load(folder / "v.npy")
    values[1, 2, 3] = np.nan
    np.save(folder / "v.npy", values)
    with pytest.raises(DataError, match=r"NaN or Inf(.|\n)*case0000(.|\n)*velocity_y"):
        list(source(tmp_path).read("train", 0, 1))


def test_splits_are_the_users_choice(tmp_path: Path) -> None:
    save_case(tmp_path, "cavity/bc/case0000", CAVITY)
    with pytest.raises(ConfigError, match=r"convert\.splits"):
        source(tmp_path, splits=None)
