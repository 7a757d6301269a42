"""Row generators: each solver in a few lines.  Importing a module registers what it holds."""

from retrodict.solvers.generators import (  # noqa: F401
    bdia,
    corrected,
    euler,
    first_order,
    jumps,
    momentum,
    multistep,
    restart,
    runge_kutta,
    singlestep,
    two_ended,
    usf,
    v3,
)
