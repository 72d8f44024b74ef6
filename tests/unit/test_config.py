"""Configuration: typed, overridable, and helpful about typos."""

from pathlib import Path
from typing import Literal

import pytest

from data_pipeline.base.config import Config, apply_overrides, build, load, parse_overrides, read_yaml
from data_pipeline.base.errors import ConfigError
from data_pipeline.config import DatasetConfig
from finetune.config import FinetuneConfig
from pretrain.config import ModelConfig, PretrainConfig, RegistryConfig, TrainingConfig
from pretrain.job import check_batch, number_of_ranks

CONFIGS = Path(__file__).parents[2] / "configs"


class Inner(Config):
    rate: float = 1.0
    items: tuple[int, ...] = ()


class Outer(Config):
    steps: int
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"steps": 1, "inner": {"rat": 2}}, r"inner\.rat: unknown key; did you mean 'rate'\?"),
        ({"steps": 1, "many": [{"ratee": 2}]}, r"many\.0\.ratee: unknown key; did you mean 'rate'\?"),
        ({"stps": 1, "steps": 1}, r"stps: unknown key; did you mean 'steps'\?"),
        ({}, "steps: missing"),
        ({"steps": "many"}, r"steps: .*integer.*found 'many'"),
        ({"steps": 1, "inner": {"rate": float("nan")}}, r"inner\.rate"),
    ],
)
def test_what_is_wrong_is_named(content: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Outer, content)


def test_numbers_with_an_exponent_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("steps: 3\ninner: {rate: 1e-3}\n")
    assert load(Outer, tmp_path / "a.yaml").inner.rate == 1e-3
    assert load(Outer, tmp_path / "a.yaml", ["inner.rate=2e3"]).inner.rate == 2e3


def test_overrides_reach_lists_and_make_missing_groups() -> None:
    content = {"steps": 1, "many": [{"rate": 1.0}, {"rate": 2.0}]}
    new = apply_overrides(content, parse_overrides(["many.1.rate=5", "inner.items=[1, 2]"]))
    assert new == {"steps": 1, "many": [{"rate": 1.0}, {"rate": 5}], "inner": {"items": [1, 2]}}
    assert content["many"][1] == {"rate": 2.0}


@pytest.mark.parametrize("text", ["steps", "=3", "many.7.rate=1", "steps.deep=1", "inner={"])
def test_overrides_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        build(Outer, apply_overrides({"steps": 1, "many": []}, parse_overrides([text])))


def test_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").write_text("a: 1")
    with pytest.raises(ConfigError, match=r"did you mean 'demo\.yaml'"):
        read_yaml(tmp_path / "dmo.yaml")


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "a: [", "just words"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"a\.yaml"):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(("folder", "cls"), [
    ("data", DatasetConfig), ("pretrain", PretrainConfig), ("finetune", FinetuneConfig),
])  # fmt: skip
def test_every_configuration_of_the_project_is_valid(folder: str, cls: type[Config]) -> None:
    files = sorted((CONFIGS / folder).glob("*.yaml"))
    assert files
    for file in files:
        config = load(cls, file)
        if isinstance(config, PretrainConfig | FinetuneConfig):
            assert config.data.load_datasets(file.parent)


def test_a_batch_that_does_not_divide_names_one_that_does() -> None:
    with pytest.raises(ConfigError, match=r"(?s)batch_size 20.*multiple of .* 16.*batch_size 16 or 32"):
        check_batch(TrainingConfig(steps=1, batch_size=20, micro_batch=8, ranks=2))
    check_batch(TrainingConfig(steps=1, batch_size=32, micro_batch=8, ranks=2))


@pytest.mark.parametrize(
    ("gpus", "batch_size", "ranks"), [(0, 16, 2), (1, 16, 1), (8, 16, 2), (3, 48, 3), (8, 64, 8), (0, 8, 1)]
)
def test_ranks_are_as_many_as_the_batch_divides_among(
    gpus: int, batch_size: int, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("pretrain.job.device_type", lambda: "cuda" if gpus else "cpu")
    assert number_of_ranks(TrainingConfig(steps=1, batch_size=batch_size, micro_batch=8)) == ranks


def test_an_alias_that_mlflow_keeps_for_itself_is_refused() -> None:
    for alias in ("latest", "v2"):
        with pytest.raises(ValueError, match="MLflow keeps for itself"):
            RegistryConfig(name="toy", alias=alias)


def test_a_model_has_a_size_or_a_shape() -> None:
    ModelConfig(size="Ti")
    ModelConfig(width=32, depth=1, mlp_ratio=1, heads=2, head_width=8)
    with pytest.raises(ValueError, match="missing: width"):
        ModelConfig(depth=1, mlp_ratio=1, heads=2, head_width=8)
    with pytest.raises(ValueError, match="size Ti fixes width"):
        ModelConfig(size="Ti", width=3)


@pytest.mark.parametrize(
    ("text", "line"), [("steps: 1\nmany: []\nsteps: 2\n", 3), ("inner: {rate: 1,\n rate: 2}\n", 2)]
)
def test_a_key_given_twice_is_refused_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"(?s)a\.yaml.*'(steps|rate)' is given twice.*line {line}"):
        read_yaml(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match=r"(?s)inner.*given twice"):
        parse_overrides(["inner={rate: 1, rate: 2}"])


def test_merged_keys_may_be_overridden(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &a {x: 1, y: 2}\nb: &b {z: 3}\nc:\n  <<: *a\n  <<: *b\n  x: 5\n")
    assert read_yaml(tmp_path / "a.yaml")["c"] == {"x": 5, "y": 2, "z": 3}


class Scalars(Config):
    number: float = 0.0
    count: int = 0
    flag: bool = False
    text: str = ""
    path: Path = Path()
    share: int | float | Literal["rest"] = 0
    counts: dict[str, tuple[int, ...]] = {}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("number", "1.5"), ("number", True), ("count", "20"), ("count", False), ("count", 1.5), ("flag", 1),
        ("flag", "yes"), ("text", 3), ("share", True), ("share", "0.5"), ("counts", {"a": [1, True]}),
    ],
)  # fmt: skip
def test_no_type_is_converted_silently(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"key: {key}"):
        build(Scalars, {key: value})


def test_what_loses_nothing_is_allowed() -> None:
    content = {"number": 3, "count": 1e4, "text": "a", "path": "a/b", "share": 0.5, "counts": {"a": [1, 2]}}
    found = build(Scalars, content)
    assert (found.number, found.count, found.path, found.share) == (3.0, 10_000, Path("a/b"), 0.5)
    assert isinstance(build(Scalars, {"share": 3}).share, int)
    assert found.counts == {"a": (1, 2)}
    assert Scalars.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize("text", ["many.0.1=5", "many.²=4", "many.-1=4", "many.0.rate.x=1"])
def test_overrides_that_reach_into_values_are_refused_in_words(text: str) -> None:
    with pytest.raises(ConfigError, match=text.partition("=")[0]):
        apply_overrides({"many": [{"rate": 1.0}, 2] if "rate" in text else [1, 2]}, parse_overrides([text]))


def test_keys_are_named_from_the_top_of_the_file() -> None:
    with pytest.raises(ConfigError, match=r"key: generate\.parameters\.inner\.rat: unknown key"):
        build(Outer, {"steps": 1, "inner": {"rat": 2}}, below="generate.parameters")


def test_a_missing_file_without_neighbours_has_no_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        read_yaml(tmp_path / "a.yaml")
    assert "remedy" not in str(refused.value)


def test_a_file_is_added_to_an_error_that_names_none() -> None:
    error = ConfigError("wrong", key="a", found=1).within("b.yaml")
    assert str(error) == "wrong\n  file: b.yaml\n  key: a\n  found: 1"
    assert error.within("c.yaml") is error
