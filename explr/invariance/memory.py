"""Where degrees live: in memory, by address, so that tensors that share it are seen to share it.

A graph names tensors, but an operation in place writes memory: of a view, of a buffer that is a view of a parameter, of one
parameter among many that lie in a flat buffer. So a degree belongs to a range of bytes. Storages that the graph makes are
ranges of their own; those of parameters, buffers, constants and inputs lie where they lie in the machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from explr.invariance.graph import storage_key

Degree = TypeVar("Degree")


def byte_range(tensor: Tensor) -> tuple[float, float]:
    """Return where in its storage a tensor lies, from its first byte to past its last; all of it where sizes are data."""
    try:
        sizes = [*tensor.shape, *tensor.stride(), tensor.storage_offset()]
    except (RuntimeError, NotImplementedError):  # a sparse tensor has no strides
        return 0, math.inf
    if not all(isinstance(size, int) for size in sizes):
        return 0, math.inf
    low = int(tensor.storage_offset()) * tensor.element_size()
    if tensor.numel() == 0:
        return low, low
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return low, low + int(last + 1) * tensor.element_size()


def storage_span(tensor: Tensor) -> tuple[object, int, int]:
    """Return the memory in which a real tensor's storage lies, and its first byte and its last there."""
    try:
        storage = tensor.untyped_storage()
        if start := storage.data_ptr():
            return str(tensor.device), start, start + storage.nbytes()
    except (RuntimeError, NotImplementedError):  # sparse, or not there yet
        pass
    return storage_key(tensor), 0, 1  # no address, such as a tensor on the meta device: in a memory of its own


def fills(tensor: Tensor) -> bool:
    """Tell whether a tensor is dense: whether every byte from its first to its last is its own."""
    low, high = byte_range(tensor)
    if high == math.inf:
        try:
            size = tensor.untyped_storage().nbytes()
            return statically_known_true(tensor.numel() * tensor.element_size() == size) and tensor.is_contiguous()
        except (RuntimeError, NotImplementedError):
            return False
    return tensor.numel() * tensor.element_size() == high - low and 0 not in tensor.stride()


@dataclass(frozen=True)
class Place:
    """How a tensor lies in its storage; sizes that are data are kept as text, and equal only themselves."""

    storage: int
    dtype: str
    sizes: tuple[int | str, ...]
    strides: tuple[int | str, ...]
    offset: int | str


def place_of(tensor: Tensor) -> Place | None:
    """Return how a tensor lies in its storage; None for one without strides."""

    def known(size: object) -> int | str:
        return size if isinstance(size, int) else str(size)

    try:
        strides, offset = tuple(map(known, tensor.stride())), known(tensor.storage_offset())
    except (RuntimeError, NotImplementedError):
        return None
    return Place(storage_key(tensor), str(tensor.dtype), tuple(map(known, tensor.shape)), strides, offset)


def in_order(sizes: Iterable[object]) -> Place:
    """Return how a tensor of these sizes lies in a storage of its own, one row after the other."""
    known = tuple(size if isinstance(size, int) else str(size) for size in sizes)
    strides: list[int | str] = []
    stride: int | str = 1
    for size in reversed(known):
        strides.append(stride)
        stride = stride * size if isinstance(stride, int) and isinstance(size, int) else "data"
    return Place(0, "", known, tuple(reversed(strides)), 0)


def axes_seen(axes: frozenset[int], place: Place | None, other: Place | None) -> frozenset[int] | None:
    """Return along which axes of another view of the same memory that differs which differs along these axes of a tensor.

    An address in a dense tensor is a number whose digits are the indices. An axis of a view that changes one digit, and never
    carries, or counts through several, moves along those axes of the tensor alone. Returns None where this cannot be said.
    """
    if place is None or other is None:
        return None
    if place == other:
        return axes
    if (place.storage, place.dtype) != (other.storage, other.dtype):
        return None
    sizes, strides, offset = _numbers(place.sizes), _numbers(place.strides), _numbers((place.offset, other.offset))
    seen_sizes, seen_strides = _numbers(other.sizes), _numbers(other.strides)
    if sizes is None or strides is None or offset is None or seen_sizes is None or seen_strides is None or 0 in sizes:
        return None
    digits: list[list[int]] = []  # of what they are worth, how many there are, whether they are of our axes, the largest met
    dense = 1
    for stride, size, mine in sorted(
        (t, n, axis in axes) for axis, (n, t) in enumerate(zip(sizes, strides, strict=True)) if n > 1
    ):
        if stride != dense:
            return None
        dense *= size
        if digits and digits[-1][2] == mine:
            digits[-1][1] *= size
        else:
            digits.append([stride, size, mine, 0])
    start = offset[1] - offset[0]
    for digit in reversed(digits):
        digit[3], start = divmod(start, digit[0])
    found = set()
    for axis, size, stride in _within_digits(digits, seen_sizes, seen_strides):
        digit = next((digit for digit in reversed(digits) if digit[0] <= stride), [0, 0, 0, 0])
        if not digit[0] or stride % digit[0]:
            return None
        digit[3] += stride // digit[0] * (size - 1)
        if digit[2]:
            found.add(axis)
    fits = start == 0 and all(0 <= met < count for _, count, _, met in digits)
    return frozenset(found) if fits else None


def _within_digits(digits: list[list[int]], sizes: list[int], strides: list[int]) -> Iterator[tuple[int, int, int]]:
    """Yield axes of a view as axis, size, stride; one that counts through whole digits, as one axis for each digit."""
    for axis, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
        for worth, count, *_ in digits:
            steps = worth * count // max(stride, 1)
            if worth <= stride and 1 < steps < size and worth * count % stride == 0 and size % steps == 0:
                yield axis, steps, stride
                size, stride = size // steps, worth * count
        if size > 1 and stride:
            yield axis, size, stride


def _numbers(sizes: tuple[int | str, ...]) -> list[int] | None:
    numbers = [size for size in sizes if isinstance(size, int)]
    return numbers if len(numbers) == len(sizes) else None


@dataclass
class _Region(Generic[Degree]):
    low: float
    high: float
    degree: Degree


class Memory(Generic[Degree]):
    """The degrees of ranges of bytes.

    Args:
        nobodys: the degree of bytes that no tensor has written.
    """

    def __init__(self, nobodys: Degree) -> None:
        self._nobodys = nobodys
        self._homes: dict[int, tuple[object, float]] = {}  # storage in the graph → memory, and where its byte 0 is there
        self._regions: dict[object, list[_Region[Degree]]] = {}

    def settle(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Say which real tensors some tensors of the graph stand for: storages that overlap there are one memory here."""
        home: object = None
        reach: tuple[object, int] = (None, 0)
        for memory, start, end, traced, real in sorted(
            ((*storage_span(real), traced, real) for traced, real in pairs), key=lambda span: (str(span[0]), span[1])
        ):
            if memory != reach[0] or start >= reach[1]:
                home, reach = (memory, start), (memory, end)
            reach = (memory, max(reach[1], end))
            shift = start + byte_range(real)[0] - byte_range(traced)[0]
            self._homes[storage_key(traced)] = (home, shift)

    def same(self, tensor: Tensor, other: Tensor) -> None:
        """Say that two tensors of the graph are one, such as the argument of a region and what it is called there."""
        if storage_key(tensor) != storage_key(other):
            home, shift = self._home(other)
            shift += byte_range(other)[0] - byte_range(tensor)[0]
            self._homes.setdefault(storage_key(tensor), (home, shift))

    def knows(self, tensor: Tensor) -> bool:
        """Tell whether a tensor lies in memory that has a degree somewhere."""
        return self._home(tensor)[0] in self._regions

    def touches(self, tensor: Tensor) -> bool:
        """Tell whether anything of what a tensor covers has a degree."""
        return bool(self._overlapping(*self._locate(tensor)))

    def read(self, tensor: Tensor) -> list[Degree] | None:
        """Return the distinct degrees of what a tensor covers; None where nothing is known of its memory."""
        home, low, high = self._locate(tensor)
        if home not in self._regions:
            return None
        degrees: list[Degree] = []
        reach = low
        for region in sorted(self._overlapping(home, low, high), key=lambda region: region.low):
            if region.low > reach:
                break
            reach = max(reach, region.high)
        if reach < high < math.inf:
            degrees.append(self._nobodys)
        for region in self._overlapping(home, low, high):
            if region.degree not in degrees:
                degrees.append(region.degree)
        return degrees

    def write(self, tensor: Tensor, degree: Degree, agree: Callable[[list[Degree]], Degree], *, placed: bool = False) -> None:
        """Overwrite what a tensor covers; what it covers in part keeps its degree, so the two must agree.

        ``placed`` is whether a degree with axes says how they lie in the memory of this tensor.
        """
        home, low, high = self._locate(tensor)
        dense = fills(tensor)
        found = self._overlapping(home, low, high)
        covered = [r for r in found if dense and low <= r.low and (r.high <= high or high == math.inf)]
        touched = [r for r in found if not any(r is c for c in covered)]
        if touched:
            degree = agree([*(region.degree for region in touched), degree])
        elif not placed and any(region.degree != degree for region in covered):
            degree = agree([degree])  # other views of these bytes may have other axes, along which parts would be others
        for region in touched:
            region.degree = degree
        regions = [r for r in self._regions.get(home, []) if not any(r is c for c in covered)]
        if low < high and not any(r.low <= low and high <= r.high for r in touched):
            regions.append(_Region(low, high, degree))
        self._regions[home] = regions

    def create(self, tensor: Tensor, degree: Degree) -> None:
        """Give a whole new storage a degree."""
        try:
            size: float = tensor.untyped_storage().nbytes()
        except (RuntimeError, NotImplementedError):
            size = math.inf
        home = self._home(tensor)[0]
        self._regions[home] = [_Region(0, size if isinstance(size, int) and size else math.inf, degree)]

    def _overlapping(self, home: object, low: float, high: float) -> list[_Region[Degree]]:
        regions = self._regions.get(home, [])
        return [region for region in regions if region.low < high and low < region.high] if low < high else []

    def _home(self, tensor: Tensor) -> tuple[object, float]:
        return self._homes.get(storage_key(tensor), (storage_key(tensor), 0))

    def _locate(self, tensor: Tensor) -> tuple[object, float, float]:
        home, shift = self._home(tensor)
        low, high = byte_range(tensor)
        return home, low + shift, high + shift
