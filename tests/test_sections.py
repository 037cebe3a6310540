"""Sections of the models: figures that say what the cells hold, what a page has no room for, and commands that run."""

import base64
import html
import io
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from board import fail, fill, suite
from PIL import Image

from eqbench import reproduce, sections, weights
from eqbench.config import load_suite
from eqbench.leaderboard import load
from eqbench.minis import BOTTOM, LEFT, RIGHT, TOP, Band, Line, chart
from eqbench.panels.certificate import certificate
from eqbench.panels.families import filters
from eqbench.panels.learning import learning
from eqbench.panels.slices import slices
from eqbench.panels.spectrum import spectrum
from eqbench.plots.families import coloured
from eqbench.report import report
from eqbench.results import Status
from eqbench.sections import fitting

ROOT = Path(__file__).parents[1]
MODEL = "resnet_digits"


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A board of every probe, and the cards of its weights."""
    folder = tmp_path_factory.mktemp("deep")
    board = load(fill(folder / "cells", suite(deep=True)), folder / "cells")
    for model, facts in board.facts.items():
        for seed in dict.fromkeys(key.split()[0] for key in facts["sha256"]):
            write_card(folder / "weights", model, seed, facts["sha256"])
    return board, folder / "weights"


def write_card(folder, model, seed, hashes, **changes):
    states = {key.split()[1]: sha for key, sha in hashes.items() if key.startswith(f"{seed} ")}
    history = [
        {"epoch": e, "lr": 0.1, "train_loss": 2 / e + 0.3, "test_loss": 2 / e, "test_accuracy": 1 - 0.9 / e}
        for e in range(1, 11)
    ]
    recipe = {"epochs": 10, "lr": 0.004, "augment": "none", "model_ema": False, "model_ema_decay": 0.99}
    weights.write_card(folder, model, seed, {"states": states, "metrics": history, "recipe": recipe} | changes)


def own(board, model=MODEL):
    """The finished cells of a model, the trained ones first."""
    found = [(cell, result) for cell, result in board.results.items() if cell.model == model]
    return sorted(found, key=lambda entry: (entry[0].state != "final", entry[0].seed))


def section(board, model=MODEL, folder=None):
    return next(one for one in sections.sections(board, folder).models if one.model == model)


def points(svg, look, x=(0.0, 1.0), y=(0.0, 1.0)):
    """The points of the first line of this look, in the units of the axes."""
    path = re.search(rf'<path class="{look}" d="M([^"]*)"', svg)[1].replace("M", " ").removesuffix("z")
    places = np.array(path.split(), float).reshape(-1, 2)
    shares = (places - [LEFT, BOTTOM]) / [RIGHT - LEFT, TOP - BOTTOM]
    return shares * [x[1] - x[0], y[1] - y[0]] + [x[0], y[0]]


def test_a_line_is_where_its_numbers_are_and_has_gaps_where_it_has_none():
    x, y = [0.0, 1.0, 2.0, 3.0, 4.0], [1.0, None, 3.0, 2.0, 9.0]
    svg = chart("t", [Line(x, y, "a", "said")], (0, 4), (1, 4))
    assert points(svg, "a", (0, 4), (1, 4)) == pytest.approx(
        np.array([[0, 1], [0, 1], [2, 3], [3, 2], [4, 4]]), abs=0.03
    )
    assert 'd="M3 67 3 67M' in svg, "a lone point is a dot"
    flat = chart("t", [Line(range(1000), [0.0] * 1000, "a")], (0, 999), (0, 1))
    assert len(points(flat, "a")) == 2, "no point that changes nothing"
    assert len(points(chart("t", [Line(range(999), np.sin(range(999)), "a")], (0, 998), (-1, 1)), "a")) == 60
    band = points(chart("t", [Band([0, 1], [0.25, 0.5], [0.75, 1.0], "b")], (0, 1), (0, 1)), "b")
    assert band == pytest.approx(np.array([[0, 0.75], [1, 1], [1, 0.5], [0, 0.25]]), abs=0.01)
    assert "<script>" not in chart("<script>", [Line(x, y, "a", "<script>")], (0, 1), (0, 1), ("<script>", ""))


def test_the_layer_curves_are_those_of_the_layer_table(deep):
    board, _ = deep
    profile = next(one for one in section(board).measured[0].profiles if one.group == "d4")
    frame = board.layers.query("model == @MODEL and group == 'd4' and metric == 'layer_error_permuted'")
    assert len(frame) == 6
    for column, look in (("value", "trained"), ("init", "untrained")):
        assert points(profile.curve, look)[:, 1] == pytest.approx(frame[column].to_numpy(), abs=0.02)
    band = points(profile.curve, "band")
    ends = np.concatenate([frame["init_hi"], frame["init_lo"][::-1]])
    assert band[:, 1] == pytest.approx(ends.clip(0, 1), abs=0.02), "the untrained band is the interval"
    assert (profile.measured, profile.layers) == (6, 7)


def test_learning_curves_are_of_the_weights_that_were_measured(deep, tmp_path):
    board, cards = deep
    found = {panel.kind: panel for panel in section(board, folder=cards).measured[0].panels}
    (_, losses), (_, accuracy) = found["learning curves"].charts
    assert points(losses, "s0", (1, 10), (0, 2.3))[:, 1] == pytest.approx([2 / e for e in range(1, 11)], abs=0.05)
    assert points(accuracy, "s1", (1, 10))[-1] == pytest.approx([10, 0.91], abs=0.02)
    card = dict(section(board, folder=cards).card)
    assert card["recipe"] == "augment none, epochs 10, lr 0.004", "without the options of what is off"
    hashes = board.facts[MODEL]["sha256"]
    write_card(tmp_path, MODEL, "s0", dict.fromkeys(hashes, "0" * 64))
    write_card(tmp_path, MODEL, "s1", hashes)
    panel = next(p for p in section(board, folder=tmp_path).measured[0].panels if p.kind == "learning curves")
    assert "s0" not in panel.note, "trained again since"
    assert "s1: 0.910 after 10 epochs" in panel.note
    (tmp_path / MODEL / "s1/card.json").write_text("{")
    assert "recipe" not in dict(section(board, folder=tmp_path).card)


@pytest.mark.parametrize(
    "history", [None, "x", [3], [{"epoch": 1}], [{"epoch": 1, "train_loss": "<b>", "test_loss": 1, "test_accuracy": 1}],
                [{"epoch": 1, "train_loss": 10**400, "test_loss": 1, "test_accuracy": 1}]],
)  # fmt: skip
def test_a_card_may_say_anything(history):
    assert learning({"s0": {"metrics": history}}) is None


def test_the_certificate_shows_the_worst_of_its_cells(deep):
    board, _ = deep
    cells = [(cell, result) for cell, result in own(board) if cell.probe == "symmetries"]
    rows = [row for _, result in cells for row in result.curves["families"] if row["family"] == "S4"]
    line = re.search(r"<tr>.*S4 .*", certificate(own(board)).table)[0]
    assert re.findall(r"<td[^>]*>([^<]*)", line)[:3] == ["3", "1", "—"]
    assert f"{max(row['r2'] for row in rows):.0e}".replace("-", "−") in line
    assert "misses" not in line
    assert "control, no symmetry, must miss them and has 0.200" in certificate(own(board)).note
    cell, result = cells[-1]
    spoiled = [row | {"r2": 1e-3} if row["family"] == "S4" else row for row in result.curves["families"]]
    worse = certificate([*cells[:-1], (cell, replace(result, curves={"families": spoiled}))]).table
    assert '<td class="failed">0.001 misses its gate' in worse
    assert worse.count("misses its gate") == 1


def test_pictures_are_the_filters(deep):
    board, _ = deep
    panel = filters(own(board))
    cell, result = next(entry for entry in own(board) if entry[0].probe == "circuits")
    family = result.curves["filters"][0]
    said, figure = panel.charts[0]
    assert said == f"{cell.group}, {family['correlation']:.2f}"
    png = base64.b64decode(re.search(r"base64,([^\"]*)", figure)[1])
    pixels = np.asarray(Image.open(io.BytesIO(png)), float) / 255
    kernels = coloured(np.array(family["kernels"], float))
    size = kernels.shape[1]
    for k, kernel in enumerate(kernels):
        assert pixels[:, k * (size + 1) :][:, :size, :3] == pytest.approx(kernel, abs=1 / 255)
    assert (pixels[:, size, 3] == 0).all(), "nothing between two filters"
    assert [("unmatched" in figure) for _, figure in panel.charts[:3]] == [False, False, True]


def test_the_spectrum_marks_the_eigenvalues(deep):
    board, _ = deep
    result = next(result for cell, result in own(board) if (cell.probe, cell.state) == ("spectrum", "final"))
    values = sorted([*result.curves["eigenvalues"], *result.curves["smallest"]])
    (_, svg), panel = spectrum(own(board)).charts[0], spectrum(own(board))
    ticks = re.findall(r'<path class="trained" d="M([^"]*)"', svg)[0].split("M")
    places = [(float(tick.split()[0]) - LEFT) / (RIGHT - LEFT) for tick in ticks]
    linear = max(map(abs, values)) * 1e-4
    edge = np.arcsinh(1e4) + 0.5
    assert places == pytest.approx((np.arcsinh(np.array(values) / linear) / edge + 1) / 2, abs=0.005)
    assert 'class="trained area"' in svg
    assert "trained" in panel.note
    alone = [(c, replace(r, curves={"eigenvalues": [3.0]})) for c, r in own(board) if c.probe == "spectrum"]
    assert "density" not in spectrum(alone).charts[0][0].lower(), "no density where none was measured"


def test_orbits_stand_beside_random_lines_as_long(deep):
    board, _ = deep
    charts = dict(slices(own(board)).charts)
    result = next(result for cell, result in own(board) if cell.probe == "slices")
    orbit = result.curves["orbits"][0]
    figure = charts["along symmetry orbits (dotted: random lines as long)"]
    top = max(orbit["random"])
    assert points(figure, "s0", y=(0, top))[:, 1] == pytest.approx([orbit["losses"][0]] * 2, abs=0.1)
    assert points(figure, "s0 dotted", y=(0, top))[:, 1] == pytest.approx(orbit["random"], abs=0.1)
    steep = [dict(orbit, random=[100.0 * v for v in orbit["random"]])]
    cut = dict(slices([(c, replace(r, curves={"orbits": steep})) for c, r in own(board) if c.probe == "slices"]).charts)
    assert ">5.10 nat</text>" in next(iter(cut.values()))


def test_what_does_not_fit_is_left_out_of_all_models_alike(deep, monkeypatch, tmp_path):
    board, cards = deep
    whole = sections.sections(board, cards)
    assert (whole.in_part, whole.left_out, whole.tabled) == ([], [], True)
    monkeypatch.setattr(sections, "ROOM", 60_000)
    found = sections.sections(board, cards)
    assert found.in_part
    assert sections.CELLS in found.left_out
    assert not found.tabled
    for kind in ("certificate", "spectrum"):
        having = [m.model for m in found.models if kind in {p.kind for part in m.measured for p in part.panels}]
        assert having == [m.model for m in whole.models if kind in {p.kind for q in m.measured for p in q.panels}]
    for kind in found.in_part:
        assert all(len(p.charts) <= 1 for m in found.models for q in m.measured for p in q.panels if p.kind == kind)
    assert {len(part.profiles) for m in found.models for part in m.measured} == {1}
    page = report(board, tmp_path, cards).read_text()
    assert f"one figure each for want of room: {', '.join(found.in_part)}." in page
    assert f"Left out for want of room: {html.escape(', '.join(found.left_out))}." in page.replace("&#39;", "&#x27;")
    assert "add <code>part=" in page, "how a single cell is asked for"


def test_room_is_for_many_kinds_before_it_is_for_whole_ones():
    brief, full = {"a": 10, "b": 30, "c": 50}, {"a": 100, "b": 30, "c": 60}
    assert fitting(brief, full, 89) == {"a": 1, "b": 2, "c": 0}
    assert fitting(brief, full, 90) == {"a": 1, "b": 2, "c": 1}
    assert fitting(brief, full, 100) == {"a": 1, "b": 2, "c": 2}
    assert fitting(brief, full, 190) == {"a": 2, "b": 2, "c": 2}
    assert fitting(brief, full, 5) == {"a": 0, "b": 0, "c": 0}


@pytest.mark.parametrize(("handful", "opened"), [(5, True), (4, False)])
def test_sections_stand_open_on_small_boards(deep, monkeypatch, tmp_path, handful, opened):
    board, _ = deep
    monkeypatch.setattr(sections, "HANDFUL", handful)
    page = report(board, tmp_path).read_text()
    assert page.count('<details class="model" open>') == (5 if opened else 0)
    assert ("Open a model to see it." in page) != opened


def test_a_model_without_cells_has_its_commands(tmp_path):
    board = load(fill(tmp_path, suite(), lambda cell, r: None if cell.model == MODEL else r), tmp_path)
    found = section(board)
    assert (found.done, found.measured, found.hashes) == (0, [], {})
    assert {row.status for row in found.rows} == {"not run"}
    assert len(found.rows) == found.planned > 0
    page = report(board, tmp_path).read_text().split(f'<article id="m-{MODEL}"')[1].split("</article>")[0]
    assert "No cell of this model is measured yet." in page
    assert found.recipes[0].snakemake in html.unescape(page)


def test_failed_cells_are_listed_with_their_status(tmp_path):
    board = load(
        fill(tmp_path, suite(), lambda c, r: fail(r, "no", Status.skipped) if c.group == "c4" else r), tmp_path
    )
    assert {row.status for row in section(board).rows if row.cell.group == "c4"} == {"skipped"}
    assert all(row.seconds == 3.25 for row in section(board).rows)


def test_commands_carry_what_was_given_and_name_every_part():
    plan = load_suite("demo", ["probe.orbit.images=16", "suite.demo.pack=group"])
    cells = [cell for cell in plan.cells if cell.model == MODEL]
    assert reproduce.given(plan) == ["probe.orbit.images=16", "suite.demo.pack=group"], "not the suite's own"
    first = reproduce.recipes(plan, MODEL, cells)[0]
    parts = sorted({plan.part(cell)[3] for cell in cells if (cell.seed, cell.state) == (first.seed, first.state)})
    expanded = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {first.snakemake}"], capture_output=True, text=True
    ).stdout
    words = expanded.splitlines()
    where = f"data/parts/demo/{MODEL}/{first.seed}/{first.state}"
    assert sorted(words[words.index("--") + 1 :]) == [f"{where}/{part}.json" for part in parts]
    assert 'overrides=["probe.orbit.images=16", "suite.demo.pack=group"]' in words
    again = load_suite("demo", reproduce.given(plan))
    assert again.expectation(cells) == plan.expectation(cells)
    whole = reproduce.recipes(load_suite("demo", ["suite.demo.pack=seed"]), MODEL, cells)[0]
    assert whole.snakemake.endswith(f" -- data/parts/demo/{MODEL}/{first.seed}/all/all.json")
    fetched = next(cell for cell in plan.cells if cell.model == "efficientnet_lite0")
    assert " fetch " in reproduce.recipes(plan, fetched.model, [fetched])[0].weights[0]


def test_commands_of_the_page_run_unchanged(tmp_path):
    """In a folder like a clone: once by Snakemake, once step by step, to the same numbers."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    for name in ("Snakefile", "environment.yml"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "conf/model/plain.yaml").write_text("timm: test_resnet\nsource: random\nimage_size: 32\n")
    (tmp_path / "conf/probe/orbit.yaml").write_text("images: 16\nresamples: 100\nfloor_images: 2\n")
    (tmp_path / "conf/suite/tiny.yaml").write_text(
        "blocks: {all: {models: [plain], data: photos, groups: [hflip], probes: [orbit], states: [init]}}\n"
        "overrides: ['model.plain.args={avg_down: false}']\n"  # decides the weights, and is the suite's own
    )
    command(tmp_path, "python -m eqbench report suite=tiny probe.orbit.images=8")
    page = (tmp_path / "reports/tiny/index.html").read_text().split('<article id="m-plain"')[1]
    blocks = [html.unescape(text).strip().splitlines() for text in re.findall(r"<code>([^<]*)</code>", page)]
    (snakemake,), (weights_line, probe), (cell,) = blocks[:3]
    path = tmp_path / "data/cells/tiny/plain/s0/init/hflip/orbit.json"
    command(tmp_path, snakemake)
    first = re.search(r'"digest": "(\w+)"', path.read_text())[1]
    assert cell == probe.replace("state=init", "state=init part=hflip+orbit")
    path.unlink()
    command(tmp_path, weights_line)
    command(tmp_path, cell)
    assert re.search(r'"digest": "(\w+)"', path.read_text())[1] == first
    assert '"images": 8' in path.read_text()


def command(folder, line):
    path = f'PATH="{Path(sys.executable).parent}:$PATH"'
    done = subprocess.run(["bash", "-c", f"{path} {line}"], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{line}\n{done.stderr}"
