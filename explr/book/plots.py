"""The book's figures: each function takes arrays or records and returns a matplotlib figure, in the one style of the book.

Nothing is computed here but what a picture needs (ratios, base-10 logarithms). A figure made from records carries the name of
their data set as its title.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from explr.book.style import ARMS, COLOURS, INK, OTHER_COLOURS, figure_of, label_lines
from explr.checks import Rates
from explr.errors import ExplrError, needs

with needs("figures"):
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FixedLocator, FormatStrFormatter, LogLocator, MaxNLocator, NullLocator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from explr.experiments.records import Run


def schedules(curves: Mapping[str, Rates]) -> Figure:
    """Draw learning rates by epoch, one panel for each: Figure 1 of the source.

    Args:
        curves: name of a schedule → its learning rate at each epoch.

    >>> schedules({"constant": [0.1, 0.1]}).axes[0].get_title(loc="left")
    'constant'
    """
    with figure_of(panels=len(curves), height=1.55) as (figure, panels):
        for axes, (name, rates) in zip(panels, curves.items(), strict=True):
            axes.plot(range(len(rates)), rates, color=OTHER_COLOURS[0])
            axes.set(title=name, ylabel="LR", ylim=(0.0, 1.1 * max(rates)))
        panels[-1].set_xlabel("epoch")
    return figure


def training_pair(decay: Run, exponential: Run) -> Figure:
    """Draw the learning rates and the accuracies of two runs by epoch, the one with weight decay and its twin without.

    Args:
        decay: record of the run with weight decay.
        exponential: record of the run whose learning rate grows instead.
    """
    with figure_of(panels=3, height=1.75) as (figure, panels):
        for (arm, style), run in zip(ARMS.items(), (decay, exponential), strict=True):
            epochs = range(1, len(run.history["log_lr"]) + 1)
            for axes, values in zip(panels, (np.exp(run.history["log_lr"]), *_accuracies(run)), strict=True):
                axes.plot(epochs, values, label=arm, **style)
        panels[0].set(ylabel="learning rate\n(log scale)", yscale="log", title=_data_of(decay, exponential))
        panels[1].set(ylabel="training\naccuracy (%)")
        panels[2].set(ylabel="test\naccuracy (%)", xlabel="epoch")
        for axes in panels[1:]:
            axes.set_ylim(bottom=0.0)
        for axes in panels:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            label_lines(axes)
    return figure


def norm_growth(decay: Run, exponential: Run, layer: str) -> Figure:
    """Draw the norm of a layer's weights by epoch, and its square over the learning rate: Figure 2 of the source, right.

    Args:
        decay: record of the run with weight decay.
        exponential: record of the run whose learning rate grows instead.
        layer: name of the parameter, such as ``"blocks.1.conv1.weight"``.

    Raises:
        ExplrError: if a run has no such parameter.
    """
    with figure_of(panels=2, height=2.1) as (figure, panels):
        for (arm, style), run in zip(ARMS.items(), (decay, exponential), strict=True):
            if layer not in run.weight_norms:
                raise ExplrError(f"the run has no weights {layer!r}: choose among {', '.join(run.weight_norms)}.")
            norms = np.array(run.weight_norms[layer])
            epochs = range(1, len(norms) + 1)
            panels[0].plot(epochs, norms, label=arm, **style)
            panels[1].plot(epochs, norms**2 / np.exp(run.history["log_lr"]), label=arm, **style)
        panels[0].set(ylabel="‖w‖\n(log scale)", yscale="log", title=_data_of(decay, exponential))
        low, high = panels[0].dataLim.intervaly
        if high < 30 * low:  # within a decade or so powers of ten say too little
            panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 4, 6, 8)))
            panels[0].yaxis.set_major_formatter("{x:g}")
            panels[0].yaxis.set_minor_locator(NullLocator())
        panels[1].set(ylabel="‖w‖² / LR", xlabel="epoch")
        panels[1].set_ylim(bottom=0.0)
        for axes in panels:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            label_lines(axes)
    return figure


def deviations(
    errors: Mapping[str, Rates], *, ylabel: str, title: str = "", first: int = 1, xlabel: str = "step", log_steps: bool = False
) -> Figure:
    """Draw how far runs are from a reference at each step, on a log scale; the first in the colour of the exponential arm.

    Args:
        errors: name of a run → its relative deviation at each step. Zeros are not drawn.
        ylabel: what deviates, and in which unit.
        title: for example the name of the data set.
        first: number of the first step.
        xlabel: what is counted along the horizontal axis.
        log_steps: count on a log scale, to see the first steps and the last ones.

    >>> deviations({"exact": [1e-15, 1e-14]}, ylabel="logits").axes[0].get_xlabel()
    'step'
    """
    colours = cycle((COLOURS["exponential"], COLOURS["control"], *OTHER_COLOURS))
    with figure_of(panels=1, height=3.2) as (figure, (axes,)):
        for name, values in errors.items():
            shown = np.asarray(values, dtype=np.float64)
            axes.plot(range(first, first + len(shown)), np.where(shown > 0, shown, np.nan), label=name, color=next(colours))
        axes.set(yscale="log", xlabel=xlabel, ylabel=f"{ylabel}\n(log scale)", title=title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if log_steps:
            axes.set(xscale="log", xlabel=f"{xlabel} (log scale)")
        label_lines(axes)
    return figure


def start_up(shares: Rates, steady: float) -> Figure:
    """Draw the share of the weights that decay removes at each step, and the steady share that it comes to.

    Args:
        shares: x_t, one a step from the first.
        steady: the fixed point of the recursion, 1 - α.

    >>> [line.get_label() for line in start_up([1e-4, 2e-4], 3e-4).axes[0].lines]
    ['exact', 'closed form']
    """
    with figure_of(panels=1, height=3.2) as (figure, (axes,)):
        steps = np.arange(len(shares))
        axes.plot(steps, shares, label="exact", color=COLOURS["exponential"])
        axes.plot(steps, np.full(len(shares), steady), label="closed form", color=COLOURS["control"], linestyle="--")
        axes.fill_between(steps, shares, steady, color=COLOURS["control"], alpha=0.25, linewidth=0)
        axes.set(xlabel="step", ylabel="share removed in a step", ylim=(0.0, 1.12 * max(steady, *shares)))
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
        axes.yaxis.get_offset_text().set_fontsize(11)
        label_lines(axes)
    return figure


def logits_at_scale(start: Mapping[str, Rates], scaled: Mapping[str, Rates], limits: tuple[float, float]) -> Figure:
    """Draw the outputs of networks at their weights θ and at a multiple cθ, one panel for each network.

    Args:
        start: name of a network → its logits at θ, one a class.
        scaled: the same names → the logits at cθ.
        limits: of the vertical axis, the same for every c.

    >>> len(logits_at_scale({"net": [0.0, 1.0]}, {"net": [0.0, 1.0]}, (-1.0, 2.0)).axes)
    1
    """
    with figure_of(panels=len(start), height=1.8) as (figure, panels):
        for axes, (name, logits) in zip(panels, start.items(), strict=True):
            classes = range(len(logits))
            axes.plot(classes, logits, "o", markersize=12, mfc="none", color=COLOURS["control"], label="at θ")
            axes.plot(classes, scaled[name], "o", markersize=6, color=COLOURS["exponential"], label="at cθ")
            axes.set(title=name, ylabel="logit", ylim=limits, xticks=classes)
            label_lines(axes)
        panels[-1].set_xlabel("class")
    return figure


def scale_changes(factors: Rates, changes: Mapping[str, Rates], *, title: str = "") -> Figure:
    """Draw how much the logits change when the weights are multiplied by c, on logarithmic axes.

    Args:
        factors: the values of c.
        changes: name of a network → the relative change of its logits at each c. Zeros are not drawn.
        title: for example the name of the data set.

    >>> scale_changes([1.0, 10.0], {"eps = 0": [1e-16, 1e-15]}).axes[0].get_xscale()
    'log'
    """
    colours = cycle(OTHER_COLOURS)
    with figure_of(panels=1, height=3.2) as (figure, (axes,)):
        for name, values in changes.items():
            shown = np.asarray(values, dtype=np.float64)
            axes.plot(factors, np.where(shown > 0, shown, np.nan), "o-", markersize=4, label=name, color=next(colours))
        axes.set(xscale="log", yscale="log", xlabel="c (log scale)", title=title)
        axes.set_ylabel("relative change of\nthe logits (log scale)")
        label_lines(axes)
    return figure


def lemma_plane(loss: Rates, points: Mapping[str, Rates], gradients: Mapping[str, Rates]) -> Figure:
    """Draw a scale-invariant loss of two weights, some points, and the gradient at each: Figure 3 of the source.

    Args:
        loss: at equally spaced directions from 0 to a full turn.
        points: name → its two coordinates.
        gradients: the same names → the gradient there.

    >>> lemma_plane([0.0, 1.0, 0.0], {"θ": [1.0, 0.0]}, {"θ": [0.0, 0.5]}).axes[0].get_ylabel()
    'second weight'
    """
    with figure_of(panels=1, height=4.6) as (figure, (axes,)):
        angles = np.linspace(0.0, 2 * np.pi, len(loss))
        across, up = np.meshgrid(np.linspace(-0.6, 3.6, 169), np.linspace(-0.5, 2.7, 129))
        heights = np.interp(np.arctan2(up, across) % (2 * np.pi), angles, loss)
        axes.imshow(heights, extent=(-0.6, 3.6, -0.5, 2.7), origin="lower", cmap="cividis", alpha=0.4, interpolation="none")
        colours = cycle((OTHER_COLOURS[0], COLOURS["exponential"], *OTHER_COLOURS[1:]))
        for name, point in points.items():
            colour = next(colours)
            x, y = float(point[0]), float(point[1])
            radius = float(np.hypot(x, y))
            axes.plot(radius * np.cos(angles), radius * np.sin(angles), color=INK, linewidth=1.0, linestyle=":")
            axes.plot([0.0, x], [0.0, y], "o-", color=colour, markevery=[1], label=name)
            tip = (x + gradients[name][0], y + gradients[name][1])
            axes.annotate("", tip, (x, y), arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 2.5})
            axes.annotate(f"{name}, ∇L({name})", (x, y), (8, -4), textcoords="offset points", color=colour, va="top")
        axes.set(xlim=(-0.6, 3.6), ylim=(-0.5, 2.7), aspect="equal", xlabel="first weight", ylabel="second weight")
        axes.grid(False)
    return figure


def weight_norms(norms: Mapping[str, Rates], *, title: str = "") -> Figure:
    """Draw the norm of all weights at each step, relative to its start, one line for each way to train.

    Args:
        norms: name of a way to train → ‖θ‖ before each step; "weight decay" has its own colour.
        title: for example the name of the data set.

    >>> weight_norms({"plain SGD": [2.0, 3.0]}).axes[0].lines[0].get_ydata()
    array([1. , 1.5])
    """
    colours = cycle(OTHER_COLOURS)
    with figure_of(panels=1, height=3.0) as (figure, (axes,)):
        for name, values in norms.items():
            relative = np.asarray(values, dtype=np.float64) / values[0]
            axes.plot(range(len(relative)), relative, label=name, color=COLOURS.get(name) or next(colours))
        axes.set(xlabel="step", ylabel="‖θ‖ / ‖θ‖ at the start", title=title)
        label_lines(axes)
    return figure


def descent(gradients: Mapping[str, Rates], effective: Mapping[str, Rates], guide: float) -> Figure:
    """Draw gradient descent at several learning rates: smallest gradient so far and effective learning rate by step.

    Args:
        gradients: name of a learning rate, from small to large → the smallest gradient norm up to each step, from step 1.
        effective: the same names → η / ‖θ‖² at each step.
        guide: height at step 1 of a line of slope -1/2.

    >>> len(descent({"1": [1.0, 0.5]}, {"1": [1.0, 0.9]}, guide=2.0).axes)
    2
    """
    with figure_of(panels=2, height=2.4) as (figure, panels):
        shades = plt.get_cmap("viridis")(np.linspace(0.0, 0.7, len(gradients)))
        for shade, (name, values) in zip(shades, gradients.items(), strict=True):
            steps = np.arange(1, len(values) + 1)
            panels[0].plot(steps, values, color=shade, label=name)
            panels[1].plot(steps, effective[name], color=shade)
        panels[0].plot(steps, guide / np.sqrt(steps), color=COLOURS["control"], linestyle="--", label="slope −1/2")
        panels[0].set(xscale="log", yscale="log", ylabel="smallest gradient\nso far (log scale)")
        panels[0].set_ylim(guide / np.sqrt(len(steps)) / 300, 2 * guide)  # beyond, gradients vanish to rounding
        panels[1].set(yscale="log", xlabel="step (log scale)", ylabel="effective LR\nη/‖θ‖² (log scale)")
        figure.legend(loc="outside right upper", title="LR η").get_title().set_color(INK)
    return figure


def twins(
    schedules: Mapping[str, tuple[Rates, Rates]], *, xlabel: str = "step", limits: tuple[float, float] | None = None
) -> Figure:
    """Draw learning rates and those of their twins without weight decay, one panel for each schedule.

    Args:
        schedules: name of a schedule → natural logs of its rates and of its twin's, which may end earlier.
        xlabel: what is counted along the horizontal axis.
        limits: of the vertical axes, base-10 logs.

    >>> twins({"constant": ([-2.3, -2.3], [-2.3, -2.2])}).axes[0].get_title(loc="left")
    'constant'
    """
    with figure_of(panels=len(schedules), height=3.2 if len(schedules) == 1 else 1.7) as (figure, panels):
        for axes, (name, sides) in zip(panels, schedules.items(), strict=True):
            for (arm, style), log_rates in zip(ARMS.items(), sides, strict=True):
                axes.plot(np.asarray(log_rates) / np.log(10.0), label=arm, **style)
            axes.set(title=name, ylabel="log₁₀ LR", ylim=limits)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            label_lines(axes)
        panels[-1].set_xlabel(xlabel)
    return figure


def settings(panels: Mapping[str, tuple[Rates, Rates]], *, title: str = "") -> Figure:
    """Draw hyper-parameters of a run and of its twin without weight decay by step, one panel for each, on linear axes.

    Args:
        panels: name of a hyper-parameter → its values in the run and in the twin, one a step.
        title: what is trained.

    >>> settings({"momentum": ([0.9, 0.9], [0.9001, 0.9])}).axes[0].get_ylabel()
    'momentum'
    """
    with figure_of(panels=len(panels), height=1.9) as (figure, drawn):
        for axes, (name, sides) in zip(drawn, panels.items(), strict=True):
            for (arm, style), values in zip(ARMS.items(), sides, strict=True):
                axes.plot(values, label=arm, **style)
            axes.set_ylabel(name)
            axes.ticklabel_format(axis="y", useOffset=False)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            label_lines(axes)
        drawn[0].set_title(title)
        drawn[-1].set_xlabel("step")
    return figure


def memories(averages: Mapping[str, tuple[float, float]], longest: int = 10_000) -> Figure:
    """Draw how much an exponential average still counts of a gradient, by its age, with decay and in the twin without.

    Args:
        averages: name of an average → its β in the run with weight decay and in the twin. A dot marks the age 1/(1 - β).
        longest: the largest age.

    >>> memories({"squares": (0.9, 0.5)}).axes[0].lines[-1].get_label()
    'exponential'
    """
    ages = np.geomspace(1.0, longest, 200)
    with figure_of(panels=len(averages), height=1.9) as (figure, panels):
        for axes, (name, betas) in zip(panels, averages.items(), strict=True):
            for (arm, style), beta in zip(ARMS.items(), betas, strict=True):
                horizon = 1.0 / (1.0 - beta)
                axes.plot(horizon, beta**horizon, "o", color=style["color"], label="_horizon")
                axes.plot(ages, beta**ages, label=arm, **style)
            axes.set(title=name, ylabel="weight", xscale="log", ylim=(0.0, 1.05))
            label_lines(axes)
        panels[-1].set_xlabel("age of a gradient in steps (log scale)")
    return figure


def arms(runs: Mapping[str, Sequence[Run]]) -> Figure:
    """Draw learning rate, training loss and test accuracy of several arms by epoch: Figure 5 of the source.

    Args:
        runs: name of an arm → its records. A line is their mean, the band around it spans from the lowest to the highest. Where
            arms differ in their number of seeds, the legend has it.
    """
    counted = len({len(records) for records in runs.values()}) > 1
    own = {"decay": COLOURS["weight decay"], "exponential": COLOURS["exponential"]}
    own |= dict.fromkeys(("decay-one-ulp", "decay-rescaled"), COLOURS["control"])
    others = cycle(OTHER_COLOURS)
    with figure_of(panels=3, height=2.0) as (figure, panels):
        dashes = cycle(("-", (0, (4, 1.5)), "-.", ":", (0, (6, 3, 1, 3, 1, 3))))  # one for each arm of Figure 5
        for (arm, records), style in zip(runs.items(), dashes, strict=False):
            colour = own.get(arm) or own.get(arm.rsplit("-", 1)[-1]) or next(others)  # "constant-decay" is a decay
            logs = np.array([run.history["log_lr"] for run in records]) / np.log(10.0)
            losses = np.array([run.history["train_loss"] for run in records])
            accuracies = 100 * np.array([run.history["test_accuracy"] for run in records])
            epochs = np.arange(1, logs.shape[1] + 1)
            label = f"{arm}, {len(records)} seed{'s' * (len(records) > 1)}" if counted else arm
            for axes, values in zip(panels, (logs, losses, accuracies), strict=True):
                axes.plot(epochs, values.mean(axis=0), label=label, color=colour, linestyle=style)
                axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, linewidth=0)
        panels[0].set(ylabel="log₁₀ LR", title=_data_of(*(run for records in runs.values() for run in records)))
        panels[1].set(ylabel="training loss")
        panels[2].set(ylabel="test\naccuracy (%)", xlabel="epoch")
        panels[0].xaxis.set_major_locator(MaxNLocator(integer=True))
        # Outside: with so many arms a legend would lie on one of the curves.
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
    return figure


def decay_and_growth(decays: Rates, growths: Rates, *, bound: float, momentum: float) -> Figure:
    """Draw the growth of the learning rate against the equivalent weight decay, and the region where there is none.

    The axes are the same for every momentum, so that figures may be frames of a player.

    Args:
        decays: learning rate times weight decay, increasing, all below ``bound``.
        growths: the factor per step by which the rate grows, one for each.
        bound: the largest product that has a growing rate as its counterpart, (1 - √γ)².
        momentum: γ.

    >>> decay_and_growth([1e-4], [1.002], bound=2.6e-3, momentum=0.9).axes[0].get_xscale()
    'log'
    """
    with figure_of(panels=1, height=3.2) as (figure, (axes,)):
        axes.plot(decays, np.asarray(growths) - 1.0, label="growth", color=COLOURS["exponential"])
        axes.axvspan(bound, 1.0, color=COLOURS["control"], alpha=0.3, linewidth=0)
        axes.set(xscale="log", yscale="log", xlim=(1e-6, 1.0), ylim=(1e-6, 1e3), title=f"momentum {momentum:g}")
        axes.set(xlabel="learning rate × weight decay", ylabel="growth per step − 1\n(log scale)")
        axes.annotate("no positive rate", (0.98, 0.06), xycoords="axes fraction", color=INK, ha="right")
    return figure


def horizons(epochs: Mapping[str, float], limits: tuple[float, float]) -> Figure:
    """Draw how many epochs a growing learning rate lasts in each number format, as bars on a log scale.

    Args:
        epochs: number format → the epoch in which the learning rate overflows.
        limits: of the axis, the same for every frame of a player.
    """
    with figure_of(panels=1, height=2.0) as (figure, (axes,)):
        colours = cycle((COLOURS["exponential"], *OTHER_COLOURS))
        for row, epoch in enumerate(epochs.values()):
            colour = next(colours)
            axes.barh(row, epoch, color=colour, alpha=0.75)
            axes.annotate(f" {epoch:.0f}", (epoch, row), color=INK, va="center", annotation_clip=False)
        axes.set_yticks(range(len(epochs)), list(epochs))
        axes.invert_yaxis()
        axes.set(xscale="log", xlim=limits, xlabel="epoch of overflow (log scale)", ylabel="number format")
        axes.grid(visible=False, axis="y")
    return figure


def kept_in_range(theorem: Rates, in_use: Rates, limit: float) -> Figure:
    """Draw the base-10 logarithms of the learning rate of the theorem and of the one that a renormalised run uses, by step.

    Args:
        theorem: natural logarithms, one a step.
        in_use: natural logarithms, one a step.
        limit: natural logarithm of the largest number of the format.
    """
    with figure_of(panels=1, height=3.0) as (figure, (axes,)):
        steps = range(len(theorem))
        axes.plot(steps, np.asarray(theorem) / np.log(10), label="theorem", color=COLOURS["exponential"])
        axes.plot(steps, np.asarray(in_use) / np.log(10), label="in use", color=OTHER_COLOURS[0])
        axes.plot(steps, np.full(len(theorem), limit / np.log(10)), label="limit", color=COLOURS["control"], linestyle="--")
        axes.set(xlabel="step", ylabel="log10 of learning rate")
        label_lines(axes)
    return figure


def effective_rates(
    rates: Mapping[str, Rates], *, equilibrium: float | None = None, limits: tuple[float, float] | None = None, title: str = ""
) -> Figure:
    """Draw effective learning rates η/‖θ‖² by step on a log scale.

    Args:
        rates: name of a run → its effective learning rate at each step.
        equilibrium: drawn as a dashed line if given.
        limits: of the vertical axis, the same for every frame of a player.
        title: for example the name of the data set.
    """
    with figure_of(panels=1, height=3.0) as (figure, (axes,)):
        colours = cycle((COLOURS["weight decay"], OTHER_COLOURS[0], COLOURS["control"], OTHER_COLOURS[1]))
        for name, values in rates.items():
            axes.plot(range(len(values)), values, label=name, color=next(colours))
        if equilibrium is not None:
            axes.axhline(equilibrium, color=INK, linestyle="--", label="_equilibrium")
        axes.set(yscale="log", xlabel="step", ylabel="effective LR, η/‖θ‖²\n(log scale)", title=title, ylim=limits)
        label_lines(axes)
    return figure


def angles(points: Mapping[str, tuple[Rates, Rates, Sequence[bool]]], *, title: str = "") -> Figure:
    """Draw measured angles against predicted ones on logarithmic axes, one marker for each group, and the line of equality.

    Args:
        points: name of a group → predicted angles, measured ones, both in degrees, and for each whether its run had settled.
            Runs that had not are drawn hollow.
        title: for example the name of the data set.

    >>> angles({"γ = 0": ([1.0, 2.0], [1.1, 2.0], [False, True])}).axes[0].get_xlabel()
    'predicted angle of a step (degrees)'
    """
    with figure_of(panels=1, height=4.0) as (figure, (axes,)):
        drawn = np.concatenate([np.concatenate(group[:2]) for group in points.values()])
        ends = [drawn.min(), drawn.max()]
        axes.plot(ends, ends, color=COLOURS["control"], linestyle="--", label="equal", zorder=1)
        markers, colours = cycle("os^DvP"), cycle((COLOURS["weight decay"], COLOURS["exponential"], *OTHER_COLOURS))
        for name, (predicted, measured, settled) in points.items():
            marker, colour = next(markers), next(colours)
            faces = [colour if settles else "none" for settles in settled]
            axes.scatter(predicted, measured, s=60, marker=marker, edgecolors=colour, facecolors=faces)
            axes.plot([], [], marker, color=colour, label=name)
        if not all(settles for *_, settled in points.values() for settles in settled):
            axes.plot([], [], "o", color=INK, markerfacecolor="none", label="not settled")
        axes.set(xscale="log", yscale="log", title=title, xlabel="predicted angle of a step (degrees)")
        axes.set_ylabel("measured angle (degrees)")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50]))
            axis.set_major_formatter(FormatStrFormatter("%g"))
            axis.set_minor_locator(NullLocator())
        axes.legend()
    return figure


def toy_paths(angles: Mapping[str, Rates], effective: Mapping[str, Rates], limit: float) -> Figure:
    """Draw, by step, the angle to the minimum on a log scale, and below it the effective rate with its stability limit.

    Args:
        angles: name of a run → angle in degrees at each step. Zeros are not drawn.
        effective: the same names → η/‖θ‖² at each step, for those that have one.
        limit: effective rate above which the minimum repels.
    """
    with figure_of(panels=2, height=2.2) as (figure, panels):
        colours = cycle((COLOURS["weight decay"], OTHER_COLOURS[0], COLOURS["exponential"], *OTHER_COLOURS[1:]))
        names = {name: next(colours) for name in dict.fromkeys((*angles, *effective))}
        for axes, curves in zip(panels, (angles, effective), strict=True):
            for name, values in curves.items():
                shown = np.asarray(values, dtype=np.float64)
                axes.plot(range(len(shown)), np.where(shown > 0, shown, np.nan), label=name, color=names[name])
        panels[1].axhline(limit, color=INK, linestyle="--", label="_limit")
        panels[0].set(yscale="log", ylabel="angle (degrees)\n(log scale)")
        panels[1].set(yscale="log", ylabel="η/‖θ‖²\n(log scale)", xlabel="step")
        for axes in panels:
            label_lines(axes)
    return figure


def _accuracies(run: Run) -> tuple[Rates, Rates]:
    return 100 * np.array(run.history["train_accuracy"]), 100 * np.array(run.history["test_accuracy"])


def _data_of(*runs: Run) -> str:
    return "; ".join(dict.fromkeys(str(run.provenance["data"]) for run in runs))
