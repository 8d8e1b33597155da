"""ExpLR: weight decay turned into a growing learning rate, as a torch learning-rate scheduler.

It applies the recursion of :mod:`explr.equivalence` online: a step needs only the present learning rate and one number of the
past, so any torch scheduler can be wrapped, whether or not its future is known. Given the model, it also takes the eps and the
running statistics of normalisation layers along, and keeps weights and rates within range, by :mod:`explr.symmetry`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from explr.equivalence import advance
from explr.errors import ExplrError
from explr.symmetry import Norms, exact_exp, scale_weights


class ExpLR(LRScheduler):
    r"""Replace weight decay by its exact effect on the learning rate (Li & Arora 2020, Theorem 1, for any schedule).

    Takes the weight decay out of the optimizer's parameter groups and, at every :meth:`step`, sets the learning rate with
    which SGD without weight decay computes the same functions, provided that the loss is scale-invariant in the parameters
    of the group. The weights themselves grow, by ``exp(log_scale)``.

    Call :meth:`step` once after every ``optimizer.step()`` (not once an epoch; not after one that a GradScaler skipped),
    evaluate after it, and give the wrapped scheduler its milestones in steps. A ``ReduceLROnPlateau`` advances at the calls
    that carry a metric, ``step(metric)``. Every parameter must have a gradient at every step: one that has none torch does not
    decay.

    Args:
        optimizer: a :class:`torch.optim.SGD`, new or under way; momentum is welcome, Nesterov momentum, dampening and
            ``maximize`` are not. A group whose ``weight_decay`` is 0 keeps the rate of the schedule; so does one marked
            ``scale_invariant=False``, which keeps its weight decay too.
        scheduler: any torch scheduler of the same optimizer; it goes on believing in the original learning rate. Without
            one the original rate is constant.
        model: the network, in training mode. With it eps and running statistics of the norms are scaled with the weights, so
            that the equivalence is exact at any eps and in eval mode too. It must be scale-invariant in the converted
            groups. Without it the equivalence is as good as eps is negligible. (The eps changes at every step, so a model
            under torch.compile would be compiled again and again: leave it out there.)
        renormalize: with ``model``, keep the weights within a factor of two of their size under weight decay, by powers of
            two: not a bit of the functions changes, and the run never overflows.
        example_inputs: what the model is called with; see :func:`rescale`.

    Attributes:
        log_lr: natural log of η̃_t, the learning rate of the theorem, one per parameter group.
        log_scale: natural log of P_t, by which the weights of the theorem exceed those of the run with weight decay.
        exponents: the weights of the theorem are 2**exponent times those that the model holds, and the learning rate that the
            optimizer uses is η̃_t / 4**exponent; all 0 without ``renormalize``.

    Raises:
        ExplrError: for an optimizer or a rate that has no exact counterpart; when a learning rate leaves the range of the
            parameters' dtype; when ``optimizer.step()`` is called twice without :meth:`step` in between.

    >>> weights = torch.nn.Parameter(torch.ones(3))
    >>> optimizer = torch.optim.SGD([weights], lr=0.1, momentum=0.9, weight_decay=5e-4)
    >>> scheduler = ExpLR(optimizer, torch.optim.lr_scheduler.StepLR(optimizer, step_size=2))
    >>> for _ in range(3):
    ...     print(f"{scheduler.get_last_lr()[0]:.8f}")
    ...     optimizer.step()
    ...     scheduler.step()
    0.10000500
    0.10001950
    0.01000304
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler | None = None,
        *,
        model: torch.nn.Module | None = None,
        renormalize: bool = False,
        example_inputs: Sequence[Any] | None = None,
    ) -> None:
        _check_optimizer(optimizer)
        if renormalize and model is None:
            raise ExplrError("renormalize=True needs model=: its running statistics must be rescaled with the weights.")
        if scheduler is not None and not isinstance(scheduler, LRScheduler):
            raise ExplrError(f"scheduler={scheduler!r} is not a torch learning-rate scheduler: wrap functions in LambdaLR.")
        if scheduler is not None and scheduler.optimizer is not optimizer:
            raise ExplrError("the scheduler to wrap belongs to another optimizer: build both on the same one.")
        groups = optimizer.param_groups
        self.scheduler = scheduler
        self.renormalize = renormalize
        self.weight_decays = [float(group["weight_decay"]) if _converts(group) else 0.0 for group in groups]
        self.lrs = [float(group["lr"]) for group in groups]  # η_t: what the wrapped scheduler believes in
        self.momentum = [float(group["momentum"]) for group in groups]
        self.shares = [0.0] * len(groups)  # x_t
        self.carried = [0.0] * len(groups)  # κ_{t+1}
        self.log_scale = [0.0] * len(groups)
        self.rounding = [0.0] * len(groups)  # what log_scale, a long sum, has lost so far (Kahan)
        self.log_lr = [math.nan] * len(groups)
        self.exponents = [0] * len(groups)
        self._optimizer_stepped = False
        self._convert(groups, self.lrs, step=0)
        self.norms = None if model is None else Norms(model, self._decayed(groups), example_inputs)
        self._check_joint(groups)
        for group in filter(_converts, groups):
            group["weight_decay"] = 0.0
        optimizer.register_step_pre_hook(self._before_optimizer_step)
        super().__init__(optimizer)

    def step(self, metrics: Any = None) -> None:
        """Set the learning rate of the next ``optimizer.step()``; call once after each.

        Args:
            metrics: for a wrapped ``ReduceLROnPlateau``, the value it watches, whenever there is a new one.

        Raises:
            ExplrError: if the rate that the schedule asks for has no exponential counterpart or leaves the dtype's range.
                The optimizer then keeps the rate that it had.
        """
        if self.last_epoch >= 0:  # else torch's constructor is calling: the first rate is already there
            if len(self.optimizer.param_groups) == len(self._last_lr):
                self._check_untouched()
            scales, exponents = self.log_scale, self.exponents
            self._convert(self.optimizer.param_groups, self._step_wrapped(metrics), step=self.last_epoch + 1)
            self._scale_model(scales, exponents)
            self._optimizer_stepped = False
        super().step()

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return the rate of the coming step for each group; as in torch, for :meth:`step` to call, not for users."""
        state = zip(self.lrs, self.log_scale, self.shares, self.exponents, strict=True)
        return [lr * exact_exp(2.0 * scale - math.log1p(-share), 2 * exponent) for lr, scale, share, exponent in state]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of this scheduler and of the wrapped one, as plain numbers."""
        state = {key: value for key, value in self.__dict__.items() if key not in ("optimizer", "scheduler", "norms")}
        wrapped = None if self.scheduler is None else [type(self.scheduler).__name__, self.scheduler.state_dict()]
        return {**state, "scheduler": wrapped, "eps": None if self.norms is None else dict(self.norms.eps)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up the state of a copy; the optimizer's copy does not bring the hook along."""
        self.__dict__.update(state)
        self.optimizer.register_step_pre_hook(self._before_optimizer_step)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on exactly where :meth:`state_dict` was taken, whether the optimizer's state is loaded before or after.

        The eps of the norms, which a model's own state does not hold, is set to what belongs to the state.

        Raises:
            ExplrError: if the state is not an ExpLR's, is of another number of parameter groups, of another kind of wrapped
                scheduler, or of a renormalised run while this one has no model.
        """
        if not {"scheduler", "eps", "lrs", "exponents"} <= state_dict.keys():
            raise ExplrError("the state is not that of an ExpLR: it must come from ExpLR.state_dict().")
        state = dict(state_dict)
        wrapped, eps = state.pop("scheduler"), state.pop("eps")
        state.pop("renormalize")  # how to go on is for the one who builds the scheduler to say
        if any(state["exponents"]) and self.norms is None:
            raise ExplrError("the state is of a run with renormalize=True: build ExpLR with model= to go on with it.")
        if len(state["lrs"]) != len(self.optimizer.param_groups):
            raise ExplrError(
                f"the state is of {len(state['lrs'])} parameter groups, the optimizer has "
                f"{len(self.optimizer.param_groups)}: build the optimizer as it was built for the state."
            )
        kinds = [wrapped and wrapped[0], self.scheduler and type(self.scheduler).__name__]
        if kinds[0] != kinds[1]:
            raise ExplrError(
                f"the state is of the wrapped scheduler {kinds[0]}, this ExpLR has {kinds[1]}: wrap the same kind."
            )
        if self.scheduler is not None:
            self.scheduler.load_state_dict(wrapped[1])
        self.__dict__.update(state)
        if self.norms is not None:
            self.norms.choose(self._decayed(self.optimizer.param_groups))
            self.norms.eps.update(eps or {})
        # Building a scheduler overwrites what the optimizer had loaded before: learning rates, and the momentum of a cycle.
        for group, lr, momentum in zip(self.optimizer.param_groups, self._last_lr, self.momentum, strict=True):
            group.update(momentum=momentum, **({"weight_decay": 0.0} if _converts(group) else {}))
            _set_lr(group, float(lr))
        self._scale_eps()

    def _step_wrapped(self, metrics: Any) -> list[float]:
        """Let the wrapped scheduler act on the rates that it believes in, and return what it makes of them."""
        watches = isinstance(self.scheduler, ReduceLROnPlateau)
        if metrics is not None and not watches:
            raise ExplrError(f"step({metrics!r}): only a wrapped ReduceLROnPlateau takes a metric; call step().")
        if self.scheduler is None or (watches and metrics is None):
            return self.lrs
        groups = self.optimizer.param_groups
        in_force = [float(group["lr"]) for group in groups]
        for group, lr in zip(groups, self.lrs, strict=True):
            _set_lr(group, lr)
        try:
            self.scheduler.step(*([metrics] if watches else []))
            return [float(group["lr"]) for group in groups]
        finally:
            for group, lr in zip(groups, in_force, strict=True):
                _set_lr(group, lr)

    def _convert(self, groups: list[dict[str, Any]], lrs: list[float], step: int) -> None:
        """Advance the recursion of every group to ``step``; raise before any of it has changed."""
        if len(groups) != len(self.weight_decays):
            raise ExplrError(
                f"the optimizer has {len(groups)} parameter groups, ExpLR was built for {len(self.weight_decays)}: "
                "add every group before building ExpLR."
            )
        advanced = []
        for i, (group, lr) in enumerate(zip(groups, lrs, strict=True)):
            if not 0.0 <= lr < math.inf:
                raise ExplrError(f"lr={lr} at step {step} must be finite and not negative: check the wrapped scheduler.")
            momentum, before = float(group["momentum"]), self.momentum[i]
            if (momentum > 0.0) != (before > 0.0):
                raise ExplrError(
                    f"momentum={momentum} at step {step} after {before}: torch's SGD does not touch its momentum buffer at "
                    "momentum 0, so the switch has no exact counterpart. Use a small positive momentum, such as 1e-9."
                )
            term = -math.log1p(-self.shares[i]) - self.rounding[i]
            scale = self.log_scale[i] + term
            rounding = (scale - self.log_scale[i]) - term
            share, carried = advance(self.carried[i], lr, self.weight_decays[i], momentum, step)
            log_lr = (math.log(lr) if lr else -math.inf) + 2.0 * scale - math.log1p(-share)
            exponent = round(scale / math.log(2)) if self.renormalize else 0
            _check_overflow(log_lr - 2 * exponent * math.log(2), group, step)
            advanced.append((lr, momentum, share, carried, scale, rounding, log_lr, exponent))
        columns = [list(column) for column in zip(*advanced, strict=True)]
        self.lrs, self.momentum, self.shares, self.carried, self.log_scale, self.rounding, self.log_lr, self.exponents = columns

    def _decayed(self, groups: list[dict[str, Any]]) -> list[list[torch.Tensor]]:
        pairs = zip(groups, self.weight_decays, strict=True)
        return [[p for p in group["params"] if p.requires_grad] if decay else [] for group, decay in pairs]

    def _check_joint(self, groups: list[dict[str, Any]]) -> None:
        """Refuse groups that decay differently though the network is invariant only when they are scaled alike."""
        if self.norms is None or not self.norms.joint:
            return
        settings = [(group["lr"], decay, group["momentum"]) for group, decay in zip(groups, self.weight_decays, strict=True)]
        if len({tuple(map(float, setting)) for setting, (_, decay, _) in zip(settings, settings, strict=True) if decay}) > 1:
            raise ExplrError(
                "the parameter groups have different lr, weight_decay or momentum, but the model is scale-invariant only when "
                "they are scaled together: give all groups with weight decay the same, or put them into one group."
            )

    def _check_untouched(self) -> None:
        """Refuse to go on when somebody has changed what this scheduler sets."""
        for index, (group, lr) in enumerate(zip(self.optimizer.param_groups, self._last_lr, strict=True)):
            _check_group(index, group)
            if float(group["lr"]) != float(lr):
                raise ExplrError(
                    f"the learning rate of parameter group {index} is {float(group['lr']):g}, not {float(lr):g} as ExpLR set "
                    "it: wrap the scheduler that changed it, ExpLR(optimizer, scheduler), and step only ExpLR."
                )
            if _converts(group) and float(group["weight_decay"]) != 0.0:
                raise ExplrError(
                    f"parameter group {index} has weight_decay={float(group['weight_decay'])} again, after ExpLR took it: "
                    "after optimizer.load_state_dict load ExpLR's state too, or build ExpLR once it is loaded."
                )

    def _scale_model(self, scales: list[float], exponents: list[int]) -> None:
        """Let the model follow from the log scales and exponents before the last step to those after it."""
        if self.norms is None:
            return
        self.norms.scale_statistics([math.exp(new - old) for new, old in zip(self.log_scale, scales, strict=True)])
        factors = [2.0 ** (old - new) for new, old in zip(self.exponents, exponents, strict=True)]
        if any(factor != 1.0 for factor in factors):
            for group, factor in zip(self.optimizer.param_groups, factors, strict=True):
                scale_weights(self.optimizer, filter(_trains, group["params"]), factor)
            self.norms.scale_statistics(factors)
        self._scale_eps()

    def _scale_eps(self) -> None:
        if self.norms is not None:
            self.norms.scale_eps([exact_exp(s, e) for s, e in zip(self.log_scale, self.exponents, strict=True)])

    def _before_optimizer_step(self, *_: Any) -> None:
        if self._optimizer_stepped:
            raise ExplrError(
                "optimizer.step() was called twice without ExpLR.step() in between: the learning rate must grow at every "
                "step. Call scheduler.step() after each optimizer.step(), and give schedules their milestones in steps."
            )
        self._optimizer_stepped = True


def rescale(model: torch.nn.Module, optimizer: torch.optim.Optimizer, factor: float, *example_inputs: Any) -> None:
    """Multiply the weights by ``factor`` without changing what the network computes, now or at any later step.

    The momentum buffers are divided by the factor, the learning rates multiplied by its square and the weight decays divided by
    it; running statistics and eps of the norms follow by the degrees of their inputs. Parameter groups marked
    ``scale_invariant=False`` (:meth:`explr.invariance.InvarianceReport.parameter_groups`) stay as they are. A learning-rate
    scheduler knows nothing of this: where one is at work use ``ExpLR(..., model=model, renormalize=True)``.

    Args:
        model: a network that is scale-invariant in the parameters of the optimizer, in training mode.
        optimizer: its torch.optim.SGD.
        factor: c > 0. A power of two changes no bit of the functions.
        example_inputs: what the model is called with, to find the degrees. May be left out for a network that begins with a
            convolution or a linear layer and takes images of 32x32 pixels, or vectors.

    Raises:
        ExplrError: if the factor is not positive and finite, the optimizer is not one of this model's, or the network is not
            scale-invariant in its parameters, or a number would leave its range. Nothing has changed then.

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
    if not isinstance(optimizer, torch.optim.SGD):
        raise ExplrError(f"{type(optimizer).__name__} does not have this symmetry: use torch.optim.SGD.")
    if _has_explr(optimizer):
        raise ExplrError("the optimizer has an ExpLR, which sets its rate: use ExpLR(..., model=model, renormalize=True).")
    groups = list(filter(_converts, optimizer.param_groups))
    weights = [list(filter(_trains, group["params"])) for group in groups]
    norms = Norms(model, weights, example_inputs or None)
    largest = max([float(p.detach().abs().max()) * factor for group in weights for p in group], default=0.0)
    smallest_dtype = min(torch.finfo(p.dtype).max for group in weights for p in group)
    square = factor * factor
    rates = [float(group["lr"]) * square for group in groups]
    if not max(largest, *rates, norms.largest_statistic([factor] * len(groups))) < smallest_dtype:
        raise ExplrError(
            f"factor={factor:g} takes weights, the variance that a norm sees, or learning rate out of the range of their "
            "dtype: use a smaller one."
        )
    if not (square and all(float(group["weight_decay"]) / square < math.inf for group in groups)):
        raise ExplrError(f"factor={factor:g} takes learning rate or weight decay out of the range of floats: use a larger one.")
    for group, parameters in zip(groups, weights, strict=True):
        scale_weights(optimizer, parameters, factor)
        _set_lr(group, float(group["lr"]) * square)
        group["weight_decay"] = float(group["weight_decay"]) / square
    norms.scale_statistics([factor] * len(groups))
    norms.scale_eps([factor] * len(groups))


def _converts(group: dict[str, Any]) -> bool:
    return bool(group.get("scale_invariant", True))


def _trains(parameter: torch.Tensor) -> bool:
    return parameter.requires_grad


def _has_explr(optimizer: torch.optim.Optimizer) -> bool:
    hooks = optimizer._optimizer_step_pre_hooks.values()
    return any(isinstance(getattr(hook, "__self__", None), ExpLR) for hook in hooks)


def _set_lr(group: dict[str, Any], lr: float) -> None:
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def _check_overflow(log_lr: float, group: dict[str, Any], step: int) -> None:
    dtype = min((p.dtype for p in group["params"]), key=lambda dtype: torch.finfo(dtype).max)
    if log_lr > math.log(torch.finfo(dtype).max):
        raise ExplrError(
            f"the learning rate of step {step} is exp({log_lr:.6g}), beyond the range of {dtype}. Use ExpLR(..., model=model, "
            "renormalize=True), which keeps it bounded, train in a wider dtype, or stop before this step."
        )


def _check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    if not isinstance(optimizer, torch.optim.SGD):
        raise ExplrError(
            f"{type(optimizer).__name__} has no exponential counterpart: the theorem is about SGD. Use torch.optim.SGD."
        )
    if _has_explr(optimizer):
        raise ExplrError("this optimizer already has an ExpLR, which took its weight decay: build a new optimizer.")
    for index, group in enumerate(optimizer.param_groups):
        _check_group(index, group)
        if not group["params"]:
            raise ExplrError(f"parameter group {index} has no parameters: leave it out.")
        if not 0.0 <= float(group["weight_decay"]) < math.inf:
            raise ExplrError(
                f"parameter group {index} has weight_decay={float(group['weight_decay'])}: it must be finite and not negative."
            )


def _check_group(index: int, group: dict[str, Any]) -> None:
    for option, remedy in _REFUSED.items():
        if group[option]:
            raise ExplrError(f"parameter group {index} has {option}={group[option]}: {remedy}")
    if not 0.0 <= group["momentum"] < 1.0:
        raise ExplrError(f"parameter group {index} has momentum={group['momentum']}: it must lie in [0, 1).")


_REFUSED = {
    "nesterov": "Nesterov momentum has no exact exponential counterpart (all four coefficients match only if "
    "lr * weight_decay = 0). Use nesterov=False.",
    "dampening": "torch skips dampening on the first step; explr does not convert that. Use dampening=0.",
    "maximize": "explr converts minimisation. Minimise the negative of the objective.",
}
