"""The figure and the panel of training's dynamics against the record that they show."""

from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from board import fill, suite

from eqbench.leaderboard import load
from eqbench.metrics.symmetries import BUT_FOR_EPS
from eqbench.panels.dynamics import dynamics as panel
from eqbench.plots import dynamics
from eqbench.plots.drawing import STYLE


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """The board of all probes, of which only the cells of this one are written."""
    folder = tmp_path_factory.mktemp("cells")
    plan = fill(folder, suite(deep=True), lambda cell, result: result if cell.probe == "dynamics" else None)
    return load(plan, folder)


def drawn(board):
    titles = {}
    with matplotlib.rc_context(STYLE):
        figure = dynamics.draw(board, titles)
    return figure, titles


def lines(figure):
    return {line.get_gid(): line for axes in figure.axes for line in axes.lines if line.get_gid()}


def curves(board, model="resnet_digits", seed="s0"):
    return next(r.curves for c, r in board.results.items() if (c.model, c.seed) == (model, seed))


def test_lines_are_the_record(board):
    figure, titles = drawn(board)
    number = next(
        gid.split("-")[1] for gid, words in titles.items() if words[0].startswith("resnet_digits on digits, s0: λ")
    )
    found, own = lines(figure), curves(board)
    for gid, key in (("sharpness", "lambda_max"), ("edge", "threshold"), ("aligned", "alignment")):
        assert found[f"{gid}-{number}"].get_xydata() == pytest.approx(
            np.array([[e["update"], e[key]] for e in own["steps"]])
        )
    (family, control) = own["families"]
    assert found[f"identity-{number}"].get_ydata() == pytest.approx(family["identity"])
    assert found[f"control-{number}"].get_ydata() == pytest.approx(control["identity"])
    assert found[f"balance-{number}"].get_ydata() == pytest.approx(family["imbalance"])
    assert found[f"edge-{number}"].get_linestyle() == found[f"control-{number}"].get_linestyle() == ":"


def test_families_that_eps_breaks_and_missing_numbers_are_left_out(board):
    def changed(curves):
        steps = [e | {"threshold": None, "lambda_max": None if i == 3 else e["lambda_max"]}
                 for i, e in enumerate(curves["steps"])]  # fmt: skip
        broken = {"family": "S9", "instances": 1, "identity": [1.0] * len(steps)}
        return {"steps": steps, "families": [*curves["families"], broken]}

    other = replace(board, results={c: replace(r, curves=changed(r.curves)) for c, r in board.results.items()})
    found = lines(drawn(other)[0])
    assert not any(gid.startswith("edge") for gid in found)
    assert len(found["sharpness-0"].get_xdata()) == len(curves(board)["steps"]) - 1
    assert max(found["identity-0"].get_ydata()) < 1e-6


def test_the_axis_is_of_the_networks_that_are_drawn(board, monkeypatch):
    monkeypatch.setattr(dynamics, "MODELS", 1)
    first = min(cell.model for cell in board.results)
    before = drawn(board)[0].axes[0].get_ylim()
    found = {
        cell: result if cell.model == first else replace(result, curves=result.curves | {
            "steps": [step | {"lambda_max": 1e6} for step in result.curves["steps"]]})
        for cell, result in board.results.items()
    }  # fmt: skip
    assert drawn(replace(board, results=found))[0].axes[0].get_ylim() == before
    assert all(family in dynamics.CAPTION for family in BUT_FOR_EPS)


def test_a_board_without_records_has_no_figure(board):
    assert drawn(replace(board, results={}))[0] is None
    bare = {c: replace(r, curves={}) for c, r in board.results.items()}
    assert drawn(replace(board, results=bare))[0] is None


def test_the_panel_tells_of_every_seed(board):
    own = [(c, r) for c, r in board.results.items() if c.model == "resnet_digits"]
    found = panel(own)
    steps = curves(board)["steps"]
    assert f"s0: gradient along the sharpest direction {steps[0]['alignment']:.3f}" in found.note
    assert "s1: " in found.note
    sharp, obeyed = (str(chart) for _, chart in found.charts)
    assert sharp.count('dotted" d=') == obeyed.count('dotted" d=') == 2  # a seed's edge of stability, and its control
    assert "S8" in obeyed
    assert panel([]) is None
    assert panel([(c, replace(r, curves={})) for c, r in own]) is None
