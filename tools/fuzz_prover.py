"""Random small networks against the prover of scale invariance: python -m tools.fuzz_prover --count 2000 --seed 0.

Every network is a random program: linear layers, norms, activations, but also parameters in one flat buffer, views, writes in
place, attributes that are assigned, running statistics that are read. Whatever the prover claims of it is done, in float64, for
some calls in a row, and compared. A claim that numbers contradict, or an exception that is not an ExplrError, is printed with
the seed that makes the network again.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from explr import ExplrError
from explr.invariance import scale_invariance

TINY = 1e-30
# Of the weights, at every call: powers of 4, so that nothing is rounded, not even in roots, for a norm of nothing to magnify.
FACTORS: tuple[tuple[float, ...], ...] = ((4.0, 0.25, 16.0, 1.0), (0.0625, 4.0, 0.25, 16.0))
SHAPE = (6, 4)


def change_over_steps(build: Callable[[], nn.Module], x: Tensor, *sets: Iterable[str]) -> float:
    """Return by how much calls in a row change, relatively, when parameters are scaled before each; nan where not finite.

    Every set of parameters is scaled by factors of its own.
    """
    plain = some_steps(build(), x, {})
    chance = random.Random(0)
    changes = []
    for factors in FACTORS:
        scaled: dict[str, tuple[float, ...]] = {}
        for names in sets:
            scaled |= dict.fromkeys(names, factors)
            factors = tuple(chance.choice((0.0625, 0.25, 4.0, 16.0)) for _ in factors)
        changes.append(_distance(some_steps(build(), x, scaled), plain))
    return max(changes, key=lambda change: (change != change, change))


def some_steps(model: nn.Module, x: Tensor, factors: Mapping[str, Sequence[float]]) -> list[Tensor]:
    """Call a network some times, its parameters so many times what they were, with the same random numbers every time."""
    parameters = dict(model.named_parameters())
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    outputs: list[Tensor] = []
    for step in range(len(FACTORS[0])):
        with torch.no_grad():
            for name, factor in factors.items():
                parameters[name].mul_(factor[step] / (factor[step - 1] if step else 1.0))
            outputs += [leaf.clone() for leaf in tree_leaves(model(x.clone()))]
    return outputs


def seeded(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Return a function that builds the same network every time."""

    def again() -> nn.Module:
        torch.manual_seed(0)
        return build()

    return again


def _distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    if not all(bool(torch.isfinite(value).all()) for value in (*a, *b)):
        return float("nan")
    return max(float((x - y).double().norm()) / max(float(y.double().norm()), 1e-8) for x, y in zip(a, b, strict=True))


# ---- random networks: a step takes the network, its own number, the latest value and an earlier one

Step = Callable[["Program", int, Tensor, Tensor], Tensor]


def _rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + TINY)


def _written(write: Callable[[Tensor, Tensor], Any]) -> Step:
    def step(m: Program, i: int, x: Tensor, y: Tensor) -> Tensor:
        z = x.clone()
        write(z, y)
        return z

    return step


def _assigned(m: Program, i: int, x: Tensor, y: Tensor) -> Tensor:
    m.attributes[i] = 0.5 * m.attributes[i] + y.mean(0)
    return x + m.attributes[i]


def _lazily(m: Program, i: int, x: Tensor, y: Tensor) -> Tensor:
    if m.lazy.get(i) is None:
        m.lazy[i] = y.detach().mean(0)
    return x * m.lazy[i]


def _stored(m: Program, i: int, x: Tensor, y: Tensor) -> Tensor:
    m.last = y
    return x


def _buffered(m: Program, i: int, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        m.kept[i].mul_(0.5).add_(y.mean(0))
    return x + m.kept[i]


def _counted(m: Program, i: int, x: Tensor, y: Tensor) -> Tensor:
    m.calls += 1
    return x if m.calls < 2 else x + y


STEPS: dict[str, Step] = {
    "linear": lambda m, i, x, y: m.linears[i](x),
    "biased": lambda m, i, x, y: m.biased[i](x),
    "relu": lambda m, i, x, y: F.relu(x),
    "abs": lambda m, i, x, y: x.abs() + x.abs().mean(),
    "square": lambda m, i, x, y: x.square(),
    "root": lambda m, i, x, y: x.abs().sqrt(),
    "inverse": lambda m, i, x, y: 1 / x.norm() + 0 * x,
    "add": lambda m, i, x, y: x + y,
    "subtract": lambda m, i, x, y: x - 2 * y,
    "multiply": lambda m, i, x, y: x * y,
    "divide": lambda m, i, x, y: x / y.norm(),
    "layer norm": lambda m, i, x, y: F.layer_norm(x, x.shape[-1:], eps=TINY),
    "batch norm": lambda m, i, x, y: m.norms[i](x),
    "rms": lambda m, i, x, y: _rms(x),
    "gelu": lambda m, i, x, y: F.gelu(x),
    "softmax": lambda m, i, x, y: x.softmax(-1),
    "constant": lambda m, i, x, y: x + 1,
    "maximum": lambda m, i, x, y: torch.maximum(x, y),
    "compare": lambda m, i, x, y: torch.where(x > y, x, y.abs()),
    "halves": lambda m, i, x, y: torch.cat([x[:, :2], y[:, 2:]], 1),
    "detached": lambda m, i, x, y: x * y.detach().sum(),
    "dropout": lambda m, i, x, y: F.dropout(x, 0.3),
    "mask": lambda m, i, x, y: x * torch.rand_like(x),
    "sort": lambda m, i, x, y: x.sort(-1)[0],
    "argmax": lambda m, i, x, y: x * F.one_hot(y.argmax(-1), 4),
    "svd": lambda m, i, x, y: x / (torch.linalg.svdvals(y)[0] + TINY),
    "solve": lambda m, i, x, y: torch.linalg.solve(y.T @ y, x.T).T,
    "clamp": lambda m, i, x, y: x.clamp(min=0),
    "prod": lambda m, i, x, y: x * y.prod(-1, keepdim=True),
    "selected": lambda m, i, x, y: x + y[y > 0].sum(),
    "weight": lambda m, i, x, y: x * m.linears[i].weight.norm(),
    "item": lambda m, i, x, y: x * y.norm().item(),
    "in place": lambda m, i, x, y: x.clone().mul_(y).relu_(),
    "row written": _written(lambda z, y: z[0].copy_(y[1])),
    "column scaled": _written(lambda z, y: z[:, 1].mul_(y[:, 0])),
    "view written": _written(lambda z, y: z.view(-1)[3:9].add_(y.reshape(-1)[:6])),
    "transposed written": _written(lambda z, y: z.t()[2].copy_(y[:, 0])),
    "out": _written(lambda z, y: torch.add(z, y, out=z)),
    "list": _written(lambda z, y: torch._foreach_mul_([z], [y])),
    "indexed": _written(lambda z, y: z.index_add_(0, torch.tensor([0, 0, 2]), y[:3])),
    "zeroed": _written(lambda z, y: z.zero_().add_(y)),
    "assigned": _assigned,
    "lazily": _lazily,
    "stored": _stored,
    "buffered": _buffered,
    "counted": _counted,
    "running": lambda m, i, x, y: m.norms[i](x) * m.norms[i].running_var,
    "other running": lambda m, i, x, y: x + m.norms[0].running_mean,
    "batches": lambda m, i, x, y: x * m.norms[i].num_batches_tracked.clamp(min=1),
    "alias": lambda m, i, x, y: x @ m.alias,
    "attention": lambda m, i, x, y: F.scaled_dot_product_attention(m.frozen(x)[None], m.biased[i](y)[None], x[None])[0],
    "scores": lambda m, i, x, y: (x @ m.biased[i](y).t() / 2).softmax(-1) @ y,
    "beside": lambda m, i, x, y: m.linears[i](
        F.batch_norm(torch.cat([m.biased[i](y), x], 1), None, None, training=True, eps=TINY)[:, 2:6]
    ),
    "frozen": lambda m, i, x, y: x @ m.frozen.weight.T,
}
# What a random network has more of: without norms nothing is claimed.
COMMON = (
    "linear",
    "layer norm",
    "batch norm",
    "rms",
    "relu",
    "linear",
    "batch norm",
    "layer norm",
    "biased",
    "add",
    "attention",
)


class Program(nn.Module):
    """Runs steps; each takes the latest value and an earlier one."""

    linears: Any  # lists of modules, which for a type checker have no weights
    biased: Any
    norms: Any
    frozen: nn.Linear
    alias: Tensor

    def __init__(self, steps: Sequence[tuple[str, int]], memory: str) -> None:
        super().__init__()
        self.steps = steps
        self.linears = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in steps)
        self.biased = nn.ModuleList(nn.Linear(4, 4) for _ in steps)
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(4, affine=i % 3 == 0, eps=TINY, momentum=None if i % 5 == 4 else 0.1) for i, _ in enumerate(steps)
        )
        self.frozen = nn.Linear(4, 4, bias=False).requires_grad_(False)
        for i, _ in enumerate(steps):
            self.register_buffer(f"kept{i}", torch.zeros(4))
        self.attributes = [torch.zeros(4) for _ in steps]
        self.lazy: dict[int, Tensor] = {}
        self.last: Tensor | None = None
        self.calls = 0
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        if memory == "flat":
            parameters = [p for p in self.parameters() if p.requires_grad]
            nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(parameters).detach(), parameters)
        if memory == "tied" and len(steps) > 1:
            self.linears[-1].weight = self.linears[0].weight
        self.alias = self.linears[0].weight.data.t() if memory != "own" else torch.eye(4)

    @property
    def kept(self) -> list[Tensor]:
        """The buffers."""
        return [self.get_buffer(f"kept{i}") for i, _ in enumerate(self.steps)]

    def forward(self, x: Tensor) -> Tensor:
        """Run all steps."""
        values = [x]
        for index, (step, earlier) in enumerate(self.steps):
            values.append(STEPS[step](self, index, values[-1], values[earlier % len(values)]))
        return values[-1]


def random_network(seed: int) -> Callable[[], nn.Module]:
    """Return a function that builds the network of a seed."""
    chance = random.Random(seed)
    names = [*STEPS, *COMMON * 4]
    steps = [(chance.choice(names), chance.randrange(8)) for _ in range(chance.randint(2, 8))]
    steps += [(chance.choice(("layer norm", "batch norm", "rms")), 0)] * (chance.random() < 0.6)
    memory = chance.choice(("own", "own", "flat", "tied", "view"))
    return seeded(lambda: Program(steps, memory))


def outcome(seed: int) -> str:
    """Hold what the prover claims about a network against numbers; return what came of it.

    Raises:
        AssertionError: if a claim is false.
    """
    build, x = random_network(seed), torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
    model = build()
    try:
        plain = some_steps(build(), x, {})
    except RuntimeError:
        return "does not run"
    if not all(bool(torch.isfinite(value).all()) for value in plain) or max(float(v.abs().max()) for v in plain) < 1e-6:
        return "not finite, or nothing"
    try:
        report = scale_invariance(model, x, verify=seed % 2 == 0)
        if any(norm.variance < 1e-9 for norm in report.norms.values()):
            return "norm of a constant"  # which divides rounding errors by eps: to be seen by our verification, not by this one
    except ExplrError as error:
        assert "explr is wrong" not in str(error) and "please report" not in str(error), str(error)
        return "refused"
    sets = [(name,) for name in report.alone] + list(report.joint)
    change = change_over_steps(build, x, *sets)
    if change > 1e-6:
        guilty = [names for names in sets if change_over_steps(build, x, names) > 1e-6]
        raise AssertionError(f"scaling {guilty or sets} changes the output by {change:.1e}\n{report.table()}")
    if report.invariant:
        return "yes"
    everything = [name for name, p in model.named_parameters() if p.requires_grad]
    return "no, though numbers see no change" if change_over_steps(build, x, everything) < 1e-9 else "no"


def main() -> int:
    """Try random networks; print how many there were of each outcome."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="number of networks (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first (default: 0)")
    parsed = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    warnings.simplefilter("ignore")
    started, found = time.time(), Counter[str]()
    wrong = 0
    for seed in range(parsed.seed, parsed.seed + parsed.count):
        try:
            found[outcome(seed)] += 1
        except Exception as error:
            wrong += 1
            print(f"seed {seed}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    print(f"{parsed.count} networks in {time.time() - started:.0f} s, {wrong} wrong: {dict(found.most_common())}")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
