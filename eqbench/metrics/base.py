"""What is declared of a metric (no torch)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """What a reader must know of one number.

    Attributes:
        name: key in results and stem of the columns `<name>`, `<name>_lo`, ...
        probe: the probe that measures it.
        title, symbol, unit: as shown; the unit of a share or a ratio is "".
        definition: two sentences at most; `formula` in plain Unicode; `citation` as author, year, where.
        higher_is_better: None for a descriptor, which is never ranked and has no arrow.
        floor, null: what the floor and the null beside the value mean for this metric; "" where it has none.
        cost: what it takes, in forward passes an image or Hessian products.
        rank: whether boards are ranked by it. compared: whether boards subtract it between cells, though it ranks nothing.
        layered: whether it is also given a layer; the network's value is then the mean over the layers measured.
        headline: shown on the page's first screen; the others are in the CSV and behind a toggle.
    """

    name: str
    probe: str
    title: str
    symbol: str
    unit: str
    definition: str
    formula: str
    citation: str
    higher_is_better: bool | None
    floor: str = ""
    null: str = ""
    cost: str = ""
    rank: bool = False
    compared: bool = False
    layered: bool = False
    headline: bool = False

    @property
    def replicated(self) -> bool:
        """Whether cells keep its bootstrap replicates, so that differences between cells are paired."""
        return self.rank or self.compared

    @property
    def entry(self) -> str:
        """What it is, as one item of a Markdown list."""
        sense = {True: "higher is better", False: "lower is better", None: "a descriptor"}[self.higher_is_better]
        facts = [self.probe, *(["by layer too"] if self.layered else []), sense, *([self.unit] if self.unit else [])]
        return f"- **{self.title}** {self.symbol} ({', '.join(facts)}): {self.definition} `{self.formula}`"
