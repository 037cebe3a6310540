"""The guarded Hessian-vector product of a mean loss, by double backward.

Only modes that agree with finite differences are used: reverse-over-forward is silently wrong for some normalisation
layers (pytorch#196700), so `grad(jvp(f))` does not occur here; `jvp(grad(f))` serves as the independent second opinion.
Nor are second derivatives batched by vmap: those of a layer norm are off by 0.2-3 % in torch 2.15 (torch.func.hessian).
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from eqbench.errors import Failed, Unsupported

Loss = Callable[[Tensor, Tensor], Tensor]  # (logits (B, C), targets) -> mean over B, a scalar
# Largest relative residuals that the float64 checks accept. The first is wide, for kinks of ReLU within its steps; what
# it is there to catch (a detached branch, a wrong backward) is of order one.
GUARDS = {"directional derivative": 1e-3, "mode agreement": 1e-5, "self-adjointness": 1e-8}


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    """Fused attention kernels have no second derivative: use the plain one."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


class _HardSigmoid(nn.Module):
    """relu6(x + 3) / 6: the same function as nn.Hardsigmoid, which lacks a double backward."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu6(x + 3) / 6


def prepare(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode that can be differentiated twice and has no caches that hide a parameter.

    nn.Hardsigmoid is replaced by an equal form; `train()` empties the attention-bias caches of LeViT and its kin.
    """
    module = copy.deepcopy(module)
    for parent in module.modules():
        for name, child in list(parent._modules.items()):  # named_children names a shared module once
            if isinstance(child, nn.Hardsigmoid):
                setattr(parent, name, _HardSigmoid())
    return module.train().eval()


class Hessian:
    """H = sum_b (n_b / N) d2/dtheta2 l(f(x_b), y_b): the Hessian of the mean loss over all images of all batches.

    With one batch the first-order graph is built once and each product costs one more backward pass; with several it is
    rebuilt, and the products are summed in float64.

    Args:
        module: network that maps x to logits; copied, see `prepare`.
        batches: (x, y) pairs on the module's device, at least 2 images each.
        loss: the mean loss of a batch.

    >>> x, y = torch.randn(50, 3, dtype=torch.float64), torch.randn(50, 1, dtype=torch.float64)
    >>> linear = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    >>> hessian = Hessian(linear, [(x, y)], nn.functional.mse_loss)
    >>> v = torch.randn(3, dtype=torch.float64)
    >>> bool(torch.allclose(hessian @ v, 2 * x.T @ (x @ v) / 50))
    True
    """

    def __init__(self, module: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: Loss) -> None:
        self.module = prepare(module)
        self.batches = list(batches)
        self.loss = loss
        trained = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        self.names, self.parameters = list(trained), list(trained.values())
        self.size = sum(p.numel() for p in self.parameters)
        self.images = sum(len(x) for x, _ in self.batches)
        self.products = 0
        self._cached: list[Tensor] | None = None
        if not self.parameters:
            raise Unsupported("no parameter requires a gradient, so there is no curvature")
        if min(len(x) for x, _ in self.batches) < 2:
            raise Unsupported("curvature needs batches of at least 2 images")

    @property
    def device(self) -> torch.device:
        return self.parameters[0].device

    @property
    def dtype(self) -> torch.dtype:
        return self.parameters[0].dtype

    def value_and_gradient(self) -> tuple[float, Tensor]:
        """The mean loss, and its gradient as one vector (size,)."""
        value, total = 0.0, torch.zeros(self.size, dtype=torch.float64, device=self.device)
        for x, y in self.batches:
            with _twice_differentiable():
                loss = self.loss(self.module(x), y)
            weight = len(x) / self.images
            value += weight * float(loss.detach())
            total += weight * _flat(torch.autograd.grad(loss, self.parameters, materialize_grads=True)).double()
        return value, total.to(self.dtype)

    def __matmul__(self, v: Tensor) -> Tensor:
        """Hv for v (size,), in the module's dtype.

        Raises:
            Unsupported: an operation of this architecture has no second derivative.
            Failed: the product is not finite.
        """
        self.products += 1
        pieces = _split(v, self.parameters)
        if len(self.batches) == 1:
            if self._cached is None:
                self._cached = self._gradient_graph(*self.batches[0])
            product = self._second(self._cached, pieces, keep=True)
        else:
            total = torch.zeros(self.size, dtype=torch.float64, device=self.device)
            for x, y in self.batches:
                total += len(x) / self.images * self._second(self._gradient_graph(x, y), pieces, keep=False).double()
            product = total.to(self.dtype)
        if not product.isfinite().all():
            raise Failed("a Hessian product is not finite: the loss overflows in this dtype")
        return product

    def _gradient_graph(self, x: Tensor, y: Tensor) -> list[Tensor]:
        with _twice_differentiable():
            loss = self.loss(self.module(x), y)
            return list(torch.autograd.grad(loss, self.parameters, create_graph=True, materialize_grads=True))

    def _second(self, gradient: Sequence[Tensor], pieces: Sequence[Tensor], keep: bool) -> Tensor:
        linked = [(g, v) for g, v in zip(gradient, pieces, strict=True) if g.requires_grad]
        if not linked:
            return torch.zeros(self.size, dtype=self.dtype, device=self.device)
        outputs, vectors = zip(*linked, strict=True)
        try:
            second = torch.autograd.grad(
                outputs, self.parameters, vectors, retain_graph=keep, allow_unused=True, materialize_grads=True
            )
        except (NotImplementedError, RuntimeError) as error:
            if any(words in str(error) for words in ("not implemented", "derivative", "differentiate twice")):
                raise Unsupported(f"no second derivative: {str(error).splitlines()[0]}") from None
            raise
        return _flat(second)

    def forward_over_reverse(self, v: Tensor) -> Tensor:
        """Hv as jvp(grad): the same product by other formulas, for the guard."""
        point = dict(zip(self.names, (p.detach() for p in self.parameters), strict=True))
        tangent = dict(zip(self.names, _split(v, self.parameters), strict=True))
        total = torch.zeros_like(v)
        for x, y in self.batches:

            def mean_loss(parameters: dict[str, Tensor], x: Tensor = x, y: Tensor = y) -> Tensor:
                return self.loss(functional_call(self.module, parameters, (x,)), y)

            with _twice_differentiable():
                product = torch.func.jvp(torch.func.grad(mean_loss), (point,), (tangent,))[1]
            total += len(x) / self.images * _flat([product[name] for name in self.names])
        return total


def guard(hessian: Hessian, images: int = 4) -> dict[str, float]:
    """Check the arithmetic in float64 on a few images; refuse to go on where it does not hold.

    Relative residuals of: the directional derivative (L(t + eu) - L(t - eu)) / 2e against g'u (wrong first derivatives);
    double backward against jvp(grad) (wrong derivative formulas); u'Hv against v'Hu (self-adjointness). They are taken
    beside the weights, not at them: freshly initialised networks sit on the kinks of their ReLUs, where no derivative is.

    Returns:
        The residual of each check.

    Raises:
        Failed: names the check, its residual and its bound.
    """
    x, y = hessian.batches[0]
    targets = y[:images].double() if y.is_floating_point() else y[:images]
    module = copy.deepcopy(hessian.module).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.device)
            p.add_(1e-2 * noise * (p.square().mean().sqrt() + 1e-2))
    exact = Hessian(module, [(x[:images].double(), targets)], hessian.loss)
    u, v = (torch.randn(exact.size, generator=generator, dtype=torch.float64).to(x.device) for _ in range(2))
    u, v = u / u.norm(), v / v.norm()
    hu, hv = exact @ u, exact @ v
    scale = max(float(hu.norm()), float(hv.norm()), 1e-30)
    residuals = {
        "directional derivative": _directional_residual(exact, u),
        "mode agreement": float((hv - exact.forward_over_reverse(v)).norm()) / scale,
        "self-adjointness": abs(float(u @ hv - v @ hu)) / scale,
    }
    for name, residual in residuals.items():
        if not residual <= GUARDS[name]:
            raise Failed(
                f"curvature check '{name}' failed: relative residual {residual:.2g} > {GUARDS[name]:g} in float64"
            )
    return residuals


def _directional_residual(hessian: Hessian, u: Tensor) -> float:
    """The smallest disagreement over three steps: a kink inside one step (ReLU, max-pool) does not fail the check."""
    _, gradient = hessian.value_and_gradient()
    slope = float(gradient @ u)
    (x, y), pieces = hessian.batches[0], _split(u, hessian.parameters)

    def value(step: float) -> float:
        moved = {n: p + step * d for n, p, d in zip(hessian.names, hessian.parameters, pieces, strict=True)}
        with torch.no_grad(), _twice_differentiable():
            return float(hessian.loss(functional_call(hessian.module, moved, (x,)), y))

    scale = max(abs(slope), float(gradient.norm()) / hessian.size**0.5, 1e-30)
    return min(abs((value(e) - value(-e)) / (2 * e) - slope) / scale for e in (1e-4, 1e-5, 1e-6))


def _flat(pieces: Iterable[Tensor]) -> Tensor:
    return torch.cat([piece.reshape(-1) for piece in pieces])


def _split(v: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    return [piece.view_as(p) for piece, p in zip(v.split([p.numel() for p in like]), like, strict=True)]
