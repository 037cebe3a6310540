"""Colour groups: rotations and permutations of the RGB cube, brightness, contrast, saturation and gamma, pixel by pixel.

They act on de-normalised RGB in [0, 1] and are never clipped: `out_of_gamut` tells how many pixels a display could not show.
"""

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from eqbench.groups.base import FiniteGroup, Group, LieGroup

if TYPE_CHECKING:
    from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # Rec. 601, the grey of PIL and torchvision


class Channels(NamedTuple):
    """Channel c of the result is channel order[c] of the image, inverted (1 - value) where inverted[c]."""

    order: tuple[int, int, int]
    inverted: tuple[bool, bool, bool] = (False, False, False)


RGB = Channels((0, 1, 2))


def _product(g: Channels, h: Channels) -> Channels:
    order = tuple(h.order[c] for c in g.order)
    inverted = tuple(h.inverted[c] != i for c, i in zip(g.order, g.inverted, strict=True))
    return Channels((order[0], order[1], order[2]), (inverted[0], inverted[1], inverted[2]))


class ChannelPermutations(FiniteGroup):
    """A group of symmetries of the RGB cube that keep its grey diagonal; or, about another diagonal, its conjugate.

    The diagonals of a cube are all alike, but colours of photographs lie along the grey one.
    """

    exact = True
    spatial = False

    def __init__(self, name: str, orders: Sequence[tuple[int, int, int]], axis: Channels = RGB) -> None:
        """Permutations of the channels in these orders, the identity first, conjugated by `axis`, its own inverse."""
        self.name = name
        self._elements = tuple(_product(axis, _product(Channels(order), axis)) for order in orders)

    def elements(self) -> Sequence[Channels]:
        return self._elements

    def generators(self) -> Sequence[Channels]:
        """A cycle and, for more than its three powers, a transposition: `orders` begins with them."""
        return self._elements[1 : 2 if len(self._elements) == 3 else 3]

    def multiply(self, g: Channels, h: Channels) -> Channels:
        return _product(g, h)

    def keeps_shape(self, g: Channels) -> bool:
        return True

    def key(self, g: Channels) -> Hashable:
        return super().key(g) if g == RGB else g

    def act(self, x: "Tensor", g: Channels) -> "Tensor":
        y = x[..., list(g.order), :, :]
        if any(g.inverted):
            sign = x.new_tensor(g.inverted)[:, None, None]
            y = sign + (1 - 2 * sign) * y
        return y

    def act_kernels(self, w: "Tensor", g: Channels) -> "Tensor":
        """Inversions c -> 1 - c count as c -> -c: the rest of them is a bias."""
        return w[..., list(g.order), :, :] * (1 - 2 * w.new_tensor(g.inverted)[:, None, None])


class ColourGroup(LieGroup):
    """A one-parameter group of maps of colours: its one generator has its name.

    Attributes:
        reach: the largest |t| of a sweep.
    """

    spatial = False
    reach: float

    def generators(self) -> Sequence[str]:
        return (self.name,)

    def sweep(self, generator: str, size: int) -> Sequence[float]:
        """Nine values from -reach to reach."""
        return [self.reach * i / 4 for i in range(-4, 5)]


class Hue(ColourGroup):
    """Rotation of the colours by t about the grey axis (1, 1, 1): exp(tX) with X c = axis x c; cycles RGB at t = 2 pi / 3."""

    name = "hue"
    unit = "rad"

    def act(self, x: "Tensor", g: tuple[str, float]) -> "Tensor":
        """Rodrigues' formula: c cos t + (axis x c) sin t + axis (axis . c) (1 - cos t).

        >>> import torch
        >>> x = torch.rand(3, 2, 2, dtype=torch.float64)
        >>> bool((Hue().act(x, ("hue", 2 * math.pi / 3)) - x[[2, 0, 1]]).abs().max() < 1e-12)
        True
        """
        t = g[1]
        grey = x.mean(-3, keepdim=True)
        return grey + (x - grey) * math.cos(t) + self.velocity(x, g[0]) * math.sin(t)

    def velocity(self, x: "Tensor", generator: str, pixels: int | None = None) -> "Tensor":
        return (x.roll(1, -3) - x.roll(-1, -3)) / math.sqrt(3)

    def sweep(self, generator: str, size: int) -> Sequence[float]:
        """Every 15 degrees of the circle."""
        return [math.radians(15 * i) for i in range(24)]

    def farthest(self, generator: str, size: int) -> float:
        return math.pi

    def subgroups(self) -> Sequence[FiniteGroup]:
        return (ChannelPermutations("rgb_cycle", CYCLE),)


class Brightness(ColourGroup):
    """exp(tX) c = c + t."""

    name = "brightness"
    unit = "of the range [0, 1]"
    reach = 0.2

    def act(self, x: "Tensor", g: tuple[str, float]) -> "Tensor":
        return x + g[1]

    def velocity(self, x: "Tensor", generator: str, pixels: int | None = None) -> "Tensor":
        return x.new_ones(()).expand_as(x)


class Contrast(ColourGroup):
    """exp(tX) c = 1/2 + e^t (c - 1/2)."""

    name = "contrast"
    unit = "log-contrast"
    reach = math.log(2)

    def act(self, x: "Tensor", g: tuple[str, float]) -> "Tensor":
        return 0.5 + math.exp(g[1]) * (x - 0.5)

    def velocity(self, x: "Tensor", generator: str, pixels: int | None = None) -> "Tensor":
        return x - 0.5


class Saturation(ColourGroup):
    """exp(tX) c = l + e^t (c - l) with the luma l = 0.299 R + 0.587 G + 0.114 B, which stays as it is."""

    name = "saturation"
    unit = "log-saturation"
    reach = math.log(2)

    def act(self, x: "Tensor", g: tuple[str, float]) -> "Tensor":
        return x + math.expm1(g[1]) * self.velocity(x, g[0])

    def velocity(self, x: "Tensor", generator: str, pixels: int | None = None) -> "Tensor":
        return x - (x * x.new_tensor(LUMA)[:, None, None]).sum(-3, keepdim=True)


class Gamma(ColourGroup):
    """exp(tX) c = c^(e^t), so that X c = c log c; values below 0 count as 0."""

    name = "gamma"
    unit = "log-exponent"
    reach = math.log(2)

    def act(self, x: "Tensor", g: tuple[str, float]) -> "Tensor":
        return x.clamp(min=0) ** math.exp(g[1])

    def velocity(self, x: "Tensor", generator: str, pixels: int | None = None) -> "Tensor":
        x = x.clamp(min=0)
        return x.xlogy(x)


def out_of_gamut(x: "Tensor") -> "Tensor":
    """The share of pixels of images (B, 3, H, W) with a channel outside [0, 1] by more than rounding: (B,).

    >>> import torch
    >>> out_of_gamut(torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1) + torch.tensor([0.0, 0.2]).view(1, 1, 1, 2)).tolist()
    [0.5]
    """
    return ((x < -1e-6) | (x > 1 + 1e-6)).any(-3).to(x.dtype).mean((-2, -1))


CYCLE = ((0, 1, 2), (2, 0, 1), (1, 2, 0))
ALL = (*CYCLE[:2], (1, 0, 2), CYCLE[2], (0, 2, 1), (2, 1, 0))
YELLOW_BLUE = Channels(RGB.order, (False, False, True))  # carries the black-white diagonal to the blue-yellow one

GROUPS: dict[str, Group] = {
    group.name: group
    for group in (
        ChannelPermutations("rgb_cycle", CYCLE),
        ChannelPermutations("rgb_permutations", ALL),
        ChannelPermutations("rgb_cycle_blue", CYCLE, YELLOW_BLUE),
        ChannelPermutations("rgb_permutations_blue", ALL, YELLOW_BLUE),
        Hue(),
        Brightness(),
        Contrast(),
        Saturation(),
        Gamma(),
    )
}

# The same symmetries of the RGB cube about its blue-yellow diagonal; greys become colours, so read the gap as an upper bound.
PLACEBOS = {"rgb_cycle": "rgb_cycle_blue", "rgb_permutations": "rgb_permutations_blue"}
