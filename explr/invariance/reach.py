"""Which parameters the outputs of a network can depend on: who reads what in its graph, and writes where.

A parameter that no output can depend on scales without a change in the output, and that proves nothing about a loss which reads
it elsewhere: a temperature, a second head that is called outside of ``forward``, a branch that was off in the traced call.

Neither the order of operations counts, since the next call follows this one, nor the place within a memory. So what is said to
be out of reach is, and what is within may not matter.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterable, Iterator

from torch import Tensor, fx, nn

from explr.invariance.graph import (
    WRAPPERS,
    attribute,
    lifted_tensors,
    lookup,
    nodes_in,
    regions_of,
    running_statistics,
    storage_key,
    tensors_of,
    written_arguments,
)
from explr.invariance.steps import Trace

Key = int | fx.Node  # a storage, or a node that gives no tensor, such as a size


def reached(trace: Trace, model: nn.Module) -> set[str]:
    """Return the names of the parameters on which something that the network returns can depend."""
    sources: dict[Key, set[Key]] = defaultdict(set)
    for ours, theirs in (*_reads(trace.program.graph_module), *_real_memory(trace)):
        sources[ours].add(theirs)
    found: set[Key] = set()
    waiting = list(_keys(trace.outputs))
    while waiting:
        key = waiting.pop()
        if key not in found:
            found.add(key)
            waiting += sources.get(key, ())
    return {name for name, parameter in model.named_parameters() if storage_key(parameter) in found}


def _reads(module: fx.GraphModule) -> Iterator[tuple[Key, Key]]:
    """Yield what depends on what, in a graph and in its regions under no_grad or autocast."""
    for node in module.graph.nodes:
        # What getitem takes of several outputs has their storage. A region is walked below: its results need not depend on all.
        if node.op == "call_function" and str(node.target) not in WRAPPERS and node.target is not operator.getitem:
            written = [argument for _, argument, _ in written_arguments(node)]
            for given in _keys([node, *written, *running_statistics(node)]):
                yield from ((given, taken) for taken in _keys(nodes_in((node.args, node.kwargs))))
    for node, inner, holes in regions_of(module):
        yield from _reads(inner)
        (results,) = inner.graph.output_node().args
        same = [(storage_key(hole.meta["val"]), storage_key(argument.meta["val"])) for hole, argument in holes]
        inside = [tensor for result in nodes_in(results) for tensor in tensors_of(result)]
        same += zip(map(storage_key, tensors_of(node)), map(storage_key, inside), strict=False)
        for one, other in same:
            yield from ((one, other), (other, one))


def _real_memory(trace: Trace) -> Iterator[tuple[Key, Key]]:
    """Yield, both ways, what a graph takes from outside and where it lies, so that views of one memory are seen to be one."""
    lifted = lifted_tensors(trace.program)
    for node in trace.program.graph.nodes:
        real = lookup(trace.program, lifted[node.name]) if node.name in lifted else None
        if node.op == "get_attr":
            real = attribute(trace.program.graph_module, node.target)
        if isinstance(real, Tensor):
            for key in _keys([node]):
                yield from ((key, storage_key(real)), (storage_key(real), key))


def _keys(nodes: Iterable[fx.Node]) -> Iterator[Key]:
    for node in nodes:
        yield from map(storage_key, tensors_of(node))
        if not tensors_of(node):
            yield node
