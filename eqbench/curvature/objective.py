"""The mean loss of a network over images, as a function of one vector of parameters."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from eqbench import functional
from eqbench.errors import Unsupported

NEGLIGIBLE = 1e-30  # the norms' eps where a symmetry is exact but for it
Loss = Callable[[Tensor, Tensor], Tensor]  # (logits (B, C), targets) -> mean over B, a scalar


@dataclass(eq=False)
class _Single(TorchFunctionMode):
    """What a network asks to compute in float32 whatever it is given (`x.float()`), in its own precision."""

    dtype: torch.dtype

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            return args[0].to(self.dtype)
        return func(*args, **(kwargs or {}))


@contextmanager
def twice_differentiable(dtype: torch.dtype) -> Iterator[None]:
    """Fused attention kernels have no second derivative: use the plain one; and keep to the precision that is asked for."""
    with sdpa_kernel(SDPBackend.MATH), _Single(dtype):
        yield


class _HardSigmoid(nn.Module):
    """relu6(x + 3) / 6: the same function as nn.Hardsigmoid, which lacks a double backward."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu6(x + 3) / 6


def prepare(module: nn.Module, batch_statistics: bool = False) -> nn.Module:
    """A copy in evaluation mode that can be differentiated twice.

    nn.Hardsigmoid is replaced by an equal form. With `batch_statistics`, batch norms forget their running statistics and
    use those of the batch, as in training; dropout and stochastic depth stay off.
    """
    module = copy.deepcopy(module)
    for parent in module.modules():
        for name, child in list(parent._modules.items()):  # named_children names a shared module once
            if isinstance(child, nn.Hardsigmoid):
                setattr(parent, name, _HardSigmoid())
            elif isinstance(child, _BatchNorm) and batch_statistics:
                child.running_mean = child.running_var = None
    return module.train().eval()


class Objective:
    """L(theta) = sum_b (n_b / N) l(f(x_b; theta), y_b): the mean loss over all images of all batches.

    theta is one vector (size,) of every parameter that requires a gradient, in the order of `named_parameters`; what is
    not given means the network's own weights. Nothing here changes them.

    Args:
        module: network that maps x to logits; copied, see `prepare`.
        batches: (x, y) pairs on the module's device, at least 2 images each: with one, batch norm's backward is wrong on
            CPUs.
        loss: the mean loss of a batch.
        batch_statistics: batch norms as in training, each batch by its own statistics.

    Raises:
        Unsupported: no parameter requires a gradient, one is of half precision, or a batch of one image.

    >>> x, y = torch.randn(50, 3, dtype=torch.float64), torch.randn(50, 1, dtype=torch.float64)
    >>> linear = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    >>> objective = Objective(linear, [(x, y)], nn.functional.mse_loss)
    >>> best = torch.linalg.lstsq(x, y).solution.ravel()
    >>> objective.value(best) < objective.value()
    True
    >>> bool(objective.gradient(best)[1].norm() < 1e-12)
    True
    """

    def __init__(
        self,
        module: nn.Module,
        batches: Iterable[tuple[Tensor, Tensor]],
        loss: Loss = nn.functional.cross_entropy,
        batch_statistics: bool = False,
    ) -> None:
        self.module = prepare(module, batch_statistics)
        self.batches = list(batches)
        self.loss = loss
        trained = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        self.names, self.parameters = list(trained), list(trained.values())
        self.size = sum(p.numel() for p in self.parameters)
        self.images = sum(len(x) for x, _ in self.batches)
        if not self.parameters:
            raise Unsupported("no parameter requires a gradient, so there is no curvature")
        coarse = {str(p.dtype) for p in self.parameters} - {"torch.float32", "torch.float64"}
        if coarse:
            raise Unsupported(f"curvature needs weights in float32 or float64, not {', '.join(sorted(coarse))}")
        if min(len(x) for x, _ in self.batches) < 2:
            raise Unsupported("curvature needs batches of at least 2 images")

    @property
    def device(self) -> torch.device:
        return self.parameters[0].device

    @property
    def dtype(self) -> torch.dtype:
        return self.parameters[0].dtype

    @property
    def theta(self) -> Tensor:
        """The network's own weights, (size,)."""
        return self.flat(p.detach() for p in self.parameters)

    def flat(self, pieces: Iterable[Tensor]) -> Tensor:
        """One vector (size,) from a tensor a parameter."""
        return torch.cat([piece.reshape(-1) for piece in pieces])

    def split(self, v: Tensor) -> list[Tensor]:
        """The vector's part for each parameter, as views of its shape."""
        sizes = [p.numel() for p in self.parameters]
        return [piece.view_as(p) for piece, p in zip(v.split(sizes), self.parameters, strict=True)]

    def named(self, v: Tensor) -> dict[str, Tensor]:
        """The vector's part for each parameter, by name."""
        return dict(zip(self.names, self.split(v), strict=True))

    def logits(self, x: Tensor, theta: Tensor | dict[str, Tensor] | None = None) -> Tensor:
        """f(x; theta), differentiable; theta as a vector or by name."""
        self.module.train().eval()  # empties the attention-bias caches of LeViT and its kin, which hide a parameter
        with twice_differentiable(self.dtype):
            if theta is None:
                return self.module(x)
            return functional.call(self.module, self.named(theta) if isinstance(theta, Tensor) else theta, x)

    @torch.no_grad()
    def value(self, theta: Tensor | None = None) -> float:
        """L(theta), summed over batches in float64."""
        return sum(len(x) / self.images * float(self.loss(self.logits(x, theta), y)) for x, y in self.batches)

    def gradient(self, theta: Tensor | None = None) -> tuple[float, Tensor]:
        """L(theta), and its gradient as one vector (size,), summed over batches in float64."""
        value, total = 0.0, torch.zeros(self.size, dtype=torch.float64, device=self.device)
        leaves = self.parameters if theta is None else [piece.requires_grad_() for piece in self.split(theta.clone())]
        for x, y in self.batches:
            named = None if theta is None else dict(zip(self.names, leaves, strict=True))
            loss = self.loss(self.logits(x, named), y)
            weight = len(x) / self.images
            value += weight * float(loss.detach())
            total += weight * self.flat(torch.autograd.grad(loss, leaves, materialize_grads=True)).double()
        return value, total.to(self.dtype)

    def network(self, theta: Tensor) -> nn.Module:
        """A copy of the network with these weights (size,)."""
        module = copy.deepcopy(self.module.train().eval())  # without caches, which cannot be copied
        with torch.no_grad():
            for name, piece in self.named(theta).items():
                module.get_parameter(name).copy_(piece)
        return module

    def first(self, images: int) -> "Objective":
        """The same loss over the first images of the first batch alone."""
        x, y = self.batches[0]
        return self._copy(self.module, [(x[:images], y[:images])])

    def parts(self, count: int) -> "Iterator[Objective]":
        """The same loss over each of `count` disjoint parts, of every `count`-th image, in batches no larger than the first."""
        x, y = (torch.cat(tensors) for tensors in zip(*self.batches, strict=True))
        for i in range(count):
            cuts = max(1, min(-(-len(x[i::count]) // len(self.batches[0][0])), len(x[i::count]) // 2))
            pieces = zip(x[i::count].tensor_split(cuts), y[i::count].tensor_split(cuts), strict=True)
            yield self._copy(self.module, list(pieces))

    def double(self) -> "Objective":
        """The same loss in float64, where identities are checked."""
        batches = [(x.double(), y.double() if y.is_floating_point() else y) for x, y in self.batches]
        return self._copy(copy.deepcopy(self.module.train().eval()).double(), batches)

    def without_eps(self) -> "Objective":
        """The same with the eps of norms that follow their input negligible: beside it S9, S11 and S12 are exact."""
        module = copy.deepcopy(self.module.train().eval())  # a cached attention bias cannot be copied
        for layer in module.modules():
            fixed = isinstance(layer, _BatchNorm) and layer.running_var is not None
            if isinstance(getattr(layer, "eps", None), float) and not fixed:
                layer.eps = NEGLIGIBLE  # type: ignore[assignment]
        return self._copy(module, self.batches)

    def _copy(self, module: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> "Objective":
        module.train().eval()  # without caches, which cannot be copied
        return type(self)(module, batches, self.loss)  # a prepared module stays prepared


class TrainingObjective(Objective):
    """The same loss in training mode: each batch by its own statistics, dropout by the same draws each time."""

    def __init__(
        self, module: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: Loss = nn.functional.cross_entropy
    ) -> None:
        super().__init__(module, batches, loss, batch_statistics=True)

    def logits(self, x: Tensor, theta: Tensor | dict[str, Tensor] | None = None) -> Tensor:
        """f(x; theta) as in a step of training; the global random state is left as it was."""
        named = self.named(theta) if isinstance(theta, Tensor) else theta or {}
        self.module.train()
        with twice_differentiable(self.dtype), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            torch.manual_seed(0)
            return functional.call(self.module, named, x)
