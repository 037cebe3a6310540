"""The directions that leave the loss alone, as one space: what of a vector is orthogonal to all of them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from eqbench.symmetries.attention import Pair
from eqbench.symmetries.transformations import Instance, Weights

PASSES, PRECISION = 60, 1e-2  # of conjugate gradients: at most, and the relative residual at which it is done


class Vertical:
    """The span at some weights of all K(c) = sum_i K_i(theta; c_i), over the coefficients c of some instances.

    >>> from torch import nn
    >>> from eqbench.symmetries import dataflow, rescalings
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)).double()
    >>> flow = dataflow.trace(net, torch.rand(2, 3, 1, 1).double())
    >>> theta = {name: p.detach() for name, p in net.named_parameters()}
    >>> vertical = Vertical(rescalings.find(flow), theta)
    >>> v = torch.randn(26).double()
    >>> out = vertical.removed(v, precision=1e-12)
    >>> bool(vertical.pulled(out).norm() < 1e-10 * vertical.pulled(v).norm()), vertical.dimensions
    (True, 4)
    """

    def __init__(self, instances: Sequence[Instance], theta: Weights) -> None:
        """Args:
        theta: the parameters by name, in float64; their order is that of flat vectors.
        """
        self.theta, self.instances = theta, instances
        units = [one.unit for one in instances]
        self.shapes = [unit.shape for unit in units]
        self.dimensions = sum(unit.numel() for unit in units)
        first = next(iter(theta.values()))
        self._c = torch.ones(self.dimensions, dtype=first.dtype, device=first.device, requires_grad=True)
        # Rescalings treat the taps of a kernel alike: with their root sum of squares in their place, A'A is the same.
        bases = {name for one in instances if isinstance(one, Pair) for name in (*one.left.names, *one.right.names)}
        self._short = {
            name: w.flatten(2).norm(dim=2).view(*w.shape[:2], *[1] * (w.ndim - 2))
            if w.ndim > 2 and w[0, 0].numel() > 1 and name not in bases
            else w
            for name, w in theta.items()
        }
        with torch.enable_grad():
            self._k, self._short_k = self._flat(theta, self._c), self._flat(self._short, self._c)

    def _flat(self, theta: Weights, c: Tensor) -> Tensor:
        """A c, flat, for c (dimensions,)."""
        total = dict.fromkeys(theta, torch.zeros((), dtype=c.dtype, device=c.device))
        pieces = c.split([shape.numel() for shape in self.shapes])
        for one, piece, shape in zip(self.instances, pieces, self.shapes, strict=True):
            for name, k in one.direction(theta, piece.view(shape)).items():
                total[name] = total[name] + k
        return torch.cat([piece.expand_as(theta[name]).flatten() for name, piece in total.items()])

    def pulled(self, v: Tensor) -> Tensor:
        """A'v, the inner products of v (parameters,) with every direction."""
        return torch.autograd.grad(self._k, self._c, v.to(self._k), retain_graph=True)[0]

    @torch.no_grad()
    def removed(self, v: Tensor, precision: float = PRECISION) -> Tensor:
        """V - A c with the c that leaves the least, by conjugate gradients on A'A c = A'v, in float64."""
        v = v.double()
        if not self.dimensions:
            return v
        residual = self.pulled(v)
        c, p, size = torch.zeros_like(residual), residual, float(residual.square().sum())
        enough = precision**2 * size
        for _ in range(PASSES):
            if size <= enough:
                break
            image = self._flat(self._short, p)
            step = size / max(float(image.square().sum()), 1e-300)
            (turned,) = torch.autograd.grad(self._short_k, self._c, image, retain_graph=True)
            c, residual = c + step * p, residual - step * turned
            size, before = float(residual.square().sum()), size
            p = residual + size / before * p
        return v - self._flat(self.theta, c)
