"""Row generators: each solver in a few lines."""

from retrodict.solvers.generators import first_order, multistep  # noqa: F401 - importing registers
