"""Accessibility by axe-core: no serious finding, light and dark, wide and narrow, as the page opens and as it is used."""

from pathlib import Path

import pytest

axe = pytest.importorskip("axe_playwright_python")
AXE = Path(axe.__file__).with_name("axe.min.js").read_text()


def findings(page):
    """What axe-core finds serious or critical: rule, and the elements that break it."""
    # Sections out of sight are not laid out until they are scrolled to, and axe takes what lies nowhere for overlapping.
    page.add_style_tag(content="main > section { content-visibility: visible !important }")
    page.evaluate(AXE + "; 0")
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return {
        rule["id"]: [node["html"][:160] for node in rule["nodes"][:3]]
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_no_serious_finding(visit, scheme, width):
    page = visit(color_scheme=scheme, viewport={"width": width, "height": 844})
    assert findings(page) == {}


def test_no_serious_finding_in_a_view(visit):
    page = visit("state=change&show=cost&sort1=model,-rank&compare=vit_digits/final,resnet_digits/init")
    page.locator("summary").evaluate_all("(all) => all.forEach((s) => (s.parentNode.open = true))")
    assert page.locator("#sides table").count() > 5
    assert findings(page) == {}


def test_a_fault_is_found(visit):
    page = visit()
    page.locator("#search").evaluate("(e) => e.parentNode.replaceWith(e)")
    page.locator("#search").evaluate("(e) => { e.placeholder = ''; document.documentElement.lang = ''; }")
    assert {"label", "html-has-lang"} <= set(findings(page))
