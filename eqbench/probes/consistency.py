"""How often the predicted class survives a transformation: Zhang's random crops for translations, orbits and sweeps else.

Every number is a mean over images, so one paired bootstrap gives all intervals. Log-probabilities are stored where they
are few (eqbench.ensembles.pack): ensembles of seeds are made of them.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from eqbench import ensembles
from eqbench.errors import Unsupported
from eqbench.groups import FiniteGroup, Group, LieGroup
from eqbench.groups.translation import crop
from eqbench.metrics import METRICS
from eqbench.probes.base import Finding, Subject, another, check_labels, forward_each, log_mean_exp, mean_entropy
from eqbench.probes.windows import shifting
from eqbench.results import Measure
from eqbench.schema import Consistency
from eqbench.stats import Array, Statistic, at_ones, bootstrap, replicates

REASONS = {
    "consistency_kappa": "all images are in one class: nothing is left to agree on beyond chance",
    "consistency_correct": "no image is classed rightly",
}


def run(subject: Subject, group: FiniteGroup | LieGroup, placebo: Group | None, conf: Consistency) -> Finding:
    """Measure one network on one group.

    Raises:
        Unsupported: fewer classes or images than agreement needs.
        Failed: logits that are not finite.
    """
    families = predictions(subject, group)
    n, classes = families[0][0].shape
    if min(n, classes) < 2:
        raise Unsupported(f"logits {(n, classes)}: agreement needs at least two images and two classes")
    tops = [torch.stack([logits.argmax(-1) for logits in family]).numpy() for family in families]
    log_p = [torch.stack([logits.log_softmax(-1) for logits in family]) for family in families]
    agreeing, other = ensembles.hits(tops), another(n, subject.clusters)
    apart = np.mean([divergence(family[0], family[1:]) for family in log_p], 0)
    unrelated = np.mean([divergence(family[0], family[1:, other]) for family in log_p], 0)
    found: dict[str, tuple[Statistic, Statistic]] = {  # the statistic and its null
        "consistency_same": (lambda w: (w @ agreeing) / w.sum(1), ensembles.chance(tops)),
        "consistency_kappa": (ensembles.kappa(tops), lambda w: np.zeros(len(w))),
        "consistency_js": (lambda w: (w @ apart) / w.sum(1), lambda w: (w @ unrelated) / w.sum(1)),
    }
    if subject.labels is not None:
        check_labels(subject.labels, classes)
        right = [top[0] == subject.labels.numpy() for top in tops]
        same = np.sum([ensembles.hits([top]) * own for top, own in zip(tops, right, strict=True)], 0)
        found["consistency_correct"] = (lambda w: (w @ same) / (w @ np.sum(right, 0)), ensembles.chance(tops, right))

    metrics = {}
    for name, (statistic, null) in found.items():
        value, lo, hi = bootstrap(statistic, n, conf.resamples, subject.clusters)
        reason = None if math.isfinite(value) else REASONS[name]
        kept = replicates(statistic, n, subject.clusters) if METRICS[name].replicated else {}
        metrics[name] = Measure(value, lo, hi, n, null=at_ones(null, n), reason=reason, **kept)
    if sum(family.numel() for family in log_p) <= ensembles.BOUND:
        return Finding(metrics, ensembles.pack([family.numpy() for family in log_p], subject.clusters))
    metrics["ensemble_same_prediction"] = Measure(None, reason=ensembles.UNSTORED)
    return Finding(metrics)


def predictions(subject: Subject, group: FiniteGroup | LieGroup) -> Sequence[Sequence[Tensor]]:
    """Families of logits, float64 (n, classes) each, whose first is compared with the others.

    A finite group's orbit; for a Lie group the sweep of each generator, all translations replaced by Zhang's crops.
    """
    size = subject.size
    if isinstance(group, FiniteGroup):
        return [subject.logits(size, group, group.elements())]
    shifts = shifting(group)
    sweeps = {X: [t for t in group.sweep(X, size) if t] for X in group.generators() if X not in shifts}
    families: list[Sequence[Tensor]] = [
        subject.logits(size, group, [(X, t) for t in [0.0, *values]]) for X, values in sweeps.items()
    ]
    return [crops(subject), *families] if shifts else families


def crops(subject: Subject) -> tuple[Tensor, Tensor]:
    """The logits of two random crops of each image, (n, classes) each: the protocol of Zhang (2019, ICML).

    Crops of 224 px from 256 px at offsets drawn from {0..31}², the same ones each time; other sizes in proportion. His code
    draws one pair of offsets a batch: at seed 0 and batch size 1 it draws these.
    """
    size, margin = subject.size, max(2, round(subject.size / 7))
    offsets = np.random.RandomState(0).randint(margin, size=(subject.n, 2, 2)).tolist()

    def images() -> Iterator[Tensor]:
        start = 0
        for x in subject.batches(size + margin):
            for each in (0, 1):
                places = [pair[each] for pair in offsets[start : start + len(x)]]
                yield torch.stack([crop(image, dy, dx, size) for image, (dy, dx) in zip(x, places, strict=True)])
            start += len(x)

    rows = forward_each(subject.network, images(), subject.device)
    subject.forwards += 2 * subject.n
    return torch.cat(rows[::2]).double(), torch.cat(rows[1::2]).double()


def divergence(still: Tensor, moved: Tensor) -> Array:
    """Mean over g of the Jensen-Shannon divergence of p(x) and p(gx), JS(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2.

    Args:
        still: (n, classes), log p(x). moved: (elements, n, classes), log p(gx).

    Returns:
        (n,), in bits (Lin 1991, IEEE Trans. Inf. Theory).

    >>> p, q = torch.tensor([[[1e-30, 1.0]], [[1.0, 1e-30]]]).log()
    >>> float(divergence(p, q[None])[0])
    1.0
    """
    own = mean_entropy(still)
    each = [mean_entropy(log_mean_exp(torch.stack([still, q]))) - (own + mean_entropy(q)) / 2 for q in moved]
    return torch.stack(each).mean(0).numpy() / math.log(2)
