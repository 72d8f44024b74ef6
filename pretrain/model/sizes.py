"""The published sizes, and a nano one for tests: width, depth, MLP ratio, heads and head width."""

from typing import TypedDict


class Size(TypedDict):
    """The part of a network's shape that its size fixes."""

    width: int
    depth: int
    mlp_ratio: float
    heads: int
    head_width: int


SIZES: dict[str, Size] = {
    "nano": Size(width=32, depth=2, mlp_ratio=1, heads=4, head_width=16),
    "Ti": Size(width=512, depth=4, mlp_ratio=1, heads=4, head_width=32),
    "S": Size(width=1024, depth=6, mlp_ratio=1, heads=8, head_width=32),
    "M": Size(width=1024, depth=12, mlp_ratio=4, heads=8, head_width=32),
    "L": Size(width=1536, depth=24, mlp_ratio=4, heads=16, head_width=128),
    "H": Size(width=2048, depth=27, mlp_ratio=4, heads=8, head_width=128),
}
