"""What goes with the weights of a small network when they are scaled: buffers, statistics, eps, rates; in exact numbers."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from explr import ExpLR, ExplrError, rescale, unscale
from explr.symmetry import Norms, exact_exp, guess_inputs, scale_weights, unwrapped

pytestmark = pytest.mark.filterwarnings("ignore:ExpLR has no model")


def network(dtype=torch.float64, **options):
    """Return a network with norms whose inputs have degrees 2 (in the first two layers) and 1 (in the third)."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 8, bias=False),
        nn.Linear(8, 8, bias=False),
        nn.BatchNorm1d(8, affine=False, **options),
        nn.ReLU(),
        nn.Linear(8, 8, bias=False),
        nn.BatchNorm1d(8, affine=False, eps=1e-3, **options),
        nn.Linear(8, 3).requires_grad_(False),
    ).to(dtype)


def trained(net):
    return [net[0].weight, net[1].weight], [net[4].weight]


def norms_of(net, *groups):
    norms = Norms(net, [torch.ones(4, 5, dtype=net[0].weight.dtype)])
    norms.choose(groups or trained(net))
    return norms


def sgd(net, **options):
    parameters = [p for p in net.parameters() if p.requires_grad]
    return torch.optim.SGD(parameters, **{"lr": 0.5, "momentum": 0.5, "weight_decay": 0.25, **options})


def adamw(net, **options):
    parameters = [p for p in net.parameters() if p.requires_grad]
    return torch.optim.AdamW(parameters, **{"lr": 0.5, "weight_decay": 0.25, "eps": 2.0**-20, **options})


def step(net, optimizer, seed=0):
    inputs = torch.randn(16, 5, generator=torch.Generator().manual_seed(seed)).to(net[0].weight)
    logits = net(inputs)
    optimizer.zero_grad()
    F.cross_entropy(logits, torch.arange(16) % 3).backward()
    optimizer.step()
    return logits.detach()


# ---- scaling


def test_buffers_are_divided_by_the_power_of_the_gradient_in_them():
    weight, fresh = nn.Parameter(torch.full((2,), 3.0)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight, fresh], lr=1.0)
    names = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    optimizer.state[weight] = {name: torch.full((2,), 16.0) for name in names}
    optimizer.state[weight] |= {"step": torch.tensor(16.0)}
    scale_weights(optimizer, iter([weight]), 4.0)
    found = [float(optimizer.state[weight][name][0]) for name in names]
    assert (weight.tolist(), found) == ([12.0, 12.0], [4.0, 4.0, 1.0, 1.0])
    assert float(optimizer.state[weight]["step"]) == 16.0
    optimizer.state[weight] = {"momentum_buffer": None}
    scale_weights(optimizer, [weight, fresh], 0.5)
    assert (weight.tolist(), fresh.tolist()) == ([6.0, 6.0], [0.5, 0.5])


def test_statistics_and_eps_go_by_the_degree_of_a_norm_s_input_in_each_group():
    net = network()
    norms = norms_of(net)
    for norm in (net[2], net[5]):
        norm.running_mean.fill_(1.0)
        norm.running_var.fill_(1.0)
    norms.scale_statistics([2.0, 3.0])
    norms.scale_eps([2.0, 3.0])
    assert [float(net[i].running_mean[0]) for i in (2, 5)] == [4.0, 3.0]
    assert [float(net[i].running_var[0]) for i in (2, 5)] == [16.0, 9.0]
    assert [net[2].eps, net[5].eps] == pytest.approx([16e-5, 9e-3])
    norms.scale_statistics([0.5, 1.0])
    norms.scale_eps([0.5, 1.0])  # from what they were at first, not from what they are
    assert [float(net[2].running_var[0]), float(net[5].running_var[0])] == [1.0, 9.0]
    assert [net[2].eps, net[5].eps] == pytest.approx([1e-5 / 16, 1e-3])
    assert norms.log_growth([0.25, 0.75]) == 0.75 and norms.log_growth([0.5, 0.75]) == 1.0
    assert norms.log_growth([-1.0, -1.0]) == -1.0


def test_norms_that_keep_no_statistics_have_an_eps_to_scale():
    net = network(track_running_stats=False)
    norms = norms_of(net)
    norms.scale_statistics([2.0, 3.0])
    norms.scale_eps([2.0, 3.0])
    assert [net[2].eps, net[5].eps] == pytest.approx([16e-5, 9e-3])
    assert norms.largest_statistic([2.0, 3.0]) == 16.0  # a variance that is taken to be of order one
    assert norms.largest_statistic([1.0, 5.0]) == 25.0
    assert norms.largest_statistic([0.5, 0.5]) == 0.25


def test_the_largest_statistic_is_a_mean_a_variance_or_an_eps():
    net = network()
    norms = norms_of(net)
    net[2].running_mean[3], net[2].running_var[:] = -10.0, 0.5
    net[2].running_var[1] = 0.75
    net[5].running_var[:] = 1e-6
    assert norms.largest_statistic([1.0, 1.0]) == 10.0
    assert norms.largest_statistic([2.0, 1.0]) == 40.0
    assert norms.largest_statistic([8.0, 1.0]) == 64.0**2 * 0.75
    net[5].eps = 100.0
    assert norms.largest_statistic([1.0, 1.0]) == 100.0
    assert norms.largest_statistic([1e200, 1.0]) == math.inf
    assert norms.largest_statistic([1.0, 1e200]) == math.inf


def test_a_network_without_norms_has_no_statistic_and_no_growth():
    net = nn.Sequential(nn.Linear(5, 3).requires_grad_(False), nn.Linear(3, 3, bias=False))
    norms = Norms(net, [torch.ones(4, 5)])
    norms.choose([])
    assert norms.largest_statistic([]) == 0.0 and norms.log_growth([]) == 0.0
    assert (norms.layers, norms.eps, list(norms.parameters)) == ({}, {}, ["0.weight", "0.bias", "1.weight"])


def test_the_norms_of_a_copy_are_scaled_alone():
    net, other = network(), network()
    norms = norms_of(net)
    copied = norms.of(other)
    copied.scale_eps([2.0, 1.0])
    copied.scale_statistics([2.0, 1.0])
    assert (net[2].eps, float(net[2].running_var[0])) == (1e-5, 1.0)
    assert (other[2].eps, float(other[2].running_var[0])) == (pytest.approx(16e-5), 16.0)
    assert copied.model is other and norms.model is net and list(copied.layers) == ["2", "5"]


class Added(nn.Module):
    def __init__(self):
        super().__init__()
        self.second = nn.Linear(5, 5, bias=False)

    def forward(self, x):
        return x + self.second(torch.ones(4, 5))


def test_groups_that_are_scaled_alike_are_named():
    net = network()
    assert norms_of(net, *[[net[i].weight] for i in (0, 1, 4)]).joint == [{0}, {1}, {2}]
    beside = nn.Sequential(nn.Linear(5, 5, bias=False), Added(), nn.LayerNorm(5, elementwise_affine=False))
    norms = Norms(beside, [torch.ones(4, 5)])
    norms.choose([[beside[0].weight], [beside[1].second.weight]])
    assert norms.joint == [{0, 1}]


def test_parameters_of_another_model_are_refused():
    net, other = network(), network()
    norms = norms_of(net)
    norms.check_own(iter([iter([net[0].weight])]))
    for groups in ([[net[0].weight], [other[0].weight]], [[net[0].weight, other[0].weight]]):
        for refuse in (norms.check_own, norms.choose):
            with pytest.raises(ExplrError) as caught:
                refuse(groups)
            assert str(caught.value) == (
                "the optimizer has parameters that the model has not: give the model that it trains, or put the others, such "
                "as those of a loss, into a group of their own, marked scale_invariant=False."
            )


def test_a_model_that_is_not_invariant_is_refused_with_all_reasons():
    net = nn.Sequential(nn.Linear(5, 5, bias=False), nn.GELU(), nn.Linear(5, 5, bias=False), nn.GELU())
    norms = Norms(net, [torch.ones(4, 5)])
    with pytest.raises(ExplrError) as caught:
        norms.choose([list(net.parameters())])
    text = str(caught.value)
    assert text.startswith("the model is not scale-invariant in the optimizer's parameters: ")
    assert text.count("gelu") == 2 and "XX" not in text
    assert text.endswith("put a norm behind every trained layer but the last, and freeze that one.")


class HandWritten(nn.Module):
    """Normalises by itself, with an eps where nobody can change it."""

    def forward(self, x):
        return x / (x.square().mean(1, keepdim=True) + 1e-5).sqrt()


class BatchOnly(nn.Module):
    """Normalises by the statistics of the batch, with an eps of its own and no running mean."""

    def __init__(self):
        super().__init__()
        self.eps = 1e-5

    def forward(self, x):
        return F.batch_norm(x, None, None, training=True, eps=self.eps)


class Functional(nn.Module):
    def forward(self, x):
        return F.layer_norm(x, (8,))


@pytest.mark.parametrize("norm, name", [(HandWritten, "1"), (BatchOnly, "1"), (Functional, "1:layer_norm")])
def test_an_eps_that_cannot_follow_is_named_in_a_warning(norm, name):
    net = nn.Sequential(nn.Linear(5, 8, bias=False), norm())
    with pytest.warns(UserWarning) as caught:
        Norms(net, [torch.ones(4, 5)])
    assert [str(warning.message) for warning in caught] == [
        f"the eps or the statistics of {name} are not where norms of torch.nn have them, and cannot follow the weights: the "
        "equivalence is only as exact as that eps is negligible, and not in eval mode. Use a norm of torch.nn."
    ]


def test_an_rms_norm_has_no_eps_unless_it_is_given_one():
    nets = [nn.Sequential(nn.Linear(5, 8, bias=False), nn.RMSNorm(8, **options)) for options in ({}, {"eps": 1e-6})]
    with pytest.warns(UserWarning) as caught:
        for net in nets:
            Norms(net, [torch.ones(4, 5)])
    assert [str(warning.message) for warning in caught] == [
        "the eps or the statistics of 1 are not where norms of torch.nn have them, and cannot follow the weights: the "
        "equivalence is only as exact as that eps is negligible, and not in eval mode. Use a norm of torch.nn, and give "
        "nn.RMSNorm an eps (by default it has none)."
    ]


def test_all_that_cannot_follow_are_named():
    net = nn.Sequential(nn.Linear(5, 8, bias=False), BatchOnly(), nn.Linear(8, 8, bias=False), BatchOnly())
    with pytest.warns(UserWarning, match="statistics of 1, 3 are not where"):
        Norms(net, [torch.ones(4, 5)])


def test_a_norm_that_is_the_model_is_called_so():
    class Whole(HandWritten):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(5, 8, bias=False)

        def forward(self, x):
            return super().forward(self.first(x))

    with pytest.warns(UserWarning, match="statistics of the model are not where"):
        Norms(Whole(), [torch.ones(4, 5)])


def test_norms_of_torch_need_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        norms = norms_of(network())
        Norms(nn.Sequential(nn.Linear(5, 8, bias=False), nn.LayerNorm(8)), [torch.ones(4, 5)])
    assert norms.eps == {"2": 1e-5, "5": 1e-3}


# ---- models and inputs


def test_the_network_is_found_inside_wrappers():
    net = network()
    compiled = nn.Module()
    compiled._orig_mod = nn.DataParallel(net)
    assert unwrapped(net) is net and unwrapped(nn.DataParallel(net)) is net
    assert unwrapped(compiled) is net and unwrapped(nn.DataParallel(compiled)) is net
    assert Norms(compiled, [torch.ones(4, 5, dtype=torch.float64)]).model is net


@pytest.mark.parametrize(
    "net, shape",
    [
        (nn.Linear(7, 2), (16, 7)),
        (nn.Conv1d(3, 2, 3), (16, 3, 32)),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, 2, 3)), (16, 3, 32, 32)),
        (nn.Conv3d(1, 2, 3).double(), (16, 1, 32, 32, 32)),
    ],
)
def test_guessed_inputs_are_a_batch_of_what_the_first_layer_takes(net, shape):
    (inputs,), (again,) = guess_inputs(net), guess_inputs(net)
    assert inputs.shape == shape and inputs.dtype == next(net.parameters()).dtype and torch.equal(inputs, again)
    assert float(inputs.std()) == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("net", [nn.ReLU(), nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 3)), nn.LayerNorm(5)])
def test_inputs_of_other_networks_must_be_given(net):
    with pytest.raises(ExplrError) as caught:
        guess_inputs(net)
    assert str(caught.value) == (
        "the model does not begin with a convolution or a linear layer: give example_inputs, what it is called with."
    )


def test_example_inputs_are_used_as_they_are():
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 3, bias=False), nn.LayerNorm(3, elementwise_affine=False))
    assert list(Norms(net, [torch.ones(4, 2, 3)]).layers) == ["2"]
    with pytest.raises(ExplrError) as caught:
        Norms(net, torch.ones(4, 2, 3))
    said = "example_inputs is a tensor: give all that the model is called with, as a tuple, (batch,), or by name, "
    assert str(caught.value) == f"{said}{{'images': batch}}."


def unguessable():
    layers = nn.Conv1d(1, 2, 3, bias=False), nn.Flatten(), nn.Linear(16, 3).requires_grad_(False)
    return nn.Sequential(*layers, nn.LayerNorm(3, elementwise_affine=False, eps=2.0**-10))


def test_a_batch_that_was_guessed_wrongly_is_named():
    with pytest.raises(ExplrError) as caught:
        Norms(unguessable())
    said = "The batch, of shape (16, 1, 32), was guessed: give example_inputs, what the model is called with."
    assert str(caught.value).endswith(f" {said}") and len(str(caught.value)) > len(said) + 20


def test_a_power_of_two_is_taken_out_of_an_exponential_exactly():
    for power in (0.0, 1e-9, -3.7, 88.0, 700.0, math.log(2), 10 * math.log(2)):
        assert exact_exp(power) == pytest.approx(math.exp(power), rel=1e-13)
        assert exact_exp(power, 500) * 2.0**500 == exact_exp(power) == exact_exp(power, -3) / 8
    assert exact_exp(10_000.0, 14_427) == pytest.approx(math.exp(10_000.0 - 14_427 * math.log(2)), rel=1e-11)


# ---- rescaling


@pytest.mark.parametrize(
    "make, factor, expected",
    [
        (sgd, 2.0, {"lr": 2.0, "weight_decay": 0.0625}),
        (sgd, 0.5, {"lr": 0.125, "weight_decay": 1.0}),
        (adamw, 2.0, {"lr": 1.0, "weight_decay": 0.125, "eps": 2.0**-21}),
    ],
)
def test_rescaling_changes_what_the_symmetry_says_and_no_function(make, factor, expected):
    plain, scaled = network(), network()
    first, second = make(plain), make(scaled)
    step(plain, first), step(scaled, second)
    rescale(scaled, second, factor)
    group = second.param_groups[0]
    assert {name: group[name] for name in expected} == expected
    assert torch.equal(scaled[0].weight, factor * plain[0].weight) and torch.equal(scaled[6].weight, plain[6].weight)
    assert torch.equal(scaled[2].running_mean, factor**2 * plain[2].running_mean)
    assert torch.equal(scaled[5].running_var, factor**2 * plain[5].running_var)
    assert [scaled[2].eps, scaled[5].eps] == [factor**4 * 1e-5, factor**2 * 1e-3]
    for seed in (1, 2):
        assert torch.equal(step(scaled, second, seed), step(plain, first, seed))


def test_rescaling_leaves_groups_alone_that_do_not_convert():
    net = network()
    (first, second), (third,) = trained(net)
    parts = [{"params": [first, second]}, {"params": [third], "scale_invariant": False}]
    optimizer = torch.optim.SGD(parts, lr=0.5, weight_decay=0.25)
    kept = third.detach().clone()
    rescale(net, optimizer, 2.0, torch.ones(4, 5, dtype=torch.float64))
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(2.0, 0.0625), (0.5, 0.25)]
    assert torch.equal(third, kept) and [net[2].eps, net[5].eps] == [16e-5, 1e-3]


def test_rescaling_takes_the_inputs_that_it_is_given():
    net = unguessable()
    net[2].bias.data.zero_()
    rescale(net, sgd(net), 2.0, torch.ones(4, 1, 10))
    assert net[3].eps == 2.0**-8


def test_where_nothing_converts_there_is_nothing_to_rescale():
    net = layer_norm()
    for groups in ([{"params": [net[0].weight], "scale_invariant": False}], [net[0].weight.requires_grad_(False)]):
        with pytest.raises(ExplrError) as caught:
            rescale(net, torch.optim.SGD(groups, lr=0.5), 2.0)
        said = "no group of the optimizer that converts has a parameter that trains: there is nothing to rescale."
        assert str(caught.value) == said


TOO_LARGE = "takes weights, the variance that a norm sees, or learning rate out of the range of their dtype: use a smaller one."
TOO_SMALL = (
    "takes weights, the variance that a norm sees, learning rate, weight decay or buffers of the optimizer out of the range of "
    "their dtype: use a larger one."
)


def layer_norm(dtype=torch.float32):
    torch.manual_seed(0)
    layers = nn.Linear(5, 5, bias=False), nn.LayerNorm(5, elementwise_affine=False, eps=0.0)
    return nn.Sequential(*layers).to(dtype)


@pytest.mark.parametrize(
    "factor, options, message",
    [
        (2.0**65, {"lr": 1e-20}, TOO_LARGE),  # the variance
        (2.0**60, {"lr": 1e3}, TOO_LARGE),  # the rate
        (2.0**-540, {"lr": 0.5, "weight_decay": 0.0}, TOO_SMALL),  # the square of the factor is 0
        (2.0**-500, {"lr": 0.5, "weight_decay": 1e10}, TOO_SMALL),
        (0.0, {}, None),
        (-1.0, {}, None),
        (math.nan, {}, None),
        (math.inf, {}, None),
    ],
)
def test_a_factor_that_leads_out_of_range_is_refused_and_nothing_has_changed(factor, options, message):
    net = layer_norm()
    optimizer = sgd(net, **options)
    before = net[0].weight.detach().clone(), dict(optimizer.param_groups[0])
    with pytest.raises(ExplrError) as caught:
        rescale(net, optimizer, factor)
    said = f"factor={factor:g} {message}" if message else f"factor={factor} must be a positive, finite number."
    assert str(caught.value) == said
    assert torch.equal(net[0].weight, before[0]) and optimizer.param_groups[0] == before[1]


@pytest.mark.parametrize("factor", [2.0**60, 2.0**-60])
def test_a_factor_that_is_just_in_range_is_taken(factor):
    net = layer_norm()
    optimizer = sgd(net, lr=0.1)
    rescale(net, optimizer, factor)
    assert optimizer.param_groups[0]["lr"] == 0.1 * factor**2


@pytest.mark.parametrize(
    "make, squares, factor, dtype",
    [
        (sgd, None, 2.0**-63, torch.float32),  # the learning rate
        (lambda net: sgd(net, lr=1e18), None, 2.0**-66, torch.float32),  # the running variance
        (adamw, 1e10, 2.0**-50, torch.float32),  # the average of squares
        (adamw, 1e-300, 2.0**-513, torch.float64),  # 1 / factor**2, whatever it is multiplied by
    ],
)
def test_a_factor_at_which_something_would_vanish_or_a_buffer_overflow_is_refused(make, squares, factor, dtype):
    net = nn.Sequential(
        nn.Linear(5, 8, bias=False), nn.BatchNorm1d(8, affine=False, track_running_stats=dtype == torch.float32)
    )
    net, inputs = net.to(dtype), torch.ones(4, 5, dtype=dtype)
    optimizer = make(net)
    step(net, optimizer)
    if squares:
        optimizer.state[net[0].weight]["exp_avg_sq"].fill_(squares)
    before = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    with pytest.raises(ExplrError, match="use a larger one"):
        rescale(net, optimizer, factor, inputs)
    torch.testing.assert_close((net.state_dict(), optimizer.state_dict()), before, rtol=0, atol=0)


def test_groups_that_share_a_tensor_of_a_rate_are_scaled_once():
    net = network()
    groups = [{"params": part} for part in trained(net)]
    optimizer = torch.optim.SGD(groups, lr=torch.tensor(0.5, dtype=torch.float64), momentum=0.5)
    rescale(net, optimizer, 2.0, torch.ones(4, 5).double())
    assert [float(group["lr"]) for group in optimizer.param_groups] == [2.0, 2.0]


def test_amsgrad_is_scaled_with_its_largest_squares():
    nets = network(), network()
    optimizers = [adamw(net, amsgrad=True) for net in nets]
    for seed in range(6):
        if seed == 3:
            rescale(nets[1], optimizers[1], 4.0, torch.ones(4, 5).double())
        logits = [step(net, optimizer, seed) for net, optimizer in zip(nets, optimizers, strict=True)]
    assert torch.equal(*logits)


def test_the_largest_weight_stays_below_the_largest_number():
    net = layer_norm(torch.float64)
    with torch.no_grad():
        net[0].weight[1, 2] = -(2.0**1000)
    optimizer = torch.optim.AdamW([net[0].weight], lr=1e-300)
    with pytest.raises(ExplrError, match="smaller one"):
        rescale(net, optimizer, 2.0**24)
    with torch.no_grad():
        net[0].weight[2, 2] = torch.finfo(torch.float64).max / 2**23
    with pytest.raises(ExplrError, match="smaller one"):
        rescale(net, optimizer, 2.0**23)
    with torch.no_grad():
        net[0].weight[2, 2] = 0.0
    rescale(net, optimizer, 2.0**23)
    assert net[0].weight[1, 2].item() == -(2.0**1023)


@pytest.mark.parametrize("factor", ["two", None, [1.0, 2.0]])
def test_a_factor_that_is_no_number_is_refused(factor):
    net = layer_norm()
    with pytest.raises(ExplrError) as caught:
        rescale(net, sgd(net), factor)
    assert str(caught.value) == "factor=nan must be a positive, finite number."


def test_rescaling_beside_an_explr_says_what_does_it():
    net = layer_norm()
    optimizer = sgd(net, lr=0.1)
    scheduler = ExpLR(optimizer)
    with pytest.raises(ExplrError) as caught:
        rescale(net, optimizer, 2.0)
    assert str(caught.value) == (
        "the optimizer has an ExpLR, which sets its rate: use ExpLR(..., model=model), which does this itself."
    )
    del scheduler


# ---- unscaling


@pytest.mark.parametrize("renormalize", [False, True])
def test_an_unscaled_copy_is_the_network_of_the_run_with_weight_decay(renormalize):
    plain, grown = network(), network()
    first, second = sgd(plain, lr=0.2, momentum=0.0), sgd(grown, lr=0.2, momentum=0.0)
    scheduler = ExpLR(second, model=grown, renormalize=renormalize)
    for seed in range(12):
        step(plain, first, seed), step(grown, second, seed)
        scheduler.step()
    assert scheduler.log_scale[0] > 0.5
    held = grown[0].weight.detach().clone()
    copied = unscale(nn.DataParallel(grown), scheduler)
    assert copied is not grown and torch.equal(grown[0].weight, held)
    for index in (0, 1, 4, 6):
        torch.testing.assert_close(copied[index].weight, plain[index].weight, rtol=1e-10, atol=0)
    for index in (2, 5):
        torch.testing.assert_close(copied[index].running_mean, plain[index].running_mean, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(copied[index].running_var, plain[index].running_var, rtol=1e-9, atol=0)
        assert copied[index].eps == pytest.approx(plain[index].eps, rel=1e-14)
        assert grown[index].eps != plain[index].eps or renormalize


def test_unscaling_asks_for_the_model_that_the_scheduler_was_built_with():
    net = network()
    optimizer = sgd(net, lr=0.2)
    with pytest.raises(ExplrError) as caught:
        unscale(net, ExpLR(optimizer))
    said = "the ExpLR was built without model=, so it does not know how statistics go with the weights: give it."
    assert str(caught.value) == said
    scheduler = ExpLR(sgd(net, lr=0.2), model=net)
    with pytest.raises(ExplrError) as caught:
        unscale(network(), scheduler)
    assert str(caught.value) == "the model is not the one that the ExpLR was built with: give the one that it trains."
