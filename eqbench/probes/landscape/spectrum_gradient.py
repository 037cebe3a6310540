"""Where the gradient lies in the spectrum of the Hessian, and how sharp the loss is at its best temperature."""

import math

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from eqbench.curvature.hessian import Hessian
from eqbench.curvature.lanczos import Eigenpairs, extreme_eigenpairs
from eqbench.curvature.objective import Objective
from eqbench.results import Measure
from eqbench.stats import jackknife

PARTS = 8  # of the images, one left out at a time


def gradient_numbers(
    objective: Objective, hessian: Hessian, pairs: Eigenpairs, classes: int, top: int
) -> dict[str, Measure]:
    """|Q_k'g| / |g| for k = top and k = classes, and g'Hg / |g|^2, with the jackknife's error over parts of the images.

    Leaving a part out changes g; eigenvectors Q and, to first order, the product Hg are held.
    """
    gradient = objective.gradient()[1]
    norm = float(gradient.double().norm())
    if norm == 0:
        return dict.fromkeys(
            ("gradient_alignment", "gradient_alignment_classes", "gradient_curvature"),
            Measure(None, reason="the gradient is zero"),
        )
    g = gradient / norm
    vectors = pairs.vectors[:, : max(top, 1)]
    image = hessian @ g

    def facts(v: Tensor) -> Tensor:
        """(g'v, |v|^2, (Hg)'v, Q'v): all that is needed of a gradient."""
        scalars = torch.stack([g.double() @ v.double(), v.double().square().sum(), image.double() @ v.double()])
        return torch.cat([scalars, (vectors.T @ v).double()]).cpu()

    count = min(PARTS, objective.images // 2)
    whole, parts = (
        facts(g),
        [(p.images / objective.images, facts(p.gradient()[1] / norm)) for p in objective.parts(count)],
    )
    left_out = []
    for weight, part in parts:
        square = (1 - 2 * weight * part[0] + weight**2 * part[1]) / (1 - weight) ** 2
        rest = (whole - weight * part) / (1 - weight)
        rest[1] = square
        left_out.append(rest)
    late = None if pairs.converged else "some of the eigenvectors have not converged"

    def alignment(k: int) -> Measure:
        def of(facts: Tensor) -> Tensor:
            return facts[3 : 3 + k].norm() / facts[1].sqrt()

        null = math.sqrt(k / objective.size)
        return _jackknifed(of(whole), torch.stack([of(rest) for rest in left_out]), objective.images, null, late)

    curvature = [(2 * rest[2] - whole[2]) / rest[1] for rest in left_out]
    few = f"needs as many eigenvectors as there are classes, {classes}, and `top` is {top}"
    return {
        "gradient_alignment": alignment(min(top, vectors.shape[1])),
        "gradient_alignment_classes": alignment(classes) if classes <= vectors.shape[1] else Measure(None, reason=few),
        "gradient_curvature": _jackknifed(whole[2], torch.stack(curvature), objective.images),
    }


def _jackknifed(
    value: Tensor, left_out: Tensor, images: int, null: float | None = None, reason: str | None = None
) -> Measure:
    p = len(left_out)
    if p < 2:
        return Measure(float(value), n=images, null=null, reason=reason)
    middle, lo, hi = jackknife(float(value), left_out.double().cpu().numpy())
    hi = hi if null is None else min(hi, 1.0)  # a share is at most one
    return Measure(middle, lo, hi, images, null=null, reason=reason)


def tempered_maximum(objective: Objective, start: Tensor) -> tuple[Measure, int]:
    """The largest eigenvalue of the loss of f / T, T minimising it (Guo et al. 2017, ICML), and products it took.

    Args:
        start: a vector to start from, such as the top eigenvector at T = 1.
    """
    with torch.no_grad():
        logits = torch.cat([objective.logits(x).double() for x, _ in objective.batches])
        labels = torch.cat([y for _, y in objective.batches])
    # The loss is convex in 1 / T: it has a minimum unless it still falls at 1 / T = 0 or at infinity.
    chosen = logits.gather(1, labels[:, None]).squeeze(1)
    if bool((chosen >= logits.max(1).values).all()):
        return Measure(None, reason="every image is right: the loss falls all the way to T = 0"), 0
    if float((chosen - logits.mean(1)).mean()) <= 0:
        return Measure(None, reason="a uniform guess is better at any temperature"), 0
    found = minimize_scalar(lambda s: float(objective.loss(logits * math.exp(-s), labels)), bounds=(-20, 20))
    temperature = math.exp(found.x)
    tempered = Objective(objective.module, objective.batches, lambda f, y: objective.loss(f / temperature, y))
    pairs = extreme_eigenpairs(Hessian(tempered), 1, smallest=0, tolerance=1e-2, max_products=20, start=start, seed=2)
    value, residual = float(pairs.values[0]), float(pairs.residuals[0])
    reason = None if pairs.converged else "not converged to 0.01 in 20 products"
    return Measure(value, value - residual, value + residual, objective.images, reason=reason), pairs.products
