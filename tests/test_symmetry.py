"""The whole symmetry: eps, running statistics, eval mode, and runs that never overflow."""

import copy
import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import MultiStepLR

from explr import ExpLR, ExplrError, models, rescale, scale_invariance
from explr.experiments.data import epoch_choices, synthetic
from explr.symmetry import exact_exp, guess_inputs

pytestmark = pytest.mark.filterwarnings("ignore:ExpLR has no model")

STEPS = 20
DATA = synthetic(train=160, test=40)


def network(norm="batch", dtype=torch.float64, **options):
    torch.manual_seed(0)
    return models.preresnet(8, width=4, norm=norm, **options).to(dtype)  # eps is the default, 1e-5


def sgd(net, **options):
    parameters = [p for p in net.parameters() if p.requires_grad]
    return torch.optim.SGD(parameters, **{"lr": 0.2, "momentum": 0.9, "weight_decay": 5e-3, **options})


def step(net, optimizer, index):
    dtype = next(net.parameters()).dtype
    images, labels = DATA.train_batch(epoch_choices(160, 0, index)[:16], dtype)
    logits = net(images)
    optimizer.zero_grad()
    F.cross_entropy(logits, labels).backward()
    optimizer.step()
    return logits.detach()


def test_logits(net):
    net.eval()
    with torch.no_grad():
        logits = net(DATA.normalize(DATA.test_images, next(net.parameters()).dtype))
    net.train()
    return logits


test_logits.__test__ = False  # type: ignore[attr-defined]


def twins(steps=STEPS, norm="batch", dtype=torch.float64, **options):
    """Run weight decay and ExpLR side by side, the rate dropping on the way; return the largest errors, training and eval."""
    original, converted = network(norm, dtype), network(norm, dtype)
    first, second = sgd(original), sgd(converted)
    theirs = MultiStepLR(first, [12])
    if options.pop("with_model", False):
        options["model"] = converted
    ours = ExpLR(second, MultiStepLR(second, [12]), **options)
    training = evaluation = 0.0
    for index in range(steps):
        expected, seen = step(original, first, index), step(converted, second, index)
        theirs.step()
        ours.step()
        training = max(training, float((seen - expected).abs().max() / expected.abs().max()))
        expected, seen = test_logits(original), test_logits(converted)
        evaluation = max(evaluation, float((seen - expected).abs().max() / expected.abs().max()))
    return training, evaluation


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("norm", ["batch", "layer", "group", "instance"])
def test_with_the_model_the_default_eps_and_eval_mode_are_exact_too(norm, renormalize):
    training, evaluation = twins(norm=norm, with_model=True, renormalize=renormalize)
    assert training < 1e-10
    assert evaluation < 1e-10


def test_that_check_sees_an_eps_and_statistics_that_stay_behind():
    training, evaluation = twins()
    assert training > 1e-7
    assert evaluation > 1e-4


def explr_run(dtype, steps, renormalize, weight_decay, momentum=0.9, lr=0.2):
    net = network(dtype=dtype)
    optimizer = sgd(net, weight_decay=weight_decay, momentum=momentum, lr=lr)
    scheduler = ExpLR(optimizer, model=net, renormalize=renormalize)
    logits = []
    for index in range(steps):
        logits.append(step(net, optimizer, index))
        scheduler.step()
    return net, scheduler, torch.stack(logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_renormalised_run_is_the_other_run_bit_for_bit(dtype):
    plain, other, plain_logits = explr_run(dtype, 80, False, weight_decay=1.2e-2)
    bounded, scheduler, bounded_logits = explr_run(dtype, 80, True, weight_decay=1.2e-2)
    assert scheduler.exponents[0] >= 2  # it did happen, more than once
    assert torch.equal(plain_logits, bounded_logits)
    assert torch.equal(test_logits(plain), test_logits(bounded))
    for one, two in zip(plain.parameters(), bounded.parameters(), strict=True):
        if one.requires_grad:
            assert torch.equal(one, two * 2.0 ** scheduler.exponents[0])
    assert scheduler.log_lr == other.log_lr


def test_float32_survives_a_growth_of_10_to_the_40_and_trains_as_float64_does():
    net, scheduler, logits = explr_run(torch.float32, 160, True, weight_decay=1.5, momentum=0.0)
    assert scheduler.log_lr[0] / math.log(10) > 40
    assert logits.isfinite().all() and test_logits(net).isfinite().all()
    assert all(p.isfinite().all() and p.abs().max() < 1e3 for p in net.parameters())
    _, _, exact = explr_run(torch.float64, 160, False, weight_decay=1.5, momentum=0.0)

    def losses(of):
        labels = [DATA.train_batch(epoch_choices(160, 0, index)[:16])[1] for index in range(160)]
        return torch.stack([F.cross_entropy(x.double(), y) for x, y in zip(of, labels, strict=True)])

    late, exact_late = losses(logits)[-60:], losses(exact)[-60:]
    assert abs(late.mean() - exact_late.mean()) < 3 * math.hypot(late.std(), exact_late.std()) / math.sqrt(60)
    with pytest.raises(ExplrError, match="renormalize=True"):
        explr_run(torch.float32, 160, False, weight_decay=1.5, momentum=0.0)


def test_true_norms_and_rates_can_be_had_from_a_renormalised_run():
    original = network()
    first = sgd(original, weight_decay=8e-3)
    for index in range(30):
        step(original, first, index)
    net, scheduler, _ = explr_run(torch.float64, 30, True, weight_decay=8e-3)
    held = net.blocks[1].conv1.weight.norm().item()
    true = held * 2.0 ** scheduler.exponents[0]
    assert true == pytest.approx(original.blocks[1].conv1.weight.norm().item() * math.exp(scheduler.log_scale[0]), rel=1e-10)
    in_force = scheduler.get_last_lr()[0]
    assert math.log(in_force * 4.0 ** scheduler.exponents[0]) == pytest.approx(scheduler.log_lr[0], rel=1e-14)


@pytest.mark.parametrize("order", ["optimizer first", "scheduler first"])
def test_renormalised_run_resumes_to_the_same_bits_on_a_new_model(order):
    def build():
        net = network(dtype=torch.float32)
        optimizer = sgd(net, weight_decay=8e-3)
        return net, optimizer, lambda: ExpLR(optimizer, model=net, renormalize=True)

    whole, optimizer, make = build()
    scheduler = make()
    for index in range(30):
        if index == 20:
            saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict(), scheduler.state_dict()))
        step(whole, optimizer, index)
        scheduler.step()

    resumed, optimizer, make = build()
    resumed.load_state_dict(saved[0])
    if order == "optimizer first":
        optimizer.load_state_dict(saved[1])
        scheduler = make()
    else:
        scheduler = make()
        optimizer.load_state_dict(saved[1])
    scheduler.load_state_dict(saved[2])
    for index in range(20, 30):
        step(resumed, optimizer, index)
        scheduler.step()
    assert torch.equal(test_logits(whole), test_logits(resumed))


def test_a_trainable_head_keeps_its_weight_decay_and_its_rate():
    original, converted = network(frozen_head=False), network(frozen_head=False)
    first = sgd(original)
    report = scale_invariance(converted, torch.randn(4, 3, 32, 32, dtype=torch.float64))
    groups = report.parameter_groups(lr=0.2, momentum=0.9, weight_decay=5e-3)
    second = torch.optim.SGD(groups, lr=0.2)
    scheduler = ExpLR(second, model=converted)
    for index in range(STEPS):
        expected, seen = step(original, first, index), step(converted, second, index)
        scheduler.step()
        torch.testing.assert_close(seen, expected, rtol=0, atol=1e-10)
    assert [group["weight_decay"] for group in second.param_groups] == [0.0, 5e-3]
    assert second.param_groups[1]["lr"] == 0.2
    torch.testing.assert_close(converted.head.weight, original.head.weight, rtol=1e-10, atol=0)


@pytest.mark.parametrize("factor", [4.0, 0.125, 3.0])
def test_rescaling_in_the_middle_of_a_run_changes_no_function(factor):
    plain, scaled = network(), network()
    first, second = sgd(plain, weight_decay=0.0), sgd(scaled, weight_decay=0.0)
    for index in range(12):
        if index in (4, 8):
            rescale(scaled, second, factor)
        expected, seen = step(plain, first, index), step(scaled, second, index)
        if math.log2(factor).is_integer():
            assert torch.equal(seen, expected) and torch.equal(test_logits(scaled), test_logits(plain))
        else:
            torch.testing.assert_close(seen, expected, rtol=0, atol=1e-11)
            torch.testing.assert_close(test_logits(scaled), test_logits(plain), rtol=0, atol=1e-11)
    torch.testing.assert_close(scaled.stem.weight, plain.stem.weight * factor**2, rtol=1e-9, atol=0)
    assert second.param_groups[0]["lr"] == pytest.approx(0.2 * factor**4)
    assert scaled.norm.eps == pytest.approx(1e-5 * factor**4)


def test_eps_follows_the_degree_of_the_norm_s_input():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(5, 8, bias=False),
        nn.Linear(8, 8, bias=False),
        nn.BatchNorm1d(8, affine=False),  # its input has degree 2
        nn.ReLU(),
        nn.Linear(8, 8, bias=False),
        nn.LayerNorm(8, elementwise_affine=False),  # degree 1
        nn.BatchNorm1d(8, affine=False),  # degree 0
        nn.Linear(8, 3).requires_grad_(False),
    )
    rescale(net, torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1), 2.0)
    assert [net[i].eps for i in (2, 5, 6)] == [16e-5, 4e-5, 1e-5]


def test_weight_decay_goes_with_the_symmetry_too():
    plain, scaled = network(), network()
    first, second = sgd(plain), sgd(scaled)
    rescale(scaled, second, 3.0)
    for index in range(10):
        torch.testing.assert_close(step(scaled, second, index), step(plain, first, index), rtol=0, atol=1e-10)


def test_all_parameters_may_be_given_frozen_ones_among_them():
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9, weight_decay=1.2e-3)
    head = net.head.weight.clone()
    rescale(net, optimizer, 2.0)
    scheduler = ExpLR(optimizer, model=net, renormalize=True)
    for index in range(3):
        step(net, optimizer, index)
        scheduler.step()
    assert torch.equal(net.head.weight, head)


def split(net, **second):
    """Put the stem, which can only be scaled together with the rest, into a group of its own."""
    rest = [p for p in net.parameters() if p.requires_grad and p is not net.stem.weight]
    return torch.optim.SGD([{"params": rest}, {"params": [net.stem.weight], **second}], lr=0.2, momentum=0.9, weight_decay=5e-3)


def test_groups_that_belong_together_convert_when_they_decay_alike():
    original, converted = network(), network()
    first, second = sgd(original), split(converted)
    scheduler = ExpLR(second, model=converted)
    for index in range(10):
        torch.testing.assert_close(step(converted, second, index), step(original, first, index), rtol=0, atol=1e-10)
        scheduler.step()


def test_groups_that_belong_together_are_refused_when_they_decay_differently():
    net = network()
    optimizer = split(net, weight_decay=1e-3)
    for group in optimizer.param_groups:
        group["scale_invariant"] = True
    with pytest.raises(ExplrError, match="only when they are scaled together"):
        ExpLR(optimizer, model=net)


def test_of_groups_that_decay_differently_that_part_converts_which_can_be_scaled_on_its_own():
    original, converted = network(), network()
    first, second = split(original, weight_decay=1e-3), split(converted, weight_decay=1e-3)
    scheduler = ExpLR(second, model=converted)
    for index in range(10):
        torch.testing.assert_close(step(converted, second, index), step(original, first, index), rtol=0, atol=1e-10)
        scheduler.step()
    assert [group["weight_decay"] for group in second.param_groups] == [0.0, 1e-3, 5e-3]


class Functional(nn.Module):
    """Normalises without a module whose eps could be changed."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(5, 8, bias=False), nn.Linear(8, 3).requires_grad_(False)

    def forward(self, x):
        return self.head(F.layer_norm(self.first(x), (8,)))


def test_a_norm_that_cannot_follow_is_named_in_a_warning():
    net = Functional()
    with pytest.warns(UserWarning, match="cannot follow the weights"):
        ExpLR(torch.optim.SGD([net.first.weight], lr=0.1, weight_decay=1e-3), model=net)


def test_an_eps_that_is_a_whole_number_follows_too():
    net = nn.Sequential(nn.Linear(5, 8, bias=False), nn.LayerNorm(8, eps=1, elementwise_affine=False))
    rescale(net, torch.optim.SGD(net.parameters(), lr=0.1), 2.0)
    assert net[1].eps == 4.0


def test_a_second_scheduler_on_the_same_model_goes_on_from_the_same_eps():
    net = network()
    optimizer = sgd(net)
    scheduler = ExpLR(optimizer, model=net)
    for index in range(5):
        step(net, optimizer, index)
        scheduler.step()
    eps = net.norm.eps
    second = sgd(net)
    again = ExpLR(second, model=net)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    again.load_state_dict(copy.deepcopy(scheduler.state_dict()))
    assert net.norm.eps == eps


def renormalised_state_without_a_model(net, optimizer):
    other = network()
    second = sgd(other, weight_decay=1.2e-2)
    scheduler = ExpLR(second, model=other, renormalize=True)
    while not scheduler.exponents[0]:
        second.step()
        scheduler.step()
    ExpLR(optimizer).load_state_dict(scheduler.state_dict())


def state_of(net, optimizer):
    eps = [getattr(module, "eps", None) for module in net.modules()]
    return copy.deepcopy((net.state_dict(), optimizer.state_dict(), eps))


def same(one, two):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


def in_eval_mode(net, optimizer):
    rescale(net.eval(), optimizer, 2.0)


def begins_with_an_embedding(net, optimizer):
    rescale(nn.Sequential(nn.Embedding(5, 3), net), optimizer, 2.0)


@pytest.mark.parametrize(
    "call, parts",
    [
        (lambda net, optimizer: rescale(net, optimizer, 0.0), ["factor=0.0", "positive"]),
        (lambda net, optimizer: rescale(net, optimizer, -1.0), ["factor=-1.0"]),
        (lambda net, optimizer: rescale(net, optimizer, math.inf), ["factor=inf"]),
        (lambda net, optimizer: rescale(net, optimizer, math.nan), ["factor=nan"]),
        (lambda net, optimizer: rescale(network(), optimizer, 2.0), ["parameters that the model has not"]),
        (lambda net, optimizer: rescale(net, optimizer, 2.0, torch.zeros(2, 5)), ["5"]),
        (lambda net, optimizer: ExpLR(optimizer, renormalize=True), ["renormalize=True needs model="]),
        (lambda net, optimizer: ExpLR(optimizer, model=network()), ["parameters that the model has not"]),
        (lambda net, optimizer: rescale(net, optimizer, "two"), ["factor"]),
        (lambda net, optimizer: rescale(net, optimizer, 1e200), ["factor=1e+200", "smaller"]),
        (lambda net, optimizer: rescale(net, optimizer, 1e-200), ["factor=1e-200", "larger"]),
        (lambda net, optimizer: rescale(net, torch.optim.Adam(net.parameters()), 2.0), ["Adam"]),
        (in_eval_mode, ["eval"]),
        (begins_with_an_embedding, ["example_inputs"]),
    ],
)
def test_bad_input_gets_one_error_and_changes_nothing(call, parts):
    net = network()
    optimizer = sgd(net, weight_decay=1e-3)
    before = state_of(net, optimizer)
    with pytest.raises(ExplrError) as caught:
        call(net, optimizer)
    for part in parts:
        assert part in str(caught.value)
    assert same(before, state_of(net, optimizer))


@pytest.mark.parametrize("options", [{"affine": True}, {"frozen_head": False}])
def test_a_group_that_is_said_to_be_invariant_and_is_not_is_refused_with_the_reason(options):
    net = network(**options)
    optimizer = sgd(net)
    optimizer.param_groups[0]["scale_invariant"] = True
    before = state_of(net, optimizer)
    for call in (lambda: rescale(net, optimizer, 2.0), lambda: ExpLR(optimizer, model=net)):
        with pytest.raises(ExplrError, match="not scale-invariant in the optimizer's parameters"):
            call()
        assert same(before, state_of(net, optimizer))


@pytest.mark.parametrize("options", [{"affine": True}, {"frozen_head": False}])
def test_what_does_not_convert_is_set_apart_and_keeps_its_decay_under_the_wrapped_schedule(options, caplog):
    original, converted = network(**options), network(**options)
    first, second = sgd(original), sgd(converted)
    theirs, ours = MultiStepLR(first, [5, 10]), ExpLR(second, MultiStepLR(second, [5, 10]), model=converted)
    assert [record.getMessage() for record in caplog.records if record.name == "explr"] == [ours.summary]
    assert re.search("keeps? (its|their) weight decay", ours.summary)
    for index in range(STEPS):
        torch.testing.assert_close(step(converted, second, index), step(original, first, index), rtol=0, atol=1e-10)
        theirs.step()
        ours.step()
    assert [group["weight_decay"] for group in second.param_groups] == [0.0, 5e-3]
    assert ours.lrs == pytest.approx([2e-3, 2e-3]) and second.param_groups[1]["lr"] == pytest.approx(2e-3)


def test_a_network_of_which_nothing_converts_is_refused_with_the_reason():
    net = nn.Linear(5, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=1e-3)
    before = state_of(net, optimizer)
    with pytest.raises(
        ExplrError, match=r"not scale-invariant in the optimizer's parameters: .* put a norm behind every"
    ) as caught:
        ExpLR(optimizer, model=net)
    assert "parameter_groups" not in str(caught.value)
    assert same(before, state_of(net, optimizer))


def test_many_reasons_are_cut_short():
    net = nn.Sequential(*[nn.Linear(5, 5) for _ in range(9)])
    with pytest.raises(ExplrError, match=r"7 more: scale_invariance\(model, ...\) tells all") as caught:
        ExpLR(torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=1e-3), model=net)
    assert str(caught.value).count("degrees") == 2


class Residual(nn.Module):
    """A residual stream, as a transformer has it: what writes to it is scale-invariant, biases included, in one piece."""

    def __init__(self):
        super().__init__()
        self.stem, self.branch, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.norm, self.last = (nn.LayerNorm(6, elementwise_affine=False) for _ in range(2))

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.last(x + self.branch(self.norm(x))))


def test_biases_that_do_not_decay_beside_weights_that_do_are_named_where_they_must_be_scaled_together():
    """The usual recipe for transformers; with one decay for all it converts."""
    net = Residual()
    parts = [[p for p in net.parameters() if (p.ndim > 1) is many] for many in (True, False)]
    groups = [{"params": parts[0]}, {"params": parts[1], "weight_decay": 0.0}]
    with pytest.raises(ExplrError, match=r"together with stem.bias, branch.bias. Give these the same lr and weight_decay"):
        ExpLR(torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.05), model=net)
    assert "4 of 6 tensors" in ExpLR(torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.05), model=net).summary


def test_only_what_another_batch_may_mend_asks_for_one():
    net = network()
    optimizer = sgd(net)
    with pytest.raises(ExplrError, match=r"^PreResNet is in eval mode, .* stay as they are\.$"):
        ExpLR(optimizer, model=net.eval())
    with pytest.raises(ExplrError, match=r"^model= takes a torch.nn.Module, not type\.$"):
        ExpLR(optimizer, model=nn.Linear)
    with pytest.raises(ExplrError, match=r"2D input\)\. The batch, of shape \(16, 5\), was guessed: give example_inputs"):
        ExpLR(optimizer, model=nn.Sequential(nn.Linear(5, 3), nn.BatchNorm2d(3)))


def test_a_renormalised_state_needs_a_model():
    net = network()
    with pytest.raises(ExplrError, match="build ExpLR with model="):
        renormalised_state_without_a_model(net, sgd(net))


@pytest.mark.parametrize("norm, dtype, factor", [(nn.LayerNorm, torch.float32, 1e10), (nn.BatchNorm1d, torch.float64, 1e80)])
def test_rescaling_is_refused_where_only_the_norms_would_overflow(norm, dtype, factor):
    """Behind two linear layers the degree is 2: the variance grows with the fourth power of the factor."""
    affine = {"elementwise_affine": False} if norm is nn.LayerNorm else {"affine": False}
    layers = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False), norm(8, **affine)
    net = nn.Sequential(*layers).to(dtype)
    optimizer = sgd(net)
    before = net[0].weight.detach().clone()
    with pytest.raises(ExplrError, match="variance that a norm sees"):
        rescale(net, optimizer, factor)
    assert torch.equal(net[0].weight, before)
    rescale(net, optimizer, 2.0)
    assert net(torch.randn(4, 8, dtype=dtype)).isfinite().all()


def test_rescaling_beside_an_explr_is_refused():
    net = network()
    optimizer = sgd(net)
    ExpLR(optimizer)
    with pytest.raises(ExplrError, match="does this itself"):
        rescale(net, optimizer, 2.0)


@pytest.mark.parametrize("power", [0.0, 1e-9, -3.7, 88.0, 700.0])
def test_exact_exp(power):
    assert exact_exp(power) == pytest.approx(math.exp(power), rel=1e-13)
    assert exact_exp(power, 500) * 2.0**500 == exact_exp(power)


def test_inputs_that_are_no_tuple_or_were_guessed_wrongly_are_named():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 26 * 26, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=1e-3)
    with pytest.raises(ExplrError, match=r"example_inputs is a tensor: .* as a tuple, \(batch,\)"):
        ExpLR(optimizer, model=net, example_inputs=torch.randn(2, 1, 28, 28))
    with pytest.raises(ExplrError, match=r"The batch, of shape \(16, 1, 32, 32\), was guessed: give example_inputs"):
        ExpLR(optimizer, model=net)


@pytest.mark.parametrize("seed", range(4))
def test_a_bias_before_a_batch_norm_is_no_obstacle_to_a_model(seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(784, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 10))
    ExpLR(torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=1e-3), model=net)


def test_guessed_inputs_fit():
    for net in (nn.Linear(7, 2), nn.Conv1d(3, 2, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(3, 2, 3)), nn.Conv3d(1, 2, 3).double()):
        net(*guess_inputs(net))
