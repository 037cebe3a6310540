"""S14: a linear head times a makes the logits times a, which checks a Hessian product by first-order code alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from eqbench.curvature.hessian import Hessian
from eqbench.curvature.objective import Objective
from eqbench.symmetries.dataflow import Node


def head_residual(hessian: Hessian, gradient: Tensor, heads: Sequence[Node]) -> float:
    """|H th + g_h - J_f'[(p - y) + (diag p - pp') f] / B| / (|H th| + |g_h|), th the head's weights and zero elsewhere.

    For f(a th_h) = a f(th_h) and cross-entropy, by differentiating g.th = E<dl/df, f>: one Hessian product, and one backward
    pass. It perturbs the head alone, so it is necessary, not sufficient.

    Args:
        hessian: of the mean cross-entropy. gradient: (size,), of the same. heads: the layers that write the logits.
    """
    objective = hessian.objective
    names = {name for node in heads for name in (node.weight, node.bias) if name}
    chosen = objective.flat(
        torch.full_like(p, name in names) for name, p in zip(objective.names, objective.parameters, strict=True)
    )
    theta, own = objective.theta * chosen, gradient * chosen
    product = hessian @ theta
    error = float((product + own - _right_side(objective)).double().norm())
    return error / max(float(product.double().norm()) + float(own.double().norm()), 1e-300)


def _right_side(objective: Objective) -> Tensor:
    total = torch.zeros(objective.size, dtype=torch.float64, device=objective.device)
    for x, y in objective.batches:
        f = objective.logits(x)
        p = f.detach().softmax(1)
        v = p - torch.nn.functional.one_hot(y, f.shape[1]) + p * (f.detach() - (p * f.detach()).sum(1, keepdim=True))
        pulled = torch.autograd.grad(f, objective.parameters, v / len(x), allow_unused=True, materialize_grads=True)
        total += len(x) / objective.images * objective.flat(pulled).double()
    return total.to(objective.dtype)
