"""What symmetry goes with: planted relations are found, confounders taken out, chance called no evidence."""

import csv
import io
import math
import re
import tracemalloc
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from markupsafe import escape
from scipy import stats

from eqbench import analysis, panelpoints, rankcorrelation, report, schema
from eqbench.analysis import EVIDENCE, FEWEST, NONE, analyse, judged, relate, table
from eqbench.cells import names
from eqbench.config import Cell, Plan
from eqbench.leaderboard import Board
from eqbench.metrics import METRICS
from eqbench.panelpoints import BETWEEN, OVER, Point, Question, points
from eqbench.plots import symmetry_buys
from eqbench.rankcorrelation import clustered, correlate, p_value
from eqbench.results import Measure, Result

SHARE = "symmetry_share"
ASKED = Question("digits", BETWEEN, "hflip", SHARE, "shift_accuracy")


def rng(seed=0):
    return np.random.default_rng(seed)


# ---------------------------------------------------------------- the coefficient


def test_the_coefficient_is_scipys():
    for seed in range(5):
        x, y = rng(seed).integers(0, 9, (2, 20)).astype(float)  # with ties
        assert correlate(x, y, count=100).value == pytest.approx(stats.spearmanr(x, y).statistic)


def test_the_partial_coefficient_is_that_of_residual_ranks():
    x, y, z = rng(1).normal(size=(3, 25))
    ranks = [stats.rankdata(v) for v in (x, y, z)]
    left = [v - np.polyval(np.polyfit(ranks[2], v, 1), ranks[2]) for v in ranks[:2]]
    found = correlate(x, y, z, count=100)
    assert found.value == pytest.approx(np.corrcoef(*left)[0, 1])
    assert math.isnan(correlate(x, y, x, count=100).value)


def test_a_resample_is_the_sample_with_points_repeated():
    x, y = rng(2).normal(size=(2, 9))
    times = np.array([2, 0, 1, 3, 1, 0, 1, 1, 0])
    seen = []

    def spy(statistic, n, count, clusters):
        seen.append(float(statistic(times[None].astype(float))[0]))
        return 0.0, 0.0, 0.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rankcorrelation, "bootstrap", spy)
        correlate(x, y)
    assert seen == [pytest.approx(stats.spearmanr(np.repeat(x, times), np.repeat(y, times)).statistic)]


def test_intervals_cover():
    """Nominal 95 % of a bivariate normal's rank correlation, 6/pi arcsin(rho/2), for 8 and for 24 networks."""
    for n in (8, 24):
        for rho in (0.0, 0.7):
            true, hits = 6 / math.pi * math.asin(rho / 2), 0
            for seed in range(200):
                x, y = rng([seed, n]).multivariate_normal([0, 0], [[1, rho], [rho, 1]], n).T
                found = correlate(x, y, count=200)
                hits += found.lo <= true <= found.hi
            assert hits / 200 > 0.92


def test_p_values_are_exact_for_few_points_where_students_t_is_not():
    orders = [(0, 1, 2, 3, 4, 5, 6, 7), (1, 0, 2, 3, 4, 5, 6, 7)]
    exact = [2 / math.factorial(8), 2 * (1 + 7) / math.factorial(8)]
    for order, p in zip(orders, exact, strict=True):
        r = stats.spearmanr(range(8), order).statistic
        assert p_value(r, 8) == pytest.approx(p, rel=0.3, abs=2e-5)
    assert stats.spearmanr(range(8), orders[1]).pvalue < exact[1] / 5
    middle = p_value(0.4, 30)
    assert middle == pytest.approx(2 * stats.t.sf(0.4 * math.sqrt(28 / 0.84), 28), rel=0.05)
    assert math.isnan(p_value(0.5, 3))
    assert math.isnan(clustered(np.ones(1)))
    assert clustered(np.array([1.0, 2.0, 3.0])) == pytest.approx(stats.ttest_1samp([1.0, 2.0, 3.0], 0).pvalue)


def test_a_panels_coefficient_is_that_of_ranks_less_the_means_of_both_sides():
    """In whatever order its points are, and with a variable held fixed."""
    variables = rng(10).normal(size=(3, 7, 4))
    left = []
    for v in variables:
        ranks = stats.rankdata(v).reshape(v.shape)
        left.append((ranks - ranks.mean(0) - ranks.mean(1, keepdims=True) + ranks.mean()).ravel())
    x, y, z = (v / np.linalg.norm(v) for v in left)
    order, (who, when) = rng(11).permutation(28), np.indices((7, 4)).reshape(2, 28).astype(str)
    own = [v.ravel()[order] for v in variables]
    more = {"panel": (who[order], when[order]), "clusters": who[order], "count": 100}
    assert correlate(*own[:2], **more).value == pytest.approx(x @ y)
    x, y = x - x @ z * z, y - y @ z * z
    assert correlate(*own, **more).value == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def test_memory_grows_with_the_points_and_not_with_their_square():
    networks, states = 1000, 5
    n, (who, when) = networks * states, np.indices((networks, states)).reshape(2, -1).astype(str)
    x, y = rng(12).normal(size=(2, n))
    tracemalloc.start()
    correlate(x, y, clusters=who, panel=(who, when), count=20)
    rankcorrelation._chance.__wrapped__(1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * n * n < 8 * rankcorrelation.PERMUTATIONS * 1000


def test_random_orders_are_the_same_however_many_are_drawn_at_once(monkeypatch):
    whole = rankcorrelation._chance.__wrapped__(9)
    monkeypatch.setattr(rankcorrelation, "BLOCK", 9 * 777)
    assert np.array_equal(rankcorrelation._chance.__wrapped__(9), whole)


# ---------------------------------------------------------------- verdicts


def made(share, outcome, accuracy=None, scope=BETWEEN, sources=None, group="hflip"):
    """A relation's points: (networks,) or (networks, states) each."""
    share, outcome = np.asarray(share, float), np.asarray(outcome, float)
    accuracy = np.full_like(share, math.nan) if accuracy is None else np.asarray(accuracy, float)
    own = [
        Point(f"m{i[0]}", "final" if len(i) == 1 else f"epoch-{i[1]:03d}", (sources or {}).get(i[0], f"w{i[0]}"), *each)
        for i, *each in zip(np.ndindex(share.shape), share.flat, outcome.flat, accuracy.flat, strict=True)
    ]
    return ASKED._replace(scope=scope, group=group), own


def verdict(*args, **more):
    return judged([relate(*made(*args, **more))])[0]


def test_a_planted_correlation_is_found_and_one_that_accuracy_makes_is_not():
    x, noise, accuracy = rng(3).normal(size=(3, 40))
    found = verdict(x, -x + 0.5 * noise, accuracy)
    assert found.verdict == EVIDENCE
    assert found.partial_lo < found.partial < found.partial_hi < 0
    assert found.claim == (found.partial, found.partial_lo, found.partial_hi)
    confounded = verdict(accuracy + 0.3 * x, accuracy + 0.3 * noise, accuracy)
    assert confounded.rho_lo > 0.5
    assert confounded.verdict == NONE
    assert confounded.partial_lo < 0 < confounded.partial_hi


def test_without_the_partial_step_the_confounder_passes(monkeypatch):
    """Mutation: accuracy is not held fixed."""
    x, noise, accuracy = rng(3).normal(size=(3, 40))
    monkeypatch.setattr(rankcorrelation, "partial", lambda xy, *rest: xy)
    assert verdict(accuracy + 0.3 * x, accuracy + 0.3 * noise, accuracy).verdict == EVIDENCE


GROUPS, OUTCOMES = 2, 4


def null_board(seed, networks=16, holm=True):
    """The verdicts of a board where nothing goes with symmetry but through accuracy; groups and outcomes go together."""
    random = rng([7, seed])
    accuracy, common = random.normal(size=(2, networks))
    relations = []
    for g in range(GROUPS):
        share = 0.5 * accuracy + common + 0.6 * random.normal(size=networks)
        for _ in range(OUTCOMES):
            outcome = 0.5 * accuracy + random.normal(size=networks)
            relations.append(relate(*made(share, outcome, accuracy, group=f"g{g}"), count=100))
    if not holm:
        return [replace(one, verdict=EVIDENCE if one.p < 0.05 else NONE).verdict for one in relations]
    return [one.verdict for one in judged(relations)]


@pytest.mark.parametrize("networks", [FEWEST, 16])
def test_chance_is_called_no_evidence(networks):
    """In at least 93 % of 1,000 boards (500 of either size) no relation at all is called evidence."""
    quiet = [EVIDENCE not in null_board(seed, networks) for seed in range(500)]
    assert np.mean(quiet) >= 0.93
    if networks == 16:
        loud = [EVIDENCE in null_board(seed, holm=False) for seed in range(100)]
        assert np.mean(loud) > 0.2, "mutation: without Holm's adjustment"


def walks(seed, networks=12, states=5):
    """Share, outcome and accuracy (networks, states) that all drift in training, and otherwise wander on their own."""
    random = rng([9, seed])
    drift = np.linspace(0, 4, states)
    return [
        drift + random.normal(size=(networks, 1)) + 0.5 * random.normal(size=(networks, states)).cumsum(1)
        for _ in range(3)
    ]


def test_what_all_networks_go_through_in_training_is_no_evidence():
    quiet = [verdict(*walks(seed), scope=OVER).verdict == NONE for seed in range(200)]
    assert np.mean(quiet) >= 0.92  # one claim a board here: 95 % are expected
    share, outcome, accuracy = walks(0)
    assert stats.spearmanr(share.ravel(), outcome.ravel()).pvalue < 1e-4, "plain, the drift is a correlation"
    planted = verdict(share, outcome + 3 * (share - np.linspace(0, 4, 5)), accuracy, scope=OVER)
    assert planted.verdict == EVIDENCE
    assert (planted.n, planted.networks) == (60, 12)


def test_points_of_one_source_are_one_network():
    """Every network thrice, with the same numbers: no more is known than from one of each."""
    x, y = rng(4).normal(size=(2, 10))
    once, thrice = verdict(x, y), verdict(np.tile(x, 3), np.tile(y, 3), sources={i: f"w{i % 10}" for i in range(30)})
    assert (thrice.networks, thrice.n) == (10, 30)
    assert thrice.rho == pytest.approx(once.rho)
    assert thrice.p == pytest.approx(once.p)
    assert (thrice.rho_lo, thrice.rho_hi) == pytest.approx((once.rho_lo, once.rho_hi))
    apart = verdict(np.tile(x, 3), np.tile(y, 3))
    assert apart.p < once.p, "mutation: taken for thirty"
    assert apart.rho_hi - apart.rho_lo < once.rho_hi - once.rho_lo


def test_what_cannot_be_said_has_a_reason():
    x = np.arange(float(FEWEST))
    few = verdict(x[:-1], x[:-1])
    assert (few.verdict, few.reason) == (NONE, f"{FEWEST - 1} independent networks: {FEWEST} are the least")
    assert math.isnan(few.rho)
    assert math.isnan(few.holm)
    flat = verdict(x, 0 * x + 0.25)
    assert (flat.verdict, flat.reason) == (NONE, "Accuracy, shifted is 0.250 of all")
    bound = verdict(x, x**2, x)
    assert (bound.verdict, bound.reason) == (NONE, "at equal accuracy nothing is left to vary")
    assert math.isnan(bound.holm)
    apart = np.repeat(x[:, None], 3, axis=1)
    alike = verdict(apart, walks(0, FEWEST, 3)[1], scope=OVER)
    assert (alike.verdict, alike.reason) == (NONE, "less the means of networks and epochs nothing is left to vary")
    unlabelled = verdict(x, -x, np.full(FEWEST, math.nan))
    assert not unlabelled.adjusted
    assert verdict(x, -x, 0 * x).claim == unlabelled.claim, "accuracy that is the same of all is held fixed as it is"
    assert unlabelled.claim[0] == pytest.approx(-1)


def test_sentences_give_direction_and_no_cause():
    x, noise = rng(5).normal(size=(2, 30))
    found = verdict(x, -x + 0.2 * noise, noise)
    assert found.sentence.startswith(
        "Networks on digits with a smaller Symmetry loss share under hflip have a higher Accuracy, shifted at equal accuracy: rank correlation −0.9"
    )
    assert "lower" in verdict(x, x + 0.2 * noise, noise).sentence
    share, outcome, accuracy = walks(0)
    over = verdict(share, outcome + 3 * (share - np.linspace(0, 4, 5)), accuracy, scope=OVER)
    assert over.sentence.startswith("In training on digits, where the Symmetry loss share under hflip is smaller")
    for one in (found, over):
        assert not set(one.sentence.lower().split()) & {"because", "causes", "makes", "improves", "buys", "due"}


# ---------------------------------------------------------------- boards


@dataclass(frozen=True)
class Grid(Plan):
    """A plan whose models have no files under conf/."""

    def plain(self, kind, name):
        base = {"timm": name.partition("+")[0], "source": "train", "licence": None, "image_size": None}
        return base | ({"of": name.partition("~")[0]} if "~" in name else {}) if kind == "model" else {}

    def option(self, kind, name):
        return schema.Model(timm=name, source=schema.Source.hub)


def board(numbers, recipes=None, seeds=1, groups=("hflip", "d4")):
    """`numbers`: (model, state) -> symmetry and the outcomes; every group has the same share."""
    plan, found = Grid("made-up", schema.Pack.run, {}, ()), {}
    for (model, state), own in numbers.items():
        facts = {
            "family": "f",
            "weights": f"{abs(hash((model, state))):064x}"[:64],
            "recipe": (recipes or {}).get(model),
        }
        for seed in range(seeds):
            wobble = 0.01 * (seed - (seeds - 1) / 2)
            for group, probe in [*((group, "orbit") for group in groups), ("none", "robustness"), ("none", "spectrum")]:
                measures = {
                    name: Measure(value + wobble, value - 0.1, value + 0.1, 100)
                    for name, value in own.items()
                    if METRICS[name].probe == probe
                }
                cell = Cell("made-up", model, f"s{seed}", state, group, probe)
                plan.cells[cell] = ("digits", None)
                found[cell] = Result(names(plan, cell), metrics=measures, provenance=facts)
    return Board(plan, found, {})


def planted(networks=12, epochs=(), seeds=1):
    """Networks whose noise robustness goes with their symmetry, and nothing else does."""
    random, numbers = rng(6), {}
    for i in range(networks):
        for state in ("init", *epochs, "final"):
            share = 0.0 if state == "init" else random.uniform(0.1, 0.6)
            numbers[f"net{i}", state] = {
                SHARE: share,
                "accuracy": random.uniform(0.6, 0.9),
                "noise_medium_accuracy": 0.8 - share,
                "shift_accuracy": random.uniform(0.2, 0.8),
                "pgd_strong_accuracy": 0.0,
                "lambda_max": random.uniform(5, 50),
            }
    return board(numbers, seeds=seeds)


def test_a_board_is_asked_every_question_it_has_numbers_for():
    found = analyse(planted(seeds=2))
    asked = [(one.scope, one.group, one.outcome) for one in found.relations]
    order = ["accuracy", "shift_accuracy", "noise_medium_accuracy", "pgd_strong_accuracy", "lambda_max"]
    assert asked == [(BETWEEN, group, outcome) for group in ("hflip", "d4") for outcome in order]
    assert {one.n for one in found.relations} == {12}, "a point a network, whatever its seeds, and none untrained"
    assert [(one.group, one.outcome) for one in found.supported] == [
        ("hflip", "noise_medium_accuracy"),
        ("d4", "noise_medium_accuracy"),
    ]
    assert all(one.partial == pytest.approx(-1) for one in found.supported)
    assert found.judged == 8
    assert next(one for one in found.relations if one.outcome == "pgd_strong_accuracy").reason.endswith("is 0 of all")


def test_states_over_training_are_a_panel():
    found = analyse(planted(networks=8, epochs=("epoch-001", "epoch-004", "epoch-016")))
    over = [one for one in found.relations if one.scope == OVER]
    assert {one.n for one in over} == {8 * 4}
    assert {(one.networks, one.states) for one in over} == {(8, 4)}
    assert {one.states for one in found.relations if one.scope == BETWEEN} == {1}
    assert [one.outcome for one in over if one.verdict == EVIDENCE] == ["noise_medium_accuracy"] * 2


def test_panels_have_no_holes():
    whole = planted(networks=8, epochs=("epoch-001", "epoch-004"))
    for cell in list(whole.results):
        if (cell.model, cell.state, cell.probe) == ("net3", "epoch-004", "robustness"):
            del whole.results[cell]
    own = points(whole)
    asked = Question("digits", OVER, "d4", SHARE, "shift_accuracy")
    assert {point.model for point in own[asked]} == {f"net{i}" for i in range(8)} - {"net3"}
    assert {point.model for point in own[asked._replace(outcome="lambda_max")]} == {f"net{i}" for i in range(8)}


def test_over_training_is_asked_of_what_was_measured_over_training():
    whole = planted(networks=8, epochs=("epoch-001", "epoch-004"))
    for cell in list(whole.results):
        if cell.probe == "robustness" and cell.state != "final":
            del whole.results[cell]
    own = points(whole)
    assert {asked.outcome for asked in own if asked.scope == OVER} == {"accuracy", "lambda_max"}
    assert {asked.outcome for asked in own if asked.scope == BETWEEN} > {"shift_accuracy"}
    assert all(one.reason != "at equal accuracy nothing is left to vary" for one in analyse(whole).relations)


def test_one_odd_network_takes_nobody_elses_panel_away():
    whole = planted(networks=8, epochs=("epoch-001", "epoch-004"))
    odd = planted(networks=9, epochs=("epoch-002", "epoch-003"))
    cells = {cell: result for cell, result in odd.results.items() if cell.model == "net8"}
    whole.plan.cells.update(dict.fromkeys(cells, ("digits", None)))
    own = points(Board(whole.plan, whole.results | cells, {}))
    panel = own[Question("digits", OVER, "d4", SHARE, "shift_accuracy")]
    assert {point.model for point in panel} == {f"net{i}" for i in range(8)}
    assert {point.state for point in panel} == {"epoch-001", "epoch-004", "final"}
    assert len(own[Question("digits", BETWEEN, "d4", SHARE, "shift_accuracy")]) == 9


def test_numbers_side_by_side_are_of_the_same_seeds():
    """A seed that one of them lacks is in none of them: in a panel, if it is missing in a single state."""
    whole, first = (planted(networks=3, epochs=("epoch-001", "epoch-004"), seeds=seeds) for seeds in (2, 1))
    for cell in list(whole.results):
        if (cell.model, cell.seed, cell.state, cell.probe) == ("net0", "s1", "epoch-004", "robustness"):
            del whole.results[cell]
    own, alone = points(whole), points(first)
    asked = Question("digits", OVER, "d4", SHARE, "shift_accuracy")
    for point, one in zip(own[asked], alone[asked], strict=True):
        seeds = (
            0.005 if point.model == "net0" else 0.0
        )  # s0 of two lies so far below their mean, where s0 alone is on it
        assert (point.share, point.outcome, point.accuracy) == pytest.approx(
            (one.share - seeds, one.outcome - seeds, one.accuracy - seeds)
        )
    between = own[asked._replace(scope=BETWEEN)][0]
    assert between.share == pytest.approx(alone[asked._replace(scope=BETWEEN)][0].share), (
        "the final state has both seeds"
    )


def test_less_data_is_compared_on_the_seeds_that_were_trained_on_it():
    numbers = {
        (f"net{i}+{fraction:g}", "final"): {SHARE: 0.1 * i, "accuracy": fraction / 2}
        for i in range(2)
        for fraction in (1, 0.1)
    }
    recipes = {model: {"lr": int(model[3]), "fraction": float(model[5:])} for model, _ in numbers}
    whole = board(numbers, recipes, seeds=2, groups=("hflip",))
    for cell in list(whole.results):
        if (cell.model, cell.seed) == ("net1+0.1", "s1"):
            del whole.results[cell]
    own = points(whole)[Question("digits", BETWEEN, "hflip", SHARE, "accuracy_of_10")]
    found = [(point.share, point.outcome, point.accuracy) for point in own]
    assert found == [pytest.approx((0.0, 0.05, 0.5)), pytest.approx((0.095, 0.045, 0.495))]


def test_a_seed_without_a_value_is_not_averaged_away():
    whole = planted(networks=3, seeds=2)
    for cell, result in whole.results.items():
        if (cell.model, cell.seed, cell.probe) == ("net1", "s1", "spectrum"):
            result.metrics["lambda_max"] = Measure(None, reason="diverged")
    own = points(whole)
    asked = Question("digits", BETWEEN, "d4", SHARE, "lambda_max")
    assert [point.model for point in own[asked]] == ["net0", "net2"]
    assert len(own[asked._replace(outcome="accuracy")]) == 3


def test_what_is_made_of_unmeasured_networks_is_told_apart_by_their_recipes():
    random, numbers, recipes = rng(13), {}, {}
    for i in range(FEWEST):
        model = f"net+{i}~mean"  # made of net+i, of which nothing is measured
        numbers[model, "final"] = {SHARE: random.uniform(0.1, 0.6), "accuracy": random.uniform(0.6, 0.9)}
        recipes[model] = {"lr": i // 2}
    own = points(board(numbers, recipes, groups=("hflip",)))
    assert len({point.source for point in own[Question("digits", BETWEEN, "hflip", SHARE, "accuracy")]}) == FEWEST // 2


def test_data_efficiency_compares_recipes_that_differ_in_the_fraction_alone():
    random, numbers, recipes = rng(8), {}, {}
    for i in range(8):
        share = random.uniform(0.1, 0.6)
        for fraction in (1.0, 0.1):
            model = f"net{i}+{fraction:g}"
            accuracy = random.uniform(0.8, 0.9) if fraction == 1 else 0.7 - share
            numbers[model, "final"] = {SHARE: share if fraction == 1 else 0.9, "accuracy": accuracy}
            recipes[model] = {"lr": i, "fraction": fraction}
    numbers["net0+1~mean", "final"] = {SHARE: 0.05, "accuracy": 0.85}  # made of net0: no network of its own
    own = points(board(numbers, recipes, groups=("hflip",)))
    less = own[Question("digits", BETWEEN, "hflip", SHARE, "accuracy_of_10")]
    assert {point.model for point in less} == {f"net{i}+1" for i in range(8)}
    assert {point.share for point in less}.isdisjoint({0.9})
    accuracies = own[Question("digits", BETWEEN, "hflip", SHARE, "accuracy")]
    assert (len(accuracies), len({point.source for point in accuracies})) == (9, 8)
    found = analyse(board(numbers, recipes, groups=("hflip",)))
    efficient = next(one for one in found.relations if one.outcome == "accuracy_of_10")
    assert efficient.verdict == EVIDENCE
    assert efficient.partial < -0.9
    assert efficient.title == "Top-1 accuracy when trained on 10 % of the images"


def test_without_the_recipe_fractions_are_networks(monkeypatch):
    """Mutation: what made a network is taken to be the network itself."""
    monkeypatch.setattr(panelpoints, "_made", lambda board, model: (model, 1.0))
    with pytest.raises(KeyError):
        test_data_efficiency_compares_recipes_that_differ_in_the_fraction_alone()


def test_the_csv_and_the_page_say_the_same(tmp_path):
    whole = planted()
    page = report.report(whole, tmp_path).read_text()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "analysis.csv").read_text())))
    found = analyse(whole)
    assert [(row["group"], row["outcome"], row["verdict"]) for row in rows] == [
        (one.group, one.outcome, one.verdict) for one in found.relations
    ]
    assert float(rows[0]["rho"]) == pytest.approx(found.relations[0].rho, rel=1e-5)
    assert page.count('id="analysis"') == 1
    section = page.split('id="analysis"')[1].split("</section>")[0]
    assert "2 of 8 correlations stand out" in section
    assert section.count("<tr>") == 1 + len(rows)
    for one in found.supported:
        assert escape(one.sentence) in section
    assert table("made-up", found).columns[0] == "suite"
    documented = (Path(__file__).parents[1] / "reports/README.md").read_text().split("**`analysis.csv`**")[1]
    names = [
        name
        for line in documented.splitlines()
        if line.startswith("| `")
        for name in re.findall("`(.*?)`", line.split("|")[1])
    ]
    assert names == list(rows[0])


def test_boards_with_few_networks_or_none_say_so(tmp_path):
    page = report.report(planted(networks=3), tmp_path).read_text()
    section = page.split('id="analysis"')[1].split("</section>")[0]
    assert "<b>No evidence.</b> With 3 independent networks" in section
    assert "<table" not in section
    same = board({(f"net{i}", "final"): {SHARE: 0.2, "accuracy": 0.1 * i} for i in range(FEWEST)})
    section = report.report(same, tmp_path).read_text().split('id="analysis"')[1].split("</section>")[0]
    assert "are the least" not in section
    assert "None of 2 correlations, over up to 6 independent networks, is defined" in section
    assert section.count("<li>Symmetry loss share is 0.200 of all</li>") == 1
    nothing = board({("net", "init"): {SHARE: 0.0, "accuracy": 0.1}})
    assert analyse(nothing).relations == []
    assert 'id="analysis"' not in report.report(nothing, tmp_path).read_text()
    assert (tmp_path / "analysis.csv").read_text().count("\n") == 1


def test_the_figure_is_of_boards_that_the_analysis_speaks_of():
    titles = {}
    figure = symmetry_buys.draw(planted(), titles)
    assert len(figure.axes) == 5
    assert sum(map(len, titles.values())) == 5 * 12
    assert all("under hflip" in title for own in titles.values() for title in own)
    assert symmetry_buys.draw(planted(networks=FEWEST - 1), {}) is None
    assert analysis.named("lambda_max") in {axes.get_title().removesuffix(", digits") for axes in figure.axes}
