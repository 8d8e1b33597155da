"""The book's drawings, which show how parts hang together: a residual block with its degrees, Lemma 1 as a triangle.

Every number in a drawing is handed in, from a report or a step that was computed; nothing is drawn that it does not say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from explr.book.style import COLOURS, INK, OTHER_COLOURS, figure_of
from explr.checks import Rates
from explr.errors import ExplrError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from explr.invariance.report import InvarianceReport

_CLASH = COLOURS["exponential"]  # vermilion
_BRANCH = ("norm", "ReLU", "conv", "norm", "ReLU", "conv")
_SIDE, _PITCH = 0.86, 1.32  # width of a box, and from box to box
_ABOVE = 1.1  # how far the shortcut is above the branch


def residual_blocks(reports: Mapping[str, InvarianceReport], path: str, *, raw: Sequence[str] = ()) -> Figure:
    """Draw a pre-activation residual block with the degree on every edge, one panel for each network.

    Where the two paths meet with different degrees, both edges and the sum are red, and the sum has corners and says ≠.

    Args:
        reports: name of a network → what :func:`~explr.invariance.analysis.scale_invariance` found in it.
        path: a block of each with a convolution on its shortcut, such as "blocks.1" of
            :func:`~explr.experiments.models.preresnet`.
        raw: names of the networks whose shortcut takes the raw stream; the others' takes it after the first norm and ReLU.

    Raises:
        ExplrError: if a report has no such block.

    >>> import torch
    >>> from explr import models, scale_invariance
    >>> report = scale_invariance(models.preresnet(depth=8, width=4), torch.randn(4, 3, 32, 32))
    >>> residual_blocks({"PreResNet": report}, "blocks.1").axes[0].get_title(loc="left")
    'PreResNet'
    """
    with figure_of(panels=len(reports), height=1.75) as (figure, panels):
        for axes, (name, report) in zip(panels, reports.items(), strict=True):
            _draw_block(axes, *_degrees(report, path), raw=name in raw)
            axes.set_title(name)
    return figure


def _degrees(report: InvarianceReport, path: str) -> tuple[list[str], list[str], list[str], str]:
    """Return the degrees along the branch, along the shortcut, of the two that meet, and of their sum, "" if there is none."""
    rows = [row for row in report.rows if row.path == path or row.path.startswith(f"{path}.")]
    of_shortcut = [row for row in rows if row.path == f"{path}.shortcut"]
    others = [row for row in rows if row not in of_shortcut]
    if len(of_shortcut) != 1 or len(others) != len(_BRANCH) + 1 or others[-1].operation != "add":
        found = ", ".join(f"{row.path} {row.operation}" for row in rows) or "nothing"
        raise ExplrError(f"{path!r} is no pre-activation block with a convolution on its shortcut: the report has {found}.")
    *branch, add = others
    shortcut, meeting = of_shortcut[0], add.degree_in.split(", ")
    agree = len(set(meeting)) == 1
    along = [branch[0].degree_in, *(row.degree_out for row in branch)]
    return along, [shortcut.degree_in, shortcut.degree_out], meeting, add.degree_out if agree else ""


def _draw_block(axes: Axes, branch: list[str], shortcut: list[str], meeting: list[str], total: str, *, raw: bool) -> None:
    """Draw one block from left to right: the branch below, the shortcut above it."""
    last = INK if total else _CLASH
    lefts = 0.8 + _PITCH * np.arange(len(_BRANCH)) + 0.3 * (np.arange(len(_BRANCH)) > 1)  # room for the fork
    plus = lefts[-1] + _SIDE + 0.85
    starts, ends = [0.0, *(lefts + _SIDE)], [*lefts, plus]
    for degree, start, end in zip(branch, starts, ends, strict=True):
        at = start + 0.3 if end == plus else end - 0.26  # clear of the sum, or of the fork
        _edge(axes, [(start, 0.0), (end, 0.0)], degree, (at, 0.0), last if end == plus else INK)
    for left, name in zip(lefts, _BRANCH, strict=True):
        _box(axes, left, 0.0, name)

    fork = lefts[0 if raw else 2] - 0.62
    left = lefts[3] + 0.2
    _edge(axes, [(fork, 0.0), (fork, _ABOVE), (left, _ABOVE)], shortcut[0], (left - 0.45, _ABOVE), INK)
    down = [(left + _SIDE, _ABOVE), (plus, _ABOVE), (plus, 0.0)]
    _edge(axes, down, shortcut[1], (left + _SIDE + 0.45, _ABOVE), last)
    axes.plot(fork, 0.0, "o", color=INK, markersize=5)
    _box(axes, left, _ABOVE, "conv")

    _edge(axes, [(plus, 0.0), (plus + 1.15, 0.0)], total or "none", (plus + 0.75, 0.0), last)
    axes.plot(plus, 0.0, "o" if total else "8", color=last, markersize=19 if total else 24)
    axes.text(plus, 0.0, "+" if total else "≠", color="white", fontsize=14, weight="bold", ha="center", va="center_baseline")
    words = f"{meeting[0]} meets {meeting[1]}"
    axes.text(plus, -0.4, words, color=last, weight="normal" if total else "bold", ha="center", va="top")
    axes.set(xlim=(-0.1, plus + 1.2), ylim=(-0.85, _ABOVE + 0.4))
    axes.set_axis_off()


def _edge(axes: Axes, corners: list[tuple[float, float]], degree: str, at: tuple[float, float], colour: str) -> None:
    """Draw a line through the corners with a degree on it."""
    axes.plot(*zip(*corners, strict=True), color=colour, linewidth=1.5 if colour == INK else 3.0, zorder=1)
    token = {"boxstyle": "round,pad=0.18,rounding_size=0.5", "facecolor": colour, "edgecolor": "none"}
    axes.text(*at, degree, color="white", fontsize=11.5, weight="bold", ha="center", va="center", bbox=token)


def _box(axes: Axes, left: float, height: float, name: str) -> None:
    """Draw an operation, shaded if it is trained."""
    xs, ys = left + _SIDE * np.array([0, 1, 1, 0, 0]), height + 0.27 * np.array([-1, -1, 1, 1, -1])
    axes.fill(xs, ys, facecolor=INK if name == "conv" else "none", alpha=0.25)
    axes.plot(xs, ys, color=INK, linewidth=1.5)
    axes.text(left + _SIDE / 2, height, name, color=INK, fontsize=11.5, ha="center", va="center")


def lemma_triangle(weights: Rates, step: Rates) -> Figure:
    """Draw a step that is perpendicular to the weights as what it is, one leg of a right triangle; lengths are written down.

    Args:
        weights: θ_t, two numbers.
        step: -η∇L(θ_t), two numbers.

    Raises:
        ExplrError: if the two are not perpendicular, so that no right angle may be drawn.

    >>> [text.get_text() for text in lemma_triangle([3.0, 0.0], [0.0, 4.0]).axes[0].texts if "=" in text.get_text()]
    ['‖θₜ‖ = 3', 'η‖∇L(θₜ)‖ = 4', '‖θₜ₊₁‖ = 5']
    """
    start, leg = np.asarray(weights, dtype=np.float64), np.asarray(step, dtype=np.float64)
    end, radius, size = start + leg, float(np.linalg.norm(start)), float(np.linalg.norm(start + leg))
    along, across = start / radius, leg / np.linalg.norm(leg)
    if not abs(float(along @ across)) < 1e-9:
        raise ExplrError(
            f"weights={list(weights)} and step={list(step)} have a cosine of {along @ across:.2g}, which is not 0."
        )
    origin = np.zeros(2)
    sides = [  # from, to, name, colour, and on which side of it the name stands
        (origin, start, "‖θₜ‖", OTHER_COLOURS[0], -across),
        (start, end, "η‖∇L(θₜ)‖", COLOURS["control"], along),
        (origin, end, "‖θₜ₊₁‖", COLOURS["exponential"], across),
    ]
    with figure_of(panels=1, height=3.4) as (figure, (axes,)):
        turn = np.linspace(-0.15, 0.15 + np.arccos(radius / size), 60)[:, None]
        circle = radius * (np.cos(turn) * along + np.sin(turn) * across)
        axes.plot(*circle.T, color=INK, linewidth=1.0, linestyle=":", label="circle")
        square = start + 0.08 * size * np.array([-along, across - along, across])
        axes.plot(*square.T, color=INK, linewidth=1.5, label="right angle")
        for tail, tip, name, colour, away in sides:
            axes.plot(*np.array([tail, tip]).T, color=colour, linewidth=2.5, label=name)
            arrow = {"arrowstyle": "-|>,head_length=0.6,head_width=0.3", "color": colour, "shrinkA": 0, "shrinkB": 0}
            near = (tail + 3 * tip) / 4
            axes.annotate("", (tip[0], tip[1]), (near[0], near[1]), arrowprops=arrow)
            place: dict[str, Any] = {"ha": "left" if away[0] > 0 else "right", "va": "bottom" if away[1] > 0 else "top"}
            length = float(np.linalg.norm(tip - tail))
            axes.annotate(f"{name} = {length:.3g}", (tail + tip) / 2 + 0.03 * size * away, color=colour, **place)
        axes.annotate("θₜ", start + 0.06 * size * (along - across), color=OTHER_COLOURS[0], ha="center", va="center")
        axes.annotate("θₜ₊₁", end + 0.08 * size * across, color=COLOURS["exponential"], ha="center", va="center")
        axes.plot(0.0, 0.0, "o", color=INK)
        axes.set_aspect("equal")
        axes.margins(0.1)
        axes.set_axis_off()
    return figure
