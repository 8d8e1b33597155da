"""A report as HTML reads in any page, with a style of the page's own or without."""

import os
import shutil

import pytest
import torch
from playwright.sync_api import sync_playwright
from torch.nn import functional as F

from explr import lemma1, models, scale_invariance

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]

# What JupyterLab puts on the tables of an output, and what the theme of the book does.
STYLES = {
    "plain": "",
    "JupyterLab": ".page td, .page th, .page tr {text-align: right; padding: 0; white-space: normal; font-family: serif}",
    "book": ".page table :is(th, td) {overflow-wrap: break-word; padding: 0} .page table {width: 100%}",
}
GAPS = """() => [...document.querySelectorAll("tr")].flatMap((row) => {
    const texts = [...row.cells].map((cell) => {
        const range = document.createRange();
        range.selectNodeContents(cell);
        return range.getBoundingClientRect();
    });
    return texts.slice(1).map((text, i) => [text, texts[i]]).filter(([a, b]) => a.width && b.width)
        .map(([a, b]) => a.left - b.right);
})"""


@pytest.fixture(scope="module")
def reports():
    torch.manual_seed(0)
    x, labels = torch.randn(16, 3, 32, 32), torch.randint(10, (16,))
    model = models.preresnet(8, 4)
    return {"degrees": scale_invariance(model, x), "lemma": lemma1(model, F.cross_entropy, x, labels)}


@pytest.fixture(scope="module")
def tab():
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.fail("no browser: install Chromium") if os.environ.get("CI") else pytest.skip("no browser: install Chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser.new_page()
        browser.close()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", ["degrees", "lemma"])
def test_columns_stand_apart_names_are_monospaced_and_the_page_does_not_scroll(name, style, width, reports, tab):
    tab.set_viewport_size({"width": width, "height": 900})
    tab.set_content(f"<style>{STYLES[style]}</style><div class='page'>{reports[name]._repr_html_()}</div>")
    tab.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true })")
    gaps = tab.evaluate(GAPS)
    assert len(gaps) > 15 and min(gaps) >= 12, f"{min(gaps)} pixels between two columns"
    assert "monospace" in tab.evaluate("getComputedStyle(document.querySelector('tbody th')).fontFamily")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
