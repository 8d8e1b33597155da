"""All that needs a GPU, in order of importance, in pieces: the gpu tests, the benchmark, the full-scale records.

    python -m benchmarks.full_scale [--minutes 10] [--out FOLDER]

works for at most so many minutes and stops; the same command then goes on where it stopped. What is there already is not made
again, and a run that was cut off goes on from its last whole epoch. Everything that is made lies in the folder ``--out``, the
records in its ``results``: copy those to ``book/results``, and ``training-cuda.json`` to ``benchmarks/results``. The data come
from EXPLR_DATA, as always. The exit status is 0 when nothing is left to do, 3 when the time was up, 1 when something failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from explr.experiments import EXPERIMENTS, load, run_names

ORDER = ("figure5", "figure2", "head", "normalizations", "schedules", "growth")
DONE, FAILED, TIME_IS_UP = 0, 1, 3


def pieces(out: Path) -> list[tuple[str, list[str], Path]]:
    """Return (name, command, the file that says it is done) of every piece, the most important first."""
    python = sys.executable
    tests = [python, "-m", "pytest", "-m", "gpu", "-q", "tests"]
    benchmark = [python, "-m", "benchmarks.training", "--device", "cuda", "--results", str(out)]
    runs = [
        (name, [python, "-m", "explr", "run", name, "--device", "cuda", "--results", str(out / "results")], out / f"{name}.log")
        for name in ORDER
    ]
    return [("tests", tests, out / "tests.log"), ("benchmark", benchmark, out / "benchmark.log"), *runs]


def work(todo: Sequence[tuple[str, list[str], Path]], minutes: float) -> int:
    """Do one piece after another until the time is up; a piece's log gets its final name when the piece is done."""
    end, status = time.monotonic() + 60.0 * minutes, DONE
    for name, command, log in todo:
        if log.exists():
            continue
        log.parent.mkdir(parents=True, exist_ok=True)
        unfinished = log.with_suffix(".part")
        print(f"{name}: {' '.join(command[1:])}", flush=True)
        try:
            with unfinished.open("a", encoding="utf-8") as stream:
                subprocess.run(
                    command, stdout=stream, stderr=subprocess.STDOUT, check=True, timeout=max(end - time.monotonic(), 0.1),
                    env={**os.environ, "TQDM_DISABLE": "1"},
                )  # fmt: skip
        except subprocess.TimeoutExpired:
            print("the time is up; the same command goes on from here", flush=True)
            return TIME_IS_UP
        except subprocess.CalledProcessError:
            print(f"{name} failed, see {unfinished}:\n{unfinished.read_text(encoding='utf-8')[-2000:]}", flush=True)
            status = FAILED  # the rest does not depend on it
        else:
            unfinished.replace(log)
            print(log.read_text(encoding="utf-8")[-2000:], flush=True)
    return status


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Make all that needs a GPU, the most important first.")
    parser.add_argument("--minutes", type=float, default=10.0, help="stop after so long (default: 10)")
    parser.add_argument("--out", type=Path, default=Path("_build/full-scale"), help="where everything goes")
    options = parser.parse_args()
    status = work(pieces(options.out), options.minutes)
    for name in EXPERIMENTS:
        made = sum(len(runs) for runs in load(name, results=options.out / "results").values())
        print(f"{name}: {made} of {len(run_names(name))} records")
    return status


if __name__ == "__main__":
    sys.exit(main())
