"""Cells -> boards: one tidy table of every number, and one wide table with a row a (model, data, group) (no torch).

`leaderboard.csv` holds numbers, never "0.12 [0.10, 0.14]", rounded to six significant digits. Its columns, in order:

- `suite, model, family, architecture, treatment, data, group`; `treatment` is what the recipe told of symmetry, "plain" if nothing,
  and empty for models without a recipe, i.e. not trained here;
- `status` (complete, or the worst of its cells: failed, stale, skipped, not run), `done` and `planned` cells;
- `rank, rank_worst, ranked, ranked_by, unranked`: see `meanranks.ranks`; `ranked` models were compared by the metric `ranked_by`;
  `unranked` says why this one was not;
- `detectable`: the true difference of two of its `ranked` models that a comparison would find in 4 of 5 cases
  (`inference.detectable`), in units of `ranked_by`;
- `n_seeds, n_init_seeds, n_images`: what stands behind the metric `ranked_by` (other probes may have images of their own);
- `paired`: whether the emergence of `ranked_by` compares both states on the same resamples of the same images; False: its
  cells keep no replicates, and its interval and p are conservative;
- for each metric m of eqbench.metrics, in its order: `m, m_lo, m_hi, m_floor, m_null` (state final), `m_init, m_init_lo,
  m_init_hi` (the untrained baseline), `m_init_null`, and `m_emergence` = m - m_init, negative where training lowered the
  metric, with the conservative interval [m_lo - m_init_hi, m_hi - m_init_lo]. Probes that have no group (the spectrum)
  have a row of their own, group `none`. For a metric that ranks, the interval of `m_emergence` is that of paired
  differences, `m_emergence_p` is the p-value of "training changed nothing" (two-sided), and `m_emergence_holm` the same
  adjusted for all such claims of the board: those below 0.05 are all true with probability 95 % (Holm 1979);
- the columns of `FACTS`, about the model and its measurement (`weights`: first 12 hex digits of s0's sha256).

Seeds: a value is the mean over seeds, and its interval takes images and seeds together (eqbench.inference); of one seed it
is over images alone.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from eqbench import coverage, ensembles, gains, lineage, profiles, treatments
from eqbench.cells import STATUSES, Cells, read_cells
from eqbench.config import Cell, Plan
from eqbench.inference import detectable, holm
from eqbench.meanranks import ranks
from eqbench.metrics import METRICS, Metric
from eqbench.pooling import Row, Seeds, emergence, emergence_index
from eqbench.profiles import INDEX, PERMUTED
from eqbench.results import CSV, Measure, Status, write_text
from eqbench.schema import UNGROUPED

FILES = ("results.csv", "leaderboard.csv", "coverage.csv", "treatments.csv", "ensembles.csv")
RANKINGS = [metric for metric in METRICS.values() if metric.rank]  # the first one that a group's cells give ranks it

CHUNK = 500  # cells that are turned into text at once
ENSEMBLE = "ensemble_same_prediction"
ABSENT = Measure(None, reason="not measured")
ALONE = "nothing to compare with"  # why the only complete row of its images and group has no rank

TEXT = ["suite", "model", "family", "architecture", "treatment", "data", "group", "status", "ranked_by", "unranked"]
COUNTS = ["done", "planned", "rank", "rank_worst", "ranked", "n_seeds", "n_init_seeds", "n_images"]
KEYS = ["suite", "model", "family", "architecture", "treatment", "data", "group", "status", "done", "planned"]
KEYS += ["rank", "rank_worst", "ranked", "ranked_by", "unranked", "detectable"]
KEYS += ["n_seeds", "n_init_seeds", "n_images", "paired"]
STATISTICS = ["", "_lo", "_hi", "_floor", "_null", "_init", "_init_lo", "_init_hi", "_init_null"]
STATISTICS += ["_emergence", "_emergence_lo", "_emergence_hi"]
FACTS = ["parameters", "image_size", "source", "licence", "augment", "weights", "seconds", "device"]
FACTS += ["dtype", "eqbench", "git", "dirty", "python", "torch", "timm_version"]
TESTS = ["_emergence_p", "_emergence_holm"]  # of a metric that ranks
COLUMNS = KEYS + [f"{m.name}{part}" for m in METRICS.values() for part in STATISTICS + TESTS * m.rank] + FACTS


class Board(Cells):
    """The cells of a plan with the wide table made of them: what the figures and the page are drawn from."""

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row a (model, data, group), ordered by data (the set with most rows first), group and rank, unranked last (columns: `COLUMNS`)."""
        cells = self.rows
        rankings = _rankings(self, cells)
        rows = [_row(self, key, own, rankings[key[1:]]) for key, own in cells.items()]
        _rank(rows, self.seeds)
        _claim(rows)
        sizes, last = Counter(row["data"] for row in rows), len(rows) + 1
        place = {key: i for i, key in enumerate(rankings)}
        rows.sort(key=lambda r: (-sizes[r["data"]], place[r["data"], r["group"]], r["rank"] or last, r["model"]))
        text = TEXT + [name for name in FACTS if name not in ("parameters", "image_size", "seconds", "dirty")]
        types = dict.fromkeys(COLUMNS, "float64") | dict.fromkeys(text, "str") | dict.fromkeys(COUNTS, "Int64")
        types |= {"parameters": "Int64", "image_size": "Int64", "dirty": "boolean", "paired": "boolean"}
        return pd.DataFrame(rows).reindex(columns=COLUMNS).astype(types)

    @cached_property
    def rows(self) -> dict[Row, list[Cell]]:
        """(model, data, group) -> its cells."""
        rows: dict[Row, list[Cell]] = {}
        for cell in self.plan.cells:
            rows.setdefault((cell.model, self.plan.data(cell), cell.group), []).append(cell)
        return rows

    @cached_property
    def seeds(self) -> Seeds:
        """The numbers of each row, one a seed: what the table pools, and what models are compared by."""
        return Seeds(self, self.rows)

    @cached_property
    def epochs(self) -> dict[str, dict[str, int]]:
        """Model -> its measured states as epochs, if there are some between `init` and `final`."""
        return lineage.epochs(self)

    @cached_property
    def kinds(self) -> dict[str, lineage.Kind]:
        """Model -> what it is and how it was treated, of models trained here."""
        return lineage.kinds(self)

    @cached_property
    def gains(self) -> list[gains.Gain]:
        """Ensembles minus their members, adjusted for how many they are."""
        return gains.gains(self)

    @cached_property
    def contrasts(self) -> list[treatments.Contrast]:
        """Networks that were told of a symmetry, against plain ones."""
        return treatments.contrasts(self)

    @cached_property
    def layers(self) -> pd.DataFrame:
        """A row a (model, data, group, probe, layer, metric): see `profiles.COLUMNS`."""
        return profiles.layers(self)

    @cached_property
    def csv(self) -> str:
        """The text of leaderboard.csv."""
        return self.table.to_csv(index=False, lineterminator="\n")


def load(plan: Plan, cells_dir: Path) -> Board:
    """Read whatever cells of the plan exist below `cells_dir`."""
    cells = read_cells(plan, cells_dir)
    return Board(plan, cells.results, cells.stale)


def write(board: Board, out_dir: Path) -> None:
    """Write `FILES` below `out_dir`, each whole or not at all."""
    write_text(out_dir / "results.csv", "".join(_lines(board)))
    write_text(out_dir / "leaderboard.csv", board.csv)
    write_text(out_dir / "coverage.csv", coverage.table(board).to_csv(index=False, lineterminator="\n"))
    write_text(out_dir / "ensembles.csv", gains.table(board.gains).to_csv(index=False, lineterminator="\n"))
    write_text(out_dir / "treatments.csv", treatments.table(board.contrasts).to_csv(index=False, lineterminator="\n"))


def _lines(board: Board) -> Iterator[str]:
    """The text of results.csv, some hundred cells at a time: a frame of all would be many times as large."""
    cells = list(board.results)
    for start in range(0, max(len(cells), 1), CHUNK):
        own = {cell: board.results[cell] for cell in cells[start : start + CHUNK]}
        last = start + CHUNK >= len(cells)
        frame = Cells(board.plan, own, board.stale if last else {}).tidy
        yield frame.to_csv(header=start == 0, **CSV)


def collect(plan: Plan, cells_dir: Path, out_dir: Path) -> None:
    """Read whatever cells of the plan exist and write `FILES` below `out_dir`."""
    write(load(plan, cells_dir), out_dir)


def _rankings(board: Board, rows: dict[Row, list[Cell]]) -> dict[tuple[str, str], Metric | None]:
    """(data, group) -> the metric that ranks its rows: the first of `RANKINGS` that some trained cell of theirs has.

    Where none has any yet, the first whose probe is among the cells.
    """
    asked: dict[tuple[str, str], list[Metric]] = {}
    found: dict[tuple[str, str], list[Metric]] = {}
    for (_, data, group), cells in rows.items():
        for cell in cells:
            own = [metric for metric in RANKINGS if metric.probe == cell.probe]
            asked.setdefault((data, group), []).extend(own)
            measured = board.results[cell].metrics if cell in board.results and cell.state == "final" else {}
            having = [metric for metric in own if measured.get(metric.name, ABSENT).value is not None]
            found.setdefault((data, group), []).extend(having)
    return {key: min(found[key] or asked[key], key=RANKINGS.index, default=None) for key in asked}


def _row(board: Board, key: Row, cells: list[Cell], ranking: Metric | None) -> dict[str, Any]:
    model, data, group = key
    states = [board.status(cell) for cell in cells]
    worst = next((status for status in STATUSES[1:] if status in states), "complete")
    facts = board.facts[model]
    row: dict[str, Any] = {"suite": board.plan.name, "model": model, "data": data, "group": group, "status": worst}
    row |= {"done": states.count("ok"), "planned": len(cells)}
    done = [cell for cell in cells if cell in board.results and board.results[cell].status is Status.ok]
    measures = _pooled(board, key, done)
    for name in METRICS:
        final, init = measures.get((name, "final"), ABSENT), measures.get((name, "init"), ABSENT)
        if final is init:
            continue
        gain = emergence(final, init)
        numbers = [final.value, final.lo, final.hi, final.floor, final.null, init.value, init.lo, init.hi, init.null]
        numbers += [gain.value, gain.lo, gain.hi]
        row |= {f"{name}{part}": _six(number) for part, number in zip(STATISTICS, numbers, strict=True)}
    if ranking:
        final, init = (measures.get((ranking.name, state), ABSENT) for state in ("final", "init"))
        row |= {"ranked_by": ranking.name, "n_images": final.n or init.n, "interval": (final.lo, final.hi)}
        row["unranked"] = _why_unranked(board, cells, ranking, final)
        found = board.seeds.change(key, ranking.name)
        if found is not None:  # in place of the conservative interval
            parts = zip(("_lo", "_hi", "_p"), (*found.ends, found.p), strict=True)
            row |= {f"{ranking.name}_emergence{part}": _six(number) for part, number in parts} | {
                "paired": found.paired
            }
    elif group == UNGROUPED:
        row["unranked"] = "descriptors are not ranked"
    else:
        row["unranked"] = f"the suite asks for no {' or '.join(metric.probe for metric in RANKINGS)} here"
    row["n_seeds"], row["n_init_seeds"] = (len({c.seed for c in done if c.state == s}) for s in ("final", "init"))
    kind = board.kinds.get(model)
    row |= {"rank": None, "family": facts.get("family"), "treatment": kind.treatment if kind else None} | {
        key: facts.get(key) for key in ("architecture", *FACTS)
    }
    hashes = facts["sha256"]
    row["weights"] = hashes.get("s0 final", "")[:12] or None
    row["seconds"] = _six(sum(board.results[cell].cost.get("seconds") or 0.0 for cell in done))
    devices = {str(board.results[cell].cost["device"]) for cell in done if board.results[cell].cost.get("device")}
    row["device"] = " + ".join(sorted(devices)) or None
    return row


def _claim(rows: list[dict[str, Any]]) -> None:
    """Adjust the p-values of the board's emergence claims for how many they are, in place."""
    claims = [(row, f"{row['ranked_by']}_emergence") for row in rows if "paired" in row]
    for (row, name), p in zip(claims, holm([row[f"{name}_p"] for row, name in claims]), strict=True):
        row[f"{name}_holm"] = _six(p)


def _pooled(board: Board, key: Row, cells: Iterable[Cell]) -> dict[tuple[str, str], Measure]:
    """(metric, state) -> its measure over the seeds of a row's finished cells, with the metrics that only a row has."""
    pooled = board.seeds.pooled(key)
    for state in ("final", "init"):
        members = [board.results[cell] for cell in cells if cell.state == state and cell.probe == ensembles.PROBE]
        try:
            together = ensembles.same_prediction(members)
        except ValueError as error:  # stored predictions that do not fit together cost this number alone
            together = Measure(None, reason=str(error))
        if together is not None:
            pooled[ENSEMBLE, state] = together
    if (PERMUTED, "final") in pooled and (PERMUTED, "init") in pooled:
        pooled[INDEX, "final"] = emergence_index(pooled[PERMUTED, "final"], pooled[PERMUTED, "init"])
    return pooled


def _six(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.6g}")


def _why_unranked(board: Board, cells: Iterable[Cell], ranking: Metric, pooled: Measure) -> str | None:
    """Why a row has no rank; None if it has one."""
    needed = [cell for cell in cells if cell.state == "final" and cell.probe == ranking.probe]
    for cell in needed:
        if board.status(cell) != "ok":
            return f"{cell.seed}: {board.status(cell)}" + (f": {board.reason(cell)}" if board.reason(cell) else "")
    if not needed:
        return f"the suite asks for no {ranking.probe} of its final state"
    if pooled.reason:
        return pooled.reason
    return "no interval" if pooled.lo is None or pooled.hi is None else None


def _rank(rows: list[dict[str, Any]], seeds: Seeds) -> None:
    """Rank the complete rows of the same data, images and group among each other, in place."""
    boards: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if row["unranked"] is None:
            boards.setdefault((row["data"], row["n_images"], row["group"]), []).append(row)
    for board in boards.values():
        if len(board) == 1:
            board[0]["unranked"] = ALONE
            continue
        name = board[0]["ranked_by"]
        samples = [seeds.sample((row["model"], row["data"], row["group"]), name) for row in board]
        least = _six(detectable([own for own in samples if own is not None]))
        better = bool(METRICS[name].higher_is_better)
        for row, (best, worst) in zip(board, ranks([row["interval"] for row in board], better), strict=True):
            row |= {"rank": best, "rank_worst": worst, "ranked": len(board), "detectable": least}
