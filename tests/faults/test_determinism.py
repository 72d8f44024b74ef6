"""The same run gives the same losses: to the bit on one machine, to five digits on any and in later versions."""

import shutil
from pathlib import Path

import pytest
import torch

from data_pipeline.base.files import read_json
from tests.golden_runs import copy_run, go_on
from tests.small_jobs import tree


@pytest.mark.slow
def test_losses_are_the_golden_ones_and_two_runs_agree_to_the_bit(tmp_path: Path) -> None:
    folders = [copy_run("checkpoint_v3", tmp_path / name) for name in ("one", "two")]
    for folder in folders:
        shutil.rmtree(folder / "checkpoints")
        shutil.rmtree(folder / "final")
    one, two = (go_on(folder, 2)[0] for folder in folders)
    torch.testing.assert_close(one.losses, read_json(folders[0] / "losses.json"), rtol=1e-5, atol=0)
    assert one.losses == two.losses
    assert len(set(one.losses)) == len(one.losses) == 6
    assert tree(folders[0] / "final") == tree(folders[1] / "final")
    # The losses are in the checkpoints, too, and the state of the optimizer.
    assert tree(folders[0] / "checkpoints") == tree(folders[1] / "checkpoints")
