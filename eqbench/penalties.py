"""Penalties on broken symmetry that training adds to its loss: the twirl form and the Lie form.

Both are of logits less their mean over the classes, on which no prediction depends, and of the network without dropout, in
IEEE float32; only the gradient of the penalty is computed as that of the rest of the step, on a GPU with TF32 where torch
allows it. Batch norm normalises by the batch, as in the rest of the step; its running statistics are left as they are.
Each takes half of the batch twice, so that a step with a penalty costs about two without.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from eqbench.feeding import act
from eqbench.groups import FiniteGroup, Group, LieGroup
from eqbench.probes.base import ieee
from eqbench.schema import Form

STEP = 0.01  # root mean square of the change of pixels, to either side, that the Lie form divides by


def twirl(function: Callable[[Tensor], Tensor], x: Tensor, group: FiniteGroup, generator: torch.Generator) -> Tensor:
    """An unbiased estimate of mean_x mean_g |f(gx) - mean_h f(hx)|^2, from two different random elements an image.

    Var_g f(gx) = (1 - 1/|G|) E_{g != h} |f(gx) - f(hx)|^2 / 2: the part of a squared loss that comes from the lack of
    symmetry, the gap between the loss and that of the twirled network (Shen et al. 2025, TMLR, arXiv:2512.02303).

    Args:
        function: logits (b, classes) of images (b, 3, h, w). x: the images.
    """
    order = len(group.elements())
    first = torch.randint(order, (len(x),), generator=generator)
    second = (first + torch.randint(1, order, (len(x),), generator=generator)) % order
    one, other = function(torch.cat([act(group, x, first), act(group, x, second)])).chunk(2)
    return (1 - 1 / order) * (one - other).square().sum(1).mean() / 2


def lie(function: Callable[[Tensor], Tensor], x: Tensor, group: LieGroup, generator: torch.Generator) -> Tensor:
    """sum_x |L_X f|^2 / sum_x |v_X|^2 along one random generator X: the squared Lie derivative of the logits.

    L_X f = d/dt f(exp(tX) x) = [ f(x + h v_X) - f(x - h v_X) ] / 2h + O(h^2), by central differences along the velocity of
    the images, as forward mode inside backward mode is not right for every layer. |v_X|^2 is a mean over pixels: generators
    count alike whatever their units, as in the probe `lie` (cf. Gruver et al. 2023, ICLR).

    Args:
        function: logits (b, classes) of images (b, 3, h, w). x: the images.
    """
    names = group.generators()
    v = group.velocity(x, names[int(torch.randint(len(names), (), generator=generator))])
    speed = v.square().mean().sqrt().clamp(min=1e-6)  # of images that the group does not move
    h = STEP / speed
    ahead, behind = function(torch.cat([x + h * v, x - h * v])).chunk(2)
    return ((ahead - behind) / (2 * STEP)).square().sum(1).mean()


FORMS: dict[Form, Callable[..., Tensor]] = {Form.twirl: twirl, Form.lie: lie}


def penalty(network: nn.Module, x: Tensor, form: Form, group: Group, generator: torch.Generator) -> Tensor:
    """The penalty, before its weight, of a network in training mode on half of a batch; its graph is kept.

    Args:
        x: a batch in random order. generator: on the CPU, so that what is drawn does not depend on the device.
    """

    def centred(images: Tensor) -> Tensor:
        logits = network(images)
        return logits - logits.mean(1, keepdim=True)

    with _noiseless(network), ieee():
        return FORMS[form](centred, x[: (len(x) + 1) // 2], group, generator)


@contextmanager
def _noiseless(network: nn.Module) -> Iterator[None]:
    """Nothing random inside; batch norm by the batch, without running statistics. In training mode again outside."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    tracking = [norm.track_running_stats for norm in norms]
    network.eval()
    for norm in norms:
        norm.train()
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, tracked in zip(norms, tracking, strict=True):
            norm.track_running_stats = tracked
        network.train()  # and without what some networks cache in evaluation mode
