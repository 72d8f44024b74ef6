"""What a roll-out saves, and what a cache of embedded frames would: `python -m benchmarks.rollout`.

Products of weights are computed once for a roll-out; the figure is a step with and without that. A cache of embedded
frames is not kept: nine of ten frames were embedded one step earlier, but only their stem's product could be kept (the
time coordinate enters before the activation), and the figure is the share of a step that this product takes.
"""

import argparse
import statistics

import torch
from torch.nn import functional as F

from benchmarks.timing import interleaved, machine, report
from pretrain.model import SIZES, Dpot, NetworkConfig
from pretrain.model.dpot import _patches


@torch.inference_mode()
def measure(size: str, batch: int, rounds: int, device: str) -> dict[str, float | str | int]:
    torch.manual_seed(0)
    with torch.device(device):
        network = Dpot(NetworkConfig(space=(128, 128), in_channels=4, out_channels=4, **SIZES[size]))
        history = torch.randn(batch, 128, 128, 10, 4)
    folded = network.fold()
    products = F.linear(_patches(history, 8), folded.stem)  # (*h, B, T, E)

    def cached() -> None:
        """What each step would do with a cache: the newest frame's product, and the others' one place on."""
        newest = F.linear(_patches(history[..., -1:, :], 8), folded.stem)
        torch.cat([products[..., 1:, :], newest], dim=-2)

    runs = {
        "step": lambda: network(history, folded=folded),
        "step_folding_each_time": lambda: network(history),
        "embedding_all_frames": lambda: F.linear(_patches(history, 8), folded.stem),
        "embedding_with_a_cache": cached,
    }
    times = {name: statistics.median(values) for name, values in interleaved(runs, rounds).items()}
    saved = times["embedding_all_frames"] - times["embedding_with_a_cache"]
    return {
        "size": size, "batch": batch, **{f"{name}_ms": 1e3 * seconds for name, seconds in times.items()},
        "folding_once_is_faster_by": times["step_folding_each_time"] / times["step"],
        "a_cache_would_save": saved / times["step"],
    }  # fmt: skip


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["Ti", "M"])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(min(2, torch.get_num_threads()) if device == "cpu" else torch.get_num_threads())
    figures = [measure(size, batch, options.rounds, device) for size in options.sizes for batch in (1, 8)]
    for row in figures:
        print(
            f"{row['size']:3} batch {row['batch']}: step {row['step_ms']:.1f} ms, folding once "
            f"{row['folding_once_is_faster_by']:.2f} times faster, a cache would save {row['a_cache_would_save']:.1%}"
        )
    report({"benchmark": "rollout", "machine": machine(device), "figures": figures})


if __name__ == "__main__":
    main()
