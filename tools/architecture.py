"""Draw the library from its imports: the page ``book/architecture.md``.

    python -m tools.architecture            write the page
    python -m tools.architecture --check    fail if the page is not what the imports say, or an import climbs

A module stands above everything that it imports, so every line of the picture goes down; ``CEILINGS`` says which wings a wing
may look into. The sentence on each room is the first of its docstring.
"""

import argparse
import ast
import html
import sys
from collections.abc import Iterator
from functools import cache
from math import ceil
from pathlib import Path

from explr import _HOME
from tools.address import ROOT

PAGE = ROOT / "book" / "architecture.md"
THEOREM = "the theorem"
# Each wing, and the wings that it may import; the front door (__init__, __main__, and two modules that lend their names)
# imports what is asked for, when it is asked for.
CEILINGS = {
    THEOREM: {THEOREM, "invariance"},
    "invariance": {"invariance"},
    "experiments": {THEOREM, "invariance", "experiments"},
    "book": {THEOREM, "invariance", "experiments", "book"},
}
EVERYWHERE = {"errors"}
FRONT_DOOR = {"__init__", "__main__", "data", "models"}
COLOURS = ("#bcdcf0", "#f6d9a8", "#b9e3cf", "#ecc6dd")  # tints of the book's palette, for dark text on any page
BOX, ROW, GAP = 80, 50, 5
WIDEST = 7  # boxes in a row, whose words can be read at the width of a page


def modules(package: Path) -> dict[str, Path]:
    """Return the modules of the package by name, such as ``invariance.rules``, without the front door."""
    files = sorted(package.rglob("*.py"))
    names = {".".join(file.relative_to(package).with_suffix("").parts): file for file in files}
    return {name: file for name, file in names.items() if name not in FRONT_DOOR and not name.endswith("__init__")}


def imports(package: Path) -> dict[str, set[str]]:
    """Return module → modules of the package that it imports, those for type checkers included."""
    names = modules(package)
    found: dict[str, set[str]] = {}
    for name, file in names.items():
        targets = {_resolve(target, names) for target in _imported(file, package.name)}
        found[name] = {target for target in targets if target} - {name}
    return found


def _imported(file: Path, package: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == package:
            yield from (_behind_the_front_door(alias.name).removeprefix(f"{package}.") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and f"{node.module}.".startswith(f"{package}."):
            yield from (f"{node.module}.{alias.name}".removeprefix(f"{package}.") for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix(f"{package}.") for a in node.names if a.name.startswith(f"{package}."))


def _behind_the_front_door(name: str) -> str:
    """Return what a name of the package itself means: it may be defined far above the module that imports it so."""
    home = f"explr.experiments.{name}" if name in FRONT_DOOR else _HOME.get(name, name)
    return home if home.endswith(f".{name}") else f"{home}.{name}"


def _resolve(target: str, names: dict[str, Path]) -> str:
    """Return the module that an import means: itself, the module of a name, or the part of a wing that gives the name."""
    if target in names:
        return target
    parent, _, leaf = target.rpartition(".")
    if parent in names:
        return parent
    inside = (name for name, file in names.items() if name.startswith(f"{parent}.") and _defines(file, leaf))
    return next(inside, "") if parent else ""


@cache
def _defines_of(file: Path) -> frozenset[str]:
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return frozenset(node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef))


def _defines(file: Path, name: str) -> bool:
    return name in _defines_of(file)


def wing(name: str) -> str:
    """Return the wing of a module."""
    return name.partition(".")[0] if "." in name else THEOREM


def faults(graph: dict[str, set[str]]) -> list[str]:
    """Return the imports that climb into a wing above, and the cycles, in words."""
    climbing = [
        f"{name} imports {target}: {wing(name)} may look into {', '.join(sorted(CEILINGS[wing(name)]))} only"
        for name, targets in graph.items()
        for target in sorted(targets)
        if wing(target) not in CEILINGS[wing(name)] and target not in EVERYWHERE
    ]
    reach = _reach(graph)
    return climbing + [f"{name} imports itself, by way of others" for name in graph if name in reach[name]]


def _reach(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    reach = {name: set(targets) for name, targets in graph.items()}
    for middle in graph:
        for name in graph:
            if middle in reach[name]:
                reach[name] |= reach[middle]
    return reach


def levels(graph: dict[str, set[str]]) -> dict[str, int]:
    """Return how high each module stands: one above the highest that it imports."""

    @cache
    def level(name: str) -> int:
        return 1 + max((level(target) for target in graph[name]), default=-1)

    return {name: level(name) for name in graph}


def drawing(graph: dict[str, set[str]]) -> str:
    """Return the picture as SVG: a row or more for each height, a colour for each wing; it fits the column of a page."""
    heights = levels(graph)
    rows = []
    for height in range(max(heights.values()), -1, -1):
        alike = [name for part in CEILINGS for name in graph if wing(name) == part and heights[name] == height]
        size = ceil(len(alike) / ceil(len(alike) / WIDEST))
        rows += [alike[start : start + size] for start in range(0, len(alike), size)]
    width = max(map(len, rows)) * (BOX + GAP) - GAP
    places = {
        name: ((width - len(row) * (BOX + GAP) + GAP) // 2 + index * (BOX + GAP), 44 + level * ROW)
        for level, row in enumerate(rows)
        for index, name in enumerate(row)
    }
    parts = [
        f'<svg viewBox="0 0 {width} {44 + len(rows) * ROW - 20}" width="100%" role="img" aria-label="The modules of explr by '
        'height, coloured by wing; every line is an import and goes down." xmlns="http://www.w3.org/2000/svg" '
        'font-family="sans-serif" font-size="12" text-anchor="middle">'
    ]
    for index, (part, colour) in enumerate(zip(CEILINGS, COLOURS, strict=True)):
        parts.append(_box(part, index * (BOX + 20 + GAP), 0, BOX + 20, colour))
    reach = _reach(graph)
    for name in graph:
        for target in sorted(graph[name] - EVERYWHERE):
            if not any(target in reach[other] for other in graph[name] - {target}):  # else another import implies it
                (x, y), (u, v) = places[name], places[target]
                a, b, c = x + BOX // 2, y + 26, u + BOX // 2
                parts.append(
                    f'<path d="M{a} {b} C{a} {b + 20} {c} {v - 20} {c} {v}" fill="none" stroke="currentColor" '
                    'stroke-opacity="0.5"/>'
                )
    colours = dict(zip(CEILINGS, COLOURS, strict=True))
    parts += [_box(name.rpartition(".")[2], x, y, BOX, colours[wing(name)]) for name, (x, y) in places.items()]
    return "\n".join([*parts, "</svg>"])


def _box(text: str, x: int, y: int, width: int, colour: str) -> str:
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="26" rx="5" fill="{colour}"/>'
        f'<text x="{x + width // 2}" y="{y + 17}" fill="#1a1a1a">{text}</text>'
    )


def page(package: Path = ROOT / "explr") -> str:
    """Return the page: the picture, and a sentence on each room."""
    graph, names = imports(package), modules(package)
    text = [
        "# The house",
        "The library has four wings, the last of them for the book alone. A module stands above everything that it imports, so",
        "every line goes down; lines to `errors`, which most import, and what other imports imply are left out.",
        "`python -m tools.architecture` draws this page from the code.",
        "",
        f'<div class="explr-house" tabindex="0">\n{drawing(graph)}\n</div>',
    ]
    for part in CEILINGS:
        title = "The theorem, and how to use it: `explr`" if part == THEOREM else f"`explr.{part}`"
        text += ["", f"## {title}", "", "| module | job |", "| --- | --- |"]
        text += [f"| `{name.rpartition('.')[2]}` | {_sentence(names[name])} |" for name in graph if wing(name) == part]
    return "\n".join(text) + "\n"


def _sentence(file: Path) -> str:
    """Return the first sentence of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return html.escape(docstring.partition("\n\n")[0].replace("\n", " "), quote=False).replace("|", "\\|")


def main() -> int:
    """Run the command line; return 1 where an import climbs, or --check finds another page than the imports give."""
    parser = argparse.ArgumentParser(description="Draw the library from its imports.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the page is out of date")
    check = parser.parse_args().check
    complaints = faults(imports(ROOT / "explr"))
    if check and PAGE.read_text(encoding="utf-8") != page():
        complaints.append(f"{PAGE.relative_to(ROOT)} is out of date: run python -m tools.architecture")
    elif not check:
        PAGE.write_text(page(), encoding="utf-8")
    print("\n".join(complaints) or "Every import goes down.")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
