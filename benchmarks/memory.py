"""Memory of a training step, counted in bytes of tensors that live at once: `python -m benchmarks.memory`.

Nothing is computed: the tensors are fake. Weights, gradients, activations and the batch count; an optimizer does not.
"""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.timing import report
from pretrain.model import SIZES, Dpot, NetworkConfig, PlainDpot

MIB = 2**20


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations have made and that are still alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def peak_of_a_training_step(kind: type[nn.Module], size: str, *, recompute: bool, bfloat16: bool) -> float:
    """MiB of weights, gradients, activations and a batch of eight 128 x 128 histories of ten frames."""
    with torch.device("meta"):
        network = kind(NetworkConfig(space=(128, 128), in_channels=4, out_channels=4, **SIZES[size]))
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    with FakeTensorMode(), LiveBytes() as live:
        network.load_state_dict({name: torch.empty(shape) for name, shape in shapes.items()}, assign=True)
        network.cls_head.requires_grad_(False)
        network.recompute_blocks = recompute
        history = torch.empty(8, 128, 128, 10, 4)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = network(history).square().mean()
        loss.backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
    return live.peak / MIB


def main() -> None:
    figures = []
    for size in ("Ti", "S", "M"):
        for bfloat16 in (False, True):
            precision = "bfloat16" if bfloat16 else "float32"
            plain, fast, recomputed = (
                peak_of_a_training_step(kind, size, recompute=recompute, bfloat16=bfloat16)
                for kind, recompute in ((PlainDpot, False), (Dpot, False), (Dpot, True))
            )
            print(
                f"{size:3} {precision:8} plain {plain:6.0f} MiB   fast {fast:6.0f}   "
                f"recomputed {recomputed:6.0f} ({recomputed / plain:.0%})"
            )
            row = {"size": size, "precision": precision}
            figures.append(row | {"plain_mib": plain, "fast_mib": fast, "recomputed_mib": recomputed})
    report({"benchmark": "memory", "batch": 8, "figures": figures})


if __name__ == "__main__":
    main()
