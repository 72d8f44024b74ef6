#!/usr/bin/env bash
# Set this checkout up where needed, then generate the data of a configuration and pretrain on it.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: bash launch/pretrain.sh [CONFIG] [key=value ...] [--launcher L] [--nodes N] [--gpus-per-node G]

Sets up a Python environment (once), builds the data that CONFIG names, and pretrains. A second run reuses all of it.

  CONFIG      a YAML file, relative to this folder or to the checkout (default: configs/pretrain/demo.yaml)
  key=value   overrides, for example training.steps=10
  --launcher L        what starts the training processes, all else being done once:
                        local       torchrun on this machine (default); with --nodes, it says what to type on the others
                        slurm       submits a job; within a job, srun on its nodes
                        ray         Ray Train on a cluster (--address HOST:PORT)
                        kubernetes  a RayJob; it has options of its own, see: --launcher kubernetes --help
  --nodes N           machines
  --gpus-per-node G   GPUs, and training processes, on each (default: training.ranks, else those of this machine)

examples:
  bash launch/pretrain.sh
  bash launch/pretrain.sh training.steps=20 output=runs/short
  bash launch/pretrain.sh configs/pretrain/families.yaml training.steps=20 output=runs/short-families
  SBATCH_PARTITION=gpu SBATCH_TIMELIMIT=4:00:00 SBATCH_CPUS_PER_GPU=8 \
      bash launch/pretrain.sh configs/pretrain/modern.yaml --launcher slurm --nodes 1 --gpus-per-node 8

training.batch_size / training.micro_batch must be a multiple of all training processes (nodes x GPUs).

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

launcher="local"
options=() # for Python to read
words=()
while (($# > 0)); do
    case "$1" in
        --launcher | --nodes | --gpus-per-node | --address)
            (($# > 1)) || fail "$1 needs a value"
            if [[ "$1" == --launcher ]]; then launcher="$2"; else options+=("$1" "$2"); fi
            shift
            ;;
        *) words+=("$1") ;;
    esac
    shift
done
case "$launcher" in
    local | slurm | ray | kubernetes) ;;
    *) fail "unknown launcher $launcher (expected local, slurm, ray or kubernetes)" ;;
esac
set -- ${words+"${words[@]}"}
[[ "$launcher" == kubernetes ]] || for argument in "$@"; do
    case "$argument" in
        -h | --help) usage; exit 0 ;;
        -*) fail "unknown option $argument" ;;
    esac
done

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
config="configs/pretrain/demo.yaml"
if [[ "$launcher" != kubernetes ]]; then # whose configuration lies on its volume
    if [[ $# -gt 0 && ("$1" != *=* || -f "$1") ]]; then
        config="$1"
        [[ -f "$config" ]] && config="$(cd "$(dirname "$config")" && pwd -P)/$(basename "$config")"
        shift
    fi
    for argument in "$@"; do
        [[ "$argument" == *=* ]] || fail "not an override: $argument (expected key=value)"
    done
fi
cd "$root"
[[ "$launcher" == kubernetes || -f "$config" ]] || fail "no such configuration file: $config"

base="${PDEPOT_PYTHON:-python3}"
command -v "$base" >/dev/null || fail "no $base on this machine; install Python 3.11 or newer, or set PDEPOT_PYTHON"
wanted=() # which build of torch: again, a login node says nothing of the others
[[ "$launcher" == slurm && " ${options[*]-} " == *" --gpus-per-node "* ]] && wanted=(--cuda)
python="$("$base" launch/setup.py ${wanted+"${wanted[@]}"})"

environment="$(dirname "$(dirname "$python")")"
export PATH="$environment/bin:$PATH" # ninja, which loads DeepSpeed's compiled ops, is there
if [[ -d "$environment/torch_extensions" ]]; then
    export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-$environment/torch_extensions}"
fi
if [[ "$launcher" == kubernetes ]]; then
    exec "$python" -m launch.kubernetes "$@" ${options+"${options[@]}"}
fi
[[ "$launcher" == local ]] || options+=(--launcher "$launcher")
exec "$python" -m launch.pipeline "$config" "$@" ${options+"${options[@]}"}
