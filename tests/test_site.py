"""What is published is whole: a page that is missing, empty or without its outputs is found before it is put up."""

import subprocess
import sys

import nbformat
import pytest

from tools import site
from tools.address import ROOT

TOC = """
root: book/intro
parts:
  - chapters:
      - file: book/one
      - file: book/two
        sections:
          - file: book/below
"""
WORDS = "word " * 200
PAGE = '<main>menu<article class="bd-article"><h1>A page</h1>{}</article>{}</main>'
OUTPUT = '<div class="cell_output docutils container">3</div>'


@pytest.fixture
def built(tmp_path):
    """Return a root with a book in sources, and the folder with what it should look like when built."""
    (tmp_path / "_toc.yml").write_text(TOC, encoding="utf-8")
    (tmp_path / "book").mkdir()
    stream = [nbformat.v4.new_output("stream", text="3")]
    cells = [nbformat.v4.new_code_cell("3", outputs=stream), nbformat.v4.new_code_cell("4", outputs=stream)]
    cells += [nbformat.v4.new_code_cell("x = 1")]
    (tmp_path / "book" / "one.ipynb").write_text(nbformat.writes(nbformat.v4.new_notebook(cells=cells)), encoding="utf-8")
    html = tmp_path / "html"
    (html / "book").mkdir(parents=True)
    (html / "_static").mkdir()
    for name in site.NEEDED:
        (html / name).write_text("x", encoding="utf-8")
    for name in ("intro", "two", "below"):
        (html / f"book/{name}.html").write_text(PAGE.format(WORDS, ""), encoding="utf-8")
    (html / "book/one.html").write_text(PAGE.format(WORDS + 2 * OUTPUT, ""), encoding="utf-8")
    return tmp_path, html


def test_a_whole_book_lacks_nothing(built):
    root, html = built
    assert site.missing(html, root) == []


@pytest.mark.parametrize("name", ["index.html", "searchindex.js", "_static/custom.css", "book/intro.html", "book/below.html"])
def test_a_missing_file_is_found(name, built):
    root, html = built
    (html / name).unlink()
    assert site.missing(html, root) == [f"{name} is missing"]


def test_a_page_that_is_nothing_but_its_menu_is_found(built):
    root, html = built
    (html / "book/two.html").write_text(PAGE.format("", WORDS), encoding="utf-8")
    assert site.missing(html, root) == ["book/two.html has only 2 words"]


def test_a_page_that_is_nothing_but_script_is_found(built):
    root, html = built
    (html / "book/two.html").write_text(PAGE.format(f"<script>{WORDS}</script>", ""), encoding="utf-8")
    assert site.missing(html, root) == ["book/two.html has only 2 words"]


def test_a_page_without_its_outputs_is_found(built):
    root, html = built
    (html / "book/one.html").write_text(PAGE.format(WORDS + OUTPUT, OUTPUT), encoding="utf-8")
    assert site.missing(html, root) == ["book/one.html shows the outputs of 1 cells, and its notebook has 2"]


def test_a_builder_that_built_nothing_fails(tmp_path):
    done = subprocess.run([sys.executable, "-m", "tools.site", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "book/intro.html is missing" in done.stdout
