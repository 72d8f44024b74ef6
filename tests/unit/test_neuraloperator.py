"""neuraloperator's `.pt` files: views are respected, splits do not leak, and nothing is unpickled."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.base.errors import DataError
from data_pipeline.config import ConvertConfig
from data_pipeline.inspect import validate
from data_pipeline.sources.files import FileSource
from data_pipeline.sources.neuraloperator import LAYOUT


def source(path: Path, **options: Any) -> FileSource:
    return FileSource("one", ConvertConfig.model_validate({"path": str(path)} | options), LAYOUT)


def save_split_views(folder: Path) -> np.ndarray:
    """Two files that each store all trajectories, and show their own ones."""
    y = torch.randn(8, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for name, part in (("train", slice(0, 6)), ("test", slice(6, 8))):
        content = {"x": y[part, 0], "y": y[part], "visc": torch.tensor([[0.01]], dtype=torch.float64)}
        torch.save(content, folder / f"burgers_{name}_16.pt")
    assert y.untyped_storage().nbytes() < (folder / "burgers_test_16.pt").stat().st_size
    return y.numpy()


def test_views_are_read_not_their_storage(tmp_path: Path) -> None:
    y = save_split_views(tmp_path)
    found = source(tmp_path)
    assert dict(found.splits) == {"train": 6, "valid": 0, "test": 2}
    assert (found.info.channels, found.info.frames, found.info.dt) == (("velocity_x",), 6, 0.2)
    assert found.info.static_channels == ()  # `x` is the first frame
    for split, part in (("train", y[:6]), ("test", y[6:])):
        for number, one in enumerate(found.read(split, 0, len(part))):
            np.testing.assert_array_equal(one.fields[..., 0], part[number].astype(np.float32))
            assert one.parameters == {"viscosity": 0.01}
    report = validate(tmp_path)
    assert not [problem for problem in report.problems if "leak" in problem]


def test_an_initial_state_that_is_not_the_first_frame_is_kept(tmp_path: Path) -> None:
    x, y = torch.randn(2, 5), torch.randn(2, 6, 5)
    torch.save({"x": x, "y": y}, tmp_path / "burgers_train_16.pt")
    found = source(tmp_path)
    assert found.info.static_channels == ("initial_velocity_x",)
    (one,) = found.read("train", 1, 2)
    assert one.static is not None
    np.testing.assert_array_equal(one.static[:, 0], x[1].numpy())


def test_darcy_coefficients_are_a_static_field(tmp_path: Path) -> None:
    x = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0)) > 0.5
    torch.save({"x": x, "y": torch.randn(3, 4, 4)}, tmp_path / "darcy_train_4.pt")
    found = source(tmp_path)
    assert (found.info.frames, found.info.dt, found.info.static_channels) == (1, 0.0, ("permeability",))
    (one,) = found.read("train", 2, 3)
    assert one.static is not None
    assert one.static.dtype == np.float32
    np.testing.assert_array_equal(one.static[..., 0], x[2].numpy())


def test_forced_flow_is_steady(tmp_path: Path) -> None:
    torch.save({"x": torch.randn(3, 4, 4), "y": torch.randn(3, 4, 4)}, tmp_path / "nsforcing_test_128.pt")
    found = source(tmp_path).info
    assert (found.static_channels, found.channels) == (("source",), ("vorticity",))
    assert found.boundaries == ("periodic", "periodic")


class _Foreign:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("made by a pickle",)


@pytest.mark.parametrize("mapped", [True, False], ids=["archive", "bare"])
def test_foreign_pickles_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: bool) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "darcy_train_4.pt"
    content = {"x": torch.zeros(1, 2, 2), "y": _Foreign()}
    if mapped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=r"more than tensors(.|\n)*darcy_train_4\.pt"):
        source(path)
    assert not Path("made by a pickle").exists()


def test_meshes_are_refused_with_a_reason(tmp_path: Path) -> None:
    torch.save([{"vertices": torch.zeros(5, 3)}], tmp_path / "mini_car.pt")
    with pytest.raises(DataError, match=r"a list of 1(.|\n)*meshes"):
        source(tmp_path / "mini_car.pt")
    assert LAYOUT.files(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"x": torch.zeros(2, 4, 4), "z": torch.zeros(2, 4, 4)}, "missing key(.|\n)*key: y"),
        ({"x": torch.zeros(2, 4, 4), "y": torch.zeros(2, 4, 5)}, r"key: x(.|\n)*\(2, 4, 4\)(.|\n)*y 5"),
        ({"x": torch.zeros(2, 4), "y": torch.zeros(2, 4, 4, 4)}, "wrong rank(.|\n)*key: y"),
        ({"x": torch.zeros(2, 4), "y": torch.zeros(2, 3, 4, dtype=torch.complex64)}, "not an array of real numbers"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    path = tmp_path / "other_train_4.pt"
    torch.save(content, path)
    with pytest.raises(DataError, match=message) as caught:
        source(path)
    assert str(path) in str(caught.value)


def test_truncated_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "darcy_train_4.pt"
    torch.save({"x": torch.zeros(20, 8, 8), "y": torch.zeros(20, 8, 8)}, path)
    path.write_bytes(path.read_bytes()[:3000])
    assert LAYOUT.files(tmp_path) == [path]
    with pytest.raises(DataError, match=str(path)):
        source(tmp_path)


def test_gaps_are_reported(tmp_path: Path) -> None:
    y = torch.zeros(2, 4, 4)
    y[1, 2, 3] = torch.inf
    torch.save({"x": torch.zeros(2, 4, 4), "y": y}, tmp_path / "darcy_train_4.pt")
    found = source(tmp_path)
    next(found.read("train", 0, 1))
    with pytest.raises(DataError, match=r"NaN or Inf(.|\n)*channel u, trajectory 1"):
        next(found.read("train", 1, 2))
