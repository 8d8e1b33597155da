"""Put the built book on one page that prints as a book does: ``print.html``, beside the others, and from it a PDF.

    python -m tools.printed _build/html                     write _build/html/print.html
    python -m tools.printed _build/html _build/explr.pdf    print it as well, with Chromium

The page has the articles of all pages in the order of ``_toc.yml``, each on a new sheet and unfolded; links between them stay
inside it. Formulas are set by MathJax from its usual place, or from the folder that MATHJAX names.
"""

import argparse
import os
import re
import shutil
from pathlib import Path
from posixpath import normpath

import yaml
from bs4 import BeautifulSoup, Tag

from tools.address import ROOT
from tools.site import article, listed

STYLE = """
article.bd-article { max-width: 50rem; margin: 0 auto; padding: 0 1rem; }
article.bd-article + article.bd-article { break-before: page; margin-top: 4rem; }
a.headerlink, button, input, .toggle-button { display: none !important; }
figure, pre, table, .admonition { break-inside: avoid-page; }
@page { margin: 18mm 15mm; }
@media print {
  div.cell_output { overflow: visible; }
  pre { white-space: pre-wrap; }
}
"""


def one_page(site: Path, names: list[str]) -> str:
    """Return the pages of these names as one, from how they were built.

    Args:
        site: folder of the built book.
        names: pages without their ending, such as "book/intro", in order.
    """
    first = (site / f"{names[0]}.html").read_text(encoding="utf-8")
    head = BeautifulSoup(first.partition("</head>")[0], "html.parser").head
    assert head is not None
    for tag in head.find_all(["script", "link"]):
        address = str(tag.get("src") or tag.get("href") or "")
        follows = {"next", "prev"} & {*(tag.get("rel") or [])}  # a page that is a part of this one
        if follows or (tag.name == "script" and "mathjax" not in f"{address}{tag.string}".lower()):
            tag.decompose()
        elif address.startswith("../"):
            tag["src" if tag.name == "script" else "href"] = address.removeprefix("../")
    articles = [_article(site, name, set(names)) for name in names]
    return (
        f'<!DOCTYPE html>\n<html lang="en" data-theme="light">{head}<style>{STYLE}</style>\n'
        f'<body><main class="bd-content" style="display:block">{"".join(articles)}</main></body></html>\n'
    )


def _article(site: Path, name: str, names: set[str]) -> str:
    """Return the article of a page, its addresses as seen from the folder above and its anchors made its own."""
    soup = BeautifulSoup(article((site / f"{name}.html").read_text(encoding="utf-8")), "html.parser")
    folder = name.rpartition("/")[0]
    for tag in soup.find_all(True):
        if "id" in tag.attrs and tag.find_parent("svg") is None:
            tag["id"] = _anchor(name, str(tag["id"]))
        if tag.name == "details":
            tag["open"] = ""
        if "dropdown" in (tag.get("class") or []):
            tag["class"] = " ".join(word for word in tag["class"] if word != "dropdown")
        for key in ("href", "src"):
            if key in tag.attrs and tag.find_parent("svg") is None:
                tag[key] = _address(str(tag[key]), name, folder, names)
    _follow_figures(soup, name)
    return f'<article class="bd-article" id="{_anchor(name, "")}">{soup}</article>\n'


def _follow_figures(soup: BeautifulSoup, name: str) -> None:
    """Tell the scripts of players the new name of their figure."""
    for script in soup.find_all("script"):
        if isinstance(script, Tag) and script.string:
            script.string = re.sub(r"getElementById\('([^']+)'\)", rf"getElementById('{_anchor(name, '')}\1')", script.string)


def _anchor(name: str, anchor: str) -> str:
    return f"{name.rpartition('/')[2]}--{anchor}"


def _address(link: str, name: str, folder: str, names: set[str]) -> str:
    """Return where a link of a page leads on the one page, or from the folder above its own."""
    path, _, anchor = link.partition("#")
    if re.match(r"[a-z]+:", link):
        return link
    target = normpath(f"{folder}/{path}") if path else f"{name}.html"
    if target.removesuffix(".html") in names:
        return "#" + _anchor(target.removesuffix(".html"), anchor)
    return target + (f"#{anchor}" if anchor else "")


def to_pdf(page: Path, pdf: Path) -> None:
    """Print a page with Chromium, formulas and all."""
    from playwright.sync_api import Route, sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        raise SystemExit(f"no browser to print with: install Chromium (looked for {', '.join(names)})")

    def local(route: Route) -> None:
        _, found, path = route.request.url.partition("/npm/mathjax@3/")
        route.fulfill(path=Path(os.environ["MATHJAX"]) / path) if found else route.abort()

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        tab = chromium.new_page()
        if "MATHJAX" in os.environ:
            tab.route(lambda url: not url.startswith("file:"), local)
        tab.goto(page.resolve().as_uri(), wait_until="load")
        tab.evaluate("window.MathJax && MathJax.startup && MathJax.startup.promise")
        tab.pdf(path=pdf, format="A4", prefer_css_page_size=True, tagged=True, outline=True)
        chromium.close()


def main() -> None:
    """Write the page, and the PDF if it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path, help="the folder of the built book")
    parser.add_argument("pdf", type=Path, nargs="?", help="where to print to")
    options = parser.parse_args()
    page = options.site / "print.html"
    names = list(listed(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))))
    page.write_text(one_page(options.site, names), encoding="utf-8")
    if options.pdf:
        to_pdf(page, options.pdf)


if __name__ == "__main__":
    main()
