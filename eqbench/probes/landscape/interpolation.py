"""The loss on the straight way between two networks' weights, and its barrier, with and without matched channels."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eqbench.curvature.objective import Objective
from eqbench.errors import Unsupported
from eqbench.groups.twin import reset_batch_norm
from eqbench.probes.base import Subject
from eqbench.results import Measure
from eqbench.schema import Slices
from eqbench.stats import Array, bootstrap
from eqbench.symmetries.permutation import Spaces, apply, find_spaces

Labelled = Sequence[tuple[Tensor, Tensor]]  # (images, classes) of each batch
AS_IT_IS, MATCHED, RANDOM = "as it is", "matched", "random"  # orders of the other network's channels
OVERFLOW = "the loss is not finite on the way"


def interpolations(
    subject: Subject, objective: Objective, conf: Slices
) -> tuple[dict[str, Measure], list[dict[str, Any]]]:
    """Barriers on the way to the initial weights and to another seed's, as they are and with matched channels.

    Returns:
        The metrics, each with the barrier to the other network with channels in random order as its null, and the mean
        losses on each way.
    """
    metrics: dict[str, Measure] = {}
    curves: list[dict[str, Any]] = []
    times = np.linspace(0, 1, conf.path_points)
    spaces, refusal = _spaces(subject.network, objective.batches[0][0]) if subject.others else (None, None)
    seeds = [name for name in subject.others if name != "init"]
    for kind, keys, missing in (
        ("init", ["init"] * ("init" in subject.others), "there are no initial weights beside these"),
        ("seed", seeds[:1], "there are no weights of another seed"),
    ):
        found = dict.fromkeys((AS_IT_IS, MATCHED), Measure(None, reason=refusal if keys else missing))
        for key in keys:
            other = subject.others[key]().to(subject.device).eval()
            ways = paths(subject.network, other, objective.batches, times, spaces)
            null = float(barriers(np.ones((1, subject.n)), ways[RANDOM], times)[0]) if RANDOM in ways else None
            for order, losses in ways.items():
                found[order] = _barrier(losses, times, null, subject, conf.resamples)
                curves.append({"to": key, "order": order, "losses": losses.mean(1).tolist()})
        metrics[f"barrier_{kind}"], metrics[f"barrier_{kind}_matched"] = found[AS_IT_IS], found[MATCHED]
    return metrics, curves


def _spaces(network: nn.Module, x: Tensor) -> tuple[Spaces | None, str | None]:
    """The network's hidden-channel permutations, or why there are none."""
    try:
        return find_spaces(network, x[:2]), None
    except Unsupported as error:
        return None, str(error)


def paths(
    network: nn.Module, other: nn.Module, batches: Labelled, times: Array, spaces: Spaces | None
) -> dict[str, Array]:
    """The losses (T, n) on the way to the other network, by the order of its channels."""
    losses = {AS_IT_IS: path_losses(network, other, batches, times)}
    if spaces is not None:
        a, b = ({name: p.detach() for name, p in one.named_parameters()} for one in (network, other))
        order = spaces.match(a, b)
        kept = all(bool((pi.cpu() == torch.arange(len(pi))).all()) for pi in order.values())
        losses[MATCHED] = losses[AS_IT_IS] if kept else path_losses(network, apply(other, order), batches, times)
        losses[RANDOM] = path_losses(network, apply(other, spaces.random(0)), batches, times)
    return losses


@torch.no_grad()
def path_losses(start: nn.Module, end: nn.Module, batches: Labelled, times: Array) -> Array:
    """The loss of each image at (1 - t) a + t b, (len(times), n), in the networks' dtype; neither is changed.

    Batch-norm statistics are taken anew from these images at every t, the ends too: those of an interpolated network are
    not the interpolated ones (Jordan et al. 2023, ICLR: REPAIR, here for batch norms alone).
    """
    module = copy.deepcopy(start)
    pairs = list(zip(module.parameters(), start.parameters(), end.parameters(), strict=True))
    rows = []
    for t in times.tolist():
        for p, a, b in pairs:
            p.copy_((1 - t) * a + t * b)
        module.train().eval()  # empties caches of parameters
        reset_batch_norm(module, (x for x, _ in batches))
        each = [nn.functional.cross_entropy(module(x).double(), y, reduction="none") for x, y in batches]
        rows.append(torch.cat(each).cpu().numpy())
    return np.stack(rows)


def barriers(weights: Array, losses: Array, times: Array) -> Array:
    """The largest L(t) - ((1 - t) L(0) + t L(1)), (B,), for weights (B, n) on the images; losses (T, n), ends with them.

    Frankle et al. 2020, ICML. It is at least 0, which the ends have.

    >>> times = np.array([0.0, 0.5, 1.0])
    >>> barriers(np.ones((1, 2)), np.array([[1.0, 1], [2, 4], [3, 1]]), times).tolist()
    [1.5]
    """
    mean = weights @ losses.T / weights.sum(1, keepdims=True)
    chord = (1 - times) * mean[:, :1] + times * mean[:, -1:]
    return np.asarray((mean - chord).max(1))


def _barrier(losses: Array, times: Array, null: float | None, subject: Subject, resamples: int) -> Measure:
    def statistic(w: Array) -> Array:
        return barriers(w, losses, times)

    value, lo, hi = bootstrap(statistic, subject.n, resamples, subject.clusters)
    return Measure(value, lo, hi, subject.n, null=null, reason=None if np.isfinite(value) else OVERFLOW)
