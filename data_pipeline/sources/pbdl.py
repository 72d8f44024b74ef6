"""Files of the PBDL dataset collection (`pbdl-dataset`, used by "PDE-Transformer", B. Holzschuh et al., 2025).

One HDF5 file a dataset: a group `sims` whose attributes describe all simulations, and an array `sims/sim{i}`
(T, C, X, Y[, Z]) for each, whose attributes are its own constants.

Choices:

- `Fields Scheme` has one letter a channel; a capital that is repeated is one vector, with components along x, y, z.
  V is velocity, d density, p pressure, t temperature; another letter keeps the name that `Fields` gives.
- What `Constants` names are the PDE parameters. Other attributes of a simulation are left out by name.
- `Boundary Conditions` hold for the axes or sides that `Boundary Conditions Order` names, or, where there is only one,
  for all axes. Of two kinds on one axis, wall wins over open, and open over periodic.
- The layout has no splits.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_pipeline.config import ConvertConfig
from data_pipeline.sources import names
from data_pipeline.sources.blocks import Block, BlockHeader, measure, reading
from data_pipeline.sources.find import hdf5_files, natural
from data_pipeline.sources.grids import decimals
from data_pipeline.sources.hdf5 import Hdf5Reader, open_hdf5
from data_pipeline.sources.layout import Header, Layout, Read
from data_pipeline.trajectory import Boundary, Trajectory

_SIMS = "sims"
_SIM = re.compile(r"sim\d+")
_LETTERS = {"V": "velocity", "d": names.DENSITY, "p": names.PRESSURE, "t": names.TEMPERATURE}
_KINDS: dict[str, Boundary] = {
    "wall": "wall", "dirichlet": "wall", "neumann": "wall", "no-slip": "wall", "closed": "wall", "reflecting": "wall",
    "open": "open", "outflow": "open", "inflow": "open", "absorbing": "open", "periodic": "periodic",
}  # fmt: skip
"""What the words stand for, in the order in which one wins over the next on the same axis."""


class Pbdl:
    """PBDL as `Layout`."""

    title = "PBDL"
    expected = "*.hdf5 with a group sims that holds arrays sim0, sim1, ..."

    def files(self, path: Path) -> list[Path]:
        """HDF5 files with a group `sims`."""
        return hdf5_files(path, (".hdf5", ".h5"), lambda root: _SIMS in root, r"^$")

    def header(self, path: Path, config: ConvertConfig) -> BlockHeader:
        """The checked header of a file. The first and the last simulation are checked; others when they are read."""
        with open_hdf5(path) as reader:
            return _header(reader, config)

    @contextmanager
    def open(self, header: Header, config: ConvertConfig) -> Iterator[Read]:
        """Open a file for reading."""
        assert isinstance(header, BlockHeader)
        with open_hdf5(header.path) as reader:

            def with_constants(index: int, one: Trajectory) -> Trajectory:
                key = f"{_SIMS}/{header.groups[index]}"
                return replace(one, parameters={name: _constant(reader, key, name) for name in header.parameters})

            yield reading(reader, header, with_constants)


LAYOUT: Layout = Pbdl()


def _header(reader: Hdf5Reader, config: ConvertConfig) -> BlockHeader:
    sims = sorted(filter(_SIM.fullmatch, reader.group(_SIMS)), key=natural)
    if not sims:
        raise reader.error(
            "no simulations", _SIMS, found=sorted(reader.group(_SIMS))[:20], expected="arrays sim0, ..."
        )
    axes = "xyz"[: reader.count(_SIMS, "Dimension")]
    channels = _channels(reader, len(axes))
    blocks = (Block(f"{_SIMS}/*", f"tc{axes}", channels),)
    sizes = measure(reader, blocks, sims[0])
    if measure(reader, blocks, sims[-1]) != sizes:
        key = f"{_SIMS}/{sims[-1]}"
        raise reader.error("trajectories differ in shape", key, found=reader.dataset(key).shape, expected=sizes)
    constants = reader.names(_SIMS, "Constants")
    for sim in (sims[0], sims[-1]):
        for constant in constants:
            _constant(reader, f"{_SIMS}/{sim}", constant)
    attributes = set(reader.dataset(f"{_SIMS}/{sims[0]}").attrs) - set(constants)
    dt = config.dt or _positive(reader, "Dt", 1)[0]
    return BlockHeader(
        path=reader.path,
        trajectories=len(sims),
        frames=sizes["t"],
        channels=channels,
        axes=tuple(axes),
        space=tuple(sizes[axis] for axis in axes),
        extent=tuple((0.0, length) for length in _positive(reader, "Domain Extent", len(axes))),
        boundaries=config.boundaries or _boundaries(reader, axes),
        dt=dt if sizes["t"] > 1 else 0.0,
        parameters=constants,
        equation=reader.text(_SIMS, "PDE", default=""),
        blocks=blocks,
        groups=tuple(sims),
        times=dt * np.arange(sizes["t"], dtype=np.float64)[None],
        left_out=tuple(f"attribute {name!r} of the simulations" for name in sorted(attributes)),
    )


def _channels(reader: Hdf5Reader, axes: int) -> tuple[str, ...]:
    scheme, fields = reader.text(_SIMS, "Fields Scheme"), reader.names(_SIMS, "Fields")
    if len(scheme) != len(fields):
        raise reader.error(
            "the fields do not fit their scheme",
            f"{_SIMS}@Fields",
            found=list(fields),
            expected=f"one name for each letter of {scheme!r}",
        )
    channels = []
    for number, (letter, field) in enumerate(zip(scheme, fields, strict=True)):
        vector, component = letter.isupper() and scheme.count(letter) > 1, scheme[:number].count(letter)
        if vector and component >= axes:
            expected = f"at most {axes} times the letter {letter}, one for each axis"
            raise reader.error("too many components", f"{_SIMS}@Fields Scheme", found=scheme, expected=expected)
        # A single V is a velocity with one component, of which only `Fields` knows which one it is.
        known = _LETTERS.get(letter) if vector or not letter.isupper() else None
        plain = re.sub(r"\W+", "_", field.strip().lower()).strip("_")
        stem = known or (re.sub(r"_?[xyz]$", "", plain) or plain if vector else plain)
        channels.append(f"{stem}_{'xyz'[component]}" if vector else stem)
    if len(set(channels)) != len(channels):
        raise reader.error("two fields have one name", f"{_SIMS}@Fields", found=channels, expected="different names")
    return tuple(channels)


def _positive(reader: Hdf5Reader, name: str, count: int) -> list[float]:
    """An attribute of so many positive numbers; one number stands for all."""
    values = np.asarray(reader.attribute(_SIMS, name))
    if values.dtype.kind not in "iuf" or values.size not in (1, count) or not (values > 0).all():
        raise reader.error(
            "not positive numbers", f"{_SIMS}@{name}", found=values.tolist(), expected=f"one number, or {count}"
        )
    return [float(value) for value in np.broadcast_to(decimals(values.reshape(-1)), (count,))]


def _constant(reader: Hdf5Reader, key: str, name: str) -> float:
    value = np.asarray(reader.attribute(key, name))
    if value.size != 1 or value.dtype.kind not in "iufb" or not np.isfinite(value).all():
        raise reader.error("not a finite number", f"{key}@{name}", found=value.tolist(), expected="one number")
    return float(decimals(value.reshape(-1))[0])


def _boundaries(reader: Hdf5Reader, axes: str) -> tuple[Boundary, ...]:
    words = reader.names(_SIMS, "Boundary Conditions")
    places = reader.names(_SIMS, "Boundary Conditions Order")
    pairs = [(place, words[0]) for place in places] if len(words) == 1 else list(zip(places, words, strict=False))
    kinds = {
        axis: {_kind(reader, word) for place, word in pairs if place.lower().strip("+- ")[:1] == axis} for axis in axes
    }
    if len(words) not in (1, len(places)) or not all(kinds.values()):
        raise reader.error(
            "the boundary conditions do not fit their order",
            f"{_SIMS}@Boundary Conditions",
            found=f"{list(words)} for {list(places)}",
            expected=f"one condition, or one for each entry of the order, and every one of {', '.join(axes)} in it",
            remedy="give convert.boundaries",
        )
    return tuple(_strongest(kinds[axis]) for axis in axes)


def _kind(reader: Hdf5Reader, word: str) -> Boundary:
    kind = _KINDS.get(word.strip().lower())
    if kind is None:
        key = f"{_SIMS}@Boundary Conditions"
        raise reader.error(
            "unknown boundary condition", key, found=word, expected=f"one of {sorted(_KINDS)}",
            remedy="give convert.boundaries",
        )  # fmt: skip
    return kind


def _strongest(kinds: Sequence[Boundary] | set[Boundary]) -> Boundary:
    return next(kind for kind in _KINDS.values() if kind in kinds)
