"""The sharpest direction of a loss on a fixed batch, followed from step to step, and the gradient along it."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from eqbench.curvature.hessian import Hessian
from eqbench.curvature.lanczos import extreme_eigenpairs
from eqbench.curvature.objective import Loss, TrainingObjective
from eqbench.dynamics.conservation import doubles
from eqbench.dynamics.vertical import Vertical
from eqbench.symmetries.transformations import Instance

# Hessian products of the first search, and of those that go on from the last vector: enough for lambda_max to a percent a
# hundred steps later; further eigenvectors would take three times as many.
COLD, WARM = 40, 7
TOLERANCE = 1e-2  # |Hv - lambda v| / |lambda|, at which a search ends early
FAINT = 1e-12  # |g| / |theta|: below it, a gradient has no direction


class Edge:
    """Warm-started Lanczos on the loss of a fixed batch in training mode, without augmentation or penalty.

    Attributes:
        start: where the next search begins: the last eigenvector.
    """

    def __init__(self, x: Tensor, y: Tensor, loss: Loss) -> None:
        self.x, self.y, self.loss = x, y, loss
        self.start: Tensor | None = None

    def measure(self, network: nn.Module, instances: Sequence[Instance], seed: int) -> dict[str, Any]:
        """At the network's weights, which stay: the largest eigenvalue, and how the gradient of the same loss lies to it.

        Args:
            instances: of the symmetries that are projected out: the eigenvector q is taken less what of it lies along any
                of their directions, as g is by itself.
            seed: of the random part of the first vector.

        Returns:
            `lambda_max` and its `residual` |Hq - lambda q|; `alignment` |q.g| / |q||g|; `curvature` g'Hg / |g|^2;
            `gradient` |g|.

        Raises:
            Unsupported: an operation without a second derivative. Failed: a product is not finite.
        """
        objective = TrainingObjective(network, [(self.x, self.y)], self.loss)
        hessian = Hessian(objective)
        products = COLD if self.start is None else WARM
        pairs = extreme_eigenpairs(
            hessian, 1, smallest=0, tolerance=TOLERANCE, max_products=products, start=self.start, seed=seed
        )
        self.start = pairs.vectors[:, 0]
        value = {"lambda_max": float(pairs.values[0]), "residual": float(pairs.residuals[0])}
        vertical = Vertical(instances, doubles(zip(objective.names, objective.parameters, strict=True)))
        g = objective.gradient()[1].double()  # it has no part along them
        length = float(g.norm())
        if length <= FAINT * float(objective.theta.double().norm()):
            return value | {"alignment": None, "curvature": None, "gradient": length}
        q = vertical.removed(self.start)
        curvature = float(g @ (hessian @ g.to(objective.dtype)).double()) / length**2
        alignment = abs(float(q @ g)) / length / max(float(q.norm()), 1e-300)
        return value | {"alignment": alignment, "curvature": curvature, "gradient": length}
