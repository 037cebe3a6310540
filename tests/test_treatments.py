"""Treated networks against plain ones: which are comparable, what their difference is, and how often chance is called a change."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from board import fill, suite
from growing import grow, measure

from eqbench.gains import Gain
from eqbench.inference import contrast, holm
from eqbench.leaderboard import Board, load, write
from eqbench.lineage import kinds, treatment
from eqbench.report import report
from eqbench.treatments import COLUMNS, covers, told_together

RANKED, SHARE = "lattice_error_aligned", "symmetry_share"
TWIRL = {"form": "twirl", "group": "d4", "weight": 0.5}
GRID = {
    f"{arch}_{name}": (arch, changes)
    for arch in ("resnet", "vit", "mixer", "convnext")
    for name, changes in (("plain", {}), ("d4", {"augment": "d4"}), ("twirl", {"penalty": TWIRL}))
}
ENDS = ("init", "final")


def planted(models, effect, *, seeds=3, scatter=0.01, rng=None, group="hflip"):
    """A board whose treated networks differ by `effect` in both numbers, beside the scatter of seeds."""
    rng = rng or np.random.default_rng(0)

    def value(model, seed, state):
        changed = 0.0 if model.endswith("plain") or state == "init" else effect
        return {name: measure(0.4 + changed + scatter * rng.normal() + 0.004 * rng.normal(), 0.004, 0.02)
                for name in (RANKED, SHARE)} | {"accuracy": measure(0.9 + scatter * rng.normal(), 0.005, 0.01)}  # fmt: skip

    return grow(models, value, seeds=seeds, states=ENDS, group=group)


def by(board, treated, name):
    return next(one for one in board.contrasts if (one.treated, one.metric.name) == (treated, name))


def test_treatments_are_named():
    assert treatment({"augment": "d4"}) == "d4"
    assert treatment({"penalty": TWIRL}) == "twirl d4 × 0.5"
    assert treatment({"augment": "none", "penalty": None}) == "plain"
    board = planted(GRID, 0.0)
    assert set(board.table["treatment"]) == {"plain", "d4", "twirl d4 × 0.5"}
    assert {kind.groups for kind in kinds(board).values()} == {(), ("d4",)}


@pytest.mark.parametrize(
    ("changes", "timm", "paired"),
    [
        ({}, "net", True),
        ({"save": [1, 2], "dynamics": 50, "test_images": 100}, "net", True),  # none decides the weights
        ({"lr": 0.1}, "net", False),
        ({"fraction": 0.1}, "net", False),
        ({"epochs": 30}, "net", False),
        ({}, "other_net", False),
    ],
)
def test_only_networks_that_differ_in_nothing_else_are_compared(changes, timm, paired):
    board = planted({"a_plain": ("net", {}), "a_d4": (timm, {"augment": "d4"} | changes)}, -0.1)
    assert bool(board.contrasts) == paired
    resized = planted({"a_plain": ("net", {}), "a_d4": ("net", {"augment": "d4"})}, -0.1)
    for cell, result in resized.results.items():
        if cell.model == "a_d4":
            result.config["model"]["args"] = {"depth": 3}
    assert resized.contrasts == []
    assert planted({"a_d4": ("net", {"augment": "d4"}), "b_d4": ("net", {"augment": "hflip"})}, 0).contrasts == []


def test_the_difference_is_the_paired_contrast_adjusted_for_all():
    board = planted(GRID, -0.1)
    assert len(board.contrasts) == 4 * 2 * 3
    one = by(board, "vit_d4", RANKED)
    after, before = (board.seeds.sample((model, "digits", "hflip"), RANKED) for model in ("vit_d4", "vit_plain"))
    expected = contrast((1, after), (-1, before))
    assert one.difference == expected
    assert one.difference.paired
    alone = contrast((1, replace(after, draws=None)), (-1, replace(before, draws=None)))
    assert expected.error < 0.6 * alone.error, "what images share is taken off"
    adjusted = holm([one.difference.p for one in board.contrasts])
    assert [one.holm for one in board.contrasts] == adjusted.tolist()
    assert all(one.holm >= one.difference.p for one in board.contrasts)


@pytest.mark.parametrize(
    ("effect", "verdict"), [(-0.1, "as expected"), (0.1, "against expectation"), (0.0, "no evidence")]
)
def test_verdicts_follow_the_sign(effect, verdict):
    board = planted(GRID, effect)
    asked = [one for one in board.contrasts if one.expected]
    assert len(asked) == 16
    assert {one.metric.name for one in asked} == {RANKED, SHARE}, "nothing is expected of the accuracy"
    assert {one.verdict for one in asked} == {verdict}
    assert "Of 16 contrasts in which the treatment should make the network more symmetric: " in told_together(
        board.contrasts
    )
    assert f"16 {verdict}" in told_together(board.contrasts)
    assert {one.verdict for one in board.contrasts if not one.expected} == {"no change to be seen"}
    assert {one.group for one in board.contrasts if one.metric.name == "accuracy"} == {"none"}


def test_something_is_expected_under_groups_that_the_treatment_has():
    board = planted(GRID, 0.0)
    for told, asked, expected in (
        ("d4", "hflip", True), ("d4", "c4", True), ("d4", "transpose", True), ("hflip", "d4", False),
        ("hflip", "vflip", False), ("rotation", "rotation", True), ("rotation", "translation", False), ("d4", "rotation", False),
    ):  # fmt: skip
        assert covers(board, told, asked) == expected, (told, asked)
    moved = planted({"a_plain": ("net", {}), "a_h": ("net", {"augment": "hflip"})}, -0.2, group="vflip")
    assert {one.expected for one in moved.contrasts} == {0}
    assert by(moved, "a_h", RANKED).verdict == "a change"
    assert told_together(moved.contrasts).startswith("No treatment of these networks tells of a group")


def test_of_one_seed_nothing_is_claimed():
    """Its error is over images alone, so a large difference may be the seed's; and it costs the others nothing (Holm)."""
    pairs = {
        "a_plain": ("a", {}),
        "a_d4": ("a", {"augment": "d4"}),
        "b_plain": ("b", {}),
        "b_d4": ("b", {"augment": "d4"}),
    }
    whole = planted(pairs, -0.2)
    some = {
        cell: result
        for cell, result in whole.results.items()
        if (cell.model, cell.seed) not in {("b_d4", "s1"), ("b_d4", "s2")}
    }
    board = Board(whole.plan, some, {})
    alone, several = ([one for one in board.contrasts if one.architecture == arch] for arch in "ba")
    assert {one.seeds for one in alone} == {(3, 1)}
    assert {one.verdict for one in alone} == {"one seed"}
    assert all(np.isnan(one.holm) and one.difference.p < 1e-4 for one in alone if one.expected)
    assert {one.verdict for one in several if one.expected} == {"as expected"}
    assert [one.holm for one in several] == holm([one.difference.p for one in several]).tolist()
    assert told_together(board.contrasts).endswith("2 as expected, 0 against expectation, 0 no evidence, 2 one seed.")
    assert "one seed" not in told_together(whole.contrasts)


def test_the_page_says_where_nothing_is_claimed(tmp_path):
    def change(cell, result):
        return None if (cell.model, cell.seed) == ("convnext_digits_d4", "s1") else result

    board = load(fill(tmp_path / "cells", change=change), tmp_path / "cells")
    section = report(board, tmp_path).read_text().split('<section id="treatments"')[1].split("</section>")[0]
    assert section.count(">one seed\n") == len(board.contrasts) > 0
    assert "adjusted for all 0 rows that can claim something" in section


def test_long_tables_are_cut(tmp_path, monkeypatch):
    monkeypatch.setattr("eqbench.report.SHOWN", 2)
    board = load(fill(tmp_path / "cells"), tmp_path / "cells")
    one = board.contrasts[0]
    gain = Gain("whole", "part", 5, 1, "digits", "c4", one.metric, 0.1, 0.2, one.difference)
    board.__dict__["gains"] = [gain] * 3
    html = report(board, tmp_path).read_text()
    for name, found in (("treatments", board.contrasts), ("ensembles", board.gains)):
        section = html.split(f'<section id="{name}"')[1].split("</section>")[0]
        assert section.count("<tr>") == 1 + 2
        assert f"The first 2 of {len(found)} rows" in section


def test_chance_is_seldom_called_a_change():
    """No treatment does anything: at most 5 % of boards claim that one does (Holm); the bound is three errors wide."""
    rng = np.random.default_rng(3)
    boards = [planted(GRID, 0.0, rng=rng) for _ in range(250)]
    wrong = np.mean([any(one.holm < 0.05 for one in board.contrasts) for board in boards])
    assert wrong <= 0.05 + 3 * (0.05 * 0.95 / 250) ** 0.5, wrong


def test_the_file_and_the_page_have_them(tmp_path):
    board = load(fill(tmp_path / "cells"), tmp_path / "cells")
    write(board, tmp_path)
    table = pd.read_csv(tmp_path / "treatments.csv")
    assert list(table.columns) == COLUMNS
    assert len(table) == len(board.contrasts) > 0
    assert set(table["treated"]) == {"convnext_digits_d4"}
    row = board.table.query("model == 'convnext_digits_d4' and group == 'c4'").iloc[0]
    plain = board.table.query("model == 'convnext_digits' and group == 'c4'").iloc[0]
    found = table.query("metric == @RANKED and group == 'c4'").iloc[0]
    assert found["difference"] == pytest.approx(row[RANKED] - plain[RANKED], rel=1e-4)
    assert (found["lo"], found["expected"], found["verdict"]) == (pytest.approx(found["lo"]), -1, "as expected")
    html = report(board, tmp_path).read_text()
    section = html.split('<section id="treatments"')[1].split("</section>")[0]
    assert section.count("<tr>") == 1 + len(table)
    assert told_together(board.contrasts) in section
    assert 'data-facet="treatment"' in html
    assert '<a href="#treatments">' in html


def test_a_board_without_pairs_has_no_section_and_an_empty_file(tmp_path):
    board = load(
        fill(tmp_path / "cells", suite(), lambda c, r: r if c.model == "vit_digits" else None), tmp_path / "cells"
    )
    write(board, tmp_path)
    assert (tmp_path / "treatments.csv").read_text() == ",".join(COLUMNS) + "\n"
    assert 'id="treatments"' not in report(board, tmp_path).read_text()


def test_names_are_escaped(tmp_path):
    def rename(cell, result):
        if result.provenance.get("recipe"):
            result.provenance["architecture"] = "<script>alert(1)</script>"
        return result

    board = load(fill(tmp_path / "cells", change=rename), tmp_path / "cells")
    section = report(board, tmp_path).read_text().split('<section id="treatments"')[1].split("</section>")[0]
    assert "<script>" not in section
    assert "&lt;script&gt;" in section
