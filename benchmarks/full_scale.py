"""All that needs a GPU, in order of importance, in pieces: the gpu tests, the benchmark, the full-scale records.

    python -m benchmarks.full_scale [--minutes 9] [--out FOLDER]

works for about so many minutes and stops; the same command then goes on. Records that are there are not made again, and a run
that was cut off goes on from its last whole epoch; tests and benchmark, a minute or two each, begin again. Everything that is
made lies in the folder ``--out``, the records in its ``results``: copy those to ``book/results``, and ``training-cuda.json`` to
``benchmarks/results``. The data come from EXPLR_DATA, as always. The exit status is 0 when nothing is left to do, 3 when the
time was up, 1 when something failed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from explr.errors import ExplrError
from explr.experiments.catalogue import record_folder, record_path, run_names
from explr.experiments.data import cifar10

BEGAN = time.monotonic()
ORDER = ("figure5", "figure2", "head", "nesterov", "adamw", "normalizations", "schedules", "growth")
DONE, FAILED, TIME_IS_UP = 0, 1, 3


@dataclass(frozen=True)
class Piece:
    """A command, where its output goes, and how to tell that it need not be run again."""

    name: str
    command: list[str]
    log: Path
    done: Callable[[], bool]


def missing(name: str, results: Path) -> int:
    """Return how many records of an experiment are not there."""
    return sum(not record_path(record_folder(name, results=results), *run).exists() for run in run_names(name))


def complete(name: str, results: Path) -> bool:
    """Return whether all records of an experiment are there."""
    return missing(name, results) == 0


def pieces(out: Path) -> list[Piece]:
    """Return all that is to be made, the most important first."""
    python, results = sys.executable, out / "results"
    tests, benchmark = out / "tests.log", out / "benchmark.log"
    measure = [python, "-m", "benchmarks.training", "--device", "cuda", "--results", str(out)]
    first = [
        Piece("tests", [python, "-m", "pytest", "-m", "gpu", "-q", "tests"], tests, tests.exists),
        Piece("benchmark", measure, benchmark, benchmark.exists),
    ]
    run = [python, "-m", "explr", "run", "--device", "cuda", "--results", str(results)]
    return first + [Piece(name, [*run, name], out / f"{name}.log", partial(complete, name, results)) for name in ORDER]


def work(todo: Sequence[Piece], end: float) -> int:
    """Do one piece after another until ``time.monotonic()`` reaches ``end``; a log gets its name when its piece is done."""
    status = DONE
    for piece in todo:
        if piece.done():
            continue
        piece.log.parent.mkdir(parents=True, exist_ok=True)
        unfinished = piece.log.with_suffix(".part")
        print(f"{piece.name}: {' '.join(piece.command[1:])}", flush=True)
        left, quiet = max(end - time.monotonic(), 0.1), {**os.environ, "TQDM_DISABLE": "1"}
        try:
            with unfinished.open("w", encoding="utf-8") as log:
                subprocess.run(piece.command, stdout=log, stderr=subprocess.STDOUT, check=True, timeout=left, env=quiet)
        except subprocess.TimeoutExpired:
            print("the time is up; the same command goes on from here", flush=True)
            return status or TIME_IS_UP
        except subprocess.CalledProcessError:
            status = FAILED  # the rest does not depend on it
            print(f"{piece.name} failed, see {unfinished}:", flush=True)
        else:
            unfinished = unfinished.replace(piece.log)
            if not piece.done():
                status = FAILED
                print(f"{piece.name} ended without an error, and yet is not complete", flush=True)
        print(unfinished.read_text(encoding="utf-8", errors="replace")[-2000:], flush=True)
    return status


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Make all that needs a GPU, the most important first.")
    parser.add_argument("--minutes", type=float, default=9.0, help="stop after about so long (default: 9)")
    parser.add_argument("--out", type=Path, default=Path("full-scale"), help="where everything goes (default: full-scale)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(FAILED))  # so that what runs is stopped as well
    try:
        if not torch.cuda.is_available():
            raise ExplrError("there is no CUDA device here, and all of this needs one.")
        cifar10()  # the stand-in would do for no full-scale record
    except ExplrError as error:
        print(f"full_scale: {error}", file=sys.stderr)
        return FAILED
    status = work(pieces(options.out), BEGAN + 60.0 * options.minutes)
    for name in ORDER:
        print(f"{name}: {missing(name, options.out / 'results')} of {len(run_names(name))} records are missing")
    return status


if __name__ == "__main__":
    sys.exit(main())
