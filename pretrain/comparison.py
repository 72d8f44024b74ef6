"""A run's folder beside what is asked for: the same run, or where it differs."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.base.config import build
from data_pipeline.base.errors import ConfigError
from data_pipeline.base.files import read_json
from pretrain.config import EXECUTION, RunConfig
from pretrain.model.operator import CONFIG_FILE, Operator, OperatorConfig

_DATA = ("data", "quarantine")
_FACTS = {"trajectories", "frames", "space"}  # of a dataset, which its digest covers; old runs have not noted them


def read_run(folder: Path) -> RunConfig:
    """The run in a folder. Through the type: names that have changed since are read as they are now."""
    file = folder / "config.json"
    return build(RunConfig, read_json(file), file=file)


def read_operator_config(folder: Path, datasets: Collection[str]) -> OperatorConfig:
    """The operator that a run started from, as far as it is for these datasets. A new segment that was cut short may
    have left others behind."""
    file = folder / "initial" / CONFIG_FILE
    config = build(OperatorConfig, read_json(file), file=file)
    return config.model_copy(update={"datasets": tuple(d for d in config.datasets if d.name in datasets)})


def check_same_run(folder: Path, there: RunConfig, asked: RunConfig, operator: Operator) -> None:
    """Raise ConfigError unless the run `there`, in a folder, is the one that is asked for; names what differs."""
    model = read_operator_config(folder, {*_datasets(there), *(d.name for d in operator.config.datasets)})
    wanted = fitted(model, operator.config) if there.past else operator.config
    _refuse(folder, _run_differences(there, asked) + _model_differences(model, wanted))


def check_same_but_for_data(folder: Path, there: RunConfig, asked: RunConfig, operator: Operator) -> None:
    """Raise ConfigError when anything but datasets, weights and quarantine differs."""
    asked = asked.model_copy(update={"data": there.data, "quarantine": there.quarantine})
    model = read_operator_config(folder, _datasets(there))
    wanted = fitted(model, operator.config)
    known = wanted.model_copy(update={"datasets": wanted.datasets[: len(model.datasets)]})
    _refuse(folder, _run_differences(there, asked) + _model_differences(model, known))


def _datasets(run: RunConfig) -> set[str]:
    return {d.name for segment in run.segments for d in segment.data}


def _run_differences(there: RunConfig, asked: RunConfig) -> list[str]:
    same = {name: getattr(there.training, name) for name in EXECUTION}
    asked = asked.model_copy(
        update={
            "first_step": there.first_step,
            "past": there.past,
            "replaced": there.replaced,
            "training": asked.training.model_copy(update=same),
        }
    )
    old, new = (run.model_dump(mode="json", exclude={"data": {"__all__": _FACTS}}) for run in (there, asked))
    return differences(old, new)


def _model_differences(there: OperatorConfig, asked: OperatorConfig) -> list[str]:
    return differences(there.model_dump(mode="json"), asked.model_dump(mode="json"), "model")


def _refuse(folder: Path, found: Sequence[str]) -> None:
    if not found:
        return
    remedy = "choose another output folder, or delete this one to start over"
    if any(line.startswith(_DATA) for line in found):
        remedy += "; or go on with these data from the last checkpoint: pdepot pretrain CONFIG --new-segment"
    raise ConfigError(
        "the folder holds a run of another configuration", file=folder, key="\n       ".join(found), remedy=remedy
    )


def fitted(there: OperatorConfig, asked: OperatorConfig) -> OperatorConfig:
    """A fresh operator for some datasets as part of one that is there already: what follows from the datasets (slots,
    grid of the network, parameters) is as it is there, and datasets that it did not know come last."""
    if type(asked.network) is not type(there.network):
        return asked
    network = {name: getattr(there.network, name) for name in ("space", "in_channels", "out_channels")}
    if asked.network.conditions and there.network.conditions:
        network["conditions"] = there.network.conditions
    rows = {d.name: d for d in there.datasets}
    for d in asked.datasets:
        space = d.space or asked.network.space  # noted only where it is not the network's
        rows[d.name] = d.model_copy(update={"space": () if space == there.network.space else space})
    same = {"channels": there.channels, "parameters": there.parameters, "datasets": tuple(rows.values())}
    return asked.model_copy(update={"network": asked.network.model_copy(update=network), **same})


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """Where two JSON-able values differ, a line each. Items of lists are told apart by name, if they have names."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for name in sorted(old.keys() | new.keys()):
            path = f"{key}.{name}" if key else name
            if name in old and name in new:
                found += differences(old[name], new[name], path)
            else:
                found.append(f"{path}: in the folder, not asked for" if name in old else f"{path}: asked for only")
        return found
    if isinstance(old, list) and isinstance(new, list):
        return _list_differences(old, new, key)
    return [] if old == new else [f"{key}: {old!r} in the folder, {new!r} asked for"]


def _list_differences(old: list[Any], new: list[Any], key: str) -> list[str]:
    names = [[item.get("name") if isinstance(item, dict) else None for item in items] for items in (old, new)]
    if all(_are_names(each) for each in names):
        found = differences(dict(zip(names[0], old, strict=True)), dict(zip(names[1], new, strict=True)), key)
        reordered = not found and names[0] != names[1]
        return [f"{key}: in the order {names[0]} in the folder, {names[1]} asked for"] if reordered else found
    if len(old) == len(new):
        return [
            line for i, (a, b) in enumerate(zip(old, new, strict=True)) for line in differences(a, b, f"{key}.{i}")
        ]
    return [f"{key}: {old!r} in the folder, {new!r} asked for"]


def _are_names(values: Collection[Any]) -> bool:
    return all(isinstance(value, str) for value in values) and len(set(values)) == len(values)
