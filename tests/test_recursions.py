"""The recursions, on one number: a run with weight decay, its twin without, and gradients that shrink as weights grow."""

import math
import warnings

import numpy as np
import pytest

from explr import convert, convert_adamw
from explr.recursions import AdamW, HeavyBall, Nesterov, heavy_ball_bound, nesterov_bound, no_twin

STEPS = 12
RANDOM = np.random.default_rng(0)
GRADIENTS = RANDOM.normal(size=STEPS)
LRS = RANDOM.uniform(0.05, 0.3, STEPS)
DECAYS = RANDOM.uniform(0.01, 0.1, STEPS)
MOMENTA = RANDOM.uniform(0.3, 0.6, STEPS)
DAMPENING = RANDOM.uniform(-0.5, 0.5, STEPS)
BETA1, BETA2 = RANDOM.uniform(0.5, 0.95, STEPS), RANDOM.uniform(0.8, 0.99, STEPS)


def sgd(buffer, weight, gradient, lr, weight_decay, momentum, dampening=0.0, *, nesterov=False):
    """Take a step as torch.optim.SGD does; a buffer that is None is empty."""
    gradient = gradient + weight_decay * weight
    buffer = gradient if buffer is None else momentum * buffer + (1 - dampening) * gradient
    direction = gradient if not momentum else gradient + momentum * buffer if nesterov else buffer
    return buffer, weight - lr * direction


def adamw(buffers, weight, gradient, lr, weight_decay, beta1, beta2, eps):
    """Take a step as torch.optim.AdamW does."""
    mean, square, n = buffers
    mean, square, n = beta1 * mean + (1 - beta1) * gradient, beta2 * square + (1 - beta2) * gradient**2, n + 1
    root = math.sqrt(square / (1 - beta2**n)) + eps
    return (mean, square, n), (1 - lr * weight_decay) * weight - lr * mean / (1 - beta1**n) / root


def twins(family, steps_done, *columns):
    """Advance a recursion over all steps: yield the log of P before each and after, and the twin's settings."""
    memory, log_scale = family.start(steps_done), 0.0
    for step in range(STEPS):
        settings = [float(column[step]) for column in columns]
        share, after = family.advance(memory, *settings)
        twin = family.settings(memory, after, *settings)
        log_next = log_scale - math.log1p(-share)
        lr = settings[0] * math.exp(twin.pop("log_factor") + (family.lr_power - 1) * log_scale + log_next)
        yield log_scale, log_next, lr, settings, twin
        memory, log_scale = after, log_next


@pytest.mark.parametrize("buffer", [None, 0.7], ids=["new", "under way"])
@pytest.mark.parametrize(
    "family, columns",
    [
        (HeavyBall(), (MOMENTA, np.zeros(STEPS))),
        (HeavyBall(), (MOMENTA, DAMPENING)),
        (HeavyBall(), (np.zeros(STEPS), DAMPENING)),
        (Nesterov(), (MOMENTA,)),
    ],
    ids=["heavy ball", "damped", "no momentum", "Nesterov"],
)
def test_the_weight_of_sgd_s_twin_is_p_times_that_of_the_run(family, columns, buffer):
    weight = twin_weight = 2.0
    twin_buffer, nesterov = buffer, isinstance(family, Nesterov)
    steps = twins(family, buffer and 5, LRS, DECAYS, *columns)
    for gradient, (log_scale, log_next, lr, settings, twin) in zip(GRADIENTS, steps, strict=True):
        shrunk = gradient / math.exp(log_scale)
        buffer, weight = sgd(buffer, weight, gradient, *settings, nesterov=nesterov)
        hyper = (lr, 0.0, twin["momentum"], twin["dampening"])
        twin_buffer, twin_weight = sgd(twin_buffer, twin_weight, shrunk, *hyper, nesterov=nesterov)
        assert twin_weight == pytest.approx(weight * math.exp(log_next), rel=1e-13)


@pytest.mark.parametrize("buffers", [(0.0, 0.0, 0), (0.7, 0.6, 5)], ids=["new", "under way"])
def test_the_weight_of_adamw_s_twin_is_p_times_that_of_the_run(buffers):
    weight = twin_weight = 2.0
    twin_buffers = buffers
    steps = twins(AdamW(), buffers[2], LRS, 5 * DECAYS, BETA1, BETA2, np.full(STEPS, 0.1))
    for gradient, (log_scale, log_next, lr, settings, twin) in zip(GRADIENTS, steps, strict=True):
        shrunk = gradient / math.exp(log_scale)
        eps = settings[-1] * math.exp(twin["log_eps_factor"] - log_scale)
        buffers, weight = adamw(buffers, weight, gradient, *settings)
        hyper = (lr, 0.0, twin["beta1"], twin["beta2"], eps)
        twin_buffers, twin_weight = adamw(twin_buffers, twin_weight, shrunk, *hyper)
        assert twin_weight == pytest.approx(weight * math.exp(log_next), rel=1e-13)


def test_that_check_sees_a_decay_that_is_off_by_a_millionth():
    weight, buffer, twin_weight, twin_buffer = 2.0, None, 2.0, None
    steps = twins(HeavyBall(), None, LRS, 1.000001 * DECAYS, MOMENTA, np.zeros(STEPS))
    errors = []
    for step, (gradient, (log_scale, after, lr, _, _)) in enumerate(zip(GRADIENTS, steps, strict=True)):
        buffer, weight = sgd(buffer, weight, gradient, LRS[step], DECAYS[step], MOMENTA[step])
        shrunk = gradient / math.exp(log_scale)
        twin_buffer, twin_weight = sgd(twin_buffer, twin_weight, shrunk, lr, 0.0, MOMENTA[step])
        errors.append(abs(twin_weight / (weight * math.exp(after)) - 1))
    assert max(errors) > 1e-9


def test_a_schedule_is_the_recursion_at_every_step():
    schedule = convert(LRS, DECAYS, MOMENTA, dampening=DAMPENING)
    for step, (log_scale, log_next, lr, _, twin) in enumerate(twins(HeavyBall(), None, LRS, DECAYS, MOMENTA, DAMPENING)):
        found = [schedule.log_scale[step], schedule.log_scale[step + 1], schedule.lr[step], schedule.momentum[step]]
        assert found == pytest.approx([log_scale, log_next, lr, MOMENTA[step]], rel=1e-13)
        assert schedule.dampening[step] == twin["dampening"] == DAMPENING[step]
    schedule = convert(LRS, DECAYS, MOMENTA, nesterov=True)
    for step, (log_scale, log_next, lr, _, twin) in enumerate(twins(Nesterov(), None, LRS, DECAYS, MOMENTA)):
        found = [schedule.log_scale[step], schedule.log_scale[step + 1], schedule.lr[step]]
        assert found == pytest.approx([log_scale, log_next, lr], rel=1e-13)
        assert schedule.momentum[step] == pytest.approx(twin["momentum"], rel=1e-13)
        assert schedule.dampening[step] == pytest.approx(twin["dampening"], rel=1e-12)
    adam = convert_adamw(LRS, DECAYS, (BETA1, BETA2), eps=0.1)
    steps = twins(AdamW(), None, LRS, DECAYS, BETA1, BETA2, np.full(STEPS, 0.1))
    for step, (log_scale, log_next, lr, _, twin) in enumerate(steps):
        assert [adam.log_scale[step + 1], adam.lr[step]] == pytest.approx([log_next, lr], rel=1e-13)
        assert adam.betas[step] == pytest.approx([twin["beta1"], twin["beta2"]], rel=1e-13)
        assert adam.log_eps[step] == pytest.approx(math.log(0.1) + twin["log_eps_factor"] - log_scale, rel=1e-13)


def test_adamw_without_memory_needs_no_correction():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        twin = convert_adamw([0.1] * 3, 1.0, (0.0, 0.0), eps=0.0)
    assert (twin.betas.tolist(), twin.log_eps.tolist()) == ([[0.0, 0.0]] * 3, [-math.inf] * 3)
    np.testing.assert_allclose(twin.log_lr, math.log(0.1) - np.log(0.9) * np.arange(1, 4), rtol=1e-14)


def test_a_recursion_starts_with_empty_buffers_or_with_those_of_a_run():
    assert [HeavyBall().start(), HeavyBall().start(0), HeavyBall().start(7)] == [(0.0, 1.0), (0.0, 1.0), (0.0, 0.0)]
    assert [Nesterov().start(), Nesterov().start(7)] == [(0.0, 0.0, 1.0), (0.0, 0.0, 0.0)]
    assert [AdamW().start(), AdamW().start(7)] == [(1.0, 1.0, 0.0, 0.0), (1.0, 1.0, 0.0, 7.0)]


@pytest.mark.parametrize("lr", [1.0, 1.5])
def test_a_step_that_takes_all_of_the_weights_leaves_no_memory(lr):
    assert HeavyBall().advance((0.0, 1.0), lr, 1.0, 0.5, 0.0) == (lr, (math.inf, 0.0))
    assert Nesterov().advance((0.0, 0.0, 1.0), 1.0, lr, 0.0) == (math.inf, (math.inf, math.inf, 0.0))
    assert Nesterov().advance((0.0, 0.0, 1.0), 0.8, lr, 0.25)[1] == (math.inf, math.inf, 0.0)
    assert AdamW().advance(AdamW().start(), lr, 1.0, 0.9, 0.999, 1e-8)[0] == lr


@pytest.mark.parametrize(
    "weight_decay, momentum, carried",
    [(0.308, 0.67, 1.0818445087992867), (0.085, 0.06, 252.75)],
    ids=["of the rate", "of the weights"],
)
def test_where_nothing_is_left_but_a_rounding_nesterov_has_no_twin(weight_decay, momentum, carried):
    """What is left of the weights and of the twin's rate vanish together, but one of them may round to 1e-16."""
    assert Nesterov().advance((carried, 0.0, 0.0), 1.0, weight_decay, momentum) == (1.0, (math.inf, math.inf, 0.0))


def converts_at(family, decay, *settings, steps=4000):
    memory = family.start()
    for _ in range(steps):
        share, memory = family.advance(memory, 1.0, decay, *settings)
        if share >= 1.0:
            return False
    return True


@pytest.mark.parametrize(
    "family, settings, bound",
    [
        (HeavyBall(), (0.25, 0.0), 0.25),
        (HeavyBall(), (0.25, 0.5), 0.5),
        (HeavyBall(), (0.25, -1.0), 0.125),
        (HeavyBall(), (0.0, 0.5), 1.0),
        (Nesterov(), (0.5,), 1 / 9),
        (AdamW(), (0.9, 0.999, 1e-8), 1.0),
    ],
)
def test_a_bound_is_the_most_decay_that_converts_for_ever(family, settings, bound):
    assert family.bound(1.0, 0.01, *settings) == pytest.approx(bound, rel=1e-15)
    assert converts_at(family, 0.99 * bound, *settings) and not converts_at(family, 1.01 * bound, *settings)


def test_bounds_of_momentum():
    assert [heavy_ball_bound(0.0), heavy_ball_bound(0.25), nesterov_bound(0.0), nesterov_bound(0.6)] == [1.0, 0.25, 1.0, 0.0625]
    assert heavy_ball_bound(1 - 1e-12) == pytest.approx(2.5e-25, rel=1e-4)  # (1 - sqrt(momentum))**2 would keep four digits


@pytest.mark.parametrize(
    "family, settings, message",
    [
        (
            HeavyBall(),
            (3.0, 0.5, 0.25, 0.0),
            "no exponential schedule is equivalent to step 7: lr=3 with weight_decay=0.5, momentum=0.25 takes away all of the "
            "weights (a share of 1.5; it must stay below 1). At this step lr must be below 2; at a constant rate lr * "
            "weight_decay must not exceed (1 - sqrt(momentum))**2 = 0.25. Lower lr or weight_decay.",
        ),
        (
            Nesterov(),
            (3.0, 0.5, 0.6),
            "no exponential schedule is equivalent to step 7: lr=3 with weight_decay=0.5, Nesterov momentum=0.6 takes away too "
            "much of the weights (a share of 1.5; it must stay below 1). At a constant rate lr * weight_decay must not exceed "
            "((1 - momentum) / (1 + momentum))**2 = 0.0625. Lower lr or weight_decay.",
        ),
        (
            AdamW(),
            (3.0, 0.5, 0.9, 0.999, 1e-8),
            "no exponential schedule is equivalent to step 7: lr=3 with weight_decay=0.5 takes away all of the weights (a "
            "share of 1.5): lr * weight_decay must stay below 1. Lower lr or weight_decay.",
        ),
    ],
)
def test_a_refusal_says_how_far_off_a_step_is(family, settings, message):
    assert str(no_twin(family, 1.5, settings, step=7)) == message
