"""What users may give: some hundred random inputs of every kind, and each one that was once taken wrongly."""

import math

import numpy as np
import pytest
import torch

import explr
from explr import ExpLR, ExplrError
from tools import fuzz_inputs


@pytest.mark.parametrize("name", fuzz_inputs.TARGETS)
def test_random_inputs_give_what_is_right_and_finite_or_one_error(name):
    fuzz_inputs.fuzz(name, 60 if name in ("command", "record", "explr") else 200, random=False)


def test_that_check_sees_a_conversion_that_is_off_by_a_millionth(monkeypatch):
    right = explr.convert

    def wrong(*args, **options):
        schedule = right(*args, **options)
        return type(schedule)(schedule.log_lr, schedule.log_scale * (1 + 1e-6), schedule.momentum, schedule.dampening)

    monkeypatch.setattr(explr, "convert", wrong)
    with pytest.raises(AssertionError):
        fuzz_inputs.fuzz("convert", 200, random=False)


HUGE = 10**400


@pytest.mark.parametrize(
    "call, words",
    [
        (
            lambda: explr.convert([HUGE], 0.1),
            r"lrs=\[1000.*\(403 characters\) must be numbers, each within",
        ),
        (lambda: explr.convert([0.1], HUGE), "weight_decay=1000"),
        (lambda: explr.convert(np.array([0.1 + 1j]), 0.1), "must be numbers"),
        (lambda: explr.convert(torch.tensor([0.1 + 1j]), 0.1), "must be numbers"),
        (lambda: explr.convert(["0.1"], 0.1), "must be numbers"),
        (lambda: explr.growth_rate(0.1, 0.1, steps="many"), "steps='many' must be numbers"),
        (lambda: explr.growth_rate(0.5, 0.5, steps=1.7e308), "too large for float64"),
        (lambda: explr.weight_decay_for(2.0, lr=5e-324), "too large for float64: use a larger lr"),
        (lambda: explr.texp([0.1], [2.5], 1e-3), r"phase_steps\[0\]=2.5 must be a number of steps, >= 1"),
        (lambda: explr.texp([0.1], 3, 1e-3), "phase_steps=3 must hold one number of steps for each of the 1 phase_lrs"),
        (lambda: explr.schedules.constant("fast"), "lr='fast' must be numbers"),
        (lambda: explr.schedules.cosine(0.1, 2.5), "period=2.5 must be a number of steps"),
        (lambda: explr.schedules.cosine(0.1, 2, None), "lr_min=None must be numbers|lr_min=nan must lie"),
        (lambda: explr.schedules.step_decay(0.1, 3), "milestones=3 must be a list"),
        (lambda: explr.schedules.step_decay(0.1, ["a"]), "milestones='a' must be a number of steps, >= 0"),
        (lambda: explr.schedules.sample(explr.schedules.constant(0.1), 2.0), "steps=2.0 must be a number of steps"),
        (lambda: explr.schedules.sample(explr.schedules.step_decay(1.0, [0, 0, 0], 1e160), 1), "leaves the range of float64"),
        (lambda: explr.schedules.sample(lambda step: math.nan, 2), "the schedule is nan at step 0"),
    ],
)
def test_what_is_no_number_or_too_large_a_one_is_refused_in_a_sentence(call, words):
    with pytest.raises(ExplrError, match=words) as caught:
        call()
    assert len(str(caught.value)) < 300


def wrapped():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1)
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2)


@pytest.mark.parametrize("convert", [explr.convert, explr.convert_adamw])
def test_a_scheduler_or_a_function_in_place_of_rates_is_told_what_gives_them(convert):
    optimizer, scheduler = wrapped()
    for given in (scheduler, ExpLR(optimizer, scheduler)):
        with pytest.raises(ExplrError) as caught:
            convert(given, 5e-4)
        assert str(caught.value) == (
            f"lrs={type(given).__name__} is a scheduler, not its rates: explr.schedules.future(scheduler, steps) gives them, "
            "and ExpLR(optimizer, scheduler) converts them in training, as they come."
        )
    with pytest.raises(ExplrError) as caught:
        convert(explr.schedules.constant(0.1), 5e-4)
    assert str(caught.value) == "lrs is a function, not its values: explr.schedules.sample(function, steps) gives them."
    assert len(convert(explr.schedules.future(wrapped()[1], 3), 5e-4)) == 3


@pytest.mark.parametrize("name", ["SGD", "NoneType", "function"])
def test_the_future_of_what_is_no_scheduler_is_refused(name):
    given = {"SGD": wrapped()[0], "NoneType": None, "function": explr.schedules.constant(0.1)}[name]
    with pytest.raises(ExplrError) as caught:
        explr.schedules.future(given, 3)
    assert str(caught.value) == (
        f"scheduler={name} is not a learning-rate scheduler of torch: give the one that moves the optimizer's rate; of a "
        "function explr.schedules.sample(function, steps) gives the values."
    )


def test_numbers_of_numpy_and_lists_of_one_go_into_schedules():
    assert explr.schedules.step_decay([1.0], np.array([1]), [0.1])(1) == 0.1
    assert explr.schedules.cosine(np.float32(0.5), np.int64(2))(1) == 0.25
    assert len(explr.texp([0.1], np.array([2]), 1e-3)) == 2


def test_a_growth_that_leaves_nothing_of_the_weights_has_a_weight_decay():
    assert explr.weight_decay_for(3.2e32, 0.5) == pytest.approx(2.0)


def grouped(**options):
    weights = torch.nn.Parameter(torch.ones(3))
    return torch.optim.SGD([{"params": [weights], "scale_invariant": True}], lr=0.1, **options)


def test_a_weight_decay_beyond_float64_is_refused_by_explr():
    with pytest.raises(ExplrError, match="parameter group 0 has weight_decay=1000"):
        ExpLR(grouped(weight_decay=HUGE))


def test_a_state_with_a_number_beyond_float64_is_refused_and_changes_nothing():
    scheduler = ExpLR(grouped(weight_decay=1e-3))
    before = scheduler.state_dict()
    with pytest.raises(ExplrError, match="the state is damaged at log_scale"):
        scheduler.load_state_dict({**before, "log_scale": [HUGE]})
    assert repr(scheduler.state_dict()) == repr(before)
