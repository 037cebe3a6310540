"""The small figures of one network, each made of what one probe stored in its cells or training in its card (no torch)."""

from collections.abc import Callable

from eqbench.panels.base import Own, Panel
from eqbench.panels.certificate import certificate
from eqbench.panels.dynamics import dynamics
from eqbench.panels.families import filters, tuning
from eqbench.panels.learning import learning
from eqbench.panels.slices import slices
from eqbench.panels.spectrum import spectrum
from eqbench.panels.trajectory import trajectory

# In the order of the page, after the learning curves; each is None for a network without its curves.
PANELS: tuple[Callable[[Own], Panel | None], ...] = (spectrum, certificate, filters, tuning, slices, dynamics)

__all__ = ["PANELS", "Own", "Panel", "learning", "trajectory"]
