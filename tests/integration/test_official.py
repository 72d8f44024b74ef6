"""A published checkpoint in the registry: registered as it was imported, with its origin."""

from pathlib import Path

import pytest
import torch

from data_pipeline.base.files import sha256_file
from launch.cli import main
from pretrain.registry import load_operator, show
from tests.unit.test_official import PLAIN, predict, read, relative, write_checkpoint


def test_a_published_checkpoint_is_registered_with_its_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file, folder = write_checkpoint(tmp_path / "best.pth"), tmp_path / "operator"

    assert main(["models", "import", str(file), str(folder), "--register", "no name"]) == 1
    assert not folder.exists()
    assert main(["models", "import", str(file), str(folder), "--register", "dpot"]) == 0
    assert "models:/dpot/1" in capsys.readouterr().out
    assert show("models:/dpot/1", uri).lineage["source.sha256"] == sha256_file(file)
    tensors = read(PLAIN)[1]
    x = tensors["input"]
    assert relative(predict(load_operator("models:/dpot/1", uri), x), tensors["output"]) < 1e-5

    back = tmp_path / "back.pth"
    assert main(["models", "export", "models:/dpot/1", str(back), "--format", "reference"]) == 0
    assert torch.equal(predict(load_operator(back), x), predict(load_operator(folder), x))
