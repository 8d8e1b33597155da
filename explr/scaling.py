"""A network in training at another scale: larger or smaller in place, or back at that of weight decay in a copy."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch

from explr.errors import ExplrError
from explr.groups import converts, family_of, own_rates, trains, write
from explr.invariance.attributes import tensors_in
from explr.invariance.tables import few
from explr.optim import ExpLR
from explr.symmetry import Norms, largest_buffer, scale_weights, unwrapped
from explr.watching import has_explr


def rescale(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, factor: float, *example_inputs: Any, **kwargs: Any
) -> None:
    """Multiply the weights by ``factor`` without changing what the network computes, now or at any later step.

    SGD's momentum buffers are divided by the factor, its learning rates multiplied by the square and its weight decays divided
    by the square. AdamW's averages are divided by the factor and by its square, its learning rates multiplied by the factor,
    its weight decays and eps divided by it. Running statistics and eps of the norms follow by the degrees of their inputs.
    Groups marked ``scale_invariant=False`` (:meth:`explr.invariance.report.InvarianceReport.parameter_groups`) stay as they
    are. A learning-rate scheduler knows nothing of this: where one is at work use
    ``ExpLR(..., model=model)``, which does this by itself.

    Args:
        model: a network that is scale-invariant in the parameters of the optimizer, in training mode.
        optimizer: its torch.optim.SGD or torch.optim.AdamW.
        factor: c > 0. A power of two changes no bit of the functions.
        example_inputs: what the model is called with in training, to find the degrees. May be left out for a network that
            begins with a convolution or a linear layer and takes images of 32x32 pixels, or vectors.
        kwargs: what it is called with by name.

    Raises:
        ExplrError: if the factor is not positive and finite, the optimizer is not one of this model's, the network is not
            scale-invariant in its parameters, or what it returns does not depend on some of them, or a number would leave its
            range. Nothing has changed then.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(3, 8, bias=False), nn.BatchNorm1d(8, affine=False))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    >>> rescale(model, optimizer, 2.0)
    >>> optimizer.param_groups[0]["lr"], model[1].eps
    (0.4, 4e-05)
    """
    try:
        factor = float(factor)
    except (TypeError, ValueError):
        factor = math.nan
    if not 0.0 < factor < math.inf:
        raise ExplrError(f"factor={factor} must be a positive, finite number.")
    families = [family_of(optimizer, group) for group in optimizer.param_groups]
    if has_explr(optimizer):
        raise ExplrError(
            "the optimizer has an ExpLR, which sets its rate: use ExpLR(..., model=model), which does this itself."
        )
    power, groups = families[0].lr_power, list(filter(converts, optimizer.param_groups))
    weights = [list(filter(trains, group["params"])) for group in groups]
    if not any(weights):
        raise ExplrError("no group of the optimizer that converts has a parameter that trains: there is nothing to rescale.")
    norms = Norms(model, example_inputs or None, **kwargs)
    norms.choose(weights)
    unmarked = {id(p) for group in groups if "scale_invariant" not in group for p in group["params"]}
    if unused := [name for name in norms.report.unused if id(norms.parameters[name]) in unmarked]:
        raise ExplrError(
            f"what the model returns does not depend on {few(unused)}, so nothing says what the loss makes of another scale: "
            "put it into a group marked scale_invariant=False, or give example_inputs, what training calls the model with."
        )
    every = [p for group in weights for p in group]
    largest = max(float(p.detach().abs().max()) * factor for p in every)
    ranges = [torch.finfo(p.dtype) for p in every]
    most, least = min(dtype.max for dtype in ranges), max(dtype.tiny for dtype in ranges)
    growth = factor * factor if power == 2 else factor  # of the learning rate
    rates = [(float(group["lr"]), float(group["lr"]) * growth) for group in groups]
    factors = [factor] * len(groups)
    if not max(largest, *(after for _, after in rates), norms.largest_statistic(factors)) < most:
        raise ExplrError(
            f"factor={factor:g} takes weights, the variance that a norm sees, or learning rate out of the range of their "
            "dtype: use a smaller one."
        )
    variances = zip(norms.variances([1.0] * len(groups)), norms.variances(factors), strict=True)
    changes = [(largest / factor, largest), *rates, *variances]
    if (
        growth == 0.0
        or any(after < least <= before for before, after in changes)  # it would lose its digits
        or not largest_buffer(optimizer, every, factor) < most
        or not all(float(group["weight_decay"]) / growth < math.inf for group in groups)
    ):
        raise ExplrError(
            f"factor={factor:g} takes weights, the variance that a norm sees, learning rate, weight decay or buffers of the "
            "optimizer out of the range of their dtype: use a larger one."
        )
    own_rates(optimizer.param_groups)
    for group, parameters in zip(groups, weights, strict=True):
        scale_weights(optimizer, parameters, factor)
        write(group, {"lr": float(group["lr"]) * growth, "weight_decay": float(group["weight_decay"]) / growth})
        if power == 1:
            write(group, {"eps": float(group["eps"]) / factor})
    norms.scale_statistics(factors)
    norms.scale_eps(factors)


def unscale(model: torch.nn.Module, scheduler: ExpLR) -> torch.nn.Module:
    """Return a copy of a network under :class:`explr.optim.ExpLR` as the run with weight decay would have it.

    Weights, running statistics and eps are those of the network under weight decay, up to rounding. So the copy can be
    exported, evaluated elsewhere, fine-tuned with any optimizer, and averaged (EMA, SWA, checkpoint averaging), which growing
    weights cannot: call ``average.update_parameters(unscale(model, scheduler))``, and build an average that begins in mid-run
    from such a copy, too: ``AveragedModel(unscale(model, scheduler))``. What the network keeps of a forward pass is copied
    without its graph, as it is.

    Args:
        model: the network that trains; one inside DistributedDataParallel or torch.compile is taken out.
        scheduler: its ExpLR, built with ``model=``.

    Raises:
        ExplrError: if the scheduler was built without a model or for another one, if the model has grown under another ExpLR,
            or if a norm has been replaced.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(3, 8, bias=False), nn.BatchNorm1d(8, affine=False))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1.0)
    >>> scheduler = ExpLR(optimizer, model=model)
    >>> before = model[0].weight.detach().clone()
    >>> model(torch.randn(4, 3)).sum().mul(0.0).backward()  # no gradient but weight decay
    >>> optimizer.step()
    >>> torch.allclose(model[0].weight, before), torch.allclose(unscale(model, scheduler)[0].weight, 0.9 * before)
    (True, True)
    """
    if not isinstance(scheduler, ExpLR):
        raise ExplrError(f"unscale(model, scheduler) takes the ExpLR of the model, not {type(scheduler).__name__}.")
    model = unwrapped(model)
    if scheduler.norms is None:
        raise ExplrError("the ExpLR was built without model=, so it does not know how statistics go with the weights: give it.")
    known = {id(parameter) for parameter in scheduler.norms.parameters.values()}
    if model is not scheduler.norms.model or {id(parameter) for parameter in model.parameters()} != known:
        raise ExplrError("the model is not the one that the ExpLR was built with: give the one that it trains.")
    if scheduler.grown_under_another():
        raise ExplrError(
            "the model has grown under another ExpLR, whose scale it has: give unscale(model, scheduler) that one."
        )
    scheduler.norms.check_in_place()
    # A tensor in the midst of a backward graph, such as features that a network keeps, has no deep copy by itself.
    memo: dict[int, Any] = {id(t): t.detach().clone() for t in tensors_in(model).values() if not t.is_leaf}
    plain = copy.deepcopy(model, memo)
    scales = scheduler.gradient_scale  # 1 / P, or what renormalisation has left of it
    with torch.no_grad():
        for group, scale in zip(scheduler.scaled_parameters(), scales, strict=True):
            for parameter in group:
                memo[id(parameter)].mul_(scale)
    scheduler.norms.of(plain).scale_statistics(scales)
    scheduler.norms.of(plain).scale_eps([1.0] * len(scales))
    return plain
