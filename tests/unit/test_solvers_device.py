"""Every family computes on the device of its initial states: shown without a GPU, with tensors that hold no numbers.

PyTorch's fake tensors know shape, type and device, and refuse to mix devices. The device here is `meta`, which stands
for any that is not the CPU. What a step decides from numbers (is a sample left?) is answered with yes a few
times, so that steps are taken, and then with no.
"""

from collections.abc import Iterator
from itertools import chain, repeat

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from data_pipeline.config import GenerateConfig
from data_pipeline.solvers.registry import FAMILIES
from data_pipeline.solvers.source import SolverSource
from tests.solver_cases import CASES


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    answers = chain([True] * 3, repeat(False))
    monkeypatch.setattr(FakeTensor, "__bool__", lambda _: next(answers), raising=False)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        yield


def test_devices_are_not_mixed_unseen(fake: None) -> None:
    with pytest.raises(RuntimeError, match="same device"):
        torch.empty(3, device="meta") + torch.ones(3)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_family_stays_on_its_device_and_in_its_precision(family: str, request: pytest.FixtureRequest) -> None:
    config = GenerateConfig.model_validate({"family": family, "splits": {"train": 2}} | CASES[family])
    source = SolverSource(family, config)
    state, _ = source.draw("train", 0)  # a sample is drawn on the CPU, with numbers
    request.getfixturevalue("fake")
    solver = source.solver
    initial = torch.empty(2, *state.shape, device="meta", dtype=torch.float32)
    parameters = {name: torch.empty(2, device="meta", dtype=torch.float64) for name in solver.parameter_names}
    found = [solver.static_fields(initial, parameters), solver.mask(parameters)]
    assert all(one is None or one.device.type == "meta" for one in found)
    evolution = solver.begin(initial, parameters)
    evolution.advance(solver.internal_step(config.dt) or config.dt)
    fields = solver.restrict(evolution.fields())
    assert solver.solve(initial, parameters, start=0.0, dt=1e-9, frames=2).device.type == "cpu"  # a frame at a time
    assert (fields.device.type, fields.dtype) == ("meta", torch.float32)
    assert fields.shape == (2, len(solver.channels), *solver.resolution)
