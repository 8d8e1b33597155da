"""Reading the graph that ``torch.export.export`` makes: what a node calls, on which tensors, from which line."""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

WRAPPERS = ("wrap_with_set_grad_enabled", "wrap_with_autocast")  # regions under no_grad or autocast, graphs of their own
# Norms with statistics per channel.
PER_CHANNEL = (
    "batch_norm", "instance_norm", "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_functional",
    "_batch_norm_with_update", "_batch_norm_with_update_functional", "cudnn_batch_norm", "miopen_batch_norm",
)  # fmt: skip


def lifted_tensors(program: ExportedProgram) -> dict[str, str]:
    """Return placeholder → name in the model, for the parameters, buffers and constants that a graph takes as inputs."""
    signature = program.graph_signature
    return {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **getattr(signature, "inputs_to_lifted_tensor_constants", {}),
    }


def lookup(program: ExportedProgram, name: str) -> Tensor | None:
    """Return the tensor that a placeholder stands for, given its name in the model."""
    value = program.state_dict.get(name, program.constants.get(name))
    return value if isinstance(value, Tensor) else None


def placeholders(program: ExportedProgram, inputs: Any) -> Iterator[tuple[fx.Node, Any]]:
    """Yield what a graph takes from outside, and what that is: a tensor or an object of the model, or a leaf of its inputs."""
    lifted, leaves = lifted_tensors(program), iter(tree_leaves(inputs))
    objects = getattr(program.graph_signature, "inputs_to_lifted_custom_objs", {})  # such as generators
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in objects:
            yield node, program.constants.get(objects[node.name])
        elif node.op == "placeholder":
            yield node, lookup(program, lifted[node.name]) if node.name in lifted else next(leaves, None)


def attribute(module: fx.GraphModule, path: Any) -> Any:
    """Return what a get_attr node gets."""
    value: Any = module
    for name in str(path).split("."):
        value = getattr(value, name)
    return value


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of a call of an ATen operation by name, with its defaults."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {}
    schema = node.target._schema.arguments
    arguments = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    return arguments | dict(zip((argument.name for argument in schema), node.args, strict=False)) | node.kwargs


def nodes_in(tree: Any) -> list[fx.Node]:
    """Return the nodes among arguments, however deep."""
    found: list[fx.Node] = []
    fx.map_arg(tree, found.append)
    return found


def tensors_of(node: fx.Node) -> list[Tensor]:
    """Return the (fake) tensors that a node gives."""
    value = node.meta.get("val")
    values = value if isinstance(value, list | tuple) else [value]
    return [value for value in values if isinstance(value, Tensor)]


def storage_key(tensor: Tensor) -> int:
    """Identify a storage; the graph keeps its (fake) tensors alive, so no two share a key by chance."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except NotImplementedError:  # a sparse tensor has several storages, and shares none
        return id(tensor)


def storage_of(node: fx.Node) -> int:
    """Identify the storage of a node's tensor."""
    return storage_key(node.meta["val"])


def written_arguments(node: fx.Node) -> list[tuple[str, fx.Node, set[str]]]:
    """Return the tensors that a call writes into: argument, node, and the names under which results are the same memory."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
        return []
    if operation_name(node) == "detach":  # says that it writes, and writes nothing
        return []
    arguments = arguments_of(node)
    return [
        (argument.name, written, set(argument.alias_info.before_set))
        for argument in node.target._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
        for written in nodes_in(arguments.get(argument.name))
    ]


def regions_of(module: fx.GraphModule) -> Iterator[tuple[fx.Node, fx.GraphModule, list[tuple[fx.Node, fx.Node]]]]:
    """Yield regions under no_grad or autocast: the call, the graph, and its placeholders with what they are outside."""
    for node in module.graph.nodes:
        if node.op == "call_function" and str(node.target) in WRAPPERS:
            index, graph = next(
                (i, arg) for i, arg in enumerate(node.args) if isinstance(arg, fx.Node) and arg.op == "get_attr"
            )
            inner = attribute(module, graph.target)
            holes = [hole for hole in inner.graph.nodes if hole.op == "placeholder"]
            pairs = zip(holes, node.args[index + 1 :], strict=False)
            yield node, inner, [(h, a) for h, a in pairs if isinstance(h.meta.get("val"), Tensor) and isinstance(a, fx.Node)]


def written_storages(module: fx.GraphModule) -> set[int]:
    """Return the storages that some operation writes into."""
    return _storages(module, lambda node: (written for _, written, _ in written_arguments(node)))


def read_storages(module: fx.GraphModule) -> set[int]:
    """Return the storages that some operation reads, but for norms in training mode, which only keep their statistics there."""

    def read(node: fx.Node) -> Iterator[fx.Node]:
        kept = running_statistics(node)
        if node.target is not operator.getitem and str(node.target) not in WRAPPERS:
            yield from (argument for argument in nodes_in((node.args, node.kwargs)) if argument not in kept)

    return _storages(module, read)


def _storages(module: fx.GraphModule, of_node: Callable[[fx.Node], Iterable[fx.Node]]) -> set[int]:
    found = {storage_of(n) for node in module.graph.nodes for n in of_node(node) if isinstance(n.meta.get("val"), Tensor)}
    for _, inner, holes in regions_of(module):
        inside = _storages(inner, of_node)
        found |= inside | {storage_of(argument) for hole, argument in holes if storage_of(hole) in inside}
    return found


def operation_name(node: fx.Node) -> str:
    """Name an ATen operation without its overload, and without the underscore of its in-place variant."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return str(node.name if node.op != "call_function" else getattr(node.target, "__name__", node.target))
    namespace, name = node.target._schema.name.split("::")
    name = name.removesuffix("_") if node.target._schema.is_mutable else name
    return name if namespace == "aten" else f"{namespace}::{name}"


def module_path(node: fx.Node, model: nn.Module) -> str:
    """Return the path of the innermost module that makes a call.

    What is called in a part of a container, as in ``self.layers[1:3]``, has a path of its own in a trace.
    """
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    if "slice(" not in path:
        return path
    module: Any = model
    for name in path.split("."):
        part = re.fullmatch(r"slice\((.+), (.+), (.+)\)", name)
        ends = [None if end == "None" else int(end) for end in part.groups()] if part else []
        module = module[slice(*ends)] if part else getattr(module, name)
    return next((own for own, other in model.named_modules() if other is module), "")


def norm_name(node: fx.Node, model: nn.Module) -> str:
    """Name a norm by its module; one that is called as a function, by the module that calls it and by its node."""
    path = module_path(node, model)
    return path if hasattr(model.get_submodule(path), "eps") else f"{path}:{node.name}".lstrip(":")


def source_line(node: fx.Node) -> str:
    """Return the innermost line of the trace that is not torch's own."""
    torch_folder = os.path.dirname(torch.__file__)
    frames = re.findall(r'File "(.+?)", line (\d+), in .*\n\s*(.*)', node.meta.get("stack_trace") or "")
    for file, number, text in reversed(frames):
        if not file.startswith(torch_folder):
            name = "cell" if "ipykernel" in file else os.path.basename(file)  # a cell's file has another name in every session
            return f"{name}:{number}: {text.strip()}"
    return ""


def running_statistics(node: fx.Node) -> list[fx.Node]:
    """Return the running mean and variance that a norm in training mode updates, though few schemas say so."""
    if not isinstance(node.target, torch._ops.OpOverload) or operation_name(node) not in PER_CHANNEL:
        return []
    arguments = arguments_of(node)
    if not arguments.get("training", arguments.get("use_input_stats", True)):
        return []
    return [arguments[name] for name in ("running_mean", "running_var") if isinstance(arguments.get(name), fx.Node)]


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its name where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
