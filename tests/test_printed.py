"""The book on one page: every page once, links between them stay inside, everything unfolded, players still play."""

import re

import pytest

from tools import printed

HEAD = (
    '<html><head><title>A book</title><link href="../_static/style.css" rel="stylesheet"/>'
    '<script src="../_static/theme.js"></script><script src="https://host/npm/mathjax@3/x.js"></script></head><body>'
)
ONE = """<main>menu<article class="bd-article"><h1 id="top">One</h1><a href="two.html#below">a</a><a href="two.html">b</a>
<a href="#top">c</a><a href="https://example.org/">d</a>
<a href="../py-modindex.html#x">e</a><img src="../_images/x.png" alt="x"/>
<div class="admonition dropdown"><p>Solution</p></div><details><summary>Code</summary>1</details>
<figure class="explr-player" id="explr-1"></figure><script>f=document.getElementById('explr-1')</script></article></main>"""
TWO = '<article class="bd-article"><h1 id="top">Two</h1><p id="below"></p></article><p>after</p>'


@pytest.fixture
def page(tmp_path):
    (tmp_path / "book").mkdir()
    for name, text in {"one": ONE, "two": TWO}.items():
        (tmp_path / f"book/{name}.html").write_text(f"{HEAD}{text}</body></html>", encoding="utf-8")
    return printed.one_page(tmp_path, ["book/one", "book/two"])


def test_every_article_is_there_once_and_nothing_else(page):
    assert re.findall(r"<h1[^>]*>(\w+)<", page) == ["One", "Two"] and "menu" not in page and "after" not in page


def test_links_stay_inside_and_every_anchor_is_one_of_a_kind(page):
    anchors = re.findall(r'\bid="([^"]*)"', page)
    assert len(anchors) == len(set(anchors))
    links = re.findall(r'<a href="([^"]*)"', page)
    assert links == ["#two--below", "#two--", "#one--top", "https://example.org/", "py-modindex.html#x"]
    assert {link[1:] for link in links if link.startswith("#")} <= set(anchors)
    assert 'src="_images/x.png"' in page and 'href="_static/style.css"' in page


def test_everything_is_unfolded_and_players_find_their_figure(page):
    assert "dropdown" not in page and '<details open="">' in page
    assert re.search(r"getElementById\('([^']*)'", page)[1] in re.findall(r'figure[^>]*id="([^"]*)"', page)


def test_formulas_are_set_and_the_scripts_of_the_theme_stay_away(page):
    assert "mathjax@3" in page and "theme.js" not in page
