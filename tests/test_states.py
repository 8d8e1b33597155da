"""What ExpLR saves and loads, and what it says of a state that does not fit, word for word."""

import copy
import math

import pytest
import torch
from test_scheduler import adamw, network, numbers, refusal, run, sgd, update, weights
from torch.optim import lr_scheduler

from explr import ExpLR


def test_a_state_is_complete_and_goes_on_with_every_number():
    optimizer = sgd()
    scheduler = ExpLR(optimizer, lr_scheduler.StepLR(optimizer, 2, 0.5))
    run(optimizer, scheduler, 3)
    state = copy.deepcopy(scheduler.state_dict())
    expected = run(optimizer, scheduler, 3)
    other = sgd()
    resumed = ExpLR(other, lr_scheduler.StepLR(other, 2, 0.5))
    run(other, resumed, 3)
    for _ in range(2):
        update(other)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert run(other, resumed, 3) == expected
    assert (state["scheduler"][0], state["eps"], state["families"]) == ("StepLR", None, ["HeavyBall"])


def test_a_state_has_all_that_a_run_has_come_to_and_nothing_else():
    optimizer = sgd(momentum=0.0, weight_decay=1.0)
    scheduler = ExpLR(optimizer)
    fresh = {
        "last_epoch": 0,
        "_step_count": 1,
        "_last_lr": [1.0],
        "families": ["HeavyBall"],
        "converted": [True],
        "believed": [{"lr": 0.5, "weight_decay": 1.0, "momentum": 0.0, "dampening": 0.0}],
        "memory": [[0.0, 1.0]],
        "after": [[2.0, 0.0]],
        "shares": [0.5],
        "log_scale": [0.0],
        "rounding": [0.0],
        "log_lr": [pytest.approx(0.0, abs=1e-15)],
        "exponents": [0],
        "rates": [1.0],
        "in_use": [{"weight_decay": 0.0, "momentum": 0.0, "dampening": 0.0}],
        "updates": 0,
        "dry": False,
        "calls": 0,
        "prepared": True,
        "written": 0,
        "_updates_since_call": 0,
        "_train": [[True]],
        "scheduler": None,
        "eps": None,
    }
    assert scheduler.state_dict() == fresh
    update(optimizer)
    after = {**fresh, "updates": 1, "prepared": False, "memory": [[2.0, 0.0]], "log_scale": [math.log(2)]}
    after["_updates_since_call"] = 1
    assert scheduler.state_dict() == after


def test_a_resumed_run_is_previewed_as_it_goes_on():
    optimizer = sgd()
    scheduler = ExpLR(optimizer, lr_scheduler.StepLR(optimizer, 1, 0.5))
    update(optimizer), update(optimizer)  # two of the three updates of an epoch
    saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    other = sgd()
    resumed = ExpLR(other, lr_scheduler.StepLR(other, 1, 0.5))
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    ahead = [s.preview(4, updates_per_step=3)[0].tolist() for s in (scheduler, resumed)]
    assert ahead[0] == ahead[1] and ahead[0][1] < ahead[0][0] - 0.5  # the rate is halved after the next update


@pytest.mark.parametrize("calls", [2, 3, 4])
def test_a_state_from_within_an_epoch_goes_on_within_it(calls):
    runs = []
    for resumed in (False, True):
        optimizer = sgd()
        scheduler = ExpLR(optimizer, lr_scheduler.StepLR(optimizer, 1, 0.5), steps_per_epoch=3)
        run(optimizer, scheduler, calls)
        if resumed:
            saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
            optimizer = sgd()
            scheduler = ExpLR(optimizer, lr_scheduler.StepLR(optimizer, 1, 0.5), steps_per_epoch=3)
            update(optimizer)
            optimizer.load_state_dict(saved[0])
            scheduler.load_state_dict(saved[1])
            assert saved[1]["calls"] == calls
        runs.append(run(optimizer, scheduler, 5))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("first", ["optimizer", "scheduler"])
@pytest.mark.parametrize("make", [sgd, lambda: sgd(nesterov=True), adamw], ids=["HeavyBall", "Nesterov", "AdamW"])
def test_a_state_goes_on_whether_the_optimizer_s_is_loaded_before_or_after(make, first):
    optimizer = make()
    scheduler = ExpLR(optimizer)
    run(optimizer, scheduler, 3)
    saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    expected = run(optimizer, scheduler, 3)
    other = make()
    if first == "optimizer":
        other.load_state_dict(saved[0])
    resumed = ExpLR(other)
    resumed.load_state_dict(saved[1])
    if first == "scheduler":
        other.load_state_dict(saved[0])
    assert run(other, resumed, 3) == expected


@pytest.mark.parametrize("rate", [0.5, torch.tensor(0.5), torch.tensor(0.5, dtype=torch.float64)], ids=str)
@pytest.mark.parametrize("calls", [0, 1])
def test_a_state_is_numbers_and_loads_between_calls_of_step_too(rate, calls):
    def build():
        optimizer = sgd({"params": weights(), "lr": copy.deepcopy(rate)})
        return optimizer, ExpLR(optimizer)

    optimizer, scheduler = build()
    other, resumed = build()
    for _ in range(2):
        update(optimizer)
    for _ in range(calls):
        scheduler.step()
    saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    assert [type(number) for number in saved[1]["_last_lr"]] == [float]
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    assert scheduler.get_last_lr() == resumed.get_last_lr() == [float(other.param_groups[0]["lr"])]
    run(other, resumed, 2)


class Noting(lr_scheduler.StepLR):
    """A scheduler that alters a list of its own in place."""

    def __init__(self, optimizer):
        self.seen = []
        super().__init__(optimizer, 2)

    def step(self, epoch=None):
        super().step()
        self.seen.append(self.last_epoch)

    def load_state_dict(self, state_dict):
        self.seen.clear()
        if not isinstance(state_dict["seen"], list):
            raise ValueError("no list")
        super().load_state_dict(state_dict)


def test_a_run_that_goes_on_leaves_the_state_that_it_began_with_alone():
    optimizer = sgd()
    scheduler = ExpLR(optimizer, Noting(optimizer))
    run(optimizer, scheduler, 3)
    state = copy.deepcopy(scheduler.state_dict())
    before = copy.deepcopy(state)
    scheduler.load_state_dict(state)
    run(optimizer, scheduler, 3)
    assert state == before and scheduler.scheduler.seen == list(range(7))
    damaged = {**state, "scheduler": ["Noting", {"seen": None}]}
    assert "cannot be loaded (ValueError: no list)" in refusal(lambda: scheduler.load_state_dict(damaged))
    assert scheduler.scheduler.seen == list(range(7))


def stateful(scheduler=True):
    optimizer = sgd()
    return optimizer, ExpLR(optimizer, lr_scheduler.StepLR(optimizer, 2) if scheduler else None)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"families": ["AdamW", "Nesterov"]}, "the state is of 2 parameter groups (AdamW, Nesterov), the optimizer has 1 "
         "(HeavyBall): build the optimizer as it was built for the state."),
        ({"in_use": [{"momentum": "x"}]}, "the state is damaged at in_use: load another one. Nothing has changed."),
        ({"in_use": []}, "the state is damaged at in_use: load another one. Nothing has changed."),
        ({"in_use": {}}, "the state is damaged at in_use: load another one. Nothing has changed."),
        ({"scheduler": ["StepLR"]}, "the state is damaged at scheduler: load another one. Nothing has changed."),
        ({"scheduler": "St"}, "the state is damaged at scheduler: load another one. Nothing has changed."),
        ({"eps": {"norm": None}}, "the state is damaged at eps: load another one. Nothing has changed."),
        ({"_train": [[1]]}, "the state is damaged at _train: load another one. Nothing has changed."),
        ({"_train": [True]}, "the state is damaged at _train: load another one. Nothing has changed."),
        ({"_train": []}, "the state is damaged at _train: load another one. Nothing has changed."),
        ({"_train": [[True, False]]}, "the state is of parameter groups of [2] tensors, the optimizer has [1]: build the "
         "optimizer as it was built for the state."),
        ({"updates": "x", "dry": 1}, "the state is damaged at updates, dry: load another one. Nothing has changed."),
        ({"eps": {"norm": 1e-5}}, "the state is of a run with model=: build ExpLR with model= to go on with it."),
        ({"scheduler": ("CosineLR", {})}, "the state is of the wrapped scheduler CosineLR, this ExpLR has StepLR: wrap the "
         "same kind."),
        ({"scheduler": None}, "the state is of the wrapped scheduler None, this ExpLR has StepLR: wrap the same kind."),
    ],
)  # fmt: skip
def test_a_state_that_does_not_fit_changes_nothing(change, message):
    optimizer, scheduler = stateful()
    run(optimizer, scheduler, 2)
    before = copy.deepcopy(numbers(optimizer, scheduler))
    assert refusal(lambda: scheduler.load_state_dict({**copy.deepcopy(before[1]), **change})) == message
    assert numbers(optimizer, scheduler) == before


def test_a_state_of_an_earlier_version_says_nothing_of_what_trained():
    optimizer, scheduler = stateful()
    run(optimizer, scheduler, 2)
    state = copy.deepcopy(scheduler.state_dict())
    expected = run(optimizer, scheduler, 2)
    del state["_train"]
    other, resumed = stateful()
    run(other, resumed, 2)
    resumed.load_state_dict(state)
    assert run(other, resumed, 2) == expected and resumed.state_dict() == scheduler.state_dict()


@pytest.mark.parametrize("known", [True, False])
def test_a_state_knows_what_trained_when_its_explr_was_built(known):
    """Without a model the weights are nothing that ExpLR scales, and it goes on as there."""
    net, other = network(), network()
    optimizer = torch.optim.SGD([{"params": [net[0].weight], "scale_invariant": True}], lr=0.5, weight_decay=0.0625)
    scheduler = ExpLR(optimizer, model=net if known else None)
    update(optimizer)
    other[0].weight.requires_grad_(False)
    frozen = torch.optim.SGD([{"params": [other[0].weight], "scale_invariant": True}], lr=0.5, weight_decay=0.0625)
    if known:
        other[2].requires_grad_(True)  # a network has to have something that trains
    resumed = ExpLR(frozen, model=other if known else None)
    before = copy.deepcopy(resumed.state_dict())
    if known:
        assert refusal(lambda: resumed.load_state_dict(scheduler.state_dict())) == (
            "parameter group 0 has other parameters that train than it had when the ExpLR of the state was built: build ExpLR "
            "as it was built there, and freeze after that (requires_grad_(False)) what was frozen later."
        )
        assert resumed.state_dict() == before
    else:
        resumed.load_state_dict(scheduler.state_dict())
        assert resumed.state_dict() == scheduler.state_dict() and before["_train"] == [[False]]


@pytest.mark.parametrize(
    "state, whose",
    [
        (None, "None"),
        ([], "[]"),
        ({}, "of nothing"),
        ({"weight": 1, "bias": 2}, "of weight, bias"),
        (sgd().state_dict(), "an optimizer's"),
        (adamw().state_dict(), "an optimizer's"),
        (lr_scheduler.StepLR(sgd(), 2).state_dict(), "another scheduler's"),
        (lr_scheduler.ReduceLROnPlateau(sgd()).state_dict(), "another scheduler's"),
    ],
)
def test_what_is_no_state_is_refused_and_called_by_its_name(state, whose):
    said = (
        f"the state is {whose}, not an ExpLR's: load what ExpLR.state_dict() gave. A checkpoint of the script without ExpLR is "
        "loaded before ExpLR is built."
    )
    assert refusal(lambda: stateful()[1].load_state_dict(state)) == said


@pytest.mark.parametrize("make, other", [(sgd, adamw), (adamw, sgd), (adamw, lambda: sgd(nesterov=True))])
def test_the_state_of_another_optimizer_is_refused_and_changes_nothing(make, other):
    optimizer, foreign = make(), other()
    scheduler, theirs = ExpLR(optimizer), ExpLR(foreign)
    run(optimizer, scheduler, 2), run(foreign, theirs, 3)
    before = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    said = refusal(lambda: scheduler.load_state_dict(theirs.state_dict()))
    assert said.endswith(f"has 1 ({scheduler.families[0]}): build the optimizer as it was built for the state.")
    missing = "betas, eps" if make is adamw else "dampening, momentum"
    assert refusal(lambda: optimizer.load_state_dict(foreign.state_dict())) == (
        f"the state is of another optimizer: it has no {missing}, which {type(optimizer).__name__} has. Build the optimizer as "
        "it was built for the state."
    )
    assert repr((optimizer.state_dict(), scheduler.state_dict())) == repr(before)
    run(optimizer, scheduler, 1)


def test_the_state_of_an_optimizer_with_other_groups_is_refused():
    state = ExpLR(sgd()).state_dict()
    optimizer = sgd({"params": weights()}, {"params": weights(), "nesterov": True})
    assert refusal(lambda: ExpLR(optimizer).load_state_dict(state)) == (
        "the state is of 1 parameter groups (HeavyBall), the optimizer has 2 (HeavyBall, Nesterov): build the optimizer as it "
        "was built for the state."
    )


@pytest.mark.parametrize("state", [{}, {"last_epoch": 1}, {"param_groups": None}])
def test_what_is_no_state_of_an_optimizer_is_refused_by_one_under_explr(state):
    optimizer = sgd()
    scheduler = ExpLR(optimizer)
    said = "the state is not an optimizer's: it has no param_groups. Load what optimizer.state_dict() gave."
    assert refusal(lambda: optimizer.load_state_dict(state)) == said
    run(optimizer, scheduler, 1)


def test_a_wrapped_scheduler_that_cannot_load_its_state_keeps_its_own():
    class Strict(lr_scheduler.StepLR):
        def load_state_dict(self, state_dict):
            self.last_epoch = -7
            super().load_state_dict({"last_epoch": state_dict["last_epoch"]})

    optimizer = sgd()
    scheduler = ExpLR(optimizer, Strict(optimizer, 2))
    state = scheduler.state_dict()
    said = refusal(lambda: scheduler.load_state_dict({**state, "scheduler": ["Strict", {}]}))
    assert said == "the state of the wrapped Strict cannot be loaded (KeyError: 'last_epoch'). Nothing has changed."
    assert scheduler.scheduler.last_epoch == 0


def test_an_optimizer_s_state_under_explr_asks_for_explr_s():
    optimizer, scheduler = stateful()
    run(optimizer, scheduler, 2)
    saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    other = sgd()
    other.load_state_dict(saved[0])
    resumed = ExpLR(other, lr_scheduler.StepLR(other, 2))
    assert refusal(lambda: update(other)) == (
        "the optimizer's state is of a run under ExpLR, which took its weight decay: load ExpLR's state too, "
        "scheduler.load_state_dict(...)."
    )
    resumed.load_state_dict(saved[1])
    update(other)
    resumed.step()
    other.load_state_dict(saved[0])
    assert refusal(lambda: update(other)) == (
        "the optimizer was loaded with the state of update 2, ExpLR is at 3: load ExpLR's state too, "
        "scheduler.load_state_dict(...)."
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"converted": [True, True]}, "the model is not scale-invariant in the optimizer's parameters: "),
        ({"scheduler": ["StepLR", None]}, "the state of the wrapped StepLR cannot be loaded (TypeError: "),
    ],
)
def test_a_state_that_fails_half_way_changes_nothing_of_a_model(change, message):
    net = network(head=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.5, weight_decay=0.0625)
    scheduler = ExpLR(optimizer, lr_scheduler.StepLR(optimizer, 2), model=net)
    run(optimizer, scheduler, 3)
    before = copy.deepcopy((optimizer.state_dict()["param_groups"], scheduler.state_dict(), net[1].eps))
    assert refusal(lambda: scheduler.load_state_dict({**copy.deepcopy(before[1]), **change})).startswith(message)
    assert (optimizer.state_dict()["param_groups"], scheduler.state_dict(), net[1].eps) == before
    update(optimizer)
    assert net[1].eps == pytest.approx(
        1e-5 * (math.exp(scheduler.log_scale[0]) / 2.0 ** scheduler.exponents[0]) ** 2, rel=1e-13
    )
