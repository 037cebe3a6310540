"""Random directions in the space of weights that are as long as the weights they move, filter by filter."""

import torch
from torch import Tensor

from eqbench.curvature.objective import Objective


def filter_normalised(objective: Objective, seed: int) -> Tensor:
    """A random d (size,), |d_f| = |w_f| for each output filter f of each weight; 0 for biases and the affine of norms.

    d_f = z_f |w_f| / |z_f|, z normal; the filters of a tensor of two axes or more are its slices along the first one, so
    rows of linear layers, too. Li et al. 2018, NeurIPS, sec. 4. That makes the slices of networks of other scales
    comparable, filter by filter; it does not make them independent of how channels are scaled against the next layer.

    Args:
        seed: of the direction; drawn on the CPU, so that every device has the same.

    >>> objective = Objective(torch.nn.Linear(3, 5), [(torch.randn(2, 3), torch.zeros(2, dtype=torch.int64))])
    >>> weight, bias = objective.split(filter_normalised(objective, 0))
    >>> bool(torch.allclose(weight.norm(dim=1), objective.parameters[0].norm(dim=1))), bias.tolist()
    (True, [0.0, 0.0, 0.0, 0.0, 0.0])
    """
    generator = torch.Generator().manual_seed(seed)
    return objective.flat(_filters(w.detach(), generator) for w in objective.parameters)


def _filters(w: Tensor, generator: torch.Generator) -> Tensor:
    if w.ndim < 2:
        return torch.zeros_like(w)
    z = torch.randn(w.shape, generator=generator).to(w).flatten(1)
    norms = w.flatten(1).norm(dim=1, keepdim=True)
    return (z * (norms / z.norm(dim=1, keepdim=True))).view_as(w)


def on_support(shift: Tensor, seed: int) -> Tensor:
    """A random direction of norm 1 (size,) that moves exactly the entries that `shift` moves."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(shift.shape, generator=generator).to(shift) * (shift != 0)
    return z / z.norm()
