"""What a small figure of one network is (no torch)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from eqbench.columns import number
from eqbench.config import Cell
from eqbench.results import Result

Own = Sequence[tuple[Cell, Result]]  # the finished cells of one network on one data set, the trained ones first

SERIES = 8  # looks `s0` … `s7` of models.css
WORDS = {"init": "untrained", "final": "trained"}


@dataclass(frozen=True)
class Panel:
    """One kind of figure of one network: what to write above its charts and below them."""

    kind: str
    heading: str
    charts: list[tuple[str, Markup]]  # (what a chart shows, the chart)
    note: str
    table: Markup | None = None

    @property
    def brief(self) -> "Panel":
        """It with no more than its first chart."""
        return replace(self, charts=self.charts[:1])

    @property
    def size(self) -> int:
        """About how many characters of the page it takes."""
        beside = 250 + len(self.heading) + len(self.note) + len(self.table or "")
        return beside + sum(len(words) + len(figure) + 45 for words, figure in self.charts)


def ends(curve: Sequence[float | None]) -> str:
    """Where a curve begins and ends, in words."""
    known = [value for value in curve if value is not None]
    return f"{number(known[0])} to {number(known[-1])}" if known else "no finite number"
