"""What a figure shows is what went in. Pictures themselves are not compared: they differ between versions of matplotlib."""

from itertools import pairwise

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

from explr import ExplrError, Run, RunConfig
from explr.book import plots, style

matplotlib.use("agg")


def record(scale, data="synthetic gratings"):
    """Return the record of a run of three epochs that never took place."""
    return Run(
        config=RunConfig(),
        history={
            "log_lr": [-2.0 * scale, 1.0, 5.0 * scale],
            "train_accuracy": [0.1, 0.2 * scale, 0.3],
            "test_accuracy": [0.15, 0.25, 0.2 * scale],
        },
        weight_norms={"blocks.1.conv1.weight": [1.0, 2.0 * scale, 4.0]},
        provenance={"data": data},
    )


def full_record(scale):
    run = record(scale)
    run.history["train_loss"] = [2.0, 1.0, 0.5 * scale]
    return run


def drawn(axes):
    """Return the heights of each labelled line."""
    return {line.get_label(): np.asarray(line.get_ydata()) for line in axes.lines}


def texts(axes):
    return {text.get_text() for text in axes.texts}


FIGURES = {
    "schedules": lambda: plots.schedules({"constant": [0.1, 0.1], "falling": [0.2, 0.1]}),
    "training_pair": lambda: plots.training_pair(record(1.0), record(2.0)),
    "norm_growth": lambda: plots.norm_growth(record(1.0), record(2.0), "blocks.1.conv1.weight"),
    "deviations": lambda: plots.deviations({"exact": [1e-15, 1e-14]}, ylabel="logits"),
    "twins": lambda: plots.twins({"constant": ([-2.3, -2.3], [-2.3, -2.2])}),
    "settings": lambda: plots.settings({"momentum": ([0.9, 0.9], [0.9001, 0.9])}),
    "memories": lambda: plots.memories({"squares": (0.999, 0.99)}),
    "arms": lambda: plots.arms({"decay": [full_record(1.0)], "texp": [full_record(2.0)]}),
    "start_up": lambda: plots.start_up([1e-4, 2e-4], 3e-4),
    "logits_at_scale": lambda: plots.logits_at_scale({"net": [0.0, 1.0]}, {"net": [0.5, 2.0]}, (-1.0, 3.0)),
    "scale_changes": lambda: plots.scale_changes([1.0, 10.0], {"eps": [1e-3, 1e-5]}),
    "lemma_plane": lambda: plots.lemma_plane([0.0, 1.0, 0.0], {"θ": [1.0, 0.0]}, {"θ": [0.0, 0.5]}),
    "weight_norms": lambda: plots.weight_norms({"plain SGD": [2.0, 3.0]}),
    "descent": lambda: plots.descent({"0.1": [1.0, 0.5]}, {"0.1": [0.1, 0.05]}, guide=2.0),
    "decay_and_growth": lambda: plots.decay_and_growth([1e-4, 1e-3], [1.002, 1.02], bound=2.6e-3, momentum=0.9),
    "horizons": lambda: plots.horizons({"float32": 232.0}, (1.0, 1e4)),
    "kept_in_range": lambda: plots.kept_in_range([0.0, 9.0], [0.0, 1.0], 8.0),
    "effective_rates": lambda: plots.effective_rates({"run": [0.1, 0.2]}),
    "angles": lambda: plots.angles({"γ = 0": ([1.0, 2.0], [1.1, 2.1], [True, False])}),
    "toy_paths": lambda: plots.toy_paths({"both": [9.0, 1.0]}, {"both": [0.1, 0.2]}, 2.0),
}


@pytest.mark.parametrize("make", FIGURES.values(), ids=FIGURES.keys())
def test_a_figure_is_shown_once_has_labelled_axes_and_no_background(make):
    figure = make()
    assert plt.get_fignums() == []  # pyplot would show it a second time
    assert figure.axes[-1].get_xlabel()
    assert all(axes.get_ylabel() for axes in figure.axes)
    assert figure.get_facecolor()[3] == 0.0
    assert all(axes.get_facecolor()[3] == 0.0 for axes in figure.axes)


def test_every_public_function_is_tested_here():
    made_here = {name for name in dir(plots) if getattr(getattr(plots, name), "__module__", "") == plots.__name__}
    assert {name for name in made_here if not name.startswith("_")} == set(FIGURES)


def test_colours_are_those_of_okabe_and_ito():
    palette = {"#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}
    used = [style.COLOURS["weight decay"], style.COLOURS["exponential"], *style.OTHER_COLOURS]
    assert set(used) <= palette and len(set(used)) == len(used)


def test_schedules_draws_each_curve_in_its_own_panel():
    curves = {"step decay": [0.1, 0.1, 0.01], "cosine": [0.1, 0.05, 0.0]}
    figure = plots.schedules(curves)
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(curves)
    for axes, values in zip(figure.axes, curves.values(), strict=True):
        np.testing.assert_array_equal(axes.lines[0].get_ydata(), values)


def test_training_pair_draws_rates_and_accuracies_of_both_arms():
    decay, exponential = record(1.0), record(2.0)
    figure = plots.training_pair(decay, exponential)
    for axes, of in zip(
        figure.axes,
        [
            lambda run: np.exp(run.history["log_lr"]),
            lambda run: 100 * np.array(run.history["train_accuracy"]),
            lambda run: 100 * np.array(run.history["test_accuracy"]),
        ],
        strict=True,
    ):
        lines = drawn(axes)
        np.testing.assert_allclose(lines["weight decay"], of(decay), rtol=1e-15)
        np.testing.assert_allclose(lines["exponential"], of(exponential), rtol=1e-15)
        assert texts(axes) == {"weight decay", "exponential"}
        assert [line.get_color() for line in axes.lines] == [style.COLOURS[arm] for arm in lines]
    assert figure.axes[0].get_yscale() == "log"
    assert figure.axes[0].get_title(loc="left") == "synthetic gratings"


def test_a_title_names_every_data_set():
    title = plots.training_pair(record(1.0), record(1.0, data="CIFAR-10")).axes[0].get_title(loc="left")
    assert "synthetic gratings" in title and "CIFAR-10" in title


def test_norm_growth_draws_the_norm_and_its_square_over_the_rate():
    decay, exponential = record(1.0), record(2.0)
    figure = plots.norm_growth(decay, exponential, "blocks.1.conv1.weight")
    norms, ratios = map(drawn, figure.axes)
    for arm, run in (("weight decay", decay), ("exponential", exponential)):
        norm = np.array(run.weight_norms["blocks.1.conv1.weight"])
        np.testing.assert_array_equal(norms[arm], norm)
        np.testing.assert_allclose(ratios[arm], norm**2 / np.exp(run.history["log_lr"]), rtol=1e-15)


def test_norm_growth_within_a_decade_has_numbers_along_its_axis():
    axes = plots.norm_growth(record(4.0), record(8.0), "blocks.1.conv1.weight").axes[0]
    axes.figure.draw_without_rendering()
    low, high = axes.get_ylim()
    assert high < 30 * low
    shown = [label for label in axes.get_ymajorticklabels() if low <= label.get_position()[1] <= high]
    assert len(shown) >= 2 and all(float(label.get_text()) == label.get_position()[1] for label in shown)
    assert not any(label.get_text() for label in axes.get_yminorticklabels())


def test_norm_growth_names_the_layers_there_are():
    with pytest.raises(ExplrError, match=r"no weights 'stem'.*blocks\.1\.conv1\.weight"):
        plots.norm_growth(record(1.0), record(1.0), "stem")


def test_a_line_of_zeros_is_named_though_there_is_nothing_to_draw():
    assert "same (0)" in texts(plots.deviations({"same": [0.0, 0.0], "other": [1e-3, 1e-2]}, ylabel="logits").axes[0])
    assert "net (0)" in texts(plots.scale_changes([1.0, 2.0], {"net": [0.0, 0.0]}).axes[0])


def test_deviations_draws_each_run_and_leaves_zeros_out():
    errors = {"exact": [0.0, 1e-15, 1e-14], "1 % off": [1e-5, 1e-4, 1e-3], "other": [1e-3, 1e-3, 1e-3]}
    axes = plots.deviations(errors, ylabel="logits").axes[0]
    lines = drawn(axes)
    assert np.isnan(lines["exact"][0])
    np.testing.assert_array_equal(lines["exact"][1:], errors["exact"][1:])
    np.testing.assert_array_equal(lines["1 % off"], errors["1 % off"])
    assert texts(axes) == set(errors)


def test_four_lines_have_a_legend_instead_of_labels():
    axes = plots.deviations({str(n): [1.0, 2.0] for n in range(4)}, ylabel="logits").axes[0]
    assert not texts(axes)
    (legend,) = axes.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["0", "1", "2", "3"]
    axes.figure.draw_without_rendering()
    assert not legend.get_window_extent().overlaps(axes.get_tightbbox())


def test_labels_of_lines_that_end_together_do_not_overlap():
    axes = plots.deviations({"one": [1.0, 2.0], "two": [3.0, 2.0], "three": [9.0, 2.0]}, ylabel="logits").axes[0]
    axes.figure.canvas.draw()
    boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.y0)
    assert all(below.y1 <= above.y0 for below, above in pairwise(boxes))


def test_start_up_draws_the_shares_and_what_they_come_to():
    lines = drawn(plots.start_up([1e-4, 2e-4], 3e-4).axes[0])
    np.testing.assert_array_equal(lines["exact"], [1e-4, 2e-4])
    np.testing.assert_array_equal(lines["closed form"], [3e-4, 3e-4])


def test_logits_at_scale_draws_both_in_the_same_limits():
    axes = plots.logits_at_scale({"net": [0.0, 1.0]}, {"net": [0.5, 2.0]}, (-1.0, 3.0)).axes[0]
    lines = drawn(axes)
    np.testing.assert_array_equal(lines["at θ"], [0.0, 1.0])
    np.testing.assert_array_equal(lines["at cθ"], [0.5, 2.0])
    assert axes.get_ylim() == (-1.0, 3.0) and axes.get_title(loc="left") == "net"


def test_scale_changes_draws_each_network_and_leaves_zeros_out():
    axes = plots.scale_changes([0.1, 1.0, 10.0], {"one": [1e-3, 0.0, 1e-5], "two": [1.0, 2.0, 3.0]}).axes[0]
    np.testing.assert_array_equal(drawn(axes)["one"], [1e-3, np.nan, 1e-5])
    np.testing.assert_array_equal(drawn(axes)["two"], [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), [0.1, 1.0, 10.0])


def test_lemma_plane_draws_points_and_gradients():
    points, gradients = {"θ": [1.0, 0.0], "cθ": [2.0, 0.0]}, {"θ": [0.0, 0.5], "cθ": [0.0, 0.25]}
    axes = plots.lemma_plane([0.0, 1.0, 0.0], points, gradients).axes[0]
    assert {name: list(heights) for name, heights in drawn(axes).items() if name in points} == {"θ": [0, 0], "cθ": [0, 0]}
    tips = [tuple(text.xy) for text in axes.texts if text.arrow_patch is not None]
    assert tips == [(1.0, 0.5), (2.0, 0.25)]


def test_weight_norms_are_relative_to_the_start():
    lines = drawn(plots.weight_norms({"plain SGD": [2.0, 3.0], "weight decay": [4.0, 2.0]}).axes[0])
    np.testing.assert_array_equal(lines["plain SGD"], [1.0, 1.5])
    np.testing.assert_array_equal(lines["weight decay"], [1.0, 0.5])


def test_descent_draws_gradients_over_effective_rates():
    figure = plots.descent({"0.1": [1.0, 0.5], "10": [1.0, 0.2]}, {"0.1": [0.1, 0.05], "10": [10.0, 0.1]}, guide=2.0)
    lines = drawn(figure.axes[0])
    np.testing.assert_array_equal(lines["10"], [1.0, 0.2])
    np.testing.assert_allclose(lines["slope −1/2"], [2.0, 2.0 / np.sqrt(2)])
    np.testing.assert_array_equal(figure.axes[1].lines[1].get_ydata(), [10.0, 0.1])


def test_twins_draws_base_10_logarithms_of_both_sides():
    sides = ([0.0, np.log(10.0)], [np.log(10.0), np.log(1000.0)])
    lines = drawn(plots.twins({"rising": sides}, limits=(-1.0, 4.0)).axes[0])
    np.testing.assert_allclose(lines["weight decay"], [0.0, 1.0])
    np.testing.assert_allclose(lines["exponential"], [1.0, 3.0])


def test_settings_draws_both_runs_in_a_panel_for_each_setting():
    figure = plots.settings({"momentum": ([0.9, 0.9], [0.9001, 0.9]), "β₂": ([0.999, 0.999], [0.999, 0.99])}, title="AdamW")
    assert [axes.get_ylabel() for axes in figure.axes] == ["momentum", "β₂"]
    assert figure.axes[0].get_title(loc="left") == "AdamW" and figure.axes[0].get_yscale() == "linear"
    np.testing.assert_array_equal(drawn(figure.axes[0])["exponential"], [0.9001, 0.9])
    np.testing.assert_array_equal(drawn(figure.axes[1])["weight decay"], [0.999, 0.999])


def test_memories_draws_powers_of_beta_and_marks_their_horizons():
    axes = plots.memories({"squares": (0.99, 0.5)}, longest=100).axes[0]
    ages = np.geomspace(1, 100, 200)
    np.testing.assert_allclose(drawn(axes)["weight decay"], 0.99**ages)
    np.testing.assert_allclose(drawn(axes)["exponential"], 0.5**ages)
    dots = [line.get_xdata()[0] for line in axes.lines if line.get_label() == "_horizon"]
    np.testing.assert_allclose(dots, [100.0, 2.0])


def test_arms_draws_the_mean_over_the_seeds():
    runs = [full_record(1.0), full_record(2.0)]
    rates, losses, accuracies = map(drawn, plots.arms({"decay": runs}).axes)
    for lines, key, unit in [(rates, "log_lr", np.log(10)), (losses, "train_loss", 1), (accuracies, "test_accuracy", 0.01)]:
        np.testing.assert_allclose(lines["decay"], np.mean([run.history[key] for run in runs], axis=0) / unit)


def test_arms_says_of_how_many_seeds_a_line_is_where_they_differ():
    runs = [full_record(1.0), full_record(2.0)]
    assert set(drawn(plots.arms({"decay": runs, "texp": runs}).axes[0])) == {"decay", "texp"}
    assert set(drawn(plots.arms({"decay": runs, "texp": runs[:1]}).axes[0])) == {"decay, 2 seeds", "texp, 1 seed"}


def test_deviations_counts_steps_on_a_log_scale_if_told():
    assert plots.deviations({"gap": [1e-3, 1e-2]}, ylabel="log LR", log_steps=True).axes[0].get_xscale() == "log"


def test_decay_and_growth_draws_the_excess_over_one_and_shades_from_the_bound():
    axes = plots.decay_and_growth([1e-4, 1e-3], [1.002, 1.02], bound=2.6e-3, momentum=0.9).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.002, 0.02], rtol=1e-12)
    assert axes.patches[0].get_x() == 2.6e-3
    assert axes.get_title(loc="left") == "momentum 0.9"


def test_horizons_draws_a_bar_for_each_format():
    axes = plots.horizons({"float16": 34.0, "float32": 232.0}, (1.0, 1e4)).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [34.0, 232.0]
    assert texts(axes) == {" 34", " 232"} and axes.get_xlim() == (1.0, 1e4)


def test_kept_in_range_draws_base_10_logarithms_and_the_limit():
    lines = drawn(plots.kept_in_range([0.0, np.log(1e5)], [0.0, np.log(10.0)], np.log(1e4)).axes[0])
    np.testing.assert_allclose(lines["theorem"], [0.0, 5.0])
    np.testing.assert_allclose(lines["in use"], [0.0, 1.0])
    np.testing.assert_allclose(lines["limit"], [4.0, 4.0])


def test_effective_rates_draws_runs_and_equilibrium():
    axes = plots.effective_rates({"a": [0.1, 0.2], "b": [0.4, 0.3]}, equilibrium=0.25, limits=(0.01, 1.0)).axes[0]
    np.testing.assert_array_equal(drawn(axes)["a"], [0.1, 0.2])
    np.testing.assert_array_equal(drawn(axes)["b"], [0.4, 0.3])
    assert drawn(axes)["_equilibrium"][0] == 0.25 and axes.get_ylim() == (0.01, 1.0) and texts(axes) == {"a", "b"}


def test_angles_draws_a_marker_a_group_hollow_where_it_has_not_settled_and_the_line_of_equality():
    groups = {"γ = 0": ([1.0, 8.0], [2.0, 9.0], [False, True]), "γ = 0.9": ([3.0], [4.0], [True])}
    axes = plots.angles(groups).axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[1.0, 1.0], [9.0, 9.0]])
    first, second = axes.collections
    np.testing.assert_array_equal(first.get_offsets(), [[1.0, 2.0], [8.0, 9.0]])
    np.testing.assert_array_equal(second.get_offsets(), [[3.0, 4.0]])
    assert [len(face) and face[3] > 0 for face in first.get_facecolors()] == [False, True]
    assert first.get_paths()[0].vertices.shape != second.get_paths()[0].vertices.shape
    named = [text.get_text() for text in axes.get_legend().get_texts()]
    assert named == ["equal", "γ = 0", "γ = 0.9", "not settled"]
    assert axes.get_xscale() == axes.get_yscale() == "log"


def test_toy_paths_draws_angles_over_effective_rates():
    top, bottom = plots.toy_paths({"decay": [9.0, 0.0], "both": [8.0, 1.0]}, {"both": [0.1, 3.0]}, 2.0).axes
    np.testing.assert_array_equal(drawn(top)["decay"], [9.0, np.nan])
    np.testing.assert_array_equal(drawn(bottom)["both"], [0.1, 3.0])
    assert drawn(bottom)["_limit"][0] == 2.0


def test_nothing_is_left_out_where_there_is_more_than_there_are_colours():
    names = [f"number {index}" for index in range(9)]
    points = {name: [1.0, index / 10] for index, name in enumerate(names)}
    axes = plots.lemma_plane([0.0, 1.0, 0.0], points, points).axes[0]
    assert set(names) <= drawn(axes).keys()
    axes = plots.angles({name: ([1.0], [2.0], [True]) for name in names}).axes[0]
    assert len(axes.collections) == 9
    assert len({(line.get_marker(), line.get_color()) for line in axes.lines if line.get_label() in names}) == 9
    top, bottom = plots.toy_paths({name: [1.0, 2.0] for name in names}, {"another": [0.1, 0.2]}, 2.0).axes
    assert set(names) <= drawn(top).keys() and "another" in drawn(bottom)
