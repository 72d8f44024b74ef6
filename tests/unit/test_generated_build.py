"""What a build of a solved dataset puts on record, and what it refuses to commit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline import inspect
from data_pipeline.base.errors import ConfigError, DataError
from data_pipeline.build import build_store
from data_pipeline.config import DatasetConfig, ExportConfig
from data_pipeline.export import export_shards
from data_pipeline.jobs import Job
from data_pipeline.solvers.listing import describe_family, list_families
from data_pipeline.solvers.registry import FAMILIES
from data_pipeline.solvers.source import SolverSource
from data_pipeline.stores import open_store, read_manifest
from data_pipeline.stores.generation import Generation, refined_in_shard, relative_errors
from data_pipeline.stores.protocol import read_window
from launch.cli import main
from tests.datasets import tasks_inline

CONFIGS = Path(__file__).parents[2] / "configs" / "data"


@pytest.fixture(autouse=True)
def inline() -> Iterator[None]:
    with tasks_inline():
        yield


def made(per_shard: int = 2, **generate: Any) -> DatasetConfig:
    content = {
        "family": "burgers_2d",
        "resolution": [32, 32],
        "frames": 4,
        "dt": 0.05,
        "splits": {"train": 5, "test": 2},
    }
    return DatasetConfig.model_validate(
        {"name": "solved", "generate": content | generate, "store": {"trajectories_per_shard": per_shard}}
    )


def generation(folder: Path | str) -> Generation:
    found = read_manifest(Path(folder)).generation
    assert found is not None
    return found


def test_a_generated_dataset_carries_its_numerics_and_an_error_estimate(tmp_path: Path) -> None:
    config = made()
    store = build_store(config, tmp_path)
    found = generation(store)
    assert (found.family, found.version) == ("burgers_2d", FAMILIES["burgers_2d"].version)
    assert (found.dt, found.resolution, found.grid, found.refined_grid) == (0.05, (32, 32), (32, 32), (64, 64))
    assert found.internal_step is not None
    assert found.refined_step is not None
    assert 0.4 < found.refined_step / found.internal_step < 0.6
    assert found.samples == ("train 0", "train 2")  # one in each of the first two shards
    assert config.generate is not None
    source = SolverSource("solved", config.generate)
    stored = read_window(open_store(store, "train"), 2, 0, 4)
    difference = stored.astype(np.float64) - source.refined("train", 2)
    scale = np.square(source.refined("train", 2).astype(np.float64)).mean((0, 1, 2))
    expected = np.sqrt((np.square(difference).mean((1, 2)) / scale).mean(-1))
    np.testing.assert_allclose(np.array(found.error[1], float), expected, rtol=6e-3)


def test_the_record_goes_with_the_export_and_is_shown(tmp_path: Path) -> None:
    store = build_store(made(), tmp_path)
    shards = export_shards(store, tmp_path / "out", ExportConfig())
    assert generation(shards) == generation(store)
    for folder in (store, shards):
        assert "error estimate" in inspect.info(folder).text()
        assert "64 x 64 points, step" in inspect.info(folder).text()


def test_no_samples_no_estimate(tmp_path: Path) -> None:
    found = generation(build_store(made(error_samples=0), tmp_path))
    assert (found.samples, found.error) == ((), ())
    assert "not estimated" in found.text()


@pytest.mark.parametrize(("shards", "samples"), [(1, 3), (4, 2), (3, 7), (2, 0)])
def test_estimates_spread_over_the_shards(shards: int, samples: int) -> None:
    counts = [refined_in_shard(shard, shards, samples, 10) for shard in range(shards)]
    assert sum(counts) == samples
    assert max(counts) - min(counts) <= 1


def test_a_short_shard_gives_what_it_has() -> None:
    assert refined_in_shard(0, 1, 5, 2) == 2


def test_errors_are_relative_to_each_channel_and_stay_inside_the_mask() -> None:
    refined = np.ones((2, 4, 4, 3), np.float32) * np.array([1.0, 100.0, 0.0], np.float32)
    stored = refined * np.array([1.1, 1.0, 1.0], np.float32)
    np.testing.assert_allclose(np.array(relative_errors(stored, refined, None), float), 0.1 / np.sqrt(2), rtol=1e-2)
    mask = np.ones((4, 4), np.bool_)
    mask[0, 0] = False
    stored[:, 0, 0] = 1e6
    np.testing.assert_allclose(np.array(relative_errors(stored, refined, mask), float), 0.1 / np.sqrt(2), rtol=1e-2)
    assert relative_errors(stored, refined * np.nan, mask) == [None, None]


def test_a_refined_run_that_blew_up_is_said() -> None:
    assert "blew up" in Generation.model_validate(_record(error=((0.1, None),))).text()


def _record(**changes: Any) -> dict[str, Any]:
    return {
        "family": "f", "version": 1, "scheme": "s", "precision": "float64", "dt": 1.0, "resolution": (8,),
        "grid": (8,), "internal_step": None, "refined_grid": (16,), "refined_step": None,
        "samples": ("train 0",), "error": (),
    } | changes  # fmt: skip


def test_a_trajectory_that_blew_up_is_never_committed(tmp_path: Path) -> None:
    config = made(dt=1.0, parameters={"viscosity": 1e-6})
    with pytest.raises((DataError, ConfigError), match=r"viscosity|parameters"):
        build_store(config, tmp_path)
    assert not (tmp_path / "solved.zarr").exists()


def test_an_impossible_solution_is_never_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FAMILIES["burgers_2d"], "fault", lambda _, fields: (2, "a negative density"))
    with pytest.raises(DataError, match=r"(?s)solved, split train, trajectory 0, frame 2.*a negative density"):
        build_store(made(), tmp_path)
    assert not (tmp_path / "solved.zarr").exists()


def test_what_solves_does_not_matter_for_what_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = build_store(made(), tmp_path)
    assert build_store(made(compile=True), tmp_path) == store
    assert "up to date" in capsys.readouterr().out


def test_precision_is_part_of_the_data(tmp_path: Path) -> None:
    build_store(made(), tmp_path)
    with pytest.raises(DataError, match="precision"):
        build_store(made(precision="float32"), tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frames": 1}, ["generate.frames", "at least 2"]),
        ({"dt": 0.0}, ["generate.dt", "above 0"]),
        ({"device": "tpu"}, ["device", "cuda"]),
        ({"precision": "float16"}, ["precision", "float32"]),
        ({"error_samples": -1}, ["error_samples"]),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises((ValueError, ConfigError), match=r"(?s)" + ".*".join(words)):
        build_store(made(**changes), tmp_path)


def test_every_family_is_listed_with_its_equation_and_described() -> None:
    listed = list_families()
    for name, family in FAMILIES.items():
        assert f"{name} " in listed
        assert family.equation in listed
        assert "\n" not in family.equation
        described = describe_family(name)
        assert all(setting in described for setting in family.parameters_class.model_fields)
        assert family.scheme in described
    with pytest.raises(ConfigError, match="did you mean 'burgers_2d'"):
        describe_family("burger_2d")


def test_the_kinds_of_a_setting_are_listed() -> None:
    described = describe_family("kdv_1d")
    for words in ("either {kind: sines, waves: 10, amplitude: 0.5, wavenumbers: 2}.", "or {kind: windowed_sines, "):
        assert words in described
    assert "one of: blobs, clusters, fourier." in describe_family("gray_scott_2d")


def test_an_error_of_a_family_names_the_file_and_the_whole_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = CONFIGS / "burgers_2d.yaml"
    for override, key in (
        ("generate.parameters.step=9", "generate.parameters.step"),
        ("generate.parameters.stp=9", "generate.parameters.stp: unknown key"),
        ("generate.resolution=[64]", "generate.resolution"),
        ("generate.parameters.step='0.1'", "generate.parameters.step: Input should be a valid number"),
    ):
        assert main(["data", "generate", str(file), "--root", str(tmp_path), override]) == 1
        said = capsys.readouterr().err
        assert f"file: {file}" in said
        assert f"key: {key}" in said


def test_a_picture_that_is_a_folder_is_refused_before_the_store_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "info", str(tmp_path / "no.zarr"), "--picture", str(tmp_path)]) == 1
    assert "--picture" in capsys.readouterr().err


def test_a_build_on_gpus_asks_for_one_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Job] = []
    monkeypatch.setattr("data_pipeline.jobs.run", lambda job, **_: asked.append(job))
    for device in ("cpu", "cuda"):
        build_store(made(device=device), tmp_path)
    assert [str(job.gpus_per_task) for job in asked] == ["0", "1"]


def test_every_setting_of_every_family_says_what_it_means() -> None:
    for name, family in FAMILIES.items():
        for line in describe_family(name).partition("generate.parameters:\n")[2].splitlines():
            setting = line.split()[0]
            assert line.rstrip().endswith("."), (
                f"{name}: {setting} of {family.parameters_class.__name__} has no docstring"
            )
