"""Learning curves: loss and accuracy over the epochs, from the cards of the weights (no torch)."""

from collections.abc import Iterator
from typing import Any

from eqbench.columns import number
from eqbench.minis import Line, chart
from eqbench.panels.base import SERIES, Panel, ends

KEYS = ("epoch", "train_loss", "test_loss", "test_accuracy")
LARGEST = 1e9  # that is drawn: JSON has integers beyond any float


def learning(cards: dict[str, dict[str, Any]]) -> Panel | None:
    """Loss and accuracy over the epochs, a line a seed, from the cards of the weights that were measured."""
    found = {seed: rows for seed, card in cards.items() if (rows := list(_epochs(card.get("metrics"))))}
    if not found:
        return None
    losses, accuracies, last = [], [], []
    for k, (seed, rows) in enumerate(found.items()):
        at = [row["epoch"] for row in rows]
        for key, look, word in (("train_loss", "dashed", "training"), ("test_loss", "", "test")):
            curve = [row[key] for row in rows]
            losses.append(Line(at, curve, f"s{k % SERIES} {look}".rstrip(), f"{seed}, {word} loss: {ends(curve)}"))
        curve = [row["test_accuracy"] for row in rows]
        accuracies.append(Line(at, curve, f"s{k % SERIES}", f"{seed}, test accuracy: {ends(curve)}"))
        last.append(f"{seed}: {number(curve[-1])} after {at[-1]:.0f} epochs")
    span = (min(line.x[0] for line in losses), max(line.x[-1] for line in losses))
    edges = (f"epoch {span[0]:.0f}", f"{span[1]:.0f}")
    top = max(v for line in losses for v in line.y if v is not None)
    seeds = f"{len(found)} seed{'s' * (len(found) > 1)}"
    charts = [
        ("Loss, dashed while training", chart(f"Loss over epochs, {seeds}", losses, span, (0, top), edges, "nat")),
        ("Test accuracy", chart(f"Test accuracy over epochs, {seeds}", accuracies, span, (0, 1), edges)),
    ]
    return Panel("learning curves", "Learning curves", charts, f"Test accuracy {'; '.join(last)}.")


def _epochs(history: Any) -> Iterator[dict[str, float]]:
    """The epochs of a card that are whole: cards come from files, and a file may say anything."""
    for row in history if isinstance(history, list) else []:
        values = {key: row.get(key) for key in KEYS} if isinstance(row, dict) else {}
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, int | float) and abs(v) < LARGEST}
        if len(numbers) == len(KEYS):
            yield numbers
