"""The published layouts by name, and which of them a path is."""

from contextlib import suppress
from importlib import import_module
from itertools import islice
from pathlib import Path

from data_pipeline.base.errors import DataError
from data_pipeline.sources.arrays import SUFFIXES, Arrays, open_arrays
from data_pipeline.sources.layout import Layout

LAYOUTS = (
    "the_well", "pdebench", "pdearena", "poseidon", "pbdl", "cfdbench", "fno", "neuraloperator", "dpot", "plain",
)  # fmt: skip
"""In the order in which they are tried on a path; `plain` files say nothing of themselves and are never guessed."""

_PLAIN = "say what its arrays mean in a configuration with `layout: plain`: see docs/data.md"
_NAMED = 20
"""Files, or arrays, that a message names of many."""


def layout(name: str) -> Layout:
    """A layout by name. Each is a module of this package with an object LAYOUT."""
    found: Layout = import_module(f"data_pipeline.sources.{name}").LAYOUT
    return found


def find_layout(path: Path) -> str | None:
    """Name of the layout of a file or folder; None where it is none of them."""
    return next((name for name in LAYOUTS[:-1] if layout(name).files(path)), None)


def known_layout(path: Path) -> str:
    """As `find_layout`. Raises DataError where there is nothing, or nothing known."""
    if not path.exists():
        raise DataError("nothing there", file=path, expected="a file or folder in a published layout")
    name = find_layout(path)
    if name is None:
        raise DataError(
            "not in a layout that is known",
            file=path,
            found=_content(path),
            expected=f"one of {', '.join(layout(name).title for name in LAYOUTS[:-1])}",
            remedy=_remedy(path),
        )
    return name


def _content(path: Path) -> str:
    """What is at a path, in words. Raises DataError where a file is damaged, and so of no layout."""
    if path.suffix in SUFFIXES:
        return _arrays(path)
    if not path.is_dir():
        return f"a file {path.suffix!r}"
    files = sorted(islice((file for file in path.rglob("*") if file.is_file()), _NAMED))
    names = ", ".join(file.relative_to(path).as_posix() for file in files)
    for file in files:
        with suppress(DataError):
            return f"{names}; in {file.name} {_arrays(file)}"
    return names or "an empty folder"


def _arrays(path: Path) -> str:
    """The arrays of a file and their shapes."""
    with open_arrays(path) as arrays:
        keys = arrays.keys[:_NAMED]
        shapes = [f"{key} {_shape(arrays, key)}" for key in keys] if keys else [str(arrays.array(None).shape)]
        return f"arrays {', '.join(shapes)}{' and more' * (len(arrays.keys) > _NAMED)}"


def _shape(arrays: Arrays, key: str) -> str:
    try:
        return str(arrays.array(key).shape)
    except DataError:
        return "(no numbers)"


def _remedy(path: Path) -> str | None:
    if path.suffix in SUFFIXES:
        return _PLAIN
    if not path.is_dir():
        return None
    inside = sorted(item for item in path.iterdir() if item.is_dir())[:_NAMED]
    dataset = next((folder for folder in inside if find_layout(folder)), None)
    if dataset is not None:
        return f"it holds datasets: give the path of one, such as {dataset}"
    return _PLAIN if any(file.suffix in SUFFIXES for file in islice(path.rglob("*"), _NAMED)) else None
