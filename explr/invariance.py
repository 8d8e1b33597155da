r"""Is a network scale-invariant? A proof by degrees of homogeneity, and Lemma 1 as a numerical check.

:func:`scale_invariance` is Appendix C of Li & Arora (2020) as a program. It follows, through the graph that
:func:`torch.export.export` makes of a model, the power of c with which every tensor grows when the trainable parameters are
multiplied by c > 0. :func:`lemma1` compares gradients at θ and cθ. Neither changes the model.

One c for all parameters would answer yes or no. Here every parameter p has its own factor exp(d_p), so the degree of a tensor
is a vector v, one number per parameter, and the tensor grows by exp(v·d). Wherever an operation is homogeneous only under a
condition (two terms of a sum must grow alike, the input of a GELU must not grow at all), the condition is linear in d and is
collected. What remains is linear algebra: the network is scale-invariant if d = (1, ..., 1) meets every condition; a parameter
is invariant on its own if its unit vector does; a set of parameters is jointly invariant if its indicator does.

"Scale-invariant" is a proof, but for the eps of normalisation layers, whose size is reported. "Not scale-invariant" means that
the rules found an operation where the proof fails; at an operation without a rule the verdict is "undecided".
"""

from __future__ import annotations

import html
import io
import logging
import math
import operator
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.optimize import LinearConstraint, milp
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from explr.errors import ExplrError

Vector = Mapping[str, Fraction]  # parameter name → degree; a name that is missing has degree 0

TINY = 1e-3  # a constant up to this size, added to something that scales, is taken for the eps of a hand-written norm
NEGLIGIBLE = 0.1  # ... provided that it is at most this part of what it is added to


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
    _check_model(model, example_inputs, "scale_invariance")
    with _random_state_kept(model):
        program = _export(model, example_inputs)
        graph = _Propagation(program, model)
        graph.run()
        seen = _measure(program, example_inputs, graph)
    return graph.report(seen)


def lemma1(model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], *batch: Any, factor: float = 2.0) -> Lemma1Report:
    r"""Check Lemma 1 by numbers at the model's weights θ, for c = ``factor``.

    For a scale-invariant loss L the gradient is perpendicular to the weights, ⟨∇L(θ), θ⟩ = 0, and scales inversely,
    ∇L(θ) = c ∇L(cθ). θ holds the parameters that require grad. The model, its buffers and gradients are not touched: both
    gradients are taken on copies, with the same random numbers.

    Args:
        model: any module, in training mode.
        loss_fn: called as ``loss_fn(model(*inputs), target)``; returns a scalar.
        batch: the inputs, and last the target.
        factor: c > 0. A power of two makes cθ exact.

    Raises:
        ExplrError: for a factor that is not positive and finite, a model in eval mode or without trainable parameters, a batch
            that the model or the loss does not accept, a loss that is not a finite scalar.

    >>> norm = nn.LayerNorm(8, elementwise_affine=False)
    >>> model = nn.Sequential(nn.Linear(4, 8, bias=False), norm, nn.Linear(8, 2).requires_grad_(False))
    >>> inputs, labels = torch.randn(16, 4), torch.randint(2, (16,))
    >>> lemma1(model, nn.functional.cross_entropy, inputs, labels).holds()
    True
    >>> model[2].requires_grad_(True)
    Linear(in_features=8, out_features=2, bias=True)
    >>> lemma1(model, nn.functional.cross_entropy, inputs, labels).holds()
    False
    """
    if not (isinstance(factor, int | float) and 0.0 < factor < math.inf):
        raise ExplrError(f"factor={factor!r} must be a positive, finite number; 2.0 scales without rounding.")
    _check_model(model, batch[:-1], "lemma1")
    *inputs, target = batch
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    devices = _cuda_devices(model)
    with _random_state_kept(model), _variances_seen(model) as shares:
        states = torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in devices]
        at_one = _gradients(model, loss_fn, weights, 1.0, inputs, target)
        torch.set_rng_state(states[0])
        for device, state in zip(devices, states[1], strict=True):
            torch.cuda.set_rng_state(state, device)
        at_factor = _gradients(model, loss_fn, weights, float(factor), inputs, target)
    rows = [_compare_gradients(name, weights[name], at_one[name], at_factor[name], factor) for name in weights]
    precision = max(torch.finfo(weight.dtype).eps for weight in weights.values())
    return Lemma1Report(float(factor), tuple(rows), precision, max(shares, default=0.0))


@dataclass(frozen=True)
class GradientRow:
    """One parameter in :func:`lemma1`: inner products and norms, in float64.

    Attributes:
        name: of the parameter.
        inner: ⟨∇L, θ⟩ over this parameter.
        gradient: ‖∇L(θ)‖.
        weight: ‖θ‖.
        difference: ‖∇L(θ) - c ∇L(cθ)‖.
    """

    name: str
    inner: float
    gradient: float
    weight: float
    difference: float

    @property
    def cosine(self) -> float:
        """Cosine of the angle between gradient and weights. Parameters invariant only together have 0 only in the sum."""
        return _ratio(self.inner, self.gradient * self.weight)

    @property
    def gradient_error(self) -> float:
        """Error of the second half of the lemma, relative to this parameter's gradient."""
        return _ratio(self.difference, self.gradient)


@dataclass(frozen=True)
class Lemma1Report:
    """What :func:`lemma1` measured.

    Attributes:
        factor: c.
        rows: one :class:`GradientRow` per parameter.
        precision: spacing of the coarsest parameter dtype at 1.
        eps_share: the largest, over the model's norms, at θ and at cθ, of the median of eps / (variance + eps): how far they
            are from exact.
    """

    factor: float
    rows: tuple[GradientRow, ...]
    precision: float
    eps_share: float

    @property
    def cosine(self) -> float:
        """⟨∇L, θ⟩ / (‖∇L‖ ‖θ‖) over all trainable parameters; 0 where the loss is scale-invariant."""
        return self.total.cosine

    @property
    def gradient_error(self) -> float:
        """‖∇L(θ) - c ∇L(cθ)‖ / ‖∇L(θ)‖ over all trainable parameters; 0 where the loss is scale-invariant."""
        return self.total.gradient_error

    @property
    def total(self) -> GradientRow:
        """All parameters as one vector."""
        norms = (math.hypot(*(getattr(row, key) for row in self.rows)) for key in ("gradient", "weight", "difference"))
        return GradientRow("total", math.fsum(row.inner for row in self.rows), *norms)

    @property
    def tolerance(self) -> float:
        """What rounding and eps may cost the gradient: 10 √(precision + eps_share), and never more than 0.05.

        The square root is there because a relative error of ε in the activations switches about that share of the ReLUs, and
        a share ε of wrong terms is √ε of a norm. In float64 it is 1.5e-7, in float32 3.5e-3; eps = 1e-5 with variances near 1
        makes it 0.03. For a sharp check use float64 and eps = 1e-30. A network that is not scale-invariant is usually off by
        0.1 or more.
        """
        return min(10.0 * math.sqrt(self.precision + self.eps_share), 0.05)

    def holds(self, tol: float | None = None) -> bool:
        """Tell whether both halves hold to ``tol``, by default :attr:`tolerance`."""
        tol = self.tolerance if tol is None else tol
        return abs(self.cosine) <= tol and self.gradient_error <= tol

    def table(self) -> str:
        """Return the numbers as plain text, the parameters at fault marked."""
        return f"{self._verdict()}\n\n{_text_table(*self._table())}"

    def _repr_html_(self) -> str:
        return f"<div><p><strong>{html.escape(self._verdict())}</strong></p>{_html_table(*self._table())}</div>"

    def _verdict(self) -> str:
        verdict = f"Lemma 1 {'holds' if self.holds() else 'FAILS'} at c = {self.factor:g}, tolerance {self.tolerance:.1e}"
        if self.eps_share > 1e-3:
            verdict += (
                f"; eps is {self.eps_share:.0%} of a norm's variances, so even an invariant network is off: use a smaller eps"
            )
        return verdict

    def _table(self) -> tuple[str, list[str], list[list[str]]]:
        allowed = self.tolerance * self.total.gradient
        rows = [
            [row.name, f"{row.cosine:+.1e}", f"{row.gradient_error:.1e}", "FAILS" if not row.difference <= allowed else ""]
            for row in self.rows
        ]
        total = [self.total.name, f"{self.cosine:+.1e}", f"{self.gradient_error:.1e}", "" if self.holds() else "FAILS"]
        return "Lemma 1", ["parameter", "cosine", "gradient error", ""], [*rows, total]


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
            return f"output: degree {degrees} at the output, from {_few(self.parameters)}. {self.remedy}"
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
        """Size of eps relative to the median variance: how far the norm is from exactly scale-invariant."""
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
        """Return the parameter groups of a torch.optim.SGD in which :class:`explr.ExpLR` may convert the invariant part.

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
        return all(_total(condition, names) == 0 for condition in self._conditions)

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
            found = {_total(vector, names) for vector in vectors}
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
        parts += [_text_table(*table) for table in self._tables()]
        return "\n\n".join(filter(None, [*parts, "\n".join(self._parameter_lines())]))

    def _repr_html_(self) -> str:
        """Show the same in a notebook; it takes the page's colours, so it reads on light and dark."""
        items = "".join(f"<li>{html.escape(str(obstruction))}</li>" for obstruction in self.obstructions)
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in self._parameter_lines())
        operations, *others = [_html_table(*table) for table in self._tables()]
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
        lines = [f"invariant on their own: {_few(self.alone, 8)}"] if self.alone else []
        lines += [f"invariant only together: {_few(part, 8)}" for part in self.joint]
        return lines + ([f"not invariant: {_few(self.rest, 8)}"] if self.rest else [])

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


# ---- degrees


@dataclass(frozen=True)
class _Parts:
    """A tensor concatenated of parts that differ in degree.

    A norm that works channel by channel accepts it; any other operation asks that the parts agree.
    """

    axis: int
    parts: tuple[tuple[int, Vector | None], ...]
    node: fx.Node = field(compare=False)


@dataclass(frozen=True)
class _Shifted:
    """A tensor plus one number per channel, a bias, of another degree.

    A norm with statistics per channel takes the bias away again; any other operation asks that the two agree.
    """

    axis: int
    degree: Vector | None
    shift: Vector | None
    node: fx.Node = field(compare=False)


# None is the degree of a constant whose entries are 0 or infinite: scaling does nothing to it, so it goes with any degree.
Degree = Vector | _Parts | _Shifted | None
_CONSTANT: Vector = {}


def _plus(a: Vector | None, b: Vector | None, times: Fraction = Fraction(1)) -> Vector | None:
    """Return a + times * b, the degree of a product; 0 times anything is 0."""
    if a is None or b is None:
        return None
    total = {name: a.get(name, Fraction(0)) + times * b.get(name, Fraction(0)) for name in {**a, **b}}
    return {name: degree for name, degree in total.items() if degree}


def _total(vector: Vector, names: set[str] | None = None) -> Fraction:
    return sum((degree for name, degree in vector.items() if names is None or name in names), Fraction(0))


def _constant(value: Tensor | complex) -> Degree:
    """Return the degree of a constant: none of its own, unless all its entries are 0 or infinite."""
    if isinstance(value, Tensor):
        fixed = value.numel() > 0 and bool(((value == 0) | torch.isinf(value)).all()) if not value.is_meta else False
        return None if fixed and value.dtype != torch.bool else _CONSTANT
    return None if value == 0 or (isinstance(value, float) and math.isinf(value)) else _CONSTANT


def _words(degree: Degree) -> str:
    if isinstance(degree, _Parts):
        return " | ".join(dict.fromkeys(_words(part) for _, part in degree.parts))
    if isinstance(degree, _Shifted):
        return f"{_words(degree.degree)} + {_words(degree.shift)}"
    return "any" if degree is None else str(_total(degree))


# ---- propagation over the graph


@dataclass(frozen=True)
class _Condition:
    """vector · d must be 0; where it comes from, and what to say if it is not."""

    vector: Vector
    kind: str
    node: fx.Node
    met: tuple[Vector, ...]
    remedy: str


@dataclass(frozen=True)
class _Eps:
    """A constant that counts as an eps, and the node of what it is added to."""

    node: fx.Node
    operand: fx.Node
    vector: Vector
    eps: float


class _Propagation:
    """Degrees of every tensor of an exported program, and the conditions under which they hold.

    Degrees belong to storages, not to nodes, so that what is written through a view is seen by the tensor under it.
    """

    def __init__(self, program: ExportedProgram, model: nn.Module) -> None:
        self.program = program
        self.model = model
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.storages: dict[int, Degree] = {}
        self.conditions: list[_Condition] = []
        self.eps: list[_Eps] = []
        self.norms: list[tuple[fx.Node, Degree]] = []
        self.affine: set[str] = set()
        self.operations: list[tuple[fx.Node, list[Degree], Degree]] = []
        self.outputs: list[Vector | None] = []
        self.state: dict[int, fx.Node] = {}  # storages of parameters and buffers
        self.written = _written(program.graph_module)

    def run(self) -> None:
        """Walk the graph in the order of execution."""
        self._inputs()
        self._walk(self.program.graph_module)
        signature = self.program.graph_signature
        for storage in self.state.keys() & self.written:
            node = self.state[storage]
            vector = self.agree(node, [self.storages[storage]])
            if node.name not in signature.inputs_to_parameters:
                self.require(vector, "stored state", node, "Normalise what the buffer keeps.")
        output = next(node for node in self.program.graph.nodes if node.op == "output")
        for value in _nodes(output.args):
            if value.name in signature.user_outputs and isinstance(value.meta.get("val"), Tensor):
                vector = self.agree(output, [self.degree(value)])
                self.outputs.append(vector)
                self.require(vector, "output", output, "")

    def _inputs(self) -> None:
        signature = self.program.graph_signature
        names = {id(p): name for name, p in reversed(list(self.parameters.items()))}
        lifted = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **getattr(signature, "inputs_to_lifted_tensor_constants", {}),
        }
        for node in self.program.graph.nodes:
            if node.op != "placeholder" or not isinstance(node.meta.get("val"), Tensor):
                continue
            degree: Degree = _CONSTANT
            if node.name in lifted:
                tensor = _lookup(self.program, lifted[node.name])
                trainable = names.get(id(tensor)) if tensor is not None else None
                # A norm's own statistics start at 0, but do not stay there.
                statistics = lifted[node.name].rpartition(".")[2] in ("running_mean", "running_var")
                if trainable is not None:
                    degree = {trainable: Fraction(1)}
                elif tensor is not None and not statistics and _storage(node) not in self.written:
                    degree = _constant(tensor)
                self.state[_storage(node)] = node
            self.storages[_storage(node)] = degree

    def _walk(self, module: fx.GraphModule) -> None:
        for node in module.graph.nodes:
            if node.op == "get_attr":
                tensor = _attribute(module, node.target)
                if isinstance(tensor, Tensor) and isinstance(node.meta.get("val"), Tensor):
                    self.storages[_storage(node)] = _constant(tensor)
            elif node.op == "call_function":
                self._call(module, node)

    def _call(self, module: fx.GraphModule, node: fx.Node) -> None:
        if str(node.target) in _WRAPPERS:
            self._inline(module, node)
            return
        outs = _tensors(node)
        if node.target is operator.getitem or (not outs and not isinstance(node.target, torch._ops.OpOverload)):
            return  # one of several outputs, which share its storage; or arithmetic on sizes
        call = _Call(self, node)
        taken = [self.degree(arg) for arg in _shown(call, self.state)]
        result = call.apply(_RULES.get(call.operation, _unknown))
        results = result if isinstance(result, list) else [result] * len(outs)
        shown: Degree = _CONSTANT
        for index, (out, degree) in enumerate(zip(outs, results, strict=False)):
            if not (out.dtype.is_floating_point or out.dtype.is_complex):
                if out.dtype != torch.bool:  # x.bool() asks whether x is 0, at every scale; x.int() rounds
                    self.require(self.agree(node, [degree]), "nonlinear", node, _SMOOTH)
                degree = _CONSTANT
            held = self._write(call, out, degree)
            shown = held if index == 0 else shown
        if any(out.dtype.is_floating_point for out in outs):
            self.operations.append((node, taken, shown))

    def _inline(self, module: fx.GraphModule, node: fx.Node) -> None:
        """Walk a region under no_grad or autocast, whose nodes share our storages."""
        graph = next(arg for arg in node.args if isinstance(arg, fx.Node) and arg.op == "get_attr")
        inner = _attribute(module, graph.target)
        holes = [hole for hole in inner.graph.nodes if hole.op == "placeholder"]
        for hole, argument in zip(holes, node.args[node.args.index(graph) + 1 :], strict=False):
            if isinstance(hole.meta.get("val"), Tensor):
                self.storages.setdefault(_storage(hole), self.degree(argument))
        self._walk(inner)
        results = next(_nodes(n.args) for n in inner.graph.nodes if n.op == "output")
        for out, result in zip(_tensors(node), results, strict=False):
            self.storages.setdefault(_key(out), self.degree(result))

    def _write(self, call: _Call, out: Tensor, degree: Degree) -> Degree:
        key = _key(out)
        if key not in self.storages or (call.mutates and _whole(out)):
            self.storages[key] = degree
        elif call.mutates:  # part of a tensor was overwritten: the rest keeps its degree, so the two must agree
            self.storages[key] = self.agree(call.node, [self.storages[key], degree])
        return self.storages[key]

    def degree(self, arg: Any) -> Degree:
        """Return the degree of an argument of a node: a tensor's, or a number's."""
        if isinstance(arg, fx.Node):
            value = arg.meta.get("val")
            return self.storages.get(_key(value), _CONSTANT) if isinstance(value, Tensor) else _CONSTANT
        return _constant(arg) if isinstance(arg, int | float | complex) else _CONSTANT

    def agree(self, node: fx.Node, degrees: Iterable[Degree], remedy: str = "") -> Vector | None:
        """Return the common degree, on the condition that all are equal."""
        vectors = [vector for vector in map(self._one, degrees) if vector is not None]
        for vector in vectors[1:]:
            difference = _plus(vectors[0], vector, Fraction(-1))
            self.require(difference, "unequal degrees", node, remedy, (vectors[0], vector))
        return vectors[0] if vectors else None

    def _one(self, degree: Degree) -> Vector | None:
        """Return the one degree of a tensor; if its parts differ, the operation that put them together is at fault."""
        if isinstance(degree, _Parts):
            return self.agree(degree.node, [vector for _, vector in degree.parts])
        if isinstance(degree, _Shifted):
            return self.agree(degree.node, [degree.degree, degree.shift])
        return degree

    def require(
        self, vector: Vector | None, kind: str, node: fx.Node, remedy: str, met: tuple[Vector, ...] | None = None
    ) -> None:
        """Collect the condition vector · d = 0."""
        if vector:
            condition = _Condition(vector, kind, node, met if met is not None else (vector,), remedy)
            if not any(c.node is node and c.vector == vector for c in self.conditions[-200:]):
                self.conditions.append(condition)

    # -- the report

    def report(self, seen: dict[fx.Node, tuple[float, float]]) -> InvarianceReport:
        """Solve the conditions and put the findings into words."""
        conditions = list(self.conditions)
        approximations = []
        for eps in self.eps:
            relative = eps.eps / seen[eps.node][1] if seen.get(eps.node, (0.0, 0.0))[1] else math.inf
            if relative > NEGLIGIBLE:
                remedy = f"The constant {eps.eps:g} is {relative:.2g} of what it is added to: too much to be an eps."
                conditions.append(_Condition(eps.vector, "unequal degrees", eps.node, (eps.vector, _CONSTANT), remedy))
            elif _total(eps.vector):
                where = (_path(eps.node), _operation(eps.node), _source(eps.node))
                approximations.append(Approximation(*where, _total(eps.vector), eps.eps, relative))
        vectors = tuple(condition.vector for condition in conditions)
        sizes = {name: p.numel() for name, p in self.parameters.items()}
        chosen = _largest_invariant_set(sizes, vectors)
        bound = {name for vector in vectors for name in vector}
        failed = [condition for condition in conditions if _total(condition.vector)]
        outputs = {_total(vector) for vector in self.outputs if vector is not None}
        homogeneous = all(condition.kind == "output" for condition in failed) and len(outputs) <= 1
        return InvarianceReport(
            invariant=not failed,
            degree=next(iter(outputs), Fraction(0)) if homogeneous else None,
            obstructions=tuple(self._obstruction(condition) for condition in failed),
            norms=self._norm_reports(seen),
            approximations=tuple(approximations),
            alone=tuple(name for name in sizes if name in chosen and name not in bound),
            joint=tuple(tuple(n for n in sizes if n in part) for part in _components(vectors, chosen & bound)),
            rest=tuple(name for name in sizes if name not in chosen),
            rows=tuple(self._rows({condition.node: condition.kind for condition in failed})),
            _parameters=self.parameters,
            _conditions=vectors,
            _norm_inputs={path: _flat(degrees) for path, degrees in self._norms_by_path().items()},
        )

    def _obstruction(self, condition: _Condition) -> Obstruction:
        names = tuple(name for name in self.parameters if name in condition.vector)
        remedy = condition.remedy
        if condition.kind == "output":
            modules = {name.rpartition(".")[0] for name in names}
            remedy = (
                f"Freeze what follows the last norm: {_few([n for n in self.parameters if n.rpartition('.')[0] in modules])}."
            )
        elif condition.kind == "unequal degrees" and not remedy:
            affine = [name for name in names if name in self.affine]
            biases = [name for name in names if name.rpartition(".")[2].endswith("bias") and name not in self.affine]
            remedy = (
                f"Freeze the affine parameters of the norms (affine=False): {_few(affine)}."
                if affine
                else f"Freeze or remove the bias, or put a norm before it: {_few(biases)}."
                if biases
                else "Paths that meet must have passed equally many trainable layers since their last norm: add a norm on the "
                "shortcut, or apply the shortcut's convolution after norm and activation, not on the raw stream."
            )
        degrees = tuple(dict.fromkeys(_total(vector) for vector in condition.met))
        node = condition.node
        return Obstruction(condition.kind, _path(node), _operation(node), _source(node), degrees, names, remedy)

    def _norms_by_path(self) -> dict[str, list[Degree]]:
        found: dict[str, list[Degree]] = {}
        for node, degree in self.norms:
            found.setdefault(_norm_name(node, self.model), []).append(degree)
        return found

    def _norm_reports(self, seen: dict[fx.Node, tuple[float, float]]) -> dict[str, NormReport]:
        reports = {}
        nodes_of: dict[str, list[fx.Node]] = {}
        for node, _ in self.norms:
            nodes_of.setdefault(_norm_name(node, self.model), []).append(node)
        for path, degrees in self._norms_by_path().items():
            nodes = nodes_of[path]
            found = {_total(vector) for vector in _flat(degrees)}
            smallest, median = (min(values) for values in zip(*(seen.get(n, (math.nan,) * 2) for n in nodes), strict=True))
            degree = found.pop() if len(found) == 1 else None
            reports[path] = NormReport(_operation(nodes[0]), degree, _eps_of(_Call(self, nodes[0])), smallest, median)
        return reports

    def _rows(self, failed: dict[fx.Node, str]) -> Iterator[Row]:
        for node, taken, given in self.operations:
            if _operation(node) not in _QUIET or node in failed:
                degree_in = ", ".join(_words(degree) for degree in taken)
                yield Row(_path(node), _operation(node), degree_in, _words(given), failed.get(node, ""))
        note = next((kind for node, kind in failed.items() if node.op == "output"), "")
        yield Row("output", "", ", ".join(_words(degree) for degree in self.outputs), "", "not 0" if note else "")


class _Call:
    """One call of an ATen operation: its arguments by name, and their degrees."""

    def __init__(self, graph: _Propagation, node: fx.Node) -> None:
        self.graph = graph
        self.node = node
        self.operation = _operation(node)
        self.arguments: dict[str, Any] = {}
        self.names: list[str] = []
        self.consulted: set[str] = set()
        self.mutates = False
        if isinstance(node.target, torch._ops.OpOverload):
            schema = node.target._schema
            self.mutates = schema.is_mutable
            self.names = [argument.name for argument in schema.arguments]
            self.arguments = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
            self.arguments |= dict(zip(self.names, node.args, strict=False))
            self.arguments |= node.kwargs

    def __getitem__(self, name: str) -> Any:
        self.consulted.add(name)
        return self.arguments.get(name)

    def apply(self, rule: Rule) -> Degree | list[Degree]:
        """Apply a rule; whatever it did not look at must not scale, so that an overload it does not know is no false proof."""
        result = rule(self)
        if rule not in _INDIFFERENT and not self.operation.endswith("_as"):
            left = [value for name, value in self.arguments.items() if name not in self.consulted and name != "out"]
            for argument in _nodes(left):
                self.require(self.agree([argument]), "unknown operation", _BY_NUMBERS)
        return result

    @property
    def first(self) -> str:
        """Name of the first argument."""
        return self.names[0]

    def raw(self, name: str) -> Degree:
        """Return the degree of an argument, in parts if need be."""
        return self.graph.degree(self[name])

    def degree(self, name: str) -> Vector | None:
        """Return the one degree of an argument."""
        return self.agree([self[name]])

    def agree(self, arguments: Iterable[Any], remedy: str = "") -> Vector | None:
        """Return the one degree of several arguments."""
        return self.graph.agree(self.node, [self.graph.degree(argument) for argument in arguments], remedy)

    def join(self, degree: Degree, name: str) -> Vector | None:
        """Return the degree of a sum with an optional argument, such as a bias."""
        degrees = [degree] if self[name] is None else [degree, self.raw(name)]
        return self.graph.agree(self.node, degrees)

    def require(self, vector: Vector | None, kind: str, remedy: str) -> None:
        """Ask that something does not scale."""
        self.graph.require(vector, kind, self.node, remedy)


# ---- rules: how an operation's degree follows from its arguments'


def _norm(call: _Call) -> Degree:
    """As _same, but for the 0-norm, which counts."""
    order = call["ord"] if "ord" in call.arguments else call["p"]
    degree = call.degree(call.first)
    return _CONSTANT if order == 0 else degree


def _same(call: _Call) -> Degree:
    """Homogeneous of degree 1 in its first argument."""
    return call.degree(call.first)


def _channelwise(call: _Call) -> Degree:
    """As _same, and works on each channel alone, so that parts of different degree stay apart."""
    degree = call.raw(call.first)
    if isinstance(degree, _Shifted):
        return call.degree(call.first)
    if isinstance(degree, _Parts):
        spatial = re.search(r"([123])d", call.operation)
        if degree.axis >= call[call.first].meta["val"].ndim - (int(spatial[1]) if spatial else 0):
            return call.degree(call.first)
    return degree


def _values_and_indices(call: _Call) -> Degree | list[Degree]:
    if call["other"] is not None:
        return call.agree([call["self"], call["other"]])
    return [call.degree(call.first), _CONSTANT, _CONSTANT]


def _power(*exponents: Fraction | int) -> Callable[[_Call], list[Degree]]:
    """Outputs that are homogeneous of these degrees in the first argument."""

    def rule(call: _Call) -> list[Degree]:
        degree = call.degree(call.first)
        # 1 / 0 is infinite, which has no degree of its own either.
        return [_plus(_CONSTANT, degree, Fraction(exponent)) for exponent in exponents]

    return rule


def _pow(call: _Call) -> Degree:
    base, exponent = call["self"], call["exponent"]
    if isinstance(base, fx.Node) and isinstance(exponent, int | float):
        if exponent == 0:
            return _CONSTANT
        return _plus(_CONSTANT, call.degree("self"), Fraction(exponent).limit_denominator(10**6))
    return _nonlinear(call)


def _prod(call: _Call) -> Degree:
    terms = call[call.first].meta["val"].numel() // max(_tensors(call.node)[0].numel(), 1)
    return _plus(_CONSTANT, call.degree(call.first), Fraction(terms))


def _product(*factors: str, plus: str = "") -> Callable[[_Call], Degree]:
    """Multilinear in the factors, plus one more term."""

    def rule(call: _Call) -> Degree:
        total: Vector | None = _CONSTANT
        for name in factors:
            arguments = call[name] if isinstance(call[name], list | tuple) else [call[name]]
            for argument in arguments:
                total = _plus(total, call.agree([argument])) if argument is not None else total
        if not plus or (call[plus] is not None and call["beta"] == 0):
            return total
        if plus == "bias" and call["bias"] is not None and (shift := call.degree("bias")) is not None and shift != total:
            ndim = call.node.meta["val"].ndim
            spatial = re.search(r"conv.*([123])d", call.operation)
            return _Shifted(ndim - (int(spatial[1]) if spatial else 0) - 1, total, shift, call.node)
        return call.join(total, plus)

    return rule


def _divide(call: _Call) -> Degree:
    if call["rounding_mode"] is not None:
        return _nonlinear(call)
    return _plus(call.degree("self"), _zero_as_constant(call.degree("other")), Fraction(-1))


def _addcdiv(call: _Call) -> Degree:
    ratio = _plus(call.degree("tensor1"), _zero_as_constant(call.degree("tensor2")), Fraction(-1))
    return call.join(ratio, "self")


def _zero_as_constant(degree: Vector | None) -> Vector:
    return _CONSTANT if degree is None else degree


def _sum(*names: str) -> Callable[[_Call], Degree]:
    """Terms that must grow alike; a tiny constant among them counts as an eps."""

    def rule(call: _Call) -> Degree:
        arguments = [call[name] for name in names if call[name] is not None]
        numbers = [a for a in arguments if isinstance(a, int | float) and not isinstance(a, bool)]
        tensors = [a for a in arguments if isinstance(a, fx.Node)]
        if len(numbers) == len(tensors) == 1:
            size = abs(numbers[0] * (call["alpha"] if isinstance(call["alpha"], int | float) else 1))
            vector = call.agree(tensors)
            if vector and 0 < size <= TINY:
                call.graph.eps.append(_Eps(call.node, tensors[0], vector, size))
                return vector
        return call.agree(arguments)

    return rule


def _concatenate(call: _Call) -> Degree:
    """Parts of different degree are put side by side: whether that matters, the next operation decides."""
    tensors = call["tensors"]
    values = [tensor.meta["val"] for tensor in tensors]
    tensors = [tensor for tensor, value in zip(tensors, values, strict=True) if value.shape != (0,)]
    axis = (call["dim"] or 0) % values[0].ndim
    parts: list[tuple[int, Vector | None]] = []
    for tensor in tensors:
        degree = call.graph.degree(tensor)
        size = int(tensor.meta["val"].shape[axis])
        same = isinstance(degree, _Parts) and degree.axis == axis
        parts += degree.parts if isinstance(degree, _Parts) and same else [(size, call.agree([tensor]))]
    merged = list(dict.fromkeys(frozenset(part.items()) for _, part in parts if part is not None))
    if len(merged) <= 1:
        return dict(merged[0]) if merged else None
    return _Parts(axis, tuple(parts), call.node)


def _stack(call: _Call) -> Degree:
    return call.agree(call["tensors"])


def _where(call: _Call) -> Degree:
    if "other" not in call.arguments:
        return _CONSTANT
    call.require(call.degree("condition"), "nonlinear", _SMOOTH)
    return call.agree([call["self"], call["other"]])


def _scatter(call: _Call) -> Degree:
    if call["reduce"] in ("prod", "multiply"):
        return _nonlinear(call)
    return call.agree(a for a in (call[name] for name in ("self", "src", "source", "value", "values")) if a is not None)


def _pad(call: _Call) -> Degree:
    if call["mode"] not in (None, "constant"):
        return call.degree("self")
    return call.agree([call["self"], call["value"] if call["value"] is not None else 0])


def _clamp(call: _Call) -> Degree:
    """Bounds at 0 or infinity are cones; a tiny lower bound is an eps."""
    if isinstance(call["min"], int | float) and call["max"] is None:
        return _sum("self", "min")(call)
    return call.agree(a for a in (call["self"], call["min"], call["max"]) if a is not None)


def _interpolate(call: _Call) -> Degree:
    """Linear in the first argument; where it looks, given by the second, must not move."""
    call.require(call.degree("grid"), "nonlinear", _SMOOTH)
    return call.degree("input")


def _lerp(call: _Call) -> Degree:
    call.require(call.degree("weight"), "nonlinear", _SMOOTH)
    return call.agree([call["self"], call["end"]])


def _prelu(call: _Call) -> Degree:
    call.require(call.degree("weight"), "nonlinear", "Freeze the slope.")
    return call.degree("self")


def _threshold(call: _Call) -> Degree:
    return call.agree([call["self"], call["threshold"], call["value"]])


def _copy(call: _Call) -> Degree:
    return call.degree("src")


def _fill(call: _Call) -> Degree:
    return call.raw("value") if "value" in call.arguments else call.raw("fill_value")


def _free(call: _Call) -> Degree:
    """Zeros, or memory that is yet to be written."""
    return None


def _fixed(call: _Call) -> Degree:
    """Does not depend on the scale: a sign, an index, a random number."""
    return _CONSTANT


def _random(call: _Call) -> Degree:
    """Overwrite a tensor with random numbers; where a tensor says how they are distributed, that one must not scale."""
    in_place = call.mutates and not any(isinstance(argument, fx.Node) for argument in call.node.args[1:])
    return _CONSTANT if in_place else _nonlinear(call)


def _compare(call: _Call) -> Degree:
    call.agree([call["self"], call["other"]], "Compare with 0, or with something that scales alike.")
    return _CONSTANT


def _normalise(call: _Call) -> Degree | list[Degree]:
    """Degree 0 whatever comes in, then scale and shift by the affine parameters."""
    x = call.raw("input")
    if isinstance(x, _Parts | _Shifted) and not (call.operation in _PER_CHANNEL and x.axis == 1):
        x = call.degree("input")
    training = call["training"] if "training" in call.arguments else call["use_input_stats"]
    if training is False or "no_training" in call.operation:
        call.require(call.degree("input"), "stored statistics", "Put the norm in training mode: module.train().")
    call.graph.norms.append((call.node, x))
    for name in ("weight", "bias"):
        if isinstance(call[name], fx.Node):
            call.graph.affine |= set(_zero_as_constant(call.degree(name)))
    scale = _CONSTANT if call["weight"] is None else call.degree("weight")
    return [call.join(scale, "bias"), *[_CONSTANT] * (len(_tensors(call.node)) - 1)]


def _weight_norm(call: _Call) -> list[Degree]:
    """Return the degree of g · v / ‖v‖: that of g, whatever v."""
    return [call.degree("g"), call.degree("v")]


def _cosine_similarity(call: _Call) -> Degree:
    for name in ("x1", "x2"):
        vector = call.degree(name)
        if vector:
            call.graph.eps.append(_Eps(call.node, call[name], vector, float(call["eps"])))
    return _CONSTANT


def _attention(call: _Call) -> list[Degree]:
    """Linear in the values; the scores, products of queries and keys, go through a softmax."""
    scores = _plus(call.degree("query"), call.degree("key"))
    call.require(
        scores, "nonlinear", "Normalise queries and keys without trainable affine (QK norm), or freeze their projections."
    )
    if isinstance(call["attn_mask"], fx.Node):
        call.require(call.degree("attn_mask"), "nonlinear", "Freeze the attention bias.")
    return [call.degree("value"), *[_CONSTANT] * (len(_tensors(call.node)) - 1)]


def _nonlinear(call: _Call) -> Degree:
    """Not homogeneous: fine only where nothing that comes in scales."""
    return _insist(call, "nonlinear", _SMOOTH)


def _unknown(call: _Call) -> Degree:
    """Whatever it does, it gives the same for the same arguments."""
    if call.mutates:  # zeros may be zeros no more
        for node in _nodes((call.node.args, call.node.kwargs)):
            if isinstance(node.meta.get("val"), Tensor) and call.graph.degree(node) is None:
                call.graph.storages[_storage(node)] = _CONSTANT
    return _insist(call, "unknown operation", _BY_NUMBERS)


def _insist(call: _Call, kind: str, remedy: str) -> Degree:
    call.consulted |= call.arguments.keys()
    for argument in _nodes((call.node.args, call.node.kwargs)):
        call.require(call.agree([argument]), kind, remedy)
    return _CONSTANT


_SMOOTH = "Put a norm without trainable affine before it, freeze the parameters that scale it, or use ReLU."
_BY_NUMBERS = "Check it by numbers with explr.lemma1, or write it in operations that have a rule."
_INDIFFERENT = (_fixed, _free, _fill, _copy, _random)  # rules for operations that do not care what was there before
_WRAPPERS = ("wrap_with_set_grad_enabled", "wrap_with_autocast")
_PER_CHANNEL = (
    "batch_norm", "instance_norm", "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_functional",
    "_batch_norm_with_update", "_batch_norm_with_update_functional", "cudnn_batch_norm", "miopen_batch_norm",
)  # fmt: skip

_VIEWS = """
    view reshape flatten unflatten permute transpose t swapaxes swapdims movedim moveaxis numpy_T mT mH matrix_H adjoint
    squeeze unsqueeze expand expand_as broadcast_to view_as reshape_as select slice narrow chunk split split_with_sizes
    unsafe_chunk unsafe_split unsafe_split_with_sizes tensor_split hsplit vsplit unbind diagonal as_strided _unsafe_view
    _reshape_alias view_copy permute_copy expand_copy slice_copy select_copy alias_copy t_copy unsqueeze_copy squeeze_copy
    transpose_copy lift_fresh lift_fresh_copy lift alias detach real imag view_as_real view_as_complex resolve_conj
    resolve_neg conj contiguous clone to _to_copy type_as dropout feature_dropout native_dropout
"""
_LINEAR = """
    repeat repeat_interleave tile index _unsafe_index index_select gather take take_along_dim masked_select roll flip fliplr
    flipud rot90 tril triu diag diag_embed unfold im2col col2im pixel_shuffle pixel_unshuffle channel_shuffle
    native_channel_shuffle sum mean nansum nanmean cumsum trace amax amin aminmax std norm linalg_vector_norm linalg_norm
    linalg_matrix_norm frobenius_norm quantile nanquantile reflection_pad1d reflection_pad2d reflection_pad3d
    replication_pad1d replication_pad2d replication_pad3d upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa
    _upsample_bicubic2d_aa fft_fft fft_ifft fft_rfft fft_irfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_fftn fft_ifftn
    fft_rfftn fft_irfftn
"""
_CHANNELWISE = """
    relu leaky_relu rrelu abs neg negative positive dropout feature_dropout contiguous clone to _to_copy detach alias
    max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d
"""
_WITH_INDICES = """
    max min median nanmedian mode sort topk kthvalue cummax cummin native_dropout max_pool1d_with_indices
    max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
"""
_DISCRETE = """
    sign sgn signbit argmax argmin argsort isnan isinf isfinite logical_not logical_and logical_or logical_xor any all
    nonzero count_nonzero ones_like rand_like randn_like randint_like new_ones sym_size sym_numel sym_stride
    sym_storage_offset size numel _assert_scalar _assert_async _assert_tensor_metadata _functional_assert_async
    sym_constrain_range
"""
_NONLINEAR = """
    gelu silu sigmoid tanh exp exp2 expm1 log log2 log10 log1p softmax _softmax log_softmax _log_softmax softmin logsumexp
    logcumsumexp hardswish hardsigmoid hardtanh mish softplus elu selu celu log_sigmoid logsigmoid erf erfc erfinv sin cos
    tan asin acos atan sinh cosh asinh acosh atanh softshrink hardshrink glu alpha_dropout feature_alpha_dropout floor ceil
    round trunc frac remainder fmod logit lstm gru rnn_tanh rnn_relu cumprod multinomial cross_entropy_loss nll_loss
    nll_loss_nd nll_loss_forward binary_cross_entropy binary_cross_entropy_with_logits mse_loss l1_loss smooth_l1_loss
    huber_loss kl_div relu6 floor_divide logaddexp logaddexp2 cdist _cdist_forward pairwise_distance local_response_norm
"""

_ZEROS = " zeros zeros_like new_zeros zero empty empty_like new_empty empty_strided new_empty_strided empty_permuted "

Rule = Callable[[_Call], Degree | list[Degree]]


def _table(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


# Keyed by the name of the ATen operation without the underscore of its in-place variant; the overload does not matter.
_RULES: dict[str, Rule] = {
    **_table(_same, _VIEWS + _LINEAR),
    **_table(_norm, "norm linalg_vector_norm linalg_norm"),
    **_table(_channelwise, _CHANNELWISE),
    **_table(_values_and_indices, _WITH_INDICES),
    **_table(_nonlinear, _NONLINEAR),
    **_table(_fixed, _DISCRETE),
    **_table(
        _free, "zeros zeros_like new_zeros empty empty_like new_empty empty_strided new_empty_strided empty_permuted zero"
    ),
    **_table(_random, "bernoulli uniform normal random exponential geometric cauchy log_normal"),
    **_table(_fill, "fill full full_like new_full scalar_tensor"),
    **_table(_compare, "eq ne lt le gt ge equal greater greater_equal less less_equal not_equal atan2 arctan2"),
    **_table(
        _product("input", "weight", plus="bias"),
        "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution _convolution",
    ),
    **_table(_product("input1", "input2", "weight", plus="bias"), "bilinear"),
    **_table(_product("self", "other"), "mul multiply matmul vdot inner kron tensordot cross linalg_cross"),
    **_table(_product("input", "other"), "linalg_matmul"),
    **_table(_product("x", "y"), "linalg_vecdot"),
    **_table(_product("self", "mat2"), "mm bmm"),
    **_table(_product("self", "vec"), "mv"),
    **_table(_product("self", "tensor"), "dot"),
    **_table(_product("self", "vec2"), "outer ger"),
    **_table(_product("tensors"), "einsum linalg_multi_dot"),
    **_table(_product("mat1", "mat2", plus="self"), "addmm"),
    **_table(_product("mat", "vec", plus="self"), "addmv"),
    **_table(_product("vec1", "vec2", plus="self"), "addr"),
    **_table(_product("batch1", "batch2", plus="self"), "baddbmm addbmm"),
    **_table(_product("tensor1", "tensor2", plus="self"), "addcmul"),
    **_table(_product("weight", "per_sample_weights"), "embedding embedding_bag _embedding_bag"),
    **_table(_divide, "div divide true_divide"),
    **_table(_addcdiv, "addcdiv"),
    **_table(_power(Fraction(1, 2)), "sqrt"),
    **_table(_power(Fraction(-1, 2)), "rsqrt"),
    **_table(_power(-1), "reciprocal"),
    **_table(_power(2), "square var"),
    **_table(_power(2, 1), "var_mean"),
    **_table(_power(1, 1), "std_mean"),
    **_table(_pow, "pow"),
    **_table(_prod, "prod"),
    **_table(_sum("self", "other"), "add sub subtract rsub maximum minimum fmax fmin hypot"),
    **_table(_concatenate, "cat concat concatenate"),
    **_table(_stack, "stack hstack vstack dstack column_stack row_stack block_diag"),
    **_table(_where, "where"),
    **_table(
        _scatter,
        "masked_fill masked_scatter index_put _unsafe_index_put _index_put_impl index_copy index_add index_fill scatter "
        "scatter_add scatter_reduce select_scatter slice_scatter diagonal_scatter",
    ),
    **_table(_pad, "pad constant_pad_nd"),
    **_table(_clamp, "clamp clip clamp_min clamp_max"),
    **_table(_lerp, "lerp"),
    **_table(_interpolate, "grid_sampler grid_sampler_2d grid_sampler_3d"),
    **_table(_prelu, "prelu _prelu_kernel"),
    **_table(_threshold, "threshold"),
    **_table(_copy, "copy"),
    **_table(
        _normalise,
        " ".join(_PER_CHANNEL)
        + " _native_batch_norm_legit_no_training layer_norm native_layer_norm group_norm native_group_norm "
        "rms_norm _fused_rms_norm",
    ),
    **_table(_weight_norm, "_weight_norm _weight_norm_interface"),
    **_table(_cosine_similarity, "cosine_similarity"),
    **_table(
        _attention,
        "scaled_dot_product_attention _scaled_dot_product_attention_math _scaled_dot_product_flash_attention "
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention "
        "_scaled_dot_product_cudnn_attention",
    ),
}
# Operations that the table of a report leaves out, because nothing happens to a degree in them.
_QUIET = frozenset((_VIEWS + _DISCRETE + _ZEROS + "copy fill full full_like new_full scalar_tensor").split())


# ---- the graph


def _check_model(model: Any, inputs: Sequence[Any], function: str) -> None:
    if not isinstance(model, nn.Module):
        raise ExplrError(f"{function} takes a torch.nn.Module, not {type(model).__name__}.")
    if not inputs:
        raise ExplrError(
            f"{function} needs inputs to run the model on: {function}(model, torch.randn(2, 3, 32, 32)), for example."
        )
    if not model.training:
        raise ExplrError(
            f"{type(model).__name__} is in eval mode, where norms use stored statistics, which do not scale with the weights. "
            "Call model.train(); its running statistics stay as they are."
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ExplrError(f"no parameter of {type(model).__name__} requires grad, so none would scale. Unfreeze what you train.")


@contextmanager
def _random_state_kept(model: nn.Module) -> Iterator[None]:
    with torch.random.fork_rng(devices=_cuda_devices(model)):
        yield


def _cuda_devices(model: nn.Module) -> list[int]:
    return sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})


def _export(model: nn.Module, inputs: tuple[Any, ...]) -> ExportedProgram:
    logged = logging.root.manager.disable
    logging.disable(logging.ERROR)  # pages about what the exception says in a line
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")  # of torch.export, about modules that set attributes; it puts them back
            return torch.export.export(model, inputs, strict=False)
    except Exception as error:
        _run(model, dict(model.named_parameters()), inputs, "example inputs")  # does the model run at all?
        raise ExplrError(
            f"torch.export cannot trace {type(model).__name__}: {_first_line(error)}. Rewrite what depends on the values of "
            "tensors, or use explr.lemma1, which needs no graph."
        ) from error
    finally:
        logging.disable(logged)


def _run(model: nn.Module, parameters: Mapping[str, Tensor], inputs: Sequence[Any], what: str) -> Any:
    """Call the model with other parameters and copies of its buffers, so that it stays as it is."""
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    inputs = tuple(x.detach().clone() if isinstance(x, Tensor) else x for x in inputs)
    try:
        return functional_call(model, {**parameters, **buffers}, inputs)
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in inputs)
        raise ExplrError(f"{type(model).__name__} does not run on {what} {shapes}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _lookup(program: ExportedProgram, name: str) -> Tensor | None:
    value = program.state_dict.get(name, program.constants.get(name))
    return value if isinstance(value, Tensor) else None


def _attribute(module: fx.GraphModule, path: Any) -> Any:
    value: Any = module
    for name in str(path).split("."):
        value = getattr(value, name)
    return value


def _nodes(tree: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(tree, found.append)
    return found


def _tensors(node: fx.Node) -> list[Tensor]:
    value = node.meta.get("val")
    values = value if isinstance(value, list | tuple) else [value]
    return [value for value in values if isinstance(value, Tensor)]


def _key(tensor: Tensor) -> int:
    """Identify a storage; the graph keeps its (fake) tensors alive, so no two share a key by chance."""
    return int(tensor.untyped_storage()._cdata)


def _storage(node: fx.Node) -> int:
    return _key(node.meta["val"])


def _whole(tensor: Tensor) -> bool:
    """Tell whether a tensor covers its storage."""
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes() and 0 not in tensor.stride()


def _written(module: fx.GraphModule) -> set[int]:
    """Return the storages that some operation writes into."""
    found = set()
    for node in module.graph.nodes:
        if node.op == "get_attr" and isinstance(inner := _attribute(module, node.target), fx.GraphModule):
            found |= _written(inner)
        elif isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            found |= {_key(tensor) for tensor in _tensors(node)}
    return found


def _operation(node: fx.Node) -> str:
    if not isinstance(node.target, torch._ops.OpOverload):
        return str(node.name if node.op != "call_function" else getattr(node.target, "__name__", node.target))
    namespace, name = node.target._schema.name.split("::")
    name = name.removesuffix("_") if node.target._schema.is_mutable else name
    return name if namespace == "aten" else f"{namespace}::{name}"


def _path(node: fx.Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def _norm_name(node: fx.Node, model: nn.Module) -> str:
    """Name a norm by its module; one that is called as a function, by the module that calls it and by its node."""
    path = _path(node)
    return path if hasattr(model.get_submodule(path), "eps") else f"{path}:{node.name}".lstrip(":")


def _source(node: fx.Node) -> str:
    """Return the innermost line of the trace that is not torch's own."""
    torch_folder = os.path.dirname(torch.__file__)
    frames = re.findall(r'File "(.+?)", line (\d+), in .*\n\s*(.*)', node.meta.get("stack_trace") or "")
    for file, number, text in reversed(frames):
        if not file.startswith(torch_folder):
            name = "cell" if "ipykernel" in file else os.path.basename(file)  # a cell's file has another name in every session
            return f"{name}:{number}: {text.strip()}"
    return ""


def _shown(call: _Call, state: Mapping[int, fx.Node]) -> list[fx.Node]:
    """Return the operands whose degrees a reader wants to see: the activations, or the parameters if there are no others."""
    operands = [node for node in _nodes((call.node.args, call.node.kwargs)) if isinstance(node.meta.get("val"), Tensor)]
    operands = [node for node in operands if node.meta["val"].dtype.is_floating_point]
    return [node for node in operands if _storage(node) not in state] or operands


# ---- what the example inputs show


def _measure(program: ExportedProgram, inputs: tuple[Any, ...], graph: _Propagation) -> dict[fx.Node, tuple[float, float]]:
    """Run the graph once; return smallest and median size of what each eps is added to."""
    wanted: _Wanted = {node: _variances(_operation(node)) for node, _ in graph.norms}
    wanted |= {eps.node: _magnitude(_argument_name(graph, eps)) for eps in graph.eps}
    if not wanted:
        return {}
    lifted = {
        **program.graph_signature.inputs_to_parameters,
        **program.graph_signature.inputs_to_buffers,
        **getattr(program.graph_signature, "inputs_to_lifted_tensor_constants", {}),
    }
    leaves = iter(tree_leaves((inputs, {})))
    values = []
    for node in program.graph.nodes:
        if node.op == "placeholder":
            value = _lookup(program, lifted[node.name]) if node.name in lifted else next(leaves)
            keep = node.name in program.graph_signature.inputs_to_parameters and _storage(node) not in graph.written
            values.append(value if keep or not isinstance(value, Tensor) else value.detach().clone())
    seen: dict[fx.Node, tuple[float, float]] = {}
    try:
        with torch.no_grad():
            _Observer(program.graph_module, wanted, seen).run(*values)
    except Exception as error:
        raise ExplrError(f"the model does not run on the example inputs: {_first_line(error)}") from error
    return seen


_Wanted = dict[fx.Node, Callable[[dict[str, Any]], Tensor]]  # node → what to look at, given its arguments


class _Observer(fx.Interpreter):
    """Runs a graph, and looks at the arguments of some of its nodes."""

    def __init__(self, module: fx.GraphModule, wanted: _Wanted, seen: dict[fx.Node, tuple[float, float]]) -> None:
        super().__init__(module)
        self.wanted = wanted
        self.seen = seen

    def run_node(self, n: fx.Node) -> Any:
        """Run a node as ever, after a look at its arguments."""
        if n in self.wanted and isinstance(n.target, torch._ops.OpOverload):
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            names = (argument.name for argument in n.target._schema.arguments)
            sizes = self.wanted[n](dict(zip(names, args, strict=False)) | kwargs).flatten()
            self.seen[n] = (float(sizes.min()), float(sizes.median()))
        return super().run_node(n)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Look into regions under no_grad or autocast, too."""
        if str(target) not in _WRAPPERS:
            return super().call_function(target, args, kwargs)
        index, inner = next((i, arg) for i, arg in enumerate(args) if isinstance(arg, fx.GraphModule))
        return _Observer(inner, self.wanted, self.seen).run(*args[index + 1 :])


def _variances(operation: str) -> Callable[[dict[str, Any]], Tensor]:
    """Return a function that takes the arguments of a norm and gives the variances to which it adds its eps."""

    def variances(arguments: dict[str, Any]) -> Tensor:
        x = arguments["input"]
        x = x if x.dtype == torch.float64 else x.float()
        if operation in _PER_CHANNEL and "instance" not in operation:
            return x.var(dim=[axis for axis in range(x.ndim) if axis != 1], correction=0)
        if operation == "instance_norm":
            return x.flatten(2).var(dim=-1, correction=0)
        if "group" in operation:
            return x.reshape(x.shape[0], arguments.get("num_groups") or arguments["group"], -1).var(dim=-1, correction=0)
        x = x.flatten(x.ndim - len(arguments["normalized_shape"]))
        return x.square().mean(dim=-1) if "rms" in operation else x.var(dim=-1, correction=0)

    return variances


def _magnitude(name: str) -> Callable[[dict[str, Any]], Tensor]:
    return lambda arguments: arguments[name].abs()


def _argument_name(graph: _Propagation, eps: _Eps) -> str:
    arguments = _Call(graph, eps.node).arguments
    return next(name for name, argument in arguments.items() if argument is eps.operand)


def _eps_of(call: _Call) -> float:
    eps = call["eps"]
    return float(eps) if eps is not None else torch.finfo(call["input"].meta["val"].dtype).eps


def _flat(degrees: Iterable[Degree]) -> tuple[Vector, ...]:
    """Return the distinct degrees in which something scales; a constant 0 goes with any other."""
    distinct: dict[frozenset[tuple[str, Fraction]], None] = {}
    for degree in degrees:
        parts: list[Vector | None]
        if isinstance(degree, _Parts):
            parts = [part for _, part in degree.parts]
        else:
            parts = [degree.degree, degree.shift] if isinstance(degree, _Shifted) else [degree]
        distinct |= dict.fromkeys(frozenset(part.items()) for part in parts if part is not None)
    return tuple(dict(items) for items in distinct) or (_CONSTANT,)


# ---- Lemma 1


def _gradients(
    model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], weights: dict[str, Tensor], factor: float, inputs: Any, target: Any
) -> dict[str, Tensor]:
    scaled = {name: (factor * weight).requires_grad_() for name, weight in weights.items()}
    with torch.enable_grad():
        output = _run(model, scaled, inputs, "a batch of")
        try:
            loss = loss_fn(output, target)
        except Exception as error:
            raise ExplrError(f"loss_fn(model(*inputs), target) fails: {_first_line(error)}") from error
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad or not bool(torch.isfinite(loss)):
        found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) and loss.numel() != 1 else repr(loss)
        raise ExplrError(
            f"at {factor:g} times the weights the loss is {found}: it must be a finite scalar that depends on them."
        )
    gradients = torch.autograd.grad(loss, list(scaled.values()), allow_unused=True)
    return {
        name: torch.zeros_like(weights[name]) if gradient is None else gradient
        for name, gradient in zip(scaled, gradients, strict=True)
    }


def _compare_gradients(name: str, weight: Tensor, at_one: Tensor, at_factor: Tensor, factor: float) -> GradientRow:
    weight, at_one, at_factor = weight.double(), at_one.double(), at_factor.double()
    norms = (float(tensor.norm()) for tensor in (at_one, weight, at_one - factor * at_factor))
    return GradientRow(name, float((at_one * weight).sum()), *norms)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.copysign(math.inf, part) if part else 0.0


@contextmanager
def _variances_seen(model: nn.Module) -> Iterator[list[float]]:
    """Collect eps / (variance + eps), the median of each norm module, while the model runs."""
    shares: list[float] = []

    def look(operation: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        arguments = {"input": inputs[0].detach(), **{name: getattr(module, name, None) for name in _NORM_ARGUMENTS}}
        eps = getattr(module, "eps", None)
        variance = float(_variances(operation)(arguments).median())
        shares.append(eps / (variance + eps) if eps else 0.0)

    hooks = [
        module.register_forward_pre_hook(partial(look, operation))
        for module in model.modules()
        for kind, operation in _NORM_MODULES.items()
        if isinstance(module, kind)
    ]
    try:
        yield shares
    finally:
        for hook in hooks:
            hook.remove()


_NORM_ARGUMENTS = ("num_groups", "normalized_shape")
_NORM_MODULES: dict[type[nn.Module], str] = {
    nn.modules.batchnorm._BatchNorm: "batch_norm",
    nn.modules.instancenorm._InstanceNorm: "instance_norm",
    nn.LayerNorm: "layer_norm",
    nn.GroupNorm: "group_norm",
    nn.RMSNorm: "rms_norm",
}


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
        if any(_total(vector, part) for vector in mine):
            chosen -= part - _solve(sorted(part), sizes, mine)
    return chosen


def _solve(names: list[str], sizes: Mapping[str, int], conditions: Sequence[Vector]) -> set[str]:
    matrix = np.array([[float(vector.get(name, 0)) for name in names] for vector in conditions])
    cost = -np.array([sizes[name] for name in names], dtype=np.float64) / max(sizes[name] for name in names)
    found = milp(cost, constraints=LinearConstraint(matrix, 0, 0), integrality=1, bounds=(0, 1), options={"mip_rel_gap": 0})
    part = set() if found.x is None else {name for name, value in zip(names, found.x, strict=True) if value > 0.5}
    return set() if any(_total(vector, part) for vector in conditions) else part  # the solver works in floating point


def _components(conditions: Iterable[Vector], names: set[str]) -> list[set[str]]:
    """Partition names into sets that no condition links to each other."""
    parts = [{name} for name in sorted(names)]
    for vector in conditions:
        linked = [part for part in parts if not part.isdisjoint(vector)]
        if len(linked) > 1:
            parts = [part for part in parts if part.isdisjoint(vector)] + [set().union(*linked)]
    return parts


# ---- tables


def _few(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _text_table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    del caption
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (header, *rows))
    return "\n".join(lines)


def _html_table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    heads = "".join(f'<th scope="col">{html.escape(cell) or "note"}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{html.escape(row[0])}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return f"<table><caption>{html.escape(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
