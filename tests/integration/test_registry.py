"""The registry with a real database and a real server: whole or absent, verified, served without a pickle."""

import os
import pickletools
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.base.errors import DataError, RegistryError
from pretrain import registry
from pretrain.model.operator import Operator, save_operator
from pretrain.registry import ModelVersion, list_models, load_operator, promote, promotions, pull, register, show
from pretrain.rollout import rollout_block
from pretrain.tracking import Tracker, check_reachable, connect, experiment_id
from tests.mlflow_servers import mlflow_server
from tests.operator_fakes import operator_config
from tests.operators import make_operator

import mlflow  # isort: skip
from mlflow import MlflowClient  # isort: skip
from mlflow.exceptions import MlflowException  # isort: skip

LINEAGE = {"config_digest": "c0ffee", "data": {"wave": "d1", "other": "d2"}, "git_revision": "abc"}
SERVE = """
import sys
import mlflow, numpy as np
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
np.save(sys.argv[3], model.predict(np.load(sys.argv[4]), params={"steps": 3}))
import pretrain.rollout
print(pretrain.rollout.__file__)
print([name for name in ("deepspeed", "ray", "zarr", "webdataset", "h5py") if name in sys.modules])
"""


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database of its own: making one takes seconds."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('registry') / 'mlflow.db'}"
    connect(uri)
    return uri


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def name(tmp_path: Path) -> str:
    """A model of its own for each test."""
    return tmp_path.name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved(tmp_path / "operator")


def saved(folder: Path, seed: int = 0) -> Path:
    folder.mkdir()
    save_operator(make_operator(seed=seed), folder)
    return folder


def add(folder: Path, name: str, uri: str, **options: Any) -> ModelVersion:
    options = {"experiment": "tests", "lineage": LINEAGE, "metrics": {"relative_l2.wave": 0.25}} | options
    return register(folder, name, uri=uri, **options)


def same(a: Operator, b: Operator) -> bool:
    states = a.state_dict(), b.state_dict()
    return a.config == b.config and all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def stored(version: ModelVersion, uri: str) -> Path:
    """The folder of a version's artifacts, beside the database."""
    location = MlflowClient(uri, uri).get_model_version_download_uri(version.name, str(version.version))
    return Path(location.removeprefix("file://"))


def test_what_is_registered_comes_back(
    folder: Path, name: str, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    version = add(folder, name, uri, alias="champion")
    assert (version.name, version.version, version.uri) == (name, 1, f"models:/{name}/1")
    assert version.aliases == ("champion",)
    assert version.lineage == {
        "config_digest": "c0ffee", "data.wave": "d1", "data.other": "d2", "git_revision": "abc",
    }  # fmt: skip
    assert version.metrics == {"relative_l2.wave": 0.25}
    assert version == show(f"models:/{name}@champion", uri)
    assert version in list_models(uri)
    for reference in (f"models:/{name}@champion", f"models:/{name}/1", folder):
        assert same(load_operator(reference, uri), make_operator())
    assert not (tmp_path / "mlflow.db").exists()  # MLflow's own default, which nothing here may touch


def test_the_model_belongs_to_the_run_that_trained_it(folder: Path, name: str, uri: str, tmp_path: Path) -> None:
    tracker = Tracker.start(uri, "tests", "run", tmp_path / "tracking.json")
    assert add(folder, name, uri, run_id=tracker.run_id).run_id == tracker.run_id
    outputs = connect(uri).get_run(tracker.run_id).outputs.model_outputs
    assert [connect(uri).get_logged_model(model.model_id).status for model in outputs] == ["READY"]


def test_mlflow_serves_it_with_pickles_forbidden(tmp_path: Path, name: str, uri: str) -> None:
    mlflow.set_tracking_uri(uri)
    torch.manual_seed(0)
    operator = Operator(operator_config(out_timesteps=2))
    (tmp_path / "two").mkdir()
    save_operator(operator, tmp_path / "two")
    add(tmp_path / "two", name, uri, alias="champion")
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    model = mlflow.pyfunc.load_model(f"models:/{name}@champion")
    history = np.random.default_rng(0).normal(size=(2, 8, 8, 3, 3)).astype(np.float32)

    def expected(row: int, steps: int) -> np.ndarray:
        block = rollout_block(operator.eval(), torch.from_numpy(history), torch.full((2,), row), steps)
        return block.movedim(1, -2).numpy()

    np.testing.assert_array_equal(model.predict(history), expected(0, 2))  # its first dataset, one application
    np.testing.assert_array_equal(model.predict(history, params={"dataset": "other", "steps": 5}), expected(1, 5))
    assert not np.array_equal(expected(0, 2), expected(1, 2))
    assert model.metadata.metadata["lineage"] == LINEAGE
    for wrong in (history.astype(np.float64), history[:, :4]):
        with pytest.raises(MlflowException):
            model.predict(wrong)


def test_it_is_served_elsewhere_by_the_code_it_carries(folder: Path, name: str, uri: str, tmp_path: Path) -> None:
    version = add(folder, name, uri)
    history = np.random.default_rng(0).normal(size=(1, 16, 16, 3, 2)).astype(np.float32)
    np.save(tmp_path / "history.npy", history)
    arguments = [uri, version.uri, str(tmp_path / "frames.npy"), str(tmp_path / "history.npy")]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHONPATH", "MLFLOW_"))}
    result = subprocess.run(
        [sys.executable, "-c", SERVE, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=environment | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    code, heavy = result.stdout.splitlines()[-2:]
    assert Path(code).is_relative_to(stored(version, uri))
    assert heavy == "[]"  # what the model's list of requirements does not have
    frames = rollout_block(make_operator(), torch.from_numpy(history), torch.zeros(1, dtype=torch.long), 3)
    np.testing.assert_allclose(np.load(tmp_path / "frames.npy"), frames.movedim(1, -2), rtol=1e-6, atol=1e-6)


def test_no_file_of_a_model_is_a_pickle(folder: Path, name: str, uri: str) -> None:
    files = [path for path in stored(add(folder, name, uri), uri).rglob("*") if path.is_file()]
    assert {"model.safetensors", "model.json", "serving_model.py", "rollout.py"} <= {path.name for path in files}
    for path in files:
        assert not zipfile.is_zipfile(path), path
        with pytest.raises((ValueError, UnicodeDecodeError)):
            list(pickletools.genops(path.read_bytes()))


def test_the_same_operator_is_registered_once(folder: Path, name: str, uri: str, tmp_path: Path) -> None:
    first = add(folder, name, uri, alias="champion")
    assert add(folder, name, uri, alias="champion") == first
    assert add(folder, name, uri, lineage=LINEAGE | {"git_revision": "def"}).version == 2
    assert add(saved(tmp_path / "other", seed=1), name, uri).version == 3
    assert add(folder, name, uri) == first
    assert len(promotions(name, uri)) == 1


def test_a_failed_upload_leaves_no_version_and_the_alias_where_it_was(
    folder: Path, name: str, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(folder, name, uri, alias="champion")
    upload = MlflowClient.log_model_artifacts

    def half(client: MlflowClient, model_id: str, path: str) -> None:
        (Path(path) / "artifacts" / "model.safetensors").unlink()
        upload(client, model_id, path)
        raise OSError("no space left on device")

    other = saved(tmp_path / "other", seed=1)
    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "log_model_artifacts", half)
        with pytest.raises(RegistryError, match="no space left"):
            add(other, name, uri, alias="champion")
    assert [model.version for model in list_models(uri) if model.name == name] == [1]
    assert same(load_operator(f"models:/{name}@champion", uri), make_operator())
    assert add(other, name, uri, alias="champion").version == 2


def test_a_crash_before_the_alias_is_made_good(
    folder: Path, name: str, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    add(saved(tmp_path / "old", seed=1), name, uri, alias="champion")
    with monkeypatch.context() as broken:
        broken.setattr(registry, "promote", crash)
        with pytest.raises(KeyboardInterrupt):
            add(folder, name, uri, alias="champion")
    assert show(f"models:/{name}@champion", uri).version == 1
    again = add(folder, name, uri, alias="champion")
    assert (again.version, again.aliases) == (2, ("champion",))


def test_promotions_are_on_record(folder: Path, name: str, uri: str, tmp_path: Path) -> None:
    add(folder, name, uri, alias="champion")
    add(saved(tmp_path / "other", seed=1), name, uri)
    promote(name, 2, "champion", uri=uri, by="ann", reason="lower error")
    promote(name, 2, "champion", uri=uri, by="bob", reason="again")  # it is there already
    promote(name, 1, "champion", uri=uri, by="eve", reason="roll back")
    assert show(f"models:/{name}@champion", uri).version == 1
    records = [(r["version"], r["promoted_by"], r["promoted_from"], r["reason"]) for r in promotions(name, uri)]
    assert records == [
        ("1", "pdepot", "none", "registered"), ("2", "ann", "1", "lower error"), ("1", "eve", "2", "roll back"),
    ]  # fmt: skip
    tags = connect(uri).get_model_version(name, "1").tags
    assert (tags["promoted_by"], tags["promoted_from"]) == ("eve", "2")
    assert tags["promoted_at"].endswith("+00:00")


def test_no_alias_moves_without_a_record(
    folder: Path, name: str, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(folder, name, uri, alias="champion")
    add(saved(tmp_path / "other", seed=1), name, uri)

    def refuse(*_: Any) -> None:
        raise MlflowException("database is locked")

    monkeypatch.setattr(MlflowClient, "set_registered_model_tag", refuse)
    with pytest.raises(RegistryError, match="database is locked"):
        promote(name, 2, "champion", uri=uri, by="ann", reason="")
    assert show(f"models:/{name}@champion", uri).version == 1


def test_promotions_at_once_are_all_recorded(folder: Path, name: str, uri: str, tmp_path: Path) -> None:
    add(folder, name, uri)
    add(saved(tmp_path / "other", seed=1), name, uri)
    with ThreadPoolExecutor(2) as pool:
        for work in [pool.submit(promote, name, v, "best", uri=uri, by=str(v), reason="race") for v in (1, 2)]:
            work.result()
    assert {record["version"] for record in promotions(name, uri)} == {"1", "2"}
    assert show(f"models:/{name}@best", uri).version in (1, 2)


@pytest.mark.parametrize("setter", ["set_registered_model_alias", "set_model_version_tag"])
def test_a_promotion_that_loses_the_race_for_a_row_still_takes_effect(
    setter: str, folder: Path, name: str, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(folder, name, uri)
    add(saved(tmp_path / "other", seed=1), name, uri)
    real, lost = getattr(MlflowClient, setter), []

    def lose_once(*arguments: Any) -> None:
        if not lost:  # as the store answers when another process inserted the row after this one had looked for it
            lost.append(arguments)
            raise MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed")
        real(*arguments)

    monkeypatch.setattr(MlflowClient, setter, lose_once)
    promote(name, 2, "best", uri=uri, by="ann", reason="")
    assert lost
    assert show(f"models:/{name}@best", uri).version == 2


@pytest.mark.parametrize(("reference", "hint"), [
    ("models:/wrng_names/1", "did you mean 'wrong_names'"),
    ("models:/wrong_names@champ", "did you mean 'champion'"),
    ("models:/wrong_names/7", "found: 1"),
    ("models:/wrong_names", "expected: models:/NAME@ALIAS or models:/NAME/VERSION"),
    ("models:/m-0123", "expected: models:/NAME@ALIAS or models:/NAME/VERSION"),
    ("nowhere", "expected: a folder"),
])  # fmt: skip
def test_a_wrong_reference_names_what_there_is(reference: str, hint: str, folder: Path, uri: str) -> None:
    add(folder, "wrong_names", uri, alias="champion")
    with pytest.raises(RegistryError, match=hint):
        load_operator(reference, uri)


def test_no_promotion_to_a_version_that_is_not_there(folder: Path, name: str, uri: str) -> None:
    add(folder, name, uri, alias="champion")
    with pytest.raises(RegistryError, match="no such version"):
        promote(name, 2, "champion", uri=uri, by="ann", reason="")
    assert len(promotions(name, uri)) == 1


@pytest.mark.parametrize("words", [{"name": "a/b"}, {"alias": "latest"}, {"alias": "v2"}, {"alias": "a b"}])
def test_bad_names_are_refused_before_anything_is_written(words: dict[str, str], folder: Path, uri: str) -> None:
    before = list_models(uri)
    with pytest.raises(RegistryError, match=r"not an? (model name|alias)"):
        add(folder, **({"name": "bad_words", "uri": uri, "alias": "champion"} | words))
    assert list_models(uri) == before


def test_a_damaged_operator_is_not_registered(folder: Path, name: str, uri: str) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"model\.safetensors"):
        add(folder, name, uri)
    assert name not in {model.name for model in list_models(uri)}


def flip(weights: Path) -> None:
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


@pytest.mark.parametrize(("damage", "message"), [
    (flip, r"not the one that was registered[\s\S]*model\.safetensors"),
    (Path.unlink, r"missing[\s\S]*model\.safetensors"),
    (lambda weights: (weights.parent / "python_model.pkl").touch(), r"pickled[\s\S]*artifacts/python_model\.pkl"),
    (lambda weights: (weights.parent / "notes.txt").write_bytes(b"\x80\x04N."), r"pickled[\s\S]*notes\.txt"),
])  # fmt: skip
def test_a_model_that_was_changed_is_refused(
    damage: Any, message: str, folder: Path, name: str, uri: str, tmp_path: Path
) -> None:
    version = add(folder, name, uri)
    damage(stored(version, uri) / "artifacts" / "model.safetensors")
    for destination in (None, tmp_path / "pulled"):
        with pytest.raises(RegistryError, match=message):
            pull(version.uri, destination, uri=uri)
    assert not (tmp_path / "pulled").exists()
    assert not list(tmp_path.rglob(".pull-*"))


def test_what_others_registered_is_left_out(name: str, uri: str, tmp_path: Path) -> None:
    client = connect(uri)
    run = client.create_run(experiment_id(client, uri, "tests"))
    client.log_text(run.info.run_id, "weights", "model/model.pkl")
    client.create_registered_model(name)
    client.create_model_version(name, f"{run.info.artifact_uri}/model", run_id=run.info.run_id)
    assert name not in {model.name for model in list_models(uri)}
    with pytest.raises(RegistryError, match="not an operator that pdepot registered"):
        pull(f"models:/{name}/1", tmp_path / "pulled", uri=uri)


def test_pull_into_a_folder(folder: Path, name: str, uri: str, tmp_path: Path) -> None:
    version = add(folder, name, uri)
    (tmp_path / "empty").mkdir()
    for destination in (tmp_path / "a" / "new", tmp_path / "empty"):
        assert pull(version.uri, destination, uri=uri) == destination
        assert {path.name for path in destination.iterdir()} == {"model.json", "model.safetensors"}
        assert pull(version.uri, destination, uri=uri) == destination  # it holds this model already
    flip(tmp_path / "empty" / "model.safetensors")
    with pytest.raises(RegistryError, match="holds something else"):
        pull(version.uri, tmp_path / "empty", uri=uri)
    assert pull(str(folder), uri=uri) == folder
    with pytest.raises(RegistryError, match="local folder"):
        pull(str(folder), tmp_path / "copy", uri=uri)


def test_a_damaged_copy_in_the_cache_is_fetched_again(folder: Path, name: str, uri: str, cache: Path) -> None:
    version = add(folder, name, uri)
    pulled = pull(version.uri, uri=uri)
    assert pulled.is_relative_to(cache)
    flip(pulled / "model.safetensors")
    assert pull(version.uri, uri=uri) == pulled
    assert same(load_operator(version.uri, uri), make_operator())


def test_the_registry_of_the_environment_is_the_default(
    folder: Path, name: str, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert same(load_operator(add(folder, name, uri).uri), make_operator())


def test_reading_makes_no_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for read in (lambda: list_models(uri), lambda: show("models:/a/1", uri), lambda: promotions("a", uri)):
        with pytest.raises(RegistryError, match="no MLflow database yet"):
            read()
    assert not list(tmp_path.iterdir())


@pytest.mark.timeout(240)
@pytest.mark.slow
def test_a_server_holds_it_all_and_its_end_does_not_stop_a_training(
    folder: Path, name: str, uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with mlflow_server(tmp_path / "server", Path(uri.removeprefix("sqlite:///"))) as running:
        server = running.uri
        tracker = Tracker.start(server, "served", "run", tmp_path / "tracking.json")
        tracker.params({"rate": 0.1, "empty": ""})
        tracker.metrics(1, {"loss": 1.0, "odd": float("nan")})
        tracker.figure(b"png", "error.png")
        assert tracker.flush(120)
        assert connect(server).get_run(tracker.run_id).data.metrics["loss"] == 1.0
        assert [f.path for f in connect(server).list_artifacts(tracker.run_id, "figures")] == ["figures/error.png"]

        version = add(folder, name, server, run_id=tracker.run_id, experiment="served", alias="champion")
        assert add(folder, name, server, run_id=tracker.run_id, experiment="served", alias="champion") == version
        assert same(load_operator(f"models:/{name}@champion", server), make_operator())
        assert list_models(server)[0].metrics == {"relative_l2.wave": 0.25}
        assert len(promotions(name, server)) == 1
        with pytest.raises(RegistryError, match="did you mean 'champion'"):
            show(f"models:/{name}@champio", server)

        running.kill()
        capsys.readouterr()
        tracker.metrics(2, {"loss": 0.5})
        tracker.finish("FINISHED")
        assert "pdepot runs sync" in capsys.readouterr().out
        with pytest.raises(RegistryError, match=server):
            check_reachable(server)
