"""Numbers that come from users: in whatever form, as float64, and within the range where something is known of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt

from explr.errors import ExplrError

FloatArray = npt.NDArray[np.float64]
Rates = Sequence[float] | npt.NDArray[np.floating]


def rates(name: str, values: Rates) -> FloatArray:
    """Return a sequence of numbers, one per step, as a float64 array of length 1 or more."""
    if hasattr(values, "optimizer"):
        raise ExplrError(
            f"{name}={type(values).__name__} is a scheduler, not its rates: explr.schedules.future(scheduler, steps) gives "
            "them, and ExpLR(optimizer, scheduler) converts them in training, as they come."
        )
    if callable(values):
        raise ExplrError(f"{name} is a function, not its values: explr.schedules.sample(function, steps) gives them.")
    array = floats(name, values)
    if array.ndim != 1 or array.size == 0:
        raise ExplrError(f"{name} must be a sequence of at least one number, one per step; got shape {array.shape}.")
    return array


def floats(name: str, values: Any) -> FloatArray:
    """Return numbers in whatever form, torch tensors and iterators among them, as a float64 array."""
    try:
        if hasattr(values, "detach"):  # a tensor of any dtype and device, without importing torch
            values = values.detach().cpu()
            values = (values if values.is_complex() else values.double()).numpy()
        elif hasattr(values, "__next__"):
            values = list(values)
        array = np.asarray(values)
        if array.dtype.kind in "cSU":  # numpy would drop an imaginary part, and read a text
            raise ValueError
        return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ExplrError(f"{name}={short(values)} must be numbers, each within the range of float64.") from None


def short(value: Any) -> str:
    """Return a value as a message has it, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # an int of more digits than Python prints
        text = f"a number of {value.bit_length()} bits"
    return text if len(text) <= 100 else f"{text[:60]}... ({len(text)} characters)"


def one_float(name: str, value: Any) -> float:
    """Return one number, in whatever form it comes."""
    array = floats(name, value)
    if array.size != 1:
        raise ExplrError(f"{name} must be one number; got shape {array.shape}.")
    return float(array.reshape(()))


_MOST = 10**9  # numbers that an array of one a step holds


def whole(name: str, value: Any, least: int = 1, *, of: str = "steps", most: int = _MOST) -> int:
    """Return a whole number of at least ``least`` and at most ``most``; numpy's are taken, 2.0 is not.

    >>> whole("steps", 2.5)
    Traceback (most recent call last):
    explr.errors.ExplrError: steps=2.5 must be a number of steps, >= 1.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ExplrError(f"{name}={short(value)} must be a number of {of}, >= {least}.")
    if int(value) > most:
        raise ExplrError(f"{name}={short(value)} must be a number of {of} that a run can have, at most {most:,}.")
    return int(value)


def per_step(name: str, value: float | Rates, steps: int) -> FloatArray:
    """Return one number per step; a single one is repeated."""
    array = floats(name, value)
    if array.ndim == 0:
        return np.full(steps, float(array))
    if array.shape != (steps,):
        raise ExplrError(f"{name} must be one number or one per step: got shape {array.shape} for {steps} steps.")
    return array


def check_lr(lr: float | FloatArray) -> None:
    """Refuse a learning rate that no schedule without decay can have."""
    check(
        "lr",
        lr,
        lambda v: (v > 0) & (v < np.inf),
        "must be positive and finite; let a schedule start and end above 0 (explr.ExpLR takes a step at rate 0)",
    )


def check_weight_decay(weight_decay: float | FloatArray) -> None:
    """Refuse a weight decay that is negative or not finite."""
    check("weight_decay", weight_decay, lambda v: (v >= 0) & (v < np.inf), "must be finite and not negative")


def check_momentum(momentum: float | FloatArray) -> None:
    """Refuse a momentum outside [0, 1)."""
    check("momentum", momentum, lambda v: (v >= 0) & (v < 1), "must lie in [0, 1); 0.9 is usual")


def check(name: str, values: float | FloatArray, accept: Callable[[FloatArray], npt.NDArray[np.bool_]], rule: str) -> None:
    """Raise an error that names the first value that is not accepted, and its step."""
    array = np.asarray(values, dtype=np.float64)
    bad = np.flatnonzero(~accept(np.atleast_1d(array)))
    if bad.size:
        where = f" at step {bad[0]}" if array.ndim else ""
        raise ExplrError(f"{name}={np.atleast_1d(array)[bad[0]]}{where}: {name} {rule}.")


def is_number(value: Any) -> bool:
    """Tell whether a value is one number that float64 can hold, inf and nan among them; a truth value is none.

    >>> is_number(0.1), is_number(math.inf), is_number(10**400), is_number(True), is_number("0.1")
    (True, True, False, False, False)
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True


def alike(value: Any, pattern: Any) -> bool:
    """Tell whether a value has the form of a pattern: numbers where it has numbers, lists as long, the same keys.

    >>> alike({"a": [1, 2.0]}, {"a": [0.5, 3]}), alike({"a": [1]}, {"a": [0.5, 3]}), alike("x", 1.0), alike(math.nan, 1.0)
    (True, False, False, False)
    """
    if isinstance(pattern, Mapping):
        return (
            isinstance(value, Mapping) and value.keys() == pattern.keys() and all(alike(value[k], pattern[k]) for k in pattern)
        )
    if isinstance(pattern, list | tuple):
        same = isinstance(value, list | tuple) and len(value) == len(pattern)
        return same and all(map(alike, value, pattern))
    if isinstance(pattern, Real) and not isinstance(pattern, bool):
        return is_number(value) and not math.isnan(value)
    return type(value) is type(pattern)
