"""Is a network scale-invariant? A proof by degrees of homogeneity: Appendix C of Li & Arora (2020) as a program.

:func:`scale_invariance` follows the degree of every tensor through the graph of a model, and collects the conditions under
which it holds. They are linear in d, the logarithms of the factors of the parameters, and what remains is linear algebra: the
network is scale-invariant if d = (1, ..., 1) meets every condition; a parameter is invariant on its own if its unit vector
does; a set of parameters is jointly invariant if its indicator does. "Scale-invariant" is a proof, but for the eps of
normalisation layers: as long as that is negligible beside what it is added to, its size is reported; where it is not, in a norm
of torch or in one written by hand, the network is not scale-invariant. "Not scale-invariant" means that the rules found an
operation where the proof fails; at an operation without a rule the verdict is "undecided".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import fx, nn

from explr.errors import ExplrError
from explr.invariance.chance import chance_in_tensors
from explr.invariance.degrees import Condition, Degree, Vector, combine, distinct_vectors, in_words, scales_of, total_degree
from explr.invariance.findings import Approximation, NormReport, Obstruction, Row, Verification
from explr.invariance.graph import arguments_of, first_line, module_path, norm_name, operation_name, source_line
from explr.invariance.measure import measure
from explr.invariance.propagation import Propagation
from explr.invariance.reach import reached
from explr.invariance.report import InvarianceReport
from explr.invariance.rulebook import QUIET
from explr.invariance.sandbox import check_model, left_as_it_is
from explr.invariance.steps import trace
from explr.invariance.subsets import components, largest_invariant_set
from explr.invariance.tables import few
from explr.invariance.verify import STEPS, changes_at_scale, hold_against_numbers

NEGLIGIBLE = 0.1  # a constant that counts as an eps is at most this part of what it is added to


def scale_invariance(model: nn.Module, *example_inputs: Any, verify: bool = True, **kwargs: Any) -> InvarianceReport:
    """Decide whether a network computes the same function when all its trainable parameters are multiplied by any c > 0.

    Parameters that require grad scale; frozen ones and buffers do not. Batch statistics are recomputed, as in training. The
    model is traced and, where it has an eps to measure, run a few times on the example inputs, on its own device; its weights,
    running statistics, attributes, training flags and gradients stay as they are, and so does the random state.

    Args:
        model: any module that :func:`torch.export.export` can trace, in training mode.
        example_inputs: what ``model`` is called with in training; a batch of two or more where it has batch normalisation.
        verify: whether to hold the proof against numbers, where it finds something to scale: forward passes of a copy in
            float64, two steps in a row, or four of a network that assigns attributes, with what may be scaled scaled by powers
            of two. A proof that numbers contradict is raised as a bug of explr; one that they cannot be asked about, as of a
            network too large to be copied, is returned, and the report says so.
        kwargs: what it is called with by name, flags included: a network of Hugging Face's needs ``use_cache=False``.

    Raises:
        ExplrError: for a model in eval mode or without trainable parameters; without example inputs; when the model does not
            run on them or cannot be exported; where parameters share memory, or what is computed depends on a Python number
            that changes from call to call, one that is random, or an iterator; when a verification fails.

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
    Measured: scaling the weights changes the output by ... at c = 4 and ... at c = 0.25.
    Verified in float64, with each eps scaled along: the output changes by ... at c = 64 or less.
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
    model = getattr(model, "_orig_mod", model)  # of torch.compile, which computes the same
    check_model(model, (*example_inputs, *kwargs.values()), "scale_invariance")
    with left_as_it_is(model):
        with chance_in_tensors(model):
            traced = trace(model, example_inputs, kwargs)
        inputs = (example_inputs, kwargs)
        try:
            graph = Propagation(traced, model, inputs)
            graph.run()
            seen = measure(traced.program, inputs, graph)
            report = _report(graph, seen)
            if seen:  # without an eps there is nothing to see
                scaled = [name for name in graph.parameters if name not in {*report.rest, *report.unused}]
                report = replace(report, changes=changes_at_scale(model, inputs, scaled))
        except ExplrError:
            raise
        except Exception as error:
            raise ExplrError(
                f"the analysis of {type(model).__name__} fails: {first_line(error)}. That is a limit of explr, not of the "
                "model: please report it. explr.lemma1 goes by numbers, and needs no graph."
            ) from error
        if verify:
            own, left = _eps_apart(graph, seen)
            sets = [*((name,) for name in report.alone), *report.joint]
            steps = STEPS if traced.boundary is None else 2 * STEPS  # what it carries may take its time
            report = replace(report, verification=hold_against_numbers(model, inputs, sets, own, left, steps))
    return report


def _eps_apart(graph: Propagation, seen: dict[fx.Node, tuple[float, float]]) -> tuple[dict[str, tuple[float, Vector]], float]:
    """Return module → eps, where it is an attribute, with its degree; and the largest of the others, relatively."""
    modules = dict(graph.model.named_modules())
    added = [(n, _eps_of(n), [combine(v, v) for v in scales_of(degree)]) for n, degree in graph.norms]
    added += [(eps.node, eps.eps, [eps.vector]) for eps in graph.eps]
    degrees: dict[str, list[Vector | None]] = {}
    for node, _, vectors in added:
        degrees.setdefault(module_path(node, graph.model), []).extend(vectors)
    own: dict[str, tuple[float, Vector]] = {}
    left = 0.0
    for node, size, vectors in added:
        path = module_path(node, graph.model)
        scaling = [vector for vector in vectors if vector]
        if path in modules and hasattr(modules[path], "eps") and all(v == vectors[0] for v in degrees[path]):
            if modules[path].eps == size and scaling:  # else there is none, and torch takes the spacing of numbers at 1
                own[path] = size, scaling[0]
        elif size and scaling:
            falling = any(power < 0 for vector in scaling for power in vector.values())
            smallest, _ = seen.get(node, (0.0, 0.0))  # of a batch of two, a thousandth of the median and less
            left = max(left, math.inf if falling or smallest <= 0.0 else size / smallest)
    return own, left


def _report(graph: Propagation, seen: dict[fx.Node, tuple[float, float]]) -> InvarianceReport:
    """Solve the conditions and put the findings into words."""
    conditions = list(graph.conditions)
    approximations = []
    norms = _norm_reports(graph, seen)
    for eps in graph.eps:
        smallest, median = seen.get(eps.node, (0.0, 0.0))
        relative = eps.eps / median if median > 0.0 and smallest >= 0.0 else math.inf
        if relative > NEGLIGIBLE:
            # Nothing says that so large a constant is an eps at all. That of a norm is one, and can follow the weights
            # (explr.optim.ExpLR sees to it): a large one enters the verdict, but not what can be scaled.
            remedy = _large_eps(eps.eps, relative, "what it is added to")
            if smallest < 0.0:
                remedy = f"The bound takes the place of what is negative (down to {smallest:.2g}): use 0, or bound abs()."
            conditions.append(Condition(eps.vector, "large eps", eps.node, (eps.vector,), remedy))
        elif total_degree(eps.vector):
            where = (module_path(eps.node, graph.model), operation_name(eps.node), source_line(eps.node))
            approximations.append(Approximation(*where, total_degree(eps.vector), eps.eps, relative))
    vectors = tuple(condition.vector for condition in conditions)
    used = reached(graph.trace, graph.model)
    sizes = {name: p.numel() for name, p in graph.parameters.items() if name in used}
    chosen = largest_invariant_set(sizes, vectors)
    bound = {name for vector in vectors for name in vector}
    order = {name: index for index, name in enumerate(sizes)}
    together = [tuple(sorted(part, key=order.__getitem__)) for part in components(vectors, chosen & bound)]
    failed = [condition for condition in conditions if total_degree(condition.vector)]
    failed_norms = list(_norms_with_large_eps(graph, norms))
    outputs = {total_degree(vector) for vector in graph.outputs if vector is not None}
    homogeneous = not failed_norms and all(condition.kind == "output" for condition in failed) and len(outputs) <= 1
    classes = {path: type(module).__name__ for path, module in graph.model.named_modules(remove_duplicate=False)}
    return InvarianceReport(
        invariant=not failed and not failed_norms,
        degree=next(iter(outputs), Fraction(0)) if homogeneous else None,
        obstructions=(*(_obstruction(graph, condition) for condition in failed), *failed_norms),
        norms=norms,
        changes={},
        approximations=tuple(approximations),
        alone=tuple(name for name in sizes if name in chosen and name not in bound),
        joint=tuple(sorted(together, key=lambda part: order[part[0]])),
        rest=tuple(name for name in sizes if name not in chosen),
        unused=tuple(name for name in graph.parameters if name not in used),
        rows=tuple(_rows(graph, {condition.node: condition.kind for condition in failed})),
        verification=Verification(reason="verify=False"),
        _classes=classes,
        _parameters=graph.parameters,
        _conditions=vectors,
        _norm_inputs={path: distinct_vectors(degree for _, degree in calls) for path, calls in _norms_by_path(graph).items()},
    )


def _obstruction(graph: Propagation, condition: Condition) -> Obstruction:
    names = tuple(name for name in graph.parameters if name in condition.vector)
    remedy = condition.remedy
    if condition.kind == "output":
        modules = {name.rpartition(".")[0] for name in names}
        after = [name for name in graph.parameters if name.rpartition(".")[0] in modules]
        remedy = (
            f"Freeze what follows the last norm: {few(after)}."
            if len(after) < len(graph.parameters)
            else "No norm follows what is trained: put one behind every trained layer but the last, and freeze that one."
        )
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
    path = module_path(node, graph.model)
    return Obstruction(condition.kind, path, operation_name(node), source_line(node), degrees, names, remedy)


def _norms_with_large_eps(graph: Propagation, norms: dict[str, NormReport]) -> Iterator[Obstruction]:
    """Yield the norms of something that scales whose eps is too large for it to pass unseen."""
    for path, calls in _norms_by_path(graph).items():
        norm, vectors = norms[path], distinct_vectors(degree for _, degree in calls)
        degrees = tuple(degree for degree in dict.fromkeys(map(total_degree, vectors)) if degree)
        if degrees and norm.median_variance and norm.relative_eps > NEGLIGIBLE:
            names = tuple(name for name in graph.parameters if any(name in vector for vector in vectors))
            where = (path, norm.kind, source_line(calls[0][0]))
            remedy = _large_eps(norm.eps, norm.relative_eps, "the variance")
            yield Obstruction("large eps", *where, degrees, names, remedy)


def _large_eps(eps: float, relative: float, what: str) -> str:
    return f"{eps:g} is {relative:.2g} times {what} (median): use a smaller eps, or larger weights or inputs."


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
            yield Row(module_path(node, graph.model), operation_name(node), degree_in, in_words(given), failed.get(node, ""))
    note = next((kind for node, kind in failed.items() if node.op == "output"), "")
    yield Row("output", "", ", ".join(in_words(degree) for degree in graph.outputs), "", "not 0" if note else "")
