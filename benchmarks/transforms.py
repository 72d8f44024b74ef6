"""Fourier transforms of the latent field as matrix products beside the FFT: `python -m benchmarks.transforms`.

Forward and inverse with gradients, for the channels of 8 samples at width 512, at several latent grids, with the
published number of modes and with all of them. The most modes with which products win in every case is `MATRIX_LIMIT`
in `pretrain/model/fourier.py`.
"""

import statistics
from collections.abc import Callable

import torch

from benchmarks.timing import interleaved, machine, ratio, report
from pretrain.model.fourier import transform

GRIDS = [(16, 16), (32, 32), (64, 64), (128, 128), (256, 256), (16, 16, 16), (32, 32, 32), (256,), (1024,), (4096,)]
PUBLISHED, ALL = 32, 10**9
LIMITS = {"matrices": 10**9, "fft": 0}
BUDGET = 2**24  # values in a field; large grids get fewer channels


def round_trip(grid: tuple[int, ...], modes: int, columns: int, device: str, matrix_limit: int) -> Callable[[], None]:
    field = torch.randn(*grid, columns, device=device, requires_grad=True)

    def run() -> None:
        field.grad = None
        there = transform(grid, [modes] * len(grid), symmetric=False, like=field, matrix_limit=matrix_limit)
        there.inverse(there.forward(field)).sum().backward()

    return run


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(min(2, torch.get_num_threads()) if device == "cpu" else torch.get_num_threads())
    figures = []
    for grid, modes in [(grid, modes) for grid in GRIDS for modes in (PUBLISHED, ALL)]:
        kept = min(modes, max(grid))
        points = torch.Size(grid).numel()
        columns = min(8 * 512, max(64, BUDGET // points))
        runs = {name: round_trip(grid, modes, columns, device, limit) for name, limit in LIMITS.items()}
        seconds = interleaved(runs, rounds=5)
        times = {name: statistics.median(values) for name, values in seconds.items()}
        gain = ratio(seconds["fft"], seconds["matrices"])
        shape = " x ".join(map(str, grid))
        print(
            f"{shape:14} {kept:5} modes   matrices {1e3 * times['matrices']:8.2f} ms   "
            f"FFT {1e3 * times['fft']:8.2f} ms   {gain:6.2f}",
            flush=True,
        )
        figures.append({"grid": grid, "modes": kept, "columns": columns, **times, "fft_over_matrices": gain})
    report({"benchmark": "transforms", "machine": machine(device), "grids": figures})


if __name__ == "__main__":
    main()
