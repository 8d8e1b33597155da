"""Training loops as people write them: under ExpLR they compute what they do with weight decay, or an error says why not."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from explr import ExpLR, ExplrError, convert, models, schedules, unscale

EPOCHS, BATCHES = 4, 5
TOLERANCE = 1e-12
SCHEDULES = {
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS),
    "steps": lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [2, 3]),
    "none": lambda optimizer: None,
}


def network(**options):
    """A network of which a part converts: norms have trained scales, and the head trains."""
    torch.manual_seed(0)
    return models.preresnet(8, width=4, **{"affine": True, "frozen_head": False, **options}).double()


def sgd(net, **options):
    parameters = [p for p in net.parameters() if p.requires_grad]
    return torch.optim.SGD(parameters, **{"lr": 0.2, "momentum": 0.9, "weight_decay": 1e-2, **options})


def adamw(net, **options):
    return torch.optim.AdamW(net.parameters(), **{"lr": 5e-3, "weight_decay": 1.0, **options})


def batches(count=EPOCHS * BATCHES):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 8, 3, 32, 32, generator=generator, dtype=torch.float64)
    return list(zip(images, torch.randint(10, (count, 8), generator=generator), strict=True))


def update(net, optimizer, batch):
    logits = net(batch[0])
    optimizer.zero_grad()
    F.cross_entropy(logits, batch[1]).backward()
    optimizer.step()
    return logits.detach()


def evaluate(net):
    with torch.no_grad():
        logits = net.eval()(batches(1)[0][0])
    net.train()
    return logits


def deviation(expected, seen):
    """Return the largest relative deviation; infinity where there is no number, which Python's max would pass over."""
    return float(((expected - seen).abs().max() / expected.abs().max()).detach().nan_to_num(nan=math.inf))


def compare(loop, make=sgd, schedule="cosine", net=network, **options):
    """Run a loop with weight decay and under ExpLR; return the largest relative deviation of what it yields."""
    yielded = []
    for converted in (False, True):
        model = net()
        optimizer = make(model)
        scheduler = SCHEDULES[schedule](optimizer)
        if converted:
            scheduler = ExpLR(optimizer, scheduler, model=model, **options)
        yielded.append([out for out in loop(model, optimizer, scheduler)])
    assert len(yielded[0]) == len(yielded[1]) > 1
    return max(map(deviation, *yielded))


def test_that_the_comparison_sees_what_is_no_number():
    outs = iter([torch.ones(2), torch.ones(2), torch.ones(2), torch.full((2,), math.nan)])
    assert compare(lambda *_: [next(outs), next(outs)]) == math.inf


def once_an_epoch(model, optimizer, scheduler):
    for index, batch in enumerate(batches()):
        yield update(model, optimizer, batch)
        if (index + 1) % BATCHES == 0:
            if scheduler:
                scheduler.step()
            yield evaluate(model)


def accumulating(model, optimizer, scheduler):
    """Steps optimizer and scheduler at every second batch."""
    for index, (images, labels) in enumerate(batches()):
        logits = model(images)
        F.cross_entropy(logits, labels).backward()
        if index % 2:
            optimizer.step()
            optimizer.zero_grad()
            if scheduler and index % 4 == 3:
                scheduler.step()
        yield logits.detach()


def stepping_too_often(model, optimizer, scheduler):
    """Steps the scheduler once for each of two processes, as Accelerate's wrapper does, and before the first update too."""
    for batch in batches(12):
        if scheduler:
            scheduler.step()
            scheduler.step()
        yield update(model, optimizer, batch)


def skipping(model, optimizer, scheduler):
    """Leaves out updates, as a GradScaler does after an overflow."""
    for index, (images, labels) in enumerate(batches()):
        logits = model(images)
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()
        if index % 5 != 2:
            optimizer.step()
        if scheduler and index % BATCHES == 0:
            scheduler.step()
        yield logits.detach()


def with_a_closure(model, optimizer, scheduler):
    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        return loss

    for batch in batches():
        images, labels = batch
        yield optimizer.step(closure).detach()
    if scheduler:
        scheduler.step()


def without_backward_at_times(model, optimizer, scheduler):
    """Guards against losses that are not finite, and calls optimizer.step() all the same."""
    for index, (images, labels) in enumerate(batches()):
        logits = model(images)
        optimizer.zero_grad()
        if index % 6 != 4:
            F.cross_entropy(logits, labels).backward()
        optimizer.step()
        yield logits.detach()


def clipping(model, optimizer, scheduler):
    """One norm over groups of which some convert."""
    for images, labels in batches():
        logits = model(images)
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()
        converted = isinstance(scheduler, ExpLR)
        yield scheduler.clip_grad_norm_(0.5) if converted else nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        yield logits.detach()


def clipping_values(model, optimizer, scheduler):
    for images, labels in batches():
        logits = model(images)
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()
        scales = scheduler.gradient_scale if isinstance(scheduler, ExpLR) else [1.0]
        for group, scale in zip(optimizer.param_groups, scales, strict=True):
            nn.utils.clip_grad_value_(group["params"], 1e-3 * scale)
        optimizer.step()
        yield logits.detach()


def scaling_gradients(model, optimizer, scheduler):
    """Uses a GradScaler that begins far too high, so that it skips updates."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**18, growth_interval=3)
    taken = []
    for images, labels in batches():
        logits = model(images)
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(logits, labels).half()).backward()
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        taken.append(scaler.get_scale() >= before)
        if scheduler:
            scheduler.step()
        yield logits.detach()
    assert any(taken) and not all(taken)


def evaluating_before_the_scheduler(model, optimizer, scheduler):
    for batch in batches(8):
        yield update(model, optimizer, batch)
        yield evaluate(model)
        if scheduler:
            scheduler.step()


LOOPS = [
    once_an_epoch,
    accumulating,
    stepping_too_often,
    skipping,
    with_a_closure,
    without_backward_at_times,
    clipping,
    clipping_values,
    scaling_gradients,
    evaluating_before_the_scheduler,
]


@pytest.mark.parametrize("schedule", ["cosine", "none"])
@pytest.mark.parametrize("make", [sgd, lambda net: sgd(net, nesterov=True), adamw], ids=["SGD", "Nesterov", "AdamW"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_computes_the_same(loop, make, schedule):
    assert compare(loop, make, schedule) < TOLERANCE


def test_that_check_sees_a_decay_that_is_lost():
    def losing(model, optimizer, scheduler):
        for index, batch in enumerate(batches(8)):
            if index == 4 and isinstance(scheduler, ExpLR):
                scheduler.memory[0][0] = 0.0
                scheduler.prepared = False
            yield update(model, optimizer, batch)

    assert compare(losing) > 1e3 * TOLERANCE


def test_one_line_in_a_script_of_torchvision_is_exact(caplog):
    """The network as it comes, a cosine that counts epochs, every parameter with weight decay.

    Rounding grows a hundredfold with every few updates here, so the measure is a run whose weights differ in the last bit.
    """

    def resnet(last_bit=0.0):
        torch.manual_seed(0)
        net = torchvision.models.resnet18(num_classes=10).double()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(1.0 + last_bit)
        return net

    runs = []
    for net, converted in ((resnet(), False), (resnet(2.0**-52), False), (resnet(), True)):
        optimizer = sgd(net, lr=0.05)
        scheduler = SCHEDULES["cosine"](optimizer)
        scheduler = ExpLR(optimizer, scheduler, model=net) if converted else scheduler
        runs.append(list(once_an_epoch(net, optimizer, scheduler)))
    for expected, control, seen in zip(*runs, strict=True):
        assert deviation(expected, seen) <= deviation(expected, control) < 1e-5
    summaries = [record.getMessage() for record in caplog.records if record.name == "explr"]
    assert summaries == [scheduler.summary]
    assert "54 of 62 tensors (99.9 % of the weights that decay) convert; layer4.0.bn2.weight" in scheduler.summary


def every_batch(model, optimizer, scheduler):
    for index, batch in enumerate(batches()):
        yield update(model, optimizer, batch)
        if isinstance(scheduler, ExpLR) or (index + 1) % BATCHES == 0:
            scheduler.step()


def test_steps_per_epoch_holds_an_epoch_wise_schedule_over_the_epoch():
    assert compare(every_batch, steps_per_epoch=BATCHES) < TOLERANCE
    assert compare(every_batch) > 1e-3


def test_a_schedule_that_is_told_to_wait_and_called_once_an_epoch_is_an_error():
    with pytest.raises(ExplrError, match=r"steps_per_epoch=5 .* 5 since the last call: leave it out"):
        compare(once_an_epoch, steps_per_epoch=BATCHES)


def with_two_optimised_parts(train_head, train_body):
    """A loop in which the body or the head, each in a group of its own, has no gradient for some updates."""

    def loop(model, optimizer, scheduler):
        del scheduler
        for index, (images, labels) in enumerate(batches(12)):
            logits = model(images)
            optimizer.zero_grad()
            F.cross_entropy(logits, labels).backward()
            for group, active in zip(optimizer.param_groups, (train_body(index), train_head(index)), strict=True):
                if not active:
                    for parameter in group["params"]:
                        parameter.grad = None
            optimizer.step()
            yield logits.detach()

    return loop


class TwoParts(nn.Module):
    """Two blocks, each scale-invariant on its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.first = nn.Conv2d(3, 4, 3, stride=4, bias=False), nn.BatchNorm2d(4, affine=False)
        self.top, self.second = nn.Linear(4 * 8 * 8, 10, bias=False), nn.BatchNorm1d(10, affine=False)

    def forward(self, images):
        return self.second(self.top(self.first(self.body(images)).relu().flatten(1)))


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_group_without_gradients_waits(nesterov):
    """As where a part is frozen in the middle of a run, or trains only at times: torch leaves out its decay, too."""

    def make(model):
        groups = [{"params": [model.body.weight]}, {"params": [model.top.weight]}]
        return torch.optim.SGD(groups, lr=0.2, momentum=0.9, weight_decay=1e-2, nesterov=nesterov)

    loop = with_two_optimised_parts(lambda index: index % 3 != 1, lambda index: 2 < index < 8)
    assert compare(loop, make, net=lambda: TwoParts().double()) < TOLERANCE


def by_parts(make):
    """Groups of their own for both parts of a network."""
    return lambda model: make([{"params": [model.body.weight]}, {"params": [model.top.weight]}], weight_decay=1e-2)


PARTED = {
    "SGD": by_parts(lambda groups, **o: torch.optim.SGD(groups, lr=0.2, **o)),
    "momentum": by_parts(lambda groups, **o: torch.optim.SGD(groups, lr=0.2, momentum=0.9, **o)),
    "Nesterov": by_parts(lambda groups, **o: torch.optim.SGD(groups, lr=0.2, momentum=0.9, nesterov=True, **o)),
    "AdamW": by_parts(lambda groups, **o: torch.optim.AdamW(groups, lr=0.02, **o)),
}


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("make", PARTED)
def test_a_group_of_its_own_may_be_frozen_and_thawed(make, zeros):
    """With gradients of zeros, which torch takes for gradients, it goes on decaying; without any it waits."""

    def freezing(model, optimizer, scheduler):
        for index, (images, labels) in enumerate(batches(12)):
            model.body.requires_grad_(not 4 <= index < 8)
            logits = model(images)
            optimizer.zero_grad(set_to_none=not zeros)
            F.cross_entropy(logits, labels).backward()
            optimizer.step()
            if scheduler and index % 3 == 2:
                scheduler.step()
            yield logits.detach()
            if index == 6:
                plain = unscale(model, scheduler) if isinstance(scheduler, ExpLR) else model
                yield plain.body.weight.detach().clone()
                yield evaluate(plain)

    assert compare(freezing, PARTED[make], net=lambda: TwoParts().double()) < TOLERANCE


@pytest.mark.parametrize("make", PARTED)
def test_a_run_with_a_frozen_group_is_resumed_where_explr_is_built_before_it_is_frozen(make):
    def build(converted, frozen):
        net = TwoParts().double()
        net.body.requires_grad_(not frozen)
        optimizer = PARTED[make](net)
        return net, optimizer, *([ExpLR(optimizer, model=net)] if converted else [])

    def resumed(converted, frozen_first=False):
        parts = build(converted, frozen=False)
        for index, batch in enumerate(batches(8)):
            parts[0].body.requires_grad_(index < 5)
            update(*parts[:2], batch)
        saved = copy.deepcopy([part.state_dict() for part in parts])
        parts = build(converted, frozen=frozen_first)
        for part, state in zip(parts, saved, strict=True):
            part.load_state_dict(state)
        parts[0].body.requires_grad_(False)
        out = [update(*parts[:2], batch) for batch in batches(12)[8:]]
        plain = unscale(parts[0], parts[2]) if converted else parts[0]
        return [*out, plain.body.weight.detach(), evaluate(plain)]

    assert max(map(deviation, resumed(False), resumed(True))) < TOLERANCE
    with pytest.raises(ExplrError, match="build ExpLR as it was built there, and freeze after that"):
        resumed(True, frozen_first=True)


def test_a_parameter_without_a_gradient_beside_others_is_an_error_that_names_it():
    net = TwoParts().double()
    optimizer = sgd(net)
    scheduler = ExpLR(optimizer, model=net)
    net.top.weight.grad = torch.ones_like(net.top.weight)
    before = net.top.weight.detach().clone()
    with pytest.raises(ExplrError, match=r"update 0 of parameter group 0 body.weight had no gradient: .* group of its own"):
        optimizer.step()
    assert torch.equal(net.top.weight, before)  # it comes before the update
    with pytest.raises(ExplrError, match=r"had no gradient"):
        optimizer.step(lambda: None)
    del scheduler


def test_after_an_update_that_was_wrong_there_is_no_other():
    """A closure makes its gradients within the update, so the error comes after it."""
    net = TwoParts().double()
    optimizer = sgd(net)
    scheduler = ExpLR(optimizer, model=net)

    def closure():
        net.top.weight.grad = torch.ones_like(net.top.weight)

    with pytest.raises(ExplrError, match=r"body\.weight had no gradient"):
        optimizer.step(closure)
    for call in (scheduler.step, lambda: update(net, optimizer, batches(1)[0])):
        with pytest.raises(ExplrError, match="no update can be right any more"):
            call()


class Beside(nn.Module):
    """Has parameters on which what it returns, as it is called by default, does not depend."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 4, 3, stride=4, bias=False), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.Flatten()
        self.body, self.head, self.second = nn.Sequential(*layers), nn.Linear(4 * 8 * 8, 10), nn.Linear(4 * 8 * 8, 10)
        self.temperature = nn.Parameter(torch.tensor(3.0))

    def forward(self, images, both=False):
        features = self.body(images)
        return (self.head(features), self.second(features)) if both else self.head(features)


class Keeping(Beside):
    """Keeps the output of its second head for the loss to read."""

    def forward(self, images):
        features = self.body(images)
        self.kept = self.second(features)
        return self.head(features)


READERS = {
    "a temperature": lambda model, images: model.temperature * model(images),
    "a second head": lambda model, images: model(images) + model.second(model.body(images)),
    "what is kept": lambda model, images: model(images) + model.kept,
    "a branch that was off, and a temperature": lambda model, images: model.temperature * sum(model(images, both=True)),
    "nothing more": lambda model, images: model(images),
}


def reading(reader):
    def loop(model, optimizer, scheduler):
        assert scheduler is None or scheduler.converted[0]
        for images, labels in batches(12):
            logits = READERS[reader](model, images)
            optimizer.zero_grad()
            F.cross_entropy(logits, labels).backward()
            optimizer.step()
            yield logits.detach()

    return loop


def beside(reader, make):
    net = Keeping if reader == "what is kept" else Beside
    return compare(reading(reader), make, "none", lambda: net().double(), example_inputs=(batches(1)[0][0],))


@pytest.mark.parametrize("make", [sgd, adamw])
@pytest.mark.parametrize("reader", READERS)
def test_what_the_output_does_not_depend_on_keeps_its_decay_whatever_the_loss_reads(reader, make):
    assert beside(reader, make) < TOLERANCE


def test_that_check_sees_parameters_that_convert_for_no_reason(monkeypatch):
    monkeypatch.setattr("explr.invariance.analysis.reached", lambda trace, model: {n for n, _ in model.named_parameters()})
    assert beside("a branch that was off, and a temperature", sgd) > 1e3 * TOLERANCE
    with pytest.raises(ExplrError, match=r"temperature, second\.weight, second\.bias had no gradient"):
        beside("nothing more", sgd)


def test_what_the_output_does_not_depend_on_is_named():
    net = Beside()
    optimizer = sgd(net)
    scheduler = ExpLR(optimizer, model=net, example_inputs=(torch.randn(4, 3, 32, 32),))
    assert scheduler.summary == (
        "ExpLR: 1 of 6 tensors (2.1 % of the weights that decay) convert; head.weight, head.bias keep their weight decay; "
        "temperature, second.weight, second.bias keep their weight decay (not used by what the model returns)."
    )
    assert [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups] == [(1, 0.0), (5, 1e-2)]
    groups = [{"params": net.body.parameters(), "weight_decay": 0.0}, {"params": [net.temperature]}]
    optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=1e-2)
    said = "0 of 1 tensors (0.0 % of the weights that decay) convert; temperature keeps its weight decay (not used by what the"
    assert said in ExpLR(optimizer, model=net, example_inputs=(torch.randn(4, 3, 32, 32),)).summary
    assert optimizer.param_groups[1]["weight_decay"] == 1e-2


class ScaledLoss(nn.Module):
    """A network and a loss with a parameter of its own, which is none of the network's."""

    def __init__(self):
        super().__init__()
        self.body, self.scale = TwoParts().double(), nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

    def forward(self, images):
        return self.scale * self.body(images)


@pytest.mark.parametrize("options", [{"weight_decay": 0.0}, {"scale_invariant": False}])
def test_parameters_of_the_loss_are_let_be_in_a_group_that_does_not_convert(options):
    outs = []
    for converted in (False, True):
        both = ScaledLoss()
        groups = [{"params": both.body.parameters()}, {"params": [both.scale], **options}]
        optimizer = torch.optim.SGD(groups, lr=0.2, momentum=0.9, weight_decay=1e-2)
        scheduler = ExpLR(optimizer, model=both.body) if converted else None
        outs.append([update(both, optimizer, batch) for batch in batches(12)])
        plain = unscale(both.body, scheduler) if converted else both.body
        outs[-1] += [evaluate(plain), both.scale.detach()]
    assert max(map(deviation, *outs)) < TOLERANCE
    both = ScaledLoss()
    with pytest.raises(ExplrError, match="into a group of their own, marked scale_invariant=False"):
        ExpLR(torch.optim.SGD(both.parameters(), lr=0.2, weight_decay=1e-2), model=both.body)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_parameter_that_is_unfrozen_is_an_error_that_names_it(momentum):
    net = TwoParts().double()
    net.body.weight.requires_grad_(False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=momentum, weight_decay=1e-2)
    scheduler = ExpLR(optimizer, model=net)
    update(net, optimizer, batches(1)[0])
    net.body.weight.requires_grad_(True)
    with pytest.raises(ExplrError, match=r"update 1 of parameter group 0 body.weight did not train at first"):
        update(net, optimizer, batches(1)[0])
    del scheduler


def test_a_loop_without_gradients_looks_at_rates():
    net = TwoParts().double()
    optimizer = sgd(net)
    scheduler = ExpLR(optimizer, lr_scheduler.StepLR(optimizer, 2), model=net, renormalize=False)
    eps = net.first.eps
    for expected in convert([0.2, 0.2, 0.02, 0.02], 1e-2, 0.9).lr:
        assert scheduler.get_last_lr()[0] == pytest.approx(expected, rel=1e-12)
        optimizer.step()
        scheduler.step()
    assert net.first.eps == eps  # nothing has moved


def warming_up_the_schedule(model, optimizer, scheduler):
    """Steps without gradients first, as some do against torch's warning about the order of calls."""
    for _ in range(2):
        optimizer.step()
        if scheduler:
            scheduler.step()
    yield from once_an_epoch(model, optimizer, scheduler)


def freeing_gradients_in_a_hook(model, optimizer, scheduler):
    optimizer.register_step_post_hook(lambda *_: optimizer.zero_grad())
    yield from without_backward_at_times(model, optimizer, scheduler)


@pytest.mark.parametrize("loop", [warming_up_the_schedule, freeing_gradients_in_a_hook])
def test_updates_without_gradients_do_not_count(loop):
    assert compare(loop) < TOLERANCE


def test_a_closure_after_updates_without_gradients_is_an_error():
    net = TwoParts().double()
    optimizer = sgd(net)
    scheduler = ExpLR(optimizer, model=net)
    optimizer.step()
    with pytest.raises(ExplrError, match="the 1 updates before this one, which has a closure, had no gradient"):
        optimizer.step(lambda: net(batches(1)[0][0]).sum().backward())
    del scheduler


def test_a_preview_is_what_comes_and_touches_nothing():
    net = network()
    optimizer = adamw(net)
    cycle = lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=40)
    scheduler = ExpLR(optimizer, cycle, model=net)
    for batch in batches(7):
        update(net, optimizer, batch)
        scheduler.step()
    before = copy.deepcopy((net.state_dict(), optimizer.state_dict(), scheduler.state_dict()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        foreseen = scheduler.preview(20)
        halved = scheduler.preview(3, updates_per_step=2)
    after = (net.state_dict(), optimizer.state_dict(), scheduler.state_dict())
    torch.testing.assert_close(before[0], after[0], rtol=0, atol=0)
    torch.testing.assert_close(before[1]["state"], after[1]["state"], rtol=0, atol=0)
    assert before[1]["param_groups"] == after[1]["param_groups"] and before[2] == after[2]
    seen = []
    for batch in batches(20):
        seen.append(scheduler.log_lr)
        update(net, optimizer, batch)
        scheduler.step()
    np.testing.assert_array_equal(np.array(foreseen), np.array(seen).T)
    assert halved[0][0] == foreseen[0][0] and halved[0][1] != foreseen[0][1]


def test_the_future_of_a_torch_scheduler_converts():
    net = network()
    optimizer = sgd(net)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 20)
    state = copy.deepcopy(scheduler.state_dict())
    lrs = schedules.future(scheduler, 15)
    assert scheduler.state_dict() == state and optimizer.param_groups[0]["lr"] == 0.2
    log_lr = ExpLR(optimizer, scheduler, model=net).preview(15)[0]
    np.testing.assert_allclose(convert(lrs, 1e-2, 0.9).log_lr, log_lr, rtol=0, atol=1e-13)


def test_the_future_of_a_loop_that_steps_once_an_epoch_has_a_rate_for_every_update():
    net = network()
    optimizer = sgd(net)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 5)
    lrs = schedules.future(scheduler, 11, updates_per_step=3)
    np.testing.assert_array_equal(lrs, np.repeat(schedules.future(scheduler, 4), 3)[:11])
    log_lr = ExpLR(optimizer, scheduler, model=net).preview(11, updates_per_step=3)[0]
    np.testing.assert_allclose(convert(lrs, 1e-2, 0.9).log_lr, log_lr, rtol=0, atol=1e-13)


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("make", [sgd, adamw])
def test_weights_at_the_scale_of_the_decayed_run_average_and_export(make, renormalize):
    """An average of growing weights is another average; of unscaled ones it is that of the run with weight decay."""
    averages = []
    for converted in (False, True):
        model = network()
        optimizer = make(model)
        scheduler = ExpLR(optimizer, model=model, renormalize=renormalize) if converted else None
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
        for batch in batches():
            update(model, optimizer, batch)
            average.update_parameters(unscale(model, scheduler) if converted else model)
        plain = unscale(model, scheduler) if converted else model
        averages.append((average, plain))
        if converted:
            assert deviation(evaluate(model), evaluate(plain)) < TOLERANCE
    (expected, original), (seen, plain) = averages
    for one, two in zip(expected.module.parameters(), seen.module.parameters(), strict=True):
        assert deviation(one, two) < TOLERANCE
    fresh = network()  # as it would be built elsewhere: eps is in no state_dict
    fresh.load_state_dict(plain.state_dict())
    assert deviation(evaluate(original), evaluate(fresh)) < TOLERANCE
    assert [m.eps for m in plain.modules() if hasattr(m, "eps")] == [m.eps for m in fresh.modules() if hasattr(m, "eps")]
    losses = [
        update(net, torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=1e-2), batches(1)[0]) for net in (original, plain)
    ]
    assert deviation(*losses) < TOLERANCE


def test_unscaling_needs_to_know_the_model():
    net, other = network(), network()
    scheduler = ExpLR(sgd(net), model=net)
    with pytest.raises(ExplrError, match="not the one"):
        unscale(other, scheduler)
    with pytest.raises(ExplrError, match=r"unscale\(model, scheduler\) takes the ExpLR of the model, not PreResNet"):
        unscale(scheduler, net)
    optimizer = sgd(other)
    optimizer.param_groups[0]["scale_invariant"] = True
    with pytest.raises(ExplrError, match="built without model="):
        unscale(other, ExpLR(optimizer))


def with_weight_norm():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.utils.weight_norm(nn.Linear(3072, 8)), nn.ReLU(), nn.Linear(8, 10))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("build", [Keeping, with_weight_norm])
def test_a_network_that_keeps_tensors_of_a_graph_is_unscaled(build):
    def unscaling(model, optimizer, scheduler):
        for batch in batches(8):
            update(model, optimizer, batch)
            model.many = [model(batch[0])]  # in a graph, and in a list
            plain = unscale(model, scheduler) if isinstance(scheduler, ExpLR) else model
            yield evaluate(plain)
            assert plain is model or (torch.equal(plain.many[0], model.many[0]) and plain.many[0].is_leaf)

    assert compare(unscaling, net=lambda: build().double(), example_inputs=(batches(1)[0][0],)) < TOLERANCE


def test_a_checkpoint_of_the_script_as_it_was_goes_on_under_explr():
    """Load it, then build ExpLR; a checkpoint of ExpLR resumes the other way round, since the groups are split by then."""

    def script(net, optimizer, scheduler, part):
        for index in part:
            yield update(net, optimizer, batches()[index])
            if (index + 1) % BATCHES == 0:
                scheduler.step()

    def build():
        net = network()
        optimizer = sgd(net)
        return net, optimizer, SCHEDULES["cosine"](optimizer)

    original = build()
    list(script(*original, range(7)))
    saved = copy.deepcopy([part.state_dict() for part in original])
    expected = list(script(*original, range(7, 20)))

    net, optimizer, scheduler = build()
    for part, state in zip((net, optimizer, scheduler), saved, strict=True):
        part.load_state_dict(copy.deepcopy(state))
    ours = ExpLR(optimizer, scheduler, model=net)
    seen = list(script(net, optimizer, ours, range(7, 13)))
    saved = copy.deepcopy([part.state_dict() for part in (net, optimizer, ours)])
    seen += script(net, optimizer, ours, range(13, 20))
    assert max(map(deviation, expected, seen)) < TOLERANCE

    net, optimizer, scheduler = build()
    ours = ExpLR(optimizer, scheduler, model=net)
    for part, state in zip((net, optimizer, ours), saved, strict=True):
        part.load_state_dict(copy.deepcopy(state))
    again = list(script(net, optimizer, ours, range(13, 20)))
    assert all(map(torch.equal, seen[6:], again))


@pytest.mark.filterwarnings("ignore:ExpLR has no model")
def test_an_optimizer_s_state_without_explr_s_is_refused():
    net = TwoParts().double()
    optimizer = sgd(net)
    scheduler = ExpLR(optimizer)
    early = copy.deepcopy(optimizer.state_dict())
    for batch in batches(3):
        update(net, optimizer, batch)
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(early)
    with pytest.raises(ExplrError, match=r"state of update 0, ExpLR is at 2: load ExpLR's state too"):
        scheduler.step()
    optimizer = sgd(net)
    optimizer.load_state_dict(saved)
    scheduler = ExpLR(optimizer)
    with pytest.raises(ExplrError, match="took its weight decay: load ExpLR's state too"):
        update(net, optimizer, batches(1)[0])


def test_a_plateau_without_its_metric_is_an_error_as_in_torch():
    net = network()
    optimizer = sgd(net)
    scheduler = ExpLR(optimizer, lr_scheduler.ReduceLROnPlateau(optimizer), model=net)
    update(net, optimizer, batches(1)[0])
    with pytest.raises(ExplrError, match=r"lacks the metric .* call step\(metric\)"):
        scheduler.step()
    scheduler.step(1.0)
    assert scheduler.scheduler.last_epoch == 1


def test_a_checkpoint_of_the_script_that_is_loaded_too_late_is_an_error_that_says_when():
    net = network()
    optimizer = sgd(net)
    scheduler = SCHEDULES["cosine"](optimizer)
    saved = [copy.deepcopy(part.state_dict()) for part in (optimizer, scheduler)]
    ours = ExpLR(optimizer, scheduler, model=net)
    for part, state in zip((optimizer, ours), saved, strict=True):
        with pytest.raises(ExplrError, match=r"without ExpLR .*before ExpLR is built"):
            part.load_state_dict(state)
    update(net, optimizer, batches(1)[0])


def test_a_state_of_a_model_with_other_norms_is_refused():
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(3072, 4, bias=False), *norm) for norm in ([], [nn.ReLU()])]
    for net in nets:
        net.append(nn.BatchNorm1d(4, affine=False))
    first, second = (ExpLR(sgd(net), model=net) for net in nets)
    with pytest.raises(ExplrError, match=r"other norms \(2; here 3\)"):
        second.load_state_dict(first.state_dict())
    assert set(second.norms.eps) == {"3"}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("options", [{"weight_decay": 0.0}, {"scale_invariant": False}])
def test_an_optimizer_of_which_nothing_can_convert_is_told_so(options, known, caplog):
    net = network()
    optimizer = sgd(net)
    optimizer.param_groups[0].update(options)
    scheduler = ExpLR(optimizer, model=net if known else None)
    assert "nothing converts" in scheduler.summary and "Set weight_decay in the optimizer" in scheduler.summary
    assert [record.getMessage() for record in caplog.records if record.name == "explr"] == [scheduler.summary]


@pytest.mark.filterwarnings("ignore:ExpLR has no model")
def test_where_something_converts_or_will_once_its_state_is_loaded_nothing_is_said_of_nothing(caplog):
    net = TwoParts().double()
    groups = [{"params": [net.body.weight]}, {"params": [net.top.weight], "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=1e-2)
    scheduler = ExpLR(optimizer)
    again = torch.optim.SGD(groups, lr=0.1, weight_decay=1e-2)
    again.load_state_dict(optimizer.state_dict())
    assert (scheduler.summary, ExpLR(again).summary, caplog.records) == ("", "", [])


def test_without_a_model_explr_says_once_what_it_takes_on_trust():
    net = network()
    with pytest.warns(UserWarning, match=r"scale-invariant in parameter group 0; .* scale_invariant=True"):
        ExpLR(sgd(net))
    optimizer = sgd(net)
    optimizer.param_groups[0]["scale_invariant"] = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ExpLR(optimizer)


@pytest.mark.parametrize(
    "make, bound",
    [
        (lambda net: sgd(net, lr=3.0), "0.00263"),
        (lambda net: sgd(net, lr=0.3, nesterov=True), "0.00277"),
        (lambda net: sgd(net, lr=40.0, momentum=0.5, dampening=0.5), "0.17157"),
    ],
)
def test_a_constant_rate_that_converts_for_some_steps_only_is_refused_at_once(make, bound):
    net = network()
    optimizer = make(net)
    with pytest.raises(ExplrError, match=rf"must not exceed {bound}"):
        ExpLR(optimizer, model=net)
    ExpLR(optimizer, lr_scheduler.StepLR(optimizer, 1), model=net)  # a schedule that lowers it may be in time


class Deep(nn.Module):
    """Two layers before the norm: its input has degree 2."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 8, 3, bias=False))
        self.norm, self.head = nn.BatchNorm2d(8, affine=False), nn.Linear(8, 10).requires_grad_(False)

    def forward(self, images):
        return self.head(self.norm(self.layers(images)).relu().mean((2, 3)))


def fast(net):
    return torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.3, weight_decay=1.0)


@pytest.mark.parametrize("known, below", [(True, 20.0), (False, 39.6)])
def test_a_float32_run_stops_before_its_gradients_vanish_or_is_renormalised(known, below):
    """Variances of activations leave the range long before the learning rate does."""
    images, labels = batches(1)[0][0].float(), batches(1)[0][1]
    net = Deep() if known else nn.Sequential(Deep().layers[0], nn.BatchNorm2d(8, affine=False), nn.Flatten(), nn.LazyLinear(10))
    if not known:
        net(images)
        net[-1].requires_grad_(False)
    optimizer = fast(net)
    optimizer.param_groups[0]["scale_invariant"] = True
    scheduler = ExpLR(optimizer, model=net if known else None, renormalize=False)
    with pytest.raises(ExplrError, match=r"activations' growth of step \d+ .* torch.float32 .*renormalize=True"):
        for _ in range(1000):
            update(net, optimizer, (images, labels))
            assert all(p.grad.any() for p in net.parameters() if p.requires_grad)
    assert below - 0.5 < scheduler.log_scale[0] < below

    net = Deep()
    optimizer = fast(net)
    scheduler = ExpLR(optimizer, model=net)
    for _ in range(200):
        update(net, optimizer, (images, labels))
        assert all(p.grad.any() and p.isfinite().all() for p in net.parameters() if p.requires_grad)
    assert scheduler.log_scale[0] > 60


def test_a_schedule_that_is_no_torch_scheduler_is_taken_with_its_own_calls():
    """As timm's are: step(epoch) once an epoch, step_update(number of updates) after each."""

    class Cosine:
        def __init__(self, optimizer):
            self.optimizer, self.base = optimizer, [group["lr"] for group in optimizer.param_groups]
            self.counts = {}

        def set(self, **counts):
            self.counts |= counts
            share = (self.counts.get("epoch", 0) + self.counts.get("updates", 0) / BATCHES) / (2 * EPOCHS)
            for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
                group["lr"] = base * 0.5 * (1 + math.cos(math.pi * share))

        def step(self, epoch, metric=None):
            self.set(epoch=epoch)

        def step_update(self, num_updates, metric=None):
            self.set(updates=num_updates)

        def state_dict(self):
            return dict(self.counts)

        def load_state_dict(self, state):
            self.counts = state

    outs = []
    for converted in (False, True):
        model = network()
        optimizer = sgd(model)
        scheduler = Cosine(optimizer)
        scheduler = ExpLR(optimizer, scheduler, model=model) if converted else scheduler
        out = []
        for index, batch in enumerate(batches()):
            out.append(update(model, optimizer, batch))
            scheduler.step_update(index + 1)
            if (index + 1) % BATCHES == 0:
                scheduler.step((index + 1) // BATCHES, 0.5)
        outs.append(out)
    assert max(map(deviation, *outs)) < TOLERANCE
    assert scheduler.lrs[0] == pytest.approx(0.2 * 0.5 * (1 + math.cos(math.pi)))
    optimizer = sgd(model)
    with pytest.raises(ExplrError, match="step_update"):
        ExpLR(optimizer, lr_scheduler.StepLR(optimizer, 3), model=model).step_update(1)


@pytest.mark.parametrize("steps_per_epoch", [0, -1, 2.5, "10"])
def test_steps_per_epoch_is_a_number_of_steps(steps_per_epoch):
    net = network()
    with pytest.raises(ExplrError, match="steps_per_epoch="):
        ExpLR(sgd(net), model=net, steps_per_epoch=steps_per_epoch)


class Biased(nn.Module):
    """Convolutions with the bias that torch gives them by default, before norms that take it away."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        blocks = [(nn.Conv2d(c, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU()) for c in (3, 4)]
        self.body, self.head = nn.Sequential(*[layer for block in blocks for layer in block]), nn.Linear(4, 10)

    def forward(self, images):
        return self.head(self.body(images).mean((2, 3)))


def test_biases_before_norms_convert_with_their_weights_and_shifts_do_not():
    """The running mean is a sum then, of which both parts must grow alike."""
    assert compare(once_an_epoch, net=lambda: Biased().double()) < TOLERANCE
    net = Biased().double()
    optimizer = sgd(net)
    scheduler = ExpLR(optimizer, model=net)
    assert len(optimizer.param_groups[0]["params"]) == 4 and "4 of 10 tensors" in scheduler.summary


def test_biases_that_do_not_decay_before_norms_are_an_error_that_says_what_to_do():
    net = Biased()
    decay = [p for p in net.parameters() if p.ndim > 1]
    groups = [{"params": decay}, {"params": [p for p in net.parameters() if p.ndim == 1], "weight_decay": 0.0}]
    with pytest.raises(ExplrError, match=r"(?s)parts of degrees 0 and 1 .*bias=False"):
        ExpLR(torch.optim.SGD(groups, lr=0.1, weight_decay=1e-2), model=net)


def test_a_model_has_one_explr():
    """Each would set the eps of all norms."""
    net = TwoParts().double()
    one, two = (torch.optim.SGD([part], lr=0.1, weight_decay=1e-2) for part in (net.body.weight, net.top.weight))
    schedulers = [ExpLR(optimizer, model=net) for optimizer in (one, two)]
    net(batches(1)[0][0]).square().sum().backward()
    one.step()
    with pytest.raises(ExplrError, match="grown under another ExpLR"):
        two.step()
    plain = unscale(net, schedulers[0])
    optimizer = sgd(plain)
    scheduler = ExpLR(optimizer, model=plain)
    update(plain, optimizer, batches(1)[0])
    optimizer = sgd(net)
    again = ExpLR(optimizer, model=net)
    with pytest.raises(ExplrError, match=r"explr.unscale\(model, scheduler\) with the ExpLR that it has grown under"):
        update(net, optimizer, batches(1)[0])
    with pytest.raises(ExplrError, match="grown under another ExpLR, whose scale it has"):
        unscale(net, again)
    del again, scheduler


@pytest.mark.parametrize("make", [sgd, adamw])
def test_buffers_that_are_gone_are_missed(make):
    net = TwoParts().double()
    optimizer = make(net)
    scheduler = ExpLR(optimizer, model=net)
    for batch in batches(3):
        update(net, optimizer, batch)
    optimizer.state.clear()
    with pytest.raises(ExplrError, match="keeps of the gradients of parameter group 0 is gone"):
        update(net, optimizer, batches(1)[0])
    del scheduler


class Holding(lr_scheduler.StepLR):
    """A scheduler that keeps hold of the groups."""

    def __init__(self, optimizer):
        self.groups = list(optimizer.param_groups)
        super().__init__(optimizer, 3)

    def step(self, epoch=None):
        super().step()
        for group in self.groups:
            group["lr"] = 0.01


class Adding(lr_scheduler.StepLR):
    """A scheduler that adds a group."""

    def step(self, epoch=None):
        super().step()
        if self.last_epoch:
            self.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})


@pytest.mark.parametrize(
    "make, part", [(Holding, "is 0.01, not 0.010001"), (lambda optimizer: Adding(optimizer, 3), "has added")]
)
def test_schedulers_that_reach_around_are_found_out(make, part):
    net = TwoParts().double()
    optimizer = sgd(net)
    scheduler = ExpLR(optimizer, make(optimizer), model=net)
    update(net, optimizer, batches(1)[0])
    with pytest.raises(ExplrError, match=part):
        scheduler.step()


def fractions_of_an_epoch(model, optimizer, scheduler):
    for index, batch in enumerate(batches()):
        yield update(model, optimizer, batch)
        scheduler.step(index / BATCHES)


def test_warm_restarts_take_fractions_of_an_epoch():
    outs = []
    for converted in (False, True):
        net = network()
        optimizer = sgd(net)
        scheduler = lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 2)
        outs.append(
            list(fractions_of_an_epoch(net, optimizer, ExpLR(optimizer, scheduler, model=net) if converted else scheduler))
        )
    assert max(map(deviation, *outs)) < TOLERANCE


def test_a_float32_tensor_rate_is_what_explr_set_it_to():
    def make(net):
        return sgd(net, lr=torch.tensor(0.1))

    assert compare(once_an_epoch, make) < 1e-5  # the rate itself is rounded


def test_groups_whose_warm_up_begins_at_0_are_not_alike():
    def make(model):
        groups = [{"params": [model.body.weight]}, {"params": [model.top.weight], "lr": 0.05}]
        return torch.optim.SGD(groups, lr=0.2, momentum=0.9, weight_decay=1e-2)

    SCHEDULES["from 0"] = lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 2, 1.0))
    assert compare(once_an_epoch, make, "from 0", net=lambda: TwoParts().double()) < TOLERANCE


def test_a_warning_that_is_made_an_error_leaves_the_optimizer_as_it_was():
    net = network()
    optimizer = sgd(net)
    before = {**optimizer.param_groups[0]}
    with warnings.catch_warnings(), pytest.raises(UserWarning):
        warnings.simplefilter("error")
        ExpLR(optimizer)
    assert optimizer.param_groups[0] == before and not optimizer._optimizer_step_pre_hooks


def test_the_names_of_parameters_are_split_with_them():
    net = network()
    groups = [{"params": list(net.named_parameters()), "name": "all"}]
    optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=1e-2)
    ExpLR(optimizer, model=net)
    names = {id(p): name for name, p in net.named_parameters()}
    for group in optimizer.param_groups:
        assert group["param_names"] == [names[id(p)] for p in group["params"]]
    assert [group["name"] for group in optimizer.param_groups] == ["all", "all, not converted"]


def test_what_cannot_be_looked_ahead_says_so():
    net = TwoParts().double()
    optimizer = sgd(net)
    cycle = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=5)
    with pytest.raises(ExplrError, match="OneCycleLR cannot be looked ahead at 9 steps"):
        schedules.future(cycle, 9)
    scheduler = ExpLR(optimizer, cycle, model=net)
    with pytest.raises(ExplrError, match="OneCycleLR cannot be looked ahead at 9 updates"):
        scheduler.preview(9)
    with pytest.raises(ExplrError, match=r"use ExpLR\.preview"):
        schedules.future(cycle, 3)
    with pytest.raises(ExplrError, match=r"use ExpLR\.preview"):
        schedules.future(scheduler, 3)
    with pytest.raises(ExplrError, match=r"must be a torch.optim.Optimizer itself"):
        ExpLR(net.parameters())


def test_a_state_that_says_that_more_converts_changes_nothing():
    """What it was loaded for is as it was: the wrapped schedule, and what follows the weights."""
    net = network()
    optimizer = sgd(net)
    scheduler = ExpLR(optimizer, lr_scheduler.StepLR(optimizer, 2), model=net)
    early = copy.deepcopy(scheduler.state_dict())
    for batch in batches(3):
        update(net, optimizer, batch)
        scheduler.step()
    before = copy.deepcopy(scheduler.state_dict())
    with pytest.raises(ExplrError, match="not scale-invariant"):
        scheduler.load_state_dict({**early, "converted": [True, True]})
    assert scheduler.state_dict() == before
    update(net, optimizer, batches(1)[0])
    assert scheduler.log_scale[0] > before["log_scale"][0] and net.norm.eps > 1e-5
