"""What the sets of Poseidon's PDEgym are; the last axis of space is y, or x where `axes` says so."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from data_pipeline.config import SplitRule
from data_pipeline.sources import names
from data_pipeline.trajectory import Boundary

_FLOW = (names.DENSITY, *names.VELOCITY[:2], names.PRESSURE)


@dataclass(frozen=True)
class PoseidonSet:
    """One set, or several that are alike.

    Attributes:
        names: regular expression of the set's name.
        key: the array of the fields.
        axes: its axes, as in `Block`.
        channels: names along c; where the array has more, the rest are numbered.
        steps: frames over the time span 1, counted from zero; 0 for a steady problem.
        valid, test: trajectories at the end, by the publisher's rule; the test trajectories come last.
        static: arrays (b, x, y) of static fields, and their names.
        fewest: the fewest channels that there may be.
    """

    names: str
    key: str
    axes: str
    channels: tuple[str, ...]
    steps: int
    valid: int
    test: int
    boundary: Boundary
    equation: str
    static: Mapping[str, str] = field(default_factory=dict)
    fewest: int = 1

    @property
    def rule(self) -> SplitRule:
        """The publisher's split."""
        return SplitRule(train="rest", valid=self.valid, test=self.test)


_NS = "u_t + (u . grad) u = -grad p + nu Lap u, div u = 0"
_NS_CHANNELS = (*names.VELOCITY[:2], names.TRACER)
_EULER = "rho_t + div(rho u) = 0, (rho u)_t + div(rho u u) + grad p = 0, E_t + div((E + p) u) = 0"
_WAVE = "u_tt = c^2 Lap u"

SETS = (
    PoseidonSet(r"^NS-SL", "velocity", "btcyx", _NS_CHANNELS, 20, 120, 240, "periodic", _NS, fewest=2),
    PoseidonSet(r"^NS-", "velocity", "btcxy", _NS_CHANNELS, 20, 120, 240, "periodic", _NS, fewest=2),
    PoseidonSet(r"^FNS-KF", "solution", "btcxy", _NS_CHANNELS[:2], 20, 120, 240, "periodic",
                "u_t + (u . grad) u = -grad p + nu Lap u + f, div u = 0", fewest=2),
    PoseidonSet(r"^CE-RM", "solution", "btcxy", (*_FLOW, names.TRACER), 20, 100, 130, "periodic", _EULER, fewest=4),
    PoseidonSet(r"^CE-", "data", "btcxy", (*_FLOW, names.ENERGY), 20, 120, 240, "periodic", _EULER, fewest=4),
    PoseidonSet(r"^GCE-RT", "solution", "btcxy", (*_FLOW, "channel_4", names.GRAVITY_POTENTIAL), 10, 100, 130, "open",
                f"{_EULER}, with gravity: -rho grad phi, -rho u . grad phi", fewest=6),
    PoseidonSet(r"^ACE", "solution", "btxy", (names.PHASE,), 19, 60, 240, "periodic",
                "u_t = Lap u - eps^2 u (u^2 - 1)"),
    PoseidonSet(r"^Wave-Gauss", "solution", "btxy", (names.DISPLACEMENT,), 15, 60, 240, "open", _WAVE,
                {"c": names.WAVE_SPEED}),
    PoseidonSet(r"^Wave-", "solution", "btxy", (names.DISPLACEMENT,), 20, 60, 240, "open", _WAVE,
                {"c": names.WAVE_SPEED}),
    PoseidonSet(r"^Poisson-", "solution", "bxy", (names.SOLUTION,), 0, 120, 240, "wall", "-Lap u = f",
                {"source": names.SOURCE}),
    PoseidonSet(r"^SE-AF", "solution", "bcxy", (names.DENSITY,), 0, 120, 240, "open",
                "steady Euler equations around an airfoil"),
    PoseidonSet(r"^Helmholtz", "*/u", "xy", (names.SOLUTION,), 0, 128, 512, "wall", "Helmholtz equation",
                {"*/a": names.COEFFICIENT}),
)  # fmt: skip
"""The first whose expression fits is the one."""


def find_set(name: str) -> PoseidonSet | None:
    """The set of that name."""
    return next((one for one in SETS if re.search(one.names, name, re.IGNORECASE)), None)
