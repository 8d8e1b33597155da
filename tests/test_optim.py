"""The theorem on a network: two runs, with and without weight decay, compute the same functions; and ExpLR as a scheduler."""

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from explr import ExpLR, ExplrError, ExpSchedule, convert, texp

pytestmark = pytest.mark.filterwarnings("ignore:ExpLR has no model")

STEPS = 25
TOLERANCE = 1e-10


class TinyNet(nn.Module):
    """Two normalised layers and a frozen head: scale-invariant, without any eps."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first, self.second, head = (
            nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in [(6, 5), (6, 6), (3, 6)]
        )
        self.head = head.requires_grad_(False)

    def forward(self, x):
        for weight in (self.first, self.second):
            x = x @ weight.T
            x = (x - x.mean(0)) / x.std(0)
            x = F.leaky_relu(x, 0.3)  # no kink is flat, so no direction is lost
        return x @ self.head.T

    def trainable(self):
        return [self.first, self.second]


def batches(steps=STEPS):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 5, generator=generator, dtype=torch.float64), torch.randint(3, (16,), generator=generator))
        for _ in range(steps)
    ]


def run(lrs, weight_decay, momentum):
    """Train a TinyNet with torch's SGD; return the logits before each step and the weights after it."""
    net = TinyNet()
    optimizer = torch.optim.SGD(net.trainable(), lr=1.0, momentum=momentum, weight_decay=weight_decay)
    logits, weights = [], []
    for lr, (inputs, labels) in zip(lrs, batches(len(lrs)), strict=True):
        optimizer.param_groups[0]["lr"] = float(lr)
        out = net(inputs)
        optimizer.zero_grad()
        F.cross_entropy(out, labels).backward()
        optimizer.step()
        logits.append(out.detach())
        weights.append(torch.cat([w.detach().flatten() for w in net.trainable()]))
    return torch.stack(logits), torch.stack(weights)


def distance(lrs, weight_decay, momentum, schedule):
    """Return by how much functions and weights of the converted run differ from the original's, relative, at the worst step."""
    logits, weights = run(lrs, weight_decay, momentum)
    other_logits, other_weights = run(schedule.lr, 0.0, momentum)
    scaled = other_weights / torch.from_numpy(np.exp(schedule.log_scale[1:]))[:, None]
    functions = ((logits - other_logits).abs().amax((1, 2)) / logits.abs().amax((1, 2))).max()
    proportion = ((weights - scaled).norm(dim=1) / weights.norm(dim=1)).max()
    return max(float(functions), float(proportion))


@st.composite
def runs(draw):
    """Random momentum, random schedule, and as much decay as converts: up to half of the bound of Theorem 1."""
    momentum = draw(st.sampled_from([0.0, 0.5, 0.9, 0.99]))
    lrs = draw(st.lists(st.floats(0.01, 0.3), min_size=STEPS, max_size=STEPS))
    share = draw(st.floats(0.01, 0.5))
    return lrs, share * (1 - math.sqrt(momentum)) ** 2 / max(lrs), momentum


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(runs())
def test_converted_run_computes_the_same_functions_with_proportional_weights(setup):
    lrs, weight_decay, momentum = setup
    assert distance(lrs, weight_decay, momentum, convert(lrs, weight_decay, momentum)) < TOLERANCE


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(runs())
def test_that_check_catches_a_one_percent_error_in_weight_decay(setup):
    lrs, weight_decay, momentum = setup
    assert distance(lrs, weight_decay, momentum, convert(lrs, 1.01 * weight_decay, momentum)) > 10 * TOLERANCE


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(runs())
def test_that_check_catches_a_missing_start_up(setup):
    lrs, weight_decay, momentum = setup
    assume(momentum > 0)  # without momentum the fixed point is there from the start
    lrs = [lrs[0]] * STEPS
    assert distance(lrs, weight_decay, momentum, texp(lrs[:1], [STEPS], weight_decay, momentum)) > 10 * TOLERANCE


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(runs())
def test_that_check_catches_a_wrong_sign_of_the_exponent(setup):
    lrs, weight_decay, momentum = setup
    right = convert(lrs, weight_decay, momentum)
    wrong = ExpSchedule(log_lr=2 * np.log(lrs) - right.log_lr, log_scale=-right.log_scale)
    assert distance(lrs, weight_decay, momentum, wrong) > 10 * TOLERANCE


def test_decay_and_momentum_may_change_at_every_step():
    rng = np.random.default_rng(0)
    lrs, decays, momenta = rng.uniform(0.05, 0.2, STEPS), rng.uniform(0, 2e-3, STEPS), rng.uniform(0.5, 0.9, STEPS)

    def varying(lrs, decays):
        net = TinyNet()
        optimizer = torch.optim.SGD(net.trainable(), lr=1.0, momentum=0.5)
        logits = []
        for lr, decay, momentum, (inputs, labels) in zip(lrs, decays, momenta, batches(), strict=True):
            optimizer.param_groups[0].update(lr=float(lr), weight_decay=float(decay), momentum=float(momentum))
            out = net(inputs)
            optimizer.zero_grad()
            F.cross_entropy(out, labels).backward()
            optimizer.step()
            logits.append(out.detach())
        return torch.stack(logits)

    original, converted = varying(lrs, decays), varying(convert(lrs, decays, momenta).lr, np.zeros(STEPS))
    torch.testing.assert_close(converted, original, rtol=0, atol=TOLERANCE)


# ExpLR: the same, as a scheduler.


def sgd(net, **options):
    return torch.optim.SGD(net.trainable(), **{"lr": 0.1, "momentum": 0.9, "weight_decay": 2e-3, **options})


def one_step(net, optimizer, batch):
    inputs, labels = batch
    out = net(inputs)
    optimizer.zero_grad()
    F.cross_entropy(out, labels).backward()
    optimizer.step()
    return out.detach()


def warm_cosine(optimizer):
    first = lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=5)
    return lr_scheduler.SequentialLR(optimizer, [first, lr_scheduler.CosineAnnealingLR(optimizer, 40)], milestones=[5])


SCHEDULERS = {
    "none": lambda optimizer: None,
    "MultiStepLR": lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [8, 16]),
    "CosineAnnealingLR": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 40),
    "CyclicLR": lambda optimizer: lr_scheduler.CyclicLR(optimizer, 0.01, 0.1, step_size_up=4, cycle_momentum=False),
    "OneCycleLR, with its cyclic momentum": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=60),
    "SequentialLR": warm_cosine,
    "warm-up from 0": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 5, 1.0)),
    "down to 0": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, STEPS),
    "ReduceLROnPlateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=2),
}


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS.keys())
def test_explr_computes_the_functions_of_the_run_that_it_replaces(make):
    metrics = iter([1.0, 0.9, *[1.0] * STEPS])  # no progress after the second: the plateau is found
    original, converted = TinyNet(), TinyNet()
    first, second = sgd(original), sgd(converted)
    theirs, ours = make(first), ExpLR(second, make(second))
    watches = isinstance(theirs, lr_scheduler.ReduceLROnPlateau)
    for step, batch in enumerate(batches()):
        expected, seen = one_step(original, first, batch), one_step(converted, second, batch)
        torch.testing.assert_close(seen, expected, rtol=0, atol=TOLERANCE)
        metric = [next(metrics)] if watches and step % 2 else []
        if metric or not watches:
            if theirs is not None:
                theirs.step(*metric)
            ours.step(*metric)
        assert ours.lrs[0] == pytest.approx(first.param_groups[0]["lr"], rel=1e-12)
        assert ours.get_last_lr() == [second.param_groups[0]["lr"]]
    scale = math.exp(ours.log_scale[0])
    for theirs_w, ours_w in zip(original.trainable(), converted.trainable(), strict=True):
        torch.testing.assert_close(ours_w / scale, theirs_w, rtol=1e-9, atol=0)
    assert second.param_groups[0]["weight_decay"] == 0.0
    if watches:
        assert ours.lrs[0] < 0.1


def test_explr_yields_the_rates_of_convert_over_a_long_run():
    steps = 20_000
    optimizer = sgd(TinyNet(), weight_decay=5e-4)
    scheduler = ExpLR(optimizer, lr_scheduler.StepLR(optimizer, 7000))
    seen = []
    for _ in range(steps):
        seen.append(scheduler.log_lr[0])
        optimizer.step()
        scheduler.step()
    lrs = np.repeat([0.1, 0.01, 0.001], [7000, 7000, 6000])
    np.testing.assert_allclose(seen, convert(lrs, 5e-4, 0.9).log_lr, rtol=0, atol=1e-13)


def test_explr_is_a_torch_scheduler():
    optimizer = sgd(TinyNet())
    assert isinstance(ExpLR(optimizer), lr_scheduler.LRScheduler)
    optimizer = sgd(TinyNet())
    scheduler = ExpLR(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns when its conventions are broken
        for _ in range(3):
            optimizer.step()
            scheduler.step()


def test_a_run_under_way_converts_too():
    original = TinyNet()
    first = sgd(original)
    for batch in batches(10):
        one_step(original, first, batch)
    converted = copy.deepcopy(original)
    second = sgd(converted)
    second.load_state_dict(copy.deepcopy(first.state_dict()))  # else both would share their momentum buffers
    scheduler = ExpLR(second)
    for batch in batches():
        expected, seen = one_step(original, first, batch), one_step(converted, second, batch)
        scheduler.step()
        torch.testing.assert_close(seen, expected, rtol=0, atol=TOLERANCE)


def test_groups_convert_each_on_its_own_and_one_without_decay_is_left_alone():
    net = TinyNet()
    groups = [{"params": [net.first], "weight_decay": 1e-3}, {"params": [net.second], "weight_decay": 0.0, "lr": 0.03}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    scheduler = ExpLR(optimizer, lr_scheduler.StepLR(optimizer, 3))
    for step in range(6):
        expected = convert([0.1, 0.1, 0.1, 0.01, 0.01, 0.01], 1e-3, 0.9).lr[step]
        assert scheduler.get_last_lr()[0] == pytest.approx(expected, rel=1e-12)
        assert scheduler.get_last_lr()[1] == scheduler.lrs[1] == pytest.approx(0.03 * 0.1 ** (step // 3), rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_a_tensor_learning_rate_stays_the_same_tensor():
    rate = torch.tensor(0.1, dtype=torch.float64)
    optimizer = sgd(TinyNet(), lr=rate)
    scheduler = ExpLR(optimizer)
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(convert([0.1, 0.1], 2e-3, 0.9).lr[1], rel=1e-15)


@pytest.mark.parametrize("order", ["optimizer first", "scheduler first"])
@pytest.mark.parametrize("name", ["none", "MultiStepLR", "SequentialLR", "OneCycleLR, with its cyclic momentum"])
def test_state_dict_resumes_to_the_same_bits(name, order):
    def build(net):
        optimizer = sgd(net)
        return optimizer, lambda: ExpLR(optimizer, SCHEDULERS[name](optimizer))

    whole = TinyNet()
    optimizer, make = build(whole)
    scheduler = make()
    for step, batch in enumerate(batches()):
        if step == 10:
            saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict(), scheduler.state_dict()))
        one_step(whole, optimizer, batch)
        scheduler.step()

    resumed = TinyNet(seed=5)
    resumed.load_state_dict(saved[0])
    optimizer, make = build(resumed)
    if order == "optimizer first":
        optimizer.load_state_dict(saved[1])
        scheduler = make()
        scheduler.load_state_dict(saved[2])
    else:
        scheduler = make()
        optimizer.load_state_dict(saved[1])
        scheduler.load_state_dict(saved[2])
    for batch in batches()[10:]:
        one_step(resumed, optimizer, batch)
        scheduler.step()
    for expected, seen in zip(whole.trainable(), resumed.trainable(), strict=True):
        assert torch.equal(expected, seen)


def test_state_is_plain_numbers(tmp_path):
    optimizer = sgd(TinyNet())
    scheduler = ExpLR(optimizer, lr_scheduler.StepLR(optimizer, 3))
    torch.save(scheduler.state_dict(), tmp_path / "state.pt")
    scheduler.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"])
def test_a_copy_goes_on_as_the_original_does(duplicate):
    net = TinyNet()
    optimizer = sgd(net)
    scheduler = ExpLR(optimizer, lr_scheduler.StepLR(optimizer, 3))
    optimizer.step()
    scheduler.step()
    second, twin = duplicate((optimizer, scheduler))
    for _ in range(4):
        for one in (optimizer, second):
            one.step()
        for one in (scheduler, twin):
            one.step()
        assert scheduler.get_last_lr() == twin.get_last_lr()
    with pytest.raises(ExplrError, match="already has an ExpLR"):
        ExpLR(second)


def refuse(**options):
    return lambda net: ExpLR(sgd(net, **options))


def scheduler_dropped(net):
    optimizer = sgd(net)
    ExpLR(optimizer)
    optimizer.step()


def momentum_set_by_hand(net):
    optimizer = sgd(net)
    scheduler = ExpLR(optimizer)
    optimizer.param_groups[0]["momentum"] = 0.5
    optimizer.step()
    del scheduler


def run_until_overflow(net):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2, dtype=torch.float16))], lr=0.1, weight_decay=1.0)
    scheduler = ExpLR(optimizer)
    for _ in range(100):
        optimizer.step()
        scheduler.step()


def growing_past_the_bound(net):
    optimizer = sgd(net)
    scheduler = ExpLR(optimizer, lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step == 0 else 1e5))
    optimizer.step()
    scheduler.step()


class MomentumOff(lr_scheduler.LambdaLR):
    def step(self):
        super().step()
        self.optimizer.param_groups[0]["momentum"] = 0.9 if self.last_epoch == 0 else 0.0


def momentum_switched_off(net):
    optimizer = sgd(net)
    scheduler = ExpLR(optimizer, MomentumOff(optimizer, lambda step: 1.0))
    optimizer.step()
    scheduler.step()


def nesterov_switched_on(net):
    optimizer = sgd(net)
    scheduler = ExpLR(optimizer)
    optimizer.param_groups[0]["nesterov"] = True
    scheduler.step()


def rate_set_by_hand(net):
    optimizer = sgd(net)
    scheduler = ExpLR(optimizer)
    optimizer.param_groups[0]["lr"] = 0.05
    scheduler.step()


def decay_loaded_back(net):
    optimizer = sgd(net)
    before = copy.deepcopy(optimizer.state_dict())
    scheduler = ExpLR(optimizer)
    before["param_groups"][0]["lr"] = scheduler.get_last_lr()[0]
    optimizer.load_state_dict(before)
    scheduler.step()


def state_of_another_kind(net):
    optimizer = sgd(net)
    state = ExpLR(optimizer, lr_scheduler.StepLR(optimizer, 3)).state_dict()
    optimizer = sgd(net)
    ExpLR(optimizer, lr_scheduler.CosineAnnealingLR(optimizer, 3)).load_state_dict(state)


def state_of_no_explr(net):
    optimizer = sgd(net)
    ExpLR(sgd(net)).load_state_dict(lr_scheduler.StepLR(optimizer, 3).state_dict())


def group_added_late(net):
    optimizer = torch.optim.SGD([net.first], lr=0.1)
    scheduler = ExpLR(optimizer)
    optimizer.add_param_group({"params": [net.second]})
    scheduler.step()


def converted_twice(net):
    optimizer = sgd(net)
    ExpLR(optimizer)
    ExpLR(optimizer)


def scheduler_of_another_optimizer(net):
    ExpLR(sgd(net), lr_scheduler.StepLR(sgd(net), 3))


def state_of_other_groups(net):
    state = ExpLR(torch.optim.SGD([{"params": [net.first]}, {"params": [net.second]}], lr=0.1)).state_dict()
    ExpLR(sgd(net)).load_state_dict(state)


def state_without_the_wrapped_scheduler(net):
    optimizer = sgd(net)
    ExpLR(optimizer, lr_scheduler.StepLR(optimizer, 3)).load_state_dict(ExpLR(sgd(TinyNet())).state_dict())


@pytest.mark.parametrize(
    "call, parts",
    [
        (refuse(dampening=1.5), ["dampening=1.5", "below 1"]),
        (refuse(nesterov=True, lr=1000.0), ["step 0", "Nesterov", "((1 - momentum) / (1 + momentum))**2"]),
        (refuse(maximize=True), ["maximize=True", "negative"]),
        (refuse(momentum=1.0), ["momentum=1.0", "[0, 1)"]),
        (refuse(lr=math.nan), ["lr=nan", "finite"]),
        (refuse(weight_decay=math.inf), ["weight_decay=inf"]),
        (refuse(lr=1000.0), ["step 0", "lr=1000", "must be below 500"]),
        (lambda net: ExpLR(torch.optim.Adam(net.trainable(), weight_decay=0.1)), ["Adam", "torch.optim.AdamW"]),
        (lambda net: ExpLR(torch.optim.AdamW(net.trainable(), amsgrad=True)), ["amsgrad=True", "amsgrad=False"]),
        (lambda net: ExpLR(torch.optim.RMSprop(net.trainable())), ["RMSprop", "torch.optim.SGD"]),
        (scheduler_dropped, ["gone", "keep it"]),
        (momentum_set_by_hand, ["momentum", "0.5, not 0.9"]),
        (run_until_overflow, ["activations' growth of step 7", "torch.float16", "wider dtype"]),
        (growing_past_the_bound, ["step 1", "lr=10000", "must be below"]),
        (momentum_switched_off, ["momentum=0.0 at step 1", "1e-9"]),
        (nesterov_switched_on, ["nesterov=True"]),
        (rate_set_by_hand, ["0.05", "step only ExpLR"]),
        (decay_loaded_back, ["weight_decay=0.002 again"]),
        (state_of_another_kind, ["StepLR", "CosineAnnealingLR"]),
        (state_of_no_explr, ["ExpLR.state_dict()", "before ExpLR is built"]),
        (lambda net: ExpLR(sgd(net), lambda step: 0.1), ["LambdaLR"]),
        (lambda net: ExpLR(sgd(net), [lr_scheduler.StepLR(sgd(net), 3)] * 2), ["ChainedScheduler"]),
        (lambda net: ExpLR(sgd(net), net), ["TinyNet", "the network as model="]),
        (group_added_late, ["2 parameter groups", "before building"]),
        (converted_twice, ["already has an ExpLR"]),
        (scheduler_of_another_optimizer, ["another optimizer"]),
        (lambda net: ExpLR(sgd(net)).step(0.5), ["step(0.5)", "ReduceLROnPlateau"]),
        (state_of_other_groups, ["2 parameter groups", "has 1"]),
        (state_without_the_wrapped_scheduler, ["wrapped scheduler"]),
    ],
)
@pytest.mark.filterwarnings("ignore:Detected call of")
def test_bad_input_gets_one_error_that_restates_it(call, parts):
    with pytest.raises(ExplrError) as caught:
        call(TinyNet())
    for part in parts:
        assert part in str(caught.value)


def test_a_refused_optimizer_is_left_as_it_was():
    optimizer = sgd(TinyNet(), maximize=True)
    with pytest.raises(ExplrError):
        ExpLR(optimizer)
    assert optimizer.param_groups[0]["weight_decay"] == 2e-3


def test_a_refused_step_leaves_the_rate_as_it_was():
    optimizer = sgd(TinyNet())
    scheduler = ExpLR(optimizer, lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step == 0 else 1e5))
    before = optimizer.param_groups[0]["lr"]
    optimizer.step()
    with pytest.raises(ExplrError):
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == before


class Layerwise(torch.optim.SGD):
    """A subclass whose step is its own, as LARS has."""

    def step(self, closure=None):
        return super().step(closure)


class Renamed(torch.optim.SGD):
    """A subclass that only has another name."""


def test_a_subclass_with_a_step_of_its_own_is_refused_and_one_without_is_not():
    net = TinyNet()
    with pytest.raises(ExplrError, match=r"Layerwise has a step of its own \(test_optim\)"):
        ExpLR(Layerwise(net.trainable(), lr=0.1, weight_decay=1e-3))
    ExpLR(Renamed(net.trainable(), lr=0.1, weight_decay=1e-3))


@pytest.mark.parametrize(
    "name, value",
    [
        ("lr", "0.1"),
        ("lr", None),
        ("lr", torch.tensor(0.1, dtype=torch.float16)),
        ("lr", torch.tensor(1)),
        ("lr", torch.tensor(0.1, requires_grad=True)),
        ("lr", torch.tensor([0.1, 0.1])),
        ("momentum", [0.9]),
        ("momentum", True),
        ("weight_decay", 1e-3 + 0j),
        ("dampening", "none"),
    ],
    ids=str,
)
def test_a_value_that_is_no_plain_number_is_refused_and_the_optimizer_is_left_as_it_was(name, value):
    optimizer = sgd(TinyNet())
    optimizer.param_groups[0][name] = value
    before = dict(optimizer.param_groups[0])
    with pytest.raises(ExplrError, match=f"has {name}="):
        ExpLR(optimizer)
    assert all(optimizer.param_groups[0][key] is kept for key, kept in before.items())
    assert not optimizer._optimizer_step_pre_hooks


def spoilt(state, name, value):
    return {**copy.deepcopy(state), name: value}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: None,
        lambda state: [],
        lambda state: "state",
        lambda state: {},
        lambda state: spoilt(state, "believed", 3),
        lambda state: spoilt(state, "believed", [{"lr": 0.1}]),
        lambda state: spoilt(state, "log_scale", ["far"]),
        lambda state: spoilt(state, "log_scale", [math.nan]),
        lambda state: spoilt(state, "memory", [[0.0]]),
        lambda state: spoilt(state, "families", None),
        lambda state: spoilt(state, "families", ["AdamW"]),
        lambda state: spoilt(state, "in_use", [None]),
        lambda state: spoilt(state, "last_epoch", "two"),
        lambda state: spoilt(state, "scheduler", ["StepLR"]),
        lambda state: spoilt(state, "scheduler", ["StepLR", None]),
        lambda state: spoilt(state, "eps", {"norm": "small"}),
    ],
)
def test_a_damaged_state_gives_one_error_and_changes_nothing(spoil):
    net = TinyNet()
    optimizer = sgd(net)
    scheduler = ExpLR(optimizer, lr_scheduler.StepLR(optimizer, 3))
    optimizer.step()
    scheduler.step()
    before = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    with pytest.raises(ExplrError):
        scheduler.load_state_dict(spoil(scheduler.state_dict()))
    assert (optimizer.state_dict(), scheduler.state_dict()) == before
    scheduler.load_state_dict(before[1])


def test_a_closure_that_raises_may_be_tried_again():
    net = TinyNet()
    optimizer = sgd(net)
    scheduler = ExpLR(optimizer)
    inputs, labels = batches(1)[0]

    def closure(fail):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(inputs), labels)
        loss.backward()
        if fail:
            raise MemoryError
        return loss

    with pytest.raises(MemoryError):
        optimizer.step(lambda: closure(True))
    optimizer.step(lambda: closure(False))
    scheduler.step()
    assert scheduler.log_scale[0] > 0
