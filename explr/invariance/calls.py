"""One call of an ATen operation, as the rules see it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from explr.invariance.degrees import CONSTANT, Degree, Findings, Shifted, Vector, combine
from explr.invariance.graph import arguments_of, nodes_in, operation_name, tensors_of
from explr.invariance.memory import place_of

BY_NUMBERS = "Check it by numbers with explr.lemma1, or write it in operations that have a rule."


class Call:
    """One call of an ATen operation: its arguments by name, and their degrees."""

    def __init__(self, found: Findings, node: fx.Node) -> None:
        self.found = found
        self.node = node
        self.operation = operation_name(node)
        self.arguments = arguments_of(node)
        self.names: list[str] = []
        self.consulted: set[str] = set()
        self.mutates = False
        self.is_view = False
        if isinstance(node.target, torch._ops.OpOverload):
            schema = node.target._schema
            self.mutates = schema.is_mutable
            self.is_view = any(result.alias_info is not None for result in schema.returns)
            self.names = [argument.name for argument in schema.arguments]

    def __getitem__(self, name: str) -> Any:
        self.consulted.add(name)
        return self.arguments.get(name)

    @property
    def first(self) -> str:
        """Name of the first argument."""
        return self.names[0]

    def raw(self, name: str) -> Degree:
        """Return the degree of an argument, in parts if need be."""
        return self.found.degree(self[name])

    def degree(self, name: str) -> Vector | None:
        """Return the one degree of an argument."""
        return self.agree([self[name]])

    def agree(self, arguments: Iterable[Any], remedy: str = "") -> Vector | None:
        """Return the one degree of several arguments."""
        return self.found.agree(self.node, [self.found.degree(argument) for argument in arguments], remedy)

    def join(self, degree: Degree, name: str) -> Vector | None:
        """Return the degree of a sum with an optional argument, such as a bias."""
        degrees = [degree] if self[name] is None else [degree, self.raw(name)]
        return self.found.agree(self.node, degrees)

    def product(self, names: Iterable[str]) -> Vector | None:
        """Return the degree of a product of arguments, or lists of them."""
        total: Vector | None = CONSTANT
        for name in names:
            arguments = self[name] if isinstance(self[name], list | tuple) else [self[name]]
            for argument in arguments:
                total = combine(total, self.agree([argument]))  # one that is left out is a constant
        return total

    def shifted(self, axes: Iterable[int], degree: Vector | None, shifts: Iterable[Vector | None]) -> Degree:
        """Return the degree of an output that is a sum with numbers that depend on the index along some axes alone."""
        kept: list[Vector] = []
        for shift in shifts:
            if shift is not None and shift != degree and shift not in kept:
                kept.append(shift)
        if not kept:
            return degree
        return Shifted(frozenset(axes), degree, tuple(kept), place_of(tensors_of(self.node)[0]), self.node)

    def given(self, degree: Degree) -> Degree:
        """Return the degree of an output with the axes of an input."""
        return replace(degree, place=place_of(tensors_of(self.node)[0])) if isinstance(degree, Shifted) else degree

    def insist(self, kind: str = "unknown operation", remedy: str = BY_NUMBERS) -> None:
        """Ask that nothing that comes in scales."""
        self.consulted |= self.arguments.keys()
        for argument in nodes_in((self.node.args, self.node.kwargs)):
            self.require(self.agree([argument]), kind, remedy)

    def require(self, vector: Vector | None, kind: str, remedy: str) -> None:
        """Ask that something does not scale."""
        self.found.require(vector, kind, self.node, remedy)
