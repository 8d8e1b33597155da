"""The conversion as numbers: reference values, closed forms, exact arithmetic."""

import math
import re
from decimal import Decimal, getcontext

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from explr import (
    ExplrError,
    adamw_steady_state,
    characteristic_root,
    convert,
    convert_adamw,
    growth_rate,
    texp,
    weight_decay_for,
)
from explr.equivalence import Schedule, _log_scale, advance

getcontext().prec = 60

# lr, weight decay, momentum, alpha, growth per step, growth per 391 steps; computed with 40 digits
REFERENCE = [
    (0.1, 5e-4, 0.9, 0.999497728367891848, 1.00100530060175788, 1.48123335628711931),
    (0.1, 5e-4, 0.0, 0.99995, 1.00010000750050003, 1.03987548240921966),
    (0.1, 1e-4, 0.9, 0.999899909828593018, 1.00020021040095253, 1.08141939334234559),
    (0.05, 5e-4, 0.9, 0.999749434812163403, 1.00050131878735782, 1.21648618777595177),
]
momenta = st.sampled_from([0.0, 0.3, 0.5, 0.9, 0.99])


def bound(momentum):
    """Return (1 - sqrt(momentum))**2, rounded once: in floats the difference would cancel digits."""
    return float((1 - Decimal(momentum).sqrt()) ** 2)


@pytest.mark.parametrize("lr, weight_decay, momentum, alpha, step, epoch", REFERENCE)
def test_reference_values_to_1e_12(lr, weight_decay, momentum, alpha, step, epoch):
    assert characteristic_root(lr, weight_decay, momentum) == pytest.approx(alpha, rel=1e-15)
    assert growth_rate(lr, weight_decay, momentum) == pytest.approx(step, rel=1e-15)
    assert growth_rate(lr, weight_decay, momentum, steps=391) == pytest.approx(epoch, rel=1e-12)


def test_without_decay_nothing_grows_however_long():
    assert growth_rate(1.0, 0.0, 0.5, steps=1.7e308) == 1.0


@given(lr=st.floats(1e-6, 10), share=st.floats(1e-9, 1 - 1e-14), momentum=momenta)  # at the bound itself rounding decides
@example(lr=1.0, share=1 - 1e-14, momentum=0.3)
@example(lr=1.0, share=1 - 1e-14, momentum=0.99)
def test_root_solves_the_quadratic_and_is_the_larger_one(lr, share, momentum):
    weight_decay = share * bound(momentum) / lr
    assume(lr * weight_decay < min(bound(momentum), 1.0))
    alpha = characteristic_root(lr, weight_decay, momentum)
    decay = lr * weight_decay
    assert abs(alpha**2 - (1 + momentum - decay) * alpha + momentum) < 1e-15
    assert alpha >= math.sqrt(momentum) * (1 - 1e-7)  # the roots multiply to momentum


@given(
    lrs=st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=40),
    weight_decay=st.floats(1e-6, 1e-3),
    momentum=momenta,
)
def test_recursion_agrees_with_the_textbook_form_in_60_digits(lrs, weight_decay, momentum):
    try:
        schedule = convert(lrs, weight_decay, momentum)
    except ExplrError:
        assume(False)
    lam, gamma = Decimal(weight_decay), Decimal(momentum)
    alpha, previous, scale = None, None, Decimal(1)
    for step, eta in enumerate(map(Decimal, lrs)):
        alpha = 1 - lam * eta if alpha is None else 1 + gamma * eta / previous * (1 - 1 / alpha) - lam * eta
        next_scale = scale / alpha
        assert schedule.log_lr[step] == pytest.approx(float((eta * scale * next_scale).ln()), rel=1e-12, abs=1e-12)
        assert schedule.log_scale[step + 1] == pytest.approx(float(next_scale.ln()), rel=1e-12, abs=1e-12)
        scale, previous = next_scale, eta


@pytest.mark.parametrize("lr, weight_decay, momentum", [row[:3] for row in REFERENCE])
def test_theorem_1_is_the_fixed_point_of_the_recursion(lr, weight_decay, momentum):
    schedule = convert([lr] * 1000, weight_decay, momentum)
    growth = np.diff(schedule.log_lr)[-1]
    assert growth == pytest.approx(math.log(growth_rate(lr, weight_decay, momentum)), rel=1e-10)


@pytest.mark.parametrize("lr, weight_decay, momentum", [row[:3] for row in REFERENCE])
def test_texp_with_one_phase_is_the_formula_of_theorem_1(lr, weight_decay, momentum):
    alpha = characteristic_root(lr, weight_decay, momentum)
    steps = np.arange(200)
    expected = math.log(lr) - (2 * steps + 1) * math.log(alpha)
    np.testing.assert_allclose(texp([lr], [200], weight_decay, momentum).log_lr, expected, rtol=1e-12)


def test_without_momentum_closed_form_and_recursion_are_one():
    exact, closed = convert([0.1] * 500, 5e-4), texp([0.1], [500], 5e-4)
    np.testing.assert_allclose(exact.log_lr, closed.log_lr, rtol=1e-13)
    np.testing.assert_allclose(exact.log_lr, math.log(0.1) - (2 * np.arange(500) + 1) * math.log1p(-5e-5), rtol=1e-12)


def test_theorem_2_divides_the_rate_and_tapers_the_growth_when_a_phase_begins():
    lrs, first = [0.1, 0.01], 300
    schedule = texp(lrs, [first, 300], 5e-4, 0.9)
    roots = [characteristic_root(lr, 5e-4, 0.9) for lr in lrs]
    growth = np.diff(schedule.log_lr)
    np.testing.assert_allclose(growth[: first - 1], -2 * math.log(roots[0]), rtol=1e-9)
    np.testing.assert_allclose(growth[first:], -2 * math.log(roots[1]), rtol=1e-9)
    assert growth[first - 1] == pytest.approx(math.log(lrs[1] / lrs[0]) - math.log(roots[0] * roots[1]), rel=1e-12)


def test_source_experiment_ends_where_the_design_says():
    epoch = 391
    lrs = np.repeat([0.1, 0.01, 0.001], [80 * epoch, 40 * epoch, 80 * epoch])
    exact = convert(lrs, 5e-4, 0.9)
    closed = texp([0.1, 0.01, 0.001], [80 * epoch, 40 * epoch, 80 * epoch], 5e-4, 0.9)
    assert exact.log_lr[-1] / math.log(10) == pytest.approx(11.461, abs=5e-4)
    assert exact.log_scale[-1] / math.log(10) == pytest.approx(7.231, abs=5e-4)
    # The closed form starts from a buffer that it does not have: 9.11e-3 too high, nearly all of it within 60 steps.
    assert closed.log_lr[-1] - exact.log_lr[-1] == pytest.approx(9.11e-3, abs=5e-6)
    assert closed.log_lr[60] - exact.log_lr[60] == pytest.approx(9.1e-3, abs=2e-5)


def test_first_order_formula_holds_for_any_schedule():
    lrs = 0.05 + 0.04 * np.sin(np.arange(2000) / 50)
    schedule = convert(lrs, 5e-4, 0.9)
    first_order = np.log(lrs) + 2 * 5e-4 / (1 - 0.9) * np.cumsum(lrs)
    assert np.abs(schedule.log_lr - first_order).max() < 0.02 * (schedule.log_lr[-1] - np.log(lrs[-1]))


@given(lr=st.floats(1e-4, 1.0), share=st.floats(1e-3, 0.999), momentum=momenta)
def test_weight_decay_for_inverts_growth_rate(lr, share, momentum):
    weight_decay = share * bound(momentum) / lr
    growth = growth_rate(lr, weight_decay, momentum)
    assume(growth < 1e6)
    # One rounding of the growth is a relative error of 1e-16 / (growth - 1) in the equivalent decay, and near the bound, where
    # the two roots meet, an infinitely steep function is inverted the flat way round.
    assert weight_decay_for(growth, lr, momentum) == pytest.approx(weight_decay, rel=1e-15 + 1e-15 / (growth - 1))


def test_a_schedule_that_varies_decay_and_momentum_reduces_to_the_constant_one():
    lrs = np.linspace(0.01, 0.1, 50)
    varying = convert(lrs, np.full(50, 5e-4), np.full(50, 0.9))
    np.testing.assert_array_equal(varying.log_lr, convert(lrs, 5e-4, 0.9).log_lr)


def test_no_weight_decay_changes_nothing():
    schedule = convert([0.1, 0.02, 0.3], 0.0, 0.9)
    np.testing.assert_array_equal(schedule.log_scale, 0.0)
    np.testing.assert_allclose(schedule.lr, [0.1, 0.02, 0.3], rtol=1e-15)
    assert characteristic_root(0.1, 0.0, 0.9) == 1.0


def test_a_million_steps_convert():
    schedule = convert(np.full(1_000_000, 0.1), 5e-4, 0.9)
    per_step = math.log(growth_rate(0.1, 5e-4, 0.9))
    assert schedule.log_lr[-1] - schedule.log_lr[999] == pytest.approx(999_000 * per_step, rel=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", torch.float16, torch.bfloat16, torch.float32, np.float32])
def test_first_overflow_is_the_first_step_that_the_dtype_cannot_hold(dtype):
    schedule = convert([0.1] * 100_000, 5e-4, 0.9)
    step = schedule.first_overflow(dtype)
    largest = torch.finfo(getattr(torch, getattr(dtype, "__name__", str(dtype)).removeprefix("torch."))).max
    assert schedule.lr[step] > largest >= schedule.lr[step - 1]


def test_first_overflow_is_none_when_everything_fits():
    assert convert([0.1], 5e-4).first_overflow(torch.float32) is None


@pytest.mark.parametrize(
    "call, parts",
    [
        (lambda: characteristic_root(0.8, 0.005, 0.9), ["lr=0.8", "weight_decay=0.005", "0.00263", "momentum <= 0.877"]),
        (lambda: characteristic_root(1.0, 1.0), ["lr * weight_decay = 1", "Lower"]),
        (lambda: characteristic_root(0.1, 5e-4, 1.0), ["momentum=1.0", "[0, 1)"]),
        (lambda: characteristic_root(0.1, 5e-4, -0.1), ["momentum=-0.1"]),
        (lambda: characteristic_root(0.1, -5e-4), ["weight_decay=-0.0005"]),
        (lambda: texp([0.25], [10**400], 5e-4), ["phase_steps[0]=1000", "at most 1,000,000,000"]),
        (lambda: texp([0.25], [10**9000], 5e-4), ["phase_steps[0]=a number of 29898 bits"]),
        (lambda: growth_rate(math.nan, 5e-4), ["lr=nan"]),
        (lambda: growth_rate(0.1, 5e-4, steps=-1), ["steps=-1"]),
        (lambda: growth_rate(0.1, 5e-4, 0.9, steps=10**7), ["too large", "log_lr"]),
        (lambda: convert([], 5e-4), ["lrs", "at least one"]),
        (lambda: convert([[0.1]], 5e-4), ["(1, 1)"]),
        (lambda: convert([0.1, 0.0], 5e-4), ["lr=0.0 at step 1", "positive"]),
        (lambda: convert([0.1, -0.1], 5e-4), ["lr=-0.1 at step 1"]),
        (lambda: convert([0.1, math.nan], 5e-4), ["lr=nan at step 1"]),
        (lambda: convert([0.1, math.inf], 5e-4), ["lr=inf at step 1"]),
        (lambda: convert([0.1, 0.1], [5e-4]), ["weight_decay", "2 steps"]),
        (lambda: convert([0.1, 0.1], 5e-4, [0.9, 0.0]), ["momentum=0.0 at step 1", "small positive"]),
        (lambda: convert([0.8] * 200, 0.005, 0.9), ["step 65", "lr=0.8", "must be below", "0.0026334"]),
        (lambda: convert([3000.0], 5e-4), ["step 0", "lr must be below 2000"]),
        (lambda: convert("fast", 5e-4), ["lrs='fast'", "numbers"]),
        (lambda: convert([0.1, [0.1]], 5e-4), ["numbers"]),
        (lambda: convert([0.1], "much"), ["weight_decay='much'"]),
        (lambda: characteristic_root([0.1, 0.2], 5e-4), ["lr must be one number", "(2,)"]),
        (lambda: growth_rate(0.1, 5e-4, steps=math.nan), ["steps=nan"]),
        (lambda: texp([0.1], 5, 5e-4), ["phase_steps=5"]),
        (lambda: texp([0.1, 0.01], [5], 5e-4), ["phase_steps=[5]"]),
        (lambda: texp([0.1], [0], 5e-4), ["phase_steps[0]=0", ">= 1"]),
        (lambda: texp([0.1], [1.5], 5e-4), ["phase_steps[0]=1.5"]),
        (lambda: weight_decay_for(1.481, 0.1, 0.9), ["growth=1.481", "1.11111", "per epoch"]),
        (lambda: weight_decay_for(0.9, 0.1), ["growth=0.9", ">= 1"]),
        (lambda: weight_decay_for(1.001, 0.0), ["lr=0.0"]),
        (lambda: convert([0.1] * 800_000, 5e-4, 0.9).lr, ["too large for float64", "log_lr"]),
        (lambda: convert([0.1], 5e-4).first_overflow("int8"), ["int8", "bfloat16"]),
    ],
)
def test_bad_input_gets_one_error_that_restates_it(call, parts):
    with pytest.raises(ExplrError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "form",
    [
        lambda lrs: torch.tensor(lrs, dtype=torch.bfloat16, requires_grad=True),
        lambda lrs: np.array(lrs, dtype=np.float32),
        iter,
        tuple,
    ],
    ids=["tensor", "float32 array", "iterator", "tuple"],
)
def test_numbers_may_come_in_any_form_and_are_worked_with_in_float64(form):
    np.testing.assert_array_equal(convert(form([0.5, 0.25]), 5e-4, 0.9).log_lr, convert([0.5, 0.25], 5e-4, 0.9).log_lr)
    root = characteristic_root(np.float32(0.5), torch.tensor(0.25), 0.0)
    assert type(root) is float and root == characteristic_root(0.5, 0.25)


def with_log_lr(*values):
    return Schedule(np.array(values), np.zeros(len(values) + 1))


@pytest.mark.parametrize("dtype", ["float16", torch.bfloat16, np.float32, "float64", torch.float64])
def test_the_largest_number_of_a_dtype_does_not_overflow_and_the_next_rate_does(dtype):
    largest = math.log(torch.finfo(getattr(torch, getattr(dtype, "__name__", str(dtype)).removeprefix("torch."))).max)
    assert with_log_lr(largest, -largest).first_overflow(dtype) is None
    assert with_log_lr(0.0, largest, largest + 1e-12, 2e3).first_overflow(dtype) == 2


def test_without_momentum_named_none_is_meant():
    assert characteristic_root(0.5, 0.5) == characteristic_root(0.5, 0.5, 0.0) == 0.75
    assert growth_rate(0.5, 0.5) == growth_rate(0.5, 0.5, 0.0, steps=1.0) == pytest.approx(16 / 9, rel=1e-15)


@pytest.mark.parametrize("steps, growth", [(0, 1.0), (0.5, 4 / 3), (1, 16 / 9), (3, (16 / 9) ** 3)])
def test_growth_over_any_time_is_a_power_of_that_over_a_step(steps, growth):
    assert growth_rate(0.5, 0.5, steps=steps) == pytest.approx(growth, rel=1e-15)


def test_the_largest_growth_is_the_largest_number():
    assert growth_rate(1.0, 0.5, steps=512) == pytest.approx(1.797693134862273e308, rel=1e-12)  # 2**1024, rounded down
    with pytest.raises(ExplrError, match="too large for float64"):
        growth_rate(1.0, 0.5, steps=512.0000001)


def test_where_the_two_roots_meet_everything_is_defined():
    assert characteristic_root(1.0, 0.25, 0.25) == 0.5
    assert growth_rate(1.0, 0.25, 0.25) == pytest.approx(4.0, rel=1e-15)
    assert weight_decay_for(4.0, 1.0, 0.25) == pytest.approx(0.25, rel=1e-15)
    assert weight_decay_for(1.0, 0.1, 0.9) == 0.0


def test_the_closed_form_says_with_which_momentum_it_runs():
    schedule = texp([0.1, 0.01], [2, 3], 5e-4, 0.9)
    assert (schedule.momentum.tolist(), schedule.dampening.tolist()) == ([0.9] * 5, [0.0] * 5)
    np.testing.assert_allclose(np.diff(schedule.log_scale)[:2], -math.log(characteristic_root(0.1, 5e-4, 0.9)), rtol=1e-12)
    assert schedule.log_scale.shape == (6,) and schedule.log_scale[0] == 0.0


def test_adamw_settles_to_what_the_formulas_say():
    state = adamw_steady_state(0.5, 0.5, (0.5, 0.75))
    assert state.growth == 1 / 0.75 and state.betas == (0.375, 0.421875)
    assert state.factor == pytest.approx(0.5 / 0.625 * math.sqrt(0.578125 / 0.25), rel=1e-15)
    assert adamw_steady_state(1e-3, 0.1) == adamw_steady_state(1e-3, 0.1, (0.9, 0.999))
    assert adamw_steady_state(0.5, 0.0).betas == (0.9, 0.999) and adamw_steady_state(0.5, 0.0).growth == 1.0


def test_a_step_of_the_recursion_is_that_of_a_buffer_under_way():
    assert advance(0.5, 0.25, 0.5, 0.5, step=0) == (0.1875, 0.75 / 0.8125)
    for lr in (2.0, 3.0):  # all of the weights, and more
        with pytest.raises(ExplrError) as caught:
            advance(0.0, lr, 0.5, 0.5, step=9)
        assert f"step 9: lr={lr:g} with weight_decay=0.5, momentum=0.5 takes" in str(caught.value)
        assert f"a share of {lr / 2:g};" in str(caught.value)


@pytest.mark.skipif(np.finfo(np.longdouble).eps == np.finfo(np.float64).eps, reason="the longest float here is float64")
def test_a_long_sum_of_logs_loses_nothing():
    shares = np.random.default_rng(0).uniform(0, 1e-3, 200_000)
    scale = _log_scale(shares)
    assert scale.dtype == np.float64
    assert scale[-1] == pytest.approx(math.fsum(-np.log1p(-shares)), rel=3e-16)


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda bad: convert(bad, 0.1), "lrs"),
        (lambda bad: convert([0.1], bad), "weight_decay"),
        (lambda bad: convert([0.1], 0.1, bad), "momentum"),
        (lambda bad: convert([0.1], 0.1, dampening=bad), "dampening"),
        (lambda bad: convert_adamw(bad, 0.1), "lrs"),
        (lambda bad: convert_adamw([0.1], bad), "weight_decay"),
        (lambda bad: convert_adamw([0.1], 0.1, (bad, 0.9)), "betas[0]"),
        (lambda bad: convert_adamw([0.1], 0.1, (0.9, bad)), "betas[1]"),
        (lambda bad: convert_adamw([0.1], 0.1, eps=bad), "eps"),
        (lambda bad: texp(bad, [1], 0.1), "phase_lrs"),
        (lambda bad: texp([0.1], [1], bad), "weight_decay"),
        (lambda bad: texp([0.1], [1], 0.1, bad), "momentum"),
        (lambda bad: characteristic_root(bad, 0.1), "lr"),
        (lambda bad: characteristic_root(0.1, bad), "weight_decay"),
        (lambda bad: characteristic_root(0.1, 0.1, bad), "momentum"),
        (lambda bad: growth_rate(0.1, 0.1, steps=bad), "steps"),
        (lambda bad: weight_decay_for(bad, 0.1), "growth"),
        (lambda bad: weight_decay_for(1.1, bad), "lr"),
        (lambda bad: weight_decay_for(1.1, 0.1, bad), "momentum"),
        (lambda bad: adamw_steady_state(bad, 0.1), "lr"),
        (lambda bad: adamw_steady_state(0.1, bad), "weight_decay"),
        (lambda bad: adamw_steady_state(0.1, 0.1, (bad, 0.9)), "betas[0]"),
        (lambda bad: adamw_steady_state(0.1, 0.1, (0.9, bad)), "betas[1]"),
    ],
)
def test_what_is_no_number_is_refused_by_its_name(call, name):
    with pytest.raises(ExplrError) as caught:
        call("x")
    assert str(caught.value) == f"{name}='x' must be numbers, each within the range of float64."


STEADY = (
    "no exponential schedule is equivalent to lr={}, weight_decay={}, momentum={}{}: lr * weight_decay = {} exceeds {} = {}. "
)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: characteristic_root(1.0, 0.5, 0.25),
            STEADY.format(1.0, 0.5, 0.25, "", 0.5, "(1 - sqrt(momentum))**2", 0.25)
            + "Lower lr or weight_decay, or use momentum <= 0.085.",
        ),
        (
            lambda: characteristic_root(1.0, 0.5, 0.25, nesterov=True),
            STEADY.format(1.0, 0.5, 0.25, ", nesterov=True", 0.5, "((1 - momentum) / (1 + momentum))**2", 0.36)
            + "Lower lr or weight_decay, or use momentum <= 0.171.",
        ),
        (
            lambda: characteristic_root(1.0, 1.0, 0.25),
            STEADY.format(1.0, 1.0, 0.25, "", 1, "(1 - sqrt(momentum))**2", 0.25) + "Lower lr or weight_decay.",
        ),
        (
            lambda: characteristic_root(1.0, 1.5),
            STEADY.format(1.0, 1.5, 0.0, "", 1.5, "(1 - sqrt(momentum))**2", 1) + "Lower lr or weight_decay.",
        ),
        (
            lambda: convert([0.1], 0.1, dampening=-math.inf),
            "dampening=-inf at step 0: dampening must be finite and below 1; 0 is usual.",
        ),
        (
            lambda: convert([0.1], 0.1, nesterov=True),
            "nesterov=True needs a positive momentum and dampening=0, as in torch.optim.SGD.",
        ),
        (
            lambda: convert([0.1], 0.1, dampening=1.0),
            "dampening=1.0 at step 0: dampening must be finite and below 1; 0 is usual.",
        ),
        (lambda: convert_adamw([0.1], 0.1, (0.9,)), "betas=(0.9,) must be two: (0.9, 0.999) are usual."),
        (lambda: convert_adamw([0.1], 0.1, 0.9), "betas=0.9 must be two: (0.9, 0.999) are usual."),
        (
            lambda: convert_adamw([0.1, 1.0], 1.0),
            "no exponential schedule is equivalent to step 1: lr=1 with weight_decay=1 takes away all of the weights",
        ),
        (lambda: convert_adamw([0.1], 0.1, (0.9, 1.0)), "betas[1]=1.0 at step 0: betas[1] must lie in [0, 1)."),
        (lambda: convert_adamw([0.1], 0.1, eps=math.inf), "eps=inf: eps must be finite and not negative."),
        (lambda: weight_decay_for(math.inf, 0.1), "growth=inf must be a finite factor per step, >= 1 (1.001 for a tenth"),
        (lambda: growth_rate(0.1, 0.1, steps=math.inf), "steps=inf must be finite and not negative."),
        (
            lambda: weight_decay_for(2.0, 5e-324),
            "at lr=5e-324 the weight decay of growth=2.0 is too large for float64: use a larger lr.",
        ),
        (
            lambda: with_log_lr(0.0).first_overflow("int8"),
            "unknown dtype 'int8': use one of float16, bfloat16, float32, float64.",
        ),
    ],
)
def test_a_refusal_names_the_values_the_bound_and_a_way_out(call, message):
    with pytest.raises(ExplrError) as caught:
        call()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("lr, weight_decay", [(1.0, 0.5), (0.8, 0.005)])
def test_the_momentum_that_a_refusal_advises_converts_and_little_more_does_not(lr, weight_decay, nesterov):
    with pytest.raises(ExplrError, match=r"momentum <= [\d.]*\d") as caught:
        characteristic_root(lr, weight_decay, 0.99, nesterov=nesterov)
    momentum = float(re.search(r"momentum <= ([\d.]*\d)", str(caught.value))[1])
    characteristic_root(lr, weight_decay, momentum, nesterov=nesterov)
    with pytest.raises(ExplrError):
        characteristic_root(lr, weight_decay, momentum + 1e-3, nesterov=nesterov)
