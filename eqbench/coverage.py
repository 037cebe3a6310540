"""How much of each network was measured: its layers, those that were refused, and what became of each probe and cell (no torch)."""

import pandas as pd

from eqbench.cells import STALE, Cells
from eqbench.config import Cell
from eqbench.options import timm_modules
from eqbench.results import Result, Status

SHOWN = 3  # reasons that a row tells; seeds or states that it lists one by one


def table(cells: Cells) -> pd.DataFrame:
    """A row a model, in the order of their timm modules.

    Columns: `module` (of timm, that registers the architecture), `model`, `architecture`, `parameters`, `image_size`; `layers`, how many of them are
    `refused`, and `coverage`, the share that is not, by the cell that looked at most; for each probe the worst status of
    the model's cells; and every `reason` why one of them, or a layer, has no numbers.
    """
    probes = sorted({cell.probe for cell in cells.plan.cells})
    rows = []
    for model in cells.plan.models:
        own = [cell for cell in cells.plan.cells if cell.model == model]
        results = [cells.results[cell] for cell in own if cell in cells.results]
        layers = max((result.layers for result in results), key=len, default=[])
        refused = [layer for layer in layers if not layer.coverage]
        facts = cells.facts[model]
        rows.append(
            {
                "module": timm_modules().get(str(facts["architecture"]).partition(".")[0]),
                "model": model,
                **{key: facts.get(key) for key in ("architecture", "parameters", "image_size")},
                "layers": len(layers),
                "refused": len(refused),
                "coverage": 1 - len(refused) / len(layers) if layers else None,
                **{probe: _worst([cells.status(cell) for cell in own if cell.probe == probe]) for probe in probes},
                "reason": _reasons([cells.reason(cell) for cell in own], results),
            }
        )
    frame = pd.DataFrame(rows).astype({"parameters": "Int64", "image_size": "Int64", "coverage": "float64"})
    return frame.sort_values(["module", "model"], ignore_index=True).round({"coverage": 3})


def troubles(cells: Cells) -> list[tuple[str, str, str]]:
    """(Cells, status, reason) of all that failed, are stale or were skipped; seeds and states that say the same are one."""
    alike: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells.plan.cells:
        status = cells.status(cell)
        if status in (str(Status.failed), STALE, str(Status.skipped)):
            alike.setdefault((cell.model, cell.group, cell.probe, status, cells.reason(cell)), []).append(cell)
    found = []
    for (model, group, probe, status, reason), own in alike.items():
        seeds, states = (list(dict.fromkeys(getattr(cell, key) for cell in own)) for key in ("seed", "state"))
        whole = len(own) == len(seeds) * len(states)  # every seed with every state
        places = [f"{_told(seeds)}/{_told(states)}"] if whole else [f"{cell.seed}/{cell.state}" for cell in own]
        found += [(f"{model}/{place}/{group}/{probe}", status, reason) for place in places]
    return found


def _told(names: list[str]) -> str:
    """`init,final`, or where there are many `init … final (12)`."""
    return ",".join(names) if len(names) <= SHOWN else f"{names[0]} … {names[-1]} ({len(names)})"


def _worst(statuses: list[str]) -> str | None:
    order = ("failed", "not run", "stale", "skipped", "ok")
    return min(statuses, key=order.index, default=None)


def _reasons(cells: list[str], results: list[Result]) -> str | None:
    """Why cells have no numbers, then why layers have none, each once."""
    layers = [
        f"{layer.name}: {layer.reason}"
        for result in results
        for layer in result.layers
        if layer.reason and not layer.coverage
    ]
    said = list(dict.fromkeys(filter(None, cells + layers)))
    more = [f"and {len(said) - SHOWN} more"] if len(said) > SHOWN else []
    return "; ".join(said[:SHOWN] + more) or None
