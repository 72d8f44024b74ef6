"""CFDBench: one folder a case, `{cavity,tube,dam,cylinder}/{bc,geo,prop}/caseNNNN/{u.npy,v.npy,case.json}`.

Y. Luo et al., "CFDBench: A Large-Scale Benchmark for Machine Learning Methods in Fluid Dynamics" (2023).

- The arrays are (t, y, x), rows from the bottom up; here x comes first. Points are the middles of cells.
- Fields are as published, without the boundary values that the publisher's loaders put around them.
- The mask is true in the fluid. It follows from the case: the cylinder stands at the origin of its coordinates, the
  dam's barrier on the ground, 0.5 from the inlet.
- The numbers of `case.json` are PDE parameters. The velocity of the lid or the inlet is called `velocity` in all four
  problems. A dataset of several problems has only what all of them have: velocity, density and viscosity.
- Frames are 0.1 s apart, those of the cylinder 0.001 s. Cases differ in length: see `convert.frames`.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.errors import DataError, nearest
from data_pipeline.config import ConvertConfig
from data_pipeline.sources.array_header import array_header
from data_pipeline.sources.arrays import Array, Arrays, open_arrays
from data_pipeline.sources.blocks import Block, BlockHeader, reading
from data_pipeline.sources.find import natural
from data_pipeline.sources.grids import Grid
from data_pipeline.sources.layout import Header, Read
from data_pipeline.sources.names import VELOCITY
from data_pipeline.trajectory import BoolArray, Boundary, Trajectory

SUBSETS = ("bc", "geo", "prop")
"""Cases that differ in the boundary values, the geometry, or the fluid."""
_FLUID = ("density", "viscosity")
_COMMON = ("velocity", *_FLUID)
_BARRIER = 0.5
"""Where the dam's barrier begins; `case.json` does not say."""


@dataclass(frozen=True)
class Problem:
    """What is known of one of the four problems.

    `keys` are those of `case.json`, `velocity` the one of them that holds the velocity of the lid or the inlet.
    """

    velocity: str
    keys: tuple[str, ...]
    boundaries: tuple[Boundary, Boundary]
    dt: float


PROBLEMS: Mapping[str, Problem] = {
    "cavity": Problem("vel_top", ("height", "width"), ("wall", "wall"), 0.1),
    "tube": Problem("vel_in", ("height", "width"), ("open", "wall"), 0.1),
    "dam": Problem(
        "velocity", ("barrier_height", "barrier_width", "height", "width", "dx", "dy"), ("open", "wall"), 0.1
    ),
    "cylinder": Problem("vel_in", ("radius", "x_min", "x_max", "y_min", "y_max"), ("open", "wall"), 0.001),
}


@dataclass(frozen=True, eq=False)
class _Header(BlockHeader):
    """A header, and the numbers of its case under this project's names."""

    case: Mapping[str, float] = field(default_factory=dict)


class CfdBench:
    """See the head of this file. The path is the folder of all problems, of one, of a subset or of a case."""

    title = "CFDBench"
    expected = "{cavity,tube,dam,cylinder}/{bc,geo,prop}/case*, each with u.npy, v.npy and case.json"

    def files(self, path: Path) -> list[Path]:
        """See `Layout.files`: the folders of the cases, by problem, subset and number."""
        try:
            return [case for folder in _subsets(path) for case in _cases(folder)]
        except OSError:
            return []

    def header(self, path: Path, config: ConvertConfig) -> Header:
        """See `Layout.header`."""
        problem = PROBLEMS[_problem(path)]
        case = read_case(path)
        several = len(_chosen_problems(path, config)) > 1
        names = _COMMON if several else tuple(case)
        boundaries = ("open", "wall") if several else problem.boundaries
        with _open(path) as arrays:
            fields = [Block(key, "tyx", (channel,)) for key, channel in zip("uv", VELOCITY, strict=False)]
            header = array_header(
                arrays,
                fields,
                boundary="wall",
                equation="incompressible Navier-Stokes",
                grid=_grid(case),
                dt=problem.dt,
                values={name: case[name] for name in names},
            )
        rest = {name: str(value) for name, value in case.items() if name not in names}
        return _Header(
            **vars(header)
            | {
                "boundaries": boundaries,
                "masked": True,
                "content": tuple(path / name for name in ("u.npy", "v.npy", "case.json")),
                "notes": {"problem": _problem(path), **rest},
                "case": case,
            }
        )

    @contextmanager
    def open(self, header: Header, config: ConvertConfig) -> Iterator[Read]:
        """See `Layout.open`."""
        assert isinstance(header, _Header)
        mask = fluid(header.case, header.space)

        def with_mask(_: int, one: Trajectory) -> Trajectory:
            return replace(one, mask=mask)

        with _open(header.path) as arrays:
            yield reading(arrays, header, with_mask)


LAYOUT = CfdBench()


def fluid(case: Mapping[str, float], space: tuple[int, ...]) -> BoolArray:
    """Which cells (x, y) are fluid: those whose middle is neither in the cylinder nor in the barrier."""
    x, y = np.meshgrid(*_middles(case, space), indexing="ij")
    if "radius" in case:
        return np.asarray(x**2 + y**2 > case["radius"] ** 2)
    if "barrier_height" in case:
        inside = (x >= _BARRIER) & (x <= _BARRIER + case["barrier_width"]) & (y <= case["barrier_height"])
        return np.asarray(~inside)
    return np.ones(space, np.bool_)


def read_case(path: Path) -> dict[str, float]:
    """The numbers of a case's `case.json`, under this project's names.

    Raises:
        DataError: the file is missing or damaged, lacks a number, or holds one that cannot be.
    """
    file, problem = path / "case.json", PROBLEMS[_problem(path)]
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DataError("not a readable JSON file", file=file, found=error) from None
    if not isinstance(content, dict):
        raise DataError("not a case", file=file, found=type(content).__name__, expected="numbers by name")
    case: dict[str, float] = {}
    for key in (problem.velocity, *_FLUID, *problem.keys):
        value: Any = content.get(key)
        if value is None:
            hint = nearest(key, list(content))
            raise DataError("missing key", file=file, key=key, found=sorted(content), remedy=hint)
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise DataError("not a number", file=file, key=key, found=value, expected="a finite number")
        case["velocity" if key == problem.velocity else key] = float(value)
    (x_low, x_up), (y_low, y_up) = _grid(case).extent
    if not (x_low < x_up and y_low < y_up):
        raise DataError("the domain is empty", file=file, found=_grid(case).extent, expected="upper ends above lower")
    return case


def _middles(case: Mapping[str, float], space: tuple[int, ...]) -> list[NDArray[np.float64]]:
    """Position of the middles of the cells along x and y."""
    ends = zip(_grid(case).extent, space, strict=True)
    return [low + (up - low) * (np.arange(n) + 0.5) / n for (low, up), n in ends]


def _grid(case: Mapping[str, float]) -> Grid:
    if "radius" in case:
        return Grid(((case["x_min"], case["x_max"]), (case["y_min"], case["y_max"])), ())
    return Grid(((0.0, case["width"]), (0.0, case["height"])), ())


def _problem(case: Path) -> str:
    return case.absolute().parents[1].name


def _subsets(path: Path) -> list[Path]:
    """The folders of cases at a path, in the order of problems and subsets."""
    place = path.absolute()
    if place.name in PROBLEMS:
        return [path / subset for subset in SUBSETS]
    if (place.name in SUBSETS and place.parent.name in PROBLEMS) or _is_case(path):
        return [path]
    return [path / problem / subset for problem in PROBLEMS for subset in SUBSETS]


def _cases(folder: Path) -> list[Path]:
    if _is_case(folder):
        return [folder]
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((case for case in found if _is_case(case)), key=lambda case: natural(case.name))


def _is_case(path: Path) -> bool:
    path = path.absolute()
    return path.name.startswith("case") and path.parent.name in SUBSETS and path.parent.parent.name in PROBLEMS


def _chosen_problems(case: Path, config: ConvertConfig) -> set[str]:
    """The problems of which a dataset takes cases."""
    root, patterns = Path(config.path).expanduser().absolute(), config.files
    if case.absolute().parents[2] != root:
        return {_problem(case)}
    there = {problem for problem in PROBLEMS if (root / problem).is_dir()}
    return {p for p in there if not patterns or any(fnmatch(p, pattern.split("/")[0]) for pattern in patterns)}


@contextmanager
def _open(case: Path) -> Iterator[Arrays]:
    """The arrays `u` and `v` of a case."""
    with ExitStack() as stack:
        files = {key: stack.enter_context(open_arrays(case / f"{key}.npy")) for key in "uv"}

        def opener(key: str) -> Array:
            return replace(files[key].array(None), key=key)

        yield Arrays(case, ("u", "v"), opener)
