"""ExpLR: weight decay turned into a growing learning rate, as a torch learning-rate scheduler.

It applies the recursions of :mod:`explr.recursions` online: a step needs only the present hyper-parameters and a few numbers of
the past, so any torch scheduler can be wrapped, whether or not its future is known. Given the model, it also takes the eps and
the running statistics of normalisation layers along, and keeps weights and rates within range, by :mod:`explr.symmetry`.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from explr.checks import alike
from explr.errors import ExplrError
from explr.groups import Group, check_group, check_ranges, converts, family_of, memory_of, read, smallest_dtype, trains, write
from explr.recursions import no_twin
from explr.symmetry import Norms, exact_exp, scale_weights


class ExpLR(LRScheduler):
    r"""Replace weight decay by its exact effect on the learning rate (Li & Arora 2020, Theorem 1, for any schedule).

    Takes the weight decay out of the optimizer's parameter groups and, at every :meth:`step`, sets the hyper-parameters with
    which the same optimizer without weight decay computes the same functions, provided that the loss is scale-invariant in the
    parameters of the group. The weights themselves grow, by ``exp(log_scale)``. With heavy-ball momentum only the learning rate
    changes; with Nesterov momentum momentum and dampening do as well, with AdamW betas and eps (:mod:`explr.recursions`).

    Call :meth:`step` once after every ``optimizer.step()`` (not once an epoch), evaluate after it, and give the wrapped
    scheduler its milestones in steps. After a step that did not happen, such as one that a GradScaler skipped, :meth:`step`
    moves the wrapped schedule alone. A ``ReduceLROnPlateau`` advances at the calls that carry a metric, ``step(metric)``. Every
    parameter must have a gradient at every step: one that has none torch does not decay.

    Args:
        optimizer: a :class:`torch.optim.SGD`, with or without Nesterov momentum or dampening, or a :class:`torch.optim.AdamW`
            (or Adam with ``decoupled_weight_decay=True``), new or under way. A group whose ``weight_decay`` is 0 keeps the rate
            of the schedule; so does one marked ``scale_invariant=False``, which keeps its weight decay too. A CUDA graph of
            ``optimizer.step()`` would freeze what changes at every step, and is refused.
        scheduler: any torch scheduler of the same optimizer; it goes on believing in the original hyper-parameters, and may
            move any of them. Without one they are constant.
        model: the network, in training mode. With it eps and running statistics of the norms are scaled with the weights, so
            that the equivalence is exact at any eps and in eval mode too. It must be scale-invariant in the converted
            groups. Without it the equivalence is as good as eps is negligible. (The eps changes at every step, so a model
            under torch.compile would be compiled again and again: leave it out there.)
        renormalize: with ``model``, keep the weights within a factor of two of their size under weight decay, by powers of
            two: not a bit of the functions changes, and the run never overflows.
        example_inputs: what the model is called with; see :func:`rescale`.

    Attributes:
        believed: the hyper-parameters of the run with weight decay at the coming step, one dictionary per parameter group.
        in_use: what ExpLR has set instead, less the learning rate (``get_last_lr()``).
        log_lr: natural log of η̃_t, the learning rate of the theorem, one per parameter group.
        log_scale: natural log of P_t, by which the weights of the theorem exceed those of the run with weight decay.
        exponents: the weights of the theorem are 2**exponent times those that the model holds, and the learning rate that the
            optimizer uses is η̃_t / 4**exponent (AdamW: / 2**exponent); all 0 without ``renormalize``.

    Raises:
        ExplrError: for an optimizer or a step that has no exact counterpart; when a learning rate, or with AdamW the square of
            the weights' growth, leaves the range of the parameters' dtype; when ``optimizer.step()`` is called twice without
            :meth:`step` in between, or after somebody else has set what ExpLR sets.

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

    log_lr: list[float]
    exponents: list[int]
    rates: list[float]
    in_use: list[dict[str, float]]

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
        families = [family_of(optimizer, group) for group in groups]
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.renormalize = renormalize
        self.families = [type(family).__name__ for family in families]
        self.converted = [converts(group) and float(group["weight_decay"]) > 0.0 for group in groups]
        self.believed = [read(group, family.reads) for group, family in zip(groups, families, strict=True)]
        self.after = [
            list(memory_of(optimizer, i, groups[i], family) if converted else family.start())
            for i, (family, converted) in enumerate(zip(families, self.converted, strict=True))
        ]
        self.memory = [list(memory) for memory in self.after]  # before the coming step; after it: self.after
        self.shares = [0.0] * len(groups)  # x_t
        self.log_scale = [0.0] * len(groups)
        self.rounding = [0.0] * len(groups)  # what log_scale, a long sum, has lost so far (Kahan)
        self.refusal = ""  # why the last step was refused
        self._optimizer_stepped = False
        self.norms: Norms | None = None
        self._convert(self.believed, step=0)
        self.norms = None if model is None else Norms(model, self._decayed(), example_inputs)
        self._check_joint()
        self._write()
        self._watch()
        super().__init__(optimizer)

    @property
    def lrs(self) -> list[float]:
        """The learning rates that the wrapped scheduler believes in, one per parameter group; log these."""
        return [settings["lr"] for settings in self.believed]

    @property
    def gradient_scale(self) -> list[float]:
        """By how much gradients are now shorter than in the run with weight decay, one per parameter group.

        A fixed threshold of gradient clipping must shrink with them:
        ``clip_grad_norm_(weights, threshold * scheduler.gradient_scale[0])``. Where one norm is taken over several groups, all
        must have the same scale.
        """
        return [exact_exp(-scale, -exponent) for scale, exponent in zip(self.log_scale, self.exponents, strict=True)]

    def step(self, metrics: Any = None) -> None:
        """Set the hyper-parameters of the next ``optimizer.step()``; call once after each.

        Args:
            metrics: for a wrapped ``ReduceLROnPlateau``, the value it watches, whenever there is a new one.

        Raises:
            ExplrError: if the step that the schedule asks for has no exponential counterpart or its rate leaves the dtype's
                range. The optimizer then keeps what it had.
        """
        if self.last_epoch >= 0:  # else torch's constructor is calling: the first step is prepared already
            if self.refusal:
                raise ExplrError(f"an earlier step was refused, and the wrapped schedule has moved on since: {self.refusal}")
            self._check_untouched()
            scales, exponents = self.log_scale, self.exponents
            believed = self._step_wrapped(metrics)
            try:
                self._convert(believed, step=self.last_epoch + 1)
            except ExplrError as error:
                self.refusal = str(error)
                raise
            self._scale_model(scales, exponents)
            self._write()
            self._optimizer_stepped = False
        super().step()

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return the rate of the coming step for each group; as in torch, for :meth:`step` to call, not for users."""
        return list(self.rates)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of this scheduler and of the wrapped one, as plain numbers."""
        state = {key: value for key, value in self.__dict__.items() if key not in ("optimizer", "scheduler", "norms")}
        wrapped = None if self.scheduler is None else [type(self.scheduler).__name__, self.scheduler.state_dict()]
        return {**state, "scheduler": wrapped, "eps": None if self.norms is None else dict(self.norms.eps)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up the state of a copy; the optimizer's copy does not bring the hooks along."""
        self.__dict__.update(state)
        self._watch()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on exactly where :meth:`state_dict` was taken, whether the optimizer's state is loaded before or after.

        The eps of the norms, which a model's own state does not hold, is set to what belongs to the state.

        Raises:
            ExplrError: if the state is not an ExpLR's, is of other parameter groups, of another kind of wrapped scheduler, or
                of a renormalised run while this one has no model.
        """
        own = self.state_dict()
        if not isinstance(state_dict, Mapping) or not own.keys() <= state_dict.keys():
            raise ExplrError("the state is not that of an ExpLR: it must come from ExpLR.state_dict().")
        state = {name: state_dict[name] for name in own}
        wrapped, eps = state.pop("scheduler"), state.pop("eps")
        state.pop("renormalize")  # how to go on is for the one who builds the scheduler to say
        families = state["families"]
        if isinstance(families, list) and families != self.families:
            raise ExplrError(
                f"the state is of {len(families)} parameter groups ({', '.join(map(str, families))}), the optimizer "
                f"has {len(self.families)} ({', '.join(self.families)}): build the optimizer as it was built for the state."
            )
        # What is in use may have other names here: on an optimizer whose decay was taken before nothing looks converted.
        in_use = state.pop("in_use")
        damaged = [name for name, value in state.items() if not alike(value, own[name])]
        if not isinstance(in_use, list) or len(in_use) != len(self.in_use) or not all(map(_has_numbers, in_use)):
            damaged.append("in_use")
        if not (wrapped is None or (isinstance(wrapped, list | tuple) and len(wrapped) == 2)):
            damaged.append("scheduler")
        if not (eps is None or _has_numbers(eps)):
            damaged.append("eps")
        if damaged:
            raise ExplrError(f"the state is damaged at {', '.join(damaged)}: load another one. Nothing has changed.")
        if eps is not None and self.norms is None:
            raise ExplrError("the state is of a run with model=: build ExpLR with model= to go on with it.")
        kinds = [wrapped and wrapped[0], self.scheduler and type(self.scheduler).__name__]
        if kinds[0] != kinds[1]:
            raise ExplrError(
                f"the state is of the wrapped scheduler {kinds[0]}, this ExpLR has {kinds[1]}: wrap the same kind."
            )
        self._load_wrapped(wrapped)
        self.__dict__.update(copy.deepcopy({**state, "in_use": in_use}))
        if self.norms is not None:
            self.norms.choose(self._decayed())
            self.norms.eps.update(eps or {})
        # Building a scheduler overwrites what the optimizer had loaded before: learning rates, and the momentum of a cycle.
        self._write()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            write(group, {"lr": float(lr)})
        self._scale_eps()

    def _load_wrapped(self, wrapped: Any) -> None:
        """Load the state of the wrapped scheduler, or leave it as it was."""
        if self.scheduler is None:
            return
        before = copy.deepcopy(self.scheduler.state_dict())
        try:
            self.scheduler.load_state_dict(copy.deepcopy(wrapped[1]))
        except Exception as error:  # whatever a damaged state does to a scheduler of somebody else
            self.scheduler.load_state_dict(before)
            raise ExplrError(
                f"the state of the wrapped {wrapped[0]} cannot be loaded ({type(error).__name__}: {error}). Nothing "
                "has changed."
            ) from error

    def _step_wrapped(self, metrics: Any) -> list[dict[str, float]]:
        """Let the wrapped scheduler act on what it believes in, and return what it makes of it."""
        watches = isinstance(self.scheduler, ReduceLROnPlateau)
        if metrics is not None and not watches:
            raise ExplrError(f"step({metrics!r}): only a wrapped ReduceLROnPlateau takes a metric; call step().")
        if self.scheduler is None or (watches and metrics is None):
            return self.believed
        groups = self.optimizer.param_groups
        in_force = [read(group, tuple(settings)) for group, settings in zip(groups, self.believed, strict=True)]
        for group, settings in zip(groups, self.believed, strict=True):
            write(group, settings)
        try:
            self.scheduler.step(*([metrics] if watches else []))
            return [read(group, tuple(settings)) for group, settings in zip(groups, self.believed, strict=True)]
        finally:
            for group, settings in zip(groups, in_force, strict=True):
                write(group, settings)

    def _convert(self, believed: list[dict[str, float]], step: int) -> None:
        """Advance every group to the coming step, or only past the wrapped schedule where the last one did not happen.

        Raises before anything has changed.
        """
        rows = [self._convert_group(index, settings, step) for index, settings in enumerate(believed)]
        if self.norms is not None and self.norms.joint:
            moves = [
                (row["log_scale"], row["shares"]) for row, converted in zip(rows, self.converted, strict=True) if converted
            ]
            if any(move != moves[0] for move in moves):
                raise ExplrError(f"at step {step} {_JOINT}")
        self.believed = believed
        for name in rows[0]:
            setattr(self, name, [row[name] for row in rows])

    def _convert_group(self, index: int, settings: dict[str, float], step: int) -> dict[str, Any]:
        group, lr = self.optimizer.param_groups[index], settings["lr"]
        check_ranges(index, settings, step)
        momentum, before = settings.get("momentum", 0.0), self.believed[index].get("momentum", 0.0)
        if self.converted[index] and (momentum > 0.0) != (before > 0.0):
            raise ExplrError(
                f"momentum={momentum} at step {step} after {before}: torch's SGD does not touch its momentum buffer at "
                "momentum 0, so the switch has no exact counterpart. Use a small positive momentum, such as 1e-9."
            )
        memory, scale, rounding = self.memory[index], self.log_scale[index], self.rounding[index]
        if self._optimizer_stepped:
            term = -math.log1p(-self.shares[index]) - rounding
            scale += term
            rounding = (scale - self.log_scale[index]) - term
            memory = self.after[index]
        row = {"memory": memory, "log_scale": scale, "rounding": rounding}
        log_lr = math.log(lr) if lr else -math.inf
        if not self.converted[index]:
            _check_overflow("learning rate", log_lr, 1.0, group, step)
            kept = {name: value for name, value in settings.items() if name != "lr"}
            row |= {"after": memory, "shares": 0.0, "log_lr": log_lr, "exponents": 0, "rates": lr, "in_use": kept}
            return row
        family = family_of(self.optimizer, group)
        share, after = family.advance(tuple(memory), *settings.values())
        if not share < 1.0:
            raise no_twin(family, share, tuple(settings.values()), step)
        twin = {name: float(value) for name, value in family.settings(memory, after, *settings.values()).items()}
        power = family.lr_power
        log_growth = power * scale - math.log1p(-share) + twin.pop("log_factor")
        exponent = round(scale / math.log(2)) if self.renormalize else 0
        _check_overflow("learning rate", log_lr + log_growth - power * exponent * math.log(2), 1.0, group, step)
        if (
            power == 1
        ):  # a rate that grows as the weights do outlives the squares: of activations, and of gradients, which shrink
            _check_overflow("growth of the weights", scale - exponent * math.log(2), 0.25, group, step)
        whole = math.floor(log_growth / math.log(2))  # the rate may be in range where its growth is not
        if "log_eps_factor" in twin:
            twin["eps"] = settings["eps"] * exact_exp(twin.pop("log_eps_factor") - scale, -exponent)
        row |= {"after": list(after), "shares": share, "log_lr": log_lr + log_growth, "exponents": exponent}
        rate = math.ldexp(lr * exact_exp(log_growth, whole), whole - power * exponent)
        row |= {"rates": rate, "in_use": {"weight_decay": 0.0, **twin}}
        return row

    def _write(self) -> None:
        for group, settings in zip(self.optimizer.param_groups, self.in_use, strict=True):
            write(group, settings)

    def _decayed(self) -> list[list[torch.Tensor]]:
        pairs = zip(self.optimizer.param_groups, self.converted, strict=True)
        return [list(filter(trains, group["params"])) if converted else [] for group, converted in pairs]

    def _check_joint(self) -> None:
        """Refuse groups that decay differently though the network is invariant only when they are scaled alike."""
        if self.norms is None or not self.norms.joint:
            return
        decayed = [settings for settings, converted in zip(self.believed, self.converted, strict=True) if converted]
        if any(settings != decayed[0] for settings in decayed):
            raise ExplrError(_JOINT)

    def _check_untouched(self) -> None:
        """Refuse to go on when somebody has changed what this scheduler sets."""
        groups = self.optimizer.param_groups
        if len(groups) != len(self.families):
            raise ExplrError(
                f"the optimizer has {len(groups)} parameter groups, ExpLR was built for {len(self.families)}: "
                "add every group before building ExpLR."
            )
        for index, (group, set_to, lr) in enumerate(zip(groups, self.in_use, self._last_lr, strict=True)):
            check_group(index, group)
            if type(family_of(self.optimizer, group)).__name__ != self.families[index]:
                raise ExplrError(f"parameter group {index} has nesterov={group['nesterov']} now: build a new optimizer for it.")
            found = read(group, tuple(set_to))
            if self.converted[index] and found["weight_decay"]:
                raise ExplrError(
                    f"parameter group {index} has weight_decay={found['weight_decay']} again, after ExpLR took it: "
                    "after optimizer.load_state_dict load ExpLR's state too, or build ExpLR once it is loaded."
                )
            expected = {"learning rate": float(lr), **set_to}
            for name, value in {"learning rate": float(group["lr"]), **found}.items():
                if value != expected[name]:
                    raise ExplrError(
                        f"the {name} of parameter group {index} is {value:g}, not {expected[name]:g} as ExpLR set it: wrap the "
                        "scheduler that changed it, ExpLR(optimizer, scheduler), and step only ExpLR."
                    )

    def _scale_model(self, scales: list[float], exponents: list[int]) -> None:
        """Let the model follow from the log scales and exponents before the last step to those after it."""
        if self.norms is None:
            return
        self.norms.scale_statistics([math.exp(new - old) for new, old in zip(self.log_scale, scales, strict=True)])
        factors = [2.0 ** (old - new) for new, old in zip(self.exponents, exponents, strict=True)]
        if any(factor != 1.0 for factor in factors):
            for group, factor in zip(self.optimizer.param_groups, factors, strict=True):
                scale_weights(self.optimizer, filter(trains, group["params"]), factor)
            self.norms.scale_statistics(factors)
        self._scale_eps()

    def _scale_eps(self) -> None:
        if self.norms is not None:
            self.norms.scale_eps([exact_exp(s, e) for s, e in zip(self.log_scale, self.exponents, strict=True)])

    def _watch(self) -> None:
        self.optimizer.register_step_pre_hook(_Watch(self, "_before_optimizer_step"))
        self.optimizer.register_step_post_hook(_Watch(self, "_after_optimizer_step"))

    def _before_optimizer_step(self) -> None:
        if self._optimizer_stepped:
            raise ExplrError(
                "optimizer.step() was called twice without ExpLR.step() in between: the learning rate must grow at every "
                "step. Call scheduler.step() after each optimizer.step(), and give schedules their milestones in steps."
            )
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            raise ExplrError("a CUDA graph of optimizer.step() would freeze what ExpLR sets at every step: capture less.")
        if not any(isinstance(group["lr"], torch.Tensor) and group["lr"].is_cuda for group in self.optimizer.param_groups):
            self._check_untouched()  # else to look would make the host wait; step() looks then

    def _after_optimizer_step(self) -> None:
        found_inf = getattr(self.optimizer, "found_inf", None)  # a GradScaler gives it to a fused optimizer, which then skips
        self._optimizer_stepped = found_inf is None or not float(found_inf)


class _Watch:
    """A hook of an optimizer that does not keep its scheduler alive, nor the optimizer through it."""

    def __init__(self, scheduler: ExpLR, method: str) -> None:
        self.scheduler = weakref.ref(scheduler)
        self.method = method

    def __call__(self, *_: Any) -> None:
        scheduler = self.scheduler()
        if scheduler is None:
            raise ExplrError(
                "the ExpLR of this optimizer, which took its weight decay, is gone: keep it, and call its step() after each "
                "optimizer.step()."
            )
        getattr(scheduler, self.method)()


def rescale(model: torch.nn.Module, optimizer: torch.optim.Optimizer, factor: float, *example_inputs: Any) -> None:
    """Multiply the weights by ``factor`` without changing what the network computes, now or at any later step.

    SGD's momentum buffers are divided by the factor, its learning rates multiplied by the square and its weight decays divided
    by the square. AdamW's averages are divided by the factor and by its square, its learning rates multiplied by the factor,
    its weight decays and eps divided by it. Running statistics and eps of the norms follow by the degrees of their inputs.
    Groups marked ``scale_invariant=False`` (:meth:`explr.invariance.report.InvarianceReport.parameter_groups`) stay as they
    are. A learning-rate scheduler knows nothing of this: where one is at work use
    ``ExpLR(..., model=model, renormalize=True)``.

    Args:
        model: a network that is scale-invariant in the parameters of the optimizer, in training mode.
        optimizer: its torch.optim.SGD or torch.optim.AdamW.
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
    families = [family_of(optimizer, group) for group in optimizer.param_groups]
    if _has_explr(optimizer):
        raise ExplrError("the optimizer has an ExpLR, which sets its rate: use ExpLR(..., model=model, renormalize=True).")
    power, groups = families[0].lr_power, list(filter(converts, optimizer.param_groups))
    weights = [list(filter(trains, group["params"])) for group in groups]
    norms = Norms(model, weights, example_inputs or None)
    largest = max([float(p.detach().abs().max()) * factor for group in weights for p in group], default=0.0)
    smallest_dtype = min(torch.finfo(p.dtype).max for group in weights for p in group)
    growth = factor * factor if power == 2 else factor  # of the learning rate
    rates = [float(group["lr"]) * growth for group in groups]
    if not max(largest, *rates, norms.largest_statistic([factor] * len(groups))) < smallest_dtype:
        raise ExplrError(
            f"factor={factor:g} takes weights, the variance that a norm sees, or learning rate out of the range of their "
            "dtype: use a smaller one."
        )
    if not (growth and all(float(group["weight_decay"]) / growth < math.inf for group in groups)):
        raise ExplrError(f"factor={factor:g} takes learning rate or weight decay out of the range of floats: use a larger one.")
    for group, parameters in zip(groups, weights, strict=True):
        scale_weights(optimizer, parameters, factor)
        write(group, {"lr": float(group["lr"]) * growth, "weight_decay": float(group["weight_decay"]) / growth})
        if power == 1:
            write(group, {"eps": float(group["eps"]) / factor})
    norms.scale_statistics([factor] * len(groups))
    norms.scale_eps([factor] * len(groups))


def _has_explr(optimizer: torch.optim.Optimizer) -> bool:
    return any(isinstance(hook, _Watch) for hook in optimizer._optimizer_step_pre_hooks.values())


_JOINT = (
    "the parameter groups have different lr, weight_decay or momentum, but the model is scale-invariant only when they are "
    "scaled together: give all groups with weight decay the same, or put them into one group."
)


def _has_numbers(mapping: Any) -> bool:
    return isinstance(mapping, Mapping) and alike(list(mapping.values()), [0.0] * len(mapping))


def _check_overflow(what: str, log: float, part: float, group: Group, step: int) -> None:
    """Refuse a step at which something leaves a part, in powers, of the range of the parameters."""
    dtype = smallest_dtype(group)
    if log > part * math.log(torch.finfo(dtype).max):
        raise ExplrError(
            f"the {what} of step {step} is exp({log:.6g}), beyond the range of {dtype}. Use ExpLR(..., model=model, "
            "renormalize=True), which keeps it bounded, train in a wider dtype, or stop before this step."
        )


def _check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    for index, group in enumerate(optimizer.param_groups):
        family_of(optimizer, group)
        check_group(index, group)
    if _has_explr(optimizer):
        raise ExplrError("this optimizer already has an ExpLR, which took its weight decay: build a new optimizer.")
