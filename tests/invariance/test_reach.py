"""What outputs can depend on: networks that use a layer in one way or another, or not at all."""

import pytest
import torch
from torch import nn

from explr import ExplrError, rescale, scale_invariance
from explr.invariance.reach import reached
from explr.invariance.steps import trace


class Net(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6, bias=False), nn.Linear(4, 6, bias=False)
        self.norm = nn.BatchNorm1d(6, affine=False)
        self.register_buffer("state", torch.zeros(6))
        self.kept = torch.zeros(1)
        self.call = call

    def forward(self, x):
        return self.call(self, x)


def in_a_region(net, x):
    with torch.no_grad():
        return net.first(x), net.second(x)


def in_autocast(net, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return net.first(x), net.second(x)


def into(output, other):
    output.add_(other)
    return output


def into_a_view(net, x):
    output = net.first(x)
    output[:, :2].copy_(net.second(x)[:, :2])
    return output


def through_a_buffer(net, x):
    output = net.first(x) + net.state
    net.state.copy_(net.second(x).mean(0))
    return output


def through_statistics(net, x):
    net.norm(net.second(x))
    return net.first(x) + net.norm.running_mean


def statistics_unread(net, x):
    net.norm(net.second(x))
    return net.first(x)


def through_an_attribute(net, x):
    output = net.first(x) + net.kept
    net.kept = net.second(x)
    return output


def into_an_attribute(net, x):
    net.kept = net.second(x)
    return net.first(x)


FIRST, BOTH = {"first.weight"}, {"first.weight", "second.weight"}


@pytest.mark.parametrize(
    "call, found",
    [
        (lambda net, x: net.first(x) + net.second(x), BOTH),
        (lambda net, x: net.first(x) * net.second(x).detach(), BOTH),
        (lambda net, x: net.first(x) + 0.0 * net.second(x), BOTH),
        (lambda net, x: into(net.first(x), net.second(x)), BOTH),
        (lambda net, x: {"one": [net.first(x)], "other": net.second(x)}, BOTH),
        (lambda net, x: (net.first(x), net.second(x))[0], FIRST),
        (lambda net, x: (into(net.second(x), net.first(x)), net.first(x))[1], FIRST),
        (lambda net, x: (net.second(net.first(x)[:, :4]), net.first(x).chunk(2, 1)[1])[1], FIRST),
        (lambda net, x: in_a_region(net, x)[0], FIRST),
        (lambda net, x: in_a_region(net, x)[1], {"second.weight"}),
        (lambda net, x: sum(in_a_region(net, x)), BOTH),
        (lambda net, x: in_autocast(net, x)[0], FIRST),
        (lambda net, x: sum(in_autocast(net, x)), BOTH),
        (into_a_view, BOTH),
        (through_a_buffer, BOTH),
        (through_statistics, BOTH),
        (statistics_unread, FIRST),
        (through_an_attribute, BOTH),
        (into_an_attribute, FIRST),
    ],
)
def test_what_an_output_can_depend_on_is_found(call, found):
    net = Net(call)
    assert reached(trace(net, (torch.randn(5, 4),), {}), net) == found


def test_a_parameter_with_two_names_is_used_under_either():
    net = Net(lambda net, x: net.second(x))
    net.second.weight = net.first.weight
    assert reached(trace(net, (torch.randn(5, 4),), {}), net) == FIRST


class Beside(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.norm = nn.Linear(16, 64, bias=False), nn.LayerNorm(64, elementwise_affine=False)
        self.second, self.gelu = nn.Linear(64, 3), nn.GELU()

    def forward(self, x, both=False, kept=False):
        features = self.norm(self.body(x))
        if kept:
            self.kept = self.gelu(self.second(features))
        return (features, self.second(features)) if both else features


def test_what_is_not_used_is_listed_apart_and_does_not_convert():
    model, x = Beside(), torch.randn(8, 16)
    report = scale_invariance(model, x)
    assert report.invariant and (report.alone, report.joint, report.rest) == (("body.weight",), (), ())
    assert report.unused == ("second.weight", "second.bias")
    assert report.share == pytest.approx(16 * 64 / (16 * 64 + 64 * 3 + 3), rel=1e-15)
    assert report.largest_part(model.parameters()) == ["body.weight"] and report.largest_part(report.unused) == []
    converted, others = report.parameter_groups(lr=0.1)
    assert [len(group["params"]) for group in (converted, others)] == [1, 2] and not others["scale_invariant"]
    said = (
        "What the network returns does not depend on second.weight, second.bias: left out of what converts. If training calls "
        "it in another way, analyse it with what it is called with there."
    )
    assert report.advice[0] == said
    assert report.table().endswith("not used by what the network returns: second.weight, second.bias")
    assert said in report._repr_html_() and report.verified
    report = scale_invariance(model, x, both=True)
    assert (report.alone, report.rest, report.unused) == (("body.weight",), ("second.weight", "second.bias"), ())
    assert not any("not used" in line or "does not depend" in line for line in report.table().splitlines())


def test_what_is_not_used_and_has_no_degree_is_to_be_frozen_with_the_rest():
    model, x = Beside(), torch.randn(8, 16)
    report = scale_invariance(model, x, kept=True)
    assert not report.invariant and report.rest == () and report.unused == ("second.weight", "second.bias")
    assert "freeze these 2 tensors (report.rest and report.unused: second.weight, second.bias), and the" in report.advice[0]
    model.second.requires_grad_(False)
    assert scale_invariance(model, x, kept=True).invariant


def test_rescaling_refuses_what_is_not_used_unless_its_group_is_marked():
    model, x = Beside(), torch.randn(8, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ExplrError) as caught:
        rescale(model, optimizer, 2.0, x)
    assert str(caught.value) == (
        "what the model returns does not depend on second.weight, second.bias, so nothing says what the loss makes of another "
        "scale: put it into a group marked scale_invariant=False, or give example_inputs, what training calls the model with."
    )
    groups = [{"params": model.body.parameters()}, {"params": model.second.parameters(), "scale_invariant": False}]
    held = model.second.weight.detach().clone()
    rescale(model, torch.optim.SGD(groups, lr=0.1), 2.0, x)
    assert torch.equal(model.second.weight, held)
