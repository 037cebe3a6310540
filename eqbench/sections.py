"""What the page says of each model: its card, its small figures, its layers, and the commands that measure it anew (no torch)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from eqbench import layertables, panels, reproduce, weights
from eqbench.cells import MISSING
from eqbench.config import Cell
from eqbench.errors import UserError
from eqbench.layertables import Profile
from eqbench.leaderboard import Board
from eqbench.panels import Panel
from eqbench.reproduce import Recipe
from eqbench.results import Result, Status

K = TypeVar("K")
V = TypeVar("V")

ROOM = 700_000  # characters of a page for small figures and cells' commands: what does not fit is left to the files
ENDS = ("final", "init")
STATES = 12  # (seed, state) of a model, up to which the commands and hashes of all are listed
HANDFUL = 5  # models, up to which their sections stand open
COMMAND = 170  # characters of a cell's row, about
LAYERS, CELLS = "layers", "every cell's command"  # kinds that are no panels
FACTS = ("family", "architecture", "parameters", "image_size", "source", "origin", "licence", "augment", "dtype")
VERSIONS = ("eqbench", "git", "torch", "timm_version", "python")


@dataclass(frozen=True)
class Row:
    """One cell: what became of it, how long it took, and the command for it alone."""

    cell: Cell
    status: str
    seconds: float | None
    command: str


@dataclass(frozen=True)
class Measured:
    """A model on one data set."""

    data: str
    profiles: list[Profile]
    panels: list[Panel]


@dataclass(frozen=True)
class Section:
    """One model; `rows` is empty where cells are too many for a page, and `example` names one.

    Of many states, `hashes` and `recipes` hold the trained and the untrained ones and one between; `runs` counts them all.
    """

    model: str
    summary: str
    card: list[tuple[str, str]]
    hashes: dict[str, str]
    done: int
    planned: int
    measured: list[Measured]
    recipes: list[Recipe]
    runs: int
    rows: list[Row]
    example: str

    @property
    def weights(self) -> list[str]:
        """The commands that bring the weights, each once."""
        return list(dict.fromkeys(line for recipe in self.recipes for line in recipe.weights))


@dataclass(frozen=True)
class Sections:
    """All models, sorted, each with the same kinds of figures.

    Attributes:
        in_part: the kinds of which the page has room for one figure a model. left_out: those that it has no room for.
        tabled: whether layers have tables.
    """

    models: list[Section]
    opened: bool
    in_part: list[str]
    left_out: list[str]
    tabled: bool


def sections(board: Board, weights_dir: Path | None = None) -> Sections:
    """The sections of all models.

    Args:
        weights_dir: where the cards of the weights lie; without them there are no learning curves and no recipes.
    """
    finished: dict[tuple[str, str], list[tuple[Cell, Result]]] = {}
    planned: dict[str, list[Cell]] = {model: [] for model in sorted(board.facts)}
    for cell in board.plan.cells:
        planned[cell.model].append(cell)
        if cell in board.results and board.results[cell].status is Status.ok:
            finished.setdefault((cell.model, board.plan.data(cell)), []).append((cell, board.results[cell]))
    cards = {model: dict(_cards(board, model, cells, weights_dir)) for model, cells in planned.items()}
    drawn = {key: list(_panels(own, cards[key[0]], board.epochs.get(key[0], {}))) for key, own in finished.items()}
    curves = layertables.curves(board.layers)
    first, one, every = layertables.sizes(curves)
    brief, full = _sizes(drawn)
    brief |= {LAYERS: one, CELLS: COMMAND * len(board.plan.cells)}
    full |= {LAYERS: every, CELLS: COMMAND * len(board.plan.cells)}
    fit = fitting(brief, full, ROOM)
    groups = {group for _, _, group in curves} if fit[LAYERS] == 2 else {str(first)} if fit[LAYERS] else set()
    layers = layertables.profiles(board, curves, groups)
    found = []
    for model, cells in planned.items():
        names = dict.fromkeys(board.plan.data(cell) for cell in cells)
        recipes = reproduce.recipes(board.plan, model, cells)
        parts = [
            Measured(data, layers.get((model, data), []), _kept(drawn.get((model, data), []), fit)) for data in names
        ]
        facts, states = board.facts[model], [board.status(cell) for cell in cells]
        found.append(
            Section(
                model,
                _summary(facts, [*names]),
                list(_card(facts, cards[model])),
                _listed(facts["sha256"], lambda key: key.split(" ")[1]),
                states.count("ok"),
                len(cells),
                [part for part in parts if part.profiles or part.panels],
                list(_listed({one: one for one in recipes}, lambda one: one.state)),
                len(recipes),
                [_row(board, cell) for cell in cells] if fit[CELLS] else [],
                f"{cells[0].group}+{cells[0].probe}",
            )
        )
    in_part = [kind for kind, level in fit.items() if level == 1]
    left_out = [kind for kind, level in fit.items() if level == 0]
    tabled = not curves or any(one.tables for own in layers.values() for one in own)
    return Sections(found, len(found) <= HANDFUL, in_part, left_out, tabled)


def fitting(brief: dict[str, int], full: dict[str, int], room: int) -> dict[str, int]:
    """How much of each kind fits: 2 all of it, 1 its brief form, 0 nothing; as many kinds as possible before whole ones.

    >>> fitting({"a": 10, "b": 20, "c": 90}, {"a": 40, "b": 20, "c": 90}, 60)
    {'a': 2, 'b': 2, 'c': 0}
    >>> fitting({"a": 10, "b": 20, "c": 90}, {"a": 80, "b": 20, "c": 90}, 60)
    {'a': 1, 'b': 2, 'c': 0}
    """
    fit = dict.fromkeys(brief, 0)
    for level, sizes in ((1, brief), (2, full)):
        for kind in sorted(sizes, key=lambda kind: sizes[kind]):
            more = sizes[kind] - (brief[kind] if level == 2 else 0)
            if fit[kind] == level - 1 and more <= room:
                fit[kind], room = level, room - more
    return fit


def _sizes(drawn: dict[tuple[str, str], list[Panel]]) -> tuple[dict[str, int], dict[str, int]]:
    """Kind -> about how many characters it takes on the whole page, in brief and in full."""
    brief: dict[str, int] = {}
    full: dict[str, int] = {}
    for own in drawn.values():
        for panel in own:
            brief[panel.kind] = brief.get(panel.kind, 0) + panel.brief.size
            full[panel.kind] = full.get(panel.kind, 0) + panel.size
    return brief, full


def _kept(own: list[Panel], fit: dict[str, int]) -> list[Panel]:
    return [panel if fit[panel.kind] == 2 else panel.brief for panel in own if fit[panel.kind]]


def _panels(
    own: list[tuple[Cell, Result]], cards: dict[str, dict[str, Any]], epochs: dict[str, int]
) -> Iterator[Panel]:
    ends = [entry for entry in own if entry[0].state in ENDS]
    ends.sort(key=lambda entry: (entry[0].state != "final", int(entry[0].seed[1:])))
    for panel in (panels.learning(cards), panels.trajectory(own, epochs), *(made(ends) for made in panels.PANELS)):
        if panel is not None:
            yield panel


def _listed(of: dict[K, V], state: Callable[[K], str]) -> dict[K, V]:
    """All of them; of more than `STATES` those of both ends, and the first between."""
    if len(of) <= STATES:
        return of
    between = next((key for key in of if state(key) not in ENDS), None)
    return {key: value for key, value in of.items() if state(key) in ENDS or key == between}


def _row(board: Board, cell: Cell) -> Row:
    status = board.status(cell)
    seconds = board.results[cell].cost.get("seconds") if cell in board.results and status != MISSING else None
    return Row(cell, status, seconds if isinstance(seconds, int | float) else None, reproduce.probe(board.plan, cell))


def _cards(board: Board, model: str, cells: list[Cell], folder: Path | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Seed -> its card, where that is the card of the weights that were measured and not of later ones."""
    measured = board.facts[model]["sha256"]
    for seed in dict.fromkeys(cell.seed for cell in cells):
        if folder is None or not weights.card_path(folder, model, seed).exists():
            continue
        try:
            card = weights.read_card(folder, model, seed)
        except UserError:
            continue  # whoever measures with these weights is told; the page goes without
        known = {key.partition(" ")[2]: sha for key, sha in measured.items() if key.startswith(f"{seed} ")}
        if known and all(card["states"].get(state) == sha for state, sha in known.items()):
            yield seed, card


def _summary(facts: dict[str, Any], data: list[str]) -> str:
    """The model in a line."""
    size = facts.get("parameters")
    told = [str(facts.get("family") or ""), f"{size:,} parameters" if isinstance(size, int) else ""]
    return ", ".join([text for text in told if text] + [f"on {' and '.join(data)}"])


def _card(facts: dict[str, Any], cards: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """The facts of a model that are known."""
    for key in FACTS:
        value = facts.get(key)
        if value is not None:
            told = [f"{name} {part}" for name, part in value.items()] if isinstance(value, dict) else [str(value)]
            text = ", ".join(told)
            yield key.replace("_", " "), f"{value:,}" if key == "parameters" and isinstance(value, int) else text
    recipe: dict[str, Any] = next(
        (card["recipe"] for card in cards.values() if isinstance(card.get("recipe"), dict)), {}
    )
    off = tuple(f"{key}_" for key, value in recipe.items() if value is False)  # what is off has idle options
    known = {key: value for key, value in recipe.items() if value not in (None, False, []) and not key.startswith(off)}
    said = [f"{key.replace('_', ' ')} {value}" for key, value in known.items()]
    if said:
        yield "recipe", ", ".join(said)
    if made := made_with(facts):
        yield "measured with", made


def made_with(facts: dict[str, Any]) -> str:
    """The versions that numbers were made with, in words."""
    known = [f"{key.removesuffix('_version')} {str(facts[key])[:12]}" for key in VERSIONS if facts.get(key)]
    return ", ".join(known) + (" (with uncommitted changes)" if facts.get("dirty") else "")
