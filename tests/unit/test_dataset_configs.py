"""The project's own dataset configurations: each that generates opens, and the published ones cover what they name."""

from pathlib import Path

import pytest

from data_pipeline.base.config import load, read_yaml
from data_pipeline.config import DatasetConfig
from data_pipeline.solvers.registry import FAMILIES
from data_pipeline.solvers.source import SolverSource
from launch.jobs import PretrainConfig

CONFIGS = Path(__file__).parents[2] / "configs" / "data"
GENERATED = [path for path in sorted(CONFIGS.rglob("*.yaml")) if "generate" in read_yaml(path)]


@pytest.mark.parametrize("path", GENERATED, ids=lambda path: path.relative_to(CONFIGS).with_suffix("").as_posix())
def test_a_configuration_opens_and_can_be_drawn_from(path: Path) -> None:
    config = load(DatasetConfig, path)
    assert config.generate is not None
    source = SolverSource(config.name, config.generate)
    assert config.name == path.stem
    assert source.splits["test"] > 0
    assert path.read_text().startswith("# "), "say what it is, and where its settings come from"


def test_every_family_has_a_configuration_for_a_laptop() -> None:
    found = {load(DatasetConfig, path).generate.family for path in GENERATED if path.parent == CONFIGS}  # type: ignore[union-attr]
    assert found == set(FAMILIES)


def test_no_two_configurations_make_a_dataset_of_one_name() -> None:
    names = [load(DatasetConfig, path).name for path in sorted(CONFIGS.rglob("*.yaml"))]
    assert len(names) == len(set(names))


def test_the_mixture_of_families_is_all_planes_of_64_points_but_those_kept_for_fine_tuning() -> None:
    mixture = load(PretrainConfig, CONFIGS.parent / "pretrain" / "families.yaml").data.datasets
    planes = set()
    for path in GENERATED:
        generate = load(DatasetConfig, path).generate
        if path.parent == CONFIGS and generate is not None and generate.resolution == (64, 64):
            planes.add(path.stem)
    assert {Path(dataset.config).stem for dataset in mixture} == planes - {"burgers_2d", "gray_scott_2d"}
