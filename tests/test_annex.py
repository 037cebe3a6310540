"""The page's glossary: every declared fact of every metric, whichever board it stands on."""

import re

import pytest
from board import fill, suite
from markupsafe import Markup

from eqbench.columns import SENSES
from eqbench.leaderboard import load
from eqbench.metrics import METRICS
from eqbench.report import report


@pytest.fixture(scope="module")
def glossary(tmp_path_factory):
    """Name -> what the glossary of an empty board says of it, as text."""
    folder = tmp_path_factory.mktemp("empty")
    html = report(load(fill(folder, suite(), change=lambda cell, result: None), folder), folder).read_text()
    entries = re.findall(r'<dt id="g-(\w+)">(.*?)</dd>', html, re.DOTALL)
    return {name: " ".join(Markup(text).striptags().split()) for name, text in entries}


def test_every_metric_stands_in_the_glossary_once(glossary):
    assert list(glossary) == sorted(
        METRICS, key=lambda name: [m.probe for m in METRICS.values()].index(METRICS[name].probe)
    )


@pytest.mark.parametrize("name", METRICS)
def test_an_entry_has_symbol_formula_direction_unit_floor_null_cost_and_source(glossary, name):
    metric, said = METRICS[name], glossary[name]

    def plain(text):
        return " ".join(re.sub(r"[_^{}]", "", text).split())

    assert plain(said).startswith(f"{plain(metric.symbol)} {metric.title} {plain(name)} {plain(metric.definition)}")
    for part in (metric.formula, f"Floor: {metric.floor or 'none'}.", f"Null: {metric.null or 'none'}."):
        assert plain(part) in plain(said)
    assert (
        f"{SENSES[metric.higher_is_better].capitalize()}; {f'in {metric.unit}' if metric.unit else 'no unit'}" in said
    )
    assert plain(f"Cost: {metric.cost}. Source: {metric.citation.rstrip('.')}.") in plain(said)
    assert metric.cost
    assert metric.citation
