"""Names of fields, the same in every layout where they mean the same: those that the project's own solvers use.

A field that no list below names keeps the name that its publisher gave it. Names of PDE parameters follow the same
rule: the words of the field (`viscosity`) where the meaning is the same everywhere, else the publisher's own.
"""

VELOCITY = ("velocity_x", "velocity_y", "velocity_z")
"""Components along x, y, z; so are those of every other vector named."""
VORTICITY, DIVERGENCE, STREAM_FUNCTION = "vorticity", "divergence", "stream_function"
PRESSURE, DENSITY, ENERGY, TEMPERATURE = "pressure", "density", "energy", "temperature"
HEIGHT = "height"
"""Of a free surface (shallow water)."""
TRACER = "tracer"
"""Whatever the flow carries along without being pushed by it: smoke, dye, particles, a passive scalar."""
CONCENTRATION = "concentration"
"""Of the one species of a reaction, diffusion or sorption."""
ACTIVATOR, INHIBITOR = "activator", "inhibitor"
DISPLACEMENT = "displacement"
"""Of a wave."""
PHASE = "phase"
"""The order parameter of a phase field (Allen-Cahn, Cahn-Hilliard)."""
SOLUTION = "u"
"""Of an equation that has one unknown and no better name for it: advection, KdV, Kuramoto-Sivashinsky, Poisson."""

# Static fields.
PERMEABILITY, POROSITY = "permeability", "porosity"
FORCE = ("force_x", "force_y", "force_z")
SOURCE = "source"
"""The right-hand side of an equation for one scalar."""
WAVE_SPEED = "wave_speed"
COEFFICIENT = "coefficient"
"""Of a steady problem, where it has no better name."""
GRAVITY_POTENTIAL = "gravity_potential"
INITIAL = "initial"
"""Put before the name of a field that is the state at time zero: `initial_vorticity`."""


def vector(name: str, axes: int) -> tuple[str, ...]:
    """The names of a vector's components: `("electric_x", "electric_y", "electric_z")`."""
    return tuple(f"{name}_{axis}" for axis in "xyz"[:axes])
