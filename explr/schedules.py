"""Learning-rate curves: each function returns a schedule, and a schedule is a function step -> learning rate.

Steps count optimizer updates from 0. A schedule is plain Python, so it plots (``sample``), converts
(``convert(sample(...), weight_decay, momentum)``) and feeds ``torch.optim.lr_scheduler.LambdaLR`` (give the optimizer lr=1).
No schedule here reaches 0, whose logarithm ``convert`` could not return; ``ExpLR`` takes a step at rate 0.
"""

from __future__ import annotations

import bisect
import copy
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from explr.checks import FloatArray, floats, one_float, short, whole
from explr.errors import ExplrError

Schedule = Callable[[int], float]


def constant(lr: float) -> Schedule:
    """Return the schedule that is always ``lr``.

    Args:
        lr: the learning rate η > 0 of every step.

    Raises:
        ExplrError: if ``lr`` is not positive and finite.

    >>> constant(0.1)(10_000)
    0.1
    """
    (lr,) = _rates(lr=lr)
    return lambda step: lr


def step_decay(lr: float, milestones: Sequence[int], factor: float = 0.1) -> Schedule:
    """Start at ``lr`` and multiply by ``factor`` at each milestone (He et al. 2016).

    Args:
        lr: first learning rate, per step.
        milestones: increasing step numbers; the step of that number is the first at the new rate.
        factor: what the rate is multiplied by, > 0.

    Raises:
        ExplrError: if ``lr`` or ``factor`` is not positive and finite, or the milestones are no increasing whole numbers >= 0.

    >>> schedule = step_decay(0.1, [80, 120])
    >>> [round(schedule(step), 6) for step in (0, 79, 80, 120)]
    [0.1, 0.1, 0.01, 0.001]
    """
    lr, factor = _rates(lr=lr, factor=factor)
    if not isinstance(milestones, Iterable):
        raise ExplrError(f"milestones={milestones!r} must be a list of step numbers.")
    marks = [whole("milestones", mark, 0) for mark in milestones]
    if marks != sorted(marks):
        raise ExplrError(f"milestones={marks} must increase: they are step numbers counted from 0.")
    return lambda step: lr * factor ** bisect.bisect_right(marks, step)


def triangular(lr_min: float, lr_max: float, half_period: int) -> Schedule:
    """Rise in a straight line from ``lr_min`` to ``lr_max`` in ``half_period`` steps, fall back, repeat (Smith 2017).

    Args:
        lr_min: the learning rate of step 0, > 0.
        lr_max: the learning rate of step ``half_period``, > 0.
        half_period: steps from one to the other, >= 1.

    Raises:
        ExplrError: if a rate is not positive and finite, or ``half_period`` is no number of steps.

    >>> schedule = triangular(0.01, 0.11, half_period=10)
    >>> [round(schedule(step), 6) for step in (0, 5, 10, 15, 20)]
    [0.01, 0.06, 0.11, 0.06, 0.01]
    """
    lr_min, lr_max = _rates(lr_min=lr_min, lr_max=lr_max)
    half_period = whole("half_period", half_period)
    return lambda step: lr_min + (lr_max - lr_min) * (1.0 - abs(step % (2 * half_period) / half_period - 1.0))


def cosine(lr: float, period: int, lr_min: float = 0.0) -> Schedule:
    """Fall from ``lr`` towards ``lr_min`` along half a cosine in ``period`` steps, then restart (Loshchilov & Hutter 2017).

    The last step of a period is still above ``lr_min``; make ``period`` the length of the run for a schedule without restarts.

    Args:
        lr: the learning rate of step 0, > 0.
        period: steps until it restarts, >= 1.
        lr_min: the learning rate that it falls towards, between 0 and ``lr``.

    Raises:
        ExplrError: if ``lr`` is not positive and finite, ``lr_min`` is not within its bounds, or ``period`` is no number of
            steps.

    >>> schedule = cosine(0.1, period=100)
    >>> [round(schedule(step), 6) for step in (0, 50, 99, 100)]
    [0.1, 0.05, 2.5e-05, 0.1]
    """
    (lr,), lr_min, period = _rates(lr=lr), one_float("lr_min", lr_min), whole("period", period)
    if not 0.0 <= lr_min <= lr:
        raise ExplrError(f"lr_min={lr_min} must lie between 0 and lr={lr}.")
    return lambda step: lr_min + 0.5 * (lr - lr_min) * (1.0 + math.cos(math.pi * (step % period) / period))


def warmup(schedule: Schedule, steps: int) -> Schedule:
    """Rise in a straight line to the first rate of ``schedule`` in ``steps`` steps, then follow it from its own step 0.

    The first rate is one part in ``steps + 1`` of the target, not 0.

    Args:
        schedule: a function step -> learning rate, as those of this module.
        steps: length of the rise, >= 1.

    Raises:
        ExplrError: if ``schedule`` is no function, or ``steps`` no number of steps.

    >>> schedule = warmup(step_decay(0.1, [80]), steps=4)
    >>> [round(schedule(step), 6) for step in (0, 1, 3, 4, 83, 84)]
    [0.02, 0.04, 0.08, 0.1, 0.1, 0.01]
    """
    schedule, steps = _function(schedule), whole("steps", steps)
    target = schedule(0)
    return lambda step: target * (step + 1) / (steps + 1) if step < steps else schedule(step - steps)


def sample(schedule: Schedule, steps: int) -> FloatArray:
    """Return the rates of the first ``steps`` steps, shape ``(steps,)``, to plot or to give to ``convert``.

    Args:
        schedule: a function step -> learning rate, as those of this module.
        steps: how many, counted from step 0, >= 1.

    Raises:
        ExplrError: if ``schedule`` is no function, ``steps`` no number of steps, or a rate no finite number.

    >>> sample(constant(0.1), 3)
    array([0.1, 0.1, 0.1])
    """
    schedule, steps = _function(schedule), whole("steps", steps)
    try:
        values = floats("a rate of the schedule", [schedule(step) for step in range(steps)])
    except OverflowError as error:
        raise ExplrError(f"the schedule leaves the range of float64 ({error}).") from None
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise ExplrError(f"the schedule is {values[bad[0]]} at step {bad[0]}.")
    return values


def future(scheduler: Any, steps: int, *, updates_per_step: int = 1) -> FloatArray:
    """Return the rates of a torch scheduler for ``steps`` updates, the first of them the present one, without touching it.

    They are those of the first parameter group; ``convert(future(scheduler, steps), weight_decay, momentum)`` converts them.

    Args:
        scheduler: as the training loop has it.
        steps: how many updates of the optimizer to look ahead.
        updates_per_step: after how many updates the loop calls ``scheduler.step()``; if once an epoch, the steps of an epoch.

    Raises:
        ExplrError: for what is no scheduler, or one such as ``ReduceLROnPlateau``, whose rates depend on more than time.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1)
    >>> future(torch.optim.lr_scheduler.StepLR(optimizer, 2), 3)
    array([0.1 , 0.1 , 0.01])
    >>> future(torch.optim.lr_scheduler.StepLR(optimizer, 1), 5, updates_per_step=3)
    array([0.1 , 0.1 , 0.1 , 0.01, 0.01])
    """
    steps, updates_per_step = whole("steps", steps), whole("updates_per_step", updates_per_step)
    if not hasattr(scheduler, "optimizer"):
        raise ExplrError(
            f"scheduler={type(scheduler).__name__} is not a learning-rate scheduler of torch: give the one that moves the "
            "optimizer's rate; of a function explr.schedules.sample(function, steps) gives the values."
        )
    if any("explr_update" in group for group in scheduler.optimizer.param_groups):
        raise ExplrError("the scheduler's optimizer is under an ExpLR, whose rates it now has: use ExpLR.preview(steps).")
    optimizer = copy.copy(scheduler.optimizer)  # without hooks
    optimizer.param_groups = [
        {**copy.deepcopy({**group, "params": []}), "params": group["params"]} for group in optimizer.param_groups
    ]
    scheduler = copy.deepcopy(scheduler, {id(scheduler.optimizer): optimizer})
    lrs = np.empty(steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch misses the calls of optimizer.step()
        for step in range(steps):
            lrs[step] = float(optimizer.param_groups[0]["lr"])
            if (step + 1) % updates_per_step:
                continue
            try:
                scheduler.step()
            except Exception as error:  # of somebody else's scheduler: a metric is missing, or the schedule is at its end
                raise ExplrError(f"{type(scheduler).__name__} cannot be looked ahead at {steps} steps: {error}") from error
    return lrs


def _function(schedule: Schedule) -> Schedule:
    if not callable(schedule):
        raise ExplrError(
            f"schedule={short(schedule)} must be a function step -> learning rate, as schedules.constant(0.1) is one. Of a "
            "torch scheduler schedules.future(scheduler, steps) gives the rates."
        )
    return schedule


def _rates(**rates: float) -> list[float]:
    values = [one_float(name, value) for name, value in rates.items()]
    for name, value in zip(rates, values, strict=True):
        if not 0.0 < value < math.inf:
            raise ExplrError(f"{name}={value} must be positive and finite.")
    return values
