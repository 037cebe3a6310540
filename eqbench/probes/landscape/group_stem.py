"""The pairs of filters that see the image, each the other's image under a group."""

from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from eqbench.groups import FiniteGroup
from eqbench.groups.weights import act_on_weights

DRAWS = 8  # random stems


def stem_pairing(network: nn.Module, group: FiniteGroup, g: Any) -> tuple[float, float] | None:
    """The best pairing of the filters that see the image with their own images, and the same of random filters.

    max_P <T_g W, P W> / |W|^2, a linear assignment: 1 if every filter has its mirror image among the others.

    Returns:
        The value and its null; None: no convolution sees the image.

    >>> from eqbench.groups import get
    >>> from eqbench.groups.lattice import HFLIP
    >>> stem = nn.Conv2d(3, 8, 3)
    >>> with torch.no_grad():
    ...     _ = stem.weight[4:].copy_(stem.weight[:4].flip(-1))
    >>> value, null = stem_pairing(stem, get("hflip"), HFLIP)
    >>> abs(value - 1) < 1e-6, null < 0.8
    (True, True)
    """
    convs = {f"{n}.weight".lstrip(".") for n, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    seeing = (n for n, p in network.named_parameters() if n in convs and p.shape[1] == 3)
    key = next(seeing, None)
    if key is None:
        return None

    def best(kernels: Tensor) -> float:
        w, moved = (z.flatten(1) for z in (kernels, act_on_weights(network, group, g, {key: kernels})[key]))
        likeness = (moved @ w.T).cpu().numpy()
        return float(likeness[linear_sum_assignment(likeness, maximize=True)].sum() / w.square().sum())

    own = network.get_parameter(key).detach().double()
    generator = torch.Generator().manual_seed(0)
    chance = [best(torch.randn(own.shape, generator=generator, dtype=torch.float64).to(own)) for _ in range(DRAWS)]
    return best(own), float(np.mean(chance))
