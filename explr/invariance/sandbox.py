"""Running a model, and tracing it, such that it stays as it is: its buffers, its training flags, the random state."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from explr.errors import ExplrError
from explr.invariance.attributes import attributes_kept
from explr.invariance.chance import generators_kept
from explr.invariance.graph import first_line

_DATA = (Tensor.data.__get__, Tensor.data.__set__)  # type: ignore[attr-defined]


def check_model(model: Any, inputs: Sequence[Any], function: str) -> None:
    """Raise an ExplrError, in the name of a function, for a model that cannot be analysed."""
    if not isinstance(model, nn.Module):
        raise ExplrError(f"{function} takes a torch.nn.Module, not {type(model).__name__}.")
    compiled = [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    if compiled and (isinstance(model, torch.jit.ScriptModule) or function != "lemma1"):  # which runs a part as it is
        raise ExplrError(
            f"{compiled[0] or type(model).__name__} comes from torch.jit, and {function} takes a network in Python. Give it "
            "the module that torch.jit.script or torch.jit.trace was given, whose parameters it shares."
        )
    if sharded := [name for name, parameter in model.named_parameters() if hasattr(parameter, "full_tensor")]:
        raise ExplrError(
            f"{sharded[0]} of {type(model).__name__} is a DTensor, of which a process has a part, and cannot be analysed. Call "
            "scale_invariance(model, ...) before fully_shard; for ExpLR leave out model=, and mark groups of the sharded "
            "parameters: scale_invariant=True for those whose names report.largest_part(names) returns, False for the others."
        )
    if not inputs:
        raise ExplrError(
            f"{function} needs inputs to run the model on: {function}(model, torch.randn(2, 3, 32, 32)), for example."
        )
    lazy = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if is_lazy(tensor)]
    if lazy:
        raise ExplrError(f"{lazy[0]} of {type(model).__name__} has no shape yet. Run the model once, which initialises it.")
    if not model.training:
        raise ExplrError(
            f"{type(model).__name__} is in eval mode, where norms use stored statistics, which do not scale with the weights. "
            "Call model.train(); its running statistics stay as they are."
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ExplrError(f"no parameter of {type(model).__name__} requires grad, so none would scale. Unfreeze what you train.")


@contextmanager
def left_as_it_is(model: nn.Module) -> Iterator[None]:
    """Put back at the end what the modules keep in Python, and the random state, on the CPU and on the devices of the model."""
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices), attributes_kept(model) as held, generators_kept(held):
        yield


def export(model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> ExportedProgram:
    """Trace a model into a graph of ATen operations, without a word on stderr."""
    logged = logging.root.manager.disable
    logging.disable(logging.ERROR)  # pages about what the exception says in a line
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()), attributes_kept(model), _traceable(model):
            warnings.simplefilter("ignore")  # of torch.export, about modules that set attributes: explr.invariance.steps
            return torch.export.export(model, inputs, kwargs, strict=False)
    except ExplrError:
        raise
    except Exception as error:
        with _Watch() as watch:
            run(model, {}, inputs, "example inputs", kwargs)  # does the model run at all?
        why, remedy = first_line(error), "Rewrite what depends on the values of tensors"
        if "fake tensor in the exported program" in why and watch.data:  # which says nothing to anybody
            why, remedy = "it goes by the .data of a tensor", "Write under torch.no_grad(), with copy_ and not with .data"
        raise ExplrError(
            f"torch.export cannot trace {type(model).__name__}: {why}. {remedy}, or use explr.lemma1, which needs no graph."
        ) from error
    finally:
        logging.disable(logged)


@contextmanager
def _traceable(model: nn.Module) -> Iterator[None]:
    """Let norms with cumulative averages be traced.

    They divide by the number of batches so far, as a Python number, which a trace cannot follow. How fast running statistics
    run changes nothing in a training-mode forward pass but the statistics.
    """
    norms = [module for module in model.modules() if getattr(module, "momentum", 0.0) is None and isinstance(module, _NormBase)]
    for module in norms:
        module.momentum = 0.1
    try:
        yield
    finally:
        for module in norms:
            module.momentum = None


def run(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    inputs: Sequence[Any],
    what: str,
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """Call the model with other parameters, and copies of the rest and of its buffers, so that it stays as it is."""
    own = (*model.named_parameters(), *model.named_buffers())
    copies = {name: _copy(tensor) for name, tensor in own if name not in parameters}
    inputs, named = tree_map_only(Tensor, lambda x: x.detach().clone(), (tuple(inputs), dict(kwargs or {})))
    try:
        return functional_call(model, {**parameters, **copies}, inputs, named)
    except ExplrError:
        raise
    except Exception as error:
        shapes = ", ".join([_shape(x) for x in inputs] + [f"{name}={_shape(x)}" for name, x in named.items()])
        raise ExplrError(f"{type(model).__name__} does not run on {what} {shapes}: {first_line(error)}") from error


def hooked_alike(copy: Tensor, original: Tensor) -> Tensor:
    """Give a copy of a parameter the hooks on its gradient; not those for afterwards, which may take a step."""
    for hook in (original._backward_hooks or {}).values() if copy.requires_grad else ():
        copy.register_hook(hook)
    return copy


def _copy(tensor: Tensor) -> Tensor:
    copy = tensor.detach().clone()
    return nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


class _Watch(TorchFunctionMode):
    """Sees whether a network gets at the .data of a tensor."""

    data = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.data |= function in _DATA
        return function(*args, **(kwargs or {}))
