"""The Result of a cell, its atomic writing, and its only reader (no torch)."""

import hashlib
import io
import json
import math
import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

import pandas as pd

from eqbench.errors import UserError
from eqbench.locks import alive
from eqbench.metrics import METRICS
from eqbench.options import digest

SCHEMA = 1
CURVE_DIGITS = 5  # significant digits of the numbers in curves
COLUMNS = ["suite", "model", "data", "seed", "state", "group", "probe", "status", "reason", "layer", "depth", "metric"]
COLUMNS += ["value", "lo", "hi", "n", "floor", "null", "unit", "higher_is_better", "digest"]
TYPES: Any = dict.fromkeys(COLUMNS, "str") | {"higher_is_better": "boolean"}
TYPES |= dict.fromkeys(["depth", "value", "lo", "hi", "n", "floor", "null"], "float64")
CSV: Any = {"index": False, "float_format": "%.6g", "lineterminator": "\n"}


class Status(StrEnum):
    """How a cell ended."""

    ok = "ok"
    skipped = "skipped"  # cannot be measured here, and says why
    failed = "failed"  # went wrong in a foreseen way, and says how


@dataclass(slots=True)
class Measure:
    """A number with what it is read against. Not finite becomes None, and `reason` says why.

    Attributes:
        value, lo, hi: the estimate and its 95 % interval.
        n: how many images (or random probes) stand behind it.
        floor: what a perfectly symmetric twin reaches. null: what chance reaches.
        units, replicates: of a metric that boards rank or compare by, what `stats.replicates` keeps; files of older versions have none.
    """

    value: float | None
    lo: float | None = None
    hi: float | None = None
    n: int | None = None
    floor: float | None = None
    null: float | None = None
    reason: str | None = None
    units: int | None = field(default=None, repr=False)
    replicates: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("value", "lo", "hi", "floor", "null"):
            number = getattr(self, name)
            if number is not None:
                setattr(self, name, float(number) if math.isfinite(number) else None)
        if self.value is None and self.reason is None:
            self.reason = "not finite"


@dataclass(slots=True)
class Layer:
    """What was measured of one layer.

    Attributes:
        name: path of the module, with `:prefix` for its prefix tokens. depth: 0 (first) to 1 (last), by execution.
        shape: (channels, height, width) of its map of one image.
        coverage: 1, or 0 where the layer was refused; `reason` then says why.
        metrics: by the names that eqbench.metrics declares.
    """

    name: str
    depth: float
    shape: tuple[int, ...] = ()
    coverage: float = 1.0
    reason: str | None = None
    metrics: dict[str, Measure] = field(default_factory=dict)


@dataclass
class Result:
    """What one cell gave.

    Attributes:
        cell: suite, model, seed, state, group, probe, data.
        digest: sha256 of what decided the numbers: resolved config, weights, data, probe version.
        metrics: by the names that eqbench.metrics declares.
        layers: in order of execution.
        curves: small arrays for plots.
        config: the resolved configuration. cost: seconds, forwards
            (images through the network itself, not through its twins), jvps, hvps, peak_mb, device, threads.
        provenance: versions, hashes, and the facts of the model that boards show beside its numbers.
    """

    cell: dict[str, str]
    status: Status = Status.ok
    reason: str | None = None
    metrics: dict[str, Measure] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    curves: dict[str, list[Any]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    digest: str = ""
    schema: int = SCHEMA


def identity(config: dict[str, Any], weights: str, data: str) -> str:
    """The digest that says whether a stored cell still answers the question asked."""
    return digest({"config": config, "weights": weights, "data": data, "schema": SCHEMA})


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: a killed process leaves nothing that looks finished."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*.part"):
        if _abandoned(left):
            left.unlink(missing_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}@{socket.gethostname()}.part")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)  # a full disk does not say which file was too much for it
        raise


def _abandoned(partial: Path) -> bool:
    """Whether whoever wrote here was killed: a process of this machine that is no more."""
    process, _, host = partial.name.removesuffix(".part").rpartition("@")
    return host == socket.gethostname() and not alive(int(process.rpartition(".")[2]))


def write_json(path: Path, tree: dict[str, Any]) -> None:
    """Sorted keys, no NaN, and a checksum of it all: the same content is the same bytes, and other bytes are noticed."""
    text = json.dumps(tree | {"checksum": ""}, sort_keys=True, indent=1, allow_nan=False) + "\n"
    write_text(path, text.replace('"checksum": ""', f'"checksum": "{_sha256(text)}"', 1))


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote; a file without a checksum is taken as it is.

    Raises:
        OSError, ValueError: there is no such file; it is no JSON, no mapping, or not as it was written.
    """
    text = path.read_text(encoding="utf-8")
    try:
        tree = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(tree, dict):
        raise ValueError("expected keys and values")
    claimed = tree.pop("checksum", None)
    if claimed is not None and claimed != _sha256(text.replace(f'"checksum": "{claimed}"', '"checksum": ""', 1)):
        raise ValueError("its checksum says that it is not as it was written")
    return tree


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write(result: Result, path: Path) -> None:
    """Write one result file; curves as figures need them: to `CURVE_DIGITS`, and what is not finite as null.

    Raises:
        KeyError: a metric is not declared in eqbench.metrics.
    """
    for name in [*result.metrics, *(name for layer in result.layers for name in layer.metrics)]:
        if name not in METRICS:
            raise KeyError(f"metric '{name}' is not declared in eqbench.metrics")
    tree = asdict(result)
    for measures in (tree["metrics"], *(layer["metrics"] for layer in tree["layers"])):
        for measure in measures.values():
            if measure["replicates"] is None:
                del measure["units"], measure["replicates"]
    tree["curves"] = _drawn(result.curves)
    write_json(path, tree)


def _drawn(entry: Any) -> Any:
    if isinstance(entry, dict):
        return {key: _drawn(value) for key, value in entry.items()}
    if isinstance(entry, list | tuple):
        return [_drawn(value) for value in entry]
    if isinstance(entry, float):
        return float(f"{entry:.{CURVE_DIGITS}g}") if math.isfinite(entry) else None
    return entry


def read(path: Path) -> Result:
    """One result file.

    Raises:
        UserError: the file is not a result of this schema; says which file, and to delete it.
    """
    try:
        tree = read_json(path)
        if tree["schema"] != SCHEMA:
            raise ValueError(f"schema {tree['schema']}, this version reads {SCHEMA}")
        known = {f.name for f in fields(Result)}
        result = Result(**{key: value for key, value in tree.items() if key in known})
        result.status = Status(result.status)
        for key in ("cell", "curves", "config", "cost", "provenance"):
            if not isinstance(getattr(result, key), dict):
                raise ValueError(f"`{key}` is no mapping")
        result.metrics = _measures(tree["metrics"])
        result.layers = [Layer(**layer | {"metrics": _measures(layer["metrics"])}) for layer in tree["layers"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a readable result ({error}): run its probe again, and it is replaced") from None
    return result


def _measures(tree: dict[str, Any]) -> dict[str, Measure]:
    for name in tree:
        if name not in METRICS:
            raise ValueError(f"metric '{name}' is not one of this version's")
    return {name: Measure(**measure) for name, measure in tree.items()}


def read_all(paths: Iterable[Path]) -> Iterator[Result]:
    """The results at these paths, in their order; a path that does not exist is passed over."""
    return (read(path) for path in paths if path.exists())


def read_results(folder: str | Path) -> pd.DataFrame:
    """Every number of a board as one tidy frame: a row a cell x layer x metric (columns and types: `COLUMNS`, `TYPES`).

    Args:
        folder: a board (`reports/demo`), whose results.csv is read; or cells (`data/cells/demo`), however many are finished:
            the frame that its results.csv would give, in the order of the paths. What is stale only a board can tell.

    Raises:
        UserError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of a board (reports/<suite>) or of cells (data/cells/<suite>)")
    table: Any = folder / "results.csv"
    if not table.exists():
        table = io.StringIO(tidy(read_all(sorted(folder.rglob("[!.]*.json")))).to_csv(**CSV))
    # Only what is empty is missing: a model may be called NA.
    return pd.read_csv(table, dtype=TYPES, keep_default_na=False, na_values=[""])


def tidy(results: Iterable[Result]) -> pd.DataFrame:
    """Results as rows; a cell or a layer without numbers (skipped, failed, refused) is one row with its reason and no metric."""
    rows: list[tuple[Any, ...]] = []
    for result in results:
        cell = tuple(result.cell.get(key) for key in COLUMNS[:7])
        network = Layer("", math.nan, reason=result.reason, metrics=result.metrics)
        for layer in (network, *result.layers):
            place = (layer.name or None, layer.depth)
            for name, m in layer.metrics.items():
                declared, reason = METRICS[name], result.reason or m.reason or None
                numbers = (m.value, m.lo, m.hi, m.n, m.floor, m.null, declared.unit or None, declared.higher_is_better)
                rows.append((*cell, str(result.status), reason, *place, name, *numbers, result.digest))
            if not layer.metrics and (layer.name or not result.layers):
                rows.append((*cell, str(result.status), layer.reason, *place, *[None] * 9, result.digest))
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame.astype(TYPES)
