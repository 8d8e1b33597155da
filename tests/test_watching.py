"""What ExpLR sees of what others do to its optimizer: settings that change, gradients that are missing, updates without any."""

import pytest
import torch
from test_scheduler import Recording, network, refusal, run, sgd, update, weights
from torch import nn
from torch.optim import lr_scheduler

from explr import ExpLR, ExplrError, convert
from explr.watching import has_explr


def test_an_optimizer_has_one_explr_and_needs_it():
    optimizer = sgd()
    assert not has_explr(optimizer)
    scheduler = ExpLR(optimizer)
    assert has_explr(optimizer)
    said = "this optimizer already has an ExpLR, which took its weight decay: build a new optimizer."
    assert refusal(lambda: ExpLR(optimizer)) == said
    del scheduler
    assert refusal(lambda: update(optimizer)) == (
        "the ExpLR of this optimizer, which took its weight decay, is gone: keep it as long as the optimizer trains."
    )


def set_to(**values):
    return lambda optimizer: optimizer.param_groups[0].update(values)


AROUND = (
    " as ExpLR set it. A second scheduler, a finder of learning rates or a callback for weight averaging may have changed it: "
    "wrap the scheduler that did, ExpLR(optimizer, scheduler), and step only ExpLR."
)
BY_HAND = (
    " If your loop sets it, give the function to LambdaLR: ExpLR(optimizer, LambdaLR(optimizer, f)), where f(step) is the "
    "factor of the first rate."
)


@pytest.mark.parametrize(
    "change, message",
    [
        (set_to(lr=0.25), f"the learning rate of parameter group 0 is 0.25, not 0.525105{AROUND}{BY_HAND}"),
        (set_to(momentum=0.75), f"the momentum of parameter group 0 is 0.75, not 0.5{AROUND}"),
        (set_to(dampening=0.25), f"the dampening of parameter group 0 is 0.25, not 0{AROUND}"),
        (set_to(nesterov=True), "parameter group 0 has nesterov=True now: build a new optimizer for it."),
        (
            set_to(weight_decay=0.5),
            "parameter group 0 has weight_decay=0.5 again, after ExpLR took it: after optimizer.load_state_dict load ExpLR's "
            "state too, or build ExpLR once it is loaded. If your loop sets it, let the step() of an object do so that ExpLR "
            "wraps, ExpLR(optimizer, object).",
        ),
        (
            set_to(maximize=True),
            "parameter group 0 has maximize=True: explr converts minimisation. Minimise the negative of the objective.",
        ),
        (
            lambda optimizer: optimizer.add_param_group({"params": weights()}),
            "the optimizer has 2 parameter groups, ExpLR was built for 1: add every group before building ExpLR.",
        ),
        (
            lambda optimizer: optimizer.state.clear(),
            "what the optimizer keeps of the gradients of parameter group 0 is gone, and ExpLR counts on the decay that it "
            "carries: load the optimizer's state with ExpLR's, and do not clear it.",
        ),
    ],
)
def test_what_others_have_changed_is_named(change, message):
    optimizer = sgd()
    scheduler = ExpLR(optimizer)
    update(optimizer)
    scheduler.step()
    if "0.525105" in message:
        message = message.replace("0.525105", f"{optimizer.param_groups[0]['lr']:g}")
    change(optimizer)
    for call in (scheduler.step, lambda: update(optimizer)):
        assert refusal(call) == message


@pytest.mark.parametrize("initialised, captures", [(True, True), (True, False), (False, True), (False, False)])
def test_an_update_inside_a_cuda_graph_is_refused(initialised, captures, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialised)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: captures)
    optimizer = sgd()
    scheduler = ExpLR(optimizer)
    if initialised and captures:
        said = "a CUDA graph of optimizer.step() would freeze what ExpLR sets at every step: capture less."
        assert refusal(lambda: optimizer.step()) == said
    else:
        run(optimizer, scheduler, 1)


def test_a_scheduler_that_adds_a_group_is_found_out():
    class Adding(lr_scheduler.StepLR):
        def step(self, epoch=None):
            super().step()
            if self.last_epoch:
                self.optimizer.add_param_group({"params": weights()})

    optimizer = sgd()
    scheduler = ExpLR(optimizer, Adding(optimizer, 5))
    update(optimizer)
    assert refusal(scheduler.step) == "Adding has added a parameter group: add every group before building ExpLR."


class ByHand(Recording):
    """What a loop that sets rate and decay by hand becomes: an object that does, for ExpLR to wrap."""

    def step(self, *args, **kwargs):
        self.calls.append(("step", args, kwargs))
        self.optimizer.param_groups[0].update(self.settings(len(self.calls)))

    @staticmethod
    def settings(step):
        return {"lr": 0.5 - 0.1 * step, "weight_decay": 0.0625 + 0.01 * step}


def test_what_a_loop_sets_by_hand_converts_as_the_messages_say():
    optimizer = sgd()
    scheduler = ExpLR(optimizer, lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - 0.2 * step))
    assert [log for _, log in run(optimizer, scheduler, 4)] == pytest.approx(
        convert([0.5, 0.4, 0.3, 0.2], 0.0625, 0.5).log_lr, rel=1e-13
    )
    optimizer = sgd()
    scheduler = ExpLR(optimizer, ByHand(optimizer))
    assert [log for _, log in run(optimizer, scheduler, 4)] == pytest.approx(
        convert([0.5, 0.4, 0.3, 0.2], [0.0625, 0.0725, 0.0825, 0.0925], 0.5).log_lr, rel=1e-13
    )


class Holding(Recording):
    """A scheduler that keeps hold of the groups, as one that its author wrote for another library may."""

    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.group = optimizer.param_groups[0]

    def step(self, *args, **kwargs):
        self.group["lr"] = 0.25


def test_a_scheduler_that_reaches_around_is_found_out_at_once():
    optimizer = sgd()
    scheduler = ExpLR(optimizer, Holding(optimizer))
    update(optimizer)
    assert refusal(scheduler.step) == f"the learning rate of parameter group 0 is 0.25, not 0.516129{AROUND}{BY_HAND}"


UNEVEN = (
    ": torch then leaves out its weight decay as well, and no one factor of the group's weights is right any more. Go back to "
    "a checkpoint from before; let the parameters of a group train all or none (what is frozen, or unused at times, belongs "
    "into a group of its own), or give each a gradient, of zeros where it has none (p.grad = torch.zeros_like(p)), and call "
    "zero_grad(set_to_none=False)."
)


def test_gradients_for_a_part_of_a_group_are_refused_and_what_has_none_is_named():
    first, second = weights(2)
    optimizer = sgd({"params": [first, second]})
    scheduler = ExpLR(optimizer)
    update(optimizer)
    said = f"in update 1 of parameter group 0 parameter 1 of shape (2,) had no gradient{UNEVEN}"
    assert refusal(lambda: update(optimizer, first)) == said
    assert scheduler.updates == 1
    trained, frozen = weights(2)
    frozen.requires_grad_(False)
    optimizer = sgd({"params": weights(), "scale_invariant": False}, {"params": [trained, frozen]})
    scheduler = ExpLR(optimizer)
    update(optimizer)
    frozen.requires_grad_(True)
    said = f"in update 1 of parameter group 1 parameter 1 of shape (2,) did not train at first{UNEVEN}"
    assert refusal(lambda: update(optimizer)) == said
    assert scheduler.updates == 1


def test_after_an_update_that_was_wrong_there_is_no_other():
    first, second = weights(2)
    optimizer = sgd({"params": [first, second]})
    scheduler = ExpLR(optimizer)

    def closure():
        first.grad, second.grad = torch.ones(2).double(), None
        return torch.zeros(())

    said = refusal(lambda: optimizer.step(closure))
    assert said.startswith("in update 0 of parameter group 0 parameter 1 of shape (2,) had no gradient")
    expected = f"no update can be right any more, since an earlier one was not: {said}"
    assert refusal(scheduler.step) == refusal(lambda: update(optimizer)) == expected


def test_a_group_without_gradients_waits_and_one_with_them_goes_on():
    first, second = weights(2)
    optimizer = sgd({"params": [first]}, {"params": [second]})
    scheduler = ExpLR(optimizer)
    for having in ((first, second), (first,), (first,), (second,)):
        update(optimizer, *having)
    schedule = convert([0.5] * 3, 0.0625, 0.5)
    assert scheduler.log_scale == pytest.approx([schedule.log_scale[3], schedule.log_scale[2]], rel=1e-13)
    assert scheduler.updates == 4


def test_updates_without_any_gradient_are_forgotten_with_the_first():
    (weight,) = weights()
    optimizer = sgd({"params": [weight]})
    scheduler = ExpLR(optimizer)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    assert scheduler.dry and scheduler.updates == 3 and scheduler.log_scale[0] > 0
    update(optimizer)
    assert not scheduler.dry and scheduler.updates == 1
    assert scheduler.log_scale == pytest.approx([convert([0.5], 0.0625, 0.5).log_scale[1]], rel=1e-13)


@pytest.mark.parametrize("known", [True, False])
def test_a_run_after_updates_without_any_gradient_is_a_fresh_one(known):
    states = []
    for dry in (0, 30):
        net = network()
        optimizer = torch.optim.SGD([{"params": [net[0].weight], "scale_invariant": True}], lr=0.5, weight_decay=0.0625)
        scheduler = ExpLR(optimizer, model=net if known else None)
        for _ in range(dry):
            optimizer.step()
        update(optimizer, gradient=0.25)
        states.append((net[0].weight.tolist(), net[1].eps, scheduler.state_dict()))
    assert states[0] == states[1] and states[0][2]["exponents"] == [0]


def test_parameters_that_the_model_has_no_longer_are_refused_at_the_first_update():
    net = network()
    optimizer = sgd({"params": [net[0].weight]})
    scheduler = ExpLR(optimizer, model=net)
    net[0].weight = torch.nn.Parameter(net[0].weight.detach().clone())
    net(torch.randn(4, net[0].in_features).double()).sum().backward()
    with pytest.raises(ExplrError, match="others have taken their place"):
        optimizer.step()
    assert scheduler.updates == 0


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_an_update_without_any_gradient_among_others_moves_nothing(momentum):
    optimizer = sgd(momentum=momentum)
    scheduler = ExpLR(optimizer)
    update(optimizer)
    grown = list(scheduler.log_scale)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = None
    optimizer.step()
    assert scheduler.log_scale == grown and not scheduler.dry


def test_an_update_without_any_gradient_moves_nothing_in_a_run_under_way():
    optimizer = sgd()
    update(optimizer)
    scheduler = ExpLR(optimizer)
    optimizer.param_groups[0]["params"][0].grad = None
    optimizer.step()
    assert scheduler.log_scale == [0.0] and not scheduler.dry


def test_a_closure_with_gradients_after_updates_without_is_refused():
    (weight,) = weights()
    optimizer = sgd({"params": [weight]})
    scheduler = ExpLR(optimizer)
    optimizer.step()
    optimizer.step()

    def closure():
        weight.grad = torch.ones(2).double()
        return torch.zeros(())

    assert refusal(lambda: optimizer.step(closure)) == (
        "the 2 updates before this one, which has a closure, had no gradient at all, as in a loop that only looks at rates "
        "(ExpLR.preview does), and ExpLR has let its rate grow: build model, optimizer and ExpLR anew."
    )
    assert scheduler.updates == 2


def test_what_had_no_gradient_has_the_name_that_the_model_gives_it():
    net = nn.Sequential(nn.Linear(5, 8, bias=False), nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8, affine=False)).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.5, weight_decay=0.0625)
    scheduler = ExpLR(optimizer, model=net)
    what_to_do = UNEVEN.replace("Go back to a checkpoint from before; let", "Let")  # there is no update to go back from
    said = f"in update 0 of parameter group 0 1.weight had no gradient{what_to_do}"
    assert refusal(lambda: update(optimizer, net[0].weight)) == said
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    assert scheduler.updates == 1
