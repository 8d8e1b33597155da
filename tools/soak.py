"""Train a tiny net under ExpLR for tens of thousands of updates: python -m tools.soak --steps 50000.

For SGD with heavy-ball and Nesterov momentum and for AdamW, each with a weight decay so large that the weights of the theorem
grow by 10^40 within 2,000 updates. The exit status is 1 unless rates and losses stay finite, the weights have grown by what the
conversion of the whole schedule says, the first updates give the functions of the run with weight decay (later ones amplify the
rounding of both: a rate that is large beside its decay is chaos), and the memory of the process stays as it was after a tenth
of the way.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from explr import ExpLR, convert, convert_adamw

OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "heavy ball": (torch.optim.SGD, {"lr": 0.05, "weight_decay": 0.16, "momentum": 0.8}),
    "Nesterov": (torch.optim.SGD, {"lr": 0.05, "weight_decay": 0.2, "momentum": 0.8, "nesterov": True}),
    "AdamW": (torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.7}),
}
COMPARED = 20  # updates in which rounding stays small
MOST_MEMORY = 8 * 2**20  # bytes that a process may grow by without it being a leak: what allocators keep


@dataclass
class Result:
    """What a soak has come to.

    Attributes:
        decades: by how many powers of ten the weights of the theorem have grown.
        drift: relative difference between that growth and that of the converted schedule.
        deviation: largest difference between the outputs of the two runs, in evaluation mode, in the first updates.
        grown: bytes by which the memory of the process has grown after the first tenth.
        tensors: how many more tensors there are than then.
    """

    decades: float
    drift: float
    deviation: float
    grown: int
    tensors: int

    def faults(self) -> list[str]:
        """Return what is wrong, in words."""
        found = []
        if not self.decades >= 40:
            found.append(f"the weights have grown by 10^{self.decades:.1f} only")
        if not self.drift < 1e-12:
            found.append(f"which is {self.drift:.1e} off, relatively")
        if not self.deviation < 1e-9:
            found.append(f"the outputs of the two runs differ by {self.deviation:.1e}")
        if self.grown > MOST_MEMORY or self.tensors > 0:
            found.append(f"memory has grown by {self.grown} bytes and {self.tensors} tensors")
        return found


def tiny() -> nn.Sequential:
    """Return a network that is scale-invariant: its last layer is fixed, and norms follow the others."""
    torch.manual_seed(0)
    last = nn.Linear(8, 3).requires_grad_(False)
    first, second = nn.Linear(4, 8, bias=False), nn.Linear(8, 8, bias=False)
    norms = [nn.BatchNorm1d(8, affine=False) for _ in range(2)]
    return nn.Sequential(first, norms[0], nn.Tanh(), second, norms[1], nn.Tanh(), last).double()


def soak(name: str, steps: int) -> Result:
    """Train a net with weight decay and its twin, and compare them on the way."""
    make, options = OPTIMIZERS[name]
    plain, twin = tiny(), tiny()
    sides = [(net, make([p for p in net.parameters() if p.requires_grad], **options)) for net in (plain, twin)]
    images = torch.randn(16, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(16) % 3
    scheduler = ExpLR(sides[1][1], model=twin, example_inputs=[images])
    deviation, before = 0.0, (0, 0)
    for step in range(steps):
        for net, optimizer in sides if step < COMPARED else sides[1:]:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
        scheduler.step()
        if step < COMPARED:
            deviation = max(deviation, _distance(plain, twin, images))
        if step == steps // 10:
            before = _memory()
        numbers = [*scheduler.get_last_lr(), *scheduler.log_lr, *scheduler.log_scale, float(loss.detach())]
        if not all(map(math.isfinite, map(float, numbers))):
            raise SystemExit(f"{name}: {numbers} at step {step}")
    after = _memory()
    expected = _growth(name, steps)
    drift = abs(scheduler.log_scale[0] - expected) / expected
    return Result(scheduler.log_scale[0] / math.log(10), drift, deviation, after[0] - before[0], after[1] - before[1])


def _growth(name: str, steps: int) -> float:
    """Return the natural log of the growth of the weights over some steps, of the schedule as a whole."""
    options = dict(OPTIMIZERS[name][1])
    rates = [options.pop("lr")] * steps
    schedule = convert_adamw(rates, **options) if name == "AdamW" else convert(rates, **options)
    return float(schedule.log_scale[-1])


@torch.no_grad()
def _distance(plain: nn.Module, twin: nn.Module, images: torch.Tensor) -> float:
    outputs = [net.eval()(images) for net in (plain, twin)]
    plain.train()
    twin.train()
    distance = float((outputs[0] - outputs[1]).abs().max())
    return distance if math.isfinite(distance) else math.inf


def _memory() -> tuple[int, int]:
    """Return the bytes that this process has in memory, where the system says so, and how many tensors there are."""
    gc.collect()
    status = Path("/proc/self/statm")
    pages = int(status.read_text().split()[1]) if status.exists() else 0
    return 4096 * pages, sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50_000, help="updates of each optimizer (default: 50,000)")
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    wrong = 0
    for name in OPTIMIZERS:
        start = time.perf_counter()
        result = soak(name, steps)
        faults = result.faults()
        wrong += bool(faults)
        print(
            f"{name}: {steps} updates in {time.perf_counter() - start:.0f} s, weights times 10^{result.decades:.0f} "
            f"({result.drift:.0e} off), outputs within {result.deviation:.1e}, "
            f"memory {result.grown / 2**20:+.1f} MiB: {'; '.join(faults) or 'fine'}",
            flush=True,
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
