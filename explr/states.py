"""The state of an ExpLR, which is plain numbers and the wrapped scheduler's own: whether one fits, before anything changes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from explr.checks import alike, short
from explr.errors import ExplrError
from explr.invariance.tables import few

_LATER = {"_train"}  # parts that the states of earlier versions do not have


def check_state(state: Any, own: dict[str, Any]) -> dict[str, Any]:
    """Return what an ExpLR takes of a state, once it is sure to fit.

    Args:
        state: what was given, by whomever.
        own: the present state of the ExpLR that is to take it.

    Raises:
        ExplrError: if the state is not an ExpLR's, is of other parameter groups, of another kind of wrapped scheduler, of a
            model with other norms or in which other parameters trained, or of a run with a model where there is none here, or
            if it is damaged.
    """
    if not isinstance(state, Mapping) or not own.keys() - _LATER <= state.keys():
        raise ExplrError(
            f"the state is {_whose(state)}, not an ExpLR's: load what ExpLR.state_dict() gave. A checkpoint of the script "
            "without ExpLR is loaded before ExpLR is built."
        )
    state = {name: state.get(name, own[name]) for name in own}
    families = state["families"]
    if isinstance(families, list) and families != own["families"]:
        raise ExplrError(
            f"the state is of {len(families)} parameter groups ({', '.join(map(str, families))}), the optimizer "
            f"has {len(own['families'])} ({', '.join(own['families'])}): build the optimizer as it was built for the state."
        )
    damaged = [name for name, value in state.items() if not _fits(name, value, own[name])]
    if damaged:
        raise ExplrError(f"the state is damaged at {', '.join(damaged)}: load another one. Nothing has changed.")
    sizes, ours = ([len(flags) for flags in each["_train"]] for each in (state, own))
    if sizes != ours:
        raise ExplrError(
            f"the state is of parameter groups of {sizes} tensors, the optimizer has {ours}: build the optimizer as it was "
            "built for the state."
        )
    eps, here = state["eps"], own["eps"]
    if eps is not None and here is None:
        raise ExplrError("the state is of a run with model=: build ExpLR with model= to go on with it.")
    if eps is not None and eps.keys() != here.keys():
        raise ExplrError(
            f"the state is of a model with other norms ({few(list(eps))}; here {few(list(here))}): build the "
            "model as it was built for the state."
        )
    for index, converted in enumerate(state["converted"] if here is not None else []):
        if converted and state["_train"][index] != own["_train"][index]:
            raise ExplrError(
                f"parameter group {index} has other parameters that train than it had when the ExpLR of the state was built: "
                "build ExpLR as it was built there, and freeze after that (requires_grad_(False)) what was frozen later."
            )
    theirs, ours = (wrapped and wrapped[0] for wrapped in (state["scheduler"], own["scheduler"]))
    if theirs != ours:
        raise ExplrError(f"the state is of the wrapped scheduler {theirs}, this ExpLR has {ours}: wrap the same kind.")
    return state


def _whose(state: Any) -> str:
    """Say what something is that is no state of an ExpLR."""
    if not isinstance(state, Mapping):
        return short(state)
    if "param_groups" in state:
        return "an optimizer's"
    return "another scheduler's" if "last_epoch" in state else f"of {few(list(map(str, state))) or 'nothing'}"


def _fits(name: str, value: Any, own: Any) -> bool:
    """Tell whether a part of a state has the form that this part has."""
    if name == "in_use":  # it may have other names here: on an optimizer whose decay was taken before nothing looks converted
        return isinstance(value, list) and len(value) == len(own) and all(map(_has_numbers, value))
    if name == "_train":
        lists = isinstance(value, list) and len(value) == len(own) and all(isinstance(flags, list) for flags in value)
        return lists and all(isinstance(flag, bool) for flags in value for flag in flags)
    if name == "eps":
        return value is None or _has_numbers(value)
    if name == "scheduler":
        return value is None or (isinstance(value, list | tuple) and len(value) == 2)
    return alike(value, own)


def _has_numbers(mapping: Any) -> bool:
    return isinstance(mapping, Mapping) and alike(list(mapping.values()), [0.0] * len(mapping))


def load_wrapped(scheduler: Any, state: Any) -> None:
    """Load the state of a wrapped scheduler, or leave it as it was."""
    before = copy.deepcopy(scheduler.state_dict())
    try:
        scheduler.load_state_dict(copy.deepcopy(state))
    except Exception as error:  # whatever a damaged state does to a scheduler of somebody else
        scheduler.load_state_dict(before)
        raise ExplrError(
            f"the state of the wrapped {type(scheduler).__name__} cannot be loaded ({type(error).__name__}: {error}). Nothing "
            "has changed."
        ) from error
