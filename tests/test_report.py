"""The page: complete, escaped, deterministic and light, on whole, partial, failing and empty boards."""

import base64
import gzip
import json
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from board import fail, fill, suite
from markupsafe import escape

from eqbench import layertables
from eqbench.columns import FACTS, THEMES, number
from eqbench.config import load_suite
from eqbench.leaderboard import load, write
from eqbench.metrics import METRICS
from eqbench.plots import FIGURES, plot
from eqbench.report import FILES, _math, report
from eqbench.results import Measure

EVIL = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """Tags, attributes and the text of each leaderboard row."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.rows, self.table = [], [], [], False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.table = self.table or ("class", "board") in attrs
        if self.table and tag == "tr":
            self.rows.append("")

    def handle_endtag(self, tag):
        self.table = self.table and tag != "table"

    def handle_data(self, data):
        if self.table and self.rows:
            self.rows[-1] += f" {data}"


def build(folder, change=None, figures=False, plan=None):
    plan = plan or suite()
    fill(folder / "cells", plan, change=change)
    board = load(plan, folder / "cells")
    write(board, folder)
    if figures:
        plot(board, folder)
    path = report(board, folder)
    assert path == folder / FILES[0]
    return board, path.read_text()


def test_page_of_a_whole_board(tmp_path):
    board, html = build(tmp_path, figures=True)
    page = Page(html)
    assert len(page.rows) == 2 + len(board.table), "two headers"
    assert page.tags.count("h1") == page.tags.count("main") == 1
    for metric in METRICS.values():
        assert f'id="g-{metric.name}"' in html, "the glossary has every metric"
    empty = set(FIGURES) - {
        "tradeoff",
        "heatmap",
        "emergence",
        "critical_difference",
        "layers",
        "emergence_by_layer",
        "spectrum",
        "density",
        "coverage",
    }
    for name, caption in FIGURES.items():
        assert bool(re.search(rf'<svg [^>]*\bid="{name}"', html)) == (name not in empty)
        assert (f"<figcaption>{escape(caption)}" in html) == (name not in empty)
    assert f"no finished cell holds their numbers: {', '.join(name for name in FIGURES if name in empty)}." in html
    for model in board.facts:
        assert f'id="m-{model}"' in html
    assert "96 of 96" in html
    first = board.table.iloc[0]
    text = " ".join(page.rows[1].split())
    assert text.startswith(f"{first.model} {first.family} {first.data} {first.group} {first['rank']}")
    for key in ("", "_lo", "_hi", "_floor", "_null", "_init", "_emergence"):
        assert number(first[f"lattice_error_aligned{key}"]) in text
    assert "lower is better" in page.rows[0]
    assert "higher is better" in page.rows[0]
    path = tmp_path / "index.html"
    assert report(load(board.plan, tmp_path / "cells"), tmp_path).read_text() == html == path.read_text()


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """The board of every probe, and its page with figures."""
    folder = tmp_path_factory.mktemp("deep")
    return build(folder, figures=True, plan=suite(deep=True))


def test_groups_of_another_metric_have_a_table_of_their_own(deep):
    board, html = deep
    tables = html.split('<table class="board"')[1:]
    by = board.table["ranked_by"]
    assert len(tables) - 1 == by.nunique() == 2
    *tables, alone = [text.split("</table>")[0] for text in tables]
    assert "<b>The loss landscape</b>" in alone
    assert alone.count("<tr") - 1 == (board.table["group"] == "none").sum()
    for place, (name, text) in enumerate(zip(dict.fromkeys(by.dropna()), tables, strict=True), 1):
        assert text.startswith(f' id="board-{place}"')
        groups = list(dict.fromkeys(board.table.loc[by == name, "group"]))
        assert f"<b>{', '.join(groups)}</b>, ranked by" in text
        assert text.count("<tr") - 1 == (by == name).sum()
        assert f"({'higher' if METRICS[name].higher_is_better else 'lower'} is better)" in text.split("</th>")[4]
    assert "Placebo gap" in tables[0]
    assert "Placebo gap" not in tables[1], "no column of dashes"
    for name in METRICS:
        if board.table[name].notna().any():
            assert html.count(f'id="col-{name}"') == 1, "a choice a column, whichever tables have it"
    for theme in (*THEMES, "cost", "provenance"):
        assert f'id="all-{theme}"' in html


def test_layers_have_their_numbers_and_reasons_on_the_page(deep):
    board, html = deep
    assert html.count('<details id="l-') == len(board.layers.groupby(["model", "data", "group"]))
    section = html.split('<details id="l-vit_digits-digits-c4">')[1].split("</details>")[0]
    assert "6 of 7 layers" in section
    assert 'colspan="' in section
    assert "refused: no declared layout: (B, 65, 64)" in section
    frame = board.layers.query("model == 'vit_digits' and group == 'c4' and probe == 'orbit' and layer == 'stages.1.0'")
    (row,) = re.findall(r"<tr><th>stages\.1\.0<td>0\.40<td>32×16×16(.*?)<tr>", section, re.DOTALL)[:1]
    cells = [cell.splitlines()[0] for cell in row.split("<td>")[1:]]
    assert cells == [
        number(frame.set_index("metric").loc[name, "value"]) for name in METRICS if name in set(frame.metric)
    ]
    permuted = frame[frame.metric == "layer_error_permuted"].iloc[0]
    assert (
        f"<td>{number(permuted.value)}\n[{number(permuted.lo)}, {number(permuted.hi)}]\n{number(permuted.init)}<td>"
        in row
    )
    assert section.count('class="trained"') == section.count('class="untrained"') == 1, "a curve of each state"


def test_a_board_with_more_layers_than_a_page_holds_leaves_them_to_the_csv(deep, monkeypatch, tmp_path):
    board, _ = deep
    monkeypatch.setattr(layertables, "NUMBERS", 100)
    page = report(board, tmp_path).read_text()
    assert '<details id="l-' not in page
    assert "This board has more layers than one page can show" in page


def test_the_page_of_the_demo_suite_stays_below_a_megabyte(tmp_path):
    plan = load_suite("demo")
    board, html = build(tmp_path, figures=True, plan=plan)
    assert len(Page(html).rows) > len(board.table)
    assert len(html.encode()) < 1_500_000


@pytest.mark.parametrize("name", METRICS)
def test_every_number_has_two_sentences_and_a_formula_that_renders(name):
    metric = METRICS[name]
    text = re.sub(r"\b(cf|e\.g|i\.e|vs)\.", "", metric.definition)
    assert 1 <= len(re.findall(r"[.!?](?=\s|$)", text)) <= 2, metric.definition
    assert metric.definition[0].isupper()
    for part in (metric.formula, metric.symbol):
        seen = re.sub(r"<[^>]*>", "", _math(part))
        assert not re.search(r"_|\^|\\|\$", seen), seen
    assert metric.formula.count("{") == metric.formula.count("}")


def test_page_asks_nothing_of_the_network(deep):
    _, html = deep
    page = Page(html)
    places = [value for key, value in page.attributes if key in ("src", "href", "xlink:href", "action", "data")]
    assert places
    outside = {place for place in places if not place.startswith(("#", "data:image/png;base64,"))}
    assert outside == {
        f"{name}.csv" for name in ("leaderboard", "results", "coverage", "treatments", "ensembles", "analysis")
    }
    assert not re.search(r"url\((?!#)|@import", html)
    assert "default-src 'none'" in html


def test_ids_are_unique_and_links_lead_somewhere(deep):
    _, html = deep
    page = Page(html)
    ids = [value for key, value in page.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for key, value in page.attributes if key == "href" and value[:1] == "#" and value != "#"} <= set(
        ids
    )


def test_everything_from_results_is_escaped(tmp_path):
    def change(cell, result):
        result.provenance |= {"family": EVIL, "licence": EVIL, "git": EVIL, "weights": EVIL, "torch": EVIL}
        result.cost["device"] = EVIL
        if cell.group == "c4":
            return fail(result, EVIL)
        if cell.group == "d4":
            result.metrics["lattice_error_aligned"] = Measure(None, reason=EVIL)
        return result

    _, html = build(tmp_path, change, figures=True)
    _, clean = build(tmp_path / "clean", figures=True)
    assert EVIL not in html
    assert "<script>alert" not in html
    page = Page(html)
    assert page.tags.count("script") == Page(clean).tags.count("script") == 2
    assert "img" not in page.tags
    assert not [key for key, _ in page.attributes if key.startswith("on")]
    assert html.count("&lt;script&gt;alert(") > 30


def test_failed_cells_are_rows_with_their_reasons(tmp_path):
    broken = {"vit_digits": "no layout for tokens", "resnet_digits": "out of memory"}
    board, html = build(tmp_path, lambda c, r: fail(r, broken[c.model]) if c.model in broken else r)
    rows = [" ".join(row.split()) for row in Page(html).rows[1:]]
    assert len(rows) == 1 + len(board.table)
    vit = [row for row in rows if row.startswith("vit_digits")]
    assert len(vit) == 5
    assert all("— s0: failed: no layout for tokens" in row for row in vit if " none " not in row)
    assert all(row.endswith("failed 0 of 4") for row in vit)
    assert f"{board.counts['failed']} failed" in html
    for cell in board.plan.cells:
        if cell.model in broken:
            alike = f"{cell.model}/s0,s1/init,final/{cell.group}/{cell.probe}"  # said once of all seeds and states
            assert f'<th scope="row">{alike}</th><td class="failed">failed</td><td>{broken[cell.model]}</td>' in html


@pytest.mark.parametrize("keep", [(), ("vit_digits",)])
def test_partial_and_empty_boards_have_a_page(tmp_path, keep):
    board, html = build(tmp_path, lambda cell, result: result if cell.model in keep else None)
    page = Page(html)
    assert len(page.rows) == 2 + len(board.table) == 26
    assert f"{board.counts['ok']} of 96" in html
    assert f"{board.counts['not run']} not run" in html
    assert "is not drawn yet" in html
    assert ("Emergence" in page.rows[0]) == bool(keep), "columns without a number are left out"


def test_the_embedded_data_are_the_leaderboard_in_the_order_of_the_page(deep):
    board, html = deep
    (packed,) = re.findall(r'<script type="application/gzip" id="data">([^<]*)</script>', html)
    data = json.loads(gzip.decompress(base64.b64decode(packed)))
    tables = "".join(text.split("</table>")[0] for text in html.split('<table class="board')[1:])
    assert data["model"] == re.findall(r'<th scope="row"><a href="#m-([^"]*)">', tables)
    frame = board.table.set_index(["model", "data", "group"]).loc[
        list(zip(data["model"], data["data"], data["group"], strict=True))
    ]
    keys = {re.sub(r"_emergence$", "", key) for key in re.findall(r'data-key="(\w+)"[^>]*data-metric', html)}
    assert {name for name in METRICS if board.table[name].notna().any()} == keys
    for name, values in data.items():
        if name in frame:
            assert values == [None if pd.isna(value) else value for value in frame[name]], name
    for name in keys:
        for end in ("_lo", "_hi", "_floor", "_null", "_init", "_init_lo", "_emergence", "_emergence_hi"):
            assert (name + end in data) == frame[name + end].notna().any()


def test_columns_come_in_groups(deep):
    _, html = deep
    assert re.findall(r'id="theme-(\w+)" value="\1"( checked)?', html) == [
        ("equivariance", " checked"), ("mechanism", " checked"), ("robustness", " checked"), ("landscape", " checked"),
        ("cost", ""), ("provenance", ""),
    ]  # fmt: skip
    assert {metric.probe for metric in METRICS.values()} == {probe for own in THEMES.values() for probe in own}
    for key, theme in re.findall(r'data-key="(\w+)" data-theme="(\w+)"', html):
        metric = METRICS.get(key.removesuffix("_emergence"))
        assert theme == (next(t for t, own in THEMES.items() if metric.probe in own) if metric else FACTS[key][0])


def test_a_large_figure_is_linked(tmp_path):
    board, _ = build(tmp_path)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/heatmap.svg").write_text("<svg>" + " " * 500_000 + "</svg>")
    html = report(board, tmp_path).read_text()
    assert '<a href="figures/heatmap.svg">' in html
    assert len(html) < 500_000


def test_figures_that_a_page_has_no_room_for_are_linked_the_largest_first(deep, monkeypatch, tmp_path):
    board, _ = deep
    (tmp_path / "figures").mkdir()
    for name, size in (("heatmap", 300_000), ("tradeoff", 200_000), ("emergence", 1_000)):
        (tmp_path / f"figures/{name}.svg").write_text("<svg>" + " " * size + "</svg>")
    for room, linked in ((400_000, {"heatmap"}), (100_000, {"heatmap", "tradeoff"})):
        monkeypatch.setattr("eqbench.report.PAGE", 10**9)
        whole = len(report(board, tmp_path).read_bytes())
        monkeypatch.setattr("eqbench.report.PAGE", whole - 501_000 + room)
        page = report(board, tmp_path).read_text()
        assert set(re.findall(r'<a href="figures/(\w+)\.svg">', page)) == linked
        assert len(page.encode()) < whole


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.0, "1"), (0.0004, "4e−4"), (0.0005, "0.001"), (-0.25, "−0.250"), (9.999, "10.00"), (33.0, "33"),
     (123.4, "123"), (98765.4, "98,765"), (float("nan"), "—"), (None, "—")],
)  # fmt: skip
def test_numbers_for_the_eye(value, text):
    assert number(value) == text
