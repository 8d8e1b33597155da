"""How the book's figures look: colours, ink, size, and labels at the ends of lines.

An arm has the same colour in every chapter. Figures have a transparent background and mid-grey ink, so they read on a light
page and on a dark one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from explr.errors import needs

with needs("figures"):
    import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# From the palette of Okabe and Ito (2008), which readers with any kind of colour vision can tell apart.
COLOURS = {"weight decay": "#0072B2", "exponential": "#D55E00", "control": "#7F7F7F"}
OTHER_COLOURS = ("#009E73", "#CC79A7", "#56B4E9")
INK = "#707070"
WIDTH = 6.4  # inches; a phone shows it at half size, so panels are stacked and never side by side
STYLE: Any = {
    "figure.dpi": 150,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.2,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "font.size": 12,
    "lines.linewidth": 2.0,
    "legend.frameon": False,
    "legend.labelcolor": INK,
}

# The arm that lies on top is thin and dashed, so that one sees both where they agree.
ARMS: dict[str, dict[str, Any]] = {
    "weight decay": {"color": COLOURS["weight decay"], "linewidth": 4.5, "alpha": 0.55},
    "exponential": {"color": COLOURS["exponential"], "linewidth": 2.0, "linestyle": (0, (4, 1.5))},
}


@contextmanager
def figure_of(*, panels: int, height: float) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yield a figure in the book's style with its panels, one below the other; pyplot forgets it, so it is shown once."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            panels, 1, figsize=(WIDTH, height * panels + 0.5), sharex=True, squeeze=False, layout="constrained"
        )
        try:
            yield figure, list(axes[:, 0])
        finally:
            plt.close(figure)


def label_lines(axes: Axes) -> None:
    """Write each line's label at its right end, in its colour, moved apart where ends are close; from four on, a legend.

    A line of zeros, which a log scale cannot show, has its label at the bottom.
    """
    lines = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
    figure = axes.get_figure(root=True)
    assert figure is not None
    if len(lines) > 3:
        figure.legend(handles=lines, loc="outside lower center", ncols=2)  # among the lines it would hide some
        return
    axes.autoscale_view()
    gap = 0.24 * len(figure.axes) / figure.get_figheight()  # the height of a line of text
    to_fraction = axes.transData + axes.transAxes.inverted()
    ends = []
    for line in lines:
        x, y = (np.asarray(values, dtype=np.float64) for values in line.get_data())
        drawn = np.flatnonzero(np.isfinite(y))
        if len(drawn):
            ends.append(float(np.clip(to_fraction.transform((x[drawn[-1]], y[drawn[-1]]))[1], 0.0, 1.0)))
        else:
            ends.append(0.0)
            line.set_label(f"{line.get_label()} (0)")
    order = np.argsort(ends, kind="stable")
    heights = np.array(ends)[order]
    for below, above in zip(range(len(order) - 1), range(1, len(order)), strict=True):
        short = gap - (heights[above] - heights[below])
        if short > 0:
            heights[: below + 1] -= short / 2
            heights[above:] += short / 2
    for index, height in zip(order, heights, strict=True):
        label, colour = str(lines[index].get_label()), lines[index].get_color()
        axes.annotate(label, (1.02, height), xycoords="axes fraction", color=colour, va="center", annotation_clip=False)
