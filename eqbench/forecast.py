"""What a suite will cost: each cell's expected seconds and memory, what they are known by, and the jobs they make (no torch)."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from eqbench import costs
from eqbench.cells import Cells
from eqbench.config import Cell, Plan
from eqbench.results import Result, Status
from eqbench.schema import Pack

KNOWN = ("measured", "alike", "law")  # from the best to the worst
LONGEST = 4 * 3600.0  # seconds that a job may be expected to last: what a time limit or a lost node interrupts
SHORTEST = 120.0  # below which a job mostly starts


@dataclass(frozen=True)
class Expected:
    """A cell's expected cost.

    Attributes:
        known: `measured`, this cell; `alike`, others of its model and probe; `law`, the law of `costs`.
        factor: the typical factor between such an expectation and what is then measured.
    """

    seconds: float
    factor: float
    host_mb: float
    gpu_mb: float
    known: str


class Forecast:
    """What each cell of a plan costs, by what was measured of it, else of its like, else by the law.

    Stored results also tell how fast this machine is: the law's seconds are scaled by the geometric mean of their ratio
    to it. Only those of the device that most of them ran on count; it is the one that the rest is expected to run on.
    """

    def __init__(self, cells: Cells, weights: Path) -> None:
        self.plan: Plan = cells.plan
        self.weights = weights
        measured = {cell: result for cell, result in cells.results.items() if _tells(result)}
        devices = [str(result.cost["device"]) for result in measured.values()]
        self.device = max(sorted(set(devices)), key=devices.count, default="cpu")
        self.measured = {cell: r for cell, r in measured.items() if r.cost["device"] == self.device}
        everything = list(self.plan.cells)
        self._works = dict(zip(everything, costs.works(self.plan, everything, weights), strict=True))

    @cached_property
    def speed(self) -> tuple[float, float]:
        """Seconds here over seconds by the law, and the typical factor between the law so scaled and what was measured."""
        law = costs.law()
        logs = [math.log(r.cost["seconds"] / law.seconds(self._works[cell])) for cell, r in self.measured.items()]
        if not logs:
            return 1.0, 1.0
        mean = sum(logs) / len(logs)
        return math.exp(mean), math.exp(math.sqrt(sum((x - mean) ** 2 for x in logs) / len(logs)))

    @cached_property
    def _alike(self) -> dict[tuple[str, ...], list[Result]]:
        """(model, probe, group), and (model, probe), -> what was measured of them."""
        found: dict[tuple[str, ...], list[Result]] = {}
        for cell, result in self.measured.items():
            for key in ((cell.model, cell.probe, cell.group), (cell.model, cell.probe)):
                found.setdefault(key, []).append(result)
        return found

    @cached_property
    def expected(self) -> dict[Cell, Expected]:
        """Each cell of the plan with its expected cost."""
        return {cell: self._expect(cell) for cell in self.plan.cells}

    def _expect(self, cell: Cell) -> Expected:
        law, work = costs.law(), self._works[cell]
        own = [self.measured[cell]] if cell in self.measured else None
        near = own or self._alike.get((cell.model, cell.probe, cell.group)) or self._alike.get((cell.model, cell.probe))
        host, gpu = law.host_mb(work), law.gpu_mb(work)
        if not near:
            speed, _ = self.speed
            factor = law.factor(cell.probe)
            # The law gives the typical cell, and sums want the mean one.
            seconds = law.seconds(work) * speed * math.exp(math.log(factor) ** 2 / 2)
            return Expected(seconds, factor, host, gpu, "law")
        times = [float(result.cost["seconds"]) for result in near]
        peak = max(float(result.cost["peak_mb"]) for result in near)
        host, gpu = (peak, gpu) if self.device == "cpu" else (host, costs.CONTEXT + peak)
        mean = sum(times) / len(times)
        if own:
            return Expected(mean, 1.0, host, gpu, "measured")
        return Expected(mean, max(max(times) / mean, mean / min(times)), host, gpu, "alike")

    def parts(self, pack: Pack) -> dict[tuple[str, str, str, str], list[Cell]]:
        """The plan's jobs, were it packed so."""
        return Plan(self.plan.name, pack, self.plan.cells, self.plan.overrides).parts

    def seconds(self, cells: Iterable[Cell]) -> float:
        """Expected seconds of these cells, as one job runs them."""
        return costs.START + sum(self.expected[cell].seconds for cell in cells)

    @cached_property
    def jobs(self) -> dict[Pack, dict[tuple[str, str, str, str], float]]:
        """For each way to pack, the expected seconds of its jobs."""
        return {pack: {key: self.seconds(cells) for key, cells in self.parts(pack).items()} for pack in reversed(Pack)}

    @cached_property
    def pack(self) -> Pack:
        """The coarsest packing whose longest job stays below `LONGEST`; `cell`, if none does; the suite's own, if that is the same."""
        found = next((pack for pack, jobs in self.jobs.items() if max(jobs.values()) <= LONGEST), Pack.cell)
        return self.plan.pack if len(self.jobs[self.plan.pack]) == len(self.jobs[found]) else found


def _tells(result: Result) -> bool:
    """Whether a result says what its cell costs: one that failed may have stopped anywhere."""
    cost = result.cost
    known = all(isinstance(cost.get(key), int | float) for key in ("seconds", "peak_mb")) and cost.get("device")
    return result.status is not Status.failed and bool(known) and cost["seconds"] > 0


def plan_text(forecast: Forecast) -> Iterator[str]:
    """The lines of `python -m eqbench plan`."""
    plan, expected = forecast.plan, forecast.expected
    yield f"suite {plan.name}: {len(plan.cells)} cells of {len(plan.models)} models, expected on one {forecast.device}"
    yield ""
    yield f"{'probe':16} {'cells':>7} {'expected':>9} {'host GB':>8} {'GPU GB':>7}  known by"
    for probe in sorted({cell.probe for cell in plan.cells}):
        own = [found for cell, found in expected.items() if cell.probe == probe]
        host, gpu = (max(getattr(found, key) for found in own) / 1e3 for key in ("host_mb", "gpu_mb"))
        total = duration(sum(found.seconds for found in own))
        yield f"{probe:16} {len(own):7} {total:>9} {host:8.1f} {gpu:7.1f}  {_known(own)}"
    trained = [(model, seed) for model, seed in plan.needed(plan.cells) if plan.trained(model)]
    if trained:
        works = [costs.train_work(plan, model, forecast.weights) for model, _ in trained]
        seconds = sum(costs.law().seconds(work) for work in works)
        law, factor = costs.law(), costs.law().factor(costs.TRAIN)
        host, gpu = (max(map(mb, works)) / 1e3 for mb in (law.host_mb, law.gpu_mb))
        yield f"{'(training)':16} {len(works):7} {duration(seconds):>9} {host:8.1f} {gpu:7.1f}  law (×/÷ {factor:.1f})"
    yield ""
    yield f"{'pack':8} {'jobs':>7} {'expected':>9} {'shortest':>9} {'longest':>9}  the longest"
    for pack, jobs in forecast.jobs.items():
        longest = max(jobs, key=jobs.__getitem__)
        numbers = [duration(seconds) for seconds in (sum(jobs.values()), min(jobs.values()), jobs[longest])]
        mark = " ←" if pack is forecast.pack else ""
        yield f"{pack:8} {len(jobs):7} {numbers[0]:>9} {numbers[1]:>9} {numbers[2]:>9}  {' '.join(longest)}{mark}"
    yield ""
    yield from _advice(forecast)
    yield from _caveats(forecast)


def _advice(forecast: Forecast) -> Iterator[str]:
    pack, jobs = forecast.pack, forecast.jobs[forecast.pack]
    own = forecast.plan.pack
    same = "as it is" if own is pack else f"it is {own}: overrides=[suite.{forecast.plan.name}.pack={pack}]"
    yield f"recommended: pack: {pack} ({same})"
    if max(jobs.values()) > LONGEST:
        yield f"  its longest job is one cell of {duration(max(jobs.values()))}: allow it that, or lower the probe's images"
    elif max(jobs.values()) < SHORTEST:
        last = f"the longest of its jobs lasts {duration(max(jobs.values()))}"
        yield f"  {last}: one machine is faster than a queue (`snakemake --cores all`)"


def _caveats(forecast: Forecast) -> Iterator[str]:
    ratio, factor = forecast.speed
    if forecast.measured:
        yield (
            f"{len(forecast.measured)} cells were measured on {forecast.device}: {ratio:.2g} times as long as by the law,"
            f" ×/÷ {factor:.1f}"
        )
    else:
        yield "nothing was measured yet: the law is that of one CPU core, and a GPU takes less time than it says"
    if forecast.device == "cpu":
        yield "GPU memory is inferred from that on CPUs"
    assumed = [m for m in forecast.plan.models if costs.size(forecast.plan, m, forecast.weights)[2] == "assumed"]
    if assumed:
        yield f"of unknown size until they are fetched: {', '.join(assumed[:5])}{', ...' * (len(assumed) > 5)}"


def _known(found: list[Expected]) -> str:
    """How numbers are known: `12 measured, 4 alike (×/÷ 1.2), 30 law (×/÷ 2.3)`."""
    told = []
    for how in KNOWN:
        own = [one.factor for one in found if one.known == how]
        if own:
            told.append(f"{len(own)} {how}" + (f" (×/÷ {max(own):.1f})" if how != "measured" else ""))
    return ", ".join(told)


def duration(seconds: float) -> str:
    """Seconds for the eye.

    >>> [duration(s) for s in (0.3, 61, 150, 5400, 10_000, 200_000)]
    ['0 s', '61 s', '2 min', '90 min', '2.8 h', '2.3 d']
    """
    for unit, size, format in (("d", 86400, ".1f"), ("h", 3600, ".1f"), ("min", 60, ".0f")):
        if seconds >= 2 * size:
            return f"{seconds / size:{format}} {unit}"
    return f"{seconds:.0f} s"
