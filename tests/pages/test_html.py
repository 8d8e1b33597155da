"""The built book, as its readers get it: links lead somewhere, pictures have words, pages open in a browser.

Sphinx checks its own cross-references; nothing but a crawl of the HTML checks the rest. `make check-book` builds the
book and runs this; without a built book it skips.
"""

import functools
import os
import re
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup
from playwright.sync_api import sync_playwright

from tools.address import ROOT, address

HTML = ROOT / "_build" / "html"
PAGES = sorted(path for path in HTML.rglob("*.html") if "_static" not in path.parts)
READ = [path for path in PAGES if path.parent == HTML / "book"]  # those that the authors wrote

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not READ, reason="the book is not built: run `make check-book`"),
]


def name(path):
    return path.relative_to(HTML).as_posix()


# Jupyter Book's own repository is what its buttons lead to where a book names none.
NEEDS_AN_ADDRESS = re.compile(r"colab\.research|/executablebooks/jupyter-book/(?:blob|edit|issues)|github\.com/[\w-]+/explr")

# Jupyter Book declares the settings of Thebe, which this book does not use, twice on each page.
NOT_OURS = "Identifier 'THEBE_JS_URL' has already been declared"

every_page = pytest.mark.parametrize("page", PAGES, ids=name)
every_written_page = pytest.mark.parametrize("page", READ, ids=name)


@functools.cache
def soup(page):
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


@functools.cache
def anchors(page):
    return {tag[key] for key in ("id", "name") for tag in soup(page).find_all(attrs={key: True})}


def dead_links(page):
    """Describe each link of a page that leads to no file of the book, or to no anchor in it."""
    dead = []
    for key in ("href", "src"):
        for tag in soup(page).find_all(attrs={key: True}):
            link = urlsplit(tag[key])
            if link.scheme or link.netloc or tag[key] in ("", "#"):
                continue
            target = (page.parent / unquote(link.path)).resolve() if link.path else page
            if target.is_dir():
                target /= "index.html"
            if not target.is_relative_to(HTML) or not target.exists():
                dead.append(f"{tag[key]} (no such file)")
            elif link.fragment and target.suffix == ".html" and unquote(link.fragment) not in anchors(target):
                dead.append(f"{tag[key]} (no such place on the page)")
    return dead


@every_page
def test_links_inside_the_book_lead_somewhere(page):
    assert dead_links(page) == []


def test_a_dead_link_would_be_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "HTML", tmp_path)
    page = tmp_path / "page.html"
    page.write_text('<p id="here"><a href="#here">a</a><a href="#there">b</a><img src="gone.png"></p>', encoding="utf-8")
    assert dead_links(page) == ["#there (no such place on the page)", "gone.png (no such file)"]


@every_page
def test_links_into_the_repository_name_files_that_exist(page):
    """Colab's buttons and links, "edit this page", and whatever else leads to a file on the main branch.

    A repository without an address has none of them.
    """
    stated = address()
    if stated is None:
        assert [tag["href"] for tag in soup(page).find_all("a", href=NEEDS_AN_ADDRESS)] == []
        return
    place = re.escape(stated.removeprefix("https://github.com"))
    own = re.compile(rf"https://(?:github\.com|colab\.research\.google\.com/github){place}/(?:blob|edit)/main/([^?#]+)")
    for tag in soup(page).find_all("a", href=own):
        path = own.sub(r"\1", tag["href"]).split("?")[0].split("#")[0]
        assert (ROOT / unquote(path)).exists(), f"{tag['href']} leads to {path}, which is not in the repository"


@every_page
def test_every_picture_has_words(page):
    for image in soup(page).find_all("img"):
        alt = image.get("alt", "").strip()
        assert alt, f"no alt text: {str(image)[:200]}"
        assert not re.search(r"\.(png|svg|jpe?g|gif|webp)$|^_images/|/", alt), f"alt text is a file name: {alt}"


@every_written_page
def test_no_markup_is_left_unrendered(page):
    article = BeautifulSoup(str(soup(page).find("article")), "html.parser")
    for tag in article.find_all(["pre", "code", "script", "style"]):
        tag.decompose()
    raw = re.findall(r".*(?:\{[a-zA-Z:]+\}`|`{3}|:{3}|\$\$|\[[^\]]*\]\([^)]*\)).*", article.get_text())
    assert raw == []


# ---- in a browser


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def site():
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(HTML)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        message = f"no browser: install Chromium (looked for {', '.join(names)})"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    with sync_playwright() as playwright:
        # Root, as in a container, may not start Chromium's sandbox.
        quiet = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
        browser = playwright.chromium.launch(executable_path=executable, args=quiet)
        yield browser
        browser.close()


def wider_than_the_screen(tab):
    """Return nothing if the page does not scroll sideways, else its width and what sticks out."""
    return tab.evaluate(
        """() => {
            const page = document.documentElement;
            if (page.scrollWidth <= page.clientWidth) return [];
            const culprits = [...document.querySelectorAll("article *")].filter(
                (tag) => tag.getBoundingClientRect().right > page.clientWidth + 1);
            return [page.scrollWidth + " px", ...culprits.map((tag) => tag.outerHTML.slice(0, 120))].slice(0, 6);
        }"""
    )


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (360, 740)], ids=["desktop", "phone"])
@pytest.mark.parametrize("theme", ["light", "dark"])
@every_written_page
def test_page_opens(page, width, height, theme, site, browser):
    """No script of ours fails, every file of ours arrives, and the page does not scroll sideways.

    Nothing is fetched from elsewhere (MathJax, the widgets' scripts): a page must be readable without.
    """
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
    context.route(lambda url: not url.startswith(site), lambda route: route.abort())
    tab = context.new_page()
    errors, missing = [], []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("response", lambda response: missing.append(response.url) if response.status >= 400 else None)
    tab.goto(f"{site}/{name(page)}", wait_until="load")
    assert tab.locator("article h1").first.is_visible()
    assert [error for error in errors if error != NOT_OURS] == []
    assert missing == []
    assert wider_than_the_screen(tab) == []
    narrow = tab.evaluate(
        """() => [...document.querySelectorAll("article :is(td, th)")].map((cell) => [cell.clientWidth, cell.innerText.trim()])
            .filter(([width, text]) => width < 40 && text.replace(/\\W/g, "").length > 6)"""
    )
    assert narrow == [], "columns that break words into letters"
    context.close()


OUT_OF_REACH = """() => [...document.querySelectorAll("article div.math")].filter((box) => {
    const parts = [...box.querySelectorAll("mjx-container *")].map((part) => part.getBoundingClientRect());
    const left = Math.min(...parts.filter((part) => part.width > 0).map((part) => part.left));
    return left < box.getBoundingClientRect().left - 1;
}).map((box) => box.innerText)"""


@pytest.mark.skipif("MATHJAX" not in os.environ, reason="MATHJAX names no folder with MathJax 3 (npm pack mathjax@3)")
@every_written_page
def test_formulas_are_typeset(page, site, browser):
    """MathJax knows every command that a page uses, and no formula makes a phone's page scroll sideways."""
    package = Path(os.environ["MATHJAX"])

    def local(route):
        _, found, path = route.request.url.partition("/npm/mathjax@3/")
        route.fulfill(path=package / path) if found else route.abort()

    context = browser.new_context(viewport={"width": 360, "height": 740})
    context.route(lambda url: not url.startswith(site), local)
    tab = context.new_page()
    tab.goto(f"{site}/{name(page)}", wait_until="load")
    formulas = tab.locator("article .math").count()
    if formulas:
        tab.evaluate("MathJax.startup.promise")
        assert tab.locator("article mjx-container").count() >= formulas
        unknown = tab.locator("article mjx-merror, article mjx-mtext[style*=red]")  # how MathJax shows what it does not know
        assert [formula.inner_html() for formula in unknown.all()] == []
        assert tab.evaluate(OUT_OF_REACH) == [], "a box scrolls to the right only: what is left of it cannot be read"
    assert wider_than_the_screen(tab) == []
    context.close()
