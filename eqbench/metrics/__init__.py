"""Every metric, declared once, a file a probe: the probes fill these in, the boards and the page read them (no torch)."""

from eqbench.metrics.ablation import ABLATION
from eqbench.metrics.base import Metric
from eqbench.metrics.circuits import CIRCUITS
from eqbench.metrics.consistency import CONSISTENCY
from eqbench.metrics.dynamics import DYNAMICS
from eqbench.metrics.emergence import EMERGENCE
from eqbench.metrics.group_landscape import GROUP_LANDSCAPE
from eqbench.metrics.ladder import LADDER
from eqbench.metrics.lie import LIE
from eqbench.metrics.orbit import ORBIT
from eqbench.metrics.robustness import ROBUSTNESS
from eqbench.metrics.sharpness import SHARPNESS
from eqbench.metrics.slices import SLICES
from eqbench.metrics.spectrum import SPECTRUM
from eqbench.metrics.sweep import SWEEP
from eqbench.metrics.symmetries import SYMMETRIES

__all__ = ["ACCURACY", "METRICS", "SHARES", "Metric"]

ACCURACY = "accuracy"
SHARES = ("symmetry_share", "js_share")  # what missing symmetry costs, of images with labels and without

# In the order of the page.
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        *ORBIT,
        *LADDER,
        *EMERGENCE,
        *CIRCUITS,
        *ABLATION,
        *LIE,
        *SWEEP,
        *CONSISTENCY,
        *ROBUSTNESS,
        *SPECTRUM,
        *SYMMETRIES,
        *GROUP_LANDSCAPE,
        *SHARPNESS,
        *SLICES,
        *DYNAMICS,
    )
}
