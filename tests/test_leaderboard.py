"""Board arithmetic against numbers worked out by hand, on whole, partial, stale and broken trees."""

import base64
import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from board import FINITE, fail, fill, suite
from scipy import stats

from eqbench import leaderboard, results
from eqbench.cells import STATUSES
from eqbench.ensembles import same_prediction
from eqbench.inference import holm, spread
from eqbench.leaderboard import COLUMNS, load
from eqbench.meanranks import ranks
from eqbench.metrics import METRICS
from eqbench.pooling import emergence_index, pool
from eqbench.results import Measure, Status
from eqbench.schema import PROBES
from eqbench.stats import STORED

RANKED = "lattice_error_aligned"


def row(board, model, group, data="digits"):
    table = board.table
    (found,) = table[(table.model == model) & (table.group == group) & (table.data == data)].to_dict("records")
    return found


def packed(values):
    """Replicates as cells keep them."""
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def set_errors(by_model):
    """A `change` for `fill` that pins the ranked metric of final hflip cells: model -> one (value, lo, hi) a seed."""

    def change(cell, result):
        if cell.probe == "orbit" and cell.group == "hflip" and cell.model in by_model and cell.state == "final":
            result.metrics[RANKED] = Measure(*by_model[cell.model][int(cell.seed[1:])], n=200, floor=0.01, null=1.4)
        return result

    return change


# --- ranks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("intervals", "higher", "expected"),
    [
        ([(0.1, 0.2)], False, [(1, 1)]),
        ([(0.1, 0.2), (0.3, 0.4), (0.5, 0.6)], False, [(1, 1), (2, 2), (3, 3)]),
        ([(0.1, 0.2), (0.3, 0.4), (0.5, 0.6)], True, [(3, 3), (2, 2), (1, 1)]),
        ([(0.1, 0.4), (0.1, 0.4)], False, [(1, 2), (1, 2)]),
        ([(0.1, 0.2), (0.2, 0.3)], False, [(1, 2), (1, 2)]),  # touching intervals do not separate
        ([(0.1, 0.2), (0.2, 0.3)], True, [(1, 2), (1, 2)]),
        # a bridge: the middle one overlaps both, the outer two are separated
        ([(0.1, 0.3), (0.25, 0.5), (0.4, 0.6)], False, [(1, 2), (1, 3), (2, 3)]),
        ([(0.5, 0.6), (0.1, 0.2), (0.15, 0.25)], False, [(3, 3), (1, 2), (1, 2)]),
        ([], False, []),
    ],
)
def test_ranks_by_interval_separation(intervals, higher, expected):
    assert ranks(intervals, higher) == expected


def test_seeds_pool_into_their_mean_with_images_and_seeds_in_its_interval():
    pooled = pool([Measure(0.2, 0.15, 0.3, 100, 0.1, 1.0), Measure(0.4, 0.1, 0.5, 90, 0.3, 2.0)])
    images, seeds = (0.275 / 2 / 1.959964) ** 2, 0.02 / 2  # the mean width, and the variance between two seeds over two
    half = stats.t.ppf(0.975, (images + seeds) ** 2 / seeds**2) * math.sqrt(images + seeds)
    assert (pooled.value, pooled.lo, pooled.hi) == pytest.approx((0.3, 0.3 - half, 0.3 + half))
    assert (pooled.n, pooled.floor, pooled.null) == (90, pytest.approx(0.2), pytest.approx(1.5))


def test_a_seed_without_interval_or_value_is_not_averaged_away():
    assert pool([Measure(0.2, 0.1, 0.3), Measure(0.4)]).lo is None
    broken = pool([Measure(0.2, 0.1, 0.3), Measure(math.nan, reason="diverged")])
    assert broken.value is None
    assert broken.reason == "diverged"
    assert pool([]).reason == "not measured"


def test_ranks_and_ties_on_a_whole_board(tmp_path):
    plan = fill(
        tmp_path,
        change=set_errors(
            {
                "convnext_digits_d4": [(0.1, 0.08, 0.12), (0.14, 0.1, 0.2)],
                "convnext_digits": [(0.3, 0.25, 0.35), (0.32, 0.3, 0.4)],
                "resnet_digits": [(0.34, 0.3, 0.38), (0.4, 0.36, 0.45)],  # overlaps convnext_digits
                "vit_digits": [(0.8, 0.7, 0.9), (0.9, 0.8, 1.0)],
            }
        ),
    )
    board = load(plan, tmp_path)
    rows = {model: row(board, model, "hflip") for model in board.facts if "digits" in model}
    assert {model: (r["rank"], r["rank_worst"], r["ranked"]) for model, r in rows.items()} == {
        "convnext_digits_d4": (1, 1, 4),
        "convnext_digits": (2, 3, 4),
        "resnet_digits": (2, 3, 4),
        "vit_digits": (4, 4, 4),
    }
    found = rows["convnext_digits_d4"]
    pairs = [(0.1, 0.14), (0.3, 0.32), (0.34, 0.4), (0.8, 0.9)]
    expected = pool([Measure(0.1, 0.08, 0.12), Measure(0.14, 0.1, 0.2)], spread(pairs))
    ends = [found[RANKED + end] for end in ("", "_lo", "_hi")]
    assert ends == pytest.approx([expected.value, expected.lo, expected.hi], rel=1e-5)
    assert expected.hi - expected.lo < pool([Measure(0.1, 0.08, 0.12), Measure(0.14, 0.1, 0.2)]).hi, "others say more"
    assert (found[f"{RANKED}_floor"], found[f"{RANKED}_null"]) == (0.01, 1.4)
    assert (found["n_seeds"], found["n_init_seeds"], found["n_images"]) == (2, 2, 200)
    assert (found["status"], found["done"], found["planned"]) == ("complete", 4, 4)
    block = board.table[(board.table.data == "digits") & (board.table.group == "hflip")]
    assert list(block.model) == ["convnext_digits_d4", "convnext_digits", "resnet_digits", "vit_digits"]
    assert list(dict.fromkeys(zip(board.table.data, board.table.group, strict=True))) == [
        *(("digits", group) for group in ("hflip", "vflip", "c4", "d4", "none")),
        *(("photos", group) for group in ("hflip", "vflip", "c4", "d4")),
    ]
    # another data set is another board, and a board of one has no ranks
    alone = row(board, "efficientnet_lite0", "hflip", "photos")
    assert (alone["rank"], alone["unranked"]) == (None, "nothing to compare with")


def test_models_on_other_images_or_without_an_aligned_size_are_not_ranked_together(tmp_path):
    def change(cell, result):
        if cell.model == "vit_digits" and cell.probe == "orbit":
            result.metrics[RANKED].n = 64
        if cell.model == "resnet_digits" and cell.group == "hflip":
            result.metrics[RANKED].reason = "no aligned size near 32 px"
        return result

    board = load(fill(tmp_path, change=change), tmp_path)
    assert row(board, "vit_digits", "hflip")["unranked"] == "nothing to compare with"
    assert row(board, "resnet_digits", "hflip")["unranked"] == "no aligned size near 32 px"
    assert row(board, "convnext_digits", "hflip")["ranked"] == 2
    assert row(board, "resnet_digits", "c4")["ranked"] == 3


def test_emergence_is_final_minus_the_mean_of_every_init_seed(tmp_path):
    def change(cell, result):
        if cell.model == "efficientnet_lite0" and cell.group == "c4":
            value = {"s0": 1.0, "s1": 1.2, "s2": 1.4}[cell.seed] if cell.state == "init" else 0.5
            result.metrics[RANKED] = Measure(value, value - 0.1, value + 0.2, n=64)
        return result

    found = row(load(fill(tmp_path, change=change), tmp_path), "efficientnet_lite0", "c4", "photos")
    assert (found["n_seeds"], found["n_init_seeds"]) == (1, 3)
    image, seeds = (
        0.3 / 2 / 1.959964,
        0.04 / 3,
    )  # one standard error over images; the variance of the untrained seeds' mean
    half = stats.t.ppf(0.975, (image**2 + seeds) ** 2 / (seeds**2 / 2)) * math.sqrt(image**2 + seeds)
    ends = [found[RANKED + end] for end in ("_init", "_init_lo", "_init_hi")]
    assert ends == pytest.approx([1.2, 1.2 - half, 1.2 + half], rel=1e-5)
    variance = (2 * image) ** 2 + seeds  # without replicates nothing is known of what the two errors share: the widest
    df = variance**2 / (seeds**2 / 2)
    half = stats.t.ppf(0.975, df) * math.sqrt(variance)
    ends = [found[f"{RANKED}_emergence{end}"] for end in ("", "_lo", "_hi", "_p")]
    p = 2 * stats.t.sf(0.7 / math.sqrt(variance), df)
    assert ends == pytest.approx([-0.7, -0.7 - half, -0.7 + half, p], rel=1e-5)
    assert found["paired"] is False


def test_emergence_is_paired_where_cells_keep_replicates_of_the_same_images(tmp_path):
    draws = np.random.default_rng(0).normal(size=(3, STORED))

    def change(cell, result):
        if cell.probe == "orbit" and cell.group == "c4" and cell.model != "efficientnet_lite0":
            own = 0.1 * draws[0] + 0.01 * draws[1 if cell.state == "init" else 2]  # one image error, hardly any other
            value = (0.5 if cell.state == "init" else 0.45) + 0.001 * int(cell.seed[1:])
            result.metrics[RANKED] = Measure(
                value, value - 0.2, value + 0.2, 256, units=256, replicates=packed(value + own)
            )
            if cell.state == "final" and cell.model == "vit_digits":
                result.provenance["data"] = other or result.provenance["data"]
        return result

    other = None
    found = row(load(fill(tmp_path / "same", change=change), tmp_path / "same"), "vit_digits", "c4")
    assert found["paired"] is True
    assert found[f"{RANKED}_emergence_p"] < 0.01
    assert found[f"{RANKED}_emergence_hi"] < 0
    other = "another hash"
    found = row(load(fill(tmp_path / "other", change=change), tmp_path / "other"), "vit_digits", "c4")
    assert found["paired"] is False
    assert found[f"{RANKED}_emergence_p"] > 0.5


def test_claims_are_adjusted_for_all_rows_of_the_board_and_rankings_say_what_they_can_detect(deep, tmp_path):
    claims = []
    for entry in deep.table.to_dict("records"):
        for name, metric in METRICS.items():
            if (
                metric.rank
                and entry["ranked_by"] == name
                and entry[f"{name}_emergence_p"] == entry[f"{name}_emergence_p"]
            ):
                claims.append((entry[f"{name}_emergence_p"], entry[f"{name}_emergence_holm"]))
    assert len(claims) > 20
    assert [after for _, after in claims] == pytest.approx(list(holm([before for before, _ in claims])), rel=1e-4)
    table = deep.table
    assert (table["detectable"].notna() == table["rank"].notna()).all()
    assert (table["detectable"].dropna() > 0).all()
    assert table.groupby(["data", "group"])["detectable"].nunique().max() == 1


def test_probes_without_a_group_have_a_row_of_their_own(tmp_path):
    board = load(fill(tmp_path), tmp_path)
    found = row(board, "vit_digits", "none")
    assert found["lambda_max"] > 0
    assert math.isnan(found[RANKED])
    assert found["unranked"] == "descriptors are not ranked"
    assert math.isnan(row(board, "vit_digits", "c4")["lambda_max"])
    assert (
        row(board, "vit_digits", "c4")["planned"] + 4 == found["planned"] + row(board, "vit_digits", "hflip")["planned"]
    )


# --- several metrics that rank, layers, ensembles -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A board of every probe, under finite and continuous groups."""
    folder = tmp_path_factory.mktemp("deep")
    return load(fill(folder, suite(deep=True)), folder)


def test_each_group_is_ranked_by_one_metric_of_its_own_probes(deep):
    table = deep.table[deep.table["group"] != "none"]
    finite = table["group"].isin(FINITE)
    assert set(table.loc[finite, "ranked_by"]) == {RANKED}
    (other,) = set(table.loc[~finite, "ranked_by"])
    metric = METRICS[other]
    assert metric.rank
    assert "continuous" in PROBES[metric.probe].kinds
    assert table.loc[~finite, RANKED].isna().all()
    assert table.loc[finite, other].isna().all()
    for group in ("rotation", "hue"):
        own = table[(table["group"] == group) & (table["data"] == "digits")]
        assert list(own["rank"]) == sorted(own["rank"])
        assert set(own["ranked"]) == {4}
        assert [(r.rank, r.rank_worst) for r in own.itertuples()] == ranks(
            list(zip(own[f"{other}_lo"], own[f"{other}_hi"], strict=True)), higher_is_better=False
        )
    assert table["n_images"].notna().all()


def test_ranks_follow_the_direction_and_the_presence_of_their_metric(tmp_path, monkeypatch):
    order = [METRICS["consistency_same"], METRICS["sweep_error"]]
    monkeypatch.setattr(leaderboard, "RANKINGS", order)

    def change(cell, result):
        if cell.probe == "consistency" and cell.state == "final":
            if cell.group == "hue":
                return fail(result, "no such colours", Status.skipped)
            if cell.group == "translation":
                result.metrics["consistency_same"] = Measure(None, reason="undefined")
                return result
            value = {"resnet_digits": 0.9, "vit_digits": 0.5}.get(cell.model, 0.7)
            result.metrics["consistency_same"] = Measure(value, value - 0.01, value + 0.01, 99)
        return result

    board = load(fill(tmp_path, suite(deep=True), change=change), tmp_path)
    own = board.table[(board.table["group"] == "rotation") & (board.table["data"] == "digits")]
    assert set(own["ranked_by"]) == {"consistency_same"}
    assert (own["model"].iloc[0], own["model"].iloc[-1]) == ("resnet_digits", "vit_digits"), "higher is better"
    assert set(own["n_images"]) == {99}
    for group in ("hue", "translation"):
        other = board.table[board.table["group"] == group]
        assert set(other["ranked_by"]) == {"sweep_error"}, "a probe without a number for a group does not rank it"


def test_rows_that_no_metric_ranks_say_so(tmp_path):
    plan = suite()
    for cell in [cell for cell in plan.cells if cell.probe == "orbit"]:
        del plan.cells[cell]
    table = load(fill(tmp_path, plan), tmp_path).table
    assert table["ranked_by"].isna().all()
    grouped = table["group"] != "none"
    assert all(text.startswith("the suite asks for no orbit or ") for text in table["unranked"][grouped])
    assert set(table["unranked"][~grouped]) <= {"descriptors are not ranked"}


def set_permuted(by_state):
    """A `change` that pins the permuted error of resnet_digits under c4, of the network and of its first layer."""

    def change(cell, result):
        if (cell.model, cell.group, cell.probe) == ("resnet_digits", "c4", "orbit"):
            measure = Measure(*by_state[cell.state][int(cell.seed[1:])], n=200)
            result.metrics["layer_error_permuted"] = result.layers[0].metrics["layer_error_permuted"] = measure
        return result

    return change


def around(board, state, layers):
    """The spread of the permuted error's seeds over the models of digits under c4: of networks, or of all their layers."""
    found = {}
    for cell, result in board.results.items():
        if (cell.probe, cell.group, cell.state) == ("orbit", "c4", state) and cell.model != "efficientnet_lite0":
            places = {layer.name: layer.metrics for layer in result.layers} if layers else {"": result.metrics}
            for place, metrics in places.items():
                if "layer_error_permuted" in metrics:
                    found.setdefault((cell.model, place), []).append(metrics["layer_error_permuted"].value)
    return spread(found.values())


def test_the_emergence_index_compares_the_means_and_keeps_the_widest_interval(tmp_path):
    numbers = {"final": [(0.2, 0.1, 0.3), (0.4, 0.3, 0.5)], "init": [(0.9, 0.8, 1.0), (1.1, 1.0, 1.25)]}
    board = load(fill(tmp_path, change=set_permuted(numbers)), tmp_path)
    found = row(board, "resnet_digits", "c4")
    final, init = (
        pool([Measure(*m) for m in numbers[state]], around(board, state, False)) for state in ("final", "init")
    )
    expected = [1 - 0.3 / 1.0, 1 - final.hi / init.lo, 1 - max(final.lo, 0) / init.hi]
    assert [found[f"emergence_index{end}"] for end in ("", "_lo", "_hi")] == pytest.approx(expected, rel=1e-5)
    layers = board.layers
    own = layers[(layers.model == "resnet_digits") & (layers.group == "c4") & (layers.layer == "stages.0.0")]
    final, init = (
        pool([Measure(*m) for m in numbers[state]], around(board, state, True)) for state in ("final", "init")
    )
    expected = [1 - 0.3 / 1.0, 1 - final.hi / init.lo, 1 - max(final.lo, 0) / init.hi]
    (index,) = own[own.metric == "emergence_index"].to_dict("records")
    assert [index[key] for key in ("value", "lo", "hi")] == pytest.approx(expected)
    (error,) = own[own.metric == "layer_error_permuted"].to_dict("records")
    assert [error[key] for key in ("value", "lo", "hi")] == pytest.approx([final.value, final.lo, final.hi])
    assert [error[key] for key in ("init", "init_lo", "init_hi")] == pytest.approx([init.value, init.lo, init.hi])


def test_an_untrained_error_that_may_be_zero_gives_no_index(tmp_path):
    numbers = {"final": [(0.2, 0.1, 0.3)] * 2, "init": [(0.1, 0.0, 0.2)] * 2}
    board = load(fill(tmp_path, change=set_permuted(numbers)), tmp_path)
    assert math.isnan(row(board, "resnet_digits", "c4")["emergence_index"])
    assert emergence_index(Measure(0.2, 0.1, 0.3), Measure(0.1, 0.0, 0.2)).reason.endswith("distinguishable from 0")
    assert emergence_index(Measure(0.5), Measure(1.0)).lo is None, "no interval is made of none"


def test_layers_are_rows_with_depth_and_refused_ones_have_their_reason(deep, tmp_path):
    leaderboard.write(deep, tmp_path)
    frame = pd.read_csv(tmp_path / "results.csv")
    assert list(frame.columns) == results.COLUMNS
    cell, result = next((c, r) for c, r in deep.results.items() if c.probe == "orbit" and r.layers)
    own = frame[(frame[["model", "seed", "state", "group", "probe"]] == list(asdict(cell).values())[1:]).all(axis=1)]
    network, layers = own[own["layer"].isna()], own[own["layer"].notna()]
    assert dict(zip(network["metric"], network["value"], strict=True)) == pytest.approx(
        {name: measure.value for name, measure in result.metrics.items()}, rel=5e-6
    ), "six significant digits"
    assert network["depth"].isna().all()
    measured = [layer for layer in result.layers if layer.coverage]
    for layer in measured:
        rows = layers[layers["layer"] == layer.name]
        assert set(rows["depth"]) == {layer.depth}
        assert set(rows["metric"]) == set(layer.metrics)
    (refused,) = layers[layers["metric"].isna()].to_dict("records")
    assert (refused["layer"], refused["reason"]) == ("head.norm", "no declared layout: (B, 65, 64)")
    assert (refused["status"], refused["depth"]) == ("ok", 1.0)
    assert "shape" in deep.layers
    assert deep.layers[deep.layers["coverage"] == 0]["metric"].isna().all()


def test_ensembles_are_made_of_the_seeds_of_a_row(deep):
    cells = [
        result
        for cell, result in deep.results.items()
        if (cell.model, cell.group, cell.probe, cell.state) == ("vit_digits", "c4", "consistency", "final")
    ]
    assert len(cells) == 2
    expected = same_prediction(cells)
    found = row(deep, "vit_digits", "c4")
    assert found["ensemble_same_prediction"] == pytest.approx(expected.value, rel=1e-5)
    assert found["ensemble_same_prediction_null"] == pytest.approx(expected.null, rel=1e-5)
    alone = row(deep, "efficientnet_lite0", "c4", "photos")
    assert math.isnan(alone["ensemble_same_prediction"]), "one seed is no ensemble"
    assert alone["ensemble_same_prediction_init"] > 0, "three untrained seeds are one"


def test_stored_predictions_that_are_damaged_cost_the_ensemble_alone(tmp_path):
    def change(cell, result):
        if (cell.model, cell.group, cell.probe, cell.seed) == ("vit_digits", "c4", "consistency", "s1"):
            result.curves["ensemble_log_p"][0] = result.curves["ensemble_log_p"][0][:8]
        return result

    board = load(fill(tmp_path, suite(deep=True), change=change), tmp_path)
    found = row(board, "vit_digits", "c4")
    assert math.isnan(found["ensemble_same_prediction"])
    assert found["consistency_same"] > 0
    assert found["rank"] >= 1
    assert row(board, "vit_digits", "d4")["ensemble_same_prediction"] > 0


# --- what is not there ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["missing", "failed", "skipped", "stale", "corrupt", "nan", "unbounded"])
def test_incomplete_rows_are_never_ranked_and_say_why(tmp_path, kind):
    where = ("vit_digits", "s1", "final", "d4", "orbit")

    def change(cell, result):
        if (cell.model, cell.seed, cell.state, cell.group, cell.probe) != where:
            return result
        if kind == "missing":
            return None
        if kind in ("failed", "skipped"):
            return fail(result, "out of memory", Status(kind))
        if kind == "stale":
            result.config = result.config | {"probe": result.config["probe"] | {"images": 16}}
        if kind == "nan":
            result.metrics[RANKED] = Measure(math.nan, reason="loss is not finite")
        if kind == "unbounded":
            result.metrics[RANKED] = Measure(0.5)
        return result

    plan = fill(tmp_path, change=change)
    if kind == "corrupt":
        (tmp_path / plan.name / "vit_digits/s1/final/d4/orbit.json").write_text('{"schema": 1, "cell"')
    board = load(plan, tmp_path)
    found = row(board, "vit_digits", "d4")
    assert pd.isna(found["rank"])
    assert pd.isna(found["rank_worst"])
    expected = {
        "missing": "s1: not run",
        "failed": "s1: failed: out of memory",
        "skipped": "s1: skipped: out of memory",
        "stale": "s1: stale: configuration changed: probe.images 16 → 256",
        "corrupt": "s1: failed: ",
        "nan": "loss is not finite",
        "unbounded": "no interval",
    }[kind]
    assert found["unranked"].startswith(expected)
    assert board.table[(board.table.data == "digits") & (board.table.group == "d4")].model.iloc[-1] == "vit_digits"
    assert row(board, "resnet_digits", "d4")["ranked"] == 3, "the others are ranked among themselves"
    assert row(board, "vit_digits", "c4")["ranked"] == 4, "other groups do not suffer"
    status = {"missing": "not run", "corrupt": "failed", "nan": "complete", "unbounded": "complete"}.get(kind, kind)
    assert found["status"] == status
    assert found["done"] == (4 if status == "complete" else 3)
    assert sum(board.counts.values()) == len(plan.cells)
    assert board.counts[status if status in STATUSES else "ok"] == (1 if status in STATUSES else len(plan.cells))


def test_a_failed_untrained_cell_costs_the_baseline_not_the_rank(tmp_path):
    def change(cell, result):
        return fail(result, "no") if cell.model == "vit_digits" and cell.state == "init" else result

    found = row(load(fill(tmp_path, change=change), tmp_path), "vit_digits", "c4")
    assert found["status"] == "failed"
    assert found["rank"] >= 1
    assert math.isnan(found[f"{RANKED}_init"])
    assert math.isnan(found[f"{RANKED}_emergence"])


def test_results_csv_has_rows_with_reasons_and_none_for_missing_cells(tmp_path):
    def change(cell, result):
        if cell.model == "resnet_digits":
            return None
        if cell.model == "vit_digits":
            return fail(result, "no layout, for tokens", Status.skipped)
        if cell.model == "convnext_digits" and cell.probe == "spectrum":
            result.config = {}
        return result

    cells, out = tmp_path / "cells", tmp_path / "out"
    plan = fill(cells, change=change)
    leaderboard.collect(plan, cells, out)
    frame = pd.read_csv(out / "results.csv")
    assert list(frame.columns) == results.COLUMNS
    assert set(frame.status) == {"ok", "skipped", "stale"}
    assert "resnet_digits" not in set(frame.model)
    skipped = frame[frame.status == "skipped"]
    assert len(skipped) == sum(cell.model == "vit_digits" for cell in plan.cells)
    assert set(skipped.reason) == {"no layout, for tokens"}
    assert skipped[["metric", "value"]].isna().all(axis=None)
    stale = frame[frame.status == "stale"]
    assert len(stale) == 4
    assert stale.value.isna().all()
    assert stale.reason.str.startswith("configuration changed").all()


def test_a_file_of_another_cell_is_a_failure(tmp_path):
    plan = fill(tmp_path)
    one, other = (tmp_path / plan.name / "vit_digits" / seed / "final/c4/orbit.json" for seed in ("s0", "s1"))
    other.write_bytes(one.read_bytes())
    board = load(plan, tmp_path)
    assert board.counts["failed"] == 1
    assert "holds another cell" in row(board, "vit_digits", "c4")["unranked"]


def test_cells_on_older_weights_are_stale(tmp_path):
    def change(cell, result):
        if (cell.model, cell.seed, cell.state, cell.group) == ("vit_digits", "s0", "final", "c4"):
            result.provenance |= {"weights": "0" * 64, "started": "2025-12-31T00:00:00Z"}
        return result

    board = load(fill(tmp_path, change=change), tmp_path)
    assert board.counts["stale"] == 1
    assert row(board, "vit_digits", "c4")["unranked"].startswith("s0: stale: measured on weights 000000000000")


def test_empty_board_and_one_model(tmp_path):
    plan = suite()
    board = load(plan, tmp_path)
    assert board.counts == {"ok": 0, "failed": 0, "stale": 0, "skipped": 0, "not run": len(plan.cells)}
    assert len(board.table) == 24
    assert set(board.table.status) == {"not run"}
    assert board.table["rank"].isna().all()
    assert list(board.table.columns) == COLUMNS
    assert board.tidy.empty
    assert list(board.tidy.columns) == results.COLUMNS
    fill(tmp_path, change=lambda cell, result: result if cell.model == "vit_digits" else None)
    alone = row(load(plan, tmp_path), "vit_digits", "c4")
    assert (alone["rank"], alone["unranked"], alone["n_seeds"]) == (None, "nothing to compare with", 2)


# --- the files --------------------------------------------------------------------------------------------------------


def test_csv_round_trips_and_is_numbers_only(tmp_path):
    plan = fill(tmp_path / "cells", change=lambda c, r: fail(r, 'bad, "quoted"\n=1+1') if c.group == "c4" else r)
    leaderboard.collect(plan, tmp_path / "cells", tmp_path)
    board = load(plan, tmp_path / "cells")
    frame = pd.read_csv(tmp_path / "leaderboard.csv", dtype=board.table.dtypes.to_dict())
    pd.testing.assert_frame_equal(frame, board.table)
    for name in METRICS:
        assert frame[name].dtype == float
    first = {path.name: path.read_bytes() for path in tmp_path.glob("*.csv")}
    leaderboard.collect(plan, tmp_path / "cells", tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.csv")} == first
    assert sorted(first) == sorted(leaderboard.FILES)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_facts_survive_where_a_model_has_no_cells(tmp_path):
    plan = fill(tmp_path, change=lambda cell, result: None if cell.model == "vit_digits" else result)
    board = load(plan, tmp_path)
    missing, done = row(board, "vit_digits", "c4"), row(board, "convnext_digits_d4", "c4")
    assert missing["architecture"] == "test_vit"
    assert (missing["source"], missing["image_size"]) == ("train", 32)
    assert pd.isna(missing["weights"])
    assert (done["augment"], done["parameters"], done["family"]) == ("d4", 472074, "ConvNeXt")
    assert len(done["weights"]) == 12
    assert board.facts["convnext_digits_d4"]["sha256"]["s0 final"].startswith(done["weights"])
    assert set(board.facts["efficientnet_lite0"]["sha256"]) == {"s0 final", "s0 init", "s1 init", "s2 init"}
    assert done["seconds"] == 4 * 3.25


def test_importing_needs_no_torch():
    code = "import sys, eqbench.report, eqbench.plots; sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
