"""The model registry (MLflow): operators by name, version and alias, with their lineage; nothing in it is pickled.

A registered model holds the operator's two files, the code that serves them and their SHA-256 digests. It is whole
before it gets a version, and has a version before an alias points to it: a crash never leaves an alias half-way.
"""

import json
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.base.errors import RegistryError, nearest
from data_pipeline.base.files import digest, publish_directory, remove_tree, sha256_file
from pretrain.model.baseline import BaselineConfig
from pretrain.model.official import read_official
from pretrain.model.operator import CONFIG_FILE, WEIGHTS_FILE, Operator, OperatorConfig, load_operator_files
from pretrain.tracking import connect, default_uri, experiment_id, flatten, registry_errors, without_password

# After pretrain.tracking, which sets what MLflow reads when it is imported.
import mlflow.pyfunc  # isort: skip
from mlflow import MlflowClient  # isort: skip
from mlflow.entities import LoggedModelOutput  # isort: skip
from mlflow.exceptions import MlflowException  # isort: skip
from mlflow.models import Model, ModelSignature  # isort: skip
from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec  # isort: skip

_FILES = (CONFIG_FILE, WEIGHTS_FILE)
_NAME = r"[A-Za-z0-9][\w.-]*"
_REFERENCE = re.compile(rf"models:/({_NAME})(?:@([\w-]+)|/(\d+))")
# What `serving_model.py` and the modules below it import.
_REQUIREMENTS = ("mlflow", "torch", "numpy", "safetensors", "pydantic", "pyyaml", "filelock", "tqdm")
_PICKLE_SUFFIXES = {".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".dill", ".cloudpickle"}
_IDENTITY, _DIGEST, _LINEAGE, _METRIC, _PROMOTION = "pdepot.identity", "sha256.", "lineage.", "metric.", "promotion."


@dataclass(frozen=True)
class ModelVersion:
    """One version of a registered operator.

    Attributes:
        name: the model's name.
        version: counts from 1.
        uri: `models:/NAME/VERSION`.
        aliases: that point to this version.
        created: UTC, ISO 8601.
        run_id: the MLflow run that trained it.
        lineage: what it was made from, flat: configuration, data, code.
        metrics: as they were at registration.
        sha256: of each of its files.
    """

    name: str
    version: int
    uri: str
    aliases: tuple[str, ...]
    created: str
    run_id: str | None
    lineage: Mapping[str, str]
    metrics: Mapping[str, float]
    sha256: Mapping[str, str]


def register(
    operator_folder: Path,
    name: str,
    *,
    uri: str,
    experiment: str,
    run_id: str | None = None,
    lineage: Mapping[str, Any],
    metrics: Mapping[str, float],
    alias: str | None = None,
) -> ModelVersion:
    """Register a saved operator; the same operator with the same lineage is registered once, however often asked.

    Args:
        operator_folder: as `save_operator` writes it.
        name: of the registered model; letters, digits, `_`, `.` and `-`.
        uri: MLflow server or database.
        experiment: the MLflow experiment to which the model belongs.
        run_id: the MLflow run that trained it; by default a new one, which stands for the registration.
        lineage: what it was made from (digests of configuration and data, code revision); JSON-able, may be nested.
        metrics: figures to show beside the version.
        alias: is moved to this version in the end, and the move recorded.

    Raises:
        RegistryError: the registry cannot be used, or refuses.
        DataError, ConfigError: the operator's files are damaged.
    """
    check_words(name, alias)
    config = load_operator_files(operator_folder).config  # what cannot be loaded is not registered
    sha256 = {file: sha256_file(operator_folder / file) for file in _FILES}
    identity = digest({"files": sha256, "lineage": lineage})
    client = connect(uri)
    with registry_errors(f"{name!r} cannot be registered", uri):
        _create_registered_model(client, name)
        known = [int(v.version) for v in _versions(client, name) if v.tags.get(_IDENTITY) == identity]
        if known:
            version = min(known)
        else:
            run_id = run_id or _registration_run(client, experiment_id(client, uri, experiment), name)
            model = _log_model(client, run_id, name, operator_folder, config, {"lineage": lineage, "sha256": sha256})
            # The artifacts' place, not `models:/ID`: MLflow would look that up in its process-wide default registry.
            location, model_id = model.artifact_location, model.model_id
            tags = _tags(identity, sha256, lineage, metrics)
            made = client.create_model_version(name, location, run_id=run_id, tags=tags, model_id=model_id)
            version = int(made.version)
    if alias is not None:
        promote(name, version, alias, uri=uri, by="pdepot", reason="registered")
    return show(f"models:/{name}/{version}", uri)


def promote(name: str, version: int, alias: str, *, uri: str, by: str, reason: str) -> None:
    """Point an alias to a version, in one step for its readers, and record it; `promotions` lists the records.

    Raises:
        RegistryError: no such model or version, or the registry cannot be used.
    """
    check_words(name, alias)
    client = connect(uri, create=False)
    if alias in _resolve(client, f"models:/{name}/{version}", uri).aliases:
        return
    now = datetime.now(UTC)
    with registry_errors(f"alias {alias!r} of {name!r} cannot be moved to version {version}", uri):
        previous = client.get_registered_model(name).aliases.get(alias, "none")
        tags = {"promoted_at": now.isoformat(timespec="seconds"), "promoted_by": by, "promoted_from": str(previous)}
        entry = {"alias": alias, "version": str(version), "reason": reason, **tags}
        # The record first: no alias moves without a trace. One tag for each, so that two promotions at once keep both.
        client.set_registered_model_tag(name, f"{_PROMOTION}{now:%Y%m%dT%H%M%S.%fZ}.{alias}", json.dumps(entry))
        for key, value in tags.items():
            _set(client.set_model_version_tag, name, str(version), key, value)
        _set(client.set_registered_model_alias, name, alias, str(version))


def _set(call: Callable[..., None], *arguments: str) -> None:
    """Set an alias or a tag, and once more if that fails.

    MLflow looks for the row and then inserts or updates it. Of two that insert at once one fails, whatever the
    server; it finds the other's row at the second attempt.
    """
    try:
        call(*arguments)
    except MlflowException:
        call(*arguments)


def promotions(name: str, uri: str) -> list[dict[str, str]]:
    """Every promotion of a model's versions, oldest first: alias, version, promoted_at, _by, _from, and reason."""
    client = connect(uri, create=False)
    with registry_errors(f"{name!r} cannot be read", uri):
        tags = client.get_registered_model(name).tags
    return [json.loads(tags[key]) for key in sorted(tags) if key.startswith(_PROMOTION)]


def list_models(uri: str) -> list[ModelVersion]:
    """All versions of all operators in the registry, newest version of each first."""
    client = connect(uri, create=False)
    with registry_errors("the models cannot be listed", uri):
        records = [
            _record(version, model.aliases)
            for model in _pages(client.search_registered_models)
            for version in _versions(client, model.name)
            if _IDENTITY in version.tags
        ]
    return sorted(records, key=lambda record: (record.name, -record.version))


def show(reference: str, uri: str) -> ModelVersion:
    """The version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` means.

    Raises:
        RegistryError: there is no such model, alias or version; names those that there are.
    """
    return _resolve(connect(uri, create=False), reference, uri)


def pull(reference: str, destination: Path | None = None, *, uri: str) -> Path:
    """Fetch an operator's two files into a folder that `load_operator_files` reads, and verify their digests.

    Args:
        reference: `models:/NAME@ALIAS` or `models:/NAME/VERSION`. A local folder is returned as it is.
        destination: a folder that does not exist yet, or is empty; by default one in the user's cache
            ($XDG_CACHE_HOME/pdepot), named by the digests.
        uri: MLflow server or database.

    Raises:
        RegistryError: no such model; a file is missing or differs from what was registered; the model holds a
            pickle; the destination holds something else.
    """
    if not reference.startswith("models:"):
        return _local_folder(reference, destination)
    model = show(reference, uri)
    if set(model.sha256) != set(_FILES):
        raise RegistryError("not an operator that pdepot registered", key=model.uri, found=sorted(model.sha256))
    target = destination or _cache_folder() / digest(dict(model.sha256))
    if _holds(target, model):
        return target
    if destination is None:
        remove_tree(target)  # a damaged copy in the cache
    elif destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise RegistryError("the destination holds something else", file=destination, remedy="choose a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".pull-") as scratch:
        operator = Path(scratch) / "operator"
        operator.mkdir()
        _download(model, Path(scratch) / "model", operator, uri)
        try:
            publish_directory(operator, target)
        except OSError:
            # Another process was first.
            if not _holds(target, model):
                raise
    return target


def load_operator(reference: str | Path, uri: str | None = None) -> Operator:
    """The operator in a folder, or in the registry at `uri` under `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    A file is taken for a published checkpoint (`pretrain.model.official`). Without `uri` the registry is that of the
    command line: $MLFLOW_TRACKING_URI, or `runs/mlflow.db`.

    Raises:
        RegistryError: no such model or folder, or a file differs from what was registered.
        DataError, ConfigError: a file is damaged.
    """
    if Path(reference).is_file():
        return read_official(Path(reference)).operator
    return load_operator_files(pull(str(reference), uri=uri or default_uri()))


def check_words(name: str, alias: str | None) -> None:
    """Raise RegistryError for a name of a model, or an alias, that the registry would not take."""
    if not re.fullmatch(_NAME, name):
        raise RegistryError("not a model name", found=name, expected="letters, digits, '_', '.' and '-'")
    if alias is not None and (not re.fullmatch(r"[\w-]+", alias) or re.fullmatch(r"(?i)latest|v\d+", alias)):
        raise RegistryError("not an alias", found=alias, expected="letters, digits, '_' and '-'; not `latest`, `v1`")


def _create_registered_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _registration_run(client: MlflowClient, experiment: str, name: str) -> str:
    run_id = str(client.create_run(experiment, run_name=f"register {name}").info.run_id)
    client.set_terminated(run_id)
    return run_id


def _tags(
    identity: str, sha256: Mapping[str, str], lineage: Mapping[str, Any], metrics: Mapping[str, float]
) -> dict[str, str]:
    """What a version says of itself; `_record` reads it."""
    tags = {_IDENTITY: identity}
    tags |= {f"{_DIGEST}{file}": value for file, value in sha256.items()}
    tags |= {f"{_LINEAGE}{key}": text for key, text in flatten(lineage).items()}
    return tags | {f"{_METRIC}{key}": repr(float(value)) for key, value in metrics.items()}


def _log_model(
    client: MlflowClient, run_id: str, name: str, folder: Path, config: OperatorConfig, metadata: Mapping[str, Any]
) -> Any:
    """Upload an operator as an output of a run; MLflow's record of it is marked READY, or FAILED, in the end."""
    model = client.create_logged_model(client.get_run(run_id).info.experiment_id, name=name, source_run_id=run_id)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "model"
            _save_served(folder, config, path, metadata)
            client.log_model_artifacts(model.model_id, str(path))
    except BaseException:
        with suppress(MlflowException):
            client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return client.finalize_logged_model(model.model_id, "READY")


def _save_served(folder: Path, config: OperatorConfig, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write the operator in `folder` as an MLflow model, with all of our code that it needs to be served."""
    package = Path(__file__).parent
    with warnings.catch_warnings():
        # MLflow asks for an example of the input, which the signature makes superfluous.
        warnings.filterwarnings("ignore", message=".*[Ii]nput example.*", category=UserWarning)
        mlflow.pyfunc.save_model(
            path,
            python_model=str(package / "serving_model.py"),
            artifacts={"weights": str(folder / WEIGHTS_FILE), "config": str(folder / CONFIG_FILE)},
            code_paths=[str(package), str(package.parent / "data_pipeline")],
            signature=_signature(config),
            # Without the local part of a version (`+cpu`), which package indexes do not have.
            pip_requirements=[f"{name}=={installed_version(name).partition('+')[0]}" for name in _required(config)],
            mlflow_model=Model(metadata=dict(metadata)),
        )


def _required(config: OperatorConfig) -> tuple[str, ...]:
    network = config.network
    return (*_REQUIREMENTS, network.library) if isinstance(network, BaselineConfig) else _REQUIREMENTS


def _signature(config: OperatorConfig) -> ModelSignature:
    """History (B, *space, T_in, C) in, frames (B, *space, steps, C) out; parameters as in `serving_model.py`."""
    network, float32 = config.network, np.dtype(np.float32)
    several = network.resize_position or any(d.space for d in config.datasets)
    space = (-1,) * len(network.space) if several else network.space
    history = TensorSpec(float32, (-1, *space, network.in_timesteps, len(config.channels)))
    frames = TensorSpec(float32, (-1, *space, -1, len(config.channels)))
    parameters = [
        ParamSpec("dataset", DataType.string, config.datasets[0].name),
        ParamSpec("steps", DataType.long, network.out_timesteps),
    ]
    if config.parameters:
        parameters.append(ParamSpec("parameters", DataType.string, "{}"))
    return ModelSignature(Schema([history]), Schema([frames]), ParamSchema(parameters))


def _pages(search: Any, **arguments: Any) -> Iterator[Any]:
    """Everything that one of MLflow's paged searches finds."""
    token = None
    while True:
        page = search(page_token=token, **arguments)
        yield from page
        token = page.token
        if not token:
            return


def _versions(client: MlflowClient, name: str) -> list[Any]:
    return list(_pages(client.search_model_versions, filter_string=f"name='{name}'"))


def _record(version: Any, aliases: Mapping[str, str]) -> ModelVersion:
    def tagged(prefix: str) -> dict[str, str]:
        return {key.removeprefix(prefix): text for key, text in version.tags.items() if key.startswith(prefix)}

    return ModelVersion(
        name=version.name,
        version=int(version.version),
        uri=f"models:/{version.name}/{version.version}",
        aliases=tuple(sorted(alias for alias, number in aliases.items() if int(number) == int(version.version))),
        created=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        run_id=version.run_id or None,
        lineage=tagged(_LINEAGE),
        metrics={key: float(text) for key, text in tagged(_METRIC).items()},
        sha256=tagged(_DIGEST),
    )


def _resolve(client: MlflowClient, reference: str, uri: str) -> ModelVersion:
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        expected = "models:/NAME@ALIAS or models:/NAME/VERSION"
        raise RegistryError("not a reference to a registered model", found=reference, expected=expected)
    name, alias, number = match.groups()
    shown = without_password(uri)
    with registry_errors(f"{reference} cannot be looked up", uri):
        models = {model.name: model for model in _pages(client.search_registered_models)}
        if name not in models:
            remedy = nearest(name, list(models)) if models else "register one: the registry holds none"
            raise RegistryError(f"no such model at {shown}", key=name, remedy=remedy)
        aliases = models[name].aliases
        if alias is not None and alias not in aliases:
            remedy = nearest(alias, list(aliases)) if aliases else "promote a version: the model has no alias"
            raise RegistryError(f"model {name!r} has no such alias at {shown}", key=alias, remedy=remedy)
        wanted = int(number or aliases[alias])
        versions = {int(version.version): version for version in _versions(client, name)}
    if wanted not in versions:
        found = ", ".join(map(str, sorted(versions))) or "none"
        raise RegistryError(f"model {name!r} has no such version at {shown}", key=str(wanted), found=found)
    return _record(versions[wanted], aliases)


def _local_folder(reference: str, destination: Path | None) -> Path:
    if not Path(reference).is_dir():
        expected = "a folder, models:/NAME@ALIAS or models:/NAME/VERSION"
        remedy = "if it is a published checkpoint: pdepot models import" if Path(reference).is_file() else None
        raise RegistryError("no such operator", file=reference, expected=expected, remedy=remedy)
    if destination is not None:
        raise RegistryError("a local folder is not pulled", file=reference, remedy="use it, or copy it")
    return Path(reference)


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pdepot" / "models"


def _holds(folder: Path, model: ModelVersion) -> bool:
    """Whether a folder holds exactly this operator."""
    return all(
        (folder / file).is_file() and sha256_file(folder / file) == value for file, value in model.sha256.items()
    )


def _download(model: ModelVersion, scratch: Path, operator: Path, uri: str) -> None:
    """Fetch the whole model into `scratch`, check it, and move the operator's files into the folder `operator`."""
    with registry_errors(f"{model.uri} cannot be fetched", uri):
        # The artifacts' place, for the reason given in `register`.
        location = connect(uri, create=False).get_model_version_download_uri(model.name, str(model.version))
        fetched = Path(mlflow.artifacts.download_artifacts(location, dst_path=str(scratch), tracking_uri=uri))
    if pickles := _pickles(fetched):
        raise RegistryError("the model holds pickled files, which pdepot does not load", key=model.uri, found=pickles)
    for file, expected in model.sha256.items():
        source = fetched / "artifacts" / file
        if not source.is_file():
            raise RegistryError("a file of the model is missing", key=model.uri, file=file)
        if (found := sha256_file(source)) != expected:
            raise RegistryError(
                "a file of the model is not the one that was registered",
                key=model.uri,
                file=file,
                found=found,
                expected=expected,
                remedy="do not use it; register the operator again",
            )
        source.rename(operator / file)


def _pickles(folder: Path) -> list[str]:
    """Files that are pickles, or archives of them as torch.save writes, by their name or by their first bytes."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            start = file.read(4)
        binary_pickle = start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
        # A safetensors file begins with the length of its header, which may look like anything.
        looks_pickled = path.suffix != ".safetensors" and (binary_pickle or start == b"PK\x03\x04")
        if path.suffix.lower() in _PICKLE_SUFFIXES or looks_pickled:
            found.append(str(path.relative_to(folder)))
    return found
