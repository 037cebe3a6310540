"""Networks that are one function of an image and several of timm's in weights or in forward passes: means of logits."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from eqbench import groups
from eqbench.groups import FiniteGroup


class Combined(nn.Module, ABC):
    """The mean logits of several forward passes; of its images and classes it says what its first network says.

    Attributes:
        parts: the networks, which take normalised images. recipe: how it is put together again from them, for config.json.
    """

    recipe: dict[str, Any]

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        first: Any = parts[0]
        self.pretrained_cfg, self.num_classes = first.pretrained_cfg, first.num_classes

    @property
    def first(self) -> nn.Module:
        """One of the networks: what says the architecture."""
        return self.parts[0]

    @abstractmethod
    def reason(self) -> str:
        """Why what is read from one network's weights or layers cannot be read from this."""


class Ensemble(Combined):
    """f(x) = mean_k f_k(x): logits, as in Gerken & Kessel (2024, ICML).

    >>> from eqbench.models import init_state
    >>> from eqbench.schema import Model
    >>> nets = [init_state(Model("test_resnet", "random"), 5, seed).eval() for seed in range(3)]
    >>> x = torch.rand(2, 3, 32, 32)
    >>> bool((Ensemble(nets)(x) - sum(net(x) for net in nets) / 3).abs().max() < 1e-6)
    True
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__(parts)
        self.recipe = {"kind": "ensemble", "members": len(parts)}

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of normalised images (B, 3, H, W)."""
        return torch.stack([part(x) for part in self.parts]).mean(0)

    def reason(self) -> str:
        return f"an ensemble of {len(self.parts)} networks has {len(self.parts)} times their weights and layers: measure its members"


class Twirled(Combined):
    """f_G(x) = mean_g f(gx), the projection of f on the invariant functions: f_G(hx) = f_G(x) for every h of G.

    Args:
        action, file: of the finite group, as in conf/group.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(self, part: nn.Module, action: str, file: str | None = None) -> None:
        super().__init__([part])
        self.recipe = {"kind": "twirled", "action": action, "file": file}
        self.group: FiniteGroup = groups.get_finite(action, file)
        seen = resolve_model_data_config(part)
        for name in ("mean", "std"):
            values = torch.tensor(seen[name], dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(f"_{name}", values, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of normalised images (B, 3, H, W)."""
        elements = self.group.elements()
        if self.group.exact and self.group.spatial:  # moves pixels whole: normalised ones as well as others
            return torch.stack([self.first(self.group.act(x, g)) for g in elements]).mean(0)
        images = x * self._std + self._mean
        moved = (self.group.act(images, g) for g in elements)
        return torch.stack([self.first((one - self._mean) / self._std) for one in moved]).mean(0)

    def reason(self) -> str:
        return f"the mean over {len(self.group.elements())} transformed images is no layer of the network inside: measure that one"


def build(recipe: dict[str, Any], parts: Sequence[nn.Module]) -> Combined:
    """What a `recipe` says, of these networks.

    Raises:
        KeyError: it says nothing that is known. UserError: it names a group that does not exist.
    """
    if recipe["kind"] == "ensemble":
        return Ensemble(parts)
    if recipe["kind"] == "twirled":
        return Twirled(parts[0], recipe["action"], recipe["file"])
    raise KeyError(recipe["kind"])
