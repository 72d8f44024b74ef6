"""Runs that earlier versions began go on, and so will those that this version begins.

Bits are compared between two runs in one test only: another processor may round otherwise than the one that wrote the
golden files.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data_pipeline.base.errors import CheckpointError
from data_pipeline.base.files import read_json
from tests.golden_runs import DATA, copy_run, go_on


def final(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "final" / "model.safetensors")


def assert_close(folder: Path, name: str, rtol: float, atol: float) -> None:
    expected, initial = final(DATA / name), load_file(DATA / name / "initial" / "model.safetensors")
    assert final(folder).keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(final(folder)[key], value, rtol=rtol, atol=atol, msg=key)
    moved = max(float((expected[key] - initial[key]).abs().max()) for key in expected)
    assert moved > 100 * atol  # or the tolerance would take weights that have not moved


def test_a_run_of_version_2_goes_on_in_the_present_format(tmp_path: Path) -> None:
    folder = copy_run("checkpoint_v2", tmp_path / "run")
    seen = go_on(folder, 2)
    assert seen[0].status == "finished"
    assert len(seen[0].losses) == 3
    assert_close(folder, "checkpoint_v2", 1e-4, 1e-5)
    new = folder / "checkpoints" / "step-00000006"
    assert read_json(new / "manifest.json")["version"] == 3
    assert not list(new.rglob("*.pt"))
    assert (folder / "checkpoints" / "step-00000003" / "state").is_dir()  # still there to go back to


@pytest.mark.slow
def test_a_checkpoint_of_version_2_goes_on_only_as_it_began(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"(?s)world_size.*found: 2.*expected: 1.*old ranks and stage until"):
        go_on(copy_run("checkpoint_v2", tmp_path / "ranks"), 1)
    with pytest.raises(CheckpointError, match=r"(?s)identity.*version 2, go on as it began for one more checkpoint"):
        go_on(copy_run("checkpoint_v2", tmp_path / "stage", zero_stage=2), 2)


@pytest.mark.parametrize(
    ("ranks", "stage"), [(2, 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 0), (2, 3)))]
)
def test_a_run_of_version_3_goes_on(tmp_path: Path, ranks: int, stage: int) -> None:
    folder = copy_run("checkpoint_v3", tmp_path / "run", zero_stage=stage)
    seen = go_on(folder, ranks)
    assert seen[0].status == "finished"
    torch.testing.assert_close(seen[0].losses, read_json(folder / "losses.json")[3:], rtol=1e-5, atol=0)
    assert_close(folder, "checkpoint_v3", 1e-4, 1e-5)
