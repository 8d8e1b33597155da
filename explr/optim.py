"""ExpLR: weight decay turned into a growing learning rate, as a torch learning-rate scheduler.

It applies the recursions of :mod:`explr.recursions` online: a step needs only the present hyper-parameters and a few numbers of
the past, so any torch scheduler can be wrapped, whether or not its future is known. Given the model, it also takes the eps and
the running statistics of normalisation layers along, and keeps weights and rates within range, by :mod:`explr.symmetry`.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from explr.checks import FloatArray, short, whole
from explr.errors import ExplrError
from explr.groups import (
    Group,
    check_group,
    check_loaded,
    check_ranges,
    converts,
    copy_of,
    family_of,
    memory_of,
    own_rates,
    read,
    smallest_dtype,
    split,
    trains,
    write,
)
from explr.invariance.tables import few
from explr.recursions import Family, no_twin
from explr.states import check_state, load_wrapped
from explr.symmetry import Norms, exact_exp, scale_weights
from explr.watching import (
    MARK,
    Watch,
    check_even,
    check_untouched,
    grown_under_another,
    has_explr,
    have_gradients,
    makes_state,
    note_growth,
)

_STATE = (
    *("last_epoch", "_step_count", "_last_lr", "families", "converted", "believed", "memory", "after", "shares", "log_scale"),
    *("rounding", "log_lr", "exponents", "rates", "in_use", "updates", "dry", "calls", "prepared", "written"),
    *("_updates_since_call", "_train"),
)


class ExpLR(LRScheduler):
    r"""Replace weight decay by its exact effect on the learning rate (Li & Arora 2020, Theorem 1, for any schedule).

    Takes the weight decay out of the optimizer's parameter groups and, at every ``optimizer.step()``, sets the hyper-parameters
    with which the same optimizer without weight decay computes the same functions, provided that the loss is scale-invariant in
    the parameters of the group. The weights themselves grow, by ``exp(log_scale)``. With heavy-ball momentum only the learning
    rate changes; with Nesterov momentum momentum and dampening do as well, with AdamW betas and eps (:mod:`explr.recursions`).

    Call :meth:`step` exactly where the wrapped scheduler's own was called, after every update or once an epoch: it moves the
    wrapped schedule, and nothing else. The growth itself goes with the updates that the optimizer takes, so gradient
    accumulation, an update that a GradScaler skipped, and wrappers of other libraries need nothing special. Within an update
    the parameters of a group have gradients all or none: those without torch would neither move nor decay. One optimizer has
    all parameters of a model, and a checkpoint is three states, of model, optimizer and ExpLR: each alone is of another run.

    What to write instead, loop by loop (chapter 10 of the book has the table):

    - per epoch, per step, closures, accumulation, GradScaler, DDP, Accelerate, Lightning: nothing.
    - Clipping by norm: ``scheduler.clip_grad_norm_(1.0)`` for ``clip_grad_norm_(parameters, 1.0)``.
    - EMA, SWA, export, fine-tuning: ``explr.unscale(model, scheduler)`` for ``model``.
    - ReduceLROnPlateau: ``scheduler.step(metric)``; in Lightning with ``"reduce_on_plateau": True``.
    - Hugging Face Trainer: ``optimizers=(optimizer, scheduler)``, and ``max_grad_norm=0``: it clips by default.
    - timm's schedulers: ``scheduler.step(epoch)`` and ``scheduler.step_update(updates)``, as before.
    - Parts that train at times, or are frozen later: a parameter group for each.
    - SyncBatchNorm, and whatever else replaces a norm: convert the model before ExpLR is built.
    - FSDP (``fully_shard``): ``report.largest_part(names)`` before it, and groups marked by these names, without ``model``.
    - A script's old checkpoint: load it before ExpLR is built; one of ExpLR after.

    Args:
        optimizer: a :class:`torch.optim.SGD`, with or without Nesterov momentum or dampening, or a :class:`torch.optim.AdamW`
            (or Adam with ``decoupled_weight_decay=True``), new or under way. A group whose ``weight_decay`` is 0 keeps the rate
            of the schedule; so does one marked ``scale_invariant=False``, which keeps its weight decay too. A CUDA graph of
            ``optimizer.step()`` would freeze what changes at every step, and is refused.
        scheduler: any torch scheduler of the same optimizer, or one of timm; it goes on believing in the original
            hyper-parameters and groups, and may move any of them. Without one they are constant.
        model: the network, in training mode. :func:`~explr.invariance.analysis.scale_invariance` finds the weights in which it
            is scale-invariant; the others are moved to groups of their own, which keep weight decay and the schedule's rate. A
            line to the logger ``explr`` says which (``summary``). The loss must depend on the weights that convert through what
            the model returns; those on which this does not depend, such as a temperature that the loss reads, do not convert.
            Eps and running statistics of the norms are scaled with the weights, so that the equivalence is exact at any eps and
            in eval mode too. Without a model scale invariance is taken on trust, with a warning for groups that are not marked
            ``scale_invariant=True``, and the equivalence is as good as eps is negligible. (The eps changes at every step, so a
            model under torch.compile would be compiled again and again: leave it out there.)
        renormalize: with ``model``, keep the weights within a factor of two of their size under weight decay, by powers of
            two: not a bit of the functions changes, and the run never overflows. Default: if there is a model.
        example_inputs: what the model is called with in training, flags included, as a tuple or, by name, a dictionary. May be
            left out for a network that begins with a convolution or a linear layer and takes images of 32x32 pixels, or
            vectors.
        steps_per_epoch: for a wrapped scheduler that counts epochs in a loop that calls :meth:`step` after every update: move
            it at every so many calls. Without a scheduler it is refused.

    Attributes:
        believed: the hyper-parameters of the run with weight decay at the coming step, one dictionary per parameter group.
        in_use: what ExpLR has set instead, less the learning rate (``get_last_lr()``).
        log_lr: natural log of η̃_t, the learning rate of the theorem, one per parameter group.
        log_scale: natural log of P_t, by which the weights of the theorem exceed those of the run with weight decay.
        exponents: the weights of the theorem are 2**exponent times those that the model holds, and the learning rate that the
            optimizer uses is η̃_t / 4**exponent (AdamW: / 2**exponent); all 0 without ``renormalize``.
        summary: what converts and what does not, in a line, or that nothing does; "" where all that decays converts.

    Raises:
        ExplrError: for an optimizer or a step that has no exact counterpart; before a learning rate, the variance of
            activations or, with AdamW, the square of the weights' growth leaves the range of the parameters' dtype; when some
            parameters of a group had no gradient; after somebody else has set what ExpLR sets, replaced a norm that it scales,
            or scaled the weights.

    >>> weights = torch.nn.Parameter(torch.ones(3))
    >>> group = {"params": [weights], "scale_invariant": True}
    >>> optimizer = torch.optim.SGD([group], lr=0.1, momentum=0.9, weight_decay=5e-4)
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
    after: list[list[float]]
    shares: list[float]
    summary = ""
    _had_gradients: list[list[bool]]  # before the update
    _broken = ""  # why no update can be right any more
    _rests = False  # whether the present update only makes the optimizer's state

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        scheduler: Any = None,
        *,
        model: torch.nn.Module | None = None,
        renormalize: bool | None = None,
        example_inputs: Sequence[Any] | Mapping[str, Any] | None = None,
        steps_per_epoch: int | None = None,
    ) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer) or hasattr(optimizer, "optimizer"):
            raise ExplrError(
                f"optimizer={type(optimizer).__name__} must be a torch.optim.Optimizer itself, before it is wrapped."
            )
        _check_optimizer(optimizer)
        _check_wrapped(scheduler, optimizer)
        if renormalize and model is None:
            raise ExplrError("renormalize=True needs model=: its running statistics must be rescaled with the weights.")
        if example_inputs is not None and model is None:
            raise ExplrError("example_inputs= needs model=: they are what the network is called with.")
        self.steps_per_epoch = None if steps_per_epoch is None else whole("steps_per_epoch", steps_per_epoch)
        if self.steps_per_epoch is not None and scheduler is None:
            raise ExplrError(
                f"steps_per_epoch={self.steps_per_epoch} is for a scheduler that counts epochs, and none is wrapped: give one, "
                "ExpLR(optimizer, scheduler, ...), or leave steps_per_epoch out."
            )
        self.optimizer = optimizer
        self.scheduler = scheduler
        self._owner = object()  # of what grows here; a copy has another one, a preview has not
        self.renormalize = model is not None if renormalize is None else renormalize
        self.norms = None if model is None else Norms(model, example_inputs)
        before = [(group, dict(group)) for group in optimizer.param_groups]
        try:
            self._build()
            if self.norms is None:
                _warn_of_trust(optimizer.param_groups, self.converted)
        except Exception:
            optimizer.param_groups[len(before) :] = []
            for group, items in before:
                group.clear()
                group.update(items)
            raise
        self._watch()
        super().__init__(optimizer)
        if not (self.summary or any(self.converted) or self._lacks_state):
            self.summary = _NOTHING
        if self.summary:
            logging.getLogger("explr").warning(self.summary)

    def _build(self) -> None:
        """Sort the groups, take their weight decay, and prepare the first step."""
        groups = self.optimizer.param_groups
        own_rates(groups)
        self._original_groups = [copy_of(group) for group in groups]  # what the wrapped scheduler goes on seeing
        self._origins = list(range(len(groups)))  # of each group, the original that it is a part of
        if self.norms is not None:
            self._set_apart(self.norms)
        families = [family_of(self.optimizer, group) for group in groups]
        self.families = [type(family).__name__ for family in families]
        self.converted = [converts(group) and float(group["weight_decay"]) > 0.0 for group in groups]
        self._train = [[trains(p) for p in group["params"]] for group in groups]  # now, whatever is frozen later
        self.believed = self._read_believed()
        self.memory = [
            list(memory_of(self.optimizer, index, groups[index], family) if converted else family.start())
            for index, (family, converted) in enumerate(zip(families, self.converted, strict=True))
        ]
        self.log_scale = [0.0] * len(groups)
        self.rounding = [0.0] * len(groups)  # what log_scale, a long sum, has lost so far (Kahan)
        self.exponents = [0] * len(groups)
        self.updates = 0  # steps that the optimizer has taken, from which log_scale comes
        self.dry = False  # whether none of them had a gradient
        self.calls = 0  # of step(), since the wrapped scheduler moved
        self._updates_since_call = 0
        # The decay of a loaded optimizer may have been taken already, and how much the weights have grown is not known then.
        self._lacks_state = any(MARK in group for group in groups)
        if self.norms is not None:
            self.norms.choose(self.scaled_parameters())
            self._check_joint(self.norms)
        self._prepare()
        if self.scheduler is None:
            for family, settings, converted in zip(families, self.believed, self.converted, strict=True):
                if converted:
                    _check_constant(family, settings)

    def _set_apart(self, norms: Norms) -> None:
        """Move the parameters in which the model is not scale-invariant to groups that keep their weight decay."""
        groups = self.optimizer.param_groups
        decaying = [group for group in groups if converts(group) and float(group["weight_decay"]) > 0.0]
        norms.check_own(filter(trains, group["params"]) for group in decaying)
        alike: dict[tuple[float, ...], list[int]] = {}  # groups that may be scaled together
        for index, group in enumerate(groups):
            if "scale_invariant" not in group and float(group["weight_decay"]) > 0.0:
                settings = read(group, family_of(self.optimizer, group).reads)
                base = float(group.get("initial_lr", settings["lr"]))  # a warm-up may begin at 0 for all
                alike.setdefault((base, *settings.values()), []).append(index)
        members = {
            settings: [p for i in indices for p in groups[i]["params"] if trains(p)] for settings, indices in alike.items()
        }
        decayed = [p for part in members.values() for p in part]
        unused = {id(norms.parameters[name]) for name in norms.report.unused}
        used = [p for p in decayed if id(p) not in unused]
        names = [name for part in members.values() for name in norms.report.largest_part(part)]
        if used and not names and not any(group.get("scale_invariant") for group in groups):
            norms.report.norm_degrees(norms.report.largest_part(used, statistics=False))  # which say why not
            norms.choose([used])
            raise ExplrError(_JOINT)
        chosen = {id(norms.parameters[name]) for name in names}
        for index in [index for indices in alike.values() for index in indices]:
            others = split(groups[index], chosen)
            if others is not None:
                groups.append(others)
                self._origins.append(index)
        rest = [name for name, p in norms.parameters.items() if id(p) in {*map(id, decayed)} - chosen]
        if rest:
            share = sum(norms.parameters[name].numel() for name in names) / sum(p.numel() for p in decayed)
            idle = [name for name in rest if name in norms.report.unused]
            kept = ([name for name in rest if name not in idle], ""), (idle, " (not used by what the model returns)")
            self.summary = (
                f"ExpLR: {len(names)} of {len(decayed)} tensors ({100 * share:.1f} % of the weights that decay) convert; "
                + "; ".join(f"{few(n)} {'keep their' if len(n) > 1 else 'keeps its'} weight decay{why}" for n, why in kept if n)
                + "."
            )

    @property
    def lrs(self) -> list[float]:
        """The learning rates that the wrapped scheduler believes in, one per parameter group; log these."""
        return [settings["lr"] for settings in self.believed]

    @property
    def gradient_scale(self) -> list[float]:
        """By how much gradients are now shorter than in the run with weight decay, one per parameter group.

        What has a fixed size must shrink with them: the threshold of a gradient clipping by value, or noise that is added.
        """
        return [exact_exp(-scale, -exponent) for scale, exponent in zip(self.log_scale, self.exponents, strict=True)]

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Move the wrapped schedule; call this where the wrapped scheduler's own ``step()`` was called.

        Args:
            args: for a wrapped ``ReduceLROnPlateau``, the value it watches, as for its own ``step``; for a scheduler of timm,
                what its ``step`` takes. None stands for nothing, as in torch's ``step(epoch=None)``.
            kwargs: likewise.

        Raises:
            ExplrError: if the step that the schedule asks for has no exponential counterpart or its rate leaves the dtype's
                range (the optimizer then keeps what it had, and refuses to take it), or if a metric is missing.
        """
        if self.last_epoch >= 0:  # else torch's constructor is calling: the first step is prepared already
            self._check_untouched()
            args = args if any(value is not None for value in args) else ()
            kwargs = {name: value for name, value in kwargs.items() if value is not None}
            self._check_arguments(args, kwargs)
            if self._is_due(given=bool(args or kwargs)):
                self._move("step", args, kwargs)
            self._updates_since_call = 0
            self._prepare()
        super().step()  # which counts the calls
        self._write_rates()

    def step_update(self, *args: Any, **kwargs: Any) -> None:
        """Move the wrapped schedule by an update, where it is one of timm's, whose ``step`` counts epochs."""
        if not hasattr(self.scheduler, "step_update"):
            raise ExplrError(f"step_update() is for schedulers of timm; the wrapped one is {self.scheduler!r}: call step().")
        self._check_untouched()
        self._move("step_update", args, kwargs)
        self._prepare()
        self._write_rates()

    def clip_grad_norm_(
        self, max_norm: float, norm_type: float | str = 2.0, error_if_nonfinite: bool = False, foreach: bool | None = None
    ) -> torch.Tensor:
        """Clip the gradients as ``torch.nn.utils.clip_grad_norm_`` would in the run with weight decay; call it in its place.

        There a gradient is ``1 / gradient_scale`` times as long, and it is that length which the threshold is meant for.

        Args:
            max_norm: the largest norm of all gradients of the optimizer together, as long as in the run with weight decay: the
                threshold of the script as it was.
            norm_type: which norm, such as ``math.inf`` or ``"inf"``.
            error_if_nonfinite: whether to raise, and clip nothing, when the norm is infinite or no number.
            foreach: taken because torch's function takes it; the result is the same.

        Returns:
            The norm before clipping, in the run with weight decay; a tensor of one number.

        Raises:
            ExplrError: for a norm that is not finite, with ``error_if_nonfinite=True``.

        >>> weights = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = torch.optim.SGD([{"params": [weights], "scale_invariant": True}], lr=0.1, weight_decay=5e-4)
        >>> scheduler = ExpLR(optimizer)
        >>> weights.grad = torch.tensor([3.0, 4.0])
        >>> scheduler.clip_grad_norm_(1.0), weights.grad
        (tensor(5.), tensor([0.6000, 0.8000]))
        """
        del foreach
        norm_type = float(norm_type)
        pairs = zip(self.optimizer.param_groups, self.gradient_scale, strict=True)
        scaled = [(p.grad, scale) for group, scale in pairs for p in group["params"] if p.grad is not None]
        norms = [torch.linalg.vector_norm(gradient, norm_type) / scale for gradient, scale in scaled]
        norms = [norm.to(norms[0].device) for norm in norms] or [torch.zeros(())]
        total = torch.linalg.vector_norm(torch.stack(norms), norm_type)
        if error_if_nonfinite and not torch.isfinite(total):
            raise ExplrError(
                f"the norm of order {norm_type:g} of the gradients is {float(total)}, so they cannot be clipped: leave out "
                "this update, or error_if_nonfinite=True."
            )
        factor = (max_norm / (total + 1e-6)).clamp(max=1.0)  # as torch has it
        for gradient, _ in scaled:
            gradient.mul_(factor.to(gradient.device))
        return total

    def preview(self, steps: int, *, updates_per_step: int = 1) -> list[FloatArray]:
        """Return the natural logs of the learning rates of the coming updates, without touching anything.

        A ``ReduceLROnPlateau`` is taken to find no plateau.

        Args:
            steps: how many updates of the optimizer to look ahead.
            updates_per_step: after how many updates the loop calls :meth:`step`.

        Returns:
            One array of shape ``(steps,)`` per parameter group, ``log_lr`` of each update, the first of them the coming one.

        >>> weights = torch.nn.Parameter(torch.ones(3))
        >>> group = {"params": [weights], "scale_invariant": True}
        >>> optimizer = torch.optim.SGD([group], lr=0.1, momentum=0.9, weight_decay=5e-4)
        >>> scheduler = ExpLR(optimizer, torch.optim.lr_scheduler.StepLR(optimizer, step_size=2))
        >>> scheduler.preview(3)[0].round(6)
        array([-2.302535, -2.30239 , -4.604867])
        """
        steps = whole("steps", steps, of="updates")
        updates_per_step = whole("updates_per_step", updates_per_step, of="updates")
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)  # which an update replaces and never alters in place
        other.norms = None
        other.dry = True  # nothing moves but the schedule
        other.optimizer = copy.copy(self.optimizer)  # without hooks
        other.optimizer.param_groups = [copy_of(group) for group in self.optimizer.param_groups]
        other._original_groups = [copy_of(group) for group in self._original_groups]
        other.scheduler = copy.deepcopy(self.scheduler, {id(self.optimizer): other.optimizer})
        moves = not isinstance(self.scheduler, ReduceLROnPlateau)
        logs = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch misses the calls of optimizer.step()
            for update in range(steps):
                other._prepare()
                logs.append(other.log_lr)
                other._commit([True] * len(self.families))
                if moves and (self._updates_since_call + update + 1) % updates_per_step == 0 and other._is_due():
                    try:
                        other._move("step", (), {})
                    except Exception as error:  # of somebody else's scheduler, which may need more or be at its end
                        name = type(self.scheduler).__name__
                        raise ExplrError(f"{name} cannot be looked ahead at {steps} updates: {error}") from error
        return list(np.array(logs).T)

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return the rate of the coming step for each group; as in torch, for :meth:`step` to call, not for users."""
        return list(self.rates)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of this scheduler and of the wrapped one, as plain numbers."""
        state = {name: getattr(self, name) for name in _STATE}
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
            ExplrError: if the state is not an ExpLR's, is of other parameter groups, of another kind of wrapped scheduler, of
                a model with other norms or in which other parameters trained, or of a run with a model while this one has none.
        """
        state = check_state(state_dict, self.state_dict())
        wrapped, eps = state.pop("scheduler"), state.pop("eps")
        try:
            if self.norms is not None:
                self.norms.choose(self._scaled(state["converted"], state["_train"]))
            if self.scheduler is not None:
                load_wrapped(self.scheduler, wrapped[1])
        except ExplrError:
            if self.norms is not None:
                self.norms.choose(self.scaled_parameters())
            raise
        self.__dict__.update(state)  # what an update changes it replaces, and never alters in place
        self._lacks_state = False
        self._broken = ""
        for origin, settings in zip(self._origins, self.believed, strict=True):
            write(self._original_groups[origin], settings)
        if self.norms is not None:
            self.norms.eps.update(eps or {})
        for parameters in self.scaled_parameters():
            note_growth(parameters, self._owner)
        # Building a scheduler overwrites what the optimizer had loaded before: learning rates, and the momentum of a cycle.
        self._write()
        self._write_rates()
        self._scale_eps()

    def _check_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse what the wrapped scheduler would not know what to do with."""
        if isinstance(self.scheduler, ReduceLROnPlateau) and not (args or kwargs):
            raise ExplrError(
                "step() lacks the metric that the wrapped ReduceLROnPlateau watches: call step(metric), once for each new "
                'value; for Lightning, put "reduce_on_plateau": True beside the scheduler.'
            )
        if (args or kwargs) and self.scheduler is None:
            shown = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())])
            raise ExplrError(
                f"step({shown}): there is no wrapped scheduler, such as ReduceLROnPlateau, to take it; call step()."
            )

    def _is_due(self, *, given: bool = False) -> bool:
        """Tell whether a call of :meth:`step`, which may be given a metric or an epoch, moves the wrapped scheduler."""
        if self.steps_per_epoch is None or given:
            return self.scheduler is not None
        if self._updates_since_call > 1:
            raise ExplrError(
                f"steps_per_epoch={self.steps_per_epoch} is for a loop that calls step() after every update, but there were "
                f"{self._updates_since_call} since the last call: leave it out where step() is called once an epoch."
            )
        self.calls += 1
        return self.calls % self.steps_per_epoch == 0

    def _move(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Let the wrapped scheduler act on the groups and hyper-parameters that it believes in."""
        self.prepared = False
        groups = self.optimizer.param_groups
        self.optimizer.param_groups = self._original_groups
        try:
            getattr(self.scheduler, method)(*args, **kwargs)
        finally:
            self.optimizer.param_groups = groups
        if len(self._original_groups) != max(self._origins) + 1:
            raise ExplrError(
                f"{type(self.scheduler).__name__} has added a parameter group: add every group before building ExpLR."
            )
        self._check_untouched()  # by a scheduler that keeps hold of the groups themselves

    def _read_believed(self) -> list[dict[str, float]]:
        originals = [self._original_groups[origin] for origin in self._origins]
        return [read(group, family_of(self.optimizer, group).reads) for group in originals]

    def _prepare(self) -> None:
        """Set the hyper-parameters of the coming step, but for its rate. Raises before anything has changed."""
        believed = self._read_believed()
        rows = [self._twin(index, settings) for index, settings in enumerate(believed)]
        if self.norms is not None:
            for indices in self.norms.joint:
                shares = {(self.log_scale[i], rows[i]["shares"]) for i in indices if self.converted[i]}
                if len(shares) > 1:
                    raise ExplrError(f"at step {self.updates} {_JOINT}")
            if not self.renormalize:
                self._check_activations(self.norms.log_growth(self.log_scale), self.optimizer.param_groups)
        self.believed = believed
        for name in rows[0]:
            setattr(self, name, [row[name] for row in rows])
        self.prepared = True  # the optimizer has what belongs to the coming update
        self.written = self.updates  # the update for which it was set last
        self._write()

    def _twin(self, index: int, settings: dict[str, float]) -> dict[str, Any]:
        """Return what the twin of a group's coming step needs."""
        group, lr, step = self.optimizer.param_groups[index], settings["lr"], self.updates
        check_ranges(index, settings, step)
        memory, scale, exponent = self.memory[index], self.log_scale[index], self.exponents[index]
        log_lr = math.log(lr) if lr else -math.inf
        largest = math.log(torch.finfo(smallest_dtype(group)).max)
        if not self.converted[index]:
            _check_overflow("learning rate", log_lr, largest, group, step)
            kept = {name: value for name, value in settings.items() if name != "lr"}
            return {"after": memory, "shares": 0.0, "log_lr": log_lr, "rates": lr, "in_use": kept}
        momentum, before = settings.get("momentum", 0.0), self.believed[index].get("momentum", 0.0)
        if (momentum > 0.0) != (before > 0.0):
            raise ExplrError(
                f"momentum={momentum} at step {step} after {before}: torch's SGD does not touch its momentum buffer at "
                "momentum 0, so the switch has no exact counterpart. Use a small positive momentum, such as 1e-9."
            )
        family = family_of(self.optimizer, group)
        share, after = family.advance(tuple(memory), *settings.values())
        if not share < 1.0:
            raise no_twin(family, share, tuple(settings.values()), step)
        twin = {name: float(value) for name, value in family.settings(memory, after, *settings.values()).items()}
        power = family.lr_power
        log_growth = power * scale - math.log1p(-share) + twin.pop("log_factor")
        _check_overflow("learning rate", log_lr + log_growth - power * exponent * math.log(2), largest, group, step)
        if not self.renormalize:
            if power == 1:  # its rate outlives squares: of activations, and of gradients, which shrink as the weights grow
                _check_overflow("growth of the weights", scale, 0.25 * largest, group, step)
            self._check_activations(scale, [group])
        whole = math.floor(log_growth / math.log(2))  # the rate may be in range where its growth is not
        if "log_eps_factor" in twin:
            twin["eps"] = settings["eps"] * exact_exp(twin.pop("log_eps_factor") - scale, -exponent)
        return {
            "after": list(after),
            "shares": share,
            "log_lr": log_lr + log_growth,
            "rates": math.ldexp(lr * exact_exp(log_growth, whole), whole - power * exponent),
            "in_use": {"weight_decay": 0.0, **twin},
        }

    def _check_activations(self, log_growth: float, groups: Sequence[Group]) -> None:
        """Refuse a step at which variances of activations, at first 2^14 at most, would leave the range: training would die."""
        for group in groups:
            room = 0.5 * math.log(torch.finfo(smallest_dtype(group)).max) - 7 * math.log(2)
            _check_overflow("activations' growth", log_growth, room, group, self.updates)

    def _commit(self, moved: list[bool]) -> None:
        """Take note of an update in which these groups moved, and let the model follow."""
        scales, exponents = self.log_scale, self.exponents
        self.log_scale, self.rounding, self.memory = list(scales), list(self.rounding), list(self.memory)
        for index in range(len(moved)):
            if moved[index]:
                term = -math.log1p(-self.shares[index]) - self.rounding[index]
                self.log_scale[index] += term
                self.rounding[index] = (self.log_scale[index] - scales[index]) - term
                self.memory[index] = self.after[index]
        if self.renormalize:
            self.exponents = [round(scale / math.log(2)) for scale in self.log_scale]
        self.updates += 1
        self.prepared = False
        if not self.dry:
            for parameters, has in zip(self.scaled_parameters(), moved, strict=True):
                if has:
                    note_growth(parameters, self._owner)
            self._scale_model(scales, exponents)

    def _write(self) -> None:
        for group, settings, converted in zip(self.optimizer.param_groups, self.in_use, self.converted, strict=True):
            write(group, {**settings, **({MARK: self.written} if converted else {})})

    def _write_rates(self) -> None:
        pairs = list(zip(self.optimizer.param_groups, self.rates, strict=True))
        for group, rate in pairs:
            write(group, {"lr": rate})
        self._last_lr = [_rounded(rate, group["lr"]) for group, rate in pairs]

    def scaled_parameters(self) -> list[list[torch.Tensor]]:
        """Return the parameters that are scaled, by group."""
        return self._scaled(self.converted, self._train)

    def _scaled(self, converted: list[bool], trained: list[list[bool]]) -> list[list[torch.Tensor]]:
        triples = zip(self.optimizer.param_groups, trained, converted, strict=True)
        return [[p for p, train in zip(g["params"], flags, strict=True) if train and c] for g, flags, c in triples]

    def _check_joint(self, norms: Norms) -> None:
        """Refuse groups that decay differently though the network is invariant only when they are scaled alike."""
        for indices in norms.joint:
            if len({tuple(self.believed[i].values()) for i in indices if self.converted[i]}) > 1:
                raise ExplrError(_JOINT)

    def _check_untouched(self) -> None:
        """Refuse to go on when somebody has changed what this scheduler sets."""
        if self._broken:
            raise ExplrError(f"no update can be right any more, since an earlier one was not: {self._broken}")
        if self._lacks_state:
            raise ExplrError(
                "the optimizer's state is of a run under ExpLR, which took its weight decay: load ExpLR's state too, "
                "scheduler.load_state_dict(...)."
            )
        if self.grown_under_another():
            raise ExplrError(_GROWN_MODEL if self.norms is not None else _GROWN_WEIGHTS)
        if self.norms is not None:
            self.norms.check_in_place()
        groups = self.optimizer.param_groups
        if len(groups) != len(self.families):
            raise ExplrError(
                f"the optimizer has {len(groups)} parameter groups, ExpLR was built for {len(self.families)}: "
                "add every group before building ExpLR."
            )
        for index, (family, lr, others) in enumerate(zip(self.families, self._last_lr, self.in_use, strict=True)):
            update = self.written if self.converted[index] else None
            memory = self.memory[index] if self.converted[index] and not self.dry else None
            check_untouched(self.optimizer, index, family, {"lr": float(lr), **others}, update, memory)

    def grown_under_another(self) -> bool:
        """Tell whether another ExpLR has scaled weights that train here, perhaps in another network; what is frozen may be."""
        in_groups = (p for group in self.optimizer.param_groups for p in group["params"])
        return grown_under_another(filter(trains, self.norms.parameters.values() if self.norms else in_groups), self._owner)

    def _scale_model(self, scales: list[float], exponents: list[int]) -> None:
        """Let the model follow from the log scales and exponents before the last update to those after it."""
        if self.norms is None:
            return
        self.norms.scale_statistics([math.exp(new - old) for new, old in zip(self.log_scale, scales, strict=True)])
        if self.exponents != exponents:
            factors = [2.0 ** (old - new) for new, old in zip(self.exponents, exponents, strict=True)]
            for parameters, factor in zip(self.scaled_parameters(), factors, strict=True):
                scale_weights(self.optimizer, parameters, factor)
            self.norms.scale_statistics(factors)
        self._scale_eps()

    def _scale_eps(self) -> None:
        if self.norms is not None:
            self.norms.scale_eps([exact_exp(s, e) for s, e in zip(self.log_scale, self.exponents, strict=True)])

    def _watch(self) -> None:
        self.optimizer.register_step_pre_hook(Watch(self, "_before_update"))
        self.optimizer.register_step_post_hook(Watch(self, "_after_update"))
        self.optimizer.register_load_state_dict_pre_hook(check_loaded)

    def _before_update(self) -> None:
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            raise ExplrError("a CUDA graph of optimizer.step() would freeze what ExpLR sets at every step: capture less.")
        if not self.updates and any(self._last_lr) and makes_state(self.optimizer):
            self._rest()
            return
        if not any(isinstance(group["lr"], torch.Tensor) and group["lr"].is_cuda for group in self.optimizer.param_groups):
            self._check_untouched()  # else to look would make the host wait; step() looks then
        self._had_gradients = have_gradients(self.optimizer)
        self._check_even()
        if self.dry and any(map(any, self._had_gradients)):
            self._start_again()
        if not self.prepared:
            self._prepare()
            self._write_rates()

    def _rest(self) -> None:
        """Take note of an update that only makes the optimizer's state: without ExpLR weight decay enters the buffers in it."""
        self._check_even()
        groups = self._original_groups
        self._original_groups = [copy_of(group, lr=0.0) for group in groups]
        try:
            self._prepare()
        finally:
            self._original_groups = groups
        self._commit([any(have) for have in have_gradients(self.optimizer)])
        self._prepare()
        self.prepared = False  # the rates come with the next update: who set them to 0 puts back what was there
        self._rests = True

    def _start_again(self) -> None:
        """Forget updates without any gradient, in which nothing has moved but the schedule."""
        self.memory = [list(family_of(self.optimizer, group).start()) for group in self.optimizer.param_groups]
        self.log_scale, self.rounding = ([0.0] * len(self.families) for _ in range(2))
        self.exponents = [0] * len(self.families)
        self.updates, self.dry, self.prepared, self._updates_since_call = 0, False, False, 0

    def _after_update(self) -> None:
        if self._rests:
            self._rests = False
            return
        found_inf = getattr(self.optimizer, "found_inf", None)  # a GradScaler gives it to a fused optimizer, which then skips
        if found_inf is None or not float(found_inf):
            try:
                moved = self._moved()
            except ExplrError as error:
                self._broken = str(error)
                raise
            self._commit(moved)
        self._updates_since_call += 1

    def _check_even(self) -> None:
        expected = {index: trained for index, trained in enumerate(self._train) if self.converted[index]}
        check_even(self.optimizer, expected, {} if self.norms is None else self.norms.parameters, self.updates)

    def _moved(self) -> list[bool]:
        """Return which groups the optimizer has moved: those with gradients, or all in a loop that has none at all."""
        self._check_even()
        have = have_gradients(self.optimizer)  # a closure makes them within the update, a hook may take them away
        moved = [any(before) or any(after) for before, after in zip(self._had_gradients, have, strict=True)]
        if not any(moved):
            if self.norms is not None:
                self.norms.check_present(p for parameters in self.scaled_parameters() for p in parameters)
            self.dry = self.dry or not (self.updates or self.optimizer.state)
            return [self.dry] * len(moved)
        if self.dry:
            raise ExplrError(
                f"the {self.updates} updates before this one, which has a closure, had no gradient at all, as in a loop "
                "that only looks at rates (ExpLR.preview does), and ExpLR has let its rate grow: build model, optimizer and "
                "ExpLR anew."
            )
        return moved


_NOTHING = (
    "ExpLR: nothing converts: no parameter group has weight decay (those marked scale_invariant=False keep theirs). Set "
    "weight_decay in the optimizer, as in the run to convert, before ExpLR is built."
)

_GROWN_MODEL = (
    "the model has grown under another ExpLR, whose eps and statistics it has. To go on, load the state of that one; for a new "
    "run train a copy at its usual size, explr.unscale(model, scheduler) with the ExpLR that it has grown under. One optimizer "
    "must have all parameters of a model."
)

_GROWN_WEIGHTS = (
    "parameters of the optimizer have grown under another ExpLR. To go on, load the state of that one; for a new run make new "
    "parameters, of the usual size: these times its gradient_scale, group by group."
)

_JOINT = (
    "the parameter groups have different lr, weight_decay or momentum, or one of them had no gradient, but the model is "
    "scale-invariant only when they are scaled together: give all groups with weight decay the same, or make them one group."
)


def _rounded(rate: float, kept: float | torch.Tensor) -> float:
    """Return a rate as the optimizer keeps it."""
    return float(torch.tensor(rate, dtype=kept.dtype)) if isinstance(kept, torch.Tensor) else rate


def _check_overflow(what: str, log: float, most: float, group: Group, step: int) -> None:
    """Refuse a step at which something would leave the range of the parameters, or what is left of it for its powers."""
    if log > most:
        raise ExplrError(
            f"the {what} of step {step} is exp({log:.6g}); in {smallest_dtype(group)} it may be exp({most:.6g}). Use "
            "ExpLR(..., model=model, renormalize=True), which bounds it, train in a wider dtype, or stop before this step."
        )


def _check_wrapped(scheduler: Any, optimizer: torch.optim.Optimizer) -> None:
    if scheduler is None:
        return
    methods = ("step", "state_dict", "load_state_dict")
    if isinstance(scheduler, type) or not all(callable(getattr(scheduler, name, None)) for name in methods):
        raise ExplrError(
            f"scheduler={short(scheduler)} is not a learning-rate scheduler: give the network as model=, wrap a function in "
            "LambdaLR, and several schedulers in SequentialLR or ChainedScheduler."
        )
    if getattr(scheduler, "optimizer", None) is not optimizer:
        raise ExplrError("the scheduler to wrap belongs to another optimizer: build both on the same one.")


def _check_constant(family: Family, settings: dict[str, float]) -> None:
    """Refuse a rate that converts now, but not for ever."""
    lr, weight_decay = settings["lr"], settings["weight_decay"]
    bound = family.bound(*settings.values())
    if lr * weight_decay > bound * (1.0 + 1e-12):
        raise ExplrError(
            f"lr={lr:.6g} with weight_decay={weight_decay:.6g} converts for some steps only, if it stays constant: lr * "
            f"weight_decay must not exceed {bound:.6g}. Lower one of them, or wrap the scheduler that lowers lr in time."
        )


def _warn_of_trust(groups: list[Group], converted: list[bool]) -> None:
    trusted = [i for i, group in enumerate(groups) if converted[i] and not group.get("scale_invariant")]
    if trusted:
        warnings.warn(
            f"ExpLR has no model to look at, and takes it that the loss is scale-invariant in parameter group"
            f"{'s' if len(trusted) > 1 else ''} {', '.join(map(str, trusted))}; a trained head or scale is not. Give "
            "model=..., or mark every group: scale_invariant=True, or False for a trained head or scale.",
            stacklevel=3,
        )


def _check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    for index, group in enumerate(optimizer.param_groups):
        family_of(optimizer, group)
        check_group(index, group)
    if has_explr(optimizer):
        raise ExplrError("this optimizer already has an ExpLR, which took its weight decay: build a new optimizer.")
