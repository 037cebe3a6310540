"""The loss of each image at given weights, and the loss of logits whose scale carries nothing."""

import numpy as np
import torch
from torch import Tensor, nn

from eqbench.curvature.objective import Objective
from eqbench.stats import Array


@torch.no_grad()
def image_losses(objective: Objective, theta: Tensor | None = None) -> Array:
    """l(f(x; theta), y) of each image x, (n,), from logits in the network's dtype, as float64.

    >>> x, y = torch.randn(50, 3), torch.randint(4, (50,))
    >>> objective = Objective(nn.Linear(3, 4), [(x[:20], y[:20]), (x[20:], y[20:])])
    >>> bool(abs(image_losses(objective).mean() - objective.value()) < 1e-6)
    True
    """
    each = torch.func.vmap(lambda f, y: objective.loss(f[None], y[None]))
    rows = [each(objective.logits(x, theta).double(), y) for x, y in objective.batches]
    return np.asarray(torch.cat(rows).cpu().numpy(), dtype=np.float64)


def normalised(logits: Tensor) -> Tensor:
    """(f - mean_c f) / [mean_c (f - mean_c f)^2]^(1/2), image by image: no temperature of the head changes it.

    Andriushchenko et al. 2023, ICML, sec. 3 (which does not centre: cross-entropy does not see it).

    >>> f = torch.randn(5, 10, dtype=torch.float64)
    >>> bool(torch.allclose(normalised(7 * f + 3), normalised(f)))
    True
    """
    centred = logits - logits.mean(1, keepdim=True)
    return centred / centred.square().mean(1, keepdim=True).sqrt()


def normalised_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """The mean cross-entropy of normalised logits."""
    return nn.functional.cross_entropy(normalised(logits), y)
