"""What a network keeps in Python from one call to the next: its attributes, and what they hold, however deep."""

from __future__ import annotations

import functools
import random
import types
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from explr.errors import ExplrError

_BOOKKEEPING = ("_non_persistent_buffers_set", "_is_full_backward_hook", "_compiled_call_impl")
_DEEPEST = 6
_LONGEST = 10_000


def contents(model: nn.Module) -> dict[str, Any]:
    """Return path → value, for every number, text and tensor that the modules of a model reach."""
    return {
        f"{path}{key}": value
        for path, container in _containers(model)
        for key, value in _items(container)
        if not _is_container(value)
    }


def tensors_in(model: nn.Module) -> dict[str, Tensor]:
    """Return path → tensor, for parameters, buffers and plain attributes."""
    return {path: value for path, value in contents(model).items() if isinstance(value, Tensor)}


def values_in(model: nn.Module) -> dict[str, str]:
    """Return path → value in words, for what a network could look at to decide what to compute; of a tensor, its shape."""
    return {path: _in_words(value) for path, value in contents(model).items()}


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Put back what the modules of a model hold, and what that holds."""
    before = [(container, _copied(container)) for _, container in _containers(model)]
    try:
        yield
    finally:
        for container, copy in before:
            _restore(container, copy)


@contextmanager
def chance_in_tensors(what: str) -> Iterator[None]:
    """Raise an ExplrError if random numbers are drawn otherwise than as tensors; put back those generators."""
    python, legacy = random.getstate(), np.random.get_state(legacy=False)
    try:
        yield
        drawn = "Python's random" if random.getstate() != python else "numpy.random"
        if random.getstate() != python or str(np.random.get_state(legacy=False)) != str(legacy):
            raise ExplrError(
                f"{what} draws from {drawn}, of which a trace sees one outcome, and a proof must hold for all. Draw with "
                "torch.rand, and choose with torch.where; or use explr.lemma1, which goes by numbers."
            )
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


def _containers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    seen = {id(module) for module in model.modules()}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        yield prefix, vars(module)
        waiting = [
            (prefix + ("" if key in ("_parameters", "_buffers", "_modules") else f"{key}."), value, 1)
            for key, value in _items(vars(module))
        ]
        while waiting:
            path, value, depth = waiting.pop()
            if not _is_container(value) or id(value) in seen or depth > _DEEPEST:
                continue
            seen.add(id(value))
            container = value if isinstance(value, dict | list | tuple | set | deque | types.CellType) else _vars(value)
            yield path, container
            waiting += [(f"{path}{key}.", inner, depth + 1) for key, inner in _items(container)]


def _is_container(value: Any) -> bool:
    if isinstance(value, nn.Module):  # one that is no submodule, such as in a list
        return True
    if isinstance(value, Tensor | type | types.ModuleType | torch.dtype | torch.device):
        return False
    if isinstance(value, types.FunctionType):
        return not (value.__module__ or "").startswith(("torch", "explr.invariance"))
    if isinstance(value, dict | list | tuple | set | deque | types.CellType | functools.partial):
        return True
    return hasattr(value, "__dict__") and not type(value).__module__.startswith(("torch", "numpy", "builtins"))


def _vars(value: Any) -> Any:
    if isinstance(value, types.FunctionType):
        return (*(value.__closure__ or ()), value.__dict__)
    return (value.func, value.args, value.keywords) if isinstance(value, functools.partial) else value.__dict__


def _items(container: Any) -> list[tuple[Any, Any]]:
    if isinstance(container, types.CellType):
        try:
            return [("", container.cell_contents)]
        except ValueError:  # empty yet
            return []
    if len(container) > _LONGEST:  # of a table of data, its length
        return [("length", len(container))]
    if isinstance(container, dict):
        return [(key, value) for key, value in container.items() if key not in _BOOKKEEPING]
    return list(enumerate(sorted(container, key=str) if isinstance(container, set) else container))


def _copied(container: Any) -> Any:
    if isinstance(container, types.CellType):
        return _items(container)
    return dict(container) if isinstance(container, dict) else list(container)


def _restore(container: Any, copy: Any) -> None:
    if isinstance(container, types.CellType):
        if copy:
            container.cell_contents = copy[0][1]
    elif isinstance(container, dict):
        if [(key, id(value)) for key, value in container.items()] != [(key, id(value)) for key, value in copy.items()]:
            container.clear()
            container.update(copy)
    elif isinstance(container, list | deque | set) and list(map(id, container)) != list(map(id, copy)):
        container.clear()
        (container.update if isinstance(container, set) else container.extend)(copy)


def _in_words(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"an array {value.tobytes()!r}"
    return repr(value) if isinstance(value, bool | int | float | complex | str | bytes | None) else type(value).__name__
