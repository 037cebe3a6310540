"""Transformation groups on images; a family a file, each named once in GROUPS."""

from eqbench.errors import unknown
from eqbench.groups import lattice
from eqbench.groups.base import FiniteGroup

__all__ = ["GROUPS", "PLACEBOS", "FiniteGroup", "get"]

GROUPS: dict[str, FiniteGroup] = {**lattice.GROUPS}
PLACEBOS: dict[str, str] = {**lattice.PLACEBOS}


def get(name: str) -> FiniteGroup:
    """The group called `name`.

    Raises:
        UserError: no group has this name.
    """
    if name not in GROUPS:
        raise unknown("group", name, GROUPS)
    return GROUPS[name]
