"""What holds of the project as a whole: layers, dependencies, names that occur twice."""

import re
import subprocess
import sys
import tomllib
from ast import literal_eval
from pathlib import Path

import pytest
import yaml

from eqbench import plots
from eqbench.groups import GROUPS, PLACEBOS
from eqbench.metrics import METRICS
from eqbench.options import ids, load
from eqbench.schema import PROBES

ROOT = Path(__file__).parents[1]
TORCH_FREE = [
    "config",
    "suites",
    "stamps",
    "gains",
    "options",
    "results",
    "stats",
    "leaderboard",
    "plots",
    "report",
    "cells",
    "metrics",
    "groups",
]
TORCH_FREE += [
    "runner",
    "measuring",
    "cli",
    "weights",
    "data",
    "schema",
    "locks",
    "costs",
    "forecast",
    "status",
    "running",
    "reference",
]


@pytest.mark.parametrize("module", TORCH_FREE)
def test_the_upper_half_imports_without_torch(module):
    code = f"import sys, eqbench.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_environment_agrees_with_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = (entry["pip"] for entry in environment if isinstance(entry, dict))
    assert pip == project["dependencies"] + project["optional-dependencies"]["demo"]
    assert f"python{project['requires-python']}" in environment


def test_the_workflow_names_every_figure_and_no_cluster():
    text = (ROOT / "Snakefile").read_text()
    assert literal_eval(re.search(r"FIGURES = (\[.*?\])", text, re.DOTALL)[1]) == list(plots.FIGURES)
    assert "slurm" not in text.lower()
    assert re.findall(r"^rule (\w+):", text, re.MULTILINE) == [
        "all",
        "fetch",
        "train",
        "derive",
        "probe",
        "collect",
        "plot",
        "report",
    ]


def test_registries_agree_with_conf():
    assert set(ids("probe")) <= set(PROBES)
    assert {metric.probe for metric in METRICS.values()} == set(PROBES)
    for name in ids("group"):
        conf = load("group", name)
        assert conf.action in GROUPS
        assert PLACEBOS.get(conf.action, "none") == conf.placebo


def test_every_metric_is_declared_in_full():
    for metric in METRICS.values():
        assert metric.title, metric.name
        assert metric.symbol, metric.name
        assert metric.formula, metric.name
        assert metric.definition.count(".") <= 4, metric.name
        assert metric.cost, metric.name


def test_the_readme_shows_what_exists():
    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"\]\(((?!http)[^)#]+)\)", text):
        assert (ROOT / path).exists(), path
    for kind, name in re.findall(r"conf/(model|suite|group|probe|train|data)/(\w+)\.yaml", text):
        assert name in ids(kind) or name.startswith("my_"), (kind, name)


def test_the_readme_explains_every_number():
    section = (
        (ROOT / "README.md").read_text().split("<!-- python -m eqbench list metrics -->\n")[1].split("<!-- end -->")[0]
    )
    assert section.splitlines() == [metric.entry for metric in METRICS.values()], (
        "paste: python -m eqbench list metrics"
    )
