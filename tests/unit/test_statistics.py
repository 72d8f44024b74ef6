"""Statistics: what numpy says of the whole array, whatever the grouping and the order of its parts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from data_pipeline.stores import statistics as module
from data_pipeline.stores.protocol import Statistics
from data_pipeline.stores.statistics import Moments, measure, merge, statistics

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)


def of(parts: list[Moments]) -> Statistics:
    return statistics([part.model_dump(mode="json") for part in parts])


def numpy_says(trajectories: np.ndarray, inside: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Of trajectories (N, T, *space, C); `inside` (N, *space)."""
    x = trajectories.astype(np.float64)
    change = np.diff(x, axis=1)
    keep = np.ones(x[:, 0, ..., 0].shape, bool) if inside is None else inside
    values, changes = (np.moveaxis(one, 1, -2)[keep].reshape(-1, x.shape[-1]) for one in (x, change))
    return {
        "mean": values.mean(0),
        "std": values.std(0),
        "rms": np.sqrt(np.square(values).mean(0)),
        "min": values.min(0),
        "max": values.max(0),
        "change_mean": changes.mean(0),
        "change_std": changes.std(0),
        "change_rms": np.sqrt(np.square(changes).mean(0)),
        "change_min": changes.min(0),
        "change_max": changes.max(0),
    }


@pytest.mark.parametrize("shape", [(3, 40, 16, 3), (2, 5, 9, 7, 1), (2, 3, 5, 4, 6, 2), (2, 2, 70000, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_every_figure_is_numpys(shape: tuple[int, ...], masked: bool) -> None:
    """Also where the fields are cut into several blocks, of frames and of points."""
    rng = np.random.default_rng(0)
    fields = (5 + rng.standard_normal(shape) * np.arange(1, shape[-1] + 1)).astype(np.float32)
    inside = rng.random((shape[0], *shape[2:-1])) < 0.7 if masked else None
    if inside is not None:
        fields[~np.broadcast_to(inside[:, None, ..., None], shape)] = 1e9  # what lies there must not matter
    found = of([measure(one, None if inside is None else inside[i]) for i, one in enumerate(fields)])
    for name, expected in numpy_says(fields, inside).items():
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-10, atol=1e-12, err_msg=name)
    for name in ("min", "max"):
        np.testing.assert_array_equal(getattr(found, name), numpy_says(fields, inside)[name])


def test_small_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = np.random.default_rng(0).standard_normal((9, 6, 5, 2)).astype(np.float32)
    mask = np.arange(30).reshape(6, 5) > 13  # some blocks have no point at all
    whole = of([measure(fields, mask)])
    monkeypatch.setattr(module, "_BLOCK", 8)
    monkeypatch.setattr(module, "_ROW", 4)
    for name, value in of([measure(fields, mask)]).model_dump().items():
        np.testing.assert_allclose(value, getattr(whole, name), rtol=1e-12, err_msg=name)


@settings(max_examples=60, deadline=None)
@given(
    fields=arrays(np.float32, st.tuples(st.integers(2, 7), st.integers(1, 3), st.integers(1, 4), st.just(2)),
                  elements=FLOATS),
    data=st.data(),
)  # fmt: skip
def test_any_grouping_in_any_order_gives_the_same_bits(fields: np.ndarray, data: st.DataObject) -> None:
    parts = [measure(one) for one in fields]
    expected = merge(parts)
    while len(parts) > 1:
        parts = data.draw(st.permutations(parts))
        cut = data.draw(st.integers(1, len(parts)))
        parts = [merge(parts[:cut]), *parts[cut:]]
        if cut == 1:
            parts = [merge(parts[:2]), *parts[2:]]
    assert parts[0] == expected
    assert of(parts) == of([measure(one) for one in fields])


@settings(max_examples=30, deadline=None)
@given(mean=st.floats(-1e6, 1e6), spread=st.floats(1e-3, 10))
def test_digits_are_kept_far_from_zero(mean: float, spread: float) -> None:
    fields = (mean + spread * np.random.default_rng(0).standard_normal((4, 3, 64, 2))).astype(np.float32)
    found = of([measure(one) for one in fields])
    np.testing.assert_allclose(found.std, fields.astype(np.float64).std((0, 1, 2)), rtol=1e-9)


@given(value=FLOATS, frames=st.integers(1, 4), points=st.integers(1, 50))
def test_a_constant_field_varies_by_nothing(value: float, frames: int, points: int) -> None:
    found = of([measure(np.full((frames, points, 1), value, np.float32))] * 3)
    assert found.mean == found.min == found.max == (np.float32(value),)
    assert found.std == found.change_rms == found.change_std == (0.0,)


def test_a_steady_problem_does_not_change() -> None:
    found = of([measure(np.random.default_rng(0).standard_normal((1, 8, 8, 2)).astype(np.float32))] * 2)
    still = (0.0, 0.0)
    assert [found.change_mean, found.change_std, found.change_rms, found.change_min, found.change_max] == [still] * 5


def test_the_largest_and_smallest_float32_are_summed() -> None:
    top, tiny = np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal
    fields = np.array([top, -top, tiny, -tiny, 0], np.float32).reshape(5, 1, 1)
    found = of([measure(fields)])
    assert found.mean == (0.0,)
    assert found.rms == pytest.approx((float(top) * (2 / 5) ** 0.5,))
    assert of([measure(np.full((2, 3, 1), tiny))]).mean == (float(tiny),)
