"""Are two sets of runs equivalent? Paired comparisons over seeds.

In float32 two runs that compute the same functions on paper drift apart, as any two runs do that differ by one rounding. So
long runs are compared as distributions: seeds pair the runs, and the question is not "is there a difference" but "is the
difference smaller than a margin that was stated beforehand" (two one-sided t-tests, TOST; Schuirmann 1987). The answer may be
that the data cannot tell.

What the book's claims are held against stands here, once, for records of every size: a miniature gets no wider bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from explr.checks import FloatArray
from explr.errors import ExplrError
from explr.experiments.records import Run

Verdict = Literal["equivalent", "different", "undecided"]
MARGIN = 0.005  # accuracies closer than half a point count as the same
STATE_OF_THE_ART = 0.92  # a residual network of 32 layers on CIFAR-10: 92.49 % in He et al. (2016a)
WELL_TRAINED = 0.90  # what a schedule must reach there to be called a good one
SETTLED = 0.05  # by how much, relatively, a norm may miss the growth that the theory gives it
CONSTANT = 0.10  # within what range, relatively, a quantity is called constant
PAIRS = 3  # fewer pairs of seeds decide nothing; set before there was a second pair of long runs
LAST = 0.1  # share of the epochs over which accuracies are averaged, at least two epochs: one alone can be off by points


@dataclass(frozen=True)
class Equivalence:
    """The verdict of :func:`equivalence_test`.

    Attributes:
        pairs: number of pairs.
        difference: mean of second minus first.
        low: lower end of the confidence interval of the difference; the interval lies within the margin exactly when the test
            finds equivalence.
        high: its upper end.
        margin: the largest difference that counts as none, as stated beforehand.
        p_value: of the hypothesis that the difference is at least as large as the margin.
        equivalent: whether that hypothesis is rejected.
        p_difference: of the hypothesis that there is no difference (two-sided t-test).
        verdict: "equivalent" if the test finds so; else "different" if the hypothesis of no difference is rejected; else
            "undecided": the data are compatible with no difference and with one that matters.
    """

    pairs: int
    difference: float
    low: float
    high: float
    margin: float
    p_value: float
    equivalent: bool
    p_difference: float
    verdict: Verdict


def equivalence_test(
    first: Sequence[float], second: Sequence[float], margin: float = MARGIN, *, level: float = 0.05, comparisons: int = 1
) -> Equivalence:
    """Test whether the mean difference of paired values is smaller than ``margin`` (TOST, paired t-tests), and whether it is 0.

    Args:
        first: one value a pair, for example the final test accuracies of the runs with weight decay, seed by seed.
        second: the values of the other side, in the same order.
        margin: > 0, in the unit of the values, stated before looking.
        level: probability of finding equivalence where there is none, and of finding a difference where there is none; the
            confidence interval has level ``1 - 2 * level``.
        comparisons: how many are made at once. A difference is only called one at ``level / comparisons`` (Bonferroni), or
            the more arms a table has, the more of them would seem to differ by chance alone.

    Raises:
        ExplrError: if there are fewer than two pairs, values that are not finite, or a margin that is not positive.

    >>> equivalence_test([0.90, 0.91, 0.92], [0.901, 0.911, 0.919], margin=0.005).verdict
    'equivalent'
    >>> equivalence_test([0.90, 0.91, 0.92], [0.951, 0.958, 0.971], margin=0.005).verdict
    'different'
    """
    values = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if values[0].shape != values[1].shape or values[0].ndim != 1 or len(values[0]) < 2:
        raise ExplrError(f"{np.shape(first)} and {np.shape(second)} values do not make two or more pairs.")
    if not (np.isfinite(values).all() and 0.0 < margin < math.inf and 0.0 < level < 0.5):
        raise ExplrError(f"values must be finite, margin={margin} positive, and level={level} between 0 and 0.5.")
    differences = values[1] - values[0]
    mean, pairs = float(differences.mean()), len(differences)
    error = float(differences.std(ddof=1)) / math.sqrt(pairs)
    if error == 0.0:  # every pair differs by the same amount: nothing is left to chance
        half, p_value, p_difference = 0.0, float(abs(mean) >= margin), float(mean == 0.0)
    else:
        from scipy import stats  # it takes half a second to import

        student = stats.t(pairs - 1)
        half = float(student.ppf(1.0 - level)) * error
        p_value, p_difference = float(student.sf((margin - abs(mean)) / error)), 2.0 * float(student.sf(abs(mean) / error))
    equivalent = p_value < level
    verdict: Verdict = "equivalent" if equivalent else "different" if p_difference < level / comparisons else "undecided"
    return Equivalence(pairs, mean, mean - half, mean + half, margin, p_value, equivalent, p_difference, verdict)


def final_accuracies(runs: Sequence[Run]) -> list[float]:
    """Return the test accuracy at the end of each run, the mean over its last tenth (LAST), in the order of their seeds."""
    values = (run.history["test_accuracy"] for run in sorted(runs, key=lambda run: run.config.seed))
    return [float(np.mean(history[-last_epochs(len(history)) :])) for history in values]


def last_epochs(epochs: int) -> int:
    """Return over how many epochs the end of a run of so many is averaged.

    >>> last_epochs(200), last_epochs(20), last_epochs(8)
    (20, 2, 2)
    """
    return max(round(LAST * epochs), 2)


def paired(*sides: Sequence[Run]) -> list[list[Run]]:
    """Return, of each side, the runs of the seeds that all sides have, in the order of the seeds.

    >>> from explr import Run, RunConfig
    >>> one, two = ([Run(RunConfig(seed=seed), {}, {}, {}) for seed in seeds] for seeds in ((0, 1, 2), (2, 1, 5)))
    >>> [[run.config.seed for run in side] for side in paired(one, two)]
    [[1, 2], [1, 2]]

    Raises:
        ExplrError: if no seed occurs in all, or one occurs twice in a side.
    """
    seeds = [[run.config.seed for run in side] for side in sides]
    common = sorted(set.intersection(*map(set, seeds)))
    if not common or any(len(set(side)) < len(side) for side in seeds):
        shown = " cannot be paired with runs of seeds ".join(map(str, seeds))
        raise ExplrError(f"runs of seeds {shown}: a common seed is needed, and each once.")
    found = [{run.config.seed: run for run in side} for side in sides]
    return [[side[seed] for seed in common] for side in found]


def accuracy_difference(first: Sequence[Run], second: Sequence[Run]) -> tuple[float, tuple[float, float]]:
    """Return the mean of second less first, in final accuracy over the seeds that both have, and its 90 % confidence interval.

    One seed tells nothing about chance: the interval is then all that a difference of accuracies can be.

    >>> from explr import Run, RunConfig
    >>> one, two = (Run(RunConfig(), {"test_accuracy": [accuracy]}, {}, {}) for accuracy in (0.5, 0.75))
    >>> accuracy_difference([one], [two])
    (0.25, (-1.0, 1.0))

    Raises:
        ExplrError: as :func:`paired` does.
    """
    sides = [final_accuracies(side) for side in paired(first, second)]
    if len(sides[0]) == 1:
        return sides[1][0] - sides[0][0], (-1.0, 1.0)
    test = equivalence_test(sides[0], sides[1])
    return test.difference, (test.low, test.high)


def accuracy_table(runs: Mapping[str, Sequence[Run]], reference: str, margin: float = MARGIN) -> str:
    """Return a table of final test accuracies in percent: mean and standard deviation of each arm, and its verdict.

    Before the verdict of :func:`equivalence_test`, for so many comparisons as there are verdicts, comes the 90 % confidence
    interval of the paired difference to the reference, in percentage points; after a difference its p-value. Fewer pairs than
    PAIRS have no verdict, a single one no interval.

    Args:
        runs: the records of each arm; seeds that the reference lacks are left out.
        reference: the arm that the others are tested against.
        margin: as for :func:`equivalence_test`, as a share of 1: 0.005 is half a percentage point.

    Raises:
        ExplrError: if there is no such arm, a seed occurs twice in one, or an arm has no seed of the reference's.

    >>> from explr import Run, RunConfig
    >>> def run(seed, accuracy):
    ...     return Run(RunConfig(seed=seed), {"test_accuracy": [accuracy]}, {}, {})
    >>> runs = {
    ...     "decay": [run(0, 0.93), run(1, 0.94), run(2, 0.935)],
    ...     "texp": [run(0, 0.931), run(1, 0.94), run(2, 0.935)],
    ...     "twin": [run(0, 0.931)],
    ... }
    >>> print(accuracy_table(runs, "decay"))
    decay                  93.50 ± 0.50 %, 3 seeds
    texp                   93.53 ± 0.45 %, 3 seeds; less decay, 90 %: -0.06 to +0.13 points, equivalent
    twin                   93.10 %, one seed; less decay +0.10 points
    """
    if reference not in runs:
        raise ExplrError(f"there is no arm {reference!r} to compare with: use one of {', '.join(runs)}.")
    sides = {}
    for arm, side in runs.items():
        try:
            sides[arm] = [final_accuracies(part) for part in paired(runs[reference], side)]
        except ExplrError as error:
            raise ExplrError(f"the arm {arm!r} cannot be compared with {reference!r}: {error}") from None
    comparisons = sum(len(values) >= PAIRS for arm, (_, values) in sides.items() if arm != reference)
    lines = []
    for arm, (first, values) in sides.items():
        line, other = f"{arm:22} {100 * np.mean(values):.2f}", arm != reference
        if len(values) == 1:
            line += " %, one seed" + f"; less {reference} {100 * (values[0] - first[0]):+.2f} points" * other
        else:
            line += f" ± {100 * np.std(values, ddof=1):.2f} %, {len(values)} seeds"
        if other and len(values) > 1:
            test = equivalence_test(first, values, margin, comparisons=max(comparisons, 1))
            verdict = test.verdict if len(values) >= PAIRS else "too few for a verdict"
            line += f"; less {reference}, 90 %: {100 * test.low:+.2f} to {100 * test.high:+.2f} points, {verdict}"
            line += f" (p = {test.p_difference:.2g})" if verdict == "different" else ""
        lines.append(line)
    return "\n".join(lines)


def undecided_because(runs: Mapping[str, Sequence[Run]], reference: str, arm: str, controls: Sequence[str] = ()) -> str:
    """Return why these runs cannot decide whether an arm ends as accurate as the reference; "" if they can.

    A verdict that is looked at after every new seed errs more often than its level says, so nothing is decided below PAIRS
    pairs. And an experiment that cannot tell its controls from the reference decides nothing either: one of them at least
    must have PAIRS pairs, and each that has them must be found equivalent.

    Args:
        runs: the records of each arm.
        reference: the arm that the other is tested against.
        arm: the other.
        controls: the arms that are the reference but for rounding; none where the experiment has none.

    Raises:
        ExplrError: as :func:`paired` does.

    >>> from explr import Run, RunConfig
    >>> runs = {arm: [Run(RunConfig(), {"test_accuracy": [0.9]}, {}, {})] for arm in ("decay", "texp")}
    >>> undecided_because(runs, "decay", "texp")
    'Fewer than 3 pairs of seeds.'
    """
    first = runs[reference]
    if len(paired(first, runs[arm])[0]) < PAIRS:
        return f"Fewer than {PAIRS} pairs of seeds."
    sides = [map(final_accuracies, paired(first, runs[control])) for control in controls if control in runs]
    tests = [equivalence_test(one, other) for one, other in sides if len(one) >= PAIRS]
    if controls and not (tests and all(test.equivalent for test in tests)):
        return "No control passes the same test, or not all do."
    return ""


def trajectory_distance(first: Sequence[Run], second: Sequence[Run], quantity: str = "train_loss") -> FloatArray:
    """Return how far apart two sets of runs are after each epoch: the root mean square difference over the paired seeds.

    To judge it, take the distance between ``first`` and a control that differs in rounding alone: the same runs with
    ``weight_scale=3.0``, rounded differently at every step, or with ``one_ulp=True``, which differ once, at the start.

    Args:
        first: runs of one arm.
        second: runs of another arm with the same number of epochs; seeds that one of them lacks are left out.
        quantity: a key of ``Run.history``.

    Returns:
        shape ``(epochs,)``, in the unit of the quantity.

    Raises:
        ExplrError: as :func:`paired` does, if the lengths differ, or the runs have no such quantity.
    """
    sides = paired(first, second)
    try:
        values = np.array([[run.history[quantity] for run in side] for side in sides])
    except (KeyError, ValueError):
        raise ExplrError(
            f"not every run has {quantity!r} for the same number of epochs: use one of {', '.join(sides[0][0].history)}."
        ) from None
    return np.sqrt(((values[1] - values[0]) ** 2).mean(axis=0))
