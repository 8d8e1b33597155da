"""ExpLR on parameters that are sharded over processes, and with torch's checkpoints of such runs."""

import functools
import math

import pytest
import torch
import torch.multiprocessing as mp
from test_loops import SCHEDULES, TOLERANCE, batches, deviation, network
from torch import distributed
from torch.nn import functional as F

from explr import ExpLR, ExplrError, scale_invariance

WORLD = 2
STEPS = 15
OPTIMIZERS = {
    "momentum": lambda groups: torch.optim.SGD(groups, lr=0.2, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda groups: torch.optim.SGD(groups, lr=0.2, momentum=0.5, nesterov=True, weight_decay=1e-2),
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=5e-3, weight_decay=1.0),
}


@functools.cache
def names_that_convert():
    """Return what is found before the network is sharded."""
    net = network()
    names = [name for name, _ in net.named_parameters()]
    found = set(scale_invariance(net, batches(1)[0][0]).largest_part(names))
    assert 0 < len(found) < len(names)
    return found


def build(make, converted):
    """Return a sharded network with its optimizer and scheduler."""
    from torch.distributed.fsdp import fully_shard

    net = network(eps=1e-30)  # without model= it cannot follow the weights
    fully_shard(net)
    groups = {kind: {"params": [], "scale_invariant": kind} for kind in (True, False)}
    for name, parameter in net.named_parameters():
        groups[name in names_that_convert()]["params"].append(parameter)
    optimizer = make(list(groups.values()))
    scheduler = SCHEDULES["cosine"](optimizer)
    return net, optimizer, ExpLR(optimizer, scheduler) if converted else scheduler


def train(net, optimizer, scheduler, rank, steps):
    """Return the logits of a process at every step; the gradients are clipped where they are long."""
    seen = []
    every = batches(STEPS)
    for index in steps:
        images, labels = (part[rank::WORLD] for part in every[index])
        logits = net(images)
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()
        if isinstance(scheduler, ExpLR):
            scheduler.clip_grad_norm_(1.0)
        else:
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if index % 5 == 4:
            scheduler.step()
        seen.append(logits.detach())
    return torch.cat(seen)


def compare(rank, make):
    """Compare a run with weight decay and its twin; torch has made a state for the fresh optimizers of both."""
    from torch.distributed.checkpoint import state_dict as torch_states

    runs = [build(make, converted) for converted in (False, True)]
    for net, optimizer, _ in runs:
        torch_states.get_optimizer_state_dict(net, optimizer)
    assert runs[1][2].lrs == runs[0][2].get_last_lr() and math.isfinite(sum(runs[1][2].log_lr))
    return deviation(*(train(*run, rank, range(STEPS)) for run in runs))


def resume(rank, make):
    """Stop, build all anew, load it as torch.distributed.checkpoint does; return whether no bit differs afterwards."""
    from torch.distributed.checkpoint import state_dict as torch_states

    net, optimizer, scheduler = build(make, True)
    train(net, optimizer, scheduler, rank, range(7))
    model_state, state = torch_states.get_state_dict(net, optimizer)
    model_state, state = ({k: _copy(v) for k, v in part.items()} for part in (model_state, state))
    scheduler_state = _copy(scheduler.state_dict())
    expected = train(net, optimizer, scheduler, rank, range(7, STEPS))
    again, optimizer, scheduler = build(make, True)
    torch_states.set_state_dict(again, optimizer, model_state_dict=model_state, optim_state_dict=state)
    scheduler.load_state_dict(scheduler_state)
    return torch.equal(expected, train(again, optimizer, scheduler, rank, range(7, STEPS)))


def _copy(value):
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copy(part) for key, part in value.items()}
    return [_copy(part) for part in value] if isinstance(value, list) else value


def process(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    found = {name: (compare(rank, make), resume(rank, make)) for name, make in OPTIMIZERS.items()}
    net, *_ = build(OPTIMIZERS["momentum"], True)
    with pytest.raises(ExplrError, match=r"is a DTensor.*before fully_shard"):
        ExpLR(OPTIMIZERS["momentum"](net.parameters()), model=net, example_inputs=batches(1)[0][:1])
    torch.save(found, f"{folder}/found-{rank}")
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not (distributed.is_available() and distributed.is_gloo_available()), reason="this torch has no gloo")
@pytest.mark.skipif(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9), reason="fully_shard without a GPU is young")
def test_sharded_runs_are_the_same_functions(tmp_path):
    mp.spawn(process, (str(tmp_path),), WORLD)
    for rank in range(WORLD):
        for name, (deviates, same_bits) in torch.load(tmp_path / f"found-{rank}").items():
            assert deviates < TOLERANCE and same_bits, name
