"""The models' sections in a real browser: a link opens what is closed, the keyboard does too, nothing is wider than a phone."""

import pytest

from eqbench import sections
from eqbench.report import report

playwright = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def closed(site, tmp_path_factory):
    """The page of the board as if it had more than a handful of models."""
    folder = tmp_path_factory.mktemp("closed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sections, "HANDFUL", 1)
        return report(site[1], folder)


@pytest.mark.parametrize("javascript", [True, False])
def test_the_link_in_the_table_opens_its_model(visit, closed, javascript):
    page = visit(path=closed, java_script_enabled=javascript)
    article = page.locator("#m-vit_digits")
    assert not article.is_visible()
    page.locator("#board-1 tbody th a", has_text="vit_digits").first.click()
    article.wait_for(state="visible")
    assert not page.locator("#m-resnet_digits").is_visible(), "that one alone"
    playwright.expect(article.locator("xpath=..").locator("> summary")).to_be_in_viewport()


def test_the_keyboard_opens_a_model_and_its_parts(visit, closed):
    page = visit(path=closed)
    page.locator("details.model:has(#m-vit_digits) > summary").focus()
    page.keyboard.press("Enter")
    assert page.locator("#m-vit_digits").is_visible()
    commands = page.locator("#m-vit_digits .commands > summary")
    commands.focus()
    page.keyboard.press("Space")
    assert page.locator("#m-vit_digits .commands pre").first.is_visible()


@pytest.mark.parametrize("media", ["screen", "print"])
@pytest.mark.parametrize("width", [390, 1032])
def test_open_sections_are_no_wider_than_the_screen(visit, width, media):
    page = visit(viewport={"width": width, "height": 844})
    page.emulate_media(media=media)
    page.evaluate("document.querySelectorAll('#m-vit_digits details').forEach((one) => { one.open = true })")
    article = page.locator("#m-vit_digits")
    assert article.locator("table").last.is_visible()
    assert article.locator("svg.mini").first.bounding_box()["width"] > 100
    assert page.evaluate("document.documentElement.scrollWidth") <= (width if media == "screen" else 1032)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lines_and_words_of_small_charts_stand_out(visit, scheme):
    page = visit(color_scheme=scheme)
    luminance = """(rgb) => { const [r, g, b] = rgb.match(/[\\d.]+/g).map((v) => {
        v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; }"""
    ground = page.locator(".mini").first.evaluate(f"(e) => ({luminance})(getComputedStyle(e).backgroundColor)")
    for selector, key, least in [(".mini text", "fill", 4.5), *((f".mini .{look}", "stroke", 3.0) for look in
                                 ("trained", "untrained", "s0", "s1", "s2"))]:  # fmt: skip
        ink = page.locator(selector).first.evaluate(f"(e, key) => ({luminance})(getComputedStyle(e)[key])", key)
        contrast = (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05)
        assert contrast >= least, f"{selector} in {scheme}: {contrast:.2f}"
    assert page.locator("svg.mini:not(:has(> title)), svg.kernels:not(:has(> title))").count() == 0
