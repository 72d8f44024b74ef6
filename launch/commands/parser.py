"""What all commands of the command line are made with."""

import argparse
from collections.abc import Callable
from typing import NoReturn, TypeAlias

from data_pipeline.base.errors import nearest

Handler = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """argparse, except that a mistyped command, or value of an option, names its nearest neighbour."""

    def error(self, message: str) -> NoReturn:
        """Print the message with its nearest neighbour, and exit with 2."""
        if "invalid choice: " in message:
            argument = message.removeprefix("argument ").split(": invalid choice: ")[0]
            word = message.split("invalid choice: '")[-1].split("'")[0]
            known = {"/".join(a.option_strings) or a.metavar or a.dest: a.choices for a in self._actions if a.choices}
            what = "command" if argument == "COMMAND" else f"value of {argument}"
            message = f"unknown {what} {word!r}; {nearest(word, [str(c) for c in known[argument]])}"
        super().error(message)


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
"""A group of commands."""


def example(text: str) -> str:
    """The line below a help text."""
    return f"example: pdepot {text}"


def add_command(commands: Commands, name: str, handler: Handler, text: str, words: str) -> Parser:
    """Add a command to a group.

    Args:
        commands: the group.
        name: as it is typed.
        handler: what it does; returns the exit code.
        text: a line about it, for lists of commands.
        words: how it is used, without `pdepot`.
    """
    parser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=example(words))
    parser.set_defaults(handler=handler)
    return parser


def add_overrides(parser: Parser) -> None:
    """Let a command take settings, `key=value`."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")


def mlflow_uri() -> str:
    """The MLflow server or database of the command line."""
    from pretrain.tracking import default_uri

    return default_uri()
