"""What a network keeps in Python from one call to the next: its attributes, and what they hold, however deep."""

from __future__ import annotations

import functools
import io
import random
import types
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from explr.errors import ExplrError
from explr.invariance.graph import storage_key

_BOOKKEEPING = ("_non_persistent_buffers_set", "_is_full_backward_hook", "_compiled_call_impl")
_METHODS = types.MethodType | types.BuiltinMethodType  # bound to what they are of
_PLAIN = (types.NoneType, bool, int, float, str)
_DEEPEST = 6
_LONGEST = 10_000


def contents(model: nn.Module) -> dict[str, Any]:
    """Return path → value, for every number, text and tensor that the modules of a model reach."""
    return _leaves(_containers(model))


def tensors_in(model: nn.Module) -> dict[str, Tensor]:
    """Return path → tensor, for parameters, buffers and plain attributes."""
    return {path: value for path, value in contents(model).items() if isinstance(value, Tensor)}


def values_in(model: nn.Module) -> dict[str, str]:
    """Return path → value in words, for what a network could look at to decide what to compute.

    Of a tensor, its shape, and its number where a trace knows that; of a function, its code; of a module, its name.
    """
    names = {id(module): name for name, module in model.named_modules()}
    everything = ((f"{path}{key}", value) for path, container in _containers(model) for key, value in _items(container))
    return {path: _in_words(value, names) for path, value in everything if not _is_container(value) or callable(value)}


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Put back what the modules of a model hold, and what that holds; give path → value, as ``contents`` does.

    With the numbers in tensors and arrays, but for parameters, of which a caller makes copies, and for sparse tensors. Of an
    iterator nobody can say where it stands, so that the model raises an ExplrError where it would move one on.
    """
    containers = list(_containers(model))
    before = [(container, _copied(container)) for _, container in containers]
    held = _leaves(containers)
    values = {id(value): value for value in held.values()}.values()
    tensors = [(t, t.detach(), _each_once(t.detach()).clone()) for t in values if isinstance(t, Tensor) and _can_be_kept(t)]
    arrays = [(a, a.copy()) for a in values if isinstance(a, np.ndarray) and a.flags.writeable and not a.dtype.hasobject]
    try:
        if any(_is_iterator(value) for value in values):
            _stop_iterators(containers, type(model).__name__)
        yield held
    finally:
        for container, copy in before:
            _restore(container, copy)
        for tensor, memory, numbers in tensors:
            with torch.inference_mode():  # in which any tensor may be written
                if not torch.equal(own := _each_once(memory), numbers):
                    own.copy_(numbers)
            if storage_key(tensor) != storage_key(memory):  # its .data were set
                tensor.data = memory
        for array, copy in arrays:
            if not np.array_equal(array, copy):
                array[...] = copy


def _leaves(containers: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    everything = ((f"{path}{key}", value) for path, container in containers for key, value in _items(container))
    return {path: value for path, value in everything if not _is_container(value)}


def _stop_iterators(containers: list[tuple[str, Any]], name: str) -> None:
    for path, container in containers:
        for key, value in _items(container):
            if _is_iterator(value) and isinstance(container, types.CellType):
                container.cell_contents = _Stopped(f"{name}.{path}")
            elif _is_iterator(value) and isinstance(container, MutableMapping | list | deque):
                container[key] = _Stopped(f"{name}.{path}{key}")


def _is_iterator(value: Any) -> bool:
    return hasattr(type(value), "__next__") and not _is_container(value) and not isinstance(value, io.IOBase)


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
            for container in _parts(value):
                yield path, container
                waiting += [(f"{path}{key}.", inner, depth + 1) for key, inner in _items(container)]


def _is_container(value: Any) -> bool:
    if type(value) in _PLAIN:  # most are
        return False
    if isinstance(value, nn.Module):  # one that is no submodule, such as in a list
        return True
    if isinstance(value, Tensor | type | types.ModuleType | torch.dtype | torch.device | random.Random):
        return False
    if isinstance(value, types.FunctionType):
        return not (value.__module__ or "").startswith(("torch", "explr.invariance"))
    if isinstance(value, dict | list | tuple | set | deque | types.CellType | functools.partial | _METHODS):
        return True
    kept = hasattr(value, "__dict__") or _slots_of(type(value))
    return bool(kept) and not type(value).__module__.startswith(("torch", "numpy", "builtins"))


def _parts(value: Any) -> list[Any]:
    """Return the containers in which a value keeps what it holds."""
    if isinstance(value, dict | list | tuple | set | deque | types.CellType):
        return [value]
    if isinstance(value, types.FunctionType):
        return [(*(value.__closure__ or ()), value.__dict__)]
    if isinstance(value, _METHODS):
        return [(value.__self__,)]
    if isinstance(value, functools.partial):
        return [(value.func, value.args, value.keywords)]
    return [*([value.__dict__] if hasattr(value, "__dict__") else ()), *([_Slots(value)] if _slots_of(type(value)) else ())]


def _slots_of(kind: type) -> tuple[str, ...]:
    entries = (entry for parent in kind.__mro__ if "__slots__" in vars(parent) for entry in vars(parent).items())
    return tuple(name for name, entry in entries if isinstance(entry, types.MemberDescriptorType))


def _items(container: Any) -> list[tuple[Any, Any]]:
    if isinstance(container, types.CellType):
        try:
            return [("", container.cell_contents)]
        except ValueError:  # empty yet
            return []
    if len(container) > _LONGEST:  # of a table of data, its length
        return [("length", len(container))]
    if isinstance(container, MutableMapping):
        return [(key, value) for key, value in container.items() if key not in _BOOKKEEPING and not _is_dead(value)]
    values = enumerate(sorted(container, key=str) if isinstance(container, set) else container)
    return [(key, value) for key, value in values if not _is_dead(value)]


def _is_dead(value: Any) -> bool:
    """Tell whether a value is a weak reference to nothing, of which one may not even ask the class."""
    if type(value) not in weakref.ProxyTypes:
        return False
    try:
        return value.__class__ is None
    except ReferenceError:
        return True


def _copied(container: Any) -> Any:
    if isinstance(container, types.CellType):
        return _items(container)
    return dict(container) if isinstance(container, MutableMapping) else list(container)


def _restore(container: Any, copy: Any) -> None:
    if isinstance(container, types.CellType):
        if copy:
            container.cell_contents = copy[0][1]
    elif isinstance(container, MutableMapping):
        if [(key, id(value)) for key, value in container.items()] != [(key, id(value)) for key, value in copy.items()]:
            container.clear()
            container.update(copy)
    elif isinstance(container, list | deque | set) and list(map(id, container)) != list(map(id, copy)):
        container.clear()
        (container.update if isinstance(container, set) else container.extend)(copy)


def _can_be_kept(tensor: Tensor) -> bool:
    return not (isinstance(tensor, nn.Parameter) or tensor.is_meta or tensor.is_nested) and tensor.layout is torch.strided


def _each_once(tensor: Tensor) -> Tensor:
    """Return each number of a tensor once, where an axis was expanded."""
    return tensor[tuple(slice(None) if stride else slice(1) for stride in tensor.stride())]


def _in_words(value: Any, names: dict[int, str]) -> str:
    if isinstance(value, FakeTensor) and value.constant is not None:  # a trace branches on it as on a number
        with _disable_current_modes():
            return f"a tensor of {value.constant.tolist()}"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}, digest {hash(value.tobytes()):x}"  # it may be a data set
    if isinstance(value, types.FunctionType):
        return f"{value.__qualname__} of line {value.__code__.co_firstlineno} ({id(value.__code__):x})"
    if isinstance(value, types.BuiltinFunctionType | type):
        return value.__qualname__
    if isinstance(value, nn.Module):
        return f"{type(value).__name__} {names.get(id(value), '')}"
    return repr(value) if isinstance(value, bool | int | float | complex | str | bytes | None) else type(value).__name__


class _Slots(MutableMapping[str, Any]):
    """What an object keeps in its slots, as a dict of them."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner

    def __getitem__(self, name: str) -> Any:
        return getattr(self.owner, name)

    def __setitem__(self, name: str, value: Any) -> None:
        object.__setattr__(self.owner, name, value)  # of a frozen dataclass, too

    def __delitem__(self, name: str) -> None:
        object.__delattr__(self.owner, name)

    def __iter__(self) -> Iterator[str]:
        return iter([name for name in _slots_of(type(self.owner)) if hasattr(self.owner, name)])

    def __len__(self) -> int:
        return len(list(iter(self)))


class _Stopped:
    """Stands for an iterator of a model."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __iter__(self) -> _Stopped:
        return self

    def __next__(self) -> Any:
        raise ExplrError(
            f"{self.path} is an iterator, and a call moves it on, so that no two calls are alike. Take what it gives outside "
            "the model, and hand it over as an input."
        )

    def send(self, value: Any) -> Any:
        """Go on as a generator does."""
        return next(self)
