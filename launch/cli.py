"""The command line `pdepot`. Every command is a thin call of a function that Python users call too."""

import argparse
import sys
from collections.abc import Sequence

from launch.commands.data import add_data_commands
from launch.commands.models import add_model_commands
from launch.commands.parser import Handler, Parser, example
from launch.commands.runs import add_run_commands
from launch.commands.training import add_training_commands
from launch.messages import exit_code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; a user's error is one clear message and exit code 1."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    options.words = list(sys.argv[1:] if arguments is None else arguments)
    # argparse takes all key=value settings before the first option; here they may also follow it.
    settings = [word for word in rest if "=" in word and word[0] != "-" and hasattr(options, "overrides")]
    if len(settings) < len(rest):
        parser.error(f"unrecognized arguments: {' '.join(word for word in rest if word not in settings)}")
    if settings:
        options.overrides = [*options.overrides, *settings]
    handler: Handler = options.handler
    return exit_code(lambda: handler(options))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="pdepot",
        description="Pretrain one operator on many PDEs, and adapt it to yours.",
        epilog="example: pdepot data info data/navier_stokes_2d.zarr",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    data = commands.add_parser("data", help="make, convert and check datasets", epilog=example("data --help"))
    add_data_commands(data.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser))
    add_training_commands(commands)
    runs = commands.add_parser("runs", help="training runs and how far they are", epilog=example("runs list"))
    add_run_commands(runs.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser))
    models = commands.add_parser("models", help="the model registry", epilog=example("models list"))
    add_model_commands(models.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser))
    return parser


if __name__ == "__main__":
    sys.exit(main())
