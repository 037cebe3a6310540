"""What the page says of each model: its card, its small figures, its layers, and the commands that measure it anew (no torch)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eqbench import panels, reproduce, weights
from eqbench.cells import MISSING
from eqbench.config import Cell
from eqbench.errors import UserError
from eqbench.layertables import Profile, profiles
from eqbench.leaderboard import Board
from eqbench.panels import Own, Panel
from eqbench.reproduce import Recipe
from eqbench.results import Result, Status

ROOM = 1_400_000  # characters of a page for small figures and cells' commands: what does not fit is left to the files
HANDFUL = 5  # models, up to which their sections stand open
COMMAND = 170  # characters of a cell's row, about
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
    """One model; `rows` is empty where cells are too many for a page, and `example` names one."""

    model: str
    summary: str
    card: list[tuple[str, str]]
    hashes: dict[str, str]
    done: int
    planned: int
    measured: list[Measured]
    recipes: list[Recipe]
    rows: list[Row]
    example: str

    @property
    def weights(self) -> list[str]:
        """The commands that bring the weights, each once."""
        return list(dict.fromkeys(line for recipe in self.recipes for line in recipe.weights))


@dataclass(frozen=True)
class Sections:
    """All models, sorted; `left_out` are the kinds of figures that the page has no room for.

    Attributes:
        groups: those whose layers are shown where there is no room for all. tabled: whether layers have tables.
    """

    models: list[Section]
    opened: bool
    left_out: list[str]
    groups: list[str] | None
    tabled: bool


def sections(board: Board, weights_dir: Path | None = None) -> Sections:
    """The sections of all models, each with the same kinds of figures.

    Args:
        weights_dir: where the cards of the weights lie; without them there are no learning curves and no recipes.
    """
    finished: dict[tuple[str, str], list[tuple[Cell, Result]]] = {}
    planned: dict[str, list[Cell]] = {model: [] for model in sorted(board.facts)}
    for cell in board.plan.cells:
        planned[cell.model].append(cell)
        if cell in board.results and board.results[cell].status is Status.ok and cell.state in ("final", "init"):
            finished.setdefault((cell.model, board.plan.data(cell)), []).append((cell, board.results[cell]))
    cards = {model: dict(_cards(board, model, cells, weights_dir)) for model, cells in planned.items()}
    measured = {}
    for key, own in finished.items():
        own.sort(key=lambda entry: (entry[0].state != "final", int(entry[0].seed[1:])))
        measured[key] = list(_panels(own, cards[key[0]]))
    room, left_out = _leave_out(measured)
    layers = profiles(board, room)
    room -= sum(len(one.curve) for own in layers.found.values() for one in own)
    listed = COMMAND * len(board.plan.cells) <= room
    found = []
    for model, cells in planned.items():
        names = dict.fromkeys(board.plan.data(cell) for cell in cells)
        parts = [Measured(data, layers.found.get((model, data), []), measured.get((model, data), [])) for data in names]
        facts, states = board.facts[model], [board.status(cell) for cell in cells]
        found.append(
            Section(
                model,
                _summary(facts, [*names]),
                list(_card(facts, cards[model])),
                facts["sha256"],
                states.count("ok"),
                len(cells),
                [part for part in parts if part.profiles or part.panels],
                reproduce.recipes(board.plan, model, cells),
                [_row(board, cell) for cell in cells] if listed else [],
                f"{cells[0].group}+{cells[0].probe}",
            )
        )
    left_out += [] if listed else ["every cell's command"]
    return Sections(found, len(found) <= HANDFUL, left_out, layers.groups, layers.tabled)


def _panels(own: Own, cards: dict[str, dict[str, Any]]) -> Iterator[Panel]:
    for panel in (panels.learning(cards), *(made(own) for made in panels.PANELS)):
        if panel is not None:
            yield panel


def _leave_out(measured: dict[tuple[str, str], list[Panel]]) -> tuple[int, list[str]]:
    """Keep, in place, the kinds of panels that fit, smallest first; how much room they leave, and the kinds that did not fit."""
    sizes: dict[str, int] = {}
    for own in measured.values():
        for panel in own:
            sizes[panel.kind] = sizes.get(panel.kind, 0) + panel.size
    room, left_out = ROOM, []
    for kind, size in sorted(sizes.items(), key=lambda item: item[1]):
        if size <= room // 2:  # the other half is the layers'
            room -= size
        else:
            left_out.append(kind)
    for key, own in measured.items():
        measured[key] = [panel for panel in own if panel.kind not in left_out]
    return room, left_out


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
    said = [f"{key.replace('_', ' ')} {value}" for key, value in recipe.items() if value not in (None, False, [])]
    if said:
        yield "recipe", ", ".join(said)
    if made := made_with(facts):
        yield "measured with", made


def made_with(facts: dict[str, Any]) -> str:
    """The versions that numbers were made with, in words."""
    known = [f"{key.removesuffix('_version')} {str(facts[key])[:12]}" for key in VERSIONS if facts.get(key)]
    return ", ".join(known) + (" (with uncommitted changes)" if facts.get("dirty") else "")
