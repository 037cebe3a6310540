"""eqbench: how equivariant training made a network, and what that does to its loss landscape."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "probe"]


def __getattr__(name: str) -> Any:
    if name == "probe":  # imports torch, so not before it is asked for
        from eqbench.probes import probe

        return probe
    raise AttributeError(f"module 'eqbench' has no attribute '{name}'")
