"""The page in a real browser without a network: sorting, filtering, columns, the CSV, narrow and dark screens."""

import re
import shutil

import pytest
from board import fail, fill, suite

from eqbench.leaderboard import load, write
from eqbench.plots import FIGURES, plot
from eqbench.report import report

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine: the page is not tested in a browser"
)

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]
ERROR = 5  # place of the column E_G* among the cells of a row, from 1


def spoil(cell, result):
    if (cell.model, cell.group) == ("vit_digits", "d4"):
        return fail(result, "out of memory at batch 1")
    return None if (cell.model, cell.seed, cell.group) == ("resnet_digits", "s0", "c4") else result


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    board = load(fill(folder / "cells", suite(deep=True), change=spoil), folder / "cells")
    write(board, folder)
    plot(board, folder)
    report(board, folder)
    return folder, board


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, site):
    """Open the page with these context options; any request but for the page itself, or any complaint, fails the test."""
    opened, complaints = [], []
    url = (site[0] / "index.html").as_uri()

    def go(**options):
        context = chromium.new_context(offline=True, **{"viewport": {"width": 1440, "height": 900}} | options)
        page = context.new_page()
        page.on("request", lambda request: request.url.split("#")[0] == url or complaints.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url)
        opened.append(context)
        return page

    yield go
    for context in opened:
        context.close()
    assert [c for c in complaints if not c.startswith("blob:")] == []


def column(page, at):
    """The first words of a column's cells, in the order of the rows shown."""
    script = "(cells) => cells.filter((c) => !c.parentNode.hidden).map((c) => c.firstChild.textContent)"
    return page.eval_on_selector_all(f"#board-1 tbody tr > :nth-child({at})", script)


def numbers(texts):
    return [float(text.replace("−", "-").replace(",", "")) for text in texts if text != "—"]


def head(page, at):
    return page.locator(f"#board-1 thead th:nth-child({at})")


def test_a_click_sorts_best_first_then_the_other_way(visit):
    page = visit()
    assert page.locator("[aria-sort]").count() == 0
    ranks = sorted(zip(column(page, 1), column(page, 3), column(page, 4), strict=True))
    head(page, ERROR).locator("button").click()
    assert head(page, ERROR).get_attribute("aria-sort") == "ascending"
    found = column(page, ERROR)
    assert numbers(found) == sorted(numbers(found))
    assert found[-1] == "—", "what has no value stays last"
    assert column(page, 1)[:3] == ["convnext_digits_d4"] * 3
    head(page, ERROR).locator("button").click()
    assert head(page, ERROR).get_attribute("aria-sort") == "descending"
    found = column(page, ERROR)
    assert numbers(found) == sorted(numbers(found), reverse=True)
    assert found[-1] == "—"
    assert ranks == sorted(zip(column(page, 1), column(page, 3), column(page, 4), strict=True)), "nothing is renumbered"
    accuracy = page.locator("#board-1 thead th", has_text="Top-1 accuracy")
    accuracy.locator("button").click()
    assert accuracy.get_attribute("aria-sort") == "descending", "higher is better: the highest first"
    assert page.locator("[aria-sort]").count() == 1


def test_the_keyboard_sorts(visit):
    page = visit()
    head(page, 1).locator("button").focus()
    page.keyboard.press("Enter")
    assert head(page, 1).get_attribute("aria-sort") == "ascending"
    assert column(page, 1) == sorted(column(page, 1))
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert head(page, 3).get_attribute("aria-sort") == "ascending"
    assert column(page, 3)[:6] == ["c4"] * 5 + ["d4"]


def test_search_and_facets_filter_and_say_how_many(visit, site):
    page, total = visit(), len(site[1].table)
    status = page.get_by_role("status")
    assert status.inner_text() == f"showing {total} of {total} rows"
    page.get_by_label("Find").fill("ResNet c4")
    assert status.inner_text() == f"showing 1 of {total} rows"
    assert (column(page, 1), column(page, 4)) == (["resnet_digits"], ["—"])
    page.get_by_label("Find").fill("out of memory")
    assert (status.inner_text(), column(page, 3)) == (f"showing 1 of {total} rows", ["d4"])
    page.get_by_label("Find").fill("")
    page.locator("[data-facet=family] label", has_text="ConvNeXt").locator("input").check()
    page.locator("[data-facet=group] label", has_text="hflip").locator("input").check()
    assert status.inner_text() == f"showing 2 of {total} rows"
    page.locator("[data-facet=group] label", has_text="vflip").locator("input").check()
    assert status.inner_text() == f"showing 4 of {total} rows"
    page.locator("[data-facet=status] label", has_text="failed").locator("input").check()
    assert status.inner_text() == f"showing 0 of {total} rows"


@pytest.mark.parametrize("javascript", [True, False])
def test_columns_can_be_shown_and_hidden_even_without_javascript(visit, javascript):
    page = visit(java_script_enabled=javascript)
    hidden = page.locator("#board-1 thead th", has_text="Top-1 consistency")
    assert not hidden.is_visible()
    page.locator("summary", has_text="Columns").click()
    page.locator("details label", has_text="Top-1 consistency").locator("input").check()
    assert hidden.is_visible()
    page.locator("details label", has_text="Cohen's kappa").locator("input").uncheck()
    assert not page.locator("#board-1 thead th", has_text="Cohen's kappa").is_visible()
    assert page.locator("#board-1 tbody tr").count() == 20, "no row is lost"


def test_columns_without_a_number_among_the_rows_shown_are_hidden(visit):
    page = visit()
    share = page.locator("#board-1 thead th", has_text="Jensen–Shannon share")
    assert share.is_visible(), "the model on photos has one"
    page.locator("[data-facet=data] label", has_text="digits").locator("input").check()
    assert not share.is_visible()
    assert page.locator("#board-1 thead th", has_text="Symmetry loss share").is_visible()
    page.locator("[data-facet=data] label", has_text="photos").locator("input").check()
    assert share.is_visible()


def test_each_kind_of_group_has_a_table_and_a_filter_hides_the_empty_one(visit, site):
    page = visit()
    finite, continuous = page.locator("#board-1"), page.locator("#board-2")
    assert finite.is_visible()
    assert continuous.is_visible()
    assert page.locator("#board-2 thead th", has_text="Lattice error").count() == 0
    continuous.locator("thead th", has_text="Rank").locator("button").click()
    assert finite.locator("[aria-sort]").count() == 0, "tables are sorted apart"
    page.locator("[data-facet=group] label", has_text="rotation").locator("input").check()
    assert not finite.is_visible()
    assert set(page.locator("#board-2 tbody tr:visible td:nth-child(3)").all_inner_texts()) == {"rotation"}
    total = len(site[1].table)
    assert page.get_by_role("status").inner_text() == f"showing 5 of {total} rows"


@pytest.mark.parametrize("javascript", [True, False])
def test_all_columns_of_a_probe_can_be_shown_at_once(visit, javascript):
    page = visit(java_script_enabled=javascript)
    hidden = [
        page.locator("#board-1 thead th", has_text=title) for title in ("Top-1 consistency", "Aligned input size")
    ]
    assert not any(head.is_visible() for head in hidden)
    page.locator("summary", has_text="Columns").click()
    page.locator("#all-orbit").check()
    assert all(head.is_visible() for head in hidden)
    assert not page.locator("#board-1 thead th", has_text="Smallest eigenvalue").is_visible(), (
        "not those of another probe"
    )
    page.locator("#all-orbit").uncheck()
    assert not any(head.is_visible() for head in hidden)


@pytest.mark.parametrize("javascript", [True, False])
@pytest.mark.parametrize("width", [390, 1280])
def test_layers_open_in_place(visit, width, javascript):
    page = visit(viewport={"width": width, "height": 900}, java_script_enabled=javascript)
    section = page.locator("[id='l-vit_digits-digits-c4']")
    assert not section.locator("table").first.is_visible()
    assert section.locator("path.trained").is_visible()
    section.locator("summary").click()
    assert section.locator("table").first.is_visible()
    assert section.get_by_text("refused: no declared layout: (B, 65, 64)").first.is_visible()
    if javascript:
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_print_fits_the_sheet(visit):
    page = visit(viewport={"width": 1032, "height": 700})  # A4 landscape within its margins
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1032
    assert not page.locator("#filters").is_visible()
    assert page.locator("#board-2 tbody tr").last.is_visible()


def test_pointing_at_a_cell_spells_it_out(visit, site):
    page = visit()
    page.locator(f"#board-1 tbody tr:first-child td:nth-child({ERROR}) small").hover()
    title = page.locator(f"#board-1 tbody tr:first-child td:nth-child({ERROR})").get_attribute("title")
    assert re.fullmatch(r"0\.\d+, 95 % interval \[.*\]\nfloor .*\nnull 1\.41\nuntrained 1\..*", title)
    assert page.locator("svg#tradeoff g title").first.text_content().startswith("convnext_digits on digits")


def test_the_csv_link_gives_the_leaderboard(visit, site, tmp_path):
    page = visit()
    for attempt in ("first", "again"):
        with page.expect_download() as download:
            page.get_by_text("Download this table").click()
        assert download.value.suggested_filename == "leaderboard.csv"
        download.value.save_as(tmp_path / attempt)
        assert (tmp_path / attempt).read_bytes() == (site[0] / "leaderboard.csv").read_bytes()


@pytest.mark.parametrize("width", [390, 768, 1440])
def test_the_page_never_scrolls_sideways(visit, width):
    page = visit(viewport={"width": width, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    scroll = page.locator("#table .scroll").first
    scroll.evaluate("(e) => e.scrollTo(300, 0)")
    model, table = (page.locator(s).first.bounding_box() for s in ("#board-1 tbody th", "#table .scroll"))
    assert abs(model["x"] - table["x"]) <= 2, "the model's name stays in sight"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_both_schemes(visit, scheme, tmp_path):
    page = visit(color_scheme=scheme)
    page.screenshot(path=tmp_path / f"{scheme}.png")
    luminance = """(selector, key) => {
        const [r, g, b] = getComputedStyle(document.querySelector(selector))[key].match(/[\\d.]+/g).map((v) => {
            v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; }"""
    for ink, ground in [("body", "body"), ("#board-1 td", "#board-1 td"), ("#board-1 small", "#board-1 td"), ("#board-1 a", "#board-1 th"),
                        ("td.failed", "#board-1 td"), ("figcaption", "body")]:  # fmt: skip
        a, b = (
            page.evaluate(f"([s, k]) => ({luminance})(s, k)", pair)
            for pair in [(ink, "color"), (ground, "backgroundColor")]
        )
        assert (max(a, b) + 0.05) / (min(a, b) + 0.05) >= 4.5, f"{ink} in {scheme}"
    for name in FIGURES:
        assert (
            page.locator(f"figure:has(#{name}) .scroll").evaluate("(e) => getComputedStyle(e).backgroundColor")
            == "rgb(255, 255, 255)"
        )
