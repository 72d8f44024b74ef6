"""What the benchmark of the solvers counts and records."""

import pytest
import torch

from benchmarks.solver_work import SPECTRAL, STAGES, Recorder, Work, census, find
from benchmarks.solvers import case
from data_pipeline.config import GenerateConfig
from data_pipeline.solvers.registry import FAMILIES
from data_pipeline.solvers.semilinear import SemilinearSolver

WITHOUT_STEPS = {"advection_1d", "poisson_2d"}


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - WITHOUT_STEPS))
def test_the_steps_of_every_family_are_counted(family):
    spectral = issubclass(FAMILIES[family], SemilinearSolver)
    owner, name = find(SPECTRAL if spectral else STAGES[family])
    assert callable(getattr(owner, name))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_has_a_laptop_configuration(family):
    assert case(family, "cpu", None) is not None


def test_steps_stages_and_transforms_of_a_piece_are_counted():
    flow = GenerateConfig.model_validate(
        {"family": "navier_stokes_2d", "resolution": (16, 16), "frames": 2, "dt": 0.1, "splits": {"train": 2}}
    )
    with torch.inference_mode():
        steps, copies, recorder = census(flow.model_copy(update={"parameters": {"step": 0.05}}), 2, 0.1)
    assert (steps, copies) == (2, 0)
    assert len(recorder.calls) >= 2 * 4 * 2  # four evaluations a step, at least there and back in each
    recorder.replay()
    water = GenerateConfig.model_validate(
        {"family": "shallow_water_2d", "resolution": (16, 16), "frames": 2, "dt": 0.05, "splits": {"train": 2}}
    )
    steps, copies, recorder = census(water, 2, 0.05)
    assert steps >= 1
    assert copies == 2 * steps
    assert not recorder.calls


def test_a_recorder_notes_transforms_alone():
    values = torch.randn(3, 8)
    with torch.no_grad(), Recorder() as recorder:
        torch.fft.irfft(torch.fft.rfft(values) * 2) @ torch.ones(8, 2)
    names = [func.overloadpacket.__name__ for func, _, _ in recorder.calls]
    assert names == ["_fft_r2c", "_fft_c2r", "mm"]


def test_a_long_frame_is_cut_short(monkeypatch):
    monkeypatch.setattr("benchmarks.solver_work.SECONDS", 0.0)
    water = GenerateConfig.model_validate(
        {"family": "shallow_water_2d", "resolution": (16, 16), "frames": 2, "dt": 0.64, "splits": {"train": 1}}
    )
    work = Work(water, 1)
    work.shorten()
    assert work.duration == pytest.approx(0.01)
