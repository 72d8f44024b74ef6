"""Real input that this project did not make, end to end through the command line, with few steps."""

from pathlib import Path

import pytest

from data_pipeline.base.files import read_json
from launch.cli import main
from pretrain.registry import load_operator
from tests.training import ROOT

WELL = Path("data") / "the_well" / "decaying_turbulence_2d"


@pytest.mark.slow
def test_convert_export_and_pretrain_on_turbulence(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (shared / WELL).is_dir():
        pytest.skip("no turbulence set")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    data = tmp_path / "data"
    dataset = ROOT / "configs" / "data" / "decaying_turbulence_2d.yaml"
    assert main(["data", "convert", str(dataset), f"convert.path={shared / WELL}", "--root", str(data)]) == 0
    assert main(["data", "export", str(data / "decaying_turbulence_2d.zarr")]) == 0
    for name in ("decaying_turbulence_2d.zarr", "decaying_turbulence_2d.shards"):
        assert main(["data", "validate", str(data / name)]) == 0

    config = ROOT / "configs" / "pretrain" / "turbulence.yaml"
    small = ["training.steps=30", "training.checkpoint_every=15", "model.width=64", "model.depth=2"]
    assert main(["pretrain", str(config), f"output={tmp_path / 'run'}", f"data.root={data}", *small]) == 0
    assert "decaying_turbulence_2d" in capsys.readouterr().out
    (evaluation,) = read_json(tmp_path / "run" / "pretrain" / "evaluation.json")
    assert evaluation["trajectories"] == 8
    assert evaluation["relative_l2"] < evaluation["persistence"]

    # What was registered is what the command line evaluates.
    model = "models:/pdepot-turbulence@champion"
    assert load_operator(model).config.channels == ("vorticity",)
    report = tmp_path / "report.html"
    shards = str(data / "decaying_turbulence_2d.shards")
    assert main(["evaluate", model, shards, "--limit", "2", "--report", str(report)]) == 0
    assert report.exists()
    assert main(["models", "list"]) == 0
    assert "pdepot-turbulence" in capsys.readouterr().out
