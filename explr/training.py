"""The training loop: a configuration in, a record out.

A run of a regime and a run of its counterpart differ in two things only, the table of learning rates and the weight decay:
``RunConfig.learning_rates`` makes both. Everything random is a function of the seed, so runs of the same seed are paired: the
same initial weights, the same batches, the same crops. Inside a step nothing is read back from the device.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
import platform
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from explr import models, schedules
from explr.data import Choices, Dataset, cifar10, epoch_choices
from explr.equivalence import ExpSchedule, FloatArray, convert, texp
from explr.errors import ExplrError
from explr.files import atomic_write

Regime = Literal["weight_decay", "exponential", "texp"]
_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_FORMAT = 1


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run, but the data and the machine. Steps are counted in optimizer updates.

    Attributes:
        regime: "weight_decay" trains as everyone does; "exponential" without weight decay and with the exact counterpart of
            the schedule (:func:`explr.convert`); "texp" with the closed form of Theorem 2 (:func:`explr.texp`).
        schedule: a function of :mod:`explr.schedules`, by name, and its arguments.
        schedule_args: for example ``{"lr": 0.1, "milestones": [31280, 46920]}``; milestones and periods in steps.
        weight_decay: λ. The other regimes turn it into learning rates.
        momentum: γ.
        epochs: passes over the training images.
        batch_size: the last batch of an epoch may be smaller.
        seed: of the initial weights and of everything random about the data.
        model: a function of :mod:`explr.models`, by name, and its arguments.
        model_args: for example ``{"norm": "group"}``.
        augment: crop and flip the training images.
        one_ulp: move every initial weight to the next number up that the precision holds: the smallest change there is, as
            a control for how far runs drift apart by rounding alone.
        precision: "float32" or "float64".
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

    def learning_rates(self, steps: int) -> ExpSchedule:
        """Return the learning rates of the first ``steps`` steps, and the growth of the weights that they cause.

        Raises:
            ExplrError: if the schedule has no exponential counterpart, or a name or argument is unknown.

        >>> log_lr = RunConfig(regime="exponential").learning_rates(391).log_lr
        >>> round(float(np.exp(log_lr[-1] - log_lr[0])), 3)
        1.467
        """
        lrs = schedules.sample(_call(schedules, self.schedule, self.schedule_args), steps)
        if self.regime == "weight_decay":
            return ExpSchedule(log_lr=np.log(lrs), log_scale=np.zeros(steps + 1))
        if self.regime == "exponential":
            return convert(lrs, self.weight_decay, self.momentum)
        if self.regime == "texp":
            starts = np.flatnonzero(np.diff(lrs, prepend=np.nan))
            lengths = np.diff(starts, append=steps).tolist()
            return texp(lrs[starts], lengths, self.weight_decay, self.momentum)
        raise ExplrError(f"regime={self.regime!r} is unknown: use 'weight_decay', 'exponential' or 'texp'.")


@dataclass(frozen=True)
class Run:
    """The record of a run: numbers and where they come from, no weights.

    Attributes:
        config: what was run.
        history: one list for each quantity, one entry an epoch: ``train_loss`` and ``train_accuracy`` (averages over the
            epoch, in training mode), ``test_loss``, ``test_accuracy``, ``log_lr`` (natural log, of the epoch's last step).
        weight_norms: for every trainable tensor its Euclidean norm at the end of each epoch.
        provenance: data set, device, versions, commit, date, wall time.
    """

    config: RunConfig
    history: dict[str, list[float]]
    weight_norms: dict[str, list[float]]
    provenance: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """Write the record as JSON, whole or not at all."""
        record = {"format": _FORMAT, **dataclasses.asdict(self)}
        with atomic_write(Path(path)) as temporary:
            temporary.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Read a record that :meth:`save` wrote.

        Raises:
            ExplrError: if the file is not such a record.
        """
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
            if record.pop("format") != _FORMAT:
                raise ExplrError(f"{path} has another format than this version of explr reads ({_FORMAT}).")
            return cls(config=RunConfig(**record.pop("config")), **record)
        except (OSError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ExplrError(f"{path} is not a record of a run ({error}): make it again, or fetch it again.") from error


class Arm:
    """A network in training: one side of a comparison.

    Attributes:
        model: the network, initialised from ``config.seed``.
        learning_rates: of every step, and the growth of the weights that they cause.
        trainable: the parameters that are trained, by name.
        optimizer: torch's SGD.
    """

    def __init__(self, config: RunConfig, steps: int, device: str | torch.device = "cpu", num_classes: int = 10) -> None:
        if config.precision not in _DTYPES:
            raise ExplrError(f"precision={config.precision!r} is unknown: use {' or '.join(_DTYPES)}.")
        self.dtype = _DTYPES[config.precision]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model = _call(models, config.model, {"num_classes": num_classes, **config.model_args})
        self.model: nn.Module = model.to(device, self.dtype, memory_format=torch.channels_last)
        self.learning_rates = config.learning_rates(steps)
        self._lrs = self._check_range().lr.tolist()
        self.trainable = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if config.one_ulp:
            for parameter in self.trainable.values():
                parameter.data = torch.nextafter(parameter.data, torch.tensor(torch.inf, dtype=self.dtype, device=device))
        self.optimizer = torch.optim.SGD(
            self.trainable.values(),
            lr=self._lrs[0],
            momentum=config.momentum,
            weight_decay=config.weight_decay if config.regime == "weight_decay" else 0.0,
        )

    def step(self, step: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step of SGD; return the mean loss and the logits from before it, both on the device."""
        self.optimizer.param_groups[0]["lr"] = self._lrs[step]
        logits = self.model(images.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach(), logits.detach()

    def _check_range(self) -> ExpSchedule:
        step = self.learning_rates.first_overflow(self.dtype)
        if step is not None:
            raise ExplrError(
                f"the learning rate of step {step} is exp({self.learning_rates.log_lr[step]:.6g}), beyond the range of "
                f"{self.dtype}: train for fewer epochs, or with precision='float64'."
            )
        return self.learning_rates

    def weight_norms(self) -> dict[str, float]:
        """Return the Euclidean norm of every trainable tensor (summed in float64: squares overflow float32 first)."""
        norms = torch.stack([p.detach().double().norm() for p in self.trainable.values()])
        return dict(zip(self.trainable, norms.tolist(), strict=True))

    @torch.no_grad()
    def evaluate(self, data: Dataset, batch_size: int = 1000) -> tuple[float, float]:
        """Return the mean loss and the accuracy on the test images, in evaluation mode."""
        self.model.eval()
        totals = torch.zeros(2, dtype=torch.float64, device=data.test_labels.device)
        for images, labels in data.test_batches(batch_size, self.dtype):
            logits = self.model(images.contiguous(memory_format=torch.channels_last))
            totals += _totals(F.cross_entropy(logits, labels), logits, labels)
        self.model.train()
        loss, accuracy = (totals / len(data.test_labels)).tolist()
        return loss, accuracy


def train(
    config: RunConfig,
    data: Dataset | None = None,
    *,
    device: str | torch.device | None = None,
    checkpoint: str | Path | None = None,
) -> Run:
    """Train one network as ``config`` says and return the record. TQDM_DISABLE=1 in the environment hides the progress bar.

    Args:
        config: what to run.
        data: the images; CIFAR-10 by default (:func:`explr.data.cifar10`).
        device: where to train; by default a GPU if there is one.
        checkpoint: a file that holds the state after the last whole epoch. A run that finds it goes on from there, on a CPU to
            the same bits; when the run ends the file is removed.

    Raises:
        ExplrError: for a configuration that cannot run, a checkpoint of another run, or when a loss is not finite (the message
            names the step).

    >>> from explr.data import synthetic
    >>> small = dict(model="preresnet", model_args={"depth": 8, "width": 4}, epochs=1, batch_size=16)
    >>> run = train(RunConfig(**small), synthetic(train=64, test=32), device="cpu")
    >>> sorted(run.history)
    ['log_lr', 'test_accuracy', 'test_loss', 'train_accuracy', 'train_loss']
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    data = (data or cifar10()).to(device)
    examples = len(data.train_labels)
    steps_per_epoch = -(-examples // config.batch_size)
    arm = Arm(config, config.epochs * steps_per_epoch, device, num_classes=int(data.train_labels.max()) + 1)
    state = _State(history={}, weight_norms={name: [] for name in arm.trainable})
    saved = Path(checkpoint) if checkpoint else None
    if saved and saved.exists():
        state = _resume(saved, arm, config, data)
    start = time.perf_counter() - state.seconds
    with tqdm(total=config.epochs * steps_per_epoch, initial=state.epoch * steps_per_epoch, unit="step", leave=False) as bar:
        for epoch in range(state.epoch, config.epochs):
            choices = epoch_choices(examples, config.seed, epoch).to(device)
            losses = torch.zeros(steps_per_epoch, dtype=torch.float64, device=device)
            totals = torch.zeros(2, dtype=torch.float64, device=device)
            for index, batch in enumerate(choices.batches(config.batch_size)):
                images, labels = data.train_batch(batch, arm.dtype, augment=config.augment)
                loss, logits = arm.step(epoch * steps_per_epoch + index, images, labels)
                losses[index] = loss
                totals += _totals(loss, logits, labels)
                bar.update()
            _check_finite(losses, epoch * steps_per_epoch)
            train_loss, train_accuracy = (totals / examples).tolist()
            test_loss, test_accuracy = arm.evaluate(data)
            row = {
                "train_loss": train_loss,
                "train_accuracy": train_accuracy,
                "test_loss": test_loss,
                "test_accuracy": test_accuracy,
                "log_lr": float(arm.learning_rates.log_lr[(epoch + 1) * steps_per_epoch - 1]),
            }
            for name, value in row.items():
                state.history.setdefault(name, []).append(value)
            for name, norm in arm.weight_norms().items():
                state.weight_norms[name].append(norm)
            state.epoch, state.seconds = epoch + 1, time.perf_counter() - start
            if saved:
                _save(saved, state, arm, config, data)
            bar.set_postfix(test_accuracy=f"{test_accuracy:.3f}")
    if saved:
        saved.unlink(missing_ok=True)
    return Run(config, state.history, state.weight_norms, provenance(data, device, state.seconds))


@dataclass
class _State:
    """How far a run has come."""

    history: dict[str, list[float]]
    weight_norms: dict[str, list[float]]
    epoch: int = 0
    seconds: float = 0.0


def _save(path: Path, state: _State, arm: Arm, config: RunConfig, data: Dataset) -> None:
    content = {
        "run": [data.name, json.dumps(dataclasses.asdict(config))],
        "state": dataclasses.asdict(state),
        "model": arm.model.state_dict(),
        "optimizer": arm.optimizer.state_dict(),
    }
    with atomic_write(path) as temporary:
        torch.save(content, temporary)


def _resume(path: Path, arm: Arm, config: RunConfig, data: Dataset) -> _State:
    try:
        content = torch.load(path, weights_only=True, map_location=data.train_labels.device)
        run = content["run"]
    except Exception as error:  # torch.load has no exception of its own: a damaged file gives any of a dozen
        raise ExplrError(f"{path} is not a checkpoint ({error}): delete it to start again.") from error
    if run != [data.name, json.dumps(dataclasses.asdict(config))]:
        raise ExplrError(f"{path} is a checkpoint of another run, {run}: delete it to start again.")
    arm.model.load_state_dict(content["model"])
    arm.optimizer.load_state_dict(content["optimizer"])
    return _State(**content["state"])


@dataclass(frozen=True, eq=False)
class Comparison:
    """How far two runs are apart at each step, shape ``(steps,)`` each.

    Attributes:
        logit_error: largest difference between the logits of the two networks on the step's batch, before the step, relative
            to the largest logit.
        weight_error: largest distance over all tensors between the weights of the two after the step, each divided by the
            growth that its schedule predicts, relative to the norm of the tensor.
        log_weight_ratio: natural log of the ratio of the norms of all weights after the step, second run to first.
        log_scale: what that logarithm should be: log P of the second schedule less that of the first.
    """

    logit_error: FloatArray
    weight_error: FloatArray
    log_weight_ratio: FloatArray
    log_scale: FloatArray


def compare(
    first: RunConfig,
    second: RunConfig,
    data: Dataset,
    *,
    steps: int,
    device: str | torch.device = "cpu",
) -> Comparison:
    """Train two networks side by side on the batches of ``first.seed`` and measure how far apart they are at every step.

    Args:
        first: the one side, as a rule with weight decay.
        second: the other side, as a rule the same with ``regime="exponential"``.
        data: the images.
        steps: how many steps; epochs follow one another as in :func:`train`.
        device: where to train.

    >>> from explr.data import synthetic
    >>> tiny = {"depth": 8, "width": 4, "eps": 1e-30}
    >>> decay = RunConfig(model="preresnet", model_args=tiny, precision="float64", batch_size=8)
    >>> exponential = dataclasses.replace(decay, regime="exponential")
    >>> result = compare(decay, exponential, synthetic(train=32, test=10), steps=6)
    >>> bool(result.logit_error.max() < 1e-11)
    True
    """
    data = data.to(device)
    classes = int(data.train_labels.max()) + 1
    arms = [Arm(config, steps, device, num_classes=classes) for config in (first, second)]
    growth = [arm.learning_rates.log_scale for arm in arms]
    rows = []
    for step, batch in zip(tqdm(range(steps), leave=False), _batches(first, data), strict=False):
        images, labels = data.train_batch(batch, arms[0].dtype, augment=first.augment)
        logits = [arm.step(step, images.to(arm.dtype), labels)[1] for arm in arms]
        weights = [
            [p.detach().double() / float(np.exp(scale[step + 1])) for p in arm.trainable.values()]
            for arm, scale in zip(arms, growth, strict=True)
        ]
        norms = [torch.stack([w.norm() for w in side]) for side in weights]
        distance = torch.stack([(a - b).norm() for a, b in zip(*weights, strict=True)])
        ratio = (norms[1].norm() / norms[0].norm()).log()
        error = (logits[0] - logits[1]).abs().max() / logits[0].abs().max()
        rows.append(torch.stack([error.double(), (distance / norms[0]).max(), ratio]).tolist())
    logit_error, weight_error, log_ratio = np.array(rows).T
    log_scale = (growth[1] - growth[0])[1:]
    return Comparison(logit_error, weight_error, log_ratio + log_scale, log_scale)


def provenance(data: Dataset, device: torch.device, seconds: float) -> dict[str, Any]:
    """Return what a reader needs to judge a record and to make it again."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "data": data.name,
        "device": gpu or f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": _commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
    }


def _batches(config: RunConfig, data: Dataset) -> Iterator[Choices]:
    for epoch in itertools.count():
        yield from (
            epoch_choices(len(data.train_labels), config.seed, epoch).to(data.train_labels.device).batches(config.batch_size)
        )


def _commit() -> str | None:
    """Return the commit of the explr that is running, "+changes" if its files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    try:
        git = ["git", "-C", str(here)]
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain", "."], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def _call(module: Any, name: str, arguments: dict[str, Any]) -> Any:
    """Call the public function ``name`` of ``module``; names and arguments come from configurations, so check both."""
    function: Any = getattr(module, name, None)
    if name.startswith("_") or getattr(function, "__module__", None) != module.__name__:
        raise ExplrError(f"{module.__name__} has no function {name!r}.")
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise ExplrError(f"{module.__name__}.{name} does not take the arguments {arguments}: {error}.") from None
    return function(**arguments)


def _totals(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of the losses and the number of right answers of a batch, on the device."""
    return torch.stack([loss.detach().double() * len(labels), (logits.argmax(1) == labels).sum().double()])


def _check_finite(losses: Tensor, first_step: int) -> None:
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        raise ExplrError(
            f"the loss of step {first_step + int(bad[0])} is {float(losses[bad[0]])}: the run has diverged. Lower the learning "
            "rate, or use precision='float64' if the exponential weights have left the range of float32."
        )
