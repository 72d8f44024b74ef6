"""Gray-Scott reaction and diffusion in two dimensions: patterns that split, glide and wind. The Well's set of them."""

from typing import ClassVar

from data_pipeline.solvers.families.gray_scott import GrayScott


class GrayScott2D(GrayScott):
    """a_t = D_a Lap a - a b^2 + f (1 - a), b_t = D_b Lap b + a b^2 - (f + k) b on [-1, 1)^2, periodic."""

    family: ClassVar[str] = "gray_scott_2d"
    version: ClassVar[int] = 2
    axes = ("x", "y")
    extent = ((-1.0, 1.0),) * 2
    boundaries = ("periodic",) * 2
