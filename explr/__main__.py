"""The ``explr`` command: ``convert`` a weight decay, ``check`` a network, ``run`` the experiments of the book."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from explr import __version__
from explr.equivalence import Schedule, adamw_steady_state, characteristic_root, convert, convert_adamw, growth_rate
from explr.errors import ExplrError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from explr.experiments.data import Dataset
    from explr.experiments.records import Run

_DTYPES = ("float16", "bfloat16", "float32", "float64")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 2 after a message on stderr."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        parsed = _parser(listed="run" in arguments).parse_args(arguments)
        parsed.command(parsed)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ExplrError as error:
        print(f"explr: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        goes_on = "; the same command goes on from the last whole epoch" * ("run" in arguments)
        print(f"explr: stopped{goes_on}.", file=sys.stderr)
        return 130
    return 0


def _parser(*, listed: bool) -> argparse.ArgumentParser:
    """Return the parser; to list the experiments in its help takes torch, and so a second."""
    parser = argparse.ArgumentParser(
        prog="explr", description="Weight decay is an exponentially increasing learning rate, exactly."
    )
    parser.add_argument("--version", action="version", version=f"explr {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    about = "print the exponential learning rate that is equivalent to a weight decay"
    sub = commands.add_parser(
        "convert",
        help=about,
        description=f"{about[0].upper()}{about[1:]} at constant learning rate (Theorem 1, and twins beyond it).",
    )
    sub.add_argument("--lr", type=float, required=True, help="learning rate, per step")
    sub.add_argument("--weight-decay", type=float, required=True, help="as the optimizer of torch takes it")
    sub.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd", help="default: sgd")
    sub.add_argument("--momentum", type=float, help="of sgd, in [0, 1) (default: 0)")
    sub.add_argument("--nesterov", action="store_true", help="the momentum is Nesterov's")
    sub.add_argument("--dampening", type=float, help="of sgd (default: 0)")
    sub.add_argument("--betas", type=float, nargs=2, metavar="BETA", help="of adamw (default: 0.9 0.999)")
    sub.add_argument("--steps-per-epoch", type=int, default=391, help="default: 391, CIFAR-10 in batches of 128")
    sub.set_defaults(command=_convert)

    about = "tell whether a network is scale-invariant, and where not, why"
    sub = commands.add_parser(
        "check",
        help=about,
        description=f"{about[0].upper()}{about[1:]} (Appendix C of the paper). "
        "It imports MODULE, from the current folder or as installed, and calls CALLABLE: check only code that you would run.",
    )
    sub.add_argument("model", metavar="MODULE:CALLABLE", help="what makes the network, e.g. torchvision.models:resnet18")
    sub.add_argument(
        "--input",
        action="append",
        required=True,
        metavar="[NAME=]SHAPE[:DTYPE]",
        help="shape of an input, e.g. 2,3,224,224, or input_ids=2,16:int64 for zeros; once for each argument of the network",
    )
    sub.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="hold the proof against numbers, some steps in float64 (default: yes)",
    )
    sub.add_argument(
        "--kwargs",
        type=_options,
        default={},
        metavar="JSON",
        help="""what makes the network is called with, e.g. '{"model_name": "resnet50d"}' for timm:create_model""",
    )
    sub.add_argument(
        "--forward",
        type=_options,
        default={},
        metavar="JSON",
        help="""what the network is called with besides its inputs, e.g. '{"use_cache": false}'""",
    )
    sub.add_argument("--full", action="store_true", help="a line for each layer and obstruction, however many are alike")
    sub.set_defaults(command=_check)

    about = "train the runs of an experiment and keep their records"
    sub = commands.add_parser(
        "run",
        help=about,
        description=f"{about[0].upper()}{about[1:]}. Runs that have a record are not made again; a run that was killed goes on "
        "from its last whole epoch.",
        epilog=_list_experiments() if listed else None,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.add_argument("name", nargs="?", metavar="NAME", help="the experiment (see below)")
    sub.add_argument(
        "--missing", action="store_true", help="without NAME: the runs of every experiment that have no record yet"
    )
    sub.add_argument("--epochs", type=int, help="length of a run (default: 200, as in the source); milestones move with it")
    sub.add_argument("--small", action="store_true", help="a smaller network on a fifth of the images, for a CPU")
    sub.add_argument(
        "--precision",
        default="float32",
        help="of the layers: float32 (default), tf32, bfloat16 or float64; which is fastest depends on the machine",
    )
    sub.add_argument("--together", type=int, help="number of runs that share the device (default: 4 on a GPU, 1 on a CPU)")
    sub.add_argument("--seeds", type=int, help="number of seeds (default: as many as the book uses)")
    sub.add_argument("--device", help="where to train, as torch names it (default: cuda if there is one, else cpu)")
    sub.add_argument(
        "--data",
        metavar="FOLDER",
        help="CIFAR-10 (default: EXPLR_DATA, else the user's cache, else a download); 'synthetic' for the stand-in",
    )
    sub.add_argument(
        "--results", type=Path, metavar="FOLDER", help="where the records go (default: book/results of a checkout)"
    )
    jobs = sub.add_argument_group(
        "jobs",
        "With --executor the missing runs go out as jobs (needs the extra cluster). One that is preempted or out of time is "
        "queued again and goes on from its last whole epoch; the records come to the same folder, which all machines must see. "
        "What sbatch is to know besides, such as SBATCH_ACCOUNT or SBATCH_QOS, it reads from the environment.",
    )
    jobs.add_argument("--executor", choices=("slurm", "local"), help="a job array of Slurm, or processes of this machine")
    jobs.add_argument("--partition", help="of Slurm (default: the cluster's own choice)")
    jobs.add_argument("--gpus", type=int, help="of each job, 0 or 1 (default: 1; with local 1 if there is one)")
    jobs.add_argument("--hours", type=float, help="a job's time, longer than an epoch takes (default: 4)")
    jobs.add_argument("--jobs", type=int, help="how many at the same time (default: as many as Slurm gives; with local 1)")
    sub.set_defaults(command=_run)
    return parser


def _list_experiments() -> str:
    from explr.experiments.catalogue import EXPERIMENTS

    return "experiments:\n" + "\n".join(
        f"  {name:15} {e.shows}; {e.seeds} seed{'s' * (e.seeds > 1)}" for name, e in EXPERIMENTS.items()
    )


def _convert(parsed: argparse.Namespace) -> None:
    lr, decay, steps = parsed.lr, parsed.weight_decay, parsed.steps_per_epoch
    if steps < 1:
        raise ExplrError(f"--steps-per-epoch {steps} must be at least 1.")
    of_sgd = {"--momentum": parsed.momentum, "--dampening": parsed.dampening, "--nesterov": parsed.nesterov or None}
    foreign = of_sgd if parsed.optimizer == "adamw" else {"--betas": parsed.betas}
    for option, value in foreign.items():
        if value is not None:
            raise ExplrError(f"{option} is not an option of --optimizer {parsed.optimizer}: leave one of them out.")
    momentum, dampening = parsed.momentum or 0.0, parsed.dampening or 0.0
    if parsed.nesterov and (dampening or not momentum):
        raise ExplrError("--nesterov needs a positive --momentum and no --dampening, as in torch.optim.SGD.")
    growth: Callable[[float], float]  # of the rate over some steps
    make: Callable[[int], Schedule]
    if parsed.optimizer == "adamw":
        betas = tuple(parsed.betas or (0.9, 0.999))
        state, what = adamw_steady_state(lr, decay, betas), f"betas {betas[0]} {betas[1]}"
        lines = [
            ("beta1", f"{state.betas[0]:.12f}"),
            ("beta2", f"{state.betas[1]:.12f}"),
            ("rate times", f"{state.factor:.12f}"),
        ]

        def growth(count: float) -> float:
            return growth_rate(lr, decay, steps=0.5 * count)  # P enters the rate once, in SGD twice

        def make(count: int) -> Schedule:
            return convert_adamw([lr] * count, decay, betas)

    else:
        options = {"momentum": momentum, "nesterov": parsed.nesterov}
        what = f"{'Nesterov ' if parsed.nesterov else ''}momentum {momentum}" + (
            f", dampening {dampening}" if dampening else ""
        )
        # From the second step on a damped buffer takes in 1 - dampening of the decay, so that is the decay of the steady state.
        # Without momentum there is no buffer.
        lasting = decay * (1.0 - dampening) if momentum else decay
        convert([lr], decay, dampening=dampening, **options)  # for its errors, which name what was given
        try:
            lines = [("root alpha", f"{characteristic_root(lr, lasting, **options):.15f}")]
        except ExplrError as error:
            given = f" (weight_decay={lasting:g} is {decay:g} times 1 - {dampening:g} for the dampening.)" if dampening else ""
            raise ExplrError(f"{error}{given}") from None

        def growth(count: float) -> float:
            return growth_rate(lr, lasting, steps=count, **options)

        def make(count: int) -> Schedule:
            return convert([lr] * count, decay, dampening=dampening, **options)

        if parsed.nesterov:
            lines += [("momentum", f"{momentum * (1.0 - lr * decay):.12f}"), ("dampening", f"{1.0 - growth(1):.12f}")]
    lines += [("growth per step", f"{growth(1):.12f}"), ("growth per epoch", f"{growth(steps):.12f}  ({steps} steps)")]
    lines += _horizons(lr, growth(1), make, steps)
    print(f"lr {lr}, weight decay {decay}, {what}: train without weight decay, and let the rate grow. In the steady state:")
    print("\n".join(f"  {name:17} {value}" for name, value in lines))


def _horizons(lr: float, growth: float, make: Callable[[int], Schedule], steps_per_epoch: int) -> Iterator[tuple[str, str]]:
    """Say how many steps each dtype holds: find the step near where the steady growth says, in the exact schedule."""
    far = 800.0 - math.log(lr)  # the log of every dtype's largest number is below 710; the start-up costs less than the rest
    schedule = make(1 if growth == 1.0 else min(int(far / math.log(growth)) + 2, 2_000_000))
    for dtype in _DTYPES:
        step = schedule.first_overflow(dtype)
        never = "every step" if growth == 1.0 else "more than 2,000,000 steps"
        yield f"{dtype} holds", never if step is None else f"{step} steps, {step / steps_per_epoch:.1f} epochs"


def _check(parsed: argparse.Namespace) -> None:
    from explr.invariance import scale_invariance

    model = _network(parsed.model, parsed.kwargs)
    named = [text.rpartition("=") for text in parsed.input]
    inputs = [_example(shape) for name, _, shape in named if not name]
    options = {name: _example(shape) for name, _, shape in named if name} | parsed.forward
    print(scale_invariance(model.train(), *inputs, **options, verify=parsed.verify).table(full=parsed.full))


def _network(named: str, options: dict[str, Any]) -> nn.Module:
    """Import what ``MODULE:CALLABLE`` names, and call it."""
    from torch import nn

    module, _, name = named.partition(":")
    file = Path(module)
    if file.suffix == ".py" or len(file.parts) > 1:
        place = "" if file.parent == Path() else f"in {file.parent} "
        raise ExplrError(f"{named} names a file, not a module: {place}say {file.stem}:{name or 'CALLABLE'}.")
    if not (module and name):
        raise ExplrError(f"{named} must be MODULE:CALLABLE, such as torchvision.models:resnet18.")
    sys.path.insert(0, "")  # the reader's own modules, as with python -m
    try:
        make = getattr(importlib.import_module(module), name, None)
    except (Exception, SystemExit) as error:  # of somebody else's code, which may do anything
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            raise ExplrError(
                f"{named}: there is no module {error.name} in {Path.cwd()} or among what is installed for {sys.executable}. Go "
                "to the folder that has it, or install it."
            ) from error
        hint = (
            "It runs as a script: put all but definitions under if __name__ == '__main__'."
            if isinstance(error, SystemExit)
            else f"python -c 'import {module}' shows where."
        )
        raise ExplrError(f"{module} cannot be imported ({type(error).__name__}: {error}). {hint}") from error
    if make is None:
        raise ExplrError(f"{module} has no {name}: give what its top level defines, a class or a function.")
    if isinstance(make, nn.Module) or not callable(make):
        raise ExplrError(f"{named} is a {type(make).__name__}: give what makes a network, its class or a function.")
    try:
        model = make(**options)
    except Exception as error:  # likewise
        given = f" with {json.dumps(options)}" * bool(options)
        raise ExplrError(
            f"{named} makes no network{given} ({type(error).__name__}: {error}): give its arguments as --kwargs JSON."
        ) from error
    if not isinstance(model, nn.Module):
        raise ExplrError(f"{named} makes a {type(model).__name__}, not a torch.nn.Module.")
    return model


def _options(text: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON ({error})") from None
    if not isinstance(options, dict):
        raise argparse.ArgumentTypeError(f"{text!r} must map names to values, as in '{{\"num_classes\": 10}}'")
    return options


def _example(text: str) -> Tensor:
    import torch

    shape, _, dtype = text.partition(":")
    try:
        sizes = [int(size) for size in shape.split(",")]
        kind = getattr(torch, dtype or "float32")
        if not isinstance(kind, torch.dtype):
            raise ValueError
        return torch.randn(sizes, dtype=kind) if kind.is_floating_point else torch.zeros(sizes, dtype=kind)
    except (ValueError, AttributeError, RuntimeError, TypeError):  # the last two where a size is too large
        raise ExplrError(
            f"--input {text} is not [NAME=]SHAPE[:DTYPE] of a tensor that fits into memory, such as 2,3,224,224 or 2,16:int64."
        ) from None


def _run_all(names: Sequence[str], images: Dataset, options: dict[str, Any]) -> Iterator[tuple[str, str, int, Run]]:
    """Make the runs of several experiments; one in which runs diverge is told of when all others are there."""
    from explr.experiments.arms import DivergedError
    from explr.experiments.catalogue import run_experiment

    diverged = []
    for name in names:
        try:
            yield from ((name, *found) for found in run_experiment(name, images, **options))
        except DivergedError as error:
            diverged.append(str(error))
    if diverged:
        raise DivergedError("\n".join(diverged))


def _run(parsed: argparse.Namespace) -> None:
    from explr.experiments import catalogue, cluster, data

    if parsed.name is None and not parsed.missing:
        raise ExplrError("explr run needs the NAME of an experiment, or --missing for all; see explr run --help.")
    options = {
        "seeds": parsed.seeds,
        "epochs": catalogue.EPOCHS if parsed.epochs is None else parsed.epochs,
        "small": parsed.small,
        "precision": parsed.precision,
        "device": parsed.device,
        "together": parsed.together,
        "results": parsed.results,
    }
    asked = {name: getattr(parsed, name) for name in ("partition", "gpus", "hours", "jobs")}
    asked = {name: value for name, value in asked.items() if value is not None}
    names = [parsed.name] if parsed.name else list(catalogue.EXPERIMENTS)
    runs: Iterator[tuple[str, str, int, Run]]
    if parsed.executor:
        runs = cluster.run_on(cluster.Request(parsed.executor, **asked), names, parsed.data, **options)
    elif asked:
        raise ExplrError(f"--{next(iter(asked))} is of jobs: name an --executor, too, or leave it out.")
    else:
        images = data.find(parsed.data)
        runs = _run_all(names, images, options)
    for name, arm, seed, run in runs:
        accuracy, loss = run.history["test_accuracy"][-1], run.history["train_loss"][-1]
        print(f"{name} {arm} seed {seed}: test accuracy {accuracy:.4f}, train loss {loss:.4f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
