"""A drawing says the numbers that it was given, and refuses numbers that do not belong together."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

from explr import ExplrError, convert
from explr.book import rails
from explr.equivalence import advance

matplotlib.use("agg")


def words(figure):
    return [text.get_text() for text in figure.axes[0].texts if text.get_text()]


def arrows(figure):
    return [text for text in figure.axes[0].texts if getattr(text, "arrow_patch", None)]


def three_steps():
    """Return P, η, η̃ and κ of three steps that come out round."""
    rates, carried = [1.0, 0.5, 0.25], [0.0]
    for step, rate in enumerate(rates):
        carried.append(advance(carried[-1], rate, 0.5, 0.25, step)[1])
    twin = convert(rates, 0.5, 0.25)
    return np.exp(twin.log_scale), rates, twin.lr, np.array(carried)


def test_rails_say_every_number_of_both_runs():
    scales, rates, twin_rates, carried = three_steps()
    figure = rails.two_rails(scales, rates, twin_rates, carried=carried)
    wanted = {"$P_2 = 3.2$", r"$\tilde\eta_1 = 3.2$", r"$\eta_1 = 0.5,\ x_1 = 0.375$", r"$\kappa_2 = 1.2$"}
    assert wanted | {"run A", "run B"} <= set(words(figure))
    assert plt.get_fignums() == [] and figure.get_facecolor()[3] == 0.0


def test_memory_is_drawn_only_where_there_is_some():
    """Three steps on either rail; decay enters the memory at each, and leaks from it at the last two."""
    scales, rates, twin_rates, carried = three_steps()
    assert len(arrows(rails.two_rails(scales, rates, twin_rates, carried=carried))) == 3 + 3 + 3 + 2
    without = rails.two_rails(scales, rates, twin_rates)
    assert len(arrows(without)) == 3 + 3 and not any("kappa" in text for text in words(without))


@pytest.mark.parametrize(
    "scales, twin_rates, carried", [([1, 2], [1, 2], None), ([1, 2, 3], [1], None), ([1, 2, 3], [1, 2], [0, 1])]
)
def test_rails_refuse_runs_of_different_lengths(scales, twin_rates, carried):
    with pytest.raises(ExplrError, match="2 rates need as many of the twin and 3 scales"):
        rails.two_rails(scales, [0.1, 0.1], twin_rates, carried=carried)


def test_the_square_says_its_corners_and_both_rates():
    figure = rails.commuting_square([[2, 1], [2.3, 0.4], [4, 2], [4.6, 0.8]], rate=2.5, factor=2.0)
    corners = ["$\\theta$\n(2, 1)", "$\\theta'$\n(2.3, 0.4)", "$c\\,\\theta$\n(4, 2)", "$c\\,\\theta'$\n(4.6, 0.8)"]
    assert words(figure)[:4] == corners
    assert {r"step at $\eta = 2.5$", r"step at $c^2\eta = 10$", r"$\times\, c = 2$"} <= set(words(figure))
    assert len(arrows(figure)) == 4
