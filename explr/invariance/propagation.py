"""The walk through a graph: the degree of every tensor of an exported program, from the parameters to the output."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, fx, nn

from explr.errors import ExplrError
from explr.invariance.calls import Call
from explr.invariance.degrees import CONSTANT, Degree, Findings, Shifted, Vector, combine, degree_of_constant
from explr.invariance.graph import (
    WRAPPERS,
    attribute,
    first_line,
    lifted_tensors,
    nodes_in,
    operation_name,
    placeholders,
    read_storages,
    regions_of,
    running_statistics,
    source_line,
    storage_key,
    storage_of,
    tensors_of,
    written_arguments,
    written_storages,
)
from explr.invariance.memory import byte_range, place_of, storage_span
from explr.invariance.rulebook import apply_rule
from explr.invariance.rules import SMOOTH
from explr.invariance.steps import Trace


class Propagation(Findings):
    """Degrees of every tensor of an exported program, and the conditions under which they hold."""

    def __init__(self, trace: Trace, model: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        super().__init__()
        self.trace = trace
        self.program = trace.program
        self.model = model
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.operations: list[tuple[fx.Node, list[Degree], Degree]] = []
        self.outputs: list[Vector | None] = []
        self.written = written_storages(self.program.graph_module)
        self.read = read_storages(self.program.graph_module)
        self.state: set[int] = set()  # storages of parameters, buffers and constants
        self.trainable: list[fx.Node] = []  # placeholders of parameters that scale
        self.kept: list[fx.Node] = []  # placeholders of what else the network keeps
        self.regions: dict[fx.Node, tuple[fx.GraphModule, list[tuple[fx.Node, fx.Node]]]] = {}
        self.constants: set[fx.Node] = set()  # plain attributes that are tensors
        self.in_sparse: set[int] = set()  # storages that may be the values of sparse tensors
        self.step = 1
        self._inputs(inputs)
        self.live = self._live()

    def run(self) -> None:
        """Walk the graph in the order of execution."""
        self._walk(self.program.graph_module)
        output = self.program.graph.output_node()
        self._end_step({path: last for path, (_, last) in self.trace.carried.items()})
        for node, degree in self.after_first.items() if self.trace.boundary else ():
            # Where parameters are after the second call what they are after the first, all later calls are like the second.
            change = combine(self.agree(node, [self.degree(node)]), degree, Fraction(-1))
            self.require(change, "stored state", node, "Do not write into parameters, or set them to something normalised.")
        for value in self.trace.outputs:
            vector = self.agree(output, [self.degree(value)])
            self.outputs.append(vector)
            self.require(vector, "output", output, "")
        if self.trace.boundary:
            del self.outputs[len(self.outputs) // 2 :]

    def require(
        self, vector: Vector | None, kind: str, node: fx.Node, remedy: str, met: tuple[Vector, ...] | None = None
    ) -> None:
        """Collect the condition vector · d = 0; in the second call, one that the first has not asked for yet."""
        if self.step == 1 or not any(condition.vector == vector for condition in self.conditions):
            super().require(vector, kind, node, remedy, met)

    def _inputs(self, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        """Lay out what the graph takes from outside, where it lies in the machine."""
        lifted = lifted_tensors(self.program)
        real = {node: value if isinstance(value, Tensor) else None for node, value in placeholders(self.program, inputs)}
        real |= dict(_constants(self.program.graph_module))
        real = {node: tensor for node, tensor in real.items() if isinstance(node.meta.get("val"), Tensor)}
        self.memory.settle((node.meta["val"], tensor) for node, tensor in real.items() if tensor is not None)
        signature = self.program.graph_signature
        named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.constants |= {node for node in real if node.op == "get_attr" or (node.name in lifted and node.name not in named)}
        self.state |= {storage_of(node) for node in real if node.name in lifted}
        refuse_overlaps(self.parameters)
        names = {id(p): name for name, p in self.parameters.items()}
        for node, tensor in real.items():
            if id(tensor) in names:
                self.trainable.append(node)
                self._write(node, node, {names[id(tensor)]: Fraction(1)})
        owned = set(self.trainable)
        for node, tensor in real.items():
            if node in owned or (self.memory.knows(node.meta["val"]) and self.memory.touches(node.meta["val"])):
                continue  # a view of a parameter scales with it
            self.kept += [node] if node.name in lifted else []
            self._write(node, node, self._of_constant(node, tensor, lifted.get(node.name, "")))

    def _of_constant(self, node: fx.Node, tensor: Tensor | None, name: str) -> Degree:
        # A norm's own statistics start at 0, but do not stay there; nor does what the network writes or assigns.
        changes = name.rpartition(".")[2] in ("running_mean", "running_var") or storage_of(node) in self.written
        changes |= name in self.trace.carried or any(node is first for first, _ in self.trace.carried.values())
        if tensor is None or changes or (not name and node.op == "placeholder"):
            return CONSTANT
        return degree_of_constant(tensor)

    def _walk(self, module: fx.GraphModule) -> None:
        self.regions |= {node: (inner, holes) for node, inner, holes in regions_of(module)}
        for node in module.graph.nodes:
            if node is self.trace.boundary:
                self._end_first_step()
            if node.op != "call_function":
                continue
            try:
                self._call(node)
            except ExplrError:
                raise
            except Exception as error:
                where = f" ({source_line(node)})" if source_line(node) else ""
                raise ExplrError(
                    f"the analysis of scale invariance fails at {operation_name(node)}{where}: {first_line(error)}. That is a "
                    "limit of explr, not of the model: please report it. explr.lemma1 goes by numbers, and needs no graph."
                ) from error

    def _end_step(self, carried: dict[str, fx.Node]) -> None:
        """Ask that nothing scales of what the network has written or assigned in a call and goes by in a later one."""
        for node in self.kept:
            if storage_of(node) in self.written:
                remedy = f"Normalise what {lifted_tensors(self.program)[node.name]} keeps."
                self.require(self.agree(node, [self.degree(node)]), "stored state", node, remedy)
        for path, value in carried.items():
            if path in self.live:
                remedy = f"Normalise what {path} keeps, or do not read it in the forward pass."
                self.require(self.agree(value, [self.degree(value)]), "stored state", value, remedy)

    def _end_first_step(self) -> None:
        self._end_step({path: first for path, (first, _) in self.trace.carried.items()})
        self.step = 2
        self.after_first: dict[fx.Node, Vector | None] = {}
        for node in self.trainable:
            if storage_of(node) in self.written:
                vector = self.agree(node, [self.degree(node)])
                self.after_first[node] = vector if vector is not None else CONSTANT
                self._write(node, node, self.after_first[node])

    def _call(self, node: fx.Node) -> None:
        if str(node.target) in WRAPPERS:
            self._inline(node)
            return
        outs = tensors_of(node)
        if node.target is operator.getitem or (not outs and not isinstance(node.target, torch._ops.OpOverload)):
            return  # one of several outputs, which share its storage; or arithmetic on sizes
        call = Call(self, node)
        if call.operation == "set":
            raise ExplrError(
                f"a tensor is given other memory ({source_line(node) or 'set_'}), which the analysis of scale invariance "
                "cannot follow. Copy the values (copy_), or assign the tensor itself."
            )
        taken = [self.degree(arg) for arg in self._shown(node)]
        result = apply_rule(call)
        results = result[: len(outs)] if isinstance(result, list) else [result] * len(outs)
        if len(results) < len(outs):  # an overload with more results than its rule knows
            call.insist()
            results += [CONSTANT] * (len(outs) - len(results))
        for index, out in enumerate(outs):
            if not (out.dtype.is_floating_point or out.dtype.is_complex):
                vector = self.agree(node, [results[index]])
                if out.dtype != torch.bool:  # x.bool() asks whether x is 0, at every scale; x.int() rounds
                    self.require(vector, "nonlinear", node, SMOOTH)
                results[index] = CONSTANT
        self._watch_sparse(call, outs)
        written = self._write_arguments(call, results)
        for index, (out, degree) in enumerate(zip(outs, results, strict=True)):
            if self.memory.knows(out):
                continue
            if index in written:
                self.memory.same(out, written[index].meta["val"])
            else:
                self._watch_constants(call, out)
                self.memory.create(out, degree)
        self._keep_statistics(call)
        if any(out.dtype.is_floating_point for out in outs) and self.step == 1:
            self.operations.append(
                (node, taken, self.degree(written.get(0, node)) if written or len(outs) == 1 else results[0])
            )

    def _write_arguments(self, call: Call, results: list[Degree]) -> dict[int, fx.Node]:
        """Write what a call writes into its arguments; return which of its results are arguments."""
        found: dict[int, fx.Node] = {}
        returns = call.node.target._schema.returns if isinstance(call.node.target, torch._ops.OpOverload) else ()
        for _, argument, names in written_arguments(call.node):
            if not isinstance(argument.meta.get("val"), Tensor):
                continue
            same = [i for i, r in enumerate(returns) if r.alias_info is not None and names & set(r.alias_info.before_set)]
            if same and same[0] < len(results):
                found[same[0]] = argument
                self._write(call.node, argument, results[same[0]])
            elif argument not in running_statistics(call.node):
                call.insist()  # nothing says what it writes, so nothing that comes in may scale
                self._write(call.node, argument, CONSTANT)
        return found

    def _write(self, node: fx.Node, target: fx.Node, degree: Degree) -> None:
        value = target.meta["val"]
        placed = isinstance(degree, Shifted) and degree.place is not None and degree.place.storage == storage_key(value)
        self.memory.write(value, degree, lambda degrees: self.agree(node, degrees), placed=placed)

    def _keep_statistics(self, call: Call) -> None:
        """Ask that what a norm keeps does not scale, if the network reads it otherwise than to keep it."""
        statistics = running_statistics(call.node)
        if any(storage_of(statistic) in self.read for statistic in statistics):
            remedy = "The network reads the running statistics that this norm keeps: read those of the batch."
            self.require(call.degree("input"), "stored state", call.node, remedy)

    def _watch_constants(self, call: Call, out: Tensor) -> None:
        """Refuse to write into a plain attribute through a view: a trace gives the two different memory."""
        for argument in nodes_in((call.node.args, call.node.kwargs)):
            shared = {storage_key(out), storage_of(argument)} if argument in self.constants else set()
            if shared & self.written and call.is_view:
                raise ExplrError(
                    f"a view of an attribute is written in place ({source_line(call.node) or call.operation}), which a trace "
                    "does not see as one memory. Keep it in a buffer (register_buffer), or write into the attribute itself."
                )

    def _watch_sparse(self, call: Call, outs: list[Tensor]) -> None:
        """Refuse to write into the values of a sparse tensor, whose memory is not seen."""
        arguments = [n for n in nodes_in((call.node.args, call.node.kwargs)) if isinstance(n.meta.get("val"), Tensor)]
        if any(out.layout is not torch.strided for out in outs):
            self.in_sparse |= {storage_of(argument) for argument in arguments}
        if call.operation.endswith("values"):
            self.in_sparse |= {storage_key(out) for out in outs}
        sparse = {storage_of(n) for _, n, _ in written_arguments(call.node) if n.meta["val"].layout is not torch.strided}
        if sparse or self.in_sparse & self.written:
            raise ExplrError(
                f"the values of a sparse tensor are written in place ({source_line(call.node) or call.operation}), which the "
                "analysis of scale invariance cannot follow. Make a new sparse tensor instead."
            )

    def _inline(self, node: fx.Node) -> None:
        """Walk a region under no_grad or autocast, whose nodes share our storages."""
        inner, holes = self.regions[node]
        for hole, argument in holes:
            self.memory.same(hole.meta["val"], argument.meta["val"])
        self._walk(inner)
        (results,) = inner.graph.output_node().args
        for out, result in zip(tensors_of(node), nodes_in(results), strict=False):
            self.memory.same(out, result.meta["val"])

    def _shown(self, node: fx.Node) -> list[fx.Node]:
        """Return the operands whose degrees a reader wants to see: activations, or the parameters if there are no others."""
        operands = [node for node in nodes_in((node.args, node.kwargs)) if isinstance(node.meta.get("val"), Tensor)]
        operands = [node for node in operands if node.meta["val"].dtype.is_floating_point]
        return [node for node in operands if storage_of(node) not in self.state] or operands

    def _live(self) -> set[str]:
        """Return the attributes by which later calls go: the second reads them, or moves what they hold into one of these."""
        nodes = list(self.program.graph.nodes)
        later = nodes[nodes.index(self.trace.boundary) :] if self.trace.boundary else []
        arguments = (a for node in later if node.op != "output" for a in nodes_in((node.args, node.kwargs)))
        read = {storage_of(argument) for argument in arguments if isinstance(argument.meta.get("val"), Tensor)}
        carried = {path: nodes for path, nodes in self.trace.carried.items() if not self._is_alias(*nodes)}
        live = {path for path, (first, _) in carried.items() if storage_of(first) in read}
        while moved := {p for p in carried.keys() - live if any(carried[p][0] is carried[into][1] for into in live)}:
            live |= moved
        return live

    def _is_alias(self, first: fx.Node, last: fx.Node) -> bool:
        """Tell whether an attribute is another name of a parameter, buffer or constant, or of one part of it."""
        place = place_of(first.meta["val"])
        return place is not None and place.storage in self.state and place == place_of(last.meta["val"])


def refuse_overlaps(parameters: dict[str, nn.Parameter]) -> None:
    """Raise an ExplrError if two parameters that scale share memory: an optimizer would change both with each."""
    spans = []
    for name, parameter in parameters.items():
        memory, start, _ = storage_span(parameter)
        low, high = byte_range(parameter)
        spans.append((str(memory), start + low, start + high, name))
    reach: tuple[str, float, str] = ("", 0, "")
    for memory, low, high, name in sorted(spans):
        if memory == reach[0] and low < reach[1]:
            raise ExplrError(
                f"{reach[2]} and {name} are two parameters in the same memory, so that a step on either changes both. Tie "
                "them by assigning one nn.Parameter to both modules, or give each a clone of its own."
            )
        reach = max(reach, (memory, high, name)) if memory == reach[0] else (memory, high, name)


def _constants(module: fx.GraphModule) -> Iterator[tuple[fx.Node, Tensor]]:
    for node in module.graph.nodes:
        if node.op == "get_attr" and isinstance(value := attribute(module, node.target), Tensor):
            yield node, value
    for _, inner, _ in regions_of(module):
        yield from _constants(inner)
