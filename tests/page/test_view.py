"""A view of the tables in a real browser: states, several columns, its address, its CSV, and two networks compared."""

import io
import re

import pandas as pd
import pytest

from eqbench.columns import number

ERROR, GAP = "lattice_error_aligned", "placebo_gap"


def button(page, key, table="#board-1"):
    return page.locator(f"{table} th[data-key={key}] button")


def keys(page, table="#board-1"):
    """(model, data, group) of the rows shown, in order."""
    script = "(rows) => rows.map((r) => [...r.cells].slice(0, 3).map((c) => c.firstChild.textContent))"
    return [tuple(key) for key in page.eval_on_selector_all(f"{table} tbody tr", script)]


def cells(page, key, table="#board-1"):
    """The lines of a column's cells, in the order of the rows shown."""
    place = page.locator(f"{table} th[data-key={key}]").evaluate("(e) => e.cellIndex")
    script = "(rows, at) => rows.map((r) => r.cells[at].textContent.split('\\n'))"
    return page.eval_on_selector_all(f"{table} tbody tr", script, place)


def until(page, script, arg=None):
    """Wait for what a script says; `wait_for_function` would need what the page's policy forbids."""
    for _ in range(100):
        if page.evaluate(script, arg):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"never: {script} {arg}")


def text(page):
    """What the table and the comparison say."""
    return page.locator("#table").inner_text() + page.locator("#compare").inner_text()


def frame(board, page, table="#board-1"):
    """The leaderboard's rows that a table shows, in its order."""
    return board.table.set_index(["model", "data", "group"]).loc[keys(page, table)]


def menu(page, name, value):
    page.locator(f"[data-facet={name}]").evaluate("(e) => (e.open = true)")
    page.locator(f"[data-facet={name}] input[value='{value}']").check()


@pytest.mark.parametrize(("state", "end"), [("final", ""), ("init", "_init"), ("change", "_emergence")])
def test_a_state_is_what_cells_show_large_and_sort_by(visit, site, state, end):
    page = visit()
    page.locator(f"[name=state][value={state}]").check()
    button(page, ERROR).click()
    rows = frame(site[1], page)
    values = rows[ERROR + end]
    assert values.dropna().is_monotonic_increasing
    assert values.notna().sum() > 10
    for key in (ERROR, GAP, "accuracy"):
        found = cells(page, key)
        assert [lines[0] for lines in found] == [number(value) for value in rows[key + end]]
        known = rows[f"{key}{end}_lo"].notna().to_numpy()
        intervals = zip(rows[f"{key}{end}_lo"], rows[f"{key}{end}_hi"], strict=True)
        for lines, (lo, hi), bounded in zip(found, intervals, known, strict=True):
            assert not bounded or lines[1] == f"[{number(lo)}, {number(hi)}]"
    below = {"final": "floor · null · untrained", "init": "trained", "change": "trained · untrained"}[state]
    assert page.locator(f"#board-1 th[data-key={ERROR}] .legend").inner_text() == below
    page.locator("[name=state][value=final]").check()
    assert [lines[0] for lines in cells(page, GAP)] == [number(value) for value in frame(site[1], page)[GAP]]


def test_cells_drawn_again_are_what_they_were(visit):
    page = visit()
    before = page.locator("#board-1 tbody").inner_text()
    page.locator("[name=state][value=init]").check()
    assert page.locator("#board-1 tbody").inner_text() != before
    page.locator("[name=state][value=final]").check()
    assert page.locator("#board-1 tbody").inner_text() == before


def test_numbers_are_written_alike_by_page_and_script(visit):
    values = [
        0,
        1,
        0.0005,
        0.00049,
        -0.25,
        9.9949,
        33,
        122.5,
        123.5,
        98765.4,
        2.5e-4,
        1e-30,
        12.25,
        99.95,
        1e7,
        -3e-9,
        0.1235,
    ]
    assert visit().evaluate("(v) => v.map(number)", values) == [number(value) for value in values]
    assert visit().evaluate("number(null)") == number(None)


def test_sorting_is_by_all_digits_and_by_several_columns(visit, site):
    page = visit()
    board = site[1]
    button(page, "group").click()
    button(page, ERROR).click(modifiers=["Shift"])
    expected = frame(board, page).reset_index().sort_values(["group", ERROR], na_position="last", kind="stable")
    assert keys(page) == list(zip(expected["model"], expected["data"], expected["group"], strict=True))
    assert page.locator("#board-1 th[data-key=group]").get_attribute("aria-sort") == "ascending"
    assert page.locator("[aria-sort]").count() == 1, "one column has it, the first"
    assert page.locator("#status").inner_text().endswith("sorted by Group (ascending), then Lattice error (ascending)")
    button(page, ERROR).focus()
    page.keyboard.press("Shift+Enter")
    assert page.locator("#status").inner_text().endswith("sorted by Group (ascending), then Lattice error (descending)")
    first = frame(board, page).loc[lambda rows: rows.index.get_level_values("group") == "c4", ERROR].dropna()
    assert first.is_monotonic_decreasing
    page.keyboard.press("Shift+Enter")
    assert page.locator("#status").inner_text().endswith("sorted by Group (ascending)")
    button(page, "group").click()
    button(page, "group").click()
    assert "sorted" not in page.locator("#status").inner_text(), "the third press gives the board's order back"
    assert keys(page) == keys(visit())


def test_ties_of_the_digits_shown_are_sorted_by_the_others(visit):
    page = visit()
    page.evaluate(
        "(key) => data[key].forEach((v, i) => { data[key][i] = v === null ? null : 0.5 + 1e-5 * ((i * 7) % 13); })",
        ERROR,
    )
    button(page, ERROR).click()
    found = page.evaluate("(key) => boards[0].rows.map(({ at }) => data[key][at]).filter((v) => v !== null)", ERROR)
    assert found == sorted(found)
    assert len({number(value) for value in found}) == 1
    assert len(set(found)) > 5


VIEWS = [
    "q=digits&group=c4&group=d4&state=init&sort1=-lattice_error_aligned%2Cmodel",
    "family=ViT&show=cost&show=consistency&hide=mechanism&hide=kappa&sort2=lie_ratio",
    "state=change&show=all-landscape&compare=vit_digits%2Ffinal%2Cvit_digits%2Finit",
]


@pytest.mark.parametrize("view", VIEWS)
def test_an_address_gives_its_view(visit, view):
    page, other = visit(), visit(view)
    assert other.locator("#share").get_attribute("href") == f"#{view}"
    assert text(other) != text(page)
    again = visit(other.locator("#share").get_attribute("href")[1:])
    assert text(again) == text(other)
    page.evaluate("(view) => (location.hash = view)", view)
    until(page, "(view) => document.getElementById('share').hash === '#' + view", view)
    assert text(page) == text(other), "also when it is typed into the page"
    other.locator("#reset").click()
    until(other, "!location.hash.includes('=')")
    assert other.locator("#status").inner_text() == visit().locator("#status").inner_text()


def test_what_is_done_by_hand_becomes_the_address(visit):
    page = visit()
    page.locator("#search").fill("digits")
    menu(page, "group", "c4")
    page.locator("#theme-cost").check()
    page.locator("[name=state][value=change]").check()
    button(page, "accuracy").click()
    button(page, "model").click(modifiers=["Shift"])
    until(page, "location.hash.includes('model')")  # the last click, not the one before
    asked = "q=digits&group=c4&state=change&show=cost&sort1=-accuracy%2Cmodel"
    assert page.evaluate("location.hash") == f"#{asked}"
    page.evaluate("(location.hash = 'glossary')")
    assert page.locator("#status").inner_text().startswith("showing 4 of"), "a link within the page keeps the view"


@pytest.mark.parametrize(
    "view", ["q=nothing%20like%20it", "group=none%3B&sort1=nonsense,-&compare=a/b/c,,&state=x&show=theme", "="]
)
def test_an_address_of_nothing_leaves_a_page_that_works(visit, view):
    page = visit(view)
    page.locator("#reset").click()
    assert page.locator("#status").inner_text() == visit().locator("#status").inner_text()


@pytest.mark.parametrize("width", [390, 1440])
def test_a_menu_opens_and_closes_by_keyboard_within_the_page(visit, width):
    page = visit(viewport={"width": width, "height": 844})
    summary = page.locator("[data-facet=status] summary")
    summary.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert page.locator("#status").inner_text().startswith("showing 37 of 39 rows")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.keyboard.press("Escape")
    assert not page.locator("[data-facet=status] fieldset").is_visible()
    assert summary.evaluate("(e) => e === document.activeElement")
    assert summary.inner_text().endswith("complete"), "what is chosen stays in sight"
    page.locator("[data-facet=group] summary").click()
    page.locator("[data-facet=data] summary").click()
    assert page.locator("details.facet[open]").count() == 1
    page.locator("h1").click()
    assert page.locator("details.facet[open]").count() == 0


def download(page):
    with page.expect_download() as caught:
        page.get_by_role("button", name="Download this view").click()
    assert caught.value.suggested_filename.endswith(".csv")
    return caught.value.path().read_text()


@pytest.mark.parametrize(
    "view",
    [
        "",
        "group=c4&group=rotation&sort1=-lattice_error_aligned&show=provenance",
        "q=failed&show=all-equivariance",
        "q=zzz",
    ],
)
def test_the_csv_of_a_view_is_its_rows_and_columns_of_the_leaderboard(visit, site, view, tmp_path):
    page, board = visit(view), site[1]
    text = download(page)
    found = pd.read_csv(io.StringIO(text))
    shown = [
        key
        for at in (1, 2, 3)
        for key in (keys(page, f"#board-{at}") if page.locator(f"#board-{at}").is_visible() else [])
    ]
    assert len(found) == len(shown)
    script = "(heads) => heads.filter((h) => h.offsetParent).map((h) => h.dataset.key)"
    heads = page.eval_on_selector_all(".board th[data-key]", script)
    columns = [name for name in board.table if name in found]
    assert list(found.columns) == columns, "in the order of leaderboard.csv"
    assert set(heads) <= set(columns)
    whole = pd.read_csv(site[0] / "leaderboard.csv").set_index(["model", "data", "group"])
    if shown:
        expected = whole.loc[shown].reset_index()[columns]
        pd.testing.assert_frame_equal(found, expected.astype(found.dtypes.to_dict()), check_exact=True)
    measured = {re.sub("_(emergence|init|floor|null|lo|hi|p|holm).*", "", name) for name in columns} & set(whole)
    hidden = page.eval_on_selector_all(
        ".board th[data-metric]", "(all) => all.filter((h) => !h.offsetParent).map((h) => h.dataset.key)"
    )
    assert not measured & (set(hidden) - set(heads))


def test_two_networks_side_by_side(visit, site):
    page, table = visit("compare=resnet_digits/final,convnext_digits_d4/final"), site[1].table
    frames = page.locator("#sides table")
    rows = table.set_index(["model", "group"])
    assert frames.count() == 8
    c4 = page.locator("#sides table", has=page.locator("caption", has_text="digits · d4"))
    line = c4.locator("tbody tr", has_text="Lattice error").first
    a, b = rows.loc[("resnet_digits", "d4")], rows.loc[("convnext_digits_d4", "d4")]
    texts = [text.split("\n") for text in line.locator("td").all_text_contents()]
    assert [lines[0] for lines in texts[:3]] == [number(a[ERROR]), number(b[ERROR]), number(a[ERROR] - b[ERROR])]
    low, high = a[f"{ERROR}_lo"] - b[f"{ERROR}_hi"], a[f"{ERROR}_hi"] - b[f"{ERROR}_lo"]
    assert texts[2][1] == f"[{number(low)}, {number(high)}]"
    assert low > 0, "as the made-up board has it"
    assert texts[3] == ["B is better"]
    page.locator("#swap").click()
    assert line.locator("td").last.inner_text() == "A is better"
    until(page, "location.hash.includes('convnext_digits_d4%2Ffinal%2Cresnet')")


def test_one_network_trained_and_untrained(visit, site):
    page = visit()
    for side, state in (("A", "init"), ("B", "final")):
        page.locator(f"#model-{side}").select_option("vit_digits")
        page.locator(f"#state-{side}").select_option(state)
    row = site[1].table.set_index(["model", "group"]).loc[("vit_digits", "hflip")]
    line = page.locator("#sides table").first.locator("tbody tr", has_text="Lattice error")
    texts = [text.split("\n") for text in line.locator("td").all_text_contents()]
    assert [lines[0] for lines in texts[:3]] == [
        number(row[f"{ERROR}_init"]),
        number(row[ERROR]),
        number(-row[f"{ERROR}_emergence"]),
    ]
    assert texts[2][1] == f"[{number(-row[f'{ERROR}_emergence_hi'])}, {number(-row[f'{ERROR}_emergence_lo'])}]"
    assert texts[3] == ["B is better"]


def test_networks_with_nothing_in_common_say_so(visit):
    page = visit("compare=resnet_digits/final,efficientnet_lite0/final")
    assert page.locator("#compared").inner_text().endswith("They share no data set and group.")
    assert page.locator("#sides table").count() == 0
