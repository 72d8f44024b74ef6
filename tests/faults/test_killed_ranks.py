"""A rank is killed at chosen moments: torchrun starts the group again, and the weights are those of a quiet run."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.base.errors import PdepotError
from data_pipeline.base.files import read_json
from launch.ranks import run_ranks
from pretrain.run import read_status
from tests.training import prepare

INJECTED = Path(__file__).parent / "injected"
FINAL = Path("final", "model.safetensors")


@pytest.fixture(scope="module")
def undisturbed(data: dict[str, Any], uri: str, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = prepare(data, tmp_path_factory.mktemp("undisturbed"))
    run_ranks(folder, 2, uri)
    return (folder / FINAL).read_bytes()


@pytest.mark.parametrize(
    ("rank", "module", "function", "calls"),
    [
        pytest.param(1, "pretrain.engine", "update", 5, id="between backward and update",
                     marks=pytest.mark.slow),
        pytest.param(0, "pretrain.state_files", "write_tensors", 3, id="while the second checkpoint is written",
                     marks=pytest.mark.slow),
        pytest.param(0, "data_pipeline.base.files", "publish_directory", 3, id="before the third is published",
                     marks=pytest.mark.slow),
        pytest.param(1, "pretrain.setup", "set_up", 1, id="at the start", marks=pytest.mark.slow),
        # The first group that is given up is the pre-flight's.
        pytest.param(1, "torch.distributed", "destroy_process_group", 2, id="after the end", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_killed_rank_changes_nothing(
    data: dict[str, Any], uri: str, undisturbed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    rank: int, module: str, function: str, calls: int,
) -> None:  # fmt: skip
    folder, fault = prepare(data, tmp_path), tmp_path / "fault.json"
    fault.write_text(json.dumps({"rank": rank, "module": module, "function": function, "calls": calls}))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(INJECTED), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PDEPOT_TEST_FAULT", str(fault))
    run_ranks(folder, 2, uri)
    assert fault.with_suffix(".done").exists()
    assert read_status(folder)[0] == "finished"
    assert (folder / FINAL).read_bytes() == undisturbed


@pytest.mark.slow
def test_what_a_restart_does_not_mend_is_not_tried_again(data: dict[str, Any], uri: str, tmp_path: Path) -> None:
    folder = prepare(data, tmp_path, learning_rate=1e30, clip=0, warmup=0, patience=2, max_rollbacks=0, restarts=3)
    with pytest.raises(PdepotError, match=r"(?s)2 steps in a row could not be taken.*sample positions \[\d+"):
        run_ranks(folder, 2, uri)
    assert read_json(folder / "status.json")["permanent"]
    assert (folder / "torchrun.log").read_text().count("2 steps in a row") <= 2  # a line of each rank
    assert not (folder / "final").exists()
