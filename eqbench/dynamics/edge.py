"""The sharpest directions of a loss on a fixed batch, followed from step to step, and the gradient among them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eqbench.curvature.hessian import Hessian
from eqbench.curvature.lanczos import extreme_eigenpairs
from eqbench.curvature.objective import Loss, TrainingObjective
from eqbench.dynamics.conservation import doubles
from eqbench.dynamics.vertical import Vertical
from eqbench.symmetries.transformations import Instance

TOP = 3  # eigenvectors that are followed
COLD, WARM = 24, 6  # Hessian products of the first search, and of those that go on from the last vectors
TOLERANCE = 1e-2  # |Hv - lambda v| / |lambda|, at which a search ends early
FAINT = 1e-12  # |g| / |theta|: below it, a gradient has no direction


class Edge:
    """Warm-started Lanczos on the loss of a fixed batch in training mode, without augmentation or penalty.

    Attributes:
        start: where the next search begins: the sum of the last eigenvectors.
    """

    def __init__(self, x: Tensor, y: Tensor, loss: Loss) -> None:
        self.x, self.y, self.loss = x, y, loss
        self.start: Tensor | None = None

    def measure(self, network: nn.Module, instances: Sequence[Instance], seed: int) -> dict[str, Any]:
        """At the network's weights, which stay: the largest eigenvalues, and the gradient of the same loss among them.

        Args:
            instances: of the symmetries that are projected out: the eigenvectors q_i are taken less what of them lies along
                any of their directions, as g is by itself.
            seed: of the random part of the first vector.

        Returns:
            lambda_max (TOP,) and its `residual` |Hq - lambda q|; `alignment` |P g| / |g|, P onto span{q_i};
            `curvature` g'Hg / |g|^2; `gradient` |g|.

        Raises:
            Unsupported: an operation without a second derivative. Failed: a product is not finite.
        """
        objective = TrainingObjective(network, [(self.x, self.y)], self.loss)
        hessian = Hessian(objective)
        products = COLD if self.start is None else WARM
        pairs = extreme_eigenpairs(
            hessian, TOP, smallest=0, tolerance=TOLERANCE, max_products=products, start=self.start, seed=seed
        )
        self.start = pairs.vectors.sum(1)
        value = {"lambda_max": pairs.values.tolist(), "residual": float(pairs.residuals[0])}
        vertical = Vertical(instances, doubles(zip(objective.names, objective.parameters, strict=True)))
        g = objective.gradient()[1].double()  # it has no part along them
        length = float(g.norm())
        if length <= FAINT * float(objective.theta.double().norm()):
            return value | {"alignment": None, "curvature": None, "gradient": length}
        q = torch.linalg.qr(torch.stack([vertical.removed(q) for q in pairs.vectors.T], 1)).Q
        curvature = float(g @ (hessian @ g.to(objective.dtype)).double()) / length**2
        alignment = float((q.T @ g).norm()) / length
        return value | {"alignment": alignment, "curvature": curvature, "gradient": length}
