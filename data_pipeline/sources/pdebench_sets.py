"""What PDEBench's sets are: their equations, channels, boundaries and PDE parameters."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import yaml

from data_pipeline.config import ConvertConfig
from data_pipeline.sources import names
from data_pipeline.sources.hdf5 import Hdf5Reader
from data_pipeline.trajectory import Boundary

FLOW = {
    "Vx": names.VELOCITY[0],
    "Vy": names.VELOCITY[1],
    "Vz": names.VELOCITY[2],
    "density": names.DENSITY,
    "pressure": names.PRESSURE,
}
"""Arrays of compressible flow, in the order of the channels."""
_NUMBER = r"([0-9]+\.?[0-9]*(?:e[+-]?[0-9]+)?)"


@dataclass(frozen=True)
class FlatSet:
    """A set whose arrays hold all trajectories: arrays and their channels, published parameters and their names."""

    equation: str
    fields: Mapping[str, str]
    boundary: Boundary = "periodic"
    parameters: Mapping[str, str] = field(default_factory=dict)
    static: Mapping[str, str] = field(default_factory=dict)
    axes: int = 1


@dataclass(frozen=True)
class GroupedSet:
    """A set with one group a trajectory: its parameters are keys of the group's configuration."""

    equation: str
    channels: tuple[str, ...]
    boundary: Boundary
    axes: int
    parameters: Mapping[str, str]


_SCALAR = {
    "advection": FlatSet("u_t + beta u_x = 0", {"tensor": names.SOLUTION}, parameters={"beta": "advection_speed"}),
    "burgers": FlatSet("u_t + (u^2 / 2)_x = nu / pi u_xx", {"tensor": names.VELOCITY[0]}, parameters={"Nu": "nu"}),
    "reacdiff": FlatSet(
        "u_t = nu u_xx + rho u (1 - u)",
        {"tensor": names.CONCENTRATION},
        parameters={"Nu": "diffusivity", "rho": "reaction_rate"},
    ),
}
"""By a word in their names."""
_DARCY = FlatSet(
    "-div(a grad u) = beta",
    {"tensor": names.SOLUTION},
    "wall",
    {"beta": "source"},
    static={"nu": names.PERMEABILITY},
    axes=2,
)
_COMPRESSIBLE = (
    "rho_t + div(rho v) = 0, rho (v_t + v . grad v) = -grad p + eta Lap v + (zeta + eta / 3) grad(div v), "
    "(e + rho v^2 / 2)_t + div((e + p + rho v^2 / 2) v - v . sigma) = 0, e = p / (gamma - 1), gamma = 5/3"
)
_FLOW_PARAMETERS = {"M": "mach_number", "eta": "shear_viscosity", "zeta": "bulk_viscosity"}
_GROUPED = {
    "diff-sorp": GroupedSet(
        "u_t = D / R(u) u_xx, R(u) = 1 + (1 - porosity) / porosity rho_s k_f n_f u^(n_f - 1)",
        (names.CONCENTRATION,),
        "open",
        1,
        {"D": "diffusivity", "por": "porosity", "rho_s": "bulk_density", "k_f": "freundlich_k", "n_f": "freundlich_n"},
    ),
    "diff-react": GroupedSet(
        "u_t = Du Lap u + u - u^3 - k - v, v_t = Dv Lap v + u - v",
        (names.ACTIVATOR, names.INHIBITOR),
        "wall",
        2,
        {"Du": "diffusivity_activator", "Dv": "diffusivity_inhibitor", "k": "threshold"},
    ),
    "rdb": GroupedSet(
        "h_t + div(h u) = 0, (h u)_t + div(h u u + g h^2 / 2) = 0",
        (names.HEIGHT,),
        "open",
        2,
        {"gravity": "gravity", "dam_radius": "radius", "inner_height": "inner_height"},
    ),
}


def flat_set(reader: Hdf5Reader, config: ConvertConfig) -> FlatSet:
    """Which set a file with arrays of all trajectories belongs to, by its keys, its name or its attributes.

    Raises:
        DataError: nothing tells.
    """
    keys, name = set(reader.root), reader.path.name.lower()
    if keys & set(FLOW):
        return _flow_set(reader, config)
    if "nu" in keys or "darcy" in name:
        return _DARCY
    attributes = {str(attribute).lower() for attribute in reader.root.attrs}
    for word, of in _SCALAR.items():
        if word in name:
            return of
    for of in _SCALAR.values():
        if attributes and attributes == {parameter.lower() for parameter in of.parameters}:
            return of
    raise reader.error(
        "cannot tell which of PDEBench's equations this is",
        "tensor",
        found=f"a file named {reader.path.name!r} with attributes {sorted(reader.root.attrs)}",
        expected="density, pressure, Vx (compressible flow), nu (Darcy flow), or Advection, Burgers or ReacDiff in "
        "the file's name",
        remedy="give the file its published name, or describe it in a configuration with `layout: plain`",
    )


def _flow_set(reader: Hdf5Reader, config: ConvertConfig) -> FlatSet:
    named = re.match(r"([123])D_", reader.path.name)
    axes = int(named[1]) if named else max(n for n, key in enumerate("xyz", 1) if f"V{key}" in reader.root or n == 1)
    words = {"periodic": "periodic", "trans": "open"}
    found = [kind for word, kind in words.items() if f"_{word}" in reader.path.name.lower()]
    if len(found) != 1 and config.boundaries is None:
        raise reader.error(
            "the file's name does not say the boundaries",
            found=reader.path.name,
            expected="_periodic_ or _trans_ in the name",
            remedy=f"give convert.boundaries: [{', '.join(['periodic'] * axes)}], or as it is",
        )
    fields = {key: channel for key, channel in FLOW.items() if key[0] != "V" or key in ("Vx", "Vy", "Vz")[:axes]}
    boundary: Boundary = "open" if found == ["open"] else "periodic"
    parameters = {k: v for k, v in _FLOW_PARAMETERS.items() if k != "M" or axes > 1}
    return FlatSet(_COMPRESSIBLE, fields, boundary, parameters, axes=axes)


def attribute_parameters(
    reader: Hdf5Reader, of: FlatSet, config: ConvertConfig
) -> tuple[dict[str, float], dict[str, str]]:
    """PDE parameters of a file from its attributes, else its name; and the attributes that are not numbers.

    Raises:
        DataError: a parameter stands in neither, nor in the configuration.
    """
    attributes = {str(name): np.asarray(value) for name, value in reader.root.attrs.items()}
    numbers = {name: _number(value) for name, value in attributes.items()}
    known = {name.lower(): value for name, value in numbers.items() if value is not None}
    parameters: dict[str, float] = {}
    for published, name in of.parameters.items():
        named = re.search(rf"(?:_|Sols_){published}{_NUMBER}", reader.path.name, re.IGNORECASE)
        if published.lower() in known:
            parameters[name] = known[published.lower()]
        elif named:
            parameters[name] = float(named[1])
        elif name not in config.parameters:
            raise reader.error(
                "a PDE parameter is missing",
                f"/@{published}",
                found=f"attributes {sorted(attributes)}",
                expected=f"@{published}, or its value in the file's name",
                remedy=f"give it as convert.parameters: {{{name}: ...}}",
            )
    taken = {published.lower() for published in of.parameters}
    rest = {name: value for name, value in numbers.items() if name.lower() not in taken}
    parameters |= {name: value for name, value in sorted(rest.items()) if value is not None}
    return parameters, {name: str(attributes[name]) for name, value in rest.items() if value is None}


def _number(value: Any) -> float | None:
    """The shortest decimal that is stored as this value; None where it is not one finite number."""
    if value.size != 1 or value.dtype.kind not in "fiub" or not np.isfinite(value).all():
        return None
    return float(str(value.reshape(-1)[0]))


def grouped_set(reader: Hdf5Reader, group: str) -> GroupedSet:
    """Which set a file with one group a trajectory belongs to, by its name, else by the shape of its data.

    Raises:
        DataError: the data are of none of them.
    """
    name = reader.path.name.lower()
    for word, of in _GROUPED.items():
        if word in name:
            return of
    shape = reader.dataset(f"{group}/data").shape
    for of in _GROUPED.values():
        if len(shape) == of.axes + 2 and shape[-1] == len(of.channels):
            return of
    raise reader.error(
        "wrong rank",
        f"{group}/data",
        found=f"shape {shape}",
        expected="(time, x, 1), (time, x, y, 2) or (time, x, y, 1)",
    )


def config_text(reader: Hdf5Reader, key: str) -> str:
    """The simulation's configuration, YAML; empty where there is none."""
    return reader.text(key, "config", default="")


def config_parameters(text: str, wanted: Mapping[str, str]) -> dict[str, float]:
    """The wanted numbers of a configuration, wherever they stand in it, under their new names.

    Text that is no YAML says nothing.
    """
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    leaves = dict(_leaves(tree))
    return {name: leaves[key] for key, name in wanted.items() if key in leaves}


def _leaves(tree: Any) -> list[tuple[str, float]]:
    """The numbers of a tree by their last key. YAML takes 1E-3 for a word, which it is not here."""
    found: list[tuple[str, float]] = []
    for key, value in tree.items() if isinstance(tree, dict) else ():
        if isinstance(value, dict):
            found += _leaves(value)
        elif isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                found.append((str(key), float(value)))
            except ValueError:
                continue
    return found
