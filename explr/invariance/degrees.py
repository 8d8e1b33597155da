"""Degrees of homogeneity: how a tensor grows with the parameters, and the conditions under which it does.

One c for all parameters would answer yes or no. Here every parameter p has its own factor exp(d_p), so the degree of a tensor
is a vector v, one number per parameter, and the tensor grows by exp(v·d). Wherever an operation is homogeneous only under a
condition (two terms of a sum must grow alike, the input of a GELU must not grow at all), the condition is linear in d and is
collected.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, fx

from explr.errors import ExplrError
from explr.invariance.graph import operation_name, source_line
from explr.invariance.memory import Memory, Place, axes_seen, place_of

Vector = Mapping[str, Fraction]  # parameter name → degree; a name that is missing has degree 0
CONSTANT: Vector = {}


def combine(a: Vector | None, b: Vector | None, times: Fraction = Fraction(1)) -> Vector | None:
    """Return a + times * b, the degree of a product; 0 times anything is 0."""
    if a is None or b is None:
        return None
    total = {name: a.get(name, Fraction(0)) + times * b.get(name, Fraction(0)) for name in {**a, **b}}
    return {name: degree for name, degree in total.items() if degree}


def total_degree(vector: Vector, names: set[str] | None = None) -> Fraction:
    """Return the degree when the named parameters scale together; by default all."""
    return sum((degree for name, degree in vector.items() if names is None or name in names), Fraction(0))


def degree_of_constant(value: Tensor | complex) -> Degree:
    """Return the degree of a constant: none of its own, unless all its entries are 0 or infinite."""
    if isinstance(value, Tensor):
        if value.layout is not torch.strided:
            return CONSTANT
        fixed = value.numel() > 0 and bool(((value == 0) | torch.isinf(value)).all()) if not value.is_meta else False
        return None if fixed and value.dtype != torch.bool else CONSTANT
    return None if value == 0 or (isinstance(value, float) and math.isinf(value)) else CONSTANT


def in_words(degree: Degree) -> str:
    """Return the degree for a table, when all parameters scale together."""
    if isinstance(degree, Parts):
        return " | ".join(dict.fromkeys(map(in_words, degree.parts)))
    if isinstance(degree, Shifted):
        return " + ".join(dict.fromkeys(map(in_words, vectors_of(degree))))
    return "any" if degree is None else str(total_degree(degree))


def vectors_of(degree: Degree) -> list[Vector | None]:
    """Return the degrees of the parts of a tensor."""
    if isinstance(degree, Parts):
        return [vector for part in degree.parts for vector in vectors_of(part)]
    return [degree.degree, *degree.shifts] if isinstance(degree, Shifted) else [degree]


def scales_of(degree: Degree) -> list[Vector]:
    """Return the degrees of the parts of a tensor without what only shifts them: those of what a norm divides by."""
    if isinstance(degree, Parts):
        return [vector for part in degree.parts for vector in scales_of(part)]
    scale = degree.degree if isinstance(degree, Shifted) else degree
    return [] if scale is None else [scale]


def apart(degree: Degree, axis: int) -> bool:
    """Tell whether whatever differs in degree is told apart by the index along this axis alone."""
    if isinstance(degree, Parts):
        return degree.axis == axis and all(apart(part, axis) for part in degree.parts)
    return not isinstance(degree, Shifted) or degree.axes <= {axis}


def distinct_vectors(degrees: Iterable[Degree]) -> tuple[Vector, ...]:
    """Return the distinct degrees in which something scales; a constant 0 goes with any other."""
    distinct: dict[frozenset[tuple[str, Fraction]], None] = {}
    for degree in degrees:
        distinct |= dict.fromkeys(frozenset(part.items()) for part in vectors_of(degree) if part is not None)
    return tuple(dict(items) for items in distinct) or (CONSTANT,)


@dataclass(frozen=True)
class Parts:
    """A tensor concatenated of parts that differ in degree.

    A norm that works channel by channel accepts it; any other operation asks that the parts agree. Axis -1: no axis keeps the
    parts apart.
    """

    axis: int
    parts: tuple[Vector | Shifted | None, ...]
    node: fx.Node = field(compare=False)


@dataclass(frozen=True)
class Shifted:
    """A tensor plus numbers of other degrees that depend on the index along some axes alone, such as a bias per channel.

    A norm with statistics per channel takes them away again, and so does a softmax along another axis; most other operations
    ask that all agree. The axes are those of one view of the memory, which ``place`` tells from others.
    """

    axes: frozenset[int]
    degree: Vector | None
    shifts: tuple[Vector, ...]
    place: Place | None  # None as one of the parts of another tensor
    node: fx.Node = field(compare=False)


# None is the degree of a constant whose entries are 0 or infinite: scaling does nothing to it, so it goes with any degree.
Degree = Vector | Parts | Shifted | None


@dataclass(frozen=True)
class Condition:
    """vector · d must be 0; where it comes from, and what to say if it is not."""

    vector: Vector
    kind: str
    node: fx.Node
    met: tuple[Vector, ...]
    remedy: str


@dataclass(frozen=True)
class Eps:
    """A constant that counts as an eps, and the node of what it is added to."""

    node: fx.Node
    operand: fx.Node
    vector: Vector
    eps: float


class Findings:
    """Degrees of the tensors of a graph, the conditions under which they hold, and what else is found on the way.

    Degrees belong to memory, not to nodes, so that what is written through a view is seen by the tensor under it.
    """

    def __init__(self) -> None:
        self.memory: Memory[Degree] = Memory(CONSTANT)
        self.conditions: list[Condition] = []
        self.eps: list[Eps] = []
        self.norms: list[tuple[fx.Node, Degree]] = []  # norms, and the degrees of their inputs
        self.affine: set[str] = set()  # parameters of norms

    def degree(self, arg: Any) -> Degree:
        """Return the degree of an argument of a node: a tensor's, or a number's."""
        if not isinstance(arg, fx.Node):
            return degree_of_constant(arg) if isinstance(arg, int | float | complex) else CONSTANT
        value = arg.meta.get("val")
        if not isinstance(value, Tensor):
            return CONSTANT  # a size, or a number taken out of a tensor, which had to be of degree 0
        found = self.memory.read(value)
        if found is None:
            raise ExplrError(
                f"{operation_name(arg)} gives a tensor that the analysis of scale invariance cannot follow"
                f"{' at ' + source_line(arg) if source_line(arg) else ''}. Use explr.lemma1, which goes by numbers."
            )
        if len(found) == 1 and isinstance(shifted := found[0], Shifted):
            place = place_of(value)
            axes = axes_seen(shifted.axes, shifted.place, place)
            if axes is None:
                return Parts(-1, tuple(vectors_of(shifted)), shifted.node)
            return replace(shifted, axes=axes, place=place)
        if len(found) <= 1:
            return found[0] if found else None
        return Parts(-1, tuple(vector for degree in found for vector in vectors_of(degree)), arg)

    def agree(self, node: fx.Node, degrees: Iterable[Degree], remedy: str = "") -> Vector | None:
        """Return the common degree, on the condition that all are equal."""
        vectors = [vector for vector in map(self._one, degrees) if vector is not None]
        for vector in vectors[1:]:
            difference = combine(vectors[0], vector, Fraction(-1))
            self.require(difference, "unequal degrees", node, remedy, (vectors[0], vector))
        return vectors[0] if vectors else None

    def require(
        self, vector: Vector | None, kind: str, node: fx.Node, remedy: str, met: tuple[Vector, ...] | None = None
    ) -> None:
        """Collect the condition vector · d = 0."""
        if vector:
            condition = Condition(vector, kind, node, met if met is not None else (vector,), remedy)
            if not any(c.node is node and c.vector == vector for c in self.conditions[-200:]):
                self.conditions.append(condition)

    def _one(self, degree: Degree) -> Vector | None:
        """Return the one degree of a tensor; if its parts differ, the operation that put them together is at fault."""
        if isinstance(degree, Parts | Shifted):
            return self.agree(degree.node, vectors_of(degree))
        return degree
