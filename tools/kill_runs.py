"""Kill experiments at random moments, and see that they end as if nothing had happened: python -m tools.kill_runs --count 200.

A tiny experiment of two runs is made by a process that is killed (SIGKILL) again and again, half of the times at a random
moment, half of the times before a random line of the code that reads and writes files; then it is made to its end. Records and
weights must be those of an experiment that nobody disturbed, bit for bit, and nothing but records may lie in their folder. A
trial that ends otherwise is printed with the seed that makes its kills by line again, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from explr import RunConfig
from explr.experiments import catalogue, files, records, training
from explr.experiments.catalogue import EXPERIMENTS, Arms, Experiment, record_folder, run_experiment
from explr.experiments.data import synthetic
from explr.experiments.records import Run

EPOCHS, KILLS = 3, 3
WATCHED = {(files.__file__, None), (catalogue.__file__, "_make"), (catalogue.__file__, "run_experiment")}
WATCHED |= {
    (catalogue.__file__, "_clear"),
    (records.__file__, "save"),
    (training.__file__, "_save"),
    (training.__file__, "_resume"),
}
Result = dict[str, tuple[Any, ...]]


def arms(epochs: int, steps_per_epoch: int) -> Arms:
    """Return two tiny runs, the second with weights that grow."""
    size = {"depth": 8, "width": 4}
    decay = RunConfig(epochs=epochs, batch_size=20, model="preresnet", model_args=size, weight_decay=5e-2)
    return {"decay": decay, "exponential": RunConfig(**{**vars(decay), "regime": "exponential"})}


def make(results: Path) -> None:
    """Make the experiment, and keep a digest of each network's weights beside the records' folder."""
    EXPERIMENTS["killed"] = Experiment("a tiny experiment to be killed", arms, seeds=1)
    train_together = training.train_together

    def watched(configs: Sequence[RunConfig], *args: Any, checkpoints: Sequence[Path], **options: Any) -> list[Run]:
        runs = train_together(configs, *args, checkpoints=checkpoints, **options)
        for checkpoint in checkpoints:
            content = torch.load(checkpoint, weights_only=True)
            tensors = [*content["model"].items(), *content["buffers"]["momentum_buffer"].items()]
            digest = hashlib.sha256(b"".join(name.encode() + tensor.numpy().tobytes() for name, tensor in tensors))
            (results / f"{checkpoint.stem}.weights").write_text(digest.hexdigest())
        return runs

    results.mkdir(exist_ok=True)
    setattr(catalogue, "train_together", watched)  # noqa: B010
    for _ in run_experiment("killed", synthetic(40, 20), epochs=EPOCHS, device="cpu", results=results):
        pass


def make_until_line(results: Path, last: int, count: Any) -> None:
    """Make the experiment, and kill this process before it enters the given line of what reads and writes files."""

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if not {(code.co_filename, None), (code.co_filename, code.co_name)} & WATCHED:
            return None
        if event == "line":
            count.value += 1
            if count.value == last:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    make(results)
    sys.settrace(None)


def result(results: Path) -> Result:
    """Return what the experiment gave: run → its history, its weight norms, a digest of its weights."""
    found: Result = {}
    for path in sorted(folder(results).glob("*.json")):
        run = Run.load(path)
        found[path.stem] = (run.history, run.weight_norms, (results / f"{path.stem}.weights").read_text())
    return found


def folder(results: Path) -> Path:
    """Return where the records lie."""
    return record_folder("killed", epochs=EPOCHS, stand_in=True, results=results)


def litter(folder: Path) -> list[str]:
    """Return the names of all that lies in a folder of records and is none."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".json" or path.name.startswith("."))


def run(function: Callable[..., None], *arguments: Any, seconds: float | None = None) -> int:
    """Run a function in a process of its own, for so many seconds at most; return its exit status, negative if killed."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    assert process.exitcode is not None
    return process.exitcode


def trial(chance: random.Random, results: Path, whole: Result, seconds: float, lines: int) -> tuple[int, str | None]:
    """Kill an experiment some times and make it to its end; return how many kills hit it, and what is wrong with the result."""
    kills = 0
    count = multiprocessing.get_context("fork").Value("i", 0, lock=False)
    for _ in range(KILLS):
        count.value = 0
        if chance.random() < 0.5:
            status = run(make, results, seconds=chance.uniform(0.0, seconds))
        else:
            status = run(make_until_line, results, chance.randint(1, lines), count)
        if status > 0:
            return kills, f"going on after {kills} kills failed with status {status}"
        kills += status == -signal.SIGKILL
    if status := run(make, results):
        return kills, f"the last run, after {kills} kills, failed with status {status}"
    if result(results) != whole:
        return kills, "records or weights are not those of the undisturbed experiment"
    left = litter(folder(results))
    return kills, f"left behind: {', '.join(left)}" if left else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="how many experiments to kill")
    parser.add_argument("--seed", type=int, default=0, help="of the first one")
    options = parser.parse_args(arguments)
    os.environ["TQDM_DISABLE"] = "1"
    torch.set_num_threads(1)  # threads do not survive a fork
    kills, wrong = 0, 0
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for module in ("torch._dynamo", "torch.export._trace"):  # imported late; a run here would start threads, and forks hang
            importlib.import_module(module)
        count = multiprocessing.get_context("fork").Value("i", 0, lock=False)
        if run(make_until_line, place / "whole", 0, count):
            raise SystemExit("the experiment fails without being killed")
        start = time.perf_counter()
        run(make, place / "again")
        seconds, whole = time.perf_counter() - start, result(place / "whole")
        if len(whole) != len(arms(1, 1)) or result(place / "again") != whole:
            raise SystemExit("the experiment does not give the same bits twice")
        for seed in range(options.seed, options.seed + options.count):
            hit, complaint = trial(random.Random(seed), place / str(seed), whole, seconds, count.value)
            kills += hit
            if complaint:
                wrong += 1
                print(f"seed {seed}: {complaint}", flush=True)
    print(f"{options.count} experiments of {seconds:.2f} s and {count.value} lines, {kills} kills: {wrong} ended otherwise")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
