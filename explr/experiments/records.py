"""What a run is and what it leaves: the configuration that determines it, and the record of what it gave."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import math
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from explr import schedules
from explr.checks import short
from explr.equivalence import AdamWSchedule, ExpSchedule, convert, convert_adamw, texp
from explr.errors import ExplrError
from explr.experiments.data import Dataset
from explr.experiments.files import atomic_write

Regime = Literal["weight_decay", "exponential", "texp"]
Precision = Literal["float32", "tf32", "bfloat16", "float64"]
Optimizer = Literal["sgd", "nesterov", "adamw"]
ADAMW_EPS = 1e-8
PACKAGE = Path(__file__).parents[1]
HISTORY = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "log_lr")
_FORMAT = 1


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run, but the data and the machine. Steps are counted in optimizer updates.

    Attributes:
        regime: "weight_decay" trains as everyone does; "exponential" without weight decay and with the exact counterpart of
            the schedule (:func:`~explr.equivalence.convert`); "texp" with the closed form of Theorem 2
            (:func:`~explr.equivalence.texp`).
        schedule: a function of :mod:`explr.schedules`, by name, and its arguments.
        schedule_args: for example ``{"lr": 0.1, "milestones": [31280, 46920]}``; milestones and periods in steps.
        optimizer: "sgd", with heavy-ball momentum; "nesterov", SGD with Nesterov momentum; or "adamw". The exponential regime
            uses the twin of each; "texp" is for "sgd".
        weight_decay: λ. The other regimes turn it into learning rates.
        momentum: γ, of SGD.
        betas: β₁ and β₂, of AdamW, whose eps is 1e-8.
        epochs: passes over the training images.
        batch_size: the last batch of an epoch may be smaller.
        seed: of the initial weights and of everything random about the data.
        model: a function of :mod:`explr.experiments.models`, by name, and its arguments.
        model_args: for example ``{"norm": "group"}``.
        augment: crop and flip the training images.
        one_ulp: move every initial weight to the next number up that the precision holds: the smallest change there is, as
            a control for how far runs drift apart by rounding alone.
        weight_scale: carry the weights at this multiple, with what keeps the functions the same on paper (learning rates,
            weight decay, eps, running statistics). Unless it is a power of two every operation of every step rounds
            differently: a control for a run that is rounded differently all along, as an exponential one is.
        precision: "float32"; "tf32" (float32, with the matrix units' 10-bit mantissa where the device has them); "bfloat16"
            (weights in float32, layers in bfloat16); or "float64".
    """

    regime: Regime = "weight_decay"
    schedule: str = "constant"
    schedule_args: dict[str, Any] = field(default_factory=lambda: {"lr": 0.1})
    weight_decay: float = 5e-4
    momentum: float = 0.9
    epochs: int = 200
    batch_size: int = 128
    seed: int = 0
    model: str = "preresnet32"
    model_args: dict[str, Any] = field(default_factory=dict)
    augment: bool = True
    one_ulp: bool = False
    precision: str = "float32"
    weight_scale: float = 1.0
    optimizer: Optimizer = "sgd"
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        """Refuse what no run can be made of, before anything is made.

        Raises:
            ExplrError: for a value outside its range.
        """
        for name, least in {"epochs": 1, "batch_size": 1, "seed": 0}.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not least <= value < 2**63:
                raise ExplrError(f"{name}={short(value)} must be a whole number, at least {least} and below 2**63.")
        for name in ("weight_decay", "momentum", "weight_scale"):
            if not isinstance(getattr(self, name), int | float):
                raise ExplrError(f"{name}={getattr(self, name)!r} must be a number.")
        if not 0.0 <= self.weight_decay < math.inf:
            raise ExplrError(f"weight_decay={self.weight_decay!r} must be finite and not negative.")
        if not 0.0 <= self.momentum < 1.0:
            raise ExplrError(f"momentum={self.momentum!r} must lie in [0, 1).")
        for name, kind in {"schedule": str, "model": str, "schedule_args": dict, "model_args": dict}.items():
            if not isinstance(getattr(self, name), kind):
                raise ExplrError(f"{name}={getattr(self, name)!r} must be a {kind.__name__}.")
        for name in ("augment", "one_ulp"):
            if not isinstance(getattr(self, name), bool):
                raise ExplrError(f"{name}={getattr(self, name)!r} must be True or False.")
        if self.regime not in get_args(Regime):
            raise ExplrError(f"regime={self.regime!r} is unknown: use {', '.join(get_args(Regime))}.")
        if self.precision not in get_args(Precision):
            raise ExplrError(f"precision={self.precision!r} is unknown: use {', '.join(get_args(Precision))}.")
        if self.optimizer not in get_args(Optimizer):
            raise ExplrError(f"optimizer={self.optimizer!r} is unknown: use {', '.join(get_args(Optimizer))}.")
        if isinstance(self.betas, list):  # as a record gives it
            object.__setattr__(self, "betas", tuple(self.betas))
        if not (
            isinstance(self.betas, tuple)
            and len(self.betas) == 2
            and all(isinstance(beta, int | float) and 0.0 <= beta < 1.0 for beta in self.betas)
        ):
            raise ExplrError(f"betas={self.betas!r} must be two numbers in [0, 1).")
        if not 1e-6 <= self.weight_scale <= 1e6:
            raise ExplrError(f"weight_scale={self.weight_scale!r} must lie between 1e-6 and 1e6.")

    def learning_rates(self, steps: int) -> ExpSchedule | AdamWSchedule:
        """Return the learning rates of the first ``steps`` steps, what goes with them, and the growth of the weights.

        Raises:
            ExplrError: if the schedule has no exponential counterpart, or a name or argument is unknown.

        >>> log_lr = RunConfig(regime="exponential").learning_rates(391).log_lr
        >>> round(float(np.exp(log_lr[-1] - log_lr[0])), 3)
        1.467
        """
        lrs = schedules.sample(call_by_name(schedules, self.schedule, self.schedule_args), steps)
        if self.regime in ("weight_decay", "exponential"):
            decay = self.weight_decay if self.regime == "exponential" else 0.0  # nothing to convert leaves all as it is
            if self.optimizer == "adamw":
                return convert_adamw(lrs, decay, self.betas, ADAMW_EPS)
            return convert(lrs, decay, self.momentum, nesterov=self.optimizer == "nesterov")
        if self.optimizer != "sgd":
            raise ExplrError(f"regime='texp' is Theorem 2's, of heavy-ball SGD; optimizer={self.optimizer!r} is not.")
        starts = np.flatnonzero(np.diff(lrs, prepend=np.nan))
        lengths = np.diff(starts, append=steps).tolist()
        return texp(lrs[starts], lengths, self.weight_decay, self.momentum)


@dataclass(frozen=True)
class Run:
    """The record of a run: numbers and where they come from, no weights.

    Attributes:
        config: what was run.
        history: one list for each quantity, one entry an epoch: ``train_loss`` and ``train_accuracy`` (averages over the
            epoch, in training mode), ``test_loss``, ``test_accuracy``, ``log_lr`` (natural log, of the epoch's last step).
        weight_norms: for every trainable tensor its Euclidean norm at the end of each epoch.
        provenance: data set, device, versions, commit, date, wall time; in records since ``graph`` was added, whether the
            steps were a CUDA graph.
    """

    config: RunConfig
    history: dict[str, list[float]]
    weight_norms: dict[str, list[float]]
    provenance: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """Write the record as JSON, whole or not at all, with a digest of what it says.

        Raises:
            ExplrError: if it cannot be written, or holds what JSON cannot, such as infinity; what was there is as it was.
        """
        record = {"format": _FORMAT, **dataclasses.asdict(self)}
        try:
            record["sha256"] = _digest(record)
        except (TypeError, ValueError) as error:
            raise ExplrError(f"{path} is not written: a record is made of texts and finite numbers ({error}).") from error
        with atomic_write(Path(path)) as file:
            file.write((json.dumps(record, indent=1, allow_nan=False) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Read a record that :meth:`save` wrote, and refuse it if it has changed since or says what no run can give.

        Raises:
            ExplrError: if the file is not such a record; the message names the file and the field.
        """
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
            if record.pop("format") != _FORMAT:
                raise ExplrError(f"it has another format than this version of explr reads ({_FORMAT})")
            if "sha256" in record and record.pop("sha256") != _digest({"format": _FORMAT, **record}):
                raise ValueError("its numbers do not give its field sha256")
            config = record.pop("config")
            if not isinstance(config, dict):
                raise ValueError(f"config is a {type(config).__name__}")
            run = cls(config=RunConfig(**config), **record)
            run._check()
            return run
        except (OSError, KeyError, TypeError, AttributeError, ValueError, ExplrError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise ExplrError(
                f"{path} is not a record of a run, or a damaged one ({reason}): delete it and make it again, or fetch it again."
            ) from error

    def _check(self) -> None:
        """Refuse what no run can give. Records that were made before there were digests have this check alone."""
        self.config.learning_rates(1)  # names and arguments of the schedule
        check_series("history", self.history, HISTORY, self.config.epochs)
        check_series("weight_norms", self.weight_norms, (), self.config.epochs)
        for name, values in self.history.items():
            top = 1.0 if name.endswith("accuracy") else math.inf
            if name != "log_lr" and not all(0.0 <= value <= top for value in values):
                raise ValueError(f"history.{name} leaves its range")
        if not self.weight_norms or not all(value >= 0.0 for norms in self.weight_norms.values() for value in norms):
            raise ValueError("weight_norms is empty, or a norm is negative")
        origin = self.provenance
        if not isinstance(origin, dict) or not all(isinstance(origin.get(key), str) for key in ("data", "device")):
            raise ValueError("provenance does not name data and device")
        _digest(dataclasses.asdict(self))  # what else it holds is finite, too


def same_run(one: RunConfig, other: RunConfig) -> bool:
    """Tell whether two configurations are of one run: the last digits of a number that was computed differ between machines.

    >>> same_run(RunConfig(weight_decay=5e-4), RunConfig(weight_decay=5e-4 * (1.0 + 1e-15)))
    True
    >>> same_run(RunConfig(weight_decay=5e-4), RunConfig(weight_decay=5.0001e-4))
    False
    """
    return _same(dataclasses.asdict(one), dataclasses.asdict(other))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-12)
    return bool(one == other)


def check_series(field: str, series: Any, names: Iterable[str], epochs: int) -> None:
    """Refuse what is not a dictionary of lists, those of ``names`` among them, with one finite number an epoch.

    Raises:
        ValueError: naming the field and what is wrong with it.

    >>> check_series("history", {"test_loss": [0.5, 0.4, 0.3]}, ["test_loss"], epochs=2)
    Traceback (most recent call last):
    ValueError: history.test_loss has 3 entries for 2 epochs
    """
    if not isinstance(series, dict):
        raise ValueError(f"{field} is a {type(series).__name__}")
    for name in {**dict.fromkeys(names), **series}:
        values = series.get(name)
        if not isinstance(values, list):
            raise ValueError(f"{field}.{name} is missing or no list")
        if len(values) != epochs:
            raise ValueError(f"{field}.{name} has {len(values)} entries for {epochs} epochs")
        for epoch, value in enumerate(values):
            if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
                raise ValueError(f"{field}.{name}[{epoch}] is {short(value)}, no finite number")


def _digest(record: dict[str, Any]) -> str:
    """Return the digest of what a record says, however its text is laid out; a ValueError where it holds no finite number."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, allow_nan=False).encode()).hexdigest()


def provenance(
    data: Dataset, device: torch.device, seconds: float, *, together: int = 1, graph: bool = False
) -> dict[str, Any]:
    """Return what a reader needs to judge a record and to make it again.

    Args:
        data: the images.
        device: where it ran.
        seconds: how long it took.
        together: how many runs shared the device.
        graph: whether the steps were CUDA graphs.
    """
    return {
        "data": data.name,
        "device": device_name(device),
        "torch": torch.__version__,
        "command": _command(),
        "python": platform.python_version(),
        "commit": _commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "together": together,
        "graph": graph,
    }


def device_name(device: torch.device) -> str:
    """Return the name of a GPU as its maker gives it, or the kind of processor and how many threads torch uses.

    >>> device_name(torch.device("cpu")).partition(",")[0].partition(" ")[2]
    'CPU'
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} thread{'s' * (threads > 1)}"


def _command() -> str | None:
    """Return the command of ours that is running, less what is of this machine; None in a notebook or another program."""
    program, words = Path(sys.argv[0]), sys.argv[1:]
    if program.name == "explr" or program == PACKAGE / "__main__.py":
        command = ["explr"]
    elif program.parent == PACKAGE.parent / "benchmarks":
        command = ["python", "-m", f"benchmarks.{program.stem}"]
    else:
        return None
    local = {"--results", "--data", "--lossless", "--executor", "--partition", "--gpus", "--hours", "--jobs"}
    pairs = list(zip(["", *words], words, strict=False))
    command += [word for before, word in pairs if not local & {before, word.split("=")[0]}]
    synthetic = any(word == "--data=synthetic" or (before, word) == ("--data", "synthetic") for before, word in pairs)
    return shlex.join(command + ["--data", "synthetic"] * synthetic)


def call_by_name(module: Any, name: str, arguments: dict[str, Any]) -> Any:
    """Call the public function ``name`` of ``module``; names and arguments come from configurations, so check both."""
    function: Any = getattr(module, name, None)
    if name.startswith("_") or getattr(function, "__module__", None) != module.__name__:
        raise ExplrError(f"{module.__name__} has no function {name!r}.")
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise ExplrError(f"{module.__name__}.{name} does not take the arguments {arguments}: {error}.") from None
    return function(**arguments)


def _commit() -> str | None:
    """Return the commit of the code that is running, "+changes" if its files differ from it; None outside a checkout."""
    try:
        git = ["git", "-C", str(PACKAGE)]
        # Where explr is installed in another project's folder, that project's commit is none of ours.
        subprocess.run([*git, "ls-files", "--error-unmatch", "__init__.py"], capture_output=True, check=True)
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        status = [*git, "status", "--porcelain", ".", "../benchmarks/*.py"]
        changes = subprocess.run(status, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")
