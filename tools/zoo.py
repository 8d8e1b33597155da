"""Ask the prover about the networks people use, and write the page ``book/what-converts.md``.

    python -m tools.zoo                          write the page from the stored results
    python -m tools.zoo --check                  fail if the page is not what the results give
    python -m tools.zoo --run [--only NAME ...]  ask about every network, or these, store the results, write the page
    python -m tools.zoo --run --missing          ask about those that have no result yet

The networks are those of tools.zoo_networks whose libraries are installed. Each is asked about in a process of its own, within
a limit of time, and one that cannot be built, traced or finished is in the table as well, with the reason. Results of networks
whose library is not installed stay as they are.

Every yes is checked by numbers: with all eps negligible, in float64, f at 4 times the weights that convert is compared with f.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from typing import Any
from unittest import mock

from explr.experiments.files import atomic_write
from tools.address import ROOT
from tools.zoo_networks import LIBRARIES, build, installed, networks

PAGE = ROOT / "book" / "what-converts.md"
RESULTS = ROOT / "book" / "results" / "what-converts.json"
LIMIT = 900  # seconds a network
TINY = 1e-30
AGREE = 1e-6  # f at both scales, in float64, relative


def ask(library: str, name: str) -> dict[str, Any]:
    """Return what the prover says of a network, how long it takes, and how far f moves in float64."""
    from explr import ExplrError, scale_invariance

    model, inputs, kwargs = build(library, name)
    first = next(iter((*inputs, *kwargs.values())))
    found: dict[str, Any] = {
        "input": list(first.shape),
        "weights": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
    }
    start = time.process_time()  # of one thread; the machine may have other work
    try:
        report = scale_invariance(model, *inputs, **kwargs)
    except ExplrError as error:
        return found | {"verdict": f"not analysed: {error}"}
    found |= {
        "seconds": round(time.process_time() - start, 1),
        "verdict": report.verdict,
        "verified": report.verified,
        "share": report.share,
        "freeze": len(report.rest),
        "changes": {f"{factor:g}": float(f"{change:.3g}") for factor, change in report.changes.items()},
    }
    converts = {name for part in (report.alone, *report.joint) for name in part}
    return found | ({"error": float(f"{_error(model, converts, inputs, kwargs):.2g}")} if converts else {})


def _error(model: Any, converts: set[str], inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """Return ‖f(4θ) - f(θ)‖ / ‖f(θ)‖ with every eps negligible and no weights left at 0 or 1, in float64 where that runs.

    Some operations are not written for float64. In float32 a factor of 4 changes exponents alone as well.
    """
    import torch

    try:
        return _error_in(torch.float64, model, converts, inputs, kwargs)
    except RuntimeError:
        return _error_in(torch.float32, model, converts, inputs, kwargs)


def _error_in(dtype: Any, model: Any, converts: set[str], inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    import torch
    from torch.nn import functional as F
    from torch.utils._pytree import tree_leaves, tree_map_only

    def cast(x: Any) -> Any:
        return x.to(dtype) if x.is_floating_point() else x

    def layer_norm(x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = TINY) -> Any:
        return torch.layer_norm(x, shape, weight, bias, TINY)  # OLMo has its eps in the code

    model.to(dtype)
    for module in model.modules():
        for eps in {"eps", "variance_epsilon"} & vars(module).keys():
            setattr(module, eps, TINY)
    inputs, kwargs = tree_map_only(torch.Tensor, cast, (inputs, kwargs))
    outputs = []
    with torch.no_grad(), mock.patch.object(F, "layer_norm", layer_norm):
        for parameter in model.parameters():
            if parameter.ndim < 2 or not parameter.any():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        for factor in (1.0, 4.0):
            for name, parameter in model.named_parameters():
                if name in converts:
                    parameter.mul_(factor)
            torch.manual_seed(1)
            leaves = tree_leaves(model(*inputs, **kwargs))
            outputs.append([x.flatten() for x in leaves if isinstance(x, torch.Tensor) and x.is_floating_point()])
    before, after = (torch.cat(parts) for parts in outputs)
    return float((after - before).norm() / before.norm())


def ask_apart(library: str, name: str) -> dict[str, Any]:
    """Ask in a process of its own, within the limit of time; say why, if nothing comes of it."""
    command = [sys.executable, "-W", "ignore", "-m", "tools.zoo", "--one", library, name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return {"verdict": f"not within {LIMIT} seconds"}
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"verdict": f"failed: {lines[-1] if lines else f'status {done.returncode}'}"}
    return json.loads(done.stdout.splitlines()[-1])


def run(only: list[str], *, missing: bool) -> None:
    """Ask about networks, or only about those without a result, and store what comes of it, after each one."""
    stored = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"provenance": {}, "networks": {}}
    stored["networks"] = {library: stored["networks"].get(library, {}) for library in LIBRARIES}
    for library, names in networks().items():
        kept = stored["networks"][library]
        stored["networks"][library] = {name: kept[name] for name in names if name in kept}
        for name in names:
            if (not only or name in only or library in only) and not (missing and name in kept):
                stored["networks"][library][name] = ask_apart(library, name)
                stored["provenance"][library] = provenance(library)
                print(library, name, stored["networks"][library][name], flush=True)
                ordered = {name: stored["networks"][library][name] for name in names if name in stored["networks"][library]}
                stored["networks"][library] = ordered
                with atomic_write(RESULTS) as file:  # hours of work
                    file.write((json.dumps(stored, indent=1) + "\n").encode())


def provenance(library: str) -> dict[str, str]:
    """Return what the results on a library's networks were made with."""
    made = {package: installed(package) or "" for package in dict.fromkeys((library, "torch", "explr"))}
    return made | {"python": platform.python_version(), "machine": f"{platform.machine()} CPU, 1 thread"}


def page(stored: dict[str, Any]) -> str:
    """Return the page that the stored results give."""
    every = [result for results in stored["networks"].values() for result in results.values()]
    shares = sorted((result["share"] for result in every if "share" in result), reverse=True)
    whole, nothing = sum(share == 1 for share in shares), sum(share == 0 for share in shares)
    checked = [result["error"] for result in every if "error" in result]
    held = sum(error < AGREE for error in checked)
    median = shares[len(shares) // 2]
    seconds = sorted(result["seconds"] for result in every if "share" in result)
    large = sum("eps is not negligible" in result["verdict"] for result in every)
    text = [
        "# What converts, in the networks people use",
        "",
        "How much of a network that was not built for the theorem can be trained without weight decay, by the exponential",
        "learning rate that is equivalent? `explr.scale_invariance` was asked about networks as their libraries build them,",
        "with random weights, some with fewer layers or less width, as their names say. *Converts* is the share of the",
        "trainable numbers that can be scaled together without a change in the output, `report.share`. The *others* are",
        "tensors: freeze them, and the network is scale-invariant. (Where layers with a bias stand before norms with running",
        "statistics, `report.parameter_groups(...)` converts less: these must be able to follow. `bias=False` mends it.)",
        "",
        f"{len(every)} networks of {len(stored['networks'])} libraries were asked about, and {len(shares)} analysed:",
        "",
        "| verdict | networks |",
        "| --- | ---: |",
        f"| scale-invariant as they are | {whole} |",
        f"| convert in part | {len(shares) - whole - nothing} |",
        f"| of these, by more than 90 % | {sum(0.9 < share < 1 for share in shares)} |",
        f"| convert nothing | {nothing} |",
        f"| not analysed: cannot be traced, or not in time | {len(every) - len(shares)} |",
        "",
        f"Half of those that were analysed convert by {_percent(median)} or more. An analysis takes",
        f"{seconds[len(seconds) // 2]:g} seconds of a processor in the median, and {seconds[-1]:g} at most.",
        "",
        "Every yes was checked once more, apart from the prover: in float64, with all eps negligible, what converts was",
        f"multiplied by 4. In {held} of {len(checked)} networks this changes the output by less than {AGREE:g},",
        f"so the number of disagreements is {len(checked) - held}.",
        "",
        "*× 4* and *× ¼* say by how much such scaling changes the output with the eps that the network has, in float32:",
        "what the eps of all its norms come to, on a small batch of noise. Weight decay shrinks weights that the exponential",
        "rate lets grow, so this is what keeps the two runs apart, unless eps follows the weights:",
        f"`ExpLR(..., model=model)` makes it follow. In {large} networks some eps is more than a tenth of the variance that it",
        "is added to, and the report says so.",
    ]
    for library, results in stored["networks"].items():
        if not results:
            continue
        made = stored["provenance"][library]
        words = ", ".join(f"{name} {made[name]}" for name in dict.fromkeys((library, "torch", "explr")) if made[name])
        text += ["", f"## {library}", "", f"{len(results)} networks; {words}, Python {made['python']}; {made['machine']}.", ""]
        text += ["| network | weights | converts | others | × 4 | × ¼ | checked | seconds |"]
        text += ["| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
        text += [_row(name, result) for name, result in results.items()]
    text += [
        "",
        "*Checked* is the change in float64, or in float32 where an operation is not written for float64; *exact* is equal to",
        "the last bit. *Seconds* are those that `scale_invariance` computes on one thread, most of them in `torch.export`. A",
        "dash means that nothing converts, or that the output is 0 whatever the weights are. The results are made anew by",
        "`python -m tools.zoo --run`.",
    ]
    return "\n".join(text) + "\n"


def _row(name: str, result: dict[str, Any]) -> str:
    weights = _count(result["weights"]) if "weights" in result else ""
    if "share" not in result:
        return f"| {name} | {weights} | {result['verdict'].replace('|', ' ')[:160]} | | | | | |"
    changes = [_change(result["changes"].get(factor)) for factor in ("4", "0.25")]
    error = f"{result['error']:.0e}" if result.get("error") else "exact" if "error" in result else "–"
    cells = [name, weights, _percent(result["share"]), str(result["freeze"]), *changes, error]
    return f"| {' | '.join([*cells, str(result['seconds'])])} |"


def _count(weights: int) -> str:
    return f"{weights / 1e6:.1f} M" if weights >= 1e5 else f"{weights / 1e3:.1f} k"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share else "nothing"


def _change(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if value >= 1e-3 else "< 0.1 %"


def main() -> int:
    """Run the command line; return 1 where --check finds another page than the results give."""
    parser = argparse.ArgumentParser(description="Ask the prover about the networks people use.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the page is not what the results give")
    parser.add_argument("--run", action="store_true", help="ask first, and store what comes of it")
    parser.add_argument("--missing", action="store_true", help="with --run: ask only about networks without a result")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="networks or libraries to ask about")
    parser.add_argument("--one", nargs=2, metavar=("LIBRARY", "NAME"), help="print the result on one network, as JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(ask(*options.one)))
        return 0
    if options.run:
        run(options.only, missing=options.missing)
    made = page(json.loads(RESULTS.read_text(encoding="utf-8")))
    if not options.check:
        PAGE.write_text(made, encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != made:
        print(f"{PAGE.relative_to(ROOT)} is out of date: run python -m tools.zoo")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
