"""Random inputs to what takes them from users: python -m tools.fuzz_inputs --examples 10000.

Numbers of every kind and size, and what is no number, go to ``convert`` and its like, to the ``explr`` command, into the JSON
of a record that ``Run.load`` reads, and into ``ExpLR`` and its state. Whatever comes back must be right and finite,
or an ExplrError: no other exception, no inf, no nan, no silent nonsense. Of a schedule "right" means the recursion in exact
fractions; of ExpLR, the functions of the run with weight decay. Hypothesis makes the examples, and shrinks one that fails.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import logging
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

import explr
from explr import ExpLR, ExplrError, Run, RunConfig
from explr.__main__ import main as command
from explr.checks import one_float
from explr.experiments import catalogue, data, records

TARGETS: dict[str, tuple[Callable[..., None], tuple[st.SearchStrategy[Any], ...]]] = {}


def target(*strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Enter a function, named ``fuzz_…``, with what makes its arguments."""

    def enter(function: Callable[..., None]) -> Callable[..., None]:
        TARGETS[function.__name__.removeprefix("fuzz_")] = function, strategies
        return function

    return enter


# ---- inputs

sane = st.floats(1e-4, 1.0)
wild: st.SearchStrategy[Any] = st.one_of(
    st.floats(),
    st.sampled_from([0.0, -0.0, 1.0, 5e-324, 1e-308, 1e-160, 1e160, 1.7e308, math.inf, -math.inf, math.nan, 1 - 2**-53]),
    st.integers(-(10**3), 10**3),
    st.sampled_from([10**400, -(10**400), True, None, "", "0.1", "x", b"1", 1j, [], {}, [0.1], [[0.1, 0.2]], object, ...]),
)
numbers = st.one_of(sane, sane, wild)
arrays = st.lists(sane, min_size=1, max_size=5).flatmap(
    lambda values: st.sampled_from(
        [np.array(values), torch.tensor(values), np.array(values, complex), tuple(values), iter(values)]
    )
)
per_step = st.one_of(numbers, st.lists(numbers, max_size=5), arrays)
rates = st.one_of(st.lists(sane, min_size=1, max_size=5), st.lists(numbers, max_size=5), arrays, wild)
betas = st.one_of(st.tuples(st.floats(0, 0.999), st.floats(0, 0.9999)), st.tuples(per_step, per_step), wild)


def refused(function: Callable[..., Any], *args: Any, **options: Any) -> bool:
    """Tell whether a call ends in an ExplrError; any other exception goes on."""
    try:
        function(*args, **options)
    except ExplrError as error:
        assert str(error).strip(), "an error without a word"
        return True
    return False


def all_finite(*values: Any) -> bool:
    """Tell whether all numbers are finite."""
    return all(bool(np.isfinite(np.asarray(value, dtype=float)).all()) for value in values)


# ---- the conversion


@target(rates, per_step, per_step, st.booleans(), st.one_of(st.just(0.0), per_step))
def fuzz_convert(lrs: Any, decay: Any, momentum: Any, nesterov: bool, dampening: Any) -> None:
    """``convert`` gives the recursion of the theorem, or refuses."""
    lrs, decay, momentum, dampening = (list(v) if hasattr(v, "__next__") else v for v in (lrs, decay, momentum, dampening))
    with contextlib.suppress(ExplrError):
        schedule = explr.convert(lrs, decay, momentum, nesterov=nesterov, dampening=dampening)
        assert all_finite(schedule.log_lr, schedule.log_scale, schedule.momentum, schedule.dampening), schedule
        assert (np.diff(schedule.log_scale) >= 0).all() and schedule.log_scale[0] == 0.0
        if not nesterov:
            eta, lam, gamma, damp = (
                np.broadcast_to(np.asarray(v, float), len(schedule)) for v in (lrs, decay, momentum, dampening)
            )
            assert np.allclose(schedule.log_scale, _exact(eta, lam, gamma, damp), rtol=1e-9, atol=1e-300)
        for dtype in ("float16", "float64"):
            schedule.first_overflow(dtype)


def _exact(eta: Any, lam: Any, gamma: Any, damp: Any) -> list[float]:
    """Return log P_t of heavy-ball SGD, from the two buffers themselves, in fractions: v_t = P_t ṽ_t + κ_t θ_t."""
    kappa, logs, log = Fraction(0), [0.0], 0.0
    for step, (h, w, g, d) in enumerate(zip(*(map(Fraction, map(float, v)) for v in (eta, lam, gamma, damp)), strict=True)):
        kept = g * kappa + (w * (1 - d) if step and g else w)  # torch's first buffer is not damped
        share = h * kept
        kappa = kept / (1 - share)
        log -= _log1p(-share)
        logs.append(log)
    return logs


def _log1p(x: Fraction) -> float:
    return math.log1p(float(x)) if abs(x) < Fraction(1, 2) else math.log((1 + x).numerator) - math.log((1 + x).denominator)


@target(rates, per_step, betas, numbers)
def fuzz_convert_adamw(lrs: Any, decay: Any, betas: Any, eps: Any) -> None:
    """``convert_adamw`` gives P = Π 1/(1 - λη), or refuses."""
    lrs, decay = (list(v) if hasattr(v, "__next__") else v for v in (lrs, decay))
    with contextlib.suppress(ExplrError):
        twin = explr.convert_adamw(lrs, decay, betas, eps)
        assert all_finite(twin.log_lr, twin.log_scale, twin.betas) and (twin.betas >= 0).all() and (twin.betas < 1).all()
        assert all_finite(twin.log_eps) or float(eps) == 0.0
        with np.errstate(all="ignore"):
            share = np.asarray(lrs, float) * np.broadcast_to(np.asarray(decay, float), len(twin))
        assert np.allclose(twin.log_scale, np.cumsum([0.0, *-np.log1p(-share)]), rtol=1e-9, atol=1e-300)


@target(numbers, numbers, numbers, st.booleans(), numbers)
def fuzz_steady_state(lr: Any, decay: Any, momentum: Any, nesterov: bool, steps: Any) -> None:
    """The closed forms are finite and solve their equations, or refuse."""
    with contextlib.suppress(ExplrError):
        root = explr.characteristic_root(lr, decay, momentum, nesterov=nesterov)
        assert 0.0 < root <= 1.0
        h, g = one_float("lr", lr) * one_float("decay", decay), one_float("momentum", momentum)
        rest = root**2 - (1 + g) * (1 - h) * root + g * (1 - h) if nesterov else root**2 - (1 + g - h) * root + g
        assert abs(rest) < 1e-14, rest
    with contextlib.suppress(ExplrError):
        assert all_finite(explr.growth_rate(lr, decay, momentum, steps=steps, nesterov=nesterov))
    with contextlib.suppress(ExplrError):
        growth = explr.weight_decay_for(steps, lr, momentum)
        assert all_finite(growth) and growth >= 0.0
    with contextlib.suppress(ExplrError):
        assert all_finite(*explr.adamw_steady_state(lr, decay, (momentum, steps)))


@target(rates, st.lists(st.one_of(st.integers(-2, 9), wild), max_size=5), numbers, numbers)
def fuzz_texp(lrs: Any, steps: Any, decay: Any, momentum: Any) -> None:
    """``texp`` is finite, or refuses."""
    lrs = list(lrs) if hasattr(lrs, "__next__") else lrs
    with contextlib.suppress(ExplrError):
        schedule = explr.texp(lrs, steps, decay, momentum)
        assert len(schedule) == sum(steps) and all_finite(schedule.log_lr, schedule.log_scale, schedule.momentum)


schedule_calls = st.one_of(
    st.tuples(st.just("constant"), st.tuples(numbers)),
    st.tuples(st.just("step_decay"), st.tuples(numbers, st.one_of(st.lists(st.integers(-3, 9)), wild), numbers)),
    st.tuples(st.just("triangular"), st.tuples(numbers, numbers, st.one_of(st.integers(-3, 9), wild))),
    st.tuples(st.just("cosine"), st.tuples(numbers, st.one_of(st.integers(-3, 9), wild), numbers)),
)


@target(schedule_calls, st.one_of(st.integers(1, 9), wild))
def fuzz_schedules(call: tuple[str, tuple[Any, ...]], steps: Any) -> None:
    """A schedule gives rates that are positive and finite, or refuses."""
    with contextlib.suppress(ExplrError):
        values = explr.schedules.sample(getattr(explr.schedules, call[0])(*call[1]), steps)
        assert all_finite(values) and (values >= 0).all() and len(values) == steps


# ---- the command

words = st.one_of(
    numbers.map(str), st.sampled_from(["nan", "inf", "1e400", "--lr", "-", "", "0x10", "1_0", "ä"]), st.text(max_size=4)
)
OPTIONS = {
    "convert": [
        "--lr",
        "--weight-decay",
        "--momentum",
        "--dampening",
        "--nesterov",
        "--optimizer",
        "--betas",
        "--steps-per-epoch",
    ],
    "run": ["--epochs", "--seeds", "--together", "--precision", "--device", "--small", "--missing", "--partition", "--hours"],
    "check": ["--input", "--kwargs", "--forward", "--no-verify", "--full"],
}
START = {
    "convert": ["--lr", "0.1", "--weight-decay", "5e-4"],
    "run": ["figure2"],
    "check": ["torch.nn:Identity", "--input", "2,3"],
}
known = st.sampled_from(
    ["sgd", "adamw", "cpu", "figure2", "float64", "3", "0.1", "5e-4", "2,3", "2,3:int64", "x=4,3", "{}", '{"a": 1}']
)


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """Return the arguments of a command line, mostly of the right form."""
    name = draw(st.sampled_from(sorted(OPTIONS)))
    line = [name, *START[name]]
    for option in draw(st.lists(st.sampled_from(OPTIONS[name]), max_size=4)):
        line += [option, *draw(st.lists(st.one_of(known, words), min_size=0, max_size=2 if option == "--betas" else 1))]
    if draw(st.booleans()):
        line[draw(st.integers(0, len(line) - 1))] = draw(words)
    return line


@target(command_lines())
def fuzz_command(line: list[str]) -> None:
    """The command ends with status 0 or 2 and a message, and prints no number that is none."""
    assume(not any(word.startswith(("-h", "--h", "--ex")) and "--hours" not in word for word in line))
    out, error = io.StringIO(), io.StringIO()
    with tempfile.TemporaryDirectory() as place, contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        end = ["--data", "synthetic", "--results", place] if line[0] == "run" else []
        try:
            status = command([*line, *end])
        except SystemExit as end_of_argparse:
            status = int(end_of_argparse.code or 0)
    assert status in (0, 2), status
    assert status == 0 or error.getvalue().strip(), "refused without a word"
    assert not {"nan", "inf", "-inf"} & set(out.getvalue().replace(",", " ").split()), out.getvalue()


# ---- records

anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 400), st.floats(), st.text(max_size=5), st.just(10**400)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=2)),
    max_leaves=4,
)
RECORD = Run(
    RunConfig(epochs=2, schedule="cosine", schedule_args={"lr": 0.1, "period": 8}),
    {name: [0.5, 0.25] for name in records.HISTORY},
    {"weight": [1.0, 2.0]},
    {"data": "synthetic", "device": "CPU"},
)


@target(st.data())
def fuzz_record(draw: st.DataObject) -> None:
    """A record in which something has changed is refused, or says what a run can give."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "record.json"
        RECORD.save(path)
        content = path.read_bytes()
        kind = draw.draw(st.sampled_from(["bytes", "old", "sealed"]))
        if kind == "bytes":
            start = draw.draw(st.integers(0, len(content)))
            content = content[:start] + draw.draw(st.binary(max_size=5)) + content[start + draw.draw(st.integers(0, 5)) :]
        else:
            record = json.loads(content)
            del record["sha256"]
            for _ in range(draw.draw(st.integers(1, 2))):
                record = _changed(record, draw)
            if kind == "sealed" and isinstance(record, dict):
                with contextlib.suppress(ValueError):  # of infinity there is no digest
                    record["sha256"] = records._digest(record)
            content = json.dumps(record).encode()
        path.write_bytes(content)
        with contextlib.suppress(ExplrError):
            run = Run.load(path)
            assert kind != "bytes" or run == RECORD, "another record has the same digest"
            numbers = [*run.history.values(), *run.weight_norms.values()]
            assert all_finite(*numbers) and {len(n) for n in numbers} == {run.config.epochs}
            run.save(path)
            assert Run.load(path) == run
            if run.config.epochs < 50:
                with contextlib.suppress(ExplrError):
                    assert all_finite(run.config.learning_rates(4 * run.config.epochs).log_lr)


def _changed(tree: Any, draw: st.DataObject) -> Any:
    """Return a JSON value in which something at a random place is something else, missing, or new."""
    if isinstance(tree, dict) and tree and draw.draw(st.integers(0, 9)):
        key = draw.draw(st.sampled_from(sorted(tree)))
        tree = dict(tree)
        match draw.draw(st.sampled_from(["change", "change", "change", "delete", "add"])):
            case "delete":
                del tree[key]
            case "add":
                tree[draw.draw(st.text(max_size=5))] = draw.draw(anything)
            case _:
                tree[key] = _changed(tree[key], draw)
        return tree
    if isinstance(tree, list) and tree and draw.draw(st.integers(0, 4)):
        index = draw.draw(st.integers(0, len(tree) - 1))
        return [*tree[:index], *[_changed(tree[index], draw)] * draw.draw(st.integers(0, 2)), *tree[index + 1 :]]
    return draw.draw(anything)


# ---- the scheduler

OPERATIONS = ("train", "train", "train", "step", "rate", "save", "damage", "preview", "clip")
optimizers = st.one_of(
    st.fixed_dictionaries({"momentum": st.one_of(st.just(0.0), st.floats(0.1, 0.95)), "nesterov": st.booleans()}),
    st.fixed_dictionaries({"betas": st.tuples(st.floats(0, 0.95), st.floats(0.5, 0.999))}),
)


class _Twins:
    """A run with weight decay and its twin, on a loss that knows the direction of the weights alone."""

    def __init__(self, lr: float, decay: float, options: dict[str, Any], wrapped: bool) -> None:
        self.sides: list[tuple[Any, Any, Any]] = []
        for converted in (False, True):
            weights = torch.nn.Parameter(torch.linspace(1.0, 2.0, 6, dtype=torch.float64))
            make = torch.optim.AdamW if "betas" in options else torch.optim.SGD
            optimizer = make([{"params": [weights], "scale_invariant": True}], lr=lr, weight_decay=decay, **options)
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5) if wrapped else None
            self.sides.append((weights, optimizer, ExpLR(optimizer, schedule) if converted else schedule))
        self.count = 0

    def train(self) -> None:
        """Take an update on both sides."""
        self.count += 1
        target = torch.sin(torch.arange(6.0, dtype=torch.float64) + self.count)
        for weights, optimizer, _ in self.sides:
            optimizer.zero_grad()
            (weights / weights.norm() * target).sum().backward()
            optimizer.step()

    def step(self) -> None:
        """Move both schedules."""
        for _, _, schedule in self.sides:
            if schedule is not None:
                schedule.step()

    def check(self) -> None:
        """Compare directions; the twin may leave the range of numbers only where the run with weight decay does."""
        plain, twin = (weights.detach() for weights, _, _ in self.sides)
        if plain.isfinite().all() and 1e-150 < plain.norm() < 1e150:
            assert twin.isfinite().all(), (plain, twin)
            distance = float((plain / plain.norm() - twin / twin.norm()).norm())
            assert distance < 1e-8, (distance, plain, twin)
            scheduler = self.sides[1][2]
            assert all_finite(scheduler.get_last_lr(), scheduler.log_scale)
            assert all_finite(scheduler.log_lr) or scheduler.lrs == [0.0], scheduler.log_lr


@target(st.data(), st.one_of(sane, wild), st.one_of(st.floats(0, 0.3), wild), optimizers, st.booleans())
def fuzz_explr(draw: st.DataObject, lr: Any, decay: Any, options: dict[str, Any], wrapped: bool) -> None:
    """ExpLR computes the functions of the run with weight decay through whatever order of calls, or refuses."""
    try:
        twins = _Twins(lr, decay, options, wrapped)
    except ExplrError:
        return
    except (ValueError, TypeError, RuntimeError, OverflowError):  # a value that torch refuses, before ExpLR sees it
        weights = torch.nn.Parameter(torch.ones(2))
        make = torch.optim.AdamW if "betas" in options else torch.optim.SGD
        try:
            make([weights], lr=lr, weight_decay=decay, **options)
        except (ValueError, TypeError, RuntimeError, OverflowError):
            return
        raise
    _, optimizer, scheduler = twins.sides[1]
    with contextlib.suppress(ExplrError):
        for operation in draw.draw(st.lists(st.sampled_from(OPERATIONS), max_size=10)):
            if operation == "train":
                twins.train()
            elif operation == "step":
                twins.step()
            elif operation == "rate" and wrapped:
                rate = draw.draw(sane)
                for _, _, schedule in twins.sides:
                    wrapped_schedule = schedule.scheduler if isinstance(schedule, ExpLR) else schedule
                    wrapped_schedule.base_lrs = [rate]
            elif operation == "save":
                states = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
                optimizer.load_state_dict(states[0])
                scheduler.load_state_dict(states[1])
            elif operation == "damage":
                before = copy.deepcopy(scheduler.state_dict())
                damaged = _damaged(before, draw)
                if refused(scheduler.load_state_dict, damaged):
                    assert repr(scheduler.state_dict()) == repr(before), "a refused state has changed something"
                else:
                    scheduler.load_state_dict(before)
            elif operation == "preview":
                rates = np.asarray([*scheduler.preview(draw.draw(st.integers(1, 4)))], dtype=float)
                assert (rates < np.inf).all(), rates  # logarithms: that of a rate of 0 is -inf
            elif operation == "clip" and twins.count:
                for weights, _, schedule in twins.sides:
                    if isinstance(schedule, ExpLR):
                        schedule.clip_grad_norm_(0.5)
                    else:
                        torch.nn.utils.clip_grad_norm_([weights], 0.5)
            twins.check()


def _damaged(state: dict[str, Any], draw: st.DataObject) -> Any:
    """Return a state in which something is something else."""
    key = draw.draw(st.sampled_from(sorted(state)))
    return {**state, key: _changed(state[key], draw)}


@contextlib.contextmanager
def nothing_is_trained() -> Iterator[None]:
    """Stop the command where training would begin, and give it few images."""
    images = data.synthetic(40, 20)

    def stop(*args: Any, **options: Any) -> Any:
        raise ExplrError("here it would train")

    with mock.patch.object(catalogue, "train_together", stop), mock.patch.object(data, "synthetic", lambda *_, **__: images):
        yield


def fuzz(name: str, examples: int, *, random: bool = True) -> None:
    """Try a target so many times; raise what an example raises that fails, after shrinking it."""
    chosen = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        derandomize=not random,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    with nothing_is_trained(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function, strategies = TARGETS[name]
        chosen(given(*strategies)(function))()


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=10_000, help="of each target")
    parser.add_argument("--only", choices=sorted(TARGETS), action="append", help="these targets (default: all)")
    options = parser.parse_args()
    logging.getLogger("explr").setLevel(logging.ERROR)  # what each ExpLR converts
    wrong = 0
    for name in options.only or TARGETS:
        start = time.perf_counter()
        try:
            fuzz(name, options.examples)
            print(f"{name}: {options.examples} examples in {time.perf_counter() - start:.0f} s, none wrong", flush=True)
        except Exception as error:
            wrong += 1
            notes = "\n".join(getattr(error, "__notes__", []))
            print(f"{name}: {type(error).__name__}: {error}\n{notes}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
