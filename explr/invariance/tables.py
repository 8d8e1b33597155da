"""Tables of text, as plain text for a terminal and as HTML for a notebook, and long lists cut short."""

from __future__ import annotations

import html
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]  # caption, header, rows

TALL = 15  # rows; a page folds a table that has more

# It travels with each report, as no other page than the book's has a style of ours: JupyterLab, Colab, an editor. Lines and
# space, but no colours: those are the page's, light or dark. What is too wide for a phone scrolls in its own box.
_STYLE = """
.explr-report :is(p, li) {overflow-wrap: anywhere}
.explr-report .explr-wide {overflow-x: auto; margin: 0.5em 0 1em}
.explr-report table {border-collapse: collapse; width: auto; margin: 0; font-size: 0.95em; font-variant-numeric: tabular-nums}
.explr-report caption {caption-side: top; text-align: left; font-weight: bold; padding: 0.25em 0}
.explr-report table :is(th, td) {padding: 0.25em 1.25em 0.25em 0; text-align: left; vertical-align: top; white-space: nowrap}
.explr-report table :is(th, td) {border: 0; border-bottom: 1px solid rgba(128, 128, 128, 0.4); background: none}
.explr-report table tbody th {font-weight: normal; font-family: ui-monospace, Menlo, Consolas, monospace}
.explr-report details {margin: 0.5em 0}
.explr-report summary {cursor: pointer}
""".replace("\n", " ")


def few(names: Sequence[str], most: int = 3) -> str:
    """Return the first names in words, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def grouped(items: Iterable[Item], key: Callable[[Item], Hashable]) -> list[list[Item]]:
    """Return the items in groups of equal key, each where its first member stood."""
    groups: dict[Hashable, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def text_table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as plain text, which has no caption."""
    del caption
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (header, *rows))
    return "\n".join(lines)


def html_table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as HTML, for :func:`html_page`."""
    heads = "".join(f'<th scope="col">{html.escape(cell) or "note"}</th>' for cell in header)
    body = "".join(
        (f'<tr><th scope="row">{html.escape(row[0])}</th>' if row[0] else "<tr><td></td>")
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    # A box that scrolls must be within reach of the keyboard; it is no region, which must have a name of its own on a page.
    return (
        f'<div class="explr-wide" role="group" tabindex="0" aria-label="{html.escape(caption)}"><table>'
        f"<caption>{html.escape(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def html_tall_table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as HTML, folded where it has more than :data:`TALL` rows."""
    table = html_table(caption, header, rows)
    return html_folded(f"{caption}: {len(rows)} rows", table) if len(rows) > TALL else table


def html_lines(tag: str, lines: Iterable[str]) -> str:
    """Return lines of text, each as an element of HTML."""
    return "".join(f"<{tag}>{html.escape(line)}</{tag}>" for line in lines)


def html_folded(summary: str, content: str) -> str:
    """Return what a reader opens only if they want it."""
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>"


def html_page(headline: str, *parts: str) -> str:
    """Return what a notebook shows: a headline, and parts that are HTML already, with the style of their tables."""
    headline = f"<p><strong>{html.escape(headline)}</strong></p>"
    return f'<div class="explr-report"><style>{_STYLE}</style>{headline}{"".join(parts)}</div>'
