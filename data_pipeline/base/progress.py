"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere (logs, CI, Slurm)."""

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts finished work. Use as a context manager and call `advance`.

    Args:
        label: what is being done.
        total: number of units in all.
        initial: units done by an earlier run.
        unit: the unit's name.
        quiet: count, and show nothing (on all ranks but the first).
    """

    def __init__(self, label: str, total: int, *, initial: int = 0, unit: str = "it", quiet: bool = False) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = initial
        self._note = ""
        self._started = self._last_line = time.monotonic()
        self._first = initial
        self._quiet = quiet
        self._bar = (
            tqdm(total=total, initial=initial, desc=label, unit=unit, dynamic_ncols=True, file=sys.stdout)
            if sys.stdout.isatty() and not quiet
            else None
        )

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count `count` more units; `note` (a loss, say) is shown beside the count."""
        self.done += count
        self._note = note or self._note
        if self._bar is not None:
            self._bar.set_postfix_str(self._note, refresh=False)
            self._bar.update(count)
        elif time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES and self.done < self.total:
            self._print_line()

    def _print_line(self) -> None:
        if self._quiet:
            return
        now = time.monotonic()
        self._last_line = now
        rate = (self.done - self._first) / max(now - self._started, 1e-9)
        note = f"  {self._note}" if self._note else ""
        print(f"{self.label}: {self.done}/{self.total} {self.unit}  {rate:.3g}/s{note}", flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
        elif kind is None:
            self._print_line()
