"""What the analysis of a network found: the verdict, why, and what of the network can be scaled; as text and as HTML."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from torch import Tensor, nn

from explr.errors import ExplrError
from explr.invariance.degrees import Vector, total_degree
from explr.invariance.subsets import components, largest_invariant_set
from explr.invariance.tables import few, html_table, text_table


@dataclass(frozen=True)
class Obstruction:
    """One operation at which the proof of scale invariance fails.

    Attributes:
        kind: "unequal degrees", "nonlinear", "stored statistics", "stored state", "unknown operation" or "output".
        path: the module, as in ``model.get_submodule(path)``.
        operation: the ATen operation, such as "add" or "gelu".
        source: file, number and text of the user's line, or "" where all the code is torch's.
        degrees: the degrees that met.
        parameters: the trainable parameters that cause it.
        remedy: what would mend it.
    """

    kind: str
    path: str
    operation: str
    source: str
    degrees: tuple[Fraction, ...]
    parameters: tuple[str, ...]
    remedy: str

    def __str__(self) -> str:
        degrees = " and ".join(map(str, self.degrees))
        if self.kind == "output":
            return f"output: degree {degrees} at the output, from {few(self.parameters)}. {self.remedy}"
        what = {
            "unequal degrees": f"degrees {degrees} meet in {self.operation}",
            "nonlinear": f"{self.operation} takes degree {degrees}, but is homogeneous only at 0",
            "stored statistics": f"{self.operation} normalises degree {degrees} with stored statistics",
            "stored state": f"{self.operation} keeps degree {degrees} from step to step",
            "unknown operation": f"no rule for {self.operation}, which takes degree {degrees}: undecided",
        }[self.kind]
        where = f" ({self.source})" if self.source else ""
        return f"{self.path or 'model'}: {what}{where}. {self.remedy}"


@dataclass(frozen=True)
class NormReport:
    """A normalisation as the analysis saw it.

    Attributes:
        kind: the ATen operation: "batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm".
        degree: of the norm's input when all trainable parameters scale; None where its channels differ in degree.
        eps: what it adds to the variance.
        variance: the smallest variance (mean square, for RMS norm) seen on the example inputs.
        median_variance: the median over channels or samples.
    """

    kind: str
    degree: Fraction | None
    eps: float
    variance: float
    median_variance: float

    @property
    def relative_eps(self) -> float:
        """Size of eps relative to the median variance, and so how far the norm is from exactly scale-invariant."""
        return self.eps / self.median_variance if self.median_variance else math.inf


@dataclass(frozen=True)
class Approximation:
    """A tiny constant added to something that scales, as the eps of a hand-written norm: taken for 0, and reported.

    Attributes:
        path: the module.
        operation: "add", "clamp_min", ...
        source: the user's line.
        degree: of what it is added to.
        eps: the constant.
        relative: its size relative to the median of what it is added to, on the example inputs.
    """

    path: str
    operation: str
    source: str
    degree: Fraction
    eps: float
    relative: float


@dataclass(frozen=True)
class Row:
    """A line of the table: one operation, the degrees of its inputs and of its output, and what is wrong with it."""

    path: str
    operation: str
    degree_in: str
    degree_out: str
    note: str


@dataclass(frozen=True, eq=False)
class InvarianceReport:
    """What :func:`~explr.invariance.analysis.scale_invariance` found.

    Attributes:
        invariant: whether the output is the same at every scale of the trainable parameters, up to eps.
        degree: the degree of the output, or None where the network is not homogeneous.
        obstructions: every operation at which the proof fails; empty for an invariant network.
        norms: module path → :class:`NormReport`.
        approximations: constants taken for the eps of hand-written norms.
        alone: parameters that can be scaled on their own without a change in the output.
        joint: sets of parameters that can only be scaled together, such as all convolutions that write one residual stream.
        rest: trainable parameters in neither: scaling the others leaves the output as it is only while these stay put.
        rows: the operations, in the order of execution.
    """

    invariant: bool
    degree: Fraction | None
    obstructions: tuple[Obstruction, ...]
    norms: dict[str, NormReport]
    approximations: tuple[Approximation, ...]
    alone: tuple[str, ...]
    joint: tuple[tuple[str, ...], ...]
    rest: tuple[str, ...]
    rows: tuple[Row, ...] = field(repr=False)
    _parameters: dict[str, nn.Parameter] = field(repr=False)
    _conditions: tuple[Vector, ...] = field(repr=False)
    _norm_inputs: dict[str, tuple[Vector, ...]] = field(repr=False)

    @property
    def verdict(self) -> str:
        """The answer in words."""
        approximate = self.approximations or any(norm.eps for norm in self.norms.values())
        if self.invariant:
            return "scale-invariant" + (", up to the eps of its norms" if approximate else "")
        if any(obstruction.kind == "unknown operation" for obstruction in self.obstructions):
            return "undecided: an operation has no rule"
        return "not scale-invariant" + (f": homogeneous of degree {self.degree}" if self.degree is not None else "")

    def parameter_groups(self, **options: Any) -> list[dict[str, Any]]:
        """Return the parameter groups of a torch optimizer in which :class:`explr.optim.ExpLR` may convert the invariant part.

        The first group is the largest set of parameters that leaves the output as it is when scaled together; the second holds
        the rest (a trainable head, affine parameters) and is marked ``scale_invariant=False``, so that it keeps its learning
        rate and weight decay. A group without parameters is left out.

        Args:
            options: what both groups share: ``lr``, ``weight_decay``, ``momentum``, ...

        >>> import torch
        >>> from explr import scale_invariance
        >>> model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))
        >>> report = scale_invariance(model, torch.randn(3, 4))
        >>> for group in report.parameter_groups(lr=0.1, weight_decay=5e-4):
        ...     print(len(group["params"]), group["weight_decay"], group["scale_invariant"])
        1 0.0005 True
        4 0.0005 False
        """
        rest = set(self.rest)
        parts = {True: [p for name, p in self._parameters.items() if name not in rest], False: []}
        parts[False] = [self._parameters[name] for name in self.rest]
        return [{"params": part, **options, "scale_invariant": kind} for kind, part in parts.items() if part]

    def invariant_in(self, parameters: Iterable[str | Tensor]) -> bool:
        """Tell whether scaling exactly these parameters, given as tensors or names, together leaves the output as it is."""
        names = self._names(parameters)
        return all(total_degree(condition, names) == 0 for condition in self._conditions)

    def largest_part(self, parameters: Iterable[str | Tensor]) -> list[str]:
        """Return the largest set among these parameters that leaves the output as it is when scaled together, by name."""
        sizes = {name: self._parameters[name].numel() for name in self._names(parameters)}
        chosen = largest_invariant_set(sizes, self._conditions)
        return [name for name in self._parameters if name in chosen]

    def scaled_alike(self, groups: Sequence[Iterable[str | Tensor]]) -> list[set[int]]:
        """Return which of these groups, by position, must be scaled by the same factor for the output to stay as it is."""
        names = {str(index): self._names(group) for index, group in enumerate(groups)}
        sums = [{index: total_degree(vector, part) for index, part in names.items()} for vector in self._conditions]
        links = [{index: degree for index, degree in vector.items() if degree} for vector in sums]
        return [set(map(int, part)) for part in components(links, set(names))]

    def norm_degrees(self, parameters: Iterable[str | Tensor] | None = None) -> dict[str, Fraction]:
        """Return module path → degree of the norm's input when exactly these parameters scale (default: all that train).

        When they are multiplied by c, the running mean of the norm belongs to be multiplied by c**degree, its running variance
        and its eps by c**(2 * degree).

        Raises:
            ExplrError: where one norm sees inputs of several degrees, so that no single power would do.
        """
        names = self._names(self._parameters if parameters is None else parameters)
        degrees = {}
        for path, vectors in self._norm_inputs.items():
            found = {total_degree(vector, names) for vector in vectors}
            if len(found) > 1:
                raise ExplrError(
                    f"the inputs of {path} have degrees {' and '.join(map(str, sorted(found)))} when {len(names)} parameters "
                    "scale: no one rescaling of its eps and running statistics fits. Give each input its own norm."
                )
            degrees[path] = found.pop()
        return degrees

    def table(self) -> str:
        """Return the report as plain text: verdict, obstructions, operations with their degrees, norms, parameters."""
        parts = [self.verdict, "\n".join(f"- {obstruction}" for obstruction in self.obstructions)]
        parts += [text_table(*table) for table in self._tables()]
        return "\n\n".join(filter(None, [*parts, "\n".join(self._parameter_lines())]))

    def _repr_html_(self) -> str:
        """Show the same in a notebook; it takes the page's colours, so it reads on light and dark."""
        items = "".join(f"<li>{html.escape(str(obstruction))}</li>" for obstruction in self.obstructions)
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in self._parameter_lines())
        operations, *others = [html_table(*table) for table in self._tables()]
        opened = " open" if len(self.rows) <= 30 else ""
        operations = f"<details{opened}><summary>{len(self.rows)} operations</summary>{operations}</details>"
        verdict = f"<p><strong>{html.escape(self.verdict)}</strong></p>" + (f"<ul>{items}</ul>" if items else "")
        return f"<div>{verdict}{operations}{''.join(others)}{lines}</div>"

    def _tables(self) -> Iterator[tuple[str, list[str], list[list[str]]]]:
        rows = [[row.path, row.operation, row.degree_in, row.degree_out, row.note] for row in self.rows]
        yield "Degrees of homogeneity", ["layer", "operation", "degree in", "degree out", ""], rows
        if self.norms:
            norms = [
                [path, "mixed" if n.degree is None else str(n.degree), f"{n.eps:g}", f"{n.relative_eps:.1e}"]
                for path, n in self.norms.items()
            ]
            yield "Norms: invariant up to eps", ["norm", "degree in", "eps", "eps / variance (median)"], norms
        if self.approximations:
            taken = [
                [a.path or "model", a.operation, str(a.degree), f"{a.eps:g}", f"{a.relative:.1e}", a.source]
                for a in self.approximations
            ]
            header = ["layer", "operation", "degree in", "constant", "relative size", "line"]
            yield "Constants taken for 0", header, taken

    def _parameter_lines(self) -> list[str]:
        lines = [f"invariant on their own: {few(self.alone, 8)}"] if self.alone else []
        lines += [f"invariant only together: {few(part, 8)}" for part in self.joint]
        return lines + ([f"not invariant: {few(self.rest, 8)}"] if self.rest else [])

    def _names(self, parameters: Iterable[str | Tensor]) -> set[str]:
        known = {id(p): name for name, p in self._parameters.items()}
        names = set()
        for parameter in parameters:
            name = parameter if isinstance(parameter, str) else known.get(id(parameter), "")
            if name not in self._parameters:
                what = repr(parameter) if isinstance(parameter, str) else f"a tensor of shape {tuple(parameter.shape)}"
                raise ExplrError(f"{what} is not a trainable parameter of the model that was analysed. Analyse the model anew.")
            names.add(name)
        return names
