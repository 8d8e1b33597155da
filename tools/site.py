"""Look at a built book before it is published: a builder that builds nothing, or half, must not pass for one that builds.

    python -m tools.site _build/html    name what is missing, and fail

Every page of ``_toc.yml`` must be there and of some length, every code cell that has outputs in its notebook must show some on
its page, and what the pages need besides (the search index, the style, the first figure) must be there too.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tools import notebooks
from tools.address import ROOT

NEEDED = ("index.html", "print.html", "search.html", "searchindex.js", "_static/custom.css", "_static/preview.png")
LEAST = 100  # words on a page; the shortest has some two hundred


def listed(toc: dict[str, Any]) -> Iterator[str]:
    """Yield the pages that a table of contents names, in order."""
    yield toc["root"]
    waiting = [chapter for part in toc["parts"] for chapter in part["chapters"]]
    while waiting:
        chapter = waiting.pop(0)
        yield chapter["file"]
        waiting = [*chapter.get("sections", []), *waiting]


def article(page: str) -> str:
    """Return the part of a built page that the authors wrote."""
    return page.partition('<article class="bd-article">')[2].partition("</article>")[0]


def missing(site: Path, root: Path = ROOT) -> list[str]:
    """Say what a built book lacks, one sentence for each thing; an empty list if it is whole."""
    gone = [f"{name} is missing" for name in NEEDED if not (site / name).is_file()]
    for name in listed(yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))):
        built = site / f"{name}.html"
        if not built.is_file():
            gone.append(f"{name}.html is missing")
            continue
        page = article(built.read_text(encoding="utf-8"))
        text = re.sub(r"<(script|style).*?</\1>|<[^>]*>", "", page, flags=re.DOTALL)
        if len(text.split()) < LEAST:
            gone.append(f"{name}.html has only {len(text.split())} words")
        if (source := root / f"{name}.ipynb").is_file():
            cells = [cell for cell in notebooks.read(source).cells if cell.cell_type == "code"]
            expected = sum(bool(cell.outputs) and "remove-cell" not in cell.metadata.get("tags", []) for cell in cells)
            shown = len(re.findall(r'class="[^"]*\bcell_output\b', page))
            if shown < expected:
                gone.append(f"{name}.html shows the outputs of {shown} cells, and its notebook has {expected}")
    return gone


def main() -> int:
    """Run the command line; return 1 where something is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path, help="the folder of the built book")
    gone = missing(parser.parse_args().site)
    print("\n".join(gone) or "The book is whole.")
    return 1 if gone else 0


if __name__ == "__main__":
    sys.exit(main())
