"""Projected gradient ascent within a box around each image, by the Adversarial Robustness Toolbox."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from eqbench.probes.base import Subject, forward_each
from eqbench.stats import Array

REACH = 2.5  # lengths of all steps together, in eps: enough to cross the box (Madry et al. 2018)


class Logits(nn.Module):
    """A function of images as a module that has no weights: who trains, zeroes or moves it leaves the network alone."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def strongest(subject: Subject, labels: Tensor, classes: int, standing: Array, eps: float, steps: int) -> Array:
    """Which images are still classed rightly at x' = argmax CE(f(x'), y) over |x' - x|_inf <= eps, x' in [0, 1]: (n,).

    x' is what sign-gradient ascent in `steps` steps of 2.5 eps / steps from x finds (Madry et al. 2018, ICLR), without a
    random start: the same on every device. It is computed in float32 and judged in the network's dtype.

    Args:
        labels: (n,) class indices. standing: (n,), 1 for the images that are attacked, 0 for those already lost.

    Raises:
        Failed: logits that are not finite.
    """
    from art.attacks.evasion import ProjectedGradientDescentPyTorch  # seconds of imports
    from art.estimators.classification import PyTorchClassifier

    like = next(subject.network.parameters(), torch.empty(0))

    def logits(x: Tensor) -> Tensor:
        subject.forwards += len(x)
        return subject.network(x.to(like.dtype))

    left = standing > 0
    classifier = PyTorchClassifier(
        Logits(logits),
        nn.CrossEntropyLoss(),
        input_shape=(3, subject.size, subject.size),
        nb_classes=classes,
        clip_values=(0.0, 1.0),
        device_type="cpu" if subject.device.type == "cpu" else "gpu",
    )

    def images() -> Iterator[Tensor]:
        start = 0
        for batch in subject.batches(subject.size):
            part = slice(start, start := start + len(batch))
            chosen = torch.from_numpy(left[part])
            if not chosen.any():
                continue
            attack = ProjectedGradientDescentPyTorch(
                classifier,
                norm=np.inf,
                eps=eps,
                eps_step=REACH * eps / steps,
                max_iter=steps,
                batch_size=len(batch),
                verbose=False,
            )
            with torch.enable_grad():
                found = attack.generate(batch[chosen].float().numpy(), labels[part][chosen].numpy())
            yield torch.from_numpy(found).to(like.dtype)

    kept = np.zeros(len(standing))
    with frozen(subject.network):
        rows = forward_each(subject.network, images(), subject.device) if left.any() else []
    subject.forwards += int(left.sum())
    if rows:
        kept[left] = (torch.cat(rows).argmax(-1) == labels[torch.from_numpy(left)]).double().numpy()
    return kept


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Inside, no weight collects a gradient."""
    trained = [p for p in network.parameters() if p.requires_grad]
    try:
        for p in trained:
            p.requires_grad_(False)
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)
