"""Many tridiagonal systems at once."""

import torch
from torch import Tensor


def solve_tridiagonal(lower: Tensor, diagonal: Tensor, upper: Tensor, right: Tensor) -> Tensor:
    """x of lower_i x_{i-1} + diagonal_i x_i + upper_i x_{i+1} = right_i, by parallel cyclic reduction.

    Each of the log2 n rounds removes the neighbours at distance s = 1, 2, 4, ... from all equations together (Hockney
    and Jesshope, Parallel Computers, 1981, section 5.4). Stable for matrices dominated by their diagonal.

    Args:
        lower: (..., n); lower_0 is taken for 0.
        diagonal: (..., n).
        upper: (..., n); upper_{n-1} is taken for 0.
        right: (..., n).
    """
    n = right.shape[-1]
    # Equations beyond both ends say x = 0: with as many zeros there as points, every neighbour is a view.
    now, then = right.new_zeros(2, 3, *right.shape[:-1], 3 * n).unbind(0)
    a, c, d = now[..., n : 2 * n]
    torch.div(lower[..., 1:], diagonal[..., 1:], out=a[..., 1:])
    torch.div(upper[..., :-1], diagonal[..., :-1], out=c[..., :-1])
    torch.div(right, diagonal, out=d)
    distance = 1
    while distance < n:
        a, c, d = now[..., n : 2 * n]
        a_left, c_left, d_left = now[..., n - distance : 2 * n - distance]
        a_right, c_right, d_right = now[..., n + distance : 2 * n + distance]
        scale = 1 / torch.addcmul(1 - a * c_left, c, a_right, value=-1)
        new_a, new_c, new_d = then[..., n : 2 * n]
        torch.mul(a, a_left, out=new_a).mul_(scale).neg_()
        torch.mul(c, c_right, out=new_c).mul_(scale).neg_()
        torch.addcmul(d, a, d_left, value=-1, out=new_d).addcmul_(c, d_right, value=-1).mul_(scale)
        now, then = then, now
        distance *= 2
    return now[2, ..., n : 2 * n]
