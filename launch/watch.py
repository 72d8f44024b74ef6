"""A run live in a terminal, until it ends."""

import shutil
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from launch.run_view import bars_for, duration, number, run_page
from launch.runs import ENDED, Run

_SECONDS_TO_RESTART = 60.0


def watch(run: Run, *, seconds: float = 2.0, out: TextIO | None = None) -> bool:
    """Show a run until it has ended: its page again and again on a terminal, a line for each record elsewhere.

    A failure ends it at once if it would come again, or else when no start has followed in a minute.

    Returns:
        Whether the run has finished.
    """
    out = out or sys.stdout
    show = _Page(out) if out.isatty() else _Lines(out)
    failed_since: float | None = None
    try:
        while True:
            show(run, run.update())
            failed_since = (failed_since or time.monotonic()) if run.status == "failed" else None
            waited = failed_since is not None and time.monotonic() - failed_since > _SECONDS_TO_RESTART
            if run.status in ENDED and (run.status != "failed" or run.permanent or waited):
                return run.status == "finished"
            time.sleep(seconds)
    finally:
        show.close()


class _Page:
    """Draws the page over the one before, with the few control codes that every terminal knows."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        out.write("\x1b[?25l\x1b[2J")  # no cursor, an empty screen

    def __call__(self, run: Run, _: Sequence[int]) -> None:
        columns, rows = shutil.get_terminal_size()
        lines = run_page(run, bars=bars_for(self._out))[: rows - 1]
        self._out.write("\x1b[H" + "".join(f"{line[: columns - 1]}\x1b[K\n" for line in lines) + "\x1b[J")
        self._out.flush()

    def close(self) -> None:
        self._out.write("\x1b[?25h")
        self._out.flush()


class _Lines:
    """Prints what is new."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._before: tuple[str, str] | None = None

    def __call__(self, run: Run, steps: Sequence[int]) -> None:
        first = self._before is None
        for step in list(run.history.steps)[-1:] if first else steps:
            self._print(*_words(run, step))
        if (run.status, run.message) != self._before:
            self._print(f"{run.name}: {run.status}", " ".join(run.message.split()))
        self._before = (run.status, run.message)

    def _print(self, *words: str) -> None:
        print("  ".join(filter(None, words)), file=self._out, flush=True)

    def close(self) -> None:
        pass


def _words(run: Run, step: int) -> list[str]:
    values, left = run.history.steps[step].values, run.seconds_left()
    shown = {"loss": "loss", "learning_rate": "learning rate", "samples_per_second": "samples/s"}
    words = [f"step {step}/{run.total}"]
    words += [f"{word} {number(values[key])}" for key, word in shown.items() if key in values]
    return words if left is None else [*words, f"{duration(left)} left"]
