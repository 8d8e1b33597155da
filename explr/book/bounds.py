"""Numbers that a chapter measures, held against the bounds that it states: for claims, and for everything else.

A checked cell prints the number and its bound; a test that runs the cell again compares the words and the bound, while the
number may differ in its last digits from machine to machine. A number that breaks its bound is an error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from explr.errors import ExplrError


def hold(
    what: str,
    measured: float,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    equals: float | None = None,
    within: float = 0.0,
    interval: Sequence[float] | None = None,
) -> tuple[bool | None, str]:
    """Return whether a number keeps to a bound, and the bound in words; None where its interval only overlaps the bound.

    Args:
        what: what the number is, for errors.
        measured: the number.
        at_most: it must not be above this ...
        at_least: ... or not below this ...
        equals: ... or be this, up to ``within``. Give exactly one of the three.
        within: tolerance of ``equals``, absolute.
        interval: lower and upper end of the number's confidence interval.

    Raises:
        ExplrError: for none or several bounds, a measurement that is no finite number, or an interval without the number in it.

    >>> hold("a cosine", 3e-17, at_most=1e-12)
    (True, 'at most 1e-12')
    """
    if (at_most, at_least, equals).count(None) != 2:
        raise ExplrError(f"{what} needs exactly one of at_most, at_least and equals.")
    if not math.isfinite(measured):  # nan breaks no bound and keeps to none; an infinite number is a run that diverged
        raise ExplrError(f"{what}: measured {measured}, which decides nothing. Look for what made it no finite number.")
    low, high = interval or (measured, measured)
    if interval and not low <= measured <= high:
        raise ExplrError(f"{what}: {measured} does not lie in its interval, {low} to {high}.")
    if at_most is not None:
        words, least, most = f"at most {at_most:g}", -math.inf, at_most
    elif at_least is not None:
        words, least, most = f"at least {at_least:g}", at_least, math.inf
    else:
        assert equals is not None
        words = f"{equals:g}" + (f" within {within:g}" if within else "")
        low, high, least, most = low - equals, high - equals, -within, within
    holds = True if least <= low and high <= most else None if low <= most and least <= high else False
    return holds, words


def check(
    quantity: str,
    measured: float,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    equals: float | None = None,
    within: float = 0.0,
) -> None:
    """Print a measured number beside the bound that it keeps to.

    Args:
        quantity: what was measured, in words; percentages and other units stand there.
        measured: the number.
        at_most: it must not be above this ...
        at_least: ... or not below this ...
        equals: ... or be this, up to ``within``. Give exactly one of the three.
        within: tolerance of ``equals``, absolute.

    Raises:
        ExplrError: if it breaks the bound or is no finite number, or for none or several bounds.

    >>> check("largest change of the logits", 3.14159e-15, at_most=1e-12)
    largest change of the logits: measured 3.1e-15 (at most 1e-12)
    >>> check("growth in an epoch", 1.48095, equals=1.481, within=5e-4)
    growth in an epoch: measured 1.481 (1.481 within 0.0005)
    """
    value = float(measured)
    holds, words = hold(quantity, value, at_most=at_most, at_least=at_least, equals=equals, within=within)
    digits = 2 if equals is None else 4
    said = f"{quantity}: measured {value:.{digits}g} ({words})"
    if not holds:
        raise ExplrError(f"{said}: it breaks its bound.")
    print(said)
