"""Drawings of two runs at once, one with weight decay and one without, from numbers that the caller computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from explr.book.style import COLOURS, INK, OTHER_COLOURS, STYLE, WIDTH
from explr.checks import Rates
from explr.errors import ExplrError, needs

with needs("figures"):
    import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def two_rails(scales: Rates, rates: Rates, twin_rates: Rates, *, carried: Rates | None = None) -> Figure:
    r"""Draw the runs with and without weight decay as two rails, and the factor between their weights as rungs.

    Args:
        scales: P_t, before each step and after the last.
        rates: η_t of the run with weight decay, one a step.
        twin_rates: η̃_t of the run without, one a step.
        carried: κ_t, before each step and after the last: drawn as a chain that decay feeds and that leaks into the next step.

    Raises:
        ExplrError: if the lengths do not fit.

    >>> figure = two_rails([1, 2, 3], [0.5, 0.25], [1, 1.5])
    >>> [text.get_text() for text in figure.axes[0].texts if " = " in text.get_text()][:3]
    ['$P_0 = 1$', '$P_1 = 2$', '$P_2 = 3$']
    """
    steps, chain = len(rates), list(() if carried is None else carried)
    if len(twin_rates) != steps or len(scales) != steps + 1 or len(chain) not in (0, steps + 1):
        raise ExplrError(
            f"{steps} rates need as many of the twin and {steps + 1} scales (and κ, if any): "
            f"these are {len(twin_rates)}, {len(scales)} and {len(chain)}."
        )
    above, below = COLOURS["weight decay"], COLOURS["exponential"]
    with _sheet((-0.75, steps + 0.3), (-0.3, 1.9 if chain else 1.2), height=3.4 if chain else 2.4) as (figure, axes):
        _write(axes, -0.72, 1.0, "run A", above, size=10, beside=True)
        _write(axes, -0.72, 0.0, "run B", below, size=10, beside=True)
        for t, scale in enumerate(scales):
            axes.plot([t, t], [0.17, 0.83], color=INK, linewidth=1.2, linestyle=":")
            _write(axes, t, 1.0, rf"$\theta_{t}$", above)
            _write(axes, t, 0.0, rf"$P_{t}\theta_{t}$", below)
            _write(axes, t + 0.04, 0.5, f"$P_{t} = {scale:.4g}$", INK, size=10, beside=True)
        for t, (rate, twin) in enumerate(zip(rates, twin_rates, strict=True)):
            _arrow(axes, (t + 0.14, 1.0), (t + 0.86, 1.0), above)
            _arrow(axes, (t + 0.2, 0.0), (t + 0.8, 0.0), below)
            share = 1.0 - scales[t] / scales[t + 1]
            _write(axes, t + 0.5, 0.84, rf"$\eta_{t} = {rate:.4g},\ x_{t} = {share:.4g}$", above, size=10)
            _write(axes, t + 0.5, -0.17, rf"$\tilde\eta_{t} = {twin:.4g}$", below, size=10)
        for t, kappa in enumerate(chain):
            _write(axes, t, 1.74, rf"$\kappa_{t} = {kappa:.4g}$", OTHER_COLOURS[0], size=10)
            if t < steps and kappa:
                _arrow(axes, (t + 0.08, 1.62), (t + 0.4, 1.09), OTHER_COLOURS[0])
            if t < steps:
                _arrow(axes, (t + 0.6, 1.09), (t + 0.92, 1.62), OTHER_COLOURS[0])
        if chain:
            _write(axes, -0.72, 1.74, "memory", OTHER_COLOURS[0], size=10, beside=True)
    return figure


def commuting_square(points: Sequence[Rates], rate: float, factor: float) -> Figure:
    r"""Draw that scaling the weights and taking a step commute, if the learning rate is scaled by the square.

    Args:
        points: the weights θ; those after a step; those scaled, cθ; and those scaled after the step.
        rate: the learning rate η of the step from θ; from cθ it is c²η.
        factor: c.

    >>> figure = commuting_square([[2, 1], [2.3, 0.4], [4, 2], [4.6, 0.8]], rate=2.5, factor=2)
    >>> figure.axes[0].texts[0].get_text()
    '$\\theta$\n(2, 1)'
    """
    names = (r"\theta", r"\theta'", r"c\,\theta", r"c\,\theta'")
    places = ((0.0, 1.0), (1.0, 1.0), (0.0, 0.0), (1.0, 0.0))
    step, scale = COLOURS["weight decay"], COLOURS["exponential"]
    with _sheet((-0.3, 1.3), (-0.25, 1.25), height=2.9) as (figure, axes):
        for place, name, point in zip(places, names, points, strict=True):
            _write(axes, *place, f"${name}$\n({', '.join(f'{number:.4g}' for number in point)})", INK)
        for height, label, side in (
            (1.0, rf"step at $\eta = {rate:.4g}$", 0.1),
            (0.0, rf"step at $c^2\eta = {factor**2 * rate:.4g}$", -0.1),
        ):
            _arrow(axes, (0.2, height), (0.8, height), step)
            _write(axes, 0.5, height + side, label, step)
        for x in (0.0, 1.0):
            _arrow(axes, (x, 0.78), (x, 0.22), scale)
            _write(axes, x + 0.03, 0.5, rf"$\times\, c = {factor:.4g}$", scale, beside=True)
    return figure


@contextmanager
def _sheet(across: tuple[float, float], up: tuple[float, float], *, height: float) -> Iterator[tuple[Figure, Axes]]:
    """Yield an empty figure of the book's width without axes; pyplot forgets it, so it is shown once."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(WIDTH, height), layout="constrained")
        axes.set(xlim=across, ylim=up)
        axes.set_axis_off()
        try:
            yield figure, axes
        finally:
            plt.close(figure)


def _write(axes: Axes, x: float, y: float, text: str, colour: str, *, size: float = 12, beside: bool = False) -> None:
    axes.text(x, y, text, color=colour, fontsize=size, ha="left" if beside else "center", va="center")


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    style = {"arrowstyle": "-|>", "color": colour, "linewidth": 2.0, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=style)
