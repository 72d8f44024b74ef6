"""Bad input: one clear message, an exit code that is not zero, and nothing half-written."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from data_pipeline.workers import keep_ray
from launch.cli import main
from tests.training import ROOT, write_dataset
from tests.well_files import write_well


@pytest.fixture(scope="module", autouse=True)
def _one_ray() -> object:
    with keep_ray():
        yield


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """Run a command that must fail; returns its message. No output folder may hold anything visible afterwards."""

    def run(*words: str | Path) -> str:
        assert main([str(word) for word in words]) != 0
        captured = capsys.readouterr()
        assert captured.err.count("error: ") == 1
        assert "Traceback" not in captured.err
        for folder in (tmp_path / "out", tmp_path / "runs"):
            assert not [p for p in folder.glob("*") if not p.name.startswith(".")]
        return captured.err

    return run


def well(folder: Path, **splits: int) -> Path:
    for split, trajectories in splits.items():
        (folder / "data" / split).mkdir(parents=True)
        write_well(folder / "data" / split / "part.hdf5", trajectories=trajectories, space=(16, 16), frames=8)
    return folder


def pretrain_config(folder: Path, datasets: list[str], **changes: object) -> Path:
    config = {
        "name": "bad", "output": str(folder / "runs"),
        "data": {"root": str(folder / "data"), "history": 4, "datasets": [{"config": d} for d in datasets]},
        "model": {"size": "nano", "patch_size": 4}, "training": {"steps": 1, "batch_size": 4, "micro_batch": 2},
    } | changes  # fmt: skip
    (folder / "pretrain.yaml").write_text(yaml.safe_dump(config))
    return folder / "pretrain.yaml"


def test_a_missing_file(fails: Callable[..., str], tmp_path: Path) -> None:
    assert "nowhere" in fails("data", "convert", tmp_path / "nowhere", "--root", tmp_path / "out")
    assert "no such configuration file" in fails("pretrain", tmp_path / "nowhere.yaml")


def test_a_wrong_layout(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "raw" / "data" / "train").mkdir(parents=True)
    with h5py.File(tmp_path / "raw" / "data" / "train" / "other.hdf5", "w") as file:
        file["tensor"] = np.zeros((2, 3, 4))
    message = fails("data", "convert", tmp_path / "raw", "--root", tmp_path / "out")
    assert "other.hdf5" in message
    assert "tensor" in message


def test_a_truncated_hdf5(fails: Callable[..., str], tmp_path: Path) -> None:
    path = well(tmp_path / "raw", train=2, test=1) / "data" / "train" / "part.hdf5"
    path.write_bytes(path.read_bytes()[:-2000])
    assert "part.hdf5" in fails("data", "convert", tmp_path / "raw", "--root", tmp_path / "out")


def test_nan_in_a_field(fails: Callable[..., str], tmp_path: Path) -> None:
    path = well(tmp_path / "raw", train=2, test=1) / "data" / "train" / "part.hdf5"
    with h5py.File(path, "r+") as file:
        file["t0_fields/density"][1, 5, 3, 2] = np.nan
    message = fails("data", "convert", tmp_path / "raw", "--root", tmp_path / "out")
    assert "part.hdf5" in message
    assert "density" in message
    assert main(["data", "validate", str(tmp_path / "raw")]) == 1


def test_a_config_typo(fails: Callable[..., str], tmp_path: Path) -> None:
    write_dataset(tmp_path, "toy")
    config = pretrain_config(tmp_path, ["toy.yaml"], trainin={"steps": 1})
    assert "trainin: unknown key; did you mean 'training'?" in fails("pretrain", config)
    config = pretrain_config(tmp_path, ["toi.yaml"])
    assert "did you mean 'toy.yaml'?" in fails("pretrain", config)


def test_a_batch_that_does_not_divide(fails: Callable[..., str], tmp_path: Path) -> None:
    write_dataset(tmp_path, "toy")
    message = fails("pretrain", pretrain_config(tmp_path, ["toy.yaml"]), "training.batch_size=5")
    assert "batch_size 5" in message
    assert "batch_size 4 or 8" in message


def test_data_that_were_never_built(fails: Callable[..., str], tmp_path: Path) -> None:
    write_dataset(tmp_path, "toy")
    assert "pdepot data convert" in fails("pretrain", pretrain_config(tmp_path, ["toy.yaml"]))


def test_an_empty_test_split_is_found_before_training(
    fails: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = well(tmp_path / "raw", train=3)
    (tmp_path / "toy.yaml").write_text(
        yaml.safe_dump({"name": "toy", "convert": {"layout": "the_well", "path": str(folder)}})
    )
    assert main(["data", "convert", str(tmp_path / "toy.yaml"), "--root", str(tmp_path / "data")]) == 0
    assert main(["data", "export", str(tmp_path / "data" / "toy.zarr")]) == 0
    capsys.readouterr()
    message = fails("pretrain", pretrain_config(tmp_path, ["toy.yaml"]))
    assert "toy.shards" in message
    assert "'test'" in message.splitlines()[0]


def test_a_registry_that_is_not_there(
    fails: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    write_dataset(tmp_path, "toy")
    for command in (["models", "list"], ["pretrain", str(pretrain_config(tmp_path, ["toy.yaml"]))]):
        assert "http://127.0.0.1:9" in fails(*command)


def test_a_grid_that_the_patches_do_not_cover(fails: Callable[..., str], tmp_path: Path) -> None:
    write_dataset(tmp_path, "toy")
    assert main(["data", "convert", str(tmp_path / "toy.yaml"), "--root", str(tmp_path / "data")]) == 0
    assert main(["data", "export", str(tmp_path / "data" / "toy.zarr")]) == 0
    message = fails("pretrain", pretrain_config(tmp_path, ["toy.yaml"]), "model.patch_size=5")
    assert "model.patch_size" in message


def test_an_unknown_command_names_its_neighbour() -> None:
    command = [sys.executable, "-m", "launch.cli", "data", "genrate"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "did you mean 'generate'?" in result.stderr


@pytest.mark.parametrize("command", [
    [], ["data"], ["data", "generate"], ["data", "convert"], ["data", "export"], ["data", "validate"],
    ["data", "info"], ["pretrain"], ["finetune"], ["evaluate"],
    ["models"], ["models", "list"], ["models", "show"], ["models", "pull"], ["models", "promote"],
    ["models", "import"], ["models", "export"], ["models", "diagnose"],
])  # fmt: skip
def test_help_everywhere_with_an_example(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0
    assert f"example: pdepot {' '.join(command)}".strip() in capsys.readouterr().out
