"""ExpLR on a few weights with gradients that are given: what it sets, what it says, and what it refuses, word for word."""

import copy
import gc
import logging
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from explr import ExpLR, ExplrError, convert, convert_adamw, rescale, unscale, watching
from explr.watching import MARK, has_explr


def weights(count=1, dtype=torch.float64):
    return [nn.Parameter(torch.full((2,), 3.0, dtype=dtype)) for _ in range(count)]


def sgd(*groups, **options):
    groups = groups or ({"params": weights()},)
    marked = [{"scale_invariant": True, **group} for group in groups]
    return torch.optim.SGD(marked, **{"lr": 0.5, "momentum": 0.5, "weight_decay": 0.0625, **options})


def adamw(**options):
    marked = [{"params": weights(), "scale_invariant": True}]
    return torch.optim.AdamW(marked, **{"lr": 0.5, "betas": (0.5, 0.75), "eps": 0.25, "weight_decay": 0.0625, **options})


def update(optimizer, *having, gradient=1.0):
    """Take a step with the same gradient everywhere, or only where it is said."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            has = p.requires_grad and (not having or any(p is other for other in having))
            p.grad = torch.full_like(p, gradient) if has else None
    optimizer.step()


def run(optimizer, scheduler, steps):
    """Return rate and log of the theorem's rate before each update."""
    seen = []
    for _ in range(steps):
        seen.append((optimizer.param_groups[0]["lr"], scheduler.log_lr[0]))
        update(optimizer)
        scheduler.step()
    return seen


def refusal(call):
    with pytest.raises(ExplrError) as caught:
        call()
    return str(caught.value)


def numbers(optimizer, scheduler):
    return optimizer.state_dict()["param_groups"], scheduler.state_dict()


def group_of(optimizer, *names, index=0):
    return [optimizer.param_groups[index][name] for name in names]


# ---- what it sets


def test_the_rates_of_sgd_are_those_of_convert():
    optimizer = sgd()
    scheduler = ExpLR(optimizer, lr_scheduler.StepLR(optimizer, 2, 0.5))
    schedule = convert([0.5, 0.5, 0.25, 0.25, 0.125], 0.0625, 0.5)
    for step in range(5):
        assert scheduler.log_lr == pytest.approx([schedule.log_lr[step]], rel=1e-13)
        assert scheduler.log_scale == pytest.approx([schedule.log_scale[step]], abs=1e-15)
        assert scheduler.get_last_lr() == scheduler.get_lr() == group_of(optimizer, "lr") == scheduler.rates
        assert group_of(optimizer, "lr") == pytest.approx([schedule.lr[step]], rel=1e-13)
        assert group_of(optimizer, "weight_decay", "momentum", "dampening", MARK) == [0.0, 0.5, 0.0, step]
        assert scheduler.lrs == [0.5 * 0.5 ** (step // 2)] and scheduler.updates == step
        assert scheduler.believed[0] == {"lr": scheduler.lrs[0], "weight_decay": 0.0625, "momentum": 0.5, "dampening": 0.0}
        assert scheduler.in_use == [{"weight_decay": 0.0, "momentum": 0.5, "dampening": 0.0}]
        assert scheduler.gradient_scale == pytest.approx([math.exp(-schedule.log_scale[step])], rel=1e-13)
        assert scheduler.exponents == [0]
        update(optimizer)
        scheduler.step()


def test_momentum_and_dampening_of_nesterov_are_those_of_convert():
    optimizer = sgd(nesterov=True)
    scheduler = ExpLR(optimizer)
    schedule = convert([0.5] * 4, 0.0625, 0.5, nesterov=True)
    for step in range(4):
        expected = [schedule.lr[step], schedule.momentum[step], schedule.dampening[step]]
        assert group_of(optimizer, "lr", "momentum", "dampening") == pytest.approx(expected, rel=1e-12, abs=1e-15)
        update(optimizer)
        scheduler.step()


def test_betas_and_eps_of_adamw_are_those_of_convert_adamw():
    optimizer = adamw()
    scheduler = ExpLR(optimizer)
    schedule = convert_adamw([0.5] * 4, 0.0625, (0.5, 0.75), eps=0.25)
    for step in range(4):
        assert group_of(optimizer, "lr", "eps") == pytest.approx(
            [schedule.lr[step], math.exp(schedule.log_eps[step])], rel=1e-13
        )
        assert optimizer.param_groups[0]["betas"] == pytest.approx(tuple(schedule.betas[step]), rel=1e-13)
        assert scheduler.log_lr == pytest.approx([schedule.log_lr[step]], rel=1e-13)
        update(optimizer)
        scheduler.step()


def test_a_group_that_does_not_decay_or_convert_keeps_what_it_has():
    first, second, third = weights(3)
    groups = {"params": [second], "weight_decay": 0.0}, {"params": [third], "scale_invariant": False, "momentum": 0.25}
    optimizer = sgd({"params": [first]}, *groups)
    scheduler = ExpLR(optimizer, lr_scheduler.StepLR(optimizer, 1, 0.5))
    update(optimizer)
    scheduler.step()
    assert scheduler.converted == [True, False, False] and scheduler.scaled_parameters()[0][0] is first
    assert [len(group) for group in scheduler.scaled_parameters()] == [1, 0, 0]
    assert scheduler.log_scale[0] > 0 and scheduler.log_scale[1:] == [0.0, 0.0] and scheduler.gradient_scale[1:] == [1.0, 1.0]
    assert scheduler.in_use[1:] == [
        {"weight_decay": 0.0, "momentum": 0.5, "dampening": 0.0},
        {"weight_decay": 0.0625, "momentum": 0.25, "dampening": 0.0},
    ]
    assert [group_of(optimizer, "lr", "weight_decay", index=i) for i in (1, 2)] == [[0.25, 0.0], [0.25, 0.0625]]
    assert scheduler.log_lr[1:] == [math.log(0.25)] * 2 and scheduler.rates[1:] == [0.25, 0.25]
    assert [MARK in group for group in optimizer.param_groups] == [True, False, False]
    assert scheduler.memory[1:] == [[0.0, 1.0], [0.0, 1.0]] and scheduler.shares[1:] == [0.0, 0.0]


def test_a_rate_of_0_is_one():
    optimizer = sgd()
    scheduler = ExpLR(optimizer, lr_scheduler.LambdaLR(optimizer, lambda step: float(step > 0)))
    assert (group_of(optimizer, "lr"), scheduler.log_lr) == ([0.0], [-math.inf])
    update(optimizer)
    scheduler.step()
    assert scheduler.log_lr == pytest.approx(convert([5e-324, 0.5], 0.0625, 0.5).log_lr[1:], rel=1e-13)


def test_the_growth_goes_with_updates_and_the_schedule_with_step():
    optimizer = sgd()
    scheduler = ExpLR(optimizer, lr_scheduler.StepLR(optimizer, 1, 0.5))
    schedule = convert([0.5] * 4, 0.0625, 0.5)
    for step in range(4):
        update(optimizer)
        assert scheduler.log_scale == pytest.approx([schedule.log_scale[step + 1]], rel=1e-13)
    assert scheduler.lrs == [0.5]
    scheduler.step()
    scheduler.step()
    assert scheduler.lrs == [0.125] and scheduler.updates == 4


def test_an_update_that_a_scaler_skipped_is_none():
    optimizer = sgd({"params": weights(dtype=torch.float32)}, fused=True)
    scheduler = ExpLR(optimizer)
    for found_inf, updates in ((torch.tensor(1.0), 0), (torch.tensor(0.0), 1), (None, 2)):
        optimizer.found_inf = found_inf
        update(optimizer)
        assert scheduler.updates == updates


class Recording:
    """A scheduler of its own kind, as timm's are, that notes how it was called."""

    def __init__(self, optimizer):
        self.optimizer, self.calls = optimizer, []

    def step(self, *args, **kwargs):
        self.calls.append(("step", args, kwargs))

    def step_update(self, *args, **kwargs):
        self.calls.append(("step_update", args, kwargs))
        self.optimizer.param_groups[0]["lr"] /= 2

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


@pytest.mark.parametrize("steps_per_epoch", [None, 5])
def test_a_scheduler_is_called_with_what_it_takes(steps_per_epoch):
    optimizer = sgd()
    wrapped = Recording(optimizer)
    scheduler = ExpLR(optimizer, wrapped, steps_per_epoch=steps_per_epoch)
    update(optimizer)
    scheduler.step_update(1, metric=2)
    assert scheduler.lrs == [0.25]
    assert group_of(optimizer, "lr") == scheduler.get_last_lr() == pytest.approx([convert([0.5, 0.25], 0.0625, 0.5).lr[1]])
    scheduler.step(3, value=4)
    scheduler.step(5)
    scheduler.step(value=6)
    called = [((3,), {"value": 4}), ((5,), {}), ((), {"value": 6})]
    assert wrapped.calls == [("step_update", (1,), {"metric": 2}), *(("step", *given) for given in called)]
    update(optimizer)


@pytest.mark.parametrize("calls", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rate_that_is_a_tensor_stays_one_and_is_what_the_dtype_holds(dtype, calls):
    rate = torch.tensor(0.5, dtype=dtype)
    optimizer = sgd({"params": weights(), "lr": rate})
    scheduler = ExpLR(optimizer)
    schedule = convert([0.5] * 4, 0.0625, 0.5)
    for step in range(4):
        assert optimizer.param_groups[0]["lr"] is rate and scheduler.get_last_lr() == [float(rate)]
        assert float(rate) == float(torch.tensor(scheduler.rates[0], dtype=dtype))
        update(optimizer)  # which sets the rate, if step() has not
        assert scheduler.rates == pytest.approx([schedule.lr[step]], rel=1e-13)
        for _ in range(calls):
            scheduler.step()


def test_an_epoch_wise_schedule_moves_at_every_so_many_calls():
    optimizer = sgd()
    scheduler = ExpLR(optimizer, lr_scheduler.StepLR(optimizer, 1, 0.5), steps_per_epoch=3)
    seen = []
    for _ in range(7):
        seen.append(scheduler.lrs[0])
        update(optimizer)
        scheduler.step()
    assert seen == [0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125]
    update(optimizer)
    update(optimizer)
    assert refusal(scheduler.step) == (
        "steps_per_epoch=3 is for a loop that calls step() after every update, but there were 2 since the last call: leave it "
        "out where step() is called once an epoch."
    )


def test_a_long_run_loses_no_digit_of_the_growth():
    optimizer = sgd(weight_decay=1e-3)
    scheduler = ExpLR(optimizer)
    for _ in range(200):
        update(optimizer)
    exact = convert([0.5] * 200, 1e-3, 0.5).log_scale[-1]
    assert scheduler.log_scale[0] == pytest.approx(exact, rel=3e-16, abs=0.0)  # a plain sum is off by twice that


def test_gradients_are_clipped_at_the_length_that_they_have_with_weight_decay():
    first, second = weights(2)
    optimizer = sgd({"params": [first]}, {"params": [second], "scale_invariant": False})
    scheduler = ExpLR(optimizer)
    for _ in range(5):
        update(optimizer)
    scale = scheduler.gradient_scale[0]
    assert scale < 0.9
    long, longer = torch.tensor([3.0, -1.0]).double(), torch.tensor([2.0, 4.0]).double()
    for norm_type in (2.0, math.inf, 1.0, 3):
        for most in (1.0, 20.0):
            plain = weights(2)
            plain[0].grad, plain[1].grad = long.clone(), longer.clone()
            expected = nn.utils.clip_grad_norm_(plain, most, norm_type)
            first.grad, second.grad = scale * long, longer.clone()
            torch.testing.assert_close(scheduler.clip_grad_norm_(most, norm_type), expected, rtol=1e-13, atol=0)
            torch.testing.assert_close(first.grad, scale * plain[0].grad, rtol=1e-13, atol=0)
            torch.testing.assert_close(second.grad, plain[1].grad, rtol=1e-13, atol=0)
    first.grad = torch.tensor([3.0, 4.0]).double() * scale
    second.grad = None
    assert float(scheduler.clip_grad_norm_(1.0)) == pytest.approx(5.0, rel=1e-13)
    first.grad = None
    assert float(scheduler.clip_grad_norm_(1.0)) == 0.0


def test_clipping_takes_what_torch_s_takes():
    (weight,) = weights()
    optimizer = sgd({"params": [weight]})
    scheduler = ExpLR(optimizer)
    update(optimizer)
    scale = scheduler.gradient_scale[0]
    given = torch.tensor([3.0, -4.0]).double()
    for options in (("inf",), (2.0, True), (1.0, False, True), (3, True, False), (0.0,), (-math.inf,)):
        plain = nn.Parameter(weight.detach())
        plain.grad, weight.grad = given.clone(), scale * given
        expected = nn.utils.clip_grad_norm_([plain], 0.5, *options)
        torch.testing.assert_close(scheduler.clip_grad_norm_(0.5, *options), expected, rtol=1e-13, atol=0)
        torch.testing.assert_close(weight.grad, scale * plain.grad, rtol=1e-13, atol=0)
    for value in (math.nan, math.inf):
        weight.grad = torch.tensor([1.0, value]).double()
        assert refusal(lambda: scheduler.clip_grad_norm_(0.5, error_if_nonfinite=True, foreach=False)) == (
            f"the norm of order 2 of the gradients is {value}, so they cannot be clipped: leave out this update, or "
            "error_if_nonfinite=True."
        )
        assert float(weight.grad[0]) == 1.0
        assert not math.isfinite(scheduler.clip_grad_norm_(0.5, error_if_nonfinite=False))


@pytest.mark.parametrize("updates_per_step, taken", [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)])
def test_a_preview_knows_after_how_many_updates_the_loop_steps(updates_per_step, taken):
    optimizer = sgd()
    scheduler = ExpLR(optimizer, lr_scheduler.StepLR(optimizer, 1, 0.5))
    seen = []
    for step in range(taken + 7):
        if step == taken:
            ahead = scheduler.preview(7, updates_per_step=updates_per_step)[0]
        update(optimizer)
        seen += scheduler.log_lr
        if (step + 1) % updates_per_step == 0:
            scheduler.step()
    np.testing.assert_allclose(ahead, seen[taken:], rtol=1e-13)


def test_a_preview_is_the_run_and_leaves_everything_as_it_is():
    optimizer = sgd()
    scheduler = ExpLR(optimizer, lr_scheduler.StepLR(optimizer, 2, 0.5))
    run(optimizer, scheduler, 1)
    before = copy.deepcopy(numbers(optimizer, scheduler))
    ahead = scheduler.preview(5)
    assert numbers(optimizer, scheduler) == before
    assert ahead[0].tolist() == [log_lr for _, log_lr in run(optimizer, scheduler, 5)]
    slower = scheduler.preview(4, updates_per_step=2)[0]
    update(optimizer)
    later = scheduler.preview(3, updates_per_step=2)[0]  # the first of two updates is taken
    assert later.tolist() == slower[1:].tolist()


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(
    "wrap, options, rates",
    [
        (lambda optimizer: None, {}, [0.5] * 5),
        (lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=0), {}, [0.5] * 5),
        (lambda optimizer: lr_scheduler.StepLR(optimizer, 2, 0.5), {}, [0.5, 0.5, 0.25, 0.25, 0.125]),
        (lambda optimizer: lr_scheduler.StepLR(optimizer, 1, 0.5), {"steps_per_epoch": 2}, [0.5, 0.5, 0.25, 0.25, 0.125]),
    ],
    ids=["none", "ReduceLROnPlateau", "StepLR", "steps_per_epoch"],
)
def test_a_preview_is_what_convert_says_of_every_kind_of_schedule(wrap, options, rates, begun):
    optimizer = sgd()
    scheduler = ExpLR(optimizer, wrap(optimizer), **options)
    if begun:
        update(optimizer)
        scheduler.step(*[1.0] * isinstance(scheduler.scheduler, lr_scheduler.ReduceLROnPlateau))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ahead = scheduler.preview(5 - begun)[0]
    np.testing.assert_allclose(ahead, convert(rates, 0.0625, 0.5).log_lr[int(begun) :], rtol=1e-13)


@pytest.mark.parametrize("name, value", [("steps", 0), ("steps", 2.0), ("updates_per_step", 0), ("updates_per_step", "2")])
def test_a_preview_of_no_number_of_updates_is_refused(name, value):
    scheduler = ExpLR(sgd())
    said = f"{name}={value!r} must be a number of updates, >= 1."
    assert refusal(lambda: scheduler.preview(**{"steps": 1, name: value})) == said
    assert len(scheduler.preview(1)[0]) == 1


def test_numpy_counts_as_well_as_python():
    optimizer = sgd()
    scheduler = ExpLR(optimizer, lr_scheduler.StepLR(optimizer, 1, 0.5), steps_per_epoch=np.int64(2))
    seen = scheduler.preview(np.int64(3), updates_per_step=np.int32(1))[0]
    np.testing.assert_allclose(seen, convert([0.5, 0.5, 0.25], 0.0625, 0.5).log_lr, rtol=1e-13)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_groups_may_share_a_tensor_of_a_learning_rate(make):
    """Torch puts one tensor that is given to an optimizer into all of its groups."""
    runs = []
    for lr in (0.5, torch.tensor(0.5, dtype=torch.float64)):
        decayed, plain = weights(2)
        groups = [{"params": [decayed], "scale_invariant": True}, {"params": [plain], "weight_decay": 0.0}]
        optimizer = make(groups, lr=lr, weight_decay=0.0625)
        scheduler = ExpLR(optimizer, lr_scheduler.StepLR(optimizer, 2, 0.5))
        for _ in range(4):
            update(optimizer)
            scheduler.step()
        runs.append([*decayed.tolist(), *plain.tolist(), *(float(group["lr"]) for group in optimizer.param_groups)])
    assert runs[0] == pytest.approx(runs[1], rel=1e-15) and runs[0][-1] != runs[0][-2]


def test_a_schedule_that_ends_cannot_be_looked_ahead():
    optimizer = sgd()
    cycle = lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=5, cycle_momentum=False)
    scheduler = ExpLR(optimizer, cycle)
    assert len(scheduler.preview(5)[0]) == 5
    said = refusal(lambda: scheduler.preview(9))
    assert said.startswith("OneCycleLR cannot be looked ahead at 9 updates: Tried to step 6 times")


# ---- what it refuses


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: ExpLR("SGD"), "optimizer=str must be a torch.optim.Optimizer itself, before it is wrapped."),
        (lambda: ExpLR(Around(sgd())), "optimizer=Around must be a torch.optim.Optimizer itself, before it is wrapped."),
        (
            lambda: ExpLR(half_begun()),
            "the parameters of group 1 have taken different numbers of steps, some perhaps none: no one recursion fits them. "
            "Put those that started later into a group of their own.",
        ),
        (
            lambda: ExpLR(sgd({"params": weights()}, {"params": weights(), "maximize": True})),
            "parameter group 1 has maximize=True: explr converts minimisation. Minimise the negative of the objective.",
        ),
        (
            lambda: ExpLR(sgd(lr=0.5, momentum=0.0, weight_decay=2.0), Recording),
            "scheduler=<class 'test_scheduler.Recording'> is not a learning-rate scheduler: give the network as model=, wrap a "
            "function in LambdaLR, and several schedulers in SequentialLR or ChainedScheduler.",
        ),
        (
            lambda: ExpLR(optimizer := sgd(momentum=0.0, weight_decay=2.0), lr_scheduler.StepLR(optimizer, 1)),
            "no exponential schedule is equivalent to step 0: lr=0.5 with weight_decay=2, momentum=0 takes away all of the "
            "weights (a share of 1; it must stay below 1). At this step lr must be below 0.5; at a constant rate lr * "
            "weight_decay must not exceed (1 - sqrt(momentum))**2 = 1. Lower lr or weight_decay.",
        ),
        (
            lambda: ExpLR(sgd(), renormalize=True),
            "renormalize=True needs model=: its running statistics must be rescaled with the weights.",
        ),
        (
            lambda: ExpLR(sgd(), example_inputs=[torch.ones(2)]),
            "example_inputs= needs model=: they are what the network is called with.",
        ),
        (lambda: ExpLR(sgd(), steps_per_epoch=True), "steps_per_epoch=True must be a number of steps, >= 1."),
        (lambda: ExpLR(sgd(), steps_per_epoch=0), "steps_per_epoch=0 must be a number of steps, >= 1."),
        (lambda: ExpLR(sgd(), steps_per_epoch="1"), "steps_per_epoch='1' must be a number of steps, >= 1."),
        (
            lambda: ExpLR(sgd(), steps_per_epoch=5),
            "steps_per_epoch=5 is for a scheduler that counts epochs, and none is wrapped: give one, ExpLR(optimizer, "
            "scheduler, ...), or leave steps_per_epoch out.",
        ),
        (
            lambda: ExpLR(sgd(), 3),
            "scheduler=3 is not a learning-rate scheduler: give the network as model=, wrap a function in LambdaLR, and "
            "several schedulers in SequentialLR or ChainedScheduler.",
        ),
        (
            lambda: ExpLR(sgd(), lr_scheduler.StepLR(sgd(), 2)),
            "the scheduler to wrap belongs to another optimizer: build both on the same one.",
        ),
        (
            lambda: ExpLR(sgd(weight_decay=0.5)),
            "lr=0.5 with weight_decay=0.5 converts for some steps only, if it stays constant: lr * weight_decay must not "
            "exceed 0.0857864. Lower one of them, or wrap the scheduler that lowers lr in time.",
        ),
        (lambda: ExpLR(sgd(lr=-0.0, dampening=1.0)), "parameter group 0 has dampening=1.0 at step 0: it must be below 1."),
        (
            lambda: ExpLR(sgd({"params": weights(dtype=torch.float16)}, lr=1e6, weight_decay=0.0)),
            "the learning rate of step 0 is exp(13.8155); in torch.float16 it may be exp(11.0899). Use ExpLR(..., model=model, "
            "renormalize=True), which bounds it, train in a wider dtype, or stop before this step.",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(build, message):
    assert refusal(build) == message


def half_begun():
    first, *others = weights(3)
    optimizer = sgd({"params": others[:1]}, {"params": [first, others[1]]}, nesterov=True)
    update(optimizer, first)
    return optimizer


class Around(torch.optim.Optimizer):
    """An optimizer that wraps another, as those of Accelerate and Apex do."""

    def __init__(self, optimizer):
        self.optimizer, self.param_groups = optimizer, optimizer.param_groups


@pytest.mark.parametrize("missing", ["step", "state_dict", "load_state_dict", "optimizer"])
def test_a_scheduler_has_three_methods_and_its_optimizer(missing):
    optimizer = sgd()
    scheduler = Recording(optimizer)
    if missing == "optimizer":
        del scheduler.optimizer
        said = "the scheduler to wrap belongs to another optimizer: build both on the same one."
        assert refusal(lambda: ExpLR(optimizer, scheduler)) == said
    else:
        setattr(scheduler, missing, None)
        assert "is not a learning-rate scheduler: " in refusal(lambda: ExpLR(optimizer, scheduler))


def test_a_group_that_does_not_convert_may_have_begun_by_parts():
    optimizer = half_begun()
    optimizer.param_groups[1]["weight_decay"] = 0.0
    run(optimizer, ExpLR(optimizer), 2)


def test_a_rate_that_the_dtype_just_holds_is_taken():
    most = float(torch.finfo(torch.float16).max)
    scheduler = ExpLR(sgd({"params": weights(dtype=torch.float16)}, lr=most, weight_decay=0.0))
    assert scheduler.get_last_lr() == [most]


def test_a_run_under_way_begins_with_what_its_buffers_remember():
    optimizer = adamw()
    for _ in range(3):
        update(optimizer)
    assert ExpLR(optimizer).memory == [[1.0, 1.0, 0.0, 3.0]]
    assert ExpLR(adamw()).memory == [[1.0, 1.0, 0.0, 0.0]]


def test_a_constant_rate_at_its_bound_is_taken():
    ExpLR(sgd(lr=1.0, momentum=0.25, weight_decay=0.25))
    with pytest.raises(ExplrError, match=r"must not exceed 0\.25"):
        ExpLR(sgd(lr=1.0, momentum=0.25, weight_decay=0.25 + 1e-9))
    ExpLR(sgd(lr=1.0, momentum=0.25, weight_decay=0.25 * (1.0 + 1e-12)))  # rounding


def test_a_step_that_has_no_twin_leaves_everything_as_it_was():
    optimizer = sgd()
    scheduler = ExpLR(optimizer, lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step == 0 else 100.0))
    update(optimizer)
    before = dict(optimizer.param_groups[0]), list(scheduler.log_scale)
    assert refusal(scheduler.step).startswith("no exponential schedule is equivalent to step 1: lr=50 with weight_decay=0.0625")
    assert (dict(optimizer.param_groups[0]), scheduler.log_scale) == before and scheduler.prepared is False
    assert refusal(lambda: update(optimizer)).startswith("no exponential schedule is equivalent to step 1")


def test_a_momentum_that_is_switched_off_is_refused():
    class Off(lr_scheduler.LambdaLR):
        def step(self, epoch=None):
            super().step()
            self.optimizer.param_groups[0]["momentum"] = 0.5 if self.last_epoch < 1 else 0.0

    optimizer = sgd()
    scheduler = ExpLR(optimizer, Off(optimizer, lambda step: 1.0))
    update(optimizer)
    assert refusal(scheduler.step) == (
        "momentum=0.0 at step 1 after 0.5: torch's SGD does not touch its momentum buffer at momentum 0, so the switch has no "
        "exact counterpart. Use a small positive momentum, such as 1e-9."
    )


def test_a_run_without_a_model_stops_before_it_overflows():
    optimizer = sgd({"params": weights(dtype=torch.float16)}, lr=0.1, momentum=0.0, weight_decay=1.0)
    scheduler = ExpLR(optimizer)

    def train():
        for _ in range(20):
            update(optimizer, gradient=0.0)
            scheduler.step()

    assert refusal(train) == (
        "the activations' growth of step 7 is exp(0.737524); in torch.float16 it may be exp(0.692903). Use ExpLR(..., "
        "model=model, renormalize=True), which bounds it, train in a wider dtype, or stop before this step."
    )
    assert scheduler.updates == 7


def test_adamw_without_a_model_stops_before_squares_of_gradients_vanish():
    marked = [{"params": weights(dtype=torch.float32), "scale_invariant": True}]
    scheduler = ExpLR(optimizer := torch.optim.AdamW(marked, lr=0.5, weight_decay=1.0))

    def train():
        for _ in range(50):
            update(optimizer)
            scheduler.step()

    assert refusal(train) == (  # 2^32, a fourth of what float32 holds in digits
        "the growth of the weights of step 32 is exp(22.1807); in torch.float32 it may be exp(22.1807). Use ExpLR(..., "
        "model=model, renormalize=True), which bounds it, train in a wider dtype, or stop before this step."
    )


class Jump(lr_scheduler.LambdaLR):
    """A schedule that ends decay and raises the rate beyond anything, when ten steps have left 2^-10 of the weights."""

    def step(self, epoch=None):
        super().step()
        if self.last_epoch == 10:
            self.optimizer.param_groups[0].update(lr=4.0e38, weight_decay=0.0)


def test_the_range_is_that_of_the_rate_that_the_optimizer_uses():
    net = network().float()
    optimizer = torch.optim.SGD([net[0].weight], lr=0.5, weight_decay=1.0)
    scheduler = ExpLR(optimizer, Jump(optimizer, lambda step: 1.0), model=net)
    run(optimizer, scheduler, 9)
    update(optimizer)
    assert scheduler.exponents == [10]
    assert refusal(scheduler.step) == (
        f"the learning rate of step 10 is exp({math.log(4.0e38):.6g}); in torch.float32 it may be exp(88.7228). Use ExpLR(..., "
        "model=model, renormalize=True), which bounds it, train in a wider dtype, or stop before this step."
    )


def test_the_range_is_that_of_the_activations_behind_all_layers():
    torch.manual_seed(0)
    deep = nn.Sequential(*(nn.Linear(5, 5, bias=False) for _ in range(3)), nn.BatchNorm1d(5, affine=False))
    optimizer = torch.optim.SGD(deep.parameters(), lr=0.5, weight_decay=1.0)
    scheduler = ExpLR(optimizer, model=deep, renormalize=False)

    def train():
        for _ in range(60):
            update(optimizer, gradient=0.0)
            scheduler.step()

    assert refusal(train).startswith(f"the activations' growth of step 19 is exp({57 * math.log(2):.6g}); in torch.float32 it")


def test_a_rate_that_leaves_the_range_is_refused():
    optimizer = sgd({"params": weights(dtype=torch.float16)}, momentum=0.0, weight_decay=1e-6)
    scheduler = ExpLR(optimizer, lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 + 2e5 * step))
    update(optimizer)
    assert refusal(scheduler.step) == (
        "the learning rate of step 1 is exp(11.6183); in torch.float16 it may be exp(11.0899). Use ExpLR(..., model=model, "
        "renormalize=True), which bounds it, train in a wider dtype, or stop before this step."
    )


def test_an_argument_of_step_needs_a_scheduler_that_takes_it():
    scheduler = ExpLR(sgd())
    said = "there is no wrapped scheduler, such as ReduceLROnPlateau, to take it; call step()."
    assert refusal(lambda: scheduler.step(0.5)) == f"step(0.5): {said}"
    assert refusal(lambda: scheduler.step("a", metric=2)) == f"step('a', metric=2): {said}"
    said = "step_update() is for schedulers of timm; the wrapped one is None: call step()."
    assert refusal(lambda: scheduler.step_update(1)) == said


def test_a_plateau_takes_its_metric_by_name():
    optimizer = sgd()
    scheduler = ExpLR(optimizer, lr_scheduler.ReduceLROnPlateau(optimizer, patience=2, factor=0.5))
    for _ in range(4):
        update(optimizer)
        scheduler.step(metrics=1.0)
    assert scheduler.lrs == [0.25]


@pytest.mark.parametrize("nothing", [((None,), {}), ((), {"epoch": None}), ((None, None), {})])
@pytest.mark.parametrize(
    "wrap, options, rates",
    [
        (lambda optimizer: None, {}, [0.5, 0.5, 0.5]),
        (lambda optimizer: lr_scheduler.StepLR(optimizer, 1, 0.5), {}, [0.25, 0.125, 0.0625]),
        (lambda optimizer: lr_scheduler.ChainedScheduler([lr_scheduler.StepLR(optimizer, 1, 0.5)]), {}, [0.25, 0.125, 0.0625]),
        (lambda optimizer: lr_scheduler.StepLR(optimizer, 1, 0.5), {"steps_per_epoch": 2}, [0.5, 0.25, 0.25]),
    ],
    ids=["none", "StepLR", "ChainedScheduler", "steps_per_epoch"],
)
def test_a_step_with_none_for_an_epoch_is_a_step(wrap, options, rates, nothing):
    optimizer = sgd()
    scheduler = ExpLR(optimizer, wrap(optimizer), **options)
    seen = []
    for _ in rates:
        update(optimizer)
        scheduler.step(*nothing[0], **nothing[1])
        seen += scheduler.lrs
    assert seen == rates


@pytest.mark.parametrize("nothing", [((), {}), ((None,), {}), ((), {"metrics": None}), ((), {"epoch": None})])
def test_a_plateau_without_its_metric_is_told_so(nothing):
    optimizer = sgd()
    scheduler = ExpLR(optimizer, lr_scheduler.ReduceLROnPlateau(optimizer))
    update(optimizer)
    assert refusal(lambda: scheduler.step(*nothing[0], **nothing[1])) == (
        "step() lacks the metric that the wrapped ReduceLROnPlateau watches: call step(metric), once for each new value; for "
        'Lightning, put "reduce_on_plateau": True beside the scheduler.'
    )


def test_without_a_model_what_is_taken_on_trust_is_named():
    first, second, third = weights(3)
    groups = [{"params": [first]}, {"params": [second], "scale_invariant": True}, {"params": [third]}]

    def warned(groups):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ExpLR(torch.optim.SGD(groups, lr=0.5, weight_decay=0.0625))
        return [str(warning.message) for warning in caught]

    end = (
        "; a trained head or scale is not. Give model=..., or mark every group: scale_invariant=True, or False for a trained "
        "head or scale."
    )
    start = "ExpLR has no model to look at, and takes it that the loss is scale-invariant in parameter group"
    assert warned([dict(group) for group in groups]) == [f"{start}s 0, 2{end}"]
    assert warned([dict(group) for group in groups[:2]]) == [f"{start} 0{end}"]
    assert warned([dict(groups[1]), {**groups[2], "weight_decay": 0.0}]) == []


# ---- with a model


def network(head=False):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 8, bias=False),
        nn.BatchNorm1d(8, affine=False),
        nn.Linear(8, 3, bias=head).requires_grad_(head),
    ).double()


def test_a_renormalised_run_keeps_weights_within_a_factor_of_two_and_the_same_bits():
    runs = []
    for renormalize in (False, True):
        net = network()
        optimizer = torch.optim.SGD([net[0].weight], lr=0.5, momentum=0.5, weight_decay=0.0625)
        scheduler = ExpLR(optimizer, model=net, renormalize=renormalize)
        for _ in range(40):
            update(optimizer, gradient=1e-3 * scheduler.gradient_scale[0])
        runs.append((net, optimizer, scheduler))
    (plain, _, grown), (bounded, optimizer, scheduler) = runs
    exponent = scheduler.exponents[0]
    assert exponent == round(grown.log_scale[0] / math.log(2)) > 1 and grown.exponents == [0]
    assert scheduler.log_scale == grown.log_scale and scheduler.log_lr == grown.log_lr
    assert torch.equal(plain[0].weight, bounded[0].weight * 2.0**exponent)
    update(optimizer, gradient=0.0)
    assert math.log(optimizer.param_groups[0]["lr"]) + 2 * exponent * math.log(2) == pytest.approx(
        scheduler.log_lr[0], rel=1e-13
    )
    assert scheduler.gradient_scale[0] == pytest.approx(math.exp(-scheduler.log_scale[0]) * 2.0 ** scheduler.exponents[0])
    assert plain[1].eps == pytest.approx(1e-5 * math.exp(2 * grown.log_scale[0]), rel=1e-12)


def test_what_does_not_convert_is_set_apart_and_summed_up(caplog):
    net = network(head=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.5, weight_decay=0.0625)
    with caplog.at_level(logging.WARNING, logger="explr"):
        scheduler = ExpLR(optimizer, model=net)
    said = "ExpLR: 1 of 3 tensors (59.7 % of the weights that decay) convert; 2.weight, 2.bias keep their weight decay."
    assert scheduler.summary == said
    assert [record.getMessage() for record in caplog.records if record.name == "explr"] == [scheduler.summary]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.0625]
    assert scheduler.converted == [True, False]
    net = network()
    scheduler = ExpLR(torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.5, weight_decay=0.0625), model=net)
    assert scheduler.summary == ""
    net = network(head=True)
    parameters = [net[0].weight, net[2].weight]
    scheduler = ExpLR(torch.optim.SGD(parameters, lr=0.5, momentum=0.5, weight_decay=0.0625), model=net)
    said = "ExpLR: 1 of 2 tensors (62.5 % of the weights that decay) convert; 2.weight keeps its weight decay."
    assert scheduler.summary == said


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("options", [{"weight_decay": 0.0}, {"scale_invariant": False}])
def test_where_nothing_converts_the_log_says_so(options, known, caplog):
    net = network()
    optimizer = torch.optim.SGD([{"params": [net[0].weight], "weight_decay": 0.0625, **options}], lr=0.5)
    scheduler = ExpLR(optimizer, model=net if known else None)
    said = (
        "ExpLR: nothing converts: no parameter group has weight decay (those marked scale_invariant=False keep theirs). Set "
        "weight_decay in the optimizer, as in the run to convert, before ExpLR is built."
    )
    assert scheduler.summary == said
    assert [record.getMessage() for record in caplog.records if record.name == "explr"] == [said]


def test_where_a_part_converts_or_the_state_is_yet_to_come_nothing_is_said_of_nothing(caplog):
    optimizer = sgd({"params": weights()}, {"params": weights(), "weight_decay": 0.0})
    scheduler = ExpLR(optimizer)
    loaded = sgd({"params": weights()}, {"params": weights(), "weight_decay": 0.0})
    loaded.load_state_dict(optimizer.state_dict())
    assert (scheduler.summary, ExpLR(loaded).summary, caplog.records) == ("", "", [])


def test_a_bias_before_a_norm_decays_with_its_weights_or_is_named():
    net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8, affine=False))
    groups = [{"params": [net[0].weight]}, {"params": [net[0].bias], "weight_decay": 0.0}]
    said = refusal(lambda: ExpLR(torch.optim.SGD(groups, lr=0.5, weight_decay=0.0625), model=net))
    assert said.startswith("the input of 1 has parts of degrees 0 and 1 when 1 parameters scale: ")
    assert ExpLR(torch.optim.SGD(net.parameters(), lr=0.5, weight_decay=0.0625), model=net).summary == ""


@pytest.mark.parametrize("marked", [True, False])
def test_what_is_marked_converts_beside_a_group_of_which_nothing_does(marked):
    net = nn.Sequential(nn.Linear(5, 8, bias=False), nn.BatchNorm1d(8, affine=False), nn.Linear(8, 3)).double()
    groups = [{"params": [net[0].weight], "scale_invariant": True}] if marked else []
    optimizer = torch.optim.SGD([*groups, {"params": list(net[2].parameters())}], lr=0.5, weight_decay=0.0625)
    if marked:
        assert ExpLR(optimizer, model=net).converted == [True, False]
    else:
        assert refusal(lambda: ExpLR(optimizer, model=net)).startswith("the model is not scale-invariant")


@pytest.mark.parametrize("wrap", [True, False])
@pytest.mark.parametrize("options", [{"weight_decay": 1.5}, {"momentum": 1.5, "weight_decay": 0.0625}])
def test_an_optimizer_that_is_refused_keeps_its_groups(options, wrap):
    net = network(head=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    optimizer.param_groups[0].update(options)
    scheduler = lr_scheduler.StepLR(optimizer, 1) if wrap else None
    before = [dict(group) for group in optimizer.param_groups]
    refusal(lambda: ExpLR(optimizer, scheduler, model=net))
    assert optimizer.param_groups == before and not has_explr(optimizer)


def test_a_model_that_has_grown_under_another_explr_is_refused():
    net = network()
    optimizer = torch.optim.SGD([net[0].weight], lr=0.5, momentum=0.5, weight_decay=0.0625)
    first = ExpLR(optimizer, model=net)
    update(optimizer)
    other = torch.optim.SGD([net[0].weight], lr=0.5, momentum=0.5, weight_decay=0.0625)
    second = ExpLR(other, model=net)
    assert refusal(lambda: update(other)) == (
        "the model has grown under another ExpLR, whose eps and statistics it has. To go on, load the state of that one; for a "
        "new run train a copy at its usual size, explr.unscale(model, scheduler) with the ExpLR that it has grown under. One "
        "optimizer must have all parameters of a model."
    )
    other_norms = {**first.state_dict(), "eps": {"0": 1e-5, "3": 1e-5}}
    assert refusal(lambda: second.load_state_dict(other_norms)) == (
        "the state is of a model with other norms (0, 3; here 1): build the model as it was built for the state."
    )
    second.load_state_dict(first.state_dict())
    assert net[1].eps == pytest.approx(1e-5 * math.exp(2 * second.log_scale[0]) / 4.0 ** second.exponents[0], rel=1e-13)
    assert "has grown under another ExpLR" in refusal(lambda: update(optimizer))


def test_weights_that_have_grown_are_refused_in_another_network_unless_they_are_frozen_or_unscaled():
    """As where a network is trained, and then its layers go into a classifier."""
    net = network()
    optimizer = torch.optim.SGD([net[0].weight], lr=0.5, momentum=0.5, weight_decay=0.0625)
    first = ExpLR(optimizer, model=net)
    update(optimizer)

    def classifier(body, **options):
        other = nn.Sequential(body[0], body[1], nn.Linear(8, 2)).double()
        other[0].requires_grad_(options.get("trains", True))
        optimizer = torch.optim.SGD(other.parameters(), lr=0.5, weight_decay=0.0 if options else 0.0625)
        return optimizer, ExpLR(optimizer, model=other)

    other, second = classifier(net)
    assert refusal(lambda: update(other)).startswith("the model has grown under another ExpLR, whose eps and statistics it has")
    assert refusal(second.step).startswith("the model has grown under another ExpLR")
    for body in (unscale(net, first), network()):
        other, second = classifier(body)
        update(other)
        assert second.updates == 1
    other, second = classifier(net, trains=False)
    update(other)
    assert second.updates == 1
    net[0].requires_grad_(True)
    update(optimizer)
    assert first.updates == 2


@pytest.mark.filterwarnings("ignore:Seems like .optimizer.step")  # torch looks for marks of its own, which a copy has not
def test_a_copy_of_a_run_goes_on_beside_it():
    net = network()
    optimizer = torch.optim.SGD([net[0].weight], lr=0.5, momentum=0.5, weight_decay=0.0625)
    runs = [(net, optimizer, ExpLR(optimizer, model=net))]
    update(optimizer)
    runs.append(copy.deepcopy(runs[0]))
    for _ in range(2):
        for _, optimizer, scheduler in runs:
            update(optimizer)
            scheduler.step()
            scheduler.preview(2)
    assert torch.equal(runs[0][0][0].weight, runs[1][0][0].weight) and runs[0][2].log_scale == runs[1][2].log_scale
    with_the_first, another = copy.deepcopy(runs[0]), runs[1][0]
    optimizer = torch.optim.SGD([another[0].weight], lr=0.5, weight_decay=0.0625)
    scheduler = ExpLR(optimizer, model=another)
    assert "has grown under another ExpLR" in refusal(lambda: update(optimizer))
    del with_the_first, scheduler


def test_weights_that_have_grown_are_refused_without_a_model_too():
    grown, waiting = weights(2)
    optimizer = sgd({"params": [grown]}, {"params": [waiting]})
    first = ExpLR(optimizer)
    update(optimizer, grown)
    first.preview(2)
    other = sgd({"params": [waiting]})
    second = ExpLR(other)
    update(other)  # it had not grown there
    other = sgd({"params": [grown]})
    third = ExpLR(other)
    assert refusal(lambda: update(other)) == (
        "parameters of the optimizer have grown under another ExpLR. To go on, load the state of that one; for a new run make "
        "new parameters, of the usual size: these times its gradient_scale, group by group."
    )
    assert refusal(lambda: update(optimizer)).startswith("parameters of the optimizer have grown under another ExpLR")
    other = sgd({"params": [nn.Parameter(grown.detach() * first.gradient_scale[0])]})
    fourth = ExpLR(other)
    update(other)
    del second, third, fourth


def test_what_has_grown_is_forgotten_with_it():
    gc.collect()
    before = len(watching._GROWN)
    optimizer = sgd()
    scheduler = ExpLR(optimizer)
    update(optimizer)
    assert len(watching._GROWN) == before + 1
    del optimizer, scheduler
    gc.collect()
    assert len(watching._GROWN) == before


def put(net, index, layer):
    net[index] = layer


@pytest.mark.parametrize(
    "replace",
    [
        lambda net: put(net, 2, nn.BatchNorm1d(8, affine=False)),
        lambda net: put(net, 2, nn.Identity()),
        nn.SyncBatchNorm.convert_sync_batchnorm,
    ],
)
def test_a_norm_that_is_replaced_is_missed(replace):
    layers = nn.BatchNorm1d(5, affine=False), nn.Linear(5, 8, bias=False), nn.BatchNorm1d(8, affine=False)
    net = nn.Sequential(*layers, nn.Linear(8, 3).requires_grad_(False))
    optimizer = torch.optim.SGD([net[1].weight], lr=0.5, weight_decay=0.0625)
    scheduler = ExpLR(optimizer, model=net)
    update(optimizer)
    put(net, 0, nn.BatchNorm1d(5, affine=False))  # nothing that scales goes into this one
    put(net, 1, nn.Sequential(net[1]))
    put(net, 2, nn.Sequential(net[2]))
    update(optimizer)
    unscale(net, scheduler)
    put(net, 1, layers[1])
    put(net, 2, layers[2])
    replace(net)
    for call in (scheduler.step, lambda: update(optimizer), lambda: unscale(net, scheduler)):
        assert refusal(call) == (
            "the model has no longer 2, which ExpLR scales with the weights: put back what was there, and replace or convert "
            "norms (SyncBatchNorm.convert_sync_batchnorm) before ExpLR is built."
        )
    put(net, 2, layers[2])
    update(optimizer)
    assert scheduler.updates == 3


JOINT = (
    "the parameter groups have different lr, weight_decay or momentum, or one of them had no gradient, but the model is "
    "scale-invariant only when they are scaled together: give all groups with weight decay the same, or make them one group."
)


class Added(nn.Module):
    """Adds the outputs of two layers, which must be scaled together."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 8, bias=False), nn.Linear(5, 8, bias=False)

    def forward(self, x):
        return nn.functional.layer_norm(self.first(x) + self.second(x), (8,), eps=0.0)


BATCH = (torch.ones(4, 5).double(),)


def added(marked={"scale_invariant": True}, **second):  # noqa: B006
    net = Added().double()
    groups = [{"params": [net.first.weight], **marked}, {"params": [net.second.weight], **marked, **second}]
    return net, torch.optim.SGD(groups, lr=0.5, momentum=0.5, weight_decay=0.0625)


def test_groups_that_must_be_scaled_together_decay_alike():
    net, optimizer = added(weight_decay=0.03125)
    assert refusal(lambda: ExpLR(optimizer, model=net, example_inputs=BATCH)) == JOINT
    for name in ("lr", "weight_decay", "momentum"):
        net, optimizer = added(marked={}, **{name: 0.03125})
        assert refusal(lambda net=net, optimizer=optimizer: ExpLR(optimizer, model=net, example_inputs=BATCH)) == JOINT
    net, optimizer = added(marked={}, lr=0.03125)  # whose warm-up begins at 0 for all
    warm_up = lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 2, 1.0))
    assert refusal(lambda: ExpLR(optimizer, warm_up, model=net, example_inputs=BATCH)) == JOINT
    net, optimizer = added(marked={})
    assert ExpLR(optimizer, model=net, example_inputs=BATCH).converted == [True, True]


def test_groups_that_must_be_scaled_together_have_gradients_together():
    net, optimizer = added()
    scheduler = ExpLR(optimizer, model=net, example_inputs=BATCH)
    update(optimizer)
    scheduler.step()
    update(optimizer, net.first.weight)
    assert refusal(scheduler.step) == f"at step 2 {JOINT}"


def vanishing(make, renormalize, **options):
    """Train where every step takes all but 2^-12 of the weights, so that the rate of SGD grows beyond exp(3000)."""
    net = network().float()
    optimizer = make([net[0].weight], lr=0.5, weight_decay=2.0 - 2.0**-11, **options)
    scheduler = ExpLR(optimizer, model=net, renormalize=renormalize)
    for _ in range(200):
        update(optimizer, gradient=0.0)
        scheduler.step()
    return net, scheduler


@pytest.mark.parametrize(
    "make, options, message",
    [
        (torch.optim.SGD, {}, "the learning rate of step 5 is exp(90.8023); in torch.float32 it may be exp(88.7228). "),
        (torch.optim.AdamW, {"betas": (0.0, 0.0)}, "the growth of the weights of step 3 is exp(24.9533); in torch.float32 it "
         "may be exp(22.1807). "),
    ],
)  # fmt: skip
def test_only_a_renormalised_run_grows_without_end(make, options, message):
    net, scheduler = vanishing(make, True, **options)
    assert scheduler.exponents == [2400] and net[0].weight.abs().max() < 1
    assert scheduler.get_last_lr() == pytest.approx([2.0**11], rel=1e-9)  # 0.5 P' / P, and for SGD P / 2^exponent is 1
    assert refusal(lambda: vanishing(make, False, **options)).startswith(message)


def test_eps_and_rate_of_a_renormalised_adamw_are_those_for_the_weights_that_it_holds():
    rows = []
    for renormalize in (False, None):
        net = network()
        optimizer = torch.optim.AdamW([net[0].weight], lr=0.5, betas=(0.5, 0.75), eps=0.25, weight_decay=0.5)
        scheduler = ExpLR(optimizer, model=net, renormalize=renormalize)
        assert scheduler.renormalize is (renormalize is None)
        for _ in range(8):
            update(optimizer, gradient=scheduler.gradient_scale[0])
            scheduler.step()
        factor = 2.0 ** scheduler.exponents[0]
        rows.append([optimizer.param_groups[0]["lr"] * factor, optimizer.param_groups[0]["eps"] / factor])
    assert factor == 8.0 and rows[0] == rows[1]


def test_example_inputs_are_what_the_model_is_called_with():
    layers = nn.Conv1d(1, 2, 3, bias=False), nn.Flatten(), nn.LayerNorm(16, elementwise_affine=False)
    net = nn.Sequential(*layers, nn.Linear(16, 3).requires_grad_(False))
    optimizer = torch.optim.SGD([net[0].weight], lr=0.5, momentum=0.5, weight_decay=0.0625)
    assert ExpLR(optimizer, model=net, example_inputs=(torch.ones(4, 1, 10),)).converted == [True]


def test_example_inputs_go_by_name_where_the_model_wants_them_so():
    class ByName(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(10, 8, bias=False)
            self.head = nn.Linear(8, 3).requires_grad_(False)

        def forward(self, *, signal, gain):
            return self.head(nn.functional.layer_norm(self.body(signal) * gain, (8,), eps=1e-30))

    net, inputs = ByName(), {"signal": torch.randn(4, 10), "gain": 2.0}
    optimizer = torch.optim.SGD([net.body.weight], lr=0.5, momentum=0.5, weight_decay=0.0625)
    before = net(**inputs)
    rescale(net, optimizer, 4.0, **inputs)
    torch.testing.assert_close(net(**inputs), before)
    assert optimizer.param_groups[0]["lr"] == 8.0
    with pytest.raises(ExplrError, match="give example_inputs, what the model is called with"):
        ExpLR(optimizer, model=net)
    assert ExpLR(optimizer, model=net, example_inputs=inputs).converted == [True]


def test_a_model_of_which_nothing_converts_is_refused_with_the_reason():
    net = nn.Linear(5, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, weight_decay=0.0625)
    said = refusal(lambda: ExpLR(optimizer, model=net))
    assert said.startswith("the model is not scale-invariant in the optimizer's parameters: ")
    assert len(optimizer.param_groups) == 1 and optimizer.param_groups[0]["weight_decay"] == 0.0625
