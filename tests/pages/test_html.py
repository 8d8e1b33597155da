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

NOT_OURS = {
    "Identifier 'THEBE_JS_URL' has already been declared",  # Jupyter Book's settings for Thebe, twice on each page
    "Got invalid theme mode: . Resetting to auto.",  # the theme, to a reader who has never chosen between light and dark
}

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
        if "logo__image" in image.get("class", []):  # the mark says nothing that the name beside it does not
            continue
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


@every_written_page
def test_what_a_cell_prints_is_one_box(page):
    # A kernel sends it in pieces, as its timing has it: committed outputs are whole, those of a build that executes are not.
    assert soup(page).select(".output.stream + .output.stream") == []


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


MATHJAX = os.environ.get("MATHJAX")
AXE = os.environ.get("AXE")  # a folder with the package axe-core
SCREENS = {"desktop": (1280, 900, "light"), "phone": (360, 740, "dark")}
HEAVIEST = 1_500_000  # bytes of a page with its pictures; what all pages share is loaded once


class Page:
    """A tab at one screen, used for page after page; what went wrong on the last one is in ``errors`` and ``missing``."""

    def __init__(self, browser, site, *, width, height, theme, mathjax=bool(MATHJAX), reduced_motion="no-preference"):
        self.site, self.errors, self.missing = site, [], []
        self.context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=theme,
            has_touch=width < 600,
            reduced_motion=reduced_motion,
        )
        self.context.route(lambda url: not url.startswith(site), self._local if mathjax else lambda route: route.abort())
        self.tab = self.context.new_page()
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on("console", self._said)
        self.tab.on("response", lambda response: self.missing.append(response.url) if response.status >= 400 else None)

    @staticmethod
    def _local(route):
        _, found, path = route.request.url.partition("/npm/mathjax@3/")
        route.fulfill(path=Path(MATHJAX) / path) if found else route.abort()

    def _said(self, message):
        if message.type == "error" and "net::ERR_FAILED" not in message.text:  # what the test itself does not let through
            self.errors.append(message.text)

    def open(self, page):
        """Open a page and wait until it is as its readers get it."""
        self.errors.clear()
        self.missing.clear()
        self.tab.goto(f"{self.site}/{name(page)}", wait_until="load")
        self.tab.evaluate("window.MathJax && MathJax.startup && MathJax.startup.promise")
        assert self.tab.locator("article h1").first.is_visible()
        return self.tab


@pytest.fixture(scope="module")
def screens(browser, site):
    """Return a page for each screen; formulas are typeset where MathJax is at hand."""
    made = {
        screen: Page(browser, site, width=width, height=height, theme=theme)
        for screen, (width, height, theme) in SCREENS.items()
    }
    # Nothing from elsewhere, on a small old phone whose owner asks for less motion: a page must be readable without.
    made["bare"] = Page(browser, site, width=360, height=740, theme="light", mathjax=False, reduced_motion="reduce")
    yield made
    for page in made.values():
        page.context.close()


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


def columns_of_letters(tab):
    """Return the cells of tables that are so narrow that their words break into letters."""
    return tab.evaluate(
        """() => [...document.querySelectorAll("article :is(td, th)")].map((cell) => [cell.clientWidth, cell.innerText.trim()])
            .filter(([width, text]) => width < 40 && text.replace(/\\W/g, "").length > 6)"""
    )


def outputs_wider_than_their_box(tab):
    """Return what cells print that one has to scroll for, cells that print columns apart."""
    return tab.evaluate(
        """() => [...document.querySelectorAll("article .cell:not(.tag_columns) .output pre")]
            .filter((text) => text.scrollWidth > text.clientWidth + 1).map((text) => text.innerText.slice(0, 120))"""
    )


CUT_OFF = """() => [...document.querySelectorAll("article .math")].flatMap((box) => {
    const ink = [...box.querySelectorAll("mjx-c, mjx-menclose")].filter((part) => !part.closest("mjx-labels"));
    const places = ink.map((part) => part.getBoundingClientRect()).filter((place) => place.width > 0);
    const left = box.getBoundingClientRect().left - Math.min(...places.map((place) => place.left));
    const right = Math.max(...places.map((place) => place.right)) - box.getBoundingClientRect().right;
    return left > 1 || right > 4 ? [`${left} px left, ${right} px right of its box: ` + box.textContent.slice(0, 80)] : [];
})"""  # the accent of a single letter sticks out by 3 px

NOT_TYPESET = """() => {
    const missing = document.querySelectorAll("article .math").length
        - document.querySelectorAll("article .math mjx-container, article .math > mjx-container").length;
    const unknown = [...document.querySelectorAll("article mjx-merror, article mjx-mtext[style*=red]")];
    return [...(missing > 0 ? [missing + " formulas"] : []), ...unknown.map((tag) => tag.innerHTML.slice(0, 80))];
}"""


def unreadable_formulas(tab):
    """Return those that are not all within their box, the number apart, what MathJax does not know, and how many are text."""
    return tab.evaluate(CUT_OFF) + tab.evaluate(NOT_TYPESET)


# ---- what the theme does to accessibility, on every page, and an author of a book cannot mend
THEIRS = {  # rule of axe → which elements
    # The names of buttons that show a picture, or a keyboard shortcut beside their name, and of what unfolds a cell.
    "label-content-name-mismatch": r"^\.search-button-field$|^\.theme-switch-button$|^\.nav-link$|summary$",
    # The roles that Sphinx gives to a bibliography and its entries.
    "aria-allowed-role": r"^#id\d+$",
    "aria-deprecated-role": r"^#id\d+$",
    "aria-required-children": r"^\.citation-list$",
    "region": r"^\.title$|^\.navbar-brand",  # the book's name in the sidebar belongs to no landmark
    "summary-name": r"^summary$|\.has-children|\.bd-sidenav|\.toctree",  # what unfolds contents in the sidebar has no name
}


def violations(tab):
    """Return what axe finds, as (rule, element, why), less what is the theme's own."""
    if not tab.evaluate("!!window.axe"):
        tab.add_script_tag(path=Path(AXE) / "axe.min.js")
    found = tab.evaluate(
        """async () => (await axe.run(document, {resultTypes: ["violations"], iframes: false})).violations.flatMap(
            (violation) => violation.nodes.map((node) => [violation.id, node.target.join(" "), node.failureSummary]))"""
    )
    return [(rule, where, why) for rule, where, why in found if not re.search(THEIRS.get(rule, "$^"), where)]


@pytest.mark.parametrize("screen", [*SCREENS, "bare"])
@every_written_page
def test_page_opens(page, screen, screens):
    """No script of ours fails, every file of ours arrives, formulas are set and fit, and nothing but columns scrolls sideways.

    In the theme in which the page was opened, and when the reader changes it.
    """
    opened = screens[screen]
    tab = opened.open(page)
    formulas = unreadable_formulas(tab) if MATHJAX and screen in SCREENS else []
    assert formulas + wider_than_the_screen(tab) + columns_of_letters(tab) + outputs_wider_than_their_box(tab) == []
    if screen in SCREENS and AXE:
        assert violations(tab) == []
    first = SCREENS[screen][2] if screen in SCREENS else "light"
    tab.emulate_media(color_scheme="light" if first == "dark" else "dark")
    tab.wait_for_function("first => document.documentElement.dataset.theme != first", arg=first, timeout=20_000)
    assert wider_than_the_screen(tab) == []
    tab.emulate_media(color_scheme=first)
    if screen == "bare":
        assert tab.evaluate("document.getAnimations().length") == 0, "it moves, though the reader asks for less motion"
    assert [error for error in opened.errors if error not in NOT_OURS] == []
    assert opened.missing == []


def test_formulas_were_looked_at():
    if not MATHJAX:
        pytest.skip("MATHJAX names no folder with MathJax 3 (npm pack mathjax@3)")
    assert (Path(MATHJAX) / "es5" / "tex-mml-chtml.js").exists()


def test_accessibility_was_looked_at():
    if not AXE:
        pytest.skip("AXE names no folder with axe-core (npm pack axe-core@4)")
    assert (Path(AXE) / "axe.min.js").exists()


@every_written_page
def test_a_page_is_light(page):
    pictures = {(page.parent / unquote(tag["src"])).resolve() for tag in soup(page).select('article img[src^="../"]')}
    assert page.stat().st_size + sum(path.stat().st_size for path in pictures) < HEAVIEST


# ---- figures that move

MOVING = ".explr-player, .explr-face"
STATE = """figure => JSON.stringify([
    [...figure.querySelectorAll("img")].map((image) => image.hidden), figure.querySelector("output").textContent,
    [...figure.querySelectorAll(".past")].map((part) => part.style.clipPath), figure.querySelector("input").ariaValueText,
])"""
KEYS = {0.02: "Home", 0.98: "End", 0.5: "ArrowLeft"}
with_players = [page for page in READ if re.search(r'class="explr-(?:player|face)"', page.read_text(encoding="utf-8"))]


def at(slider, share):
    """Return where a slider has this share of its length to its left."""
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    return box["x"] + share * box["width"], box["y"] + box["height"] / 2


def pictures_by(figure, act):
    """Return how many different pictures a figure shows at three places of its slider."""
    states = set()
    for place in (0.02, 0.98, 0.5):
        act(place)
        states.add(figure.evaluate(STATE))
    return len(states)


@pytest.mark.parametrize("page", with_players, ids=name)
def test_every_player_answers_mouse_touch_and_keyboard(page, screens):
    tab = screens["desktop"].open(page)
    for figure in tab.locator(MOVING).all():
        slider = figure.locator("input")
        many = min(int(slider.get_attribute("max")) - int(slider.get_attribute("min")) + 1, 3)
        assert pictures_by(figure, lambda share, slider=slider: tab.mouse.click(*at(slider, share))) == many
        slider.focus()
        assert pictures_by(figure, lambda share: tab.keyboard.press(KEYS[share])) == many
        assert slider.get_attribute("aria-valuetext")
    tab = screens["phone"].open(page)
    for figure in tab.locator(MOVING).all():
        slider = figure.locator("input")
        assert pictures_by(figure, lambda share, slider=slider: tab.touchscreen.tap(*at(slider, share))) > 1


def test_the_first_figure_follows_a_mouse_and_a_finger_on_its_curves(screens):
    for screen, act in (
        ("desktop", lambda tab, x, y: tab.mouse.move(x, y)),
        ("phone", lambda tab, x, y: tab.touchscreen.tap(x, y)),
    ):
        tab = screens[screen].open(HTML / "book" / "intro.html")
        plot = tab.locator(".explr-face-plot").first
        assert (
            pictures_by(tab.locator(".explr-face"), lambda share, act=act, tab=tab, plot=plot: act(tab, *at(plot, share))) == 3
        )


WATCH = """new MutationObserver(() => {
    const shown = document.querySelector(".explr-face output");
    if (shown) (window.seen ??= new Set()).add(shown.textContent);
}).observe(document, {subtree: true, childList: true, characterData: true})"""


@pytest.mark.parametrize(("screen", "moves"), [("desktop", True), ("bare", False)])
def test_the_first_figure_moves_once_but_not_for_readers_who_ask_for_less_motion(screen, moves, screens, site):
    tab = screens[screen].context.new_page()
    tab.add_init_script(WATCH)
    tab.goto(f"{site}/book/intro.html", wait_until="load")
    last = tab.locator(".explr-face input").get_attribute("max")
    tab.wait_for_timeout(1000)
    tab.wait_for_function("last => document.querySelector('.explr-face output').textContent == last", arg=last, timeout=30_000)
    seen = tab.evaluate("[...window.seen]")
    tab.close()
    assert (len(seen) > 2) is moves, seen


# ---- search and print


@pytest.mark.parametrize("screen", SCREENS)
def test_there_is_one_search_and_it_finds_a_word(screen, screens):
    tab = screens[screen].open(HTML / "book" / "intro.html")
    boxes = [
        box for box in tab.locator(".search-button, .search-button-field, .search-button__button").all() if box.is_visible()
    ]
    assert len(boxes) == 1
    boxes[0].click()
    tab.locator("#pst-search-dialog input").fill("momentum")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#search-results ul.search li", timeout=20_000)
    assert tab.locator("#search-results a", has_text="Theorem 1").count() > 0


@every_written_page
def test_page_prints(page, screens):
    """Without menus and buttons, at the width of the sheet, and with the solutions that are folded on the screen."""
    opened = screens["desktop"]
    tab = opened.open(page)
    tab.emulate_media(media="print")
    tab.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    try:
        for menu in (".bd-sidebar-primary", ".bd-sidebar-secondary", ".bd-header-article", ".prev-next-footer"):
            assert not tab.locator(menu).first.is_visible(), menu
        assert tab.locator("#jb-print-docs-body h1").is_visible()  # the theme's own title of a printed page
        folded = tab.evaluate(
            """() => [...document.querySelectorAll("article .admonition.dropdown, article details")].filter((box) =>
                [...box.children].slice(1).every((part) => part.getBoundingClientRect().height == 0))
                .map((box) => box.textContent.trim().slice(0, 60))"""
        )
        assert folded == [], "folded on paper"
    finally:
        tab.emulate_media(media="screen")


def test_the_printable_book_has_every_page_once():
    page = HTML / "print.html"
    if not page.exists():
        pytest.skip("print.html is written by `make book`")
    anchors = {tag["id"] for tag in soup(page).find_all("article")}
    assert anchors == {f"{one.stem}--" for one in READ}
