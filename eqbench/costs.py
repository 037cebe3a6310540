"""What cells cost: seconds and memory, by a law fitted to measured costs, and what jobs ask for because of it (no torch).

A cell's work is the network's parameters x its pixels x the images that the probe uses. The law:

    log seconds = level(probe) + slope · log(work)
    MB          = base(probe) + a(probe) · MB of the weights + b(probe) · MB of a batch of one channel,   a, b >= 0

Its numbers are fitted to costs.csv, measured cells on one CPU core (`python -m eqbench.reference` makes it anew). Its spread is the
typical factor between the law and networks that it was not fitted to: each in turn is left out. Sizes of networks are
their cards', or, until there are weights, those of sizes.csv: every architecture of timm as it comes.
"""

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from eqbench.errors import UserError
from eqbench.weights import read_card

if TYPE_CHECKING:
    from eqbench.config import Cell, Plan

HERE = Path(__file__).parent
DERIVE = "derive"  # stands among the probes for the making of a model of others
DERIVED = (1024, 128)  # its images, and those of a batch
RECORD = 20 * 64  # images whose gradient takes as long as one record of `dynamics`: Hessian products on 64 images
TRAIN = "train"  # stands among the probes for training: its images are those of all epochs
START = 20.0  # seconds until a job measures: Snakemake twice, torch, timm
LEAST = (2000, 10)  # MB and minutes that every job asks for
CONTEXT = 500.0  # MB of a GPU that a process holds before it holds a tensor
UNKNOWN_IMAGES = 50_000  # of a training set that nothing is known of before it is read
DIGITS = 1297  # training images of the digits
FEW = 3  # networks below which a probe's own spread says nothing


class Work(NamedTuple):
    """What decides a cell's cost."""

    probe: str
    parameters: int
    pixels: int
    images: int
    batch: int

    @property
    def log(self) -> float:
        return math.log(self.parameters) + math.log(self.pixels) + math.log(self.images)

    @property
    def memory(self) -> tuple[float, float, float]:
        """What memory is linear in."""
        return 1.0, self.parameters * 4e-6, self.pixels * min(self.batch, self.images) * 4e-6


class Measured(NamedTuple):
    """A row of costs.csv: the cells of one network, probe and number of images, by their geometric mean and peak."""

    architecture: str
    work: Work
    seconds: float
    peak_mb: float


@dataclass(frozen=True)
class Law:
    """The law's numbers; `spread` is of seconds, by probe, as a factor, `margin` of memory."""

    slope: float
    level: dict[str, float]
    spread: dict[str, float]
    memory: dict[str, tuple[float, ...]]
    margin: float
    other: float  # the level of a probe that was never measured, and
    other_spread: float

    def seconds(self, work: Work) -> float:
        return math.exp(self.level.get(work.probe, self.other) + self.slope * work.log)

    def factor(self, probe: str) -> float:
        return self.spread.get(probe, self.other_spread)

    def host_mb(self, work: Work) -> float:
        return _dot(self.memory.get(work.probe, self.memory[""]), work.memory)

    def gpu_mb(self, work: Work) -> float:
        """The same without the process: what its tensors hold; inferred from the CPU's, not measured."""
        return CONTEXT + _dot(self.memory.get(work.probe, self.memory[""])[1:], work.memory[1:])


def _dot(a: Iterable[float], b: Iterable[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def fit(rows: Sequence[Measured]) -> Law:
    """The law closest to measured costs, in the least squares of logarithms (seconds) and of relative errors (memory)."""
    import numpy as np
    from scipy.optimize import nnls

    probes = sorted({row.work.probe for row in rows})
    networks = np.array([row.architecture for row in rows])
    x = np.array([[row.work.probe == probe for probe in probes] + [row.work.log] for row in rows], dtype=float)
    y = np.log([row.seconds for row in rows])

    def solve(kept: Any) -> Any:
        return np.linalg.lstsq(x[kept], y[kept], rcond=None)[0]

    best = solve(np.ones(len(rows), dtype=bool))
    errors = np.zeros(len(rows))
    for network in set(networks):
        left = networks == network
        errors[left] = y[left] - x[left] @ solve(~left)
    own = {probe: np.array([row.work.probe == probe for row in rows]) for probe in probes}
    levels = dict(zip(probes, best[:-1].tolist(), strict=True))
    unlike = float(np.std(best[:-1]))
    many = {probe: len(set(networks[at])) >= FEW for probe, at in own.items()}
    typical = math.sqrt(np.mean([np.mean(errors[at] ** 2) for probe, at in own.items() if many[probe]] or [0.0]))
    spread = {
        p: math.sqrt(np.mean(errors[at] ** 2)) if many[p] else math.hypot(typical, unlike) for p, at in own.items()
    }

    parts = np.array([row.work.memory for row in rows])
    peak = np.array([row.peak_mb for row in rows])
    memory: dict[str, tuple[float, ...]] = {}
    off = np.zeros(len(rows))
    for probe, at in {"": np.ones(len(rows), dtype=bool), **own}.items():
        if probe and not many[probe]:
            continue
        solved, _ = nnls(parts[at] / peak[at, None], np.ones(int(at.sum())))
        memory[probe] = tuple(solved.tolist())
        off[at] = np.log(peak[at] / (parts[at] @ solved))
    return Law(
        float(best[-1]),
        levels,
        {probe: math.exp(value) for probe, value in spread.items()},
        memory,
        math.exp(float(np.sqrt(np.mean(off**2)))),
        float(np.mean(best[:-1])),
        math.exp(math.hypot(typical, unlike)),
    )


def reference() -> list[Measured]:
    """The rows of costs.csv."""
    with open(HERE / "costs.csv", encoding="utf-8", newline="") as file:
        return [
            Measured(
                row["architecture"],
                Work(row["probe"], *(int(row[key]) for key in ("parameters", "pixels", "images", "batch"))),
                float(row["seconds"]),
                float(row["peak_mb"]),
            )
            for row in csv.DictReader(file)
        ]


@cache
def law() -> Law:
    """The law of the reference."""
    return fit(reference())


@cache
def sizes() -> dict[str, tuple[int, int]]:
    """Architecture -> its parameters and the pixels of its side, as timm builds it."""
    with open(HERE / "sizes.csv", encoding="utf-8", newline="") as file:
        return {row["architecture"]: (int(row["parameters"]), int(row["image_size"])) for row in csv.DictReader(file)}


@cache
def _typical() -> tuple[int, int]:
    """The medians of `sizes`."""
    parameters, sides = (sorted(column) for column in zip(*sizes().values(), strict=True))
    return parameters[len(parameters) // 2], sides[len(sides) // 2]


_CARDS: dict[tuple[Path, str], tuple[int, int]] = {}


def size(plan: "Plan", model: str, root: Path) -> tuple[int, int, str]:
    """Parameters and side of a model's network, and how they are known: its `card`, `timm`, or `assumed`."""
    if (root, model) not in _CARDS:
        try:
            facts = read_card(root, model, "s0")["facts"]
            _CARDS[root, model] = int(facts["parameters"]), int(facts["image_size"])
        except (UserError, KeyError, TypeError, ValueError):  # no card, or not yet a whole one
            conf = plan.option("model", model)
            architecture = conf.timm.partition(".")[0]
            parameters, side = sizes().get(architecture, _typical())
            parameters *= len(plan.members(model, "s0")) or 1
            return parameters, conf.image_size or side, "timm" if architecture in sizes() else "assumed"
    return *_CARDS[root, model], "card"


def works(plan: "Plan", cells: Sequence["Cell"], root: Path) -> list[Work]:
    """What the costs of cells depend on."""
    known = {model: size(plan, model, root) for model in {cell.model for cell in cells}}
    found = []
    for cell in cells:
        parameters, side, _ = known[cell.model]
        conf = plan.option("model", cell.model)
        forwards = len(plan.option("group", conf.group).group.elements()) if conf.how == "logits" else 1
        found.append(Work(cell.probe, parameters, side**2, plan.probe(cell).images * forwards, conf.batch))
    return found


def train_work(plan: "Plan", model: str, root: Path) -> Work:
    """What the cost of training depends on."""
    parameters, side, _ = size(plan, model, root)
    recipe = plan.option("train", plan.option("model", model).train)
    epoch = recipe.updates * recipe.batch_size if recipe.updates else _training_images(plan, recipe.data)
    images = recipe.epochs * epoch * (2 if recipe.penalty else 1)
    if recipe.dynamics:
        images += math.ceil(recipe.epochs * epoch / recipe.batch_size / recipe.dynamics) * RECORD
    return Work(TRAIN, parameters, side**2, images, recipe.batch_size)


def derive_work(plan: "Plan", model: str, root: Path) -> Work:
    """What the cost of making a model of others depends on: a pass over training images, and weights that are matched."""
    parameters, side, _ = size(plan, model, root)
    return Work(DERIVE, parameters, side**2, *DERIVED)


def _training_images(plan: "Plan", data: str) -> int:
    conf = plan.option("data", data)
    if conf.kind == "digits":
        return DIGITS
    folder = Path(conf.train or "")
    return _files(folder) if conf.kind == "folder" and folder.is_dir() else UNKNOWN_IMAGES


@cache
def _files(folder: Path) -> int:
    return max(1, sum(1 for path in folder.rglob("*") if path.is_file()))


def job_mb(works: Iterable[Work], attempt: int = 1) -> int:
    """Host memory in MB that a job of these cells asks for: two spreads above its largest cell; twice that a retry."""
    most = max(law().host_mb(work) for work in set(works)) * law().margin ** 2
    return math.ceil(max(most, LEAST[0]) / 100) * 100 * 2 ** (attempt - 1)


def job_minutes(works: Iterable[Work], attempt: int = 1) -> int:
    """Minutes that a job of these cells asks for: two spreads above its expected time; twice that a retry.

    The cells of a job are of one network: where the law errs, it errs on all of them alike.
    """
    most = START + sum(law().seconds(work) * law().factor(work.probe) ** 2 for work in works)
    return max(math.ceil(most / 60), LEAST[1]) * 2 ** (attempt - 1)
