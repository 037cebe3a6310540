"""The contracts of groups acting on images: finite ones by their elements, Lie groups by their generators."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor


class Group(ABC):
    """A group acting on images (..., 3, H, W) with values in [0, 1], before normalisation.

    Attributes:
        name: as in conf/group/<id>.yaml's `action`; the name of the class, unless it says another.
        kind: `finite` (its elements are listed) or `continuous` (it has generators); which probes take it.
        exact: whether the action maps pixels to pixels, without interpolation.
        interpolation: what stands between pixels, in words; "none" where the action is exact, with its seams.
        spatial: whether it moves pixels; a group that does not, mixes the colours of each pixel and acts trivially on
            feature maps.
    """

    name: str
    kind: ClassVar[str]
    exact: bool
    interpolation: str = "none"
    spatial: bool = True

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.name = vars(cls).get("name", cls.__name__)

    @abstractmethod
    def act(self, x: "Tensor", g: Any) -> "Tensor":
        """G x for images.

        Raises:
            Misfit: the group does not act on images of this shape.
        """

    def key(self, g: Any) -> Hashable:
        """What stands for the action of g: equal across groups only where the actions are equal."""
        return self.name, str(sorted(vars(self).items())), g  # groups of one class differ by their attributes

    @abstractmethod
    def keys(self) -> set[Hashable]:
        """The key of every element of a finite group; of a continuous one, those of its finite subgroups."""


class FiniteGroup(Group):
    """A finite group G, `act(x, gh) = act(act(x, h), g)`."""

    kind = "finite"

    @abstractmethod
    def elements(self) -> Sequence[Any]:
        """Every element once, the identity first; hashable."""

    @abstractmethod
    def generators(self) -> Sequence[Any]:
        """Elements that generate the group."""

    @abstractmethod
    def multiply(self, g: Any, h: Any) -> Any:
        """The product gh: first h, then g."""

    @abstractmethod
    def keeps_shape(self, g: Any) -> bool:
        """Whether g maps oblong images to images of the same height and width."""

    def act_features(self, z: "Tensor", g: Any, pixels: int | None = None) -> "Tensor":
        """G z for feature maps (B, C, h, w): the same movement of positions; colours have none.

        Args:
            pixels: the side of the image that z was computed from, for groups whose movement depends on it.

        Raises:
            Misfit: the group does not move the cells of a map of this shape.
        """
        return self.act(z, g) if self.spatial else z

    def act_kernels(self, w: "Tensor", g: Any) -> "Tensor":
        """G w for convolution kernels (out, in, h, w): conv(g x, g w) = g conv(x, w), where the grid allows.

        Shifts leave kernels alone; a group that mirrors or turns says so here, and so gets a symmetrised twin. A group of
        colours acts on kernels of images (in = 3) in units of RGB.
        """
        return w

    def key(self, g: Any) -> Hashable:
        return "identity" if g == self.elements()[0] else super().key(g)

    def keys(self) -> set[Hashable]:
        return {self.key(g) for g in self.elements()}

    def inverse(self, g: Any) -> Any:
        """The element h with hg = e."""
        identity = self.elements()[0]
        return next(h for h in self.elements() if self.multiply(h, g) == identity)


class LieGroup(Group):
    """A connected group, through its one-parameter subgroups exp(tX), one a generator X; an element is (X, t).

    `act(x, (X, t))` is exp(tX) x, and values are never clipped: tangents would break at the ends of [0, 1].

    Attributes:
        unit: of t: "px", "rad", ...
    """

    kind = "continuous"
    exact = False
    unit: str

    @abstractmethod
    def generators(self) -> Sequence[str]:
        """Names of the generators, unique across groups, e.g. `translation_x`."""

    def round_trip(self, x: "Tensor", g: tuple[str, float]) -> "Tensor":
        """exp(-tX) exp(tX) x: what resampling there and back again leaves of x, shown as `act` shows it."""
        return self.act(self.act(x, g), (g[0], -g[1]))

    def filled(self, x: "Tensor", g: tuple[str, float]) -> "Tensor":
        """exp(tX) x to be trained on: where `act` shows a part of the image alone, all of it, whatever fills its corners."""
        return self.act(x, g)

    def subgroups(self) -> Sequence[FiniteGroup]:
        """Those of the finite groups of `eqbench.groups` whose elements are among its own."""
        return ()

    def keys(self) -> set[Hashable]:
        return set().union(*(group.keys() for group in self.subgroups()))

    @abstractmethod
    def velocity(self, x: "Tensor", generator: str, pixels: int | None = None) -> "Tensor":
        """d/dt exp(tX) x at t = 0: same shape and dtype as x; linear in x where the group is spatial.

        Args:
            x: images, or feature maps (B, C, h, w) of a spatial group.
            pixels: the side of the image that a feature map was computed from, so that its t is in the same unit; None:
                x is an image.
        """

    @abstractmethod
    def sweep(self, generator: str, size: int) -> Sequence[float]:
        """The t at which a sweep of images of `size` px measures the finite action, 0 among them."""

    def farthest(self, generator: str, size: int) -> float:
        """The largest |t| to train on with images of `size` px: as far as a sweep goes, to either side."""
        return max(abs(t) for t in self.sweep(generator, size))
