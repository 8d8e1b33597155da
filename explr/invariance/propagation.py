"""The walk through a graph: the degree of every tensor of an exported program, from the parameters to the output."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from explr.invariance.calls import Call
from explr.invariance.degrees import CONSTANT, Degree, Findings, Vector, degree_of_constant
from explr.invariance.graph import (
    WRAPPERS,
    attribute,
    covers_storage,
    lifted_tensors,
    lookup,
    nodes_in,
    storage_key,
    storage_of,
    tensors_of,
    written_storages,
)
from explr.invariance.rulebook import apply_rule
from explr.invariance.rules import SMOOTH


def _shown(call: Call, state: Mapping[int, fx.Node]) -> list[fx.Node]:
    """Return the operands whose degrees a reader wants to see: the activations, or the parameters if there are no others."""
    operands = [node for node in nodes_in((call.node.args, call.node.kwargs)) if isinstance(node.meta.get("val"), Tensor)]
    operands = [node for node in operands if node.meta["val"].dtype.is_floating_point]
    return [node for node in operands if storage_of(node) not in state] or operands


class Propagation(Findings):
    """Degrees of every tensor of an exported program, and the conditions under which they hold."""

    def __init__(self, program: ExportedProgram, model: nn.Module) -> None:
        super().__init__()
        self.program = program
        self.model = model
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.operations: list[tuple[fx.Node, list[Degree], Degree]] = []
        self.outputs: list[Vector | None] = []
        self.state: dict[int, fx.Node] = {}  # storages of parameters and buffers
        self.written = written_storages(program.graph_module)

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
        for value in nodes_in(output.args):
            if value.name in signature.user_outputs and isinstance(value.meta.get("val"), Tensor):
                vector = self.agree(output, [self.degree(value)])
                self.outputs.append(vector)
                self.require(vector, "output", output, "")

    def _inputs(self) -> None:
        names = {id(p): name for name, p in reversed(list(self.parameters.items()))}
        lifted = lifted_tensors(self.program)
        for node in self.program.graph.nodes:
            if node.op != "placeholder" or not isinstance(node.meta.get("val"), Tensor):
                continue
            degree: Degree = CONSTANT
            if node.name in lifted:
                tensor = lookup(self.program, lifted[node.name])
                trainable = names.get(id(tensor)) if tensor is not None else None
                # A norm's own statistics start at 0, but do not stay there.
                statistics = lifted[node.name].rpartition(".")[2] in ("running_mean", "running_var")
                if trainable is not None:
                    degree = {trainable: Fraction(1)}
                elif tensor is not None and not statistics and storage_of(node) not in self.written:
                    degree = degree_of_constant(tensor)
                self.state[storage_of(node)] = node
            self.storages[storage_of(node)] = degree

    def _walk(self, module: fx.GraphModule) -> None:
        for node in module.graph.nodes:
            if node.op == "get_attr":
                tensor = attribute(module, node.target)
                if isinstance(tensor, Tensor) and isinstance(node.meta.get("val"), Tensor):
                    self.storages[storage_of(node)] = degree_of_constant(tensor)
            elif node.op == "call_function":
                self._call(module, node)

    def _call(self, module: fx.GraphModule, node: fx.Node) -> None:
        if str(node.target) in WRAPPERS:
            self._inline(module, node)
            return
        outs = tensors_of(node)
        if node.target is operator.getitem or (not outs and not isinstance(node.target, torch._ops.OpOverload)):
            return  # one of several outputs, which share its storage; or arithmetic on sizes
        call = Call(self, node)
        taken = [self.degree(arg) for arg in _shown(call, self.state)]
        result = apply_rule(call)
        results = result if isinstance(result, list) else [result] * len(outs)
        shown: Degree = CONSTANT
        for index, (out, degree) in enumerate(zip(outs, results, strict=False)):
            if not (out.dtype.is_floating_point or out.dtype.is_complex):
                if out.dtype != torch.bool:  # x.bool() asks whether x is 0, at every scale; x.int() rounds
                    self.require(self.agree(node, [degree]), "nonlinear", node, SMOOTH)
                degree = CONSTANT
            held = self._write(call, out, degree)
            shown = held if index == 0 else shown
        if any(out.dtype.is_floating_point for out in outs):
            self.operations.append((node, taken, shown))

    def _inline(self, module: fx.GraphModule, node: fx.Node) -> None:
        """Walk a region under no_grad or autocast, whose nodes share our storages."""
        graph = next(arg for arg in node.args if isinstance(arg, fx.Node) and arg.op == "get_attr")
        inner = attribute(module, graph.target)
        holes = [hole for hole in inner.graph.nodes if hole.op == "placeholder"]
        for hole, argument in zip(holes, node.args[node.args.index(graph) + 1 :], strict=False):
            if isinstance(hole.meta.get("val"), Tensor):
                self.storages.setdefault(storage_of(hole), self.degree(argument))
        self._walk(inner)
        results = next(nodes_in(n.args) for n in inner.graph.nodes if n.op == "output")
        for out, result in zip(tensors_of(node), results, strict=False):
            self.storages.setdefault(storage_key(out), self.degree(result))

    def _write(self, call: Call, out: Tensor, degree: Degree) -> Degree:
        key = storage_key(out)
        if key not in self.storages or (call.mutates and covers_storage(out)):
            self.storages[key] = degree
        elif call.mutates:  # part of a tensor was overwritten: the rest keeps its degree, so the two must agree
            self.storages[key] = self.agree(call.node, [self.storages[key], degree])
        return self.storages[key]
