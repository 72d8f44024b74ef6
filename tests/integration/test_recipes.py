"""The recipes as users start them, made small: the same keys, a tiny network, three steps on two ranks."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from data_pipeline.base.config import build, read_yaml
from launch.ranks import run_ranks
from pretrain.config import PretrainConfig
from pretrain.job import prepare_pretraining
from pretrain.run import read_status
from tests.training import MODEL, ROOT

RECIPES = ["reference", "dpot", "modern"]
SMALL = {"steps": 3, "batch_size": 8, "micro_batch": 2, "checkpoint_every": 2}


def recipe(name: str, data: dict[str, Any], folder: Path, **training: Any) -> PretrainConfig:
    """A recipe on the tests' data, with all that is not a matter of size as it is."""
    content = read_yaml(ROOT / "configs" / "pretrain" / f"{name}.yaml")
    content |= {"output": str(folder), "data": data, "registry": None}
    content["model"] = {k: v for k, v in content["model"].items() if k != "size"} | MODEL
    content["training"] |= SMALL | training
    return build(PretrainConfig, content)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_whole(name: str) -> None:
    path = ROOT / "configs" / "pretrain" / f"{name}.yaml"
    config = build(PretrainConfig, read_yaml(path), file=path)
    assert path.read_text().startswith("#")
    assert all((path.parent / entry.config).is_file() for entry in config.data.datasets)


def test_the_reference_is_the_published_recipe() -> None:
    """Spec and code of DPOT; the two configurations differ in their data alone."""
    trainings, objectives = [], []
    for name in ("reference", "dpot"):
        content = read_yaml(ROOT / "configs" / "pretrain" / f"{name}.yaml")
        trainings.append({k: v for k, v in content["training"].items() if k not in ("steps", "checkpoint_every")})
        objectives.append(content["objective"])
    assert trainings[0] == trainings[1]
    assert objectives[0] == objectives[1]
    published = {
        "optimizer": "adam", "schedule": "onecycle", "learning_rate": 1e-3, "warmup": 0.2, "betas": [0.95, 0.9],
        "cycle_beta1": 0.85, "weight_decay": 1e-6 / 16, "epsilon": 1e-8 / 16, "clip": 0,
    }  # fmt: skip
    assert trainings[0] | published == trainings[0]
    learned = {"predict": "state", "noise": 5e-4, "noise_unit": "norm", "padding_loss": True, "shift": False}
    assert objectives[0] | learned == objectives[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "training"),
    [
        ("reference", {}),
        ("modern", {}),
        ("modern", {"optimizer": "muon", "zero_stage": 2}),
    ],
)
def test_recipes_train(name: str, training: dict[str, Any], data: dict[str, Any], uri: str, tmp_path: Path) -> None:
    config = recipe(name, data, tmp_path / "out", **training)
    folder = prepare_pretraining(config, Path(data["root"]).parent)[0]
    run_ranks(folder, 2, uri)
    assert read_status(folder) == ("finished", "")
    before, after = (load_file(folder / part / "model.safetensors") for part in ("initial", "final"))
    assert all(value.isfinite().all() for value in after.values())
    moved = {key for key, value in after.items() if not value.equal(before[key])}
    assert {key for key in after if ".blocks." in f".{key}"} <= moved
