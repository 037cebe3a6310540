"""Findings: they quote the board, hold their peace where it says nothing, and never say more than its intervals."""

import re

import pytest
from board import DIGITS, fill, suite
from markupsafe import escape

from eqbench import findings as module
from eqbench import wording
from eqbench.columns import number
from eqbench.findings import compared, findings
from eqbench.leaderboard import load
from eqbench.metrics import METRICS
from eqbench.report import report
from eqbench.results import Measure

RANKED = "lattice_error_aligned"


def build(folder, change=None, plan=None):
    return load(fill(folder, plan, change=change), folder)


def pinned(errors):
    """A `change` that pins the ranked metric of digits: (model, state) -> value, with an interval of 10 % to both sides."""

    def change(cell, result):
        if cell.probe == "orbit" and cell.model in DIGITS:
            value = errors(cell.model, cell.state)
            result.metrics[RANKED] = Measure(value, 0.9 * value, 1.1 * value, 256, floor=0.01, null=1.4)
            return result
        return result if cell.probe == "spectrum" else None

    return change


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    return build(tmp_path_factory.mktemp("deep"), plan=suite(deep=True))


def interval(text):
    """The value and the ends of the first `0.3 [0.2, 0.4]`."""
    found = re.search(r"([−\d.]+) \[([−\d.]+), ([−\d.]+)\]", text)
    return tuple(float(part.replace("−", "-")) for part in found.groups())


def test_the_same_questions_in_one_order(deep):
    found = findings(deep)
    assert [finding.metric for finding in found] == [RANKED, RANKED, "symmetry_share", "transverse_curvature"]
    assert len(found) == module.SHOWN
    assert all(finding.metric in METRICS for finding in found)
    for finding in found:
        lo, value, hi = sorted(interval(finding.answer))
        assert lo < value < hi
        assert re.search(r"\d+ images, \d seeds?", finding.answer)
    assert findings(deep) == found


def test_the_largest_change_is_the_boards_and_its_interval_allows_for_the_choice(deep):
    table = deep.table[deep.table["ranked_by"] == RANKED]
    top = table.loc[table[f"{RANKED}_emergence"].idxmin()]
    answer = findings(deep)[0].answer
    said = f"{top.model} under {top.group} on {top.data}, Lattice error from {number(top[f'{RANKED}_init'])} to {number(top[RANKED])}"
    assert said in answer
    value, lo, hi = interval(answer)
    assert value == pytest.approx(top[f"{RANKED}_emergence"], rel=0.01)
    assert lo < top[f"{RANKED}_emergence_lo"] < top[f"{RANKED}_emergence_hi"] < hi, (
        "wider than that of a row chosen before"
    )
    claims = (
        deep.table[[f"{name}_emergence_holm" for name in deep.table["ranked_by"].dropna().unique()]].notna().sum().sum()
    )
    assert f"Of {claims} comparisons" in answer


def test_no_change_is_no_evidence(tmp_path):
    board = build(tmp_path, pinned(lambda model, state: 0.8 + 0.01 * DIGITS.index(model)))
    emergence, best = findings(board)[:2]
    assert not emergence.supported
    assert (
        "Of 16 comparisons (one network under one group, trained against untrained), none shows a change"
        in emergence.answer
    )
    assert "changed by 0 to 0. Measured on 256 images, 2 seeds." in emergence.answer
    assert not best.supported
    assert "Under none of 4 groups does the interval of one network lie apart" in best.answer
    least = board.table["detectable"].median()
    assert f"a true difference of {number(least)} is found in four of five" in best.answer


def test_training_that_costs_equivariance_is_said_too(tmp_path):
    """One network gains, one loses, two stay within their intervals."""
    after = dict(zip(DIGITS, (0.2, 1.8, 0.79, 0.81), strict=True))
    board = build(tmp_path, pinned(lambda model, state: after[model] if state == "final" else 0.8))
    finding = findings(board)[0]
    assert finding.supported
    assert "4 became more equivariant, 4 became less so and 8 cannot be told from chance." in finding.answer
    assert f"{DIGITS[0]} under hflip on digits, Lattice error from 0.800 to 0.200, a change of −0.600" in finding.answer
    worse = build(tmp_path / "worse", pinned(lambda model, state: 1.8 if state == "final" else 0.8))
    finding = findings(worse)[0]
    assert finding.supported
    assert finding.answer.endswith("all became less so.")


def test_the_best_is_apart_from_all_others(tmp_path):
    errors = dict(zip(DIGITS, (0.2, 0.4, 0.8, 0.9), strict=True))
    board = build(tmp_path, pinned(lambda model, state: errors[model]))
    best = findings(board)[1]
    assert best.supported
    assert best.answer.startswith(f"{DIGITS[0]} on digits: under 4 of 4 groups (hflip, vflip, c4 and d4)")
    row = board.table.query("model == @DIGITS[0] and group == 'hflip'").iloc[0]
    assert interval(best.answer) == pytest.approx((row[RANKED], row[f"{RANKED}_lo"], row[f"{RANKED}_hi"]), rel=0.01)
    assert f"next {DIGITS[1]} with 0.400" in best.answer
    assert "Its mean rank over 4 groups is 1 of 4 (Friedman p < 0.001)" in best.answer


def test_one_network_has_nothing_to_be_compared_with(tmp_path):
    board = build(tmp_path, lambda cell, result: result if cell.model == "vit_digits" else None)
    emergence, best = findings(board)[:2]
    assert "Of 4 comparisons" in emergence.answer
    assert (best.supported, best.answer[:18]) == (False, "Nothing to compare")
    assert "76 of 96 planned cells have no numbers" in compared(board)


def test_an_empty_board_finds_nothing_and_says_so(tmp_path):
    board = build(tmp_path, lambda cell, result: None)
    assert findings(board) == []
    assert compared(board).startswith(
        "To be compared: 5 networks, under 4 groups of transformations, on digits and photos, with up to 3 seeds"
    )
    assert compared(board).endswith("Nothing of it is measured yet, so there is nothing to find.")


def test_what_is_compared_counts_networks_images_and_seeds(deep):
    assert compared(deep) == (
        "Compared: 5 networks of 4 families, under 7 groups of transformations, on digits (256 images) and photos (256 images), "
        "with up to 3 seeds, each beside the same architecture untrained and in up to 2 states between."
    )


@pytest.mark.parametrize(("sign", "said"), [(1, "curved up across the symmetric weights"), (-1, "curved down there")])
def test_the_sign_of_the_transverse_curvature_is_the_answer(deep, sign, said):
    found = {}
    for row, numbers in deep.seeds.measures.items():
        own = numbers.get((module.ACROSS, "final"), {})
        found[row] = numbers | {
            (module.ACROSS, "final"): {
                seed: Measure(sign * m.value, *sorted((sign * m.lo, sign * m.hi)), m.n) for seed, m in own.items()
            }
        }
    before, deep.seeds.measures = deep.seeds.measures, found
    try:
        finding = module._landscape(deep)
    finally:
        deep.seeds.measures = before
    assert finding.supported
    assert f"all {said}" in finding.answer
    assert interval(finding.answer)[0] * sign > 0


def test_where_training_made_it_is_asked_of_networks_as_a_sample(tmp_path):
    def change(cell, result):
        for i, layer in enumerate(result.layers):
            if "layer_error_permuted" in layer.metrics:
                left = 1 - 0.15 * i - 0.01 * len(cell.model) if cell.state == "final" else 1.0
                layer.metrics["layer_error_permuted"] = Measure(left, left * 0.95, left * 1.05, 256, null=1.4)
        return result

    board = build(tmp_path, change)
    finding = module._depth(board)
    assert finding.supported
    assert finding.answer.endswith(
        "over 5 networks as a sample of networks, each the mean over its groups: more in the later half."
    )
    value, lo, hi = interval(finding.answer)
    assert value == pytest.approx(0.45, abs=0.002)
    assert lo <= value <= hi
    few = module._depth(build(tmp_path / "few", lambda c, r: change(c, r) if c.model in DIGITS[:2] else None))
    assert not few.supported
    assert few.answer.startswith("2 networks with layers in both halves cannot speak for networks in general")


def test_lists_are_cut():
    assert wording.listed([]) == ""
    assert wording.listed(["a"]) == "a"
    assert wording.listed("abc") == "a, b and c"
    assert wording.listed("abcdefgh") == "a, b, c, d, e, f and 2 more"


def test_the_page_begins_with_them(tmp_path):
    """An answer of the data is escaped, an open question says that there is no evidence."""
    board = build(tmp_path, lambda cell, result: result if cell.model == "vit_digits" else None)
    html = report(board, tmp_path).read_text()
    section = html.split('<section id="findings"')[1].split("</section>")[0]
    assert html.index('id="findings"') < html.index('id="table"')
    assert str(escape(compared(board))) in section
    for finding in findings(board):
        assert f"<h3>{finding.question}</h3>" in section
        assert ("<b>No evidence.</b> " * (not finding.supported)) + str(escape(finding.answer)) in section
        assert f'href="#g-{finding.metric}"' in section
        assert f'id="g-{finding.metric}"' in html
    assert section.count("No evidence.") == sum(not finding.supported for finding in findings(board)) >= 1
