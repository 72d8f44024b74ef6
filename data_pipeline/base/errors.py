"""Errors that are the user's to mend: each names file, key, what was found, what was expected and the remedy."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any


class PdepotError(Exception):
    """Base of every error whose text is meant for the user; the command line prints it without a traceback."""

    def __init__(
        self,
        problem: str,
        *,
        file: str | Path | None = None,
        key: str | None = None,
        found: Any = None,
        expected: Any = None,
        remedy: str | None = None,
    ) -> None:
        parts = [
            problem,
            f"file: {file}" if file is not None else "",
            f"key: {key}" if key is not None else "",
            f"found: {found}" if found is not None else "",
            f"expected: {expected}" if expected is not None else "",
            f"remedy: {remedy}" if remedy is not None else "",
        ]
        # One argument only, so that the error survives pickling between processes.
        super().__init__("\n  ".join(part for part in parts if part))

    def within(self, file: str | Path) -> "PdepotError":
        """The same error, with the file it is about where it names none."""
        problem, *rest = str(self).split("\n  ")
        if any(part.startswith("file: ") for part in rest):
            return self
        return type(self)("\n  ".join([problem, f"file: {file}", *rest]))


class ConfigError(PdepotError):
    """A configuration that cannot be used: unknown key, wrong type, impossible value."""


class DataError(PdepotError):
    """A raw file, store or shard that is missing, damaged or not what it says."""


class CheckpointError(PdepotError):
    """A checkpoint that is missing, damaged or belongs to another run."""


class RegistryError(PdepotError):
    """A model registry that cannot be reached, or a model that it does not hold."""


def nearest(word: str, known: list[str]) -> str:
    """A hint for a mistyped word: its nearest neighbour among `known`, else the whole list."""
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"one of: {', '.join(sorted(known))}"
