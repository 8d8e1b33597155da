"""Parameter groups: what is read from them and written to them, and what is refused, in full sentences."""

import inspect
import math

import numpy as np
import pytest
import torch
from torch.nn import Parameter

from explr import ExplrError
from explr.groups import (
    buffers_are_there,
    check_group,
    check_loaded,
    check_ranges,
    converts,
    copy_of,
    family_of,
    memory_of,
    read,
    smallest_dtype,
    split,
    trains,
    write,
)
from explr.recursions import AdamW, HeavyBall, Nesterov


def parameters(count=1, **options):
    return [Parameter(torch.ones(3), **options) for _ in range(count)]


def sgd(params=None, **options):
    optimizer = torch.optim.SGD(params or parameters(), lr=0.1, **options)
    return optimizer, optimizer.param_groups[0]


def stepped(optimizer, *chosen):
    """Give the optimizer a step with gradients for some of its parameters; default: all."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones(3) if not chosen or any(p is other for other in chosen) else None
    optimizer.step()
    return optimizer


def two_groups(make=torch.optim.SGD, sizes=(2, 1), **options):
    return make([{"params": parameters(size)} for size in sizes], lr=0.1, **options)


@pytest.mark.parametrize(
    "state, message",
    [
        ({}, "the state is not an optimizer's: it has no param_groups. Load what optimizer.state_dict() gave."),
        ({"param_groups": None}, "the state is not an optimizer's: it has no param_groups. Load what optimizer.state_dict() "
         "gave."),
        (two_groups(torch.optim.AdamW).state_dict(), "the state is of another optimizer: it has no dampening, momentum, which "
         "SGD has. Build the optimizer as it was built for the state."),
        (two_groups(sizes=(2, 2)).state_dict(), "the state is of parameter groups of [2, 2] tensors, the optimizer under "
         "ExpLR, which splits groups, has [2, 1]. Load a checkpoint of the script without ExpLR before ExpLR is built, and one "
         "of a run under ExpLR after, into the same model and groups."),
    ],
)  # fmt: skip
def test_the_state_of_another_optimizer_or_of_other_groups_is_refused(state, message):
    optimizer = two_groups()
    with pytest.raises(ExplrError) as caught:
        check_loaded(optimizer, state)
    assert str(caught.value) == message
    check_loaded(optimizer, two_groups(momentum=0.9, nesterov=True).state_dict())
    check_loaded(two_groups(torch.optim.AdamW), two_groups(torch.optim.AdamW).state_dict())


DECOUPLED = pytest.mark.skipif(
    "decoupled_weight_decay" not in inspect.signature(torch.optim.Adam).parameters, reason="torch older than 2.6"
)


def test_a_group_is_taken_for_scale_invariant_unless_it_says_otherwise():
    assert [converts({}), converts({"scale_invariant": True}), converts({"scale_invariant": False})] == [True, True, False]
    assert trains(parameters()[0]) and not trains(parameters(requires_grad=False)[0])


@pytest.mark.parametrize(
    "make, family",
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), HeavyBall),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), Nesterov),
        (lambda p: torch.optim.AdamW(p), AdamW),
        pytest.param(lambda p: torch.optim.Adam(p, decoupled_weight_decay=True), AdamW, marks=DECOUPLED),
    ],
)
def test_each_optimizer_has_its_family(make, family):
    optimizer = make(parameters())
    assert type(family_of(optimizer, optimizer.param_groups[0])) is family


class OwnSGD(torch.optim.SGD):
    def step(self, closure=None):
        return None


class OwnAdam(torch.optim.Adam):
    def step(self, closure=None):
        return None


class OwnAdamW(torch.optim.AdamW):
    def step(self, closure=None):
        return None


NO_TWIN = (
    "Adam squares gradients that weight decay was added to, and no one factor of the weights carries that: it has no twin. Use "
    "torch.optim.AdamW, or Adam with decoupled_weight_decay=True."
)
UNKNOWN = "has no exponential counterpart that explr knows: use torch.optim.SGD, with any momentum, or torch.optim.AdamW."


@pytest.mark.parametrize(
    "make, message",
    [
        (torch.optim.Adam, NO_TWIN),
        (torch.optim.NAdam, f"NAdam {UNKNOWN}"),
        (torch.optim.RMSprop, f"RMSprop {UNKNOWN}"),
        (OwnSGD, f"OwnSGD has a step of its own ({__name__}), of which explr knows nothing: use torch's SGD itself."),
        (OwnAdam, f"OwnAdam has a step of its own ({__name__}), of which explr knows nothing: use torch's AdamW itself."),
        (OwnAdamW, f"OwnAdamW has a step of its own ({__name__}), of which explr knows nothing: use torch's AdamW itself."),
    ],
)
def test_an_optimizer_without_a_twin_is_told_what_to_use(make, message):
    optimizer = make(parameters(), lr=0.1)
    with pytest.raises(ExplrError) as caught:
        family_of(optimizer, optimizer.param_groups[0])
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "change, message",
    [
        ({"lr": "0.1"}, "lr='0.1': it must be a number, or a tensor of one float32 or float64 without gradient."),
        ({"lr": torch.ones(2)}, "lr=tensor([1., 1.]): it must be a number, or a tensor"),
        ({"lr": torch.tensor(0.1, dtype=torch.float16)}, "lr=tensor(0.1000, dtype=torch.float16): it must be a number"),
        ({"lr": torch.tensor(0.1, requires_grad=True)}, "lr=tensor(0.1000, requires_grad=True): it must be a number"),
        ({"weight_decay": None}, "weight_decay=None: it must be"),
        ({"momentum": True}, "momentum=True: it must be"),
        ({"dampening": 1j}, "dampening=1j: it must be"),
        ({"betas": 0.9}, "betas=0.9: it must be"),
        ({"betas": (0.9, "0.99")}, "betas=(0.9, '0.99'): it must be"),
        ({"eps": "tiny"}, "eps='tiny': it must be"),
        ({"maximize": True}, "maximize=True: explr converts minimisation. Minimise the negative of the objective."),
        (
            {"amsgrad": True},
            "amsgrad=True: a largest square of gradients that were taken at other scales of the weights has no exact "
            "counterpart. Use amsgrad=False.",
        ),
    ],
)
def test_a_value_that_is_no_number_and_an_option_without_counterpart_are_refused(change, message):
    group = {"params": parameters(), "lr": 0.1, "maximize": False, "amsgrad": False, "name": "not a number, and need not be"}
    check_group(3, group)
    with pytest.raises(ExplrError) as caught:
        check_group(3, group | change)
    assert str(caught.value).startswith(f"parameter group 3 has {message}")


def test_numbers_may_be_of_numpy_and_tensors_of_one():
    values = {"lr": torch.tensor(0.1), "weight_decay": torch.tensor([0.1], dtype=torch.float64), "momentum": np.float32(0.9)}
    check_group(0, {"params": parameters(), **values, "dampening": 0, "betas": [0.9, torch.tensor(0.99)], "eps": 1e-8})


def test_a_group_without_parameters_is_refused():
    with pytest.raises(ExplrError) as caught:
        check_group(1, {"params": [], "lr": 0.1})
    assert str(caught.value) == "parameter group 1 has no parameters: leave it out."


@pytest.mark.parametrize("name, value", [("lr", 0.0), ("lr", 1e300), ("momentum", 0.0), ("momentum", 0.999), ("beta1", 0.0)])
@pytest.mark.parametrize("other", [{}, {"beta2": 0.999, "dampening": -3.0, "weight_decay": 0.0}])
def test_what_is_within_its_range_is_taken(name, value, other):
    check_ranges(0, {**other, name: value}, step=0)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("lr", -0.1, "lr=-0.1 at step 5: it must be finite and not negative."),
        ("lr", math.inf, "lr=inf at step 5: it must be finite and not negative."),
        ("weight_decay", math.nan, "weight_decay=nan at step 5: it must be finite and not negative."),
        ("momentum", 1.0, "momentum=1.0 at step 5: it must lie in [0, 1)."),
        ("momentum", -0.1, "momentum=-0.1 at step 5: it must lie in [0, 1)."),
        ("beta1", 1.0, "beta1=1.0 at step 5: it must lie in [0, 1)."),
        ("beta2", 1.5, "beta2=1.5 at step 5: it must lie in [0, 1)."),
        ("dampening", 1.0, "dampening=1.0 at step 5: it must be below 1."),
        ("dampening", math.nan, "dampening=nan at step 5: it must be below 1."),
        ("eps", -1e-8, "eps=-1e-08 at step 5: it must be finite and not negative."),
    ],
)
def test_what_is_out_of_range_is_refused_with_the_range(name, value, message):
    with pytest.raises(ExplrError) as caught:
        check_ranges(2, {"lr": 0.1, name: value}, step=5)
    assert str(caught.value) == f"parameter group 2 has {message}"


def test_settings_are_read_as_floats_and_written_back_the_betas_as_a_pair():
    group = {"lr": torch.tensor(0.5), "weight_decay": 1, "betas": (0.9, torch.tensor(0.5))}
    settings = read(group, ("lr", "weight_decay", "beta1", "beta2"))
    assert settings == {"lr": 0.5, "weight_decay": 1.0, "beta1": 0.9, "beta2": 0.5}
    assert {type(value) for value in settings.values()} == {float}
    kept = group["lr"]
    write(group, {"lr": 0.25, "weight_decay": 0.0, "beta1": 0.8, "beta2": 0.7})
    assert group == {"lr": kept, "weight_decay": 0.0, "betas": (0.8, 0.7)} and float(kept) == 0.25
    write(group, {"weight_decay": 2.0})
    assert group == {"lr": kept, "weight_decay": 2.0, "betas": (0.8, 0.7)} and float(kept) == 0.25
    plain = {"lr": 0.5}
    write(plain, {"lr": 0.25, "momentum": 0.9})
    assert plain == {"lr": 0.25, "momentum": 0.9}


def test_a_copy_of_a_group_has_tensors_of_its_own():
    group = {"params": parameters(), "lr": torch.tensor(0.5), "momentum": 0.9}
    copy = copy_of(group, momentum=0.8, scale_invariant=False)
    copy["lr"].fill_(1.0)
    assert float(group["lr"]) == 0.5 and group["momentum"] == 0.9 and "scale_invariant" not in group
    assert copy["momentum"] == 0.8 and copy["scale_invariant"] is False and copy["params"][0] is group["params"][0]


def same(parameters, expected):
    return [id(p) for p in parameters] == [id(p) for p in expected]


def test_a_split_group_keeps_the_chosen_and_the_frozen_and_the_others_do_not_convert():
    first, second, third = parameters(3)
    (frozen,) = parameters(requires_grad=False)
    group = {"params": [first, second, frozen, third], "param_names": ["a", "b", "f", "c"], "lr": 0.1, "name": "body"}
    others = split(group, {id(first), id(third)})
    assert same(group["params"], [first, frozen, third]) and group["param_names"] == ["a", "f", "c"]
    assert same(others["params"], [second]) and others["param_names"] == ["b"]
    assert (group["name"], others["name"], others["lr"]) == ("body", "body, not converted", 0.1)
    assert "scale_invariant" not in group and others["scale_invariant"] is False


def test_a_group_of_which_all_or_none_are_chosen_stays_whole():
    first, second = parameters(2)
    (frozen,) = parameters(requires_grad=False)
    group = {"params": [first, frozen]}
    assert split(group, {id(first)}) is None and converts(group) and same(group["params"], [first, frozen])
    group = {"params": [first, second, frozen]}
    assert split(group, {id(frozen)}) is None and same(group["params"], [first, second, frozen])
    assert group["scale_invariant"] is False
    group = {"params": [first, second]}
    assert "name" not in split(group, {id(first)})


def test_buffers_are_looked_for_at_every_parameter():
    frozen, p = *parameters(requires_grad=False), *parameters()
    optimizer, group = sgd([frozen, p], momentum=0.9)
    assert not buffers_are_there(optimizer, group, HeavyBall())
    stepped(optimizer, p)
    assert buffers_are_there(optimizer, group, HeavyBall())
    assert buffers_are_there(optimizer, {**group, "params": [p.requires_grad_(False)]}, HeavyBall())  # since the last update
    p.requires_grad_(True)
    optimizer.state[p]["momentum_buffer"] = None
    assert not buffers_are_there(optimizer, group, HeavyBall())
    optimizer, group = sgd([frozen])
    assert buffers_are_there(optimizer, group, HeavyBall())  # without momentum it keeps none
    optimizer, group = sgd([frozen], momentum=0.9)
    assert not buffers_are_there(optimizer, group, HeavyBall())
    optimizer = torch.optim.AdamW([p])
    assert not buffers_are_there(optimizer, optimizer.param_groups[0], AdamW())
    assert buffers_are_there(stepped(optimizer), optimizer.param_groups[0], AdamW())


def test_a_recursion_begins_where_the_buffers_are():
    frozen, p = *parameters(requires_grad=False), *parameters()
    optimizer, group = sgd([frozen, p], momentum=0.9)
    assert memory_of(optimizer, 0, group, HeavyBall()) == HeavyBall().start()
    stepped(optimizer, p)
    assert memory_of(optimizer, 0, group, HeavyBall()) == HeavyBall().start(1)
    optimizer = torch.optim.AdamW([frozen, p])
    assert memory_of(optimizer, 0, optimizer.param_groups[0], AdamW()) == AdamW().start()
    for _ in range(3):
        stepped(optimizer, p)
    assert memory_of(optimizer, 0, optimizer.param_groups[0], AdamW()) == AdamW().start(3)
    optimizer, group = sgd([frozen])
    assert memory_of(optimizer, 0, group, HeavyBall()) == HeavyBall().start()


@pytest.mark.parametrize(
    "make, family, matters",
    [
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), HeavyBall(), False),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5), HeavyBall(), True),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), Nesterov(), True),
        (lambda p: torch.optim.AdamW(p), AdamW(), True),
    ],
    ids=["heavy ball", "damped", "Nesterov", "AdamW"],
)
def test_parameters_with_different_pasts_are_refused_where_it_matters(make, family, matters):
    first, second = parameters(2)
    optimizer = stepped(make([first, second]), second)
    group = optimizer.param_groups[0]
    if not matters:  # an undamped buffer begins as if it had been there before, at 0
        assert memory_of(optimizer, 4, group, family) == family.start(1)
        return
    with pytest.raises(ExplrError) as caught:
        memory_of(optimizer, 4, group, family)
    assert str(caught.value) == (
        "the parameters of group 4 have taken different numbers of steps, some perhaps none: no one recursion fits them. Put "
        "those that started later into a group of their own."
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_smallest_dtype_is_the_one_with_the_smallest_range(dtype):
    group = {"params": [torch.ones(1), torch.ones(1, dtype=dtype), torch.ones(1)]}
    assert smallest_dtype(group) == (torch.float32 if dtype == torch.float64 else dtype)
