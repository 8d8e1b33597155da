"""Which parameters can be scaled together: linear algebra on the conditions that the rules collect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from explr.invariance.degrees import Vector, total_degree


def largest_invariant_set(sizes: Mapping[str, int], conditions: Sequence[Vector]) -> set[str]:
    """Return the largest set (counted in numbers, not tensors) whose indicator meets every condition.

    Conditions whose terms all have one sign settle most cases. What they leave falls into components; where a component does
    not meet its conditions as a whole, a small integer program finds its largest part that does.
    """
    chosen = set(sizes)
    while True:
        left = [{n: d for n, d in vector.items() if n in chosen} for vector in conditions]
        out = {n for vector in left if len({d > 0 for d in vector.values()}) == 1 for n in vector}
        if not out:
            break
        chosen -= out
    for part in components(left, chosen):
        mine = [vector for vector in left if not part.isdisjoint(vector)]
        if any(total_degree(vector, part) for vector in mine):
            chosen -= part - _solve(sorted(part), sizes, mine)
    return chosen


def _solve(names: list[str], sizes: Mapping[str, int], conditions: Sequence[Vector]) -> set[str]:
    # Here and not above: scipy.optimize takes a third of a second to import, and few networks need it.
    from scipy.optimize import LinearConstraint, milp

    matrix = np.array([[float(vector.get(name, 0)) for name in names] for vector in conditions])
    cost = -np.array([sizes[name] for name in names], dtype=np.float64) / max(sizes[name] for name in names)
    found = milp(cost, constraints=LinearConstraint(matrix, 0, 0), integrality=1, bounds=(0, 1), options={"mip_rel_gap": 0})
    part = set() if found.x is None else {name for name, value in zip(names, found.x, strict=True) if value > 0.5}
    return set() if any(total_degree(vector, part) for vector in conditions) else part  # the solver works in floating point


def components(conditions: Iterable[Vector], names: set[str]) -> list[set[str]]:
    """Partition names into sets that no condition links to each other."""
    home = {name: {name} for name in sorted(names)}  # name → the set that it is in
    for vector in conditions:
        linked = {id(home[name]): home[name] for name in vector if name in home}
        if len(linked) > 1:
            largest, *others = sorted(linked.values(), key=len, reverse=True)
            for part in others:
                largest |= part
                home.update(dict.fromkeys(part, largest))
    return list({id(part): part for part in home.values()}.values())
