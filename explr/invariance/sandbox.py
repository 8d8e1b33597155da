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
from torch.utils._pytree import tree_map_only

from explr.errors import ExplrError


def check_model(model: Any, inputs: Sequence[Any], function: str) -> None:
    """Raise an ExplrError, in the name of a function, for a model that cannot be analysed."""
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
def random_state_kept(model: nn.Module) -> Iterator[None]:
    """Put the random state back at the end, on the CPU and on the devices of the model."""
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        yield


def export(model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> ExportedProgram:
    """Trace a model into a graph of ATen operations, without a word on stderr."""
    logged = logging.root.manager.disable
    logging.disable(logging.ERROR)  # pages about what the exception says in a line
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")  # of torch.export, about modules that set attributes; it puts them back
            return torch.export.export(model, inputs, kwargs, strict=False)
    except Exception as error:
        run(model, dict(model.named_parameters()), inputs, "example inputs", kwargs)  # does the model run at all?
        raise ExplrError(
            f"torch.export cannot trace {type(model).__name__}: {first_line(error)}. Rewrite what depends on the values of "
            "tensors, or use explr.lemma1, which needs no graph."
        ) from error
    finally:
        logging.disable(logged)


def run(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    inputs: Sequence[Any],
    what: str,
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """Call the model with other parameters and copies of its buffers, so that it stays as it is."""
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    inputs, named = tree_map_only(Tensor, lambda x: x.detach().clone(), (tuple(inputs), dict(kwargs or {})))
    try:
        return functional_call(model, {**parameters, **buffers}, inputs, named)
    except Exception as error:
        shapes = ", ".join([_shape(x) for x in inputs] + [f"{name}={_shape(x)}" for name, x in named.items()])
        raise ExplrError(f"{type(model).__name__} does not run on {what} {shapes}: {first_line(error)}") from error


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its name where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
