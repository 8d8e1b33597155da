import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from explr import ExplrError, Run, RunConfig
from explr.experiments.statistics import (
    accuracy_difference,
    accuracy_table,
    equivalence_test,
    final_accuracies,
    trajectory_distance,
    undecided_because,
)

values = st.lists(st.tuples(st.floats(0, 1), st.floats(-0.05, 0.05)), min_size=2, max_size=12)


def run(seed, *accuracies):
    return Run(RunConfig(seed=seed), {"test_accuracy": list(accuracies)}, {}, {})


@given(values, st.floats(1e-3, 0.1))
def test_verdict_is_that_of_two_one_sided_t_tests(pairs, margin):
    first = [a for a, _ in pairs]
    second = [a + d for a, d in pairs]
    differences = np.subtract(second, first)
    result = equivalence_test(first, second, margin)
    if np.ptp(differences) < 1e-12:
        return  # scipy has no answer there; see the test of constant differences
    above = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(differences, margin, alternative="less").pvalue
    assert result.p_value == pytest.approx(max(above, below), rel=1e-9, abs=1e-12)
    assert result.equivalent == (result.p_value < 0.05)
    assert result.p_difference == pytest.approx(stats.ttest_1samp(differences, 0.0).pvalue, rel=1e-9, abs=1e-12)
    assert result.verdict == ("equivalent" if result.equivalent else "different" if result.p_difference < 0.05 else "undecided")
    assert result.low <= result.difference <= result.high


@given(values, st.floats(1e-3, 0.1))
def test_equivalent_exactly_when_the_interval_lies_within_the_margin(pairs, margin):
    first = [a for a, _ in pairs]
    result = equivalence_test(first, [a + d for a, d in pairs], margin)
    inside = -margin < result.low and result.high < margin
    near = min(abs(result.low + margin), abs(result.high - margin)) < 1e-9
    assert near or result.equivalent == inside


def test_constant_differences_leave_nothing_to_chance():
    assert equivalence_test([0.5, 0.25], [0.75, 0.5], margin=0.3).equivalent
    assert equivalence_test([0.5, 0.25], [0.75, 0.5], margin=0.25).verdict == "different"
    assert equivalence_test([0.5, 0.25], [0.5, 0.25], margin=0.25).verdict == "equivalent"


def test_few_noisy_pairs_do_not_pass_as_equivalent():
    assert equivalence_test([0.9, 0.9], [0.95, 0.85], margin=0.01).verdict == "undecided"


def test_what_is_certain_and_smaller_than_the_margin_is_equivalent_and_what_exceeds_it_different():
    first, second = [0.90, 0.91, 0.92, 0.93], [0.901, 0.9111, 0.9211, 0.931]
    assert equivalence_test(first, second, 0.005).verdict == "equivalent"
    assert equivalence_test(first, second, 0.0005).verdict == "different"


def test_error_rate_is_the_level_at_the_margin():
    rng = np.random.default_rng(0)
    found = sum(equivalence_test(np.zeros(5), rng.normal(0.01, 0.003, 5), margin=0.01).equivalent for _ in range(2000))
    assert abs(found / 2000 - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 2000)
    same = [equivalence_test(np.zeros(5), rng.normal(0.0, 0.003, 5), margin=1e-4).verdict for _ in range(2000)]
    assert abs(same.count("different") / 2000 - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 2000)


def test_one_of_several_arms_must_differ_more_clearly():
    first, second = [0.5, 0.5, 0.5], [0.509, 0.508, 0.516]
    alone = equivalence_test(first, second)
    assert alone.verdict == "different" and 0.05 / 3 < alone.p_difference < 0.05
    assert equivalence_test(first, second, comparisons=3).verdict == "undecided"
    runs = {arm: [run(seed, value) for seed, value in enumerate(side)] for arm, side in {"a": first, "b": second}.items()}
    assert "different" in accuracy_table(runs, "a")
    assert "different" not in accuracy_table({**runs, "c": runs["a"], "d": runs["a"]}, "a")
    assert "different" in accuracy_table({**runs, "c": runs["a"][:2], "d": runs["a"][:1]}, "a"), "only verdicts are counted"


def test_difference_of_accuracies_is_that_of_the_common_seeds_and_one_seed_leaves_it_open():
    first, second = [run(0, 0.5), run(1, 0.6), run(7, 0.1)], [run(1, 0.7), run(0, 0.5), run(8, 0.9)]
    difference, (low, high) = accuracy_difference(first, second)
    test = equivalence_test([0.5, 0.6], [0.5, 0.7])
    assert (difference, low, high) == (test.difference, test.low, test.high)
    assert accuracy_difference(first[:1], second) == (0.0, (-1.0, 1.0))
    with pytest.raises(ExplrError, match=r"runs of seeds \[7\] cannot be paired with runs of seeds \[1, 0, 8\]"):
        accuracy_difference(first[2:], second)


def side(*accuracies):
    return [run(seed, accuracy) for seed, accuracy in enumerate(accuracies)]


@pytest.mark.parametrize(
    "controls, undecided",
    [
        ({}, True),  # none was made
        ({"ulp": side(0.901, 0.91)}, True),  # too few pairs
        ({"ulp": side(0.901, 0.91, 0.92)}, False),
        ({"ulp": side(0.901, 0.91, 0.92), "scale": side(0.9)}, False),
        ({"ulp": side(0.901, 0.91, 0.92), "scale": side(0.91, 0.95, 0.90)}, True),  # one does not pass
        ({"ulp": side(0.94, 0.95, 0.96)}, True),  # a false alarm, but an alarm
    ],
)
def test_an_arm_is_judged_only_where_the_controls_pass(controls, undecided):
    runs = {"decay": side(0.90, 0.91, 0.92), "texp": side(0.90, 0.911, 0.92), **controls}
    assert bool(undecided_because(runs, "decay", "texp", ["ulp", "scale"])) == undecided
    assert undecided_because(runs, "decay", "texp") == ""


def test_below_three_pairs_nothing_is_judged_however_well_they_agree():
    runs = {"decay": side(0.90, 0.91, 0.92), "texp": side(0.90, 0.91)}
    assert undecided_because(runs, "decay", "texp") == "Fewer than 3 pairs of seeds."


def test_trajectories_are_paired_by_seed():
    first, second = [run(0, 0.1, 0.5), run(1, 0.2, 0.6), run(2, 0.0, 0.0)], [run(1, 0.2, 0.9), run(0, 0.1, 0.1)]
    np.testing.assert_allclose(trajectory_distance(first, second, "test_accuracy"), [0.0, math.sqrt((0.16 + 0.09) / 2)])


def test_the_end_of_a_run_is_its_last_tenth_and_at_least_two_epochs():
    assert final_accuracies([run(1, 0.0, 0.4, 0.6), run(0, 0.2)]) == [0.2, 0.5]
    assert final_accuracies([run(0, *[0.0] * 18, 0.5, 0.7)]) == [pytest.approx(0.6)]
    assert final_accuracies([run(0, *[0.0] * 27, 0.3, 0.6, 0.9)]) == [pytest.approx(0.6)]


@pytest.mark.parametrize(
    "call, part",
    [
        (lambda: equivalence_test([1.0], [1.0], 0.1), "two or more pairs"),
        (lambda: equivalence_test([1.0, 2.0], [1.0], 0.1), "(2,)"),
        (lambda: equivalence_test([1.0, math.nan], [1.0, 1.0], 0.1), "finite"),
        (lambda: equivalence_test([1.0, 2.0], [1.0, 2.0], 0.0), "margin=0.0"),
        (lambda: equivalence_test([1.0, 2.0], [1.0, 2.0], 0.1, level=0.7), "level=0.7"),
        (lambda: trajectory_distance([run(0, 0.1)], [run(1, 0.1)]), "seeds [0]"),
        (lambda: trajectory_distance([], []), "seeds []"),
        (lambda: trajectory_distance([run(0, 0.1)], [run(0, 0.1)], "loss"), "test_accuracy"),
        (lambda: trajectory_distance([run(0, 0.1)], [run(0, 0.1, 0.2)], "test_accuracy"), "same number of epochs"),
    ],
)
def test_bad_input_gets_one_error_that_restates_it(call, part):
    with pytest.raises(ExplrError) as caught:
        call()
    assert part in str(caught.value)


def test_accuracy_table_compares_each_arm_with_the_reference_over_the_seeds_that_both_have():
    runs = {
        "decay": [run(1, 0.92), run(0, 0.90), run(3, 0.94), run(2, 0.5)],
        "same": [run(0, 0.90), run(1, 0.92), run(3, 0.94)],
        "worse": [run(3, 0.84), run(0, 0.80), run(1, 0.82), run(5, 0.9)],
        "two": [run(0, 0.90), run(1, 0.92)],
        "one": [run(1, 0.93)],
    }
    lines = accuracy_table(runs, "decay").splitlines()
    assert lines[0].endswith("81.50 ± 21.06 %, 4 seeds")
    assert lines[1].endswith("92.00 ± 2.00 %, 3 seeds; less decay, 90 %: +0.00 to +0.00 points, equivalent")
    assert "82.00 ± 2.00 %, 3 seeds; less decay, 90 %: -10.00 to -10.00 points, different (p = " in lines[2]
    assert lines[3].endswith("91.00 ± 1.41 %, 2 seeds; less decay, 90 %: +0.00 to +0.00 points, too few for a verdict")
    assert lines[4].endswith("93.00 %, one seed; less decay +1.00 points")
    assert accuracy_table({"decay": runs["decay"][:1]}, "decay") == f"{'decay':22} 92.00 %, one seed"


def test_accuracy_table_refuses_what_cannot_be_compared():
    with pytest.raises(ExplrError, match="no arm 'texp'"):
        accuracy_table({"decay": [run(0, 0.9)]}, "texp")
    with pytest.raises(ExplrError, match=r"the arm 'texp' cannot be compared with 'decay': .* seeds \[0, 0\]"):
        accuracy_table({"decay": [run(0, 0.9)], "texp": [run(0, 0.9), run(0, 0.8)]}, "decay")
    with pytest.raises(ExplrError, match=r"'texp' .* a common seed is needed"):
        accuracy_table({"decay": [run(0, 0.9)], "texp": [run(1, 0.9)]}, "decay")
