"""Symmetries of the parameters of a network: changes of its weights that leave its function alone, a family a file."""

from eqbench.symmetries.balancing import balance

__all__ = ["balance"]
