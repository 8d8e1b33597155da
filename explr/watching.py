"""What goes on around an optimizer under ExpLR: its updates, and what others leave out or change between them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch

from explr.errors import ExplrError
from explr.groups import buffers_are_there, check_group, family_of, read
from explr.invariance.tables import few

MARK = "explr_update"  # in a group: the update for which ExpLR has set it
_GROWN: dict[int, tuple[weakref.ref[torch.Tensor], object]] = {}  # parameters, by id, and who has scaled them


class Watch:
    """A hook of an optimizer that does not keep its scheduler alive, nor the optimizer through it."""

    def __init__(self, scheduler: Any, method: str) -> None:
        self.scheduler = weakref.ref(scheduler)
        self.method = method

    def __call__(self, *_: Any) -> None:
        """Call the method of the scheduler."""
        scheduler = self.scheduler()
        if scheduler is None:
            raise ExplrError(
                "the ExpLR of this optimizer, which took its weight decay, is gone: keep it as long as the optimizer trains."
            )
        getattr(scheduler, self.method)()


def note_growth(parameters: Iterable[torch.Tensor], owner: object) -> None:
    """Remember who has scaled parameters, for as long as they live, in whatever network."""
    for parameter in parameters:
        key = id(parameter)
        _GROWN[key] = weakref.ref(parameter, partial(_forget, key)), owner


def _forget(key: int, _: Any) -> None:
    _GROWN.pop(key, None)


def grown_under_another(parameters: Iterable[torch.Tensor], owner: object) -> bool:
    """Tell whether somebody else has scaled some of these parameters."""
    found = (_GROWN.get(id(parameter)) for parameter in parameters)
    return any(known is not None and known[1] is not owner for known in found)


def has_explr(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether an optimizer is under an ExpLR."""
    return any(isinstance(hook, Watch) for hook in optimizer._optimizer_step_pre_hooks.values())


def have_gradients(optimizer: torch.optim.Optimizer) -> list[list[bool]]:
    """Tell of each parameter, by groups, whether it has a gradient."""
    return [[p.grad is not None for p in group["params"]] for group in optimizer.param_groups]


def makes_state(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether an update, before which there is no state, is one of torch.distributed.checkpoint, only made to have it.

    Its rates are 0 and its gradients are zeros.
    """
    groups = optimizer.param_groups
    if optimizer.state or any(float(group["lr"]) for group in groups):
        return False
    gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
    return bool(gradients) and not any(bool(gradient.any()) for gradient in gradients)


def check_even(
    optimizer: torch.optim.Optimizer, expected: Mapping[int, list[bool]], names: Mapping[str, torch.Tensor], update: int
) -> None:
    """Refuse gradients for a part of a group.

    Args:
        optimizer: which is about to take them, or has.
        expected: which parameters of a group have gradients if any has, for groups by their index.
        names: parameters by their names in the model.
        update: its number, for the message.
    """
    have = have_gradients(optimizer)
    for index, trained in expected.items():
        if any(have[index]) and have[index] != trained:
            raise ExplrError(
                f"in update {update} of parameter group {index} "
                f"{_what_is_uneven(optimizer.param_groups[index]['params'], have[index], trained, names)}: torch then leaves "
                "out its weight decay as well, and no one factor of the group's weights is right any more. "
                f"{'Go back to a checkpoint from before; let' if update else 'Let'} the parameters of a group train all or "
                "none (what is frozen, or unused at times, belongs into a group of its own), or give each a gradient, of zeros "
                "where it has none (p.grad = torch.zeros_like(p)), and call zero_grad(set_to_none=False)."
            )


def _what_is_uneven(
    parameters: list[torch.Tensor], found: list[bool], trained: list[bool], names: Mapping[str, torch.Tensor]
) -> str:
    """Say which parameters of a group have no gradient, or one that they had not when ExpLR was built."""
    named = {id(p): name for name, p in names.items()}
    kinds: dict[bool, list[str]] = {True: [], False: []}
    for position, p in enumerate(parameters):
        if found[position] != trained[position]:
            kinds[found[position]].append(named.get(id(p), f"parameter {position} of shape {tuple(p.shape)}"))
    return f"{few(kinds[False])} had no gradient" if kinds[False] else f"{few(kinds[True])} did not train at first"


def check_untouched(
    optimizer: torch.optim.Optimizer,
    index: int,
    family: str,
    settings: Mapping[str, float],
    update: int | None,
    memory: list[float] | None,
) -> None:
    """Refuse to go on with a parameter group that is not as ExpLR left it.

    Args:
        optimizer: which has the group.
        index: of the group.
        family: the name of its family, which is to be the same.
        settings: the hyper-parameters that were set.
        update: for which they were set; None for a group that does not convert, which may have weight decay.
        memory: what the recursion remembers of the optimizer's buffers; None where it counts on nothing.
    """
    group = optimizer.param_groups[index]
    check_group(index, group)
    present = family_of(optimizer, group)
    if type(present).__name__ != family:
        raise ExplrError(f"parameter group {index} has nesterov={group['nesterov']} now: build a new optimizer for it.")
    found = read(group, tuple(settings))
    if update is not None and found["weight_decay"]:
        raise ExplrError(
            f"parameter group {index} has weight_decay={found['weight_decay']} again, after ExpLR took it: "
            "after optimizer.load_state_dict load ExpLR's state too, or build ExpLR once it is loaded. If your loop sets it, "
            "let the step() of an object do so that ExpLR wraps, ExpLR(optimizer, object)."
        )
    if update is not None and group.get(MARK) != update:
        raise ExplrError(
            f"the optimizer was loaded with the state of update {group.get(MARK)}, ExpLR is at {update}: "
            "load ExpLR's state too, scheduler.load_state_dict(...)."
        )
    if memory is not None and tuple(memory) != present.start() and not buffers_are_there(optimizer, group, present):
        raise ExplrError(
            f"what the optimizer keeps of the gradients of parameter group {index} is gone, and ExpLR counts on the "
            "decay that it carries: load the optimizer's state with ExpLR's, and do not clear it."
        )
    for name, value in found.items():
        if value != settings[name]:
            raise ExplrError(
                f"the {'learning rate' if name == 'lr' else name} of parameter group {index} is {value:g}, not "
                f"{settings[name]:g} as ExpLR set it. A second scheduler, a finder of learning rates or a callback for weight "
                "averaging may have changed it: wrap the scheduler that did, ExpLR(optimizer, scheduler), and step only ExpLR."
                f"{_SET_BY_HAND * (name == 'lr')}"
            )


_SET_BY_HAND = (
    " If your loop sets it, give the function to LambdaLR: ExpLR(optimizer, LambdaLR(optimizer, f)), where f(step) is the "
    "factor of the first rate."
)
