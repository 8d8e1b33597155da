"""ExpLR around timm's schedulers, which are none of torch's, with the optimizers that timm builds."""

import pytest
from test_loops import BATCHES, EPOCHS, TOLERANCE, batches, deviation, network, update

from explr import ExpLR

timm = pytest.importorskip("timm", reason="needs the extra libraries: pip install '.[libraries]'")
from timm.optim import create_optimizer_v2  # noqa: E402
from timm.scheduler import create_scheduler_v2  # noqa: E402


def fit(converted, name, kind, on_updates):
    """Train by timm's own script: step_update after every update, step(epoch + 1, metric) after every epoch."""
    net = network()
    strong = {"lr": 0.05, "weight_decay": 0.02} if name == "sgd" else {"lr": 5e-3, "weight_decay": 1.0}
    optimizer = create_optimizer_v2(net, opt=name, **strong)  # with Nesterov momentum, where it has one
    options = {"step_on_epochs": not on_updates, "updates_per_epoch": BATCHES, "decay_epochs": 2}
    scheduler, _ = create_scheduler_v2(optimizer, sched=kind, num_epochs=EPOCHS, warmup_epochs=1, warmup_lr=1e-3, **options)
    if converted:
        scheduler = ExpLR(optimizer, scheduler, model=net)
    out = []
    for index, batch in enumerate(batches()):
        out.append(update(net, optimizer, batch))
        scheduler.step_update(num_updates=index + 1)
        if (index + 1) % BATCHES == 0:
            scheduler.step((index + 1) // BATCHES, 0.5)
    return out


@pytest.mark.parametrize("on_updates", [False, True])
@pytest.mark.parametrize("kind", ["cosine", "step"])
@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw"])
def test_a_script_of_timm_computes_the_same(name, kind, on_updates):
    expected, seen = fit(False, name, kind, on_updates), fit(True, name, kind, on_updates)
    assert max(map(deviation, expected, seen)) < TOLERANCE
