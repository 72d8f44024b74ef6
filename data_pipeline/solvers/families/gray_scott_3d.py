"""Gray-Scott reaction and diffusion in three dimensions."""

from typing import ClassVar

from data_pipeline.solvers.families.gray_scott import GrayScott


class GrayScott3D(GrayScott):
    """a_t = D_a Lap a - a b^2 + f (1 - a), b_t = D_b Lap b + a b^2 - (f + k) b on [-1, 1)^3, periodic."""

    family: ClassVar[str] = "gray_scott_3d"
    axes = ("x", "y", "z")
    extent = ((-1.0, 1.0),) * 3
    boundaries = ("periodic",) * 3
