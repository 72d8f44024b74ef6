"""Resampling: the published bilinear rule to rounding, Fourier modes exactly, and positions that follow the points."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.base.config import build
from data_pipeline.base.errors import ConfigError
from data_pipeline.config import ExportConfig
from data_pipeline.resample import Resampling, resample, resample_trajectory, resampled_info
from data_pipeline.trajectory import Boundary, DatasetInfo, Trajectory, grid

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def info_of(space: tuple[int, ...], boundary: Boundary = "periodic", **more: object) -> DatasetInfo:
    axes = ("x", "y", "z")[: len(space)]
    content = {
        "name": "waves",
        "channels": ("u",),
        "space": space,
        "frames": 2,
        "dt": 0.1,
        "axes": axes,
        "extent": tuple((0.0, 2.0) for _ in axes),
        "boundaries": tuple(boundary for _ in axes),
    }
    return build(DatasetInfo, content | more)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3),
    corners=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_bilinear_is_that_of_torch(sizes: list[tuple[int, int]], corners: bool, seed: int) -> None:
    old, new = zip(*sizes, strict=True)
    values = np.random.default_rng(seed).standard_normal((*old, 2)).astype(np.float32)
    found = resample(values, new, "bilinear_corners" if corners else "bilinear")
    tensor = torch.from_numpy(values).double().movedim(-1, 0)[None]
    expected = torch.nn.functional.interpolate(tensor, new, mode=MODES[len(old)], align_corners=corners)
    np.testing.assert_allclose(found, expected[0].movedim(0, -1).numpy(), atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(old=st.integers(2, 24), more=st.integers(1, 24), seed=st.integers(0, 2**32 - 1))
def test_spectral_up_and_down_again_is_the_identity(old: int, more: int, seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal((old, old, 1)).astype(np.float32)
    there = resample(values, (old + more, old + more), "spectral")
    np.testing.assert_allclose(resample(there, (old, old), "spectral"), values, atol=2e-6)


@settings(max_examples=60, deadline=None)
@given(old=st.integers(3, 30), new=st.integers(3, 30), phase=st.floats(0, 6), data=st.data())
def test_a_wave_that_both_grids_hold_is_sampled_exactly(old: int, new: int, phase: float, data: st.DataObject) -> None:
    wave = data.draw(st.integers(0, (min(old, new) - 1) // 2))

    def sampled(points: int) -> np.ndarray:
        return np.cos(2 * np.pi * wave * np.arange(points) / points + phase).astype(np.float32)[:, None]

    np.testing.assert_allclose(resample(sampled(old), (new,), "spectral"), sampled(new), atol=1e-6)


def test_a_wave_that_the_new_grid_cannot_hold_is_cut_off_and_not_folded() -> None:
    x = np.arange(16) / 16
    values = (1 + np.cos(2 * np.pi * 6 * x)).astype(np.float32)[:, None]
    np.testing.assert_allclose(resample(values, (8,), "spectral"), np.ones((8, 1)), atol=1e-6)
    # The one wave of half the sampling rate that its points can show is sampled as it is.
    wave = np.cos(2 * np.pi * 4 * x).astype(np.float32)[:, None]
    np.testing.assert_allclose(resample(wave, (8,), "spectral"), wave[::2], atol=1e-6)


def test_an_axis_that_keeps_its_points_keeps_its_bits() -> None:
    values = np.random.default_rng(0).standard_normal((6, 5, 2)).astype(np.float32)
    rules: tuple[Resampling, ...] = ("bilinear", "bilinear_corners", "spectral")
    for rule in rules:
        np.testing.assert_array_equal(resample(values, (6, 5), rule), values)
    np.testing.assert_array_equal(resample(values, (3, 5), "bilinear"), (values[::2] + values[1::2]) / 2)


@pytest.mark.parametrize("boundary", ["periodic", "wall"])
@pytest.mark.parametrize("rule", ["bilinear", "bilinear_corners", "spectral"])
@pytest.mark.parametrize("points", [6, 24, 36])
def test_positions_are_where_the_values_are(boundary: Boundary, rule: Resampling, points: int) -> None:
    """A straight line (or, for the Fourier rule, a wave) has at each new position the value it has there."""
    if rule == "spectral" and boundary != "periodic":
        return
    info = info_of((12,), boundary)
    new = resampled_info(info, (points,), rule)
    (x,), (there,) = grid(info), grid(new)
    assert len(there) == points == new.space[0]
    line = (lambda p: np.sin(np.pi * p)) if rule == "spectral" else (lambda p: 3 * p - 1)
    inside = (there >= x[0]) & (there <= x[-1]) | (rule == "spectral")
    found = resample(line(x).astype(np.float32)[:, None], (points,), rule)[:, 0]
    np.testing.assert_allclose(found[inside], line(there)[inside], atol=1e-6)
    assert (np.diff(there) > 0).all()
    usual = (rule == "spectral") or (rule == "bilinear" and boundary == "wall")
    assert (new.coordinates == ()) == usual


def test_static_fields_and_mask_follow() -> None:
    mask = np.zeros((4, 4), bool)
    mask[1:, 2:] = True
    fields = np.random.default_rng(0).standard_normal((2, 4, 4, 1)).astype(np.float32)
    trajectory = Trajectory(fields, np.arange(2.0), {}, fields[0] + 1, mask)
    found = resample_trajectory(trajectory, (8, 2), "bilinear")
    assert found.fields.shape == (2, 8, 2, 1)
    assert found.static is not None
    np.testing.assert_allclose(found.static, found.fields[0] + 1, atol=1e-6)
    assert found.mask is not None
    assert found.mask.dtype == np.bool_
    nearest = np.zeros((8, 2), bool)
    nearest[2:, 1] = True
    np.testing.assert_array_equal(found.mask, nearest)


@pytest.mark.parametrize(
    ("info", "resolution", "key"),
    [
        (info_of((8, 8)).model_copy(update={"boundaries": ("periodic", "wall")}), (4, 4), "axis y"),
        (info_of((4,), coordinates=((0.0, 0.2, 1.0, 1.5),)), (2,), "equal parts"),
        (info_of((5,), coordinates=((0.0, 0.5, 1.0, 1.5, 2.0),)), (4,), "equal parts"),
        (info_of((8, 8), masked=True), (4, 4), "mask"),
        (info_of((8, 8)), (4,), "another number of axes"),
    ],
)
def test_what_cannot_be_resampled_is_refused_with_a_remedy(
    info: DatasetInfo, resolution: tuple[int, ...], key: str
) -> None:
    with pytest.raises(ConfigError, match=key):
        resampled_info(info, resolution, "spectral")


def test_a_wall_axis_that_keeps_its_points_may_stand_beside_a_spectral_one() -> None:
    info = info_of((8, 8)).model_copy(update={"boundaries": ("periodic", "wall")})
    assert resampled_info(info, (4, 8), "spectral").space == (4, 8)


def test_resolution_and_rule_go_together() -> None:
    assert build(ExportConfig, {"resolution": [64, 64], "resampling": "bilinear"}).resolution == (64, 64)
    for content in ({"resolution": [64, 64]}, {"resampling": "spectral"}):
        with pytest.raises(ConfigError, match="go together"):
            build(ExportConfig, content)
