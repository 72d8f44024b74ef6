"""Helpers of the solvers' validation."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from data_pipeline.base.config import build
from data_pipeline.solvers.registry import find_family


class Run:
    """One family on one grid, started from a given state; float64 all the way, unlike the stored frames."""

    def __init__(self, family: str, grid: tuple[int, ...], numerics: Mapping[str, Any] | None = None) -> None:
        kind = find_family(family)
        self.solver = kind(grid, build(kind.parameters_class, numerics or {}))
        self.points = self.solver.coordinates()

    def __call__(self, initial: Tensor, time: float, **parameters: float) -> Tensor:
        """The stored channels (C, *grid) at `time`, from the state (S, *grid) at 0."""
        assert set(parameters) <= set(self.solver.parameter_names), "no such parameter"
        columns = {
            name: torch.tensor([value], dtype=torch.float64)
            for name in self.solver.parameter_names
            for value in [parameters.get(name, getattr(self.solver.parameters, name, (math.nan,))[0])]
        }
        evolution = self.solver.begin(initial[None], columns)
        evolution.advance(time)
        return evolution.fields()[0]


@pytest.fixture
def run() -> type[Run]:
    return Run


_FIGURES: list[tuple[str, str, str]] = []


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str, object], None]:
    """Note a measured figure; all of them are printed as a table at the end (and stand in docs/solvers.md)."""
    where = request.path.stem.removeprefix("test_")

    def note(what: str, value: object) -> None:
        _FIGURES.append((where, what, f"{value:.3g}" if isinstance(value, float) else str(value)))

    return note


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table of the figures that the tests measured."""
    if _FIGURES:
        terminalreporter.section("measured")
        for where, what, value in _FIGURES:
            terminalreporter.write_line(f"{where:<28} {what:<62} {value}")


@pytest.fixture
def observed_order(figure: Callable[[str, object], None]) -> Callable[[str, list[float], float], float]:
    """Order between the last two errors of a sequence of refinements, noted with them."""

    def order(what: str, errors: list[float], factor: float = 2.0) -> float:
        found = math.log(errors[-2] / errors[-1]) / math.log(factor)
        figure(what, f"order {found:.2f}; errors {', '.join(f'{e:.2e}' for e in errors)}")
        return found

    return order


@pytest.fixture
def relative_l2() -> Callable[[Tensor, Tensor], float]:
    def error(found: Tensor, exact: Tensor) -> float:
        return float((found - exact).norm() / exact.norm())

    return error
