"""What the analysis of a network found: the verdict, why, and what of the network can be scaled; as text and as HTML."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from torch import Tensor, nn

from explr.errors import ExplrError
from explr.invariance.degrees import Vector, combine, total_degree
from explr.invariance.findings import Approximation, NormReport, Obstruction, Row, Verification
from explr.invariance.folding import SCREENFUL, Folded, fold
from explr.invariance.subsets import components, largest_invariant_set
from explr.invariance.tables import few, html_folded, html_lines, html_page, html_table, html_tall_table, text_table


@dataclass(frozen=True, eq=False)
class InvarianceReport:
    """What :func:`~explr.invariance.analysis.scale_invariance` found.

    Attributes:
        invariant: whether the output is the same at every scale of the trainable parameters, up to eps.
        degree: the degree of the output, or None where the network is not homogeneous.
        obstructions: every operation at which the proof fails; empty for an invariant network.
        norms: module path → :class:`~explr.invariance.findings.NormReport`.
        approximations: constants taken for the eps of hand-written norms.
        changes: c → measured relative change of the output when all that converts is multiplied by c, at c = 4 and 1/4: what
            depth makes of the eps of all norms, and of rounding. Empty without an eps, where nothing converts, and where the
            output is 0 whatever the weights are, as that of a network with a new head of zeros.
        alone: parameters that can be scaled on their own without a change in the output.
        joint: sets of parameters that can only be scaled together, such as all convolutions that write one residual stream.
        rest: trainable parameters in neither: scaling the others leaves the output as it is only while these stay put. Freeze
            them, and the rest is scale-invariant. (A large eps of a norm of torch counts in the verdict, but not here: it can
            follow the weights, as :class:`explr.optim.ExpLR` makes it when it is given the model.)
        unused: trainable parameters on which what the network returns does not depend, in none of these three. Scaling them is
            no change in the output; but of a loss that reads them elsewhere nothing is known, so they do not convert.
        rows: the operations, in the order of execution.
        verification: how far numbers agree that what converts does, or why they were not asked.
    """

    invariant: bool
    degree: Fraction | None
    obstructions: tuple[Obstruction, ...]
    norms: dict[str, NormReport]
    approximations: tuple[Approximation, ...]
    changes: dict[float, float]
    alone: tuple[str, ...]
    joint: tuple[tuple[str, ...], ...]
    rest: tuple[str, ...]
    unused: tuple[str, ...] = field(repr=False)
    rows: tuple[Row, ...] = field(repr=False)
    verification: Verification = field(repr=False)
    _classes: dict[str, str] = field(repr=False)
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
        large = [obstruction.path or "model" for obstruction in self.obstructions if obstruction.kind == "large eps"]
        if large:
            others = len(large) < len(self.obstructions)
            return f"not scale-invariant: {'among other things, ' * others}an eps is not negligible ({few(large)})"
        return "not scale-invariant" + (f": homogeneous of degree {self.degree}" if self.degree is not None else "")

    @property
    def verified(self) -> bool:
        """Whether what converts was scaled, and the output seen to stay as it is; if not, ``verification`` says why."""
        return self.verification.change is not None

    @property
    def share(self) -> float:
        """The share of the trainable numbers that convert as they are, all but those of ``rest`` and ``unused``.

        :meth:`parameter_groups` converts less where a layer with a bias stands before a norm with running statistics, which
        must be able to follow; ``bias=False`` mends it.
        """
        sizes = {name: parameter.numel() for name, parameter in self._parameters.items()}
        return 1.0 - sum(sizes[name] for name in (*self.rest, *self.unused)) / sum(sizes.values())

    @property
    def advice(self) -> list[str]:
        """What to do about the verdict, and how far to trust it; a sentence or two."""
        lines = []
        idle = self.unused if any({*o.parameters} & {*self.unused} for o in self.obstructions) else ()
        if self.share == 0.0:
            lines.append("No weight converts as it is: see the obstructions for what would mend it.")
        elif freeze := [*self.rest, *idle]:
            where = "report.rest and report.unused" if idle else "report.rest"
            many = f"these {len(freeze)} tensors ({where}: {few(freeze)})"
            lines.append(
                f"{self.share:.1%} of the weights convert as they are, and parameter_groups() sets them apart. "
                f"Or freeze {freeze[0] if len(freeze) == 1 else many}, and the network is scale-invariant."
            )
        elif not self.invariant:
            what = "All other weights" if self.unused else "All weights"
            lines.append(f"{what} convert if that eps follows them: explr.ExpLR(..., model=model) sees to it.")
        if self.unused:
            lines.append(
                f"What the network returns does not depend on {few(self.unused)}: left out of what converts. If training calls "
                "it in another way, analyse it with what it is called with there."
            )
        if self.changes:
            what = f"scaling {'what converts' if self.rest or self.unused else 'the weights'} changes the output"
            lines.append(f"Measured: {what} by {' and '.join(f'{v:.1e} at c = {c:g}' for c, v in self.changes.items())}.")
        return [*lines, str(self.verification)] if self.share else lines

    def parameter_groups(self, **options: Any) -> list[dict[str, Any]]:
        """Return the parameter groups of a torch optimizer in which :class:`explr.optim.ExpLR` may convert the invariant part.

        The first group is the largest set of parameters that leaves the output as it is when scaled together, such that the
        running statistics of all norms can follow (:meth:`largest_part`); the second holds the others (a trainable head, affine
        parameters, what is ``unused``) and is marked ``scale_invariant=False``, so that it keeps its learning rate and weight
        decay. A group without parameters is left out.

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
        chosen = set(self.largest_part(self._parameters))
        parts = {kind: [p for name, p in self._parameters.items() if (name in chosen) is kind] for kind in (True, False)}
        return [{"params": part, **options, "scale_invariant": kind} for kind, part in parts.items() if part]

    def invariant_in(self, parameters: Iterable[str | Tensor]) -> bool:
        """Tell whether scaling exactly these parameters, given as tensors or names, together leaves the output as it is."""
        names = self._names(parameters)
        return all(total_degree(condition, names) == 0 for condition in self._conditions)

    def largest_part(self, parameters: Iterable[str | Tensor], *, statistics: bool = True) -> list[str]:
        """Return the largest set among these parameters that leaves the output as it is when scaled together, by name.

        Those that are ``unused`` are not in it.

        Args:
            parameters: those to choose from.
            statistics: whether the running statistics of all norms must be able to follow, for which the input of a norm has to
                have one degree. It has two where a bias before the norm grows by another power than the weights.
        """
        sizes = {name: self._parameters[name].numel() for name in self._names(parameters).difference(self.unused)}
        one_degree = [combine(v, vectors[0], Fraction(-1)) or {} for vectors in self._norm_inputs.values() for v in vectors[1:]]
        chosen = largest_invariant_set(sizes, [*self._conditions, *(one_degree if statistics else [])])
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
                    f"the input of {path} has parts of degrees {' and '.join(map(str, sorted(found)))} when {len(names)} "
                    "parameters scale: no one rescaling of its eps and running statistics fits. Leave out biases before norms "
                    "(bias=False: the norm takes them away), or let them decay as the weights do; give each input its own norm."
                )
            degrees[path] = found.pop()
        return degrees

    def table(self, *, full: bool = False) -> str:
        """Return the report as plain text: verdict, advice, obstructions, operations with their degrees, norms, parameters.

        Of a large network, what is alike is one line, with the first place where it is found and the number of places.

        Args:
            full: whether to print a line for each.
        """
        folded = self._folded(full)
        parts = ["\n".join([self.verdict, *self.advice]), "\n".join(f"- {line}" for line in folded.obstructions)]
        parts += [text_table(*table) for table in folded.tables]
        return "\n\n".join(filter(None, [*parts, "\n".join(folded.parameters)]))

    def _repr_html_(self) -> str:
        """Show the same in a notebook: tall tables folded, and of a large network each line folded away below their kinds."""
        parts = [html_lines("p", self.advice), *_html_parts(self._folded(full=False), html_tall_table)]
        if len(self.rows) > SCREENFUL:
            summary = f"all {len(self.rows)} operations and {len(self._parameters)} parameters"
            parts.append(html_folded(summary, "".join(_html_parts(self._folded(full=True), html_table))))
        return html_page(self.verdict, *parts)

    def _folded(self, full: bool) -> Folded:
        parameters = self.alone, self.joint, self.rest, self.unused
        return fold(self.obstructions, self.rows, self.norms, self.approximations, parameters, self._classes, full=full)

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


def _html_parts(folded: Folded, shown: Callable[..., str]) -> Iterator[str]:
    items = html_lines("li", folded.obstructions)
    yield f"<ul>{items}</ul>" if items else ""
    yield from (shown(*table) for table in folded.tables)
    yield html_lines("p", folded.parameters)
