"""A number that is added to all of a channel: which operations hand it on to a norm that takes it away, and which do not."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from explr import ExplrError
from explr.invariance import scale_invariance

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
