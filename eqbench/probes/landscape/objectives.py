"""The objective of a subject: its images and classes as the loss whose landscape is probed."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from eqbench.curvature.objective import Objective
from eqbench.probes.base import Subject, check_labels, forward_each


def objective_of(subject: Subject, micro_batch: int, batch_statistics: bool = False) -> Objective:
    """The mean cross-entropy over the subject's images, without weight decay, in batches of `micro_batch`.

    Where there are no labels, the classes are those that the network itself predicts.

    Raises:
        Unsupported: the network gives no logits, or has no place for a label.
    """
    images = torch.cat(list(subject.batches(subject.size)))
    logits = torch.cat(forward_each(subject.network, images.split(micro_batch), subject.device))
    subject.forwards += len(images)
    labels = logits.argmax(1) if subject.labels is None else subject.labels
    check_labels(labels, logits.shape[1])
    return Objective(subject.network, _batches(subject, images, labels, micro_batch), batch_statistics=batch_statistics)


def _batches(subject: Subject, images: Tensor, labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The images in batches of `size`; a last one of a single image joins the one before it."""
    cuts = [*range(0, len(images), size), len(images)]
    if len(cuts) > 2 and cuts[-1] - cuts[-2] == 1:
        del cuts[-2]
    for start, end in pairwise(cuts):
        yield images[start:end].to(subject.device), labels[start:end].to(subject.device)
