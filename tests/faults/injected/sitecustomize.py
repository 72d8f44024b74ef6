"""Python imports this at its start, where the folder is on PYTHONPATH: a rank kills itself at a chosen place, once.

PDEPOT_TEST_FAULT names a JSON file: the `rank`, the `module` and `function` in which it dies, after so many `calls`.
"""

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any


def kill_in(fault: dict[str, Any], mark: Path) -> None:
    module = importlib.import_module(fault["module"])
    function, calls = getattr(module, fault["function"]), 0

    def dying(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == fault["calls"] and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)

    setattr(module, fault["function"], dying)


if "PDEPOT_TEST_FAULT" in os.environ and "pretrain.train" in sys.orig_argv:
    file = Path(os.environ["PDEPOT_TEST_FAULT"])
    content = json.loads(file.read_text())
    if os.environ["RANK"] == str(content["rank"]):
        kill_in(content, file.with_suffix(".done"))
