"""What a training step would cost on 8 to 1024 GPUs: `python -m benchmarks.cost_model`. A model, not a measurement.

    compute      samples of a GPU x FLOP of an update / (peak x utilisation)
    all-reduce   2 (n - 1) / n x gradient bytes / bus bandwidth + 2 log2(n) x latency
    data         bytes that all GPUs read a second, for the file system

FLOP, gradients and windows are counted; what the GPUs and the network do is assumed, and can be given.
"""

import argparse
import math

from benchmarks.timing import report
from pretrain.config import ObjectiveConfig
from pretrain.flop import network_cost, sample_cost
from pretrain.model.config import NetworkConfig
from pretrain.model.dpot import Dpot
from pretrain.model.sizes import SIZES


def size_of(model: str) -> tuple[float, int]:
    """FLOP that a sample costs in an update, and bytes of the gradients, at 128 x 128, 10 frames, 4 channels."""
    import torch

    config = NetworkConfig(
        space=(128, 128), patch_size=8, in_channels=4, out_channels=4, in_timesteps=10, **SIZES[model]
    )
    with torch.device("meta"):
        weights = sum(p.numel() for p in Dpot(config).parameters())
    return sample_cost(network_cost(config, config.space), ObjectiveConfig()), 4 * weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["Ti", "S", "M", "L", "H"])
    parser.add_argument("--gpus", nargs="+", type=int, default=[8, 64, 1024])
    parser.add_argument("--samples", type=int, default=16, help="of each GPU in a step")
    parser.add_argument(
        "--peak", type=float, default=989.5e12, help="FLOP/s of a GPU (H100 SXM, bfloat16, data sheet)"
    )
    parser.add_argument("--utilisation", type=float, default=0.3, help="share of it that training reaches")
    parser.add_argument("--bus-inside", type=float, default=300e9, help="bytes/s of an all-reduce within a node")
    parser.add_argument("--bus-between", type=float, default=200e9,
                        help="the same between nodes (half of eight adapters of 400 Gb/s each)")  # fmt: skip
    parser.add_argument("--latency", type=float, default=15e-6, help="seconds of a message between nodes")
    parser.add_argument("--overlap", type=float, default=0.0, help="share of the all-reduce behind the backward pass")
    options = parser.parse_args()
    window = 11 * 128 * 128 * 4 * 4
    rows = []
    for model in options.models:
        flop, gradients = size_of(model)
        compute = options.samples * flop / (options.peak * options.utilisation)
        for gpus in options.gpus:
            bus = options.bus_inside if gpus <= 8 else options.bus_between
            talk = 2 * (gpus - 1) / gpus * gradients / bus + 2 * math.log2(gpus) * options.latency
            step = compute + (1 - options.overlap) * talk
            rows.append(
                {
                    "model": model, "gpus": gpus, "compute_ms": 1e3 * compute, "all_reduce_ms": 1e3 * talk,
                    "efficiency": compute / step, "samples_per_second": gpus * options.samples / step,
                    "read_gb_per_second": gpus * options.samples / step * window / 1e9,
                }
            )  # fmt: skip
    print("| model | GPUs | compute, ms | all-reduce, ms | efficiency | samples/s | read, GB/s |")
    print("|---|---|---|---|---|---|---|")
    for r in rows:
        times = f"{r['compute_ms']:.1f} | {r['all_reduce_ms']:.1f} | {r['efficiency']:.2f}"
        rates = f"{r['samples_per_second']:,.0f} | {r['read_gb_per_second']:.1f}"
        print(f"| {r['model']} | {r['gpus']} | {times} | {rates} |")
    report({"benchmark": "cost_model", "machine": "none: a model", "assumed": vars(options), "rows": rows})


if __name__ == "__main__":
    main()
