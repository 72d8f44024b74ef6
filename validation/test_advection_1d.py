"""advection_1d: shifts, an independent Fourier shift, the law of its initial states."""

import math

import numpy as np
import pytest
import torch

FAMILY = "advection_1d"


def drawn(run, n, seed, **initial):
    flow = run(FAMILY, (n,), {"initial": initial})
    return flow, flow.solver.draw_state(np.random.default_rng(seed), {})


@pytest.mark.parametrize("initial", [{"absolute": 0.0}, {"absolute": 1.0}, {"window": 1.0}])
def test_whole_cells_are_shifted_exactly(run, initial):
    flow, state = drawn(run, 256, 1, **initial)
    for cells in (1, 100, 256 + 7, -3):
        found = flow(state, 0.5, advection_speed=cells / 128)[0]
        torch.testing.assert_close(found, state[0].roll(cells), rtol=1e-11, atol=1e-11)


def test_a_smooth_state_agrees_with_a_shift_of_its_fourier_modes(run, relative_l2, figure):
    flow, state = drawn(run, 256, 2, absolute=0.0, window=0.0)
    modes = torch.fft.rfftfreq(256, 1 / 256).double()
    exact = torch.fft.irfft(torch.fft.rfft(state[0]) * torch.exp(-2j * math.pi * modes * 0.7 * 1.3), 256)
    error = relative_l2(flow(state, 1.3, advection_speed=0.7)[0], exact)
    figure("against a shift of Fourier modes", error)
    assert error < 1e-11


def test_a_longer_line_takes_longer(run):
    flow, state = drawn(run, 64, 3)
    torch.testing.assert_close(
        flow(state, 2.0, advection_speed=1.0, length=2.5), flow(state, 2.0, advection_speed=0.4, length=1.0)
    )


def test_means_of_cells_converge_with_the_square_of_the_cell(run, relative_l2, observed_order):
    stored = []
    for refine in (1, 2, 4, 32):
        flow = run(FAMILY, (64,), {"refine": refine, "initial": {"absolute": 0.0, "window": 0.0}})
        state = flow.solver.draw_state(np.random.default_rng(4), {})
        columns = {"advection_speed": torch.ones(1).double(), "length": torch.ones(1).double()}
        stored.append(flow.solver.solve(state[None], columns, start=0.3, dt=0.1, frames=1)[0, 0])
    errors = [relative_l2(fields, stored[-1]) for fields in stored[:-1]]
    assert observed_order("cell means against points, space", errors) == pytest.approx(2, abs=0.1)


def test_the_equation_holds_to_second_order_of_central_differences(run, observed_order):
    residuals = []
    for n in (256, 512, 1024):
        flow, state = drawn(run, n, 5, absolute=0.0, window=1.0)
        h, speed = 1 / n, 0.7
        later, earlier, now = (flow(state, 0.4 + d, advection_speed=speed)[0] for d in (h, -h, 0.0))
        rate = (later - earlier) / (2 * h)
        slope = (now.roll(-1) - now.roll(1)) / (2 * h)
        residuals.append(float((rate + speed * slope).norm() / rate.norm()))
    assert observed_order("residual of the equation, space and time", residuals) == pytest.approx(2, abs=0.2)


def test_initial_states_follow_pdebenchs_law(run, figure):
    flow = run(FAMILY, (128,))
    states = torch.stack([flow.solver.draw_state(np.random.default_rng(seed), {}) for seed in range(2000)])
    absolute, windowed = states[:, 7, 0] != 0, states[:, 8, 0] > -1
    plain = states[~absolute & ~windowed]
    # Two sines, A uniform in 0 .. 1: 2 (1/3) (1/2); equal wavenumbers do not change it, phases being free.
    figure("variance of plain initial states (1/3)", float(plain[:, 0].var()))
    assert float(plain[:, 0].var()) == pytest.approx(1 / 3, rel=0.06)
    assert float(absolute.double().mean()) == pytest.approx(0.1, abs=0.025)
    assert float(windowed.double().mean()) == pytest.approx(0.1, abs=0.025)
    assert set(states[:, 3:5, 0].flatten().tolist()) == set(range(1, 9))
    signed = states[absolute & ~windowed]
    assert bool((signed[:, 0] * signed[:, 7] >= 0).all())
    assert 0.3 < float((signed[:, 7, 0] > 0).double().mean()) < 0.7
    cut = states[windowed, 0]
    assert float(cut[:, :10].abs().max()) < 0.05  # x < 0.078, left of every window
    assert float(states[:, 0].abs().max()) <= 2
