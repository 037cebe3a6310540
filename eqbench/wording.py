"""How a board's sentences name, count and bound things (no torch)."""

from collections.abc import Iterable, Sequence

from eqbench.columns import number

TOLD = 6  # names that a sentence lists


def told(counts: dict[str, int], among: int) -> str:
    """`all became more equivariant`, or `3 became more equivariant, 1 less and 2 cannot be told from chance`."""
    if among in counts.values():
        ((said, _),) = [item for item in counts.items() if item[1] == among]
        return f"all {said}" if among > 1 else f"it {said}"
    open_ = {"cannot be told from chance": among - sum(counts.values())}
    return listed([f"{many} {said}" for said, many in (counts | open_).items() if many])


def between(value: float, lo: float, hi: float) -> str:
    """`0.3 [0.2, 0.4]`."""
    return f"{number(value)} [{number(lo)}, {number(hi)}]"


def count(n: int, one: str, more: str | None = None) -> str:
    """`1 seed`, `2 seeds`, `4 families`."""
    return f"{n:,} {one if n == 1 else more or f'{one}s'}"


def listed(names: Iterable[str]) -> str:
    """`a, b and c`, cut where there are many."""
    known: Sequence[str] = list(names)
    if len(known) > TOLD:
        return f"{', '.join(known[:TOLD])} and {len(known) - TOLD} more"
    return " and ".join(filter(None, [", ".join(known[:-1]), *known[-1:]]))
