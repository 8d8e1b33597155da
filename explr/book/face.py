"""The first figure of the book: two runs that learn alike while the learning rate of one climbs out of sight.

:func:`face` is a figure of plain HTML with a slider over the epochs, alive on a page without a kernel; :func:`card` is the same
as a picture, for previews of links and for the README. Both take two records and nothing else, so they say what these say.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from explr.book.style import ARMS, COLOURS, INK
from explr.errors import ExplrError, needs
from explr.experiments.catalogue import EPOCHS

with needs("figures"):
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from explr.experiments.records import Run

_CARD: Any = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 13, "axes.grid": True, "grid.alpha": 0.25}


def climb(run: Run) -> float:
    """Return through how many powers of ten the learning rate of a run climbs, from the end of its first epoch on."""
    rates = _decades(run)
    return float(rates.max() - rates[0])


def caption(run: Run) -> str:
    """Say in a sentence what was trained and at which scale, from the record alone."""
    config, origin = run.config, run.provenance
    size = ", ".join(f"{name} {value}" for name, value in config.model_args.items())
    network = config.model + (f" ({size})" if size else "")
    scale = "At full scale" if (config.model, config.epochs) == ("preresnet32", EPOCHS) else "In miniature"
    return (
        f"{scale}: {network}, {config.schedule.replace('_', ' ')}, batch {config.batch_size}, weight decay "
        f"{config.weight_decay:g} or none, momentum {config.momentum:g}, {config.epochs} epochs in {config.precision}, seed "
        f"{config.seed}; {origin['data']}; {origin['device']}."
    )


def face(decay: Run, exponential: Run) -> str:
    """Return the figure as HTML: learning rates above training accuracies, and a slider that reads both at an epoch.

    The style is in ``custom.css`` under ``explr-face``. Without script the figure shows the last epoch; with it, the marker
    runs through the epochs once, but for readers who ask for less motion.

    Args:
        decay: record of the run with weight decay.
        exponential: record of the run whose learning rate grows instead.

    Raises:
        ExplrError: if the two are not runs of the same length, or of one epoch only.
    """
    epochs = _length(decay, exponential)
    rates = [_decades(run) for run in (decay, exponential)]
    training, test = (
        [100 * np.array(run.history[f"{split}_accuracy"]) for run in (decay, exponential)] for split in ("train", "test")
    )
    low, high, ticks = _scale(rates)
    top = 10 * math.ceil(max(float(values.max()) for values in training) / 10 + 0.2)
    numbers: dict[str, Any] = {
        "rates": [[round(float(value), 3) for value in values] for values in rates],
        "training": [[round(float(value), 2) for value in values] for values in training],
        "test": [[round(float(value), 2) for value in values] for values in test],
        "low": low,
        "high": high,
        "top": top,
    }
    rate_panel = _panel("Learning rate", rates, low, high, [(tick, f"10<sup>{_signed(tick)}</sup>") for tick in ticks])
    accuracy_ticks = [(tick, f"{tick} %") for tick in range(0, top, 20)]
    accuracy_panel = _panel("Training accuracy", training, 0.0, top, accuracy_ticks)
    rows = "".join(
        f'<tr><th scope="row">{name}</th>'
        + "".join(f"<td data-key={key} data-run={run}>{_shown(key, numbers, run, -1)}</td>" for run in (0, 1))
        + "</tr>"
        for name, key in (("learning rate", "rates"), ("training accuracy", "training"), ("test accuracy", "test"))
    )
    return (
        '<figure class="explr-face">\n'
        f'<div class="explr-face-panels">{rate_panel}{accuracy_panel}</div>\n'
        f'<label class="explr-face-slider">epoch <output>{epochs}</output>'
        f'<input type="range" min="1" max="{epochs}" value="{epochs}" aria-valuetext="{_said(numbers, -1, epochs)}"></label>\n'
        '<table><thead><tr><td></td><th scope="col" class="explr-face-0">weight decay</th>'
        f'<th scope="col" class="explr-face-1">growing rate, no decay</th></tr></thead><tbody>{rows}</tbody></table>\n'
        "<figcaption>Two runs of one network: the same initial weights, the same images in the same order. One has weight "
        f"decay, the other has none, and its learning rate climbs through {climb(exponential):.0f} powers of ten instead. "
        "They learn alike, though not to the last digit: training magnifies rounding. "
        f"<small>{html.escape(caption(decay))}</small></figcaption>\n"
        f'<script type="application/json">{json.dumps(numbers, separators=(",", ":"))}</script>\n'
        f"<script>{_SCRIPT}</script>\n"
        "</figure>\n"
    )


def card(decay: Run, exponential: Run) -> Figure:
    """Draw the same two panels as a picture of 1200 by 630 pixels on white, the size that previews of links have.

    Args:
        decay: record of the run with weight decay.
        exponential: record of the run whose learning rate grows instead.

    Raises:
        ExplrError: as for :func:`face`.
    """
    epochs = range(1, _length(decay, exponential) + 1)
    with plt.rc_context({**_CARD, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.labelcolor": "#404040"}):
        figure, (rates, accuracies) = plt.subplots(
            2, 1, figsize=(12, 6.3), dpi=100, sharex=True, height_ratios=(3, 2), layout="constrained", facecolor="white"
        )
        for (arm, style), run in zip(ARMS.items(), (decay, exponential), strict=True):
            rates.plot(epochs, _decades(run), label=arm, **style)
            accuracies.plot(epochs, 100 * np.array(run.history["train_accuracy"]), **style)
        low, high, ticks = _scale([_decades(run) for run in (decay, exponential)])
        rates.set(ylim=(low, high), ylabel="learning rate", yticks=ticks, yticklabels=[f"$10^{{{tick}}}$" for tick in ticks])
        accuracies.xaxis.set_major_locator(MaxNLocator(integer=True))
        accuracies.set(ylim=(0, None), ylabel="training\naccuracy (%)", xlabel="epoch")
        figure.suptitle(
            f"Two runs that learn alike, one at a learning rate that climbs through {climb(exponential):.0f} powers of ten",
            fontsize=19,
            color="#202020",
        )
        middle = len(epochs) // 2
        grown = _decades(exponential)
        rates.annotate(
            "no weight decay, growing rate",
            (epochs[middle], grown[middle]),
            (-12, 8),
            textcoords="offset points",
            ha="right",
            color=COLOURS["exponential"],
            fontsize=16,
        )
        rates.annotate(
            "weight decay",
            (epochs[middle], _decades(decay)[middle]),
            (0, 10),
            textcoords="offset points",
            color=COLOURS["weight decay"],
            fontsize=16,
        )
        plt.close(figure)
    return figure


def _length(decay: Run, exponential: Run) -> int:
    lengths = decay.config.epochs, exponential.config.epochs
    if lengths[0] != lengths[1] or lengths[0] < 2:
        raise ExplrError(f"a face needs two runs of the same length, at least 2 epochs; got {lengths[0]} and {lengths[1]}.")
    return lengths[0]


def _decades(run: Run) -> np.ndarray:
    """Return the base-10 logarithm of the learning rate at the end of each epoch."""
    return np.array(run.history["log_lr"]) / np.log(10.0)


def _scale(rates: Sequence[np.ndarray]) -> tuple[int, int, list[int]]:
    """Return the ends of an axis of powers of ten, and four or five of them to label."""
    low, high = math.floor(min(values.min() for values in rates)) - 1, math.ceil(max(values.max() for values in rates)) + 1
    step = next((step for step in (1, 2, 5, 10, 20) if (high - low) / step <= 5), 50)
    return low, high, [tick for tick in range(low, high) if tick % step == 0]


def _panel(title: str, curves: Sequence[np.ndarray], low: float, high: float, ticks: Sequence[tuple[int, str]]) -> str:
    """Return a panel: lines that stretch with the page, and text that does not, so that it is as large on a phone."""
    lines = "".join(f'<path class="explr-face-{run}" d="{_path(values, low, high)}"/>' for run, values in enumerate(curves))
    picture = '<svg class="{}" viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">' + lines + "</svg>"
    labels = "".join(f'<span style="top:{_height(tick, low, high):.1f}%">{text}</span>' for tick, text in ticks)
    dots = "".join(
        f'<b class="explr-face-{run}" style="left:100%;top:{_height(values[-1], low, high):.2f}%"></b>'
        for run, values in enumerate(curves)
    )
    return (
        f'<div class="explr-face-panel"><p>{title}</p><div class="explr-face-ticks">{labels}</div><div class="explr-face-plot">'
        f'{picture.format("all")}{picture.format("past")}<i style="left:100%"></i>{dots}</div></div>'
    )


def _path(values: np.ndarray, low: float, high: float) -> str:
    across = np.linspace(0.0, 100.0, len(values))
    return "M" + "L".join(f"{x:.2f} {_height(y, low, high):.2f}" for x, y in zip(across, values, strict=True))


def _height(value: float, low: float, high: float) -> float:
    return 100.0 * (high - float(value)) / (high - low)


def _signed(exponent: int) -> str:
    return f"{exponent}".replace("-", "−")


def _shown(key: str, numbers: dict[str, Any], run: int, epoch: int) -> str:
    """Return a number of the table in HTML, as the script writes it."""
    value = numbers[key][run][epoch]
    if key != "rates":
        return f"{value:.1f} %"
    power = math.floor(value - math.log10(0.995))  # what would be 10.0 is 1.0 of the next power
    return f"{10 ** (value - power):.1f} · 10<sup>{_signed(power)}</sup>"


def _said(numbers: dict[str, Any], epoch: int, count: int) -> str:
    """Return what a screen reader says of an epoch."""
    powers = " and ".join(f"10 to the {numbers['rates'][run][epoch]:.0f}" for run in (0, 1))
    shares = " and ".join(f"{numbers['training'][run][epoch]:.0f} %" for run in (0, 1))
    return f"epoch {count}: learning rates {powers}, training accuracies {shares}"


# Shows an epoch; the functions f and say write what _shown and _said write.
_SCRIPT = """
(function () {
  var face = document.currentScript.parentNode, slider = face.querySelector("input"), shown = face.querySelector("output");
  var numbers = JSON.parse(face.querySelector("script").textContent), last = slider.max - 1;
  function f(key, value) {
    if (key != "rates") return value.toFixed(1) + " %";
    var power = Math.floor(value - Math.log10(0.995));
    return Math.pow(10, value - power).toFixed(1) + " · 10<sup>" + String(power).replace("-", "−") + "</sup>";
  }
  function say(k) {
    var r = numbers.rates.map(function (v) { return "10 to the " + v[k].toFixed(0); }).join(" and ");
    var t = numbers.training.map(function (v) { return v[k].toFixed(0) + " %"; }).join(" and ");
    return "epoch " + (k + 1) + ": learning rates " + r + ", training accuracies " + t;
  }
  function show() {
    var k = slider.value - 1, across = 100 * k / last + "%";
    shown.textContent = k + 1;
    slider.setAttribute("aria-valuetext", say(k));
    face.querySelectorAll("td[data-key]").forEach(function (cell) {
      cell.innerHTML = f(cell.dataset.key, numbers[cell.dataset.key][cell.dataset.run][k]);
    });
    face.querySelectorAll(".explr-face-plot").forEach(function (plot, panel) {
      var curves = panel ? numbers.training : numbers.rates;
      var low = panel ? 0 : numbers.low, high = panel ? numbers.top : numbers.high;
      plot.querySelector(".past").style.clipPath = "inset(-9px calc(100% - " + across + ") -9px -9px)";
      plot.querySelector("i").style.left = across;
      plot.querySelectorAll("b").forEach(function (dot, run) {
        dot.style.left = across;
        dot.style.top = 100 * (high - curves[run][k]) / (high - low) + "%";
      });
    });
  }
  var touched = false;
  slider.addEventListener("input", function () { touched = true; show(); });
  face.querySelectorAll(".explr-face-plot").forEach(function (plot) {
    function follow(event) {
      if (event.type == "pointermove" && event.pointerType != "mouse" && !event.buttons) return;
      var box = plot.getBoundingClientRect(), share = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
      touched = true;
      slider.value = 1 + Math.round(share * last);
      show();
    }
    plot.addEventListener("pointerdown", follow);
    plot.addEventListener("pointermove", follow);
  });
  if (window.matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  var begun;
  requestAnimationFrame(function run(now) {
    begun = begun || now;
    if (touched) return;
    var share = Math.min((now - begun) / 3000, 1);
    slider.value = 1 + Math.round(share * last);
    show();
    if (share < 1) requestAnimationFrame(run);
  });
})();
"""
