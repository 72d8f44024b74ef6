"""The exact solution of the Riemann problem of an ideal gas."""

import math

import numpy as np
from scipy.optimize import brentq


def riemann(speeds, left, right, gamma):
    """Density, velocity and pressure (3, n) on the rays x / t = `speeds`; each state is such a triple.

    The pressure between the waves is the root of the sum of both sides' velocity changes: Rankine-Hugoniot across a
    shock, the Riemann invariant u +- 2 c / (gamma - 1) across a fan. No vacuum.
    """
    density, velocity, pressure = np.array([left, right]).T
    sound = np.sqrt(gamma * pressure / density)

    def change(star, side):
        if star > pressure[side]:
            mass_flux = math.sqrt(density[side] * ((gamma + 1) * star + (gamma - 1) * pressure[side]) / 2)
            return (star - pressure[side]) / mass_flux
        return 2 * sound[side] / (gamma - 1) * ((star / pressure[side]) ** ((gamma - 1) / (2 * gamma)) - 1)

    star = brentq(lambda p: change(p, 0) + change(p, 1) + velocity[1] - velocity[0], 1e-12, 1e6, xtol=1e-14)
    contact = velocity[0] - change(star, 0)
    found = np.empty((3, len(speeds)))
    for side, sign in ((0, -1), (1, 1)):  # outwards is the direction `sign`; mirror the left side
        own = speeds < contact if side == 0 else speeds >= contact
        ray, u, c, middle = sign * speeds[own], sign * velocity[side], sound[side], sign * contact
        ratio = star / pressure[side]
        if ratio > 1:
            mass_flux = (star - pressure[side]) / change(star, side)
            shock = u + mass_flux / density[side]
            behind = density[side] * (ratio + (gamma - 1) / (gamma + 1)) / (ratio * (gamma - 1) / (gamma + 1) + 1)
            states = np.where(ray > shock, [[density[side]], [u], [pressure[side]]], [[behind], [middle], [star]])
        else:
            inner_density = density[side] * ratio ** (1 / gamma)
            inner_sound = math.sqrt(gamma * star / inner_density)
            in_fan = np.clip(ray, middle + inner_sound, u + c)
            fan_sound = 2 / (gamma + 1) * (c + (gamma - 1) / 2 * (in_fan - u))
            states = np.array(
                [
                    density[side] * (fan_sound / c) ** (2 / (gamma - 1)),
                    in_fan - fan_sound,
                    pressure[side] * (fan_sound / c) ** (2 * gamma / (gamma - 1)),
                ]
            )
        states[1] *= sign
        found[:, own] = states
    return found
