import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, CyclicLR, LambdaLR, MultiStepLR

from explr import ExplrError
from explr.schedules import constant, cosine, sample, step_decay, triangular, warmup

STEPS = 60


def rates_of(make_scheduler, lr):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=lr, momentum=0.9)
    scheduler = make_scheduler(optimizer)
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (step_decay(0.1, [20, 40]), lambda optimizer: MultiStepLR(optimizer, [20, 40])),
        (cosine(0.1, STEPS), lambda optimizer: CosineAnnealingLR(optimizer, STEPS)),
        (cosine(0.1, STEPS, lr_min=0.02), lambda optimizer: CosineAnnealingLR(optimizer, STEPS, eta_min=0.02)),
        (triangular(0.01, 0.1, 7), lambda optimizer: CyclicLR(optimizer, 0.01, 0.1, step_size_up=7, cycle_momentum=False)),
    ],
    ids=["step_decay", "cosine", "cosine with a floor", "triangular"],
)
def test_curves_are_those_of_torch(ours, theirs):
    np.testing.assert_allclose(sample(ours, STEPS), rates_of(theirs, lr=0.1), rtol=1e-9)


@pytest.mark.parametrize("schedule", [constant(0.1), step_decay(0.1, [3]), cosine(0.1, 50), triangular(0.01, 0.1, 5)])
def test_schedules_feed_lambda_lr_at_a_base_rate_of_one(schedule):
    np.testing.assert_allclose(
        rates_of(lambda optimizer: LambdaLR(optimizer, schedule), lr=1.0), sample(schedule, STEPS), rtol=1e-15
    )


def test_cosine_restarts_after_each_period():
    rates = sample(cosine(0.1, 20), 40)
    np.testing.assert_array_equal(rates[:20], rates[20:])


@given(steps=st.integers(1, 50), lr=st.floats(1e-3, 1))
def test_warmup_rises_in_a_line_to_the_schedule_and_then_is_it(steps, lr):
    rates = sample(warmup(cosine(lr, 100), steps), steps + 100)
    assert rates[0] > 0
    np.testing.assert_allclose(np.diff(rates[: steps + 1]), lr / (steps + 1), rtol=1e-9)
    np.testing.assert_array_equal(rates[steps:], sample(cosine(lr, 100), 100))


@pytest.mark.parametrize(
    "call, part",
    [
        (lambda: constant(0.0), "lr=0.0"),
        (lambda: constant(math.nan), "lr=nan"),
        (lambda: step_decay(-0.1, [1]), "lr=-0.1"),
        (lambda: step_decay(0.1, [5, 3]), "milestones=[5, 3]"),
        (lambda: step_decay(0.1, [5], factor=0.0), "factor=0.0"),
        (lambda: triangular(0.0, 0.1, 5), "lr_min=0.0"),
        (lambda: triangular(0.1, 0.2, 0), "half_period=0"),
        (lambda: cosine(0.1, 0), "period=0"),
        (lambda: cosine(0.1, 5, lr_min=0.2), "lr_min=0.2"),
        (lambda: warmup(constant(0.1), 0), "steps=0"),
        (lambda: sample(constant(0.1), 0), "steps=0"),
        (lambda: warmup(0.1, 5), "schedule=0.1 must be a function step -> learning rate"),
        (lambda: sample(0.1, 5), "schedule=0.1 must be a function step -> learning rate"),
    ],
)
def test_bad_input_gets_one_error_that_restates_it(call, part):
    with pytest.raises(ExplrError, match="must") as caught:
        call()
    assert part in str(caught.value)
