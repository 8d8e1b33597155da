"""The twins of Nesterov momentum, dampening and AdamW: in numbers, on a network, and through ExpLR."""

import copy
import math
from decimal import Decimal, getcontext

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_optim import TinyNet, batches
from torch.nn import functional as F
from torch.optim import lr_scheduler

from explr import (
    ExpLR,
    ExplrError,
    adamw_steady_state,
    characteristic_root,
    convert,
    convert_adamw,
    growth_rate,
    models,
    rescale,
    scale_invariance,
)

pytestmark = pytest.mark.filterwarnings("ignore:ExpLR has no model")

STEPS = 25
TOLERANCE = 1e-10
ADAM_STEPS, ADAM_TOLERANCE = 15, 1e-9  # Adam amplifies rounding fast

# Computed with 40 digits.
NESTEROV = [
    (0.100005000250012501, 0.900085508123271711, 1.0),
    (0.100024003908038393, 0.900038481123326333, 1.00013776989183565),
    (0.10005111669356099, 0.900013149226436428, 1.00024290981171177),
]
ADAMW = [
    (0.0010001000100010001, 0.9, 0.999, 1e-8),
    (0.00100019534178018491, 0.899990999189927093, 0.998999800170065975, 9.99900049977480243e-9),
    (0.00100028258460762369, 0.899982897885676978, 0.998999600500149662, 9.99800209776580408e-9),
]


def train(net, optimizer, steps, set_up=lambda step: None, after=lambda: None):
    """Train a TinyNet; return the logits before each step and, flattened, the weights after it."""
    logits, weights = [], []
    for step, (inputs, labels) in enumerate(batches(steps)):
        set_up(step)
        out = net(inputs)
        optimizer.zero_grad()
        F.cross_entropy(out, labels).backward()
        optimizer.step()
        after()
        logits.append(out.detach())
        weights.append(torch.cat([w.detach().flatten() for w in net.trainable()]))
    return torch.stack(logits), torch.stack(weights)


def set_by(optimizer, **columns):
    """Return a function that sets the hyper-parameters of a step from columns with one entry a step."""

    def set_up(step):
        values = {name: column[step] for name, column in columns.items()}
        if "betas" in values:
            values["betas"] = tuple(map(float, values["betas"]))
        group = optimizer.param_groups[0]
        group.update({name: value if name == "betas" else float(value) for name, value in values.items()})

    return set_up


def apart(first, second, log_scale):
    """Return by how much functions and weights differ, relative, at the worst step."""
    (logits, weights), (other_logits, other_weights) = first, second
    scaled = other_weights / torch.from_numpy(np.exp(log_scale[1:]))[:, None]
    functions = ((logits - other_logits).abs().amax((1, 2)) / logits.abs().amax((1, 2))).max()
    return max(float(functions), float(((weights - scaled).norm(dim=1) / weights.norm(dim=1)).max()))


def sgd_apart(lrs, decays, momenta, schedule, *, nesterov=False, dampening=0.0):
    runs = []
    for lr, decay, momentum, damping in (
        (lrs, decays, momenta, np.broadcast_to(dampening, len(lrs))),
        (schedule.lr, np.zeros(len(lrs)), schedule.momentum, schedule.dampening),
    ):
        net = TinyNet()
        optimizer = torch.optim.SGD(net.trainable(), lr=1.0, momentum=0.5, nesterov=nesterov)
        columns = {"lr": lr, "weight_decay": decay, "momentum": momentum, "dampening": damping}
        runs.append(train(net, optimizer, len(lrs), set_by(optimizer, **columns)))
    return apart(*runs, schedule.log_scale)


def adamw_apart(lrs, decays, betas, eps, schedule, *, nudged=False):
    runs = []
    for lr, decay, beta, epsilon in (
        (lrs, decays, betas, np.full(len(lrs), eps)),
        (schedule.lr, np.zeros(len(lrs)), schedule.betas, np.exp(schedule.log_eps)),
    ):
        net = TinyNet()
        if nudged and runs:
            with torch.no_grad():
                net.first.copy_(torch.nextafter(net.first, torch.full_like(net.first, math.inf)))
        optimizer = torch.optim.AdamW(net.trainable(), lr=1.0)
        columns = {"lr": lr, "weight_decay": decay, "betas": beta, "eps": epsilon}
        runs.append(train(net, optimizer, len(lrs), set_by(optimizer, **columns)))
    return apart(*runs, schedule.log_scale)


# ---- numbers


def test_reference_values_to_1e_13():
    twin = convert([0.1] * 3, 5e-4, 0.9, nesterov=True)
    np.testing.assert_allclose(np.stack([twin.lr, twin.momentum, 1 - twin.dampening], axis=1), NESTEROV, rtol=1e-13)
    twin = convert_adamw([1e-3] * 3, 0.1)
    np.testing.assert_allclose(np.column_stack([twin.lr, twin.betas, np.exp(twin.log_eps)]), ADAMW, rtol=1e-13)


def test_steady_states_are_where_the_recursions_settle():
    lr, decay, momentum = 0.1, 5e-4, 0.9
    growth = growth_rate(lr, decay, momentum, nesterov=True)
    assert growth == pytest.approx(1.00100484372112693, rel=1e-14)
    assert characteristic_root(lr, decay, momentum, nesterov=True) ** -2 == pytest.approx(growth, rel=1e-14)
    twin = convert([lr] * 3000, decay, momentum, nesterov=True)
    last = [math.exp(twin.log_lr[-1] - twin.log_lr[-2]), twin.momentum[-1], 1 - twin.dampening[-1]]
    np.testing.assert_allclose(last, [growth, momentum * (1 - lr * decay), growth], rtol=1e-12)

    state = adamw_steady_state(1e-3, 0.1)
    assert state.factor == pytest.approx(1.0943643360312, rel=1e-13)
    twin = convert_adamw([1e-3] * 40_000, 0.1)
    np.testing.assert_allclose(twin.betas[-1], state.betas, rtol=1e-14)
    assert math.exp(twin.log_lr[-1] - twin.log_scale[-1]) == pytest.approx(1e-3 * state.factor, rel=1e-11)


@pytest.mark.parametrize("decay", [1e-12, 1e-9, 1e-6])
def test_nothing_cancels_where_decay_is_tiny(decay):
    """Growth and change of memory are proportional to a decay that 1 - decay could not hold to twelve digits."""
    getcontext().prec = 50
    lr, gamma = Decimal.from_float(0.1), Decimal.from_float(0.9)
    delta = lr * Decimal.from_float(decay)
    b = 1 - gamma + (1 + gamma) * delta
    exact = (b - (b * b - 4 * delta).sqrt()) / 2
    assert growth_rate(0.1, decay, 0.9, nesterov=True) - 1 == pytest.approx(float((1 - exact) ** -2 - 1), abs=3e-16)
    twin = convert([0.1] * 2000, decay, 0.9, nesterov=True)
    assert twin.log_scale[-1] - twin.log_scale[-2] == pytest.approx(float(-(1 - exact).ln()), rel=1e-9)
    assert twin.dampening[-1] == pytest.approx(float(1 - (1 - exact) ** -2), rel=1e-9)
    adam = convert_adamw([1e-3] * 3, decay)
    assert adam.log_scale[-1] == pytest.approx(3e-3 * decay, rel=1e-9)


def test_without_decay_nothing_changes():
    twin = convert([0.1, 0.05], 0.0, 0.9, nesterov=True)
    assert (twin.momentum.tolist(), twin.dampening.tolist()) == ([0.9, 0.9], [0.0, 0.0])
    np.testing.assert_allclose(twin.lr, [0.1, 0.05], rtol=1e-15)
    adam = convert_adamw([1e-3, 1e-4], 0.0)
    np.testing.assert_allclose(adam.betas, [[0.9, 0.999]] * 2, rtol=1e-15)
    np.testing.assert_allclose(adam.lr, [1e-3, 1e-4], rtol=1e-13)


@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.99])
def test_the_bound_of_nesterov_momentum_is_sharp(momentum):
    bound = ((1 - momentum) / (1 + momentum)) ** 2
    growth_rate(1.0, bound * (1 - 1e-9), momentum, nesterov=True)
    convert([1.0] * 2000, bound * 0.999, momentum, nesterov=True)
    with pytest.raises(ExplrError, match=r"\(1 - momentum\) / \(1 \+ momentum\)\)\*\*2"):
        growth_rate(1.0, bound * (1 + 1e-9), momentum, nesterov=True)
    with pytest.raises(ExplrError, match=r"step \d+.*Nesterov"):
        convert([1.0] * 200_000, bound * 1.01, momentum, nesterov=True)


# ---- networks


@st.composite
def sgd_runs(draw, bound):
    """Draw rates, decays and momenta that change at every step, with up to half of the decay that converts for ever."""
    largest = draw(st.sampled_from([0.5, 0.9, 0.97]))
    momenta = draw(st.lists(st.floats(0.3, largest), min_size=STEPS, max_size=STEPS))
    lrs = draw(st.lists(st.floats(0.01, 0.3), min_size=STEPS, max_size=STEPS))
    most = 0.5 * bound(largest) / max(lrs)
    decays = draw(st.lists(st.floats(0.02 * most, most), min_size=STEPS, max_size=STEPS))
    return lrs, decays, momenta


quickly = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@quickly
@given(sgd_runs(lambda momentum: ((1 - momentum) / (1 + momentum)) ** 2))
def test_the_twin_of_nesterov_momentum_computes_the_same_functions(run):
    assert sgd_apart(*run, convert(*run, nesterov=True), nesterov=True) < TOLERANCE


@quickly
@given(sgd_runs(lambda momentum: (1 - math.sqrt(momentum)) ** 2), st.floats(-0.5, 0.9))
def test_the_twin_of_damped_momentum_computes_the_same_functions(run, dampening):
    assert sgd_apart(*run, convert(*run, dampening=dampening), dampening=dampening) < TOLERANCE


@st.composite
def adamw_runs(draw):
    def column(low, high):
        return draw(st.lists(st.floats(low, high), min_size=ADAM_STEPS, max_size=ADAM_STEPS))

    beta1, beta2 = column(0.5, 0.95), column(0.9, 0.999)
    return column(1e-4, 1e-2), column(0.1, 5.0), np.stack([beta1, beta2], axis=1), draw(st.sampled_from([1e-8, 1e-3]))


@quickly
@given(adamw_runs())
def test_the_twin_of_adamw_computes_the_same_functions(run):
    lrs, decays, betas, eps = run
    assert adamw_apart(*run, convert_adamw(lrs, decays, tuple(betas.T), eps)) < ADAM_TOLERANCE


def test_adamw_over_many_steps_drifts_no_faster_than_a_nudge_by_one_ulp():
    lrs, betas = 1e-3 * (1 + np.cos(np.linspace(0, 3, 300))), np.tile([0.9, 0.999], (300, 1))
    twin = convert_adamw(lrs, 0.5)
    plain = convert_adamw(lrs, 0.0)
    control = adamw_apart(lrs, np.zeros(300), betas, 1e-8, plain, nudged=True)
    assert adamw_apart(lrs, np.full(300, 0.5), betas, 1e-8, twin) < 10 * control


def replaced(schedule, **columns):
    changed = copy.copy(schedule)
    for name, column in columns.items():
        object.__setattr__(changed, name, column)
    return changed


def test_these_checks_catch_a_twin_that_is_slightly_wrong():
    lrs, decays, momenta = np.full(STEPS, 0.1), np.full(STEPS, 1e-3), np.full(STEPS, 0.9)
    right = convert(lrs, decays, momenta, nesterov=True)
    heavy = convert(lrs, decays, momenta)
    for wrong in (
        replaced(right, momentum=momenta),
        replaced(right, dampening=np.zeros(STEPS)),
        heavy,
        convert(lrs, 1.01 * decays, momenta, nesterov=True),
        # A_0 = 1: the buffer's free factor, chosen as if torch damped the first gradient too
        replaced(right, dampening=right.dampening - np.where(np.arange(STEPS) == 0, 0, 1e-6)),
    ):
        assert sgd_apart(lrs, decays, momenta, wrong, nesterov=True) > 10 * TOLERANCE
    lrs, decays, betas = np.full(ADAM_STEPS, 1e-3), np.full(ADAM_STEPS, 0.5), np.tile([0.9, 0.999], (ADAM_STEPS, 1))
    right = convert_adamw(lrs, 0.5)
    for wrong in (
        replaced(right, betas=betas),
        replaced(right, log_lr=np.log(lrs) + right.log_scale[1:]),
        convert_adamw(lrs, 0.505),
    ):
        assert adamw_apart(lrs, decays, betas, 1e-8, wrong) > 10 * ADAM_TOLERANCE
    eps = 1e-2  # large enough to be felt
    right = convert_adamw(lrs, 0.5, eps=eps)
    assert adamw_apart(lrs, decays, betas, eps, right) < ADAM_TOLERANCE
    assert adamw_apart(lrs, decays, betas, eps, replaced(right, log_eps=np.full(ADAM_STEPS, math.log(eps)))) > 1e-7


# ---- ExpLR

OPTIMIZERS = {
    "heavy ball": lambda p, **o: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=2e-3, **o),
    "damped": lambda p, **o: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.3, weight_decay=2e-3, **o),
    "Nesterov": lambda p, **o: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=2e-3, **o),
    "AdamW": lambda p, **o: torch.optim.AdamW(p, lr=2e-3, weight_decay=0.5, **o),
    "Adam, decoupled": lambda p, **o: torch.optim.Adam(p, lr=2e-3, weight_decay=0.5, decoupled_weight_decay=True, **o),
}
if "decoupled_weight_decay" not in torch.optim.Adam([torch.zeros(1)]).param_groups[0]:
    del OPTIMIZERS["Adam, decoupled"]  # torch older than 2.6 has no such option
SCHEDULES = {
    "none": lambda optimizer: None,
    "step": lambda optimizer: lr_scheduler.StepLR(optimizer, 4, 0.3),
    "one cycle, with its momentum": lambda optimizer: lr_scheduler.OneCycleLR(
        optimizer, max_lr=optimizer.param_groups[0]["lr"], total_steps=ADAM_STEPS + 1
    ),
    "cosine with warm restarts": lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 6),
}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def logits_of(name, schedule, explr, steps=ADAM_STEPS, **options):
    net = TinyNet()
    optimizer = OPTIMIZERS[name](net.trainable(), **options)
    scheduler = SCHEDULES[schedule](optimizer)
    if explr:
        scheduler = ExpLR(optimizer, scheduler)
    return train(net, optimizer, steps, after=scheduler.step if scheduler else lambda: None)[0]


@every_optimizer
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_explr_computes_the_functions_of_the_run_that_it_replaces(name, schedule):
    original, twin = logits_of(name, schedule, False), logits_of(name, schedule, True)
    tolerance = ADAM_TOLERANCE if "Adam" in name else TOLERANCE
    assert float((original - twin).abs().max() / original.abs().max()) < tolerance


@every_optimizer
@pytest.mark.parametrize("options", [{"foreach": True}, {"foreach": False}, {"fused": True}], ids=str)
def test_every_implementation_of_a_step_reads_what_explr_sets(name, options):
    original, twin = logits_of(name, "step", False, **options), logits_of(name, "step", True, **options)
    tolerance = ADAM_TOLERANCE if "Adam" in name else TOLERANCE
    assert float((original - twin).abs().max() / original.abs().max()) < tolerance


@every_optimizer
def test_a_run_under_way_converts_too(name):
    runs = []
    for explr in (False, True):
        net = TinyNet()
        optimizer = OPTIMIZERS[name](net.trainable())
        train(net, optimizer, 7)
        after = ExpLR(optimizer).step if explr else lambda: None
        runs.append(train(net, optimizer, ADAM_STEPS, after=after)[0])
    assert float((runs[0] - runs[1]).abs().max() / runs[0].abs().max()) < ADAM_TOLERANCE


@every_optimizer
def test_a_step_that_did_not_happen_moves_the_wrapped_schedule_alone(name):
    """As after an overflow that a GradScaler found: the optimizer takes no step, the scheduler does."""
    runs = []
    for explr in (False, True):
        net = TinyNet()
        optimizer = OPTIMIZERS[name](net.trainable())
        scheduler = SCHEDULES["step"](optimizer)
        scheduler = ExpLR(optimizer, scheduler) if explr else scheduler
        out = []
        for step, (inputs, labels) in enumerate(batches(ADAM_STEPS)):
            out.append(net(inputs).detach())
            optimizer.zero_grad()
            F.cross_entropy(net(inputs), labels).backward()
            if step % 4 != 1:
                optimizer.step()
            scheduler.step()
        runs.append(torch.stack(out))
    assert float((runs[0] - runs[1]).abs().max() / runs[0].abs().max()) < ADAM_TOLERANCE


@every_optimizer
def test_state_resumes_to_the_same_bits(name):
    def start():
        net = TinyNet()
        optimizer = OPTIMIZERS[name](net.trainable())
        return net, optimizer, ExpLR(optimizer, SCHEDULES["one cycle, with its momentum"](optimizer))

    net, optimizer, scheduler = start()
    train(net, optimizer, 6, after=scheduler.step)
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict(), scheduler.state_dict()))
    expected = train(net, optimizer, 6, after=scheduler.step)
    for order in ((1, 2), (2, 1)):
        again = start()
        again[0].load_state_dict(saved[0])
        for which in order:
            again[which].load_state_dict(copy.deepcopy(saved[which]))
        found = train(again[0], again[1], 6, after=again[2].step)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize(
    "name, norm",
    [(name, "batch") for name in OPTIMIZERS]
    + [(n, norm) for n in ("Nesterov", "AdamW") for norm in ("layer", "group", "instance")],
)
def test_a_renormalised_run_is_the_other_run_bit_for_bit_and_exact_in_eval_mode(name, norm):
    """On a network with the default eps and running statistics, at a decay that doubles the weights every few steps."""

    def run(kind):
        torch.manual_seed(0)
        net = models.preresnet(depth=8, width=4, norm=norm).double()
        optimizer = OPTIMIZERS[name]([p for p in net.parameters() if p.requires_grad])
        strong = {"lr": 2e-2, "weight_decay": 5.0} if "Adam" in name else {"lr": 0.5, "weight_decay": 0.08, "momentum": 0.5}
        optimizer.param_groups[0].update(strong, initial_lr=strong["lr"])
        scheduler = ExpLR(optimizer, model=net, renormalize=kind == "renormalised") if kind != "decay" else None
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(8, 3, 32, 32, generator=generator, dtype=torch.float64)
        labels = torch.randint(10, (8,), generator=generator)
        out = []
        for _ in range(10):
            loss = F.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if scheduler:
                scheduler.step()
            with torch.no_grad():
                out.append(net.eval()(images))
                net.train()
        return torch.stack(out), scheduler

    (decay, _), (plain, _), (renormalised, scheduler) = run("decay"), run("plain"), run("renormalised")
    assert torch.equal(plain, renormalised)
    assert scheduler.exponents[0] != 0
    assert float((decay - plain).abs().max() / decay.abs().max()) < ADAM_TOLERANCE


@every_optimizer
@pytest.mark.parametrize("factor", [4.0, 3.0])
def test_rescaling_in_the_middle_of_a_run_changes_no_function(name, factor):
    def run(rescaled):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(5, 6, bias=False), torch.nn.BatchNorm1d(6, affine=False)).double()
        optimizer = OPTIMIZERS[name](net.parameters())
        out = []
        for step, (inputs, labels) in enumerate(batches(ADAM_STEPS)):
            if rescaled and step == 5:
                rescale(net, optimizer, factor)
            logits = net(inputs)
            optimizer.zero_grad()
            F.cross_entropy(logits, labels).backward()
            optimizer.step()
            out.append(logits.detach())
        return torch.stack(out)

    expected, found = run(False), run(True)
    if factor == 4.0:
        assert torch.equal(expected, found)
    assert float((expected - found).abs().max() / expected.abs().max()) < ADAM_TOLERANCE


def test_what_does_not_convert_keeps_its_decay_under_adamw():
    torch.manual_seed(0)
    net = models.convnet(depth=3, width=4, frozen_head=False).double()
    report = scale_invariance(net, torch.randn(2, 3, 32, 32, dtype=torch.float64))
    runs = []
    for explr in (False, True):
        model = copy.deepcopy(net)
        groups = scale_invariance(model, torch.randn(2, 3, 32, 32, dtype=torch.float64)).parameter_groups(lr=2e-3)
        optimizer = torch.optim.AdamW(groups, lr=2e-3, weight_decay=0.5)
        scheduler = ExpLR(optimizer, model=model, renormalize=True) if explr else None
        generator = torch.Generator().manual_seed(1)
        out = []
        for _ in range(8):
            images = torch.randn(8, 3, 32, 32, generator=generator, dtype=torch.float64)
            logits = model(images)
            optimizer.zero_grad()
            F.cross_entropy(logits, torch.arange(8)).backward()
            optimizer.step()
            if scheduler:
                scheduler.step()
            out.append(logits.detach())
        runs.append(torch.stack(out))
    assert report.rest and float((runs[0] - runs[1]).abs().max() / runs[0].abs().max()) < ADAM_TOLERANCE
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.5]


def test_a_graph_of_the_step_is_refused(monkeypatch):
    """It would freeze what changes at every step."""
    optimizer = OPTIMIZERS["AdamW"](TinyNet().trainable())
    scheduler = ExpLR(optimizer)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(ExplrError, match="CUDA graph"):
        optimizer.step()
    assert scheduler.log_scale == [0.0]


def test_a_tensor_learning_rate_stays_the_same_tensor():
    net = TinyNet()
    lr = torch.tensor(2e-3, dtype=torch.float64)
    optimizer = torch.optim.AdamW(net.trainable(), lr=lr, weight_decay=0.5, foreach=False)
    scheduler = ExpLR(optimizer)
    train(net, optimizer, 3, after=scheduler.step)
    assert optimizer.param_groups[0]["lr"] is lr and float(lr) == scheduler.get_last_lr()[0]


def test_decay_may_be_scheduled_too():
    """A scheduler that moves weight decay, such as one that keeps it in step with the rate, is believed."""

    class Both(lr_scheduler.LambdaLR):
        def step(self):
            super().step()
            for group in self.optimizer.param_groups:
                group["weight_decay"] = 5e-3 * group["lr"]

    runs = []
    for explr in (False, True):
        net = TinyNet()
        optimizer = OPTIMIZERS["Nesterov"](net.trainable())
        scheduler = Both(optimizer, lambda step: 1.0 / (1 + step))
        scheduler = ExpLR(optimizer, scheduler) if explr else scheduler
        runs.append(train(net, optimizer, STEPS, after=scheduler.step)[0])
    assert float((runs[0] - runs[1]).abs().max() / runs[0].abs().max()) < TOLERANCE


def test_a_skipped_step_of_a_fused_optimizer_is_seen():
    """The fused kernel itself obeys the GradScaler: step() runs, and nothing moves."""
    net = TinyNet()
    optimizer = OPTIMIZERS["AdamW"](net.trainable(), fused=True)
    scheduler = ExpLR(optimizer)
    optimizer.found_inf, optimizer.grad_scale = torch.ones(()), torch.ones(())
    for parameter in net.trainable():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    scheduler.step()
    assert scheduler.log_scale == [0.0] and scheduler.memory[0][3] == 0


def test_parameters_that_took_different_numbers_of_steps_are_refused():
    net = TinyNet()
    optimizer = OPTIMIZERS["AdamW"](net.trainable())
    net.first.grad = torch.ones_like(net.first)
    optimizer.step()
    with pytest.raises(ExplrError, match="different numbers of steps"):
        ExpLR(optimizer)


@pytest.mark.parametrize(
    "call, parts",
    [
        (lambda: convert([0.1], 0.1, 0.0, nesterov=True), ["nesterov=True", "positive momentum"]),
        (lambda: convert([0.1], 0.1, 0.9, nesterov=True, dampening=0.1), ["dampening=0"]),
        (lambda: convert([0.1], 0.1, 0.9, dampening=1.0), ["dampening=1.0", "below 1"]),
        (lambda: convert_adamw([1e-3], 0.1, (0.9,)), ["betas=(0.9,)", "two"]),
        (lambda: convert_adamw([1e-3], 0.1, (0.9, 1.0)), ["betas[1]=1.0", "[0, 1)"]),
        (lambda: convert_adamw([1e-3], 0.1, eps=-1.0), ["eps=-1.0"]),
        (lambda: convert_adamw([1.0, 1.0], [0.1, 1.0]), ["step 1", "below 1"]),
        (lambda: adamw_steady_state(2.0, 1.0), ["below 1"]),
    ],
)
def test_bad_input_gets_one_error_that_restates_it(call, parts):
    with pytest.raises(ExplrError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["NAdam", "RAdam"])
def test_other_optimizers_with_decoupled_decay_are_not_taken_for_adamw(name):
    optimizer = getattr(torch.optim, name)(TinyNet().trainable(), weight_decay=0.1, decoupled_weight_decay=True)
    with pytest.raises(ExplrError, match=f"{name} has no exponential counterpart"):
        ExpLR(optimizer)


class TwoBranches(torch.nn.Module):
    """Invariant only when both branches are scaled together."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (torch.nn.Linear(5, 6, bias=False) for _ in range(2))
        self.norm = torch.nn.BatchNorm1d(6, affine=False)

    def forward(self, x):
        return self.norm(self.a(x) + self.b(x))


def test_groups_that_belong_together_must_stay_together():
    net = TwoBranches().double()
    groups = [{"params": [net.a.weight]}, {"params": [net.b.weight]}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=1e-2)
    schedule = lr_scheduler.LambdaLR(optimizer, [lambda t: 1.0, lambda t: 1.0 if t < 3 else 0.1])
    scheduler = ExpLR(optimizer, schedule, model=net)
    for _ in range(2):
        optimizer.step()
        scheduler.step()
    optimizer.step()
    with pytest.raises(ExplrError, match="at step 3 the parameter groups have different lr"):
        scheduler.step()


@every_optimizer
def test_an_optimizer_that_was_loaded_first_resumes_too(name):
    """Its weight decay is 0 by then, so what ExpLR builds on it looks as if nothing converted."""
    net = TinyNet()
    optimizer = OPTIMIZERS[name](net.trainable())
    scheduler = ExpLR(optimizer)
    train(net, optimizer, 5, after=scheduler.step)
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict(), scheduler.state_dict()))
    expected = train(net, optimizer, 5, after=scheduler.step)
    net = TinyNet()
    optimizer = OPTIMIZERS[name](net.trainable())
    net.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    scheduler = ExpLR(optimizer)
    scheduler.load_state_dict(saved[2])
    assert all(torch.equal(a, b) for a, b in zip(expected, train(net, optimizer, 5, after=scheduler.step), strict=True))


def test_a_rate_in_range_whose_growth_is_not_is_no_traceback():
    optimizer = torch.optim.SGD(TinyNet().trainable(), lr=1e-6, weight_decay=1e5)
    scheduler = ExpLR(optimizer)
    with pytest.raises(ExplrError, match="renormalize=True"):
        for _ in range(5000):
            optimizer.step()
            scheduler.step()
    assert 345 < scheduler.log_scale[0] < 355


def test_adamw_stops_before_squares_leave_the_range():
    net = TinyNet().float()
    optimizer = torch.optim.AdamW(net.trainable(), lr=1e-2, weight_decay=10.0)
    scheduler = ExpLR(optimizer)
    with pytest.raises(ExplrError, match=r"growth of the weights of step \d+.*torch.float32.*renormalize=True"):
        for _ in range(1000):
            optimizer.step()
            scheduler.step()
    assert 21 < scheduler.log_scale[0] < 23


def test_a_twin_of_nesterov_may_need_a_momentum_above_1():
    lrs = [1.0] + [0.01] * 9
    twin = convert(lrs, 0.1, 0.9, nesterov=True)
    assert twin.momentum[0] > 1
    runs = []
    for explr in (False, True):
        net = TinyNet()
        optimizer = torch.optim.SGD(net.trainable(), lr=1.0, momentum=0.9, nesterov=True, weight_decay=0.1)
        scheduler = lr_scheduler.LambdaLR(optimizer, lambda t: 1.0 if t == 0 else 0.01)
        scheduler = ExpLR(optimizer, scheduler) if explr else scheduler
        runs.append(train(net, optimizer, 10, after=scheduler.step)[0])
    assert float((runs[0] - runs[1]).abs().max() / runs[0].abs().max()) < TOLERANCE


def test_a_refused_step_is_not_taken_until_the_schedule_asks_for_another():
    optimizer = OPTIMIZERS["AdamW"](TinyNet().trainable())
    scheduler = ExpLR(optimizer, lr_scheduler.LambdaLR(optimizer, lambda t: 1e4 if t == 1 else 1.0))
    optimizer.step()
    for call in (scheduler.step, optimizer.step, optimizer.step):
        with pytest.raises(ExplrError, match="step 1"):
            call()
    scheduler.step()
    optimizer.step()
    assert scheduler.updates == 2


def test_a_state_with_a_model_needs_a_model():
    net = torch.nn.Sequential(torch.nn.Linear(5, 6, bias=False), torch.nn.BatchNorm1d(6, affine=False))
    state = ExpLR(OPTIMIZERS["AdamW"](net.parameters()), model=net).state_dict()
    with pytest.raises(ExplrError, match="model="):
        ExpLR(OPTIMIZERS["AdamW"](net.parameters())).load_state_dict(state)


def test_groups_that_do_not_convert_may_have_any_past():
    net = TinyNet()
    groups = [{"params": [net.first]}, {"params": [net.second], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1)
    net.second.grad = torch.ones_like(net.second)
    optimizer.step()
    ExpLR(optimizer)


@every_optimizer
@pytest.mark.parametrize("renormalize", [False, True])
def test_clipping_at_a_threshold_that_shrinks_with_the_gradients_is_the_same_clipping(name, renormalize):
    runs = []
    for explr in (False, True):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(5, 6, bias=False), torch.nn.BatchNorm1d(6, affine=False)).double()
        optimizer = OPTIMIZERS[name](net.parameters())
        scheduler = ExpLR(optimizer, model=net, renormalize=renormalize) if explr else None
        out = []
        for inputs, labels in batches(ADAM_STEPS):
            logits = net(inputs)
            optimizer.zero_grad()
            F.cross_entropy(logits, labels).backward()
            norm = scheduler.clip_grad_norm_(0.05) if scheduler else torch.nn.utils.clip_grad_norm_(net.parameters(), 0.05)
            assert norm > 0.05
            optimizer.step()
            if scheduler:
                scheduler.step()
            out.append(logits.detach())
        runs.append(torch.stack(out))
    assert float((runs[0] - runs[1]).abs().max() / runs[0].abs().max()) < ADAM_TOLERANCE


def test_a_wrapped_model_is_unwrapped():
    net = torch.nn.Sequential(torch.nn.Linear(5, 6, bias=False), torch.nn.BatchNorm1d(6, affine=False))
    scheduler = ExpLR(OPTIMIZERS["AdamW"](net.parameters()), model=torch.nn.DataParallel(net), renormalize=True)
    assert list(scheduler.norms.layers) == ["1"]
