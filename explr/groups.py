"""Parameter groups of a torch optimizer: which family of twins they belong to, what they ask for, and how it is set.

Nothing here knows the theorem: numbers go in and out of ``optimizer.param_groups``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from typing import Any

import torch

from explr.checks import is_number, short
from explr.errors import ExplrError
from explr.recursions import AdamW, Family, HeavyBall, Memory, Nesterov

Group = dict[str, Any]


def converts(group: Group) -> bool:
    """Tell whether a group is meant to be scale-invariant."""
    return bool(group.get("scale_invariant", True))


def trains(parameter: torch.Tensor) -> bool:
    """Tell whether a parameter is trained."""
    return parameter.requires_grad


def family_of(optimizer: torch.optim.Optimizer, group: Group) -> Family:
    """Return the family of a group.

    Raises:
        ExplrError: for an optimizer that has no twin of this kind, with the reason and the remedy.
    """
    home = inspect.unwrap(type(optimizer).step).__module__
    if isinstance(optimizer, torch.optim.SGD | torch.optim.Adam | torch.optim.AdamW) and not home.startswith("torch.optim."):
        raise ExplrError(
            f"{type(optimizer).__name__} has a step of its own ({home}), of which explr knows nothing: use torch's "
            f"{'SGD' if isinstance(optimizer, torch.optim.SGD) else 'AdamW'} itself."
        )
    if isinstance(optimizer, torch.optim.SGD):
        return Nesterov() if group["nesterov"] else HeavyBall()
    adam = isinstance(optimizer, torch.optim.Adam)  # NAdam and RAdam have the option, too, and are other optimizers
    if isinstance(optimizer, torch.optim.AdamW) or (adam and group.get("decoupled_weight_decay")):
        return AdamW()
    if adam:
        raise ExplrError(
            "Adam squares gradients that weight decay was added to, and no one factor of the weights carries that: it has no "
            "twin. Use torch.optim.AdamW, or Adam with decoupled_weight_decay=True."
        )
    raise ExplrError(
        f"{type(optimizer).__name__} has no exponential counterpart that explr knows: use torch.optim.SGD, with any momentum, "
        "or torch.optim.AdamW."
    )


def check_group(index: int, group: Group) -> None:
    """Refuse an option that has no exact counterpart, and values that are no plain numbers."""
    for name in _NUMBERS & group.keys():
        values = group[name] if name == "betas" else [group[name]]
        if not (isinstance(values, list | tuple) and all(map(_is_number, values))):
            raise ExplrError(
                f"parameter group {index} has {name}={short(group[name])}: it must be a number, or a tensor of one float32 or "
                "float64 without gradient."
            )
    for option, remedy in _REFUSED.items():
        if group.get(option):
            raise ExplrError(f"parameter group {index} has {option}={group[option]}: {remedy}")
    if not group["params"]:
        raise ExplrError(f"parameter group {index} has no parameters: leave it out.")


def check_ranges(index: int, settings: dict[str, float], step: int) -> None:
    """Refuse hyper-parameters, of the run with weight decay, of which nothing is known."""
    for name, value in settings.items():
        least, below = _RANGES.get(name, (0.0, math.inf))
        if not least <= value < below:
            rule = f"lie in [{least:g}, {below:g})" if least == 0.0 and below == 1.0 else f"be below {below:g}"
            rule = "be finite and not negative" if below == math.inf else rule
            raise ExplrError(f"parameter group {index} has {name}={value} at step {step}: it must {rule}.")


_RANGES = {"momentum": (0.0, 1.0), "beta1": (0.0, 1.0), "beta2": (0.0, 1.0), "dampening": (-math.inf, 1.0)}
_NUMBERS = {"lr", "weight_decay", "momentum", "dampening", "betas", "eps"}
_REFUSED = {
    "maximize": "explr converts minimisation. Minimise the negative of the objective.",
    "amsgrad": "a largest square of gradients that were taken at other scales of the weights has no exact counterpart. "
    "Use amsgrad=False.",
}


def _is_number(value: Any) -> bool:
    """Tell whether a value is a number; a tensor must hold one as exactly as it is set, and not be trained."""
    if isinstance(value, torch.Tensor):
        return value.numel() == 1 and value.dtype in (torch.float32, torch.float64) and not value.requires_grad
    return is_number(value)


def read(group: Group, names: tuple[str, ...]) -> dict[str, float]:
    """Return hyper-parameters of a group as floats; ``beta1`` and ``beta2`` are those of ``betas``."""
    return {name: float(group["betas"][int(name[-1]) - 1] if name.startswith("beta") else group[name]) for name in names}


def write(group: Group, values: dict[str, float]) -> None:
    """Set hyper-parameters of a group; a learning rate that is a tensor stays the same tensor."""
    plain: Group = {name: value for name, value in values.items() if name not in ("lr", "beta1", "beta2")}
    if "beta1" in values:
        plain["betas"] = (values["beta1"], values["beta2"])
    group.update(plain)
    if "lr" in values:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(values["lr"])
        else:
            group["lr"] = values["lr"]


def own_rates(groups: Iterable[Group]) -> None:
    """Give each group a learning rate of its own: one tensor, given to the optimizer, torch puts into all of them."""
    seen: set[int] = set()
    for group in groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"] = group["lr"].clone() if id(group["lr"]) in seen else group["lr"]
            seen.add(id(group["lr"]))


def copy_of(group: Group, **changes: Any) -> Group:
    """Return a group of the same parameters whose hyper-parameters, tensors among them, change on their own."""
    own = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in group.items()}
    return {**own, **changes}


def split(group: Group, chosen: set[int]) -> Group | None:
    """Leave in a group only the chosen parameters (by id) and those that do not train, and return the group of the others.

    A group that has none of the chosen keeps all, and is marked as one that does not convert, as the new group is.
    """
    stays = [id(p) in chosen or not trains(p) for p in group["params"]]
    if not any(stay and trains(p) for stay, p in zip(stays, group["params"], strict=True)):
        group["scale_invariant"] = False
        return None
    if all(stays):
        return None
    others = copy_of(group, scale_invariant=False)
    if "name" in group:
        others["name"] = f"{group['name']}, not converted"
    for key in {"params", "param_names"} & group.keys():
        group[key], others[key] = (
            [value for value, stay in zip(group[key], stays, strict=True) if stay is kept] for kept in (True, False)
        )
    return others


def buffers_are_there(optimizer: torch.optim.Optimizer, group: Group, family: Family) -> bool:
    """Tell whether the optimizer still has what it keeps of earlier gradients, of any parameter of a group, frozen or not."""
    if not isinstance(family, AdamW) and not group["momentum"]:
        return True
    name = "exp_avg" if isinstance(family, AdamW) else "momentum_buffer"
    return any(optimizer.state.get(parameter, {}).get(name) is not None for parameter in group["params"])


def check_loaded(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Refuse the state of another optimizer, or of other groups; a hook of one whose groups ExpLR may have split."""
    if not isinstance(state.get("param_groups"), list):
        raise ExplrError("the state is not an optimizer's: it has no param_groups. Load what optimizer.state_dict() gave.")
    missing = {name for group in optimizer.param_groups for name in _NUMBERS & group.keys()}
    missing -= {name for group in state["param_groups"] for name in group}
    if missing:
        raise ExplrError(
            f"the state is of another optimizer: it has no {', '.join(sorted(missing))}, which {type(optimizer).__name__} has. "
            "Build the optimizer as it was built for the state."
        )
    found, own = ([len(group["params"]) for group in groups] for groups in (state["param_groups"], optimizer.param_groups))
    if found != own:
        raise ExplrError(
            f"the state is of parameter groups of {found} tensors, the optimizer under ExpLR, which splits groups, has {own}. "
            "Load a checkpoint of the script without ExpLR before ExpLR is built, and one of a run under ExpLR "
            "after, into the same model and groups."
        )


def memory_of(optimizer: torch.optim.Optimizer, index: int, group: Group, family: Family) -> Memory:
    """Return the memory with which a family's recursion begins on buffers as they are.

    Raises:
        ExplrError: if some parameters of the group have taken other steps than the rest, and it makes a difference.
    """
    states = [optimizer.state.get(parameter, {}) for parameter in filter(trains, group["params"])]
    if isinstance(family, AdamW):
        done = {int(state.get("step", 0)) for state in states}
    else:
        done = {int(state.get("momentum_buffer") is not None) for state in states}
    if len(done) > 1 and not (isinstance(family, HeavyBall) and not group["dampening"]):
        raise ExplrError(
            f"the parameters of group {index} have taken different numbers of steps, some perhaps none: no one recursion fits "
            "them. Put those that started later into a group of their own."
        )
    return family.start(max(done, default=None))


def smallest_dtype(group: Group) -> torch.dtype:
    """Return the dtype with the smallest range among a group's parameters."""
    return min((p.dtype for p in group["params"]), key=lambda dtype: torch.finfo(dtype).max)
