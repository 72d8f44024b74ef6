"""Small operators for tests."""

from collections.abc import Sequence

import torch

from pretrain.model import DatasetScaling, NetworkConfig, Operator, OperatorConfig


def make_operator(
    channels: Sequence[str] = ("a", "b"), *, space: tuple[int, ...] = (16, 16), seed: int = 0, **options: object
) -> Operator:
    """A nano operator that knows one dataset, `toy`, with all channels."""
    torch.manual_seed(seed)
    n = len(channels)
    network = NetworkConfig(
        space=space, patch_size=4, in_channels=n, out_channels=n, in_timesteps=3, width=16, depth=1, heads=2,
        head_width=8, modes=4,
    )  # fmt: skip
    toy = DatasetScaling(
        name="toy", channels=tuple(channels), mean=(2.0,) * n, std=(1.5,) * n, change_rms=(0.5,) * n, dt=0.1
    )
    fields = {"predict": "change", "normalisation": "dataset", "datasets": (toy,)} | options
    return Operator(OperatorConfig(network=network, channels=tuple(channels), **fields))  # type: ignore[arg-type]
