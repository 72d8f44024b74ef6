"""Small operators for tests."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pretrain.model import DatasetScaling, NetworkConfig, Operator, OperatorConfig


def make_operator(
    channels: Sequence[str] = ("a", "b"),
    *,
    space: tuple[int, ...] = (16, 16),
    seed: int = 0,
    network: Mapping[str, Any] | None = None,
    **options: object,
) -> Operator:
    """A nano operator that knows one dataset, `toy`, with all channels; `network` changes the network's shape."""
    torch.manual_seed(seed)
    n = len(channels)
    shape: dict[str, Any] = {
        "patch_size": 4, "in_channels": n, "out_channels": n, "in_timesteps": 3, "width": 16, "depth": 1, "heads": 2,
        "head_width": 8, "modes": 4,
    }  # fmt: skip
    toy = DatasetScaling(
        name="toy", channels=tuple(channels), mean=(2.0,) * n, std=(1.5,) * n, change_rms=(0.5,) * n, dt=0.1
    )
    built = NetworkConfig(space=space, **shape | dict(network or {}))
    fields = {"predict": "change", "normalisation": "mean_std", "datasets": (toy,)} | options
    return Operator(OperatorConfig(network=built, channels=tuple(channels), **fields))  # type: ignore[arg-type]
