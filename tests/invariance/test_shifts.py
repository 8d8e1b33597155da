"""A number that is added to all of a channel: which operations hand it on to a norm that takes it away, and which do not."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

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
