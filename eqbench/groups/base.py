"""The contract of a finite group acting on images."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class FiniteGroup(ABC):
    """A finite group G acting on images, `act(x, gh) = act(act(x, h), g)`.

    Attributes:
        name: as in conf/group/<id>.yaml's `action`.
        exact: whether the action maps pixels to pixels, without interpolation.
    """

    name: str
    exact: bool

    @abstractmethod
    def elements(self) -> Sequence[Any]:
        """Every element once, the identity first; hashable, and equal across groups where the action is equal."""

    @abstractmethod
    def generators(self) -> Sequence[Any]:
        """Elements that generate the group."""

    @abstractmethod
    def multiply(self, g: Any, h: Any) -> Any:
        """The product gh: first h, then g."""

    @abstractmethod
    def keeps_shape(self, g: Any) -> bool:
        """Whether g maps oblong images to images of the same height and width."""

    @abstractmethod
    def act(self, x: "Tensor", g: Any) -> "Tensor":
        """G x for images (..., H, W) with values in [0, 1], before normalisation.

        Raises:
            UserError: the group does not act on images of this shape.
        """
