"""The command line `pdepot`. Every command is a thin call of a function that Python users call too."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from data_pipeline.base.config import apply_overrides, build, load, parse_overrides
from data_pipeline.base.errors import ConfigError, nearest
from data_pipeline.config import DatasetConfig, ExportConfig
from launch.messages import exit_code

Handler = Callable[[argparse.Namespace], int]


class _Parser(argparse.ArgumentParser):
    """argparse, except that a mistyped command names its nearest neighbour."""

    def error(self, message: str) -> NoReturn:
        if "invalid choice: " in message:
            word = message.split("invalid choice: '")[-1].split("'")[0]
            choices = [c for a in self._actions if a.choices for c in map(str, a.choices)]
            message = f"unknown command {word!r}; {nearest(word, choices)}"
        super().error(message)


_Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; a user's error is one clear message and exit code 1."""
    options = _parser().parse_args(arguments)
    handler: Handler = options.handler
    return exit_code(lambda: handler(options))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="pdepot",
        description="Pretrain one operator on many PDEs, and adapt it to yours.",
        epilog="example: pdepot data info data/navier_stokes_2d.zarr",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    data = commands.add_parser("data", help="make, convert and check datasets", epilog=_example("data --help"))
    _add_data_commands(data.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser))
    _add_training_commands(commands)
    models = commands.add_parser("models", help="the model registry", epilog=_example("models list"))
    _add_model_commands(models.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser))
    return parser


def _example(text: str) -> str:
    return f"example: pdepot {text}"


def _add(commands: _Commands, name: str, handler: Handler, text: str, example: str) -> _Parser:
    parser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=_example(example)
    )
    parser.set_defaults(handler=handler)
    return parser


def _add_overrides(parser: _Parser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")


def _add_data_commands(commands: _Commands) -> None:
    add = _add(commands, "generate", _generate, "solve a PDE family into a Zarr store",
               "data generate configs/data/navier_stokes_2d.yaml generate.splits.train=1000")  # fmt: skip
    add.add_argument("config", type=Path, nargs="?", help="configuration of the dataset")
    add.add_argument("--list", action="store_true", help="list the families that can be solved, and end")
    _add_overrides(add)
    _add_place(add)

    add = _add(commands, "convert", _convert, "read a published dataset into a Zarr store",
               "data convert ../datasets/turbulence_gravity_cooling --root data")  # fmt: skip
    add.add_argument("source", type=Path, help="configuration of the dataset, or a folder in The Well's layout")
    add.add_argument("--name", help="the dataset's name, when the source is a folder; its last part if not given")
    _add_overrides(add)
    _add_place(add)

    add = _add(commands, "export", _export, "export a Zarr store as WebDataset shards with an offset index",
               "data export data/navier_stokes_2d.zarr dtype=float16")  # fmt: skip
    add.add_argument("store", type=Path, help="a Zarr store made by generate or convert")
    add.add_argument("--root", type=Path, help="folder that gets NAME.shards (default: the store's own)")
    _add_overrides(add)

    add = _add(commands, "validate", _validate, "say what a dataset is, and what is wrong with it",
               "data validate data/navier_stokes_2d.shards")  # fmt: skip
    add.add_argument("path", type=Path, help="a store, shards, or files in a published layout")

    add = _add(commands, "info", _info, "summarise a dataset and draw one trajectory",
               "data info data/navier_stokes_2d.zarr --picture ns.png")  # fmt: skip
    add.add_argument("path", type=Path, help="a store, shards, or files in a published layout")
    add.add_argument("--picture", type=Path, help="draw one trajectory into this PNG file")


def _add_place(parser: _Parser) -> None:
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the stores (default: data)")
    parser.add_argument("--ray-address", help="an existing Ray cluster; a local one is started if not given")


def _add_training_commands(commands: _Commands) -> None:
    add = _add(commands, "pretrain", _pretrain, "train an operator on a mixture of datasets, evaluate and register it",
               "pretrain configs/pretrain/turbulence.yaml training.steps=100")  # fmt: skip
    add.add_argument("config", type=Path, help="a pretraining configuration; its datasets must have been built")
    _add_overrides(add)

    add = _add(commands, "finetune", _finetune, "adapt a registered operator to a new dataset",
               "finetune configs/finetune/gray_scott.yaml model=models:/pdepot-demo@champion")  # fmt: skip
    add.add_argument("config", type=Path, help="a fine-tuning configuration; its datasets must have been built")
    _add_overrides(add)

    add = _add(commands, "evaluate", _evaluate, "roll an operator out on held-out trajectories",
               "evaluate models:/pdepot-demo@champion data/navier_stokes_2d.shards")  # fmt: skip
    add.add_argument("model", help="models:/NAME@ALIAS, models:/NAME/VERSION, or a folder with an operator")
    add.add_argument("data", type=Path, nargs="+", help="stores or shards of datasets that the operator knows")
    add.add_argument("--split", default="test", choices=["train", "valid", "test"])
    add.add_argument("--limit", type=int, help="at most so many trajectories of each dataset")
    add.add_argument("--report", type=Path, help="write figures and pictures into this HTML file")


def _add_model_commands(commands: _Commands) -> None:
    _add(commands, "list", _list_models, "list the registered models", "models list")
    add = _add(
        commands, "show", _show_model, "show a model's versions, figures and lineage", "models show pdepot-demo"
    )
    add.add_argument("model", help="models:/NAME@ALIAS or models:/NAME/VERSION")
    add = _add(commands, "pull", _pull_model, "download a model into a folder",
               "models pull models:/pdepot-demo@champion operators/demo")  # fmt: skip
    add.add_argument("model", help="models:/NAME@ALIAS or models:/NAME/VERSION")
    add.add_argument("folder", type=Path)
    add = _add(commands, "promote", _promote_model, "give an alias to a version of a model, on record",
               "models promote pdepot-demo 2 --alias champion --reason 'better on all families'")  # fmt: skip
    add.add_argument("name")
    add.add_argument("version", type=int)
    add.add_argument("--alias", default="champion")
    add.add_argument("--reason", default="", help="kept on record beside the version")


def _generate(options: argparse.Namespace) -> int:
    from data_pipeline.build import build_store
    from data_pipeline.solvers.registry import FAMILIES

    if options.list:
        for name, solver in FAMILIES.items():
            print(f"{name:24} {solver.equation}")
        return 0
    if options.config is None:
        raise ConfigError("no configuration given", expected="a file, for example configs/data/navier_stokes_2d.yaml")
    config = load(DatasetConfig, options.config, options.overrides)
    if config.generate is None:
        raise ConfigError(
            "nothing to generate", file=options.config, key="generate", remedy="use: pdepot data convert"
        )
    print(build_store(config, options.root, ray_address=options.ray_address))
    return 0


def _convert(options: argparse.Namespace) -> int:
    from data_pipeline.build import build_store

    if options.source.is_dir():
        name = options.name or options.source.resolve().name.lower().replace(".", "_").replace(" ", "_")
        content = {"name": name, "convert": {"layout": "the_well", "path": str(options.source)}}
        config = build(
            DatasetConfig, apply_overrides(content, parse_overrides(options.overrides)), file=options.source
        )
    else:
        config = load(DatasetConfig, options.source, options.overrides)
    if config.convert is None:
        remedy = "use: pdepot data generate"
        raise ConfigError("nothing to convert", file=options.source, key="convert", remedy=remedy)
    print(build_store(config, options.root, ray_address=options.ray_address))
    return 0


def _export(options: argparse.Namespace) -> int:
    from data_pipeline.export import export_shards

    config = build(ExportConfig, parse_overrides(options.overrides))
    print(export_shards(options.store, options.root or options.store.parent, config))
    return 0


def _validate(options: argparse.Namespace) -> int:
    from data_pipeline.inspect import validate

    report = validate(options.path)
    print(report.text())
    return 0 if report.ok else 1


def _info(options: argparse.Namespace) -> int:
    from data_pipeline.inspect import info

    print(info(options.path, options.picture).text())
    return 0


def _pretrain(options: argparse.Namespace) -> int:
    from launch.jobs import pretrain_job
    from pretrain.config import PretrainConfig

    return _run_job(load(PretrainConfig, options.config, options.overrides), options.config.parent, pretrain_job)


def _finetune(options: argparse.Namespace) -> int:
    from finetune.config import FinetuneConfig
    from launch.jobs import finetune_job

    return _run_job(load(FinetuneConfig, options.config, options.overrides), options.config.parent, finetune_job)


def _run_job(config: Any, folder: Path, job: Callable[[Any, Path, str], Any]) -> int:
    """Run a whole job and show its results."""
    from launch.results import show_results
    from pretrain.tracking import check_reachable

    check_reachable(_uri())
    outcome = job(config, folder, _uri())
    show_results(Path(config.output), config.name, config.model_dump(mode="json"), [outcome], _uri())
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from data_pipeline.stores import open_store
    from pretrain.engine import device_type
    from pretrain.evaluate import evaluate
    from pretrain.registry import load_operator
    from pretrain.report import METRIC_NOTE, Table, evaluation_section, summary, table, write_report

    operator = load_operator(options.model, _uri()).to(device_type())
    evaluations = [
        evaluate(operator, open_store(path, options.split), device=device_type(), limit=options.limit)
        for path in options.data
    ]
    rows = summary({"operator": evaluations})
    print(table(rows))
    if options.report:
        write_report(
            options.report,
            title=options.model,
            tables=[Table("Relative L2 of the roll-out", rows, METRIC_NOTE)],
            sections=[evaluation_section({"operator": e}) for e in evaluations],
            configuration=operator.config.model_dump(mode="json"),
            lineage={"model": options.model} | {f"data.{e.dataset}": e.digest for e in evaluations},
        )
        print(f"\nreport: {options.report.resolve()}")
    return 0


def _list_models(_: argparse.Namespace) -> int:
    from pretrain.registry import list_models
    from pretrain.report import table

    prefix = "relative_l2."
    rows = []
    for m in list_models(_uri()):
        errors = {k.removeprefix(prefix): value for k, value in m.metrics.items() if k.startswith(prefix)}
        shown = ", ".join(f"{dataset} {error:.3g}" for dataset, error in errors.items())
        row = {"name": m.name, "version": m.version, "aliases": ", ".join(m.aliases), "created": m.created}
        rows.append({**row, "relative L2 of roll-outs": shown})
    print(table(rows) if rows else f"no models in {_uri()}")
    return 0


def _show_model(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    import yaml

    from pretrain.registry import show

    record = asdict(show(options.model, _uri()))
    record["aliases"] = list(record["aliases"])
    print(yaml.safe_dump(record, sort_keys=False), end="")
    return 0


def _pull_model(options: argparse.Namespace) -> int:
    from pretrain.registry import pull

    print(pull(options.model, options.folder, uri=_uri()))
    return 0


def _promote_model(options: argparse.Namespace) -> int:
    import getpass

    from pretrain.registry import promote

    promote(options.name, options.version, options.alias, uri=_uri(), by=getpass.getuser(), reason=options.reason)
    print(f"models:/{options.name}@{options.alias} is now version {options.version}")
    return 0


def _uri() -> str:
    from pretrain.tracking import default_uri

    return default_uri()


if __name__ == "__main__":
    sys.exit(main())
