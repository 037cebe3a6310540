"""The page in a real browser without a network: sorting, filtering, columns, narrow, printed and dark screens."""

import re

import pytest

from eqbench.plots import FIGURES

ERROR = 5  # place of the column E_G* among the cells of a row, from 1


def pick(page, facet, value):
    """Check a filter's box, in the menu that holds it."""
    menu = page.locator(f"[data-facet={facet}]")
    menu.evaluate("(e) => (e.open = true)")
    menu.locator(f"input[value='{value}']").check()


def column(page, at):
    """The first words of a column's cells, in the order of the rows shown."""
    script = "(cells) => cells.map((c) => c.firstChild.textContent.split('\\n')[0])"
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
    status = page.locator("#status")
    assert status.inner_text() == f"showing {total} of {total} rows"
    page.get_by_label("Find", exact=True).fill("ResNet c4")
    assert status.inner_text() == f"showing 1 of {total} rows"
    assert (column(page, 1), column(page, 4)) == (["resnet_digits"], ["—"])
    page.get_by_label("Find", exact=True).fill("out of memory")
    assert (status.inner_text(), column(page, 3)) == (f"showing 1 of {total} rows", ["d4"])
    page.get_by_label("Find", exact=True).fill("")
    pick(page, "family", "ConvNeXt")
    pick(page, "group", "hflip")
    assert status.inner_text() == f"showing 2 of {total} rows"
    pick(page, "group", "vflip")
    assert status.inner_text() == f"showing 4 of {total} rows"
    pick(page, "status", "failed")
    assert status.inner_text() == f"showing 0 of {total} rows"


@pytest.mark.parametrize("javascript", [True, False])
def test_columns_can_be_shown_and_hidden_even_without_javascript(visit, javascript):
    page = visit(java_script_enabled=javascript)
    hidden = page.locator("#board-1 thead th", has_text="Top-1 consistency")
    assert not hidden.is_visible()
    page.locator("summary", has_text="single columns").click()
    page.locator("#columns label", has_text="Top-1 consistency").locator("input").check()
    assert hidden.is_visible()
    page.locator("#columns label", has_text="Cohen's kappa").locator("input").uncheck()
    assert not page.locator("#board-1 thead th", has_text="Cohen's kappa").is_visible()
    assert page.locator("#board-1 tbody tr").count() == 20, "no row is lost"


def test_columns_without_a_number_among_the_rows_shown_are_hidden(visit):
    page = visit()
    share = page.locator("#board-1 thead th", has_text="Jensen–Shannon share")
    assert share.is_visible(), "the model on photos has one"
    pick(page, "data", "digits")
    assert not share.is_visible()
    assert page.locator("#board-1 thead th", has_text="Symmetry loss share").is_visible()
    pick(page, "data", "photos")
    assert share.is_visible()


def test_each_kind_of_group_has_a_table_and_a_filter_hides_the_empty_one(visit, site):
    page = visit()
    finite, continuous = page.locator("#board-1"), page.locator("#board-2")
    assert finite.is_visible()
    assert continuous.is_visible()
    assert page.locator("#board-2 thead th", has_text="Lattice error").count() == 0
    continuous.locator("thead th", has_text="Rank").locator("button").click()
    assert finite.locator("[aria-sort]").count() == 0, "tables are sorted apart"
    pick(page, "group", "rotation")
    assert not finite.is_visible()
    assert set(page.locator("#board-2 tbody tr:visible td:nth-child(3)").all_inner_texts()) == {"rotation"}
    total = len(site[1].table)
    assert page.locator("#status").inner_text().startswith(f"showing 5 of {total} rows")


@pytest.mark.parametrize("javascript", [True, False])
def test_all_columns_of_a_theme_can_be_shown_at_once(visit, javascript):
    page = visit(java_script_enabled=javascript)
    hidden = [
        page.locator("#board-1 thead th", has_text=title) for title in ("Top-1 consistency", "Aligned input size")
    ]
    assert not any(head.is_visible() for head in hidden)
    page.locator("summary", has_text="single columns").click()
    page.locator("#all-equivariance").check()
    assert all(head.is_visible() for head in hidden)
    assert not page.locator("#board-1 thead th", has_text="Smallest eigenvalue").is_visible(), (
        "not those of another theme"
    )
    page.locator("#all-equivariance").uncheck()
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
    page.locator(f"#board-1 tbody tr:first-child td:nth-child({ERROR})").hover()
    title = page.locator(f"#board-1 tbody tr:first-child td:nth-child({ERROR})").get_attribute("title")
    assert re.fullmatch(r"0\.\d{4,}, 95 % interval \[0\.\d{4,}, .*\]\nfloor .*\nnull 1\.41\nuntrained 1\..*", title)
    titles = page.locator("svg#tradeoff g title").all_text_contents()
    assert any(text.startswith("convnext_digits on digits") for text in titles)


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
    for name in FIGURES.keys() - {"symmetry_buys"}:  # which takes more networks than this board has
        assert (
            page.locator(f"figure:has(#{name}) .scroll").evaluate("(e) => getComputedStyle(e).backgroundColor")
            == "rgb(255, 255, 255)"
        )
