"""kdv_burgers_1d: the forced linear equation, its energy budget, its order (see also burgers_shocks_1d)."""

import math

import numpy as np
import pytest
import torch

FAMILY = "kdv_burgers_1d"


def drawn(run, n, seed=0, **numerics):
    flow = run(FAMILY, (n,), numerics)
    return flow, flow.solver.draw_state(np.random.default_rng(seed), {})


def force(state, t):
    """sum_j A_j sin(omega_j t + 2 pi l_j x / L + phi_j), from the rows of a state: u0, the waves, their rates."""
    waves, rates = state[1:].chunk(2)
    spectrum = torch.fft.rfft(waves)
    return torch.fft.irfft(spectrum * torch.exp(1j * rates[:, :1] * t), waves.shape[1]).sum(0)


def test_the_linear_equation_is_solved_to_high_accuracy(run, relative_l2, figure):
    flow, state = drawn(run, 64, step=0.02)
    viscosity, dispersion, time = 0.3, 0.7, 4.0
    k = 2 * math.pi / 16 * torch.arange(33)
    decay = -viscosity * k**2 + 1j * dispersion * k**3
    waves, rates = torch.fft.rfft(state[1:6]), 1j * state[6:, :1]
    driven = waves * (torch.exp(rates * time) - torch.exp(decay * time)) / (rates - decay)
    exact = torch.fft.irfft(torch.exp(decay * time) * torch.fft.rfft(state[0]) + driven.sum(0), 64)
    found = flow(state, time, advection=0.0, viscosity=viscosity, dispersion=dispersion)[0]
    error = relative_l2(found, exact)
    figure("forced linear equation, t = 4", error)
    assert error < 1e-6


def test_is_of_fourth_order_in_time(run, relative_l2, observed_order):
    def solve(step):
        flow, state = drawn(run, 128, step=step)
        return flow(state, 1.0, advection=2.0, viscosity=0.3, dispersion=0.2)[0]

    reference = solve(0.00125)
    errors = [relative_l2(solve(step), reference) for step in (0.02, 0.01, 0.005)]
    assert observed_order("in time, forced", errors) == pytest.approx(4, abs=0.4)


def test_converges_spectrally_in_space(run, relative_l2, figure):
    def solve(n):
        flow, state = drawn(run, n, step=0.005)
        return flow(state, 2.0, advection=1.0, viscosity=0.3, dispersion=0.2)[0, :: n // 32]

    reference = solve(256)
    errors = [relative_l2(solve(n), reference) for n in (32, 64, 128)]
    figure("in space, 32, 64, 128 points", ", ".join(f"{e:.1e}" for e in errors))
    assert errors[1] < errors[0] / 20
    assert errors[2] < errors[1] / 20


def test_energy_follows_its_budget(run, figure):
    """d/dt mean(u^2) / 2 = mean(u force) - b mean(u_x^2), summed by Simpson's rule; the rest drops out."""
    n, dt, viscosity = 128, 0.02, 0.2
    flow, state = drawn(run, n, seed=2, step=0.005)
    parameters = {"advection": 2.0, "viscosity": viscosity, "dispersion": 0.3, "length": 16.0}
    evolution = flow.solver.begin(state[None], {name: torch.tensor([v]).double() for name, v in parameters.items()})
    k = 2 * math.pi / 16 * torch.arange(n // 2 + 1)
    energy, gain = [], []
    for frame in range(101):
        evolution.advance(dt if frame else 0.0)
        u = evolution.fields()[0, 0]
        slope = torch.fft.irfft(torch.fft.rfft(u) * 1j * k, n)
        energy.append(float(u.square().mean()) / 2)
        gain.append(float((u * force(state, frame * dt)).mean() - viscosity * slope.square().mean()))
    work = dt / 3 * (gain[0] + gain[-1] + 4 * sum(gain[1:-1:2]) + 2 * sum(gain[2:-1:2]))
    mismatch = abs(energy[-1] - energy[0] - work) / (dt * float(np.abs(gain).sum()))
    figure("energy budget with force over t = 0 .. 2, mismatch", mismatch)
    assert mismatch < 1e-5


def test_forces_have_the_papers_law(run):
    flow = run(FAMILY, (96,))
    states = torch.stack([flow.solver.draw_state(np.random.default_rng(seed), {}) for seed in range(1000)])
    torch.testing.assert_close(states[:, 0], states[:, 1:6].sum(1))
    assert float(states[:, 0].var()) == pytest.approx(5 / 24, rel=0.08)
    rates = states[:, 6:, 0]
    assert float(rates.abs().max()) <= 0.4
    assert float(rates.var()) == pytest.approx(0.8**2 / 12, rel=0.05)
    assert float(torch.fft.rfft(states[:, 1:6])[..., 3:].abs().max()) < 1e-10
