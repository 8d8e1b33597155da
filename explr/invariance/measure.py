"""How large the eps of a norm is: a look at the numbers, on the example inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from explr.errors import ExplrError
from explr.invariance.degrees import Eps, Findings
from explr.invariance.graph import (
    PER_CHANNEL,
    WRAPPERS,
    arguments_of,
    first_line,
    operation_name,
    placeholders,
    storage_of,
    written_storages,
)

BOUNDS = ("clamp", "clip", "clamp_min")
_Wanted = dict[fx.Node, Callable[[dict[str, Any]], Tensor]]  # node → what to look at, given its arguments


def measure(program: ExportedProgram, inputs: Any, found: Findings) -> dict[fx.Node, tuple[float, float]]:
    """Run the graph once on (args, kwargs); return the smallest and the median size of what each eps is added to.

    Of what a lower bound cuts off below, the smallest number itself.
    """
    wanted: _Wanted = {node: variances_of(operation_name(node)) for node, _ in found.norms}
    wanted |= {eps.node: _size(_argument_name(eps), signed=operation_name(eps.node) in BOUNDS) for eps in found.eps}
    seen: dict[fx.Node, tuple[float, float]] = {}
    if not wanted:
        return seen
    parameters = program.graph_signature.inputs_to_parameters  # made anew at each access: in the loop that would be quadratic
    written = written_storages(program.graph_module)
    values = []
    for node, value in placeholders(program, inputs):
        copied = isinstance(value, Tensor) and (node.name not in parameters or storage_of(node) in written)
        values.append(value.detach().clone() if copied else value)
    try:
        with torch.no_grad():
            _Observer(program.graph_module, wanted, seen).run(*values)
    except Exception as error:
        raise ExplrError(f"the model does not run on the example inputs: {first_line(error)}") from error
    return seen


def variances_of(operation: str) -> Callable[[dict[str, Any]], Tensor]:
    """Return a function that takes the arguments of a norm and gives the variances to which it adds its eps."""

    def variances(arguments: dict[str, Any]) -> Tensor:
        x = arguments["input"]
        x = x if x.dtype == torch.float64 else x.float()
        if operation in PER_CHANNEL and "instance" not in operation:
            return x.var(dim=[axis for axis in range(x.ndim) if axis != 1], correction=0)
        if operation == "instance_norm":
            return x.flatten(2).var(dim=-1, correction=0)
        if "group" in operation:
            return x.reshape(x.shape[0], arguments.get("num_groups") or arguments["group"], -1).var(dim=-1, correction=0)
        x = x.flatten(x.ndim - len(arguments["normalized_shape"]))
        return x.square().mean(dim=-1) if "rms" in operation else x.var(dim=-1, correction=0)

    return variances


def _size(name: str, *, signed: bool) -> Callable[[dict[str, Any]], Tensor]:
    return lambda arguments: arguments[name] if signed else arguments[name].abs()


def _argument_name(eps: Eps) -> str:
    return next(name for name, argument in arguments_of(eps.node).items() if argument is eps.operand)


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
        if str(target) not in WRAPPERS:
            return super().call_function(target, args, kwargs)
        index, inner = next((i, arg) for i, arg in enumerate(args) if isinstance(arg, fx.GraphModule))
        return _Observer(inner, self.wanted, self.seen).run(*args[index + 1 :])
