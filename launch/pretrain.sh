#!/usr/bin/env bash
# Set this checkout up where needed, then generate the data of a configuration and pretrain on it.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: bash launch/pretrain.sh [CONFIG] [key=value ...]

Sets up a Python environment (once), builds the data that CONFIG names, and pretrains. A second run reuses all of it.

  CONFIG      a YAML file, relative to this folder or to the checkout (default: configs/pretrain/demo.yaml)
  key=value   overrides, for example training.steps=10

examples:
  bash launch/pretrain.sh
  bash launch/pretrain.sh training.steps=20
  bash launch/pretrain.sh configs/pretrain/demo.yaml training.steps=20

environment:
  PDEPOT_PYTHON   the Python (3.11 or newer) to make the environment with

Relative paths in overrides start at the checkout.
TEXT
}

fail() {
    printf 'pretrain.sh: %s\n' "$1" >&2
    printf 'see: bash launch/pretrain.sh --help\n' >&2
    exit 2
}

for argument in "$@"; do
    case "$argument" in
        -h | --help) usage; exit 0 ;;
        -*) fail "unknown option $argument" ;;
    esac
done

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
config="configs/pretrain/demo.yaml"
if [[ $# -gt 0 && ("$1" != *=* || -f "$1") ]]; then
    config="$1"
    [[ -f "$config" ]] && config="$(cd "$(dirname "$config")" && pwd -P)/$(basename "$config")"
    shift
fi
for argument in "$@"; do
    [[ "$argument" == *=* ]] || fail "not an override: $argument (expected key=value)"
done
cd "$root"
[[ -f "$config" ]] || fail "no such configuration file: $config"

base="${PDEPOT_PYTHON:-python3}"
command -v "$base" >/dev/null || fail "no $base on this machine; install Python 3.11 or newer, or set PDEPOT_PYTHON"
python="$("$base" launch/setup.py)"

environment="$(dirname "$(dirname "$python")")"
export PATH="$environment/bin:$PATH" # ninja, which loads DeepSpeed's compiled ops, is there
if [[ -d "$environment/torch_extensions" ]]; then
    export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-$environment/torch_extensions}"
fi
if ! nvidia-smi -L >/dev/null 2>&1; then
    export DS_ACCELERATOR="${DS_ACCELERATOR:-cpu}"
fi
exec "$python" -m launch.pipeline "$config" "$@"
