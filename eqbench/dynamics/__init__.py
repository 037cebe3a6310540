"""What training obeys step by step: identities of the gradient, charges, sharpness; recorded beside it, undisturbed."""

from eqbench.dynamics.recorder import Recorder

__all__ = ["Recorder"]
