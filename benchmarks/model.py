"""The fast network beside the plain one with the same weights: `python -m benchmarks.model`.

CPU: float32 both, two threads. CUDA: the plain one in float32, as the reference trains; the fast one in bfloat16 by
autocast, with TF32 in its float32 islands, and CUDA graphs. The fast one is compiled. A training step is forward, loss
and backward; the optimizer is the same for both and is left out. The floor is what the folded network's matrix
products need at the rates that this machine reaches. `--profile FOLDER` writes where the time of both goes.
"""

import argparse
import ctypes
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import MatrixBytes, copy_rate, interleaved, machine, matrix_rate, ratio, report
from pretrain.execution import set_tf32
from pretrain.model import SIZES, Dpot, NetworkConfig, PlainDpot

TARGETS = {
    "cpu": {"Ti": (3.0, 3.0), "M": (1.3, 1.3)},  # training, inference
    "cuda": {"Ti": (6.0, None), "S": (6.0, None), "M": (8.0, None), "L": (8.0, None), "H": (8.0, None)},
}


@dataclass(frozen=True)
class Case:
    """A network with its batch, and how it is run."""

    network: nn.Module
    x: Tensor
    cotangent: Tensor
    fast: bool
    """On CUDA: bfloat16 by autocast, and TF32 in what stays in float32."""

    @contextmanager
    def precision(self) -> Iterator[None]:
        if self.x.is_cuda:
            set_tf32(self.fast)
        with torch.autocast(self.x.device.type, torch.bfloat16, enabled=self.fast and self.x.is_cuda):
            yield

    def train(self) -> None:
        for parameter in self.network.parameters():
            parameter.grad = None
        with self.precision():
            (self.network(self.x) * self.cotangent).sum().backward()

    @torch.inference_mode()
    def infer(self) -> None:
        with self.precision():
            self.network(self.x)


def cases(size: str, batch: int, device: str) -> dict[str, Case]:
    """Plain and fast, with the same weights and data; the published setting of 128 x 128, ten frames, four fields."""
    torch.manual_seed(0)
    config = NetworkConfig(space=(128, 128), in_channels=4, out_channels=4, **SIZES[size])
    with torch.device(device):
        plain, fast = PlainDpot(config), Dpot(config)
        x, cotangent = torch.randn(batch, 128, 128, 10, 4), torch.randn(batch, 128, 128, 1, 4)
    fast.load_state_dict(plain.state_dict())
    fast.compile(dynamic=False, mode="reduce-overhead" if device == "cuda" else None)
    return {"plain": Case(plain, x, cotangent, fast=False), "fast": Case(fast, x, cotangent, fast=True)}


def cost(case: Case, step: Callable[[], None]) -> tuple[int, int]:
    """FLOP and bytes of the matrix products of a step, counted on the network as it is without a compiler."""
    with FlopCounterMode(display=False) as flop, MatrixBytes() as traffic, torch.compiler.set_stance("force_eager"):
        step()
    return flop.get_total_flops(), traffic.total


def compare(size: str, batch: int, rounds: int, device: str, rates: dict[str, float]) -> dict[str, Any]:
    """Times of one size, training and inference."""
    pair = cases(size, batch, device)
    figures: dict[str, Any] = {"size": size, "batch": batch}
    for index, name in enumerate(("train", "infer")):
        steps = {key: getattr(case, name) for key, case in pair.items()}
        flop, traffic = cost(pair["fast"], steps["fast"])
        seconds = interleaved(steps, rounds)
        median = {key: statistics.median(values) for key, values in seconds.items()}
        floor = max(flop / rates["matrix"], traffic / rates["copy"])
        figures[name] = {
            "plain_ms": 1e3 * median["plain"],
            "fast_ms": 1e3 * median["fast"],
            "speed_up": ratio(seconds["plain"], seconds["fast"]),
            "target": TARGETS[device].get(size, (None, None))[index],
            "gflop": flop / 1e9,
            "floor_ms": 1e3 * floor,
            "over_floor": median["fast"] / floor,
            "share_of_matrix_rate": flop / median["fast"] / rates["matrix"],
        }
        print(
            f"{size:3} {name:6} plain {median['plain']:8.3f} s   fast {median['fast']:8.3f} s   "
            f"{figures[name]['speed_up']:5.2f} times faster   "
            f"{figures[name]['over_floor']:.2f} x the floor of {floor:.3f} s   "
            f"{100 * figures[name]['share_of_matrix_rate']:.0f} % of the matrix rate",
            flush=True,
        )
    return figures


def write_profile(case: Case, file: Path) -> None:
    """Self time of every operation of a training step by the shapes of its inputs, most expensive first."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * case.x.is_cuda
    case.train()
    with profile(activities=activities, record_shapes=True) as trace:
        for _ in range(3):
            case.train()
    key = "self_device_time_total" if case.x.is_cuda else "self_cpu_time_total"
    averages = trace.key_averages(group_by_input_shape=True)
    file.write_text(averages.table(sort_by=key, row_limit=80, max_name_column_width=100))


def keep_memory() -> None:
    """Let the C library's allocator give no memory back, so that no step touches pages that are new to the process."""
    mmap_max, trim_threshold = -4, -1  # malloc.h
    library = ctypes.CDLL(None)
    if not (library.mallopt(mmap_max, 0) and library.mallopt(trim_threshold, 2**31 - 1)):
        raise SystemExit("this C library's allocator has no such settings")


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(TARGETS[device]))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--profile", type=Path, help="folder for profiles of the training steps")
    parser.add_argument("--keep-memory", action="store_true", help="CPU: an allocator that gives no memory back")
    options = parser.parse_args()
    if options.keep_memory:
        keep_memory()
    # So that a profile names the compiler's own loops on a CPU, too.
    torch._inductor.config.cpp.enable_kernel_profile = options.profile is not None
    torch.set_num_threads(min(2, torch.get_num_threads()) if device == "cpu" else torch.get_num_threads())
    rates = {
        "matrix": matrix_rate(device, torch.bfloat16 if device == "cuda" else torch.float32),
        "copy": copy_rate(device),
    }
    print(f"{machine(device)}: {rates['matrix'] / 1e9:.0f} GFLOP/s, {rates['copy'] / 1e9:.0f} GB/s")
    figures = [compare(size, options.batch, options.rounds, device, rates) for size in options.sizes]
    if options.profile:
        options.profile.mkdir(parents=True, exist_ok=True)
        for size in options.sizes:
            for name, case in cases(size, options.batch, device).items():
                write_profile(case, options.profile / f"{size}_{name}.txt")
    report({"benchmark": "model", "machine": machine(device), "rates": rates, "sizes": figures})


if __name__ == "__main__":
    main()
