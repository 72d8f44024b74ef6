#!/usr/bin/env bash
# Set this checkout up where needed, then check it.
#   bash tests/run.sh                      lint, format, types, and the whole test suite
#   bash tests/run.sh tests/unit -k lora   only pytest, with these arguments
# Every check runs even if an earlier one failed; the exit code is that of the first failure.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

base="${PDEPOT_PYTHON:-python3}"
if ! command -v "$base" >/dev/null; then
    echo "run.sh: no $base on this machine; install Python 3.11 or newer, or set PDEPOT_PYTHON" >&2
    exit 2
fi
python="$("$base" launch/setup.py --extras dev)"

environment="$(dirname "$(dirname "$python")")"
export PATH="$environment/bin:$PATH" # ninja, which loads DeepSpeed's compiled ops, is there
if [[ -d "$environment/torch_extensions" ]]; then
    export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-$environment/torch_extensions}"
fi
if ! nvidia-smi -L >/dev/null 2>&1; then
    export DS_ACCELERATOR="${DS_ACCELERATOR:-cpu}"
fi

status=0
check() {
    local label="$1" code=0
    shift
    printf '\n== %s: %s\n' "$label" "$*"
    "$@" </dev/null || code=$?
    if ((code != 0)); then
        printf '== %s: failed with exit code %d\n' "$label" "$code"
        ((status != 0)) || status=$code
    fi
}

if (($# > 0)); then
    check tests "$python" -m pytest "$@"
else
    check lint "$python" -m ruff check .
    check format "$python" -m ruff format --check .
    check types "$python" -m mypy
    check tests "$python" -m pytest
fi
((status == 0)) && printf '\n== all passed\n'
exit "$status"
