"""Finite volumes for an ideal gas: states, HLLC fluxes, viscous stresses, on 1, 2 or 3 axes.

Primitive variables are density, velocities and pressure; conserved ones density, momenta and total energy. Both are
tensors (B, 2 + axes, *grid); gas constants are (B, 1, *ones). Only operations that IEEE arithmetic rounds correctly
are used (no power, no logarithm), so that a sample has the same bits in every batch.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from data_pipeline.solvers.numerics.finite_volume import monotonized_central

GHOSTS = 2
"""Ghost cells on each side: what limited linear reconstruction reaches."""

Padding = Literal["circular", "replicate"]
"""How ghost cells are filled: periodic, or from the nearest cell, which lets waves out."""


class Gas(NamedTuple):
    """Constants of a batch, (B, 1, *ones) each: heat-capacity ratio, shear and bulk viscosity."""

    gamma: Tensor
    eta: Tensor
    zeta: Tensor
    viscous: bool = True
    """False: both viscosities are 0, and no time is lost on them."""


def kinetic(momentum: Tensor, velocity: Tensor) -> Tensor:
    """Kinetic energy (B, 1, ...) of (B, axes, ...); a plain sum, whose order no batch can change."""
    total = momentum[:, :1] * velocity[:, :1]
    for axis in range(1, velocity.shape[1]):
        total = total + momentum[:, axis : axis + 1] * velocity[:, axis : axis + 1]
    return total / 2


def to_primitive(conserved: Tensor, gamma: Tensor) -> Tensor:
    """Density, velocities and pressure of conserved variables."""
    density, momentum, energy = conserved[:, :1], conserved[:, 1:-1], conserved[:, -1:]
    velocity = momentum / density
    pressure = (gamma - 1) * (energy - kinetic(momentum, velocity))
    return torch.cat([density, velocity, pressure], dim=1)


def to_conserved(primitive: Tensor, gamma: Tensor) -> Tensor:
    """Density, momenta and total energy of primitive variables."""
    density, velocity, pressure = primitive[:, :1], primitive[:, 1:-1], primitive[:, -1:]
    momentum = density * velocity
    return torch.cat([density, momentum, pressure / (gamma - 1) + kinetic(momentum, velocity)], dim=1)


def is_sound(conserved: Tensor) -> Tensor:
    """Where density and pressure are positive, bool (B, 1, *grid); NaN is not."""
    density, momentum, energy = conserved[:, :1], conserved[:, 1:-1], conserved[:, -1:]
    return (density > 0) & (density * energy > kinetic(momentum, momentum))


def wave_rate(conserved: Tensor, gas: Gas, spacing: tuple[float, ...]) -> Tensor:
    """Inverse of the time that waves and diffusion need for a cell, sum over axes of (|u| + c) / h + nu / h^2.

    nu is (4/3 eta + zeta) / density, the diffusivity of a plane compression, which is above that of a shear. A step
    within 1/2 of the inverse keeps first-order HLLC positive, and is within the bound of explicit diffusion,
    dt <= 1 / (2 nu sum 1/h^2).

    Returns:
        The largest of each sample, (B, 1, *ones).
    """
    primitive = to_primitive(conserved, gas.gamma)
    density, velocity, pressure = primitive[:, :1], primitive[:, 1:-1], primitive[:, -1:]
    sound = (gas.gamma * pressure / density).sqrt()
    diffusivity = (gas.eta * (4 / 3) + gas.zeta) / density
    total = torch.zeros_like(sound)
    for axis, h in enumerate(spacing):
        total = total + (velocity[:, axis : axis + 1].abs() + sound) / h + diffusivity / h**2
    return total.amax(tuple(range(1, total.ndim)), keepdim=True)


def euler_step(
    conserved: Tensor,
    step: Tensor,
    gas: Gas,
    spacing: tuple[float, ...],
    padding: Padding,
    smooth: Tensor | None = None,
) -> Tensor:
    """One forward-Euler step of length `step` (B, 1, *ones), in one function so that a compiler can fuse it.

    Args:
        conserved: cell means.
        step: each sample's own step.
        gas: constants of the batch.
        spacing: cell size along each axis.
        padding: the boundary condition, the same on all sides.
        smooth: 1 or 0 in each cell, (B, 1, *grid). Faces of cells marked 0 get the first-order flux, and of the
            viscous one the part that acts along the normal: with both, a step within the bound of `wave_rate` leaves
            such a cell positive.
    """
    axes = len(spacing)
    ghosts = [GHOSTS, GHOSTS] * axes
    primitive = pad(to_primitive(conserved, gas.gamma), ghosts, mode=padding)
    marks = None if smooth is None else pad(smooth, ghosts, mode=padding)
    after = conserved
    for axis, h in enumerate(spacing):
        trust = None if marks is None else _face_trust(marks, axis, axes)
        flux = _hllc(*_face_states(primitive, trust, axis, axes), gas.gamma, axis)
        if gas.viscous:
            flux = flux - _viscous(primitive[:, 1:-1], trust, gas, spacing, axis)
        after = after - (step / h) * flux.diff(dim=axis + 2)
    return after


def _inner(padded: Tensor, axes: int, *but: int) -> Tensor:
    """`padded` without its ghost cells, but for those along the axes `but`."""
    for axis in range(axes):
        if axis not in but:
            padded = padded.narrow(axis + 2, GHOSTS, padded.shape[axis + 2] - 2 * GHOSTS)
    return padded


def _face_trust(marks: Tensor, axis: int, axes: int) -> Tensor:
    """1 or 0 at each of the n + 1 faces along an axis: 0 if a cell beside it is marked 0."""
    marks, dim = _inner(marks, axes, axis), axis + 2
    faces = marks.shape[dim] - 3
    return torch.minimum(marks.narrow(dim, 1, faces), marks.narrow(dim, 2, faces))


def _face_states(primitive: Tensor, trust: Tensor | None, axis: int, axes: int) -> tuple[Tensor, Tensor]:
    """Limited linear reconstruction (MUSCL) on both sides of the n + 1 faces along an axis."""
    cells, dim = _inner(primitive, axes, axis), axis + 2
    faces = cells.shape[dim] - 3
    difference = cells.diff(dim=dim)
    half = monotonized_central(difference.narrow(dim, 0, faces + 1), difference.narrow(dim, 1, faces + 1)) / 2
    below, above = half.narrow(dim, 0, faces), half.narrow(dim, 1, faces)
    if trust is not None:
        below, above = below * trust, above * trust
    return cells.narrow(dim, 1, faces) + below, cells.narrow(dim, 2, faces) - above


def _hllc(left: Tensor, right: Tensor, gamma: Tensor, axis: int) -> Tensor:
    """Flux of Toro, Spruce and Speares (Shock Waves 4, 1994) through faces across `axis`, (B, 2 + axes, ...).

    Wave speeds are those of Einfeldt: the extremes of each side's own and the Roe average's, with which the scheme is
    positive (Batten et al., SIAM J. Sci. Comput. 18, 1997). Differences across waves are formed first, so that a
    contact at rest is exact and slow flow loses no digits.
    """
    normal = axis + 1
    (d_l, u_l, p_l), (d_r, u_r, p_r) = (
        (side[:, :1], side[:, normal : normal + 1], side[:, -1:]) for side in (left, right)
    )
    slow, fast = _wave_speeds(d_l, u_l, p_l, d_r, u_r, p_r, gamma)
    inflow_l, inflow_r = d_l * (u_l - slow), d_r * (fast - u_r)  # mass that the outer waves take up, both positive
    contact = (p_l - p_r + inflow_l * u_l + inflow_r * u_r) / (inflow_l + inflow_r)

    upwind = torch.where(contact >= 0, left, right)
    outer = torch.where(contact >= 0, slow, fast)
    wave = torch.where(contact >= 0, slow.clamp(max=0), fast.clamp(min=0))  # 0: the whole fan is on one side
    density, velocity, pressure = upwind[:, :1], upwind[:, 1:-1], upwind[:, -1:]
    u = upwind[:, normal : normal + 1]
    energy = pressure / (gamma - 1) + kinetic(density * velocity, velocity)
    jump = contact - u
    squeeze = jump / (outer - contact)  # relative rise of the density across the outer wave
    mass = density * (u + wave * squeeze)
    push = pressure + density * wave * (1 + squeeze) * jump
    work = (energy + pressure) * u + wave * (
        energy * squeeze + (1 + squeeze) * jump * (density * contact + pressure / (outer - u))
    )
    momentum = [mass * velocity[:, i : i + 1] + (push if i == axis else 0) for i in range(velocity.shape[1])]
    return torch.cat([mass, *momentum, work], dim=1)


def _wave_speeds(
    d_l: Tensor, u_l: Tensor, p_l: Tensor, d_r: Tensor, u_r: Tensor, p_r: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor]:
    """Slowest and fastest wave of a Riemann problem (Einfeldt, SIAM J. Numer. Anal. 25, 1988, eqs. 5.2 .. 5.4)."""
    squared_l, squared_r = gamma * p_l / d_l, gamma * p_r / d_r
    root_l, root_r = d_l.sqrt(), d_r.sqrt()
    total = root_l + root_r
    mean = (root_l * u_l + root_r * u_r) / total
    spread = root_l * root_r / (2 * total * total) * (u_r - u_l) * (u_r - u_l)
    reach = ((root_l * squared_l + root_r * squared_r) / total + spread).sqrt()
    slow = torch.minimum(u_l - squared_l.sqrt(), mean - reach)
    return slow, torch.maximum(u_r + squared_r.sqrt(), mean + reach)


def _viscous(velocity: Tensor, trust: Tensor | None, gas: Gas, spacing: tuple[float, ...], axis: int) -> Tensor:
    """Viscous flux through faces across `axis`, (B, 2 + axes, ...): nothing, stresses, and their work.

    Stress: eta (d_i v_j + d_j v_i - 2/3 delta_ij div v) + zeta delta_ij div v, with central differences; velocities
    (B, axes, ...) come with their ghost cells. Slopes along the faces count times `trust`.
    """
    axes, dim = len(spacing), axis + 2
    faces = velocity.shape[dim] - 3

    def face_mean(cells: Tensor) -> Tensor:
        return (cells.narrow(dim, 1, faces) + cells.narrow(dim, 2, faces)) / 2

    def along(component: int, other: int) -> Tensor:
        """d v_component / d x_other at the faces, for another axis than that of the faces."""
        wide, n = _inner(velocity[:, component : component + 1], axes, axis, other), other + 2
        inner = wide.shape[n] - 2 * GHOSTS
        central = (wide.narrow(n, GHOSTS + 1, inner) - wide.narrow(n, GHOSTS - 1, inner)) / (2 * spacing[other])
        return face_mean(central) if trust is None else face_mean(central) * trust

    cells = _inner(velocity, axes, axis)
    slope = (cells.narrow(dim, 2, faces) - cells.narrow(dim, 1, faces)) / spacing[axis]
    divergence = slope[:, axis : axis + 1]
    for other in range(axes):
        if other != axis:
            divergence = divergence + along(other, other)
    stresses = []
    for component in range(axes):
        stress = gas.eta * slope[:, component : component + 1]
        if component == axis:
            stress = stress + stress + (gas.zeta - gas.eta * (2 / 3)) * divergence
        else:
            stress = stress + gas.eta * along(axis, component)
        stresses.append(stress)
    stress = torch.cat(stresses, dim=1)
    work = kinetic(stress, face_mean(cells)) * 2
    return torch.cat([torch.zeros_like(work), stress, work], dim=1)
