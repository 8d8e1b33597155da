"""A number that is added to all of a channel: which operations hand it on to a norm that takes it away, and which do not."""

import random

import pytest
import torch
from torch import nn
from torch.func import functional_call

from explr import ExplrError
from explr.invariance import scale_invariance
from explr.invariance.memory import axes_seen, place_of

TINY = 1e-30


def network(*between, norm):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 8, 3), *between, norm, nn.Flatten()).double()


def batch_norm():
    return nn.BatchNorm2d(8, affine=False, eps=TINY)


def group_norm(groups):
    return nn.GroupNorm(groups, 8, affine=False, eps=TINY)


CASES = {
    "nothing": ([], batch_norm(), True),
    "one channel a group": ([], group_norm(8), True),
    "two channels a group": ([], group_norm(4), False),
    "average pooling": ([nn.AvgPool2d(2)], batch_norm(), True),
    "average pooling with zeros": ([nn.AvgPool2d(3, padding=1)], batch_norm(), False),
    "average pooling beside zeros": ([nn.AvgPool2d(3, padding=1, count_include_pad=False)], batch_norm(), True),
    "average pooling to a size": ([nn.AdaptiveAvgPool2d(2)], batch_norm(), True),
    "maximum pooling": ([nn.MaxPool2d(2, padding=1)], batch_norm(), True),
    "relu": ([nn.ReLU()], batch_norm(), False),
    "dropout": ([nn.Dropout(0.5)], batch_norm(), False),
}


@pytest.mark.parametrize("name", CASES)
def test_a_shift_is_followed_as_far_as_numbers_say(name):
    between, norm, invariant = CASES[name]
    model, x = network(*between, norm=norm), torch.randn(4, 3, 12, 12, dtype=torch.float64)
    outputs = []
    for c in (1.0, 3.0):
        torch.manual_seed(1)
        with torch.no_grad():
            outputs.append(functional_call(model, {name: c * p.detach() for name, p in model.named_parameters()}, (x,)))
    error = float((outputs[1] - outputs[0]).norm() / outputs[0].norm())
    assert (error < 1e-9) == invariant, error
    report = scale_invariance(model, x)
    assert report.invariant == invariant, report.table()


def test_biases_that_a_later_norm_takes_away_are_not_in_the_rest():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8, eps=TINY)
    layers = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), norm, nn.Conv2d(8, 8, 2), nn.BatchNorm2d(8, affine=False, eps=TINY)
    model = nn.Sequential(*layers).double()
    report = scale_invariance(model, torch.randn(4, 3, 12, 12, dtype=torch.float64))
    assert report.alone == tuple(name for name, _ in model.named_parameters()), report.table()
    # Running statistics can follow one power of the scale only, so that of norms that keep them the input has one degree.
    with pytest.raises(ExplrError, match="has parts of degrees"):
        report.norm_degrees()
    part = report.largest_part(model.parameters())
    assert set(report.norm_degrees(part).values()) == {1}


def test_a_frozen_offset_and_a_trained_gain_before_a_linear_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(4, eps=TINY), nn.Linear(4, 8), nn.BatchNorm1d(8, affine=False, eps=TINY)).double()
    model[0].bias.requires_grad_(False)
    nn.init.normal_(model[0].bias)
    report = scale_invariance(model, torch.randn(6, 4, dtype=torch.float64))
    assert report.alone == ("0.weight", "1.weight", "1.bias"), report.table()
    assert report.largest_part(report.alone) == ["1.weight", "1.bias"]


def test_what_a_view_sees_of_an_axis_is_what_numbers_see():
    """Tensors that differ along some axes alone, and views of their memory at random, most of which are no plain ones."""
    chance, told = random.Random(0), 0
    for _ in range(2000):
        sizes = [chance.randint(1, 4) for _ in range(chance.randint(1, 4))]
        order = chance.sample(range(len(sizes)), len(sizes))
        axes = frozenset(axis for axis in range(len(sizes)) if chance.random() < 0.5)
        tensor = torch.empty([sizes[axis] for axis in order]).permute([order.index(axis) for axis in range(len(sizes))])
        index = torch.meshgrid(*(torch.arange(size) for size in sizes), indexing="ij")
        tensor.copy_(sum((4**axis * index[axis] for axis in axes), torch.zeros(sizes)))
        view = view_at_random(chance, tensor)
        seen = axes_seen(axes, place_of(tensor), place_of(view))
        if seen is not None:
            told += 1
            for axis in set(range(view.ndim)) - seen:
                assert (view == view.narrow(axis, 0, 1)).all(), (tensor.shape, tensor.stride(), axes, view.shape, view.stride())
    assert told > 600


def view_at_random(chance, tensor):
    whole = tensor.numel()
    if chance.random() < 0.3:  # anything that fits
        sizes = [chance.randint(1, 3) for _ in range(chance.randint(1, 3))]
        strides = [chance.randint(0, 5) for _ in sizes]
        offset = chance.randint(0, 2)
        if offset + sum((n - 1) * t for n, t in zip(sizes, strides, strict=True)) < whole:
            return torch.as_strided(tensor, sizes, strides, offset)
    for _ in range(chance.randint(0, 3)):
        axis = chance.randrange(tensor.ndim)
        kind = chance.choice(("transpose", "slice", "select", "split", "flatten", "expand"))
        if kind == "transpose":
            tensor = tensor.transpose(axis, chance.randrange(tensor.ndim))
        elif kind == "slice":
            tensor = tensor.narrow(axis, tensor.shape[axis] // 2, 1 + (tensor.shape[axis] - 1) // 2)
        elif kind == "select" and tensor.ndim > 1:
            tensor = tensor.select(axis, -1)
        elif kind == "split" and tensor.shape[axis] == 4:
            tensor = tensor.unflatten(axis, (2, 2))
        elif kind == "flatten" and axis and tensor.stride(axis - 1) == tensor.shape[axis] * tensor.stride(axis):
            tensor = tensor.flatten(axis - 1, axis)
        elif kind == "expand":
            tensor = tensor.unsqueeze(axis).expand(*tensor.shape[:axis], 2, *tensor.shape[axis:])
    return tensor
