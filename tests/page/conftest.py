"""What the browser's tests share: a board with failures and gaps, its page, and a Chromium without a network."""

import shutil

import pytest
from board import fail, fill, suite

from eqbench.leaderboard import load, write
from eqbench.plots import plot
from eqbench.report import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]


def spoil(cell, result):
    if (cell.model, cell.group) == ("vit_digits", "d4"):
        return fail(result, "out of memory at batch 1")
    return None if (cell.model, cell.seed, cell.group) == ("resnet_digits", "s0", "c4") else result


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder of a board of every probe, and the board."""
    folder = tmp_path_factory.mktemp("site")
    board = load(fill(folder / "cells", suite(deep=True), change=spoil), folder / "cells")
    write(board, folder)
    plot(board, folder)
    report(board, folder)
    return folder, board


@pytest.fixture(scope="module")  # while its event loop runs, no other test of the process can start a browser
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: the page is not tested in a browser")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, site):
    """Open a page (the site's, or another) with these context options; any request but for the page itself, or any
    complaint, fails the test."""
    opened, complaints = [], []

    def go(view="", path=site[0] / "index.html", **options):
        url = path.as_uri()
        context = chromium.new_context(offline=True, **{"viewport": {"width": 1440, "height": 900}} | options)
        page = context.new_page()
        page.on("request", lambda request: request.url.split("#")[0] == url or complaints.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"{url}#{view}" if view else url)
        if options.get("java_script_enabled", True):
            page.wait_for_selector("body.ready", state="attached")
        opened.append(context)
        return page

    yield go
    for context in opened:
        context.close()
    assert [c for c in complaints if not c.startswith("blob:")] == []
