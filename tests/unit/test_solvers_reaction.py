"""The reaction-diffusion families: what they refuse, and what they draw."""

import numpy as np
import pytest
import torch

from data_pipeline.base.errors import ConfigError
from data_pipeline.config import GenerateConfig
from data_pipeline.solvers.families.gray_scott import FEED_AND_KILL
from data_pipeline.solvers.source import SolverSource
from tests.solver_cases import CASES


def source(family, **changes):
    content = {"family": family, "seed": 3, "splits": {"train": 24}} | CASES[family] | changes
    return SolverSource("name", GenerateConfig.model_validate(content))


def with_parameters(family, **changes):
    return source(family, parameters=CASES[family]["parameters"] | changes)


@pytest.mark.parametrize(
    ("family", "parameters", "words"),
    [
        ("allen_cahn_2d", {"reaction": 1e4}, ["resolution", "0.17 points", "sqrt(2 diffusivity / reaction)", "0.8"]),
        ("allen_cahn_2d", {"modes": [4, 12]}, ["parameters.modes", "found: 12", "below 12"]),
        ("allen_cahn_2d", {"modes": [4, 2]}, ["modes", "low <= high"]),
        ("allen_cahn_2d", {"modes": [0, 2]}, ["modes", "1 <= low"]),
        ("allen_cahn_2d", {"diffusivity": -1.0}, ["diffusivity", "values > 0"]),
        ("diffusion_reaction_2d", {"diffusivity_activator": 1e-3}, ["resolution", "0.27 points", "at least 0.5"]),
        ("diffusion_reaction_2d", {"diffusivity_inhibitor": 0.0}, ["diffusivity_inhibitor", "values > 0"]),
        ("diffusion_reaction_2d", {"step": 0.1}, ["parameters.step", "at most 0.03707"]),
        ("diffusion_reaction_2d", {"threshold": [-1000.0, 1.0]}, ["parameters.step", "at most 0.002317"]),
        (
            "gray_scott_2d",
            {"diffusivity_a": 2e-5, "diffusivity_b": 1e-5},
            ["resolution", "0.073 points", "regime gliders", "at least 0.5"],
        ),
        ("gray_scott_2d", {"diffusivity_a": 4e-4, "diffusivity_b": 1e-5, "step": 2.5}, ["parameters.step", "0.556"]),
        ("gray_scott_2d", {"blobs": [1, 1001]}, ["blobs", "at most 1000"]),
        ("gray_scott_2d", {"regimes": ["gliders", "bubbles"], "diffusivity_b": 1e-4}, ["regime bubbles"]),
        ("gray_scott_2d", {"initial": ["noise"]}, ["initial", "'blobs', 'clusters' or 'fourier'"]),
        ("gray_scott_2d", {"initial": []}, ["initial", "at least 1"]),
        (
            "gray_scott_3d",
            {"diffusivity_a": 2e-4, "diffusivity_b": 1e-4},
            ["resolution", "(12, 8, 10)", "at least 0.5"],
        ),
        ("gray_scott_3d", {"step": 3.5}, ["parameters.step", "at most 2.78"]),
        ("gray_scott_3d", {"diffusivity_a": [2e-3, 1e-3]}, ["diffusivity_a", "low <= high"]),
    ],
)
def test_bad_input_is_refused_with_its_bound(family, parameters, words):
    with pytest.raises(ConfigError) as refused:
        with_parameters(family, **parameters)
    for word in words:
        assert word in str(refused.value)


def test_a_step_of_allen_cahn_above_the_rate_of_its_reaction_is_refused():
    parameters = CASES["allen_cahn_2d"]["parameters"] | {"step": 0.01}
    with pytest.raises(ConfigError) as refused:
        source("allen_cahn_2d", dt=0.04, parameters=parameters)
    for word in ("parameters.step", "found: 0.01", "at most 0.009267"):
        assert word in str(refused.value)


@pytest.mark.parametrize(("points", "accepted"), [(64, False), (128, True)])
@pytest.mark.parametrize("regime", sorted(FEED_AND_KILL))
def test_the_published_grid_of_gray_scott_is_accepted_and_half_of_it_is_not(regime, points, accepted):
    settings = {"resolution": (points, points), "parameters": {"regimes": [regime]}}
    if accepted:
        source("gray_scott_2d", **settings)
        return
    with pytest.raises(ConfigError, match="too coarse"):
        source("gray_scott_2d", **settings)
    source("gray_scott_2d", **settings | {"parameters": {"regimes": [regime], "refine": 2}})


def test_the_published_grid_of_allen_cahn_is_accepted_and_half_of_it_is_not():
    settings = {"dt": 0.0002 / 19, "frames": 20, "parameters": {}}
    source("allen_cahn_2d", resolution=(128, 128), **settings)
    with pytest.raises(ConfigError, match="too coarse"):
        source("allen_cahn_2d", resolution=(64, 64), **settings)


def test_gray_scott_draws_among_its_initial_states():
    made = with_parameters("gray_scott_2d", initial=["blobs", "clusters", "fourier"], blobs=[3, 5])
    kinds = set()
    for number in range(24):
        a, b = made.draw("train", number)[0]
        if b.min() < 0:  # a Fourier series around b = 0
            kinds.add("fourier")
        else:
            kinds.add("blobs" if torch.equal(a, 1 - b) else "clusters")
    assert kinds == {"blobs", "clusters", "fourier"}


@pytest.mark.parametrize("family", ["gray_scott_2d", "gray_scott_3d"])
def test_gray_scott_draws_as_many_blobs_as_it_is_told(family):
    one, many = (with_parameters(family, blobs=counts).draw("train", 0)[0][1] for counts in ([1, 1], [80, 80]))
    assert one.max() <= 1 - np.exp(-1)  # the height of one blob is at most 1
    assert many.mean() > 5 * one.mean()


@pytest.mark.parametrize("family", ["allen_cahn_2d", "diffusion_reaction_2d", "gray_scott_2d", "gray_scott_3d"])
def test_a_state_is_the_same_whatever_the_diffusivities(family):
    name = "diffusivity_activator" if family == "diffusion_reaction_2d" else "diffusivity_a"
    changed = {"allen_cahn_2d": {"diffusivity": 2.0}}.get(family, {name: [6e-3, 9e-3]})
    plain, other = (with_parameters(family, **changes).draw("train", 5) for changes in ({}, changed))
    torch.testing.assert_close(plain[0], other[0], rtol=0, atol=0)
    assert plain[1] != other[1]


def test_stored_cells_of_a_refined_diffusion_reaction_hold_the_drawn_noise():
    made = with_parameters("diffusion_reaction_2d", refine=3)
    state, _ = made.draw("train", 0)
    plain, _ = with_parameters("diffusion_reaction_2d").draw("train", 0)
    assert state.shape == (2, 48, 36)
    torch.testing.assert_close(made.solver.restrict(state[None])[0], plain, rtol=0, atol=1e-12)
    # A mean over each cell, as other families store it, would be another function.
    assert float((state.reshape(2, 16, 3, 12, 3).mean((2, 4)) - plain).abs().max()) > 0.1


def test_allen_cahn_stays_sound_for_a_long_time():
    """The growth of small waves is not part of the linear operator: see the docstring of its `problem`."""
    made = source("allen_cahn_2d", frames=2, dt=0.6, parameters={"reaction": 100.0, "modes": [2, 6], "step": 4e-3})
    fields = next(made.read("train", 0, 1)).fields
    assert np.isfinite(fields).all()
    assert np.abs(fields[-1]).max() <= 1.001


@pytest.mark.parametrize("threshold", [10.0, -1000.0])
def test_a_strong_threshold_is_stable_at_the_largest_step(threshold):
    settings = {"threshold": threshold, "diffusivity_activator": 5e-3}
    bound = source("diffusion_reaction_2d", dt=1e-4, parameters=settings | {"step": 1e-4}).solver.largest_step(1.0)
    made = source("diffusion_reaction_2d", dt=60 * bound, start=0.0, parameters=settings | {"step": bound})
    fields = next(made.read("train", 0, 1)).fields
    assert np.abs(fields[-1, ..., 0]).max() < 1.1 * abs(threshold) ** (1 / 3)


@pytest.mark.parametrize("regime", ["gliders", "maze"])
def test_gray_scott_is_stable_at_the_largest_step_where_spots_grow_above_one(regime):
    settings = {"diffusivity_a": 4e-2, "diffusivity_b": 1e-3, "regimes": [regime]}  # ratio 40
    bound = source("gray_scott_2d", dt=0.5, parameters=settings | {"step": 0.5}).solver.largest_step(1.0)
    assert bound == pytest.approx(2.785 / 5, rel=2e-3)
    made = source(
        "gray_scott_2d", resolution=(32, 32), dt=400 * bound, start=0.0, parameters=settings | {"step": bound}
    )
    fields = next(made.read("train", 0, 1)).fields
    assert np.abs(fields).max() < 0.35 * 40**0.5
