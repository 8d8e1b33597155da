"""Mutation testing, to see whether a test would notice if the core were wrong: python -m tools.mutation explr.optim.

mutmut writes the mutants of a module: in each, one operator, number, word or argument of a function is another. Every mutant is
run against the tests that reach its function, the quickest first, until one fails, which kills it. All this happens within one
pytest session, which forks for each mutant, so that a mutant costs what its tests cost and no import of torch. Of the tests of
a mutant only as many are run as take ``--seconds`` of processor time together: a mutant that outlives them counts as a
survivor, and the rate of killed mutants is at least what is printed.

Not mutated are decorated functions (properties among them), what stands outside of functions, lines that are nothing but prose,
pieces of messages (pyproject.toml), and the ``strict=True`` of zip, which only says that lengths agree. Survivors that compute
the same as the original are listed in tools/mutation.toml, each with the reason.
"""

from __future__ import annotations

import argparse
import difflib
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import json
import math
import os
import random
import resource
import signal
import sys
import textwrap
import time
from collections import defaultdict
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from _pytest.runner import runtestprotocol
from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.mutation.trampoline import set_mutant_under_test
from mutmut.state import state
from scipy.stats import binomtest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "_build" / "mutation"
FOUND = FOLDER / "survivors.json"  # of the last run, for --again
LEAST = 0.95
NUMBERS = (
    "tests/test_equivalence.py",
    "tests/test_recursions.py",
    "tests/test_twins.py::test_reference_values_to_1e_13",
    "tests/test_twins.py::test_steady_states_are_where_the_recursions_settle",
    "tests/test_twins.py::test_nothing_cancels_where_decay_is_tiny",
    "tests/test_twins.py::test_without_decay_nothing_changes",
    "tests/test_twins.py::test_the_bound_of_nesterov_momentum_is_sharp",
)
SCHEDULER = (
    "tests/test_states.py",
    "tests/test_watching.py",
    "tests/test_scheduler.py",
    "tests/test_norms.py",
    "tests/test_optim.py",
    "tests/test_loops.py::test_biases_before_norms_convert_with_their_weights_and_shifts_do_not",
    "tests/test_loops.py::test_biases_that_do_not_decay_before_norms_are_an_error_that_says_what_to_do",
)
NETWORKS = ("tests/test_norms.py", "tests/test_groups.py")
RULES = (
    "tests/invariance/test_rules.py",
    "tests/invariance/test_shifts.py",
    "tests/invariance/test_soundness.py::test_rules_are_right[sizes that are data, prod]",
)
LONG = (  # and left out
    "tests/test_equivalence.py::test_a_million_steps_convert",
    "tests/test_optim.py::test_explr_yields_the_rates_of_convert_over_a_long_run",
    "tests/test_optim.py::test_converted_run_computes_the_same_functions",
    "tests/test_optim.py::test_that_check_catches",
)
MODULES = {  # and their tests
    "explr.equivalence": NUMBERS,
    "explr.recursions": NUMBERS,
    "explr.symmetry": NETWORKS,
    "explr.groups": NETWORKS,
    "explr.scaling": NETWORKS,
    "explr.optim": SCHEDULER,
    "explr.states": SCHEDULER,
    "explr.watching": SCHEDULER,
    "explr.invariance.degrees": ("tests/invariance/test_degrees.py",),
    "explr.invariance.calls": ("tests/invariance/test_degrees.py",),
    "explr.invariance.rulebook": RULES,
    "explr.invariance.rules": RULES,
}


class Mutant(NamedTuple):
    """One change to one function: what a line was, and what it is."""

    module: str
    function: str
    was: str
    now: str


@dataclass
class Mutated:
    """A module with all of its mutants in one source, of which the environment chooses one."""

    source: str
    mutants: dict[str, Mutant]  # by mutmut's names


def mutate(module: str) -> Mutated:
    """Write all mutants of a module."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    made = mutate_file_contents(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
    lines = made.code.splitlines()

    def body(name: str) -> list[str]:
        span = made.line_span_by_function_name[name]
        text = textwrap.dedent("\n".join(lines[span.start - 1 : span.end]))
        return [line.strip() for line in text.replace(name, "f").splitlines()]

    mutants: dict[str, Mutant] = {}
    for name in made.mutant_names:
        function = name.rpartition("__mutmut_")[0]
        changes = list(difflib.ndiff(body(f"{function}__mutmut_orig"), body(name)))
        was, now = ("\n".join(line[2:] for line in changes if line.startswith(sign)) for sign in "-+")
        if now in {was.replace("strict=True", other) for other in ("strict=None", "strict=False", "")}:
            continue
        mutants[f"{module}.{name}"] = Mutant(module, function.removeprefix("x_").removeprefix("xǁ").replace("ǁ", "."), was, now)
    return Mutated(made.code, mutants)


class Finder(importlib.abc.MetaPathFinder):
    """Gives the mutated sources in place of the modules."""

    def __init__(self, sources: dict[str, str]) -> None:
        self.paths = {module: FOLDER / f"{module}.py" for module in sources}
        for module, path in self.paths.items():
            path.write_text(sources[module], encoding="utf-8")

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """Return a spec for a module that is mutated."""
        return importlib.util.spec_from_file_location(name, self.paths[name]) if name in self.paths else None


class Loop:
    """A pytest plugin: runs each test once, to see what it reaches and what it takes, and then each mutant in a fork."""

    def __init__(self, mutants: dict[str, Mutant], known: Container[Mutant], seconds: float) -> None:
        self.mutants = mutants
        self.known = known
        self.seconds = seconds
        self.killed: dict[str, bool] = {}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Do all of it in place of pytest's own loop."""
        if session.config.option.collectonly or session.testsfailed:
            return True
        reached: dict[str, list[tuple[float, pytest.Item]]] = defaultdict(list)
        for item, (took, functions) in zip(session.items, study(session.items), strict=True):
            if took is None:
                raise pytest.UsageError(f"{item.nodeid} fails without any mutant")
            for function in functions:
                reached[function].append((took, item))
        for tests in reached.values():
            tests.sort(key=lambda pair: pair[0])
        gc.freeze()  # else each fork would copy what a collection touches
        if not survives("", session.items, math.inf):
            raise pytest.UsageError("tests that passed fail in a fork, or when they run again, without any mutant")
        for number, mutant in enumerate(self.mutants, 1):
            quickest: list[pytest.Item] = []
            spent = 0.0
            for took, item in reached[mutant.rpartition("__mutmut_")[0]]:
                if spent + took > self.seconds and quickest:
                    break
                spent += took
                quickest.append(item)
            self.killed[mutant] = not survives(mutant, quickest, spent)
            if not self.killed[mutant] and self.mutants[mutant] not in self.known:
                tell("\n{}: {}\n- {}\n+ {}".format(*self.mutants[mutant]))
            if number % 20 == 0 or number == len(self.mutants):
                tell(f"{number} of {len(self.mutants)}, {sum(self.killed.values())} killed")
        return True


def tell(line: str) -> None:
    """Print a line past pytest, which keeps what is printed."""
    print(line, file=sys.__stderr__, flush=True)


def passes(item: pytest.Item) -> bool:
    """Run a test."""
    return all(report.passed or report.skipped for report in runtestprotocol(item, nextitem=None, log=False))


Study = tuple[float | None, list[str]]  # what a test takes, or None if it fails, and the functions that it reaches


def study(items: Sequence[pytest.Item]) -> list[Study]:
    """Run each test once.

    After the first backward pass of torch no fork of a process can have another. So tests that have one run in a fork; those
    without run here, and leave what they import and cache to the forks of the mutants.
    """
    autograd: Any = torch.autograd
    engine, needs_engine = autograd._engine_run_backward, []

    def refuse(*_: Any, **__: Any) -> None:
        needs_engine.append(True)
        raise RuntimeError("a backward pass")

    autograd._engine_run_backward = refuse
    studies: dict[int, Study] = {}
    for index, item in enumerate(items):
        found = study_one(item)
        if not needs_engine:
            studies[index] = found
        needs_engine.clear()
    autograd._engine_run_backward = engine
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        rest = {index: study_one(item) for index, item in enumerate(items) if index not in studies}
        with os.fdopen(write, "w") as pipe:
            json.dump(rest, pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        studies |= {int(index): tuple(found) for index, found in json.load(pipe).items()}
    os.waitpid(child, 0)
    return [studies[index] for index in range(len(items))]


def study_one(item: pytest.Item) -> Study:
    """Run a test, and note what it takes and what it reaches."""
    set_mutant_under_test("stats")
    state()._stats.clear()
    start = time.process_time()
    passed = passes(item)
    took = time.process_time() - start
    set_mutant_under_test("")
    return took if passed else None, sorted(state()._stats)


def survives(mutant: str, tests: Sequence[pytest.Item], seconds: float) -> bool:
    """Tell whether tests that take so many seconds pass with a mutant, in a process of its own; one that hangs does not."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            gc.disable()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            if mutant:
                most = round(3 * seconds) + 5
                resource.setrlimit(resource.RLIMIT_CPU, (most, most + 1))
                resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30))
                signal.alarm(60 * most)
            set_mutant_under_test(mutant)
            status = 0 if all(map(passes, tests)) else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def equivalents() -> dict[Mutant, str]:
    """Return the mutants that are known to compute the same as the original, and why."""
    entries = tomllib.loads((ROOT / "tools" / "mutation.toml").read_text(encoding="utf-8"))["equivalent"]
    return {Mutant(e["module"], e["function"], e["was"], e["now"]): e["why"] for e in entries}


def main(arguments: Sequence[str] | None = None) -> int:
    """Test the mutants of modules: print each survivor as it is found, and a line for each module."""
    parser = argparse.ArgumentParser(description="Run the tests against mutants of the library.")
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(MODULES)}; default: all")
    parser.add_argument("--seconds", type=float, default=20.0, help="processor time for the tests of a mutant (20)")
    parser.add_argument("--sample", type=int, help="this many mutants of each module, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of that draw (0)")
    parser.add_argument("--again", action="store_true", help="only the survivors of the last run")
    parser.add_argument("--tests", nargs="+", metavar="TEST", help="files or tests to use instead of those of the modules")
    options = parser.parse_args(arguments)
    unknown = set(options.modules) - MODULES.keys()
    if unknown:
        parser.error(f"no tests are known for {', '.join(sorted(unknown))}")
    modules = options.modules or list(MODULES)
    last = {Mutant(*fields) for fields in json.loads(FOUND.read_text(encoding="utf-8"))} if options.again else set()
    os.chdir(ROOT)
    mutated = {module: mutate(module) for module in modules}
    chosen: dict[str, Mutant] = {}
    for one in mutated.values():
        # At random even if it is all of them: those of a run that is interrupted (Ctrl-C) are a sample then.
        count = min(options.sample or len(one.mutants), len(one.mutants))
        names = random.Random(options.seed).sample(list(one.mutants), count)
        chosen |= {name: one.mutants[name] for name in names if not options.again or one.mutants[name] in last}
    FOLDER.mkdir(parents=True, exist_ok=True)
    sys.meta_path.insert(0, Finder({module: one.source for module, one in mutated.items()}))
    known = equivalents()
    loop = Loop(chosen, known, options.seconds)
    tests = options.tests or dict.fromkeys(test for module in modules for test in MODULES[module])
    plain = ["-q", "--tb=native", "-p", "no:cacheprovider", "--hypothesis-profile=mutation", "-m", "not slow and not gpu"]
    plain += [f"--deselect={test}" for test in LONG]
    status = pytest.main([*plain, *tests], plugins=[loop])
    if not loop.killed:
        return int(status) or 1
    survivors = [chosen[name] for name, killed in loop.killed.items() if not killed and chosen[name] not in known]
    FOUND.write_text(json.dumps(survivors, ensure_ascii=False, indent=1), encoding="utf-8")
    enough = True
    for module in modules:
        verdicts = [(chosen[name], killed) for name, killed in loop.killed.items() if chosen[name].module == module]
        killed, same = sum(k for _, k in verdicts), sum(not k and mutant in known for mutant, k in verdicts)
        line = f"{module}: {killed} of {len(verdicts)} mutants killed"
        if verdicts:
            line += f" ({100 * killed / len(verdicts):.1f} %), {same} equivalent"
        if 0 < len(verdicts) < len(mutated[module].mutants) and not options.again:
            low, high = binomtest(killed, len(verdicts)).proportion_ci(method="wilson")
            line += f"; a sample of {len(mutated[module].mutants)}, 95 % interval {100 * low:.1f} to {100 * high:.1f} %"
        print(line)
        enough &= killed >= LEAST * len(verdicts)
        stale = {m for m in known if m.module == module} - set(mutated[module].mutants.values())
        for mutant in stale:
            print(f"tools/mutation.toml has a mutant that there is not: {mutant}")
            enough = False
    return 0 if enough else 1


if __name__ == "__main__":
    sys.exit(main())
