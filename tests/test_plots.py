"""Figures: well-formed, deterministic, with text as text, a title on every mark, and the cells' own numbers in them."""

import base64
import io
import re
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pandas as pd
import pytest
from board import fail, fill, suite
from docutils.core import publish_parts
from markupsafe import Markup
from PIL import Image

from eqbench.leaderboard import Board, load
from eqbench.metrics import METRICS
from eqbench.plots import (
    DRAWINGS,
    FIGURES,
    circuits,
    coverage,
    emergence,
    families,
    forest,
    layers,
    plot,
    restructured,
    sweep,
    tradeoff,
)
from eqbench.plots.drawing import PALETTE, STYLE, colours_of
from eqbench.profiles import INDEX, leading
from eqbench.results import Measure

SVG = "{http://www.w3.org/2000/svg}"
LARGER = {"symmetry_buys"}  # a figure that takes more networks than this board has: tests/test_analysis.py draws it


def figures(out):
    return {name: (out / "figures" / f"{name}.svg").read_text() for name in FIGURES}


def titles(svg):
    return [e.text for e in ET.fromstring(svg).iter(f"{SVG}title")][1:]


def value(text, before):
    """The number that follows `before` in a title."""
    return float(re.search(rf"{re.escape(before)}(-?[\d.e+-]+)", text)[1])


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The figures of a board of all probes with one failed and one missing model, drawn twice."""
    cells, first, second = (tmp_path_factory.mktemp(name) for name in ("cells", "first", "second"))

    def change(cell, result):
        if (cell.model, cell.group) == ("vit_digits", "d4"):
            return fail(result, "no <layout> & no tokens")
        return None if (cell.model, cell.group) == ("resnet_digits", "c4") else result

    board = load(fill(cells, suite(deep=True), change=change), cells)
    assert plot(board, first) == [
        first / "figures" / f"{name}.{kind}" for name in FIGURES for kind in ("svg", "pdf", "rst")
    ]
    plot(load(board.plan, cells), second)
    for path in first.glob("figures/*.pdf"):
        assert path.read_bytes() == (second / "figures" / path.name).read_bytes(), path.name
        assert path.read_bytes().startswith(b"%PDF")
        assert path.stem in LARGER or b"/FontFile2" in path.read_bytes(), "its fonts are within it, as TrueType"
    return board, figures(first), figures(second)


def test_same_board_same_bytes_and_nothing_from_outside(demo):
    _, first, second = demo
    assert first == second
    for svg in first.values():
        assert "<metadata" not in svg
        assert not re.findall(r'(?:href|src)="(?!#|data:image/png;base64,)', svg)
        assert not re.search(r"https?://(?!www\.w3\.org/)", svg)
        assert len(svg) < 130_000
    assert sum(map(len, first.values())) < 900_000


@pytest.mark.parametrize("name", [name for name in FIGURES if name not in LARGER])
def test_figure_is_named_described_and_its_text_is_text(demo, name):
    _, first, _ = demo
    root = ET.fromstring(first[name])
    assert root.attrib["role"] == "img"
    ids = [e.attrib["id"] for e in root.iter() if "id" in e.attrib]
    assert len(ids) == len(set(ids))
    assert all(i == name or i.startswith(f"{name}-") for i in ids), "ids stay unique when figures share a page"
    by_id = {e.attrib["id"]: e for e in root.iter() if "id" in e.attrib}
    title, description = (by_id[i] for i in root.attrib["aria-labelledby"].split())
    assert title.tag == f"{SVG}title"
    assert description.text == FIGURES[name]
    words = " ".join("".join(e.itertext()) for e in root.iter(f"{SVG}text"))
    assert "convnext_digits" in words
    assert "$" not in words, "no raw mathtext"
    links = {value[1:] for e in root.iter() for key, value in e.items() if key.endswith("href") and value[0] == "#"}
    assert links | set(re.findall(r"url\(#([^)]*)\)", first[name])) <= set(ids), "nothing that is pointed at is lost"


@pytest.mark.parametrize("name", FIGURES)
def test_captions_are_two_sentences(name):
    assert len(re.findall(r"[.](?:\s|$)", FIGURES[name])) == 2, FIGURES[name]


@pytest.mark.parametrize("caption", [*FIGURES.values(), "E_G* of |g|, *not* `this` or link_"])
def test_captions_read_the_same_as_restructured_text(caption):
    body = publish_parts(restructured(caption), writer="html", settings_overrides={"report_level": 1})["body"]
    assert " ".join(Markup(body).striptags().split()) == " ".join(caption.split())


def test_every_point_says_what_it_is(demo):
    board, first, _ = demo
    table = board.table
    said = titles(first["tradeoff"])
    measured = sum(
        table.loc[table["ranked_by"] == name, [name, f"{name}_init"]].notna().sum().sum()
        for name in table["ranked_by"].dropna().unique()
    )
    fronts = [text for text in said if text.startswith("Pareto front")]
    assert len(said) == measured + len(fronts)
    row = table[(table.model == "convnext_digits") & (table.group == "c4")].iloc[0]
    expected = (
        f"convnext_digits on digits, c4, trained: E_G* {row.lattice_error_aligned:.3g}, accuracy {row.accuracy:.3g}"
    )
    assert expected in said
    groups = table[table["model"] == "efficientnet_lite0"]["group"].nunique()
    assert sum("no accuracy" in text for text in said) == 2 * groups  # of the model on photos, trained and untrained
    turned = next(text for text in said if text.startswith("convnext_digits on digits, rotation, trained"))
    assert "accuracy 0.9" in turned, "a continuous group's cells have no accuracy: it is the network's"


def test_heat_map_shows_every_row_and_hatches_the_unranked(demo):
    board, first, _ = demo
    said = titles(first["heatmap"])
    assert len(said) == board.table["ranked_by"].notna().sum()
    assert "vit_digits on digits, d4: failed (s0: failed: no <layout> & no tokens)" in said
    assert "resnet_digits on digits, c4: not run (s0: not run)" in said
    root = ET.fromstring(first["heatmap"])
    assert len(list(root.iter(f"{SVG}pattern"))) >= 1
    words = ["".join(e.itertext()) for e in root.iter(f"{SVG}text")]
    assert {"failed", "not run"} < set(words)
    assert sum(re.fullmatch(r"\d\.\d\d", word) is not None for word in words) == len(said) - 2
    assert {METRICS[name].symbol for name in board.table["ranked_by"].dropna()} < set(words), "a scale a metric"


def test_emergence_and_spectrum_count_their_marks(demo):
    board, first, _ = demo
    table = board.table
    both = sum(
        table.loc[table["ranked_by"] == name, [name, f"{name}_init"]].notna().all(axis=1).sum()
        for name in table["ranked_by"].dropna().unique()
    )
    assert len(titles(first["emergence"])) == 2 * both
    spectra = [cell for cell in board.results if cell.probe == "spectrum" and cell.state in ("init", "final")]
    assert len(titles(first["spectrum"])) == 6 * len(spectra)


@pytest.mark.parametrize("name", sorted(set(FIGURES) - LARGER))
def test_every_title_that_a_drawing_gives_is_on_a_mark(demo, name):
    board, first, _ = demo
    given: dict[str, list[str]] = {}
    with matplotlib.rc_context(STYLE):
        DRAWINGS[name].draw(board, given)
    assert sorted(titles(first[name])) == sorted(said for labels in given.values() for said in labels)


def test_layer_lines_go_through_the_cells_numbers(demo):
    board, first, _ = demo
    said = {text.split(": ")[0]: text for text in titles(first["layers"])}
    final, init = (
        [
            {layer.name: layer.metrics["layer_error_permuted"].value for layer in result.layers if layer.metrics}
            for cell, result in board.results.items()
            if (cell.model, cell.group, cell.probe, cell.state) == ("vit_digits", "c4", "orbit", state)
        ]
        for state in ("final", "init")
    )
    assert len(final) == len(init) == 2
    for word, seeds in (("trained", final), ("untrained", init)):
        text = said[f"vit_digits on digits, c4, {METRICS['layer_error_permuted'].symbol} {word}"]
        for name in seeds[0]:
            assert value(text, f"{name} ") == pytest.approx(sum(seed[name] for seed in seeds) / 2, rel=5e-3)
    index = next(text for text in titles(first["emergence_by_layer"]) if text.startswith("vit_digits on digits, c4"))
    for name in final[0]:
        expected = 1 - sum(seed[name] for seed in final) / sum(seed[name] for seed in init)
        assert value(index, f"{name} ") == pytest.approx(expected, rel=5e-3)
    assert "vit_digits on digits, c4: head.norm refused: no declared layout: (B, 65, 64)" in titles(first["layers"])
    assert not any("vit_digits on digits, d4" in text for text in titles(first["layers"])), "failed cells have no lines"


def test_sweeps_are_the_cells_curves(demo):
    board, first, _ = demo
    (text,) = (t for t in titles(first["sweep"]) if t.startswith("resnet_digits on digits, rotation, trained"))
    curves = [
        result.curves
        for cell, result in board.results.items()
        if (cell.model, cell.group, cell.probe, cell.state) == ("resnet_digits", "rotation", "sweep", "final")
    ]
    error = np.mean([curve["rotation_error"] for curve in curves], 0)
    found = re.findall(r"([\d.]+) at ([\d.-]+)", text)
    assert [float(t) for _, t in found] == pytest.approx(curves[0]["rotation_t"], rel=1e-2)
    assert [float(e) for e, _ in found] == pytest.approx(error, rel=1e-2)
    pooled = sweep.curves(board)["rotation", "rotation", "resnet_digits", "digits", "final"]
    assert pooled["lo"] == pytest.approx(np.min([curve["rotation_lo"] for curve in curves], 0))
    assert pooled["hi"] == pytest.approx(np.max([curve["rotation_hi"] for curve in curves], 0))
    assert sweep.unit("translation", "translation_x") == "px"
    assert sweep.unit("affine", "rotation") == "rad", "a generator of the affine group has its own group's unit"


def test_the_lie_figure_has_every_interval(demo):
    board, first, _ = demo
    said = titles(first["lie"])
    table = board.table.dropna(subset=["lie_ratio"])
    assert len(said) == 2 * len(table)
    row = table[(table.model == "vit_digits") & (table.group == "hue")].iloc[0]
    text = f"vit_digits on digits, hue, trained: {METRICS['lie_ratio'].symbol} {row.lie_ratio:.3g}"
    assert f"{text} [{row.lie_ratio_lo:.3g}, {row.lie_ratio_hi:.3g}]" in said
    lines = titles(first["lie_by_layer"])
    assert len(lines) == 2 * len(table)


def test_the_census_adds_up_and_families_show_their_kernels(demo):
    board, first, _ = demo
    counted = circuits.census(board)
    assert counted[list(circuits.KINDS)].sum(axis=1).to_numpy() == pytest.approx(1.0)
    said = [text for text in titles(first["circuits"]) if text.startswith("vit_digits on digits, c4, trained:")]
    shares = [float(re.search(r"([\d.]+)%", text)[1]) for text in said if "%" in text]
    assert len(shares) == len(circuits.KINDS)
    assert sum(shares) == pytest.approx(100)
    cell, result = families.pictured(board)[0]
    (packed, *_) = re.findall(r'href="data:image/png;base64,([^"]*)"', first["families"].replace("\n", ""))
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(packed))).convert("RGB")) / 255
    if picture[0].mean() < 1:
        picture = picture[::-1]
    kernels = np.array(result.curves["filters"][0]["kernels"])
    expected = families.coloured(kernels)
    assert picture[1:5, 1:5] == pytest.approx(expected[0], abs=0.01)
    assert picture[1:5, 6:10] == pytest.approx(np.rot90(expected[0], -1), abs=0.01), (
        "the next member is a quarter turn on"
    )
    assert cell.group in ("c4", "d4"), "the group with most matched members"
    assert sum("least correlation" in text for text in titles(first["families"])) > len(families.pictured(board))


@pytest.mark.parametrize("keep", ["nothing", "init", "spectrum", "one"])
def test_partial_boards_are_drawn_or_say_so(tmp_path, keep):
    wanted = {
        "nothing": lambda c: False,
        "init": lambda c: c.state == "init",
        "spectrum": lambda c: c.probe == "spectrum",
        "one": lambda c: c.model == "efficientnet_lite0" and c.group == "c4",
    }[keep]
    plan = fill(tmp_path, suite(), change=lambda cell, result: result if wanted(cell) else None)
    plot(load(plan, tmp_path), tmp_path)
    drawn = {name for name, svg in figures(tmp_path).items() if "No finished cells" not in svg}
    orbit, curvature = {"tradeoff", "heatmap", "emergence", "layers", "emergence_by_layer"}, {"spectrum", "density"}
    expected = {"nothing": set(), "init": {*curvature, "layers"}, "spectrum": curvature, "one": orbit}[keep]
    assert drawn == (expected | {"coverage"} if expected else set())
    for svg in figures(tmp_path).values():
        ET.fromstring(svg)


def test_a_board_whose_trainings_are_not_finished_is_drawn(tmp_path):
    plan = fill(tmp_path, suite(deep=True), change=lambda cell, result: None if cell.state == "final" else result)
    board = load(plan, tmp_path)
    assert set(board.epochs["convnext_digits"]) == {"init", "epoch-001", "epoch-004"}
    plot(board, tmp_path)
    drawn = {name for name, svg in figures(tmp_path).items() if "No finished cells" not in svg}
    assert drawn >= {"trajectories", "trajectories_by_layer", "trajectories_landscape"}


def test_nothing_is_drawn_outside_the_panels(tmp_path):
    def change(cell, result):
        if (cell.model, cell.group, cell.state) == ("vit_digits", "d4", "init"):
            result.metrics["lattice_error_aligned"] = Measure(3.0, 2.5, 4.0, 256, null=1.4)
        return result

    board = load(fill(tmp_path, change=change), tmp_path)
    high = board.table["lattice_error_aligned_init_hi"].max()
    assert high > 3
    for axes in tradeoff.draw(board, {}).axes:
        assert axes.get_xlim()[0] == 0
        assert axes.get_xlim()[1] >= high
    for axes in emergence.draw(board, {}).axes:
        assert axes.get_ylim()[0] == 0
        assert axes.get_ylim()[1] >= high


def test_large_boards_show_the_models_that_changed_most(demo):
    board, *_ = demo
    frame = board.layers
    both = list(dict.fromkeys(zip(frame["model"], frame["data"], strict=True)))
    assert leading(frame, board.table, 99) == both
    mean = board.table.groupby(["model", "data"])[INDEX].mean()
    (first,) = leading(frame, board.table, 1)
    assert mean[first] == mean.max()
    assert first == ("convnext_digits_d4", "digits")
    assert leading(frame, board.table.assign(**{INDEX: np.nan}), 2) == both[:2], "without an index, the plan's order"
    assert layers.MODELS * layers.GROUPS <= 36
    metric = METRICS["lattice_error_aligned"]
    table = board.table.loc[board.table.index.repeat(20)].copy()
    table["model"] = [f"m{i}" for i in range(len(table))]
    assert len(forest.rows(table, metric)) == forest.MODELS


def test_many_models_are_coloured_by_family(demo):
    board, *_ = demo
    assert len({colour for colour, *_ in colours_of(board).values()}) == 5
    many = Board(board.plan, {}, {})
    many.__dict__["facts"] = {f"m{i}": {"family": "ABC"[i % 3]} for i in range(30)}
    found = colours_of(many)
    assert {label for *_, label in found.values()} == {"A", "B", "C"}
    assert {colour for colour, *_ in found.values()} == set(PALETTE[:3])


def test_the_pareto_front_is_of_trained_networks_on_the_same_images(demo):
    board, first, _ = demo
    table = board.table.query("group == 'c4' and data == 'digits'").dropna(subset=["lattice_error_aligned", "accuracy"])
    better = [
        [
            (b.lattice_error_aligned <= a.lattice_error_aligned)
            & (b.accuracy >= a.accuracy)
            & ((b.lattice_error_aligned, b.accuracy) != (a.lattice_error_aligned, a.accuracy))
            for b in table.itertuples()
        ]
        for a in table.itertuples()
    ]
    front = [model for model, beaten in zip(table["model"], better, strict=True) if not any(beaten)]
    (said,) = [text for text in titles(first["tradeoff"]) if text.startswith("Pareto front on digits, c4: ")]
    assert sorted(said.partition(": ")[2].split(", ")) == sorted(front)
    assert len(front) < len(table)
    rows = pd.DataFrame({"error": [0.1, 0.1, 0.2, 0.2, 0.3], "accuracy": [0.5, 0.5, 0.5, 0.5, 0.4]})
    assert list(tradeoff.pareto(rows, "error", False).index) == [0, 1], (
        "equals share the front, what they beat does not"
    )
    assert list(tradeoff.pareto(rows, "error", True).index) == [4, 2, 3], "from the best error on"


def test_the_coverage_matrix_counts_every_cell(demo, monkeypatch):
    board, first, _ = demo
    found = coverage.matrix(board)
    assert sum(counts.total() for counts in found.values()) == len(board.plan.cells)
    for status, count in board.counts.items():
        assert sum(counts[status] for counts in found.values()) == count
    said = titles(first["coverage"])
    assert len(said) == len(found)
    assert "digits / vit_digits, orbit: 12 ok, 4 failed" in said
    monkeypatch.setattr(coverage, "ROWS", 2)
    by_family = coverage.matrix(board)
    assert {row for row, _ in by_family} == {str(facts["family"]) for facts in board.facts.values()}
    assert sum(counts.total() for counts in by_family.values()) == len(board.plan.cells)


def test_a_large_board_has_pale_dots_for_the_untrained(demo, monkeypatch):
    board, *_ = demo
    monkeypatch.setattr(tradeoff, "MARKS", 1)
    said = {}
    figure = tradeoff.draw(board, said)
    assert all(gid.startswith("front-") for gid in said), "only fronts are named"
    axes = figure.axes[0]
    dots = [line for line in axes.lines if line.get_alpha() == 0.3]
    assert len(dots) == board.table.query("group == 'hflip'")["model"].nunique()
    x, _ = dots[0].get_data()
    assert (
        x[0] == x[1] == board.table.query("group == 'hflip'").sort_values("model")["lattice_error_aligned_init"].iloc[0]
    )
    assert not dots[0].get_path().should_simplify
