"""ExpLR under Accelerate, whose wrapper steps a scheduler once for every process, and not where gradients accumulate."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest
import torch
from test_loops import TOLERANCE, batches, deviation, evaluate, network, sgd
from torch.nn import functional as F
from torch.optim import lr_scheduler

from explr import ExpLR

accelerate = pytest.importorskip("accelerate", reason="needs the extra libraries: pip install '.[libraries]'")


def train(converted, **options):
    """Train with and without ExpLR by the same script; all processes see all batches, each with its share."""
    accelerator = accelerate.Accelerator(cpu=True, **options)
    net = network()
    optimizer = sgd(net)
    scheduler = lr_scheduler.MultiStepLR(optimizer, [6, 12])
    if converted:
        scheduler = ExpLR(optimizer, scheduler, model=net)
    model, optimizer, scheduler = accelerator.prepare(net, optimizer, scheduler)
    share = slice(accelerator.process_index, None, accelerator.num_processes)
    for images, labels in batches():
        with accelerator.accumulate(model):
            accelerator.backward(F.cross_entropy(model(images[share]), labels[share]))
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return evaluate(net)


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 3}], ids=str)
def test_a_process_computes_the_same(options):
    assert deviation(train(False, **options), train(True, **options)) < TOLERANCE


def test_two_processes_compute_the_same():
    with socket.socket() as probe:  # a port that is free
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tests = pathlib.Path(__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}", "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__],
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
        words = output.strip().splitlines()[-1].split()
        assert words[:2] == ["processes:", "2"]
        assert float(words[3]) < TOLERANCE


if __name__ == "__main__":
    found = deviation(train(False), train(True))
    print("processes:", torch.distributed.get_world_size(), "deviation:", found)
