"""Tracing a network for as many steps as it takes to see what it carries from one to the next.

Most networks keep nothing but buffers that they write in place, and a trace of one call says all. One that assigns attributes,
or writes into its own parameters, is traced for two calls in a row. If its Python attributes are after the second what they
were after the first, all later calls do what the second does, with other tensors in the attributes that the two assigned. So a
proof about the second is one about all, if it holds whatever tensors of degree 0 these hold, and if they hold such ever after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.utils._pytree import tree_leaves, tree_map_only

from explr.errors import ExplrError
from explr.invariance.attributes import tensors_in, values_in
from explr.invariance.graph import storage_of, written_storages
from explr.invariance.sandbox import export


@dataclass(frozen=True)
class Trace:
    """The graph of one call of a network, or of two.

    Attributes:
        program: the graph.
        outputs: the nodes of what the network returns, in all calls.
        boundary: the first node of the second call.
        carried: attribute that holds another tensor after either call → what it holds after the first, and after the second.
    """

    program: ExportedProgram
    outputs: list[fx.Node]
    boundary: fx.Node | None = None
    carried: dict[str, tuple[fx.Node, fx.Node]] = field(default_factory=dict)


def trace(model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Trace:
    """Trace one call of a network; two, where the first leaves something behind for the second."""
    before: dict[str, Any] = {}
    changed: list[str] = []

    def look(module: nn.Module, _: Any, __: Any) -> None:
        before["tensors"], before["values"] = tensors_in(module), values_in(module)
        changed.clear()

    def compare(module: nn.Module, _: Any, __: Any, output: Any) -> None:
        del output
        if values_in(module) != before["values"] or _assigned(before["tensors"], tensors_in(module)):
            changed.append("an attribute")

    with _hooked(model, look, compare):
        program = export(model, inputs, kwargs)
    if not changed and not _writes_parameters(program):
        return Trace(program, _nodes(_leaves(program)))
    return _two_steps(model, inputs, kwargs)


def _two_steps(model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Trace:
    kept: dict[str, Any] = {}

    def start(module: nn.Module, args: Any, named: Any) -> Any:
        if "before" in kept:
            return None
        kept["inputs"], kept["before"] = (args, named), tensors_in(module)
        return tree_map_only(Tensor, torch.clone, (args, named))  # a network may write into its inputs

    def go_on(module: nn.Module, _: Any, __: Any, output: Any) -> Any:
        if "first" in kept:
            return None
        kept["first"], first = tensors_in(module), values_in(module)
        boundary = torch.zeros(())
        args, named = kept["inputs"]
        again = module(*args, **named)
        last = tensors_in(module)
        after = values_in(module)
        both = ((path, first.get(path, "nothing"), after.get(path, "nothing")) for path in {**first, **after})
        kept["unsettled"] = [(path, one, other) for path, one, other in both if one != other]
        changed = dict.fromkeys([*_assigned(kept["before"], kept["first"]), *_assigned(kept["first"], last)])
        kept["paths"] = [path for path in changed if path in kept["first"] and path in last]
        kept["length"] = len(tree_leaves((output, again)))
        return output, again, boundary, [(kept["first"][path], last[path]) for path in kept["paths"]]

    with _hooked(model, start, go_on):
        program = export(model, inputs, kwargs)
    for path, first, second in kept["unsettled"]:
        raise ExplrError(
            f"{type(model).__name__}.{path} changes at every call (it is {first}, then {second}), and a proof about the first "
            "calls says nothing about later ones. Keep it in a buffer, as a tensor, and compute with that; or use "
            "explr.lemma1, which goes by numbers."
        )
    leaves, length = _leaves(program), kept["length"]
    state = leaves[length + 1 :]
    carried = dict(zip(kept["paths"], zip(state[::2], state[1::2], strict=True), strict=True))
    return Trace(program, _nodes(leaves[:length]), leaves[length], carried)


@contextmanager
def _hooked(model: nn.Module, before: Callable[..., Any], after: Callable[..., Any]) -> Iterator[None]:
    """Call functions before and after the forward pass of a model, next to the network itself."""
    first = model.register_forward_pre_hook(before, prepend=True, with_kwargs=True)
    handles = [first, model.register_forward_hook(after, with_kwargs=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _assigned(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    return [path for path, tensor in after.items() if tensor is not before.get(path)]


def _writes_parameters(program: ExportedProgram) -> bool:
    written = written_storages(program.graph_module)
    holes = [node for node in program.graph.nodes if node.op == "placeholder"]
    parameters = program.graph_signature.inputs_to_parameters
    return any(node.name in parameters and storage_of(node) in written for node in holes)


def _leaves(program: ExportedProgram) -> list[Any]:
    """Return what the graph returns to the user, in order."""
    (output,) = program.graph.output_node().args
    kinds = [spec.kind for spec in program.graph_signature.output_specs]
    return [value for value, kind in zip(output, kinds, strict=True) if kind is OutputKind.USER_OUTPUT]


def _nodes(values: Iterable[Any]) -> list[fx.Node]:
    return [v for v in values if isinstance(v, fx.Node) and isinstance(v.meta.get("val"), Tensor)]
