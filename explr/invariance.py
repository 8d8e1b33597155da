"""Is a network scale-invariant? A proof by degrees of homogeneity: Appendix C of Li & Arora (2020) as a program.

:func:`scale_invariance` follows the degree of every tensor through the graph of a model, and collects the conditions under
which it holds. They are linear in d, the logarithms of the factors of the parameters, and what remains is linear algebra: the
network is scale-invariant if d = (1, ..., 1) meets every condition; a parameter is invariant on its own if its unit vector
does; a set of parameters is jointly invariant if its indicator does. "Scale-invariant" is a proof, but for the eps of
normalisation layers, whose size is reported. "Not scale-invariant" means that the rules found an operation where the proof
fails; at an operation without a rule the verdict is "undecided".
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from scipy.optimize import LinearConstraint, milp
from torch import Tensor, fx, nn

from explr.degrees import CONSTANT, Condition, Degree, Vector, distinct_vectors, in_words, total_degree
from explr.errors import ExplrError
from explr.measure import measure
from explr.nodes import arguments_of, module_path, norm_name, operation_name, source_line
from explr.propagation import Propagation
from explr.rules import QUIET
from explr.sandbox import check_model, export, random_state_kept
from explr.tables import few, html_table, text_table

NEGLIGIBLE = 0.1  # a constant that counts as an eps is at most this part of what it is added to


def scale_invariance(model: nn.Module, *example_inputs: Any) -> InvarianceReport:
    """Decide whether a network computes the same function when all its trainable parameters are multiplied by any c > 0.

    Parameters that require grad scale; frozen ones and buffers do not. Batch statistics are recomputed, as in training. The
    model is traced and run once on the example inputs, on its own device; its running statistics, random state, training flags
    and gradients stay as they are.

    Args:
        model: any module that :func:`torch.export.export` can trace, in training mode.
        example_inputs: what ``model`` is called with; a batch of two or more where it has batch normalisation.

    Raises:
        ExplrError: for a model in eval mode or without trainable parameters; without example inputs; when the model does not
            run on them or cannot be exported.

    >>> norm = nn.LayerNorm(8, elementwise_affine=False)
    >>> model = nn.Sequential(nn.Linear(4, 8, bias=False), norm, nn.ReLU(), nn.Linear(8, 2))
    >>> report = scale_invariance(model, torch.randn(3, 4))
    >>> report.invariant
    False
    >>> print(report.obstructions[0])
    output: degree 1 at the output, from 3.weight. Freeze what follows the last norm: 3.weight, 3.bias.
    >>> model[3].requires_grad_(False)
    Linear(in_features=8, out_features=2, bias=True)
    >>> print(scale_invariance(model, torch.randn(3, 4)).table())  # doctest: +ELLIPSIS
    scale-invariant, up to the eps of its norms
    <BLANKLINE>
    layer   operation   degree in  degree out
    0       linear      0          1
    1       layer_norm  1          0
    2       relu        0          0
    3       linear      0          0
    output              0
    <BLANKLINE>
    norm  degree in  eps    eps / variance (median)
    1     1          1e-05  ...
    <BLANKLINE>
    invariant on their own: 0.weight
    """
    check_model(model, example_inputs, "scale_invariance")
    with random_state_kept(model):
        program = export(model, example_inputs)
        graph = Propagation(program, model)
        graph.run()
        seen = measure(program, example_inputs, graph)
    return _report(graph, seen)


# ---- the findings in words


def _report(graph: Propagation, seen: dict[fx.Node, tuple[float, float]]) -> InvarianceReport:
    """Solve the conditions and put the findings into words."""
    conditions = list(graph.conditions)
    approximations = []
    for eps in graph.eps:
        relative = eps.eps / seen[eps.node][1] if seen.get(eps.node, (0.0, 0.0))[1] else math.inf
        if relative > NEGLIGIBLE:
            remedy = f"The constant {eps.eps:g} is {relative:.2g} of what it is added to: too much to be an eps."
            conditions.append(Condition(eps.vector, "unequal degrees", eps.node, (eps.vector, CONSTANT), remedy))
        elif total_degree(eps.vector):
            where = (module_path(eps.node), operation_name(eps.node), source_line(eps.node))
            approximations.append(Approximation(*where, total_degree(eps.vector), eps.eps, relative))
    vectors = tuple(condition.vector for condition in conditions)
    sizes = {name: p.numel() for name, p in graph.parameters.items()}
    chosen = _largest_invariant_set(sizes, vectors)
    bound = {name for vector in vectors for name in vector}
    failed = [condition for condition in conditions if total_degree(condition.vector)]
    outputs = {total_degree(vector) for vector in graph.outputs if vector is not None}
    homogeneous = all(condition.kind == "output" for condition in failed) and len(outputs) <= 1
    return InvarianceReport(
        invariant=not failed,
        degree=next(iter(outputs), Fraction(0)) if homogeneous else None,
        obstructions=tuple(_obstruction(graph, condition) for condition in failed),
        norms=_norm_reports(graph, seen),
        approximations=tuple(approximations),
        alone=tuple(name for name in sizes if name in chosen and name not in bound),
        joint=tuple(tuple(n for n in sizes if n in part) for part in _components(vectors, chosen & bound)),
        rest=tuple(name for name in sizes if name not in chosen),
        rows=tuple(_rows(graph, {condition.node: condition.kind for condition in failed})),
        _parameters=graph.parameters,
        _conditions=vectors,
        _norm_inputs={path: distinct_vectors(degree for _, degree in calls) for path, calls in _norms_by_path(graph).items()},
    )


def _obstruction(graph: Propagation, condition: Condition) -> Obstruction:
    names = tuple(name for name in graph.parameters if name in condition.vector)
    remedy = condition.remedy
    if condition.kind == "output":
        modules = {name.rpartition(".")[0] for name in names}
        remedy = f"Freeze what follows the last norm: {few([n for n in graph.parameters if n.rpartition('.')[0] in modules])}."
    elif condition.kind == "unequal degrees" and not remedy:
        affine = [name for name in names if name in graph.affine]
        biases = [name for name in names if name.rpartition(".")[2].endswith("bias") and name not in graph.affine]
        remedy = (
            f"Freeze the affine parameters of the norms (affine=False): {few(affine)}."
            if affine
            else f"Freeze or remove the bias, or put a norm before it: {few(biases)}."
            if biases
            else "Paths that meet must have passed equally many trainable layers since their last norm: add a norm at the end "
            "of each path, or apply the shortcut's convolution after norm and activation, not on the raw stream."
        )
    degrees = tuple(dict.fromkeys(total_degree(vector) for vector in condition.met))
    node = condition.node
    return Obstruction(condition.kind, module_path(node), operation_name(node), source_line(node), degrees, names, remedy)


def _norm_reports(graph: Propagation, seen: dict[fx.Node, tuple[float, float]]) -> dict[str, NormReport]:
    reports = {}
    for path, calls in _norms_by_path(graph).items():
        nodes, degrees = zip(*calls, strict=True)
        found = {total_degree(vector) for vector in distinct_vectors(degrees)}
        smallest, median = (min(values) for values in zip(*(seen.get(n, (math.nan,) * 2) for n in nodes), strict=True))
        degree = found.pop() if len(found) == 1 else None
        reports[path] = NormReport(operation_name(nodes[0]), degree, _eps_of(nodes[0]), smallest, median)
    return reports


def _norms_by_path(graph: Propagation) -> dict[str, list[tuple[fx.Node, Degree]]]:
    found: dict[str, list[tuple[fx.Node, Degree]]] = {}
    for node, degree in graph.norms:
        found.setdefault(norm_name(node, graph.model), []).append((node, degree))
    return found


def _eps_of(norm: fx.Node) -> float:
    arguments = arguments_of(norm)
    eps = arguments.get("eps")
    return float(eps) if eps is not None else torch.finfo(arguments["input"].meta["val"].dtype).eps


def _rows(graph: Propagation, failed: dict[fx.Node, str]) -> Iterator[Row]:
    for node, taken, given in graph.operations:
        if operation_name(node) not in QUIET or node in failed:
            degree_in = ", ".join(in_words(degree) for degree in taken)
            yield Row(module_path(node), operation_name(node), degree_in, in_words(given), failed.get(node, ""))
    note = next((kind for node, kind in failed.items() if node.op == "output"), "")
    yield Row("output", "", ", ".join(in_words(degree) for degree in graph.outputs), "", "not 0" if note else "")


# ---- linear algebra


def _largest_invariant_set(sizes: Mapping[str, int], conditions: Sequence[Vector]) -> set[str]:
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
    for part in _components(left, chosen):
        mine = [vector for vector in left if not part.isdisjoint(vector)]
        if any(total_degree(vector, part) for vector in mine):
            chosen -= part - _solve(sorted(part), sizes, mine)
    return chosen


def _solve(names: list[str], sizes: Mapping[str, int], conditions: Sequence[Vector]) -> set[str]:
    matrix = np.array([[float(vector.get(name, 0)) for name in names] for vector in conditions])
    cost = -np.array([sizes[name] for name in names], dtype=np.float64) / max(sizes[name] for name in names)
    found = milp(cost, constraints=LinearConstraint(matrix, 0, 0), integrality=1, bounds=(0, 1), options={"mip_rel_gap": 0})
    part = set() if found.x is None else {name for name, value in zip(names, found.x, strict=True) if value > 0.5}
    return set() if any(total_degree(vector, part) for vector in conditions) else part  # the solver works in floating point


def _components(conditions: Iterable[Vector], names: set[str]) -> list[set[str]]:
    """Partition names into sets that no condition links to each other."""
    parts = [{name} for name in sorted(names)]
    for vector in conditions:
        linked = [part for part in parts if not part.isdisjoint(vector)]
        if len(linked) > 1:
            parts = [part for part in parts if part.isdisjoint(vector)] + [set().union(*linked)]
    return parts


# ---- the report


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
    """What :func:`scale_invariance` found.

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
        """Return the parameter groups of a torch.optim.SGD in which :class:`explr.optim.ExpLR` may convert the invariant part.

        The first group is the largest set of parameters that leaves the output as it is when scaled together; the second holds
        the rest (a trainable head, affine parameters) and is marked ``scale_invariant=False``, so that it keeps its learning
        rate and weight decay. A group without parameters is left out.

        Args:
            options: what both groups share: ``lr``, ``weight_decay``, ``momentum``, ...

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
