"""Gauss-Newton-vector products of a mean loss: the part of the Hessian that does not differentiate the network twice."""

from collections.abc import Iterator

import torch
from torch import Tensor

from eqbench.curvature.hessian import forwardless
from eqbench.curvature.objective import Objective
from eqbench.errors import Failed


class GaussNewton:
    """G = sum_b (n_b / N) J_b' (d2l/df2) J_b, J = df/dtheta: positive semi-definite where l is convex in the logits f.

    For cross-entropy d2l/df2 = (diag p - pp') / B does not depend on the labels, and G is the Fisher information
    (Martens 2020, JMLR 21:146). Jv by forward mode, J'u by backward mode; with one batch the graph of f is kept.

    Attributes:
        products: how many Gv were made. quadratics: how many v'Gv, which need no backward pass.

    >>> from torch import nn
    >>> x, y = torch.randn(50, 3, dtype=torch.float64), torch.randint(4, (50,))
    >>> linear = nn.Linear(3, 4, dtype=torch.float64)  # for a linear network G is the Hessian
    >>> from eqbench.curvature.hessian import Hessian
    >>> objective = Objective(linear, [(x, y)])
    >>> v = torch.randn(16, dtype=torch.float64)
    >>> bool(torch.allclose(GaussNewton(objective) @ v, Hessian(objective) @ v))
    True
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.size, self.device, self.dtype = objective.size, objective.device, objective.dtype
        self.products = self.quadratics = 0
        self._cached: Tensor | None = None

    def __matmul__(self, v: Tensor) -> Tensor:
        """Gv for v (size,), in the network's dtype.

        Raises:
            Unsupported: an operation of this architecture has no forward derivative.
            Failed: the product is not finite.
        """
        self.products += 1
        total = torch.zeros(self.size, dtype=torch.float64, device=self.device)
        for weight, x, _, curved in self._pushed(v):
            total += weight * self.pulled(x, curved).double()
        return self._finite(total).to(self.dtype)

    def quadratic(self, v: Tensor) -> float:
        """The form v'Gv = sum_b (n_b / N) (Jv)' (d2l/df2) (Jv), from forward passes alone; raises as `@`."""
        self.quadratics += 1
        parts = [weight * (pushed.double() * curved.double()).sum() for weight, _, pushed, curved in self._pushed(v)]
        return float(self._finite(torch.stack(parts).sum()))

    def pushed(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """f(x) and Jv, (B, classes) each."""
        objective = self.objective
        point = dict(zip(objective.names, (p.detach() for p in objective.parameters), strict=True))
        with torch.no_grad():
            try:
                found = torch.func.jvp(lambda p: objective.logits(x, p), (point,), (objective.named(v),))
            except RuntimeError as error:
                raise forwardless(error) from None
        return found[0], found[1]

    def pulled(self, x: Tensor, u: Tensor) -> Tensor:
        """J'u for u (B, classes): (size,)."""
        objective, keep = self.objective, len(self.objective.batches) == 1
        logits = self._cached if keep and self._cached is not None else objective.logits(x)
        self._cached = logits if keep else None
        return objective.flat(
            torch.autograd.grad(logits, objective.parameters, u, retain_graph=keep, materialize_grads=True)
        )

    def _pushed(self, v: Tensor) -> Iterator[tuple[float, Tensor, Tensor, Tensor]]:
        """(n_b / N, x, Jv, (d2l/df2) Jv) of each batch."""
        for x, y in self.objective.batches:
            logits, pushed = self.pushed(x, v)
            leaf = logits.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.objective.loss(leaf, y), leaf, create_graph=True)
            (curved,) = torch.autograd.grad(slope, leaf, pushed)
            yield len(x) / self.objective.images, x, pushed, curved

    def _finite(self, product: Tensor) -> Tensor:
        if not product.isfinite().all():
            raise Failed("a Gauss-Newton product is not finite: the logits overflow in this dtype")
        return product
