"""Hessian-vector products of a mean loss, by double backward.

Only modes that agree with finite differences are used: reverse-over-forward is silently wrong for some normalisation
layers (pytorch#196700), so `grad(jvp(f))` does not occur here; `jvp(grad(f))` serves as the independent second opinion.
Nor are second derivatives batched by vmap: those of a layer norm are off by 0.2-3 % in torch 2.15 (torch.func.hessian).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from eqbench.curvature.objective import Objective, twice_differentiable
from eqbench.errors import Failed, Unsupported


class Hessian:
    """H = sum_b (n_b / N) d2/dtheta2 l(f(x_b), y_b): the Hessian of an objective at its network's weights.

    With one batch the first-order graph is built once and each product costs one more backward pass; with several it is
    rebuilt, and the products are summed in float64.

    Attributes:
        products: how many were made.

    >>> from torch import nn
    >>> x, y = torch.randn(50, 3, dtype=torch.float64), torch.randn(50, 1, dtype=torch.float64)
    >>> linear = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    >>> hessian = Hessian(Objective(linear, [(x, y)], nn.functional.mse_loss))
    >>> v = torch.randn(3, dtype=torch.float64)
    >>> bool(torch.allclose(hessian @ v, 2 * x.T @ (x @ v) / 50))
    True
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.size, self.device, self.dtype = objective.size, objective.device, objective.dtype
        self.products = 0
        self._cached: list[Tensor] | None = None

    def __matmul__(self, v: Tensor) -> Tensor:
        """Hv for v (size,), in the network's dtype.

        Raises:
            Unsupported: an operation of this architecture has no second derivative.
            Failed: the product is not finite.
        """
        self.products += 1
        objective, pieces = self.objective, self.objective.split(v)
        if len(objective.batches) == 1:
            if self._cached is None:
                self._cached = self._gradient_graph(*objective.batches[0])
            product = self._second(self._cached, pieces, keep=True)
        else:
            total = torch.zeros(self.size, dtype=torch.float64, device=self.device)
            for x, y in objective.batches:
                second = self._second(self._gradient_graph(x, y), pieces, keep=False)
                total += len(x) / objective.images * second.double()
            product = total.to(self.dtype)
        if not product.isfinite().all():
            raise Failed("a Hessian product is not finite: the loss overflows in this dtype")
        return product

    def _gradient_graph(self, x: Tensor, y: Tensor) -> list[Tensor]:
        objective = self.objective
        loss = objective.loss(objective.logits(x), y)
        with twice_differentiable():
            return list(torch.autograd.grad(loss, objective.parameters, create_graph=True, materialize_grads=True))

    def _second(self, gradient: Sequence[Tensor], pieces: Sequence[Tensor], keep: bool) -> Tensor:
        linked = [(g, v) for g, v in zip(gradient, pieces, strict=True) if g.requires_grad]
        if not linked:
            return torch.zeros(self.size, dtype=self.dtype, device=self.device)
        outputs, vectors = zip(*linked, strict=True)
        try:
            second = torch.autograd.grad(
                outputs,
                self.objective.parameters,
                vectors,
                retain_graph=keep,
                allow_unused=True,
                materialize_grads=True,
            )
        except (NotImplementedError, RuntimeError) as error:
            if any(words in str(error) for words in ("not implemented", "derivative", "differentiate twice")):
                raise Unsupported(f"no second derivative: {str(error).splitlines()[0]}") from None
            raise
        return self.objective.flat(second)

    def forward_over_reverse(self, v: Tensor) -> Tensor:
        """Hv as jvp(grad): the same product by other formulas, for the guard."""
        objective = self.objective
        point = dict(zip(objective.names, (p.detach() for p in objective.parameters), strict=True))
        total = torch.zeros_like(v)
        for x, y in objective.batches:

            def mean_loss(parameters: dict[str, Tensor], x: Tensor = x, y: Tensor = y) -> Tensor:
                return objective.loss(objective.logits(x, parameters), y)

            with twice_differentiable():
                product = torch.func.jvp(torch.func.grad(mean_loss), (point,), (objective.named(v),))[1]
            total += len(x) / objective.images * objective.flat(product[name] for name in objective.names)
        return total
