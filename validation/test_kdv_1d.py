"""kdv_1d against solitons, its invariants over a long run, and data of others."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import loadmat

FAMILY = "kdv_1d"
DATA = Path(__file__).parents[2] / "shared" / "data"


def soliton(x, t, speed, dispersion=1.0, advection=6.0):
    """3 c / a sech^2 of a wave that starts at the middle of a line of length 40."""
    phase = math.sqrt(speed / dispersion) / 2 * (torch.remainder(x - speed * t, 40.0) - 20)
    return 3 * speed / advection / torch.cosh(phase) ** 2


def two_solitons(x, t, k1=1.4, k2=0.9, centre1=-8.0, centre2=0.0):
    """2 (log f)_xx, f = 1 + e1 + e2 + A e1 e2 (Hirota, 1971), of u_t + 6 u u_x + u_xxx = 0."""
    e1 = torch.exp(k1 * (x - centre1) - k1**3 * t)
    e2 = torch.exp(k2 * (x - centre2) - k2**3 * t)
    both = ((k1 - k2) / (k1 + k2)) ** 2 * e1 * e2
    f = 1 + e1 + e2 + both
    first = k1 * e1 + k2 * e2 + (k1 + k2) * both
    second = k1**2 * e1 + k2**2 * e2 + (k1 + k2) ** 2 * both
    return 2 * (f * second - first**2) / f**2


def error_of_a_soliton(run, relative_l2, n, step, speed=2.0, dispersion=1.0):
    flow = run(FAMILY, (n,), {"step": step, "length": 40.0, "advection": 6.0})
    (x,) = flow.points
    found = flow(soliton(x, 0.0, speed, dispersion)[None], 3.0, dispersion=dispersion)[0]
    return relative_l2(found, soliton(x, 3.0, speed, dispersion))


def test_a_soliton_keeps_its_shape_and_speed(run, relative_l2, figure):
    error = error_of_a_soliton(run, relative_l2, 192, 0.0025)
    figure("one soliton, 192 points, step 0.0025", error)
    assert error < 1e-8
    assert error_of_a_soliton(run, relative_l2, 192, 0.0025, speed=1.0, dispersion=0.5) < 1e-8


def test_is_of_fourth_order_in_time(run, relative_l2, observed_order):
    errors = [error_of_a_soliton(run, relative_l2, 192, step) for step in (0.02, 0.01, 0.005)]
    assert observed_order("in time, one soliton", errors) == pytest.approx(4, abs=0.3)


def test_converges_spectrally_in_space(run, relative_l2, figure):
    errors = [error_of_a_soliton(run, relative_l2, n, 0.0025) for n in (32, 64, 128)]
    figure("in space, one soliton, 32, 64, 128 points", ", ".join(f"{e:.1e}" for e in errors))
    assert errors[1] < errors[0] / 10
    assert errors[2] < errors[1] / 100


def test_two_solitons_pass_through_each_other(run, relative_l2, figure):
    flow = run(FAMILY, (384,), {"step": 0.01, "length": 64.0, "advection": 6.0})
    x = flow.points[0] - 32
    found = flow(two_solitons(x, 0.0)[None], 14.0)[0]
    exact = two_solitons(x, 14.0)
    assert exact.argmax() > 384 // 2 + 60  # the taller one has overtaken
    error = relative_l2(found, exact)
    figure("two solitons after they met", error)
    assert error < 1e-5


@pytest.mark.parametrize("step", [0.02, 0.1])
def test_invariants_stay_over_a_long_run(run, figure, step):
    """Mass, momentum and energy, int u, u^2, a u^3 / 3 - d u_x^2, of a sample of the published set."""
    flow = run(FAMILY, (256,), {"step": step})
    initial = flow.solver.draw_state(np.random.default_rng(0), {})

    def invariants(u):
        slope = torch.fft.irfft(torch.fft.rfft(u) * 2j * math.pi / 128 * torch.arange(129), 256)
        return [float(v.mean()) for v in (u, u**2, u**3 / 3 - slope**2)]

    found = flow(initial, 100.0)
    before, after = invariants(initial[0]), invariants(found[0])
    drift = [abs(b - a) for a, b in zip(before, after, strict=True)]
    figure(f"drift of mass, momentum, energy to t = 100, step {step}", ", ".join(f"{d:.1e}" for d in drift))
    assert drift[0] < 1e-13
    assert drift[1] < 1e-5 * before[1]
    assert drift[2] < 1e-4 * abs(before[2])
    assert float((found - initial).norm()) > 0.3 * float(initial.norm())


def test_small_waves_turn_and_fade_as_they_should(run):
    flow = run(FAMILY, (64,), {"length": 10.0, "dispersion": 0.3, "hyperviscosity": 0.05})
    k = 2 * math.pi * 3 / 10
    (x,) = flow.points
    found = flow(1e-9 * torch.cos(k * x)[None], 2.0)[0]
    # u_t = -d u_xxx: cos(k x) becomes cos(k x + d k^3 t).
    exact = 1e-9 * math.exp(-0.05 * k**4 * 2) * torch.cos(k * x + 0.3 * k**3 * 2)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-15)


def test_a_longer_line_has_wider_waves(run):
    """x -> 2 x, t -> 8 t, u -> u / 4 leaves the equation alone."""
    flow = run(FAMILY, (64,), {"length": 20.0, "step": 0.01})
    (x,) = flow.points
    initial = torch.exp(-(((x - 10) / 2) ** 2))[None]
    long = run(FAMILY, (64,), {"length": 20.0, "step": 0.08})
    torch.testing.assert_close(
        long(initial / 4, 8.0, length=40.0), flow(initial, 1.0, length=20.0) / 4, rtol=1e-8, atol=1e-10
    )


def test_initial_states_have_the_papers_variance(run, figure):
    flow = run(FAMILY, (128,))
    states = torch.stack([flow.solver.draw_state(np.random.default_rng(seed), {})[0] for seed in range(3000)])
    figure("variance of initial states (10 / 24)", float(states.var()))
    assert float(states.var()) == pytest.approx(10 / 24, rel=0.05)
    spectrum = torch.fft.rfft(states).abs()
    assert float(spectrum[:, 3:].max()) < 1e-10
    assert float(spectrum[:, 0].max()) < 1e-10
    limit = flow.solver.parameters.initial.largest_value
    assert float((states.abs().amax(1) > limit).double().mean()) < 3e-3


def test_agrees_with_the_data_of_pysindy(run, relative_l2, figure):
    path = DATA / "pysindy" / "kdv.mat"
    if not path.exists():
        pytest.skip("no data of pysindy beside the repository")
    theirs = torch.from_numpy(loadmat(path)["usol"].real.T.copy())  # 201 frames of 512 points on [-30, 30)
    flow = run(FAMILY, (512,), {"step": 0.01, "length": 60.0, "advection": 6.0})
    errors = [relative_l2(flow(theirs[:1], t)[0], theirs[round(10 * t)]) for t in (1.0, 10.0)]
    figure("pysindy's two solitons, t = 1 and 10", ", ".join(f"{e:.1e}" for e in errors))
    assert max(errors) < 1e-2
