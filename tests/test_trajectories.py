"""Networks over training: epochs of states, curves pooled as the board pools, half-way times that cover their truth."""

import xml.etree.ElementTree as ET
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from board import TREATED, fill, make, over_training, suite
from growing import RECIPE, grow, measure

from eqbench import findings
from eqbench.inference import spread
from eqbench.leaderboard import Board, load
from eqbench.lineage import place
from eqbench.metrics import METRICS
from eqbench.panels import trajectory
from eqbench.plots import over_training as figures
from eqbench.plots import trajectories as emergence
from eqbench.plots import trajectories_by_layer, trajectories_landscape
from eqbench.plots.drawing import STYLE
from eqbench.plots.svg import svg
from eqbench.plots.trajectories_landscape import threshold
from eqbench.pooling import pool
from eqbench.report import report
from eqbench.results import Measure
from eqbench.trajectories import by_seed, curve, halfway, thirds, when

EPOCHS = {"init": 0, "epoch-001": 1, "epoch-003": 3, "epoch-007": 7, "final": 15}
ROW = ("convnext_digits_d4", "digits", "d4")
SHARE = "symmetry_share"


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deep")
    return load(fill(folder, suite(deep=True)), folder)


def linear(half):
    """A share that grows in proportion to place up to twice the half-way place, and stays."""
    return {state: 0.4 * min(place(e) / (2 * place(half)), 1.0) for state, e in EPOCHS.items()}


# --- epochs, curves ---------------------------------------------------------------------------------------------------


def test_states_are_epochs_in_order_and_final_is_the_last():
    states = ("final", "epoch-010", "epoch-002", "epoch-015", "init")
    board = grow({"a": ("net", {})}, lambda *_: {}, states=states)
    assert board.epochs == {"a": {"init": 0, "epoch-002": 2, "epoch-010": 10, "final": 15}}
    assert list(board.epochs["a"].values()) == [0, 2, 10, 15]
    assert grow({"a": ("net", {})}, lambda *_: {}, states=("init", "final")).epochs == {}
    assert grow({"a": ("net", {"epochs": None})}, lambda *_: {}).epochs == {}, "an older cell names no last epoch"


def test_a_curve_is_the_boards_numbers_at_its_ends_and_the_seeds_between(deep):
    points = dict(curve(deep, ROW, SHARE))
    row = deep.table.query("model == @ROW[0] and group == 'd4'").iloc[0]
    for epoch, column in ((0, f"{SHARE}_init"), (10, SHARE)):
        ends = [row[column], row[f"{column}_lo"], row[f"{column}_hi"]]
        assert [points[epoch].value, points[epoch].lo, points[epoch].hi] == pytest.approx(ends, rel=1e-5)
    seeds = {
        model: [deep.results[cell].metrics[SHARE] for cell in deep.results if
                (cell.model, cell.state, cell.group, cell.probe) == (model, "epoch-004", "d4", "orbit")]
        for model in TREATED
    }  # fmt: skip
    around = spread([m.value for m in own] for own in seeds.values())
    assert points[4] == pool(seeds[ROW[0]], around)


def test_thirds_are_means_over_their_layers_without_prefix_tokens():
    def layers(model, seed, state):
        for i in range(6):
            yield (
                f"blocks.{i}",
                i / 5,
                (),
                1.0,
                None,
                {"layer_error_permuted": Measure(i + EPOCHS[state], i - 1, i + 1)},
            )
        yield "blocks.5:prefix", 1.0, (), 1.0, None, {"layer_error_permuted": Measure(1e6)}

    found = {
        third: points
        for (_, third), points in thirds(grow({"a": ("net", {})}, lambda *_: {}, layers=layers, seeds=1)).items()
    }
    assert {third: [(e, m.value) for e, m in points] for third, points in found.items()} == {
        third: [(e, mean + e) for e in EPOCHS.values()]
        for third, mean in (("early", 0.5), ("middle", 2.5), ("late", 4.5))
    }
    assert (found["late"][0][1].lo, found["late"][0][1].hi) == (3.5, 5.5), "layers share images: no narrower than one"


def test_a_state_that_one_seed_lacks_moves_no_line():
    """Two seeds far apart, the upper one without one state: means over whoever is there would fall there and rise again."""
    share = lambda model, seed, state: {SHARE: measure(0.1 + 0.5 * (seed == 0) + 0.01 * EPOCHS[state], 0.01, 0.01)}  # noqa: E731
    layers = lambda model, seed, state: [  # noqa: E731
        ("block", 0.0, (), 1.0, None, {"layer_error_permuted": Measure(5.0 * (seed == 0) + EPOCHS[state], 0.0, 9.0)})
    ]
    whole = grow({"a": ("net", {})}, share, seeds=3, layers=layers)
    some = {cell: r for cell, r in whole.results.items() if (cell.seed, cell.state) != ("s0", "epoch-003")}
    board, row = Board(whole.plan, some, {}), ("a", "digits", "hflip")
    assert [(e, m.value) for e, m in curve(board, row, SHARE)] == [
        (e, pytest.approx(0.1 + 0.01 * e)) for e in EPOCHS.values()
    ]
    (points,) = thirds(board).values()
    assert [(e, m.value) for e, m in points] == [(e, e) for e in EPOCHS.values()]
    assert "hflip: 0.100 to 0.250" in trajectory(list(some.items()), board.epochs["a"]).charts[0][1]
    assert [m.value for _, m in curve(whole, row, SHARE)][:1] == [pytest.approx(0.1 + 0.5 / 3)], (
        "all three where they can"
    )
    alone = Board(whole.plan, {c: r for c, r in some.items() if c.seed == "s0"}, {})
    assert [e for e, _ in curve(alone, row, SHARE)] == [0, 1, 7, 15], "of the states that the only seed has"


# --- half way ---------------------------------------------------------------------------------------------------------


def test_half_way_is_the_first_crossing_between_saved_epochs():
    for half in (0.6, 1.0, 2.5, 2.9):
        points = [(EPOCHS[state], value) for state, value in linear(half).items()]
        assert halfway(points) == pytest.approx(half)
        assert halfway([(e, 1 - value) for e, value in points]) == pytest.approx(half), "also where it falls"
    assert halfway([(0, 0.0), (1, 0.9), (3, 0.1), (7, 1.0)]) < 1, "the first of several"
    assert halfway([(0, 0.0), (1, 2.0), (3, 1.0)]) == pytest.approx(2**0.25 - 1), "beyond its end and back"
    assert halfway([(0, 0.3), (1, 0.5), (3, 0.3)]) is None, "no change is never half made"


def planted(halves, seeds=3, jitter=0.0, rng=None, error=0.004):
    """A board of networks whose shares are half way at known epochs, each seed's moved by a factor of 1 + epoch."""
    moved = {
        (model, seed): 2 ** (place(half) + (rng.normal() * jitter if rng else 0)) - 1
        for model, half in halves.items()
        for seed in range(seeds)
    }
    return grow(
        {model: (model, {}) for model in halves},
        lambda model, seed, state: {SHARE: measure(0.01 + linear(max(moved[model, seed], 0.1))[state], error, error)},
        seeds=seeds,
    )


def test_when_is_the_planted_epoch_of_each_network():
    found, silent = when(planted({"early": 0.6, "late": 2.8}))
    assert silent == []
    assert [(one.model, one.epoch, one.seeds, one.images, one.last) for one in found] == [
        ("early", pytest.approx(0.6), 3, 256, 15), ("late", pytest.approx(2.8), 3, 256, 15)]  # fmt: skip
    assert all(one.known for one in found)


def test_seeds_with_holes_have_no_time():
    """The seed that lacks the state before its rise would be half way too early."""
    whole = planted({"a": 2.0, "b": 2.0}, seeds=3)
    lost = {("s0", "epoch-003"), ("s1", "epoch-001")}
    some = {
        cell: r
        for cell, r in whole.results.items()
        if (cell.model, cell.seed, cell.state) not in {("a", *one) for one in lost}
    }
    board = Board(whole.plan, some, {})
    assert list(by_seed(board, ("a", "digits", "hflip"), SHARE)) == ["s2"]
    found, silent = when(board)
    assert ([(one.model, one.seeds) for one in found], silent) == ([("b", 3)], ["a on digits"])


def test_its_interval_covers_the_truth_as_often_as_it_says():
    """Eight networks of three seeds whose times scatter; the truth is the mean of log2(1 + epoch)."""
    rng, halves = np.random.default_rng(1), {f"net{i}": 0.8 + 0.2 * i for i in range(8)}
    covered = [
        one.lo <= halves[one.model] <= one.hi
        for _ in range(200)
        for one in when(planted(halves, jitter=0.12, rng=rng))[0]
    ]
    assert len(covered) == 1600
    assert 0.93 <= np.mean(covered) <= 0.975, np.mean(covered)


def test_without_change_or_a_second_seed_nothing_is_said():
    found, silent = when(planted({"one": 1.0}, seeds=1))
    assert (found, silent) == ([], ["one on digits"])
    rng = np.random.default_rng(2)
    still = grow({f"net{i}": ("net", {}) for i in range(4)},
                 lambda *_: {SHARE: measure(0.2 + 0.01 * rng.normal(), 0.01, 0.01)})  # fmt: skip
    found, silent = when(still)
    assert (found, len(silent)) == ([], 4)
    answer = findings._when(still)
    assert not answer.supported
    assert "cannot be told" in answer.answer
    assert "Nothing can be said of net0 on digits, net1" in answer.answer


def test_the_finding_quotes_it_and_boards_without_epochs_are_not_asked(deep, tmp_path):
    finding = findings._when(deep)
    first = when(deep)[0][0]
    said = f"by epoch {findings.between(first.epoch, first.lo, first.hi)} of 10 in {first.model} on digits under hflip and d4"
    assert finding.supported
    assert said in finding.answer
    assert first.lo < first.epoch < first.hi
    assert "Measured on 256 images, 2 seeds" in finding.answer
    assert findings._when(load(fill(tmp_path), tmp_path)) is None


def test_of_many_networks_the_finding_names_the_first_and_the_last():
    halves = {f"net{i}": 0.6 + 0.4 * i for i in range(5)}
    answer = findings._when(planted(halves)).answer
    assert [name for name in halves if name in answer] == ["net0", "net4"]
    assert "; in 3 more, between these." in answer


def test_the_finding_names_each_metric_that_it_is_about():
    board = planted({"early": 0.6, "late": 2.8})
    for cell, result in board.results.items():
        if cell.model == "late":
            result.metrics["js_share"] = result.metrics.pop(SHARE)
    assert {one.metric for one in when(board)[0]} == {SHARE, "js_share"}
    answer = findings._when(board).answer
    first, second = answer.split(" of 15 in early on digits under hflip; of the ")
    assert first.startswith(f"Half of the final change of the {METRICS[SHARE].title} was made by epoch 0.6")
    assert second.startswith(f"{METRICS['js_share'].title} was made by epoch 2.80")


# --- the board, the page ----------------------------------------------------------------------------------------------


def test_ranks_and_emergence_are_of_the_ends_alone(deep):
    ends = type(deep)(
        type(deep.plan)(deep.plan.name, deep.plan.pack, {c: v for c, v in deep.plan.cells.items() if not c.state.startswith("epoch")}, deep.plan.overrides),
        {c: r for c, r in deep.results.items() if not c.state.startswith("epoch")}, {})  # fmt: skip
    besides = ["done", "planned", "seconds"]
    assert deep.table.drop(columns=besides).equals(ends.table.drop(columns=besides))
    assert (deep.table["done"] > ends.table["done"]).any(), "they are counted"
    assert deep.layers.equals(ends.layers)


def test_a_models_section_has_its_lines(deep):
    own = [(cell, result) for cell, result in deep.results.items() if cell.model == ROW[0]]
    panel = trajectory(own, deep.epochs[ROW[0]])
    assert panel is not None
    headings = [words for words, _ in panel.charts]
    assert headings[:2] == ["Top-1 accuracy, a line a seed", "Symmetry loss share, a line a group"]
    assert "hflip: 0.010" in panel.charts[1][1].replace("hflip: 0.0100", "hflip: 0.010")
    assert "Measured at epochs 0, 1, 4, 10" in panel.note
    assert trajectory(own, {}) is None
    assert trajectory(own, {"init": 0, "final": 10}) is None


def test_hundreds_of_states_leave_the_page_light(tmp_path):
    plan, made, near = over_training(suite(), TREATED, ["hflip", "d4"], list(range(1, 201)), 2), {}, {}
    for cell in list(plan.cells):
        if cell.model not in TREATED or cell.probe not in ("orbit", "spectrum"):
            del plan.cells[cell]
            continue
        like = replace(cell, state="epoch-001" if cell.state.startswith("epoch") else cell.state)
        result = near[like] = near.get(like) or make(plan, like)
        recipe = result.provenance["recipe"] | {"epochs": 400}
        made[cell] = replace(result, layers=[], provenance=result.provenance | {"recipe": recipe})
    board = Board(plan, made, {})
    assert len(board.epochs[TREATED[0]]) == 202
    text = report(board, tmp_path).read_text()
    assert len(text) < 1_500_000
    assert "Likewise for the other 399 seeds and states" in text
    titles = {}
    with matplotlib.rc_context(STYLE):
        assert len(svg(emergence.draw(board, titles), "t", "t", "t", titles)) < 60_000


# --- figures ----------------------------------------------------------------------------------------------------------


def test_each_network_has_its_accuracy_whatever_groups_it_was_measured_under():
    share = lambda *at: {SHARE: measure(linear(2)[at[2]] + 0.1, 0.01, 0.01)}  # noqa: E731
    both = lambda *at: share(*at) | {"accuracy": measure(0.5, 0.01, 0.01)}  # noqa: E731
    whole = Board(grow({}, share).plan, {}, {})
    for model, group, value in (("a", "hflip", both), ("b", "c4", both), ("c", "hflip", share), ("c", "c4", both)):
        board = grow({model: (model, {})}, value, group=group)
        whole.plan.cells.update(board.plan.cells)
        whole.results.update(board.results)
    found = list(figures.strips(whole, ["accuracy"], most=1, alike=True))
    assert [(strip.label, sorted(strip.curves)) for strip in found] == [("acc", ["a", "b", "c"])]


def test_no_curve_is_made_for_a_figure_that_is_full(monkeypatch, deep):
    asked = []
    monkeypatch.setattr(figures, "curve", lambda board, row, name: asked.append(row[1:]) or curve(board, row, name))
    assert len(list(figures.strips(deep, [SHARE], most=1))) == 1
    assert len(set(asked)) == 1


def test_captions_say_what_is_cut():
    for figure in (emergence, trajectories_by_layer, trajectories_landscape):
        said = f"at most {figures.ARCHITECTURES} (those with most recipes) of {figures.LINES} lines"
        assert said in figure.CAPTION
        groups = figures.GROUPS if figure is emergence else figure.GROUPS
        assert f"at most {groups} groups" in figure.CAPTION.lower()


@pytest.mark.parametrize("drawing", [emergence, trajectories_by_layer, trajectories_landscape])
def test_a_board_of_ends_alone_draws_no_such_figure(drawing, tmp_path):
    plan = suite()
    assert drawing.draw(load(fill(tmp_path, plan), tmp_path), {}) is None


def test_lines_go_through_the_pooled_numbers(deep):
    titles = {}
    with matplotlib.rc_context(STYLE):
        figure = emergence.draw(deep, titles)
        texts = [
            e.text for e in ET.fromstring(svg(figure, "t", "t", "t", titles)).iter("{http://www.w3.org/2000/svg}title")
        ]
    points = curve(deep, ROW, SHARE)
    listed = ", ".join(f"epoch {e} {m.value:.3g}" for e, m in points)
    assert f"{ROW[0]}, Symmetry loss share S_G, d4: {listed}" in texts
    line = next(line for axes in figure.axes for line in axes.lines if len(line.get_xdata()) == 4)
    assert list(line.get_xdata()) == pytest.approx([place(e) for e in (0, 1, 4, 10)])
    words = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert words == ["plain", "d4"], "treatments of one architecture share a panel, the plain one first"
    assert figure.axes[0].get_title(loc="left") == "convnext_digits\ntest_convnext"


def test_a_column_an_architecture_or_one_for_all():
    value = lambda model, seed, state: {SHARE: measure(linear(2)[state] + 0.1, 0.01, 0.01)}  # noqa: E731
    models = {
        f"{arch}{i}": (arch, {"augment": aug}) for arch in "abcde" for i, aug in enumerate(("none", "d4", "hflip"))
    }
    columns = figures._columns(grow(models, value), sorted(models))
    assert [own for _, own in columns] == [[f"{arch}0", f"{arch}1", f"{arch}2"] for arch in "abcd"]
    alone = {name: (name, {}) for name in "abcdefghij"}
    assert figures._columns(grow(alone, value), sorted(alone)) == [("", list("abcdefgh"))]
    shares = {"a0": ("a", {}), "a1": ("a", {"fraction": 0.1}), "a2": ("a", {"lr": 1.0})}
    board = grow(shares, value)
    looks = figures._looks(board, figures._columns(board, sorted(shares)))
    assert [looks[model][2] for model in sorted(shares)] == ["plain", "plain, 10% of the images", "a2"]
    assert len({looks[model][:2] for model in shares}) == 3


def test_the_threshold_is_that_of_the_step_at_each_epoch():
    recipe = RECIPE | {"opt": "sgd", "momentum": 0.0, "lr": 0.1, "min_lr": 0.0, "warmup_epochs": 2, "epochs": 10}
    found = dict(threshold(recipe, [0, 1, 2, 6, 10]))
    assert found == pytest.approx({1: 2 / 0.05, 2: 2 / 0.1, 6: 2 / 0.05})
    nesterov = dict(threshold(recipe | {"momentum": 0.9}, [2]))
    assert nesterov[2] == pytest.approx(2 * 1.9 / 2.8 / 0.1)
    sharp = lambda model, seed, state: {"lambda_max": Measure(5.0 + EPOCHS[state], 4.0, 30.0, 1)}  # noqa: E731
    for opt, dashed in (("sgd", 1), ("adamw", 0)):
        board = grow({"a": ("net", recipe | {"opt": opt, "epochs": 15})}, sharp, group="none", probe="spectrum")
        (axes,) = trajectories_landscape.draw(board, {}).axes
        assert sum(line.get_linestyle() == "--" for line in axes.lines) == dashed
        assert axes.get_yscale() == "log"
