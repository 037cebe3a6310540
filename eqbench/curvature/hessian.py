"""Hessian-vector products of a mean loss, by double backward.

Only modes that agree with finite differences are used: reverse-over-forward is silently wrong for some normalisation
layers (pytorch#196700), so `grad(jvp(f))` does not occur here; `jvp(grad(f))` serves as the independent second opinion.
Nor are second derivatives batched by vmap: those of a layer norm are off by 0.2-3 % in torch 2.15 (torch.func.hessian),
and on a CPU four in a batch take 1.05-1.24 times as long as one by one. Gradient checkpointing saves no memory: what it
recomputes for the first derivative stays for the second. Smaller batches do save it. torch.compile refuses a double
backward; jvp(grad) compiled takes 0.84 of a cached product (test_vit, 16 images, one CPU thread) after more than a minute of
compilation: it would pay after a thousand products and more.
"""

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from eqbench.curvature.convolution import NativeConvolutions
from eqbench.curvature.objective import Objective
from eqbench.errors import Failed, Unsupported, one_line, out_of_memory


class Hessian:
    """H = sum_b (n_b / N) d2/dtheta2 l(f(x_b), y_b): the Hessian of an objective at its network's weights.

    With one batch the first-order graph is built once and each product costs one more backward pass. With several it is
    rebuilt, or the product is jvp(grad): whichever a short measurement on the first batch finds the faster; the products
    are summed in float64.

    Attributes:
        products: how many were made. mode: how they are made, once that is decided.

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
        self.mode = "cached double backward" if len(objective.batches) == 1 else ""
        self._cached: list[Tensor] | None = None

    def __matmul__(self, v: Tensor) -> Tensor:
        """Hv for v (size,), in the network's dtype.

        Raises:
            Unsupported: an operation of this architecture has no second derivative.
            Failed: the product is not finite.
        """
        self.products += 1
        objective = self.objective
        if len(objective.batches) == 1:
            if self._cached is None:
                self._cached = self._gradient_graph(*objective.batches[0])
            product = self._second(self._cached, objective.split(v), keep=True)
        else:
            self.mode = self.mode or self._faster(v)
            total = torch.zeros(self.size, dtype=torch.float64, device=self.device)
            for x, y in objective.batches:
                total += len(x) / objective.images * MODES[self.mode](self, x, y, v).double()
            product = total.to(self.dtype)
        if not product.isfinite().all():
            raise Failed("a Hessian product is not finite: the loss overflows in this dtype")
        return product

    def forward_over_reverse(self, v: Tensor) -> Tensor:
        """Hv as jvp(grad): the same product by other formulas, for the guard."""
        parts = [(len(x) / self.objective.images, self._forward(x, y, v)) for x, y in self.objective.batches]
        return torch.stack([weight * part.double() for weight, part in parts]).sum(0).to(v)

    def _faster(self, v: Tensor) -> str:
        """The mode whose best of two products of the first batch takes less time; rebuilding, unless by a tenth."""
        (x, y), seconds = self.objective.batches[0], dict.fromkeys(MODES, math.inf)
        for mode in 2 * list(MODES):
            start = time.perf_counter()
            try:
                MODES[mode](self, x, y, v)
            except Unsupported:
                continue
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                continue
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            seconds[mode] = min(seconds[mode], time.perf_counter() - start)
        rebuilt, forward = MODES
        return forward if seconds[forward] < 0.9 * seconds[rebuilt] else rebuilt

    def _rebuilt(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return self._second(self._gradient_graph(x, y), self.objective.split(v), keep=False)

    def _forward(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        objective = self.objective
        point = dict(zip(objective.names, (p.detach() for p in objective.parameters), strict=True))

        def mean_loss(parameters: dict[str, Tensor]) -> Tensor:
            return objective.loss(objective.logits(x, parameters), y)

        try:
            product = torch.func.jvp(torch.func.grad(mean_loss), (point,), (objective.named(v),))[1]
        except RuntimeError as error:
            raise forwardless(error) from None
        return objective.flat(product[name] for name in objective.names)

    def _gradient_graph(self, x: Tensor, y: Tensor) -> list[Tensor]:
        objective = self.objective
        with NativeConvolutions():
            loss = objective.loss(objective.logits(x), y)
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
        except RuntimeError as error:
            if any(words in str(error) for words in ("not implemented", "derivative", "differentiate twice")):
                raise Unsupported(f"no second derivative: {str(error).splitlines()[0]}") from None
            raise
        return self.objective.flat(second)


def forwardless(error: Exception) -> Exception:
    """Unsupported, if forward mode failed for want of a derivative; else the error itself."""
    words = ("forward AD", "forward mode", "jvp", "setup_context", "not implemented", "generate_vmap_rule")
    lacking = any(word in str(error) for word in words) and not out_of_memory(error)
    return Unsupported(f"no forward derivative: {one_line(error)[:200]}") if lacking else error


# Products of one batch, the preferred first: rebuilding the first-order graph, jvp(grad).
MODES = {"double backward": Hessian._rebuilt, "jvp(grad)": Hessian._forward}
