"""What the reference's sets are, by the words in the names of their files: its working format says nothing else."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from pathlib import Path

from data_pipeline.sources.names import (
    ACTIVATOR,
    DENSITY,
    DIVERGENCE,
    HEIGHT,
    INHIBITOR,
    PRESSURE,
    TRACER,
    VELOCITY,
    VORTICITY,
)
from data_pipeline.trajectory import Boundary

MASK = "mask"
"""The channel that is a mask, not a field."""


@dataclass(frozen=True)
class DpotSet:
    """One of the sets: its channels in the files' order, and what is known of its grid.

    `extent` holds for every axis, `dt` is NaN where it is not known; `parameters` maps names to the part of a file's
    name that gives their value.
    """

    channels: tuple[str, ...]
    boundaries: tuple[Boundary, ...]
    extent: tuple[float, float] = (0.0, 1.0)
    dt: float = nan
    parameters: Mapping[str, str] | None = None
    equation: str = ""


_PERIODIC: tuple[Boundary, ...] = ("periodic",)
_NUMBER = r"(\d+\.?\d*(?:e-?\d+)?)"
_FLOW = {"mach_number": f"M{_NUMBER}", "shear_viscosity": f"eta{_NUMBER}", "bulk_viscosity": f"zeta{_NUMBER}"}
_COMPRESSIBLE, _INCOMPRESSIBLE = "compressible Navier-Stokes", "incompressible Navier-Stokes"
_SMOKE = (TRACER, *VELOCITY[:2])

SETS: Mapping[str, DpotSet] = {
    # Components of 3D flow come in another order of the scalars than those of 2D.
    r"ns3d_pdb": DpotSet((*VELOCITY, PRESSURE, DENSITY), _PERIODIC, dt=0.05, parameters=_FLOW, equation=_COMPRESSIBLE),
    r"ns2d_pdb": DpotSet(
        (*VELOCITY[:2], DENSITY, PRESSURE), _PERIODIC, dt=0.05, parameters=_FLOW, equation=_COMPRESSIBLE
    ),
    r"swe_pdb": DpotSet((HEIGHT,), ("open",), (-2.5, 2.5), 0.01, equation="shallow water"),
    r"dr_pdb": DpotSet((ACTIVATOR, INHIBITOR), ("wall",), (-1.0, 1.0), 0.05, equation="diffusion-reaction"),
    r"ns2d_cond_pda": DpotSet(_SMOKE, ("wall",), (0.0, 32.0), 1.5, equation=_INCOMPRESSIBLE),
    r"ns2d_pda": DpotSet(_SMOKE, ("wall",), (0.0, 32.0), equation=_INCOMPRESSIBLE),
    r"sw2d_pda": DpotSet(
        (*VELOCITY[:2], DIVERGENCE, VORTICITY, PRESSURE), ("open", "periodic"), equation="shallow water"
    ),
    r"cdb|cfdbench": DpotSet((*VELOCITY[:2], MASK), ("open", "wall"), dt=0.1, equation=_INCOMPRESSIBLE),
    r"ns2d(_fno)?_1e-\d": DpotSet(
        (VORTICITY,),
        _PERIODIC,
        dt=1.0,
        parameters={"viscosity": r"ns2d(?:_fno)?_(1e-\d)"},
        equation="w_t + u.grad w = nu lap w + f",
    ),
}
"""By a pattern of the name of their file or folder; the first that fits counts."""


def dpot_set(path: Path) -> tuple[DpotSet | None, str]:
    """The set that a file belongs to, and the part of its path that says so; None where nothing does.

    Looked at are the file's name and the two folders above it.
    """
    for part in (path.stem, path.absolute().parent.name, path.absolute().parents[1].name):
        for pattern, facts in SETS.items():
            if re.search(pattern, part):
                return facts, part
    return None, path.stem


def parameters(facts: DpotSet, name: str) -> dict[str, float]:
    """PDE parameters that stand in a name: `ns2d_pdb_M1_eta1e-1_zeta1e-1`."""
    found = {key: re.search(pattern, name) for key, pattern in (facts.parameters or {}).items()}
    return {key: float(match[1]) for key, match in found.items() if match}
