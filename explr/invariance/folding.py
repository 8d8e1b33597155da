"""What was found in a network, in lines: one for each finding, or, of a large network, one for all that are alike.

Layers of one class that do the same at the same degrees are alike. A line for several names the first, and how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from explr.invariance.findings import Approximation, NormReport, Obstruction, Row
from explr.invariance.tables import Item, Table, few, grouped

SCREENFUL = 30  # operations; the report on a larger network is folded
_KINDS = 10  # of obstructions, that a folded report shows
_SETS = 4  # of parameters that scale together, that it shows
_NAMES = 8  # in a list of parameters


class Folded(NamedTuple):
    """The lines of a report: on the obstructions, in tables, on the parameters."""

    obstructions: list[str]
    tables: list[Table]
    parameters: list[str]


Parameters = tuple[Sequence[str], Sequence[Sequence[str]], Sequence[str], Sequence[str]]  # alone, joint, rest, unused


def fold(
    obstructions: Sequence[Obstruction],
    rows: Sequence[Row],
    norms: Mapping[str, NormReport],
    approximations: Sequence[Approximation],
    parameters: Parameters,
    classes: Mapping[str, str],
    *,
    full: bool,
) -> Folded:
    """Return a line for each finding, of a small network or in ``full``, else for all that are alike.

    ``classes`` has module path → name of its class.
    """
    each = full or len(rows) <= SCREENFUL

    def class_of(path: str) -> str:  # a norm that is called as a function has the path of its caller, and a name
        return classes.get(path, classes.get(path.rpartition(":")[0], ""))

    def alike(items: Iterable[Item], key: Callable[[Item], Hashable]) -> list[list[Item]]:
        return [[item] for item in items] if each else grouped(items, key)

    kinds_of_obstruction = alike(obstructions, lambda o: (o.kind, o.operation, o.degrees, class_of(o.path)))
    lines = [_stand_for(kind, class_of(kind[0].path)) for kind in kinds_of_obstruction]
    kinds = alike(rows, lambda r: (class_of(r.path), r.operation, r.degree_in, r.degree_out, r.note))
    caption = "Degrees of homogeneity" + ("" if each else f": the kinds among {len(rows)} operations")
    if not each and len(lines) > _KINDS + 1:
        lines[_KINDS:] = [f"{len(lines) - _KINDS} kinds more: table(full=True) has them all."]
    if not each and len(kinds) > SCREENFUL:
        kinds = [kind for kind in kinds if kind[0].note or not kind[0].operation][:SCREENFUL]
        caption = f"Degrees of homogeneity: the first kinds among {len(rows)} operations at which the proof fails"
    norm_kinds = alike(norms.items(), lambda item: (class_of(item[0]), item[1].kind, item[1].degree, item[1].eps))
    constants = alike(approximations, lambda a: (class_of(a.path), a.operation, a.degree, a.eps))
    tables = [_operations(caption, kinds), *_norms(norm_kinds), *_constants(constants)]
    return Folded(lines, tables, _parameter_lines(*parameters, sets=None if each else _SETS, names=None if full else _NAMES))


def _stand_for(alike: Sequence[Obstruction], name: str) -> str:
    if len(alike) == 1:
        return str(alike[0])
    places = list(dict.fromkeys(obstruction.path for obstruction in alike[1:]))
    return f"{alike[0]} Likewise {len(alike) - 1} more, in {name}: {few(places)}."


def _operations(caption: str, kinds: Iterable[Sequence[Row]]) -> Table:
    rows = [[_first(r.path for r in k), k[0].operation, k[0].degree_in, k[0].degree_out, k[0].note] for k in kinds]
    header = ["layer", "operation", "degree in", "degree out", ""]
    noted = any(row[-1] for row in rows)
    return (caption, header, rows) if noted else (caption, header[:-1], [row[:-1] for row in rows])


def _norms(kinds: Iterable[Sequence[tuple[str, NormReport]]]) -> list[Table]:
    """Return the table of norms, if there are any; of those that are alike it has the largest relative eps."""
    rows = []
    for alike in kinds:
        norm, largest = alike[0][1], max(norm.relative_eps for _, norm in alike)
        degree = "mixed" if norm.degree is None else str(norm.degree)
        rows.append([_first(path for path, _ in alike), degree, f"{norm.eps:g}", f"{largest:.1e}"])
    header = ["norm", "degree in", "eps", "eps / variance (median)"]
    return [("Norms: invariant up to eps", header, rows)] if rows else []


def _constants(kinds: Iterable[Sequence[Approximation]]) -> list[Table]:
    """Return the table of constants taken for 0, if there are any; of those that are alike it has the largest."""
    rows = []
    for alike in kinds:
        one, largest = alike[0], max(approximation.relative for approximation in alike)
        place = _first(approximation.path or "model" for approximation in alike)
        rows.append([place, one.operation, str(one.degree), f"{one.eps:g}", f"{largest:.1e}", one.source])
    header = ["layer", "operation", "degree in", "constant", "relative size", "line"]
    return [("Constants taken for 0", header, rows)] if rows else []


def _parameter_lines(
    alone: Sequence[str],
    joint: Sequence[Sequence[str]],
    rest: Sequence[str],
    unused: Sequence[str],
    *,
    sets: int | None,
    names: int | None,
) -> list[str]:
    """Say which parameters can be scaled: so many names of so many of the sets that scale together, by default all."""

    def listed(part: Sequence[str]) -> str:
        return few(part, len(part) if names is None else names)

    lines = [f"invariant on their own: {listed(alone)}"] if alone else []
    lines += [f"invariant only together: {listed(part)}" for part in joint[:sets]]
    if more := joint[len(joint) if sets is None else sets :]:
        lines.append(f"invariant only together: {len(more)} more set{'s' * (len(more) > 1)}")
    lines += [f"not invariant: {listed(rest)}"] if rest else []
    return lines + ([f"not used by what the network returns: {listed(unused)}"] if unused else [])


def _first(paths: Iterable[str]) -> str:
    """Name the first of several places, and say how many there are."""
    places = list(paths)
    return f"{places[0]} (1 of {len(places)})" if len(places) > 1 else places[0]
